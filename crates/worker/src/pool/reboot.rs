//! Restarts a guest, and waits until it is back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::machine::{Machine, with_console};
use super::{Owner, Pool, Progress, VmError, guest_command};

/// A machine whose guest has restarted and answers.
#[derive(Debug)]
pub(crate) struct Rebooted {
    pub machine: Arc<Machine>,
    /// From the request to the guest's first command.
    pub took: Duration,
}

impl Pool {
    /// Restarts the guest of a builder's machine: by its own command, or else by the reset button. What runs in it ends.
    /// If the future is dropped the guest restarts all the same, and the next command waits for it.
    ///
    /// # Errors
    /// The machine is not there, or its guest does not answer in time.
    pub(crate) async fn reboot(
        &self,
        owner: &Owner,
        timeout: Option<Duration>,
        progress: &dyn Progress,
    ) -> Result<Rebooted, VmError> {
        let machine = self.find(owner)?;
        let timeout = timeout.unwrap_or(machine.image.boot_timeout);
        let asked = Instant::now();
        let deadline = asked + timeout;
        let late = || anyhow::anyhow!("the guest was not ready within {} s", timeout.as_secs());
        let work = async {
            let _turn = machine.entering.lock().await;
            let _noted = machine.notice().meanwhile("rebooting: waiting for ssh");
            machine.restart(timeout / 2, progress).await?;
            machine.log_in_again(timeout).await
        };
        let rebooted = tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| Err(late()));
        if let Err(error) = rebooted {
            return Err(machine.fate().explanation().await.unwrap_or_else(|| {
                let why = with_console(&format!("{error:#}"), &machine.vm);
                VmError::RebootFailed { vm: owner.vm.clone(), why }
            }));
        }
        let took = asked.elapsed();
        info!(seconds = took.as_secs_f32(), "vm rebooted");
        Ok(Rebooted { machine, took })
    }
}

impl Machine {
    /// Has the guest restart by itself within `patience`, or resets it. Returns when it has been reset, and its session is
    /// over.
    async fn restart(&self, patience: Duration, progress: &dyn Progress) -> anyhow::Result<()> {
        let reset = self.vm.qmp().reset();
        let login = self.login();
        let refusal = async {
            let Some(command) = self.image.profile.fill(&self.image.profile.reboot, &[]) else {
                return "the guest's profile has no reboot command".to_owned();
            };
            if login.session.is_lost() {
                return "the ssh session with the guest is lost".to_owned();
            }
            match guest_command::run(&login.session, &command).await {
                Err(error) if !login.session.is_lost() => format!("the guest's reboot command failed: {error:#}"),
                // It is on its way; that the session ends meanwhile is what it is for.
                _ => std::future::pending().await,
            }
        };
        let refusal = tokio::time::timeout(patience, refusal);
        let why = tokio::select! {
            biased;
            () = reset => None,
            refusal = refusal => Some(refusal.unwrap_or_else(|_| format!("the guest did not restart within {} s", patience.as_secs()))),
        };
        if let Some(why) = why {
            progress.say(format!("{why}; pressing its reset button")).await;
            self.vm.qmp().system_reset().await?;
        }
        login.session.clone().close_because("the guest restarted").await;
        Ok(())
    }
}
