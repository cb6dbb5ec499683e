//! The interposed calls that change bytes or lengths, and the syncs that make them durable.

use std::ffi::CStr;

use libc::{c_char, c_int, c_long, c_uint, c_void, iovec, off64_t, size_t, ssize_t};

use crate::{
    record::Data,
    sys::{self, Errno, Key},
    watch::{Held, Tracked, Watch, must, watch},
};

/// Most bytes moved by one copy_file_range, sendfile or splice, whose callers go on after a short count.
const COPY_BYTES: size_t = 4 << 20;

/// Hands a kernel answer to a C caller.
pub fn answer(result: Result<i64, Errno>) -> i64 {
    result.unwrap_or_else(|code| {
        sys::set_errno(code);
        -1
    })
}

/// Saves a range of a file before it changes. Descriptors opened for writing only are opened again to read.
pub fn save(log: &mut Held, fd: c_int, file: Tracked, offset: u64, len: u64) {
    let data = Data { key: file.key, offset, len, old_size: file.size };
    let write_only = sys::flags(fd) & libc::O_ACCMODE == libc::O_WRONLY;
    if len == 0 || offset >= file.size || !write_only {
        must(log.save(fd, data), "cannot save bytes");
        return;
    }
    // SQLite never comes here (it opens for reading too): closing a second descriptor would drop its locks.
    let path = must(std::ffi::CString::new(format!("/proc/self/fd/{fd}")).map_err(|_| libc::EINVAL), "path");
    let source = must(sys::open(&path, libc::O_RDONLY, 0), "cannot read a file opened for writing");
    must(log.save(source, data), "cannot save bytes");
    sys::close(source);
}

/// Runs a write of `len` bytes under the journal lock, its pre-image saved first.
fn write_through(
    fd: c_int,
    at: Option<off64_t>,
    len: u64,
    sync: bool,
    real: impl FnOnce() -> Result<i64, Errno>,
) -> i64 {
    let Some((watch, _)) = watch().and_then(|w| Some((w, w.file(fd)?))) else { return answer(real()) };
    let mut log = watch.log();
    // Again under the lock: the length decides where an append goes and what is saved.
    let Some(file) = Tracked::of(fd) else { return answer(real()) };
    let flags = sys::flags(fd);
    let offset = match at {
        _ if flags & libc::O_APPEND != 0 => file.size,
        Some(at) => at.max(0) as u64,
        None => sys::position(fd).unwrap_or(0),
    };
    if len > 0 {
        save(&mut log, fd, file, offset, len);
    }
    let result = real();
    // O_SYNC includes the bit of O_DSYNC.
    if result.is_ok() && (sync || flags & libc::O_DSYNC != 0) {
        // Such a write makes its own bytes durable; to settle the file as a whole, really sync it.
        let upto = log.pending.next - 1;
        // SAFETY: no pointers.
        if unsafe { sys::call(libc::SYS_fdatasync, [fd as u64, 0, 0, 0, 0, 0]) }.is_ok() {
            must(log.synced(file.key, upto), "cannot note a sync");
        }
    }
    answer(result)
}

/// Runs a change of length or layout under the journal lock; `range` says which bytes it touches.
fn reshape(
    fd: c_int,
    range: impl FnOnce(u64) -> Option<(u64, u64)>,
    real: impl FnOnce() -> Result<i64, Errno>,
) -> Result<i64, Errno> {
    let Some((watch, _)) = watch().and_then(|w| Some((w, w.file(fd)?))) else { return real() };
    let mut log = watch.log();
    if let Some(file) = Tracked::of(fd)
        && let Some((offset, len)) = range(file.size)
    {
        save(&mut log, fd, file, offset, len);
    }
    real()
}

/// The range that cutting or growing to `len` touches.
fn resized(len: off64_t) -> impl FnOnce(u64) -> Option<(u64, u64)> {
    move |size| {
        let len = u64::try_from(len).ok()?;
        (len != size).then(|| (len, size.saturating_sub(len)))
    }
}

/// Runs a sync; what was pending of that file or folder before it is durable after it.
fn sync(fd: c_int, nr: c_long) -> c_int {
    // SAFETY: the sync calls take a descriptor only.
    let real = || unsafe { sys::call(nr, [fd as u64, 0, 0, 0, 0, 0]) };
    let Some(watch) = watch() else { return answer(real()) as c_int };
    let Some((key, upto)) = sync_begins(watch, fd, nr == libc::SYS_syncfs) else {
        return answer(real()) as c_int;
    };
    let result = real();
    if result.is_ok() {
        let mut log = watch.log();
        let noted = match key {
            Some(key) => log.synced(key, upto),
            None => log.synced_all(upto),
        };
        must(noted, "cannot note a sync");
    }
    answer(result) as c_int
}

