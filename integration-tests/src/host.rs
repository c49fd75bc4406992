//! The host of a worker: its directories, its ports, its configuration, and what runs there.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, mem, thread};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value as Json;
use toml::{Table, Value};

use crate::artefacts::worker_binary;
use crate::port::is_free;
use crate::scratch::Scratch;
use crate::template_store;
use crate::{Daemon, Guest, Master, Ports, Running, SOON, Terminal, WITH_GUESTS, Worker};

/// How long something that was killed may take to go.
const GOING: Duration = Duration::from_secs(10);

/// What outlives a worker's process: files, ports and configuration. At its end all that still runs there is killed.
#[derive(Debug)]
pub struct KvmHost {
    directory: Scratch,
    ports: Ports,
    configuration: Table,
    variables: Vec<(String, String)>,
    /// Images that are to have the shared template of their guest from the worker's first start on.
    templates: Mutex<BTreeMap<String, Table>>,
}

impl KvmHost {
    /// A host whose worker logs in at a master, with the master's password for it.
    pub fn of(master: &Master) -> Result<KvmHost> {
        KvmHost::at(&master.url())
    }

    /// The same, at any URL.
    pub fn at(url: &str) -> Result<KvmHost> {
        let directory = Scratch::new("kvmhost")?;
        fs::create_dir(directory.path().join("home")).context("make a home for the worker")?;
        let mut host = KvmHost {
            directory,
            ports: Ports::reserve()?,
            configuration: Table::new(),
            variables: Vec::new(),
            templates: Mutex::default(),
        };
        host.write_password(Master::PASSWORD, 0o600)?;
        host.set("worker.name", Master::WORKER);
        host.set("worker.master", url);
        host.set("worker.password_file", text(&host.path("password")));
        host.set("worker.basedir", text(&host.basedir()));
        host.set("pool.slots", 1);
        host.set("pool.accel", "tcg");
        host.set("pool.state_dir", text(&host.state_dir()));
        host.set("pool.ssh_port_base", i64::from(host.ports.get(0)));
        Ok(host)
    }

