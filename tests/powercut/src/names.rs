//! The interposed calls that make, move and remove names. Each also serves the trap, for raw system calls.

use std::ffi::CStr;

use libc::{c_char, c_int, c_uint, mode_t};

use crate::{
    data::{answer, save},
    record::{Kept, Name, Op},
    sys::{self, COOKIE, Errno, Key},
    watch::{Held, Named, Tracked, Watch, must, watch},
};

const NO_KEY: Key = Key { dev: 0, ino: 0 };

/// The file behind a name, if the name exists.
fn node(named: &Named) -> Option<(Key, libc::stat64)> {
    sys::lstat(&named.path).ok().map(|st| (Key::of(&st), st))
}

fn is_kind(st: &libc::stat64, kind: mode_t) -> bool {
    st.st_mode & libc::S_IFMT == kind
}

fn note(log: &mut Held, name: Name) {
    must(log.name(name), "cannot note a name change");
}

fn one(op: Op, named: &Named, node: Key) -> Name {
    Name {
        op,
        kept: Kept::Nothing,
        parent: named.parent,
        parent2: named.parent,
        node,
        lost: NO_KEY,
        path: named.path.to_bytes().to_vec(),
        path2: Vec::new(),
    }
}

/// openat(2): notes a new name, and the bytes that `O_TRUNC` is about to drop.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn open_any(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments, passed on.
    let real = || unsafe {
        sys::call(libc::SYS_openat, [dir as u64, path as u64, flags as u64, u64::from(mode), 0, 0])
    };
    let makes_none =
        flags & (libc::O_CREAT | libc::O_TRUNC) == 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
    if makes_none || path.is_null() {
        return answer(real()) as c_int;
    }
    // SAFETY: not null, so a C string by the contract of open.
    let path = unsafe { CStr::from_ptr(path) };
    let Some((watch, named)) = watch().and_then(|w| Some((w, w.name(dir, path)?))) else {
        return answer(real()) as c_int;
    };
    let mut log = watch.log();
    let before = node(&named);
    if before.is_some() && flags & libc::O_TRUNC != 0 && flags & libc::O_EXCL == 0 {
        save_whole(watch, &mut log, &named);
    }
    let result = real();
    if before.is_none()
        && let Ok(fd) = result
        && let Ok(st) = sys::fstat(fd as c_int)
    {
        let key = Key::of(&st);
        must(log.fresh(key), "cannot note a new file");
        note(&mut log, one(Op::Create, &named, key));
    }
    answer(result) as c_int
}

fn save_whole(watch: &Watch, log: &mut Held, named: &Named) {
    let Ok(fd) = sys::open(&named.path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW, 0) else {
        return;
    };
    if let Some(file) = watch.file(fd)
        && file.size > 0
    {
        save(log, fd, Tracked { ..file }, 0, file.size);
    }
    sys::close(fd);
}

/// mkdirat(2)
fn make_folder(dir: c_int, path: &CStr, mode: mode_t) -> Result<i64, Errno> {
    // SAFETY: the path is a live C string.
    let real = || unsafe {
        sys::call(libc::SYS_mkdirat, [dir as u64, path.as_ptr() as u64, u64::from(mode), 0, 0, 0])
    };
    let Some((watch, named)) = watch().and_then(|w| Some((w, w.name(dir, path)?))) else { return real() };
    let mut log = watch.log();
    let result = real();
    if result.is_ok()
        && let Some((key, _)) = node(&named)
    {
        note(&mut log, one(Op::Mkdir, &named, key));
    }
    result
}

/// unlinkat(2): keeps the file before its name goes.
pub fn remove(dir: c_int, path: &CStr, flags: c_int) -> Result<i64, Errno> {
    // SAFETY: the path is a live C string.
    let real = || unsafe {
        sys::call(libc::SYS_unlinkat, [dir as u64, path.as_ptr() as u64, flags as u64, 0, 0, COOKIE])
    };
    let Some((watch, named)) = watch().and_then(|w| Some((w, w.name(dir, path)?))) else { return real() };
    let mut log = watch.log();
    let Some((key, st)) = node(&named) else { return real() };
    let folder = is_kind(&st, libc::S_IFDIR);
    if folder != (flags & libc::AT_REMOVEDIR != 0) {
        return real();
    }
    if folder {
        note(&mut log, one(Op::Rmdir, &named, key));
    } else {
        let kept = must(log.keep(&named.path), "cannot keep a file");
        note(&mut log, Name { kept, lost: key, ..one(Op::Unlink, &named, key) });
    }
    real()
}

