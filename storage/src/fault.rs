//! Named steps of commit and drain at which a test can kill the process, chosen by `FANFARE_FAULT="step:count"`: at
//! the count-th pass of that step the process sends itself SIGKILL. Nearly free while unset.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// Every step, in the order in which one entry passes them.
pub const STEPS: &[&str] = &[
    "before-commit",
    "after-commit",
    "before-content-put",
    "after-content-put",
    "after-content-flush",
    "before-lists-apply",
    "after-lists-apply",
    "after-lists-flush",
    "before-log-append",
    "after-log-append",
    "after-log-flush",
    "before-forget",
    "after-forget",
];

/// Likewise of a push.
pub const PUSH_STEPS: &[&str] =
    &["before-push-put", "after-push-put", "after-push-offset", "before-push-post", "after-push-post"];

struct Fault {
    step: String,
    passes_left: AtomicU64,
}

fn chosen() -> Option<&'static Fault> {
    static CHOSEN: OnceLock<Option<Fault>> = OnceLock::new();
    CHOSEN
        .get_or_init(|| {
            let value = std::env::var("FANFARE_FAULT").ok()?;
            let (step, count) = value.split_once(':').unwrap_or((value.as_str(), "1"));
            let passes_left = AtomicU64::new(count.parse().unwrap_or(1).max(1));
            Some(Fault { step: step.to_owned(), passes_left })
        })
        .as_ref()
}

/// Passes a named step; does not return where the chosen fault strikes.
#[inline]
pub fn point(step: &'static str) {
    if let Some(fault) = chosen() {
        strike(fault, step);
    }
}

#[cold]
fn strike(fault: &Fault, step: &str) {
    debug_assert!(STEPS.iter().chain(PUSH_STEPS).any(|known| *known == step), "step {step} is missing");
    if fault.step == step && fault.passes_left.fetch_sub(1, Ordering::SeqCst) == 1 {
        // SIGKILL, not exit: nothing may be flushed, joined or unwound on the way out.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}
