//! How machines came to be and how long that took, for the report of `./test`.

use std::env;
use std::fs::File;
use std::io::Write;
use std::sync::LazyLock;

use regex::Regex;

use crate::Transcript;

/// The variable that names the file which gets a line for each machine; without it nothing is noted.
const FILE: &str = "KVM_WORKER_TEST_MACHINES";

/// Which part of `./test` these machines are of.
const PART: &str = "rust";

/// Notes the machines and templates that a worker has told of.
pub(crate) fn note_all(transcript: &Transcript) {
    static STARTED: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"(?:vm started .*how="?(\w+)"?|(template) made) .*seconds=([0-9.]+)"#).expect("it is a pattern")
    });
    for line in transcript.lines(|line| line.contains("seconds=")) {
        if let Some(found) = STARTED.captures(&line)
            && let Some(how) = found.get(1).or(found.get(2))
        {
            note(how.as_str(), &found[3]);
        }
    }
}

/// Notes a machine.
pub(crate) fn note(how: &str, seconds: &str) {
    let Some(path) = env::var_os(FILE) else { return };
    // One write for a line, as other tests append to it, too. The report is not worth a failed test.
    if let Ok(mut file) = File::options().append(true).create(true).open(path) {
        let _ = file.write_all(format!("{PART}\t{how}\t{seconds}\n").as_bytes());
    }
}
