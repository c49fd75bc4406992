//! Machines that are kept ready: clones that nobody has asked for yet, in slots, with their ssh session open and all done
//! that makes a clone look new.
//!
//! ```text
//! keeper ──makes──▶ Spare ──take──▶ a builder's machine
//!                     └──── ends: it died, is too old, its template was replaced, a build needs its slot, …
//! ```
//!
//! One task, the [keeper], makes and ends them, by what [`plan`] says. A spare is handed out by being moved out of the stock,
//! so never twice.

mod keeper;
mod load;
mod plan;
mod spare;
mod starts;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::command::Name;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::board::SlotState;
use super::budget::Need;
use super::machine::How;
use super::raised::Raised;
use super::templates::Offer;
use super::{Hypervisor, Order, Pool, Progress};
use crate::config::Image;
use plan::{Seen, Why};
use spare::Spare;
pub(super) use starts::Start;
use starts::Starts;

/// The machines that are kept ready, and what their keeper has to know.
#[derive(Debug, Default)]
pub(super) struct Warm {
    stock: Mutex<Stock>,
    starts: Starts,
    /// What a template that is to be made needs, and waits for.
    template: watch::Sender<Option<Need>>,
    /// Ends the keeper, and with it all of the stock.
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Stock {
    next: u64,
    /// The oldest first.
    spares: Vec<Spare>,
    /// What was promised of the memory to the one that is being made, in MiB.
    making_mib: Option<u64>,
}

/// One is being made, until this is dropped.
struct Making<'a>(&'a Warm);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.stock().making_mib = None;
    }
}

/// Machines give up their memory for a template, until this is dropped.
#[derive(Debug)]
pub(super) struct GivingWay<'a>(&'a Warm);

impl Drop for GivingWay<'_> {
    fn drop(&mut self) {
        self.0.template.send_replace(None);
    }
}

impl Warm {
    /// Notes that a build starts a machine, until the note is dropped.
    pub(super) fn begin(&self) -> Start {
        self.starts.begin()
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> u16 {
        u16::try_from(self.stock().spares.len()).unwrap_or(u16::MAX)
    }

    /// How many of an image are ready.
    pub(super) fn ready_of(&self, image: &Name) -> u16 {
        let spares = self.stock().spares.iter().filter(|spare| spare.image() == image).count();
        u16::try_from(spares).unwrap_or(u16::MAX)
    }

    /// How many of so many slots, and how much memory in MiB, builds can have for which they are ended or given up, or which
    /// get them.
    pub(super) fn yielding(&self, slots: u16) -> (u16, u64) {
        let stock = self.stock();
        let spares = stock.spares.iter().map(|spare| (u16::from(spare.slot() < slots), spare.memory_mib()));
        let all = spares.chain(stock.making_mib.map(|memory_mib| (1, memory_mib)));
        all.fold((0, 0), |(count, sum), (slot, memory_mib)| (count + slot, sum + memory_mib))
    }

    /// Has machines give up their memory for a template that needs it, until this is dropped.
    pub(super) fn give_way(&self, need: Need) -> GivingWay<'_> {
        self.template.send_replace(Some(need));
        GivingWay(self)
    }

    /// Notes that one is being made, to which so much of the memory was promised.
    fn making(&self, memory_mib: u64) -> Making<'_> {
        self.stock().making_mib = Some(memory_mib);
        Making(self)
    }

    /// Ends all of them, and makes none any more.
    pub(super) fn close(&self) {
        self.stop.cancel();
    }

    /// Puts one in, and returns what tells if it ends.
    fn put(&self, raised: Raised) -> impl Future<Output = Option<(u64, String)>> + Send + use<> {
        let mut stock = self.stock();
        let id = stock.next;
        stock.next += 1;
        raised.lease.notice().is(SlotState::Warm);
        let (spare, end) = Spare::new(id, raised);
        stock.spares.push(spare);
        async move { end.await.map(|why| (id, why)) }
    }

    /// Takes the oldest of an image out.
    fn take(&self, image: &Name) -> Option<Spare> {
        let mut stock = self.stock();
        let place = stock.spares.iter().position(|spare| spare.image() == image)?;
        Some(stock.spares.remove(place))
    }

    /// Takes this one out, if it is still there.
    fn take_this(&self, id: u64) -> Option<Spare> {
        let mut stock = self.stock();
        let place = stock.spares.iter().position(|spare| spare.id() == id)?;
        Some(stock.spares.remove(place))
    }

    /// Takes all of them out.
    fn take_all(&self) -> Vec<Spare> {
        std::mem::take(&mut self.stock().spares)
    }

    /// Notes that one has ended, or can't be reached any more.
    fn note_end(&self, id: u64, why: String) {
        if let Some(spare) = self.stock().spares.iter_mut().find(|spare| spare.id() == id) {
            spare.note_end(why);
        }
    }

    fn seen(&self, pool: &Pool) -> Vec<Seen> {
        self.stock().spares.iter().map(|spare| spare.seen(pool)).collect()
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Takes a machine for an order from those that are ready, if one suits it.
    pub(super) async fn take_spare(
        &self,
        order: &Order,
        image: &Arc<Image>,
        hypervisor: &Hypervisor,
        progress: &dyn Progress,
    ) -> Option<Raised> {
        let warm = &self.0.warm;
        if image.warm == 0 || self.0.slots.is_paused() || self.0.budget.disk_is_low() {
            return None;
        }
        // Looks what clones are made of now, so that no build gets what it would not get a clone of.
        let Some(Offer::Clone(..)) = self.offer(order, image, hypervisor) else { return None };
        while let Some(spare) = warm.take(&order.image) {
            let slot = spare.slot();
            match spare.seen(self).flaw {
                None => {
                    let age = spare.age().as_secs();
                    let raised = Raised { how: How::Warm, ..spare.into_raised() };
                    let pid = raised.vm.pid();
                    progress.say(format!("slot {slot}: a machine was ready for {age} s; qemu is process {pid}")).await;
                    return Some(raised);
                }
                Some(flaw) => {
                    warn!(slot, image = %order.image, "a warm machine is not handed out: {flaw}");
                    progress.say(format!("slot {slot}: the machine that was ready is not used: {flaw}")).await;
                    self.end_spare(spare, &Why::Flaw(flaw)).await;
                }
            }
        }
        None
    }

    /// Ends a machine that was ready, in the background. That its slot is on its way back is known when this returns.
    async fn end_spare(&self, spare: Spare, why: &Why) {
        info!(slot = spare.slot(), image = %spare.image(), age_s = spare.age().as_secs(), "warm machine ended: {why}");
        let raised = spare.into_raised();
        raised.lease.notice().is(SlotState::Stopping);
        self.0.slots.leaving(&raised.lease).await;
        self.0.tasks.spawn(raised.end());
    }
}
