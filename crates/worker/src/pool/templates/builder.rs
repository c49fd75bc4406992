//! Makes templates: one at a time, in a slot of its own, so that no build waits for it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use protocol::command::Name;
use qemu::{BootError, DiskError, Exit, FreezeError, StartError};
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument, error_span, info, warn};

use super::inputs::Inputs;
use super::shelf::Sight;
use super::template::{self, DISK, Frozen, MEMORY, STATE, Template};
use super::{Kept, jitter};
use crate::config::Image;
use crate::pool::board::{Notice, Occupant, Shown, SlotState};
use crate::pool::boot::{Awaited, Unanswered};
use crate::pool::budget::{Need, Promise};
use crate::pool::generations::Ground;
use crate::pool::guest_basedir::{GuestBasedir, Wanted};
use crate::pool::machine::{LAST_WORD, Shape, boot_failure, description};
use crate::pool::published::Unfinished;
use crate::pool::slot::Slot;
use crate::pool::slots::Lack;
use crate::pool::state_dir::make_private_directory;
use crate::pool::{Hypervisor, Pool, blame, greeting, prepare, sentence, slots};

/// How long a guest that has booted may take to be readied for being frozen, beside its `warm_up`.
const PREPARING: Duration = Duration::from_secs(300);

/// How long warm machines may take to give up their memory. They end within some 20 ms.
const GIVING_WAY: Duration = Duration::from_secs(5);

/// How long freezing may take. It is some 30 ms, unless QEMU is busy with a slow disk.
const FREEZING: Duration = Duration::from_secs(60);

/// What a template's disk, state and manifest may take beside its memory, in MiB.
const MARGIN_MIB: u32 = 256;

/// Why there is no template.
enum Failure {
    /// Something is wrong with what it is made of.
    Broken(anyhow::Error),
    /// The host ended it, for want of something that may be there the next time.
    Hampered(String),
    /// The host has no room for it.
    NoRoom(String),
    /// What it is made of changed meanwhile, or the worker stops.
    Dropped(&'static str),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        if error.chain().any(is_full) {
            Failure::NoRoom(format!("{error:#}"))
        } else if error.chain().any(is_hosts) {
            Failure::Hampered(format!("{error:#}"))
        } else {
            Failure::Broken(error)
        }
    }
}

impl Failure {
    /// That the slot where templates are made can't be used, whatever the reason.
    fn of_slot(error: &anyhow::Error) -> Self {
        Failure::Hampered(format!("{error:#}"))
    }
}

/// Whether an error is that the disk is full.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let full = |error: &io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    error.downcast_ref().is_some_and(full) || matches!(error.downcast_ref(), Some(DiskError::Full { .. }))
}

