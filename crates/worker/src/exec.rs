//! One command in a machine that is started for it: of a person, with no master involved.
//!
//! A worker does this for those who ask it; where none runs, the command line does it with a pool of its own.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::command::{Mode, Name};
use tokio::time::{Instant, sleep, timeout_at};

use crate::control::{Bytes, Exec, Gone, Lines, Login, Ran, Response, Talk};
use crate::pool::{Machine, Order, Owner, Pool, Progress, Visit};

/// What the machine is called in sentences.
const VM: &str = "exec";

/// How long output may come after the command's end: what holds it open ends with the machine.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// Who has the pool, and with it a machine that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeper {
    Worker,
    CommandLine,
}

/// Starts a machine, runs the command in it and ends the machine. Dropping the future ends the machine, too.
///
/// # Errors
/// There is no machine, or it was lost.
pub(crate) async fn exec(pool: &Pool, wanted: Exec, keeper: Keeper, talk: &mut Talk) -> anyhow::Result<Ran> {
    let lines = talk.lines();
    lines.say(Response::Progress(format!("starting a machine of image '{}'", wanted.image.0))).await?;
    let visit = pool.visit(order(&wanted)?, &Told(lines.clone())).await?;
    let machine = visit.machine().context("there is a machine")?;
    let facts = &machine.facts;
    let (slot, seconds) = (facts.slot, facts.took.as_secs_f64());
    lines.say(Response::Progress(format!("slot {slot}: ready after {seconds:.1} s ({})", facts.how.as_str()))).await?;
    let ran = if wanted.command.is_empty() {
        let login = Login { slot, ssh: pool.login(slot)? };
        lines.say(Response::Enter(login)).await?;
        lines.gone().await;
        bail!(Gone);
    } else {
        lines.say(Response::Started).await?;
        let limit = wanted.timeout.map(Duration::from_secs);
        let (fate, running) = (machine.fate(), run(&machine, &wanted, talk));
        tokio::select! {
            biased;
            over = fate.over() => bail!(over),
            ran = running => ran?,
            seconds = over(limit) => Ran::TimedOut { seconds },
        }
    };
    match wanted.keep {
        Some(seconds) => keep(visit, Duration::from_secs(seconds), keeper, &lines).await?,
        None => {
            if let Err(error) = visit.end().await {
                lines.say(Response::Progress(format!("slot {slot}: {error}"))).await?;
            }
        }
    }
    Ok(ran)
}

fn order(wanted: &Exec) -> anyhow::Result<Order> {
    let vm = Name::new(VM).context("it is a name")?;
    Ok(Order {
        owner: Owner { builder: String::new(), vm },
        build: None,
        bind: false,
        image: wanted.image.0.clone(),
        mode: Mode::Fresh,
        cpus: wanted.cpus,
        memory_mib: wanted.memory_mib,
        timeout: None,
        ttl: None,
        network: None,
    })
}

/// Waits until a time is over, if there is a limit; says how long it was, in seconds.
async fn over(limit: Option<Duration>) -> u64 {
    match limit {
        Some(limit) => sleep(limit).await,
        None => std::future::pending().await,
    }
    limit.unwrap_or_default().as_secs()
}

async fn run(machine: &Arc<Machine>, wanted: &Exec, talk: &mut Talk) -> anyhow::Result<Ran> {
    let session = machine.way_in().await?.session.clone();
    let mut exec = ssh::Exec::argv(wanted.command.iter().map(String::as_bytes));
    if wanted.stdin {
        exec = exec.stdin();
    }
    let mut process = match session.exec(exec).await {
        Ok(process) => process,
        Err(ssh::ExecError::NoProgram { program }) => return Ok(Ran::NotFound { program }),
        Err(ssh::ExecError::NotExecutable { program }) => return Ok(Ran::NotExecutable { program }),
        Err(ssh::ExecError::Lost(lost)) => bail!(crate::place::cause(&machine.fate(), &lost).await),
        Err(error) => return Err(error.into()),
    };
    let (lines, stdin) = (talk.lines(), process.take_stdin());
    let ended = tokio::select! {
        biased;
        ended = pass_on(process, &lines) => ended?,
        never = feed(stdin, talk) => match never {},
    };
    match ended {
        Ok(ran) => Ok(ran),
        Err(lost) => bail!(crate::place::cause(&machine.fate(), &lost).await),
    }
}

/// Passes on what a process prints, to its end.
async fn pass_on(mut process: ssh::Process, lines: &Lines) -> Result<Result<Ran, ssh::Lost>, Gone> {
    let mut exited: Option<(Ran, Instant)> = None;
    loop {
        let event = match &exited {
            Some((_, until)) => timeout_at(*until, process.next()).await.unwrap_or(Ok(None)),
            None => process.next().await,
        };
        match event {
            Ok(Some(ssh::Event::Stdout(bytes))) => lines.say(Response::Stdout(Bytes(bytes.into()))).await?,
            Ok(Some(ssh::Event::Stderr(bytes))) => lines.say(Response::Stderr(Bytes(bytes.into()))).await?,
            Ok(Some(ssh::Event::Exited(exit))) => exited = Some((ran(exit), Instant::now() + LAST_OUTPUT)),
            Ok(None) => {
                let unknown = || Ran::Signalled { signal: "KILL".to_owned() };
                return Ok(Ok(exited.map_or_else(unknown, |(ran, _)| ran)));
            }
            Err(lost) => return Ok(exited.map(|(ran, _)| ran).ok_or(lost)),
        }
    }
}

fn ran(exit: ssh::Exit) -> Ran {
    match exit {
        ssh::Exit::Code(status) => Ran::Exited { status },
        ssh::Exit::Signal { name, .. } => Ran::Signalled { signal: name },
    }
}

/// Gives a process what who asked has on its standard input, to the end of either. What comes of the process says the rest.
async fn feed(stdin: Option<ssh::Stdin>, talk: &mut Talk) -> Infallible {
    if let Some(mut stdin) = stdin {
        while let Ok(Some(bytes)) = talk.stdin().await {
            if stdin.write(bytes).await.is_err() {
                break;
            }
        }
        stdin.close().await;
    }
    std::future::pending().await
}

async fn keep(visit: Visit, time: Duration, keeper: Keeper, lines: &Lines) -> Result<(), anyhow::Error> {
    let Some(held) = visit.keep(time)? else {
        let off = "pool.max_held of the worker is 0, so that no machine is kept";
        return Ok(lines.say(Response::Progress(off.to_owned())).await?);
    };
    let (slot, seconds) = (held.machine.facts.slot, held.time.as_secs());
    let end = match keeper {
        Keeper::Worker => format!("kvm-worker release {slot}"),
        Keeper::CommandLine => "Ctrl-C".to_owned(),
    };
    for line in [
        format!("the machine is kept in slot {slot} for {seconds} s; to get in:"),
        format!("  {}", held.login),
        format!("to end it before that: {end}"),
    ] {
        lines.say(Response::Progress(line)).await?;
    }
    Ok(())
}

/// Tells who asked how the start goes.
struct Told(Lines);

#[async_trait::async_trait]
impl Progress for Told {
    async fn say(&self, line: String) {
        // Who has gone is noticed elsewhere.
        let _ = self.0.say(Response::Progress(line)).await;
    }

    fn console(&self, _: &Path) {}
}
