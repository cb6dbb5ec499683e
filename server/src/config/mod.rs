//! The configuration: one table of keys, four layers (flag > environment > file > default), every value with its
//! origin, all mistakes in one report. Read once, passed down as a plain struct.

mod activity;
mod file;
mod keys;
mod suggest;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use fanfare_proto::Code;

pub use keys::{KEYS, Key, Kind, Value};
pub use suggest::nearest;

use crate::{
    cli::{Global, Start, parse_address},
    failure::{Failure, Outcome},
    jwks::Trusted,
    network::Network,
    push::{Content, Patience, PushConfiguration},
};

/// What the environment's names begin with; sections and keys follow with two underscores, so that what Kubernetes
/// injects (`FANFARE_PORT_7443_TCP`) never collides.
pub const ENV_PREFIX: &str = "FANFARE__";
/// The file read where none is named and it is there.
pub const FILE_DEFAULT: &str = "fanfare.toml";

/// A key's name in the environment.
pub fn env_name(key: &Key) -> String {
    format!("{ENV_PREFIX}{}", key.name.to_ascii_uppercase().replace('.', "__"))
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ValueOrigin {
    /// Nobody said anything.
    Default,
    /// A line of the file.
    File(PathBuf, usize),
    /// A variable of the environment.
    Env(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// One mistake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Its number.
    pub code: Code,
    /// Where and what.
    pub what: String,
    /// What was probably meant, or what is accepted.
    pub advice: String,
}

/// Every key's value with its origin.
#[derive(Clone, Debug)]
pub struct Layers {
    values: BTreeMap<&'static str, (Value, ValueOrigin)>,
}

/// Plain WebSocket: where it is served without TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plain {
    /// On loopback addresses.
    Loopback,
    /// Everywhere: somebody else terminates TLS.
    Always,
}

/// Which limits are in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitsProfile {
    /// For people.
    Default,
    /// For load tests: rates and counts per user and address are out of the way, bounds of memory are not.
    Load,
}

/// The log's form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogForm {
    /// Pretty on a terminal, else JSON.
    Auto,
    /// For people.
    Pretty,
    /// One object a line.
    Json,
}

/// What the server is started with.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The data folder.
    pub folder: PathBuf,
    /// QUIC and WebSocket.
    pub listen: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
    /// Reverse proxies whose X-Forwarded-For is believed.
    pub proxies: Vec<Network>,
    /// Pages that may connect, beside those of loopback.
    pub origins: Vec<String>,
    /// Where plain WebSocket is served.
    pub plain: Plain,
    /// Threads that hold connections; 0 chooses by the machine.
    pub lanes: usize,
    /// Certificate chain and key, both PEM; without them one is made for loopback.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Which limits are in force.
    pub limits: LimitsProfile,
    /// How members' activity is counted.
    pub activity: fanfare_activity::Settings,
    /// What follows from it.
    pub tiers: fanfare_router::TierTimes,
    /// How presence is kept.
    pub presence: fanfare_presence::Config,
    /// The file that holds the router's time; `None`: the machine's clock.
    pub clock: Option<PathBuf>,
    /// Slices of all channels and users, fixed when the data folder is made.
    pub shards: u16,
    /// The log's form.
    pub log: LogForm,
    /// Whether people may make accounts themselves.
    pub registration_open: bool,
    /// `iss` of tokens.
    pub issuer: String,
    /// `aud` of tokens.
    pub audience: String,
    /// Other issuers whose tokens are taken.
    pub trusted: Vec<Trusted>,
    /// Where pushes go; `None` where there are none.
    pub push: Option<PushConfiguration>,
}

