//! The journal folder: `lock` (held by the process under test or the tool), `log` (the records) and `kept/`
//! (files that lost their name, until that is durable).

use std::ffi::CString;

use libc::c_int;

use crate::{
    pending::{Pending, Place},
    record::{DATA_HEAD_BYTES, Data, Kept, Name, Record},
    sys::{self, Errno, Key},
};

/// Largest pre-image of one record, bytes; longer ranges take several records.
const PIECE_BYTES: u64 = 1 << 20;
/// The log is emptied above this many bytes when everything is durable.
const EMPTY_ABOVE_BYTES: u64 = 1 << 20;
/// The log is rewritten above this many bytes when less than half of it is still needed.
const REWRITE_ABOVE_BYTES: u64 = 64 << 20;

/// The open journal.
#[derive(Debug)]
pub struct Log {
    folder: Vec<u8>,
    lock: c_int,
    fd: c_int,
    /// Length of the log, bytes.
    len: u64,
    /// What is not durable.
    pub pending: Pending,
    buffer: Vec<u8>,
}

/// A path as the kernel takes it.
pub fn c_path(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| libc::EINVAL)
}

impl Log {
    /// Opens the journal, makes it if there is none, and folds its records.
    ///
    /// # Errors
    /// `EWOULDBLOCK` while another process has it open, else the errno of what failed.
    pub fn open(folder: &[u8]) -> Result<Self, Errno> {
        for part in [folder.to_vec(), [folder, b"/kept"].concat()] {
            match sys::mkdir(&c_path(&part)?) {
                Ok(()) | Err(libc::EEXIST) => {}
                Err(code) => return Err(code),
            }
        }
        let create = libc::O_RDWR | libc::O_CREAT;
        let lock = sys::open(&c_path(&[folder, b"/lock"].concat())?, create, 0o600)?;
        if let Err(code) = sys::try_lock(lock) {
            sys::close(lock);
            return Err(code);
        }
        let fd = sys::open(&c_path(&[folder, b"/log"].concat())?, create, 0o600)?;
        let pending = Pending { next: 1, ..Pending::default() };
        let mut log = Self { folder: folder.to_vec(), lock, fd, len: 0, pending, buffer: Vec::new() };
        let gone = log.fold(true)?;
        // A record cut short by the kill: its operation never began.
        sys::set_len(log.fd, log.len)?;
        gone.into_iter().try_for_each(|key| log.fresh(key))?;
        Ok(log)
    }

    /// Folds the records of a journal that may be in use; the answer is for reading only.
    ///
    /// # Errors
    /// The errno of what failed.
    pub fn peek(folder: &[u8]) -> Result<Self, Errno> {
        let fd = sys::open(&c_path(&[folder, b"/log"].concat())?, libc::O_RDONLY, 0)?;
        let pending = Pending { next: 1, ..Pending::default() };
        let mut log = Self { folder: folder.to_vec(), lock: -1, fd, len: 0, pending, buffer: Vec::new() };
        log.fold(false)?;
        Ok(log)
    }

    /// Reads all records; with `tidy` removes kept files that are no longer needed, and returns the files whose
    /// last name that was.
    fn fold(&mut self, tidy: bool) -> Result<Vec<Key>, Errno> {
        let size = sys::fstat(self.fd)?.st_size as u64;
        let mut head = vec![0u8; 512];
        let mut gone = Vec::new();
        while self.len < size {
            let got = sys::read_at(self.fd, &mut head, self.len)?;
            let Some(total) = Record::length(&head[..got]).filter(|t| self.len + *t as u64 <= size) else {
                break;
            };
            let decoded = if total > got && Record::decode(&head[..got]).is_none() {
                let mut whole = vec![0u8; total];
                sys::read_at(self.fd, &mut whole, self.len)?;
                Record::decode(&whole)
            } else {
                Record::decode(&head[..total.min(got)])
            };
            let Some((number, record)) = decoded else { break };
            for (place, name) in self.pending.apply(Place { number, at: self.len, len: total as u64 }, record)
            {
                if !tidy {
                    continue;
                }
                // Still there only if the kill came between the record and the removal.
                if name.kept == Kept::Link && self.is_last_name(place.number)? {
                    gone.push(name.lost);
                }
                self.drop_kept(place.number, &name);
            }
            self.len += total as u64;
        }
        Ok(gone)
    }

    fn is_last_name(&self, number: u64) -> Result<bool, Errno> {
        Ok(sys::lstat(&self.kept_path(number)?).is_ok_and(|st| st.st_nlink == 1))
    }

    /// Path of the file kept for the name change with this number.
    pub fn kept_path(&self, number: u64) -> Result<CString, Errno> {
        c_path(&[&self.folder[..], format!("/kept/{number}").as_bytes()].concat())
    }

    /// Appends a record with its pre-image; returns its number and the name changes it made durable.
    fn append(&mut self, record: Record, payload: &[u8]) -> Result<Vec<(Place, Name)>, Errno> {
        let number = self.pending.next;
        let mut bytes = record.encode(number, payload.len());
        bytes.extend_from_slice(payload);
        sys::write_at(self.fd, &bytes, self.len)?;
        let place = Place { number, at: self.len, len: bytes.len() as u64 };
        self.len += place.len;
        Ok(self.pending.apply(place, record))
    }

