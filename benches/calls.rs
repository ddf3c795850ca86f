//! How many calls get their answers, and how soon?
//!
//! Over a loopback socket, to a load on another core. Each contender has one core, for the connection
//! and all that call. `execmux` is this crate; `baseline` the design it came from; `floor` writes the
//! same request again for each answer, and looks into none.
//!
//! Who waits for answers leaves its core idle meanwhile, and who has sent all its requests at once does so for long: the
//! cores are kept awake. One call at a time is also measured where they `sleep`, as they do where there is nothing else
//! to do: most of the time goes into being woken then.
//!
//! `cargo bench --bench calls -- [--test] [--rounds N] [IN_FLIGHT] [CONTENDER...]`
#![allow(missing_docs, clippy::unwrap_used)]

mod baseline;
mod floor;
mod load;
mod measure;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actix::System;
use execmux::{Config, Mux};
use futures_util::future::join_all;
use serde_json::json;
use tokio::runtime;

use self::{
    baseline::{Client, Metadata},
    floor::Floor,
    load::Load,
    measure::{
        Contender, Options, Patience, Sample, Stopwatch, awake::Awake, median, print_table, ratio,
        take_turns_apart, thousands,
    },
};

/// How many calls wait at a time, and how many then take some 0.3 s.
const IN_FLIGHT: [(usize, u64); 3] = [(1, 10_000), (64, 60_000), (1024, 100_000)];

/// A net under each measurement, never the end of one.
const PATIENCE: Duration = Duration::from_secs(60);

const CONTENDERS: [Contender<Calls>; 3] = [
    Contender {
        name: "execmux",
        measure: execmux,
    },
    Contender {
        name: "baseline",
        measure: baseline,
    },
    Contender {
        name: "floor",
        measure: floor,
    },
];

/// As execmux spells it for this load.
const REQUEST: &str = r#"{"id":1,"method":"fs/getMetadata","params":{"path":"file:///"}}"#;

#[derive(Debug, Clone, Copy)]
struct Calls {
    in_flight: usize,
    /// All together.
    calls: u64,
}

impl Calls {
    /// For another process to [read](Self::read).
    fn describe(self) -> Vec<String> {
        vec![self.in_flight.to_string(), self.calls.to_string()]
    }

    fn read(arguments: &[String]) -> Self {
        Calls {
            in_flight: arguments[0].parse().unwrap(),
            calls: arguments[1].parse().unwrap(),
        }
    }

    /// Fewer, to begin with.
    fn warm_up(self) -> Self {
        Calls {
            calls: (self.calls / 10).max(self.in_flight as u64),
            ..self
        }
    }

    /// Of each of those that call at a time.
    fn each(self) -> u64 {
        self.calls / self.in_flight as u64
    }

    /// Only one after the other has a latency that says something of the client.
    fn has_latency(self) -> bool {
        self.in_flight == 1
    }
}

/// Makes calls one after the other, and returns how long each took if that is wanted.
async fn repeat<F: Future>(calls: Calls, call: impl Fn() -> F) -> Vec<Duration> {
    let mut latencies = Vec::new();
    for _ in 0..calls.each() {
        if calls.has_latency() {
            let begun = Instant::now();
            call().await;
            latencies.push(begun.elapsed());
        } else {
            call().await;
        }
    }
    latencies
}

/// Measures all calls of `make`, which returns their latencies and counts the answers.
async fn measure<F: Future<Output = Vec<Duration>>>(
    calls: Calls,
    answered: &AtomicU64,
    make: impl Fn(Calls) -> F,
) -> Sample {
    let _patience = Patience::start(PATIENCE);
    make(calls.warm_up()).await;
    answered.store(0, Relaxed);
    let stopwatch = Stopwatch::start();
    let latencies = make(calls).await;
    let sample = stopwatch.stop();
    assert_eq!(answered.load(Relaxed), calls.calls, "of {calls:?}");
    let latency = calls.has_latency().then(|| median(latencies.into_iter()));
    Sample { latency, ..sample }
}

fn count(answered: &AtomicU64) {
    // All on one thread.
    answered.store(answered.load(Relaxed) + 1, Relaxed);
}

fn execmux(calls: Calls, load: &Load) -> Sample {
    System::new().block_on(async {
        let mux = Mux::connect(Config::new(load.url())).await.unwrap();
        let answered = Arc::<AtomicU64>::default();
        let make = async |calls: Calls| {
            let callers = (0..calls.in_flight).map(|_| {
                let (mux, answered) = (mux.clone(), answered.clone());
                actix::spawn(async move {
                    let call = async || {
                        assert!(mux.metadata("/").await.unwrap().is_directory);
                        count(&answered);
                    };
                    repeat(calls, call).await
                })
            });
            // In a task of its own: what an application blocks on is polled at each wake.
            let made = actix::spawn(join_all(callers)).await;
            made.unwrap().swap_remove(0).unwrap()
        };
        measure(calls, &answered, make).await
    })
}

