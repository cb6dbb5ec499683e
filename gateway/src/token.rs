//! Tokens: JWTs signed by EdDSA under keys that are known beforehand, and nothing else.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_proto::{
    error::Code,
    ids::{DeviceId, UserId},
    limits,
    link::Proof,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// How far clocks may differ, in seconds.
pub const LEEWAY_S: u64 = 30;
/// The `typ` of the header.
pub const TYPE: &str = "fanfare+jwt";

/// What a good token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Whose it is.
    pub user: UserId,
    /// When it ends, in Unix milliseconds.
    pub until_ms: u64,
    /// When it was issued, in Unix seconds.
    pub issued_s: u64,
    /// The device it is bound to, and that device's generation when it was issued; a token of a login is bound.
    pub device: Option<(DeviceId, u32)>,
    /// This deployment issued it itself, not an issuer that it trusts.
    pub own: bool,
}

impl Verified {
    /// What the owner of the user is told, for a session on that device.
    ///
    /// # Errors
    /// `TOKEN_CLAIMS` where it is bound to another device.
    pub fn proof(&self, device: DeviceId) -> Result<Proof, Code> {
        match self.device {
            Some((bound, _)) if bound != device => Err(Code::TOKEN_CLAIMS),
            bound => Ok(Proof::Token { issued_s: self.issued_s, generation: bound.map(|(_, at)| at) }),
        }
    }
}

/// Checks tokens. Cloning shares the keys.
#[derive(Clone)]
pub struct Verifier {
    issuer: Arc<str>,
    audience: Arc<str>,
    /// By `kid`: each with the issuer that it speaks for. Issuers choose their ids, so that two may have the same.
    keys: Arc<ArcSwap<HashMap<String, Vec<IssuerKey>>>>,
}

#[derive(Clone)]
struct IssuerKey {
    issuer: Arc<str>,
    bytes: [u8; 32],
    key: DecodingKey,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("issuer", &self.issuer).field("audience", &self.audience).finish()
    }
}

/// Nothing in a header but what is expected: no `jku`, no `x5u`, no `crit`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    alg: &'a str,
    typ: &'a str,
    kid: &'a str,
}

/// The claims, each of exactly this type. Others are not looked at.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    exp: u64,
    iat: u64,
    nbf: Option<u64>,
    /// The device, as a decimal string, and its generation: both or none.
    did: Option<String>,
    dgn: Option<u32>,
}

impl Verifier {
    /// Trusts these Ed25519 public keys (32 bytes, by their `kid`) for tokens of that `iss` and `aud`.
    pub fn new(issuer: &str, audience: &str, keys: &[(String, [u8; 32])]) -> Self {
        let this = Self { issuer: issuer.into(), audience: audience.into(), keys: Arc::default() };
        this.trust(issuer, keys);
        this
    }

    /// Takes these keys in the place of all that this issuer had, at once and for all clones; says whether that changed any.
    pub fn trust(&self, issuer: &str, keys: &[(String, [u8; 32])]) -> bool {
        let now = self.keys.load();
        let mut had: Vec<(&String, [u8; 32])> = Vec::new();
        for (kid, of_id) in now.iter() {
            had.extend(of_id.iter().filter(|key| *key.issuer == *issuer).map(|key| (kid, key.bytes)));
        }
        had.sort_unstable();
        let mut wanted: Vec<(&String, [u8; 32])> = keys.iter().map(|(kid, bytes)| (kid, *bytes)).collect();
        wanted.sort_unstable();
        if had == wanted {
            return false;
        }
        let issuer: Arc<str> = issuer.into();
        self.keys.rcu(|now| {
            let mut next = HashMap::clone(now);
            for of_id in next.values_mut() {
                of_id.retain(|key| key.issuer != issuer);
            }
            for (kid, bytes) in keys {
                let key =
                    IssuerKey { issuer: issuer.clone(), bytes: *bytes, key: DecodingKey::from_ed_der(bytes) };
                next.entry(kid.clone()).or_default().push(key);
            }
            next.retain(|_, of_id| !of_id.is_empty());
            next
        });
        true
    }

    /// Takes other keys of the deployment's own issuer.
    pub fn rotate(&self, keys: &[(String, [u8; 32])]) {
        let issuer = Arc::clone(&self.issuer);
        self.trust(&issuer, keys);
    }

    /// Checks a token's form, signature and claims, in this order.
    ///
    /// # Errors
    /// `TOKEN_MALFORMED`, `TOKEN_SIGNATURE` (the key is not known, or did not sign it), `TOKEN_CLAIMS`, `TOKEN_EXPIRED`.
    pub fn verify(&self, token: &str, unix_ms: u64) -> Result<Verified, Code> {
        if token.len() > limits::TOKEN_BYTES_MAX {
            return Err(Code::TOKEN_MALFORMED);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Code::TOKEN_MALFORMED)?;
        let (header, claims) = message.split_once('.').ok_or(Code::TOKEN_MALFORMED)?;
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Code::TOKEN_MALFORMED)?;
        let header: Header<'_> = serde_json::from_slice(&header).map_err(|_| Code::TOKEN_MALFORMED)?;
        if header.alg != "EdDSA" || header.typ != TYPE {
            return Err(Code::TOKEN_MALFORMED);
        }
        let keys = self.keys.load();
        let of_id = keys.get(header.kid).ok_or(Code::TOKEN_SIGNATURE)?;
        let mut signer = None;
        for known in of_id {
            match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &known.key, Algorithm::EdDSA) {
                Ok(true) => {
                    signer = Some(known);
                    break;
                }
                Ok(false) => {}
                Err(_) => return Err(Code::TOKEN_MALFORMED),
            }
        }
        let signer = signer.ok_or(Code::TOKEN_SIGNATURE)?;
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| Code::TOKEN_MALFORMED)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| Code::TOKEN_CLAIMS)?;
        // Who signed speaks for its own issuer alone.
        self.check(&claims, &signer.issuer, unix_ms / 1000)
    }

    fn check(&self, claims: &Claims, issuer: &str, now_s: u64) -> Result<Verified, Code> {
        if *claims.iss != *issuer || *claims.aud != *self.audience {
            return Err(Code::TOKEN_CLAIMS);
        }
        let user = UserId(id_of(&claims.sub).filter(|user| user >> 63 == 0).ok_or(Code::TOKEN_CLAIMS)?);
        let device = match (&claims.did, claims.dgn) {
            (None, None) => None,
            (Some(device), Some(generation)) => {
                Some((DeviceId(id_of(device).ok_or(Code::TOKEN_CLAIMS)?), generation))
            }
            _ => return Err(Code::TOKEN_CLAIMS),
        };
        let begins = claims.iat.max(claims.nbf.unwrap_or(0));
        if begins > now_s + LEEWAY_S || claims.iat > claims.exp || claims.exp > u64::from(u32::MAX) * 8 {
            return Err(Code::TOKEN_CLAIMS);
        }
        if claims.exp + LEEWAY_S <= now_s {
            return Err(Code::TOKEN_EXPIRED);
        }
        let own = *issuer == *self.issuer;
        Ok(Verified { user, until_ms: claims.exp * 1000, issued_s: claims.iat, device, own })
    }
}

/// Digits alone, without leading zeros: `parse` would take a sign.
fn id_of(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
