//! `kvm-worker check`: everything that can be wrong before a worker starts, found without disturbing one that runs.
//!
//! Each topic has a file, which looks at the host and says what it found as [`Finding`]s. What follows from what was seen
//! is decided by functions without IO. Topics are looked at at once, and none for longer than [`WITHIN`].

mod clock;
mod command;
mod directories;
mod finding;
mod hypervisor;
mod images;
mod login;
mod ports;
mod room;

use std::path::Path;
use std::time::Duration;

use protocol::command::Name;

use crate::config::{Config, Problems};
use crate::pool;
pub(crate) use command::{check, check_images};
pub(crate) use directories::owner_beside_root;
use finding::{Finding, Group, Report};

/// How long anything may take that is looked at. What asks QEMU or the master has shorter times of its own.
const WITHIN: Duration = Duration::from_secs(60);

/// What is not to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Master {
    /// Whether the master lets this worker in is found out.
    Ask,
    /// Nothing is said to it.
    LeaveAlone,
}

/// Looks at everything that a worker with this configuration needs.
pub(crate) async fn everything(file: Option<&Path>, config: &Config, master: Master) -> Report {
    let running = pool::neighbour(&config.pool.state_dir);
    let pid = running.as_ref().ok().copied().flatten();
    let (password, credential) = login::password(config);
    let (machines, images, master, clock) = tokio::join!(
        machines(config, pid),
        all_images(config),
        login::look(config, password, pid, master),
        bounded("clock", clock::look(config)),
    );
    let mut configuration = vec![described(file, config), credential];
    configuration.extend(directories::look_at_user(config));
    let directories = {
        let config = config.clone();
        bounded_group("directories", move || directories::look(&config, &running)).await
    };
    let groups = [Group::new("configuration", configuration), directories, machines];
    let last = [Group::new("master", vec![master]), Group::new("clock", vec![clock])];
    Report(groups.into_iter().chain(images).chain(last).collect())
}

/// Looks at the files of an image, or of all.
///
/// # Errors
/// There is no such image.
pub(crate) async fn images(config: &Config, image: Option<&Name>) -> Result<Report, String> {
    match image {
        None if config.images.is_empty() => Err("the configuration has no images".to_owned()),
        None => Ok(Report(all_images(config).await)),
        Some(name) => match config.images.get(name) {
            Some(image) => Ok(Report(vec![images::look(config, name, image).await])),
            None => {
                let known: Vec<_> = config.images.keys().map(Name::as_str).collect();
                Err(format!("no image is named '{name}' in the configuration; it has {}", known.join(", ")))
            }
        },
    }
}

/// What there is to say of a configuration that can't be used.
pub(crate) fn unusable(problems: &Problems) -> Report {
    let finding = |line| Finding::failed("key", line, None);
    Report(vec![Group::new("configuration", problems.lines().into_iter().map(finding).collect())])
}

fn described(file: Option<&Path>, config: &Config) -> Finding {
    let source = file.map_or_else(|| "the environment".to_owned(), |file| file.display().to_string());
    let worker = &config.worker;
    let text = format!(
        "{source}: worker '{}' of {}, {}, {}",
        worker.name,
        worker.master,
        counted(config.images.len(), "image"),
        counted(usize::from(config.pool.slots), "slot")
    );
    Finding::ok("file", text)
}

/// What runs machines, and what they take of the host.
async fn machines(config: &Config, running: Option<u32>) -> Group {
    if config.images.is_empty() {
        let why = "the configuration has no images, so builds run on the host only";
        return Group::new("machines", vec![Finding::skipped("all", why)]);
    }
    let (ports_config, room_config) = (config.clone(), config.clone());
    let (mut findings, ports, room) = tokio::join!(
        hypervisor::look(config),
        bounded_group("ports", move || ports::look(&ports_config, running)),
        bounded_group("memory and disk", move || room::look(&room_config)),
    );
    findings.extend(ports.findings);
    findings.extend(room.findings);
    Group::new("machines", findings)
}

async fn all_images(config: &Config) -> Vec<Group> {
    let looks = config.images.iter().map(|(name, image)| images::look(config, name, image));
    // A few at a time: each starts programs.
    futures_util::StreamExt::collect(futures_util::StreamExt::buffered(futures_util::stream::iter(looks), 4)).await
}

/// Looks at files, which may lie on a file system that does not answer.
async fn bounded_group(name: &str, look: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Group {
    let looked = tokio::time::timeout(WITHIN, tokio::task::spawn_blocking(look)).await;
    let findings = match looked {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![Finding::failed(name, format!("looking at it broke down: {error}"), None)],
        Err(_) => vec![hangs(name)],
    };
    Group::new(name, findings)
}

async fn bounded(subject: &str, look: impl Future<Output = Finding>) -> Finding {
    tokio::time::timeout(WITHIN, look).await.unwrap_or_else(|_| hangs(subject))
}

fn hangs(subject: &str) -> Finding {
    let text = format!("there was no answer within {} s", WITHIN.as_secs());
    Finding::failed(subject, text, Some("look for a file system or a program that hangs".to_owned()))
}

/// `1 image`, `2 images`
fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
