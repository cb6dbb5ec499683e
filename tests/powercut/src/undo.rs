//! Takes back what a power cut would have lost: unsynced bytes whole or torn at sectors, then names.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    log::Log,
    pending::Place,
    record::{Data, Kept, Name, Op},
    sys::{self, Errno, Key},
};

/// What a disk writes whole or not at all, bytes.
const SECTOR_BYTES: u64 = 512;
/// Sectors of a page of the page cache.
const PAGE_SECTORS: u64 = 8;

/// How much of the unsynced bytes the cut takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// All of them, and every name change.
    Lost,
    /// Some sectors of every file, and the latest name changes from a random point on.
    Torn,
    /// For each file all, some sectors or none.
    Mixed,
}

/// What an undo did.
#[derive(Debug, Default)]
pub struct Done {
    /// Files that had unsynced writes.
    pub files: u64,
    /// Writes of which at least one sector was taken back.
    pub writes_undone: u64,
    /// Bytes taken back.
    pub bytes_undone: u64,
    /// Writes that survived whole.
    pub writes_kept: u64,
    /// Name changes taken back.
    pub names_undone: u64,
}

/// A seeded generator (splitmix64): the same seed cuts the same way.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound` (which is not 0).
    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn coin(&mut self) -> bool {
        self.roll() & 1 == 0
    }
}

fn os(code: Errno) -> std::io::Error {
    std::io::Error::from_raw_os_error(code)
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Every regular file below a folder, by what it is.
fn walk(folder: &Path, found: &mut HashMap<Key, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            walk(&path, found)?;
        } else if meta.is_file() {
            found.insert(Key { dev: meta.dev(), ino: meta.ino() }, path);
        }
    }
    Ok(())
}

/// Cuts the power: undoes what is pending in `log`, then empties it.
pub fn undo(folder: &Path, journal: &Path, log: &mut Log, mode: Mode, dice: &mut Dice) -> Result<Done> {
    let mut done = Done::default();
    let mut places = HashMap::new();
    walk(&journal.join("kept"), &mut places)?;
    walk(folder, &mut places)?;
    for (place, name) in &log.pending.names {
        if name.kept == Kept::Copy {
            let kept = log.kept_path(place.number).map_err(os)?;
            places.entry(name.lost).or_insert_with(|| as_path(kept.as_bytes()).to_owned());
        }
    }
    // In order of paths, which unlike inode numbers are the same in every run.
    let mut files: Vec<_> = log.pending.files.iter().collect();
    files.sort_by_key(|(key, _)| places.get(*key));
    for (key, writes) in files {
        let Some(path) = places.get(key) else { continue };
        done.files += 1;
        let lost = match mode {
            Mode::Lost => true,
            Mode::Torn => false,
            Mode::Mixed => match dice.below(3) {
                0 => true,
                1 => false,
                _ => {
                    done.writes_kept += writes.len() as u64;
                    continue;
                }
            },
        };
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if lost {
            lose(&file, log, writes, &mut done)?;
        } else {
            tear(&file, log, writes, dice, &mut done)?;
        }
        file.sync_all()?;
    }
    let count = log.pending.names.len() as u64;
    let first = if mode == Mode::Lost { 0 } else { dice.below(count + 1) as usize };
    for (place, name) in log.pending.names[first..].iter().rev() {
        if undo_name(log, place.number, name)? {
            done.names_undone += 1;
        }
    }
    for entry in fs::read_dir(journal.join("kept"))? {
        fs::remove_file(entry?.path())?;
    }
    log.empty().map_err(os)?;
    Ok(done)
}

