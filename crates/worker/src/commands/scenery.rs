//! The places at which the tests of commands run: this host, and this host as a guest, over a real ssh server.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use protocol::command::Name;
use tempfile::TempDir;
use tokio::sync::watch;

use super::server::{self, Server};
use crate::place::{Guest, Host, Place};
use crate::pool::{Fate, GuestBasedir, Login, Status};

/// Where commands run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    /// On this host.
    Host,
    /// In a guest with GNU's tools.
    Guest,
    /// In a guest whose tools are busybox's.
    Busybox,
}

/// What a place finds along its `PATH`.
pub(crate) struct Tools {
    pub path: String,
    _directory: Option<TempDir>,
}

impl Tools {
    pub(crate) fn of(at: Where) -> Self {
        match at {
            Where::Host | Where::Guest => Tools { path: std::env::var("PATH").expect("a PATH"), _directory: None },
            Where::Busybox => {
                let directory = tempfile::tempdir().expect("a directory");
                let path = server::busybox(&directory.path().join("bin")).display().to_string();
                Tools { path, _directory: Some(directory) }
            }
        }
    }
}

/// A place, and what it stands on.
pub(crate) struct Scenery {
    pub place: Arc<dyn Place>,
    server: Option<Server>,
    /// Whether the guest's machine is there.
    _status: watch::Sender<Status>,
}

impl Scenery {
    /// A place with this environment and home.
    pub(crate) async fn build(at: Where, environment: Vec<(OsString, OsString)>, home: &Path) -> Self {
        let (status, machine) = watch::channel(Status::Up);
        if at == Where::Host {
            return Scenery { place: Arc::new(Host::new(environment, home.to_owned())), server: None, _status: status };
        }
        let environment: Vec<(String, String)> = environment
            .into_iter()
            .map(|(name, value)| (name.into_string().expect("text"), value.into_string().expect("text")))
            .collect();
        // What the login is to say of its environment has to be true.
        // The start-up files of the login's shell are none of the tests' business.
        let mut config = format!("SetEnv \"HOME={}\"", home.display());
        for (name, value) in environment.iter().filter(|(name, _)| name != "HOME") {
            write!(config, " \"{name}={}\"", value.replace('\\', "\\\\").replace('"', "\\\"")).expect("room");
        }
        let server = Server::with(server::Kind::OpenSsh, &config);
        let login = Login { session: server.session().await, environment, basedir: GuestBasedir::of_host(home) };
        let guest = Guest::new(Arc::new(login), Fate::by(Name::default_vm(), machine));
        Scenery { place: Arc::new(guest), server: Some(server), _status: status }
    }

    /// Waits until all that was left to the background is done.
    pub(crate) async fn strike(self) {
        drop(self.place);
        if let Some(server) = &self.server {
            // The connection lasts until nobody needs it any more.
            server.ended().await;
        }
    }
}

/// Has functions of a place be tests at each of them.
macro_rules! everywhere {
    ($($name:ident)*) => {$(
        mod $name {
            use crate::commands::scenery::Where;

            #[test]
            fn host() {
                super::$name(Where::Host);
            }

            #[test]
            fn guest() {
                super::$name(Where::Guest);
            }

            #[test]
            fn busybox() {
                super::$name(Where::Busybox);
            }
        }
    )*};
}

pub(crate) use everywhere;
