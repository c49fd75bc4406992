//! The configuration: where it comes from, what it may say, and all that is wrong with it at once.
//!
//! A file (TOML), the environment (`KVM_WORKER__POOL__SLOTS=4`) and flags are laid over each other in this order.
//! Nothing outside this module reads them. `default.toml` documents every key.

mod address;
mod change;
mod control;
mod image;
mod keys;
mod password;
mod problem;
mod profile;
mod section;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Environment, File, FileFormat};
use protocol::command::Name;

pub(crate) use address::{MasterAddress, Scheme};
pub(crate) use change::{Change, Reconfigured};
pub(crate) use control::Control;
pub(crate) use image::{DiskFormat, Image, is_ambiguous};
pub(crate) use password::{Password, PasswordSource};
use problem::Problem;
pub(crate) use problem::Problems;
pub(crate) use profile::{Profile, Template};
use section::Section;

/// The file with every key, its default and what it does.
pub(crate) const DEFAULT_FILE: &str = include_str!("default.toml");

/// The longest path of a state directory, in bytes: QEMU's monitor socket is below it, and the address of a UNIX socket
/// ends at 107 bytes.
pub(crate) const MAX_STATE_DIR: usize = 80;

/// Everything a worker is told.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub worker: Worker,
    pub connection: Connection,
    pub pool: Pool,
    pub log: Log,
    pub control: Control,
    pub images: BTreeMap<Name, Image>,
}

/// Who this worker is, and whose.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Worker {
    /// The name the master knows it by.
    pub name: String,
    /// The master.
    pub master: MasterAddress,
    /// Where its password comes from.
    pub password: PasswordSource,
    /// The directory that holds the builders' directories; absolute.
    pub basedir: PathBuf,
    /// The certificates that vouch for the master, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether the master is asked to remove directories of builders that are gone.
    pub delete_leftover_dirs: bool,
    /// Whether builds may run commands on the host.
    pub host_commands: bool,
    /// How long a builder is quiet between two steps of a build at most, as far as a drain without the master goes.
    pub drain_quiet: Duration,
}

/// How the connection is made and kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Connection {
    /// How long one attempt may take, from name lookup to the end of the handshake.
    pub connect_timeout: Duration,
    /// How long the line may be silent, though asked for a sign of life, before it is given up.
    pub dead_after: Duration,
    /// The first wait before another attempt.
    pub retry_min: Duration,
    /// The longest wait before another attempt.
    pub retry_max: Duration,
}

/// The slots and how QEMU runs in them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pool {
    /// How many machines may run at a time.
    pub slots: u16,
    /// Slot n forwards this port plus n on 127.0.0.1 to its guest's ssh port.
    pub ssh_port_base: u16,
    /// The directory of the slots' files and of the disks that persist; absolute.
    pub state_dir: PathBuf,
    /// How long `vm_start` waits for a slot, for memory and disk space, or for a disk that persists.
    pub acquire_timeout: Duration,
    /// How long a machine may take to shut down politely.
    pub shutdown_timeout: Duration,
    /// The longest a builder may have a machine, from its guest's first word on.
    pub time_to_live: Duration,
    /// The longest a machine is held for a person.
    pub max_hold: Duration,
    /// How many machines are held at a time.
    pub max_held: u16,
    /// How much memory machines may have altogether, in MiB; most of the host's if absent.
    pub memory_budget_mib: Option<u64>,
    /// With less space than this on the state directory's file system, in MiB, no machine is started; and no copy from a guest
    /// leaves less on the one that it is written to.
    pub disk_low_water_mib: u64,
    /// How much one copy between host and guest may move, in MiB.
    pub max_copy_mib: u64,
    /// How old a machine may get that is kept ready.
    pub warm_max_age: Duration,
    /// The load of the last minute, for each processor, above which no machine is made to be kept ready.
    pub warm_max_load: f64,
    /// What executes guest code.
    pub accel: qemu::Accel,
    /// The program that runs machines.
    pub qemu: PathBuf,
    /// The program that makes disks.
    pub qemu_img: PathBuf,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Log {
    /// A filter as of `tracing_subscriber::EnvFilter`: `info`, `debug`, `kvm_worker=trace,qemu=debug`.
    pub filter: String,
    /// Its form.
    pub format: LogFormat,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// What suits where standard error leads: journald, or text.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// Entries of systemd's journal.
    Journald,
}

/// What the command line says in place of a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    pub master: Option<String>,
    pub name: Option<String>,
    pub password_file: Option<PathBuf>,
    pub basedir: Option<PathBuf>,
}

