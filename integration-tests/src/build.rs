//! A build as the master recorded it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::rest::Rest;

/// How a build or step ended, as Buildbot counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
#[allow(missing_docs)]
pub enum Results {
    Success,
    Warnings,
    Failure,
    Skipped,
    Exception,
    Retry,
    Cancelled,
}

impl TryFrom<u8> for Results {
    type Error = String;

    fn try_from(code: u8) -> Result<Results, String> {
        use Results::{Cancelled, Exception, Failure, Retry, Skipped, Success, Warnings};
        [Success, Warnings, Failure, Skipped, Exception, Retry, Cancelled]
            .get(usize::from(code))
            .copied()
            .ok_or_else(|| format!("{code} is no result of a build"))
    }
}

/// A build, finished or not.
#[derive(Debug, Clone, Deserialize)]
pub struct Build {
    /// The master's id.
    #[serde(rename = "buildid")]
    pub id: u64,
    /// How it ended; none while it runs.
    pub results: Option<Results>,
    /// What the web page says about it.
    pub state_string: String,
    #[serde(rename = "properties")]
    property_pairs: BTreeMap<String, (Value, String)>,
    /// What was done, in order.
    #[serde(skip)]
    pub steps: Vec<Step>,
}

/// A step of a build.
#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    #[serde(rename = "stepid")]
    id: u64,
    /// Its name.
    pub name: String,
    /// How it ended; none if it didn't.
    pub results: Option<Results>,
    /// What the web page says about it.
    pub state_string: String,
    /// Its logs.
    #[serde(skip)]
    pub logs: BTreeMap<String, Log>,
}

/// What a step's log has. A log that is not the output of a command has no streams: all of it is `stdout`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// The command's standard output.
    pub stdout: String,
    /// The command's standard error.
    pub stderr: String,
    /// What the worker and the master added.
    pub header: String,
}

#[derive(Deserialize)]
struct LogRecord {
    logid: u64,
    name: String,
    r#type: String,
}

#[derive(Deserialize)]
struct Chunk {
    content: String,
}

impl Build {
    /// Reads a build with its steps and their logs.
    pub(crate) fn fetch(rest: &Rest, id: u64) -> Result<Build> {
        let mut builds: Vec<Build> = rest.get(&format!("builds/{id}?property=*"), "builds")?;
        let mut build = builds.pop().with_context(|| format!("the master has no build {id}"))?;
        build.steps = rest.get(&format!("builds/{id}/steps"), "steps")?;
        for step in &mut build.steps {
            let records: Vec<LogRecord> = rest.get(&format!("steps/{}/logs", step.id), "logs")?;
            for record in records {
                let chunks: Vec<Chunk> = rest.get(&format!("logs/{}/contents", record.logid), "logchunks")?;
                let content: String = chunks.into_iter().map(|chunk| chunk.content).collect();
                step.logs.insert(record.name, Log::read(&content, record.r#type == "s"));
            }
        }
        Ok(build)
    }

    /// A step by its name.
    pub fn step(&self, name: &str) -> Result<&Step> {
        self.steps.iter().find(|step| step.name == name).with_context(|| {
            let names: Vec<&str> = self.steps.iter().map(|step| step.name.as_str()).collect();
            format!("build {} has no step {name:?} but {names:?}", self.id)
        })
    }

    /// A property's value, null without one.
    pub fn property(&self, name: &str) -> &Value {
        self.property_pairs.get(name).map_or(&Value::Null, |(value, _source)| value)
    }

    /// All properties' values.
    pub fn properties(&self) -> BTreeMap<String, Value> {
        self.property_pairs.iter().map(|(name, (value, _source))| (name.clone(), value.clone())).collect()
    }

    /// Checks how the build ended; if not so, the error has all steps and logs.
    pub fn ended(&self, results: Results) -> Result<()> {
        ensure!(self.results == Some(results), "not {results:?} but {}", self.story());
        Ok(())
    }

    /// Checks that the build was a success.
    pub fn succeeded(&self) -> Result<()> {
        self.ended(Results::Success)
    }

    /// All that happened, for a person.
    pub fn story(&self) -> String {
        let mut story = format!("build {}: {:?}, {}\n", self.id, self.results, self.state_string);
        for step in &self.steps {
            story += &format!("  step {}: {:?}, {}\n", step.name, step.results, step.state_string);
            for (name, log) in &step.logs {
                for line in log.text().lines() {
                    story += &format!("    {name}: {line}\n");
                }
            }
        }
        story
    }
}

impl Step {
    /// A log by its name, an empty one if there is none.
    pub fn log(&self, name: &str) -> Log {
        self.logs.get(name).cloned().unwrap_or_default()
    }

    /// The log of the command's own output.
    pub fn stdio(&self) -> Log {
        self.log("stdio")
    }
}

impl Log {
    fn read(content: &str, has_streams: bool) -> Log {
        let mut log = Log::default();
        for line in content.split_inclusive('\n') {
            match line.split_at_checked(1) {
                Some(("o", text)) if has_streams => log.stdout += text,
                Some(("e", text)) if has_streams => log.stderr += text,
                Some(("h", text)) if has_streams => log.header += text,
                _ => log.stdout += line,
            }
        }
        log
    }

    /// All three streams, one after the other.
    pub fn text(&self) -> String {
        format!("{}{}{}", self.header, self.stdout, self.stderr)
    }
}
