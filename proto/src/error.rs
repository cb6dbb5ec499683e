//! The one table of error numbers: on the wire, in logs, in `fanfare explain` and in the documents. A number is an area
//! (its thousands, a letter on screens) and a place in it: 1004 is shown as FAN-P004.

use std::fmt;

/// What a peer should do about an error; on a close it follows from the close code's hundreds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Try again at once, with jitter (close codes 4000 to 4099).
    Resume,
    /// Try again after a back-off, or after the time the error names (4100 to 4199).
    BackOff,
    /// Get a fresh token first (4200 to 4299).
    Authenticate,
    /// Do not try again: the same would fail again (4300 to 4399).
    Never,
    /// The outcome is not known: repeat the same client message id.
    Repeat,
}

/// An error number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(pub u16);

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct ErrorRow {
    /// The number.
    pub code: Code,
    /// Name in the documents.
    pub name: &'static str,
    /// What a peer should do.
    pub policy: Policy,
    /// What happened, in one sentence.
    pub what: &'static str,
    /// What to do about it, in one sentence.
    pub fix: &'static str,
}

macro_rules! codes {
    ($($name:ident = $number:literal, $policy:ident, $what:literal, $fix:literal;)*) => {
        impl Code {
            $(#[doc = $what] pub const $name: Code = Code($number);)*
        }

        impl Code {
            /// All error numbers, ascending.
            pub const TABLE: &[ErrorRow] = &[$(ErrorRow {
                code: Code::$name,
                name: stringify!($name),
                policy: Policy::$policy,
                what: $what,
                fix: $fix,
            },)*];
        }
    };
}

codes! {
    UNKNOWN_TYPE = 1001, Never, "The frame's type is not known, or not for this side to send.", "Send only the frame types of the negotiated version.";
    FRAME_TOO_LARGE = 1002, Never, "The frame or WebSocket message is longer than 64 KiB.", "Keep frames within `limits.frame_bytes_max` of WELCOME.";
    RESERVED_BITS = 1003, Never, "A header has bits set that mean nothing in this version.", "Set reserved bits, and ids' top bit, to 0.";
    BAD_BODY = 1004, Never, "The body does not decode as the protobuf message of its frame type.", "Encode the body as docs/protocol.md says.";
    OUT_OF_STATE = 1005, Never, "The frame may not be sent in this state of the session.", "Send HELLO first and once; wait for WELCOME.";
    BAD_FIELD = 1006, Never, "A field's value is missing or out of its range.", "See the field's bounds in docs/protocol.md.";
    VERSION_UNSUPPORTED = 1007, Never, "No protocol version is spoken by both sides.", "Update the client or the server.";
    TEXT_MESSAGE = 1008, Never, "A WebSocket text message arrived; frames travel in binary messages.", "Send binary messages.";
    WEBSOCKET = 1009, Never, "The WebSocket framing was broken.", "See RFC 6455; no extension is negotiated.";
    TRUNCATED = 1010, Never, "A message or stream ended inside a frame.", "A WebSocket message holds whole frames.";
    UPGRADE = 1011, Never, "The HTTP request was not a WebSocket upgrade that this server serves.", "GET /v1/ws with subprotocol fanfare.v1.";
    STREAM = 1012, Never, "A QUIC stream was opened that the protocol does not know.", "See \"QUIC streams\" in docs/protocol.md.";

    TOKEN_MISSING = 2001, Authenticate, "HELLO carried neither a token nor a resume secret.", "Get a token (fanfare user token NAME) and put it into HELLO.";
    TOKEN_MALFORMED = 2002, Authenticate, "The token is not a signed token of the expected form.", "Use a token as issued, at most 4 KiB.";
    TOKEN_EXPIRED = 2003, Authenticate, "The token's time is over.", "Get a fresh token.";
    TOKEN_SIGNATURE = 2004, Authenticate, "The token's signature is not by a key this server trusts.", "Use a token issued by this deployment.";
    TOKEN_CLAIMS = 2005, Authenticate, "A claim of the token (iss, aud, typ, sub, exp) is missing or wrong.", "See \"Tokens\" in docs/protocol.md.";
    RESUME_REFUSED = 2006, Authenticate, "The resume secret is not valid any more.", "Connect with a token.";
    REAUTHENTICATE = 2007, Authenticate, "The session's token ended and no fresh one came.", "Answer AUTH within the time it names.";
    REVOKED = 2008, Authenticate, "The session was revoked.", "Sign in again.";
    UNKNOWN_USER = 2009, Authenticate, "The token names a user that does not exist here.", "Create the user (fanfare user add NAME).";
    ORIGIN_REFUSED = 2010, Never, "The page's origin is not on the allow-list.", "Add it to gateway.origins.";
    DELIVERY_REFUSED = 2011, Never, "This user may not ask for full delivery.", "Say delivery = tiered.";
    ADMIN_REFUSED = 2012, Authenticate, "The admin token is missing or wrong.", "Run the command on the server's machine, with its data folder.";
    LOGIN_REFUSED = 2013, Authenticate, "The name or the password is wrong.", "Try again; an administrator can set a new password.";
    LOGIN_ENDED = 2014, Authenticate, "The refresh token is not valid any more.", "Sign in again.";
    REGISTRATION_CLOSED = 2015, Never, "People cannot make accounts here themselves.", "Ask an administrator (fanfare user add NAME), or set accounts.registration.";

    NOT_A_MEMBER = 3001, Never, "There is no such channel, or you are not a member of it.", "Join it, or ask to be invited.";
    FORBIDDEN = 3002, Never, "Your role does not allow that.", "Ask an owner or admin of the channel.";
    CONFLICT = 3003, Never, "This client message id was used for another content.", "Make a new client message id for each message.";
    EXPIRED = 3004, Never, "The client message id is older than 7 days.", "Look into the channel's history, then send it as a new message.";
    CLIENT_ID_AHEAD = 3005, Never, "The client message id's time is over 2 minutes ahead of the server's clock.", "Mint ids on the clock of WELCOME.";
    NO_SUCH_TARGET = 3006, Never, "The entry to edit, recall or react to is not there, or not of a kind that can be.", "Name the seq of a message of the same channel.";
    RECALLED = 3007, Never, "The message was recalled.", "Nothing: it is gone.";
    NO_SUCH_USER = 3008, Never, "A user that the request names does not exist.", "Check the ids.";
    NO_CHANGE = 3009, Never, "The membership or channel is already as asked.", "Nothing.";
    LAST_OWNER = 3010, Never, "The last owner cannot leave or step down.", "Make somebody else an owner first.";
    WRONG_KIND = 3011, Never, "The operation is not for this kind of channel.", "Direct channels have exactly two members for ever.";
    CHANNEL_FULL = 3012, Never, "The channel or the user's list of channels is full.", "See \"Limits\" in docs/protocol.md.";
    NO_SUCH_NAME = 3013, Never, "No user or channel of that name exists.", "List them: fanfare user ls, fanfare channel ls.";
    NAME_TAKEN = 3014, Never, "The name is taken.", "Choose another name.";
    PASSWORD_LENGTH = 3015, Never, "A password has at least 8 characters and at most 256 bytes.", "Choose another password.";
    MUTED = 3016, Never, "You are muted in this channel.", "Wait until the mute ends, or ask an admin of the channel.";
    BANNED = 3017, Never, "A user that the request names, or you, may not come into this channel.", "Ask an admin of the channel to lift the ban.";
    BLOCKED = 3018, Never, "A user whom you write to, add or invite has blocked you.", "Nothing: it is their choice.";

    RATE_LIMITED = 4001, BackOff, "Too many requests in too short a time.", "Wait as long as the answer says.";
    BODY_TOO_LARGE = 4002, Never, "The body is over 16 KiB, or the whole entry over 24 KiB.", "Split it, or send it as an attachment.";
    TOO_MANY_IN_FLIGHT = 4003, BackOff, "Too many requests of this session are unanswered.", "Wait for answers before sending more.";
    CONNECTIONS_PER_USER = 4004, BackOff, "The user has too many connections.", "Close some; 16 are allowed by default.";
    CONNECTIONS_PER_ADDRESS = 4005, BackOff, "The address has too many connections.", "Close some; 200 are allowed by default.";
    SLOW_READER = 4006, Resume, "The client did not read what it was sent in time.", "Reconnect; SYNC brings what was missed.";
    IDLE = 4007, Resume, "Nothing came from the client for too long.", "Send PING every heartbeat.";
    PING_FLOOD = 4008, BackOff, "Too many pings.", "Ping once a heartbeat.";
    HANDSHAKE_TIMEOUT = 4009, BackOff, "No HELLO, or no valid one, came in time.", "Send HELLO within 5 seconds and 8 KiB.";
    OVERLOADED = 4010, BackOff, "The server has as many connections as it can hold.", "Try later, or another gateway.";

    RETRY_LATER = 5001, BackOff, "The server cannot do this now; nothing was changed.", "Repeat it after the time the answer names.";
    OUTCOME_UNKNOWN = 5002, Repeat, "It is not known whether the entry was committed.", "Repeat with the same client message id until it is.";
    READ_ONLY = 5003, BackOff, "The server takes no writes now: its disk or outbox is full.", "Operators: free space; clients: try later.";
    GOING_AWAY = 5004, Resume, "The server is shutting down or draining.", "Reconnect within the delay window.";
    INTERNAL = 5005, BackOff, "Something failed inside the server; it is logged there.", "Try later.";
    CORRUPT = 5006, Never, "Stored bytes did not match their hash and were not served.", "Operators: fanfare reconcile.";
    REPLACED = 5007, Resume, "The same device opened a newer session.", "Use one session per device.";
    NOT_SERVED = 5008, Never, "The server knows this request and does not serve it in this version.", "See CHANGELOG.md.";

    DATA_LOCKED = 5101, Never, "Another fanfare holds the data folder.", "fanfare status: it may be the server you wanted; or start with --data ./other.";
    DATA_FORMAT = 5102, Never, "The data folder was written by another format version.", "Start it with the version that wrote it, or upgrade.";
    DATA_DAMAGED = 5103, Never, "The data folder does not read back as it was written.", "Restore it; fanfare reconcile says what is affected.";
    LISTEN_FAILED = 5104, Never, "An address could not be bound.", "Stop what holds it, or choose another with --listen or --http.";
    DEV_PUBLIC = 5105, Never, "Dev mode listens on loopback addresses only.", "Use a loopback address, or start without --dev.";
    UNREACHABLE = 5106, BackOff, "No server answers.", "Start one: fanfare start --dev.";
    CERTIFICATE = 5107, Never, "The certificate or key could not be read.", "Check tls.certificate and tls.key.";
    NOT_SET_UP = 5108, Never, "The data folder is not set up.", "fanfare setup, or fanfare start --dev.";

    CONFIG_UNREADABLE = 6001, Never, "The configuration file could not be read.", "Check its path and its form (TOML).";
    CONFIG_UNKNOWN_KEY = 6002, Never, "The configuration has a key that does not exist.", "fanfare config show lists all keys.";
    CONFIG_VALUE = 6003, Never, "A configuration value is out of its range.", "fanfare config show prints each key's value and bounds.";

    DOCTOR_FOLDER = 7001, Never, "The data folder cannot be written.", "Give it to the user that runs fanfare, or choose another with --data.";
    DOCTOR_FOLDER_MODE = 7002, Never, "Others on this machine may look into the data folder, which holds keys.", "chmod 700 on the data folder.";
    DOCTOR_SPACE = 7003, Never, "The disk of the data folder is nearly full.", "Free space, or move the data folder to a larger disk.";
    DOCTOR_FILES = 7004, Never, "This process may open too few files; each connection is one.", "Raise the hard limit: LimitNOFILE=1048576 in the service, or ulimit -Hn.";
    DOCTOR_UDP_RECEIVE = 7005, Never, "The system gives UDP sockets a shorter receive buffer than QUIC wants.", "sudo sysctl -w net.core.rmem_max=4194304";
    DOCTOR_UDP_SEND = 7006, Never, "The system gives UDP sockets a shorter send buffer than QUIC wants.", "sudo sysctl -w net.core.wmem_max=4194304";
    DOCTOR_PORT = 7007, Never, "A port the server needs is held by something else.", "Stop what holds it, or choose another with --listen or --http.";
    DOCTOR_SYNC = 7008, Never, "Writes of the data folder reach the disk slowly; each acknowledgement waits for one.", "Put the data folder on a faster local disk (fanfare start --data DIR).";
    DOCTOR_CLOCK = 7009, Never, "The system's clock is wrong or jumps; ids and tokens carry its time.", "Let NTP keep it: timedatectl set-ntp true.";
    DOCTOR_CERTIFICATE = 7010, Never, "The certificate is missing, unreadable, or ends soon.", "Renew it, and check tls.certificate and tls.key.";
    DOCTOR_CONFIGURATION = 7011, Never, "The configuration has a mistake; the server would not start.", "fanfare config check says where.";
    DOCTOR_HTTP = 7012, Never, "HTTP has no TLS and can be reached from elsewhere.", "Listen on loopback, behind a proxy that terminates TLS (http.proxies), or through a tunnel.";
}

impl Code {
    /// Its row, if the number is known to this version.
    pub fn row(self) -> Option<&'static ErrorRow> {
        Self::TABLE.binary_search_by_key(&self, |row| row.code).ok().map(|index| &Self::TABLE[index])
    }

    /// What a peer should do; numbers of later versions back off.
    pub fn policy(self) -> Policy {
        self.row().map_or(Policy::BackOff, |row| row.policy)
    }

    /// Whether a connection is ever closed for this reason. Start-up errors, configuration errors and findings of doctor
    /// never close one, nor do those that only answer a request: numbers whose place is above 15.
    pub fn closes(self) -> bool {
        self.0 < 5100 && self.0 % 1000 < 16 && self.policy() != Policy::Repeat
    }

    /// The WebSocket (and QUIC application) close code that ends a connection for this reason: 4000 to 4099 resume,
    /// 4100 to 4199 back off, 4200 to 4299 authenticate, 4300 to 4399 never; within the range 16 codes per area of
    /// the table: `(number / 1000 - 1) * 16 + number % 16`.
    pub fn close_code(self) -> u16 {
        let base = match self.policy() {
            Policy::Resume | Policy::Repeat => 4000,
            Policy::BackOff => 4100,
            Policy::Authenticate => 4200,
            Policy::Never => 4300,
        };
        base + (self.0 / 1000).clamp(1, 6) * 16 - 16 + self.0 % 1000 % 16
    }

    /// What a client should do after a connection ended with that close code. Codes that are not ours (a proxy's
    /// 1006, 1011, 1012) back off.
    pub fn policy_of_close(close_code: u16) -> Policy {
        match close_code {
            4000..4100 | 1001 | 1012 => Policy::Resume,
            4200..4300 => Policy::Authenticate,
            4300..4400 => Policy::Never,
            _ => Policy::BackOff,
        }
    }

    /// The number of a screen's `FAN-P004` or a plain `1004`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(number) = text.parse() {
            return Some(Self(number));
        }
        let text = text.to_ascii_uppercase();
        let text = text.strip_prefix("FAN-").unwrap_or(&text);
        let mut chars = text.chars();
        let area = AREAS.find(chars.next()?)? as u16 + 1;
        chars
            .as_str()
            .parse::<u16>()
            .ok()
            .filter(|place| *place < 1000)
            .map(|place| Self(area * 1000 + place))
    }
}

