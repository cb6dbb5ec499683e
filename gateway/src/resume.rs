//! Resume secrets: what lets a client come back without a signature being checked.
//!
//! ```text
//! 0   u8     layout, 1                 18  u32    the device's generation
//! 1   u8     number of the key         22  u64    end of the token, Unix milliseconds
//! 2   u64    user                      30  u64    end of the secret, Unix milliseconds
//! 10  u64    device                    38  32 bytes  HMAC-SHA256 over all before, under the key
//! ```
//!
//! Integers are little-endian; to clients it is opaque. All gateways share the keys. To rotate, put the new key first and
//! keep the old one behind it for a secret's life. The secret is stateless: revoking raises the device's generation, which
//! the owner of the user compares.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use bytes::Bytes;
use fanfare_proto::{
    error::Code,
    ids::{DeviceId, UserId},
};

const LAYOUT: u8 = 1;
const SIGNED_BYTES: usize = 38;
const SECRET_BYTES: usize = SIGNED_BYTES + 32;

/// What a secret says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// Whose session.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
    /// Raised by revocation.
    pub generation: u32,
    /// The end of the token that the session last showed, in Unix milliseconds.
    pub token_until_ms: u64,
    /// The end of the secret, in Unix milliseconds.
    pub until_ms: u64,
}

/// The keys under which secrets are made and checked: the first makes, all check.
#[derive(Clone)]
pub struct ResumeKeys {
    keys: Arc<ArcSwap<Vec<(u8, hmac::Key)>>>,
}

impl std::fmt::Debug for ResumeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.load().iter().map(|(number, _)| number)).finish()
    }
}

impl ResumeKeys {
    /// Numbered keys of 32 random bytes, the newest first. Without any, no session can be resumed.
    pub fn new(keys: &[(u8, [u8; 32])]) -> Self {
        Self { keys: Arc::new(ArcSwap::from_pointee(Self::prepare(keys))) }
    }

    /// Takes other keys, at once and for all clones.
    pub fn rotate(&self, keys: &[(u8, [u8; 32])]) {
        self.keys.store(Arc::new(Self::prepare(keys)));
    }

    fn prepare(keys: &[(u8, [u8; 32])]) -> Vec<(u8, hmac::Key)> {
        keys.iter().map(|(number, key)| (*number, hmac::Key::new(hmac::HMAC_SHA256, key))).collect()
    }

    /// Makes a secret; empty where there is no key.
    pub fn seal(&self, resume: &Resume) -> Bytes {
        let keys = self.keys.load();
        let Some((number, key)) = keys.first() else { return Bytes::new() };
        let mut out = Vec::with_capacity(SECRET_BYTES);
        out.extend_from_slice(&[LAYOUT, *number]);
        out.extend_from_slice(&resume.user.0.to_le_bytes());
        out.extend_from_slice(&resume.device.0.to_le_bytes());
        out.extend_from_slice(&resume.generation.to_le_bytes());
        out.extend_from_slice(&resume.token_until_ms.to_le_bytes());
        out.extend_from_slice(&resume.until_ms.to_le_bytes());
        let mac = hmac::sign(key, &out);
        out.extend_from_slice(mac.as_ref());
        out.into()
    }

    /// Checks a secret that this device shows.
    ///
    /// # Errors
    /// `RESUME_REFUSED`.
    pub fn open(&self, secret: &[u8], device: DeviceId, unix_ms: u64) -> Result<Resume, Code> {
        let refused = Code::RESUME_REFUSED;
        if secret.len() != SECRET_BYTES || secret[0] != LAYOUT {
            return Err(refused);
        }
        let (signed, mac) = secret.split_at(SIGNED_BYTES);
        let keys = self.keys.load();
        let (_, key) = keys.iter().find(|(number, _)| *number == secret[1]).ok_or(refused)?;
        hmac::verify(key, signed, mac).map_err(|_| refused)?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&signed[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let resume = Resume {
            user: UserId(word(2)),
            device: DeviceId(word(10)),
            generation: word(18) as u32,
            token_until_ms: word(22),
            until_ms: word(30),
        };
        if resume.device != device || unix_ms >= resume.until_ms {
            return Err(refused);
        }
        Ok(resume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESUME: Resume = Resume {
        user: UserId(5),
        device: DeviceId(6),
        generation: 7,
        token_until_ms: 1_000,
        until_ms: 2_000,
    };

    #[test]
    fn every_changed_bit_is_refused() {
        let keys = ResumeKeys::new(&[(3, [1; 32])]);
        let secret = keys.seal(&RESUME);
        assert_eq!(keys.open(&secret, DeviceId(6), 1_999), Ok(RESUME));
        assert_eq!(keys.open(&secret, DeviceId(6), 2_000), Err(Code::RESUME_REFUSED));
        assert_eq!(keys.open(&secret, DeviceId(8), 0), Err(Code::RESUME_REFUSED));
        for bit in 0..secret.len() * 8 {
            let mut changed = secret.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys.open(&changed, DeviceId(6), 0), Err(Code::RESUME_REFUSED), "bit {bit}");
        }
        for cut in 0..secret.len() {
            assert_eq!(keys.open(&secret[..cut], DeviceId(6), 0), Err(Code::RESUME_REFUSED));
        }
    }

    #[test]
    fn keys_rotate_with_overlap() {
        let keys = ResumeKeys::new(&[(1, [1; 32])]);
        let old = keys.seal(&RESUME);
        keys.rotate(&[(2, [2; 32]), (1, [1; 32])]);
        let new = keys.seal(&RESUME);
        assert!(keys.open(&old, DeviceId(6), 0).is_ok() && keys.open(&new, DeviceId(6), 0).is_ok());
        keys.rotate(&[(2, [2; 32])]);
        assert_eq!(keys.open(&old, DeviceId(6), 0), Err(Code::RESUME_REFUSED));
        assert!(keys.open(&new, DeviceId(6), 0).is_ok());
        assert!(ResumeKeys::new(&[]).seal(&RESUME).is_empty());
    }
}
