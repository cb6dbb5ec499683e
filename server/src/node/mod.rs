//! One process's parts, wired: stores, router, gateway, HTTP, and in dev mode the seeded people and their bot. Started
//! in that order and stopped in the other.

pub mod edge;
pub(crate) mod metrics;
pub mod stores;
mod wiring;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fanfare_gateway::TlsSource;
use fanfare_presence::Presence;
use fanfare_proto::Code;
use fanfare_router::Status as RouterStatus;
use serde_json::{Value, json};

use crate::{
    accounts::Accounts,
    admin_file::{self, AdminFile},
    administration::Administration,
    certificate::SelfSigned,
    cli::Seed,
    clock,
    config::{Configuration, LimitsProfile, Plain},
    echo_bot::EchoBot,
    export::Exports,
    failure::{Failure, Outcome},
    http::{self, HttpServer},
    jwks,
    push::{self, Pushes},
    seed,
    token::TokenIssuer,
    webhook_keys::WebhookKeys,
};
use edge::Edge;
use metrics::Metrics;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Read and checked.
    pub configuration: Configuration,
    /// Loopback only, with a bot where it is seeded.
    pub dev: bool,
    /// What a new data folder is filled with.
    pub seed: Seed,
}

/// What HTTP and commands look at.
#[derive(Debug)]
pub struct NodeState {
    /// The data folder.
    pub folder: PathBuf,
    /// Where QUIC and WebSocket are.
    pub gateway: SocketAddr,
    /// Where HTTP is.
    pub http: SocketAddr,
    /// Dev mode.
    pub dev: bool,
    /// Bearer token of `/admin/v1`.
    pub admin_token: String,
    /// SHA-256 of self-signed certificates, hex; empty where a chain is to be checked.
    pub certificate_sha256: Vec<String>,
    /// What commands ask for.
    pub administration: Administration,
    /// Who signs in.
    pub accounts: Accounts,
    /// What people take away of theirs.
    pub exports: Exports,
    /// Who is online.
    pub presence: Presence,
    /// Who signs webhooks.
    pub webhook_keys: WebhookKeys,
    /// Pushes to the absent.
    pub pushes: Pushes,
    /// The way of requests without a connection to their owners.
    pub edge: Edge,
    /// Pages that may ask.
    pub origins: Vec<String>,
    /// Rates are out of the way.
    pub for_load: bool,
    certificate_not_after_s: Option<u64>,
    started_ms: u64,
    draining: AtomicBool,
    metrics: Metrics,
}

/// One named check of readiness.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// Whether it passes.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

impl NodeState {
    /// All checks of readiness.
    pub async fn checks(&self) -> Vec<Check> {
        let draining = self.draining.load(Ordering::Relaxed);
        let status = self.administration.status().await;
        let stores = match status.as_ref().map(|status| (status.drains.failing.first(), status)) {
            Err(failure) => (false, failure.what.clone()),
            Ok((Some((sink, error)), _)) => (false, format!("{sink}: {error}")),
            Ok((None, status)) if status.read_only => (false, "read-only: no room".to_owned()),
            Ok((None, status)) => (true, format!("{} entries to be drained", status.drains.entries_behind)),
        };
        let lifecycle = if draining { "draining" } else { "serving" };
        vec![
            Check { name: "lifecycle", ok: !draining, detail: lifecycle.into() },
            Check { name: "stores", ok: stores.0, detail: stores.1 },
            Check { name: "gateway", ok: true, detail: format!("listens on {}", self.gateway) },
        ]
    }

    /// What `fanfare status` shows.
    pub async fn status(&self) -> Value {
        let checks = self.checks().await;
        let status = self.administration.status().await.ok();
        let number = |read: fn(&RouterStatus) -> u64| status.as_ref().map(read);
        let stretched = status.as_ref().map_or(0, |status| status.counts.stretched);
        let (tiers, hottest) = self.administration.fanout(stretched).await.unwrap_or_default();
        let now = clock::now_ms();
        json!({
            "schema": "fanfare.status/v1",
            "ready": checks.iter().all(|check| check.ok),
            "checks": checks
                .iter()
                .map(|check| json!({ "name": check.name, "ok": check.ok, "detail": check.detail }))
                .collect::<Vec<_>>(),
            "version": env!("CARGO_PKG_VERSION"),
            "dev": self.dev,
            "started": clock::rfc3339(self.started_ms),
            "up_s": now.saturating_sub(self.started_ms) / 1000,
            "gateway": self.gateway.to_string(),
            "http": self.http.to_string(),
            "data": self.folder.display().to_string(),
            "certificate_left_s": self.certificate_not_after_s.map(|end| end.saturating_sub(now / 1000)),
            "sessions": number(|status| status.counts.sessions as u64),
            "channels_loaded": number(|status| status.counts.channels as u64),
            "commits": number(|status| status.commits),
            "entries": number(|status| status.entries),
            "rows_undrained": number(|status| status.drains.rows_behind as u64),
            "entries_undrained": number(|status| status.drains.entries_behind as u64),
            "read_only": status.as_ref().map(|status| status.read_only),
            "push": self.pushes.status().await.ok(),
            "tiers": tiers,
            "hottest": hottest,
        })
    }

