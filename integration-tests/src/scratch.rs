//! Directories that go away with the test.

use std::env;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// A directory that is removed in the end, unless `KVM_WORKER_TEST_KEEP` is set.
#[derive(Debug)]
pub(crate) struct Scratch(TempDir);

impl Scratch {
    /// Makes one. Its path is short, for it has Unix sockets in it, whose paths end at 107 bytes.
    pub(crate) fn new(prefix: &str) -> Result<Scratch> {
        let mut directory =
            tempfile::Builder::new().prefix(&format!("{prefix}-")).tempdir().context("make a directory for a test")?;
        if env::var_os("KVM_WORKER_TEST_KEEP").is_some() {
            directory.disable_cleanup(true);
            eprintln!("kept: {}", directory.path().display());
        }
        Ok(Scratch(directory))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}
