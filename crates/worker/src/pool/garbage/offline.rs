//! The same where no worker runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use super::{Collected, Wish, World, plan, scan, sweep};
use crate::config::Config;
use crate::pool::{Hypervisor, generations::Generations, state_dir, templates::Templates};

/// Removes what nothing will use any more. The state directory is this process's meanwhile: no worker starts with it.
///
/// # Errors
/// A worker runs, or it can't be seen what is in use.
pub(crate) async fn collect(config: &Config, wish: Wish) -> anyhow::Result<Collected> {
    let state_dir = config.pool.state_dir.clone();
    if !state_dir.is_dir() {
        return Ok(Collected::default());
    }
    let lock = state_dir::claim(&state_dir)?;
    let world = World {
        images: config.images.iter().map(|(name, image)| (name.clone(), image.template)).collect(),
        useless: useless_templates(config).await,
        ..World::default()
    };
    let collected = tokio::task::spawn_blocking(move || {
        let seen = scan::scan(&state_dir)?;
        anyhow::Ok(sweep::sweep(&state_dir, plan::plan(&seen, &world, wish.disks), wish.dry_run))
    });
    let collected = collected.await.context("collect garbage")?;
    drop(lock);
    collected
}

/// The templates that a worker would not use. None if it can't be said what it would make them of, such as without QEMU:
/// its next start finds out.
async fn useless_templates(config: &Config) -> BTreeMap<PathBuf, String> {
    let mut useless = BTreeMap::new();
    if !config.images.values().any(|image| image.template) {
        return useless;
    }
    let Ok(hypervisor) = Hypervisor::look(&config.pool).await else { return useless };
    let images = config.images.iter().map(|(name, image)| (name.clone(), Arc::new(image.clone()))).collect();
    let generations = Generations::peek(&config.pool.state_dir, &images);
    let templates = Templates::peek(&config.pool.state_dir, &config.worker.basedir, &images);
    for name in config.images.keys() {
        useless.extend(templates.useless(name, &generations, &hypervisor));
    }
    useless
}
