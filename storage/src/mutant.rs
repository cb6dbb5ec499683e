//! Seeded bugs: one build with the feature `mutants`, one fault a run chosen by `FANFARE_MUTANT`, so that the tests
//! can be shown to catch it. Without the feature every question is answered `false` at compile time.

/// Whether the seeded bug of that name is on in this run.
#[cfg(feature = "mutants")]
pub fn is(name: &str) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("FANFARE_MUTANT").ok()).as_deref() == Some(name)
}

/// Whether the seeded bug of that name is on in this run: never, without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is(_name: &str) -> bool {
    false
}
