//! The messages between a master and its worker, whatever the protocol.
//!
//! ```text
//! master ── Request ──▶ worker        worker ── Call ──▶ master
//! master ◀── Reply ──── worker        worker ◀─ result ─ master
//! ```

use std::fmt;
use std::time::Duration;

use crate::value::Value;

/// Names one running command; chosen by the master, unique within its process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub String);

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Pairs a response with its request. Each side counts its own requests from 0 on every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqNumber(pub u64);

impl fmt::Display for SeqNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One message from the master.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// The master wants something; it is answered exactly once, under the same number.
    Request {
        /// The master's number.
        seq: SeqNumber,
        /// What it wants.
        request: Request,
    },
    /// The master answers one of our [`Call`]s.
    Response {
        /// Our number.
        seq: SeqNumber,
        /// The result, or the text of the exception it raised.
        result: Result<Value, String>,
    },
}

/// What a master can ask of a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// A line for the log: `attached`, `ping` before each build, `master got a duplicate connection`.
    Print {
        /// The line.
        message: String,
    },
    /// Sent hourly to keep the line busy.
    Keepalive,
    /// Asks for [`WorkerInfo`].
    WorkerInfo,
    /// How output is to be cut and batched, for commands started from now on. Not over PB: there it is
    /// [`Settings::default`].
    Settings(Settings),
    /// All builders of this worker, each with the name of its directory in the worker's base directory. What
    /// runs at other builders is over. Answered with a list of the names of those that are served, or with nil if that is
    /// all of them; a master gives the others to other workers. PB alone: a msgpack master makes and removes the directories
    /// itself.
    BuilderList(Vec<(String, String)>),
    /// A build of a builder begins, so its last one is over. PB alone.
    StartBuild {
        /// The builder.
        builder: String,
    },
    /// Starts a command.
    StartCommand(StartCommand),
    /// Interrupts a command. An id that no longer runs is no error.
    Interrupt {
        /// Which one.
        command_id: CommandId,
        /// The reason, for people.
        why: String,
    },
    /// The worker is to exit.
    Shutdown,
}

/// A command as the master sends it, before its arguments are parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct StartCommand {
    /// Its id.
    pub command_id: CommandId,
    /// The builder whose build it belongs to; none for what a master runs while a worker attaches.
    pub builder: Option<String>,
    /// The command's name, such as `shell`.
    pub name: String,
    /// Its arguments, a map.
    pub args: Value,
}

/// How the worker cuts and batches output (`set_worker_settings`, Buildbot 4.3.0).
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Output is sent once this much of it has gathered; bytes, counted as Buildbot's worker counts.
    pub buffer_size: usize,
    /// Output is sent at the latest after this time.
    pub buffer_timeout: Duration,
    /// What becomes a newline, as a regular expression of Python's `re`.
    pub newline_re: String,
    /// Longer lines are cut into several; characters.
    pub max_line_length: usize,
}

impl Settings {
    /// What suits a PB master, which says nothing of it. It takes text alone and finds the lines itself, one call after
    /// the other, so that few calls with much text cost it least.
    pub fn for_pb() -> Self {
        Settings { buffer_size: 512 * 1024, ..Settings::default() }
    }
}

impl Default for Settings {
    /// What a 4.3.0 master sends unless it is configured otherwise.
    fn default() -> Self {
        Settings {
            buffer_size: 64 * 1024,
            buffer_timeout: Duration::from_secs(5),
            newline_re: r"(\r\n|\r(?=.)|\033\[u|\033\[[0-9]+;[0-9]+[Hf]|\033\[2J|\x08+)".to_owned(),
            max_line_length: 4096,
        }
    }
}

/// What the worker answers to a [`Request`]; an error is the text the master logs.
pub type Reply = Result<Value, String>;

/// What a worker asks of the master.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// Progress of a command.
    Update {
        /// Which one.
        command_id: CommandId,
        /// What is new, in order.
        updates: Vec<Update>,
    },
    /// The end of a command; nothing more may be said of it.
    Complete {
        /// Which one.
        command_id: CommandId,
        /// Why it could not be carried out; makes the build an exception. A command's ordinary failure is its `rc`.
        failure: Option<String>,
    },
    /// The next block of an uploaded file.
    UploadWrite {
        /// The upload.
        command_id: CommandId,
        /// The block.
        data: Vec<u8>,
    },
    /// The end of an uploaded file.
    UploadClose {
        /// The upload.
        command_id: CommandId,
    },
    /// The times of an uploaded file.
    UploadTimes {
        /// The upload.
        command_id: CommandId,
        /// Seconds since the epoch.
        accessed: f64,
        /// Seconds since the epoch.
        modified: f64,
    },
    /// The next block of an uploaded directory's tar archive.
    DirectoryWrite {
        /// The upload.
        command_id: CommandId,
        /// The block.
        data: Vec<u8>,
    },
    /// The end of an uploaded directory: the master unpacks the archive.
    DirectoryUnpack {
        /// The upload.
        command_id: CommandId,
    },
    /// Asks for the next block of a download.
    Read {
        /// The download.
        command_id: CommandId,
        /// At most this many bytes.
        length: usize,
    },
    /// The end of a download.
    ReadClose {
        /// The download.
        command_id: CommandId,
    },
}

impl Call {
    /// The command this call belongs to.
    pub fn command_id(&self) -> &CommandId {
        match self {
            Call::Update { command_id, .. }
            | Call::Complete { command_id, .. }
            | Call::UploadWrite { command_id, .. }
            | Call::UploadClose { command_id }
            | Call::UploadTimes { command_id, .. }
            | Call::DirectoryWrite { command_id, .. }
            | Call::DirectoryUnpack { command_id }
            | Call::Read { command_id, .. }
            | Call::ReadClose { command_id } => command_id,
        }
    }
}

/// One piece of a command's progress.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// Whole lines of text on one stream.
    Text(Stream, Lines),
    /// The exit status; 0 is success.
    Rc(i32),
    /// How long the command ran, in seconds.
    Elapsed(f64),
    /// Why the command was ended, as Buildbot's steps know it (`timeout`, `timeout_without_output`, ...).
    FailureReason(String),
    /// File names, the result of `listdir` and `glob`.
    Files(Vec<String>),
    /// Mode, inode, device, links, uid, gid, size, access, modification and change time (seconds): `os.stat`'s order.
    Stat([i64; 10]),
    /// Anything else: the master appends the value to `cmd.updates[key]`.
    Other(String, Value),
}

/// Where a line of text belongs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// What the worker says about the command.
    Header,
    /// A Buildbot log of its own.
    Log(String),
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
}

/// Whole lines: text that ends with a newline, with the place and time of each line.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lines {
    /// The text; empty, or ending with a newline.
    pub text: String,
    /// The position of each newline in `text`, counted in characters from 0.
    pub newlines: Vec<u32>,
    /// When each line's first character arrived, in seconds since the epoch; as many as `newlines`.
    pub times: Vec<f64>,
}

impl Lines {
    /// What these lines take up of a [`Settings::buffer_size`], counted as Buildbot 4.3.0's worker counts it.
    pub fn cost(&self) -> usize {
        self.text.len() + 8 * (self.newlines.len() + self.times.len())
    }
}

/// What a worker says of itself: keys and values in Buildbot's spelling, each visible to the master's steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerInfo(pub Vec<(String, Value)>);

impl From<WorkerInfo> for Value {
    fn from(info: WorkerInfo) -> Self {
        Value::Map(info.0)
    }
}
