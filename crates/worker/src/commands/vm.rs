//! `vm_start`, `vm_copy`, `vm_stop`, `vm_info`: machines for builds.
//!
//! They never complete with a failure, which would make the master avoid the worker: what went wrong is an `rc`, a
//! `failure_reason` and a `vm_error`, and the master's steps make of it what it is.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use protocol::command::{Direction, Disposal, Name, VmCopy, VmInfo, VmReboot, VmStart, VmStop};
use protocol::{Command, Update, Value};
use ssh::HostPath;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::console::Console;
use super::{Context, Failure, conclude};
use crate::host_access::Copies;
use crate::output::Reporter;
use crate::pool::{Held, Hold, Machine, Order, Owner, Pool, Progress, Rebooted, Saved, Stopped, VmError, sentence};

/// The exit status of a VM command that was refused or failed.
const FAILED: i32 = 1;

/// The exit status of a command that did not run to its end.
pub(super) const KILLED: i32 = -1;

/// Runs one VM command of a builder to its completion. `copies` is what its copies may do on the host.
pub(crate) async fn run(
    context: Context,
    command: Command,
    builder: String,
    console_log: Option<String>,
    pool: Pool,
    copies: Copies,
    reporter: Reporter,
) {
    let started = Instant::now();
    let work = async {
        let (context, reporter, pool) = (&context, &reporter, &pool);
        let work = Work { context, reporter, pool, copies: &copies, builder: &builder, console_log };
        tokio::select! {
            biased;
            why = context.interrupt.requested() => {
                reporter.header(format!("command interrupted: {why}\n")).await;
                reporter.update(Update::Rc(KILLED)).await;
            }
            () = work.run(&command) => {}
        }
        Ok::<(), Failure>(())
    };
    let outcome = context.until_abandoned(work).await;
    conclude(&context, reporter, started, outcome).await;
}

/// Completes a command that can't run because of its VM.
pub(crate) async fn refuse(context: Context, error: VmError, reporter: Reporter) {
    let started = Instant::now();
    let outcome = context.until_abandoned(async {
        fail(&reporter, error.reason(), &error.to_string(), KILLED).await;
        Ok(())
    });
    let outcome = outcome.await;
    conclude(&context, reporter, started, outcome).await;
}

/// Waits until a command can begin in its VM. If it can't, or is stopped before, it ends here.
pub(crate) async fn enter<T>(
    context: Context,
    entering: impl Future<Output = Result<T, VmError>>,
    reporter: Reporter,
) -> Option<(Context, T, Reporter)> {
    let started = Instant::now();
    let entered = context
        .until_abandoned(async {
            tokio::select! {
                biased;
                entered = entering => entered.map_err(Some),
                why = context.interrupt.requested() => {
                    reporter.header(format!("command interrupted: {why}\n")).await;
                    reporter.update(Update::Rc(KILLED)).await;
                    Err(None)
                }
            }
        })
        .await;
    match entered {
        Some(Ok(entered)) => return Some((context, entered, reporter)),
        Some(Err(Some(error))) => refuse(context, error, reporter).await,
        Some(Err(None)) => conclude(&context, reporter, started, Some(Ok(()))).await,
        None => conclude(&context, reporter, started, None).await,
    }
    None
}

/// Reports what is wrong with a VM: all of the text at the step, and its first line, a sentence, as `vm_error`.
pub(super) async fn fail(reporter: &Reporter, reason: &str, text: &str, rc: i32) {
    reporter.stderr(format!("{text}\n")).await;
    reporter.update(Update::FailureReason(reason.to_owned())).await;
    reporter.update(Update::Other("vm_error".to_owned(), sentence(text).into())).await;
    reporter.update(Update::Rc(rc)).await;
}

struct Work<'a> {
    context: &'a Context,
    reporter: &'a Reporter,
    pool: &'a Pool,
    copies: &'a Copies,
    builder: &'a str,
    console_log: Option<String>,
}

