//! kvm-worker: a Buildbot-compatible worker that runs builds in fresh QEMU/KVM machines.

mod builders;
mod check;
mod cli;
mod commands;
mod config;
mod control;
mod core_tasks;
mod daemon;
mod host_access;
mod images;
mod import;
mod info;
mod log;
mod master;
mod notify;
mod output;
mod place;
mod pool;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::cli::{Cli, ImageVerb, Import, Run, Verb, Worker};
use crate::config::{Config, Overrides};
use crate::control::Request;

/// The exit status for a configuration that can't be used; clap uses it for a wrong command line, too.
const BAD_CONFIGURATION: u8 = 2;

/// How much longer than the worker itself the command line waits for the worker's answer.
const CONTROL_SLACK: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Run(run) => serve(&run),
        Verb::Import(import) => take_over(&import),
        Verb::Check(look) => check::check(&look),
        Verb::Image { verb: ImageVerb::Check(look) } => check::check_images(&look),
        Verb::Image { verb: ImageVerb::List(wanted) } => {
            with_worker(&wanted.worker, |config, ask| images::list(config, &wanted, ask))
        }
        Verb::Image { verb: ImageVerb::Gc(wanted) } => {
            with_worker(&wanted.worker, |config, ask| images::gc(config, &wanted, ask))
        }
        Verb::Release { worker, slot } => ask(&worker, &Request::Release { slot }),
        Verb::Image { verb: ImageVerb::Generations { worker, image } } => ask(&worker, &Request::Generations { image }),
        Verb::Image { verb: ImageVerb::Rollback { worker, image, generation } } => {
            ask(&worker, &Request::Rollback { image, generation })
        }
        Verb::Image { verb: ImageVerb::Template { worker, image } } => ask(&worker, &Request::Template { image }),
        Verb::Image { verb: ImageVerb::Templates { worker, image } } => ask(&worker, &Request::Templates { image }),
        Verb::PrintConfig => {
            print!("{}", config::DEFAULT_FILE);
            ExitCode::SUCCESS
        }
    }
}

fn serve(run: &Run) -> ExitCode {
    let config = match load(run.config.as_deref(), &run.overrides()) {
        Ok(config) => config,
        Err(status) => return status,
    };
    log::start(&config.log);
    let result = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        let result = runtime.block_on(daemon::run(config));
        // What still runs on other threads must not keep the process.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvm-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does something with a configuration and a way to ask the worker that runs with it, if one does.
fn with_worker(
    worker: &Worker,
    act: impl FnOnce(&Config, &dyn Fn(&Request) -> anyhow::Result<control::Answer>) -> ExitCode,
) -> ExitCode {
    let config = match load(worker.config.as_deref(), &Overrides::default()) {
        Ok(config) => config,
        Err(status) => return status,
    };
    let ask = |request: &Request| {
        control::ask(&config.pool.state_dir, request, daemon::answer_within(&config, request) + CONTROL_SLACK)
    };
    act(&config, &ask)
}

/// Has a running worker do something and says what came of it.
fn ask(worker: &Worker, request: &Request) -> ExitCode {
    let config = match load(worker.config.as_deref(), &Overrides::default()) {
        Ok(config) => config,
        Err(status) => return status,
    };
    match control::ask(&config.pool.state_dir, request, daemon::answer_within(&config, request) + CONTROL_SLACK) {
        Ok(answer) => {
            print!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kvm-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, ExitCode> {
    Config::load(file, overrides).map_err(|problems| {
        eprintln!("kvm-worker: {problems}");
        ExitCode::from(BAD_CONFIGURATION)
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
        Err(error) => {
            eprintln!("kvm-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}
