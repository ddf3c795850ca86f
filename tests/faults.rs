//! Thousands of servers and connections that fail, each from one seed: whatever happens, everything
//! ends, and nobody is told what is not so.
//!
//! Beside seeds that are always the same, some are drawn afresh: from `EXECMUX_FRESH_SEED`, or else from the clock. From
//! which one is printed in any case. `EXECMUX_SEED=n` runs that seed alone, `EXECMUX_SEEDS=n` so many from it on, or of
//! those that are always the same.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    cell::Cell,
    io::{self, Write as _},
    panic::{self, AssertUnwindSafe},
    sync::{Once, OnceLock},
    time::{SystemTime, UNIX_EPOCH},
};

use actix::System;
use support::{
    faulty_client::{self, Outcome},
    faulty_server::Met,
    random::Random,
};

/// How many seeds are tried, unless `EXECMUX_SEEDS` says otherwise.
const SEEDS: u64 = 10_000;

/// How many seeds are drawn afresh each time.
const FRESH_SEEDS: u64 = 2000;

/// The tests that share them, to use more than one core.
const PARTS: u64 = 4;

/// How many seeds that go wrong are shown. One alone may show less than its neighbours.
const MAX_WRONG: usize = 20;

/// What has to be met, or else the tests test less than they say.
const INTERESTING: [&str; 31] = [
    "answer lost",
    "blocked by a session",
    "caller gone",
    "closed",
    "closed by the server",
    "closed, not complete",
    "cut at some time",
    "cut between frames",
    "cut within a frame",
    "deadline exceeded",
    "disconnected",
    "failed: disconnected",
    "failed: forgotten",
    "failed: overflow",
    "failed: unanswered",
    "gap",
    "half-open",
    "nobody to connect to",
    "notification sent twice",
    "outcome unknown",
    "overloaded",
    "process forgotten",
    "request not read",
    "resume refused",
    "resumed",
    "silent",
    "stalled",
    "start repeated",
    "stuck",
    "write held up",
    "write repeated",
];

thread_local! {
    /// Whether something has panicked on this thread. Runtimes catch the panics of their tasks.
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Runs one seed on a runtime of its own, so that nothing of it is left for the next. Returns what was
/// met, or what was wrong.
fn run(seed: u64) -> Result<Met, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            PANICKED.set(true);
            report(panic);
        }));
    });
    PANICKED.set(false);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        let system = System::with_tokio_rt(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap()
        });
        system.block_on(async move { actix::spawn(faulty_client::run(seed)).await.unwrap() })
    }));
    match outcome {
        Ok(Outcome { met, faults }) if faults.is_empty() && !PANICKED.get() => Ok(met),
        Ok(Outcome { faults, .. }) if PANICKED.get() => Err(format!("a task panicked {faults:#?}")),
        Ok(Outcome { faults, .. }) => Err(format!("{faults:#?}")),
        Err(_) => Err("panicked".to_owned()),
    }
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} must be a number, it is {value}")))
}

/// Returns what the fresh seeds are drawn from, and prints it once.
fn fresh_seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let seed = number("EXECMUX_FRESH_SEED").unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.unwrap_or_default().as_nanos() as u64
        });
        // Not with a macro: what these print, tests that pass do not show.
        let line = format!("EXECMUX_FRESH_SEED={seed}\n");
        io::stderr().write_all(line.as_bytes()).unwrap();
        seed
    })
}

/// The seeds of one part.
fn seeds(part: u64) -> Vec<u64> {
    let count = number("EXECMUX_SEEDS");
    if let Some(first) = number("EXECMUX_SEED") {
        return match part {
            0 => (0..count.unwrap_or(1))
                .map(|n| first.wrapping_add(n))
                .collect(),
            _ => Vec::new(),
        };
    }
    let each = count.unwrap_or(SEEDS).div_ceil(PARTS);
    let mut random = Random::of(fresh_seed(), &format!("part {part}"));
    let fresh = (0..FRESH_SEEDS / PARTS).map(|_| random.next());
    (part * each..(part + 1) * each).chain(fresh).collect()
}

fn run_part(part: u64) {
    let seeds = seeds(part);
    let runs = seeds.len();
    let mut met = Met::new();
    let mut wrong = Vec::new();
    for seed in seeds {
        match run(seed) {
            Ok(counts) => {
                for (what, count) in counts {
                    *met.entry(what).or_default() += count;
                }
            }
            Err(faults) => wrong.push(format!("EXECMUX_SEED={seed} {faults}")),
        }
        if wrong.len() == MAX_WRONG {
            break;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{runs} runs: {met:#?}");
    if runs >= 1000 {
        for what in INTERESTING {
            assert!(met.contains_key(what), "never met: {what}");
        }
    }
}

#[test]
fn p2_p6_p7_p8_whatever_fails_all_ends_and_is_told_the_truth_part_1() {
    run_part(0);
}

#[test]
fn p2_p6_p7_p8_whatever_fails_all_ends_and_is_told_the_truth_part_2() {
    run_part(1);
}

#[test]
fn p2_p6_p7_p8_whatever_fails_all_ends_and_is_told_the_truth_part_3() {
    run_part(2);
}

#[test]
fn p2_p6_p7_p8_whatever_fails_all_ends_and_is_told_the_truth_part_4() {
    run_part(3);
}
