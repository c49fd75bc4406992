//! The machines: slots for them, starting them for builders, and giving them up whatever happens.
//!
//! The pool knows builders and builds by name and number only, and nothing of steps or protocols.

mod boot;
mod disks;
mod error;
mod host_keys;
mod machine;
mod slot;
mod slots;
mod state_dir;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use protocol::command::{Mode, Name};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, info_span, warn};

use crate::config::{self, Config, Image};
pub(crate) use error::VmError;
pub(crate) use machine::{Fate, Login, Machine, Owner, Status, Stopped};
use slot::Slot;
pub(crate) use slots::Census;
use slots::Slots;

/// How long a slot may take to become free at the start, where an earlier run's QEMU may have to be ended.
const SETTLING: Duration = Duration::from_secs(60);

/// A machine that a builder wants.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub owner: Owner,
    pub build: Option<u64>,
    pub bind: bool,
    pub image: Name,
    pub mode: Mode,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub timeout: Option<Duration>,
}

/// What a builder hears while its machine is being started.
#[async_trait::async_trait]
pub(crate) trait Progress: Send + Sync {
    /// A line for people.
    async fn say(&self, line: String);
    /// The console's output is going to this file.
    fn console(&self, path: &Path);
}

/// The machines of this worker. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: config::Pool,
    images: BTreeMap<Name, Arc<Image>>,
    /// None if there are no images.
    hypervisor: Option<Hypervisor>,
    slots: Slots,
    disks: disks::Disks,
    host_keys: host_keys::HostKeys,
    machines: Mutex<HashMap<Owner, Entry>>,
    /// The tasks that watch and stop machines.
    tasks: TaskTracker,
}

/// What runs machines.
#[derive(Debug)]
struct Hypervisor {
    qemu: qemu::Qemu,
    accelerator: qemu::Accelerator,
    /// Two daemons with one state directory would take each other's machines for leftovers.
    _lock: std::fs::File,
}

impl Hypervisor {
    async fn open(pool: &config::Pool) -> anyhow::Result<Self> {
        let lock = state_dir::claim(&pool.state_dir)?;
        let qemu = qemu::Qemu::probe(&pool.qemu, &pool.qemu_img)
            .await
            .context("look at QEMU; install qemu-system-x86 and qemu-utils, or set pool.qemu and pool.qemu_img")?;
        let accelerated = qemu.accelerator(pool.accel).await.context("choose what executes guest code (pool.accel)")?;
        info!(version = qemu.version(), accelerator = ?accelerated.accelerator, "qemu: {}", accelerated.reason);
        Ok(Hypervisor { qemu, accelerator: accelerated.accelerator, _lock: lock })
    }
}

/// What a builder has under a name.
#[derive(Debug, Clone)]
enum Entry {
    /// It is being started, by the holder of this.
    Starting(Arc<()>),
    /// It is there, or was until it died.
    Machine(Arc<Machine>),
}

impl Pool {
    /// Opens the pool: claims the state directory, looks at what QEMU can do and deals with what an earlier run left.
    /// Without an image there is nothing to start, and nothing of this is needed.
    pub(crate) async fn open(config: &Config) -> anyhow::Result<Self> {
        let pool = config.pool.clone();
        let directory = pool.state_dir.join("slots");
        let hypervisor = if config.images.is_empty() { None } else { Some(Hypervisor::open(&pool).await?) };
        let mut slots = Vec::new();
        if hypervisor.is_some() {
            slots::clean_beyond(&directory, pool.slots, pool.ssh_port_base).await;
            slots.extend((0..pool.slots).map(|number| Slot::new(number, pool.ssh_port_base, &directory)));
        }
        let slots = Slots::new(slots);
        if tokio::time::timeout(SETTLING, slots.settled()).await.is_err() {
            warn!("slots of an earlier run are still being cleaned");
        }
        for (name, image) in &config.images {
            if let Err(error) = std::fs::metadata(&image.disk) {
                warn!(image = %name, disk = %image.disk.display(), "an image's disk can't be read: {error}");
            }
        }
        Ok(Pool(Arc::new(Inner {
            images: config.images.iter().map(|(name, image)| (name.clone(), Arc::new(image.clone()))).collect(),
            hypervisor,
            slots,
            disks: disks::Disks::new(pool.state_dir.join("disks")),
            host_keys: host_keys::HostKeys::new(pool.state_dir.join("host_keys")),
            machines: Mutex::default(),
            tasks: TaskTracker::new(),
            config: pool,
        })))
    }

