//! The commands a master can start, with their arguments parsed.
//!
//! Buildbot names the same thing differently over its two protocols (`uploadFile` with `workersrc` relative to the
//! builder's directory over PB, `upload_file` with an absolute `path` over msgpack). Both forms are understood here
//! whatever the protocol, and come out as one type. A path in these types is what the master said: absolute, or
//! relative to the builder's directory.

mod files;
mod shell;
mod transfer;
mod vm;

pub use files::{Cpdir, PathArgument, Paths, Rmdir};
pub use shell::{CommandLine, EnvValue, Logfile, Shell, Word};
pub use transfer::{Compression, DownloadFile, MAX_BLOCK_SIZE, UploadDirectory, UploadFile};
pub use vm::{Direction, Disposal, Mode, Name, VmCopy, VmInfo, VmReboot, VmStart, VmStop};

use std::path::{Path, PathBuf};

use crate::args::{Args, ArgumentError};
use crate::message::StartCommand;

/// A command with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// `shell`: runs a program.
    Shell(Box<Shell>),
    /// `uploadFile`, `upload_file`: a file from the worker to the master.
    UploadFile(UploadFile),
    /// `uploadDirectory`, `upload_directory`: a directory from the worker to the master, as a tar archive.
    UploadDirectory(UploadDirectory),
    /// `downloadFile`, `download_file`: a file from the master to the worker.
    DownloadFile(DownloadFile),
    /// `mkdir`: makes directories and their parents.
    Mkdir(Paths),
    /// `rmdir`: removes trees.
    Rmdir(Rmdir),
    /// `cpdir`: copies a tree.
    Cpdir(Cpdir),
    /// `stat`.
    Stat(PathArgument),
    /// `glob`: the paths that match a pattern.
    Glob(PathArgument),
    /// `listdir`: the names in a directory.
    Listdir(PathArgument),
    /// `rmfile`: removes a file.
    Rmfile(PathArgument),
    /// `vm_start`.
    VmStart(VmStart),
    /// `vm_copy`.
    VmCopy(VmCopy),
    /// `vm_reboot`.
    VmReboot(VmReboot),
    /// `vm_stop`.
    VmStop(VmStop),
    /// `vm_info`.
    VmInfo(VmInfo),
}

/// Where the master wants a command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// It did not say.
    Unsaid,
    /// On the host.
    Host,
    /// In the VM of this name.
    Vm(Name),
}

/// A command, where it is to run and what is to be shown beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// Where; [`Placement::Unsaid`] for the `vm_…` commands, which name their VM themselves.
    pub placement: Placement,
    /// The Buildbot log that gets what the VM's serial console prints meanwhile.
    pub console_log: Option<String>,
    /// The name of the build's step that it is of, as far as [`MAX_STEP`] characters of it.
    pub step: Option<String>,
}

/// How much of a step's name is kept, in characters.
pub const MAX_STEP: usize = 100;

/// The version the standard commands are advertised with: that of Buildbot 4.3.0's worker.
pub const STANDARD_VERSION: &str = "3.3";

/// The version of the `vm_…` commands.
pub const VM_VERSION: &str = "1.0";

/// Every command's name and the version to advertise in worker info (`worker_commands`).
pub const COMMANDS: [(&str, &str); 19] = [
    ("shell", STANDARD_VERSION),
    ("uploadFile", STANDARD_VERSION),
    ("upload_file", STANDARD_VERSION),
    ("uploadDirectory", STANDARD_VERSION),
    ("upload_directory", STANDARD_VERSION),
    ("downloadFile", STANDARD_VERSION),
    ("download_file", STANDARD_VERSION),
    ("mkdir", STANDARD_VERSION),
    ("rmdir", STANDARD_VERSION),
    ("cpdir", STANDARD_VERSION),
    ("stat", STANDARD_VERSION),
    ("glob", STANDARD_VERSION),
    ("listdir", STANDARD_VERSION),
    ("rmfile", STANDARD_VERSION),
    ("vm_start", VM_VERSION),
    ("vm_copy", VM_VERSION),
    ("vm_reboot", VM_VERSION),
    ("vm_stop", VM_VERSION),
    ("vm_info", VM_VERSION),
];

impl Invocation {
    /// Parses what the master wants started.
    ///
    /// # Errors
    /// An unknown command, a missing or an unusable argument.
    pub fn parse(start: &StartCommand) -> Result<Self, ArgumentError> {
        let command = Command::parse(start)?;
        let args = Args::new("WorkerCommand", &start.args);
        let placement = match args.text("vm")?.as_deref() {
            _ if command.is_about_vms() => Placement::Unsaid,
            None => Placement::Unsaid,
            Some("host") => Placement::Host,
            Some(_) => Placement::Vm(Name::parse(args, "vm")?.unwrap_or_else(Name::default_vm)),
        };
        // It is for people alone, so that none that makes no sense is worth a failed build.
        let step = args.text("step").ok().flatten().map(|step| step.chars().take(MAX_STEP).collect());
        Ok(Invocation { command, placement, console_log: args.text("console_log")?, step })
    }
}

