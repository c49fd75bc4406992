//! The master's REST interface.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::Agent;

/// How long an answer to a question may take, on a loaded machine. A 4.3.0 master writes answers from another thread than
/// that of its sockets, which do not expect it: of ten thousand, one stays where it is until the connection is closed.
const ANSWER: Duration = Duration::from_secs(20);

/// A client of one master. Source: Buildbot 4.3.0, "REST API v2" and its JSON-RPC.
#[derive(Debug)]
pub(crate) struct Rest {
    agent: Agent,
    base: String,
}

impl Rest {
    /// A client for the master whose web server has a port of the loopback interface.
    pub(crate) fn new(port: u16) -> Rest {
        // The master ends a connection that was idle for a minute, perhaps just when it is about to be used again.
        let config = Agent::config_builder()
            .max_idle_connections(0)
            .timeout_global(Some(Duration::from_secs(60)))
            .http_status_as_error(false)
            .build();
        Rest { agent: Agent::new_with_config(config), base: format!("http://127.0.0.1:{port}/api/v2") }
    }

    /// What a path has under a key.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str, key: &str) -> Result<T> {
        let url = format!("{}/{path}", self.base);
        // Asking changes nothing, so it may be done again.
        let mut body = self.get_once(&url).or_else(|error| {
            eprintln!("asking again: {error:#}");
            self.get_once(&url)
        })?;
        serde_json::from_value(body[key].take()).with_context(|| format!("read {key} of {url}: {body}"))
    }

    fn get_once(&self, url: &str) -> Result<Value> {
        let question = self.agent.get(url).config().timeout_global(Some(ANSWER)).build();
        let mut answer = question.call().with_context(|| format!("get {url}"))?;
        answer.body_mut().with_config().limit(64 << 20).read_json().with_context(|| format!("read {url}"))
    }

    /// Calls a method of the object at a path.
    pub(crate) fn call(&self, path: &str, method: &str, params: &Value) -> Result<Value> {
        let url = format!("{}/{path}", self.base);
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let mut answer = self.agent.post(&url).send_json(&request).with_context(|| format!("post to {url}"))?;
        let mut body: Value = answer.body_mut().read_json()?;
        if !body["error"].is_null() {
            bail!("{method} of {url}: {}", body["error"]);
        }
        Ok(body["result"].take())
    }
}