/// What the sync is for and the last record that it covers; none when nothing watched is pending.
fn sync_begins(watch: &'static Watch, fd: c_int, whole: bool) -> Option<(Option<Key>, u64)> {
    let st = sys::fstat(fd).ok()?;
    let kind = st.st_mode & libc::S_IFMT;
    if !whole && kind != libc::S_IFREG && kind != libc::S_IFDIR {
        return None;
    }
    let log = watch.log();
    let key = (!whole).then(|| Key::of(&st));
    let waits = key.map_or(!log.pending.is_empty(), |key| log.pending.waits_for(key));
    waits.then(|| (key, log.pending.next - 1))
}

fn total(parts: *const iovec, count: c_int) -> u64 {
    if parts.is_null() || count <= 0 {
        return 0;
    }
    // SAFETY: the caller of writev vouches for `count` parts at `parts`.
    unsafe { std::slice::from_raw_parts(parts, count as usize) }.iter().map(|part| part.iov_len as u64).sum()
}

/// write(2)
///
/// # Safety
/// As write(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t {
    write_through(fd, None, len as u64, false, || {
        // SAFETY: the caller's arguments, passed on.
        unsafe { sys::call(libc::SYS_write, [fd as u64, buffer as u64, len as u64, 0, 0, 0]) }
    }) as ssize_t
}

/// pwrite64(2)
///
/// # Safety
/// As pwrite(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, buffer: *const c_void, len: size_t, at: off64_t) -> ssize_t {
    write_through(fd, Some(at), len as u64, false, || {
        // SAFETY: the caller's arguments, passed on.
        unsafe { sys::call(libc::SYS_pwrite64, [fd as u64, buffer as u64, len as u64, at as u64, 0, 0]) }
    }) as ssize_t
}

/// pwrite(2)
///
/// # Safety
/// As pwrite(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(fd: c_int, buffer: *const c_void, len: size_t, at: off64_t) -> ssize_t {
    // SAFETY: the same call with a 64-bit offset.
    unsafe { pwrite64(fd, buffer, len, at) }
}

/// writev(2)
///
/// # Safety
/// As writev(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    write_through(fd, None, total(parts, count), false, || {
        // SAFETY: the caller's arguments, passed on.
        unsafe { sys::call(libc::SYS_writev, [fd as u64, parts as u64, count as u64, 0, 0, 0]) }
    }) as ssize_t
}

/// pwritev64v2(2)
///
/// # Safety
/// As pwritev2(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev64v2(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    at: off64_t,
    flags: c_int,
) -> ssize_t {
    let sync = flags & (libc::RWF_DSYNC | libc::RWF_SYNC) != 0;
    write_through(fd, (at != -1).then_some(at), total(parts, count), sync, || {
        // SAFETY: the caller's arguments, passed on (the kernel takes the offset in two halves).
        unsafe {
            let args = [fd as u64, parts as u64, count as u64, at as u64, 0, flags as u64];
            sys::call(libc::SYS_pwritev2, args)
        }
    }) as ssize_t
}

/// pwritev2(2)
///
/// # Safety
/// As pwritev2(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev2(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    at: off64_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the same call with a 64-bit offset.
    unsafe { pwritev64v2(fd, parts, count, at, flags) }
}

/// pwritev64(2)
///
/// # Safety
/// As pwritev(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev64(fd: c_int, parts: *const iovec, count: c_int, at: off64_t) -> ssize_t {
    write_through(fd, Some(at), total(parts, count), false, || {
        // SAFETY: the caller's arguments, passed on.
        unsafe { sys::call(libc::SYS_pwritev, [fd as u64, parts as u64, count as u64, at as u64, 0, 0]) }
    }) as ssize_t
}

/// pwritev(2)
///
/// # Safety
/// As pwritev(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev(fd: c_int, parts: *const iovec, count: c_int, at: off64_t) -> ssize_t {
    // SAFETY: the same call with a 64-bit offset.
    unsafe { pwritev64(fd, parts, count, at) }
}

/// copy_file_range(2)
///
/// # Safety
/// As copy_file_range(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_at: *mut off64_t,
    to: c_int,
    to_at: *mut off64_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    let len = len.min(COPY_BYTES);
    // SAFETY: null or the caller's offset.
    let at = unsafe { to_at.as_ref() }.copied();
    write_through(to, at, len as u64, false, || {
        let args = [from as u64, from_at as u64, to as u64, to_at as u64, len as u64, u64::from(flags)];
        // SAFETY: the caller's arguments, passed on.
        unsafe { sys::call(libc::SYS_copy_file_range, args) }
    }) as ssize_t
}

/// sendfile64(2)
///
/// # Safety
/// As sendfile(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(to: c_int, from: c_int, from_at: *mut off64_t, len: size_t) -> ssize_t {
    let len = len.min(COPY_BYTES);
    write_through(to, None, len as u64, false, || {
        // SAFETY: the caller's arguments, passed on.
        unsafe { sys::call(libc::SYS_sendfile, [to as u64, from as u64, from_at as u64, len as u64, 0, 0]) }
    }) as ssize_t
}

