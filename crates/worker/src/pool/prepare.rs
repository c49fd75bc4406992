//! What is done in a guest just before it is frozen as a template.

use anyhow::Context;
use protocol::command::Name;
use ssh::Session;

use super::{guest_command, refresh, restorer};
use crate::config::Image;

/// Readies a guest for being frozen, and ends its last session.
///
/// What clones will need is put in its place, the image's `warm_up` run, and the first words with a clone are rehearsed:
/// what would fail in every clone fails here, and what they use is in the guest's memory from then on.
///
/// # Errors
/// Something failed, or took too long: which, and what it said.
pub(super) async fn prepare(session: Session, image_name: &Name, image: &Image) -> anyhow::Result<()> {
    let profile = &image.profile;
    if let Some(command) = profile.fill(&profile.prepare, &[]) {
        let put = guest_command::run_with(&session, &command, restorer::program()).await;
        put.context("run its profile's prepare command")?;
    }
    if let Some(command) = &image.warm_up {
        guest_command::run_of_image(&session, command, image.boot_timeout).await.context("run its warm_up command")?;
    }
    refresh::rehearse(&session, image_name, image).await.context("rehearse what is done in a clone")?;
    guest_command::run(&session, "sync").await.context("write the guest's files to its disk")?;
    session.close().await;
    Ok(())
}
