//! Makes a machine's disk the next generation of an image.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protocol::command::{Mode, Name};
use qemu::{Ended, Rung};
use tracing::Instrument;

use super::generations::{Published, Saver};
use super::machine::Machine;
use super::slots::Lease;
use super::{Generation, Owner, Pool, Progress, Stopped, VmError};

/// A machine that was shut down, and what its disk has become.
#[derive(Debug)]
pub(crate) struct Saved {
    pub stopped: Stopped,
    pub published: Published,
}

impl Pool {
    /// Shuts a machine down and publishes its disk as the next generation of an image. Whatever comes of that, the machine is
    /// stopped, and the builder's no more. Dropping the future publishes nothing; the machine is shut down even so.
    ///
    /// # Errors
    /// There is no such image; the machine is not there; it did not shut down cleanly; its disk can't be copied.
    pub(crate) async fn save(
        &self,
        owner: &Owner,
        image: &Name,
        patience: Option<Duration>,
        progress: &dyn Progress,
    ) -> Result<Saved, VmError> {
        let machine = self.find(owner)?;
        let hypervisor = match self.hypervisor_for(image) {
            Ok(hypervisor) => hypervisor,
            Err(error) => {
                drop(self.stop(owner, None).await);
                return Err(error);
            }
        };
        let failed = |why: String| VmError::SaveFailed { vm: owner.vm.clone(), image: image.clone(), why };
        self.machines().take(owner);
        let host_key = machine.login().session.host_key().to_string();
        let patience = patience.unwrap_or_else(|| self.config().shutdown_timeout);
        let (ended, lease) = self.shut_down_for_disk(&machine, patience).await?;
        if let Some(why) = unclean(&ended) {
            return Err(failed(why));
        }
        let Some(lease) = lease else { return Err(failed("it ended meanwhile".to_owned())) };
        let stopped = Stopped::from(ended);
        progress
            .say(format!("vm '{}' is shut down ({}, {:.1} s)", owner.vm, stopped.how, stopped.after.as_secs_f64()))
            .await;
        let Some(ground) = lease.ground() else {
            return Err(failed("it is not known what its disk stands on".to_owned()));
        };
        let disk: PathBuf = match lease.disk() {
            Some(disk) => disk.path().to_owned(),
            None => lease.slot().overlay(),
        };
        progress.say(format!("saving its disk as the next generation of image '{image}'")).await;
        lease.notice().doing(format!("saving its disk as the next generation of image '{image}'"));
        let saver = Saver { builder: &owner.builder, build: machine.facts.build, host_key };
        let waiting = self.config().acquire_timeout;
        let published = self.0.generations.save(&hypervisor.qemu, image, &disk, ground, saver, waiting).await;
        let published = published.map_err(|error| failed(format!("{error:#}")))?;
        self.0.templates.look_again();
        Ok(Saved { stopped, published })
    }

    /// Shuts a machine down as one whose disk is kept. What it occupied is not given back with its end but with the lease.
    async fn shut_down_for_disk(
        &self,
        machine: &Arc<Machine>,
        patience: Duration,
    ) -> Result<(Ended, Option<Lease>), VmError> {
        let vm = machine.facts.owner.vm.clone();
        let machine = Arc::clone(machine);
        // In a task, so that it goes on without whoever asked.
        let stopping = self.0.tasks.spawn(
            async move {
                let lease = machine.take_lease();
                let ended = machine.shut_down_politely(patience).await?;
                Ok((ended, lease))
            }
            .in_current_span(),
        );
        stopping.await.unwrap_or_else(|error| Err(VmError::StopFailed { vm, why: error.to_string() }))
    }

    /// The generations of an image, or of all.
    pub(crate) fn generations(&self, image: Option<&Name>) -> Result<Vec<(Name, Vec<Generation>)>, VmError> {
        let images: Vec<_> = match image {
            Some(image) => vec![image.clone()],
            None => self.images().keys().cloned().collect(),
        };
        let list = |image: Name| {
            self.image(&image)?;
            let generations = self.0.generations.list(&image).unwrap_or_default();
            Ok((image, generations))
        };
        images.into_iter().map(list).collect()
    }

    /// Has machines start from another generation of an image; from the one before the current one if none is said.
    pub(crate) fn roll_back(&self, image: &Name, generation: Option<u32>) -> anyhow::Result<u32> {
        self.image(image)?;
        let number = self.0.generations.roll_back(image, generation)?;
        self.0.templates.look_again();
        Ok(number)
    }
}

impl Machine {
    /// Whether its disk is one that persists.
    pub(crate) fn is_persistent(&self) -> bool {
        self.facts.mode == Mode::Persistent
    }
}

/// Why a disk may not be whole, if its machine did not go down by itself in order.
fn unclean(ended: &Ended) -> Option<String> {
    let asked = matches!(ended.rung, Some(Rung::Guest | Rung::Powerdown));
    let by_guest = ended.exit.cause.as_ref().is_some_and(|cause| cause.guest && cause.reason == "guest-shutdown");
    if asked && by_guest && ended.exit.status == process::ExitStatus::Code(0) {
        return None;
    }
    Some(match ended.rung {
        None => format!("it had ended before it was shut down ({})", ended.exit),
        Some(Rung::Guest | Rung::Powerdown) => {
            format!("it did not shut down in order: qemu exited with {}", ended.exit)
        }
        Some(rung) => format!(
            "its guest did not shut down within {:.0} s and was ended by {rung}, so that its disk may not be whole; see that \
             the image's `shutdown` command works, or give it more time",
            ended.after.as_secs_f64()
        ),
    })
}

#[cfg(test)]
mod tests {
    use process::ExitStatus;
    use qemu::Exit;
    use qemu::qmp::ShutdownCause;

    use super::*;

    #[test]
    fn only_a_disk_that_its_guest_let_go_of_is_saved() {
        let check = |rung: Option<Rung>, status: ExitStatus, cause: Option<(bool, &str)>, expected: Option<&str>| {
            let cause = cause.map(|(guest, reason)| ShutdownCause { guest, reason: reason.to_owned() });
            let exit = Exit { status, stderr: String::new(), cause, lived: Duration::ZERO };
            let why = unclean(&Ended { rung, exit, after: Duration::from_secs(20) });
            assert_eq!(why.is_some(), expected.is_some(), "{why:?}");
            let (why, expected) = (why.unwrap_or_default(), expected.unwrap_or_default());
            assert!(why.contains(expected), "{why}");
        };
        let (well, down) = (ExitStatus::Code(0), Some((true, "guest-shutdown")));
        check(Some(Rung::Guest), well, down, None);
        check(Some(Rung::Powerdown), well, down, None);
        check(Some(Rung::Guest), ExitStatus::Code(1), down, Some("qemu exited with code 1"));
        check(Some(Rung::Guest), ExitStatus::Signal(9), None, Some("signal 9"));
        check(Some(Rung::Guest), well, Some((true, "guest-panic")), Some("guest-panic"));
        check(Some(Rung::Powerdown), well, Some((false, "host-signal")), Some("host-signal"));
        check(Some(Rung::Guest), well, None, Some("in order"));
        check(Some(Rung::Quit), well, Some((false, "host-qmp-quit")), Some("within 20 s and was ended by quit"));
        // It went down at last, but after the ladder had given it up: what was in between is not known.
        check(Some(Rung::Quit), well, down, Some("ended by quit"));
        check(Some(Rung::Kill), ExitStatus::Signal(9), None, Some("SIGKILL"));
        check(None, well, down, Some("before it was shut down"));
    }
}