impl Config {
    /// Reads the configuration from a file, if there is one, the environment and the command line.
    ///
    /// # Errors
    /// All problems at once. Files that the configuration names are not opened here.
    pub(crate) fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, Problems> {
        let mut builder = built_in();
        if let Some(file) = file {
            builder = builder.add_source(File::from(file).format(FileFormat::Toml));
        }
        builder = builder.add_source(
            Environment::with_prefix("KVM_WORKER").prefix_separator("__").separator("__").try_parsing(true),
        );
        let overrides = [
            ("worker.master", overrides.master.clone()),
            ("worker.name", overrides.name.clone()),
            ("worker.password_file", overrides.password_file.as_deref().map(absolute)),
            ("worker.basedir", overrides.basedir.as_deref().map(absolute)),
        ];
        for (key, value) in overrides {
            builder = builder.set_override_option(key, value).map_err(Problems::unreadable)?;
        }
        let tree = builder.build().map_err(Problems::unreadable)?;
        Self::parse(tree.cache)
    }

    fn parse(tree: config::Value) -> Result<Self, Problems> {
        let problems = Problems::default();
        let mut root = Section::root(tree, &problems);
        let worker = parse_worker(root.section("worker"));
        let profiles = profile::parse(root.named_sections("profiles"), &problems);
        let connection = parse_connection(root.section("connection"));
        let pool = parse_pool(root.section("pool"), &worker.basedir);
        let config = Config {
            connection,
            control: Control::parse(root.section("control"), &pool.state_dir),
            pool,
            log: parse_log(root.section("log")),
            images: root
                .named_sections("images")
                .into_iter()
                .map(|(name, section)| (name, Image::parse(section, &profiles)))
                .collect(),
            worker,
        };
        root.finish();
        config.check(&problems);
        problems.into_result(config)
    }

    /// Notes what does not go together.
    fn check(&self, problems: &Problems) {
        // One more than there are slots: templates are made in a place of their own.
        if self.pool.ssh_port_base.checked_add(self.pool.slots).is_none() {
            problems.add(Problem {
                origin: None,
                key: "pool.ssh_port_base".to_owned(),
                value: Some(self.pool.ssh_port_base.to_string()),
                remedy: "leave a port below 65536 for every slot and one more".to_owned(),
            });
        }
        let state_dir = &self.pool.state_dir;
        // The placeholder of a basedir that is wrong itself is the root.
        if self.worker.basedir.parent().is_some() && state_dir.starts_with(&self.worker.basedir) {
            problems.add(Problem {
                origin: None,
                key: "pool.state_dir".to_owned(),
                value: Some(state_dir.display().to_string()),
                remedy: "choose a directory outside worker.basedir, in which a master removes what it does not know"
                    .to_owned(),
            });
        }
        if !self.images.is_empty() && state_dir.as_os_str().len() > MAX_STATE_DIR {
            problems.add(Problem {
                origin: None,
                key: "pool.state_dir".to_owned(),
                value: Some(state_dir.display().to_string()),
                remedy: format!("choose a path of at most {MAX_STATE_DIR} bytes: sockets are made below it"),
            });
        }
        for (name, image) in &self.images {
            if let Some(path) = &image.guest_basedir
                && self.worker.basedir.parent().is_some()
                && is_ambiguous(path, &self.worker.basedir)
            {
                problems.add(Problem {
                    origin: None,
                    key: format!("images.{name}.guest_basedir"),
                    value: Some(path.display().to_string()),
                    remedy: "choose worker.basedir itself, which is the default, or a directory that is neither in it nor around \
                             it: else paths of the guest could be taken for the host's"
                        .to_owned(),
                });
            }
        }
        let warm: u32 = self.images.values().map(|image| u32::from(image.warm)).sum();
        if warm > u32::from(self.pool.slots) {
            problems.add(Problem {
                origin: None,
                key: "pool.slots".to_owned(),
                value: Some(self.pool.slots.to_string()),
                remedy: format!("have at least {warm}: that many machines are to be kept warm, each in a slot"),
            });
        }
    }
}

/// Reads a configuration's text, for the fuzz targets.
#[cfg(fuzzing)]
pub(crate) fn understand(text: &str) {
    let tree = built_in().add_source(File::from_str(text, FileFormat::Toml)).build();
    let _ = tree.map(|tree| Config::parse(tree.cache));
}

/// What is there before anybody configures anything.
fn built_in() -> config::ConfigBuilder<config::builder::DefaultState> {
    config::Config::builder().add_source(File::from_str(profile::BUILT_IN, FileFormat::Toml))
}

