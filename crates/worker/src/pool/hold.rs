//! Machines that are kept for people after their build has ended.

use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::machine::Machine;
use super::{Owner, Pool, Status, Stopped, VmError};

/// What holding a machine came to.
#[derive(Debug)]
pub(crate) enum Hold {
    /// It runs on.
    Held(Held),
    /// It was stopped, as the configuration lets none be held.
    Off(Stopped),
}

/// A machine that runs on for a person.
#[derive(Debug)]
pub(crate) struct Held {
    pub machine: Arc<Machine>,
    /// For how long.
    pub time: Duration,
    /// The command that gets a person on this host into its guest.
    pub login: String,
    /// The slots of machines that are ended for it, because only so many may be held.
    pub displaced: Vec<u16>,
}

/// Why a slot is not released.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReleased {
    /// There is no machine in it.
    #[error("no machine runs in slot {0}")]
    Free(u16),
    /// A builder uses it.
    #[error("slot {slot} has vm '{}' of builder '{}', whose build runs; stop the build instead", .owner.vm, .owner.builder.escape_debug())]
    InUse { slot: u16, owner: Owner },
    /// A person uses it.
    #[error("slot {0} has the machine of a kvm-worker exec that runs; interrupt that instead")]
    Lent(u16),
    /// It does not end.
    #[error(transparent)]
    NotStopped(#[from] VmError),
}

impl Pool {
    /// Takes a machine from its builder and lets it run on for a person: for the time asked, if the configuration allows as
    /// much. Neither builds nor the line have to do with it any more.
    pub(crate) async fn hold(&self, owner: &Owner, asked: Duration) -> Result<Hold, VmError> {
        let config = self.config();
        let most = usize::from(config.max_held);
        if most == 0 {
            let stopped = self.stop(owner, None).await;
            return stopped.unwrap_or_else(|| Err(VmError::NotRunning(owner.vm.clone()))).map(Hold::Off);
        }
        let machine = self.find(owner)?;
        let login = match self.login_line(&machine) {
            Ok(login) => login,
            Err(error) => {
                // A machine that nobody gets into is of no use.
                drop(self.stop(owner, None).await);
                return Err(error);
            }
        };
        // From here on nothing is waited for: the machine is either the builder's or held.
        let (machine, displaced) = self.machines().hold(owner, most)?;
        Ok(Hold::Held(self.run_on(machine, displaced, asked, login)))
    }

    /// The command line that gets a person on this host into a machine's guest.
    pub(super) fn login_line(&self, machine: &Machine) -> Result<String, VmError> {
        self.ssh_command(machine).map(|command| command.line()).map_err(|error| VmError::StopFailed {
            vm: machine.facts.owner.vm.clone(),
            why: format!("write the known_hosts file of slot {}: {error}", machine.facts.slot),
        })
    }

    /// Has a machine that is held now run on for the time asked, if the configuration allows as much, and ends those that are not
    /// held any more.
    pub(super) fn run_on(
        &self,
        machine: Arc<Machine>,
        displaced: Vec<Arc<Machine>>,
        asked: Duration,
        login: String,
    ) -> Held {
        let time = asked.min(self.config().max_hold);
        machine.extend(time);
        machine.span.in_scope(|| info!(seconds = time.as_secs(), "vm held"));
        let displaced = displaced.into_iter().map(|machine| {
            let slot = machine.facts.slot;
            machine.span.in_scope(|| info!("ending the machine that was held longest: pool.max_held are held"));
            drop(self.stop_machine(machine, None));
            slot
        });
        Held { displaced: displaced.collect(), machine, time, login }
    }

    /// How many machines are held.
    pub(crate) fn held(&self) -> usize {
        self.machines().held().count()
    }

    /// Waits until no machine is held.
    pub(crate) async fn none_held(&self) {
        let mut changes = self.0.slots.changes();
        // Each one that ends gives its slot back, after it was let go.
        while self.held() > 0 && changes.changed().await.is_ok() {}
    }

    /// Ends the machine that is held in a slot.
    pub(crate) async fn release_slot(&self, slot: u16) -> Result<Stopped, NotReleased> {
        let machine = self.machines().held().find(|machine| machine.facts.slot == slot).cloned();
        match machine {
            Some(machine) => {
                machine.span.in_scope(|| info!("ending a held machine: it was released"));
                Ok(self.stop_machine(machine, None).await?)
            }
            None => {
                let is_it = |machine: &Machine| machine.facts.slot == slot && machine.status() == Status::Up;
                let tenant = self.machines().tenant(is_it);
                Err(match tenant {
                    Some(owner) => NotReleased::InUse { slot, owner },
                    None if self.machine_in(slot).is_some() => NotReleased::Lent(slot),
                    None => NotReleased::Free(slot),
                })
            }
        }
    }
}
