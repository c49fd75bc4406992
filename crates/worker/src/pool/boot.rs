//! Brings a machine up: its disk and slot, QEMU, and the guest's first word.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use protocol::command::Name;
use ssh::{ConnectError, HostKeyPolicy, NotReady, Processor, Readiness, Session};

use super::generations::{Generations, Ground};
use super::guest_basedir::Wanted;
use super::machine::{How, LAST_WORD, Shape, boot_failure, description};
use super::raised::Raised;
use super::slots::Lease;
use super::state_dir::make_private_directory;
use super::{Hypervisor, Order, Pool, Progress, greeting};
use crate::config::Image;

impl Pool {
    /// Boots a machine for an order, in a slot that is leased for it.
    ///
    /// # Errors
    /// Why not, as a sentence that the console's last lines may follow.
    pub(super) async fn boot(
        &self,
        order: &Order,
        image: Arc<Image>,
        hypervisor: &Hypervisor,
        mut lease: Lease,
        progress: &dyn Progress,
    ) -> anyhow::Result<Raised> {
        let slot = lease.slot().clone();
        let (membership, cable) = match &order.network {
            Some(network) => {
                let (place, end) = self.0.networks.join(&order.owner.builder, order.build, network)?;
                (Some(place), Some(end))
            }
            None => (None, None),
        };
        lease.notice().doing("booting: making its disk");
        let ground = ground(hypervisor, &self.0.generations, &order.image, &image, &lease).await?;
        let (generation, host_key) = (ground.number, ground.host_key.clone());
        lease.stand_on(ground);
        let vm = run_qemu(hypervisor, &image, Shape::of(order, &image), &lease, cable).await?;
        lease.notice().process(vm.pid());
        lease.notice().doing("booting: waiting for ssh");
        progress.say(format!("slot {slot}: qemu started as process {}", vm.pid())).await;
        progress.console(&slot.console_log());
        let timeout = order.timeout.unwrap_or(image.boot_timeout);
        let answer = async {
            let awaited = Awaited { vm: &vm, port: slot.ssh_port(), processor: hypervisor.processor() };
            let session = self.answer(awaited, &order.image, &image, host_key.as_deref(), timeout).await?;
            lease.notice().doing("booting: logging in");
            Ok::<_, Unanswered>(
                greeting::log_in(session, &image, Wanted::First(&self.0.basedir), membership.as_ref()).await?,
            )
        };
        let login = match vm.boot(Box::pin(answer), timeout + LAST_WORD).await {
            Ok(login) => login,
            Err(error) => bail!(boot_failure(&error, &vm)),
        };
        let image_name = order.image.clone();
        Ok(Raised { how: How::Boot, image_name, image, mode: order.mode, generation, login, vm, lease, membership })
    }

    /// Logs in as soon as the guest lets us, and sees to it that it is the guest we know.
    pub(super) async fn answer(
        &self,
        Awaited { vm, port, processor }: Awaited<'_>,
        name: &Name,
        image: &Image,
        of_generation: Option<&str>,
        timeout: Duration,
    ) -> anyhow::Result<Session> {
        let host_keys = &self.0.host_keys;
        let host_key = host_keys.policy(name, image, of_generation)?;
        let learning = matches!(host_key, HostKeyPolicy::Learn);
        let session = greeting::reach(image, port, host_key, processor, &Readiness::within(timeout)).await;
        let session = session.map_err(|error| match (error.downcast_ref(), &image.host_key) {
            (Some(NotReady::Refused(ConnectError::HostKeyMismatch { .. })), None) if of_generation.is_none() => {
                anyhow!("{error}; remove {} to learn the key anew", host_keys.file(name).display())
            }
            _ => error,
        })?;
        if learning {
            // Its port is its own for as long as it lives: whoever took it after its end is nobody to learn from.
            vm.qmp().status().await.context("see whether the machine lives that presented a host key")?;
            host_keys.learn(name, session.host_key())?;
        }
        Ok(session)
    }
}

/// A machine whose guest is to answer.
#[derive(Clone, Copy)]
pub(super) struct Awaited<'a> {
    pub vm: &'a qemu::Vm,
    /// The port of this host that is forwarded to its ssh server.
    pub port: u16,
    pub processor: Processor,
}

/// Makes the machine's disk and returns what it stands on.
async fn ground(
    hypervisor: &Hypervisor,
    generations: &Generations,
    name: &Name,
    image: &Image,
    lease: &Lease,
) -> anyhow::Result<Ground> {
    make_private_directory(lease.slot().directory())?;
    match lease.disk() {
        Some(disk) => disk.open(&hypervisor.qemu, generations, image).await,
        None => {
            let ground = generations.current(name, image)?;
            hypervisor.qemu.create_overlay(&ground.base, &lease.slot().overlay()).await?;
            Ok(ground)
        }
    }
}

async fn run_qemu(
    hypervisor: &Hypervisor,
    image: &Image,
    shape: Shape,
    lease: &Lease,
    cable: Option<qemu::Cable>,
) -> anyhow::Result<qemu::Vm> {
    let slot = lease.slot();
    let overlay = slot.overlay();
    let disk = lease.disk().map_or(overlay.as_path(), |disk| disk.path());
    let description = description(image, shape, slot, disk, hypervisor.accelerator, qemu::Memory::Own);
    Ok(qemu::Vm::start_on(&hypervisor.qemu, &description, slot.files(), cable).await?)
}

/// Why a guest did not answer; its text is the whole chain.
pub(super) struct Unanswered(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Unanswered {
    fn from(error: E) -> Self {
        Unanswered(error.into())
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}
