//! Taking up another configuration while builds run.
//!
//! The file is read again as at the start, in a task of its own, and as a whole: with any problem in it nothing changes.
//! What can't change while the worker runs stays as it is and is named; everything else holds from then on.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::anyhow;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tracing::{error, info, warn};

use super::Daemon;
use crate::config::{Change, Config, Overrides, Password, Problems, Reconfigured};
use crate::control::{self, Answer, Talk};
use crate::log;
use crate::master::Access;
use crate::pool::Pool;

/// What is said of a key that needs a restart.
const RESTART: &str = "needs a restart; until then it stays as it was";

/// Where the configuration comes from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub file: Option<PathBuf>,
    pub overrides: Overrides,
}

/// Another configuration that holds from now on.
#[derive(Debug)]
pub(super) struct Reloaded {
    config: Config,
    password: Password,
    /// Where people ask from now on, if nobody could before.
    control: Option<control::Server>,
    changes: Vec<Change>,
    restart: Vec<Change>,
}

/// Why there is none: each a sentence.
type Refused = Vec<String>;

/// How a reload ended.
pub(super) type Ended = Result<Result<Box<Reloaded>, Refused>, JoinError>;

/// The reload that is under way, and who waits for it and the next.
#[derive(Debug)]
pub(super) struct Reload {
    origin: Origin,
    /// What the line logs in with, from the next time on.
    access: watch::Sender<Access>,
    task: Option<JoinHandle<Result<Box<Reloaded>, Refused>>>,
    waiting: Vec<Talk>,
    /// Whether it was asked for again meanwhile, and who did.
    again: bool,
    waiting_for_next: Vec<Talk>,
}

impl Reload {
    pub(super) fn new(origin: Origin, access: watch::Sender<Access>) -> Self {
        Reload { origin, access, task: None, waiting: Vec::new(), again: false, waiting_for_next: Vec::new() }
    }

    /// Waits for the end of the reload that is under way, if one is. Cancel-safe.
    pub(super) async fn ended(&mut self) -> Ended {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let ended = task.await;
        self.task = None;
        ended
    }

    /// Ends the one that is under way, as the worker ends.
    pub(super) fn give_up(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.waiting.clear();
        self.waiting_for_next.clear();
    }
}

impl Daemon {
    /// Begins to take up the configuration that is there now; once more when that has ended, if it is under way already: the
    /// file may have been read before it was changed again. Who asks is answered when it is done.
    pub(super) fn reload(&mut self, asked: Option<Talk>) {
        let reload = &mut self.reload;
        if reload.task.is_some() {
            reload.again = true;
            reload.waiting_for_next.extend(asked);
            return;
        }
        info!("reloading the configuration");
        self.notify.reloading();
        reload.waiting.extend(asked);
        let (origin, now, pool) = (reload.origin.clone(), Arc::clone(&self.config), self.pool.clone());
        let password = reload.access.borrow().password.clone();
        // Without images there may have been no place for the socket.
        let listen = self.control.is_none().then(|| (super::patience(&self.told), self.core.clone()));
        reload.task = Some(tokio::spawn(async move {
            let mut reloaded = take_up(origin, &now, &password, &pool).await?;
            if let Some((patience, core)) = listen.filter(|_| !reloaded.config.images.is_empty()) {
                let listening = control::Server::listen(&reloaded.config.control, patience, &core).await;
                let listening = listening.inspect_err(|error| error!("people can't ask this worker: {error:#}"));
                reloaded.control = listening.ok();
            }
            Ok(reloaded)
        }));
    }

    /// Has what was loaded hold from now on, and says what is different.
    pub(super) fn reloaded(&mut self, ended: Ended) {
        let ended = ended.unwrap_or_else(|error| Err(vec![format!("the task that reloads broke down: {error}")]));
        let answer = match ended {
            Ok(reloaded) => Ok(self.adopt(reloaded)),
            Err(problems) => {
                for problem in &problems {
                    error!("the configuration is not reloaded, and nothing has changed: {problem}");
                }
                Err(problems.join("\n"))
            }
        };
        for asked in self.reload.waiting.drain(..) {
            self.asking.spawn(asked.answer(answer.clone().map_err(|problems| anyhow!(problems))));
        }
        if std::mem::take(&mut self.reload.again) {
            self.reload.waiting = std::mem::take(&mut self.reload.waiting_for_next);
            self.reload(None);
        } else {
            self.notify.reloaded();
        }
    }

    fn adopt(&mut self, reloaded: Box<Reloaded>) -> Answer {
        let Reloaded { config, password, control, changes, restart } = *reloaded;
        let access = Access::of(&config, password);
        self.reload.access.send_if_modified(|old| {
            let is_new = *old != access;
            *old = access;
            is_new
        });
        log::reload(&config.log);
        self.config = Arc::new(config);
        self.told.send_replace(Arc::clone(&self.config));
        if control.is_some() {
            self.control = control;
        }
        if changes.is_empty() && restart.is_empty() {
            info!("reloaded: nothing is different");
        }
        changes.iter().for_each(|change| info!("reloaded: {change}"));
        restart.iter().for_each(|change| warn!("not reloaded: {change} {RESTART}"));
        let lines = |changes: Vec<Change>| changes.iter().map(Change::to_string).collect();
        Answer::Reloaded { changes: lines(changes), restart: lines(restart) }
    }
}

/// Reads the configuration, compares it with the one that holds, and has the pool take it up.
async fn take_up(origin: Origin, now: &Config, password: &Password, pool: &Pool) -> Result<Box<Reloaded>, Refused> {
    // Files are read.
    let load = move || {
        let Origin { file, overrides } = &origin;
        let config = Config::load(file.as_deref(), overrides).map_err(|problems| problems.lines())?;
        let password = config.worker.password.read().map_err(|error| vec![format!("{error:#}")])?;
        Ok::<_, Refused>((config, password))
    };
    let loaded = tokio::task::spawn_blocking(load).await;
    let (config, new_password) = loaded.map_err(|error| vec![format!("read the configuration: {error}")])??;
    let together = |problems: Problems| {
        let lines = problems.lines().into_iter();
        lines.map(|line| format!("with what needs a restart as it was: {line}")).collect::<Vec<_>>()
    };
    let Reconfigured { config, mut changes, restart } = now.change_to(config).map_err(together)?;
    if new_password != *password {
        changes.push(Change::of_password());
    }
    pool.reload(&config).await.map_err(|error| vec![format!("{error:#}")])?;
    Ok(Box::new(Reloaded { config, password: new_password, control: None, changes, restart }))
}
