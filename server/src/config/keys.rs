//! All keys: name, kind, default, and what they are for.

use std::fmt;

use crate::{cli::parse_address, network::Network, push::HookUrl};

/// What a key takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Any text that is not empty.
    Text,
    /// A path, or nothing.
    Path,
    /// An address with its port.
    Address,
    /// Texts.
    List,
    /// Addresses and networks.
    Networks,
    /// Where webhooks go, or nothing.
    Url,
    /// A number between two others, both included.
    Number(u64, u64),
    /// A power of two between two others.
    PowerOfTwo(u64, u64),
    /// One of these.
    Choice(&'static [&'static str]),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("a text"),
            Self::Path => f.write_str("a path"),
            Self::Address => f.write_str("an address (127.0.0.1:7443, [::1]:7443, :7443)"),
            Self::List => f.write_str("a list of texts (in the environment: with commas)"),
            Self::Networks => {
                f.write_str("a list of addresses and networks (10.0.0.7, 10.0.0.0/8, fd00::/8)")
            }
            Self::Url => f.write_str("an https:// or http:// URL"),
            Self::Number(min, max) => write!(f, "a number from {min} to {max}"),
            Self::PowerOfTwo(min, max) => write!(f, "a power of two from {min} to {max}"),
            Self::Choice(choices) => f.write_str(&choices.join(" | ")),
        }
    }
}