/// Whether an error is the host's fault.
fn is_hosts(error: &(dyn std::error::Error + 'static)) -> bool {
    match (error.downcast_ref(), error.downcast_ref()) {
        (Some(StartError::Exited(exit)), _) | (_, Some(FreezeError::Exited(exit))) => exit_is_hosts(exit),
        (Some(error), _) => blame::start_is_hosts(error),
        _ => false,
    }
}

/// Whether the host ended the QEMU of a template in the making. Its memory is in a file: one that can't grow, as the disk is
/// full, is a SIGBUS.
fn exit_is_hosts(exit: &Exit) -> bool {
    exit.status == process::ExitStatus::Signal(7) || blame::exit_is_hosts(exit)
}

/// Makes what templates are missing, until the pool is closed.
pub(super) async fn keep(pool: Pool) {
    let templates = &pool.0.templates;
    loop {
        let later = pool.make_missing_once().await;
        let waiting = async {
            match later {
                Some(later) => tokio::time::sleep_until(later).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = templates.stop.cancelled() => return,
            () = templates.wanted.notified() => {}
            () = waiting => {}
        }
    }
}

impl Pool {
    /// Makes the templates that are missing now. Returns when one of those that failed may be tried again.
    async fn make_missing_once(&self) -> Option<Instant> {
        let hypervisor = self.0.hypervisor.get()?;
        let mut next = None;
        for name in &self.0.templates.names() {
            loop {
                if self.0.templates.stop.is_cancelled() {
                    return None;
                }
                // It may have none any more.
                let Some((kept, image)) = self.0.templates.kept(name) else { break };
                let looked = self.0.templates.look(name, &kept, &image, &self.0.generations, hypervisor);
                let (sight, ground, inputs) = match looked {
                    Ok(looked) => looked,
                    Err(error) => {
                        warn!(image = %name, "there is no template: {error:#}");
                        break;
                    }
                };
                match sight {
                    Sight::Absent => {
                        let span = error_span!("template", image = %name, key = %inputs.key());
                        Box::pin(self.make_once(name, &kept, &image, hypervisor, ground, inputs))
                            .instrument(span)
                            .await;
                    }
                    Sight::Later(later, _) => {
                        next = Some(next.map_or(later, |next: Instant| next.min(later)));
                        break;
                    }
                    Sight::Ready(_) | Sight::Building(_) | Sight::LeftAlone(_) => break,
                }
            }
        }
        next
    }

    /// Makes one, and notes what came of it.
    async fn make_once(
        &self,
        name: &Name,
        kept: &Kept,
        image: &Arc<Image>,
        hypervisor: &Hypervisor,
        ground: Ground,
        inputs: Inputs,
    ) {
        let templates = &self.0.templates;
        let (key, generation) = (inputs.key(), ground.number);
        kept.shelf().begin(key.clone(), Instant::now());
        templates.tell();
        let made = self.make(name, kept, image, hypervisor, ground, inputs).await;
        let now = Instant::now();
        match made {
            Ok(template) => {
                let manifest = &template.manifest;
                info!(generation, seconds = manifest.took, memory_mib = manifest.memory_used >> 20, "template made");
                kept.shelf().built(key, Arc::new(template));
                if kept.image().is_none() {
                    kept.retire(name);
                }
            }
            Err(Failure::Broken(error)) => {
                let why = format!("{error:#}");
                warn!("making a template failed: {}", sentence(&why));
                let failing = kept.shelf().failed(key, why, now, jitter());
                templates.say_what_follows(name, failing);
            }
            // It may be so for long, and is tried often.
            Err(Failure::NoRoom(why)) => {
                if kept.shelf().postponed(key, why.clone(), now) {
                    warn!("a template is not made now: {}", sentence(&why));
                }
            }
            Err(Failure::Hampered(why)) => {
                if kept.shelf().hampered(key, why.clone(), now) {
                    warn!("a template could not be made now, which the host is to blame for: {}", sentence(&why));
                }
            }
            Err(Failure::Dropped(why)) => {
                info!("making a template was given up: {why}");
                kept.shelf().dropped();
            }
        }
        templates.tell();
    }

    async fn make(
        &self,
        name: &Name,
        kept: &Kept,
        image: &Arc<Image>,
        hypervisor: &Hypervisor,
        ground: Ground,
        inputs: Inputs,
    ) -> Result<Template, Failure> {
        let templates = &self.0.templates;
        let begun = Instant::now();
        // Nobody adds a slot there before it is clean again.
        let _place = templates.place.lock().await;
        let slot = self.slot_numbered(self.0.slots.census().beyond);
        let parent = templates.parent(name);
        let cleaned = slots::clean(&slot).await.with_context(|| format!("clean slot {slot}"));
        cleaned.and_then(|()| slots::port_is_free(slot.ssh_port())).map_err(|error| Failure::of_slot(&error))?;
        let unfinished = Unfinished::begin(&parent)?;
        let promise = self.room(image, &unfinished.path().join(MEMORY)).await?;
        let shown = self.show(slot.number(), name, ground.number);
        info!(generation = ground.number, "making a template");
        let within = image.boot_timeout * 2 + PREPARING + FREEZING;
        let freezing = Box::pin(self.freeze(name, image, hypervisor, &slot, &ground, unfinished.path(), &shown.0));
        let frozen = tokio::select! {
            biased;
            () = templates.stop.cancelled() => Err(Failure::Dropped("the worker is stopping")),
            lack = self.lacking() => Err(Failure::NoRoom(lack.to_owned())),
            () = self.way_wanted() => Err(Failure::Dropped("slots are added where it was being made")),
            () = self.superseded(name, kept, hypervisor, &inputs) => Err(Failure::Dropped("its image was changed")),
            frozen = tokio::time::timeout(within, freezing) => {
                frozen.unwrap_or_else(|_| Err(anyhow!("it was not made within {} s", within.as_secs()).into()))
            }
        };
        // Whatever came of it, QEMU has gone or is on its way.
        let cleaned = slots::clean(&slot).await.with_context(|| format!("clean slot {slot}"));
        let (host_key, basedir) = match frozen {
            Ok(told) => told,
            Err(failure) => {
                unfinished.discard().await;
                return Err(failure);
            }
        };
        cleaned.map_err(|error| Failure::of_slot(&error))?;
        drop((promise, shown));
        let generation = ground.number;
        let frozen = Frozen {
            inputs: inputs.clone(),
            generation,
            took: begun.elapsed().as_secs_f64(),
            host_key,
            basedir,
            memory_mode: hypervisor.qemu.features().memory_mode(),
        };
        let place = parent.clone();
        if !self.still_holds(name, kept, hypervisor, &inputs) {
            unfinished.discard().await;
            return Err(Failure::Dropped("what it is made of changed meanwhile"));
        }
        let (directory, manifest) =
            tokio::task::spawn_blocking(move || template::publish(unfinished, &place, frozen)).await??;
        Ok(Template::open(name, &parent, directory, manifest, ground, &hypervisor.qemu).await?)
    }

    /// Lets people see what goes on in the slot.
    fn show(&self, slot: u16, image: &Name, generation: u32) -> Shown {
        let notice = self.0.slots.board().let_in(slot);
        notice.occupied_by(Occupant { generation: Some(generation), ..Occupant::of_nobody(image) });
        notice.is(SlotState::Template);
        Shown(notice)
    }

    /// Waits until the first of the builds that wait for a machine lacks what the template has, and says what.
    async fn lacking(&self) -> &'static str {
        let mut census = self.0.slots.changes();
        loop {
            let lack = census.borrow_and_update().lack;
            if let Some(lack) = self.lacks_more(&lack) {
                return lack;
            }
            if census.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// What it is beyond what warm machines give up for it.
    fn lacks_more(&self, lack: &Lack) -> Option<&'static str> {
        lacking(lack, self.0.warm.yielding(self.slots()).1)
    }

    /// Waits until somebody wants the place where templates are made.
    async fn way_wanted(&self) {
        let _ = self.0.templates.way_wanted.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// Waits until an image is configured so that its template would be made of something else.
    async fn superseded(&self, name: &Name, kept: &Kept, hypervisor: &Hypervisor, inputs: &Inputs) {
        let mut images = kept.image.subscribe();
        while self.still_holds(name, kept, hypervisor, inputs) && images.changed().await.is_ok() {}
    }

    /// Whether an image's template would be made of these inputs now.
    fn still_holds(&self, name: &Name, kept: &Kept, hypervisor: &Hypervisor, inputs: &Inputs) -> bool {
        let now = kept.image().map(|image| self.0.templates.inputs(name, &image, &self.0.generations, hypervisor));
        matches!(now, Some(Ok((_, now))) if now == *inputs)
    }

    /// Takes what making a template takes of the host. It does not wait for what builds have, nor take what one waits for, so
    /// that they go first. But warm machines give up their memory for it: there are to be some of its image, too.
    async fn room(&self, image: &Image, memory: &Path) -> Result<Promise, Failure> {
        // All of the memory may come to be in the file.
        let need = Need::new(image.memory_mib, Some(image.memory_mib.saturating_add(MARGIN_MIB)));
        if let Some(excess) = self.0.budget.never(need) {
            return Err(Failure::NoRoom(excess.to_string()));
        }
        if let Some(lack) = self.lacks_more(&self.0.slots.census().lack) {
            return Err(Failure::NoRoom(lack.to_owned()));
        }
        if let Err(shortage) = self.0.budget.has_disk_for(need) {
            return Err(Failure::NoRoom(format!("it waits for {shortage}")));
        }
        let promise = || self.0.budget.promise(need, memory);
        let mut shortage = match promise() {
            Ok(promise) => return Ok(promise),
            Err(shortage) => shortage,
        };
        let left = self.0.budget.memory_left_mib().unwrap_or(0).saturating_add(self.0.warm.yielding(self.slots()).1);
        if !shortage.is_of_disk() && need.memory_mib() <= left {
            let mut returned = self.0.budget.returned();
            let _giving_way = self.0.warm.give_way(need);
            let until = Instant::now() + GIVING_WAY;
            while !self.0.templates.stop.is_cancelled() && timeout_at(until, returned.changed()).await.is_ok() {
                match promise() {
                    Ok(promise) => return Ok(promise),
                    Err(still) => shortage = still,
                }
            }
        }
        Err(Failure::NoRoom(format!("it waits for {shortage}")))
    }

    /// Boots a machine whose files are in a directory, readies it and freezes it. Returns its guest's ssh key, and what the worker's base directory
    /// is called there.
    #[expect(clippy::too_many_arguments, reason = "all of it is different, and needed")]
    async fn freeze(
        &self,
        name: &Name,
        image: &Arc<Image>,
        hypervisor: &Hypervisor,
        slot: &Slot,
        ground: &Ground,
        directory: &Path,
        notice: &Notice,
    ) -> Result<(String, GuestBasedir), Failure> {
        notice.doing("booting: making its disk");
        make_private_directory(slot.directory())?;
        let disk = directory.join(DISK);
        hypervisor.qemu.create_overlay(&ground.base, &disk).await?;
        let memory = qemu::Memory::Shared { file: directory.join(MEMORY) };
        let machine = description(image, Shape::fresh(image), slot, &disk, hypervisor.accelerator, memory);
        let vm = qemu::Vm::start(&hypervisor.qemu, &machine, slot.files()).await?;
        notice.process(vm.pid());
        notice.doing("booting: waiting for ssh");
        let timeout = image.boot_timeout;
        let readied = async {
            let awaited = Awaited { vm: &vm, port: slot.ssh_port(), processor: hypervisor.processor() };
            let session = self.answer(awaited, name, image, ground.host_key.as_deref(), timeout).await?;
            notice.doing("warming up");
            let host_key = session.host_key().to_string();
            // Sets its clock, which the warm-up may look at.
            let login = greeting::log_in(session, image, Wanted::First(&self.0.basedir), None).await?;
            let basedir = login.basedir;
            let ready = prepare::prepare(login.session, name, image);
            ready.await.context("ready the guest for being frozen")?;
            Ok::<_, Unanswered>((host_key, basedir))
        };
        let within = timeout * 2 + LAST_WORD + PREPARING;
        let told = match vm.boot(Box::pin(readied), within).await {
            Ok(told) => told,
            Err(error) => {
                let why = boot_failure(&error, &vm);
                return Err(match error {
                    // The disk is full, most often.
                    BootError::Halted(halt) if halt.is_of_disk() => Failure::NoRoom(why),
                    BootError::Exited(exit) if exit_is_hosts(&exit) => Failure::Hampered(why),
                    _ => Failure::Broken(anyhow!(why)),
                });
            }
        };
        notice.doing("freezing");
        let path = directory.join(STATE);
        let state = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let state = state.with_context(|| format!("make {}", path.display()))?;
        vm.freeze(state, FREEZING).await.context("freeze the machine")?;
        Ok(told)
    }
}

/// What the first of the builds that wait for a machine lacks of what a template takes, if anything, when so much memory (MiB)
/// is on its way to it.
fn lacking(lack: &Lack, coming_mib: u64) -> Option<&'static str> {
    if lack.memory_mib > coming_mib {
        Some("a build waits for memory, and goes first")
    } else {
        lack.disk.then_some("a build waits for disk space, and goes first")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(error: anyhow::Error) -> &'static str {
        match Failure::from(error.context("make a template")) {
            Failure::Broken(_) => "broken",
            Failure::Hampered(_) => "hampered",
            Failure::NoRoom(_) => "no room",
            Failure::Dropped(_) => "dropped",
        }
    }

    #[test]
    fn what_the_host_lacks_is_no_fault_of_what_a_template_is_made_of() {
        let check = |error: anyhow::Error, expected: &str| assert_eq!(failure(error), expected);
        check(io::Error::from(ErrorKind::StorageFull).into(), "no room");
        check(io::Error::from(ErrorKind::QuotaExceeded).into(), "no room");
        check(DiskError::Full { file: "/d".into() }.into(), "no room");
        check(FreezeError::State(io::Error::from(ErrorKind::StorageFull)).into(), "no room");
        check(io::Error::from(ErrorKind::NotFound).into(), "broken");
        check(anyhow!("no answer"), "broken");
        let file = |kind: ErrorKind| StartError::File { path: "/f".into(), source: kind.into() };
        check(file(ErrorKind::StorageFull).into(), "no room");
        check(file(ErrorKind::PermissionDenied).into(), "hampered");
        check(StartError::Silent { after: Duration::from_secs(30) }.into(), "broken");
    }

    #[test]
    fn what_ends_qemu_tells_whose_fault_it_is() {
        let check = |status: process::ExitStatus, stderr: &str, expected: &str| {
            let exit = || Exit { status, stderr: stderr.to_owned(), cause: None, lived: Duration::ZERO };
            assert_eq!(failure(StartError::Exited(exit()).into()), expected, "{status:?}");
            assert_eq!(failure(FreezeError::Exited(exit()).into()), expected, "{status:?}");
        };
        check(process::ExitStatus::Signal(9), "", "hampered");
        check(process::ExitStatus::Signal(7), "", "hampered");
        check(process::ExitStatus::Signal(11), "", "broken");
        check(process::ExitStatus::Code(1), "qemu: Could not set up host forwarding rule", "hampered");
        check(process::ExitStatus::Code(1), "qemu: no such device", "broken");
    }

    #[test]
    fn a_build_that_lacks_what_a_template_takes_goes_first() {
        let check = |lack: Lack, coming_mib: u64, expected| {
            assert_eq!(lacking(&lack, coming_mib).is_some(), expected, "{lack:?}");
        };
        check(Lack::default(), 0, false);
        check(Lack { slot: true, ..Lack::default() }, 0, false);
        check(Lack { memory_mib: 1, ..Lack::default() }, 0, true);
        check(Lack { memory_mib: 640, ..Lack::default() }, 640, false);
        check(Lack { memory_mib: 641, ..Lack::default() }, 640, true);
        check(Lack { disk: true, ..Lack::default() }, 640, true);
    }
}
