//! A machine that is ready for a build to come.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use protocol::command::Name;
use qemu::State;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::plan::{Flaw, Seen};
use crate::pool::Pool;
use crate::pool::generations::Ground;
use crate::pool::raised::Raised;

/// By how much the host's clock may have been set without the guest's being wrong, as a clone's is set that exactly.
const TOLERANCE: Duration = Duration::from_millis(100);

/// How long it may take until the end of a QEMU is seen.
const UNSEEN: Duration = Duration::from_secs(1);

/// A clone that is nobody's yet.
#[derive(Debug)]
pub(super) struct Spare {
    id: u64,
    raised: Raised,
    made: Instant,
    clocks: Clocks,
    /// Why it is of no use, once it has ended.
    end: Option<String>,
    /// Ends the watch when it is somebody's.
    _watched: DropGuard,
}

impl Spare {
    /// One of a machine that has just been made, and what tells if it ends, or can't be reached, as long as it is a spare.
    pub(super) fn new(id: u64, raised: Raised) -> (Self, impl Future<Output = Option<String>> + Send + use<>) {
        let over = CancellationToken::new();
        let (mut exited, halted) = (Box::pin(raised.vm.exited()), raised.vm.halted());
        let (session, qmp) = (raised.login.session.clone(), raised.vm.qmp().clone());
        let mut panics = raised.vm.panics(0);
        let token = over.clone();
        let end = async move {
            let lost = tokio::select! {
                biased;
                () = token.cancelled() => return None,
                exit = &mut exited => return Some(exit_of(&exit)),
                halt = halted => return Some(halt.to_string()),
                panic = panics.next() => return Some(panic.to_string()),
                () = qmp.reset() => return Some("its guest restarted".to_owned()),
                lost = session.lost() => format!("its ssh session was lost: {lost}"),
            };
            // The end of a QEMU is seen a moment later than felt.
            Some(tokio::time::timeout(UNSEEN, exited).await.map_or(lost, |exit| exit_of(&exit)))
        };
        let _watched = over.drop_guard();
        (Spare { id, raised, made: Instant::now(), clocks: Clocks::now(), end: None, _watched }, end)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn image(&self) -> &Name {
        &self.raised.image_name
    }

    pub(super) fn slot(&self) -> u16 {
        self.raised.lease.slot().number()
    }

    /// What it was promised of the memory, in MiB.
    pub(super) fn memory_mib(&self) -> u64 {
        self.raised.lease.memory_mib()
    }

    /// For how long it has been ready.
    pub(super) fn age(&self) -> Duration {
        self.made.elapsed()
    }

    /// Notes why it is of no use any more.
    pub(super) fn note_end(&mut self, why: String) {
        self.end.get_or_insert(why);
    }

    /// Gives the machine itself.
    pub(super) fn into_raised(self) -> Raised {
        self.raised
    }

    /// How it is now, as far as that is known without asking it.
    pub(super) fn seen(&self, pool: &Pool) -> Seen {
        Seen {
            id: self.id,
            image: self.image().clone(),
            memory_mib: self.memory_mib(),
            age: self.age(),
            flaw: self.flaw(pool),
        }
    }

    fn flaw(&self, pool: &Pool) -> Option<Flaw> {
        if let Some(why) = &self.end {
            return Some(Flaw::Dead(why.clone()));
        }
        // The watch may not have had its turn yet.
        if let State::Exited(exit) = self.raised.vm.state() {
            return Some(Flaw::Dead(exit_of(&exit)));
        }
        if self.raised.login.session.is_lost() {
            return Some(Flaw::Dead("its ssh session was lost".to_owned()));
        }
        if !pool.images().get(self.image()).is_some_and(|image| Arc::ptr_eq(image, &self.raised.image)) {
            return Some(Flaw::Changed);
        }
        if self.slot() >= pool.slots() {
            return Some(Flaw::Retired);
        }
        let template = self.raised.lease.ground().and_then(Ground::template);
        if !template.is_some_and(|template| pool.0.templates.is_current(template)) {
            return Some(Flaw::Superseded);
        }
        self.clocks.jumped(&Clocks::now()).then_some(Flaw::ClockJumped)
    }
}

fn exit_of(exit: &qemu::Exit) -> String {
    format!("qemu exited with {exit}")
}

/// The host's clocks at one moment.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    wall: SystemTime,
    /// It stands while the host sleeps, and nobody sets it.
    steady: std::time::Instant,
}

impl Clocks {
    fn now() -> Self {
        Clocks { wall: SystemTime::now(), steady: std::time::Instant::now() }
    }

    /// Whether the host slept or its clock was set between two moments. What the guest's clock has shown since is wrong then.
    fn jumped(&self, later: &Clocks) -> bool {
        let expected = self.wall + later.steady.saturating_duration_since(self.steady);
        let off = later.wall.duration_since(expected).unwrap_or_else(|early| early.duration());
        off > TOLERANCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumped_is_told_from_one_that_goes_on() {
        let begin = Clocks::now();
        let check = |steady_ms: u64, wall_ms: i64, expected: bool| {
            let moved = Duration::from_millis(wall_ms.unsigned_abs());
            let wall = if wall_ms < 0 { begin.wall - moved } else { begin.wall + moved };
            let later = Clocks { wall, steady: begin.steady + Duration::from_millis(steady_ms) };
            assert_eq!(begin.jumped(&later), expected, "{steady_ms} {wall_ms}");
        };
        check(0, 0, false);
        check(3_600_000, 3_600_050, false);
        check(3_600_000, 3_599_950, false);
        // It slept for an hour.
        check(60_000, 3_660_000, true);
        // It was set.
        check(60_000, 60_101, true);
        check(60_000, 59_899, true);
        check(60_000, -3_600_000, true);
    }
}
