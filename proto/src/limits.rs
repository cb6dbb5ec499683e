//! The bounds of everything a peer controls, with their units. Numbers follow the guarantees' table of attacks; the
//! server hands those a client must know out in WELCOME.

use std::time::Duration;

/// Bytes of one frame with its header, and of one WebSocket message.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one entry's text or opaque body.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// Bytes of one whole DELIVER frame, so that a PAGE always holds one with its newest edit.
pub const ENTRY_BYTES_MAX: usize = 24 * 1024;
/// Bytes of one PAGE frame.
pub const PAGE_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// Bytes of all PAGE frames that answer one FETCH.
pub const FETCH_BYTES_MAX: usize = 512 * 1024;
/// Messages that one FETCH may ask for.
pub const FETCH_MESSAGES_MAX: u32 = 100;
/// Values of any repeated field.
pub const REPEATED_MAX: usize = 1_000;
/// Members that a message of somebody who is no admin may mention.
pub const MENTIONS_MAX: usize = 32;
/// Between two messages of a group that mention everybody.
pub const MENTION_ALL_EVERY: Duration = Duration::from_secs(10);
/// Members named by one membership entry.
pub const MEMBERS_PER_ENTRY_MAX: usize = 1_000;
/// Channels whose missed entries one SYNC may have sent.
pub const SYNC_WINDOW_MAX: u32 = 200;
/// Channels a SYNCED frame describes.
pub const SYNCED_CHANNELS_MAX: usize = 200;
/// Bytes that one SYNC's fills may send before the rest of its channels get GAP.
pub const SYNC_FILL_BYTES_MAX: usize = 256 * 1024;
/// Unanswered requests (SEND, FETCH, OPEN, COUNTS) of one session.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 256;
/// Bytes of a channel's or device's name, an emoji, a content type.
pub const NAME_BYTES_MAX: usize = 256;
/// Bytes of an emoji in a reaction.
pub const EMOJI_BYTES_MAX: usize = 64;
/// Attachments of one message.
pub const ATTACHMENTS_MAX: usize = 32;
/// Bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 4 * 1024;
/// Bytes a connection may send before it is authenticated.
pub const BEFORE_AUTH_BYTES_MAX: usize = 8 * 1024;
/// From accept to WELCOME.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes of one gathered write: frames of a channel and flush behind one WebSocket header.
pub const GATHER_BYTES_MAX: usize = 16 * 1024;
/// Bytes that may wait for one slow reader.
pub const OUTGOING_BYTES_MAX: usize = 512 * 1024;
/// How long bytes may wait for one slow reader.
pub const OUTGOING_TIME_MAX: Duration = Duration::from_secs(10);
/// A client acknowledges after so many frames,
pub const ACK_AFTER_FRAMES: u32 = 256;
/// or so many bytes,
pub const ACK_AFTER_BYTES: usize = 64 * 1024;
/// or so long (jittered by a fifth), whichever comes first, and with any frame it sends anyway.
pub const ACK_AFTER: Duration = Duration::from_secs(10);
/// In direct channels a delivered receipt follows within this, coalesced.
pub const DIRECT_RECEIPT_AFTER: Duration = Duration::from_millis(250);
/// Heartbeat the server sets; clients jitter it by a fifth.
pub const HEARTBEAT: Duration = Duration::from_secs(25);
/// A session that is silent this long is closed: a heartbeat, its jitter and a slow network.
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(45);
/// The server asks for a token this long before the old one ends,
pub const REAUTH_BEFORE: Duration = Duration::from_secs(60);
/// and closes this long after; also how long a session resumed past its token's end has for AUTH.
pub const REAUTH_GRACE: Duration = Duration::from_secs(30);
/// Life of a resume secret.
pub const RESUME_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A client message id may be this far ahead of the server's clock.
pub const CLIENT_ID_AHEAD_MAX: Duration = Duration::from_secs(120);
/// Repeats are exact for this long; older ids are refused.
pub const CLIENT_ID_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Members up to which cursors are pushed; in larger channels COUNTS answers.
pub const RECEIPTS_PUSHED_MEMBERS_MAX: usize = 32;
/// Members up to which a membership entry goes to active members at once; above it entries are bundled.
pub const MEMBERSHIP_AT_ONCE_MEMBERS_MAX: usize = 256;
/// Members of one group.
pub const MEMBERS_MAX: usize = 200_000;
/// Channels that one session may have on its screen.
pub const VISIBLE_MAX: usize = 16;
/// Users whose presence one session may watch.
pub const PRESENCE_WATCHED_MAX: usize = 256;
/// Users that one PRESENCE frame tells of, so that it goes into one datagram.
pub const PRESENCE_USERS_PER_FRAME: usize = 40;
/// Channels of one user.
pub const CHANNELS_PER_USER_MAX: usize = 10_000;