    /// Prometheus text.
    pub async fn render_metrics(&self) -> String {
        self.metrics.render(self.started_ms)
    }

    /// The host that clients of this machine use: the address itself, or `localhost` where it is every address.
    pub fn public_host(&self) -> String {
        let ip = self.gateway.ip();
        if ip.is_unspecified() { "localhost".into() } else { ip.to_string() }
    }
}

/// A running node.
pub struct Node {
    state: Arc<NodeState>,
    router: fanfare_router::Router,
    gateway: fanfare_gateway::Gateway,
    http: HttpServer,
    bot: Option<EchoBot>,
    trusted: Option<tokio::task::JoinHandle<()>>,
    pushing: Option<push::Running>,
}

impl Node {
    /// Starts everything; ready when it returns.
    ///
    /// # Errors
    /// What a command says about it: DATA_LOCKED, LISTEN_FAILED, CERTIFICATE and others.
    pub async fn start(options: NodeOptions) -> Outcome<Self> {
        let started_ms = clock::now_ms();
        let NodeOptions { configuration, dev, seed } = options;
        let folder = configuration.folder.clone();
        // Before the folder is made: what is wrong with the command leaves nothing behind.
        let needs_files = configuration.tls.is_none() && !configuration.listen.ip().is_loopback();
        if needs_files && configuration.plain == Plain::Loopback {
            return Err(no_certificate(&configuration));
        }
        let metrics = Metrics::install();
        let opened = folder.clone();
        let with_pushes = configuration.push.is_some();
        let stores = tokio::task::spawn_blocking(move || stores::open_with(&opened, with_pushes)).await;
        let (stores, outbox) =
            stores.map_err(|error| Failure::internal("opening the data folder failed").why(error))??;
        let shards = stores::shards(stores.metadata.as_ref(), configuration.shards)?;
        let (key, _) = stores::token_key(stores.metadata.as_ref())?;
        let issuer = TokenIssuer::new(&key, &configuration.issuer, &configuration.audience)
            .map_err(|error| Failure::of(Code::DATA_DAMAGED).why(format!("{error:#}")))?;
        let resume = stores::random_secret(stores.metadata.as_ref(), "resume")?;
        let resets = stores::random_secret(stores.metadata.as_ref(), "resets")?;

        let listener = http::listen(configuration.http)
            .map_err(|error| listen_failed("HTTP", "--http", configuration.http, &error))?;
        let tls = Tls::of(&configuration, started_ms)?;

        let router = wiring::router(&stores, shards, &configuration).await?;
        let issuer = Arc::new(issuer);
        let verifier = wiring::verifier(&configuration, &issuer)?;
        let trusted = (!configuration.trusted.is_empty())
            .then(|| jwks::start(configuration.trusted.clone(), verifier.clone()));
        let keys = (&*resume, &*resets);
        let presence = wiring::presence(&configuration, &stores)?;
        let gateway =
            wiring::gateway(&configuration, tls.source, verifier.clone(), keys, &router, &presence)?;
        let address = gateway.addresses().first().copied().unwrap_or(configuration.listen);
        let for_load = configuration.limits == LimitsProfile::Load;
        let accounts = Accounts::new(
            stores.accounts.clone(),
            router.admin(),
            Arc::clone(&issuer),
            verifier,
            configuration.registration_open,
            for_load,
        )?;
        let store = stores.accounts.clone();
        let webhook_keys = tokio::task::spawn_blocking(move || WebhookKeys::open(store)).await;
        let webhook_keys =
            webhook_keys.map_err(|error| Failure::internal("the webhooks' keys").why(error))??;
        let (pushes, pushing) = match configuration.push.clone().zip(outbox) {
            None => (Pushes::default(), None),
            Some((config, outbox)) => {
                let keys = webhook_keys.clone();
                let started =
                    Pushes::start(config, outbox, &stores, router.admin(), keys, started_ms).await?;
                (started.0, Some(started.1))
            }
        };
        let exports = Exports::new(
            stores.accounts.clone(),
            accounts.clone(),
            router.admin(),
            pushes.clone(),
            presence.clone(),
            for_load,
        );
        let edge = Edge::attach(&router);
        let administration = Administration::new(stores, issuer, router.admin());
        if seed == Seed::Demo {
            seed::demo(&administration).await?;
        }
        let state = Arc::new(NodeState {
            gateway: address,
            http: listener.local_addr()?,
            folder,
            dev,
            admin_token: admin_file::fresh_token(),
            certificate_sha256: tls.sha256,
            administration,
            accounts,
            webhook_keys,
            pushes,
            exports,
            presence,
            edge,
            origins: configuration.origins.clone(),
            for_load,
            certificate_not_after_s: tls.not_after_s,
            started_ms,
            draining: AtomicBool::new(false),
            metrics,
        });
        let http =
            HttpServer::start(listener, http::routes(Arc::clone(&state)), configuration.proxies.into())?;
        let bot = if dev && seed == Seed::Demo { Some(EchoBot::start(&state).await?) } else { None };
        let file = AdminFile {
            schema: "fanfare.admin/v1".into(),
            address: state.http.to_string(),
            token: state.admin_token.clone(),
            gateway: format!("{}:{}", state.public_host(), state.gateway.port()),
            certificate_sha256: state.certificate_sha256.clone(),
            dev,
            pid: std::process::id(),
            started: clock::rfc3339(started_ms),
        };
        file.write(&state.folder).map_err(|error| {
            Failure::from(error).why(format!("{} could not be written", admin_file::FILE))
        })?;
        Ok(Self { state, router, gateway, http, bot, trusted, pushing })
    }

