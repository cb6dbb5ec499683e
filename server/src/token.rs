//! Issuing session tokens: JWTs signed by Ed25519, as docs/protocol.md section 3 has them. The key is one of the
//! deployment's secrets; gateways know its public half only.

use std::{fmt, time::Duration};

use anyhow::{Context, Result};
use aws_lc_rs::{
    digest,
    signature::{Ed25519KeyPair, KeyPair},
};
use fanfare_proto::{DeviceId, UserId};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;

/// Name of the secret that holds the key, PKCS #8.
pub const SECRET: &str = "tokens";
/// `typ` of the header.
pub const TYPE: &str = "fanfare+jwt";
/// The longest life of a token.
pub const TTL_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Signs tokens.
pub struct TokenIssuer {
    key: EncodingKey,
    kid: String,
    public: Vec<u8>,
    issuer: String,
    audience: String,
}

/// A token with its end.
#[derive(Clone)]
pub struct IssuedToken {
    /// The JWT.
    pub token: String,
    /// When it ends.
    pub expires_unix_s: u64,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: String,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    did: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dgn: Option<u32>,
}

impl TokenIssuer {
    /// A new key, PKCS #8.
    ///
    /// # Panics
    /// Where the system has no random numbers.
    pub fn make_key() -> Vec<u8> {
        let pair = Ed25519KeyPair::generate().expect("the system has random numbers");
        let document = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair);
        document.expect("a fresh key encodes").as_ref().to_vec()
    }

    /// Signs with that key.
    ///
    /// # Errors
    /// It is not an Ed25519 key in PKCS #8.
    pub fn new(pkcs8: &[u8], issuer: &str, audience: &str) -> Result<Self> {
        let pair =
            Ed25519KeyPair::from_pkcs8(pkcs8).ok().context("the tokens' key is not Ed25519 in PKCS #8")?;
        let public = pair.public_key().as_ref().to_vec();
        let hash = digest::digest(&digest::SHA256, &public);
        let kid = hex(&hash.as_ref()[..8]);
        Ok(Self {
            key: EncodingKey::from_ed_der(pkcs8),
            kid,
            public,
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
        })
    }

    /// The public key's 32 bytes.
    pub fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// The key's id: the first 8 bytes of its SHA-256, hex.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// `iss` of its tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `aud` of its tokens.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// A token for that user.
    ///
    /// # Errors
    /// Signing failed.
    pub fn issue(&self, user: UserId, ttl: Duration, now_ms: u64) -> Result<IssuedToken> {
        self.sign(user, None, ttl, now_ms)
    }

    /// A token for that user's device alone, void once the device's generation is raised.
    ///
    /// # Errors
    /// Signing failed.
    pub fn issue_bound(
        &self,
        user: UserId,
        device: DeviceId,
        generation: u32,
        ttl: Duration,
        now_ms: u64,
    ) -> Result<IssuedToken> {
        self.sign(user, Some((device, generation)), ttl, now_ms)
    }

    fn sign(
        &self,
        user: UserId,
        device: Option<(DeviceId, u32)>,
        ttl: Duration,
        now_ms: u64,
    ) -> Result<IssuedToken> {
        let iat = now_ms / 1000;
        let exp = iat + ttl.min(TTL_MAX).as_secs().max(1);
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(TYPE.to_owned());
        header.kid = Some(self.kid.clone());
        let claims = Claims {
            iss: &self.issuer,
            aud: &self.audience,
            sub: user.to_string(),
            iat,
            exp,
            did: device.map(|(device, _)| device.to_string()),
            dgn: device.map(|(_, generation)| generation),
        };
        let token = encode(&header, &claims, &self.key).context("a token could not be signed")?;
        Ok(IssuedToken { token, expires_unix_s: exp })
    }
}

impl fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenIssuer").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken").field("expires_unix_s", &self.expires_unix_s).finish_non_exhaustive()
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use jsonwebtoken::{DecodingKey, Validation, decode};
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_token_has_the_form_of_the_protocol_and_checks_with_the_public_key() {
        let issuer = TokenIssuer::new(&TokenIssuer::make_key(), "fanfare", "chat").expect("a fresh key");
        let issued =
            issuer.issue(UserId(42), Duration::from_secs(60), crate::clock::now_ms()).expect("signed");
        let head = issued.token.split('.').next().expect("three parts");
        let head: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(head).expect("base64")).expect("JSON");
        assert_eq!((head["alg"].as_str(), head["typ"].as_str()), (Some("EdDSA"), Some(TYPE)));
        assert_eq!(head["kid"].as_str(), Some(issuer.kid()));

        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&["chat"]);
        validation.set_issuer(&["fanfare"]);
        let key = DecodingKey::from_ed_components(&URL_SAFE_NO_PAD.encode(issuer.public_key()))
            .expect("a public key");
        let claims = decode::<Value>(&issued.token, &key, &validation).expect("valid").claims;
        assert_eq!(claims["sub"].as_str(), Some("42"));
        assert_eq!(claims["exp"].as_u64(), Some(issued.expires_unix_s));

        let other = TokenIssuer::new(&TokenIssuer::make_key(), "fanfare", "chat").expect("a fresh key");
        let key = DecodingKey::from_ed_components(&URL_SAFE_NO_PAD.encode(other.public_key()))
            .expect("a public key");
        assert!(decode::<Value>(&issued.token, &key, &validation).is_err());
    }
}
