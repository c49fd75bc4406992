//! What is random in a test, and how much of it there is.

use std::env;

use anyhow::{Context, Result};
use fastrand::Rng;

/// The variable with the number that all that is random comes from. Each test that asks for it prints its own.
const SEED: &str = "KVM_WORKER_TEST_SEED";

/// Random numbers, of which the same ones can be had again.
pub fn luck() -> Result<Rng> {
    let seed = number(SEED)?.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("{SEED}={seed} has the same random numbers again");
    Ok(Rng::with_seed(seed))
}

/// How often a test does something: as a variable says, or else a few times.
pub fn times(variable: &str, few: usize) -> Result<usize> {
    let times = number(variable)?.map_or(Ok(few), usize::try_from)?;
    eprintln!("{variable}={times}");
    Ok(times)
}

fn number(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = env::var(variable) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{variable} is {text:?} and must be a number"))
}
