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
}

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
    /// Reads `ws://HOST:PORT` or `wss://HOST[:PORT]`, each with a path if need be.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "\"ws://HOST:PORT\" or \"wss://HOST:PORT\", the port of the master's \
                                msgpack_experimental_v7 protocol";
        let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
        let scheme = match scheme {
            "ws" => Scheme::Ws,
            "wss" => Scheme::Wss,
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
            (None, Scheme::Ws) => return Err(EXPECTED),
        };
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '@';
        if host.is_empty() || host.contains(bad) || path.contains(bad) {
            return Err(EXPECTED);
        }
        Ok(MasterAddress { scheme, host: host.to_owned(), port, path: path.to_owned() })
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

impl fmt::Display for MasterAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
        };
        let path = if self.path == "/" { "" } else { &self.path };
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

impl Placeholder for MasterAddress {
    fn placeholder() -> Self {
        MasterAddress { scheme: Scheme::Ws, host: String::new(), port: 1, path: "/".to_owned() }
    }
}
