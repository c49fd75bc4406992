use tokio::sync::watch;

/// How a running command learns that it is to stop; made with the [`Interrupter`] that stops it.
///
/// There are two ways. The master's interrupt has a reason, and the command still reports how it ended. An abandoned
/// command ends at once, and says nothing (its line is lost, the worker shuts down) or that it failed and why (its builder is
/// gone); commands do not see this, as it drops them: see
/// [`Context::until_abandoned`](super::Context::until_abandoned).
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(watch::Receiver<Stop>);

/// Stops a command. Dropped, it stops nothing.
#[derive(Debug)]
pub(crate) struct Interrupter(watch::Sender<Stop>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Stop {
    why: Option<String>,
    abandoned: bool,
    /// What is said of a command that was abandoned.
    failure: Option<String>,
}

impl Interrupt {
    /// Makes both ends.
    pub(crate) fn new() -> (Interrupter, Interrupt) {
        let (sender, receiver) = watch::channel(Stop::default());
        (Interrupter(sender), Interrupt(receiver))
    }

    /// Waits for the master's interrupt, and returns its reason. Cancel safe.
    pub(crate) async fn requested(&self) -> String {
        let mut stop = self.0.clone();
        let why = stop.wait_for(|stop| stop.why.is_some()).await.ok().and_then(|stop| stop.why.clone());
        match why {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// The reason of the master's interrupt, if there was one.
    pub(crate) fn reason(&self) -> Option<String> {
        self.0.borrow().why.clone()
    }

    /// Waits until the command is abandoned. Cancel safe.
    pub(super) async fn abandoned(&self) {
        let mut stop = self.0.clone();
        let dropped = stop.wait_for(|stop| stop.abandoned).await.is_err();
        if dropped {
            std::future::pending().await
        }
    }

    /// What the master is told of the command when it was abandoned; nothing, if nobody is to hear of it.
    pub(super) fn failure(&self) -> Option<String> {
        self.0.borrow().failure.clone()
    }
}

impl Interrupter {
    /// Has the command stop and report how it ended. Only the first reason counts.
    pub(crate) fn interrupt(&self, why: impl Into<String>) {
        self.0.send_if_modified(|stop| {
            let first = stop.why.is_none();
            stop.why.get_or_insert_with(|| why.into());
            first
        });
    }

    /// Ends the command at once and in silence.
    pub(crate) fn abandon(&self) {
        self.0.send_modify(|stop| stop.abandoned = true);
    }

    /// Ends the command at once, as a failure with this reason.
    pub(crate) fn fail(&self, why: &str) {
        self.0.send_modify(|stop| {
            stop.abandoned = true;
            stop.failure.get_or_insert_with(|| why.to_owned());
        });
    }
}
