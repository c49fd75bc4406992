//! A Buildbot master of a test's own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, process};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::artefacts::{cache, in_venv, repository};
use crate::rest::Rest;
use crate::scratch::Scratch;
use crate::{Build, Certificates, Daemon, Ports, SOON, Transcript};

const WORKERS: u16 = 0;
const WWW: u16 = 1;

/// What a master is to have. Made by [`Master::plan`].
#[derive(Debug)]
pub struct MasterPlan {
    protocol: Protocol,
    tls: Option<String>,
    workers: Vec<(String, String)>,
    builders: String,
}

/// What a master speaks with its workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// MessagePack over WebSocket.
    Msgpack,
    /// Perspective Broker.
    Pb,
}

/// A running Buildbot 4.3.0 master on loopback, with a database and a web server. Ends with the value.
#[derive(Debug)]
pub struct Master {
    protocol: Protocol,
    daemon: Daemon,
    rest: Rest,
    ports: Ports,
    directory: Scratch,
}

/// Something the master was asked to build. Each try is a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request(u64);

impl MasterPlan {
    /// Adds a builder. `steps` are Python expressions with commas between, as `steps.ShellCommand(command="make")`.
    pub fn builder(self, name: &str, steps: &str) -> MasterPlan {
        self.builder_with(name, steps, "")
    }

    /// Adds a builder with more arguments for its `BuilderConfig`, as `workernames=["other"]`.
    pub fn builder_with(mut self, name: &str, steps: &str, arguments: &str) -> MasterPlan {
        // Writing to a String does not fail.
        let _ = writeln!(self.builders, "add_builder(c, {name:?}, [\n{steps}\n], {arguments})");
        self
    }

    /// Adds lines of Python to the configuration, which is called `c`.
    pub fn python(mut self, lines: &str) -> MasterPlan {
        self.builders.push_str(lines);
        self.builders.push('\n');
        self
    }

    /// Adds a worker beside the one called `worker`.
    pub fn worker(mut self, name: &str) -> MasterPlan {
        self.workers.push((name.to_owned(), Master::PASSWORD.to_owned()));
        self
    }

    /// Has workers spoken to over this protocol; without it that is MessagePack.
    pub fn speaking(self, protocol: Protocol) -> MasterPlan {
        MasterPlan { protocol, ..self }
    }

    /// Has workers spoken to over PB in TLS, by the master itself.
    pub fn speaking_tls(self, certificates: &Certificates) -> MasterPlan {
        MasterPlan { protocol: Protocol::Pb, tls: Some(certificates.server_pem().to_owned()), ..self }
    }

    /// Starts the master and waits until it runs.
    pub fn start(self) -> Result<Master> {
        let directory = Scratch::new("master")?;
        let ports = Ports::reserve()?;
        let testbed = testbed();
        fs::copy(new_database()?, directory.path().join("state.sqlite")).context("copy the empty database")?;
        fs::copy(testbed.join("buildbot.tac"), directory.path().join("buildbot.tac")).context("copy buildbot.tac")?;
        self.write_to(directory.path(), &ports)?;
        let daemon = start_in(directory.path())?;
        Ok(Master { protocol: self.protocol, daemon, rest: Rest::new(ports.get(WWW)), ports, directory })
    }

    fn write_to(&self, directory: &Path, ports: &Ports) -> Result<()> {
        let testbed = testbed();
        let workers: serde_json::Map<String, Value> =
            self.workers.iter().map(|(name, password)| (name.clone(), password.as_str().into())).collect();
        let configuration = format!(
            "import sys\nsys.path.insert(0, {testbed:?})\nfrom testbed import *\n\
             c = BuildmasterConfig = base({}, {}, {})\n{}",
            self.protocols(directory, ports.get(WORKERS))?,
            ports.get(WWW),
            Value::from(workers),
            self.builders,
        );
        fs::write(directory.join("master.cfg"), configuration).context("write master.cfg")
    }

    /// What the master has as `c['protocols']`.
    fn protocols(&self, directory: &Path, port: u16) -> Result<Value> {
        Ok(match (self.protocol, &self.tls) {
            (Protocol::Msgpack, _) => json!({ "msgpack_experimental_v7": { "port": port } }),
            (Protocol::Pb, None) => json!({ "pb": { "port": format!("tcp:{port}:interface=127.0.0.1") } }),
            (Protocol::Pb, Some(pem)) => {
                let file = directory.join("server.pem");
                fs::write(&file, pem).context("write the master's key and certificate")?;
                let file = file.display();
                let port = format!("ssl:{port}:interface=127.0.0.1:privateKey={file}:certKey={file}");
                json!({ "pb": { "port": port } })
            }
        })
    }
}

