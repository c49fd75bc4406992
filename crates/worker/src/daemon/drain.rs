//! The end of a worker's life with a master: no build is begun any more, and those that run are served to their end.
//!
//! Who sees to that, and knows when the builds are over, is the master if it can be told: over PB by a call, and over either
//! protocol by `KVMWorker` of buildbot-kvm, which follows the worker's state. It begins no more builds on this worker and
//! shuts it down after the last one.
//!
//! Else it is the worker. Before each build a master prints "ping" and waits for the answer as long as it takes
//! (Buildbot 4.3.0, `process/build.py`). So the answer is held, and with it the build, until no other runs and the line ends.
//! The master then gives the build up as RETRY and begins it again when a worker is there. Nothing else would do:
//!
//! * an answer that is an error has the master cut the line at once, under the builds that run;
//! * a command that is refused makes the build an EXCEPTION;
//! * a command that is begun and held shows a build that runs, though it does not.

use std::collections::BTreeSet;

use protocol::{Reply, Value};
use tokio::sync::oneshot;
use tracing::info;

use super::builds::Running;

/// What a master prints before each build, and waits for.
const PING: &str = "ping";

/// What a master prints when it has made the worker one of a builder's.
const ATTACHED: &str = "attached";

/// What a master prints that wants to know when the worker's state is not the one that follows any more.
const WAIT: &str = "kvm-worker wait-while ";

/// How many builds may be held; a builder has one at a time. Others begin, and are begun again when the line ends.
const MOST_HELD: usize = 1000;

/// Whether the master pings the worker, as it does before each build.
pub(super) fn is_ping(message: &str) -> bool {
    message == PING
}

/// Whether the master says that a builder has the worker now.
pub(super) fn is_attached(message: &str) -> bool {
    message == ATTACHED
}

/// The state whose end the master waits for, if that is what it prints.
pub(super) fn awaited(message: &str) -> Option<&str> {
    message.strip_prefix(WAIT).filter(|state| !state.is_empty())
}

/// A master that waits for the end of a state. It has one `KVMWorker` for a worker, which waits for one thing at a time.
#[derive(Debug, Default)]
pub(super) struct Follower(Option<oneshot::Sender<Reply>>);

impl Follower {
    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        self.0.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    /// Has one wait. Another one is told what is, so that it can ask again.
    pub(super) fn wait(&mut self, reply: oneshot::Sender<Reply>, state: &'static str) {
        self.tell(state);
        self.0 = Some(reply);
    }

    /// Ends its wait.
    pub(super) fn tell(&mut self, state: &'static str) {
        if let Some(reply) = self.0.take() {
            let _ = reply.send(Ok(state.into()));
        }
    }
}

/// A drain that goes on.
#[derive(Debug)]
pub(super) struct Drain {
    by: By,
    /// Whose builds the last line in the log was about, and how many were held.
    told: Option<((BTreeSet<String>, bool), usize)>,
}

/// Who sees to it that no build begins, and knows when the others are over.
#[derive(Debug)]
enum By {
    Master,
    /// The worker, with the answers that builds wait for.
    Us(Vec<oneshot::Sender<Reply>>),
}

impl Drain {
    /// Begins one; the master may know of it.
    pub(super) fn new(master_knows: bool) -> Self {
        Drain { by: if master_knows { By::Master } else { By::Us(Vec::new()) }, told: None }
    }

    /// Whether the master shuts the worker down when the builds are over.
    pub(super) fn is_masters(&self) -> bool {
        matches!(self.by, By::Master)
    }

    /// Leaves the rest to the master, which has learnt of it. Builds that were held are among those that it waits for.
    pub(super) fn leave_to_master(&mut self) {
        if let By::Us(held) = std::mem::replace(&mut self.by, By::Master) {
            info!(held = held.len(), "the master has learnt of the drain, and shuts the worker down after its builds");
            for reply in held {
                let _ = reply.send(Ok(Value::Nil));
            }
        }
    }

    /// Takes the answer to a ping: holds it, or gives it if the master knows what it does.
    pub(super) fn pinged(&mut self, reply: oneshot::Sender<Reply>) {
        match &mut self.by {
            By::Us(held) if held.len() < MOST_HELD => {
                held.push(reply);
            }
            _ => drop(reply.send(Ok(Value::Nil))),
        }
    }

