//! The main loop: what the master asks, what commands end, and when to stop.

mod asked;
mod builds;
mod drain;
mod life;
mod reload;
mod signals;
mod status;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::FutureExt;
use protocol::command::{Name, Placement};
use protocol::{Command, CommandId, Invocation, Reply, Request, Settings, StartCommand, Value};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, debug, error_span, info, warn};

pub(crate) use self::asked::{answer_within, pool_closes_within};
use self::builds::Builds;
use self::drain::{Drain, Follower};
use self::life::{Action, Input, Life};
pub(crate) use self::reload::Origin;
use self::reload::Reload;
pub(crate) use self::signals::keep_back as keep_signals_back;
use self::signals::{Heard, Signals};
use self::status::{Outline, RunningCommand};
use crate::builders::{Bounds, Builders, Replaced};
use crate::commands::{self, Context, Interrupt, Interrupter, foreign_paths};
use crate::config::{self, Config};
use crate::control::{self, Question};
use crate::core_tasks::{self, CoreTasks, End};
use crate::host_access::{self, Copies, CopyRoots};
use crate::info::{self, PoolState};
use crate::master::{Access, Contact, Line, LineEvent, MasterLink};
use crate::notify::{Notifier, Standing};
use crate::output::Reporter;
use crate::place::{Guest, Host, Place, guest_path};
use crate::pool::{Census, Machine, Owner, Pool, Scope, VmError};

/// How many events of the line may wait for the main loop.
const LINE_EVENTS: usize = 16;

/// How long running commands may take to be dropped when the worker stops.
const COMMANDS_END: Duration = Duration::from_secs(10);

/// How long the goodbye to the master may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// What is added to `pool.shutdown_timeout` for stopping all machines: the rungs after the polite ones.
const MACHINES_END: Duration = Duration::from_secs(20);

/// What else the end of the process may take, on a host that has much to do.
const LEEWAY: Duration = Duration::from_secs(15);

/// Why a draining worker stops without having been told by the master.
const NO_LINE_TO_DRAIN: &str = "draining, and without a line to the master no build runs";
const DRAINED: &str = "draining, and no build runs any more";

/// How much is kept of what the master says of builds that wait for each other, in characters.
const MOST_OF_A_DEADLOCK: usize = 1000;

/// Everything that can happen to the daemon.
#[derive(Debug)]
enum Event {
    /// Something about the line to the master.
    Line(LineEvent),
    /// A task ended that the worker can't do without.
    CoreTaskEnded(core_tasks::Ended),
    /// There is something to tell the service manager, which each turn does at its end.
    Notify,
    /// A command has completed, or was abandoned.
    CommandEnded(tokio::task::Id, Result<(), JoinError>),
    /// A person on the host asks for something.
    Asked(Question),
    /// A person has the answer, or has gone.
    Answered(Result<(), JoinError>),
    /// The configuration was read again, with this result.
    Reloaded(reload::Ended),
    /// A signal has come.
    Signal(Heard),
    /// There may be fewer builds that a drain waits for.
    Fewer,
}

/// Runs the worker until it is told to stop.
///
/// # Errors
/// It could not start, or one of its tasks broke down.
pub(crate) async fn run(config: Config, origin: Origin) -> anyhow::Result<()> {
    let (core, core_ended) = CoreTasks::new();
    run_with(config, origin, core, core_ended).await
}