/// A key's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Text, path, address, choice.
    Text(String),
    /// Number.
    Number(u64),
    /// List.
    List(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(number) => number.fmt(f),
            Self::List(items) => write!(f, "{items:?}"),
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Key {
    /// `section.key`.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its default, as it would stand in the environment.
    pub default: &'static str,
    /// Its default in dev mode, where that is another.
    pub default_dev: Option<&'static str>,
    /// What it is for.
    pub help: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Key {
    Key { name, kind, default, default_dev: None, help }
}

/// All of them, by name.
pub const KEYS: &[Key] = &[
    Key {
        name: "accounts.registration",
        kind: Kind::Choice(&["closed", "open"]),
        default: "closed",
        default_dev: Some("open"),
        help: "whether people may make accounts themselves",
    },
    key(
        "activity.active_permille",
        Kind::Number(1, 1000),
        "390",
        "score, in thousandths, from which on a member of a group is active",
    ),
    key(
        "activity.background_percent",
        Kind::Number(0, 100),
        "30",
        "how much of the score counts while the app is not on screen",
    ),
    key("activity.exit_percent", Kind::Number(1, 100), "60", "a tier is left below this part of its score"),
    key(
        "activity.fast_half_life_s",
        Kind::Number(1, 86400),
        "600",
        "seconds in which the fast counter of activity halves",
    ),
    key(
        "activity.fast_percent",
        Kind::Number(0, 100),
        "65",
        "the fast counter's part of the score; the slow one has the rest",
    ),
    key(
        "activity.foreground_percent",
        Kind::Number(0, 100),
        "80",
        "how much of the score counts while the app is on screen with another channel",
    ),
    key(
        "activity.half_saturation",
        Kind::Number(1, 1000),
        "8",
        "the count at which a counter of activity is half saturated",
    ),
    key(
        "activity.ignored_s",
        Kind::Number(60, 31536000),
        "86400",
        "seconds without an act after which, with many unread, the score is halved",
    ),
    key("activity.ignored_unread", Kind::Number(1, 1000000), "20", "unread messages that are many"),
    key(
        "activity.muted_minus_permille",
        Kind::Number(0, 1000),
        "200",
        "what the score of a muted member is lowered by, in thousandths",
    ),
    key(
        "activity.patience_s",
        Kind::Number(0, 86400),
        "60",
        "seconds that a score stays below before a tier is left",
    ),
    key(
        "activity.slow_half_life_s",
        Kind::Number(1, 31536000),
        "259200",
        "seconds in which the slow counter of activity halves",
    ),
    key(
        "activity.small_members",
        Kind::Number(0, 200000),
        "16",
        "groups of up to so many members have no tiers: everybody is active",
    ),
    key(
        "activity.total_cap",
        Kind::Number(1, 1_000_000),
        "300",
        "the average counts no more of one member's slow counter: one who never stops does not lift it for the others",
    ),
    key(
        "activity.warm_of_mean_percent",
        Kind::Number(0, 10_000),
        "60",
        "a warm member also does at least so much of what members of the group do on average, in percent",
    ),
    key(
        "activity.warm_permille",
        Kind::Number(1, 1000),
        "50",
        "score, in thousandths, from which on a member of a group is warm",
    ),
    key(
        "activity.weight_look",
        Kind::Number(0, 100),
        "4",
        "what opening a channel adds, or looking at it for another 30 s",
    ),
    key("activity.weight_named", Kind::Number(0, 100), "4", "what being mentioned or replied to adds"),
    key("activity.weight_react", Kind::Number(0, 100), "5", "what a reaction, an edit or a recall adds"),
    key("activity.weight_read", Kind::Number(0, 100), "3", "what a read cursor that advances adds"),
    key(
        "activity.weight_reply",
        Kind::Number(0, 100),
        "5",
        "what a reply adds, beside the message that it is",
    ),
    key("activity.weight_send", Kind::Number(0, 100), "8", "what a message adds"),
    key("activity.weight_tap", Kind::Number(0, 100), "6", "what tapping a push notification adds"),
    key("activity.weight_type", Kind::Number(0, 100), "2", "what typing adds"),
    key("data.folder", Kind::Path, "./fanfare-data", "where everything is kept"),
    key("gateway.lanes", Kind::Number(0, 64), "0", "threads that hold connections; 0: one per core"),
    Key {
        name: "gateway.listen",
        kind: Kind::Address,
        default: "0.0.0.0:7443",
        default_dev: Some("127.0.0.1:7443"),
        help: "QUIC (UDP) and WebSocket (TCP)",
    },
    key("gateway.origins", Kind::List, "", "pages that may connect; those of loopback always may"),
    key(
        "gateway.plain",
        Kind::Choice(&["loopback", "always"]),
        "loopback",
        "where WebSocket is served without TLS",
    ),
    key("http.listen", Kind::Address, "127.0.0.1:7080", "health, metrics, discovery, and commands' way in"),
    key(
        "http.proxies",
        Kind::Networks,
        "",
        "reverse proxies whose X-Forwarded-For says who asks: limits go by that address",
    ),
    key(
        "limits.profile",
        Kind::Choice(&["default", "load"]),
        "default",
        "limits for people, or for load tests",
    ),
    key(
        "log.format",
        Kind::Choice(&["auto", "pretty", "json"]),
        "auto",
        "auto: pretty on a terminal, else json",
    ),
    key(
        "presence.away_after_s",
        Kind::Number(1, 86_400),
        "60",
        "seconds in the background after which a device counts as away",
    ),
    key(
        "presence.watched_max",
        Kind::Number(1, 256),
        "256",
        "users whose presence one session may watch at a time",
    ),
    key(
        "presence.write_every_s",
        Kind::Number(1, 3_600),
        "30",
        "seconds between two writes of one user's last seen; a crowd's are spread over as many",
    ),
    key("presence.writes_per_second", Kind::Number(1, 100_000), "1000", "last seens written in a second"),
    key(
        "push.age_max_s",
        Kind::Number(60, 2_592_000),
        "86400",
        "how long a push is tried before it is given up",
    ),
    key("push.attempts_max", Kind::Number(1, 1_000), "20", "how often a push is tried before it is given up"),
    key("push.connections", Kind::Number(1, 64), "8", "pushes under way at once"),
    key(
        "push.content",
        Kind::Choice(&["none", "preview"]),
        "none",
        "none: ids and counts; preview: also names and the beginning of the text",
    ),
    key(
        "push.recent_activity_delay_s",
        Kind::Number(0, 3_600),
        "30",
        "who was connected so recently is pushed that much later, where it is still unread then",
    ),
    key(
        "push.secret_file",
        Kind::Path,
        "",
        "secrets that sign pushes, one a line; without it, one made with the data folder",
    ),
    key("push.timeout_s", Kind::Number(1, 120), "10", "how long the receiver of a push may take to answer"),
    key(
        "push.url",
        Kind::Url,
        "",
        "the receiver of pushes for members who are not connected; without it there are none",
    ),
    key(
        "router.clock",
        Kind::Path,
        "",
        "a file with the router's time, Unix milliseconds in 8 bytes, little-endian: for replays of what is past",
    ),
    key(
        "router.shards",
        Kind::PowerOfTwo(1, 1024),
        "256",
        "slices of all channels; fixed with the data folder",
    ),
    key(
        "tiers.background_ms",
        Kind::Number(100, 600_000),
        "15000",
        "until passive members are told the head while the app is not on screen, milliseconds",
    ),
    key(
        "tiers.by",
        Kind::Choice(&["activity", "nothing"]),
        "activity",
        "what decides how soon members of large groups get messages; nothing: everybody at once",
    ),
    key(
        "tiers.passive_ms",
        Kind::Number(100, 600_000),
        "5000",
        "until passive members are told the head while the app is on screen, milliseconds",
    ),
    key(
        "tiers.warm_ms",
        Kind::Number(10, 60_000),
        "250",
        "until warm members get what there is, milliseconds",
    ),
    key("tls.certificate", Kind::Path, "", "PEM chain; without one, a self-signed one serves loopback"),
    key("tls.key", Kind::Path, "", "PEM key of the certificate"),
    key("tokens.audience", Kind::Text, "fanfare", "aud of tokens"),
    key("tokens.issuer", Kind::Text, "fanfare", "iss of tokens"),
    key(
        "tokens.trusted",
        Kind::List,
        "",
        "other issuers whose tokens are taken: ISSUER=URL or ISSUER=FILE of a JWKS",
    ),
];

/// The key of that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Key {
    /// The value of a text, as in the environment or a flag.
    ///
    /// # Errors
    /// Why it is not one.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        match self.kind {
            Kind::Text if text.trim().is_empty() => Err("it is empty".into()),
            Kind::Url if !text.is_empty() => text.parse::<HookUrl>().map(|_| Value::Text(text.to_owned())),
            Kind::Text | Kind::Path | Kind::Url => Ok(Value::Text(text.to_owned())),
            Kind::Address => parse_address(text).map(|address| Value::Text(address.to_string())),
            Kind::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Ok(Value::List(items.map(str::to_owned).collect()))
            }
            Kind::Networks => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                let networks = items.map(|item| item.parse().map(|network: Network| network.to_string()));
                networks.collect::<Result<_, _>>().map(Value::List)
            }
            Kind::Number(min, max) | Kind::PowerOfTwo(min, max) => {
                let number: u64 = text.trim().parse().map_err(|_| format!("`{text}` is not a number"))?;
                let odd = matches!(self.kind, Kind::PowerOfTwo(..)) && !number.is_power_of_two();
                if number < min || number > max || odd {
                    return Err(format!("{number} is not {}", self.kind));
                }
                Ok(Value::Number(number))
            }
            Kind::Choice(choices) if choices.contains(&text) => Ok(Value::Text(text.to_owned())),
            Kind::Choice(_) => Err(format!("`{text}` is not one of {}", self.kind)),
        }
    }

    /// The default as it is shown.
    pub fn shown_default(&self) -> String {
        if self.default.is_empty() { "none".into() } else { self.default.into() }
    }
}
