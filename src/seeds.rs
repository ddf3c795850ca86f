//! Tests whose choices one number makes, tried with many.
//!
//! `EXECMUX_SEED=n` tries that one alone, `EXECMUX_SEEDS=n` so many in all.

use std::{
    env,
    hash::{BuildHasher as _, RandomState},
    panic,
};

#[path = "../tests/support/random.rs"]
#[allow(dead_code, unreachable_pub)]
mod random;

pub(crate) use self::random::Random;

/// Runs a test for each seed, the same ones each time, and says with which it went wrong. Returns what it
/// has returned.
pub(crate) fn each<T>(default: u64, part: &str, run: impl Fn(&mut Random) -> T) -> Vec<T> {
    let number = |name| env::var(name).ok()?.parse().ok();
    let seeds: Option<u64> = number("EXECMUX_SEEDS");
    let seeds = match number("EXECMUX_SEED") {
        Some(seed) => seed..seed + seeds.unwrap_or(1),
        None => 0..seeds.unwrap_or(default),
    };
    seeds
        .map(|seed| {
            let run = panic::AssertUnwindSafe(|| run(&mut Random::of(seed, part)));
            panic::catch_unwind(run).unwrap_or_else(|_| panic!("EXECMUX_SEED={seed}"))
        })
        .collect()
}

/// Returns the seed that `EXECMUX_SEED` names, or else one that no run had before, and prints it.
#[allow(dead_code, reason = "only the server's tests draw fresh seeds")]
pub(crate) fn fresh() -> u64 {
    let named = env::var("EXECMUX_SEED").ok();
    let seed = named.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    println!("EXECMUX_SEED={seed}");
    seed
}
