//! What machines may take of the host: memory, and space on the disk of the state directory. What does not fit waits for
//! its turn in the [slots](super::slots)' queue; nothing here waits.
//!
//! A machine is promised all the memory that it may come to use, and, if its overlay has a limit, what the overlay may still
//! grow by. A promise is kept with the machine's lease until its QEMU is gone.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tracing::{info, warn};

use super::host_memory;
use crate::config;

/// What QEMU itself takes beside its guest's memory, in MiB: its program, devices, and buffers.
pub(crate) const QEMU_MIB: u64 = 128;

/// What a machine will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// Its guest's memory and what QEMU itself takes.
    memory_mib: u64,
    /// As much as its overlay may grow to, if that is limited.
    disk_mib: Option<u64>,
}

impl Need {
    /// What a machine takes whose guest has so much memory and whose overlay may grow to so much.
    pub(super) fn new(guest_memory_mib: u32, overlay_limit_mib: Option<u32>) -> Self {
        Need { memory_mib: u64::from(guest_memory_mib) + QEMU_MIB, disk_mib: overlay_limit_mib.map(u64::from) }
    }

    /// The guest's memory and what QEMU itself takes, in MiB.
    pub(super) fn memory_mib(&self) -> u64 {
        self.memory_mib
    }
}

/// How much machines may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Of memory, altogether. None if nothing is known of it.
    pub memory_mib: Option<u64>,
    /// What stays free on the disk.
    pub low_water_mib: u64,
}

impl Limits {
    /// Those of a configuration on this host.
    pub(super) fn of(config: &config::Pool) -> Self {
        let memory_mib = config.memory_budget_mib.or_else(host_memory::budget_mib);
        Limits { memory_mib, low_water_mib: config.disk_low_water_mib }
    }
}

/// The space of a file system, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    pub free_mib: u64,
    pub total_mib: u64,
}

impl Space {
    /// That of the file system that a path is on.
    pub(crate) fn of(path: &Path) -> io::Result<Space> {
        let stat = nix::sys::statvfs::statvfs(path)?;
        let mib = |blocks: u64| blocks.saturating_mul(stat.fragment_size()) >> 20;
        Ok(Space { free_mib: mib(stat.blocks_available()), total_mib: mib(stat.blocks()) })
    }
}

/// What a machine that does not fit now is waiting for. Its text follows "waiting for".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// Others were promised the memory.
    Memory { machines: usize, promised_mib: u64, budget_mib: u64, needed_mib: u64 },
    /// The disk has less free than is to stay free.
    LowDisk { free_mib: u64, low_water_mib: u64 },
    /// The disk may have less free than that when all overlays have grown to their limits.
    Overlays { free_mib: u64, low_water_mib: u64, promised_mib: u64, needed_mib: u64 },
}

impl Shortage {
    /// Whether it is about the disk, of which nothing tells when it has space again.
    pub(super) fn is_of_disk(&self) -> bool {
        matches!(self, Shortage::LowDisk { .. } | Shortage::Overlays { .. })
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shortage::Memory { machines, promised_mib, budget_mib, needed_mib } => write!(
                f,
                "memory: {promised_mib} of {budget_mib} MiB are promised to {}, this one needs {needed_mib}",
                count(*machines)
            ),
            Shortage::LowDisk { free_mib, low_water_mib } => write!(
                f,
                "disk space: {free_mib} MiB are free, and machines start with at least {low_water_mib} (pool.disk_low_water_mib)"
            ),
            Shortage::Overlays { free_mib, low_water_mib, promised_mib, needed_mib } => write!(
                f,
                "disk space: of {free_mib} MiB that are free, {promised_mib} are promised to the overlays of machines that run \
                 and {low_water_mib} stay free (pool.disk_low_water_mib); this one needs {needed_mib}"
            ),
        }
    }
}

fn count(machines: usize) -> String {
    if machines == 1 { "1 machine".to_owned() } else { format!("{machines} machines") }
}

