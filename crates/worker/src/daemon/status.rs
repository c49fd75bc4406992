//! How the worker is, for people who ask.

use protocol::command::Name;
use tokio::time::Instant;

use crate::builders::Refused;
use crate::control::{
    CommandStatus, LineState, LooseCommand, Machines, MasterStatus, RefusedBuilder, SlotStatus, SlotWord, Status,
};
use crate::info::PoolState;
use crate::master::{Phase, Reading};
use crate::pool::{Occupant, Pool, SlotReport, SlotState};

/// What the main loop knows of it.
#[derive(Debug, Clone)]
pub(super) struct Outline {
    /// The name the master knows the worker by, and the master's address.
    pub worker: String,
    pub master: String,
    pub protocol: &'static str,
    pub started: Instant,
    pub line: Reading,
    pub pool: PoolState,
    /// What the master says of builds that wait for each other's machines.
    pub deadlock: Option<String>,
    pub refused: Vec<Refused>,
    pub commands: Vec<RunningCommand>,
}

/// A command that runs.
#[derive(Debug, Clone)]
pub(super) struct RunningCommand {
    pub builder: Option<String>,
    /// The builder's machine that it is about; none on the host.
    pub vm: Option<Name>,
    pub command: String,
    pub step: Option<String>,
    pub started: Instant,
}

impl RunningCommand {
    /// Whether it is about the machine in a slot.
    fn is_about(&self, report: &SlotReport) -> bool {
        // A builder may have another machine of the name that one has which is held.
        let is_builders = matches!(report.note.state, SlotState::Starting | SlotState::Up | SlotState::Stopping);
        let is_same = |Occupant { builder, vm, .. }: &Occupant| {
            builder.is_some() && *builder == self.builder && vm.is_some() && *vm == self.vm
        };
        is_builders && report.note.occupant.as_ref().is_some_and(is_same)
    }

    fn status(&self) -> CommandStatus {
        let seconds = self.started.elapsed().as_secs_f64();
        CommandStatus { command: self.command.clone(), step: self.step.clone(), seconds }
    }
}

/// Looks at the rest, which takes a moment.
pub(super) async fn complete(outline: Outline, pool: Pool) -> anyhow::Result<Status> {
    // Files of /proc and consoles are read.
    Ok(tokio::task::spawn_blocking(move || look(&outline, &pool)).await?)
}

fn look(outline: &Outline, pool: &Pool) -> Status {
    let PoolState { slots, free, waiting, warm, held, state } = outline.pool;
    let reports = pool.report();
    let is_loose = |command: &&RunningCommand| !reports.iter().any(|report| command.is_about(report));
    let loose = outline.commands.iter().filter(is_loose);
    Status {
        worker: outline.worker.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: outline.started.elapsed().as_secs_f64(),
        state: state.to_owned(),
        master: master_status(outline),
        refused_builders: outline.refused.iter().map(refused_builder).collect(),
        machines: Machines {
            slots,
            free,
            warm,
            held,
            waiting,
            waits_for: pool.first_wait(),
            deadlock: outline.deadlock.clone(),
        },
        slots: reports.iter().map(|report| slot_status(report, &outline.commands)).collect(),
        commands: loose
            .map(|command| LooseCommand {
                builder: command.builder.clone(),
                vm: command.vm.as_ref().map(Name::to_string),
                command: command.status(),
            })
            .collect(),
    }
}

fn refused_builder(refused: &Refused) -> RefusedBuilder {
    let Refused { builder, directory, why } = refused;
    RefusedBuilder { builder: builder.clone(), directory: directory.display().to_string(), why: why.clone() }
}

fn master_status(outline: &Outline) -> MasterStatus {
    let (state, retry_seconds) = match outline.line.phase {
        Phase::Connecting => (LineState::Connecting, None),
        Phase::Connected => (LineState::Connected, None),
        Phase::Waiting { until } => {
            (LineState::Waiting, Some(until.saturating_duration_since(Instant::now()).as_secs_f64()))
        }
    };
    MasterStatus {
        address: outline.master.clone(),
        protocol: outline.protocol.to_owned(),
        state,
        seconds: outline.line.since.elapsed().as_secs_f64(),
        failure: outline.line.failure.clone(),
        retry_seconds,
    }
}

fn slot_status(report: &SlotReport, commands: &[RunningCommand]) -> SlotStatus {
    let note = &report.note;
    let (state, why, held) = match &note.state {
        SlotState::Cleaning => (SlotWord::Cleaning, None, None),
        SlotState::Free => (SlotWord::Free, None, None),
        SlotState::Starting => (SlotWord::Starting, None, None),
        SlotState::Up => (SlotWord::Up, None, None),
        SlotState::Warm => (SlotWord::Warm, None, None),
        SlotState::Held { until } => (SlotWord::Held, None, Some(until.saturating_duration_since(Instant::now()))),
        SlotState::Template => (SlotWord::Template, None, None),
        SlotState::Stopping => (SlotWord::Stopping, None, None),
        SlotState::Quarantined { why } => (SlotWord::Quarantined, Some(why.clone()), None),
    };
    let occupant = note.occupant.as_ref();
    SlotStatus {
        slot: report.slot,
        state,
        seconds: note.since.elapsed().as_secs_f64(),
        why,
        leaving: note.leaving,
        doing: note.doing.as_ref().map(|(what, _)| what.clone()),
        doing_seconds: note.doing.as_ref().map(|(_, since)| since.elapsed().as_secs_f64()),
        held_seconds: held.map(|held| held.as_secs_f64()),
        builder: occupant.and_then(|occupant| occupant.builder.clone()),
        build: occupant.and_then(|occupant| occupant.build),
        vm: occupant.and_then(|occupant| occupant.vm.as_ref()).map(Name::to_string),
        image: occupant.map(|occupant| occupant.image.to_string()),
        generation: occupant.and_then(|occupant| occupant.generation),
        how: occupant.and_then(|occupant| occupant.how).map(|how| how.as_str().to_owned()),
        ssh_port: report.ssh_port,
        pid: note.pid,
        memory_bytes: report.memory(),
        console: report.last_words(),
        commands: commands.iter().filter(|command| command.is_about(report)).map(RunningCommand::status).collect(),
    }
}
