//! Tools that are run to their end.

mod common;

use std::time::Duration;

use common::{DEADLINE, gone, sh};
use process::{Limits, OutputError};

const LIMITS: Limits = Limits { deadline: DEADLINE, max_bytes: 1000 };

/// What the script printed, or what the error says.
async fn success(script: &str, limits: Limits) -> Result<String, String> {
    let output = sh(script).output(&limits).await.map_err(|error| error.to_string())?;
    let stdout = output.into_success().map_err(|error| error.to_string())?;
    Ok(String::from_utf8(stdout).expect("scripts speak ASCII"))
}

#[tokio::test]
async fn a_tool_that_succeeds_gives_its_output() {
    assert_eq!(success("echo result; echo note >&2", LIMITS).await, Ok("result\n".to_owned()));
}

#[tokio::test]
async fn a_tool_that_fails_gives_its_last_words() {
    let error = r#""/bin/sh" failed with code 1: no such disk"#;
    assert_eq!(success("echo half; echo no such disk >&2; exit 1", LIMITS).await, Err(error.to_owned()));
    let error = r#""/bin/sh" failed with signal 9 (SIGKILL)"#;
    assert_eq!(success("kill -9 $$", LIMITS).await, Err(error.to_owned()));
}

#[tokio::test]
async fn a_tool_that_hangs_is_killed_with_all_it_started() {
    let limits = Limits { deadline: Duration::from_millis(300), ..LIMITS };
    match sh("sleep 1000 & echo $! >&2; wait").output(&limits).await {
        Err(OutputError::TimedOut { deadline, stderr, .. }) => {
            assert_eq!(deadline, limits.deadline);
            gone(stderr.trim()).await;
        }
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test]
async fn a_tool_that_writes_too_much_is_killed() {
    let error = r#""/bin/sh" wrote more than 1000 bytes and was killed"#;
    assert_eq!(success("cat /dev/zero", LIMITS).await, Err(error.to_owned()));
}

#[tokio::test]
async fn only_the_end_of_long_stderr_is_kept() {
    let output = sh("seq 100000 >&2; exit 1").output(&LIMITS).await.expect("it ends");
    assert!(output.stderr.len() <= 8192 && output.stderr.ends_with("\n99999\n100000\n"), "{}", output.stderr);
}
