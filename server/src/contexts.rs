//! Contexts: servers elsewhere by name, in `$XDG_CONFIG_HOME/fanfare/contexts.toml` (0600). It holds where a token is
//! kept and never the token itself.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use fanfare_proto::Code;
use serde::{Deserialize, Serialize};

use crate::{
    cli::Global,
    config::nearest,
    failure::{Failure, Outcome},
    private_file,
};

/// Contexts in one file.
const CONTEXTS_MAX: usize = 256;
/// Bytes of the file, and of a token's.
const FILE_BYTES_MAX: u64 = 1 << 20;
const TOKEN_BYTES_MAX: u64 = 4096;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 64;

/// All of them, as they are kept.
#[derive(Clone, Default, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The one that commands take where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `http://host:port`.
    pub admin: String,
    /// Where its admin token is.
    pub token_file: PathBuf,
}

/// What a command needs of a context to ask its server.
#[derive(Clone)]
pub struct Reach {
    /// The context's name.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// The admin token.
    pub token: String,
}

impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach")
            .field("name", &self.name)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Where the file lies.
///
/// # Errors
/// Neither XDG_CONFIG_HOME nor HOME says.
pub fn path() -> Outcome<PathBuf> {
    folder_of(std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME"))
        .map(|folder| folder.join("fanfare/contexts.toml"))
        .ok_or_else(|| {
            Failure::usage("there is no place for contexts: neither XDG_CONFIG_HOME nor HOME is set")
        })
}

/// Only absolute paths count, as the XDG base directory specification has it.
fn folder_of(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    xdg.and_then(absolute).or_else(|| home.and_then(absolute).map(|home| home.join(".config")))
}

/// The context of a command: the one it names, or the current one unless a folder is named.
///
/// # Errors
/// A name that is not known, never another in its place.
pub fn chosen(global: &Global) -> Outcome<Option<Reach>> {
    if let Some(name) = &global.context {
        return Contexts::read()?.named(name)?.reach(name).map(Some);
    }
    if global.data.is_some() || path().is_err() {
        return Ok(None);
    }
    let contexts = Contexts::read()?;
    match &contexts.current {
        Some(name) => contexts.named(name)?.reach(name).map(Some),
        None => Ok(None),
    }
}

impl Contexts {
    /// Those of the file; none where it is not there.
    ///
    /// # Errors
    /// CONFIG_UNREADABLE.
    pub fn read() -> Outcome<Self> {
        Self::read_from(&path()?)
    }

    fn read_from(path: &Path) -> Outcome<Self> {
        let unreadable = |why: String| {
            Failure::new(Code::CONFIG_UNREADABLE, format!("{} cannot be read", path.display()))
                .why(why)
                .advise(format!("rm {}", path.display()), "forgets all contexts")
        };
        match read_bounded(path, FILE_BYTES_MAX) {
            Ok(text) => toml::from_str(&text)
                .map_err(|error| unreadable(error.message().lines().next().unwrap_or("not TOML").to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(unreadable(error.to_string())),
        }
    }

    /// Puts them into the file, readable by its owner only.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(&self) -> Outcome {
        self.write_to(&path()?)
    }

    fn write_to(&self, path: &Path) -> Outcome {
        let text = toml::to_string_pretty(self)
            .map_err(|error| Failure::internal("contexts do not encode").why(error))?;
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        private_file::write(path, text.as_bytes())
            .map_err(|error| Failure::internal(format!("{} cannot be written", path.display())).why(error))
    }

    /// The one of that name.
    ///
    /// # Errors
    /// A usage failure with the nearest name.
    pub fn named(&self, name: &str) -> Outcome<&Context> {
        self.contexts.get(name).ok_or_else(|| {
            let mut failure = Failure::usage(format!("there is no context `{name}`"))
                .why("no other server is taken in its place");
            if let Some(near) = nearest(name, self.contexts.keys().map(String::as_str)) {
                failure = failure.advise(format!("fanfare context show {near}"), "perhaps this one");
            }
            failure.advise("fanfare context ls", "lists all of them")
        })
    }

    /// Adds one.
    ///
    /// # Errors
    /// A usage failure: a bad name or address, a name that is taken, too many.
    pub fn add(&mut self, name: &str, context: Context) -> Outcome {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.starts_with('-') || !name.bytes().all(plain)
        {
            return Err(Failure::usage(format!("`{name}` cannot be a context's name"))
                .why(format!("a name has 1 to {NAME_BYTES_MAX} letters, digits, - _ or .")));
        }
        address(&context.admin)?;
        if self.contexts.contains_key(name) {
            return Err(Failure::usage(format!("a context `{name}` is there already"))
                .advise(format!("fanfare context rm {name}"), "forgets it"));
        }
        if self.contexts.len() >= CONTEXTS_MAX {
            return Err(Failure::usage(format!("there are {CONTEXTS_MAX} contexts already")));
        }
        self.contexts.insert(name.to_owned(), context);
        Ok(())
    }
}

impl Context {
    /// With the token read from its file.
    ///
    /// # Errors
    /// ADMIN_REFUSED where it cannot be read.
    pub fn reach(&self, name: &str) -> Outcome<Reach> {
        let address = address(&self.admin)?;
        let shown = self.token_file.display();
        let refused = |why: String| {
            Failure::new(Code::ADMIN_REFUSED, format!("no token for context {name}"))
                .why(why)
                .advise(format!("fanfare context show {name}"), "prints where it is looked for")
        };
        let token = read_bounded(&self.token_file, TOKEN_BYTES_MAX)
            .map_err(|error| refused(format!("{shown}: {error}")))?
            .trim()
            .to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refused(format!("{shown} does not hold one token and nothing else")));
        }
        Ok(Reach { name: name.to_owned(), address, token })
    }
}

