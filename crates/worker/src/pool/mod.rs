//! The machines: slots for them, starting them for builders, and giving them up whatever happens.
//!
//! The pool knows builders and builds by name and number only, and nothing of steps or protocols.

mod blame;
mod board;
mod boot;
mod budget;
mod clone;
mod console;
mod disks;
mod error;
mod garbage;
mod generations;
mod greeting;
mod guest_basedir;
mod guest_command;
mod hold;
mod host_keys;
mod host_memory;
mod identity;
mod image_use;
mod leasing;
mod machine;
mod network;
mod prepare;
mod published;
mod raised;
mod reboot;
mod refresh;
mod registry;
mod report;
mod restorer;
mod save;
mod setup;
mod slot;
mod slots;
mod ssh_command;
mod state_dir;
mod templates;
mod term;
mod turn;
mod visit;
mod warm;
mod way_in;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use protocol::command::{Mode, Name};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, error_span, info, warn};

use crate::config::{self, Config};
use crate::core_tasks::{CoreTasks, End};
pub(crate) use board::{Occupant, SlotState};
use budget::Budget;
pub(crate) use budget::{Excess, QEMU_MIB, Space};
#[cfg(test)]
pub(crate) use console::BLOCK as CONSOLE_BLOCK;
pub(crate) use console::{ConsoleFile, POLL as CONSOLE_POLL, Piece as ConsolePiece};
pub(crate) use error::VmError;
pub(crate) use garbage::{Collected, Kind, Piece, Wish, collect_offline};
use generations::Generations;
pub(crate) use generations::{Generation, Manifest, SavedGenerations, look as look_at_generations};
#[cfg(test)]
pub(crate) use guest_basedir::GuestBasedir;
pub(crate) use hold::{Held, Hold};
pub(crate) use host_keys::file as host_key_file;
pub(crate) use host_memory::budget_mib as host_memory_mib;
pub(crate) use image_use::ImageUse;
use leasing::Leased;
pub(crate) use leasing::ReadyImages;
pub(crate) use machine::{Fate, Login, Machine, Owner, Status, Stopped, base as base_of, sentence};
pub(crate) use reboot::Rebooted;
pub(crate) use registry::Scope;
use registry::{Registry, Tenant, Token};
pub(crate) use report::SlotReport;
pub(crate) use save::Saved;
use setup::Setup;
pub(crate) use slots::Census;
use slots::Slots;
pub(crate) use slots::{is_left, port_is_free};
pub(crate) use ssh_command::{SshCommand, shell_word};
use state_dir::ClaimError;
pub(crate) use state_dir::{Flaw, flaw, neighbour};
use templates::Templates;
pub(crate) use templates::{Listed, Made, Outlook, State};
pub(crate) use turn::Wait;
pub(crate) use visit::Visit;

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
    /// The longest the builder is to have it, if that is less than the configuration allows.
    pub ttl: Option<Duration>,
    /// The private network it is to be on.
    pub network: Option<Name>,
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
    /// The worker's base directory.
    basedir: PathBuf,
    setup: watch::Sender<Setup>,
    /// Two daemons with one state directory would take each other's machines for leftovers. Not set if there are no images, and
    /// no directory either.
    claim: OnceLock<state_dir::Claim>,
    /// Set as soon as there are images.
    hypervisor: OnceLock<Hypervisor>,
    slots: Slots,
    budget: Budget,
    disks: disks::Disks,
    generations: Generations,
    templates: Templates,
    warm: warm::Warm,
    host_keys: host_keys::HostKeys,
    networks: network::Networks,
    machines: Mutex<Registry<Machine>>,
    /// The tasks that watch and stop machines.
    tasks: TaskTracker,
    /// What watches those of them that are missed.
    core: CoreTasks,
}

/// What runs machines.
#[derive(Debug)]
struct Hypervisor {
    qemu: qemu::Qemu,
    accelerator: qemu::Accelerator,
}

