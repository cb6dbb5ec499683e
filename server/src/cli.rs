//! The command line: verbs and flags, nothing done. Global flags stand before or after the verb.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::output::{Format, Output};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "fanfare",
    version,
    about = "A messaging backend in one binary: QUIC and WebSocket, ordered, durable."
)]
#[command(disable_help_subcommand = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// Flags of every verb.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const AFTER_HELP: &str =
    "Examples:\n  fanfare start --dev\n  fanfare listen general\n  fanfare send general \"hi\" --as bob";

/// Flags of every verb.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Form of the results
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORM")]
    pub output: Format,
    /// Short for --output json
    #[arg(long, global = true)]
    pub json: bool,
    /// No remarks, only results and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// How long to wait for the server (for example 500ms, 5s, 2m)
    #[arg(long, global = true, default_value = "5s", value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    /// The data folder (default ./fanfare-data)
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// A configuration file (default ./fanfare.toml where it is there)
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The server to ask, by its context (see fanfare context); default: the current one, else the data folder's
    #[arg(short, long, global = true, value_name = "NAME")]
    pub context: Option<String>,
}

impl Global {
    /// How results are to be written.
    pub fn output(&self) -> Output {
        Output { format: if self.json { Format::Json } else { self.output }, quiet: self.quiet }
    }
}

/// A verb.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server
    Start(Start),
    /// Make the data folder and its keys, and say what was done
    Setup,
    /// People and their tokens
    #[command(subcommand)]
    User(User),
    /// Administrators, and what is theirs to keep
    #[command(subcommand)]
    Admin(Admin),
    /// Conversations
    #[command(subcommand)]
    Channel(Channel),
    /// Live connections
    #[command(subcommand)]
    Session(Session),
    /// The installations people sign in from
    #[command(subcommand)]
    Device(Device),
    /// Who is online, and who was when
    Presence(Presence),
    /// Tokens of whatever origin
    #[command(subcommand)]
    Token(Token),
    /// Send a message
    Send(Send),
    /// Print a channel's messages as they come
    Listen(Listen),
    /// Where a message is: its place, its bytes, and who has it
    Trace {
        /// Its id, as send and history print it with --json
        message: u64,
    },
    /// Pushes to members who are not connected
    #[command(subcommand)]
    Push(Push),
    /// How the running server is
    Status,
    /// What the running server does, line by line (on a terminal: redrawn)
    Top(Top),
    /// Whether this machine is fit to run a server, and what to do where it is not
    Doctor {
        /// Only these checks
        #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
        only: Vec<DoctorCheck>,
    },
    /// Walk metadata against content both ways, and report
    Reconcile,
    /// The configuration
    #[command(subcommand)]
    Config(Config),
    /// Servers elsewhere, by name
    #[command(subcommand)]
    Context(Context),
    /// Frames of the wire as JSON, field by field
    Decode {
        /// Hexadecimal digits of one or more frames; - reads them from stdin
        hex: String,
        /// Hold the frames against what this side may send (default: either)
        #[arg(long, value_enum, value_name = "SIDE")]
        from: Option<Side>,
    },
    /// Worked examples by topic
    Cheat {
        /// A topic; without one, all of them
        topic: Option<String>,
    },
    /// A script that completes commands in a shell
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// A page of the reference, as docs/ keeps it
    #[command(hide = true)]
    Docs {
        /// Which page
        #[arg(value_enum)]
        page: Page,
    },
    /// What an error number means, and what to do
    Explain {
        /// A number as shown (FAN-S101) or as on the wire (5101); without one, all of them
        code: Option<String>,
    },
    /// Version of this program and of the protocol
    Version,
}

/// `fanfare start`
#[derive(Clone, Debug, Args)]
pub struct Start {
    /// Loopback only, no configuration, seeded people
    #[arg(long)]
    pub dev: bool,
    /// Address of QUIC (UDP) and WebSocket (TCP), the same number
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Address of HTTP
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// What the data folder is filled with at first (default: demo with --dev, else none)
    #[arg(long, value_enum, value_name = "WHAT")]
    pub seed: Option<Seed>,
    /// Form of the log (default: pretty on a terminal, else json)
    #[arg(long, value_name = "FORM")]
    pub log: Option<String>,
    /// What this process does
    #[arg(long, value_enum, default_value_t, value_name = "ROLE")]
    pub role: Role,
    /// Limits: for people (default), or for load tests (load)
    #[arg(long, value_name = "PROFILE")]
    pub limits: Option<String>,
}

