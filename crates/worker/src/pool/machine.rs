//! One machine in a slot: its QEMU, the ssh session with its guest, and who uses it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::Value;
use protocol::command::{Mode, Name};
use qemu::{Patience, Rung, Shutdown};
use ssh::Session;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Span, error, error_span, warn};

use super::VmError;
use super::board::{Notice, SlotState};
use super::guest_basedir::GuestBasedir;
use super::guest_command;
use super::network::Membership;
use super::slots::Lease;
use super::term::{self, Term};
use crate::config::{DiskFormat, Image};
use crate::info;

/// Which builder a machine belongs to, and what the builder calls it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub builder: String,
    pub vm: Name,
}

/// What is known of a machine from its start on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Facts {
    pub owner: Owner,
    /// The master's number of the build.
    pub build: Option<u64>,
    /// Whether the builder's commands run in it unless they say otherwise.
    pub bind: bool,
    pub slot: u16,
    pub ssh_port: u16,
    pub pid: u32,
    pub image_name: Name,
    pub mode: Mode,
    /// Its processors, and its memory in MiB.
    pub cpus: u32,
    pub memory_mib: u32,
    /// The generation of the image that its disk was made on.
    pub generation: u32,
    pub how: How,
    /// From the request to the guest's first command.
    pub took: Duration,
    /// The private network it is on, and its address there.
    pub network: Option<(Name, Ipv4Addr)>,
}

impl Facts {
    /// Its address in a private network, if it is on one.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        self.network.as_ref().map(|(_, address)| *address)
    }
}

/// How a machine came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// It was booted.
    Boot,
    /// It was restored from a template when it was asked for.
    Clone,
    /// It was restored from a template before, and waited.
    Warm,
}

impl How {
    /// What it is called on the wire (`how`).
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            How::Boot => "boot",
            How::Clone => "clone",
            How::Warm => "warm",
        }
    }

    /// What happened to it, for people.
    pub(crate) fn sentence(self) -> &'static str {
        match self {
            How::Boot => "booted",
            How::Clone => "cloned",
            How::Warm => "warm and handed out",
        }
    }
}

/// Whether a machine is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    /// Its guest runs.
    Up,
    /// It was stopped because somebody asked.
    Stopped,
    /// It ended by itself; the reason is a sentence.
    Died { reason: String },
    /// The time that the builder might have it is over; the reason is a sentence.
    Expired { reason: String },
    /// Its disk grew beyond what it may; the reason is a sentence.
    Outgrown { reason: String },
}

/// How a machine was stopped.
#[derive(Debug, Clone)]
pub(crate) struct Stopped {
    /// What ended it, such as `powerdown` or `quit`.
    pub how: String,
    pub after: Duration,
}

impl From<qemu::Ended> for Stopped {
    fn from(ended: qemu::Ended) -> Self {
        let how = ended.rung.map_or_else(|| "it had ended already".to_owned(), |rung| rung.to_string());
        Stopped { how, after: ended.after }
    }
}

/// The way into a guest, and what commands find there.
#[derive(Debug)]
pub(crate) struct Login {
    pub session: Session,
    /// The environment of a command.
    pub environment: Vec<(String, String)>,
    /// What the worker's base directory is called there.
    pub basedir: GuestBasedir,
}

/// How long it may take until the end of a QEMU is seen.
const UNSEEN: Duration = Duration::from_secs(2);

/// Tells when a machine is not there any more.
#[derive(Debug, Clone)]
pub(crate) struct Fate {
    vm: Name,
    status: watch::Receiver<Status>,
    /// Where those who can't do without its end say why.
    condemned: watch::Sender<Option<String>>,
}

impl Fate {
    /// The fate of a machine whose status is set by a test.
    #[cfg(test)]
    pub(crate) fn by(vm: Name, status: watch::Receiver<Status>) -> Self {
        Fate { vm, status, condemned: watch::Sender::new(None) }
    }

    /// What the machine is called.
    pub(crate) fn vm(&self) -> &Name {
        &self.vm
    }

    /// Waits until it is not there any more; says why, as a sentence.
    pub(crate) async fn gone(&self) -> String {
        let mut status = self.status.clone();
        let ended = status.wait_for(|status| *status != Status::Up).await.map(|status| status.clone());
        match ended {
            Ok(Status::Died { reason } | Status::Expired { reason } | Status::Outgrown { reason }) => reason,
            _ => format!("vm '{}' was stopped", self.vm),
        }
    }