    /// Sets a key of the configuration, as `pool.slots`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let (section, name) = key.split_once('.').expect("a key is SECTION.NAME");
        let section = self.configuration.entry(section).or_insert_with(|| Table::new().into());
        section.as_table_mut().expect("a section is a table").insert(name.to_owned(), value.into());
    }

    /// Sets a variable of the environment that the worker is started in.
    pub fn set_variable(&mut self, name: &str, value: impl ToString) {
        self.variables.push((name.to_owned(), value.to_string()));
    }

    /// Has a key of the configuration not be there, as `images.debian`.
    pub fn unset(&mut self, key: &str) {
        let (section, name) = key.split_once('.').expect("a key is SECTION.NAME");
        self.configuration.get_mut(section).and_then(Value::as_table_mut).and_then(|section| section.remove(name));
    }

    /// Adds an image.
    pub fn image(&mut self, name: &str, guest: Guest) {
        let templates = self.templates.get_mut().unwrap_or_else(PoisonError::into_inner);
        match guest.shared_template() {
            Some(table) => templates.insert(name.to_owned(), table),
            None => templates.remove(name),
        };
        self.set(&format!("images.{name}"), guest.table());
    }

    /// Writes the worker's password with given permission bits.
    pub fn write_password(&self, password: &str, mode: u32) -> Result<()> {
        let path = self.path("password");
        fs::write(&path, format!("{password}\n")).context("write the password")?;
        fs::set_permissions(&path, Permissions::from_mode(mode)).context("set the password's permissions")
    }

    /// Starts the worker and waits until the master has given it its builders.
    pub fn attach(&self, master: &Master) -> Result<Worker> {
        let mark = master.transcript().mark();
        let worker = self.start()?;
        if let Err(error) = master.attached(mark, Master::WORKER) {
            return Err(error.context(format!("the worker said:\n{}", worker.transcript().text())));
        }
        Ok(worker)
    }

    /// Starts the worker.
    pub fn start(&self) -> Result<Worker> {
        Worker::start(&mut self.with_file()?)
    }

    /// Starts the worker without a configuration file, with flags for what has no default.
    pub fn start_by_flags(&self) -> Result<Worker> {
        let mut command = self.command()?;
        command.arg("run");
        for flag in ["master", "name", "password-file", "basedir"] {
            let value = self.configuration["worker"][&flag.replace('-', "_")].as_str();
            command.arg(format!("--{flag}")).arg(value.context("the flag's value is a text")?);
        }
        Worker::start(&mut command)
    }

    /// Starts a worker that can't work, and waits until it ends by itself.
    pub fn start_in_vain(&self) -> Result<(ExitStatus, String)> {
        let mut worker = self.start()?;
        let status = worker.wait(SOON)?;
        Ok((status, worker.transcript().text()))
    }

    /// Runs the worker's program with other arguments than those that make it a worker, for the same configuration.
    pub fn ask(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.asking(arguments)?.stdin(Stdio::null()).output();
        output.with_context(|| format!("run kvm-worker {arguments:?}"))
    }

    /// Begins to do so, for what does not end by itself.
    pub fn begin(&self, arguments: &[&str]) -> Result<Daemon> {
        Daemon::spawn("kvm-worker", &mut self.asking(arguments)?, None)
    }

    /// Begins to do so on a terminal.
    pub fn on_terminal(&self, arguments: &[&str]) -> Result<Terminal> {
        Terminal::start(&mut self.asking(arguments)?)
    }

    /// The command that does so.
    pub fn asking(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command()?;
        // What follows two dashes is for the guest.
        let end = arguments.iter().position(|word| *word == "--").unwrap_or(arguments.len());
        let (ours, guests) = arguments.split_at(end);
        command.args(ours).arg("--config").arg(self.write_configuration()?).args(guests);
        Ok(command)
    }

    /// How the running worker says it is, as `status --json` has it.
    pub fn status(&self) -> Result<Json> {
        let output = self.ask(&["status", "--json"])?;
        ensure!(output.status.success(), "status ended with {output:?}");
        serde_json::from_slice(&output.stdout).context("understand what status says")
    }

    /// Waits until what the running worker says of a slot is right, and returns it.
    pub fn slot_becomes(&self, slot: u16, statement: &str, is_right: impl Fn(&Json) -> bool) -> Result<Json> {
        let deadline = Instant::now() + WITH_GUESTS;
        loop {
            let status = self.status()?;
            let said = &status["slots"][usize::from(slot)];
            if is_right(said) {
                return Ok(said.clone());
            }
            ensure!(Instant::now() < deadline, "slot {slot} is not {statement}: {status:#}");
            // Another process says it, and only when it is asked.
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The directory whose subdirectories the master gives to its builders.
    pub fn basedir(&self) -> PathBuf {
        self.path("base")
    }

    /// The home of the user that the worker runs as.
    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// The directory of the pool's files.
    pub fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    /// A path on this host.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// The ssh port of a slot.
    pub fn ssh_port(&self, slot: u16) -> u16 {
        self.ports.get(slot)
    }

    /// All QEMUs of this host.
    pub fn machines(&self) -> Result<Vec<Running>> {
        let running = self.running()?;
        Ok(running.into_iter().filter(|process| process.command.contains("qemu-system")).collect())
    }

    /// The one QEMU of this host.
    pub fn machine(&self) -> Result<Running> {
        let mut machines = self.machines()?;
        ensure!(machines.len() == 1, "not one machine but {machines:#?}");
        machines.pop().context("a machine")
    }

    /// Waits until so many QEMUs run on this host.
    pub fn machines_become(&self, count: usize) -> Result<()> {
        self.becomes(&format!("{count} machines run"), |host| {
            let machines = host.machines()?;
            let wrong = machines.len() != count;
            Ok(if wrong { vec![format!("not {count} but {machines:#?}")] } else { Vec::new() })
        })
    }

    /// Kills a process of this host with SIGKILL and waits until it is gone.
    pub fn kill(&self, process: &Running) -> Result<()> {
        process.kill(self.directory.path())
    }

    /// Sends a process of this host a signal.
    pub fn signal(&self, process: &Running, signal: Signal) -> Result<()> {
        process.signal(self.directory.path(), signal).map(drop)
    }

    /// Kills all processes of this host.
    pub fn kill_all(&self) -> Result<()> {
        for process in self.running()? {
            // One may end because another was killed.
            if let Err(error) = self.kill(&process) {
                eprintln!("{error:#}");
            }
        }
        let left = self.running()?;
        ensure!(left.is_empty(), "these still run: {left:#?}");
        Ok(())
    }

    /// Checks that nothing is left of a worker that has ended, and of its machines and commands.
    pub fn nothing_left(&self) -> Result<()> {
        self.becomes("nothing runs", |host| {
            Ok(host.running()?.iter().map(|process| format!("{process:?}")).collect())
        })?;
        self.slots_clean()
    }

    /// Checks that no machine runs and no slot holds anything, with the worker running or not.
    pub fn slots_clean(&self) -> Result<()> {
        self.becomes("the slots are clean", KvmHost::left_in_slots)
    }

    /// Checks what a worker that has ended keeps of an image: at most one whole template, and so many generations.
    pub fn keeps(&self, image: &str, generations: usize) -> Result<()> {
        let templates = directories(&self.state_dir().join("templates").join(image))?;
        ensure!(templates.len() <= 1, "more than one template of {image} is left: {templates:?}");
        for template in templates {
            let mode = fs::metadata(&template)?.permissions().mode() & 0o777;
            ensure!(mode == 0o700, "{} has the mode {mode:o}", template.display());
        }
        let mut kept = directories(&self.state_dir().join("generations").join(image))?;
        // One that is being removed when the worker ends is the next start's.
        kept.retain(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("gone-")));
        ensure!(kept.len() <= generations, "too many generations of {image} are left: {kept:?}");
        Ok(())
    }

    /// Waits until nothing is against a statement.
    pub fn becomes(&self, statement: &str, against: impl Fn(&KvmHost) -> Result<Vec<String>>) -> Result<()> {
        let deadline = Instant::now() + GOING;
        loop {
            let left = against(self)?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not true within {GOING:?}: {statement}; there is {left:#?}");
            // Processes, ports and files of several owners: nothing tells when the last of them is gone.
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn left_in_slots(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> = self.machines()?.iter().map(|machine| format!("{machine:?}")).collect();
        // Persistent disks and learnt host keys are not in there.
        left.extend(tree(&self.state_dir().join("slots"))?.iter().map(|path| text(path)));
        let busy = (0..8).map(|slot| self.ssh_port(slot)).filter(|port| !is_free(*port));
        left.extend(busy.map(|port| format!("somebody listens on port {port}")));
        Ok(left)
    }

    /// All processes of this host.
    pub fn running(&self) -> Result<Vec<Running>> {
        Running::under(self.directory.path())
    }

    fn with_file(&self) -> Result<Command> {
        let mut command = self.command()?;
        command.arg("run").arg("--config").arg(self.write_configuration()?);
        Ok(command)
    }

    /// Writes the configuration as it is set now, as the worker will find it when it reads it again.
    pub fn write_configuration(&self) -> Result<PathBuf> {
        // The worker takes up what is there when it starts.
        for (image, table) in mem::take(&mut *self.templates.lock().unwrap_or_else(PoisonError::into_inner)) {
            template_store::link(&table, &self.state_dir(), &image)?;
        }
        let file = self.path("worker.toml");
        fs::write(&file, self.configuration.to_string()).context("write the worker's configuration")?;
        Ok(file)
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(worker_binary()?);
        command.current_dir(self.directory.path());
        // The environment of the tests is none of the worker's business, nor of its commands.
        command.env_clear();
        for name in ["PATH", "TMPDIR"] {
            command.envs(env::var_os(name).map(|value| (name, value)));
        }
        command.env("LANG", "C.UTF-8").env("HOME", self.home()).envs(self.variables.iter().cloned());
        Ok(command)
    }
}

impl Drop for KvmHost {
    fn drop(&mut self) {
        if let Err(error) = self.kill_all() {
            eprintln!("{error:#}");
        }
    }
}

/// The directories in a directory, which may be missing itself.
fn directories(directory: &Path) -> Result<Vec<PathBuf>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).filter(|path| path.as_ref().map_or(true, |path| path.is_dir())).collect()
}

/// All there is below a directory, which may be missing itself.
fn tree(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    if directory.exists() {
        for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                paths.extend(tree(&entry.path())?);
            }
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