    /// How the slots are.
    pub(crate) fn census(&self) -> Census {
        self.0.slots.census()
    }

    /// Starts a machine and waits until its guest runs commands. Dropping the future ends what was begun.
    pub(crate) async fn start(&self, order: Order, progress: &dyn Progress) -> Result<Arc<Machine>, VmError> {
        let image = self.0.images.get(&order.image).cloned();
        let (Some(image), Some(hypervisor)) = (image, &self.0.hypervisor) else {
            let known = self.0.images.keys().cloned().collect();
            return Err(VmError::NoSuchImage { image: order.image, known });
        };
        self.release_earlier(&order).await;
        let claim = self.claim(&order.owner)?;
        let span = info_span!("vm", builder = order.owner.builder, vm = %order.owner.vm, image = %order.image);
        let machine = Arc::new(self.boot(order, image, hypervisor, progress).instrument(span.clone()).await?);
        info!(parent: &span, slot = machine.facts.slot, vm_pid = machine.facts.pid, seconds = machine.facts.took.as_secs_f32(), "vm started");
        claim.fulfil(&machine)?;
        let watched = Arc::clone(&machine);
        self.0.tasks.spawn(
            async move {
                match watched.watch().await {
                    Status::Died { reason } => warn!(slot = watched.facts.slot, "{reason}"),
                    _ => info!(slot = watched.facts.slot, "vm stopped"),
                }
            }
            .instrument(span),
        );
        Ok(machine)
    }

    /// The builder's machine of this name.
    pub(crate) fn find(&self, owner: &Owner) -> Result<Arc<Machine>, VmError> {
        let entry = self.machines().get(owner).cloned();
        match entry {
            Some(Entry::Machine(machine)) => match machine.status() {
                Status::Up => Ok(machine),
                Status::Died { reason } => Err(VmError::Lost { reason }),
                Status::Stopped => Err(VmError::NotRunning(owner.vm.clone())),
            },
            Some(Entry::Starting(_)) | None => Err(VmError::NotRunning(owner.vm.clone())),
        }
    }

    /// The machine that the builder's commands run in unless they say otherwise.
    pub(crate) fn bound(&self, builder: &str) -> Option<Arc<Machine>> {
        self.list(builder).into_iter().find(|machine| machine.facts.bind)
    }

    /// All machines of a builder, by name, those that died included.
    pub(crate) fn list(&self, builder: &str) -> Vec<Arc<Machine>> {
        let mut machines: Vec<_> = self
            .machines()
            .iter()
            .filter(|(owner, _)| owner.builder == builder)
            .filter_map(|(_, entry)| match entry {
                Entry::Machine(machine) => Some(Arc::clone(machine)),
                Entry::Starting(_) => None,
            })
            .collect();
        machines.sort_by(|a, b| a.facts.owner.cmp(&b.facts.owner));
        machines
    }

    /// Stops the builder's machine of this name; nothing if it has none. Stopping goes on if the future is dropped.
    pub(crate) async fn stop(&self, owner: &Owner, patience: Option<Duration>) -> Option<Result<Stopped, VmError>> {
        let entry = {
            let mut machines = self.machines();
            match machines.get(owner) {
                Some(Entry::Machine(_)) => machines.remove(owner),
                Some(Entry::Starting(_)) | None => None,
            }
        };
        let Some(Entry::Machine(machine)) = entry else { return None };
        Some(self.stop_machine(machine, patience).await)
    }

    /// Stops the machines of a builder. They are not the builder's any more when this returns; the future waits until
    /// they have stopped.
    pub(crate) fn release(&self, builder: &str, why: &str) -> impl Future<Output = ()> + Send + use<> {
        self.release_those(&|owner| owner.builder == builder, why)
    }