fn parse_worker(mut section: Section<'_>) -> Worker {
    let worker = Worker {
        name: section.required("name", "the name that the master's configuration gives this worker", |text: String| {
            // The name and the password travel as `name:password`.
            (!text.is_empty() && !text.contains(':')).then_some(text).ok_or("a name without a colon")
        }),
        master: section.required(
            "master",
            "the master's address, such as \"pb://master.example.org:9989\"",
            |text: String| MasterAddress::parse(&text),
        ),
        password: PasswordSource::parse(&mut section),
        basedir: section.required("basedir", "the directory for the builders' directories", absolute_path),
        ca_file: section.optional("ca_file", absolute_path),
        delete_leftover_dirs: section.or("delete_leftover_dirs", false),
        host_commands: section.or("host_commands", true),
        drain_quiet: section.seconds("drain_quiet", 1.0..=86400.0, 60.0),
    };
    section.finish();
    worker
}

fn parse_connection(mut section: Section<'_>) -> Connection {
    let connection = Connection {
        connect_timeout: section.seconds("connect_timeout", 1.0..=600.0, 30.0),
        dead_after: section.seconds("dead_after", 3.0..=3600.0, 120.0),
        retry_min: section.seconds("retry_min", 0.1..=60.0, 1.0),
        retry_max: section.seconds("retry_max", 1.0..=3600.0, 60.0),
    };
    section.finish();
    connection
}

fn parse_pool(mut section: Section<'_>, basedir: &Path) -> Pool {
    let slots = section.number("slots", 1..=1000, 2);
    let ssh_port_base = section.number("ssh_port_base", 1024..=u16::MAX, 2222);
    let state_dir = section.optional("state_dir", absolute_path).unwrap_or_else(|| beside(basedir));
    let pool = Pool {
        slots,
        ssh_port_base,
        state_dir,
        acquire_timeout: section.seconds("acquire_timeout", 0.0..=86400.0, 600.0),
        shutdown_timeout: section.seconds("shutdown_timeout", 1.0..=3600.0, 60.0),
        time_to_live: section.seconds("time_to_live", 1.0..=2_592_000.0, 86400.0),
        max_hold: section.seconds("max_hold", 1.0..=2_592_000.0, 14400.0),
        max_held: section.number("max_held", 0..=1000, 1),
        memory_budget_mib: section.optional_number("memory_budget_mib", 16..=1 << 30),
        disk_low_water_mib: section.number("disk_low_water_mib", 0..=1 << 30, 1024),
        max_copy_mib: section.number("max_copy_mib", 1..=1 << 30, 65_536),
        warm_max_age: section.seconds("warm_max_age", 1.0..=2_592_000.0, 3600.0),
        warm_max_load: section.parsed("warm_max_load", 2.0, |load: f64| {
            (0.0..=1000.0).contains(&load).then_some(load).ok_or("a number from 0 to 1000")
        }),
        accel: section.parsed("accel", qemu::Accel::Auto, |text: String| match text.as_str() {
            "auto" => Ok(qemu::Accel::Auto),
            "kvm" => Ok(qemu::Accel::Kvm),
            "tcg" => Ok(qemu::Accel::Tcg),
            _ => Err("\"auto\", \"kvm\" or \"tcg\""),
        }),
        qemu: section.or("qemu", "qemu-system-x86_64".to_owned()).into(),
        qemu_img: section.or("qemu_img", "qemu-img".to_owned()).into(),
    };
    section.finish();
    pool
}

fn parse_log(mut section: Section<'_>) -> Log {
    let log =
        Log {
            filter: section.parsed("filter", "info".to_owned(), |text: String| {
                match tracing_subscriber::EnvFilter::try_new(&text) {
                    Ok(_) => Ok(text),
                    Err(_) => Err("a level such as \"info\", or levels of parts such as \"info,qemu=debug\""),
                }
            }),
            format: section.parsed("format", LogFormat::Auto, |text: String| match text.as_str() {
                "auto" => Ok(LogFormat::Auto),
                "text" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                "journald" => Ok(LogFormat::Journald),
                _ => Err("\"auto\", \"text\", \"json\" or \"journald\""),
            }),
        };
    section.finish();
    log
}

/// Paths of a file must be absolute: a daemon's working directory is nobody's business.
fn absolute_path(text: String) -> Result<PathBuf, &'static str> {
    // Without a slash at the end and dots in between, which would make two names of one directory.
    let path: PathBuf = Path::new(&text).components().collect();
    Some(path).filter(|path| path.is_absolute()).ok_or("an absolute path")
}

/// Paths of the command line are relative to where it was typed.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}

/// The default state directory. It is not inside the basedir, where a master removes what it does not know.
fn beside(basedir: &Path) -> PathBuf {
    let mut path = basedir.as_os_str().to_owned();
    path.push("-vms");
    path.into()
}
