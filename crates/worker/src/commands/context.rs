use std::path::{Path, PathBuf};

use protocol::CommandId;

use super::Interrupt;
use crate::master::MasterLink;

/// What a command knows beside its arguments.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// The command's id.
    pub command_id: CommandId,
    /// The line it was started on.
    pub link: MasterLink,
    /// The worker's base directory.
    pub basedir: PathBuf,
    /// What the command's relative paths refer to: the builder's directory, or `basedir` if it belongs to no builder.
    pub builder_dir: PathBuf,
    /// How it is stopped.
    pub interrupt: Interrupt,
}

impl Context {
    /// The absolute form of a path that the master named.
    pub(crate) fn resolve(&self, path: &Path) -> PathBuf {
        self.builder_dir.join(path)
    }

    /// Does the work of a command, unless the line is lost or the command abandoned before it is done: then the work is
    /// dropped where it stands and there is no result.
    pub(crate) async fn until_abandoned<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.interrupt.abandoned() => None,
            () = self.link.lost() => None,
            result = work => Some(result),
        }
    }
}
