//! The self-signed certificate of loopback: ECDSA P-256 and 13 days, so that browsers accept its hash, kept in the data
//! folder and made anew before it ends. Everything public needs one from files.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use aws_lc_rs::digest;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{private_file, token::hex};

/// How long it lives; browsers accept the hash of one with at most 14 days.
const LIFE: Duration = Duration::from_secs(13 * 86_400);
/// It is made anew when less is left.
const LEFT_MIN: Duration = Duration::from_secs(2 * 86_400);
/// Clocks of the two sides may differ.
const BACKDATED: Duration = Duration::from_secs(3_600);
/// Its file in the data folder.
pub const FILE: &str = "dev-certificate.json";

/// A certificate with its key, as it is kept.
#[derive(Clone, Serialize, Deserialize)]
pub struct SelfSigned {
    /// PEM.
    pub certificate: String,
    /// PEM, PKCS #8.
    pub key: String,
    /// Its end, Unix seconds.
    pub not_after_unix_s: u64,
}

impl std::fmt::Debug for SelfSigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SelfSigned").field("not_after_unix_s", &self.not_after_unix_s).finish_non_exhaustive()
    }
}

impl SelfSigned {
    /// Makes one.
    ///
    /// # Errors
    /// Of the crypto library.
    pub fn make(now_ms: u64) -> Result<Self> {
        let from = (now_ms / 1000).saturating_sub(BACKDATED.as_secs());
        let not_after_unix_s = from + LIFE.as_secs();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        for address in ["127.0.0.1", "::1"] {
            params.subject_alt_names.push(SanType::IpAddress(address.parse()?));
        }
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "fanfare on loopback");
        params.not_before = OffsetDateTime::from_unix_timestamp(from as i64)?;
        params.not_after = OffsetDateTime::from_unix_timestamp(not_after_unix_s as i64)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem(), not_after_unix_s })
    }

    /// The one of that folder, made anew where there is none or it ends soon.
    ///
    /// # Errors
    /// Of the file system.
    pub fn of_folder(folder: &Path, now_ms: u64) -> Result<Self> {
        let path = folder.join(FILE);
        let kept = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        let soon = now_ms / 1000 + LEFT_MIN.as_secs();
        if let Some(kept) = kept.filter(|kept| kept.not_after_unix_s > soon && kept.der().is_ok()) {
            return Ok(kept);
        }
        let made = Self::make(now_ms)?;
        private_file::write(&path, &serde_json::to_vec(&made)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(made)
    }

    /// Chain and key as TLS takes them.
    ///
    /// # Errors
    /// They do not decode.
    pub fn der(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes())?;
        Ok((vec![certificate], PrivateKeyDer::from_pem_slice(self.key.as_bytes())?))
    }

    /// SHA-256 of the certificate's DER, hex: what clients compare.
    ///
    /// # Errors
    /// It does not decode.
    pub fn sha256(&self) -> Result<String> {
        let (chain, _) = self.der()?;
        Ok(sha256_hex(chain.first().context("a certificate")?))
    }
}

/// SHA-256 of DER bytes, hex.
pub fn sha256_hex(der: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, der).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    #[test]
    fn it_is_kept_until_two_days_before_its_end() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let now = crate::clock::now_ms();
        let hash = |at| {
            SelfSigned::of_folder(folder.path(), at).and_then(|made| made.sha256()).expect("a certificate")
        };
        let first = hash(now);
        assert_eq!(first.len(), 64);
        assert_eq!(hash(now + 10 * DAY_MS), first);
        assert_ne!(hash(now + 12 * DAY_MS), first);
        fs::write(folder.path().join(FILE), "{\"half").expect("damaged");
        assert_ne!(hash(now), first);
    }
}