/// Why a machine will never fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    /// It needs more memory than all machines may have.
    Memory { needed_mib: u64, budget_mib: u64 },
    /// Its overlay may grow to more than the disk can have free.
    Disk { limit_mib: u64, low_water_mib: u64, total_mib: u64 },
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Excess::Memory { needed_mib, budget_mib } => write!(
                f,
                "it needs {needed_mib} MiB of memory, {QEMU_MIB} of them for qemu itself, and machines may have {budget_mib} \
                 MiB altogether; give it less memory, or raise pool.memory_budget_mib"
            ),
            Excess::Disk { limit_mib, low_water_mib, total_mib } => write!(
                f,
                "its disk may grow to {limit_mib} MiB, and pool.state_dir is on a file system of {total_mib} MiB of which \
                 {low_water_mib} stay free (pool.disk_low_water_mib); lower the image's overlay_limit_mib, or use a larger disk"
            ),
        }
    }
}

/// What was promised to machines, altogether.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Promised {
    machines: usize,
    memory_mib: u64,
    /// What overlays may still grow by.
    disk_mib: u64,
}

/// Whether a machine fits beside the others.
fn fits(need: Need, limits: Limits, promised: Promised, space: Option<Space>) -> Result<(), Shortage> {
    let Promised { machines, memory_mib: promised_mib, disk_mib } = promised;
    if let Some(budget_mib) = limits.memory_mib
        && promised_mib.saturating_add(need.memory_mib) > budget_mib
    {
        return Err(Shortage::Memory { machines, promised_mib, budget_mib, needed_mib: need.memory_mib });
    }
    // Of a file system that can't be looked at, the making of the slot's directory tells more.
    let Some(Space { free_mib, .. }) = space else { return Ok(()) };
    let low_water_mib = limits.low_water_mib;
    if free_mib < low_water_mib {
        return Err(Shortage::LowDisk { free_mib, low_water_mib });
    }
    match need.disk_mib {
        Some(needed_mib) if free_mib - low_water_mib < disk_mib.saturating_add(needed_mib) => {
            Err(Shortage::Overlays { free_mib, low_water_mib, promised_mib: disk_mib, needed_mib })
        }
        _ => Ok(()),
    }
}

/// Looks how much space there is.
type Look = dyn Fn() -> io::Result<Space> + Send + Sync;

/// What machines may take and what was promised to them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Budget(Arc<Inner>);

struct Inner {
    limits: Mutex<Limits>,
    look: Box<Look>,
    books: Mutex<Books>,
    returned: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Books {
    next: u64,
    entries: BTreeMap<u64, Entry>,
    /// Whether the disk had less free than is to stay free when it was last looked at.
    disk_is_low: bool,
}

#[derive(Debug)]
struct Entry {
    need: Need,
    overlay: PathBuf,
}

impl Budget {
    /// That of a worker, as its configuration and its host say.
    pub(super) fn open(config: &config::Pool) -> Self {
        let state_dir = config.state_dir.clone();
        Budget::new(Limits::of(config), move || Space::of(&state_dir))
    }

    /// Has machines that start from now on keep within other limits. What was promised stays promised.
    pub(super) fn set(&self, limits: Limits) {
        *self.0.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        // Who waits may fit now.
        self.0.returned.send_replace(());
    }

    /// One from which nothing is promised yet.
    pub(super) fn new(limits: Limits, look: impl Fn() -> io::Result<Space> + Send + Sync + 'static) -> Self {
        Budget(Arc::new(Inner {
            limits: Mutex::new(limits),
            look: Box::new(look),
            books: Mutex::default(),
            returned: watch::Sender::new(()),
        }))
    }

    /// Promises a machine what it needs, if that is there. Its overlay is going to be this file.
    pub(super) fn promise(&self, need: Need, overlay: &Path) -> Result<Promise, Shortage> {
        let space = self.space();
        let mut books = self.books();
        fits(need, self.limits(), books.promised(), space)?;
        let number = books.next;
        books.next += 1;
        books.entries.insert(number, Entry { need, overlay: overlay.to_owned() });
        Ok(Promise { number, need, budget: self.clone() })
    }

    /// Whether there would be disk space for a machine if there were memory.
    pub(super) fn has_disk_for(&self, need: Need) -> Result<(), Shortage> {
        let space = self.space();
        fits(need, Limits { memory_mib: None, ..self.limits() }, self.books().promised(), space)
    }

