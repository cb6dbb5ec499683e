//! docs/reference/limits.md: every bound, from the constants that hold it.

use std::time::Duration;

use fanfare_gateway::Limits;
use fanfare_proto::{limits, session::server::Rate};

use super::cell;
use crate::{accounts, administration, export, http::bounds, push, token, webhook_keys};

/// A bound as people read it, with its unit where the type has one.
trait Shown {
    fn shown(&self) -> String;
}

impl Shown for Duration {
    fn shown(&self) -> String {
        let (seconds, ms) = (self.as_secs(), self.subsec_millis());
        match seconds {
            _ if ms > 0 => format!("{} ms", self.as_millis()),
            days if days >= 2 * 86_400 && days % 86_400 == 0 => format!("{} d", days / 86_400),
            hours if hours >= 3_600 && hours % 3_600 == 0 => format!("{} h", hours / 3_600),
            minutes if minutes >= 120 && minutes % 60 == 0 => format!("{} min", minutes / 60),
            seconds => format!("{seconds} s"),
        }
    }
}

macro_rules! shown_as_number {
    ($($type:ty),*) => {
        $(impl Shown for $type {
            fn shown(&self) -> String {
                grouped(*self as u64)
            }
        })*
    };
}

shown_as_number!(u16, u32, u64, usize);

impl Shown for Rate {
    fn shown(&self) -> String {
        format!("{} a minute, burst {}", grouped(u64::from(self.per_minute)), grouped(u64::from(self.burst)))
    }
}

/// 65536 as 65,536.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

macro_rules! of_the_protocol {
    ($($name:ident,)*) => {
        /// Name and value of each constant of the protocol's limits.
        fn of_the_protocol() -> Vec<(&'static str, String)> {
            vec![$((stringify!($name), limits::$name.shown())),*]
        }
    };
}

of_the_protocol! {
    FRAME_BYTES_MAX,
    BODY_BYTES_MAX,
    ENTRY_BYTES_MAX,
    PAGE_BYTES_MAX,
    FETCH_BYTES_MAX,
    FETCH_MESSAGES_MAX,
    MENTIONS_MAX,
    MENTION_ALL_EVERY,
    REPEATED_MAX,
    MEMBERS_PER_ENTRY_MAX,
    SYNC_WINDOW_MAX,
    SYNCED_CHANNELS_MAX,
    SYNC_FILL_BYTES_MAX,
    REQUESTS_IN_FLIGHT_MAX,
    NAME_BYTES_MAX,
    EMOJI_BYTES_MAX,
    ATTACHMENTS_MAX,
    TOKEN_BYTES_MAX,
    BEFORE_AUTH_BYTES_MAX,
    HANDSHAKE_TIME_MAX,
    GATHER_BYTES_MAX,
    OUTGOING_BYTES_MAX,
    OUTGOING_TIME_MAX,
    ACK_AFTER_FRAMES,
    ACK_AFTER_BYTES,
    ACK_AFTER,
    DIRECT_RECEIPT_AFTER,
    HEARTBEAT,
    IDLE_TIME_MAX,
    REAUTH_BEFORE,
    REAUTH_GRACE,
    RESUME_LIFE,
    CLIENT_ID_AHEAD_MAX,
    CLIENT_ID_AGE_MAX,
    RECEIPTS_PUSHED_MEMBERS_MAX,
    MEMBERSHIP_AT_ONCE_MEMBERS_MAX,
    MEMBERS_MAX,
    VISIBLE_MAX,
    PRESENCE_WATCHED_MAX,
    PRESENCE_USERS_PER_FRAME,
    CHANNELS_PER_USER_MAX,
}

/// Where they are written, each with what it is.
const SOURCE: &str = include_str!("../../../../proto/src/limits.rs");

/// The comment above a constant of [`SOURCE`].
fn comment(name: &str) -> String {
    let at = SOURCE.find(&format!("pub const {name}:")).unwrap_or(0);
    let above: Vec<&str> = SOURCE[..at].lines().rev().map_while(|line| line.strip_prefix("/// ")).collect();
    above.into_iter().rev().collect::<Vec<_>>().join(" ")
}