/// Letters of the areas from 1000 up: protocol, authentication, request, limits, server, configuration, doctor.
const AREAS: &str = "PARLSCD";

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = (self.0 / 1000).checked_sub(1).and_then(|area| AREAS.as_bytes().get(area as usize));
        write!(f, "FAN-{}{:03}", letter.map_or('X', |letter| *letter as char), self.0 % 1000)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {}", self.row().map_or("?", |row| row.name))
    }
}

impl std::error::Error for Code {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_ascends_and_close_codes_are_distinct() {
        assert!(Code::TABLE.is_sorted_by(|one, other| one.code < other.code));
        let closing = Code::TABLE.iter().filter(|row| row.code.closes());
        let mut closes: Vec<u16> = closing.clone().map(|row| row.code.close_code()).collect();
        closes.sort_unstable();
        closes.dedup();
        assert_eq!(closes.len(), closing.clone().count());
        for row in closing {
            assert_eq!(Code::policy_of_close(row.code.close_code()), row.policy);
        }
    }

    #[test]
    fn numbers_read_as_people_see_them() {
        assert_eq!(Code::BAD_BODY.to_string(), "FAN-P004");
        assert_eq!(Code::DATA_LOCKED.to_string(), "FAN-S101");
        for row in Code::TABLE {
            assert_eq!(Code::parse(&row.code.to_string()), Some(row.code));
            assert_eq!(Code::parse(&row.code.0.to_string()), Some(row.code));
        }
        assert_eq!(Code::parse("FAN-Z001"), None);
    }
}