    /// Why a machine would not fit even if it were the only one; nothing if it would.
    pub(super) fn never(&self, need: Need) -> Option<Excess> {
        let Limits { memory_mib, low_water_mib } = self.limits();
        if let Some(budget_mib) = memory_mib.filter(|budget_mib| need.memory_mib > *budget_mib) {
            return Some(Excess::Memory { needed_mib: need.memory_mib, budget_mib });
        }
        let (limit_mib, Space { total_mib, .. }) = need.disk_mib.zip(self.space())?;
        let too_large = limit_mib.saturating_add(low_water_mib) > total_mib;
        too_large.then_some(Excess::Disk { limit_mib, low_water_mib, total_mib })
    }

    /// The memory that is promised to nobody, in MiB. None if nothing is known of it.
    pub(super) fn memory_left_mib(&self) -> Option<u64> {
        let promised = self.books().promised().memory_mib;
        self.limits().memory_mib.map(|budget| budget.saturating_sub(promised))
    }

    /// Whether the disk has less free than is to stay free. Its beginning and its end are logged.
    pub(super) fn disk_is_low(&self) -> bool {
        self.space();
        self.books().disk_is_low
    }

    /// Whether it was so when it was last looked at.
    pub(super) fn disk_was_low(&self) -> bool {
        self.books().disk_is_low
    }

    /// What changes when a promise is over, or the limits are others.
    pub(super) fn returned(&self) -> watch::Receiver<()> {
        self.0.returned.subscribe()
    }

    fn space(&self) -> Option<Space> {
        let space = (self.0.look)().ok()?;
        let low_water_mib = self.limits().low_water_mib;
        let low = space.free_mib < low_water_mib;
        let before = std::mem::replace(&mut self.books().disk_is_low, low);
        match (before, low) {
            (false, true) => warn!(
                free_mib = space.free_mib,
                low_water_mib, "no machine is started until there is more space on the disk of pool.state_dir"
            ),
            (true, false) => info!(free_mib = space.free_mib, "machines are started again: there is space on the disk"),
            _ => {}
        }
        Some(space)
    }