/// What a new data folder holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Seed {
    /// alice, bob, carol, dave, the group general, echo-bot
    Demo,
    /// Nothing
    None,
}

/// What a process does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Role {
    /// Everything
    #[default]
    All,
    /// Connections only
    Gateway,
    /// Shards only
    Router,
    /// Who is online
    Presence,
    /// Attachments
    Assets,
    /// Reads and management over HTTP
    Api,
    /// Reconcile, retention, backup
    Maintenance,
}

/// `fanfare user`
#[derive(Debug, Subcommand)]
pub enum User {
    /// Make a user
    Add {
        /// Its name
        name: String,
        /// May ask for every entry at once (bots, bridges, load tests)
        #[arg(long)]
        full_delivery: bool,
    },
    /// List users
    Ls,
    /// Issue a token
    Token {
        /// For whom: a name or an id
        name: String,
        /// How long it lives
        #[arg(long, default_value = "1h", value_parser = parse_duration, value_name = "TIME")]
        ttl: Duration,
    },
    /// Set the password, read from standard input; the user is signed out everywhere
    Password {
        /// Whose: a name or an id
        name: String,
    },
    /// Print everything the server holds about a user, as lines of JSON; the last has the type `end`
    Export {
        /// Whom: a name or an id
        name: String,
    },
    /// Say who may see whether a user is online
    SeenBy {
        /// Whom: a name or an id
        name: String,
        /// By whom
        #[arg(value_enum)]
        audience: SeenBy,
    },
    /// Sign a user out everywhere: logins, tokens, resume secrets, sessions
    Revoke {
        /// Whom: a name or an id
        name: String,
    },
    /// Sign a user out everywhere and let it in no more
    Disable {
        /// Whom: a name or an id
        name: String,
    },
    /// Let a disabled user in again
    Enable {
        /// Whom: a name or an id
        name: String,
    },
}

