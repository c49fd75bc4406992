//! What a machine waits for before it starts: its persistent disk, a slot, memory, and space on the disk.

use std::sync::Arc;
use std::time::Duration;

use protocol::command::{Mode, Name};
use tokio::time::{Instant, timeout_at};

use super::budget::Need;
use super::disks::DiskLock;
use super::machine::Shape;
use super::slots::Lease;
use super::turn::{Step, Wait};
use super::warm::Start;
use super::{Order, Pool, Progress, VmError};
use crate::config::Image;

/// The images whose machines are there sooner than by a boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ReadyImages {
    /// Those with a template that machines are cloned from.
    pub templates: Vec<Name>,
    /// Those with machines that are ready, and how many.
    pub warm: Vec<(Name, u16)>,
}

impl Need {
    /// What a machine of an image takes. Only what a fresh one writes is limited: a disk that persists has grown in earlier
    /// builds, too, and ending its machine for that would end all that come after.
    pub(super) fn of(image: &Image, shape: Shape) -> Self {
        let limit = match shape.mode {
            Mode::Fresh => image.overlay_limit_mib,
            Mode::Persistent => None,
        };
        Need::new(shape.memory_mib, limit)
    }
}

/// What a machine needs before it starts.
pub(super) struct Leased {
    pub image: Arc<Image>,
    pub lease: Lease,
    /// That it is being started, so that none is made ready for others.
    pub start: Start,
    /// Whether the worker was paused meanwhile, so that a machine may be ready which it was not given.
    pub after_pause: bool,
}

impl Pool {
    /// Waits, bounded, for what the machine will occupy, and says what its image is by then: one whose image was changed
    /// meanwhile is of the changed one, and waits anew if that needs more or less. First for the persistent disk, as that concerns nobody but those
    /// who want the same; then for a slot with memory and space, which are got together. Whoever has these waits for
    /// nothing more, so that the waits end if builds do. From the wait for a slot on no machine is made ready for others,
    /// until the note of that is dropped.
    pub(super) async fn lease(
        &self,
        order: &Order,
        mut image: Arc<Image>,
        progress: &dyn Progress,
    ) -> Result<Leased, VmError> {
        let waiting = self.config().acquire_timeout;
        let deadline = Instant::now() + waiting;
        let mut need = self.need(order, &image)?;
        let disk = match order.mode {
            Mode::Fresh => None,
            Mode::Persistent => Some(self.persistent_disk(order, deadline, waiting, progress).await?),
        };
        let mut start = self.0.warm.begin();
        start.note_unserved();
        let mut after_pause = false;
        loop {
            let (mut lease, paused) = self.slot(need, deadline, waiting, progress).await?;
            after_pause |= paused;
            image = self.image(&order.image)?;
            let needed = std::mem::replace(&mut need, self.need(order, &image)?);
            if needed != need {
                progress.say(format!("image '{}' was changed; waiting for what it needs now", order.image)).await;
                continue;
            }
            if let Some(disk) = disk {
                lease.keep(disk);
            }
            return Ok(Leased { image, lease, start, after_pause });
        }
    }

    /// What an order's machine takes, if it ever fits.
    fn need(&self, order: &Order, image: &Image) -> Result<Need, VmError> {
        let need = Need::of(image, Shape::of(order, image));
        match self.0.budget.never(need) {
            Some(excess) => Err(VmError::TooLarge { vm: order.owner.vm.clone(), image: order.image.clone(), excess }),
            None => Ok(need),
        }
    }

    async fn persistent_disk(
        &self,
        order: &Order,
        deadline: Instant,
        waited: Duration,
        progress: &dyn Progress,
    ) -> Result<DiskLock, VmError> {
        let vm = &order.owner.vm;
        let mut lock = Box::pin(self.0.disks.lock(&order.image, vm));
        if let std::task::Poll::Ready(lock) = futures_util::poll!(&mut lock) {
            return Ok(lock);
        }
        progress.say(format!("waiting for the persistent disk '{vm}', which another builder uses")).await;
        let late = |_| VmError::DiskInUse { image: order.image.clone(), vm: vm.clone(), waited };
        timeout_at(deadline, lock).await.map_err(late)
    }

