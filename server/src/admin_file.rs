//! `admin.json` in the data folder: how commands find the running server and prove that they may. Readable by the
//! folder's owner only; written when the server is ready, removed when it stops cleanly.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{private_file, token::hex};

/// Its name in the data folder.
pub const FILE: &str = "admin.json";

/// What it holds.
#[derive(Clone, Serialize, Deserialize)]
pub struct AdminFile {
    /// `fanfare.admin/v1`.
    #[serde(default)]
    pub schema: String,
    /// `host:port` of HTTP.
    pub address: String,
    /// Bearer token of `/admin/v1`.
    pub token: String,
    /// `host:port` of QUIC and WebSocket.
    #[serde(default)]
    pub gateway: String,
    /// SHA-256 of self-signed certificates, hex.
    #[serde(default)]
    pub certificate_sha256: Vec<String>,
    /// Whether the server runs in dev mode.
    #[serde(default)]
    pub dev: bool,
    /// The server's process.
    #[serde(default)]
    pub pid: u32,
    /// When it started, RFC 3339.
    #[serde(default)]
    pub started: String,
}

impl std::fmt::Debug for AdminFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminFile")
            .field("address", &self.address)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// Where it lies.
pub fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// A fresh bearer token: 256 random bits, hex.
///
/// # Panics
/// Where the system has no random numbers.
pub fn fresh_token() -> String {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    hex(&bytes)
}

impl AdminFile {
    /// Puts it into the folder.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        private_file::write(&path(folder), &serde_json::to_vec_pretty(self)?)
    }

    /// The one of that folder, if there is one that reads.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(folder)).ok()?).ok()
    }
}