    /// Why it is not there, for what failed in it; nothing if it is still there. Its end is seen a moment later than felt.
    pub(crate) async fn explanation(&self) -> Option<VmError> {
        let mut status = self.status.clone();
        let ended = async { status.wait_for(|status| *status != Status::Up).await.map(|status| status.clone()) };
        match tokio::time::timeout(UNSEEN, ended).await {
            Ok(Ok(Status::Expired { reason })) => Some(VmError::Expired { reason }),
            Ok(Ok(Status::Outgrown { reason })) => Some(VmError::Outgrown { reason }),
            Ok(_) => Some(VmError::Lost { reason: self.gone().await }),
            Err(_) => None,
        }
    }

    /// Has it ended, for this reason, and waits until it is on its way; says what became of it, as a sentence.
    pub(crate) async fn condemn(&self, why: &str) -> Option<String> {
        self.condemned.send_if_modified(|condemned| {
            let first = condemned.is_none();
            if first {
                *condemned = Some(why.to_owned());
            }
            first
        });
        // The console's last lines, which may follow, say nothing about it.
        let gone = tokio::time::timeout(UNSEEN, self.gone()).await.ok()?;
        Some(sentence(&gone).to_owned())
    }

    /// Waits until it is ended for what it took of the host: its time is over, or its disk has grown too large.
    pub(crate) async fn over(&self) -> VmError {
        let mut status = self.status.clone();
        let ended = status.wait_for(|status| matches!(status, Status::Expired { .. } | Status::Outgrown { .. }));
        match ended.await.map(|status| status.clone()) {
            Ok(Status::Expired { reason }) => VmError::Expired { reason },
            Ok(Status::Outgrown { reason }) => VmError::Outgrown { reason },
            // It has ended otherwise, and nobody will say anything more of it.
            _ => std::future::pending().await,
        }
    }
}

/// How long a guest may take to run a command whose console says that its kernel has panicked.
const ANSWER: Duration = Duration::from_secs(5);

/// Where in what a guest has printed its last words are looked for: at most so many bytes from the end.
const RECENT: u64 = 64 * 1024;

/// A machine whose guest answers.
#[derive(Debug)]
pub(crate) struct Machine {
    pub facts: Facts,
    /// What its life is logged in, beyond the command that started it.
    pub(super) span: Span,
    pub image: Arc<Image>,
    /// The way in, which changes when the guest restarts.
    login: Mutex<Arc<Login>>,
    /// Held by the one who makes another way in.
    pub(super) entering: tokio::sync::Mutex<()>,
    /// Where the console's output goes.
    pub console_log: PathBuf,
    pub(super) vm: qemu::Vm,
    /// Where what becomes of it is noted for people.
    notice: Notice,
    status: watch::Sender<Status>,
    /// Until when it may run.
    term: watch::Sender<Term>,
    /// Why somebody can't do without its end.
    condemned: watch::Sender<Option<String>>,
    stopping: AtomicBool,
    /// Whether its QEMU has ended and its slot was given back.
    gone: watch::Sender<bool>,
    /// How much of the console has been shown to the master, in bytes.
    console_shown: AtomicU64,
    /// The builders' directories that were made in its guest, as paths below the worker's base directory.
    made: Mutex<BTreeSet<PathBuf>>,
    /// What only this machine may use; returned when its QEMU is gone.
    lease: Mutex<Option<Lease>>,
    /// Its place in a private network, given up with the lease.
    membership: Mutex<Option<Arc<Membership>>>,
}

impl Machine {
    pub(super) fn new(
        facts: Facts,
        image: Arc<Image>,
        login: Login,
        vm: qemu::Vm,
        lease: Lease,
        membership: Option<Membership>,
        time_to_live: Duration,
    ) -> Self {
        let reason = format!(
            "the time that the builder might have vm '{}', {} s, is over",
            facts.owner.vm,
            time_to_live.as_secs()
        );
        let Facts { owner, slot, pid, image_name, .. } = &facts;
        // Not within the command that started it, which it outlives.
        let span = error_span!(parent: None, "vm", builder = owner.builder, vm = %owner.vm, image = %image_name, slot, vm_pid = pid);
        Machine {
            facts,
            span,
            image,
            login: Mutex::new(Arc::new(login)),
            entering: tokio::sync::Mutex::default(),
            console_log: lease.slot().console_log(),
            notice: lease.notice().clone(),
            vm,
            status: watch::Sender::new(Status::Up),
            term: watch::Sender::new(Term { until: Instant::now() + time_to_live, then: Status::Expired { reason } }),
            condemned: watch::Sender::new(None),
            stopping: AtomicBool::new(false),
            gone: watch::Sender::new(false),
            console_shown: AtomicU64::new(0),
            made: Mutex::default(),
            lease: Mutex::new(Some(lease)),
            membership: Mutex::new(membership.map(Arc::new)),
        }
    }