async fn run_with(
    config: Config,
    origin: Origin,
    core: CoreTasks,
    core_ended: mpsc::Receiver<core_tasks::Ended>,
) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("listen for signals")?;
    let (drain, drain_wanted) = watch::channel(0);
    let password = config.worker.password.read()?;
    let basedir = &config.worker.basedir;
    std::fs::create_dir_all(basedir).with_context(|| format!("make worker.basedir {}", basedir.display()))?;
    let environment = info::environment();
    let pool = tokio::select! {
        pool = Pool::open(&config, &core) => pool.context("open the pool of machines")?,
        signal = signals.ending() => {
            info!("stopped during the start: {}", signal.name);
            Notifier::ended_early();
            return Ok(());
        }
    };
    let config = Arc::new(config);
    let told = watch::Sender::new(Arc::clone(&config));
    let control = listen(&config, &told, &core).await?;
    let (access, access_now) = watch::channel(Access::of(&config, password));
    let (line_events, events) = mpsc::channel(LINE_EVENTS);
    let contact = Contact::new();
    let line = Line {
        master: config.worker.master.clone(),
        name: config.worker.name.clone(),
        access: access_now,
        contact: contact.clone(),
        drain: drain_wanted,
    };
    info!(worker = config.worker.name, master = %config.worker.master, slots = config.pool.slots, "started");
    let notify = Notifier::new(&config.worker.master.to_string(), &pool);
    let daemon = Daemon {
        host: Arc::new(Host::new(environment.clone(), home(&environment))),
        config,
        environment,
        pool,
        control,
        told,
        reload: Reload::new(origin, access),
        settings: Arc::new(Settings::default()),
        link: None,
        running: HashMap::new(),
        builders: Builders::default(),
        tasks: JoinSet::new(),
        asking: JoinSet::new(),
        started: Instant::now(),
        contact,
        events,
        line: tokio::spawn(core.watch(
            "the task that keeps the line to the master",
            End::Never,
            line.keep(line_events),
        )),
        core,
        core_ended,
        notify,
        signals,
        life: Life::Running,
        builds: Builds::default(),
        follower: Follower::default(),
        deadlock: None,
        draining: None,
        drain,
    };
    daemon.run().await
}