/// `host:port` of `http://host:port`.
///
/// # Errors
/// A usage failure with the accepted form.
pub fn address(url: &str) -> Outcome<String> {
    let wrong = |why: &str| {
        Failure::usage(format!("`{url}` is not an address of a server's HTTP"))
            .why(why.to_owned())
            .advise("--admin http://127.0.0.1:7080", "the form of it")
    };
    if url.starts_with("https://") {
        return Err(wrong("the server's HTTP has no TLS of its own: reach it through a tunnel")
            .advise("ssh -L 7080:127.0.0.1:7080 HOST", "then http://127.0.0.1:7080"));
    }
    let authority = url.strip_prefix("http://").ok_or_else(|| wrong("it does not begin with http://"))?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, "80"),
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fits = match inner {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }
    };
    match port.parse::<u16>() {
        Ok(port) if fits && port > 0 => Ok(format!("{host}:{port}")),
        _ => Err(wrong("it is not a host and a port")),
    }
}

fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<String> {
    if fs::metadata(path)?.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("over {bytes_max} bytes")));
    }
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn context(admin: &str) -> Context {
        Context { admin: admin.into(), token_file: "/run/token".into() }
    }

    #[test]
    fn they_survive_the_file_which_nobody_else_reads() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let path = folder.path().join("deep/contexts.toml");
        assert_eq!(Contexts::read_from(&path).expect("none yet"), Contexts::default());
        let mut contexts = Contexts { current: Some("prod".into()), ..Contexts::default() };
        contexts.add("prod", context("http://chat.example.org:7080")).expect("added");
        contexts.write_to(&path).expect("written");
        assert_eq!(Contexts::read_from(&path).expect("read"), contexts);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(contexts.add("prod", context("http://a")).is_err(), "a name is taken once");
        assert!(contexts.add("-x", context("http://a")).is_err());
        let unknown = contexts.named("prd").expect_err("never another");
        assert!(unknown.exit == 2 && unknown.tries[0].0.ends_with("prod"), "{unknown:?}");
        fs::write(&path, "current = 1").expect("damaged");
        assert_eq!(Contexts::read_from(&path).expect_err("no contexts").exit, 6);
    }

    #[test]
    fn addresses_are_hosts_and_ports_of_http() {
        let good = [
            ("http://127.0.0.1:7080", "127.0.0.1:7080"),
            ("http://[::1]:7080/", "[::1]:7080"),
            ("http://chat.example.org", "chat.example.org:80"),
            ("http://[::1]", "[::1]:80"),
        ];
        for (url, wanted) in good {
            assert_eq!(address(url).expect(url), wanted);
        }
        for bad in ["", "127.0.0.1:1", "https://a:1", "http://", "http://a:0", "http://u@a:1", "http://a:1/x"]
        {
            assert_eq!(address(bad).expect_err(bad).exit, 2, "{bad}");
        }
    }

    #[test]
    fn relative_paths_of_the_environment_do_not_count() {
        let path = |text: &str| Some(OsString::from(text));
        assert_eq!(folder_of(path("/x"), path("/h")), Some("/x".into()));
        assert_eq!(folder_of(path("x"), path("/h")), Some("/h/.config".into()));
        assert_eq!(folder_of(None, path("")), None);
    }
}