    /// Waits for a slot; says also whether the worker was paused meanwhile.
    async fn slot(
        &self,
        need: Need,
        deadline: Instant,
        waited: Duration,
        progress: &dyn Progress,
    ) -> Result<(Lease, bool), VmError> {
        let mut turn = self.0.slots.queue(need).await;
        // The first answer comes at once, even if there is no time to wait.
        let mut next = turn.next().await;
        let mut told = None;
        let mut after_pause = false;
        loop {
            let wait = match next {
                Step::Leased(lease) => return Ok((*lease, after_pause)),
                Step::Waits(wait) => wait,
            };
            after_pause |= wait == Wait::Paused;
            // Its numbers change with every machine that comes and goes.
            let kind = std::mem::discriminant(&wait);
            if told.replace(kind) != Some(kind) {
                progress.say(self.describe(&wait)).await;
            }
            next = timeout_at(deadline, turn.next()).await.map_err(|_| VmError::PoolFull { wait, waited })?;
        }
    }

    /// How many machines more could be started now, if they were of the image that needs the least.
    pub(crate) fn free(&self) -> u16 {
        if self.0.budget.disk_is_low() {
            return 0;
        }
        let images = self.images();
        let needs = images.values().map(|image| Need::of(image, Shape::fresh(image)));
        // Builds whose machine never fits do not wait for it, but are told so.
        let smallest = needs.filter(|need| self.0.budget.never(*need).is_none()).map(|need| need.memory_mib()).min();
        // What is ready is handed out, or gives way.
        let census = self.0.slots.census();
        let (spares, spares_mib) = self.0.warm.yielding(census.slots);
        let left = self.0.budget.memory_left_mib().map(|left| left.saturating_add(spares_mib));
        fit(census.free.saturating_add(spares), left, smallest)
    }

    /// How many machines may run at a time.
    pub(crate) fn slots(&self) -> u16 {
        self.0.slots.census().slots
    }

    /// How many machines are ready for builds to come.
    pub(crate) fn warm(&self) -> u16 {
        self.0.warm.ready()
    }

    /// The images whose machines are there sooner than by a boot, as far as was looked.
    pub(crate) fn ready_images(&self) -> ReadyImages {
        let images = self.images();
        let templates = images.keys().filter(|image| self.0.templates.has(image)).cloned();
        let warm = images.keys().map(|image| (image.clone(), self.0.warm.ready_of(image)));
        ReadyImages { templates: templates.collect(), warm: warm.filter(|(_, count)| *count > 0).collect() }
    }

    /// How many machines wait to be started.
    pub(crate) fn waiting(&self) -> usize {
        self.0.slots.census().waiting
    }

    /// What one waits for, as a line of the step's log.
    pub(super) fn describe(&self, wait: &Wait) -> String {
        match wait {
            Wait::Slot { slots, quarantined } => {
                let broken = match quarantined.len() {
                    0 => String::new(),
                    count => format!(", {count} of them because they can't be cleaned"),
                };
                let warm = match self.0.warm.ready() {
                    0 => String::new(),
                    count => format!(", {count} of them by machines that were ready for others and give way"),
                };
                let held = match self.held() {
                    0 => String::new(),
                    count => format!(", {count} of them by machines that are held for people"),
                };
                format!("waiting for a slot: all {slots} are in use{broken}{held}{warm}")
            }
            Wait::Paused => {
                "waiting: the worker is paused, until somebody on its host says kvm-worker resume".to_owned()
            }
            Wait::Short(shortage) => format!("waiting for {shortage}"),
            Wait::Turn { ahead: 1, first } => format!("waiting for its turn; one machine is ahead, for {first}"),
            Wait::Turn { ahead, first } => {
                format!("waiting for its turn; {ahead} machines are ahead, the first for {first}")
            }
        }
    }
}

/// How many machines fit into so many slots and so much memory, if that is known, if each needs so much of it.
fn fit(slots: u16, left_mib: Option<u64>, each_mib: Option<u64>) -> u16 {
    let fit = left_mib.zip(each_mib).and_then(|(left, each)| left.checked_div(each));
    fit.map_or(slots, |fit| slots.min(u16::try_from(fit).unwrap_or(u16::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_few_where_slots_or_memory_are() {
        let check = |slots, left, each, expected| assert_eq!(fit(slots, left, each), expected);
        check(4, Some(4096), Some(1024), 4);
        check(4, Some(4095), Some(1024), 3);
        check(4, Some(0), Some(1024), 0);
        check(0, Some(4096), Some(1024), 0);
        check(4, Some(1 << 60), Some(1), 4);
        check(4, None, Some(1024), 4);
        check(4, Some(0), None, 4);
        check(4, Some(1), Some(0), 4);
    }
}