impl Work<'_> {
    async fn run(&self, command: &Command) {
        let result = match command {
            Command::VmStart(start) => self.start(start).await,
            Command::VmCopy(copy) => self.copy(copy).await,
            Command::VmReboot(reboot) => self.reboot(reboot).await,
            Command::VmStop(stop) => self.stop(stop).await,
            Command::VmInfo(info) => self.info(info).await,
            _ => Err(Refusal::from(VmError::BadArguments("not a VM command".to_owned()))),
        };
        match result {
            Ok(()) => self.reporter.update(Update::Rc(0)).await,
            Err(Refusal { reason, sentence }) => fail(self.reporter, reason, &sentence, FAILED).await,
        }
    }

    async fn start(&self, start: &VmStart) -> Result<(), Refusal> {
        let order = Order {
            owner: self.owner(&start.vm),
            build: start.build,
            bind: start.bind,
            image: start.image.clone(),
            mode: start.mode,
            cpus: start.cpus,
            memory_mib: start.memory_mib,
            timeout: start.timeout,
            ttl: start.ttl,
            network: start.network.clone(),
        };
        self.say(format!("starting vm '{}' from image '{}' ({})", start.vm, start.image, start.mode.as_str())).await;
        let (progress, console) = StartProgress::new(self.reporter);
        let mut shown = self.show_consoles(console);
        let started = tokio::select! {
            started = self.pool.start(order, &progress) => started,
            never = shown.follow() => match never {},
        };
        shown.catch_up().await;
        let machine = started?;
        machine.set_console_shown(shown.bytes());
        let facts = &machine.facts;
        let network =
            facts.network.as_ref().map(|(network, address)| format!(", address {address} in network '{network}'"));
        self.say(format!(
            "vm '{}' is ready in slot {}: {} in {}; ssh port {}, process {}{}",
            facts.owner.vm,
            facts.slot,
            facts.how.sentence(),
            duration(facts.took),
            facts.ssh_port,
            facts.pid,
            network.unwrap_or_default()
        ))
        .await;
        if let Some(notice) = machine.basedir().notice(&self.context.basedir) {
            self.say(notice).await;
        }
        let vm = machine.report([("environ", machine.environment())]);
        self.reporter.update(Update::Other("vm".to_owned(), vm)).await;
        Ok(())
    }

    async fn copy(&self, copy: &VmCopy) -> Result<(), Refusal> {
        let machine = self.pool.find(&self.owner(&copy.vm))?;
        machine.tell_span();
        let basedir = &self.context.basedir;
        let there = machine.basedir().path;
        let guest = |path: &Path| crate::place::guest_path(&copy.workdir.join(path), basedir, &there);
        let options = ssh::CopyOptions {
            recursive: copy.recursive,
            preserve: copy.preserve,
            limits: self.copies.limits,
            ..ssh::CopyOptions::default()
        };
        let work = async {
            match copy.direction {
                Direction::In => {
                    let (from, to) = (self.host_path(copy, &copy.from).await?, guest(&copy.to));
                    self.say(format!("copying {from} to {} in vm '{}'", to.display(), copy.vm)).await;
                    Ok(machine.way_in().await?.session.copy_in(&from, bytes(&to), &options).await)
                }
                Direction::Out => {
                    let (from, to) = (guest(&copy.from), self.host_path(copy, &copy.to).await?);
                    self.say(format!("copying {} in vm '{}' to {to}", from.display(), copy.vm)).await;
                    Ok(machine.way_in().await?.session.copy_out(bytes(&from), &to, &options).await)
                }
            }
        };
        let mut shown = self.show_console(&machine);
        let fate = machine.fate();
        let copied: Result<_, Refusal> = tokio::select! {
            biased;
            over = fate.over() => Err(over.into()),
            copied = work => copied,
            never = shown.follow() => match never {},
        };
        machine.set_console_shown(shown.bytes());
        let copied = match copied? {
            Ok(copied) => copied,
            Err(ssh::CopyError::Lost(lost)) => {
                return Err(VmError::Lost { reason: crate::place::cause(&machine.fate(), &lost).await }.into());
            }
            Err(error @ ssh::CopyError::TooManyBytes { .. }) => {
                return Err(Refusal::of_copy(&format_args!("{error}, which is pool.max_copy_mib of the worker")));
            }
            Err(error) => return Err(Refusal::of_copy(&error)),
        };
        for skipped in &copied.skipped {
            self.reporter.stderr(format!("left out {}: {}\n", skipped.name, skipped.what)).await;
        }
        self.say(format!("copied {} in {:.1} s", amount(copied.files, copied.bytes), copied.elapsed.as_secs_f64()))
            .await;
        for (key, number) in [("bytes", copied.bytes), ("files", copied.files)] {
            let number = Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
            self.reporter.update(Update::Other(key.to_owned(), number)).await;
        }
        Ok(())
    }

    /// What a copy reads or writes on the host.
    async fn host_path(&self, copy: &VmCopy, path: &Path) -> Result<HostPath, Refusal> {
        let (roots, path) = (self.copies.roots.clone(), copy.workdir.join(path));
        let make = copy.direction == Direction::Out;
        let shown = path.display().to_string();
        let opened = spawn_blocking(move || roots.path(&path, make)).await;
        opened.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => VmError::BadArguments(error.to_string()).into(),
            _ => Refusal::of_copy(&format_args!("open the directory that {shown} is in: {error}")),
        })
    }

    async fn reboot(&self, reboot: &VmReboot) -> Result<(), Refusal> {
        let owner = self.owner(&reboot.vm);
        let machine = self.pool.find(&owner)?;
        machine.tell_span();
        self.say(format!("rebooting vm '{}' in slot {}", reboot.vm, machine.facts.slot)).await;
        let (progress, _) = StartProgress::new(self.reporter);
        let mut shown = self.show_console(&machine);
        let rebooted = tokio::select! {
            rebooted = self.pool.reboot(&owner, reboot.timeout, &progress) => rebooted,
            never = shown.follow() => match never {},
        };
        shown.catch_up().await;
        machine.set_console_shown(shown.bytes());
        let Rebooted { machine, took } = rebooted?;
        let seconds = took.as_secs_f64();
        self.say(format!("vm '{}' is back after {seconds:.1} s", reboot.vm)).await;
        let vm = machine.report([("reboot_seconds", seconds.into()), ("environ", machine.environment())]);
        self.reporter.update(Update::Other("vm".to_owned(), vm)).await;
        Ok(())
    }

    async fn stop(&self, stop: &VmStop) -> Result<(), Refusal> {
        let owner = self.owner(&stop.vm);
        let machine = match self.pool.find(&owner) {
            Ok(machine) => machine,
            Err(VmError::NotRunning(_)) if stop.missing_ok => {
                self.say(format!("there is no vm '{}' to stop", stop.vm)).await;
                return Ok(());
            }
            // What is not there any more holds nothing; its name is given up.
            Err(VmError::Lost { reason } | VmError::Expired { reason } | VmError::Outgrown { reason }) => {
                self.pool.stop(&owner, None).await;
                if let Disposal::Save(image) = &stop.disposal {
                    let (vm, image) = (stop.vm.clone(), image.clone());
                    return Err(VmError::SaveFailed { vm, image, why: reason }.into());
                }
                self.say(reason).await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        match &stop.disposal {
            Disposal::End => self.end(stop, &owner, &machine).await,
            Disposal::Keep(time) => self.keep(stop, &owner, *time).await,
            Disposal::Save(image) => self.save(stop, image, &owner, &machine).await,
        }
    }

    async fn save(&self, stop: &VmStop, image: &Name, owner: &Owner, machine: &Machine) -> Result<(), Refusal> {
        self.say(format!("shutting down vm '{}' in slot {}, to save its disk", stop.vm, machine.facts.slot)).await;
        let (progress, _) = StartProgress::new(self.reporter);
        let mut shown = self.show_console(machine);
        let saved = tokio::select! {
            saved = self.pool.save(owner, image, stop.timeout, &progress) => saved,
            never = shown.follow() => match never {},
        };
        shown.catch_up().await;
        let Saved { stopped, published } = saved?;
        let number = published.number;
        self.say(format!("image '{image}' has generation {number} now")).await;
        if !published.current {
            self.say(format!(
                "machines do not start from it, as the image was rolled back; to change that: kvm-worker image rollback \
                 {image} {number}"
            ))
            .await;
        }
        let more = [("image", Value::from(image.as_str())), ("generation", Value::Int(number.into()))];
        self.report_stopped(stop, machine.facts.slot, &stopped, more).await;
        Ok(())
    }

    async fn end(&self, stop: &VmStop, owner: &Owner, machine: &Machine) -> Result<(), Refusal> {
        self.say(format!("stopping vm '{}' in slot {}", stop.vm, machine.facts.slot)).await;
        let mut shown = self.show_console(machine);
        let stopped = tokio::select! {
            stopped = self.pool.stop(owner, stop.timeout) => stopped,
            never = shown.follow() => match never {},
        };
        shown.catch_up().await;
        let stopped = stopped.ok_or_else(|| VmError::NotRunning(stop.vm.clone()))??;
        self.report_stopped(stop, machine.facts.slot, &stopped, []).await;
        Ok(())
    }

    async fn keep(&self, stop: &VmStop, owner: &Owner, asked: Duration) -> Result<(), Refusal> {
        let slot = self.pool.find(owner)?.facts.slot;
        let Held { machine, time, login, displaced } = match self.pool.hold(owner, asked).await? {
            Hold::Held(held) => held,
            Hold::Off(stopped) => {
                self.say("pool.max_held of the worker is 0, so that no vm is kept".to_owned()).await;
                self.report_stopped(stop, slot, &stopped, []).await;
                return Ok(());
            }
        };
        for slot in displaced {
            self.say(format!("the vm that was kept in slot {slot} is ended: no more than pool.max_held are kept"))
                .await;
        }
        let (seconds, most) = (time.as_secs(), if time < asked { ", as pool.max_hold says" } else { "" });
        self.say(format!(
            "vm '{}' is kept in slot {slot} for {seconds} s{most}; to get in, on the worker's host:",
            stop.vm
        ))
        .await;
        self.say(format!("  {login}")).await;
        self.say(format!("to end it before that: kvm-worker release {slot}")).await;
        if machine.is_persistent() {
            self.say("its persistent disk stays in use until then, and builds that want it wait".to_owned()).await;
        }
        let report = [
            ("vm", Value::from(stop.vm.as_str())),
            ("slot", Value::Int(slot.into())),
            ("how", "kept".into()),
            ("seconds_kept", time.as_secs_f64().into()),
            ("login", login.into()),
        ];
        self.reporter.update(Update::Other("vm".to_owned(), report.into_iter().collect())).await;
        Ok(())
    }

    async fn report_stopped<const N: usize>(
        &self,
        stop: &VmStop,
        slot: u16,
        stopped: &Stopped,
        more: [(&'static str, Value); N],
    ) {
        let seconds = stopped.after.as_secs_f64();
        self.say(format!("vm '{}' is stopped ({}, {seconds:.1} s)", stop.vm, stopped.how)).await;
        let report = [
            ("vm", Value::from(stop.vm.as_str())),
            ("slot", Value::Int(slot.into())),
            ("how", stopped.how.as_str().into()),
            ("seconds", seconds.into()),
        ];
        let report = report.into_iter().chain(more).collect();
        self.reporter.update(Update::Other("vm".to_owned(), report)).await;
    }

    async fn info(&self, info: &VmInfo) -> Result<(), Refusal> {
        let machines: Vec<_> = match &info.vm {
            Some(vm) => vec![self.pool.find(&self.owner(vm))?],
            None => self.pool.list(self.builder),
        };
        for machine in machines {
            let facts = &machine.facts;
            self.say(format!(
                "vm '{}': image '{}', slot {}, ssh port {}",
                facts.owner.vm, facts.image_name, facts.slot, facts.ssh_port
            ))
            .await;
            self.reporter.update(Update::Other("vm".to_owned(), machine.describe())).await;
        }
        Ok(())
    }

    fn owner(&self, vm: &protocol::command::Name) -> Owner {
        Owner { builder: self.builder.to_owned(), vm: vm.clone() }
    }

    async fn say(&self, line: String) {
        say(self.reporter, line).await;
    }

    /// Shows a machine's console from where it was shown to, if the command asks for it.
    fn show_console(&self, machine: &Machine) -> Shown {
        let (sender, places) = mpsc::unbounded_channel();
        let _ = sender.send((machine.console_log.clone(), machine.console_shown()));
        self.show_consoles(places)
    }

    /// Shows consoles, one after the other, if the command asks for it.
    fn show_consoles(&self, places: mpsc::UnboundedReceiver<Place>) -> Shown {
        let log = self.console_log.as_ref().map(|name| self.reporter.log_writer(name.clone()));
        Shown { log, places, console: None }
    }
}

/// Where a console goes to, and how many bytes of it were shown.
type Place = (PathBuf, u64);

/// A console that is shown as soon as there is one. The machine that is booted where a clone failed has another one.
struct Shown {
    log: Option<crate::output::LogWriter>,
    places: mpsc::UnboundedReceiver<Place>,
    console: Option<Console>,
}

impl Shown {
    async fn follow(&mut self) -> Infallible {
        loop {
            let following = async {
                match &mut self.console {
                    Some(console) => console.follow().await,
                    None => std::future::pending().await,
                }
            };
            let place = tokio::select! {
                Some(place) = self.places.recv() => place,
                never = following => match never {},
            };
            self.open(place).await;
        }
    }

    async fn open(&mut self, (path, shown): Place) {
        self.catch_up_one().await;
        if let Some(log) = &self.log {
            self.console = Console::open(&path, shown, log.clone()).await.ok();
        }
    }

    async fn catch_up(&mut self) {
        while let Ok(place) = self.places.try_recv() {
            self.open(place).await;
        }
        self.catch_up_one().await;
    }

    async fn catch_up_one(&mut self) {
        if let Some(console) = &mut self.console {
            console.catch_up().await;
        }
    }

    fn bytes(&self) -> u64 {
        self.console.as_ref().map_or(0, Console::shown)
    }
}

/// Why a VM command failed, as the master is told.
struct Refusal {
    reason: &'static str,
    sentence: String,
}

impl Refusal {
    fn of_copy(why: &dyn fmt::Display) -> Self {
        Refusal { reason: "vm_copy_failed", sentence: format!("copy: {why}") }
    }
}

impl From<VmError> for Refusal {
    fn from(error: VmError) -> Self {
        Refusal { reason: error.reason(), sentence: error.to_string() }
    }
}

/// Passes on what happens while a machine is being started.
struct StartProgress<'a> {
    reporter: &'a Reporter,
    console: mpsc::UnboundedSender<Place>,
}

impl<'a> StartProgress<'a> {
    fn new(reporter: &'a Reporter) -> (Self, mpsc::UnboundedReceiver<Place>) {
        let (console, consoles) = mpsc::unbounded_channel();
        (StartProgress { reporter, console }, consoles)
    }
}

#[async_trait::async_trait]
impl Progress for StartProgress<'_> {
    async fn say(&self, line: String) {
        say(self.reporter, line).await;
    }

    fn console(&self, path: &Path) {
        let _ = self.console.send((path.to_owned(), 0));
    }
}

/// Shows the console of a machine while a command runs in it.
pub(crate) async fn beside<T>(work: impl Future<Output = T>, machine: &Machine, log: crate::output::LogWriter) -> T {
    let Ok(mut console) = Console::open(&machine.console_log, machine.console_shown(), log).await else {
        return work.await;
    };
    let result = tokio::select! {
        result = work => result,
        never = console.follow() => match never {},
    };
    machine.set_console_shown(console.shown());
    result
}

/// Tells the person who watches the step, soon rather than when much output has gathered.
async fn say(reporter: &Reporter, line: String) {
    reporter.header(line + "\n").await;
    reporter.hasten().await;
}

fn bytes(path: &Path) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec()
}