/// Puts every pre-image back, the newest first.
fn lose(file: &File, log: &Log, writes: &[(Place, Data)], done: &mut Done) -> Result<()> {
    for (place, data) in writes.iter().rev() {
        let mut bytes = log.pre_image(*place).map_err(os)?;
        bytes.resize(data.old_size.saturating_sub(data.offset).min(data.len) as usize, 0);
        file.write_all_at(&bytes, data.offset)?;
        done.writes_undone += 1;
        done.bytes_undone += data.len;
    }
    let size = writes.first().context("a pending file has writes")?.1.old_size;
    Ok(file.set_len(size)?)
}

fn sectors(data: &Data) -> std::ops::Range<u64> {
    if data.len == 0 {
        return 0..0;
    }
    data.offset / SECTOR_BYTES..(data.offset + data.len).div_ceil(SECTOR_BYTES)
}

/// For each sector how many of its newest writes are lost, and the length that survives.
fn plan(writes: &[(Place, Data)], now: u64, dice: &mut Dice) -> (HashMap<u64, u32>, u64) {
    let mut touches: HashMap<u64, u32> = HashMap::new();
    let mut lost: HashMap<u64, u32> = HashMap::new();
    for (_, data) in writes {
        for sector in sectors(data) {
            *touches.entry(sector).or_default() += 1;
        }
    }
    let count = writes.len();
    let mut sizes: Vec<u64> = writes.iter().map(|(_, data)| data.old_size).collect();
    sizes.push(now);
    let size = sizes[dice.below(count as u64 + 1) as usize];
    match dice.below(5) {
        // A prefix of the writes survives, and the next write up to some sector.
        0 => {
            let cut = dice.below(count as u64) as usize;
            let torn = sectors(&writes[cut].1);
            let kept = torn.start..torn.start + dice.below(torn.end - torn.start + 1);
            for (index, (_, data)) in writes.iter().enumerate().skip(cut) {
                for sector in sectors(data).filter(|s| index > cut || !kept.contains(s)) {
                    *lost.entry(sector).or_default() += 1;
                }
            }
            return (lost, sizes[cut + usize::from(!kept.is_empty())]);
        }
        // Only what the last writes touched survives: the disk wrote in another order.
        1 => {
            let cut = dice.below(count as u64) as usize;
            let late: std::collections::HashSet<u64> =
                writes[cut..].iter().flat_map(|(_, data)| sectors(data)).collect();
            lost.extend(touches.iter().filter(|(sector, _)| !late.contains(sector)));
        }
        // Whole pages survive or not.
        2 => {
            let mut pages: Vec<u64> = touches.keys().map(|sector| sector / PAGE_SECTORS).collect();
            pages.sort_unstable();
            pages.dedup();
            let gone: std::collections::HashSet<u64> = pages.into_iter().filter(|_| dice.coin()).collect();
            lost.extend(touches.iter().filter(|(sector, _)| gone.contains(&(*sector / PAGE_SECTORS))));
        }
        // Whole writes survive or not, as far as nothing later overwrote them.
        3 => {
            let fates: Vec<bool> = writes.iter().map(|_| dice.coin()).collect();
            for ((_, data), fate) in writes.iter().zip(fates) {
                for sector in sectors(data) {
                    let newest = lost.entry(sector).or_default();
                    *newest = if fate { 0 } else { *newest + 1 };
                }
            }
        }
        // Every sector stops at any of its states.
        _ => {
            let mut all: Vec<(u64, u32)> = touches.into_iter().collect();
            all.sort_unstable();
            lost.extend(all.into_iter().map(|(s, n)| (s, dice.below(u64::from(n) + 1) as u32)));
        }
    }
    (lost, size)
}

