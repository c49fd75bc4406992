//! What the service manager is told: that the worker serves, what it does, and that it is alive (sd_notify(3)).
//!
//! The worker is *ready* when its pool is open, what an earlier run left is dealt with, and the main loop takes its first
//! turn. It is ready without a line to the master: making one may take until somebody mends another host, the worker goes
//! on trying by itself, and a unit that waited for it would be failed and restarted for what it can't help. The status
//! says whether there is one.
//!
//! The *watchdog* is not a timer that would go on when all else stands. Twice in its time the tasks that nothing goes on
//! without are asked for a sign of life; when they have answered, that is an event of the main loop, which says at the end
//! of this turn that the worker is alive. So a main loop that hangs, or an answer that never comes, is silence. The line to
//! the master is not asked: it waits for another host, within limits of its own.
//!
//! Without a service manager nothing of this is done.

mod standing;

use std::pin::Pin;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

pub(crate) use self::standing::Standing;
use self::standing::{Link, one_line};
use crate::master::LineEvent;
use crate::pool::{Census, Pool};
use protocol::Request;

/// The least time between two statuses: a build may run hundreds of commands in a second, and a person reads one.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// How long the service manager is asked to wait while the worker drains, and how often. It matters if it was told to stop
/// the service and has a command for that which drains it.
const DRAIN_EXTENSION: Duration = Duration::from_secs(60);
const DRAIN_PAUSE: Duration = Duration::from_secs(20);

/// Tells the service manager.
pub(crate) struct Notifier(Option<Telling>);

/// Tells some assignments in one message.
type Say = Box<dyn FnMut(&[NotifyState<'_>]) + Send>;

struct Telling {
    say: Say,
    master: String,
    link: Link,
    census: watch::Receiver<Census>,
    /// What it was told last, and until when it is not told another one.
    told: String,
    pause: Instant,
    /// Whether there is another one meanwhile.
    late: bool,
    /// Whether it is to hear that the worker is ready, again after a reload.
    ready: bool,
    /// When it is to be asked for more time; none if the worker does not drain.
    extend_at: Option<Instant>,
    watchdog: Option<Watchdog>,
}

/// Makes what waits for a sign of life; false if there will be none.
type Pulse = Box<dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send>;

struct Watchdog {
    pulse: Pulse,
    /// The longest time between two signs of life.
    period: Duration,
    next: Pin<Box<dyn Future<Output = bool> + Send>>,
    alive: bool,
}

impl Notifier {
    /// Tells the service manager that started us, if it wants to be told.
    pub(crate) fn new(master: &str, pool: &Pool) -> Self {
        if !crate::info::is_a_service() {
            return Notifier(None);
        }
        let watched = pool.clone();
        let pulse = move || -> Pin<Box<dyn Future<Output = bool> + Send>> {
            let pool = watched.clone();
            Box::pin(async move { pool.is_alive().await })
        };
        let watchdog = sd_notify::watchdog_enabled().map(|period| Watchdog::new(period / 2, Box::new(pulse)));
        Notifier(Some(Telling::new(master, pool.changes(), watchdog, say)))
    }

    /// Tells that the worker was told to end before it was ready. A service that ends without having been ready has failed
    /// for a service manager, whatever its exit status, and would be started again.
    pub(crate) fn ended_early() {
        if crate::info::is_a_service() {
            say(&[NotifyState::Ready, NotifyState::Stopping]);
        }
    }

    /// Notes what happens to the line.
    pub(crate) fn hear(&mut self, event: &LineEvent) {
        let Some(telling) = &mut self.0 else { return };
        match event {
            LineEvent::Up { .. } => telling.link = Link::LoggingIn,
            LineEvent::Request { request: Request::WorkerInfo, .. } => telling.link = Link::Up,
            LineEvent::Request { .. } => {}
            LineEvent::Down => telling.link = Link::Connecting,
            LineEvent::NotConnected { why } => telling.link = Link::Down { why: one_line(why) },
        }
    }

    /// Waits until the main loop should take a turn for what there is to tell. Cancel-safe.
    pub(crate) async fn due(&mut self) {
        match &mut self.0 {
            Some(telling) => telling.due().await,
            None => std::future::pending().await,
        }
    }

    /// Tells what has changed. To be called at the end of each turn of the main loop, and never from elsewhere.
    pub(crate) fn turn(&mut self, standing: Standing) {
        if let Some(telling) = &mut self.0 {
            telling.turn(standing);
        }
    }

    /// Tells that the configuration is being read anew. The turn after [`reloaded`](Self::reloaded) tells of the end.
    pub(crate) fn reloading(&mut self) {
        let Some(telling) = &mut self.0 else { return };
        // With the time, by which systemd 253 and later knows that this is about the signal it sent (Type=notify-reload).
        match NotifyState::monotonic_usec_now() {
            Ok(now) => (telling.say)(&[NotifyState::Reloading, now]),
            Err(error) => debug!("tell the service manager of a reload: {error}"),
        }
    }

    /// Notes that the reload is over, whatever came of it.
    pub(crate) fn reloaded(&mut self) {
        if let Some(telling) = &mut self.0 {
            telling.ready = true;
        }
    }

    /// Tells that the worker stops, which takes at most so long.
    pub(crate) fn stopping(&mut self, why: &str, within: Duration) {
        let Some(telling) = &mut self.0 else { return };
        let status = format!("stopping: {}", one_line(why));
        (telling.say)(&[NotifyState::Stopping, NotifyState::Status(&status), extension(within)]);
    }
}

/// Waits only while the service manager itself, which takes it off the socket, does not run.
fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("tell the service manager: {error}");
    }
}