impl Layers {
    /// Reads all layers.
    ///
    /// # Errors
    /// All mistakes of all layers.
    pub fn read(global: &Global, start: Option<&Start>) -> Result<Self, Vec<Problem>> {
        let dev = start.is_some_and(|start| start.dev);
        let named = global.config.clone();
        let path = named.or_else(|| (!dev && Path::new(FILE_DEFAULT).exists()).then(|| FILE_DEFAULT.into()));
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with(ENV_PREFIX));
        let mut flags: Vec<(&'static str, &'static str, String)> = Vec::new();
        if let Some(folder) = &global.data {
            flags.push(("data.folder", "data", folder.to_string_lossy().into_owned()));
        }
        if let Some(start) = start {
            let given = [
                ("gateway.listen", "listen", &start.listen),
                ("http.listen", "http", &start.http),
                ("log.format", "log", &start.log),
                ("limits.profile", "limits", &start.limits),
            ];
            for (key, flag, value) in given {
                flags.extend(value.clone().map(|value| (key, flag, value)));
            }
        }
        Self::assemble(path.as_deref(), env, &flags, dev)
    }

    fn assemble(
        path: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(&'static str, &'static str, String)],
        dev: bool,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut values: BTreeMap<&'static str, (Value, ValueOrigin)> = BTreeMap::new();
        for key in KEYS {
            let text = if dev { key.default_dev.unwrap_or(key.default) } else { key.default };
            let value = key.parse(text).expect("defaults are values of their kind");
            values.insert(key.name, (value, ValueOrigin::Default));
        }
        if let Some(path) = path {
            for (key, value, line) in file::read(path, &mut problems) {
                values.insert(key.name, (value, ValueOrigin::File(path.to_owned(), line)));
            }
        }
        let mut env: Vec<_> = env.collect();
        env.sort();
        for (name, text) in env {
            let dotted = name[ENV_PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            let origin = ValueOrigin::Env(name);
            match keys::find(&dotted) {
                Some(key) => accept(key, &text, origin, &mut values, &mut problems),
                None => problems.push(unknown(&origin, &dotted)),
            }
        }
        for (name, flag, text) in flags {
            if let Some(key) = keys::find(name) {
                accept(key, text, ValueOrigin::Flag(flag), &mut values, &mut problems);
            }
        }
        if problems.is_empty() { Ok(Self { values }) } else { Err(problems) }
    }

    /// Each key with its value and origin, by name.
    pub fn all(&self) -> impl Iterator<Item = (&'static Key, &Value, &ValueOrigin)> {
        KEYS.iter().filter_map(|key| self.values.get(key.name).map(|(value, origin)| (key, value, origin)))
    }

    fn text(&self, name: &str) -> &str {
        match self.values.get(name) {
            Some((Value::Text(text), _)) => text,
            _ => "",
        }
    }

    fn list(&self, name: &str) -> &[String] {
        match self.values.get(name) {
            Some((Value::List(items), _)) => items,
            _ => &[],
        }
    }

    fn number(&self, name: &str) -> u64 {
        match self.values.get(name) {
            Some((Value::Number(number), _)) => *number,
            _ => 0,
        }
    }

    fn address(&self, name: &str) -> SocketAddr {
        parse_address(self.text(name)).expect("addresses were parsed when they were read")
    }

    /// The plain struct, with what only several keys together can get wrong.
    ///
    /// # Errors
    /// The mistake.
    pub fn configuration(&self) -> Result<Configuration, Vec<Problem>> {
        let path = |name| Some(self.text(name)).filter(|text| !text.is_empty()).map(PathBuf::from);
        let tls = match (path("tls.certificate"), path("tls.key")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (certificate, _) => {
                let missing = if certificate.is_some() { "tls.key" } else { "tls.certificate" };
                return Err(vec![Problem {
                    code: Code::CONFIG_VALUE,
                    what: format!("`{missing}` is not set: a certificate and its key go together"),
                    advice: "set tls.certificate and tls.key, or neither".into(),
                }]);
            }
        };
        let mut trusted = Vec::new();
        for text in self.list("tokens.trusted") {
            trusted.push(Trusted::parse(text).map_err(|what| {
                let advice = "ISSUER=https://host/path, or ISSUER=FILE".into();
                vec![Problem { code: Code::CONFIG_VALUE, what: format!("`tokens.trusted`: {what}"), advice }]
            })?);
        }
        let secs = |name| Duration::from_secs(self.number(name));
        let push = self.text("push.url").parse().ok().map(|url| PushConfiguration {
            url,
            secret_file: path("push.secret_file"),
            content: if self.text("push.content") == "preview" { Content::Preview } else { Content::None },
            recent: secs("push.recent_activity_delay_s"),
            patience: Patience {
                attempts_max: self.number("push.attempts_max") as u32,
                age_max: secs("push.age_max_s"),
            },
            connections: self.number("push.connections") as usize,
            timeout: secs("push.timeout_s"),
        });
        Ok(Configuration {
            push,
            folder: self.text("data.folder").into(),
            listen: self.address("gateway.listen"),
            http: self.address("http.listen"),
            proxies: self.list("http.proxies").iter().filter_map(|text| text.parse().ok()).collect(),
            origins: self.list("gateway.origins").to_vec(),
            trusted,
            plain: if self.text("gateway.plain") == "always" { Plain::Always } else { Plain::Loopback },
            lanes: self.number("gateway.lanes") as usize,
            tls,
            limits: if self.text("limits.profile") == "load" {
                LimitsProfile::Load
            } else {
                LimitsProfile::Default
            },
            activity: activity::settings(self),
            tiers: activity::tiers(self),
            presence: fanfare_presence::Config {
                away_after: Duration::from_secs(self.number("presence.away_after_s")),
                watched_max: self.number("presence.watched_max") as usize,
                write_every: Duration::from_secs(self.number("presence.write_every_s")),
                writes_per_s: self.number("presence.writes_per_second") as u32,
                ..fanfare_presence::Config::default()
            },
            clock: path("router.clock"),
            shards: self.number("router.shards") as u16,
            log: match self.text("log.format") {
                "pretty" => LogForm::Pretty,
                "json" => LogForm::Json,
                _ => LogForm::Auto,
            },
            registration_open: self.text("accounts.registration") == "open",
            issuer: self.text("tokens.issuer").to_owned(),
            audience: self.text("tokens.audience").to_owned(),
        })
    }
}

