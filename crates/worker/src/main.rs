//! kvm-worker: a Buildbot-compatible worker that runs builds in fresh QEMU/KVM machines.

mod about;
mod ask;
mod builders;
mod check;
mod cli;
mod commands;
mod config;
mod control;
mod core_tasks;
mod daemon;
mod exec;
mod exit;
mod host_access;
mod images;
mod import;
mod info;
mod log;
mod master;
mod notify;
mod output;
mod place;
mod plain;
mod plain_file;
mod pool;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, ImageVerb, Import, Run, Verb};
use crate::config::{Config, Overrides};
use crate::control::Request;
use crate::daemon::Origin;

fn main() -> ExitCode {
    // Passwords and keys are in its memory, which goes into no core, and which only root may look into. Where this is not
    // allowed it works all the same. What is started from here is not affected.
    let _ = nix::sys::prctl::set_dumpable(false);
    match Cli::parse().verb {
        Verb::Run(run) => serve(&run),
        Verb::Import(import) => take_over(&import),
        Verb::Check(look) => check::check(&look),
        Verb::Image { verb: ImageVerb::Check(look) } => check::check_images(&look),
        Verb::Image { verb: ImageVerb::List(wanted) } => {
            ask::with_worker(&wanted.worker, |config, ask| images::list(config, &wanted, ask))
        }
        Verb::Image { verb: ImageVerb::Gc(wanted) } => {
            ask::with_worker(&wanted.worker, |config, ask| images::gc(config, &wanted, ask))
        }
        Verb::Status { worker, look } => ask::status(&worker, look),
        Verb::Console { worker, slot, follow, raw } => {
            ask::console(&worker, slot, follow, if raw { ask::Form::Raw } else { ask::Form::Plain })
        }
        Verb::Ssh { worker, slot, command } => ask::ssh(&worker, slot, &command),
        Verb::Exec { worker, quiet, exec } => ask::exec(&worker, exec.wanted(), quiet),
        Verb::Release { worker, slot } => ask::ask(&worker, &Request::Release { slot }),
        Verb::Reload { worker } => ask::ask(&worker, &Request::Reload),
        Verb::Image { verb: ImageVerb::Generations { worker, image } } => {
            ask::ask(&worker, &Request::Generations { image })
        }
        Verb::Drain { worker, wait } => ask::drain(&worker, wait),
        Verb::Pause { worker } => ask::ask(&worker, &Request::Pause),
        Verb::Resume { worker } => ask::ask(&worker, &Request::Resume),
        Verb::Image { verb: ImageVerb::Rollback { worker, image, generation } } => {
            ask::ask(&worker, &Request::Rollback { image, generation })
        }
        Verb::Image { verb: ImageVerb::Template { worker, image } } => ask::ask(&worker, &Request::Template { image }),
        Verb::Image { verb: ImageVerb::Templates { worker, image } } => {
            ask::ask(&worker, &Request::Templates { image })
        }
        Verb::Completions { shell } => about::completions(shell),
        Verb::Man { directory } => about::manual(directory.as_deref()),
        Verb::Version { worker, json } => about::version(&worker, json),
        Verb::PrintConfig => ask::shown(config::DEFAULT_FILE),
    }
}

fn serve(run: &Run) -> ExitCode {
    daemon::keep_signals_back();
    let origin = Origin { file: run.config.clone(), overrides: run.overrides() };
    let config = match load(origin.file.as_deref(), &origin.overrides) {
        Ok(config) => config,
        Err(status) => return status,
    };
    log::start(&config.log);
    let result = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        let result = runtime.block_on(daemon::run(config, origin));
        // What still runs on other threads must not keep the process.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, ExitCode> {
    Config::load(file, overrides).map_err(|problems| {
        eprintln!("kvm-worker: {problems}");
        exit::code(exit::UNUSABLE)
    })
}

fn take_over(import: &Import) -> ExitCode {
    match import::run(&import.directory, import.output.as_deref()) {
        Ok(imported) => {
            if let Some(config) = &imported.printed {
                print!("{config}");
            }
            eprint!("{}", imported.report);
            if imported.report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => exit::failed(&error),
    }
}
