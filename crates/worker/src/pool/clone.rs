//! Brings a machine up by restoring a template, which takes a fraction of what booting takes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use protocol::command::Mode;
use ssh::{HostKey, HostKeyPolicy, Readiness};
use tokio::time::Instant;
use tracing::info;

use super::boot::Unanswered;
use super::generations::Ground;
use super::machine::{How, LAST_WORD, Login, Shape, boot_failure, description, sentence};
use super::raised::Raised;
use super::slots::Lease;
use super::state_dir::make_private_directory;
use super::templates::{Offer, Template};
use super::{Hypervisor, Order, Pool, Progress, blame, greeting, refresh, slots};
use crate::config::Image;

/// The part of the time for a boot that a clone gets to answer, and the least it gets.
const PART: u32 = 3;
const LEAST: Duration = Duration::from_secs(10);

/// A machine that is not a clone, with what it can be booted in instead.
#[derive(Debug)]
pub(super) struct NotCloned {
    /// The slot, which is clean again.
    pub lease: Lease,
    /// A sentence that the console's last lines may follow.
    pub why: String,
}

/// What a failure is to be put down to.
enum Fault {
    /// The template, of which no more clones should be made.
    Template(anyhow::Error),
    /// Something else that may be over the next time.
    Host(anyhow::Error),
}

impl Pool {
    /// What there is to make a machine for an order of, if its image has templates.
    pub(super) fn offer(&self, order: &Order, image: &Arc<Image>, hypervisor: &Hypervisor) -> Option<Offer> {
        if !image.template {
            return None;
        }
        match unlike_template(order, image) {
            Some(why) => Some(Offer::Boot(why)),
            None => self.0.templates.offer(&order.image, image, &self.0.generations, hypervisor),
        }
    }

    /// Makes a machine for an order, in a slot that is leased for it: in the fastest way that leads to one.
    ///
    /// # Errors
    /// Why there is none, as a sentence that the console's last lines may follow.
    pub(super) async fn raise(
        &self,
        order: &Order,
        image: Arc<Image>,
        hypervisor: &Hypervisor,
        mut lease: Lease,
        progress: &dyn Progress,
    ) -> anyhow::Result<Raised> {
        let slot = lease.slot().number();
        match self.offer(order, &image, hypervisor) {
            None => {}
            Some(Offer::Boot(why)) => progress.say(format!("slot {slot}: booting, as {why}")).await,
            Some(Offer::Clone(template, ground)) => {
                let timeout = order.timeout.unwrap_or(image.boot_timeout);
                let cloning = self.clone_of(template, ground, &image, hypervisor, lease, timeout, progress);
                match Box::pin(cloning).await {
                    Ok(raised) => return Ok(raised),
                    Err(NotCloned { lease: returned, why }) => {
                        progress.say(format!("slot {slot}: booting, as its clone failed: {why}")).await;
                        lease = returned;
                    }
                }
            }
        }
        Box::pin(self.boot(order, image, hypervisor, lease, progress)).await
    }

    /// Restores a machine from a template, in a slot that is leased for it and has nothing in it. `timeout` is what a boot
    /// would get; a clone gets a part of it, so that one that does not answer leaves time to boot.
    ///
    /// # Errors
    /// The template is not used any more if it is to blame.
    #[expect(clippy::too_many_arguments, reason = "all of it is different, and needed")]
    pub(super) async fn clone_of(
        &self,
        template: Arc<Template>,
        ground: Ground,
        image: &Arc<Image>,
        hypervisor: &Hypervisor,
        mut lease: Lease,
        timeout: Duration,
        progress: &dyn Progress,
    ) -> Result<Raised, NotCloned> {
        let (image_name, generation) = (template.image().clone(), template.manifest.generation);
        lease.stand_on(ground.below(Arc::clone(&template)));
        match self.restore(&template, image, hypervisor, &lease, timeout, progress).await {
            Ok((vm, login)) => {
                self.0.templates.worked(&template);
                let (mode, image) = (Mode::Fresh, Arc::clone(image));
                Ok(Raised { how: How::Clone, image_name, image, mode, generation, login, vm, lease, membership: None })
            }
            Err(fault) => {
                let why = match fault {
                    Fault::Template(error) => {
                        let why = format!("{error:#}");
                        self.0.templates.failed(&template, &why);
                        why
                    }
                    Fault::Host(error) => {
                        let why = format!("{error:#}");
                        tracing::warn!("a clone failed, for which its template is not to blame: {}", sentence(&why));
                        why
                    }
                };
                // What it is booted in instead must not have anything of it, its QEMU least of all.
                match slots::clean(lease.slot()).await {
                    Ok(()) => Err(NotCloned { lease, why }),
                    Err(error) => Err(NotCloned { lease, why: format!("{why}; clean its slot: {error:#}") }),
                }
            }
        }
    }