fn duration(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

fn amount(files: u64, bytes: u64) -> String {
    let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
    match bytes {
        0..10_000 => format!("{files}, {bytes} bytes"),
        10_000..10_000_000 => format!("{files}, {} kB", bytes / 1000),
        _ => format!("{files}, {} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use protocol::{CommandId, Settings};

    use super::super::Interrupt;
    use super::super::fake_master::{Reply, lines, listen};
    use super::*;
    use crate::master::MasterLink;

    #[tokio::test]
    async fn a_command_that_waits_for_its_vm_is_interrupted_there() {
        let (link, calls) = MasterLink::new();
        let (interrupter, interrupt) = Interrupt::new();
        let root = PathBuf::from("/");
        let context = Context {
            command_id: CommandId("7".to_owned()),
            link: link.clone(),
            basedir: root.clone(),
            builder_dir: root.clone(),
            interrupt,
        };
        let reporter = Reporter::new(context.command_id.clone(), link, &Settings::default());
        interrupter.interrupt("enough");
        let entering = enter(context, std::future::pending::<Result<(), VmError>>(), reporter);
        let (entered, told) = tokio::join!(entering, listen(calls, |_| Reply::nil(), interrupter));
        assert!(entered.is_none());
        let told: Vec<_> = told.iter().flat_map(|call| lines(call, &root)).collect();
        assert_eq!(told, ["header command interrupted: enough\n", "rc -1", "complete None"]);
    }

    #[test]
    fn durations_are_short() {
        let check = |milliseconds, expected: &str| assert_eq!(duration(Duration::from_millis(milliseconds)), expected);
        check(7, "7 ms");
        check(999, "999 ms");
        check(1000, "1.0 s");
        check(12_345, "12.3 s");
    }

    #[test]
    fn amounts_are_short() {
        assert_eq!(amount(1, 312), "1 file, 312 bytes");
        assert_eq!(amount(2, 45_678), "2 files, 45 kB");
        assert_eq!(amount(0, 123_456_789), "0 files, 123 MB");
    }
}
