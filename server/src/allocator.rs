//! mimalloc as a server of many small idle connections needs it: what is free goes back at once, and nothing is a huge page.

use std::ffi::{c_int, c_long};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, in milliseconds: what was free for so long goes back to the system, and only when more is freed. 1,000
/// by default, so that what a burst left stays where nothing is freed after it.
const PURGE_DELAY: c_int = 15;

#[expect(unsafe_code, reason = "functions of mimalloc that the crate does not wrap")]
unsafe extern "C" {
    /// Where neither the environment (`MIMALLOC_PURGE_DELAY` and so on) nor the program said anything else. Takes any number.
    safe fn mi_option_set_default(option: c_int, value: c_long);
}

/// To be called before there are threads.
pub fn set_up() {
    mi_option_set_default(PURGE_DELAY, 0);
    // Where the system makes huge pages of everything, each thread's first blocks would take 2 MiB. mimalloc itself is built so that it
    // does not ask for them (`no_thp`). A system that does not know the call has none.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(unsafe_code, reason = "a function of mimalloc that the crate does not wrap")]
    unsafe extern "C" {
        /// Takes any number.
        safe fn mi_option_get(option: c_int) -> c_long;
    }

    /// Options go by their place in a list of mimalloc's: with another list this would set another one. No other has this default.
    #[test]
    fn the_number_is_that_of_the_purge_delay() {
        assert_eq!(mi_option_get(PURGE_DELAY), 1_000);
    }
}
