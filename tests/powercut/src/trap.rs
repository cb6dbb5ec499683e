//! Catches name changes that bypass libc.
//!
//! `rustix` (and through it `tempfile`, with which lsm-tree replaces its `current` file) makes raw system
//! calls that no preload can interpose. A seccomp filter turns rename, link and unlink calls that lack
//! [`COOKIE`] into SIGSYS, and the handler runs them through the interposed functions.

use std::ffi::CStr;

use libc::{c_char, c_int, c_long, c_uint, c_void, sock_filter, sock_fprog};

use crate::{
    names::{add_name, move_name, remove, with_path},
    sys::{self, COOKIE, Errno},
    watch::{give_up, watch},
};

/// Offsets within the kernel's `struct seccomp_data`.
const AT_NUMBER: u32 = 0;
const AT_ARCH: u32 = 4;
const AT_SIXTH: u32 = 16 + 5 * 8;
const ARCH: u32 = 0xc000_003e;

const TRAPPED: [c_long; 7] = [
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// Runs before main: sets the trap if this process is watched.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    if watch().is_some()
        && let Err(code) = set()
    {
        give_up("cannot trap raw system calls", code);
    }
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

fn unless_equal(value: u32, skip: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf: skip, k: value }
}

fn if_equal(value: u32, skip: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: skip, jf: 0, k: value }
}

fn end(action: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

fn program() -> Vec<sock_filter> {
    let mut lines = vec![load(AT_ARCH), if_equal(ARCH, 1), end(libc::SECCOMP_RET_ALLOW), load(AT_NUMBER)];
    let count = TRAPPED.len();
    for (index, nr) in TRAPPED.iter().enumerate() {
        // Skips the numbers that follow and the "allow" after them.
        lines.push(if_equal(*nr as u32, (count - index) as u8));
    }
    lines.push(end(libc::SECCOMP_RET_ALLOW));
    lines.extend([load(AT_SIXTH), unless_equal(COOKIE as u32, 3)]);
    lines.extend([load(AT_SIXTH + 4), unless_equal((COOKIE >> 32) as u32, 1)]);
    lines.extend([end(libc::SECCOMP_RET_ALLOW), end(libc::SECCOMP_RET_TRAP)]);
    lines
}

fn set() -> Result<(), Errno> {
    // SAFETY: sigaction is plain old data, all zeros is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_trap as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
    // Not on the alternate stack, which is small.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_RESTART;
    // SAFETY: `action` is initialised; the handler has the signature that SA_SIGINFO asks for.
    if unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } < 0 {
        return Err(sys::errno());
    }
    // SAFETY: no pointers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
        return Err(sys::errno());
    }
    let mut lines = program();
    let filter = sock_fprog { len: lines.len() as u16, filter: lines.as_mut_ptr() };
    let mode = u64::from(libc::SECCOMP_SET_MODE_FILTER);
    // SAFETY: the filter and its lines live through the call.
    unsafe { sys::call(libc::SYS_seccomp, [mode, 0, &raw const filter as u64, 0, 0, 0]) }.map(drop)
}

/// Runs the trapped call as its libc twin would and gives the kernel's answer to the caller.
extern "C" fn on_trap(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let errno = sys::errno();
    // SAFETY: the kernel passes the interrupted thread's context, ours to change until we return.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let of = |register: c_int| registers[register as usize];
    let nr: c_long = of(libc::REG_RAX);
    let (a, b, c) = (of(libc::REG_RDI), of(libc::REG_RSI), of(libc::REG_RDX));
    let (d, e) = (of(libc::REG_R10), of(libc::REG_R8));
    let here = libc::AT_FDCWD;
    let two = |from: i64, to: i64, run: &dyn Fn(&CStr, &CStr) -> Result<i64, Errno>| {
        // SAFETY: the interrupted call took these as C strings.
        unsafe { with_path(from as *const c_char, |f| with_path(to as *const c_char, |t| run(f, t))) }
    };
    let one = |path: i64, run: &dyn Fn(&CStr) -> Result<i64, Errno>| {
        // SAFETY: the interrupted call took this as a C string.
        unsafe { with_path(path as *const c_char, run) }
    };
    let result = match nr {
        libc::SYS_rename => two(a, b, &|f, t| move_name(here, f, here, t, 0)),
        libc::SYS_renameat => two(b, d, &|f, t| move_name(a as c_int, f, c as c_int, t, 0)),
        libc::SYS_renameat2 => two(b, d, &|f, t| move_name(a as c_int, f, c as c_int, t, e as c_uint)),
        libc::SYS_link => two(a, b, &|f, t| add_name(here, f, here, t, 0)),
        libc::SYS_linkat => two(b, d, &|f, t| add_name(a as c_int, f, c as c_int, t, e as c_int)),
        libc::SYS_unlink => one(a, &|p| remove(here, p, 0)),
        libc::SYS_unlinkat => one(b, &|p| remove(a as c_int, p, c as c_int)),
        _ => Err(libc::ENOSYS),
    };
    registers[libc::REG_RAX as usize] = result.unwrap_or_else(|code| -i64::from(code));
    sys::set_errno(errno);
}
