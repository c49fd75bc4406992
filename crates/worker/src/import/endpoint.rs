//! Twisted's descriptions of where to connect to (`twisted.internet.endpoints.clientFromString`, Twisted 26.10).

use std::collections::BTreeMap;

/// Where a description leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub kind: Kind,
    pub host: String,
    pub port: u16,
    /// How long an attempt may take, in seconds.
    pub timeout: Option<i64>,
    /// A directory with the certificates that vouch for the master.
    pub authorities: Option<String>,
    /// The names of the other parameters.
    pub others: Vec<String>,
}

/// What is spoken below the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    /// TLS; the certificate is checked.
    Tls,
    /// TLS; nobody's certificate is checked, or that of a directory's authorities.
    Ssl,
}

/// Reads `tcp:HOST:PORT`, `tls:host=HOST:port=PORT:trustRoots=DIRECTORY` and the like.
///
/// # Errors
/// What it is, as a sentence's predicate.
pub(super) fn parse(description: &str) -> Result<Endpoint, &'static str> {
    let (positional, mut named) = parameters(description);
    let mut positional = positional.into_iter();
    let kind = match positional.next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "tcp" => Kind::Tcp,
        "tls" => Kind::Tls,
        "ssl" => Kind::Ssl,
        "unix" => return Err("is a UNIX socket, which kvm-worker does not connect to"),
        _ => return Err("is none of Twisted's tcp:, tls: and ssl: descriptions"),
    };
    let host = named.remove("host").or_else(|| positional.next()).unwrap_or_default();
    let port = named.remove("port").or_else(|| positional.next()).unwrap_or_default();
    let authorities = named.remove(if kind == Kind::Tls { "trustRoots" } else { "caCertsDir" });
    let timeout = named.remove("timeout").or_else(|| positional.next());
    let timeout = timeout.map(|text| text.parse().map_err(|_| "has a timeout that is no number")).transpose()?;
    if positional.next().is_some() {
        return Err("has more parts than import knows");
    }
    Ok(Endpoint {
        kind,
        host: checked_host(&host)?,
        port: port.parse().ok().filter(|port| *port != 0).ok_or("has no port from 1 to 65535")?,
        timeout,
        authorities,
        others: named.into_keys().collect(),
    })
}

/// A host that can stand in a URL: a name, an IPv4 or an IPv6 address.
pub(super) fn checked_host(host: &str) -> Result<String, &'static str> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if !host.is_empty() && host.len() <= 255 && host.chars().all(plain) {
        Ok(host.to_owned())
    } else {
        Err("is not the name or the address of a host")
    }
}

/// Splits at colons; a backslash takes the next character as it is, and a value may have equals signs.
fn parameters(description: &str) -> (Vec<String>, BTreeMap<String, String>) {
    let (mut positional, mut named) = (Vec::new(), BTreeMap::new());
    let (mut name, mut current) = (None, String::new());
    let mut characters = description.chars();
    loop {
        match characters.next() {
            Some('\\') => current.extend(characters.next()),
            Some('=') if name.is_none() => name = Some(std::mem::take(&mut current)),
            Some(c) if c != ':' => current.push(c),
            end => {
                let value = std::mem::take(&mut current);
                match name.take() {
                    Some(name) => drop(named.insert(name, value)),
                    None => positional.push(value),
                }
                if end.is_none() {
                    return (positional, named);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(description: &str, expected: Result<Endpoint, &'static str>) {
        assert_eq!(parse(description), expected, "{description}");
    }

    fn endpoint(kind: Kind, host: &str, port: u16) -> Endpoint {
        Endpoint { kind, host: host.to_owned(), port, timeout: None, authorities: None, others: Vec::new() }
    }

    #[test]
    fn descriptions_lead_somewhere() {
        check("tcp:h:9989", Ok(endpoint(Kind::Tcp, "h", 9989)));
        check("tcp:host=h:port=9989", Ok(endpoint(Kind::Tcp, "h", 9989)));
        check("TCP:9989:host=h", Ok(endpoint(Kind::Tcp, "h", 9989)));
        check(r"tcp:2001\:db8\:\:1:9989", Ok(endpoint(Kind::Tcp, "2001:db8::1", 9989)));
        check("tls:h:9989:timeout=10", Ok(Endpoint { timeout: Some(10), ..endpoint(Kind::Tls, "h", 9989) }));
        check(
            "tls:h:9989:trustRoots=/etc/ci=x:privateKey=k:bindAddress=1.2.3.4",
            Ok(Endpoint {
                authorities: Some("/etc/ci=x".to_owned()),
                others: vec!["bindAddress".to_owned(), "privateKey".to_owned()],
                ..endpoint(Kind::Tls, "h", 9989)
            }),
        );
        check(
            "ssl:h:9989:caCertsDir=/etc/ci",
            Ok(Endpoint { authorities: Some("/etc/ci".to_owned()), ..endpoint(Kind::Ssl, "h", 9989) }),
        );
    }

    #[test]
    fn other_descriptions_are_refused() {
        check("", Err("is none of Twisted's tcp:, tls: and ssl: descriptions"));
        check("ws://h:9990", Err("is none of Twisted's tcp:, tls: and ssl: descriptions"));
        check("unix:/run/master", Err("is a UNIX socket, which kvm-worker does not connect to"));
        check("tcp:h", Err("has no port from 1 to 65535"));
        check("tcp:h:0", Err("has no port from 1 to 65535"));
        check("tcp:h:70000", Err("has no port from 1 to 65535"));
        check("tcp::9989", Err("is not the name or the address of a host"));
        check("tcp:a/b@c:9989", Err("is not the name or the address of a host"));
        check("tcp:h:1:2:3", Err("has more parts than import knows"));
        check("tcp:h:1:timeout=soon", Err("has a timeout that is no number"));
    }
}