impl Telling {
    fn new(
        master: &str,
        census: watch::Receiver<Census>,
        watchdog: Option<Watchdog>,
        say: impl FnMut(&[NotifyState<'_>]) + Send + 'static,
    ) -> Self {
        Telling {
            say: Box::new(say),
            master: master.to_owned(),
            link: Link::Connecting,
            census,
            told: String::new(),
            pause: Instant::now(),
            late: false,
            ready: true,
            extend_at: None,
            watchdog,
        }
    }

    async fn due(&mut self) {
        let alive = async {
            match &mut self.watchdog {
                Some(watchdog) => watchdog.sign().await,
                None => std::future::pending().await,
            }
        };
        let extension = self.extend_at.unwrap_or(self.pause);
        tokio::select! {
            () = alive => {}
            Ok(()) = self.census.changed() => {}
            () = sleep_until(self.pause), if self.late => {}
            () = sleep_until(extension), if self.extend_at.is_some() => {}
        }
    }

    fn turn(&mut self, standing: Standing) {
        let now = Instant::now();
        let status = standing.line(&self.master, &self.link, &self.census.borrow_and_update());
        let mut states = Vec::new();
        if std::mem::take(&mut self.ready) {
            // With the status: who waited for the start and asks for it gets the right one.
            states.push(NotifyState::Ready);
            self.pause = now;
        }
        let changed = status != self.told;
        self.late = changed && now < self.pause;
        let tell = changed && !self.late;
        if tell {
            states.push(NotifyState::Status(&status));
            self.pause = now + STATUS_PAUSE;
        }
        if self.watchdog.as_mut().is_some_and(Watchdog::is_alive) {
            states.push(NotifyState::Watchdog);
        }
        if !standing.drains() {
            self.extend_at = None;
        } else if self.extend_at.is_none_or(|at| at <= now) {
            states.push(extension(DRAIN_EXTENSION));
            self.extend_at = Some(now + DRAIN_PAUSE);
        }
        if !states.is_empty() {
            (self.say)(&states);
        }
        if tell {
            self.told = status;
        }
    }
}

impl Watchdog {
    fn new(period: Duration, pulse: Pulse) -> Self {
        Watchdog { next: pulse(), pulse, period, alive: false }
    }

    /// Waits for the next sign of life. Cancel-safe.
    async fn sign(&mut self) {
        self.alive = self.next.as_mut().await;
        let (asked, pulse) = (Instant::now() + self.period, (self.pulse)());
        self.next = Box::pin(async move {
            sleep_until(asked).await;
            pulse.await
        });
    }

    /// Whether there was a sign of life since this was asked.
    fn is_alive(&mut self) -> bool {
        std::mem::take(&mut self.alive)
    }
}

/// Asks for so much time from now on.
fn extension(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
