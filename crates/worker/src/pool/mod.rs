//! The machines: slots for them, starting them for builders, and giving them up whatever happens.
//!
//! The pool knows builders and builds by name and number only, and nothing of steps or protocols.

mod disks;
mod error;
mod host_keys;
mod machine;
mod slot;
mod slots;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use protocol::command::{Mode, Name};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, info_span, warn};

use crate::config::{self, Config, Image};
pub(crate) use error::VmError;
pub(crate) use machine::{Facts, Machine, Owner, Status, Stopped};
use machine::{Resources, description};
use slot::Slot;
pub(crate) use slots::Census;
use slots::{Lease, Slots};

/// How long a slot may take to become free at the start, where an earlier run's QEMU may have to be ended.
const SETTLING: Duration = Duration::from_secs(60);

/// How much of the console a failed boot shows, in bytes.
const CONSOLE_TAIL: usize = 4000;

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
    qemu: qemu::Qemu,
    accelerator: qemu::Accelerator,
    slots: Slots,
    disks: disks::Disks,
    host_keys: host_keys::HostKeys,
    machines: Mutex<HashMap<Owner, Entry>>,
    /// The tasks that watch and stop machines.
    tasks: TaskTracker,
    /// Two daemons with one state directory would take each other's machines for leftovers.
    _lock: std::fs::File,
}

/// What a builder has under a name.
#[derive(Debug, Clone)]
enum Entry {
    /// It is being started.
    Starting,
    /// It is there, or was until it died.
    Machine(Arc<Machine>),
}