/// Reads the configuration of a command.
///
/// # Errors
/// The first mistake, with the others as causes.
pub fn read(global: &Global, start: Option<&Start>) -> Outcome<Configuration> {
    Layers::read(global, start)
        .and_then(|layers| layers.configuration())
        .map_err(|problems| failure(&problems))
}

/// The report of several mistakes as one failure.
pub fn failure(problems: &[Problem]) -> Failure {
    let Some((first, others)) = problems.split_first() else { return Failure::of(Code::CONFIG_VALUE) };
    let mut failure = Failure::new(first.code, &first.what);
    if !first.advice.is_empty() {
        failure = failure.advise(&first.advice, "");
    }
    for other in others {
        failure = failure.why(format!("also {}: {}", other.code, other.what));
    }
    failure
}

fn accept(
    key: &'static Key,
    text: &str,
    origin: ValueOrigin,
    values: &mut BTreeMap<&'static str, (Value, ValueOrigin)>,
    problems: &mut Vec<Problem>,
) {
    match key.parse(text) {
        Ok(value) => {
            values.insert(key.name, (value, origin));
        }
        Err(reason) => problems.push(wrong_value(&origin, key, &reason)),
    }
}

fn wrong_value(origin: &ValueOrigin, key: &Key, reason: &str) -> Problem {
    Problem {
        code: Code::CONFIG_VALUE,
        what: format!("{origin}  `{}`: {reason}", key.name),
        advice: format!("{} takes {}   (default {})", key.name, key.kind, key.shown_default()),
    }
}