impl Hypervisor {
    /// Looks at what QEMU can do.
    async fn look(pool: &config::Pool) -> anyhow::Result<Self> {
        let qemu = qemu::Qemu::probe(&pool.qemu, &pool.qemu_img)
            .await
            .context("look at QEMU; install qemu-system-x86 and qemu-utils, or set pool.qemu and pool.qemu_img")?;
        let accelerated = qemu.accelerator(pool.accel).await.context("choose what executes guest code (pool.accel)")?;
        info!(version = qemu.version(), accelerator = ?accelerated.accelerator, "qemu: {}", accelerated.reason);
        Ok(Hypervisor { qemu, accelerator: accelerated.accelerator })
    }
}

impl Hypervisor {
    /// What executes the guests' code, for what in a guest depends on its speed.
    fn processor(&self) -> ssh::Processor {
        match self.accelerator {
            qemu::Accelerator::Tcg => ssh::Processor::Emulated,
            qemu::Accelerator::Kvm => ssh::Processor::Real,
        }
    }
}

impl Tenant for Machine {
    fn status(&self) -> Status {
        Machine::status(self)
    }
}

impl Pool {
    /// Opens the pool: claims the state directory, looks at what QEMU can do and deals with what an earlier run left.
    /// Without an image there is nothing to start: the directory is claimed if it can be, and the rest is not needed.
    pub(crate) async fn open(config: &Config, core: &CoreTasks) -> anyhow::Result<Self> {
        let pool = Pool::open_for_one(config, core).await?;
        pool.keep_up();
        Ok(pool)
    }

    /// Opens the pool for one machine: templates that there are are used, and nothing is made for machines to come.
    pub(crate) async fn open_for_one(config: &Config, core: &CoreTasks) -> anyhow::Result<Self> {
        let state_dir = &config.pool.state_dir;
        let budget = Budget::open(&config.pool);
        let setup = Setup::empty(&config.pool);
        let pool = Pool(Arc::new(Inner {
            basedir: config.worker.basedir.clone(),
            generations: Generations::open(state_dir, &setup.images, core),
            templates: Templates::new(state_dir, &config.worker.basedir),
            warm: warm::Warm::default(),
            claim: OnceLock::new(),
            hypervisor: OnceLock::new(),
            slots: Slots::new(budget.clone(), core),
            budget,
            disks: disks::Disks::new(disks::directory(state_dir)),
            host_keys: host_keys::HostKeys::new(host_keys::directory(state_dir)),
            networks: network::Networks::default(),
            machines: Mutex::new(Registry::new()),
            tasks: TaskTracker::new(),
            core: core.clone(),
            setup: watch::Sender::new(setup),
        }));
        match pool.claim_state_dir(&config.pool) {
            // It may have run for years without such a directory.
            Err(ClaimError::Unusable(error)) if config.images.is_empty() => {
                debug!("does without pool.state_dir: {error:#}");
            }
            claimed => drop(claimed?),
        }
        pool.take_up(config).await?;
        Ok(pool)
    }

    /// Makes the state directory ours, unless it is.
    fn claim_state_dir(&self, config: &config::Pool) -> Result<&state_dir::Claim, ClaimError> {
        match self.0.claim.get() {
            Some(claim) => Ok(claim),
            None => {
                let claim = state_dir::claim(&config.state_dir)?;
                Ok(self.0.claim.get_or_init(|| claim))
            }
        }
    }

    /// Starts a machine and waits until its guest runs commands. Dropping the future ends what was begun.
    pub(crate) async fn start(&self, order: Order, progress: &dyn Progress) -> Result<Arc<Machine>, VmError> {
        let hypervisor = self.hypervisor_for(&order.image)?;
        if let Some(build) = order.build {
            let scope = Scope::OtherBuilds { builder: &order.owner.builder, build };
            self.release(scope, "an earlier build of the builder left them").await;
        }
        let claim = self.claim(&order)?;
        // Within the command's, which has the builder.
        let span = error_span!("vm", vm = %order.owner.vm, image = %order.image, slot = Empty);
        // What is in there is large: a state machine of some tens of kilobytes, which each one around it would have on its stack.
        let starting = Box::pin(self.start_for(&order, hypervisor, progress));
        let started = starting.instrument(span).await;
        let machine = match started {
            Ok(machine) => machine,
            Err(error) => {
                claim.give_up(&error);
                return Err(error);
            }
        };
        let (how, seconds) = (machine.facts.how.as_str(), machine.facts.took.as_secs_f32());
        machine.span.in_scope(|| info!(how, seconds, "vm started"));
        claim.fulfil(&machine)?;
        self.watch(&machine);
        Ok(machine)
    }

