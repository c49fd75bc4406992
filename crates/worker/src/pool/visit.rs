//! Machines for people, who have no builder: they take slots and memory as those of builds do.

use std::sync::Arc;
use std::time::Duration;

use tracing::field::Empty;
use tracing::{Instrument, error_span, info};

use super::hold::Held;
use super::machine::Machine;
use super::{Order, Pool, Progress, Status, VmError};

/// A machine that a person has. Dropped, it is ended in the background.
#[derive(Debug)]
pub(crate) struct Visit {
    pool: Pool,
    /// None once it is ended, or held.
    machine: Option<Arc<Machine>>,
}

impl Pool {
    /// Starts a machine that is no builder's and waits until its guest runs commands. Dropping the future ends what was begun.
    pub(crate) async fn visit(&self, order: Order, progress: &dyn Progress) -> Result<Visit, VmError> {
        let hypervisor = self.hypervisor_for(&order.image)?;
        let span = error_span!("vm", vm = %order.owner.vm, image = %order.image, slot = Empty);
        let starting = Box::pin(self.start_for(&order, hypervisor, progress));
        let machine = starting.instrument(span).await?;
        self.machines().lend(&machine);
        let (how, seconds) = (machine.facts.how.as_str(), machine.facts.took.as_secs_f32());
        machine.span.in_scope(|| info!(how, seconds, "vm started for a person"));
        self.watch(&machine);
        Ok(Visit { pool: self.clone(), machine: Some(machine) })
    }

    /// The machine in a slot that somebody has: a builder, or a person.
    pub(crate) fn machine_in(&self, slot: u16) -> Option<Arc<Machine>> {
        let machines = self.machines();
        let found = machines.all().find(|machine| machine.facts.slot == slot && machine.status() == Status::Up);
        found.cloned()
    }
}

impl Visit {
    /// The machine.
    pub(crate) fn machine(&self) -> Option<Arc<Machine>> {
        self.machine.clone()
    }

    /// Ends the machine and waits until it is gone.
    pub(crate) async fn end(mut self) -> Result<(), VmError> {
        match self.machine.take() {
            Some(machine) => self.pool.stop_machine(machine, None).await.map(drop),
            None => Ok(()),
        }
    }

    /// Lets the machine run on for a while, as one that a build has left; nothing if the configuration lets none be held.
    pub(crate) fn keep(mut self, asked: Duration) -> Result<Option<Held>, VmError> {
        let most = usize::from(self.pool.config().max_held);
        let Some(machine) = self.machine.as_ref().filter(|_| most > 0) else { return Ok(None) };
        let login = self.pool.login_line(machine)?;
        let displaced = self.pool.machines().hold_lent(machine, most);
        let displaced = displaced.ok_or_else(|| VmError::NotRunning(machine.fate().vm().clone()))?;
        let held = self.pool.run_on(Arc::clone(machine), displaced, asked, login);
        self.machine = None;
        Ok(Some(held))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.take() {
            drop(self.pool.stop_machine(machine, None));
        }
    }
}
