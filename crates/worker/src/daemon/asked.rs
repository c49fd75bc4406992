//! What a person on the host asks for through the control socket.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use protocol::command::Name;

use super::MACHINES_END;
use super::builds;
use super::life::{Action, Input, Life};
use super::status::{self, Outline};
use crate::config::Config;
use crate::control::{
    self, Answer, Bytes, GenerationLine, ImageLine, Lines, Login, Origin, Response, Running, Talk, TemplateLine,
    TemplateState, TemplatesOf,
};
use crate::exec::{Keeper, exec};
use crate::images;
use crate::pool::{
    CONSOLE_POLL, ConsolePiece, Generation, ImageUse, Listed, Made, Manifest, Outlook, Pool, State, Wish,
};

/// How long a person waits for a template.
const TEMPLATE_MADE: Duration = Duration::from_secs(3600);

/// How long a person waits for what nothing uses to be removed.
const GARBAGE_COLLECTED: Duration = Duration::from_secs(600);
/// How long a person waits for a reload.
const RELOADED: Duration = Duration::from_secs(180);

/// What a person tells the worker to do with builds from now on, if that is what is asked.
pub(super) fn input(request: &control::Request) -> Option<Input> {
    match request {
        control::Request::Drain => Some(Input::Drain),
        control::Request::Pause => Some(Input::Pause),
        control::Request::Resume => Some(Input::Resume),
        _ => None,
    }
}

/// What is said to that, after it was done.
pub(super) fn taken(
    input: Input,
    action: Action,
    life: Life,
    running: &builds::Running,
    by_master: bool,
) -> anyhow::Result<Answer> {
    let already = action == Action::Already;
    Ok(match (action, input) {
        (Action::TooLate, _) if life == Life::Draining => {
            bail!("the worker is draining, and the builds that it waits for get their machines")
        }
        (Action::TooLate, _) => bail!("the worker is {}", life.name()),
        (_, Input::Pause) => Answer::Paused { already },
        (_, Input::Resume) => Answer::Resumed { already },
        _ => Answer::Draining { already, builders: running.builders().map(str::to_owned).collect(), by_master },
    })
}

/// Does what a person asks, and says what came of it; gives it up when the person goes.
pub(super) async fn answer(pool: Pool, outline: Outline, request: control::Request, mut talk: Talk) {
    let lines = talk.lines();
    let done = tokio::select! {
        biased;
        () = lines.gone() => return,
        done = carry_out(&pool, outline, request, &mut talk) => done,
    };
    talk.answer(done).await;
}

async fn carry_out(
    pool: &Pool,
    outline: Outline,
    request: control::Request,
    talk: &mut Talk,
) -> anyhow::Result<Answer> {
    match request {
        control::Request::Drain | control::Request::Pause | control::Request::Resume => {
            bail!("the main loop does that by itself")
        }
        control::Request::Status => Ok(Answer::Status(Box::new(status::complete(outline, pool.clone()).await?))),
        control::Request::Console { slot, follow } => show_console(pool, slot, follow, &talk.lines()).await,
        control::Request::Login { slot } => Ok(Answer::Login(Login { slot, ssh: pool.login(slot)? })),
        control::Request::Exec(_) if outline.pool.state != "running" => {
            bail!("the worker is {}; no machine is started", outline.pool.state)
        }
        control::Request::Exec(wanted) => Ok(Answer::Ran(Box::pin(exec(pool, wanted, Keeper::Worker, talk)).await?)),
        control::Request::Release { slot } => {
            let stopped = pool.release_slot(slot).await?;
            Ok(Answer::Released { slot, how: stopped.how })
        }
        control::Request::Generations { image } => {
            let images = pool.generations(image.as_ref().map(|image| &image.0))?;
            let lines = images.into_iter().flat_map(|(image, generations)| {
                generations.into_iter().map(move |generation| generation_line(&image, generation))
            });
            Ok(Answer::Generations(lines.collect()))
        }
        control::Request::Images => {
            let pool = pool.clone();
            // Looks at files.
            let look = move || pool.image_uses().into_iter().map(|seen| image_line(&pool.state_dir(), seen)).collect();
            Ok(Answer::Images(tokio::task::spawn_blocking(look).await?))
        }
        control::Request::Gc { dry_run, disks } => {
            let collected = pool.collect_garbage(Wish { dry_run, disks }).await?;
            Ok(Answer::Garbage(images::garbage(dry_run, collected)))
        }
        control::Request::Rollback { image, generation } => {
            // Files are written.
            let (pool, name) = (pool.clone(), image.0.clone());
            let number = tokio::task::spawn_blocking(move || pool.roll_back(&name, generation)).await??;
            Ok(Answer::RolledBack { image: image.into(), generation: number })
        }
        control::Request::Template { image } => {
            let Made { template, already } = pool.make_template(&image.0).await?;
            Ok(Answer::Template { image: image.into(), already, template: template_line(template) })
        }
        // The main loop does it, as it is about more than the pool.
        control::Request::Reload => anyhow::bail!("the configuration can't be reloaded in this way"),
        control::Request::Templates { image } => {
            let images = pool.templates(image.as_ref().map(|image| &image.0))?;
            Ok(Answer::Templates(images.into_iter().map(templates_of).collect()))
        }
    }
}