    /// Notes in the current span, that of a command, which machine it is about.
    pub(crate) fn tell_span(&self) {
        Span::current().record("vm", self.facts.owner.vm.as_str()).record("slot", self.facts.slot);
    }

    /// Where what becomes of it is noted for people.
    pub(super) fn notice(&self) -> &Notice {
        &self.notice
    }

    /// Whether it is there.
    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The way into its guest as far as it is known, which may be lost: see [`way_in`](Self::way_in).
    pub(crate) fn login(&self) -> Arc<Login> {
        Arc::clone(&self.login.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has those who come from now on use another way in.
    pub(super) fn set_login(&self, login: Arc<Login>) {
        // What was made in the guest may have been where a restart leaves nothing.
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.login.lock().unwrap_or_else(PoisonError::into_inner) = login;
    }

    /// What the worker's base directory is called in its guest, which is the same as long as the machine is there.
    pub(crate) fn basedir(&self) -> GuestBasedir {
        self.login().basedir.clone()
    }

    /// Its place in a private network.
    pub(super) fn membership(&self) -> Option<Arc<Membership>> {
        self.membership.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What tells when it is not there any more.
    pub(crate) fn fate(&self) -> Fate {
        Fate { vm: self.facts.owner.vm.clone(), status: self.status.subscribe(), condemned: self.condemned.clone() }
    }

    /// Tells whether a builder's directory has been made in its guest.
    pub(crate) fn has_made(&self, directory: &Path) -> bool {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).contains(directory)
    }

    /// Notes that a builder's directory has been made in its guest.
    pub(crate) fn note_made(&self, directory: &Path) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.to_owned());
    }

    /// The next part of the console to show begins at this byte.
    pub(crate) fn console_shown(&self) -> u64 {
        self.console_shown.load(Ordering::Relaxed)
    }

