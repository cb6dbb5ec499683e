//! Ids: u64 below 2^63, made of 42 bits of milliseconds since 2025-01-01T00:00:00Z, 10 bits of shard and 11 bits of
//! counter, so that an id says when and where it was made and ids made later are larger. In JSON and on screens they
//! are decimal strings.

use std::{fmt, num::ParseIntError, str::FromStr};

/// 2025-01-01T00:00:00Z in Unix milliseconds.
pub const EPOCH_MS: u64 = 1_735_689_600_000;
/// Bits of an id that number the shard.
pub const SHARD_BITS: u32 = 10;
/// Bits of an id that count within one millisecond and shard.
pub const COUNTER_BITS: u32 = 11;
/// Shards a deployment has unless it chose otherwise at setup.
pub const SHARDS_DEFAULT: u16 = 256;
/// The most shards an id can name.
pub const SHARDS_MAX: u16 = 1 << SHARD_BITS;

/// One of the fixed slices of all channels and users.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ShardId(pub u16);

/// An entry's place in its channel: dense from 1.
pub type Seq = u64;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// Unix milliseconds at which the id was made.
            pub fn time_ms(self) -> u64 {
                (self.0 >> (SHARD_BITS + COUNTER_BITS)) + EPOCH_MS
            }

            /// The shard that made it, which owns what it names.
            pub fn shard(self) -> ShardId {
                ShardId(((self.0 >> COUNTER_BITS) & u64::from(SHARDS_MAX - 1)) as u16)
            }

            /// The smallest id of that millisecond: the lower bound of a search by time.
            pub fn first_at(unix_ms: u64) -> Self {
                Self(unix_ms.saturating_sub(EPOCH_MS).min((1 << 42) - 1) << (SHARD_BITS + COUNTER_BITS))
            }

            /// Zero is never given to anything: on the wire it means "none".
            pub fn is_none(self) -> bool {
                self.0 == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;
            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                text.parse().map(Self)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
    };
}

id!(
    /// An account.
    UserId
);
id!(
    /// A conversation.
    ChannelId
);
id!(
    /// An entry, everywhere and for ever; holds the server's time.
    MessageId
);
id!(
    /// One live connection of a device.
    SessionId
);

/// One installation of a client: a number the client picks once at random, below 2^63 and not 0; it names a device
/// together with its user.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct DeviceId(pub u64);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The idempotency key of a send: a UUIDv7 made by the client at the first attempt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct ClientMessageId(pub [u8; 16]);

impl ClientMessageId {
    /// From the 16 bytes of the wire; `None` unless they are a UUID of version 7, variant 1.
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 16] = bytes.try_into().ok()?;
        (bytes[6] >> 4 == 7 && bytes[8] >> 6 == 0b10).then_some(Self(bytes))
    }

    /// Made of a time and 74 random bits; the other bits of `random` are not used.
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&unix_ms.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        bytes[6] = 0x70 | (bytes[6] & 0x0f);
        bytes[8] = 0x80 | (bytes[8] & 0x3f);
        Self(bytes)
    }

    /// Unix milliseconds of the first attempt by the client's reckoning of the server's clock.
    pub fn time_ms(self) -> u64 {
        self.0[..6].iter().fold(0, |time, byte| time << 8 | u64::from(*byte))
    }
}

/// Gives out ids of one shard, each larger than any before, whatever the clock says.
#[derive(Debug, Clone)]
pub struct IdSource {
    shard: ShardId,
    last: u64,
}

impl IdSource {
    /// Goes on above `last`, the highest id the shard ever gave (0 at first).
    pub fn new(shard: ShardId, last: u64) -> Self {
        Self { shard, last }
    }

    /// The next id. Takes the clock's time where that is ahead of the last id, else counts on; 2,048 ids in one
    /// millisecond borrow from the next.
    pub fn next(&mut self, now_ms: u64) -> u64 {
        let step = SHARD_BITS + COUNTER_BITS;
        let counter_max = (1 << COUNTER_BITS) - 1;
        let (last_ms, last_counter) = (self.last >> step, self.last & counter_max);
        let now = now_ms.saturating_sub(EPOCH_MS);
        let (ms, counter) = if now > last_ms {
            (now, 0)
        } else if last_counter < counter_max {
            (last_ms, last_counter + 1)
        } else {
            (last_ms + 1, 0)
        };
        self.last = ms << step | u64::from(self.shard.0) << COUNTER_BITS | counter;
        self.last
    }

    /// The highest id given so far.
    pub fn last(&self) -> u64 {
        self.last
    }
}

/// The shard that owns the direct channel of a pair: the same whichever of the two opens it.
pub fn direct_shard(one: UserId, other: UserId, shards: u16) -> ShardId {
    let (low, high) = (one.0.min(other.0), one.0.max(other.0));
    // Fibonacci hashing: the pair's ids differ mostly in their low bits and in their time.
    let mixed =
        low.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ high.rotate_left(32).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    ShardId(((mixed ^ mixed >> 29) % u64::from(shards.max(1))) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_even_when_the_clock_falls_back() {
        let mut ids = IdSource::new(ShardId(37), 0);
        let mut last = 0;
        for step in 0..10_000u64 {
            let now = EPOCH_MS + 5_000 - step % 100;
            let id = ids.next(now);
            assert!(id > last && id < 1 << 63);
            assert_eq!(MessageId(id).shard(), ShardId(37));
            last = id;
        }
        assert!(MessageId(last).time_ms() >= EPOCH_MS + 5_000);
    }

    #[test]
    fn client_message_ids_are_uuid_v7() {
        let id = ClientMessageId::new(1_763_000_000_123, [0xff; 10]);
        assert_eq!(id.time_ms(), 1_763_000_000_123);
        assert_eq!(ClientMessageId::from_wire(&id.0), Some(id));
        assert_eq!(ClientMessageId::from_wire(&[0; 16]), None);
        assert_eq!(ClientMessageId::from_wire(&id.0[..15]), None);
    }

    #[test]
    fn a_pair_has_one_shard() {
        assert_eq!(direct_shard(UserId(5), UserId(9), 256), direct_shard(UserId(9), UserId(5), 256));
    }
}
