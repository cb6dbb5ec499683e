//! System calls that go straight to the kernel.
//!
//! The preload library defines `open`, `write`, `rename` and friends itself, so its own work must not use
//! them (nor `std::fs`, which would come back in through those symbols). Everything returns the kernel's
//! answer as a value: `Err` holds the errno.

use std::ffi::{CStr, CString};

use libc::{c_int, c_long};

/// Sixth argument of every name-changing call made here; the trap lets calls that carry it pass.
pub const COOKIE: u64 = 0x706f_7765_7263_7574;

/// An errno.
pub type Errno = c_int;

/// Longest path read back from the kernel, bytes.
const PATH_BYTES: usize = 4096;

/// Device and inode: what a file is, whatever it is called.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Key {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

impl Key {
    /// The key of a stat answer.
    pub fn of(st: &libc::stat64) -> Self {
        Self { dev: st.st_dev, ino: st.st_ino }
    }
}

/// This thread's errno.
pub fn errno() -> Errno {
    // SAFETY: the location is valid for the life of the calling thread.
    unsafe { *libc::__errno_location() }
}

/// Sets this thread's errno.
pub fn set_errno(code: Errno) {
    // SAFETY: the location is valid for the life of the calling thread.
    unsafe { *libc::__errno_location() = code }
}

/// One raw system call.
///
/// # Safety
/// The arguments must be what the system call `nr` asks for.
pub unsafe fn call(nr: c_long, args: [u64; 6]) -> Result<i64, Errno> {
    // SAFETY: the caller vouches for the arguments; libc::syscall is not interposed.
    let answer = unsafe { libc::syscall(nr, args[0], args[1], args[2], args[3], args[4], args[5]) };
    if answer < 0 { Err(errno()) } else { Ok(answer) }
}

fn address(path: &CStr) -> u64 {
    path.as_ptr() as u64
}

/// `AT_FDCWD` as a register value.
pub const HERE: u64 = libc::AT_FDCWD as i64 as u64;

/// Opens `path`; `O_CLOEXEC` is added.
pub fn open(path: &CStr, flags: c_int, mode: u32) -> Result<c_int, Errno> {
    open_at(libc::AT_FDCWD, path, flags, mode)
}

/// Opens `path` relative to `dir`; `O_CLOEXEC` is added.
pub fn open_at(dir: c_int, path: &CStr, flags: c_int, mode: u32) -> Result<c_int, Errno> {
    let flags = (flags | libc::O_CLOEXEC) as u64;
    // SAFETY: the path is a live C string for the length of the call.
    unsafe { call(libc::SYS_openat, [dir as u64, address(path), flags, u64::from(mode), 0, 0]) }
        .map(|fd| fd as c_int)
}

/// Closes a descriptor this module opened.
pub fn close(fd: c_int) {
    // SAFETY: closing takes no pointers; the caller owns the descriptor.
    let _ = unsafe { call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]) };
}

/// Stat of a descriptor.
pub fn fstat(fd: c_int) -> Result<libc::stat64, Errno> {
    // SAFETY: stat64 is plain old data, all zeros is a valid value.
    let mut st: libc::stat64 = unsafe { std::mem::zeroed() };
    // SAFETY: `st` is a writable stat64; fstat64 is not interposed.
    if unsafe { libc::fstat64(fd, &raw mut st) } < 0 { Err(errno()) } else { Ok(st) }
}

/// Stat of a path, not following a last symbolic link.
pub fn lstat(path: &CStr) -> Result<libc::stat64, Errno> {
    // SAFETY: stat64 is plain old data, all zeros is a valid value.
    let mut st: libc::stat64 = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a live C string, `st` is a writable stat64; lstat64 is not interposed.
    if unsafe { libc::lstat64(path.as_ptr(), &raw mut st) } < 0 { Err(errno()) } else { Ok(st) }
}

/// Status flags of a descriptor (0 when it cannot be asked).
pub fn flags(fd: c_int) -> c_int {
    // SAFETY: F_GETFL takes no pointer.
    unsafe { libc::fcntl(fd, libc::F_GETFL) }.max(0)
}

/// The descriptor's file position, bytes.
pub fn position(fd: c_int) -> Result<u64, Errno> {
    // SAFETY: lseek takes no pointers.
    let at = unsafe { libc::lseek64(fd, 0, libc::SEEK_CUR) };
    if at < 0 { Err(errno()) } else { Ok(at as u64) }
}

