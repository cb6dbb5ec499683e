//! Passwords: argon2id, a few at a time and behind everything else, so that a flood of logins costs others neither memory
//! nor time.

use std::sync::Arc;

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::phc::PasswordHash,
};
use fanfare_proto::Code;
use tokio::sync::Semaphore;

/// Characters of a password at least.
pub const PASSWORD_CHARS_MIN: usize = 8;
/// Bytes of a password; longer ones are refused before any work.
pub const PASSWORD_BYTES_MAX: usize = 256;
/// Memory of one hash, KiB, and passes over it: OWASP ASVS 5.0 (11.4.2 and its appendix) names 46 MiB with one pass.
const MEMORY_KIB: u32 = 46 * 1024;
const PASSES: u32 = 1;
/// By how much hashing stands back behind other threads: a flood of logins takes what they leave, and a tenth at least.
#[cfg(target_os = "linux")]
const NICER_BY: i32 = 10;
/// Hashes that may wait for a turn; more are told to come later.
const WAITING_MAX: usize = 64;

/// Hashes and checks passwords. Cheap to clone.
#[derive(Clone)]
pub struct Passwords {
    argon2: Argon2<'static>,
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
    /// A hash that no password fits: what unknown names are checked against, so that they take as long.
    decoy: Arc<str>,
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passwords")
            .field("free_turns", &self.turns.available_permits())
            .finish_non_exhaustive()
    }
}

impl Passwords {
    /// As many at once as the machine has cores beside one, which everybody else finds free. Blocks for one hash.
    ///
    /// # Errors
    /// `INTERNAL` where the system has no random numbers.
    pub fn new() -> Result<Self, Code> {
        let params = Params::new(MEMORY_KIB, PASSES, 1, None).map_err(|_| Code::INTERNAL)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut nobody = [0_u8; 32];
        aws_lc_rs::rand::fill(&mut nobody).map_err(|_| Code::INTERNAL)?;
        let decoy = argon2.hash_password(&nobody).map_err(|_| Code::INTERNAL)?.to_string();
        let at_once =
            std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1));
        Ok(Self {
            argon2,
            turns: Arc::new(Semaphore::new(at_once)),
            places: Arc::new(Semaphore::new(at_once + WAITING_MAX)),
            decoy: decoy.into(),
        })
    }

    /// The hash of a password, as a PHC string.
    ///
    /// # Errors
    /// `PASSWORD_LENGTH`, `RETRY_LATER`, `INTERNAL`.
    pub async fn hash(&self, password: &str) -> Result<String, Code> {
        let password = bounded(password)?;
        let argon2 = self.argon2.clone();
        self.turn(move || argon2.hash_password(password.as_bytes()).map(|hash| hash.to_string()))
            .await?
            .map_err(|error| {
                tracing::error!(%error, "a password could not be hashed");
                Code::INTERNAL
            })
    }

    /// Whether the password fits; without a hash it takes as long and fits never.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn fits(&self, password: &str, hash: Option<String>) -> Result<bool, Code> {
        let Ok(password) = bounded(password) else { return Ok(false) };
        let argon2 = self.argon2.clone();
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.decoy.to_string());
        let fits = move || match PasswordHash::new(&hash) {
            Ok(hash) => argon2.verify_password(password.as_bytes(), &hash).is_ok() && known,
            Err(error) => {
                tracing::error!(%error, "a stored password's hash does not read back");
                false
            }
        };
        self.turn(fits).await
    }

    async fn turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Code> {
        let _place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Code::RETRY_LATER)?;
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Code::RETRY_LATER)?;
        let (answer, answered) = tokio::sync::oneshot::channel();
        // A thread of its own, which costs little beside a hash: one that has stood back for everybody else's requests
        // cannot come forward again. The turn goes with the work: a client that hangs up frees its place, but not the
        // memory that is still in use.
        let started = std::thread::Builder::new().name("password".into()).spawn(move || {
            stand_back();
            let done = work();
            drop(turn);
            let _ = answer.send(done);
        });
        started.map_err(|error| {
            tracing::error!(%error, "no thread for a password");
            Code::RETRY_LATER
        })?;
        answered.await.map_err(|_| Code::INTERNAL)
    }
}

/// Lowers the priority of this thread.
fn stand_back() {
    // Elsewhere it would be that of the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICER_BY) {
        tracing::debug!(%error, "hashing does not stand back");
    }
}

fn bounded(password: &str) -> Result<String, Code> {
    if password.len() <= PASSWORD_BYTES_MAX && password.chars().count() >= PASSWORD_CHARS_MIN {
        Ok(password.to_owned())
    } else {
        Err(Code::PASSWORD_LENGTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_fits_its_own_hash_and_no_other() {
        let passwords = Passwords::new().expect("made");
        let hash = passwords.hash("correct horse").await.expect("hashed");
        assert!(hash.starts_with("$argon2id$v=19$m=47104,t=1,p=1$"), "{hash}");
        assert_eq!(passwords.fits("correct horse", Some(hash.clone())).await, Ok(true));
        assert_eq!(passwords.fits("correct horsf", Some(hash)).await, Ok(false));
        assert_eq!(passwords.fits("correct horse", None).await, Ok(false));
        for odd in ["short", &"x".repeat(257)] {
            assert_eq!(passwords.hash(odd).await, Err(Code::PASSWORD_LENGTH));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_flood_of_logins_is_bounded() {
        let passwords = Passwords::new().expect("made");
        let room = passwords.places.available_permits();
        let held = Arc::clone(&passwords.places).acquire_many_owned(room as u32).await.expect("free");
        assert_eq!(passwords.fits("correct horse", None).await, Err(Code::RETRY_LATER));
        drop(held);
        assert_eq!(passwords.fits("correct horse", None).await, Ok(false));
    }
}