type Row = (&'static str, String);

fn of_http() -> Vec<Row> {
    let several = |count: u32, within: Duration| format!("{count} in {}", within.shown());
    vec![
        ("bytes of a request's body", bounds::BODY_BYTES_MAX.shown()),
        ("time for a request's body to arrive", bounds::BODY_WAIT_MAX.shown()),
        ("bytes of a request's head", bounds::HEAD_BYTES_MAX.shown()),
        ("time for a request's head to arrive", bounds::HEAD_WAIT_MAX.shown()),
        ("time that a client may leave an answer half read", bounds::READ_WAIT_MAX.shown()),
        ("connections at once; beyond, the longest idle is closed", bounds::CONNECTIONS_MAX.shown()),
        ("of those, kept free for 127.0.0.1 and ::1", bounds::CONNECTIONS_KEPT_FREE.shown()),
        ("age of a connection; then it ends with its answer", bounds::CONNECTION_AGE_MAX.shown()),
        ("connections of one address; more are closed", bounds::CONNECTIONS_PER_ADDRESS.shown()),
        ("requests to `/v1` of one address", several(bounds::RATE_BURST, bounds::RATE_WITHIN)),
        ("messages in one answer of history", bounds::MESSAGES_MAX.shown()),
        ("members in one answer", bounds::MEMBERS_PAGE.shown()),
        ("exports of a user's data at once: one of each user, and in all", export::RUNNING_MAX.shown()),
        ("exports that a user begins", several(export::BEGUN_MAX, export::BEGUN_WITHIN)),
        ("time that the reader of an export may take nothing", export::STALL_MAX.shown()),
        ("keys of webhooks that are published at once", webhook_keys::KEYS_MAX.shown()),
        ("life of a key of webhooks after another signs", webhook_keys::OVERLAP.shown()),
    ]
}

fn of_pushes() -> Vec<Row> {
    use fanfare_router::push::GROUP_TOLD_MAX;
    vec![
        ("members of a group of which the absent are told as a whole", GROUP_TOLD_MAX.shown()),
        ("pushes that wait; beyond, the log is not read on", push::WAITING_MAX.shown()),
        ("pause after the first failure; it doubles", push::PAUSE_FIRST.shown()),
        ("longest pause between two attempts", push::PAUSE_MAX.shown()),
        ("longest `Retry-After` of a receiver that is gone by", push::RETRY_AFTER_MAX.shown()),
        ("bytes of a preview's text", push::PREVIEW_BYTES_MAX.shown()),
        ("channels counted for a badge", push::BADGE_CHANNELS_MAX.shown()),
        ("time for which the key of a push that ended is known", push::ENDED_KEPT.shown()),
        ("time for which one that was given up can be replayed", push::DEAD_KEPT.shown()),
        ("pushes that were given up in one answer", push::DEAD_PAGE.shown()),
        ("secrets that sign at once", push::SECRETS_MAX.shown()),
    ]
}

fn of_accounts() -> Vec<Row> {
    use accounts::{administrators, password};
    let several = |(count, within): (u32, Duration)| format!("{count} in {}", within.shown());
    vec![
        ("bytes of a user's name", administration::USER_NAME_BYTES_MAX.shown()),
        ("characters of a password at least", password::PASSWORD_CHARS_MIN.shown()),
        ("bytes of a password", password::PASSWORD_BYTES_MAX.shown()),
        ("attempts to sign in with one name", several(accounts::BY_NAME)),
        ("attempts to sign in or up, or to take a link, of one address", several(accounts::BY_ADDRESS)),
        ("users that one user blocks", fanfare_router::BLOCKS_MAX.shown()),
        (
            "users of a channel that are muted, banned, invited or waiting, each",
            fanfare_router::MARKS_MAX.shown(),
        ),
        ("devices of a user that stay signed in", accounts::LOGINS_MAX.shown()),
        ("life of a token that signing in gives", accounts::TOKEN_TTL.shown()),
        ("life of a token by command at most", token::TTL_MAX.shown()),
        ("life of a login that is not refreshed", accounts::LOGIN_TTL.shown()),
        ("life of a link that makes an administrator", administrators::LINK_TTL.shown()),
        ("such links open at once; the oldest goes", administrators::LINKS_MAX.shown()),
        ("first members of a group by command", administration::MEMBERS_MAX.shown()),
    ]
}

/// What the profiles of `limits.profile` set.
fn of_profiles() -> Vec<(&'static str, [String; 2])> {
    let of = |read: fn(&Limits) -> String| [read(&Limits::DEFAULT), read(&Limits::LOAD)];
    vec![
        ("sends, per user", of(|limits| limits.policy.sends.shown())),
        ("other frames, per session", of(|limits| limits.policy.frames.shown())),
        ("PING and WebSocket pings, per session", of(|limits| limits.policy.pings.shown())),
        ("unanswered requests of a session", of(|limits| limits.policy.requests_in_flight_max.shown())),
        ("connecting to HELLO", of(|limits| Duration::from_millis(limits.policy.handshake_ms).shown())),
        (
            "silence before a session is closed",
            of(|limits| Duration::from_millis(limits.policy.idle_ms).shown()),
        ),
        ("connections of one user", of(|limits| limits.connections_per_user.shown())),
        ("connections of one address (IPv6: of a /64)", of(|limits| limits.connections_per_address.shown())),
        ("connections in all", of(|limits| limits.connections_max.shown())),
        ("handshakes under way", of(|limits| limits.handshakes_max.shown())),
        ("bytes that wait for a slow reader", of(|limits| limits.outgoing_bytes_max.shown())),
        ("time that they wait", of(|limits| Duration::from_millis(limits.outgoing_ms_max).shown())),
    ]
}

/// The page.
pub fn page() -> String {
    let mut page = String::from(
        "# Limits\n\n<!-- written by `fanfare docs limits` -->\n\nEverything a peer controls has a bound. What happens beyond it is in \
         [the protocol](../protocol.md#7-limits), and each refusal has a [number](errors.md).\n\n## By profile\n\n\
         `limits.profile` in [the configuration](configuration.md) chooses one.\n\n| what | `default` | `load` |\n| --- | --- | --- |\n",
    );
    for (what, [default, load]) in of_profiles() {
        page += &format!("| {what} | {default} | {load} |\n");
    }
    for (title, rows) in [("Accounts", of_accounts()), ("HTTP", of_http()), ("Pushes", of_pushes())] {
        page += &format!("\n## {title}\n\n| what | bound |\n| --- | --- |\n");
        for (what, bound) in rows {
            page += &format!("| {what} | {bound} |\n");
        }
    }
    page += "\n## The protocol\n\nFixed with the version; those a client must know are in WELCOME.\n\n| constant | bound | what it is |\n\
             | --- | --- | --- |\n";
    for (name, bound) in of_the_protocol() {
        page += &format!("| `{name}` | {bound} | {} |\n", cell(&comment(name)));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_of_the_protocol_is_left_out() {
        let listed = of_the_protocol();
        let names = SOURCE.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next());
        let mut count = 0;
        for name in names {
            count += 1;
            assert!(listed.iter().any(|(of, _)| *of == name), "{name} is not in the list above");
            assert!(comment(name).len() > 5, "{name} says nothing of itself");
        }
        assert_eq!(count, listed.len());
    }

    #[test]
    fn bounds_are_shown_with_their_units() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(Duration::from_millis(250).shown(), "250 ms");
        assert_eq!(Duration::from_secs(7 * 86_400).shown(), "7 d");
        assert_eq!(Duration::from_secs(86_400).shown(), "24 h");
        assert_eq!(Duration::from_secs(900).shown(), "15 min");
        assert_eq!(Duration::from_secs(60).shown(), "60 s");
    }
}