impl Pool {
    /// Opens the pool: claims the state directory, looks at what QEMU can do and deals with what an earlier run left.
    pub(crate) async fn open(config: &Config) -> anyhow::Result<Self> {
        let pool = config.pool.clone();
        let lock = claim(&pool.state_dir)?;
        let qemu = qemu::Qemu::probe(&pool.qemu, &pool.qemu_img)
            .await
            .context("look at QEMU; install qemu-system-x86 and qemu-utils, or set pool.qemu and pool.qemu_img")?;
        let accelerated = qemu.accelerator(pool.accel).await.context("choose what executes guest code (pool.accel)")?;
        info!(version = qemu.version(), accelerator = ?accelerated.accelerator, "qemu: {}", accelerated.reason);
        let directory = pool.state_dir.join("slots");
        slots::clean_beyond(&directory, pool.slots, pool.ssh_port_base).await;
        let slots =
            Slots::new((0..pool.slots).map(|number| Slot::new(number, pool.ssh_port_base, &directory)).collect());
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
            qemu,
            accelerator: accelerated.accelerator,
            slots,
            disks: disks::Disks::new(pool.state_dir.join("disks")),
            host_keys: host_keys::HostKeys::new(pool.state_dir.join("host_keys")),
            machines: Mutex::default(),
            tasks: TaskTracker::new(),
            config: pool,
            _lock: lock,
        })))
    }

    /// How the slots are.
    pub(crate) fn census(&self) -> Census {
        self.0.slots.census()
    }

    /// Starts a machine and waits until its guest runs commands. Dropping the future ends what was begun.
    pub(crate) async fn start(&self, order: Order, progress: &dyn Progress) -> Result<Arc<Machine>, VmError> {
        let image = self.0.images.get(&order.image).cloned().ok_or_else(|| VmError::NoSuchImage {
            image: order.image.clone(),
            known: self.0.images.keys().cloned().collect(),
        })?;
        self.release_earlier(&order).await;
        let claim = self.claim(&order.owner)?;
        let span = info_span!("vm", builder = order.owner.builder, vm = %order.owner.vm, image = %order.image);
        let machine = Arc::new(self.boot(order, image, progress).instrument(span.clone()).await?);
        info!(parent: &span, slot = machine.facts.slot, vm_pid = machine.facts.pid, seconds = machine.facts.took.as_secs_f32(), "vm started");
        claim.fulfil(&machine);
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
            Some(Entry::Starting) | None => Err(VmError::NotRunning(owner.vm.clone())),
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
                Entry::Starting => None,
            })
            .collect();
        machines.sort_by(|a, b| a.facts.owner.cmp(&b.facts.owner));
        machines
    }

    /// Stops the builder's machine of this name; nothing if it has none. Stopping goes on if the future is dropped.
    pub(crate) async fn stop(&self, owner: &Owner, patience: Option<Duration>) -> Option<Stopped> {
        let entry = {
            let mut machines = self.machines();
            match machines.get(owner) {
                Some(Entry::Machine(_)) => machines.remove(owner),
                Some(Entry::Starting) | None => None,
            }
        };
        let Some(Entry::Machine(machine)) = entry else { return None };
        Some(self.stop_machine(machine, patience).await)
    }

    /// Stops every machine of every builder: all builds are over, or the worker ends.
    pub(crate) async fn release_all(&self, why: &str) {
        let machines: Vec<_> = {
            let mut entries = self.machines();
            let (gone, kept) = entries.drain().partition(|(_, entry)| matches!(entry, Entry::Machine(_)));
            *entries = kept;
            let gone: HashMap<Owner, Entry> = gone;
            gone.into_values()
                .filter_map(|entry| match entry {
                    Entry::Machine(machine) => Some(machine),
                    Entry::Starting => None,
                })
                .collect()
        };
        if !machines.is_empty() {
            info!(machines = machines.len(), "stopping machines: {why}");
        }
        let stops = machines.into_iter().map(|machine| self.stop_machine(machine, None));
        futures_util::future::join_all(stops).await;
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
        if self.0.tasks.is_closed() {
            return Err(VmError::Stopping);
        }
        let mut machines = self.machines();
        match machines.get(owner) {
            Some(Entry::Machine(machine)) if machine.status() == Status::Up => {
                return Err(VmError::AlreadyRunning(owner.vm.clone()));
            }
            Some(Entry::Starting) => return Err(VmError::AlreadyRunning(owner.vm.clone())),
            Some(Entry::Machine(_)) | None => {}
        }
        machines.insert(owner.clone(), Entry::Starting);
        Ok(Claim { pool: self, owner: owner.clone() })
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

    async fn stop_machine(&self, machine: Arc<Machine>, patience: Option<Duration>) -> Stopped {
        let patience = patience.unwrap_or(self.0.config.shutdown_timeout);
        let stopping = self.0.tasks.spawn(async move { machine.stop(patience).await });
        stopping.await.unwrap_or_else(|error| Stopped { how: error.to_string(), after: Duration::ZERO })
    }

    async fn boot(&self, order: Order, image: Arc<Image>, progress: &dyn Progress) -> Result<Machine, VmError> {
        let asked = Instant::now();
        let mut resources = self.resources(&order, progress).await?;
        let slot = resources.lease.slot().clone();
        let failed = |why: String| VmError::BootFailed {
            vm: order.owner.vm.clone(),
            image: order.image.clone(),
            slot: slot.number(),
            why,
        };
        let vm = self.run_qemu(&order, &image, &mut resources).await.map_err(|error| failed(format!("{error:#}")))?;
        progress.say(format!("slot {slot}: qemu started as process {}", vm.pid())).await;
        progress.console(&slot.console_log());
        let policy = self.0.host_keys.policy(&order.image, &image).map_err(|error| failed(format!("{error:#}")))?;
        let learning = matches!(policy, ssh::HostKeyPolicy::Learn);
        let timeout = order.timeout.unwrap_or(image.boot_timeout);
        let answering = answer(&slot, &image, policy, timeout);
        let session = match vm.boot(answering, timeout).await {
            Ok(session) => session,
            Err(error) => {
                let console = vm.console_tail(CONSOLE_TAIL).unwrap_or_default();
                return Err(failed(with_console(&error.to_string(), &console)));
            }
        };
        if learning {
            self.0.host_keys.learn(&order.image, session.host_key()).map_err(|error| failed(format!("{error:#}")))?;
        }
        let environment = environment(&session).await.map_err(|error| failed(format!("{error:#}")))?;
        let facts = Facts {
            build: order.build,
            bind: order.bind,
            slot: slot.number(),
            ssh_port: slot.ssh_port(),
            pid: vm.pid(),
            image_name: order.image,
            mode: order.mode,
            took: asked.elapsed(),
            owner: order.owner,
        };
        Ok(Machine::new(facts, image, session, environment, vm, resources))
    }

    /// Waits, bounded, for what the machine will occupy: first the disk, because holding a slot keeps others from it.
    async fn resources(&self, order: &Order, progress: &dyn Progress) -> Result<Resources, VmError> {
        let waited = self.0.config.acquire_timeout;
        let deadline = Instant::now() + waited;
        let disk = match order.mode {
            Mode::Fresh => None,
            Mode::Persistent => {
                let vm = &order.owner.vm;
                let mut lock = Box::pin(self.0.disks.lock(&order.image, vm));
                let lock = match futures_util::poll!(&mut lock) {
                    std::task::Poll::Ready(lock) => lock,
                    std::task::Poll::Pending => {
                        progress
                            .say(format!("waiting for the persistent disk '{vm}', which another builder uses"))
                            .await;
                        tokio::time::timeout_at(deadline, lock).await.map_err(|_| VmError::DiskInUse {
                            image: order.image.clone(),
                            vm: vm.clone(),
                            waited,
                        })?
                    }
                };
                Some(lock)
            }
        };
        Ok(Resources { lease: self.lease(deadline, progress).await?, disk })
    }

    async fn lease(&self, deadline: Instant, progress: &dyn Progress) -> Result<Lease, VmError> {
        let Census { slots, free, quarantined } = self.census();
        if free == 0 {
            let broken = match quarantined.len() {
                0 => String::new(),
                count => format!(", {count} of them because they can't be cleaned"),
            };
            progress.say(format!("waiting for a slot: all {slots} are in use{broken}")).await;
        }
        tokio::time::timeout_at(deadline, self.0.slots.lease())
            .await
            .map_err(|_| VmError::PoolFull { slots, waited: self.0.config.acquire_timeout })
    }

    async fn run_qemu(&self, order: &Order, image: &Image, resources: &mut Resources) -> anyhow::Result<qemu::Vm> {
        let slot = resources.lease.slot();
        make_private_directory(slot.directory())?;
        let overlay = slot.overlay();
        let disk = match &resources.disk {
            Some(lock) => lock.open(&self.0.qemu, image).await?,
            None => {
                self.0.qemu.create_overlay(&machine::base(image), &overlay).await?;
                &overlay
            }
        };
        let description = description(image, order, slot, disk, self.0.accelerator);
        let files =
            qemu::Files { pidfile: slot.pid_file(), qmp_socket: slot.qmp_socket(), console_log: slot.console_log() };
        Ok(qemu::Vm::start(&self.0.qemu, &description, files).await?)
    }
}