    /// What HTTP and commands look at.
    pub fn state(&self) -> &NodeState {
        &self.state
    }

    /// Stops everything: readiness first, then connections with a word and `grace`, then what is accepted is written.
    pub async fn stop(self, grace: Duration) {
        self.state.draining.store(true, Ordering::Relaxed);
        if let Some(trusted) = self.trusted {
            trusted.abort();
        }
        if let Some(bot) = self.bot {
            bot.stop().await;
        }
        self.gateway.shutdown(grace).await;
        if let Some(pushing) = self.pushing {
            pushing.stop().await;
        }
        self.state.presence.clone().shutdown().await;
        self.router.shutdown().await;
        let file = admin_file::path(&self.state.folder);
        if let Err(error) = std::fs::remove_file(&file) {
            tracing::warn!(%error, file = %file.display(), "could not be removed");
        }
        self.http.stop().await;
        self.state.exports.ended().await;
    }
}

/// What the gateway serves TLS with, and what clients compare.
struct Tls {
    source: TlsSource,
    sha256: Vec<String>,
    not_after_s: Option<u64>,
}

impl Tls {
    fn of(configuration: &Configuration, now_ms: u64) -> Outcome<Self> {
        if let Some((certificate, key)) = configuration.tls.clone() {
            return Ok(Self {
                source: TlsSource::Files { certificate, key },
                sha256: Vec::new(),
                not_after_s: None,
            });
        }
        let own = |error: anyhow::Error| Failure::of(Code::CERTIFICATE).why(format!("{error:#}"));
        let made = SelfSigned::of_folder(&configuration.folder, now_ms).map_err(own)?;
        let (chain, key) = made.der().map_err(own)?;
        Ok(Self {
            source: TlsSource::Memory { chain, key },
            sha256: vec![made.sha256().map_err(own)?],
            not_after_s: Some(made.not_after_unix_s),
        })
    }
}

fn no_certificate(configuration: &Configuration) -> Failure {
    let address = configuration.listen;
    Failure::new(
        Code::CERTIFICATE,
        format!("{address} can be reached from elsewhere, and no certificate is configured"),
    )
    .why("tls.certificate and tls.key are not set; a self-signed certificate serves loopback only")
    .advise("fanfare start --dev", "a server for this machine")
    .advise(format!("fanfare start --listen 127.0.0.1:{}", address.port()), "likewise, without seeded people")
    .advise(
        "fanfare config show",
        "tls.certificate, tls.key: PEM files; gateway.plain = \"always\" behind a proxy",
    )
}

/// The failure of an address that could not be bound.
fn listen_failed(what: &str, flag: &str, address: SocketAddr, error: &dyn std::fmt::Display) -> Failure {
    let other = SocketAddr::new(address.ip(), 0);
    Failure::new(Code::LISTEN_FAILED, format!("{what} cannot listen on {address}"))
        .why(error)
        .advise("fanfare status", "if it is a fanfare that holds it, with its --data")
        .advise(format!("fanfare start ... {flag} {other}"), "takes a free port and prints it")
}
