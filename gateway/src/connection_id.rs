//! QUIC's connection ids. quinn's own kind that can be told from noise has 24 random bits: among ten thousand connections a
//! new one soon draws an id that another holds, its packets go there, and it hangs until it gives up.

use aws_lc_rs::hmac;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid, RandomConnectionIdGenerator};

/// Random bytes of an id: two of the five million that a million connections hold are the same once in a million such servers.
const RANDOM_BYTES: usize = 8;
/// Bytes by which an id is told from noise.
const CHECK_BYTES: usize = 4;
/// Bytes of an id.
pub(crate) const ID_BYTES: usize = RANDOM_BYTES + CHECK_BYTES;

/// Makes ids that this deployment knows again, after a restart too: who sends another gets no answer.
pub(crate) struct SignedConnectionIds {
    random: RandomConnectionIdGenerator,
    key: hmac::Key,
}

impl SignedConnectionIds {
    pub fn new(key: hmac::Key) -> Self {
        Self { random: RandomConnectionIdGenerator::new(RANDOM_BYTES), key }
    }
}

impl ConnectionIdGenerator for SignedConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let random = self.random.generate_cid();
        let mut id = [0; ID_BYTES];
        id[..RANDOM_BYTES].copy_from_slice(&random);
        id[RANDOM_BYTES..].copy_from_slice(&hmac::sign(&self.key, &random).as_ref()[..CHECK_BYTES]);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let Some((random, check)) = id.split_at_checked(RANDOM_BYTES) else { return Err(InvalidCid) };
        let expected = hmac::sign(&self.key, random);
        if expected.as_ref()[..CHECK_BYTES] == *check { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ids(key: &[u8]) -> SignedConnectionIds {
        SignedConnectionIds::new(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    #[test]
    fn no_two_of_many_are_the_same() {
        let mut ids = ids(b"ours");
        let many = 100_000;
        let apart: HashSet<Vec<u8>> = (0..many).map(|_| ids.generate_cid().to_vec()).collect();
        assert_eq!(apart.len(), many, "with 24 random bits about 300 of them would be");
    }

    #[test]
    fn an_id_is_known_by_its_key_alone() {
        let id = ids(b"ours").generate_cid();
        assert_eq!(id.len(), ids(b"ours").cid_len());
        assert!(ids(b"ours").validate(&id).is_ok());
        assert!(ids(b"another's").validate(&id).is_err());
        let mut altered = id.to_vec();
        altered[0] ^= 1;
        assert!(ids(b"ours").validate(&ConnectionId::new(&altered)).is_err());
        assert!(ids(b"ours").validate(&ConnectionId::new(&id[..5])).is_err());
    }
}
