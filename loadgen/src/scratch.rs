//! The folder that a run keeps its server's data in.

use std::path::PathBuf;

use anyhow::Result;

/// Goes with the run, unless it is to be kept.
pub struct Scratch {
    /// The folder.
    pub path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// A fresh one, named after what it is for, in LOADGEN_DATA where that is set.
    pub fn new(what: &str, keep: bool) -> Result<Self> {
        let name = format!("{what}-{}", std::process::id());
        let path = match std::env::var_os("LOADGEN_DATA") {
            Some(folder) => PathBuf::from(folder).join(name),
            // Beside the build, on a real disk: temporary folders are often memory.
            None => std::env::current_exe()?.with_file_name(name),
        };
        std::fs::create_dir_all(&path)?;
        Ok(Self { path, keep })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("data kept in {}", self.path.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