    /// Says in the log what is waited for, whenever that is the builds of others than before or one more is held; says whether
    /// it is over.
    pub(super) fn is_over(&mut self, running: &Running) -> bool {
        let over = running.is_none() && !self.is_masters();
        let told = (running.names(), self.held());
        if !over && self.told.as_ref() != Some(&told) {
            self.told = Some(told);
            info!("{}", self.awaits(running));
        }
        over
    }

    /// How many builds are held, to be begun again elsewhere or later.
    fn held(&self) -> usize {
        match &self.by {
            By::Us(held) => held.len(),
            By::Master => 0,
        }
    }

    fn awaits(&self, running: &Running) -> String {
        match &self.by {
            By::Us(_) => format!("draining: waiting for {running}; builds held: {}", self.held()),
            By::Master if running.is_none() => {
                "draining: nothing of a build runs here; waiting for the master to shut this \
                                                worker down after the builds that it has on it"
                    .to_owned()
            }
            By::Master => format!("draining: waiting for {running}, and then for the master to shut this worker down"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::builds::Builds;
    use super::*;

    type Answer = oneshot::Receiver<Reply>;

    fn ping(drain: &mut Drain) -> Answer {
        let (reply, answer) = oneshot::channel();
        drain.pinged(reply);
        answer
    }

    fn running(commands: &[&str]) -> Running {
        Builds::default().running(commands.iter().copied(), [], Duration::ZERO, Instant::now())
    }

    #[test]
    fn what_a_master_prints_is_understood() {
        assert_eq!(["ping", "pings", "attached", ""].map(is_ping), [true, false, false, false]);
        assert_eq!(["ping", "attached"].map(is_attached), [false, true]);
        assert_eq!(awaited("kvm-worker wait-while running"), Some("running"));
        for other in ["ping", "kvm-worker wait-while", "kvm-worker wait-while ", "a kvm-worker wait-while running"] {
            assert_eq!(awaited(other), None, "{other}");
        }
    }

    #[test]
    fn builds_are_held_until_the_line_ends() {
        let mut drain = Drain::new(false);
        let mut held = [ping(&mut drain), ping(&mut drain)];
        assert!(!drain.is_over(&running(&["a"])));
        assert!(drain.is_over(&running(&[])));
        for answer in &mut held {
            assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        }
    }

    #[test]
    fn a_master_that_knows_has_its_builds_begin_and_decides_when_they_are_over() {
        let mut drain = Drain::new(true);
        assert_eq!(ping(&mut drain).try_recv(), Ok(Ok(Value::Nil)));
        assert!(!drain.is_over(&running(&["a"])));
        assert!(!drain.is_over(&running(&[])));
    }

    #[test]
    fn a_master_that_learns_of_it_late_gets_what_was_held() {
        let mut drain = Drain::new(false);
        let mut held = [ping(&mut drain), ping(&mut drain)];
        drain.leave_to_master();
        for answer in &mut held {
            assert_eq!(answer.try_recv(), Ok(Ok(Value::Nil)));
        }
        assert_eq!(ping(&mut drain).try_recv(), Ok(Ok(Value::Nil)));
        assert!(drain.is_masters() && !drain.is_over(&running(&[])));
    }

    #[test]
    fn more_builds_than_can_be_held_begin() {
        let mut drain = Drain::new(false);
        let held: Vec<_> = (0..MOST_HELD).map(|_| ping(&mut drain)).collect();
        assert_eq!(ping(&mut drain).try_recv(), Ok(Ok(Value::Nil)));
        drop(held);
    }

    #[test]
    fn a_follower_hears_once_what_the_state_is() {
        let mut follower = Follower::default();
        let (reply, mut first) = oneshot::channel();
        follower.wait(reply, "running");
        assert!(follower.is_there());
        let (reply, mut second) = oneshot::channel();
        follower.wait(reply, "running");
        assert_eq!(first.try_recv(), Ok(Ok("running".into())));
        follower.tell("paused");
        assert_eq!(second.try_recv(), Ok(Ok("paused".into())));
        assert!(!follower.is_there());
        let (reply, gone) = oneshot::channel();
        follower.wait(reply, "paused");
        drop(gone);
        assert!(!follower.is_there());
    }
}
