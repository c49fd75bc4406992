//! The program's modules as a library, for the fuzz targets: what they reach of its inside. Without them it is empty.
#![cfg(fuzzing)]
#![allow(dead_code, unused_imports)]

mod about;
mod ask;
mod builders;
mod check;
mod cli;
mod commands;
mod config;
mod control;
mod core_tasks;
mod daemon;
mod exec;
mod exit;
mod host_access;
mod images;
mod import;
mod info;
mod log;
mod master;
mod notify;
mod output;
mod place;
mod plain;
mod plain_file;
mod pool;

/// Understands what a client of the control socket may say, which is the same when it has been written down and read, and what a
/// worker may answer.
///
/// # Panics
/// It is not.
pub fn control(line: &[u8]) {
    again::<control::Request>(line);
    again::<control::Input>(line);
    // There are numbers in it that lose their last digit.
    let _ = serde_json::from_slice::<control::Response>(line);
}

fn again<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(line: &[u8]) {
    let Ok(said) = serde_json::from_slice::<T>(line) else { return };
    let written = serde_json::to_vec(&said).expect("it has a form");
    assert_eq!(serde_json::from_slice::<T>(&written).ok().as_ref(), Some(&said));
}

/// Understands a configuration, or says what is wrong with it. No file that it names is looked at.
pub fn configuration(text: &str) {
    config::understand(text);
}

/// Understands what is kept in the state directory.
pub fn notes(text: &str) {
    pool::understand(text);
}