impl Command {
    /// Tells the `vm_…` commands from those that every worker has.
    pub fn is_about_vms(&self) -> bool {
        matches!(
            self,
            Command::VmStart(_) | Command::VmCopy(_) | Command::VmReboot(_) | Command::VmStop(_) | Command::VmInfo(_)
        )
    }

    /// The VM that a `vm_…` command names; none of `vm_info` if it is about all.
    pub fn vm(&self) -> Option<&Name> {
        match self {
            Command::VmStart(start) => Some(&start.vm),
            Command::VmCopy(copy) => Some(&copy.vm),
            Command::VmReboot(reboot) => Some(&reboot.vm),
            Command::VmStop(stop) => Some(&stop.vm),
            Command::VmInfo(info) => info.vm.as_ref(),
            _ => None,
        }
    }

    /// Changes every path of the command that is not one from `~`; the host's paths of the `vm_…` commands included.
    ///
    /// A worker makes paths absolute with it, and those of a guest the guest's own, before it runs the command.
    pub fn map_paths(&mut self, mut map: impl FnMut(&Path) -> PathBuf) {
        let mut change = |path: &mut PathBuf| {
            if !path.starts_with("~") {
                *path = map(path);
            }
        };
        match self {
            Command::Shell(shell) => {
                change(&mut shell.workdir);
                // Others are relative to the workdir.
                shell
                    .logfiles
                    .iter_mut()
                    .map(|log| &mut log.filename)
                    .filter(|path| path.is_absolute())
                    .for_each(change);
            }
            Command::UploadFile(upload) => change(&mut upload.path),
            Command::UploadDirectory(upload) => change(&mut upload.path),
            Command::DownloadFile(download) => change(&mut download.path),
            Command::Mkdir(paths) => paths.0.iter_mut().for_each(change),
            Command::Rmdir(rmdir) => rmdir.paths.iter_mut().for_each(change),
            Command::Cpdir(cpdir) => {
                change(&mut cpdir.from);
                change(&mut cpdir.to);
            }
            Command::Stat(path) | Command::Glob(path) | Command::Listdir(path) | Command::Rmfile(path) => {
                change(&mut path.0);
            }
            Command::VmCopy(copy) => change(&mut copy.workdir),
            Command::VmStart(_) | Command::VmReboot(_) | Command::VmStop(_) | Command::VmInfo(_) => {}
        }
    }

    fn parse(start: &StartCommand) -> Result<Self, ArgumentError> {
        let args = |class| Args::new(class, &start.args);
        Ok(match start.name.as_str() {
            "shell" => Command::Shell(Box::new(Shell::parse(args("WorkerShellCommand"))?)),
            "uploadFile" | "upload_file" => Command::UploadFile(UploadFile::parse(args("WorkerFileUploadCommand"))?),
            "uploadDirectory" | "upload_directory" => {
                Command::UploadDirectory(UploadDirectory::parse(args("WorkerDirectoryUploadCommand"))?)
            }
            "downloadFile" | "download_file" => {
                Command::DownloadFile(DownloadFile::parse(args("WorkerFileDownloadCommand"))?)
            }
            "mkdir" => Command::Mkdir(Paths::parse(args("MakeDirectory"))?),
            "rmdir" => Command::Rmdir(Rmdir::parse(args("RemoveDirectory"))?),
            "cpdir" => Command::Cpdir(Cpdir::parse(args("CopyDirectory"))?),
            "stat" => Command::Stat(PathArgument::parse(args("StatFile"), "file")?),
            "glob" => Command::Glob(PathArgument::parse(args("GlobPath"), "path")?),
            "listdir" => Command::Listdir(PathArgument::parse(args("ListDir"), "dir")?),
            "rmfile" => Command::Rmfile(PathArgument::parse(args("RemoveFile"), "path")?),
            "vm_start" => Command::VmStart(VmStart::parse(args("vm_start"))?),
            "vm_copy" => Command::VmCopy(VmCopy::parse(args("vm_copy"))?),
            "vm_reboot" => Command::VmReboot(VmReboot::parse(args("vm_reboot"))?),
            "vm_stop" => Command::VmStop(VmStop::parse(args("vm_stop"))?),
            "vm_info" => Command::VmInfo(VmInfo::parse(args("vm_info"))?),
            _ => {
                return Err(ArgumentError::UnknownCommand {
                    command_id: start.command_id.0.clone(),
                    name: start.name.clone(),
                });
            }
        })
    }
}
