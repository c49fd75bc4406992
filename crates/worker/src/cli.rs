//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::config::Overrides;
use crate::control::{self, ImageName};
use crate::exit;
use crate::info::CONFIG_VARIABLE;

/// A Buildbot worker that runs builds in fresh QEMU/KVM machines.
#[derive(Debug, Parser)]
#[command(name = "kvm-worker", version, arg_required_else_help = true, after_long_help = exit::HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Connect to the master and serve its builds until told to stop.
    ///
    /// SIGTERM or SIGINT stops the worker: running builds are given back to the master, which retries them, and every
    /// machine is stopped. A second one stops at once. SIGUSR1 drains: no more builds are taken, and the worker ends after
    /// those that it has. SIGUSR2 pauses and resumes: while it is paused no build gets a machine. SIGHUP reads the
    /// configuration again.
    Run(Run),
    /// Take over from a buildbot-worker: write the configuration that its directory's buildbot.tac describes.
    ///
    /// The file is read, not executed, and the directory stays as it is. A report on standard error says what was carried
    /// over, what is different here and what is left to do. Exit status: 0 if the configuration is complete, 1 if
    /// something has to be set by hand or nothing could be written.
    Import(Import),
    /// Look for everything that can be wrong before a worker starts, without disturbing one that runs.
    ///
    /// The configuration, directories, QEMU and KVM, image files and keys, ports, memory and disk space, whether the master
    /// takes this worker's name and password, and the clock. A line each says ok, warning, failed or skipped, what it is
    /// like, and what to do. Run it as the worker's user. The master is asked for nothing but to look at the password.
    /// Exit status: 0 if nothing failed; 1 if something did; 2 if the configuration or the command line can't be used.
    Check(Check),
    /// Show how a running worker is: its master, its slots, and what goes on in each.
    ///
    /// Exit status: 0; 1 if no worker runs; 2 if the configuration or the command line can't be used.
    Status {
        #[command(flatten)]
        worker: Worker,
        #[command(flatten)]
        look: Look,
    },
    /// Show what the serial console of the machine in a slot printed.
    ///
    /// Exit status: 0; 1 if no worker runs or no machine is in the slot; 2 if the configuration or the command line can't be
    /// used.
    Console {
        #[command(flatten)]
        worker: Worker,
        /// Go on until the machine ends.
        #[arg(short, long)]
        follow: bool,
        /// Show bytes as they are. Without it what moves the cursor, sets colours or does anything else to a terminal is left
        /// out.
        #[arg(long)]
        raw: bool,
        /// The slot, as status says it.
        slot: u16,
    },
    /// Log in to the machine in a slot with OpenSSH's client, a running build's, too.
    ///
    /// The guest's key has to be readable, which it is for the worker's user. Exit status: the client's, which is the
    /// command's, or 255; 1 if no worker runs or there is no such machine; 2 if the configuration or the command line can't
    /// be used.
    Ssh {
        #[command(flatten)]
        worker: Worker,
        /// The slot, as status says it.
        slot: u16,
        /// A program and its arguments, or one word that is a line for the guest's shell. Without, it is a shell for a person.
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Run a command in a fresh machine, which ends with it. No master has to do with it.
    ///
    /// The machine is the running worker's, and waits for slot, memory and disk space as those of builds do. If no worker
    /// runs, the machine is this process' own. Exit status: the command's; 124 if it did not end in time; 125 if there was no
    /// machine for it, or it was lost; 126 and 127 if the program can't be executed or is not there; 128 and the signal's
    /// number if one ended it.
    Exec {
        #[command(flatten)]
        worker: Worker,
        /// Say nothing of how the machine starts.
        #[arg(short, long)]
        quiet: bool,
        #[command(flatten)]
        exec: Exec,
    },
    /// End the machine that a running worker holds in a slot for a person.
    ///
    /// Exit status: 0 if it has ended; 1 if no worker runs, or none is held there; 2 if the configuration or the command
    /// line can't be used.
    Release {
        #[command(flatten)]
        worker: Worker,
        /// The slot, as the step that kept the machine says it.
        slot: u16,
    },
    /// Have a running worker read its configuration again, and see what is different.
    ///
    /// With a problem in it nothing changes. What can't change without a restart stays as it is and is named. Running builds
    /// do not notice. Exit status: 0 if it was taken up, but for what needs a restart; 1 if the worker refused it, or none
    /// runs; 2 if the configuration or the command line can't be used.
    Reload {
        #[command(flatten)]
        worker: Worker,
    },
    /// Have a running worker take no more builds and end after those that it has, as SIGUSR1 does.
    ///
    /// Builds that are to come wait at the master, for this worker or another one. Exit status: 0 if it drains, with --wait
    /// when it has ended; 1 if no worker runs; 2 if the configuration or the command line can't be used.
    Drain {
        #[command(flatten)]
        worker: Worker,
        /// Wait until the worker has ended, however long its builds take.
        #[arg(long)]
        wait: bool,
    },
    /// Have a running worker give builds no machines until it is resumed.
    ///
    /// Builds that have their machines go on; those that want one wait, for pool.acquire_timeout at most. With KVMWorker in
    /// the master's configuration no build is begun meanwhile. Exit status: 0 if it is paused; 1 if no worker runs, or it
    /// drains; 2 if the configuration or the command line can't be used.
    Pause {
        #[command(flatten)]
        worker: Worker,
    },
    /// Have it give them machines again.
    ///
    /// Exit status: as for pause.
    Resume {
        #[command(flatten)]
        worker: Worker,
    },
    /// See how images are, go back to an earlier generation, have a template made, remove what nothing uses.
    Image {
        #[command(subcommand)]
        verb: ImageVerb,
    },
    /// Print what has a shell complete command lines of kvm-worker.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, or write one for each command.
    Man {
        /// The directory to write them to, such as /usr/local/share/man/man1.
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Say which version this is, what it speaks, and which QEMU there is.
    Version {
        #[command(flatten)]
        worker: Worker,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a configuration file with every key, its default and what it does.
    PrintConfig,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// List the images: which generation machines start from, template, warm machines, machines that run, and the disk.
    ///
    /// Without a running worker it lists what the files say. Exit status: 0; 1 if it can't be seen; 2 if the configuration or
    /// the command line can't be used.
    List(ImageList),
    /// Remove what nothing will use any more, and say what and how much.
    ///
    /// That is generations, templates and host keys of images that the configuration does not have, templates that are of no
    /// use, and what was not finished when a worker ended. What a machine, a template or a persistent disk stands on stays.
    /// Persistent disks of images that are gone are listed, and removed with --disks only. A running worker does it, as it
    /// knows what is in use; without one no worker can start meanwhile. Exit status: 0; 1 if something could not be removed
    /// or it can't be seen what is in use; 2 if the configuration or the command line can't be used.
    Gc(ImageGc),
    /// Look at the files of an image, or of all, as kvm-worker check does.
    ///
    /// Exit status: 0 if nothing failed; 1 if something did, or there is no such image; 2 if the configuration or the command
    /// line can't be used.
    Check(ImageCheck),
    /// List the generations of an image, or of all, with the one that machines start from.
    ///
    /// Exit status: 0; 1 if no worker runs or there is no such image; 2 if the configuration or the command line can't be
    /// used.
    Generations {
        #[command(flatten)]
        worker: Worker,
        /// The image.
        image: Option<ImageName>,
    },
    /// Have machines start from another generation of an image from now on.
    ///
    /// Those that run, and disks that persist, stay on theirs. What builds save later is numbered on from the newest, and
    /// becomes the current one unless it contains what was gone back from. Exit status: 0; 1 if no worker runs or there is no
    /// such image or generation; 2 if the configuration or the command line can't be used.
    Rollback {
        #[command(flatten)]
        worker: Worker,
        /// The image.
        image: ImageName,
        /// The generation; the one before the current one if it is left out. 1 is the image's disk as configured.
        generation: Option<u32>,
    },
    /// Have an image's template made, unless it has one, and wait for that.
    ///
    /// A worker makes it by itself; this is for one that failed too often and is left alone, or to wait for it. Exit status:
    /// 0 if there is a template; 1 if it can't be made, the image has none, or no worker runs; 2 if the configuration or
    /// the command line can't be used.
    Template {
        #[command(flatten)]
        worker: Worker,
        /// The image.
        image: ImageName,
    },
    /// List how an image, or each, is off with templates, and how many machines are clones of them.
    ///
    /// Exit status: 0; 1 if no worker runs or there is no such image; 2 if the configuration or the command line can't be
    /// used.
    Templates {
        #[command(flatten)]
        worker: Worker,
        /// The image.
        image: Option<ImageName>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    #[command(flatten)]
    pub worker: Worker,
    /// Don't ask the master.
    #[arg(long, visible_alias = "no-login")]
    pub offline: bool,
    /// Print what was found as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ImageCheck {
    #[command(flatten)]
    pub worker: Worker,
    /// The image.
    pub image: Option<ImageName>,
    /// Print what was found as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ImageList {
    #[command(flatten)]
    pub worker: Worker,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ImageGc {
    #[command(flatten)]
    pub worker: Worker,
    /// Remove nothing, and say what would be removed.
    #[arg(long)]
    pub dry_run: bool,
    /// Remove persistent disks of images that are gone, too.
    #[arg(long)]
    pub disks: bool,
}

/// Which worker is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Worker {
    /// The configuration file the worker runs with; its control.socket is where it is asked. KVM_WORKER__SECTION__KEY
    /// variables are laid over it.
    #[arg(long, value_name = "FILE", env = CONFIG_VARIABLE)]
    pub config: Option<PathBuf>,
}

/// How a worker is looked at.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Look {
    /// As JSON, whose names the manual documents.
    #[arg(long)]
    pub json: bool,
    /// Again once a second, until q or Ctrl-C is pressed.
    #[arg(short, long)]
    pub watch: bool,
}

/// A command in a fresh machine.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Exec {
    /// How many processors the machine has, if not as many as its image says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    cpus: Option<u32>,
    /// How much memory it has, likewise.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(16..))]
    memory_mib: Option<u32>,
    /// How long the command may run. The machine may run for pool.time_to_live at most.
    #[arg(long, requires = "command", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    timeout: Option<u64>,
    /// Keep the machine after the command for so long, and at most for pool.max_hold, to look into it.
    #[arg(long, requires = "command", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    keep: Option<u64>,
    /// Pass standard input on to the command. Without, it has none.
    #[arg(short = 'i', long, requires = "command")]
    stdin: bool,
    /// The image.
    image: ImageName,
    /// The program and its arguments; `sh -c LINE` for a line. Without, it is a shell for a person, by OpenSSH's client.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    /// The same for the worker.
    pub(crate) fn wanted(self) -> control::Exec {
        let Exec { cpus, memory_mib, timeout, keep, stdin, image, command } = self;
        control::Exec { image, cpus, memory_mib, timeout, keep, stdin, command }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// The directory that buildbot-worker was started with.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The file to write the configuration to; the password goes to another one beside it, FILE's name ending in
    /// .password. Neither may exist. Without it the configuration is printed and the password is not written.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// The configuration file; the other options and KVM_WORKER__SECTION__KEY variables are laid over it.
    #[arg(long, value_name = "FILE", env = CONFIG_VARIABLE)]
    pub config: Option<PathBuf>,
    /// The master, as pb://HOST:PORT, pbs://HOST:PORT, ws://HOST:PORT or wss://HOST:PORT [worker.master].
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// The name the master knows this worker by [worker.name].
    #[arg(long)]
    pub name: Option<String>,
    /// The file whose first line is the worker's password [worker.password_file].
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The directory for the builders' directories [worker.basedir].
    #[arg(long, value_name = "DIR")]
    pub basedir: Option<PathBuf>,
}

impl Run {
    /// What the options say in place of the file.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            master: self.master.clone(),
            name: self.name.clone(),
            password_file: self.password_file.clone(),
            basedir: self.basedir.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn what_is_for_a_command_needs_one() {
        let parses = |options: &str, command: &str| {
            let line = format!("kvm-worker exec {options} debian {command}");
            Cli::try_parse_from(line.split_whitespace()).is_ok()
        };
        for options in ["", "-q", "--cpus 2"] {
            assert!(parses(options, "") && parses(options, "-- true"), "{options}");
        }
        for options in ["-i", "--keep 60", "--timeout 60"] {
            assert!(!parses(options, "") && parses(options, "-- true"), "{options}");
        }
    }
}
