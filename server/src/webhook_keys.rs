//! The keys that sign webhooks: one signs, and those before it stay published for a while, so that a receiver that keeps
//! what it read does not refuse what was signed just before. Private halves stay in the store and in this module.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{
    digest,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_proto::Code;
use fanfare_storage::{
    StoreError,
    accounts::{Accounts, WebhookKey},
};

use crate::{
    clock,
    failure::{Failure, Outcome},
    token::{TokenIssuer, hex},
};

/// How long a key stays published after another signs.
pub const OVERLAP: Duration = Duration::from_secs(7 * 86_400);
/// Keys that are published at once.
pub const KEYS_MAX: usize = 8;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct WebhookKeys {
    store: Arc<dyn Accounts>,
}

impl std::fmt::Debug for WebhookKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookKeys").finish_non_exhaustive()
    }
}

/// What receivers may know of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// What a signature names it by: the first 8 bytes of its SHA-256, hex.
    pub kid: String,
    /// Its 32 bytes.
    pub public: Vec<u8>,
    /// When it was made, Unix seconds.
    pub created_unix_s: u64,
    /// When it ends, Unix seconds; `None` for the one that signs.
    pub ends_unix_s: Option<u64>,
}

/// The key that signs now, to be used for a moment: another may sign after that.
pub struct Signer {
    kid: String,
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Signer {
    /// As of [`PublicKey::kid`].
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// An Ed25519 signature.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl PublicKey {
    /// Its bytes as a JWK has them.
    pub fn x(&self) -> String {
        URL_SAFE_NO_PAD.encode(&self.public)
    }
}

impl WebhookKeys {
    /// Over that store; the first key is made where there is none. Blocks.
    ///
    /// # Errors
    /// Of the store.
    pub fn open(store: Arc<dyn Accounts>) -> Outcome<Self> {
        if store.webhook_keys()?.is_empty() {
            // Where another process was faster, its key is the first.
            store.rotate_webhook_key("", &fresh()?.0, 0)?;
        }
        Ok(Self { store })
    }

    /// The keys that a receiver takes now, oldest first: the last one signs.
    ///
    /// # Errors
    /// RETRY_LATER, DATA_DAMAGED.
    pub async fn published(&self) -> Outcome<Vec<PublicKey>> {
        let now_ms = clock::now_ms();
        let keys = self.run(|store| store.webhook_keys()).await?;
        keys.iter().filter(|key| key.ends_ms == 0 || key.ends_ms > now_ms).map(public).collect()
    }

    /// The key that signs now.
    ///
    /// # Errors
    /// RETRY_LATER, DATA_DAMAGED.
    pub async fn signer(&self) -> Outcome<Signer> {
        let keys = self.run(|store| store.webhook_keys()).await?;
        let signs = keys.iter().rfind(|key| key.ends_ms == 0);
        let signs = signs.ok_or_else(|| Failure::internal("no key signs webhooks"))?;
        Ok(Signer { kid: signs.kid.clone(), pair: pair(&signs.pkcs8)? })
    }

    /// Makes a new key sign. The one before it is taken for [`OVERLAP`] more, or not at all where it is withdrawn: then what
    /// it signed and has not arrived is refused. Gives what is published now.
    ///
    /// # Errors
    /// RATE_LIMITED where [`KEYS_MAX`] would be published; CONFLICT where somebody else rotated at the same moment;
    /// RETRY_LATER.
    pub async fn rotate(&self, withdraw: bool) -> Outcome<Vec<PublicKey>> {
        let published = self.published().await?;
        let (fresh, kid) = fresh()?;
        let ended = published.iter().find_map(|key| key.ends_unix_s);
        if published.len() >= KEYS_MAX && !withdraw {
            let mut failure =
                Failure::new(Code::RATE_LIMITED, format!("{KEYS_MAX} keys are published at most"));
            failure.retry_after =
                ended.map(|end| Duration::from_secs(end.saturating_sub(fresh.created_ms / 1000).max(1)));
            return Err(failure.why("each stays for a week after it signed last"));
        }
        let signing = published.iter().find(|key| key.ends_unix_s.is_none());
        let signing = signing.map(|key| key.kid.clone()).unwrap_or_default();
        let overlap_ms = if withdraw { 0 } else { OVERLAP.as_millis() as u64 };
        let ends_ms = fresh.created_ms + overlap_ms;
        if !self.run(move |store| store.rotate_webhook_key(&signing, &fresh, ends_ms)).await? {
            return Err(Failure::new(Code::RETRY_LATER, "somebody else rotated the keys at this moment"));
        }
        tracing::warn!(kid, withdraw, "another key signs webhooks");
        self.published().await
    }

    /// Takes a key out at once: what it signed and has not arrived is refused. Where it is the one that signs, a new one signs
    /// from now on. Gives what is published now.
    ///
    /// # Errors
    /// NO_SUCH_NAME where no such key is published; RETRY_LATER.
    pub async fn withdraw(&self, kid: String) -> Outcome<Vec<PublicKey>> {
        let published = self.published().await?;
        let none = || {
            Failure::new(Code::NO_SUCH_NAME, "no such key is published")
                .advise("fanfare admin webhook-keys ls", "lists them")
        };
        let key = published.iter().find(|key| key.kid == kid).ok_or_else(none)?;
        if key.ends_unix_s.is_none() {
            return self.rotate(true).await;
        }
        let gone = kid.clone();
        if !self.run(move |store| store.withdraw_webhook_key(&gone)).await? {
            return Err(none());
        }
        tracing::warn!(kid, "a key of webhooks was withdrawn");
        self.published().await
    }

    async fn run<T: Send + 'static>(
        &self,
        run: impl FnOnce(&dyn Accounts) -> Result<T, StoreError> + Send + 'static,
    ) -> Outcome<T> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || run(&*store)).await;
        Ok(done.map_err(|error| Failure::internal("the keys could not be asked for").why(error))??)
    }
}

fn fresh() -> Outcome<(WebhookKey, String)> {
    let pkcs8 = TokenIssuer::make_key();
    let kid = kid(&pair(&pkcs8)?);
    Ok((WebhookKey { kid: kid.clone(), pkcs8, created_ms: clock::now_ms(), ends_ms: 0 }, kid))
}

fn public(key: &WebhookKey) -> Outcome<PublicKey> {
    Ok(PublicKey {
        kid: key.kid.clone(),
        public: pair(&key.pkcs8)?.public_key().as_ref().to_vec(),
        created_unix_s: key.created_ms / 1000,
        ends_unix_s: (key.ends_ms > 0).then_some(key.ends_ms / 1000),
    })
}

fn pair(pkcs8: &[u8]) -> Outcome<Ed25519KeyPair> {
    Ed25519KeyPair::from_pkcs8(pkcs8)
        .map_err(|_| Failure::of(Code::DATA_DAMAGED).why("a webhooks' key does not read back"))
}

fn kid(pair: &Ed25519KeyPair) -> String {
    hex(&digest::digest(&digest::SHA256, pair.public_key().as_ref()).as_ref()[..8])
}
