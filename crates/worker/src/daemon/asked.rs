//! What a person on the host asks for through the control socket.

use std::path::Path;
use std::time::Duration;

use protocol::command::Name;

use super::MACHINES_END;
use crate::config::Config;
use crate::control::{
    self, Answer, GenerationLine, ImageLine, Origin, Running, TemplateLine, TemplateState, TemplatesOf,
};
use crate::images;
use crate::pool::{Generation, ImageUse, Listed, Made, Manifest, Outlook, Pool, State, Wish};

/// How long a person waits for a template.
const TEMPLATE_MADE: Duration = Duration::from_secs(3600);

/// How long a person waits for what nothing uses to be removed.
const GARBAGE_COLLECTED: Duration = Duration::from_secs(600);

/// Does what a person asks.
pub(super) async fn carry_out(pool: &Pool, request: control::Request) -> anyhow::Result<Answer> {
    match request {
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
            let look = move || pool.image_uses().into_iter().map(|seen| image_line(pool.state_dir(), seen)).collect();
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
        control::Request::Templates { image } => {
            let images = pool.templates(image.as_ref().map(|image| &image.0))?;
            Ok(Answer::Templates(images.into_iter().map(templates_of).collect()))
        }
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

/// How long a person who asks for something waits for its end: all of it is done by then that is done at all.
pub(crate) fn answer_within(config: &Config, request: &control::Request) -> Duration {
    match request {
        // Others may be made before it, with whatever their images do to warm up.
        control::Request::Template { .. } => TEMPLATE_MADE,
        // Large files are removed.
        control::Request::Gc { .. } => GARBAGE_COLLECTED,
        _ => config.pool.shutdown_timeout + MACHINES_END,
    }
}