    fn limits(&self) -> Limits {
        *self.0.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn promised(&self) -> Promised {
        Promised {
            machines: self.entries.len(),
            memory_mib: self.entries.values().map(|entry| entry.need.memory_mib).sum(),
            disk_mib: self.entries.values().map(Entry::growth_mib).sum(),
        }
    }
}

impl Entry {
    /// What its overlay may still grow by.
    fn growth_mib(&self) -> u64 {
        // A file has its space in units of 512 bytes, whatever the file system's blocks are (stat(2)).
        let has =
            |limit| limit - std::fs::metadata(&self.overlay).map_or(0, |overlay| overlay.blocks() >> 11).min(limit);
        self.need.disk_mib.map_or(0, has)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("limits", &self.limits()).field("books", &self.books()).finish_non_exhaustive()
    }
}

/// What a machine may take, until it is dropped.
#[derive(Debug)]
pub(super) struct Promise {
    number: u64,
    need: Need,
    budget: Budget,
}

impl Promise {
    /// What was promised.
    pub(super) fn need(&self) -> Need {
        self.need
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.budget.books().entries.remove(&self.number);
        self.budget.0.returned.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(memory_mib: u64, low_water_mib: u64) -> Limits {
        Limits { memory_mib: Some(memory_mib), low_water_mib }
    }

    #[test]
    fn a_machine_fits_beside_the_others_or_waits_for_what_it_lacks() {
        let check = |need: (u64, Option<u64>), promised: (usize, u64, u64), free_mib: u64, expected: Option<&str>| {
            let need = Need { memory_mib: need.0, disk_mib: need.1 };
            let promised = Promised { machines: promised.0, memory_mib: promised.1, disk_mib: promised.2 };
            let space = Some(Space { free_mib, total_mib: 100_000 });
            let found = fits(need, limits(4096, 1000), promised, space);
            assert_eq!(found.err().map(|shortage| shortage.to_string()), expected.map(str::to_owned));
        };
        check((4096, None), (0, 0, 0), 5000, None);
        check((1024, None), (3, 3072, 0), 5000, None);
        check(
            (2048, None),
            (3, 3072, 0),
            5000,
            Some("memory: 3072 of 4096 MiB are promised to 3 machines, this one needs 2048"),
        );
        check(
            (4097, None),
            (0, 0, 0),
            5000,
            Some("memory: 0 of 4096 MiB are promised to 0 machines, this one needs 4097"),
        );
        check(
            (1, None),
            (1, 4096, 0),
            5000,
            Some("memory: 4096 of 4096 MiB are promised to 1 machine, this one needs 1"),
        );
        check((1024, None), (0, 0, 0), 1000, None);
        check(
            (1024, None),
            (0, 0, 0),
            999,
            Some("disk space: 999 MiB are free, and machines start with at least 1000 (pool.disk_low_water_mib)"),
        );
        // One without a limit may take what was promised to others: nobody knows what it will need.
        check((1024, None), (1, 1024, 9000), 5000, None);
        check((1024, Some(2000)), (1, 1024, 2000), 5000, None);
        check(
            (1024, Some(2001)),
            (1, 1024, 2000),
            5000,
            Some(
                "disk space: of 5000 MiB that are free, 2000 are promised to the overlays of machines that run and 1000 stay \
                 free (pool.disk_low_water_mib); this one needs 2001",
            ),
        );
        check(
            (1024, Some(u64::MAX)),
            (1, 1024, u64::MAX),
            999_999,
            Some(
                "disk space: of 999999 MiB that are free, \
             18446744073709551615 are promised to the overlays of machines that run and 1000 stay free \
             (pool.disk_low_water_mib); this one needs 18446744073709551615",
            ),
        );
    }

    #[test]
    fn what_is_not_known_does_not_keep_machines_waiting() {
        let need = Need { memory_mib: 1 << 40, disk_mib: Some(1 << 40) };
        let promised = Promised { machines: 1, memory_mib: 1 << 40, disk_mib: 1 << 40 };
        assert_eq!(fits(need, Limits { memory_mib: None, low_water_mib: 1 << 40 }, promised, None), Ok(()));
    }

    #[test]
    fn a_machine_that_can_never_fit_is_told_from_one_that_waits() {
        let budget = Budget::new(limits(1024, 1000), || Ok(Space { free_mib: 0, total_mib: 3000 }));
        let check = |memory_mib, overlay_limit_mib, expected: Option<Excess>| {
            assert_eq!(budget.never(Need::new(memory_mib, overlay_limit_mib)), expected);
        };
        check(896, None, None);
        check(897, None, Some(Excess::Memory { needed_mib: 1025, budget_mib: 1024 }));
        check(896, Some(2000), None);
        check(896, Some(2001), Some(Excess::Disk { limit_mib: 2001, low_water_mib: 1000, total_mib: 3000 }));
    }

    #[test]
    fn a_promise_is_kept_until_it_is_over() {
        let budget = Budget::new(limits(1024, 0), || Ok(Space { free_mib: 1, total_mib: 1 }));
        let need = Need::new(896 - 128, None);
        let promise = budget.promise(need, Path::new("/nowhere")).expect("it fits");
        assert_eq!(promise.need().memory_mib(), 896);
        assert_eq!(budget.memory_left_mib(), Some(128));
        assert!(budget.promise(need, Path::new("/nowhere")).is_err());
        let mut returned = budget.returned();
        returned.mark_unchanged();
        drop(promise);
        assert!(returned.has_changed().expect("the budget is there"));
        assert!(budget.promise(need, Path::new("/nowhere")).is_ok());
    }

    #[test]
    fn an_overlay_was_promised_what_it_has_not_got_yet() {
        let directory = tempfile::tempdir().expect("a directory");
        let overlay = directory.path().join("overlay.qcow2");
        let check = |expected| {
            let need = Need { memory_mib: 0, disk_mib: Some(3) };
            assert_eq!(Entry { need, overlay: overlay.clone() }.growth_mib(), expected);
        };
        check(3);
        std::fs::write(&overlay, vec![1; 2 << 20]).expect("written");
        // What a file system notes beside the contents may be in the count.
        std::fs::File::open(&overlay).and_then(|file| file.sync_all()).expect("synced");
        check(1);
        std::fs::write(&overlay, vec![1; 4 << 20]).expect("written");
        std::fs::File::open(&overlay).and_then(|file| file.sync_all()).expect("synced");
        check(0);
    }
}