/// `fanfare admin`
#[derive(Debug, Subcommand)]
pub enum Admin {
    /// Print a link that makes an administrator: good once, for 15 minutes
    Link {
        /// For this account, there already or not, and no other (default: a new one, whose name is chosen with it)
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// List administrators
    Ls,
    /// Take somebody's administration away; the account stays
    Rm {
        /// Whose: a name or an id
        name: String,
    },
    /// The keys that sign webhooks
    #[command(subcommand)]
    WebhookKeys(WebhookKeys),
}

/// `fanfare admin webhook-keys`
#[derive(Debug, Subcommand)]
pub enum WebhookKeys {
    /// List the keys that are published
    Ls,
    /// Make a new key sign; the one before it stays published for 7 days
    Rotate {
        /// Withdraw the one before it at once, because somebody else may have it
        #[arg(long)]
        withdraw: bool,
    },
    /// Take a key out at once; where it is the one that signs, a new one signs
    Withdraw {
        /// The key's id, as `ls` shows it
        #[arg(value_name = "KID")]
        kid: String,
    },
}

/// `fanfare push`
#[derive(Debug, Subcommand)]
pub enum Push {
    /// How many wait, how old they are, and how many were given up
    Status,
    /// List the pushes that were given up
    Dead,
    /// Try pushes again that were given up
    Replay {
        /// The push's key, as `dead` shows it
        #[arg(value_name = "KEY", required_unless_present = "all", conflicts_with = "all")]
        key: Option<String>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
    /// Print the secret that signs pushes, for the receiver
    Secret,
}

/// Who acts.
#[derive(Clone, Debug, Args)]
pub struct Actor {
    /// Who acts: a name or an id (default: alice, on a dev server)
    #[arg(long = "as", value_name = "USER")]
    pub user: Option<String>,
}

/// `fanfare channel`
#[derive(Debug, Subcommand)]
pub enum Channel {
    /// Make a group
    Create {
        /// Its name
        name: String,
        /// Its first members beside its owner, who is --as
        #[arg(long, value_delimiter = ',', value_name = "USERS")]
        members: Vec<String>,
        #[command(flatten)]
        #[allow(missing_docs)]
        actor: Actor,
    },
    /// List a user's channels
    Ls {
        #[command(flatten)]
        #[allow(missing_docs)]
        actor: Actor,
    },
    /// How a channel stands
    Info {
        /// A name, @user for the direct channel, or an id
        channel: String,
        /// Among whose channels a name is looked for (default: among all)
        #[arg(long = "as", value_name = "USER")]
        user: Option<String>,
    },
    /// Who is in a channel
    Members {
        /// A name, @user for the direct channel, or an id
        channel: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        actor: Actor,
    },
    /// Let a member send nothing, as an admin of the channel
    Mute {
        #[command(flatten)]
        #[allow(missing_docs)]
        mark: Mark,
    },
    /// Remove a user who cannot come back, as an admin of the channel
    Ban {
        #[command(flatten)]
        #[allow(missing_docs)]
        mark: Mark,
    },
    /// What was said in a channel, oldest first
    History {
        /// A name, @user for the direct channel, or an id
        channel: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        actor: Actor,
        /// At most so many messages, the newest
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
    },
}

/// Whom to mute or ban.
#[derive(Debug, Args)]
pub struct Mark {
    /// A name, or an id
    pub channel: String,
    /// Whom: a name or an id
    pub whom: String,
    /// For how long (default: until it is lifted)
    #[arg(long = "for", value_parser = parse_duration, value_name = "TIME", conflicts_with = "lift")]
    pub time: Option<Duration>,
    /// End it instead
    #[arg(long)]
    pub lift: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub actor: Actor,
}

/// `fanfare session`
#[derive(Debug, Subcommand)]
pub enum Session {
    /// List a user's live sessions
    Ls {
        /// Whose: a name or an id
        #[arg(long, value_name = "USER")]
        user: String,
    },
    /// End a user's live sessions; the client has to sign in again
    Kick {
        /// Whose: a name or an id
        #[arg(long, value_name = "USER")]
        user: String,
        /// Only those of this device
        #[arg(long, value_name = "DEVICE")]
        device: Option<u64>,
    },
}

/// `fanfare device`
#[derive(Debug, Subcommand)]
pub enum Device {
    /// List a user's devices
    Ls {
        /// Whose: a name or an id
        #[arg(long, value_name = "USER")]
        user: String,
    },
    /// Void a device's resume secrets and end its sessions
    Rm {
        /// Whose: a name or an id
        #[arg(long, value_name = "USER")]
        user: String,
        /// Its id
        device: u64,
    },
}

/// `fanfare presence`
#[derive(Debug, Args)]
pub struct Presence {
    /// Whom: names or ids, at most 100
    #[arg(required = true, num_args = 1..=100, value_name = "USER")]
    pub users: Vec<String>,
    /// As this user may see it (default: all of it)
    #[arg(long = "as", value_name = "USER")]
    pub viewer: Option<String>,
}

/// Who may see a user.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SeenBy {
    /// Every user
    Everyone,
    /// Members of a channel that the user is a member of, a direct one too
    SharedChannels,
    /// Nobody
    Nobody,
}

impl SeenBy {
    /// As the server calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Everyone => "everyone",
            Self::SharedChannels => "shared_channels",
            Self::Nobody => "nobody",
        }
    }
}

/// `fanfare token`
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Say whether a token would be taken, and which claim is wrong where not; it is never printed
    Check {
        /// The token; - reads it from stdin, which keeps it out of the shell's history
        token: String,
    },
}

/// `fanfare top`
#[derive(Clone, Debug, Args)]
pub struct Top {
    /// Time between two lines
    #[arg(long, default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
    pub interval: Duration,
    /// End after so many lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// A check of `fanfare doctor`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DoctorCheck {
    /// Every key is known and in its range
    Configuration,
    /// The data folder: there, writable, closed to others
    Folder,
    /// Room on its disk
    Space,
    /// How long a write takes to reach the disk
    Sync,
    /// How many files, and so connections, a process may have
    Files,
    /// Buffers of UDP sockets
    Udp,
    /// The ports: free, or held by this folder's server
    Ports,
    /// The system's clock
    Clock,
    /// The certificate: there, and how long yet
    Certificate,
}