fn baseline(calls: Calls, load: &Load) -> Sample {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = Arc::new(Client::connect(load.port()).await);
        let answered = Arc::<AtomicU64>::default();
        let make = async |calls: Calls| {
            let callers = (0..calls.in_flight).map(|_| {
                let (client, answered) = (client.clone(), answered.clone());
                tokio::spawn(async move {
                    let call = || async {
                        let params = json!({"path": "file:///"});
                        let metadata: Metadata =
                            client.call("fs/getMetadata", params).await.unwrap();
                        assert!(metadata.is_directory);
                        count(&answered);
                    };
                    repeat(calls, call).await
                })
            });
            join_all(callers).await.swap_remove(0).unwrap()
        };
        measure(calls, &answered, make).await
    })
}

fn floor(calls: Calls, load: &Load) -> Sample {
    System::new().block_on(async {
        let _patience = Patience::start(PATIENCE);
        let mut floor = Floor::connect(&load.url()).await;
        floor
            .call(REQUEST, calls.warm_up().calls, calls.in_flight as u64)
            .await;
        let mut latencies = Vec::new();
        let stopwatch = Stopwatch::start();
        // Each by itself, to be told how long it took.
        let (turns, calls_each) = if calls.has_latency() {
            (calls.calls, 1)
        } else {
            (1, calls.calls)
        };
        for _ in 0..turns {
            let begun = Instant::now();
            floor
                .call(REQUEST, calls_each, calls.in_flight as u64)
                .await;
            latencies.push(begun.elapsed());
        }
        let sample = stopwatch.stop();
        let latency = calls.has_latency().then(|| median(latencies.into_iter()));
        Sample { latency, ..sample }
    })
}

fn main() {
    if load::is_wanted() {
        return load::serve();
    }
    if measure::awake::has_stayed_awake() || measure::is_round(&CONTENDERS, Calls::read) {
        return;
    }
    let options = Options::from_arguments();
    let load = Load::start();
    let all_in_flight = options.choose(0, &IN_FLIGHT.map(|(in_flight, _)| in_flight));
    let mut rows = Vec::new();
    if all_in_flight.contains(&1) {
        rows.extend(rows_of(1, "sleep", &options, &load));
    }
    let _awake = Awake::start();
    for in_flight in all_in_flight {
        rows.extend(rows_of(in_flight, "awake", &options, &load));
    }
    print_table(
        &[
            "in flight",
            "cores",
            "",
            "calls/s",
            "busy",
            "CPU us",
            "p50 us",
            "rate/baseline",
            "CPU/baseline",
            "rate/floor",
            "p50/floor",
        ],
        &rows,
    );
}

fn rows_of(in_flight: usize, cores: &str, options: &Options, load: &Load) -> Vec<Vec<String>> {
    // For another number, those of the next larger one.
    let known = IN_FLIGHT.into_iter().find(|&(known, _)| known >= in_flight);
    let (_, calls) = known.unwrap_or(IN_FLIGHT[2]);
    // The same for each that calls.
    let each = (options.scale(calls) / in_flight as u64).max(1);
    let calls = Calls {
        in_flight,
        calls: each * in_flight as u64,
    };
    let medians = take_turns_apart(options, &CONTENDERS, calls, load, Calls::describe);
    let rate = |sample: Sample| sample.per_second(calls.calls);
    let cpu = |sample: Sample| sample.cpu_each(calls.calls);
    let latency = |sample: Sample| Some(sample.latency?.as_secs_f64() * 1e6);
    let (baseline, floor) = (medians.of("baseline"), medians.of("floor"));
    let rows = medians.iter().map(|(name, median)| {
        let p50 = latency(median);
        vec![
            in_flight.to_string(),
            cores.to_owned(),
            name.to_owned(),
            thousands(rate(median)),
            median.busy(),
            format!("{:.2}", cpu(median)),
            p50.map_or_else(|| "-".to_owned(), |p50| format!("{p50:.1}")),
            ratio(rate(median), baseline.map(rate)),
            ratio(cpu(median), baseline.map(cpu)),
            ratio(rate(median), floor.map(rate)),
            p50.map_or_else(|| "-".to_owned(), |p50| ratio(p50, floor.and_then(latency))),
        ]
    });
    rows.collect()
}
