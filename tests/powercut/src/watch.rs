//! What the preload library watches: the settings from the environment and the one journal of the process.

use std::{
    ffi::{CStr, CString},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use libc::c_int;

use crate::{
    log::{Log, c_path},
    sys::{self, Errno, Key},
};

/// How long a new process waits for a killed one to let go of the journal.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// The settings of this process.
#[derive(Debug)]
pub struct Watch {
    folder: Vec<u8>,
    journal: Vec<u8>,
    log: Mutex<Option<Log>>,
}

/// A file below the watched folder.
#[derive(Debug, Clone, Copy)]
pub struct Tracked {
    /// The file.
    pub key: Key,
    /// Its length, bytes.
    pub size: u64,
}

impl Tracked {
    /// The regular file behind a descriptor as it is now, if it still has a name.
    pub fn of(fd: c_int) -> Option<Self> {
        let st = sys::fstat(fd).ok()?;
        let named = st.st_mode & libc::S_IFMT == libc::S_IFREG && st.st_nlink > 0;
        named.then(|| Self { key: Key::of(&st), size: st.st_size as u64 })
    }
}

/// A name below the watched folder, resolved.
#[derive(Debug)]
pub struct Named {
    /// Its folder.
    pub parent: Key,
    /// The whole path.
    pub path: CString,
}

static WATCH: OnceLock<Option<Watch>> = OnceLock::new();

/// The watch of this process; none when the environment does not ask for one.
pub fn watch() -> Option<&'static Watch> {
    WATCH.get_or_init(Watch::from_env).as_ref()
}

/// Says why and ends the process: a test whose undo log is incomplete would prove nothing.
pub fn give_up(what: &str, code: Errno) -> ! {
    let text = format!("powercut: {what}: errno {code}\n");
    // SAFETY: the text is readable for its length; this is a raw write to stderr.
    let _ = unsafe { sys::call(libc::SYS_write, [2, text.as_ptr() as u64, text.len() as u64, 0, 0, 0]) };
    std::process::abort()
}

fn variable(name: &CStr) -> Option<Vec<u8>> {
    // SAFETY: the name is a live C string; the value is copied at once, before anything could change it.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: getenv answers null or a C string.
    let mut bytes = unsafe { CStr::from_ptr(value) }.to_bytes().to_vec();
    while bytes.len() > 1 && bytes.last() == Some(&b'/') {
        bytes.pop();
    }
    (!bytes.is_empty()).then_some(bytes)
}

/// The path without symbolic links, as far as it exists already.
fn canonical(path: Vec<u8>) -> Vec<u8> {
    let Ok(text) = c_path(&path) else { return path };
    if let Ok(fd) = sys::open(&text, libc::O_PATH, 0) {
        let real = sys::path_of(fd);
        sys::close(fd);
        return real.unwrap_or(path);
    }
    match path.iter().rposition(|&b| b == b'/') {
        Some(cut) if cut > 0 => [&canonical(path[..cut].to_vec()), &path[cut..]].concat(),
        _ => path,
    }
}

fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'))
}

impl Watch {
    fn from_env() -> Option<Self> {
        let folder = canonical(variable(c"POWERCUT_DIR")?);
        let journal = canonical(variable(c"POWERCUT_JOURNAL")?);
        if folder.first() != Some(&b'/') || journal.first() != Some(&b'/') {
            give_up("POWERCUT_DIR and POWERCUT_JOURNAL must be absolute", libc::EINVAL);
        }
        if folder == journal || is_below(&journal, &folder) {
            give_up("POWERCUT_JOURNAL must lie outside POWERCUT_DIR", libc::EINVAL);
        }
        Some(Self { folder, journal, log: Mutex::new(None) })
    }

    /// The journal, locked; opened at the first use.
    pub fn log(&'static self) -> Held {
        let mut guard = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some(self.open_log());
        }
        Held(guard)
    }

    fn open_log(&self) -> Log {
        let begun = Instant::now();
        loop {
            match Log::open(&self.journal) {
                Ok(log) => return log,
                Err(libc::EWOULDBLOCK) if begun.elapsed() < LOCK_WAIT => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(libc::EWOULDBLOCK) => give_up("another process uses the journal", libc::EWOULDBLOCK),
                Err(code) => give_up("cannot open the journal", code),
            }
        }
    }

    fn is_tracked(&self, path: &[u8]) -> bool {
        // The wal-index of SQLite is shared memory: rebuilt from the log after a crash, never durable.
        is_below(path, &self.folder) && !path.ends_with(b"-shm")
    }

    /// The regular file behind a descriptor, if it is watched and still has a name.
    pub fn file(&self, fd: c_int) -> Option<Tracked> {
        let file = Tracked::of(fd)?;
        let path = sys::path_of(fd).ok()?;
        let path = path.strip_suffix(b" (deleted)").unwrap_or(&path);
        self.is_tracked(path).then_some(file)
    }

    /// Resolves the folder of a path; none when the name is not watched.
    pub fn name(&self, dir: c_int, path: &CStr) -> Option<Named> {
        let named = self.resolve(dir, path)?;
        self.is_tracked(named.path.to_bytes()).then_some(named)
    }

    /// Resolves the folder of any path.
    pub fn resolve(&self, dir: c_int, path: &CStr) -> Option<Named> {
        let mut bytes = path.to_bytes();
        while bytes.len() > 1 && bytes.last() == Some(&b'/') {
            bytes = &bytes[..bytes.len() - 1];
        }
        let (folder, last) = match bytes.iter().rposition(|&b| b == b'/') {
            Some(0) => (&b"/"[..], &bytes[1..]),
            Some(cut) => (&bytes[..cut], &bytes[cut + 1..]),
            None => (&b"."[..], bytes),
        };
        if last.is_empty() || last == b"." || last == b".." {
            return None;
        }
        let fd = sys::open_at(dir, &c_path(folder).ok()?, libc::O_PATH | libc::O_DIRECTORY, 0).ok()?;
        let found = sys::path_of(fd).and_then(|real| sys::fstat(fd).map(|st| (real, st)));
        sys::close(fd);
        let (real, st) = found.ok()?;
        let path = c_path(&[&real, &b"/"[..], last].concat()).ok()?;
        Some(Named { parent: Key::of(&st), path })
    }
}

/// The locked journal.
#[derive(Debug)]
pub struct Held(MutexGuard<'static, Option<Log>>);

impl std::ops::Deref for Held {
    type Target = Log;
    fn deref(&self) -> &Log {
        self.0.as_ref().expect("opened before it was handed out")
    }
}

impl std::ops::DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Log {
        self.0.as_mut().expect("opened before it was handed out")
    }
}

/// Ends the process when the journal cannot take a record.
pub fn must<T>(answer: Result<T, Errno>, what: &str) -> T {
    answer.unwrap_or_else(|code| give_up(what, code))
}