    async fn restore(
        &self,
        template: &Arc<Template>,
        image: &Image,
        hypervisor: &Hypervisor,
        lease: &Lease,
        timeout: Duration,
        progress: &dyn Progress,
    ) -> Result<(qemu::Vm, Login), Fault> {
        let begun = Instant::now();
        let slot = lease.slot();
        let disk = slot.overlay();
        lease.notice().doing("cloning: restoring it");
        make_private_directory(slot.directory()).map_err(Fault::Host)?;
        // Some 200 KiB. A thread of its own could still be at it when this future is dropped and the slot is being cleaned.
        template.overlay(&disk).map_err(files_fault)?;
        let state = template.state().map_err(files_fault)?;
        let memory = qemu::Memory::Private { file: template.memory() };
        let machine = description(image, Shape::fresh(image), slot, &disk, hypervisor.accelerator, memory);
        let host_key = template.manifest.host_key.parse::<HostKey>();
        let host_key =
            host_key.context("understand the host key in the template's manifest").map_err(Fault::Template)?;
        let starting = Instant::now();
        let vm = qemu::Vm::restore(&hypervisor.qemu, &machine, slot.files(), state).await.map_err(restore_fault)?;
        let (restored, seconds) = (starting.elapsed(), begun.elapsed().as_secs_f64());
        let generation = template.manifest.generation;
        lease.notice().process(vm.pid());
        lease.notice().doing("cloning: waiting for ssh");
        progress
            .say(format!(
                "slot {slot}: cloned from the template of generation {generation} in {seconds:.2} s; qemu is process {}",
                vm.pid()
            ))
            .await;
        progress.console(&slot.console_log());
        let within = time_for(timeout);
        // One that does not find its memory as it was may start over. It would come up at last, but not as a clone.
        let reset = vm.qmp().reset();
        let answer = async {
            let port = slot.ssh_port();
            let policy = HostKeyPolicy::Pinned(host_key);
            // It was ready already: whether commands run in it shows in the first one.
            let ready = Readiness::session_within(within);
            let session = greeting::reach(image, port, policy, hypervisor.processor(), &ready).await?;
            let reached = starting.elapsed();
            lease.notice().doing("cloning: making it look new");
            let login = refresh::refresh(session, template.image(), image, template.manifest.basedir.clone()).await?;
            Ok::<_, Unanswered>((login, reached))
        };
        let answer = async {
            tokio::select! {
                answer = answer => answer,
                () = reset => Err(Unanswered::from(anyhow::anyhow!("the guest restarted instead of going on"))),
            }
        };
        // The image's own command may take as long as a boot.
        let hook = if image.post_restore.is_some() { image.boot_timeout } else { Duration::ZERO };
        match vm.boot(Box::pin(answer), within + hook + LAST_WORD).await {
            Ok((login, reached)) => {
                info!(
                    qemu_ms = restored.as_millis(),
                    login_ms = (reached - restored).as_millis(),
                    refresh_ms = (starting.elapsed() - reached).as_millis(),
                    "vm cloned"
                );
                Ok((vm, login))
            }
            Err(error) => {
                let why = anyhow::anyhow!(boot_failure(&error, &vm));
                // Who gave it less time than the image has learns nothing of the template.
                let hurried = matches!(error, qemu::BootError::Probe(_)) && within < time_for(image.boot_timeout);
                let hosts = hurried || blame::boot_is_hosts(&error);
                Err(if hosts { Fault::Host(why) } else { Fault::Template(why) })
            }
        }
    }
}

