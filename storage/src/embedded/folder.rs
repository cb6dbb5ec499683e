//! The data folder: its lock, its format number, its mode, and bringing what was found in it to the disk.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use crate::{error::StoreError, mutant};

/// The one format of data folders.
pub const FORMAT: u32 = 1;

/// The folder's lock; free again when this is dropped, or by the kernel when the process ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

/// Makes the folder where it is missing (mode 0700), locks it, and checks or notes its format.
///
/// # Errors
/// `Locked` naming the process; `Format`; `Full`, `Unavailable`.
pub fn take(folder: &Path) -> Result<FolderLock, StoreError> {
    let at = |error: std::io::Error| of_io(&error, folder);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at)?;
    std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(at)?;
    let path = folder.join("lock");
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(at)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(StoreError::Locked(format!(
                "{} is in use by process {}",
                folder.display(),
                pid.trim()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(at(error)),
    }
    // The pid is for people; a full disk must not keep the server from starting read-only.
    let note = |file: &mut File| -> std::io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    if let Err(error) = note(&mut file) {
        tracing::warn!(%error, "the lock file does not name this process");
    }
    check_format(folder)?;
    Ok(FolderLock { _file: file })
}

fn check_format(folder: &Path) -> Result<(), StoreError> {
    let at = |error: std::io::Error| of_io(&error, folder);
    let path = folder.join("format");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let found =
                text.trim().parse().map_err(|_| StoreError::Damaged(format!("{}", path.display())))?;
            if found != FORMAT {
                return Err(StoreError::Format { found, expected: FORMAT });
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if folder.join("meta.db").exists() {
                return Err(StoreError::Damaged(format!("{} is missing", path.display())));
            }
            // Written beside and renamed: a crash leaves either nothing or the whole number.
            let fresh = folder.join("format.new");
            let mut file = File::create(&fresh).map_err(at)?;
            writeln!(file, "{FORMAT}").map_err(at)?;
            file.sync_all().map_err(at)?;
            std::fs::rename(&fresh, &path).map_err(at)?;
            sync(folder)?;
            if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync(parent)?;
            }
            Ok(())
        }
        Err(error) => Err(at(error)),
    }
}

/// Brings a file, or a folder's names, to the disk.
///
/// # Errors
/// `SyncFailed`; `Unavailable` where it cannot be opened.
pub fn sync(path: &Path) -> Result<(), StoreError> {
    sync_open(&File::open(path).map_err(|error| of_io(&error, path))?, path)
}

/// As [`sync`], for a file that is open and must stay so.
///
/// # Errors
/// `SyncFailed`.
pub fn sync_open(file: &File, path: &Path) -> Result<(), StoreError> {
    if mutant::is("skip-fsync") {
        return Ok(());
    }
    file.sync_all().map_err(|error| StoreError::SyncFailed(format!("{}: {error}", path.display())))
}

/// As [`sync`], for a folder with everything below it.
///
/// # Errors
/// As of [`sync`].
pub fn sync_tree(folder: &Path) -> Result<(), StoreError> {
    for found in std::fs::read_dir(folder).map_err(|error| of_io(&error, folder))? {
        let found = found.map_err(|error| of_io(&error, folder))?;
        let kind = found.file_type().map_err(|error| of_io(&error, folder))?;
        if kind.is_dir() {
            sync_tree(&found.path())?;
        } else if kind.is_file() {
            sync(&found.path())?;
        }
    }
    sync(folder)
}

/// An I/O error that is no sync's.
pub fn of_io(error: &std::io::Error, path: &Path) -> StoreError {
    let text = format!("{}: {error}", path.display());
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::Full(text),
        _ => StoreError::Unavailable(text),
    }
}
