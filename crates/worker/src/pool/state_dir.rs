//! The state directory: where slots, disks and learnt keys are kept.

use std::path::Path;

use anyhow::Context;

/// Makes the state directory ours alone, for as long as the file lives.
pub(super) fn claim(state_dir: &Path) -> anyhow::Result<std::fs::File> {
    make_private_directory(state_dir)?;
    let path = state_dir.join("lock");
    let mut file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = std::io::Read::read_to_string(&mut file, &mut pid);
            anyhow::bail!(
                "another kvm-worker (process {}) uses {}; stop it, or give this one another pool.state_dir",
                pid.trim(),
                state_dir.display()
            );
        }
        Err(std::fs::TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock {}", path.display()));
        }
    }
    file.set_len(0)?;
    std::io::Write::write_all(&mut file, format!("{}\n", std::process::id()).as_bytes())?;
    Ok(file)
}

/// The process of the worker that the state directory is claimed by, if it is.
///
/// # Errors
/// It can't be seen.
pub(crate) fn neighbour(state_dir: &Path) -> std::io::Result<Option<u32>> {
    let mut file = match std::fs::File::open(state_dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Held only while it is looked at: a worker that starts in this moment would not get it.
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            std::io::Read::read_to_string(&mut file, &mut pid)?;
            // It is written down a moment after the lock is taken.
            Ok(Some(pid.trim().parse().unwrap_or_default()))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Makes a directory, and those above it, that is nobody else's business.
pub(super) fn make_private_directory(directory: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("make {}", directory.display()))
}

/// Writes a file that is either the old one or the new one, whatever happens.
pub(super) fn write_whole(path: &Path, contents: impl AsRef<[u8]>) -> std::io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = std::fs::File::create(&unfinished)?;
    std::io::Write::write_all(&mut file, contents.as_ref())?;
    file.sync_all()?;
    std::fs::rename(unfinished, path)
}