/// How long a clone may take to answer that has so much time in all.
fn time_for(timeout: Duration) -> Duration {
    timeout.min(LEAST.max(timeout / PART))
}

/// Why a machine for an order can't be a clone, if it can't.
fn unlike_template(order: &Order, image: &Image) -> Option<String> {
    let shape = Shape::of(order, image);
    if order.mode == Mode::Persistent {
        return Some("its disk persists, and a template has its own".to_owned());
    }
    if order.network.is_some() {
        return Some("it is on a private network, and its template is on none".to_owned());
    }
    let Shape { cpus, memory_mib, .. } = shape;
    (shape != Shape::fresh(image)).then(|| {
        format!(
            "it is to have {cpus} cpus and {memory_mib} MiB, and its template has {} and {}",
            image.cpus, image.memory_mib
        )
    })
}

/// Whom to blame for files that could not be opened or made.
fn files_fault(error: anyhow::Error) -> Fault {
    let missing = error.downcast_ref::<std::io::Error>().is_some_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied)
    });
    if missing { Fault::Template(error) } else { Fault::Host(error) }
}

/// Whom to blame for a QEMU that did not restore its guest.
fn restore_fault(error: qemu::RestoreError) -> Fault {
    use qemu::RestoreError;
    let hosts = match &error {
        RestoreError::Start(error) => blame::start_is_hosts(error),
        RestoreError::Exited(exit) => blame::exit_is_hosts(exit),
        RestoreError::State(_) => true,
        _ => false,
    };
    if hosts { Fault::Host(error.into()) } else { Fault::Template(error.into()) }
}

#[cfg(test)]
mod tests {
    use protocol::command::Name;

    use super::*;
    use crate::pool::Owner;

    #[test]
    fn a_machine_that_is_not_like_its_template_boots_and_says_why() {
        let config = "[worker]\nname = \"w\"\nmaster = \"pb://h\"\npassword_file = \"/p\"\nbasedir = \"/b\"\n\
                      [images.i]\ndisk = \"/d\"\nuser = \"u\"\nkey = \"/k\"\ntemplate = true\ncpus = 2\nmemory_mib = 512\n";
        let file = tempfile::NamedTempFile::new().expect("made");
        std::fs::write(&file, config).expect("written");
        let config = crate::config::Config::load(Some(file.path()), &Default::default()).expect("it is right");
        let image = &config.images[&Name::new("i").expect("a name")];
        let order = Order {
            owner: Owner { builder: "b".to_owned(), vm: Name::default_vm() },
            build: None,
            bind: false,
            image: Name::new("i").expect("a name"),
            mode: Mode::Fresh,
            cpus: None,
            memory_mib: None,
            timeout: None,
            ttl: None,
            network: None,
        };
        let check = |change: fn(&mut Order), expected: Option<&str>| {
            let mut order = order.clone();
            change(&mut order);
            assert_eq!(unlike_template(&order, image).as_deref(), expected);
        };
        check(|_| {}, None);
        check(|order| order.cpus = Some(2), None);
        check(|order| order.cpus = Some(1), Some("it is to have 1 cpus and 512 MiB, and its template has 2 and 512"));
        check(
            |order| order.memory_mib = Some(1024),
            Some("it is to have 2 cpus and 1024 MiB, and its template has 2 and 512"),
        );
        check(|order| order.mode = Mode::Persistent, Some("its disk persists, and a template has its own"));
        check(
            |order| order.network = Name::new("net"),
            Some("it is on a private network, and its template is on none"),
        );
    }
}
