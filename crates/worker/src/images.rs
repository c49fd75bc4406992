//! `kvm-worker image list` and `image gc`, of a running worker or of the files that one has left.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use protocol::command::Name;

use crate::cli::{ImageGc, ImageList};
use crate::config::{Config, Image};
use crate::control::{Answer, Garbage, GarbageLine, ImageLine, ImageTable, Request};
use crate::exit;
use crate::pool::{self, Collected, Kind, Piece, Wish};

/// A way to ask the worker that runs.
type Ask<'a> = &'a dyn Fn(&Request) -> anyhow::Result<Answer>;

/// Lists the images.
pub(crate) fn list(config: &Config, list: &ImageList, ask: Ask<'_>) -> ExitCode {
    let running = match is_running(config) {
        Ok(running) => running,
        Err(error) => return exit::failed(&error),
    };
    let lines = match running {
        false => config.images.iter().map(|(name, image)| line(&config.pool.state_dir, name, image)).collect(),
        true => match ask(&Request::Images) {
            Ok(Answer::Images(lines)) => lines,
            Ok(answer) => return exit::failed(&anyhow::anyhow!("the worker answers something else: {answer}")),
            Err(error) => return exit::failed(&error),
        },
    };
    match list.json {
        true => print(&format!("{:#}\n", serde_json::json!({ "running": running, "images": lines }))),
        false => print(&ImageTable(&lines).to_string()),
    }
    if !running && !list.json {
        eprintln!("no worker runs: this is what the files say");
    }
    exit::code(exit::DONE)
}

/// Removes what nothing uses.
pub(crate) fn gc(config: &Config, gc: &ImageGc, ask: Ask<'_>) -> ExitCode {
    let &ImageGc { dry_run, disks, .. } = gc;
    let collected = is_running(config).and_then(|running| match running {
        true => match ask(&Request::Gc { dry_run, disks })? {
            Answer::Garbage(garbage) => Ok(garbage),
            answer => anyhow::bail!("the worker answers something else: {answer}"),
        },
        false => {
            let runtime = tokio::runtime::Runtime::new()?;
            let collected = runtime.block_on(pool::collect_offline(config, Wish { dry_run, disks }))?;
            Ok(garbage(dry_run, collected))
        }
    });
    match collected {
        Ok(garbage) => {
            print(&garbage.to_string());
            exit::code(if garbage.failed.is_empty() { exit::DONE } else { exit::FAILED })
        }
        Err(error) => exit::failed(&error),
    }
}

/// What is told of what was collected.
pub(crate) fn garbage(dry_run: bool, collected: Collected) -> Garbage {
    let lines =
        |pieces: Vec<(Piece, String)>| pieces.into_iter().map(|(piece, why)| garbage_line(&piece, why)).collect();
    let Collected { removed, failed, kept } = collected;
    Garbage { dry_run, removed: lines(removed), failed: lines(failed), kept: lines(kept) }
}

fn garbage_line(piece: &Piece, why: String) -> GarbageLine {
    let Piece { kind, image, path, bytes } = piece;
    let what = match kind {
        Kind::Unfinished => format!("something unfinished of image '{image}'"),
        Kind::Generation(number) => format!("generation {number} of image '{image}'"),
        Kind::Template(name) => format!("template {} of image '{image}'", name.get(..12).unwrap_or(name)),
        Kind::Disk(vm) => format!("persistent disk '{vm}' of image '{image}'"),
        Kind::HostKey => format!("host key of image '{image}'"),
    };
    GarbageLine { what, path: path.display().to_string(), bytes: *bytes, why }
}

/// What the files say of an image.
pub(crate) fn line(state_dir: &Path, name: &Name, image: &Image) -> ImageLine {
    let seen = pool::look_at_generations(state_dir, name);
    ImageLine {
        image: name.to_string(),
        disk: image.disk.display().to_string(),
        bytes: std::fs::metadata(&image.disk).ok().map(|disk| disk.blocks() * 512),
        newest: seen.generations.last().map_or(1, |newest| newest.number),
        generation: seen.current.ok(),
        running: None,
    }
}

/// Whether a worker runs with the state directory. Who may not look there may still be allowed to ask, and hears then.
fn is_running(config: &Config) -> anyhow::Result<bool> {
    let state_dir = &config.pool.state_dir;
    match pool::neighbour(state_dir) {
        Ok(pid) => Ok(pid.is_some()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(true),
        Err(error) => Err(error).with_context(|| format!("see whether a worker runs with {}", state_dir.display())),
    }
}

fn print(text: &str) {
    // Who reads may have seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