    /// Saves what `[offset, offset + len)` of a file holds, before it is replaced; `source` is readable.
    pub fn save(&mut self, source: c_int, data: Data) -> Result<(), Errno> {
        let end = data.offset + data.len;
        let mut at = data.offset;
        loop {
            let inside = data.old_size.min(end).saturating_sub(at).min(PIECE_BYTES) as usize;
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(inside, 0);
            let got = if inside == 0 { 0 } else { sys::read_at(source, &mut buffer, at)? };
            let filled = buffer[..got].iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
            // What lies past the end of the file needs no bytes: it goes with the last piece.
            let last = at + inside as u64 >= data.old_size.min(end);
            let len = if last { end - at } else { inside as u64 };
            let piece = Data { offset: at, len, ..data };
            let saved = self.append(Record::Data(piece), &buffer[..filled]);
            self.buffer = buffer;
            saved?;
            at += len;
            if at >= end {
                return Ok(());
            }
        }
    }

    /// Keeps the file at `path`, which is about to lose that name, for the next record.
    pub fn keep(&self, path: &CString) -> Result<Kept, Errno> {
        let kept = self.kept_path(self.pending.next)?;
        let _ = sys::unlink(&kept, 0);
        match sys::link(path, &kept) {
            Ok(()) => Ok(Kept::Link),
            Err(libc::EXDEV | libc::EPERM | libc::EMLINK) => sys::copy(path, &kept).map(|()| Kept::Copy),
            Err(code) => Err(code),
        }
    }

    /// Notes a name change.
    pub fn name(&mut self, name: Name) -> Result<(), Errno> {
        self.append(Record::Name(name), &[]).map(drop)
    }

    /// A new file got this key: what was known of an earlier file with it is void.
    pub fn fresh(&mut self, key: Key) -> Result<(), Errno> {
        if self.pending.files.contains_key(&key) {
            self.append(Record::Forget { key }, &[])?;
        }
        Ok(())
    }

    /// Notes a finished sync of one file or folder.
    pub fn synced(&mut self, key: Key, upto: u64) -> Result<(), Errno> {
        self.settle(Record::Synced { key, upto })
    }

    /// Notes a finished sync of the whole filesystem.
    pub fn synced_all(&mut self, upto: u64) -> Result<(), Errno> {
        self.settle(Record::SyncedAll { upto })
    }

    fn settle(&mut self, record: Record) -> Result<(), Errno> {
        for (place, name) in self.append(record, &[])? {
            if name.kept == Kept::Link && self.is_last_name(place.number)? {
                // Before the kept link goes: from then on the inode number may come back.
                self.fresh(name.lost)?;
            }
            self.drop_kept(place.number, &name);
        }
        if self.pending.is_empty() && self.len > EMPTY_ABOVE_BYTES {
            self.empty()
        } else if self.len > REWRITE_ABOVE_BYTES && self.pending.live_bytes * 2 < self.len {
            self.rewrite()
        } else {
            Ok(())
        }
    }

    fn drop_kept(&self, number: u64, name: &Name) {
        if matches!(name.kept, Kept::Link | Kept::Copy)
            && let Ok(path) = self.kept_path(number)
        {
            // Already gone after a kill between the record and this call.
            let _ = sys::unlink(&path, 0);
        }
    }

    /// Empties the log: what stands is durable.
    pub fn empty(&mut self) -> Result<(), Errno> {
        sys::set_len(self.fd, 0)?;
        self.len = 0;
        self.pending = Pending { next: self.pending.next, ..Pending::default() };
        self.append(Record::Base, &[]).map(drop)
    }

    /// Writes the log anew with only the records still needed.
    fn rewrite(&mut self) -> Result<(), Errno> {
        let fresh = c_path(&[&self.folder[..], b"/log.new"].concat())?;
        let fd = sys::open(&fresh, libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC, 0o600)?;
        let files = self.pending.files.values_mut().flatten().map(|(place, _)| place);
        let names = self.pending.names.iter_mut().map(|(place, _)| place);
        let mut places: Vec<&mut Place> = files.chain(names).collect();
        places.sort_by_key(|place| place.number);
        let base = Record::Base.encode(self.pending.next, 0);
        sys::write_at(fd, &base, 0)?;
        let mut len = base.len() as u64;
        let mut bytes = Vec::new();
        for place in places {
            bytes.resize(place.len as usize, 0);
            sys::read_at(self.fd, &mut bytes, place.at)?;
            sys::write_at(fd, &bytes, len)?;
            place.at = len;
            len += place.len;
        }
        self.pending.next += 1;
        sys::rename(&fresh, &c_path(&[&self.folder[..], b"/log"].concat())?, 0)?;
        sys::close(self.fd);
        (self.fd, self.len) = (fd, len);
        Ok(())
    }

    /// Length of the log, bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The pre-image of a data record, without the zeros at its end.
    pub fn pre_image(&self, place: Place) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0u8; (place.len as usize).saturating_sub(DATA_HEAD_BYTES)];
        let got = sys::read_at(self.fd, &mut bytes, place.at + DATA_HEAD_BYTES as u64)?;
        bytes.truncate(got);
        Ok(bytes)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        sys::close(self.fd);
        if self.lock >= 0 {
            sys::close(self.lock);
        }
    }
}