impl Protocol {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Msgpack => "msgpack",
            Protocol::Pb => "pb",
        }
    }

    /// The scheme of a master's URL, with or without TLS.
    pub fn scheme(self, tls: bool) -> &'static str {
        match (self, tls) {
            (Protocol::Msgpack, false) => "ws",
            (Protocol::Msgpack, true) => "wss",
            (Protocol::Pb, false) => "pb",
            (Protocol::Pb, true) => "pbs",
        }
    }
}

impl Master {
    /// The name of the worker each master knows.
    pub const WORKER: &str = "worker";

    /// The password of all workers.
    pub const PASSWORD: &str = "correct horse battery staple";

    /// Begins the description of a master.
    pub fn plan() -> MasterPlan {
        let workers = vec![(Master::WORKER.to_owned(), Master::PASSWORD.to_owned())];
        MasterPlan { protocol: Protocol::Msgpack, tls: None, workers, builders: String::new() }
    }

    /// Starts a master that has one builder, called `build`.
    pub fn building(steps: &str) -> Result<Master> {
        Master::building_over(Protocol::Msgpack, steps)
    }

    /// The same over a protocol.
    pub fn building_over(protocol: Protocol, steps: &str) -> Result<Master> {
        Master::plan().speaking(protocol).builder("build", steps).start()
    }

    /// The port for workers.
    pub fn port(&self) -> u16 {
        self.ports.get(WORKERS)
    }

    /// What a worker is to have as `worker.master`.
    pub fn url(&self) -> String {
        self.url_by(self.port())
    }

    /// The same through a proxy on another port.
    pub fn url_by(&self, port: u16) -> String {
        format!("{}://127.0.0.1:{port}", self.protocol.scheme(false))
    }

    /// The same in TLS.
    pub fn url_by_tls(&self, port: u16) -> String {
        format!("{}://localhost:{port}", self.protocol.scheme(true))
    }

    /// Has the running master take over another plan, and waits until it has.
    pub fn reconfigure(&self, plan: MasterPlan) -> Result<()> {
        let mark = self.transcript().mark();
        plan.speaking(self.protocol).write_to(self.directory.path(), &self.ports)?;
        self.daemon.signal(Signal::HUP)?;
        self.transcript().find_from(mark, "configuration update complete", SOON).map(drop)
    }

    /// Where the master keeps what workers upload: relative paths of its steps begin here.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// The master's log, with all messages to and from workers, and its events.
    pub fn transcript(&self) -> &Transcript {
        self.daemon.transcript()
    }