/// Who sent a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Side {
    /// A client
    Client,
    /// A server
    Server,
}

/// A shell that can complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// A generated page of docs/reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Page {
    /// cli.md
    Cli,
    /// configuration.md
    Config,
    /// errors.md
    Errors,
    /// http.md
    Http,
    /// limits.md
    Limits,
    /// metrics.md
    Metrics,
}

/// `fanfare context`
#[derive(Debug, Subcommand)]
pub enum Context {
    /// Name a server
    Add {
        /// The name
        name: String,
        /// Where its HTTP is: http://HOST:PORT
        #[arg(long, value_name = "URL")]
        admin: String,
        /// A file that holds its admin token, which is read when a command needs it
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
    },
    /// List contexts
    Ls,
    /// Make one the default of all commands, or none
    Use {
        /// The name
        #[arg(required_unless_present = "none")]
        name: Option<String>,
        /// Go back to the data folder's server
        #[arg(long, conflicts_with = "name")]
        none: bool,
    },
    /// Print one, and where its token comes from
    Show {
        /// The name (default: the current one)
        name: Option<String>,
    },
    /// Forget one
    Rm {
        /// The name
        name: String,
    },
}

/// `fanfare send`
#[derive(Clone, Debug, Args)]
pub struct Send {
    /// A name, @user for the direct channel, or an id
    pub channel: String,
    /// What to say
    pub text: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub actor: Actor,
    /// Transport: the first that works, or one
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    pub transport: Transport,
}

/// `fanfare listen`
#[derive(Clone, Debug, Args)]
pub struct Listen {
    /// A name, @user for the direct channel, or an id
    pub channel: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub actor: Actor,
    /// End after so many messages
    #[arg(long)]
    pub count: Option<u64>,
    /// Begin with the channel's first message that may be seen, not with the next
    #[arg(long)]
    pub since_start: bool,
    /// Transport: the first that works, or one
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    pub transport: Transport,
}

/// How to connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Transport {
    /// WebSocket
    #[default]
    Ws,
    /// QUIC
    Quic,
}

/// `fanfare config`
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Say whether it is valid; nothing is started
    Check,
    /// Print each key's value
    Show {
        /// With where each value comes from
        #[arg(long)]
        origin: bool,
    },
    /// Print every key as Markdown: what it takes, its default, its name in the environment
    Docs,
}

/// `500ms`, `5s`, `2m`, `1h`, `7d`.
///
/// # Errors
/// A sentence with the accepted form.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale_ms = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let time_ms =
        number.parse::<u64>().ok().zip(scale_ms).and_then(|(number, scale)| number.checked_mul(scale));
    match time_ms {
        Some(time_ms @ 1..=315_360_000_000) => Ok(Duration::from_millis(time_ms)),
        _ => Err("a time is a number with its unit: 500ms, 5s, 2m, 1h, 7d".into()),
    }
}

/// `:7443`, `127.0.0.1:7443`, `[::1]:7443`, `localhost:7443`; a port alone means every address.
///
/// # Errors
/// A sentence with the accepted form.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    let whole = match (text.strip_prefix(':'), text.strip_prefix("localhost:")) {
        (Some(port), _) => format!("0.0.0.0:{port}"),
        (_, Some(port)) => format!("127.0.0.1:{port}"),
        _ => text.to_owned(),
    };
    whole.parse().map_err(|_| {
        format!("`{text}` is not an address: 127.0.0.1:7443, [::1]:7443, localhost:7443 or :7443")
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_verb() {
        for line in [["fanfare", "--json", "status"], ["fanfare", "status", "--json"]] {
            assert_eq!(Cli::parse_from(line).global.output().format, Format::Json);
        }
    }

    #[test]
    fn times_and_addresses_have_units_and_ports() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert!(
            parse_duration("90").is_err() && parse_duration("0s").is_err() && parse_duration("x").is_err()
        );
        assert_eq!(parse_address(":7443"), Ok(SocketAddr::from(([0, 0, 0, 0], 7443))));
        assert_eq!(parse_address("localhost:1"), Ok(SocketAddr::from(([127, 0, 0, 1], 1))));
        assert!(parse_address("example.org:1").is_err());
    }
}
