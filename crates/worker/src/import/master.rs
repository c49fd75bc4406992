//! The master's address, from the arguments that describe it.

use super::arguments::{Arguments, MISSING, Wrong, located, text};
use super::endpoint::{self, Endpoint, Kind};
use super::scope::{Located, Value};
use crate::config::{MasterAddress, Scheme};

/// The address, how it was described, and the line that does.
pub(super) struct Master {
    pub address: MasterAddress,
    pub endpoint: Endpoint,
    pub line: usize,
}

impl Master {
    /// Takes what describes the address.
    ///
    /// # Errors
    /// What can't be used.
    pub(super) fn take(arguments: &mut Arguments) -> Result<Self, Wrong> {
        let (host, port) = (arguments.take(Some(0), "buildmaster_host"), arguments.take(Some(1), "port"));
        let tls = arguments.take(None, "useTls");
        let (line, endpoint) = match arguments.given("connection_string") {
            Some(given) => (
                given.line,
                located(&given, "the connection string", text(&given.value).and_then(|text| endpoint::parse(&text)))?,
            ),
            None => direct_endpoint(host, port, tls)?,
        };
        let [plain, secure] = match arguments.take(None, "protocol") {
            None => [Scheme::Pb, Scheme::Pbs],
            Some(given) => located(&given, "the protocol", schemes(&given.value))?,
        };
        let path = match arguments.given("path") {
            Some(given) if plain == Scheme::Ws => located(&given, "the path", url_path(&given.value))?,
            _ => "/".to_owned(),
        };
        let scheme = if endpoint.kind == Kind::Tcp { plain } else { secure };
        let address = MasterAddress { scheme, host: endpoint.host.clone(), port: endpoint.port, path };
        Ok(Master { address, endpoint, line })
    }
}

/// The endpoint of a host, a port and perhaps TLS, and the line of the host.
fn direct_endpoint(
    host: Option<Located>,
    port: Option<Located>,
    tls: Option<Located>,
) -> Result<(usize, Endpoint), Wrong> {
    let (host, port) = (host.unwrap_or(MISSING), port.unwrap_or(MISSING));
    let kind = tls.map_or(Ok(Kind::Tcp), |tls| located(&tls, "useTls", kind(&tls.value)))?;
    let endpoint = Endpoint {
        kind,
        host: located(&host, "the master's host", text(&host.value).and_then(|host| endpoint::checked_host(&host)))?,
        port: located(&port, "the master's port", port_number(&port.value))?,
        timeout: None,
        authorities: None,
        others: Vec::new(),
    };
    Ok((host.line, endpoint))
}

fn kind(tls: &Value) -> Result<Kind, &'static str> {
    match tls {
        Value::None | Value::Bool(false) | Value::Number(0) => Ok(Kind::Tcp),
        Value::Bool(true) | Value::Number(_) => Ok(Kind::Tls),
        Value::Unknown(why) => Err(why),
        _ => Err("is neither true nor false"),
    }
}

fn port_number(port: &Value) -> Result<u16, &'static str> {
    let number = match port {
        Value::Number(number) => u16::try_from(*number).ok(),
        Value::Text(text) => text.parse().ok(),
        Value::Unknown(why) => return Err(why),
        _ => None,
    };
    number.filter(|number| *number != 0).ok_or("is not a number from 1 to 65535")
}

/// How a protocol is spoken without TLS and with it.
fn schemes(protocol: &Value) -> Result<[Scheme; 2], &'static str> {
    match protocol {
        Value::Text(text) if text == "pb" => Ok([Scheme::Pb, Scheme::Pbs]),
        Value::Text(text) if text == "msgpack_experimental_v7" => Ok([Scheme::Ws, Scheme::Wss]),
        Value::Unknown(why) => Err(why),
        _ => Err("is neither pb nor msgpack_experimental_v7"),
    }
}

fn url_path(path: &Value) -> Result<String, &'static str> {
    let path = text(path)?;
    match path.chars().any(|c| c.is_whitespace() || c.is_control() || c == '@') {
        true => Err("is none that can stand in a URL"),
        false if path.starts_with('/') => Ok(path),
        false => Ok(format!("/{path}")),
    }
}
