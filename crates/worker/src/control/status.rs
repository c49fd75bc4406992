//! How a worker is, as `kvm-worker status --json` has it. The names are documented in the manual: fields may be added, and none
//! is renamed or left out; what is not known is null.

use serde::{Deserialize, Serialize};

use crate::pool::SshCommand;

/// How a worker is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The name the master knows it by.
    pub worker: String,
    /// The version of kvm-worker.
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: f64,
    /// `running`, or what else worker info's `vm_state` says.
    pub state: String,
    pub master: MasterStatus,
    /// The master's builders that are not served.
    pub refused_builders: Vec<RefusedBuilder>,
    pub machines: Machines,
    pub slots: Vec<SlotStatus>,
    /// What runs in no slot: on the host, or because it waits for a machine.
    pub commands: Vec<LooseCommand>,
}

/// How the line to the master is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MasterStatus {
    pub address: String,
    pub protocol: String,
    pub state: LineState,
    /// Since when there is a line, or none.
    pub seconds: f64,
    /// Why there is none.
    pub failure: Option<String>,
    /// When the next attempt is made.
    pub retry_seconds: Option<f64>,
}

/// Whether there is a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LineState {
    Connected,
    Connecting,
    /// The next attempt is waited for.
    Waiting,
}

/// A builder that is not served, as its directory can't be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefusedBuilder {
    /// Its name, which a msgpack master does not tell.
    pub builder: Option<String>,
    pub directory: String,
    pub why: String,
}

/// How many machines there are, as worker info has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machines {
    pub slots: u16,
    /// How many more could be started now.
    pub free: u16,
    pub warm: u16,
    pub held: usize,
    /// How many wait to be started.
    pub waiting: usize,
    /// What the first of them waits for.
    pub waits_for: Option<String>,
    /// What the master says if all of them belong to builds that wait for builds that need one.
    pub deadlock: Option<String>,
}

/// How a slot is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SlotStatus {
    pub slot: u16,
    pub state: SlotWord,
    /// For how long it has been in that state.
    pub seconds: f64,
    /// Why it is quarantined.
    pub why: Option<String>,
    /// Whether it goes when it is free, as a reload made the slots fewer.
    pub leaving: bool,
    /// What is being done for the machine in it, and for how long.
    pub doing: Option<String>,
    pub doing_seconds: Option<f64>,
    /// How long it is still held.
    pub held_seconds: Option<f64>,
    pub builder: Option<String>,
    /// The master's number of the build.
    pub build: Option<u64>,
    pub vm: Option<String>,
    pub image: Option<String>,
    pub generation: Option<u32>,
    /// How the machine came to be.
    pub how: Option<String>,
    pub ssh_port: u16,
    /// QEMU's process.
    pub pid: Option<u32>,
    pub memory_bytes: Option<u64>,
    /// The last line of the console, while nothing else of the guest is heard.
    pub console: Option<String>,
    pub commands: Vec<CommandStatus>,
}

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SlotWord {
    Free,
    Starting,
    Up,
    Warm,
    Held,
    Template,
    Stopping,
    Cleaning,
    Quarantined,
}

/// A command of a build that runs. Its arguments, which may hold secrets, are nobody's business.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CommandStatus {
    /// Its name, such as `shell`.
    pub command: String,
    /// The name of the build's step, if the master told it.
    pub step: Option<String>,
    pub seconds: f64,
}

/// A command that runs in no slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LooseCommand {
    pub builder: Option<String>,
    /// The machine that it waits for, or null on the host.
    pub vm: Option<String>,
    #[serde(flatten)]
    pub command: CommandStatus,
}

/// How to get into the guest in a slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Login {
    pub slot: u16,
    pub ssh: SshCommand,
}