    /// Notes how much of the console has been shown.
    pub(crate) fn set_console_shown(&self, bytes: u64) {
        self.console_shown.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Waits for QEMU's end, or brings it about when the machine's time is over, then frees what the machine occupied. The
    /// machine's one task. `patience` is for a polite shutdown.
    pub(super) async fn watch(&self, patience: Duration) -> Status {
        let why = tokio::select! {
            never = self.leave_at_reset() => match never {},
            exit = self.vm.exited() => format!("qemu exited with {exit}"),
            halt = self.vm.halted() => {
                if halt.is_panic()
                    && let Some(panic) = self.vm.last_words(self.vm.printed().saturating_sub(RECENT)).await
                {
                    self.ended(self.panic_status(&panic));
                }
                // It would stand still for ever, and so would whoever waits for its guest.
                self.end().await;
                halt.to_string()
            }
            panic = self.panicked() => {
                self.ended(self.panic_status(&panic));
                self.end().await;
                panic.to_string()
            }
            then = term::over(&self.term) => {
                // First, so that what runs in it ends for this reason, not for one that the shutdown gives it.
                self.ended(then);
                if self.shut_down(patience).await.is_ok() { "its time was over" } else { "it could not be stopped" }.to_owned()
            }
            condemned = self.condemned() => {
                let reason = format!("vm '{}' was ended: {condemned}", self.facts.owner.vm);
                self.ended(Status::Died { reason });
                self.end().await;
                "a command in it could not be ended".to_owned()
            }
            outgrown = self.outgrown() => {
                self.ended(outgrown);
                self.end().await;
                "its disk had grown too large".to_owned()
            }
        };
        let status = if self.stopping.load(Ordering::Relaxed) {
            Status::Stopped
        } else {
            let sentence = format!("vm '{}' ended by itself: {why}", self.facts.owner.vm);
            Status::Died { reason: with_console(&sentence, &self.vm) }
        };
        drop(self.membership.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.take_lease());
        self.ended(status);
        self.gone.send_replace(true);
        self.status()
    }

    /// Waits until its guest's kernel has panicked: the console says so, and the guest has restarted or answers nobody.
    async fn panicked(&self) -> qemu::Panic {
        let mut panics = self.vm.panics(0);
        let mut said = false;
        loop {
            let panic = panics.next().await;
            let session = self.login().session.clone();
            // Who can run a command has no kernel that has panicked; anybody may print the words.
            match tokio::time::timeout(ANSWER, guest_command::run(&session, "exit 0")).await {
                // As often as it likes.
                Ok(Ok(_)) if std::mem::replace(&mut said, true) => {}
                Ok(Ok(_)) => warn!("something in the guest printed a kernel's last words, and the guest goes on"),
                Ok(Err(_)) | Err(_) => return panic,
            }
        }
    }

    /// Waits until somebody can't do without its end, and says why.
    async fn condemned(&self) -> String {
        let mut condemned = self.condemned.subscribe();
        // The sender lives in `self`.
        let why = condemned.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// What becomes of it when its guest's kernel has panicked.
    fn panic_status(&self, panic: &qemu::Panic) -> Status {
        let sentence = format!("vm '{}' ended by itself: {panic}", self.facts.owner.vm);
        Status::Died { reason: above(&panic.console, &sentence) }
    }

    /// Waits until its disk has grown beyond what it may. One that persists may grow: see `Need::of`.
    async fn outgrown(&self) -> Status {
        let limit_mib = match self.facts.mode {
            Mode::Fresh => self.image.overlay_limit_mib,
            Mode::Persistent => None,
        };
        let Some(limit_mib) = limit_mib else { return std::future::pending().await };
        if let Err(error) = self.vm.grows_beyond(u64::from(limit_mib) << 20).await {
            warn!("the growth of the machine's disk is not watched: {error}");
            return std::future::pending().await;
        }
        let Facts { owner, image_name, .. } = &self.facts;
        Status::Outgrown {
            reason: format!(
                "the disk of vm '{}' grew by more than the {limit_mib} MiB that image '{image_name}' allows \
                 (overlay_limit_mib), so it was ended; write less, or raise the limit",
                owner.vm
            ),
        }
    }

    /// Ends the session whenever the guest restarts, which does not take leave of us. Else a command would wait until its
    /// silence is noticed.
    async fn leave_at_reset(&self) -> Infallible {
        let mut reset = Box::pin(self.vm.qmp().reset());
        loop {
            reset.await;
            reset = Box::pin(self.vm.qmp().reset());
            self.login().session.clone().close_because("the guest restarted").await;
        }
    }

    /// Has it run for so long from now on, for a person instead of a builder. It is off the builder's private network, in
    /// which the next build's machines may get its name and address.
    pub(super) fn extend(&self, time: Duration) {
        drop(self.membership.lock().unwrap_or_else(PoisonError::into_inner).take());
        let until = Instant::now() + time;
        self.notice.is(SlotState::Held { until });
        self.term.send_replace(Term { until, then: Status::Stopped });
    }

    /// Notes why it is not there any more; the first reason counts.
    fn ended(&self, why: Status) {
        self.status.send_if_modified(|status| {
            let first = *status == Status::Up;
            if first {
                *status = why;
            }
            first
        });
    }

    /// Stops it: politely if its disk is kept, at once if not. A second call hurries the first.
    pub(super) async fn stop(&self, patience: Duration) -> Result<Stopped, VmError> {
        self.stopping.store(true, Ordering::Relaxed);
        let ended = self.shut_down(patience).await?;
        // Whoever asks for a stop may count on the slot.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
        Ok(ended.into())
    }

    async fn shut_down(&self, patience: Duration) -> Result<qemu::Ended, VmError> {
        match self.facts.mode {
            Mode::Fresh => self.climb(Shutdown::from(Rung::Quit)).await,
            Mode::Persistent => self.shut_down_politely(patience).await,
        }
    }

    /// Takes what only this machine may use from it, so that it is not given back with the machine's end.
    pub(super) fn take_lease(&self) -> Option<Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Shuts it down as one whose disk is kept.
    pub(super) async fn shut_down_politely(&self, patience: Duration) -> Result<qemu::Ended, VmError> {
        self.stopping.store(true, Ordering::Relaxed);
        let patience = Patience {
            // The power button gets a part of the time, for a guest whose command has no effect.
            guest: patience - patience / 4,
            powerdown: patience / 4,
            ..Patience::default()
        };
        let shutdown = match &self.image.shutdown {
            Some(command) => Shutdown::by_guest(power_off(self.login().session.clone(), command.clone())),
            None => Shutdown::from(Rung::Powerdown),
        };
        self.climb(shutdown.patience(patience)).await
    }

    async fn climb(&self, shutdown: Shutdown) -> Result<qemu::Ended, VmError> {
        self.notice.is(SlotState::Stopping);
        self.vm.shutdown(shutdown).await.map_err(|stuck| {
            // Its slot stays taken: nothing may use the files of a process that the kernel is not done with.
            error!("{stuck}");
            VmError::StopFailed { vm: self.facts.owner.vm.clone(), why: stuck.to_string() }
        })
    }

    /// Ends a machine whose guest is stopped for good.
    async fn end(&self) {
        self.notice.is(SlotState::Stopping);
        if let Err(stuck) = self.vm.shutdown(Shutdown::from(Rung::Quit)).await {
            error!("{stuck}");
        }
    }

    /// The environment of commands in it, as the master may know it.
    pub(crate) fn environment(&self) -> Value {
        info::shown_environment(self.login().environment.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    /// What the master is told of it (`vm` in the updates of `vm_start` and `vm_info`).
    pub(crate) fn describe(&self) -> Value {
        self.report([])
    }

    /// The same, and what more there is to say.
    pub(crate) fn report(&self, more: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
        let number = |number: u32| Value::Int(number.into());
        let state = match self.status() {
            Status::Up => "running",
            Status::Stopped => "stopped",
            Status::Died { .. } => "died",
            Status::Expired { .. } => "expired",
            Status::Outgrown { .. } => "outgrown",
        };
        let known = [
            ("vm", Value::from(self.facts.owner.vm.as_str())),
            ("state", state.into()),
            ("slot", number(self.facts.slot.into())),
            ("ssh_port", number(self.facts.ssh_port.into())),
            ("pid", number(self.facts.pid)),
            ("image", self.facts.image_name.as_str().into()),
            ("mode", self.facts.mode.as_str().into()),
            ("cpus", number(self.facts.cpus)),
            ("memory_mib", number(self.facts.memory_mib)),
            ("basedir", self.basedir().path.to_string_lossy().into_owned().into()),
            ("generation", number(self.facts.generation)),
            ("how", self.facts.how.as_str().into()),
            ("seconds", self.facts.took.as_secs_f64().into()),
        ];
        let network = self.facts.network.iter().flat_map(|(network, address)| {
            [("network", Value::from(network.as_str())), ("address", address.to_string().into())]
        });
        known.into_iter().chain(network).chain(more).collect()
    }
}

/// Gives the image's shutdown command. The connection may break before it has answered: that is what it is for.
async fn power_off(session: Session, command: String) -> Result<(), String> {
    let failed = |why: String| {
        warn!(command, "the image's shutdown command failed: {why}");
        why
    };
    let exec = ssh::Exec::shell(command.as_str());
    let mut process = session.exec(exec).await.map_err(|error| failed(error.to_string()))?;
    while let Ok(Some(event)) = process.next().await {
        match event {
            ssh::Event::Exited(exit) if !exit.is_success() => return Err(failed(format!("{exit:?}"))),
            _ => {}
        }
    }
    Ok(())
}

/// How much later than the guest's own time to answer its boot as a whole is given up: what says that it did not answer
/// also says what the last try came to.
pub(super) const LAST_WORD: Duration = Duration::from_secs(5);

/// How much of the console is shown for a machine that failed, in bytes.
const CONSOLE_TAIL: usize = 4000;

/// Why a machine did not come up, and below it its console's last lines: those of its kernel, if that panicked.
pub(super) fn boot_failure<E: fmt::Display>(error: &qemu::BootError<E>, vm: &qemu::Vm) -> String {
    match error {
        qemu::BootError::Panicked(panic) => above(&panic.console, &panic.to_string()),
        error => with_console(&error.to_string(), vm),
    }
}

/// A sentence about a machine, and below it its console's last lines.
pub(super) fn with_console(sentence: &str, vm: &qemu::Vm) -> String {
    above(&vm.console_tail(CONSOLE_TAIL).unwrap_or_default(), sentence)
}

fn above(console: &str, sentence: &str) -> String {
    match console.trim() {
        "" => format!("{sentence}; its console is empty"),
        console => format!("{sentence}{LAST_LINES}\n{console}"),
    }
}

/// What a sentence ends in that the console's last lines follow.
const LAST_LINES: &str = "; its console's last lines:";

/// The sentence that a text of this module or of an error begins with, without what the guest printed.
pub(crate) fn sentence(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    line.strip_suffix(LAST_LINES).unwrap_or(line)
}

/// The disk that an image's overlays are made on.
pub(crate) fn base(image: &Image) -> qemu::Base {
    qemu::Base { file: image.disk.clone(), format: format(image.format) }
}

fn format(format: DiskFormat) -> qemu::Format {
    match format {
        DiskFormat::Qcow2 => qemu::Format::Qcow2,
        DiskFormat::Raw => qemu::Format::Raw,
    }
}

/// What of a machine may be other than its image says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub mode: Mode,
    pub cpus: u32,
    pub memory_mib: u32,
}

impl Shape {
    /// That of a machine as its image says.
    pub(super) fn fresh(image: &Image) -> Self {
        Shape { mode: Mode::Fresh, cpus: image.cpus, memory_mib: image.memory_mib }
    }

    /// That of a machine for an order.
    pub(super) fn of(order: &super::Order, image: &Image) -> Self {
        Shape {
            mode: order.mode,
            cpus: order.cpus.unwrap_or(image.cpus),
            memory_mib: order.memory_mib.unwrap_or(image.memory_mib),
        }
    }
}

/// What QEMU is to run for an image.
pub(super) fn description(
    image: &Image,
    shape: Shape,
    slot: &super::slot::Slot,
    disk: &Path,
    accelerator: qemu::Accelerator,
    memory: qemu::Memory,
) -> qemu::Machine {
    qemu::Machine {
        name: format!("kvm-worker-{slot}"),
        machine_type: image.machine.clone(),
        accelerator,
        cpu: image.cpu.clone(),
        cpus: shape.cpus,
        memory_mib: shape.memory_mib,
        memory,
        boot: match &image.boot {
            None => qemu::Boot::Disk,
            Some(boot) => qemu::Boot::Kernel {
                kernel: boot.kernel.clone(),
                initrd: boot.initrd.clone(),
                append: boot.append.clone(),
            },
        },
        drives: vec![qemu::Drive {
            file: disk.to_owned(),
            format: qemu::Format::Qcow2,
            durability: match shape.mode {
                Mode::Fresh => qemu::Durability::Disposable,
                Mode::Persistent => qemu::Durability::Kept,
            },
        }],
        network: qemu::Network { host_port: slot.ssh_port(), guest_port: image.ssh_port, outside: image.outside },
        extra_args: image.qemu_args.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_failed_in_a_machine_is_explained_by_its_end() {
        let check = async |ends: Status, expected: Option<(&str, &str)>| {
            let status = watch::Sender::new(Status::Up);
            let fate = Fate::by(Name::default_vm(), status.subscribe());
            let (explanation, _) = tokio::join!(fate.explanation(), async { status.send_replace(ends) });
            let explanation = explanation.map(|error| (error.reason(), error.to_string()));
            assert_eq!(explanation, expected.map(|(reason, text)| (reason, text.to_owned())));
        };
        check(Status::Up, None).await;
        check(Status::Stopped, Some(("vm_lost", "vm 'default' was stopped"))).await;
        check(Status::Died { reason: "it died".to_owned() }, Some(("vm_lost", "it died"))).await;
        check(Status::Expired { reason: "it is over".to_owned() }, Some(("vm_expired", "it is over"))).await;
        check(Status::Outgrown { reason: "it grew".to_owned() }, Some(("vm_outgrown", "it grew"))).await;
    }

    #[test]
    fn a_sentence_is_told_from_what_the_guest_printed() {
        let check = |text: &str, expected: &str| assert_eq!(sentence(text), expected, "{text}");
        check(&above("Linux\npanic\n", "it died"), "it died");
        check(&above(" \n", "it died"), "it died; its console is empty");
        check(&format!("start vm: {}", above("panic", "it died")), "start vm: it died");
        check("it died", "it died");
        check("", "");
    }
}
