//! Writes the configuration and the password, each into a file of its own that was not there before.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// Where the password goes that belongs to a configuration file: beside it, as `STEM.password`.
///
/// # Errors
/// The path names no file, or names the password's file itself.
pub(super) fn password_file(config_file: &Path) -> anyhow::Result<PathBuf> {
    let config_file = std::path::absolute(config_file)?;
    let mut name = config_file.file_stem().context("it does not name a file")?.to_owned();
    name.push(".password");
    let path = config_file.with_file_name(name);
    ensure!(path != config_file, "the password's file would have that name; choose another, such as config.toml");
    Ok(path)
}

/// Writes both files, or neither.
///
/// # Errors
/// One of them exists already or can't be written.
pub(super) fn write(config_file: &Path, config: &str, password: Option<(&Path, &str)>) -> anyhow::Result<()> {
    let mut made = Vec::new();
    let result = write_all(config_file, config, password, &mut made);
    if result.is_err() {
        for path in made {
            // What we made a moment ago and could not fill is of no use; the error that led here is the one to tell.
            let _ = std::fs::remove_file(path);
        }
    }
    result
}

fn write_all<'a>(
    config_file: &'a Path,
    config: &str,
    password: Option<(&'a Path, &str)>,
    made: &mut Vec<&'a Path>,
) -> anyhow::Result<()> {
    // Whoever gets the configuration can count on the password: it is there first.
    let files = password.map(|(path, password)| (path, 0o600, format!("{password}\n")));
    for (path, mode, content) in files.into_iter().chain([(config_file, 0o644, config.to_owned())]) {
        let mut file = create(path, mode)?;
        made.push(path);
        file.write_all(content.as_bytes())
            .and_then(|()| file.sync_all())
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Makes a file. One that exists, a link included, is left alone.
fn create(path: &Path, mode: u32) -> anyhow::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::AlreadyExists => "; import does not overwrite: move it away or choose another --output",
            _ => "",
        };
        anyhow::Error::new(error).context(format!("make {}{remedy}", path.display()))
    })
}