/// renameat2(2): keeps the file that the new name had before.
pub fn move_name(
    from_dir: c_int,
    from: &CStr,
    to_dir: c_int,
    to: &CStr,
    flags: c_uint,
) -> Result<i64, Errno> {
    let args =
        [from_dir as u64, from.as_ptr() as u64, to_dir as u64, to.as_ptr() as u64, u64::from(flags), COOKIE];
    // SAFETY: both paths are live C strings.
    let real = || unsafe { sys::call(libc::SYS_renameat2, args) };
    let Some(watch) = watch() else { return real() };
    if watch.name(from_dir, from).is_none() && watch.name(to_dir, to).is_none() {
        return real();
    }
    let mut log = watch.log();
    let (Some(old), Some(new)) = (watch.resolve(from_dir, from), watch.resolve(to_dir, to)) else {
        return real();
    };
    let Some((key, _)) = node(&old) else { return real() };
    let target = node(&new);
    if target.is_some_and(|(other, _)| other == key) {
        // Two names of one file: the kernel does nothing.
        return real();
    }
    let name =
        Name { path2: new.path.to_bytes().to_vec(), parent2: new.parent, ..one(Op::Rename, &old, key) };
    let name = match target {
        Some(_) if flags & libc::RENAME_NOREPLACE != 0 => return real(),
        Some((other, _)) if flags & libc::RENAME_EXCHANGE != 0 => {
            Name { op: Op::Exchange, lost: other, ..name }
        }
        Some((other, st)) if is_kind(&st, libc::S_IFDIR) => Name { kept: Kept::Folder, lost: other, ..name },
        Some((other, _)) => {
            let kept = must(log.keep(&new.path), "cannot keep a file");
            Name { kept, lost: other, ..name }
        }
        None => name,
    };
    note(&mut log, name);
    real()
}

/// linkat(2)
pub fn add_name(from_dir: c_int, from: &CStr, to_dir: c_int, to: &CStr, flags: c_int) -> Result<i64, Errno> {
    let args =
        [from_dir as u64, from.as_ptr() as u64, to_dir as u64, to.as_ptr() as u64, flags as u64, COOKIE];
    // SAFETY: both paths are live C strings.
    let real = || unsafe { sys::call(libc::SYS_linkat, args) };
    let Some((watch, named)) = watch().and_then(|w| Some((w, w.name(to_dir, to)?))) else { return real() };
    let mut log = watch.log();
    let result = real();
    if result.is_ok()
        && let Some((key, _)) = node(&named)
    {
        note(&mut log, one(Op::Link, &named, key));
    }
    result
}

/// Runs a call on a C path that may be null.
///
/// # Safety
/// `path` is null or a C string.
pub unsafe fn with_path(
    path: *const c_char,
    run: impl FnOnce(&CStr) -> Result<i64, Errno>,
) -> Result<i64, Errno> {
    if path.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: not null, so a C string.
    run(unsafe { CStr::from_ptr(path) })
}

macro_rules! interpose {
    ($($name:ident($($arg:ident: $type:ty),*) $body:expr;)*) => {$(
        #[doc = concat!("The C call `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// As the C call of this name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> c_int {
            // SAFETY: the caller keeps the contract of the C call: paths are null or C strings.
            unsafe { $body }
        }
    )*};
}

const HERE: c_int = libc::AT_FDCWD;
const NEW: c_int = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;

interpose! {
    // The mode of a variadic open is passed as a plain third argument on Linux.
    open(path: *const c_char, flags: c_int, mode: mode_t) open_any(HERE, path, flags, mode);
    open64(path: *const c_char, flags: c_int, mode: mode_t) open_any(HERE, path, flags, mode);
    openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) open_any(dir, path, flags, mode);
    openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) open_any(dir, path, flags, mode);
    creat(path: *const c_char, mode: mode_t) open_any(HERE, path, NEW, mode);
    creat64(path: *const c_char, mode: mode_t) open_any(HERE, path, NEW, mode);
    mkdir(path: *const c_char, mode: mode_t)
        answer(with_path(path, |p| make_folder(HERE, p, mode))) as c_int;
    mkdirat(dir: c_int, path: *const c_char, mode: mode_t)
        answer(with_path(path, |p| make_folder(dir, p, mode))) as c_int;
    rmdir(path: *const c_char) answer(with_path(path, |p| remove(HERE, p, libc::AT_REMOVEDIR))) as c_int;
    unlink(path: *const c_char) answer(with_path(path, |p| remove(HERE, p, 0))) as c_int;
    unlinkat(dir: c_int, path: *const c_char, flags: c_int)
        answer(with_path(path, |p| remove(dir, p, flags))) as c_int;
    rename(from: *const c_char, to: *const c_char)
        answer(with_path(from, |f| with_path(to, |t| move_name(HERE, f, HERE, t, 0)))) as c_int;
    renameat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char)
        answer(with_path(from, |f| with_path(to, |t| move_name(from_dir, f, to_dir, t, 0)))) as c_int;
    renameat2(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_uint)
        answer(with_path(from, |f| with_path(to, |t| move_name(from_dir, f, to_dir, t, flags)))) as c_int;
    link(from: *const c_char, to: *const c_char)
        answer(with_path(from, |f| with_path(to, |t| add_name(HERE, f, HERE, t, 0)))) as c_int;
    linkat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_int)
        answer(with_path(from, |f| with_path(to, |t| add_name(from_dir, f, to_dir, t, flags)))) as c_int;
}
