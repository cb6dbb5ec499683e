//! The records of the undo log, and their bytes.
//!
//! A record is `[u32 total length][u8 kind][u64 number][body]`, little endian. A process killed in the middle
//! of an append leaves a short last record; its operation never began, so readers stop there.

use crate::sys::Key;

/// Bytes before the body.
pub const HEAD_BYTES: usize = 13;
/// Bytes of a data record before its pre-image.
pub const DATA_HEAD_BYTES: usize = HEAD_BYTES + 40;

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Numbers go on from here (the log was emptied or rewritten).
    Base,
    /// The bytes that a write is about to replace.
    Data(Data),
    /// A file (or folder) was synced: everything of it with a number up to `upto` is durable.
    Synced { key: Key, upto: u64 },
    /// The whole filesystem was synced.
    SyncedAll { upto: u64 },
    /// The file is gone for good and its inode number may come back as another file.
    Forget { key: Key },
    /// A name is about to change (for `Create`: has just come).
    Name(Name),
}

/// Head of a data record; the pre-image follows it and may be shorter than `len`: the rest were zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// The file.
    pub key: Key,
    /// First byte replaced.
    pub offset: u64,
    /// Bytes replaced (0: only the file's length changes).
    pub len: u64,
    /// The file's length before, bytes.
    pub old_size: u64,
}

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// A new file; made durable by a sync of its folder or of itself.
    Create = 1,
    /// A new folder; made durable by a sync of its parent or of itself.
    Mkdir = 2,
    /// A folder removed.
    Rmdir = 3,
    /// A further name for a file.
    Link = 4,
    /// A name removed; the file is kept.
    Unlink = 5,
    /// A name moved; a file it replaced is kept.
    Rename = 6,
    /// Two names swapped.
    Exchange = 7,
}

/// How the file that lost its name was kept in the journal folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kept {
    /// Nothing to keep.
    Nothing = 0,
    /// A hard link `kept/<number>`.
    Link = 1,
    /// A copy `kept/<number>` (the journal is on another filesystem).
    Copy = 2,
    /// It was an empty folder.
    Folder = 3,
}

/// A name change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// What happened.
    pub op: Op,
    /// How the file that lost its name was kept.
    pub kept: Kept,
    /// Folder of `path`.
    pub parent: Key,
    /// Folder of `path2` (`parent` again when there is none).
    pub parent2: Key,
    /// The file or folder named.
    pub node: Key,
    /// The file that lost its name, when one was kept.
    pub lost: Key,
    /// The name; of a rename the old one.
    pub path: Vec<u8>,
    /// The new name of a rename, else empty.
    pub path2: Vec<u8>,
}

struct Writer(Vec<u8>);

impl Writer {
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn key(&mut self, key: Key) {
        self.u64(key.dev);
        self.u64(key.ino);
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }
    fn u64(&mut self) -> Option<u64> {
        self.take(8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
    }
    fn key(&mut self) -> Option<Key> {
        Some(Key { dev: self.u64()?, ino: self.u64()? })
    }
    fn bytes(&mut self) -> Option<Vec<u8>> {
        let count = usize::try_from(self.u64()?).ok()?;
        self.take(count).map(<[u8]>::to_vec)
    }
}

impl Record {
    /// The record's bytes, without the pre-image of `payload` bytes that follows a data record.
    pub fn encode(&self, number: u64, payload: usize) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(128));
        out.0.extend_from_slice(&[0; 4]);
        let kind = match self {
            Self::Base => 1,
            Self::Data(_) => 2,
            Self::Synced { .. } => 3,
            Self::SyncedAll { .. } => 4,
            Self::Forget { .. } => 5,
            Self::Name(_) => 6,
        };
        out.0.push(kind);
        out.u64(number);
        match self {
            Self::Base => {}
            Self::Data(data) => {
                out.key(data.key);
                out.u64(data.offset);
                out.u64(data.len);
                out.u64(data.old_size);
            }
            Self::Synced { key, upto } => {
                out.key(*key);
                out.u64(*upto);
            }
            Self::SyncedAll { upto } => out.u64(*upto),
            Self::Forget { key } => out.key(*key),
            Self::Name(name) => {
                out.0.push(name.op as u8);
                out.0.push(name.kept as u8);
                for key in [name.parent, name.parent2, name.node, name.lost] {
                    out.key(key);
                }
                out.bytes(&name.path);
                out.bytes(&name.path2);
            }
        }
        let total = u32::try_from(out.0.len() + payload).unwrap_or(u32::MAX);
        out.0[..4].copy_from_slice(&total.to_le_bytes());
        out.0
    }

    /// Total length of the record that begins with `head`, bytes; none when `head` is no record.
    pub fn length(head: &[u8]) -> Option<usize> {
        let total = u32::from_le_bytes(head.get(..4)?.try_into().ok()?) as usize;
        (total >= HEAD_BYTES).then_some(total)
    }

    /// Reads a record and its number; a data record needs only its first [`DATA_HEAD_BYTES`].
    pub fn decode(bytes: &[u8]) -> Option<(u64, Self)> {
        let mut from = Reader(bytes.get(4..)?);
        let kind = from.u8()?;
        let number = from.u64()?;
        let record = match kind {
            1 => Self::Base,
            2 => Self::Data(Data {
                key: from.key()?,
                offset: from.u64()?,
                len: from.u64()?,
                old_size: from.u64()?,
            }),
            3 => Self::Synced { key: from.key()?, upto: from.u64()? },
            4 => Self::SyncedAll { upto: from.u64()? },
            5 => Self::Forget { key: from.key()? },
            6 => {
                let op = match from.u8()? {
                    1 => Op::Create,
                    2 => Op::Mkdir,
                    3 => Op::Rmdir,
                    4 => Op::Link,
                    5 => Op::Unlink,
                    6 => Op::Rename,
                    7 => Op::Exchange,
                    _ => return None,
                };
                let kept = match from.u8()? {
                    0 => Kept::Nothing,
                    1 => Kept::Link,
                    2 => Kept::Copy,
                    3 => Kept::Folder,
                    _ => return None,
                };
                Self::Name(Name {
                    op,
                    kept,
                    parent: from.key()?,
                    parent2: from.key()?,
                    node: from.key()?,
                    lost: from.key()?,
                    path: from.bytes()?,
                    path2: from.bytes()?,
                })
            }
            _ => return None,
        };
        Some((number, record))
    }
}