    /// Sees to it that what a machine occupied is freed when it ends, whatever ends it.
    fn watch(&self, machine: &Arc<Machine>) {
        let watched = Arc::clone(machine);
        let (patience, pool, span) = (self.config().shutdown_timeout, self.clone(), machine.span.clone());
        let watching = async move {
            let status = watched.watch(patience).await;
            pool.machines().let_go(&watched);
            match status {
                Status::Died { reason } => warn!(why = sentence(&reason), "the vm ended by itself"),
                Status::Expired { reason } | Status::Outgrown { reason } => {
                    warn!(why = sentence(&reason), "the vm was ended");
                }
                Status::Up | Status::Stopped => info!("vm stopped"),
            }
        };
        self.0.tasks.spawn(self.0.core.watch("the task that watches a vm", End::Done, watching.instrument(span)));
    }

    /// Gives the builder a machine that is ready, or raises one in a slot of its own.
    async fn start_for(
        &self,
        order: &Order,
        hypervisor: &Hypervisor,
        progress: &dyn Progress,
    ) -> Result<Arc<Machine>, VmError> {
        let asked = Instant::now();
        let start = self.0.warm.begin();
        let image = self.image(&order.image)?;
        let longest = self.config().time_to_live;
        let time_to_live = order.ttl.map_or(longest, |asked| asked.min(longest));
        if let Some(spare) = self.take_spare(order, &image, hypervisor, progress).await {
            return Ok(spare.given_to(order, asked, time_to_live));
        }
        drop(start);
        let Leased { image, lease, start: _start, after_pause } = self.lease(order, image, progress).await?;
        if after_pause && let Some(spare) = self.take_spare(order, &image, hypervisor, progress).await {
            return Ok(spare.given_to(order, asked, time_to_live));
        }
        lease.notice().occupied_by(Occupant::ordered(order));
        let slot = lease.slot().number();
        Span::current().record("slot", slot);
        let raised = async {
            let raised = Box::pin(self.raise(order, image, hypervisor, lease, progress)).await?;
            let machine = raised.given_to(order, asked, time_to_live);
            if let Some(membership) = machine.membership() {
                membership.introduce(&machine).await?;
            }
            anyhow::Ok(machine)
        };
        raised.await.map_err(|error| VmError::BootFailed {
            vm: order.owner.vm.clone(),
            image: order.image.clone(),
            slot,
            why: format!("{error:#}"),
        })
    }

    /// Gives builds no machines until [`resume`](Self::resume): they wait, within their time. Machines that they have are
    /// left alone, and so are those that are kept ready; none is made to be.
    pub(crate) fn pause(&self) {
        self.0.slots.pause(true);
    }

    /// Gives them machines again.
    pub(crate) fn resume(&self) {
        self.0.slots.pause(false);
    }

    /// The builders that have a machine, or for which one is being started.
    pub(crate) fn builders(&self) -> BTreeSet<String> {
        self.machines().builders()
    }

    /// The builder's machine of this name.
    pub(crate) fn find(&self, owner: &Owner) -> Result<Arc<Machine>, VmError> {
        self.machines().find(owner)
    }

    /// The machine that the builder's commands run in unless they say otherwise; none if the builder has bound none.
    ///
    /// # Errors
    /// One is bound and is not there: the commands have nowhere to run.
    pub(crate) fn bound(&self, builder: &str) -> Result<Option<Arc<Machine>>, VmError> {
        self.machines().bound(builder)
    }

    /// All machines of a builder, by name, those that died included.
    pub(crate) fn list(&self, builder: &str) -> Vec<Arc<Machine>> {
        self.machines().list(builder)
    }

    /// Stops the builder's machine of this name; nothing if it has none. Stopping goes on if the future is dropped.
    pub(crate) async fn stop(&self, owner: &Owner, patience: Option<Duration>) -> Option<Result<Stopped, VmError>> {
        let machine = self.machines().take(owner)?;
        Some(self.stop_machine(machine, patience).await)
    }