/// Begins to listen for what people ask. A worker without images may have run for years without a place for the socket, and
/// goes on without.
async fn listen(
    config: &Config,
    told: &watch::Sender<Arc<Config>>,
    core: &CoreTasks,
) -> anyhow::Result<Option<control::Server>> {
    match control::Server::listen(&config.control, patience(told), core).await {
        Ok(server) => Ok(Some(server)),
        Err(error) if config.images.is_empty() => {
            warn!("the commands for a running worker can't reach this one: {error:#}; set control.socket");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

struct Daemon {
    config: Arc<Config>,
    environment: Vec<(OsString, OsString)>,
    pool: Pool,
    /// None if there is no place for its socket.
    control: Option<control::Server>,
    /// The same configuration, for who answers people.
    told: watch::Sender<Arc<Config>>,
    reload: Reload,
    host: Arc<Host>,
    /// How the master wants output, for commands started from now on.
    settings: Arc<Settings>,
    /// What commands are started with; none while there is no line.
    link: Option<MasterLink>,
    running: HashMap<CommandId, Running>,
    builders: Builders,
    tasks: JoinSet<()>,
    /// What people ask for.
    asking: JoinSet<()>,
    started: Instant,
    /// How the line to the master is.
    contact: Contact,
    events: mpsc::Receiver<LineEvent>,
    line: JoinHandle<()>,
    core: CoreTasks,
    core_ended: mpsc::Receiver<core_tasks::Ended>,
    notify: Notifier,
    signals: Signals,
    life: Life,
    /// What was heard of builds on the line.
    builds: Builds,
    /// The master, if it wants to know when `life` changes.
    follower: Follower,
    /// What the master says of builds that wait for each other's machines.
    deadlock: Option<String>,
    /// What there is only while the worker drains.
    draining: Option<Draining>,
    /// How often the line is to ask for no more builds.
    drain: watch::Sender<u32>,
}

/// A drain, and what tells when to look again whether it is over.
struct Draining {
    drain: Drain,
    slots: watch::Receiver<Census>,
    fewer_at: Option<Instant>,
}

impl Draining {
    /// Waits until there may be fewer builds to wait for. Cancel-safe.
    async fn fewer(draining: Option<&mut Draining>) {
        let Some(Draining { slots, fewer_at, .. }) = draining else { return std::future::pending().await };
        let quiet = async {
            match fewer_at {
                Some(at) => tokio::time::sleep_until(*at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A machine may be gone.
            Ok(()) = slots.changed() => {}
            () = quiet => {}
        }
    }
}

/// A command that runs.
struct Running {
    /// Its task; none for the moment before it has one.
    task: Option<tokio::task::Id>,
    interrupter: Interrupter,
    /// What there is to say of it.
    what: RunningCommand,
}

impl Daemon {
    async fn run(mut self) -> anyhow::Result<()> {
        loop {
            let refused = self.builders.refused().len();
            let standing = Standing { state: self.life.name(), commands: self.running.len(), refused };
            self.notify.turn(standing);
            let stop = match self.event().await {
                Event::Signal(signal) => self.signal(signal),
                Event::Line(event) => self.line_event(event),
                Event::CommandEnded(task, ended) => {
                    self.command_ended(task, ended);
                    None
                }
                Event::Asked(question) => {
                    self.answer(question);
                    None
                }
                Event::Answered(answered) => {
                    if let Err(error) = answered {
                        warn!("what a person asked for broke down: {error}");
                    }
                    None
                }
                Event::Reloaded(ended) => {
                    self.reloaded(ended);
                    None
                }
                Event::Fewer | Event::Notify => None,
                Event::CoreTaskEnded(ended) => {
                    self.stop(&ended.to_string()).await?;
                    bail!("{ended}");
                }
            };
            if let Some(why) = stop.or_else(|| self.drained()) {
                return self.stop(why).await;
            }
        }
    }

    async fn event(&mut self) -> Event {
        tokio::select! {
            biased;
            signal = self.signals.next() => Event::Signal(signal),
            Some(ended) = self.core_ended.recv() => Event::CoreTaskEnded(ended),
            () = self.notify.due() => Event::Notify,
            ended = self.reload.ended() => Event::Reloaded(ended),
            Some(ended) = self.tasks.join_next_with_id() => match ended {
                Ok((task, ())) => Event::CommandEnded(task, Ok(())),
                Err(error) => Event::CommandEnded(error.id(), Err(error)),
            },
            Some(event) = self.events.recv() => Event::Line(event),
            question = next_question(&mut self.control) => Event::Asked(question),
            Some(answered) = self.asking.join_next() => Event::Answered(answered),
            () = Draining::fewer(self.draining.as_mut()) => Event::Fewer,
        }
    }

    /// Does what a signal means; says why, if that ends the worker.
    fn signal(&mut self, Heard { name, input }: Heard) -> Option<&'static str> {
        match self.take(input, name) {
            Action::Stop => Some(name),
            Action::TooLate => {
                info!("{name} has no effect: the worker is {}", self.life.name());
                None
            }
            _ => None,
        }
    }

    /// Takes an input, and does what there is to do, but for stopping. `who` is told in the log.
    fn take(&mut self, input: Input, who: &str) -> Action {
        let action = self.life.on(input);
        match action {
            Action::Pause => {
                info!("paused: {who}; no build gets a machine until SIGUSR2 or kvm-worker resume");
                self.pool.pause();
            }
            Action::Resume => {
                info!("resumed: {who}");
                self.pool.resume();
            }
            Action::Drain => {
                info!("draining: {who}");
                self.begin_drain();
            }
            Action::Reload => self.reload(None),
            Action::Already | Action::TooLate | Action::Stop | Action::ExitAtOnce => {}
        }
        if let Action::Pause | Action::Resume | Action::Drain = action {
            self.follower.tell(self.life.name());
        }
        action
    }

    /// Has no more builds begin.
    fn begin_drain(&mut self) {
        // The builds that are waited for may need machines.
        self.pool.resume();
        self.pool.drain();
        self.drain.send_modify(|times| *times += 1);
        let drain = Drain::new(self.config.worker.master.is_pb() || self.follower.is_there());
        self.draining = Some(Draining { drain, slots: self.pool.changes(), fewer_at: None });
    }

    /// Says why the worker is to stop, if it drains and no build runs any more.
    fn drained(&mut self) -> Option<&'static str> {
        self.draining.as_ref()?;
        let running = self.builds_running();
        let Draining { drain, fewer_at, .. } = self.draining.as_mut()?;
        *fewer_at = running.fewer_at();
        let why = match self.link {
            None => NO_LINE_TO_DRAIN,
            Some(_) if drain.is_over(&running) => DRAINED,
            Some(_) => return None,
        };
        (self.life.on(Input::Idle) == Action::Stop).then_some(why)
    }

    /// The builds that are taken to run.
    fn builds_running(&mut self) -> builds::Running {
        let commands = self.running.values().filter_map(|running| running.what.builder.as_deref());
        self.builds.running(commands, self.pool.builders(), self.config.worker.drain_quiet, Instant::now())
    }

    /// Deals with an event of the line; says why, if it ends the worker.
    fn line_event(&mut self, event: LineEvent) -> Option<&'static str> {
        self.notify.hear(&event);
        match event {
            LineEvent::Up { link, settings } => {
                self.link = Some(link);
                self.settings = Arc::new(settings);
            }
            LineEvent::Down => self.line_lost(),
            LineEvent::Request { request: Request::Shutdown, reply } => {
                let _ = reply.send(Ok(Value::Nil));
                self.life.on(Input::Shutdown);
                return Some("the master said so");
            }
            LineEvent::Request { request: Request::Print { message }, reply } => self.printed(&message, reply),
            LineEvent::Request { request, reply } => {
                let _ = reply.send(self.request(request));
            }
            LineEvent::NotConnected { .. } => {}
        }
        None
    }

    /// Takes what the master prints, of which it means some for more than to be read.
    fn printed(&mut self, message: &str, reply: oneshot::Sender<Reply>) {
        if let Some(state) = drain::awaited(message) {
            return self.followed(state, reply);
        }
        // Over PB it also says whose build begins.
        if drain::is_ping(message) && !self.config.worker.master.is_pb() {
            match &mut self.draining {
                Some(Draining { drain, .. }) if !drain.is_masters() => return drain.pinged(reply),
                _ => self.builds.note_beginning(Instant::now()),
            }
        }
        if let Some(deadlock) = deadlock(message) {
            self.deadlock = deadlock;
            if let Some(deadlock) = &self.deadlock {
                warn!("the master says: {deadlock}");
            }
        }
        if let Some((build, builder)) = finished_build(message) {
            self.builds.note_end(builder);
            self.release(Scope::Build { builder, build }, "the master says that the build is over");
        }
        let _ = reply.send(Ok(Value::Nil));
        // A builder that is being attached counts as busy until this is answered, and then a 4.3.0 master does not look again
        // whether it was asked for a shutdown meanwhile.
        if drain::is_attached(message) && self.draining.is_some() {
            self.drain.send_modify(|times| *times += 1);
        }
    }

    /// The master wants to know when the worker's state is not this one any more.
    fn followed(&mut self, state: &str, reply: oneshot::Sender<Reply>) {
        let now = self.life.name();
        if state == now {
            self.follower.wait(reply, now);
        } else {
            let _ = reply.send(Ok(now.into()));
        }
        if let Some(Draining { drain, .. }) = &mut self.draining
            && !drain.is_masters()
        {
            drain.leave_to_master();
            self.builds.note_beginning(Instant::now());
        }
    }

    /// All builds are over for the master, which starts them again: nothing of them is to go on.
    fn line_lost(&mut self) {
        self.link = None;
        self.builders.forget_refused();
        self.builds.clear();
        self.follower = Follower::default();
        self.deadlock = None;
        self.abandon_commands();
        tokio::spawn(self.pool.release(Scope::All, "the line to the master was lost"));
    }

    fn abandon_commands(&mut self) {
        for (command_id, running) in self.running.drain() {
            info!(%command_id, "command abandoned");
            running.interrupter.abandon();
        }
    }

    fn request(&mut self, request: Request) -> Reply {
        match request {
            Request::WorkerInfo => {
                let ready = self.pool.ready_images();
                Ok(info::worker_info(&self.config, &self.environment, self.pool_state(), &ready).into())
            }
            Request::Settings(settings) => {
                // What a 4.3.0 master says first of all when it has another list of builders.
                self.builders.forget_unnamed();
                self.settings = Arc::new(settings);
                Ok(Value::Nil)
            }
            Request::StartCommand(start) => self.start_command(start),
            Request::Interrupt { command_id, why } => {
                match self.running.get(&command_id) {
                    Some(running) => running.interrupter.interrupt(why),
                    None => debug!(%command_id, "the command to interrupt has ended"),
                }
                Ok(Value::Nil)
            }
            Request::BuilderList(list) => self.builder_list(list),
            Request::StartBuild { builder } => {
                self.builds.note(&builder, Instant::now());
                self.release(Scope::Builder(&builder), "the builder's next build begins");
                Ok(Value::Nil)
            }
            Request::Print { .. } | Request::Keepalive | Request::Shutdown => Ok(Value::Nil),
        }
    }

    fn builder_list(&mut self, list: Vec<(String, String)>) -> Reply {
        let worker = &self.config.worker;
        let Replaced { served, gone } = self.builders.replace(list, bounds(worker));
        let leftovers = self.builders.leftovers(&worker.basedir);
        if worker.delete_leftover_dirs {
            // Nobody waits for it.
            tokio::task::spawn_blocking(move || leftovers.remove());
        } else {
            leftovers.mention();
        }
        for builder in gone {
            // The master still waits for them, and so does their build.
            for running in self.running.values().filter(|running| running.what.builder.as_ref() == Some(&builder)) {
                running
                    .interrupter
                    .fail(&format!("the builder '{builder}' is gone: the master's configuration has it no more"));
            }
            self.builds.note_end(&builder);
            self.release(Scope::Builder(&builder), "the builder is gone");
        }
        Ok(Value::List(served.into_iter().map(Value::from).collect()))
    }

    /// Stops machines whose build is over.
    fn release(&self, scope: Scope<'_>, why: &str) {
        tokio::spawn(self.pool.release(scope, why));
    }

    fn pool_state(&self) -> PoolState {
        let (free, waiting) = (self.pool.free(), self.pool.waiting());
        let (warm, held, state) = (self.pool.warm(), self.pool.held(), self.life.name());
        PoolState { slots: self.pool.slots(), free, waiting, warm, held, state }
    }

    /// Does what a person asks, without waiting for the end of it.
    fn answer(&mut self, Question { request, talk }: Question) {
        if request == control::Request::Reload {
            return self.reload(Some(talk));
        }
        let Some(input) = asked::input(&request) else {
            self.asking.spawn(asked::answer(self.pool.clone(), self.outline(), request, talk));
            return;
        };
        let action = self.take(input, "asked by kvm-worker");
        let master = self.draining.as_ref().is_some_and(|draining| draining.drain.is_masters());
        let running = self.builds_running();
        let taken = asked::taken(input, action, self.life, &running, master && self.link.is_some());
        // At once, as the worker may end next. It is the first thing that is said, so there is room for it.
        let _ = talk.answer(taken).now_or_never();
    }

    /// What is known here of how the worker is.
    fn outline(&self) -> Outline {
        let worker = &self.config.worker;
        let commands = self.running.values().map(|running| running.what.clone());
        Outline {
            worker: worker.name.clone(),
            master: worker.master.to_string(),
            protocol: worker.master.scheme.protocol(),
            started: self.started,
            line: self.contact.read(),
            pool: self.pool_state(),
            deadlock: self.deadlock.clone(),
            refused: self.builders.refused().to_vec(),
            commands: commands.collect(),
        }
    }

    fn start_command(&mut self, start: StartCommand) -> Reply {
        let Some(link) = self.link.clone() else { return Err("there is no line to the master".to_owned()) };
        if self.running.contains_key(&start.command_id) {
            return Err(format!("command {} is running already", start.command_id));
        }
        let StartCommand { command_id, builder, .. } = &start;
        if let Some(builder) = builder {
            self.builds.note(builder, Instant::now());
        }
        let (interrupter, interrupt) = Interrupt::new();
        let context = Context {
            command_id: command_id.clone(),
            link: link.clone(),
            basedir: self.config.worker.basedir.clone(),
            builder_dir: self.builders.directory(builder.as_deref(), &self.config.worker.basedir),
            interrupt,
        };
        let name = &start.name;
        let span = error_span!("command", %command_id, command = name, builder, step = Empty, vm = Empty, slot = Empty);
        let id = command_id.clone();
        let what = RunningCommand {
            builder: builder.clone(),
            vm: None,
            command: start.name.clone(),
            step: None,
            started: Instant::now(),
        };
        let mut running = Running { task: None, interrupter, what };
        let reporter = || Reporter::new(start.command_id.clone(), link, &self.settings);
        match Invocation::parse(&start) {
            Ok(invocation) => {
                span.record("step", invocation.step.as_deref());
                running.what.step = invocation.step.clone();
                running.what.vm = self.machine_of(&invocation, start.builder.as_deref());
                let work = self.place(context, invocation, start.builder.clone(), reporter());
                self.spawn(id, running, work.instrument(span));
                Ok(Value::Nil)
            }
            // The steps of this worker's own commands show what is wrong with their arguments.
            Err(error) if start.name.starts_with("vm_") && is_about_arguments(&error) => {
                let error = VmError::BadArguments(error.to_string());
                self.spawn(id, running, commands::vm::refuse(context, error, reporter()).instrument(span));
                Ok(Value::Nil)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn spawn(&mut self, id: CommandId, running: Running, work: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(work).id();
        self.running.insert(id, Running { task: Some(task), ..running });
    }

    fn command_ended(&mut self, task: tokio::task::Id, ended: Result<(), JoinError>) {
        self.running.retain(|_, running| {
            let goes_on = running.task != Some(task);
            if let (false, Some(builder)) = (goes_on, &running.what.builder) {
                self.builds.note(builder, Instant::now());
            }
            goes_on
        });
        if let Err(error) = ended {
            // Its reporter completed it with a failure when it was dropped.
            warn!("a command broke down: {error}");
        }
    }

    /// The name of the builder's machine that a command is about, if it is about one.
    fn machine_of(&self, invocation: &Invocation, builder: Option<&str>) -> Option<Name> {
        match (invocation.command.vm(), &invocation.placement) {
            (Some(vm), _) | (None, Placement::Vm(vm)) => Some(vm.clone()),
            (None, Placement::Host) => None,
            (None, Placement::Unsaid) => {
                let bound = self.pool.bound(builder.unwrap_or_default()).ok().flatten();
                bound.map(|machine| machine.facts.owner.vm.clone())
            }
        }
    }

    /// Finds out where a command is to run, and makes the future that runs it there.
    fn place(
        &mut self,
        context: Context,
        invocation: Invocation,
        builder: Option<String>,
        reporter: Reporter,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        let Invocation { mut command, placement, console_log, step: _ } = invocation;
        if command.is_about_vms() {
            command.map_paths(|path| context.resolve(path));
            let pool = self.pool.clone();
            let builder = builder.unwrap_or_default();
            let copies = Copies::new(self.copy_roots(), &self.config.pool);
            return Box::pin(commands::vm::run(context, command, builder, console_log, pool, copies, reporter));
        }
        let machine = match placement {
            Placement::Host => Ok(None),
            Placement::Unsaid => self.pool.bound(builder.as_deref().unwrap_or_default()),
            Placement::Vm(vm) => {
                let owner = Owner { builder: builder.clone().unwrap_or_default(), vm };
                self.pool.find(&owner).map(Some)
            }
        };
        match machine {
            Err(error) => Box::pin(commands::vm::refuse(context, error, reporter)),
            Ok(None) => {
                command.map_paths(|path| context.resolve(path));
                if let (None, Command::Mkdir(paths)) = (&builder, &command) {
                    // A msgpack master makes the directories of all builders in one command, before it gives any of them to
                    // this worker, and gives none if it fails. Whose can't be made finds out when a build wants it.
                    self.builders.make_unnamed(&paths.0, bounds(&self.config.worker));
                    return Box::pin(commands::confirm(context, reporter));
                }
                if !self.config.worker.host_commands
                    && !host_access::keeps_house(builder.as_deref(), &command, &context.basedir)
                {
                    return Box::pin(commands::vm::refuse(context, VmError::HostRefused, reporter));
                }
                let host: Arc<dyn Place> = Arc::clone(&self.host) as Arc<dyn Place>;
                Box::pin(commands::run(context, command, host, reporter))
            }
            Ok(Some(machine)) => {
                let elsewhere = self.builder_dirs_elsewhere().map(Path::to_owned).collect();
                Box::pin(run_in_guest(context, command, machine, elsewhere, console_log, reporter))
            }
        }
    }

    /// The builders' directories that are not in the worker's.
    fn builder_dirs_elsewhere(&self) -> impl Iterator<Item = &Path> {
        self.builders.directories().filter(|path| !path.starts_with(&self.config.worker.basedir))
    }

    /// Where copies may read and write on the host.
    fn copy_roots(&self) -> CopyRoots {
        let worker = &self.config.worker;
        let known = self.builders.directories();
        let own = known.filter(|path| worker.host_commands || path.starts_with(&worker.basedir));
        CopyRoots { basedir: worker.basedir.clone(), builder_dirs: own.map(Path::to_owned).collect() }
    }

    /// Ends the worker: what runs is given up so that the master runs it again, and every machine is stopped.
    async fn stop(mut self, why: &str) -> anyhow::Result<()> {
        info!("stopping: {why}");
        self.life = Life::Stopping;
        let machines_end = pool_closes_within(&self.config);
        self.notify.stopping(why, COMMANDS_END + GOODBYE + machines_end + LEEWAY);
        self.reload.give_up();
        self.abandon_commands();
        if let Some(control) = &mut self.control {
            control.close();
        }
        // Machines of people, and those that are being started for them, end with this.
        self.asking.shutdown().await;
        // Without a listener and a link the line says goodbye and ends, in this order: one without a link alone would
        // try again.
        self.events.close();
        self.link = None;
        let ending = async {
            let commands = async { while self.tasks.join_next().await.is_some() {} };
            if tokio::time::timeout(COMMANDS_END, commands).await.is_err() {
                warn!("commands did not end in time");
            }
            if !self.line.is_finished() {
                let _ = tokio::time::timeout(GOODBYE, &mut self.line).await;
            }
            self.pool.close(machines_end).await;
            if let Some(control) = self.control {
                control.finish().await;
            }
        };
        let again = async {
            loop {
                let Heard { name, input } = self.signals.next().await;
                match self.life.on(input) {
                    Action::ExitAtOnce => break name,
                    _ => info!("{name} has no effect: the worker is stopping"),
                }
            }
        };
        tokio::select! {
            () = ending => info!("stopped"),
            name = again => warn!("stopped at once: {name}"),
        }
        Ok(())
    }
}

/// How long answers to people are waited for.
fn patience(told: &watch::Sender<Arc<Config>>) -> impl Fn(&control::Request) -> Duration + use<> {
    let told = told.subscribe();
    move |request| answer_within(&told.borrow(), request)
}

async fn next_question(control: &mut Option<control::Server>) -> Question {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

/// Runs a command in a machine's guest. `elsewhere` are the builders' directories that are not in the worker's: they have the
/// same paths in both.
async fn run_in_guest(
    mut context: Context,
    mut command: Command,
    machine: Arc<Machine>,
    elsewhere: Vec<PathBuf>,
    console_log: Option<String>,
    reporter: Reporter,
) {
    machine.tell_span();
    let basedir = context.basedir.clone();
    let there = machine.basedir().path;
    let mut builder_dirs = BTreeSet::new();
    command.map_paths(|path| {
        let path = context.resolve(path);
        let own = elsewhere.iter().find(|directory| path.starts_with(directory));
        builder_dirs.extend(own.cloned().or_else(|| builder_dir_of(&path, &basedir)));
        guest_path(&path, &basedir, &there)
    });
    // Where commands run that name no directory, such as the `rm` of `rmdir`.
    context.builder_dir = guest_path(&context.builder_dir, &basedir, &there);
    context.basedir.clone_from(&there);
    let entering = async {
        let guest = Guest::new(machine.way_in().await?, machine.fate());
        for directory in builder_dirs.iter().filter(|directory| !machine.has_made(directory)) {
            let path = there.join(directory);
            if makes(&command, &path) {
                continue;
            }
            // On the host it is always there. If it can't be made, the command finds out.
            let _ = guest.make_directory(&path).await;
            machine.note_made(directory);
        }
        Ok(guest)
    };
    let Some((context, guest, reporter)) = commands::vm::enter(context, entering, reporter).await else { return };
    if let Some(warning) = foreign_paths::warning(&command, &basedir, &there) {
        reporter.header(format!("{warning}\n")).await;
    }
    let console = console_log.map(|name| reporter.log_writer(name));
    let fate = machine.fate();
    let work = commands::run_until(context, command, Arc::new(guest), fate.over(), reporter);
    match console {
        Some(log) => commands::vm::beside(work, &machine, log).await,
        None => work.await,
    }
}

/// Where builders may have their directories.
fn bounds(worker: &config::Worker) -> Bounds<'_> {
    Bounds { basedir: &worker.basedir, host: worker.host_commands }
}

/// Whether a command makes a directory itself, as a program's workdir is made with its parents.
fn makes(command: &Command, directory: &Path) -> bool {
    matches!(command, Command::Shell(shell) if shell.workdir.starts_with(directory))
}

/// The builder's directory that a path of the host is in: the first below the base directory, and what leads to it if that is
/// said by a detour (`up/../norm`). Over MessagePack nothing else tells which these are.
fn builder_dir_of(path: &Path, basedir: &Path) -> Option<PathBuf> {
    let mut components = path.strip_prefix(basedir).ok()?.components().peekable();
    let mut directory = PathBuf::new();
    let mut depth = 0_usize;
    while let Some(component) = components.next() {
        directory.push(component);
        match component {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 1 && components.peek() != Some(&Component::ParentDir) {
            return Some(directory);
        }
    }
    None
}

/// The number of a build that is over and its builder, if that is what the master prints. A master tells of the end of a
/// build in no other way, so buildbot-kvm's `KVMWorker` does so like this.
fn finished_build(message: &str) -> Option<(u64, &str)> {
    let (build, builder) = message.strip_prefix("kvm-worker release ")?.split_once(' ')?;
    let digits = build.bytes().all(|digit| digit.is_ascii_digit());
    Some((build.parse().ok().filter(|_| digits)?, builder)).filter(|(_, builder)| !builder.is_empty())
}

/// What the master says of builds that keep all machines while they wait for builds that need one, which buildbot-kvm's
/// `KVMWorker` notices; nothing, when they wait no more.
fn deadlock(message: &str) -> Option<Option<String>> {
    let said = message.strip_prefix("kvm-worker deadlock")?;
    if said.is_empty() {
        return Some(None);
    }
    let said = said.strip_prefix(' ')?;
    Some(Some(said.chars().take(MOST_OF_A_DEADLOCK).collect()))
}

fn is_about_arguments(error: &protocol::ArgumentError) -> bool {
    !matches!(error, protocol::ArgumentError::UnknownCommand { .. })
}

fn home(environment: &[(OsString, OsString)]) -> PathBuf {
    environment.iter().find(|(name, _)| name == "HOME").map_or_else(|| PathBuf::from("/"), |(_, home)| home.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    #[tokio::test]
    async fn worker_that_lost_a_core_task_stops_and_fails() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("password"), "secret\n").expect("it is written");
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path("password"), private).expect("it is changed");
        let overrides = Overrides {
            master: Some("pb://127.0.0.1:9".to_owned()),
            name: Some("worker".to_owned()),
            password_file: Some(path("password")),
            basedir: Some(path("base")),
        };
        let config = Config::load(None, &overrides).expect("it is all there is to say");
        let (core, ended) = CoreTasks::new();
        tokio::spawn(core.watch("the baker", End::Never, async {}));
        let result = tokio::time::timeout(COMMANDS_END, run_with(config, Origin::default(), core, ended))
            .await
            .expect("it stops");
        assert_eq!(result.expect_err("it fails").to_string(), "the baker ended, which it should not");
    }

    #[test]
    fn a_builders_directory_is_the_first_below_the_basedir() {
        let check = |path: &str, expected: Option<&str>| {
            assert_eq!(builder_dir_of(Path::new(path), Path::new("/srv/w")), expected.map(PathBuf::from), "{path}");
        };
        check("/srv/w/b/build/f", Some("b"));
        check("/srv/w/b", Some("b"));
        check("/srv/w", None);
        check("/srv/w/../x", None);
        check("/srv/w/up/../norm/build/f", Some("up/../norm"));
        check("/srv/w/up/../../x", None);
        check("/srv/work/b", None);
        check("/tmp", None);
    }

    #[test]
    fn a_master_says_in_print_that_builds_wait_for_each_other() {
        let check = |message: &str, expected: Option<Option<&str>>| {
            assert_eq!(deadlock(message), expected.map(|said| said.map(str::to_owned)), "{message:.60}");
        };
        check("kvm-worker deadlock two builds wait", Some(Some("two builds wait")));
        check("kvm-worker deadlock", Some(None));
        check("kvm-worker deadlocked", None);
        check("deadlock two builds wait", None);
        check(&format!("kvm-worker deadlock {}", "é".repeat(5000)), Some(Some(&"é".repeat(MOST_OF_A_DEADLOCK))));
    }

    #[test]
    fn a_master_says_in_print_that_a_build_is_over() {
        let check = |message: &str, expected| assert_eq!(finished_build(message), expected, "{message}");
        check("kvm-worker release 17 runtests", Some((17, "runtests")));
        check("kvm-worker release 17 a builder, with spaces ", Some((17, "a builder, with spaces ")));
        for other in [
            "ping",
            "attached",
            "kvm-worker release",
            "kvm-worker release 17",
            "kvm-worker release 17 ",
            "kvm-worker release +17 b",
            "kvm-worker release x b",
            "kvm-worker release 99999999999999999999 b",
            "about kvm-worker release 17 b",
        ] {
            check(other, None);
        }
    }
}
