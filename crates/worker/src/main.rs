//! kvm-worker: a Buildbot-compatible worker that runs builds in fresh QEMU/KVM machines.

mod builders;
mod cli;
mod commands;
mod config;
mod daemon;
mod host_access;
mod import;
mod info;
mod log;
mod master;
mod output;
mod place;
mod pool;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Import, Run, Verb};
use crate::config::Config;

/// The exit status for a configuration that can't be used; clap uses it for a wrong command line, too.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Run(run) => serve(&run),
        Verb::Import(import) => take_over(&import),
        Verb::PrintConfig => {
            print!("{}", config::DEFAULT_FILE);
            ExitCode::SUCCESS
        }
    }
}

fn serve(run: &Run) -> ExitCode {
    let config = match Config::load(run.config.as_deref(), &run.overrides()) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("kvm-worker: {problems}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
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