/// Takes back some sectors of the unsynced writes.
fn tear(file: &File, log: &Log, writes: &[(Place, Data)], dice: &mut Dice, done: &mut Done) -> Result<()> {
    let (mut lost, size) = plan(writes, file.metadata()?.len(), dice);
    let mut image: HashMap<u64, [u8; SECTOR_BYTES as usize]> = HashMap::new();
    for (place, data) in writes.iter().rev() {
        let mut pre: Option<Vec<u8>> = None;
        let mut bytes = 0;
        for sector in sectors(data) {
            let Some(left) = lost.get_mut(&sector).filter(|left| **left > 0) else { continue };
            *left -= 1;
            if pre.is_none() {
                pre = Some(log.pre_image(*place).map_err(os)?);
            }
            let old = pre.as_deref().unwrap_or_default();
            let base = sector * SECTOR_BYTES;
            let content = match image.entry(sector) {
                std::collections::hash_map::Entry::Occupied(held) => held.into_mut(),
                std::collections::hash_map::Entry::Vacant(free) => {
                    let mut content = [0; SECTOR_BYTES as usize];
                    read_up_to(file, &mut content, base)?;
                    free.insert(content)
                }
            };
            let from = data.offset.max(base);
            let to = (data.offset + data.len).min(base + SECTOR_BYTES);
            for at in from..to {
                content[(at - base) as usize] = old.get((at - data.offset) as usize).copied().unwrap_or(0);
            }
            bytes += to - from;
        }
        if bytes > 0 {
            done.writes_undone += 1;
            done.bytes_undone += bytes;
        } else {
            done.writes_kept += 1;
        }
    }
    for (sector, content) in image {
        file.write_all_at(&content, sector * SECTOR_BYTES)?;
    }
    Ok(file.set_len(size)?)
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> Result<()> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], at + got as u64)? {
            0 => break,
            more => got += more,
        }
    }
    Ok(())
}

fn text(path: &[u8]) -> Result<CString> {
    Ok(CString::new(path)?)
}

fn key_at(path: &CString) -> Option<Key> {
    sys::lstat(path).ok().map(|st| Key::of(&st))
}

/// Answers whether the call worked; a name that stands in the way means that the change survived.
fn tried(answer: Result<(), Errno>) -> Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(libc::EEXIST | libc::ENOENT | libc::ENOTEMPTY | libc::ENOTDIR | libc::EISDIR) => Ok(false),
        Err(code) => bail!("cannot undo a name: {}", os(code)),
    }
}

/// Puts a kept file back where it was.
fn put_back(log: &Log, number: u64, name: &Name, path: &CString) -> Result<bool> {
    match name.kept {
        Kept::Nothing => Ok(false),
        Kept::Folder => tried(sys::mkdir(path)),
        Kept::Link => {
            tried(sys::rename(&log.kept_path(number).map_err(os)?, path, libc::RENAME_NOREPLACE.into()))
        }
        Kept::Copy if key_at(path).is_some() => Ok(false),
        Kept::Copy => tried(sys::copy(&log.kept_path(number).map_err(os)?, path)),
    }
}

/// Undoes one name change if it took place and nothing stands in the way.
fn undo_name(log: &Log, number: u64, name: &Name) -> Result<bool> {
    let path = text(&name.path)?;
    let at_path = key_at(&path);
    match name.op {
        Op::Create | Op::Link => {
            if at_path != Some(name.node) {
                return Ok(false);
            }
            tried(sys::unlink(&path, 0))
        }
        Op::Mkdir => tried(sys::unlink(&path, libc::AT_REMOVEDIR)),
        Op::Rmdir => tried(sys::mkdir(&path)),
        Op::Unlink => put_back(log, number, name, &path),
        Op::Rename => {
            let path2 = text(&name.path2)?;
            if key_at(&path2) != Some(name.node) || at_path.is_some() {
                return Ok(false);
            }
            let back = tried(sys::rename(&path2, &path, libc::RENAME_NOREPLACE.into()))?;
            if back {
                put_back(log, number, name, &path2)?;
            }
            Ok(back)
        }
        Op::Exchange => {
            let path2 = text(&name.path2)?;
            if key_at(&path2) != Some(name.node) || at_path != Some(name.lost) {
                return Ok(false);
            }
            tried(sys::rename(&path, &path2, libc::RENAME_EXCHANGE.into()))
        }
    }
}