/// Where the descriptor's file is now, as the kernel says (ends in ` (deleted)` when the name is gone).
pub fn path_of(fd: c_int) -> Result<Vec<u8>, Errno> {
    let link = CString::new(format!("/proc/self/fd/{fd}")).map_err(|_| libc::EINVAL)?;
    let mut buffer = [0u8; PATH_BYTES];
    // SAFETY: the link is a live C string and the buffer is writable for its whole length.
    let got = unsafe { libc::readlink(link.as_ptr(), buffer.as_mut_ptr().cast(), PATH_BYTES) };
    if got < 0 { Err(errno()) } else { Ok(buffer[..got as usize].to_vec()) }
}

/// Reads at `offset` until `buffer` is full or the file ends; returns the bytes read.
pub fn read_at(fd: c_int, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let args = [fd as u64, rest.as_mut_ptr() as u64, rest.len() as u64, offset + done as u64, 0, 0];
        // SAFETY: `rest` is writable for the length given.
        match unsafe { call(libc::SYS_pread64, args) } {
            Ok(0) => break,
            Ok(got) => done += got as usize,
            Err(libc::EINTR) => {}
            Err(code) => return Err(code),
        }
    }
    Ok(done)
}

/// Writes all of `bytes` at `offset`.
pub fn write_at(fd: c_int, bytes: &[u8], offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let args = [fd as u64, rest.as_ptr() as u64, rest.len() as u64, offset + done as u64, 0, 0];
        // SAFETY: `rest` is readable for the length given.
        match unsafe { call(libc::SYS_pwrite64, args) } {
            Ok(got) => done += got as usize,
            Err(libc::EINTR) => {}
            Err(code) => return Err(code),
        }
    }
    Ok(())
}

/// Sets a file's length, bytes.
pub fn set_len(fd: c_int, len: u64) -> Result<(), Errno> {
    // SAFETY: no pointers.
    unsafe { call(libc::SYS_ftruncate, [fd as u64, len, 0, 0, 0, 0]) }.map(drop)
}

/// Takes the exclusive lock of a descriptor without waiting.
pub fn try_lock(fd: c_int) -> Result<(), Errno> {
    // SAFETY: no pointers; flock is not interposed.
    if unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) } < 0 { Err(errno()) } else { Ok(()) }
}

/// Renames; `flags` as renameat2 takes them.
pub fn rename(from: &CStr, to: &CStr, flags: u64) -> Result<(), Errno> {
    // SAFETY: both paths are live C strings.
    unsafe { call(libc::SYS_renameat2, [HERE, address(from), HERE, address(to), flags, COOKIE]) }.map(drop)
}

/// Makes a second name for a file.
pub fn link(from: &CStr, to: &CStr) -> Result<(), Errno> {
    // SAFETY: both paths are live C strings.
    unsafe { call(libc::SYS_linkat, [HERE, address(from), HERE, address(to), 0, COOKIE]) }.map(drop)
}

/// Removes a name; `flags` is 0 or `AT_REMOVEDIR`.
pub fn unlink(path: &CStr, flags: c_int) -> Result<(), Errno> {
    // SAFETY: the path is a live C string.
    unsafe { call(libc::SYS_unlinkat, [HERE, address(path), flags as u64, 0, 0, COOKIE]) }.map(drop)
}

/// Makes a folder that only its owner enters.
pub fn mkdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: the path is a live C string.
    unsafe { call(libc::SYS_mkdirat, [HERE, address(path), 0o755, 0, 0, 0]) }.map(drop)
}

/// Copies the bytes of `from` into the new file `to`.
pub fn copy(from: &CStr, to: &CStr) -> Result<(), Errno> {
    let source = open(from, libc::O_RDONLY, 0)?;
    let target = match open(to, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o600) {
        Ok(fd) => fd,
        Err(code) => {
            close(source);
            return Err(code);
        }
    };
    let mut buffer = vec![0u8; 1 << 16];
    let mut at = 0;
    let answer = loop {
        match read_at(source, &mut buffer, at) {
            Ok(0) => break Ok(()),
            Ok(got) => match write_at(target, &buffer[..got], at) {
                Ok(()) => at += got as u64,
                Err(code) => break Err(code),
            },
            Err(code) => break Err(code),
        }
    };
    close(source);
    close(target);
    answer
}