    /// Stops machines. They are not their builders' any more when this returns; the future waits until they have stopped,
    /// which goes on if it is dropped.
    pub(crate) fn release(&self, scope: Scope<'_>, why: &str) -> impl Future<Output = ()> + Send + use<> {
        let machines = self.machines().release(scope);
        if !machines.is_empty() {
            info!(machines = machines.len(), "stopping machines: {why}");
        }
        let stops: Vec<_> = machines.into_iter().map(|machine| self.stop_machine(machine, None)).collect();
        async move {
            futures_util::future::join_all(stops).await;
        }
    }

    /// Ends the pool: stops every machine, within `deadline` for all of it, and waits until the slots are clean.
    pub(crate) async fn close(&self, deadline: Duration) {
        self.0.warm.close();
        self.0.templates.close();
        let closing = async {
            let held: Vec<_> = self.machines().of_people().cloned().collect();
            let held = held.into_iter().map(|machine| self.stop_machine(machine, None));
            let held = futures_util::future::join_all(held.collect::<Vec<_>>());
            tokio::join!(held, self.release(Scope::All, "the worker is stopping"));
            self.0.tasks.close();
            self.0.tasks.wait().await;
            self.0.slots.settled().await;
        };
        if tokio::time::timeout(deadline, closing).await.is_err() {
            warn!("machines did not stop in time; they are killed now");
        } else if let (Some(claim), true) = (self.0.claim.get(), self.0.hypervisor.get().is_some()) {
            claim.end();
        }
    }

    /// Waits for a sign of life of what nothing goes on without: false if there will be none.
    pub(crate) async fn is_alive(&self) -> bool {
        // A lock that nobody gives back holds up whoever asks, too.
        drop(self.machines());
        self.0.slots.answer().await
    }

    /// What changes with the slots.
    pub(crate) fn changes(&self) -> watch::Receiver<Census> {
        self.0.slots.changes()
    }

    fn machines(&self) -> MutexGuard<'_, Registry<Machine>> {
        self.0.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs machines of an image, if there is such an image.
    fn hypervisor_for(&self, image: &Name) -> Result<&Hypervisor, VmError> {
        self.image(image)?;
        let none = || VmError::NoSuchImage { image: image.clone(), known: Vec::new() };
        self.0.hypervisor.get().ok_or_else(none)
    }

    fn claim(&self, order: &Order) -> Result<Claim<'_>, VmError> {
        let token = self.machines().claim(&order.owner, order.build, order.bind)?;
        Ok(Claim { pool: self, owner: order.owner.clone(), token })
    }

    /// Begins to stop a machine; the future waits for the end of that.
    fn stop_machine(
        &self,
        machine: Arc<Machine>,
        patience: Option<Duration>,
    ) -> impl Future<Output = Result<Stopped, VmError>> + Send + use<> {
        let patience = patience.unwrap_or_else(|| self.config().shutdown_timeout);
        let vm = machine.facts.owner.vm.clone();
        let span = machine.span.clone();
        let stopping = self.0.tasks.spawn(async move { machine.stop(patience).await }.instrument(span));
        async move { stopping.await.unwrap_or_else(|error| Err(VmError::StopFailed { vm, why: error.to_string() })) }
    }
}

/// A name that is taken for a machine being started; given up when dropped.
struct Claim<'a> {
    pool: &'a Pool,
    owner: Owner,
    token: Token,
}

impl Claim<'_> {
    /// Hands the machine to the builder, unless the builder was released meanwhile.
    fn fulfil(self, machine: &Arc<Machine>) -> Result<(), VmError> {
        self.pool.machines().fulfil(&self.owner, &self.token, machine)
    }

    /// Notes that there will be no machine.
    fn give_up(self, why: &VmError) {
        let why = sentence(&why.to_string()).to_owned();
        self.pool.machines().give_up(&self.owner, &self.token, why);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let reason = format!("the start of vm '{}' was interrupted", self.owner.vm);
        self.pool.machines().give_up(&self.owner, &self.token, reason);
    }
}

/// Reads the text of a file in the state directory as each of those that there are, for the fuzz targets.
#[cfg(fuzzing)]
pub(crate) fn understand(text: &str) {
    let _ = state_dir::parse(text);
    let _ = serde_json::from_str::<Manifest>(text);
    let _ = serde_json::from_str::<templates::TemplateManifest>(text);
    let _ = text.trim().parse::<ssh::HostKey>();
}