async fn show_console(pool: &Pool, slot: u16, follow: bool, lines: &Lines) -> anyhow::Result<Answer> {
    let mut console = pool.console(slot).await?;
    loop {
        // What it printed before it ended is there by then.
        let is_over = console.is_over();
        let length = console.file.length().await?;
        while console.file.at() < length
            && let Some(piece) = console.file.next().await
        {
            lines
                .say(match piece {
                    ConsolePiece::Bytes(bytes) => Response::Stdout(Bytes(bytes)),
                    ConsolePiece::Gone(gone) => {
                        Response::Progress(format!("{gone} bytes that were printed before are not kept"))
                    }
                })
                .await?;
        }
        if is_over || !follow {
            return Ok(Answer::Shown);
        }
        tokio::time::sleep(CONSOLE_POLL).await;
    }
}

fn generation_line(image: &Name, generation: Generation) -> GenerationLine {
    let Generation { number, current, machines, manifest } = generation;
    let origin = match manifest {
        None => Origin::Configured,
        Some(Err(why)) => Origin::Damaged { why },
        Some(Ok(Manifest { saved, builder, build, from_image, from, size, .. })) => {
            Origin::Saved { at: saved, builder, build, from_image, from, bytes: size }
        }
    };
    GenerationLine { image: image.to_string(), generation: number, current, machines, origin }
}

fn image_line(state_dir: &Path, seen: ImageUse) -> ImageLine {
    let ImageUse { name, image, template, warm, warm_wanted, machines } = seen;
    let running = Running { template: template_state(template), warm, warm_wanted, machines };
    ImageLine { running: Some(running), ..images::line(state_dir, &name, &image) }
}

fn templates_of(outlook: Outlook) -> TemplatesOf {
    let retired = outlook.retired.into_iter().map(template_line).collect();
    TemplatesOf { image: outlook.image.to_string(), state: template_state(outlook.state), retired }
}

fn template_state(state: State) -> TemplateState {
    match state {
        State::Off => TemplateState::Off,
        State::Ready(template) => TemplateState::Ready(template_line(template)),
        State::Waiting => TemplateState::Waiting,
        State::Building(time) => TemplateState::Building { seconds: time.as_secs_f64() },
        State::Later(time, why) => TemplateState::Failed { why, seconds: time.as_secs_f64() },
        State::LeftAlone(why) => TemplateState::LeftAlone { why },
        State::Unknown(why) => TemplateState::Unknown { why },
    }
}

fn template_line(listed: Listed) -> TemplateLine {
    let Listed { key, generation, made, took, bytes, clones } = listed;
    TemplateLine { key, generation, made, seconds: took, bytes, clones }
}

/// How long a pool of machines may take to close.
pub(crate) fn pool_closes_within(config: &Config) -> Duration {
    config.pool.shutdown_timeout + MACHINES_END
}

/// How long a person who asks for something waits for its end: all of it is done by then that is done at all.
pub(crate) fn answer_within(config: &Config, request: &control::Request) -> Duration {
    match request {
        // A worker that gets images for the first time deals with what an earlier run left.
        control::Request::Reload => RELOADED,
        // Others may be made before it, with whatever their images do to warm up.
        control::Request::Template { .. } => TEMPLATE_MADE,
        // Large files are removed.
        control::Request::Gc { .. } => GARBAGE_COLLECTED,
        // As long as a machine may run that was waited for, and a while longer.
        control::Request::Console { .. } | control::Request::Exec(_) => {
            let pool = &config.pool;
            pool.acquire_timeout + pool.time_to_live + pool.max_hold + TEMPLATE_MADE
        }
        _ => pool_closes_within(config),
    }
}
