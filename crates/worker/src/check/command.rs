//! The command line's side: looks, prints, and says with which status to exit.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::{Master, Report, everything, images, unusable};
use crate::config::{Config, Overrides, Problems};
use crate::{cli, exit};

/// How long what still runs on other threads, such as a look at a file system that hangs, keeps the process.
const LAST: Duration = Duration::from_secs(1);

/// `kvm-worker check`
pub(crate) fn check(check: &cli::Check) -> ExitCode {
    let config = match load(check.worker.config.as_deref()) {
        Ok(config) => config,
        Err(problems) => {
            show(&unusable(&problems), check.json);
            return exit::code(exit::UNUSABLE);
        }
    };
    let master = if check.offline { Master::LeaveAlone } else { Master::Ask };
    match block_on(everything(check.worker.config.as_deref(), &config, master)) {
        Ok(report) => told(&report, check.json),
        Err(error) => exit::failed(&error.into()),
    }
}

/// `kvm-worker image check`
pub(crate) fn check_images(check: &cli::ImageCheck) -> ExitCode {
    let config = match load(check.worker.config.as_deref()) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("kvm-worker: {problems}");
            return exit::code(exit::UNUSABLE);
        }
    };
    let image = check.image.as_ref().map(|image| &image.0);
    match block_on(images(&config, image)) {
        Ok(Ok(report)) => {
            let status = told(&report, check.json);
            if !check.json && !report.has_failed() {
                let image = image.or_else(|| config.images.keys().next());
                let image = image.map_or("IMAGE", |name| name.as_str());
                let _ = writeln!(std::io::stdout(), "to see one boot: kvm-worker exec {image} -- true");
            }
            status
        }
        Ok(Err(why)) => exit::failed(&anyhow::anyhow!(why)),
        Err(error) => exit::failed(&error.into()),
    }
}

fn load(file: Option<&Path>) -> Result<Config, Problems> {
    Config::load(file, &Overrides::default())
}

fn block_on<T>(look: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Runtime::new()?;
    let looked = runtime.block_on(look);
    runtime.shutdown_timeout(LAST);
    Ok(looked)
}

fn told(report: &Report, json: bool) -> ExitCode {
    show(report, json);
    exit::code(if report.has_failed() { exit::FAILED } else { exit::DONE })
}

fn show(report: &Report, json: bool) {
    // Takes the colours out where nobody sees them, or wants to (NO_COLOR).
    let mut stdout = anstream::stdout();
    // Who reads may have seen enough.
    let _ = match json {
        true => writeln!(stdout, "{:#}", report.json()),
        false => write!(stdout, "{report}"),
    };
}
