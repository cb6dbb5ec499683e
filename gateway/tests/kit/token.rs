//! Tokens, good and bad.

use std::time::SystemTime;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_gateway::Verifier;
use serde_json::{Value, json};

pub struct Issuer {
    pub key: Ed25519KeyPair,
}

impl Issuer {
    pub fn new() -> Self {
        Self { key: Ed25519KeyPair::generate().unwrap() }
    }

    pub fn public(&self) -> [u8; 32] {
        self.key.public_key().as_ref().try_into().unwrap()
    }

    pub fn verifier(&self) -> Verifier {
        Verifier::new("fanfare", "fanfare", &[("k1".into(), self.public())])
    }

    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_raw(&header.to_string(), &claims.to_string())
    }

    pub fn sign_raw(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    pub fn token(&self, user: u64) -> String {
        self.token_for(user, 900)
    }

    /// Ends in so many seconds.
    pub fn token_for(&self, user: u64, seconds: i64) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        let claims = json!({
            "iss": "fanfare", "aud": "fanfare", "sub": user.to_string(),
            "iat": (now - 10).min(now + seconds), "exp": now + seconds,
        });
        self.sign(&json!({ "alg": "EdDSA", "typ": "fanfare+jwt", "kid": "k1" }), &claims)
    }
}
