//! Where the worker is asked, and by whom.

use std::path::{Path, PathBuf};

use super::absolute_path;
use super::section::Section;

/// The longest path of a UNIX socket, in bytes (Linux).
const MAX_SOCKET: usize = 107;

/// The socket on which people on the host ask a running worker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Control {
    /// The socket's path; absolute.
    pub socket: PathBuf,
    /// The group that may ask beside the worker's user, if not the worker's own.
    pub group: Option<String>,
}

impl Control {
    pub(super) fn parse(mut section: Section<'_>, state_dir: &Path) -> Self {
        let socket: Option<PathBuf> = section.optional("socket", |text: String| {
            let path = absolute_path(text)?;
            let fits = path.as_os_str().len() <= MAX_SOCKET;
            Some(path).filter(|_| fits).ok_or("a path of at most 107 bytes, as a socket's address is no longer")
        });
        let group =
            section.optional("group", |text: String| (!text.is_empty()).then_some(text).ok_or("the name of a group"));
        if let Some(group) = &group
            && socket.as_ref().is_none_or(|socket| socket.starts_with(state_dir))
        {
            section.problem(
                "group",
                &format_args!("{group:?}"),
                "set control.socket, too, to a path that the group can reach, such as /run/kvm-worker/NAME/control.sock: nobody but the \
                 worker's user gets into pool.state_dir, where it is by default",
            );
        }
        section.finish();
        Control { socket: socket.unwrap_or_else(|| Control::default_socket(state_dir)), group }
    }

    /// The socket's path where the configuration has none.
    pub(super) fn default_socket(state_dir: &Path) -> PathBuf {
        state_dir.join("control.sock")
    }
}