/// A name that is taken for a machine being started; given back when dropped.
struct Claim<'a> {
    pool: &'a Pool,
    owner: Owner,
}

impl Claim<'_> {
    fn fulfil(self, machine: &Arc<Machine>) {
        self.pool.machines().insert(self.owner.clone(), Entry::Machine(Arc::clone(machine)));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut machines = self.pool.machines();
        if matches!(machines.get(&self.owner), Some(Entry::Starting)) {
            machines.remove(&self.owner);
        }
    }
}

/// Logs in as soon as the guest lets us.
async fn answer(
    slot: &Slot,
    image: &Image,
    host_key: ssh::HostKeyPolicy,
    timeout: Duration,
) -> Result<ssh::Session, anyhow::Error> {
    let identity = ssh::Identity::load(&image.key)?;
    let target = ssh::Target {
        address: (std::net::Ipv4Addr::LOCALHOST, slot.ssh_port()).into(),
        user: image.user.clone(),
        identity,
        host_key,
    };
    let ready = ssh::wait_until_ready(&target, &ssh::Timing::default(), &ssh::Readiness::within(timeout)).await?;
    Ok(ready.session)
}

/// The environment that commands have in the guest.
async fn environment(session: &ssh::Session) -> anyhow::Result<Vec<(String, String)>> {
    const LIMIT: usize = 256 * 1024;
    let process = session.exec(ssh::Exec::argv(["env", "-0"])).await.context("read the guest's environment")?;
    let output = process.output(LIMIT).await.context("read the guest's environment")?;
    Ok(output
        .stdout
        .split(|byte| *byte == 0)
        .filter_map(|variable| std::str::from_utf8(variable).ok()?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

fn with_console(error: &str, console: &str) -> String {
    match console.trim() {
        "" => format!("{error}; its console is empty"),
        console => format!("{error}; its console's last lines:\n{console}"),
    }
}

/// Makes the state directory ours alone, for as long as the file lives.
fn claim(state_dir: &Path) -> anyhow::Result<std::fs::File> {
    make_private_directory(state_dir)?;
    let path = state_dir.join("lock");
    let mut file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = std::io::Read::read_to_string(&mut file, &mut pid);
            anyhow::bail!(
                "another kvm-worker (process {}) uses {}; stop it, or give this one another pool.state_dir",
                pid.trim(),
                state_dir.display()
            );
        }
        Err(std::fs::TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock {}", path.display()));
        }
    }
    file.set_len(0)?;
    std::io::Write::write_all(&mut file, format!("{}\n", std::process::id()).as_bytes())?;
    Ok(file)
}

fn make_private_directory(directory: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("make {}", directory.display()))
}
