//! The master's address.

use std::fmt;

use super::section::Placeholder;

/// How the master is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// MessagePack over WebSocket.
    Ws,
    /// MessagePack over WebSocket over TLS.
    Wss,
    /// Perspective Broker.
    Pb,
    /// Perspective Broker over TLS.
    Pbs,
}

/// The port that a master has for PB unless it is told otherwise.
const PB_PORT: u16 = 9989;

/// Where the master is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MasterAddress {
    pub scheme: Scheme,
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
    /// The path a proxy in front of the master may want; begins with a slash.
    pub path: String,
}

impl MasterAddress {
    /// Reads `pb://HOST[:PORT]`, `pbs://HOST[:PORT]`, `ws://HOST:PORT` or `wss://HOST[:PORT]`, the last two with a path
    /// if need be. Without a scheme it is PB, as Buildbot's own worker has it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "\"pb://HOST:PORT\" or \"pbs://HOST:PORT\", the port of the master's pb protocol, or \
                                \"ws://HOST:PORT\" or \"wss://HOST:PORT\", that of its msgpack_experimental_v7 protocol";
        let (scheme, rest) = text.split_once("://").unwrap_or(("pb", text));
        let scheme = match scheme {
            "ws" => Scheme::Ws,
            "wss" => Scheme::Wss,
            "pb" => Scheme::Pb,
            "pbs" => Scheme::Pbs,
            _ => return Err(EXPECTED),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (host, rest) = bracketed.split_once(']').ok_or(EXPECTED)?;
                (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(EXPECTED)?) })
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match (port, scheme) {
            (Some(port), _) => port.parse().ok().filter(|port| *port != 0).ok_or(EXPECTED)?,
            (None, Scheme::Wss) => 443,
            (None, Scheme::Pb | Scheme::Pbs) => PB_PORT,
            (None, Scheme::Ws) => return Err(EXPECTED),
        };
        if matches!(scheme, Scheme::Pb | Scheme::Pbs) && path != "/" {
            return Err(EXPECTED);
        }
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '@';
        if host.is_empty() || host.contains(bad) || path.contains(bad) {
            return Err(EXPECTED);
        }
        Ok(MasterAddress { scheme, host: host.to_owned(), port, path: path.to_owned() })
    }

    /// Whether the master is spoken to by Perspective Broker.
    pub(crate) fn is_pb(&self) -> bool {
        matches!(self.scheme, Scheme::Pb | Scheme::Pbs)
    }

    /// The host and port as they stand in a URL.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Scheme {
    /// What the protocol is called, whether TLS is around it or not.
    pub(crate) fn protocol(self) -> &'static str {
        match self {
            Scheme::Ws | Scheme::Wss => "msgpack",
            Scheme::Pb | Scheme::Pbs => "pb",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
            Scheme::Pb => "pb",
            Scheme::Pbs => "pbs",
        })
    }
}

impl fmt::Display for MasterAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path == "/" { "" } else { &self.path };
        write!(f, "{}://{}{path}", self.scheme, self.authority())
    }
}

impl Placeholder for MasterAddress {
    fn placeholder() -> Self {
        MasterAddress { scheme: Scheme::Ws, host: String::new(), port: 1, path: "/".to_owned() }
    }
}
