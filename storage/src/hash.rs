//! Hashes of what is stored: SHA-256 of a frame, the chain over a channel's entries, and the keyed hash of a client
//! message id.

use aws_lc_rs::{digest, hmac};
use fanfare_proto::ClientMessageId;

use crate::model::{ClientIdHash, Hash};

/// The chain of a channel without entries.
pub const CHAIN_START: Hash = [0; 32];

/// SHA-256 of a stored frame.
pub fn frame(frame: &[u8]) -> Hash {
    finish(digest::digest(&digest::SHA256, frame))
}

/// The chain's next link: SHA-256(previous, epoch, seq, hash), numbers big-endian.
pub fn chain(previous: &Hash, epoch: u32, seq: u64, hash: &Hash) -> Hash {
    let mut link = [0; 32 + 4 + 8 + 32];
    link[..32].copy_from_slice(previous);
    link[32..36].copy_from_slice(&epoch.to_be_bytes());
    link[36..44].copy_from_slice(&seq.to_be_bytes());
    link[44..].copy_from_slice(hash);
    finish(digest::digest(&digest::SHA256, &link))
}

/// The deployment's key under which client message ids are hashed. Cheap to use, dear to make: keep it.
#[derive(Debug)]
pub struct ClientIdKey(hmac::Key);

impl ClientIdKey {
    /// From the secret named "client-ids".
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// HMAC-SHA-256 of the id, first 16 bytes.
    pub fn hash(&self, id: &ClientMessageId) -> ClientIdHash {
        let tag = hmac::sign(&self.0, &id.0);
        let mut hash = [0; 16];
        hash.copy_from_slice(&tag.as_ref()[..16]);
        hash
    }
}

/// As [`ClientIdKey::hash`], for a single use.
pub fn client_id(secret: &[u8], id: &ClientMessageId) -> ClientIdHash {
    ClientIdKey::new(secret).hash(id)
}

fn finish(digest: digest::Digest) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_hash_is_sha256() {
        let abc = frame(b"abc");
        assert_eq!(abc[..4], [0xba, 0x78, 0x16, 0xbf]);
    }

    #[test]
    fn every_part_moves_the_chain() {
        let hash = frame(b"one");
        let base = chain(&CHAIN_START, 1, 1, &hash);
        assert_ne!(base, chain(&hash, 1, 1, &hash));
        assert_ne!(base, chain(&CHAIN_START, 2, 1, &hash));
        assert_ne!(base, chain(&CHAIN_START, 1, 2, &hash));
        assert_ne!(base, chain(&CHAIN_START, 1, 1, &frame(b"two")));
    }

    #[test]
    fn client_ids_are_hashed_under_the_key() {
        let id = ClientMessageId::new(1_800_000_000_000, [7; 10]);
        assert_eq!(client_id(b"key", &id), ClientIdKey::new(b"key").hash(&id));
        assert_ne!(client_id(b"key", &id), client_id(b"other", &id));
    }
}
