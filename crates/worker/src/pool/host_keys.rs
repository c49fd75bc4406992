//! The guests' own ssh keys: given by the configuration, or learnt at the first boot of an image and checked ever after.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use protocol::command::Name;
use ssh::{HostKey, HostKeyPolicy};
use tracing::info;

use super::state_dir::{make_lasting_directory, sync};
use crate::config::Image;

/// The learnt keys, a file for each image.
#[derive(Debug)]
pub(crate) struct HostKeys {
    directory: PathBuf,
}

/// The directory of the learnt keys.
pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("host_keys")
}

/// Where an image's learnt key is kept.
pub(crate) fn file(state_dir: &Path, image: &Name) -> PathBuf {
    HostKeys::new(directory(state_dir)).file(image)
}

impl HostKeys {
    pub(crate) fn new(directory: PathBuf) -> Self {
        HostKeys { directory }
    }

    /// What to expect of a guest of this image.
    /// `of_generation` is the key of the guest that a generation was saved from, which its next one has, too.
    pub(crate) fn policy(
        &self,
        name: &Name,
        image: &Image,
        of_generation: Option<&str>,
    ) -> anyhow::Result<HostKeyPolicy> {
        if let Some(key) = &image.host_key {
            return Ok(HostKeyPolicy::Pinned(key.clone()));
        }
        if let Some(line) = of_generation {
            let key = line.parse::<HostKey>().context("understand the host key in the generation's manifest")?;
            return Ok(HostKeyPolicy::Pinned(key));
        }
        let file = self.file(name);
        match std::fs::read_to_string(&file) {
            Ok(line) => {
                let key = line.trim().parse::<HostKey>();
                key.map(HostKeyPolicy::Pinned)
                    .with_context(|| format!("read {}; remove it to learn the key anew", file.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(HostKeyPolicy::Learn),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Where an image's learnt key is kept.
    pub(crate) fn file(&self, name: &Name) -> PathBuf {
        self.directory.join(format!("{name}.pub"))
    }

    /// Keeps the key of an image's first boot. If two machines learn at once the first one counts.
    pub(crate) fn learn(&self, name: &Name, key: &HostKey) -> anyhow::Result<()> {
        let file = self.file(name);
        let keep = |directory: &Path| {
            // Two machines of an image may boot for the first time together.
            static LEARNT: AtomicU64 = AtomicU64::new(0);
            let unfinished = directory.join(format!(".{name}.{}", LEARNT.fetch_add(1, Ordering::Relaxed)));
            std::fs::write(&unfinished, format!("{key}\n"))?;
            // An empty file in its place would keep the image from starting.
            sync(&unfinished)?;
            let linked = std::fs::hard_link(&unfinished, &file);
            std::fs::remove_file(&unfinished)?;
            match linked {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
                _ => sync(directory),
            }
        };
        make_lasting_directory(&self.directory)?;
        keep(&self.directory).with_context(|| format!("write {}", file.display()))?;
        info!(image = %name, fingerprint = %key.fingerprint(), "learnt the ssh host key of the image's guests");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_learnt_once() {
        let directory = tempfile::tempdir().unwrap();
        let keys = HostKeys::new(directory.path().join("host_keys"));
        let name = Name::new("debian").unwrap();
        let key = |letter: &str| -> HostKey {
            let blob = format!("AAAAC3NzaC1lZDI1NTE5AAAAI{}", letter.repeat(43));
            format!("ssh-ed25519 {blob}").parse().unwrap()
        };
        keys.learn(&name, &key("B")).unwrap();
        keys.learn(&name, &key("C")).unwrap();
        let kept: HostKey = std::fs::read_to_string(keys.file(&name)).unwrap().trim().parse().unwrap();
        assert_eq!(kept.to_string(), key("B").to_string());
    }
}