    /// Ends the master as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.kill()
    }

    /// Asks the master to end, and waits for that.
    pub fn stop_master(&mut self) -> Result<()> {
        self.daemon.signal(Signal::TERM)?;
        self.daemon.wait(SOON).map(drop)
    }

    /// Starts it again, on the same ports and with what it knew, after it has ended.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon = start_in(self.directory.path())?;
        Ok(())
    }

    /// Asks for a build.
    pub fn force(&self, builder: &str) -> Result<Request> {
        let path = format!("forceschedulers/force-{builder}");
        let answer = self.rest.call(&path, "force", &json!({ "reason": "a test" }))?;
        // [buildset, {builder: request}]
        let request = answer[1].as_object().and_then(|requests| requests.values().next()).and_then(Value::as_u64);
        request.map(Request).with_context(|| format!("force {builder}: no request in {answer}"))
    }

    /// Asks for a build and waits for the end of its last try.
    pub fn run(&self, builder: &str) -> Result<Build> {
        self.run_within(builder, SOON)
    }

    /// The same for builds that take longer than [`SOON`].
    pub fn run_within(&self, builder: &str, within: Duration) -> Result<Build> {
        let request = self.force(builder)?;
        self.complete(request, within)
    }

    /// Waits until a request needs no more tries; gives the last one.
    pub fn complete(&self, request: Request, within: Duration) -> Result<Build> {
        self.await_event("buildrequests", Some(request.0), "complete", within, |_| true)
            .with_context(|| self.story(request))?;
        self.tries(request)?.pop().context("the request was completed without a build")
    }

    /// Whether a request needs no more tries.
    pub fn is_complete(&self, request: Request) -> Result<bool> {
        let requests: Vec<Value> = self.rest.get(&format!("buildrequests/{}", request.0), "buildrequests")?;
        Ok(requests.first().is_some_and(|request| request["complete"] == true))
    }

    /// All builds of a request that have ended.
    pub fn tries(&self, request: Request) -> Result<Vec<Build>> {
        let path = format!("builds?buildrequestid={}&complete=true&order=buildid", request.0);
        let builds: Vec<Value> = self.rest.get(&path, "builds")?;
        builds.iter().filter_map(|build| build["buildid"].as_u64()).map(|id| Build::fetch(&self.rest, id)).collect()
    }

    /// Waits until a build of a request has begun; gives its id.
    pub fn begun(&self, request: Request) -> Result<u64> {
        let new = self.await_event("builds", None, "new", SOON, |build| build["buildrequestid"] == request.0)?;
        new["buildid"].as_u64().context("a new build has no id")
    }

    /// Whether a build of a request has begun by now.
    pub fn has_begun(&self, request: Request) -> Result<bool> {
        let builds: Vec<Value> = self.rest.get(&format!("builds?buildrequestid={}", request.0), "builds")?;
        Ok(!builds.is_empty())
    }

    /// The builds that have begun and not ended.
    pub fn running(&self) -> Result<Vec<Build>> {
        let builds: Vec<Value> = self.rest.get("builds?complete=false", "builds")?;
        builds.iter().filter_map(|build| build["buildid"].as_u64()).map(|id| Build::fetch(&self.rest, id)).collect()
    }

    /// Waits until a build has ended, whether or not it will be tried again.
    pub fn ended(&self, build: u64, within: Duration) -> Result<Build> {
        self.await_event("builds", Some(build), "finished", within, |_| true)?;
        Build::fetch(&self.rest, build)
    }

    /// Waits until a step of a request's build has printed a text.
    pub fn printed(&self, request: Request, text: &str, within: Duration) -> Result<()> {
        let build = self.begun(request)?;
        loop {
            let mark = self.transcript().mark();
            let now = Build::fetch(&self.rest, build)?;
            let story = now.story();
            if story.contains(text) {
                return Ok(());
            }
            ensure!(now.results.is_none(), "{text:?} was not printed: {story}");
            // The event says that there is more of a log, not what.
            self.transcript()
                .pick_from(mark, &format!("{text:?} in a log"), within, |line| {
                    let (key, _) = event(line)?;
                    (key[0] == "logs" || key[0] == "builds").then_some(())
                })
                .context(story)?;
        }
    }

    /// Stops a build, as a person does on the web page.
    pub fn stop(&self, build: u64) -> Result<()> {
        self.rest.call(&format!("builds/{build}"), "stop", &json!({ "reason": "the test wants it" })).map(drop)
    }

    /// Has the master tell a worker to end, as a person does on the web page.
    pub fn shut_down(&self, worker: &str) -> Result<()> {
        self.rest.call(&format!("workers/{worker}"), "kill", &json!({ "reason": "the test wants it" })).map(drop)
    }

    /// Has a worker be given no more builds, and waits until those that it has are past their preparation.
    pub fn pause(&self, worker: &str, within: Duration) -> Result<()> {
        self.rest.call(&format!("workers/{worker}"), "pause", &json!({ "reason": "the test wants it" }))?;
        loop {
            let mark = self.transcript().mark();
            if self.is_paused(worker)? && self.all_prepared()? {
                return Ok(());
            }
            self.transcript().pick_from(mark, "a build that is prepared", within, event)?;
        }
    }

    /// Lets it start builds again.
    pub fn unpause(&self, worker: &str) -> Result<()> {
        self.rest.call(&format!("workers/{worker}"), "unpause", &json!({ "reason": "the test wants it" })).map(drop)
    }

    fn is_paused(&self, worker: &str) -> Result<bool> {
        let workers: Vec<Value> = self.rest.get(&format!("workers/{worker}"), "workers")?;
        Ok(workers.first().is_some_and(|worker| worker["paused"] == true))
    }

    /// Whether each request that is being worked on has a build that is past its preparation, which the master counts as
    /// a step. A request is claimed before there is a build.
    fn all_prepared(&self) -> Result<bool> {
        let requests: Vec<Value> = self.rest.get("buildrequests?claimed=true&complete=false", "buildrequests")?;
        for request in requests {
            let path = format!("builds?buildrequestid={}&complete=false", request["buildrequestid"]);
            let builds: Vec<Value> = self.rest.get(&path, "builds")?;
            let Some(build) = builds.first() else { return Ok(false) };
            let steps: Vec<Value> = self.rest.get(&format!("builds/{}/steps", build["buildid"]), "steps")?;
            if !steps.iter().any(|step| step["complete"] == true) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a worker that is connected, or was, has told about itself.
    pub fn worker_info(&self, worker: &str) -> Result<Value> {
        let mut workers: Vec<Value> = self.rest.get(&format!("workers/{worker}"), "workers")?;
        Ok(workers.pop().context("the master has no such worker")?["workerinfo"].take())
    }

    /// Waits until a worker is connected and has its builders; `mark` is of [`Master::transcript`].
    pub fn attached(&self, mark: usize, worker: &str) -> Result<()> {
        self.transcript().find_from(mark, &format!("Worker {worker} attached to"), SOON).map(drop)
    }

    /// Waits until the master has noticed that a worker is gone; `mark` is of [`Master::transcript`].
    pub fn detached(&self, mark: usize, worker: &str, within: Duration) -> Result<()> {
        self.transcript().find_from(mark, &format!("Worker.detached({worker})"), within).map(drop)
    }

    fn await_event(
        &self,
        kind: &str,
        id: Option<u64>,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let id = id.map(|id| id.to_string());
        let sought = format!("the event {what} of {kind} {}", id.as_deref().unwrap_or(""));
        self.transcript().pick_from(0, &sought, within, |line| {
            let (key, message) = event(line)?;
            let is_it = key[0] == kind && key[2] == what && id.as_ref().is_none_or(|id| key[1] == *id);
            (is_it && wanted(&message)).then_some(message)
        })
    }

    fn story(&self, request: Request) -> String {
        match self.begun(request).and_then(|build| Build::fetch(&self.rest, build)) {
            Ok(build) => build.story(),
            Err(error) => format!("no build of it has begun ({error:#})"),
        }
    }
}

fn testbed() -> PathBuf {
    repository().join("integration-tests/master")
}

/// Takes an event apart: `[kind, id, what]` and its message.
fn event(line: &str) -> Option<([String; 3], Value)> {
    serde_json::from_str(line.strip_prefix("EVENT ")?).ok()
}

fn start_in(directory: &Path) -> Result<Daemon> {
    // As twistd would, which takes seconds to import what this master shares with all others.
    let mut command = Command::new(in_venv("python")?);
    command.args(["-IS"]).arg(testbed().join("start_master.py"));
    command.args(["--nodaemon", "--no_save", "--pidfile=", "--python=buildbot.tac"]).current_dir(directory);
    // Python packages of the person who runs the tests are none of the test's business.
    command.env_remove("PYTHONPATH").env("PYTHONDONTWRITEBYTECODE", "1");
    let daemon = Daemon::spawn("master", &mut command, Some(40))?;
    daemon.transcript().find("BuildMaster is running", SOON).context("start a master")?;
    Ok(daemon)
}

/// A database as `buildbot create-master` makes it, made once for all tests: that takes as long as starting a master.
fn new_database() -> Result<PathBuf> {
    let directory = cache().join("integration-tests");
    let ready = directory.join("empty-4.3.0.sqlite");
    if ready.exists() {
        return Ok(ready);
    }
    fs::create_dir_all(&directory).context("make a directory for the empty database")?;
    let own = directory.join(format!("new-{}-{:?}", process::id(), std::thread::current().id()));
    let made = Command::new(in_venv("buildbot")?)
        .args(["create-master", "--quiet"])
        .arg(&own)
        .current_dir(env::temp_dir())
        .stdin(Stdio::null())
        .output()
        .context("make the database of a master")?;
    ensure!(made.status.success(), "buildbot create-master failed: {}", String::from_utf8_lossy(&made.stderr));
    fs::rename(own.join("state.sqlite"), &ready).context("put the empty database in its place")?;
    fs::remove_dir_all(&own).context("remove a master that was made for its database")?;
    Ok(ready)
}
