//! How the crates meet: the configuration in their terms, and the link between router and gateway.

use std::sync::{Arc, OnceLock};

use fanfare_gateway::{Config, Gateway, GatewayError, Limits, Origins, ResumeKeys, TlsSource, Verifier};
use fanfare_presence::Presence;
use fanfare_proto::{
    Code,
    link::{Down, Downlink, GatewayId},
};
use fanfare_router::{Router, RouterConfig, StartError};
use parking_lot::Mutex;

use super::{listen_failed, stores::Stores};
use crate::{
    clock,
    config::{Configuration, LimitsProfile, Plain},
    failure::{Failure, Outcome},
    token::TokenIssuer,
};

/// The one gateway of a process that does everything.
const GATEWAY: GatewayId = GatewayId(1);
/// Number of the one key of resume secrets; rotation adds others.
const RESUME_KEY: u8 = 1;

/// Starts the router on the current runtime.
///
/// # Errors
/// Of the stores.
pub async fn router(stores: &Stores, shards: u16, configuration: &Configuration) -> Outcome<Router> {
    let mut config = RouterConfig::new(tokio::runtime::Handle::current());
    config.shards = shards;
    (config.activity, config.tiers) = (configuration.activity, configuration.tiers);
    if let Some(path) = &configuration.clock {
        let cannot = |error| {
            let what = format!("`router.clock`: {} holds no time", path.display());
            Failure::new(Code::CONFIG_VALUE, what).why(error)
        };
        config.clock = clock::driven(path).map_err(cannot)?;
        tracing::warn!(file = %path.display(), "the router's clock is driven");
    }
    let stores = fanfare_router::Stores {
        metadata: stores.metadata.clone(),
        content: stores.content.clone(),
        lists: stores.lists.clone(),
        log: stores.log.clone(),
        ownership: stores.ownership.clone(),
        recovered: stores.recovered.clone(),
    };
    let started = tokio::task::spawn_blocking(move || Router::start(config, stores)).await;
    match started {
        Ok(Ok(router)) => Ok(router),
        Ok(Err(StartError::Store(error))) => Err(error.into()),
        Ok(Err(error)) => Err(Failure::internal("the router cannot start").why(error)),
        Err(error) => Err(Failure::internal("the router cannot start").why(error)),
    }
}

/// Starts presence on the same stores.
///
/// # Errors
/// There is no thread to be had.
pub fn presence(configuration: &Configuration, stores: &Stores) -> Outcome<Presence> {
    let stores = fanfare_presence::Stores {
        metadata: stores.metadata.clone(),
        accounts: stores.accounts.clone(),
        lists: stores.lists.clone(),
        seen: stores.seen.clone(),
    };
    Presence::start(configuration.presence, stores)
        .map_err(|error| Failure::internal("presence cannot start").why(error))
}

/// What checks tokens: this deployment's own key.
///
/// # Errors
/// DATA_DAMAGED.
pub fn verifier(configuration: &Configuration, issuer: &TokenIssuer) -> Outcome<Verifier> {
    let public: [u8; 32] = issuer
        .public_key()
        .try_into()
        .map_err(|_| Failure::new(Code::DATA_DAMAGED, "the tokens' public key has not 32 bytes"))?;
    let keys = [(issuer.kid().to_owned(), public)];
    Ok(Verifier::new(&configuration.issuer, &configuration.audience, &keys))
}

/// Starts the gateway and joins it to the router.
///
/// # Errors
/// LISTEN_FAILED, CERTIFICATE.
pub fn gateway(
    configuration: &Configuration,
    tls: TlsSource,
    verifier: Verifier,
    (resume, resets): (&[u8], &[u8]),
    router: &Router,
    presence: &Presence,
) -> Outcome<Gateway> {
    let resume: [u8; 32] = resume
        .try_into()
        .map_err(|_| Failure::new(Code::DATA_DAMAGED, "the key of resume secrets has not 32 bytes"))?;
    let reset_key = resets.try_into().ok();
    let config = Config {
        id: GATEWAY,
        listen: vec![configuration.listen],
        tls: Some(tls),
        plain: configuration.plain == Plain::Always,
        origins: Origins { loopback: true, allowed: configuration.origins.clone() },
        limits: match configuration.limits {
            LimitsProfile::Default => Limits::DEFAULT,
            LimitsProfile::Load => Limits::LOAD,
        },
        lanes: configuration.lanes,
        reset_key,
        activities: Some(presence.activities()),
        ..Config::default()
    };
    // The gateway takes connections before this function sees it, and an owner that is asked before it knows the way
    // back could not answer.
    let late = Arc::new(LateDownlink::default());
    router.attach_gateway(GATEWAY, late.clone());
    presence.attach_gateway(GATEWAY, late.clone());
    let gateway = Gateway::start(config, router.uplink(), verifier, ResumeKeys::new(&[(RESUME_KEY, resume)]))
        .map_err(|error| match error {
            GatewayError::Listen { address, source } => {
                listen_failed("the gateway", "--listen", address, &source)
            }
            error => Failure::of(error.code()).why(error),
        })?;
    late.found(gateway.downlink());
    Ok(gateway)
}

/// The way to a gateway that is still being started: keeps what owners say until it is there. Bounded by the
/// connections that can open in the moment between.
#[derive(Default)]
struct LateDownlink {
    gateway: OnceLock<Arc<dyn Downlink>>,
    waiting: Mutex<Vec<(u16, Down)>>,
}

impl LateDownlink {
    fn found(&self, gateway: Arc<dyn Downlink>) {
        let mut waiting = self.waiting.lock();
        for (owner, down) in waiting.drain(..) {
            gateway.send(owner, down);
        }
        // Set while the lock is held: who finds nothing there waits for it and looks again.
        let _ = self.gateway.set(gateway);
    }
}

impl Downlink for LateDownlink {
    fn send(&self, owner: u16, down: Down) {
        if let Some(gateway) = self.gateway.get() {
            return gateway.send(owner, down);
        }
        let mut waiting = self.waiting.lock();
        match self.gateway.get() {
            Some(gateway) => {
                drop(waiting);
                gateway.send(owner, down);
            }
            None => waiting.push((owner, down)),
        }
    }

    fn send_all(&self, downs: &mut Vec<(u16, Down)>) {
        match self.gateway.get() {
            Some(gateway) => gateway.send_all(downs),
            None => downs.drain(..).for_each(|(owner, down)| self.send(owner, down)),
        }
    }
}
