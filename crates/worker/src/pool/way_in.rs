//! Another way into a guest that was reached before: its session was lost, or it restarted.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use qemu::BootError;
use ssh::{HostKeyPolicy, Readiness};
use tracing::warn;

use super::guest_basedir::Wanted;
use super::machine::{LAST_WORD, Login, Machine};
use super::{VmError, greeting};

impl Machine {
    /// The way into its guest. Where the session is lost though QEMU runs, because the ssh server or the guest restarted,
    /// another one is made first, which may take as long as the image's boot.
    pub(crate) async fn way_in(self: &Arc<Self>) -> Result<Arc<Login>, VmError> {
        let login = self.login();
        if !login.session.is_lost() {
            return Ok(login);
        }
        let within = self.image.boot_timeout;
        let entering = async {
            let _turn = self.entering.lock().await;
            let login = self.login();
            if !login.session.is_lost() {
                return Ok(login);
            }
            warn!("logging in anew: {}", login.session.lost().await);
            self.log_in_again(within).await
        };
        let entered = match tokio::time::timeout(within, entering).await {
            Ok(entered) => entered,
            Err(_) => Err(anyhow!("the guest did not answer within {} s", within.as_secs())),
        };
        match entered {
            Ok(login) => Ok(login),
            Err(error) => Err(self.fate().explanation().await.unwrap_or_else(|| {
                let vm = &self.facts.owner.vm;
                let reason = format!("the ssh session with vm '{vm}' was lost, and there is no other: {error:#}");
                VmError::Lost { reason }
            })),
        }
    }

    /// Logs in to the guest, once it answers with the host key it had, and has it find its network as it was. To be called
    /// with `entering` held.
    pub(super) async fn log_in_again(self: &Arc<Self>, within: Duration) -> anyhow::Result<Arc<Login>> {
        let answer = async {
            let earlier = self.login();
            let host_key = HostKeyPolicy::Pinned(earlier.session.host_key().clone());
            let processor = earlier.session.processor();
            let ready = Readiness::within(within);
            let session = greeting::reach(&self.image, self.facts.ssh_port, host_key, processor, &ready).await?;
            let login =
                greeting::log_in(session, &self.image, Wanted::Again(&earlier.basedir), self.membership().as_deref())
                    .await?;
            anyhow::Ok(Arc::new(login))
        };
        let login = self.vm.boot(Box::pin(answer), within + LAST_WORD).await.map_err(|error| match error {
            BootError::Probe(error) => error,
            error => anyhow!("{error}"),
        })?;
        self.set_login(Arc::clone(&login));
        if let Some(membership) = self.membership() {
            membership.introduce(self).await.context("tell the guest who else is in its network")?;
        }
        Ok(login)
    }
}