/// sendfile(2)
///
/// # Safety
/// As sendfile(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile(to: c_int, from: c_int, from_at: *mut off64_t, len: size_t) -> ssize_t {
    // SAFETY: the same call with a 64-bit offset.
    unsafe { sendfile64(to, from, from_at, len) }
}

/// splice(2)
///
/// # Safety
/// As splice(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn splice(
    from: c_int,
    from_at: *mut off64_t,
    to: c_int,
    to_at: *mut off64_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    let real = |len: size_t| {
        let args = [from as u64, from_at as u64, to as u64, to_at as u64, len as u64, u64::from(flags)];
        // SAFETY: the caller's arguments, passed on.
        unsafe { sys::call(libc::SYS_splice, args) }
    };
    // SAFETY: null or the caller's offset.
    let at = unsafe { to_at.as_ref() }.copied();
    let len = len.min(COPY_BYTES);
    write_through(to, at, len as u64, false, || real(len)) as ssize_t
}

/// ftruncate64(2)
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate64(fd: c_int, len: off64_t) -> c_int {
    answer(reshape(fd, resized(len), || {
        // SAFETY: no pointers.
        unsafe { sys::call(libc::SYS_ftruncate, [fd as u64, len as u64, 0, 0, 0, 0]) }
    })) as c_int
}

/// ftruncate(2)
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate(fd: c_int, len: off64_t) -> c_int {
    ftruncate64(fd, len)
}

/// truncate64(2)
///
/// # Safety
/// As truncate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn truncate64(path: *const c_char, len: off64_t) -> c_int {
    // SAFETY: the caller's arguments, passed on.
    let real = || unsafe { sys::call(libc::SYS_truncate, [path as u64, len as u64, 0, 0, 0, 0]) };
    if path.is_null() || watch().is_none() {
        return answer(real()) as c_int;
    }
    // SAFETY: not null, so a C string by the contract of truncate.
    match sys::open(unsafe { CStr::from_ptr(path) }, libc::O_RDONLY | libc::O_NONBLOCK, 0) {
        Ok(fd) => {
            let result = reshape(fd, resized(len), real);
            sys::close(fd);
            answer(result) as c_int
        }
        Err(_) => answer(real()) as c_int,
    }
}

/// truncate(2)
///
/// # Safety
/// As truncate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn truncate(path: *const c_char, len: off64_t) -> c_int {
    // SAFETY: the same call with a 64-bit length.
    unsafe { truncate64(path, len) }
}

fn allocate(fd: c_int, mode: c_int, offset: off64_t, len: off64_t) -> Result<i64, Errno> {
    let range = |size: u64| {
        let (offset, len) = (u64::try_from(offset).ok()?, u64::try_from(len).ok()?);
        let end = offset.checked_add(len)?;
        match mode {
            // Only the length can change.
            0 => (end > size).then_some((size, 0)),
            libc::FALLOC_FL_KEEP_SIZE => None,
            _ if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 => Some((offset, len)),
            // Collapse and insert move all that follows.
            _ => Some((offset, size.saturating_sub(offset).saturating_add(len))),
        }
    };
    reshape(fd, range, || {
        // SAFETY: no pointers.
        unsafe { sys::call(libc::SYS_fallocate, [fd as u64, mode as u64, offset as u64, len as u64, 0, 0]) }
    })
}

/// fallocate64(2)
#[unsafe(no_mangle)]
pub extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: off64_t, len: off64_t) -> c_int {
    answer(allocate(fd, mode, offset, len)) as c_int
}

/// fallocate(2)
#[unsafe(no_mangle)]
pub extern "C" fn fallocate(fd: c_int, mode: c_int, offset: off64_t, len: off64_t) -> c_int {
    fallocate64(fd, mode, offset, len)
}

/// posix_fallocate64(3): answers the errno itself.
#[unsafe(no_mangle)]
pub extern "C" fn posix_fallocate64(fd: c_int, offset: off64_t, len: off64_t) -> c_int {
    allocate(fd, 0, offset, len).err().unwrap_or(0)
}

/// posix_fallocate(3)
#[unsafe(no_mangle)]
pub extern "C" fn posix_fallocate(fd: c_int, offset: off64_t, len: off64_t) -> c_int {
    posix_fallocate64(fd, offset, len)
}

/// fsync(2)
#[unsafe(no_mangle)]
pub extern "C" fn fsync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fsync)
}

/// fdatasync(2)
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fdatasync)
}

/// syncfs(2)
#[unsafe(no_mangle)]
pub extern "C" fn syncfs(fd: c_int) -> c_int {
    sync(fd, libc::SYS_syncfs)
}