fn unknown(origin: &ValueOrigin, name: &str) -> Problem {
    let advice = match suggest::nearest(name, KEYS.iter().map(|key| key.name)).and_then(keys::find) {
        Some(key) => format!("{}   (default {})", key.name, key.shown_default()),
        None => "fanfare config show lists all keys".to_owned(),
    };
    Problem { code: Code::CONFIG_UNKNOWN_KEY, what: format!("{origin}  unknown key `{name}`"), advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(
        file: &str,
        env: &[(&str, &str)],
        flags: &[(&'static str, &'static str, String)],
    ) -> Result<Layers, Vec<Problem>> {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let path = folder.path().join("fanfare.toml");
        std::fs::write(&path, file).expect("a scratch file");
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Layers::assemble(Some(&path), env, flags, false)
    }

    #[test]
    fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
        let file = "[gateway]\nlisten = '127.0.0.1:1'\nlanes = 3\norigins = ['https://a', 'https://b']\n[data]\nfolder = 'f'\n";
        let env = [("FANFARE__GATEWAY__LISTEN", "127.0.0.1:2"), ("FANFARE__DATA__FOLDER", "e")];
        let read = layers(file, &env, &[("data.folder", "data", "flag".into())]).expect("valid");
        let configuration = read.configuration().expect("valid");
        assert_eq!(configuration.folder, PathBuf::from("flag"));
        assert_eq!(configuration.listen.port(), 2);
        assert_eq!(configuration.lanes, 3);
        assert_eq!(configuration.origins, ["https://a", "https://b"]);
        let origins: BTreeMap<_, _> =
            read.all().map(|(key, _, origin)| (key.name, origin.to_string())).collect();
        assert_eq!(origins["data.folder"], "flag --data");
        assert_eq!(origins["gateway.listen"], "env FANFARE__GATEWAY__LISTEN");
        assert!(origins["gateway.lanes"].ends_with("fanfare.toml:3"), "{origins:?}");
        assert_eq!(origins["log.format"], "default");
    }

    #[test]
    fn all_mistakes_come_in_one_report_with_place_and_suggestion() {
        let file = "[gateway]\nlistn = '127.0.0.1:1'\nlanes = 'many'\n[gatway]\nplain = 'x'\n";
        let problems = layers(file, &[("FANFARE__HTTP__LISTEM", "x")], &[]).expect_err("mistakes");
        let texts: Vec<String> =
            problems.iter().map(|problem| format!("{} | {}", problem.what, problem.advice)).collect();
        assert_eq!(problems.len(), 4, "{texts:#?}");
        assert!(
            texts[0].contains("fanfare.toml:2  unknown key `gateway.listn` | gateway.listen"),
            "{texts:#?}"
        );
        assert!(texts[1].contains("fanfare.toml:3") && texts[1].contains("gateway.lanes"), "{texts:#?}");
        assert!(texts[2].contains(":5") && texts[2].contains("gateway.plain"), "{texts:#?}");
        assert!(texts[3].contains("FANFARE__HTTP__LISTEM") && texts[3].contains("http.listen"), "{texts:#?}");
        assert_eq!(failure(&problems).exit, 6);
    }

    #[test]
    fn a_network_that_is_none_is_a_mistake_with_what_was_meant() {
        let file = "[http]\nproxies = ['10.0.0.7', 'fd00::/8']\n";
        let configuration = layers(file, &[], &[]).and_then(|layers| layers.configuration()).expect("valid");
        assert_eq!(configuration.proxies.len(), 2);
        let env = [("FANFARE__HTTP__PROXIES", "::1, 10.1.2.3/8")];
        for (file, env) in [("", &env[..]), ("[http]\nproxies = ['::1', '10.1.2.3/8']\n", &[])] {
            let problems = layers(file, env, &[]).expect_err("a mistake");
            assert_eq!((problems.len(), problems[0].code), (1, Code::CONFIG_VALUE));
            let Problem { what, advice, .. } = &problems[0];
            assert!(what.contains("`http.proxies`") && what.contains("write 10.0.0.0/8"), "{what}");
            assert!(advice.contains("a list of addresses and networks"), "{advice}");
        }
        assert!(layers("[http]\nproxies = 'all'\n", &[], &[]).is_err());
    }

    #[test]
    fn a_file_that_is_no_toml_names_its_line() {
        let problems = layers("[gateway]\nlisten = \n", &[], &[]).expect_err("a mistake");
        assert_eq!(problems[0].code, Code::CONFIG_UNREADABLE);
        assert!(problems[0].what.contains("fanfare.toml:2"), "{}", problems[0].what);
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let read = layers("[tls]\ncertificate = 'c.pem'\n", &[], &[]).expect("each key is valid");
        assert!(read.configuration().is_err());
    }
}