    /// Stops every machine of every builder, as [`Pool::release`] does: all builds are over, or the worker ends.
    pub(crate) fn release_all(&self, why: &str) -> impl Future<Output = ()> + Send + use<> {
        self.release_those(&|_| true, why)
    }

    fn release_those(&self, whose: &dyn Fn(&Owner) -> bool, why: &str) -> impl Future<Output = ()> + Send + use<> {
        let mut machines = Vec::new();
        self.machines().retain(|owner, entry| match entry {
            Entry::Machine(machine) if whose(owner) => {
                machines.push(Arc::clone(machine));
                false
            }
            Entry::Starting(_) => !whose(owner),
            Entry::Machine(_) => true,
        });
        if !machines.is_empty() {
            info!(machines = machines.len(), "stopping machines: {why}");
        }
        let pool = self.clone();
        async move {
            let stops = machines.into_iter().map(|machine| pool.stop_machine(machine, None));
            futures_util::future::join_all(stops).await;
        }
    }

    /// Ends the pool: stops every machine, within `deadline` for all of it, and waits until the slots are clean.
    pub(crate) async fn close(&self, deadline: Duration) {
        let closing = async {
            self.release_all("the worker is stopping").await;
            self.0.tasks.close();
            self.0.tasks.wait().await;
            self.0.slots.settled().await;
        };
        if tokio::time::timeout(deadline, closing).await.is_err() {
            warn!("machines did not stop in time; they are killed now");
        }
    }

    fn machines(&self) -> MutexGuard<'_, HashMap<Owner, Entry>> {
        self.0.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the name for a machine that is about to be started.
    fn claim(&self, owner: &Owner) -> Result<Claim<'_>, VmError> {
        let mut machines = self.machines();
        match machines.get(owner) {
            Some(Entry::Machine(machine)) if machine.status() == Status::Up => {
                return Err(VmError::AlreadyRunning(owner.vm.clone()));
            }
            Some(Entry::Starting(_)) => return Err(VmError::AlreadyRunning(owner.vm.clone())),
            Some(Entry::Machine(_)) | None => {}
        }
        let token = Arc::new(());
        machines.insert(owner.clone(), Entry::Starting(Arc::clone(&token)));
        Ok(Claim { pool: self, owner: owner.clone(), token })
    }

    /// A builder has one build at a time on a worker, so machines of another build than this one are left over.
    async fn release_earlier(&self, order: &Order) {
        let Some(build) = order.build else { return };
        for machine in self.list(&order.owner.builder) {
            if machine.facts.build.is_some_and(|earlier| earlier != build) {
                info!(slot = machine.facts.slot, "stopping a machine that an earlier build of the builder left");
                self.stop(&machine.facts.owner, None).await;
            }
        }
    }

    async fn stop_machine(&self, machine: Arc<Machine>, patience: Option<Duration>) -> Result<Stopped, VmError> {
        let patience = patience.unwrap_or(self.0.config.shutdown_timeout);
        let vm = machine.facts.owner.vm.clone();
        let stopping = self.0.tasks.spawn(async move { machine.stop(patience).await });
        stopping.await.unwrap_or_else(|error| Err(VmError::StopFailed { vm, why: error.to_string() }))
    }
}

/// A name that is taken for a machine being started; given back when dropped.
struct Claim<'a> {
    pool: &'a Pool,
    owner: Owner,
    token: Arc<()>,
}

impl Claim<'_> {
    /// Hands the machine to the builder, unless the builder was released meanwhile.
    fn fulfil(self, machine: &Arc<Machine>) -> Result<(), VmError> {
        let mut machines = self.pool.machines();
        if !self.holds(&machines) {
            let reason = format!("vm '{}' was given up while it was being started", self.owner.vm);
            return Err(VmError::Lost { reason });
        }
        machines.insert(self.owner.clone(), Entry::Machine(Arc::clone(machine)));
        Ok(())
    }

    fn holds(&self, machines: &HashMap<Owner, Entry>) -> bool {
        matches!(machines.get(&self.owner), Some(Entry::Starting(token)) if Arc::ptr_eq(token, &self.token))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut machines = self.pool.machines();
        if self.holds(&machines) {
            machines.remove(&self.owner);
        }
    }
}
