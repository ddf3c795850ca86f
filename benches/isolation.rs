//! What does a session cost the others that does not consume?
//!
//! A process floods its session A with 8 KiB outputs. In between, ten others get a little, and calls and
//! interrupts are made one at a time. Measured is how long each takes: the others' from the load's write
//! to the handler, calls to their answers, interrupts from the call to their arrival at the load. Once with
//! A consuming, and once with A stopped for good, at its budget: the second should be no more than the
//! first. `paced` is a flood of 32,000 outputs a second, a quarter of a gigabyte, in bursts; `fast` is one of 200,000,
//! evenly, more than half of what the client can take; `saturated` is as much as the load can write: that is more when A
//! has stopped, as there is less to do then, and so it compares unlike things. How much it was is shown. `busy` is the
//! share of the time in which the client works: where that is not all, it waits until something comes. With A stopped
//! there is less to do, and so that it does not look worse for that, the cores are kept awake meanwhile.
//!
//! `baseline` waits for room in A's channel, and so hears nothing more once that is full: `-`.
//!
//! `cargo bench --bench isolation -- [--test] [--rounds N] [CONTENDER...]`
#![allow(missing_docs, clippy::unwrap_used)]

mod baseline;
mod load;
mod measure;

use std::{
    cell::{Cell, RefCell},
    mem,
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{Actor, Context, Handler, System};
use execmux::{
    Config, Method, Mux, Output, Session, SessionEvent,
    protocol::{InvalidRequest, Params},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    runtime,
    sync::mpsc::Receiver,
    task::LocalSet,
    time::{sleep, timeout},
};

use self::{
    load::Load,
    measure::{
        Contender, Options, Sample, Stopwatch, awake::Awake, micros, percentile, print_table,
        ratio, sample_in_turns, shared_time, thousands,
    },
};

/// How many sessions hear a little.
const OTHERS: usize = 10;

/// How much longer than planned the mix may take before it counts as stalled.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many groups of 16 outputs are written at each interval, in microseconds.
const FLOODS: [(&str, u64, u64); 3] = [("paced", 4, 2000), ("fast", 1, 80), ("saturated", 1, 0)];

/// With A consuming, and then with A stopped: in turns, so that what else the machine does hits both alike.
const CONTENDERS: [Contender<Task, [Option<Heard>; 2]>; 2] = [
    Contender {
        name: "execmux",
        measure: |task, load| both(task, |task| execmux(task, load)),
    },
    Contender {
        name: "baseline",
        measure: |task, load| both(task, |task| baseline(task, load)),
    },
];

fn both(task: Task, measure: impl Fn(Task) -> Option<Heard>) -> [Option<Heard>; 2] {
    [true, false].map(|a_consumes| measure(Task { a_consumes, ..task }))
}

#[derive(Clone, Copy)]
struct Task {
    groups: u64,
    /// 0 for no pause.
    interval_micros: u64,
    a_consumes: bool,
    millis: u64,
}

/// Asks the load for a flood with others in between.
#[derive(Clone, Copy)]
struct Mix {
    groups: u64,
    interval_micros: u64,
    millis: u64,
}

/// How many outputs there were.
#[derive(Debug, Deserialize)]
struct Mixed {
    flooded: u64,
    told: u64,
}

impl Mix {
    fn params(self) -> Value {
        json!({
            "size": 8192,
            "group": 16,
            "groups": self.groups,
            "others": OTHERS,
            "intervalMicros": self.interval_micros,
            "millis": self.millis,
        })
    }
}

impl Method for Mix {
    const NAME: &'static str = "bench/mix";
    type Response = Mixed;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        let Value::Object(fields) = self.params() else {
            return Ok(());
        };
        for name in [
            "size",
            "group",
            "groups",
            "others",
            "intervalMicros",
            "millis",
        ] {
            params.field(name, &fields[name])?;
        }
        Ok(())
    }
}

/// Asks the load how long interrupts took to get there.
struct Latencies;

#[derive(Debug, Deserialize)]
struct Noted {
    nanoseconds: Vec<u64>,
}

impl Method for Latencies {
    const NAME: &'static str = "bench/latencies";
    type Response = Noted;

    fn write_params(&self, _: &mut Params<'_>) -> Result<(), InvalidRequest> {
        Ok(())
    }
}

/// How long everything took.
struct Heard {
    all: Sample,
    flooded: u64,
    others: Vec<Duration>,
    calls: Vec<Duration>,
    interrupts: Vec<Duration>,
}

/// What all sessions have heard, which run on one thread.
#[derive(Default)]
struct Tally {
    flooded: Cell<u64>,
    told: RefCell<Vec<Duration>>,
}

impl Tally {
    fn flood(&self) {
        self.flooded.set(self.flooded.get() + 1);
    }

    /// Notes how long ago the time is that a chunk tells.
    fn tell(&self, chunk: &[u8]) {
        let written = str::from_utf8(chunk)
            .ok()
            .and_then(|time| time.parse().ok());
        let written = Duration::from_nanos(written.expect("a time"));
        self.told.borrow_mut().push(shared_time() - written);
    }

    /// Waits until everything is handled that has been read.
    async fn settle(&self, mixed: &Mixed, a_consumes: bool) {
        let is_settled = || {
            self.told.borrow().len() as u64 == mixed.told
                && (!a_consumes || self.flooded.get() == mixed.flooded)
        };
        let settled = async {
            while !is_settled() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let settled = timeout(PATIENCE, settled).await;
        let told = self.told.borrow().len();
        settled.unwrap_or_else(|_| panic!("{told} and {} of {mixed:?}", self.flooded.get()));
        assert!(
            a_consumes || self.flooded.get() < mixed.flooded,
            "A has not stopped"
        );
    }

    fn forget(&self) {
        self.flooded.set(0);
        self.told.borrow_mut().clear();
    }
}

/// A: consumes, or keeps everything.
struct Flooded {
    kept: Option<Vec<Output>>,
    tally: Rc<Tally>,
}

impl Actor for Flooded {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Flooded {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        if let SessionEvent::Output(output) = event {
            self.tally.flood();
            if let Some(kept) = &mut self.kept {
                kept.push(output);
            }
        }
    }
}

/// One of the others.
struct Prompt(Rc<Tally>);

impl Actor for Prompt {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Prompt {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        if let SessionEvent::Output(output) = event {
            self.0.tell(&output.chunk);
        }
    }
}

fn session<A>(actor: A) -> Session
where
    A: Actor<Context = Context<A>> + Handler<SessionEvent>,
{
    let mut session = None;
    A::create(|context| {
        session = Some(Session::in_context(context));
        actor
    });
    session.unwrap()
}

/// Has the load write a mix and calls meanwhile. Returns how much it wrote and how long the calls took;
/// `None` if it stalls.
async fn run(
    task: Task,
    tally: &Tally,
    mix: impl Future<Output = Mixed>,
    call: impl AsyncFn(),
    interrupt: impl AsyncFn(String),
) -> Option<(Mixed, Vec<Duration>)> {
    let mut latencies = Vec::new();
    let is_over = Cell::new(false);
    let calls = async {
        for n in 0.. {
            // Not in step with the flood.
            sleep(Duration::from_millis(1 + n % 3)).await;
            if is_over.get() {
                return;
            }
            let begun = Instant::now();
            call().await;
            latencies.push(begun.elapsed());
            interrupt(format!("t-{}", shared_time().as_nanos())).await;
        }
    };
    let mixed = async {
        let mixed = mix.await;
        is_over.set(true);
        mixed
    };
    let both = async { tokio::join!(mixed, calls) };
    let patience = Duration::from_millis(task.millis) + PATIENCE;
    let (mixed, ()) = timeout(patience, both).await.ok()?;
    tally.settle(&mixed, task.a_consumes).await;
    Some((mixed, latencies))
}

/// Runs a mix twice: first to fill A's budget.
async fn measure<M: Future<Output = Mixed>>(
    task: Task,
    tally: &Tally,
    mix: impl Fn(Mix) -> M,
    call: impl AsyncFn(),
    interrupt: impl AsyncFn(String),
    noted: impl AsyncFn() -> Noted,
) -> Option<Heard> {
    let Task {
        groups,
        interval_micros,
        millis,
        ..
    } = task;
    let warm_up = Task {
        millis: millis / 10,
        ..task
    };
    let first = mix(Mix {
        groups,
        interval_micros,
        millis: warm_up.millis,
    });
    run(warm_up, tally, first, &call, &interrupt).await?;
    noted().await;
    // What A has kept, it keeps.
    tally.forget();
    let second = mix(Mix {
        groups,
        interval_micros,
        millis,
    });
    let stopwatch = Stopwatch::start();
    let (mixed, calls) = run(task, tally, second, &call, &interrupt).await?;
    let all = stopwatch.stop();
    let interrupts = noted().await.nanoseconds.into_iter();
    Some(Heard {
        all,
        flooded: mixed.flooded,
        others: mem::take(&mut tally.told.borrow_mut()),
        calls,
        interrupts: interrupts.map(Duration::from_nanos).collect(),
    })
}

fn execmux(task: Task, load: &Load) -> Option<Heard> {
    System::new().block_on(async {
        let mux = Mux::connect(Config::new(load.url())).await.unwrap();
        let tally = Rc::<Tally>::default();
        let a = Flooded {
            kept: (!task.a_consumes).then(Vec::new),
            tally: tally.clone(),
        };
        mux.register("p0", session(a)).await.unwrap();
        for n in 1..=OTHERS {
            let other = session(Prompt(tally.clone()));
            mux.register(format!("p{n}"), other).await.unwrap();
        }
        let mix = async |mix| mux.call(mix).await.unwrap();
        let call = async || {
            mux.metadata("/").await.unwrap();
        };
        let interrupt = async |process_id: String| {
            mux.interrupt(process_id).await.unwrap();
        };
        let noted = async || mux.call(Latencies).await.unwrap();
        measure(task, &tally, mix, call, interrupt, noted).await
    })
}

fn baseline(task: Task, load: &Load) -> Option<Heard> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let client = baseline::Client::connect(load.port()).await;
        let tally = Rc::<Tally>::default();
        let mut a = client.register("p0");
        let mut stopped = None;
        if task.a_consumes {
            let tally = tally.clone();
            tokio::task::spawn_local(async move {
                while let Some(baseline::Event::Output(_)) = a.recv().await {
                    tally.flood();
                }
            });
        } else {
            stopped = Some(a);
        }
        for n in 1..=OTHERS {
            let other = client.register(&format!("p{n}"));
            tokio::task::spawn_local(hear(other, tally.clone()));
        }
        let mix = async |mix: Mix| {
            let mixed = client.call::<Mixed>(Mix::NAME, mix.params()).await;
            mixed.unwrap()
        };
        let call = async || {
            let params = json!({"path": "file:///"});
            let answer = client.call::<baseline::Metadata>("fs/getMetadata", params);
            answer.await.unwrap();
        };
        let interrupt = async |process_id: String| {
            let params = json!({"processId": process_id, "signal": "interrupt"});
            let answer = client.call::<Value>("process/signal", params);
            answer.await.unwrap();
        };
        let noted = async || {
            let noted = client.call::<Noted>(Latencies::NAME, json!({})).await;
            noted.unwrap()
        };
        let heard = measure(task, &tally, mix, call, interrupt, noted).await;
        drop(stopped);
        heard
    })
}

async fn hear(mut events: Receiver<baseline::Event>, tally: Rc<Tally>) {
    while let Some(baseline::Event::Output(output)) = events.recv().await {
        tally.tell(&output.chunk);
    }
}

/// What is shown of one contender: how busy it is with which rate of the flood, and p50 and p99 of the others,
/// of calls and of interrupts.
struct Shown {
    busy: String,
    flood: String,
    latencies: [Option<Duration>; 6],
}

/// Takes the median of the rounds, of each value by itself; of a stalled one there is none.
fn shown(rounds: &[&Option<Heard>]) -> Shown {
    let samples: Option<Vec<_>> = rounds
        .iter()
        .map(|heard| heard.as_ref().map(|heard| heard.all))
        .collect();
    let mut floods: Vec<_> = rounds
        .iter()
        .filter_map(|heard| heard.as_ref().map(|heard| heard.flooded))
        .collect();
    floods.sort_unstable();
    let dash = || "-".to_owned();
    let (busy, flood) = samples.map_or_else(
        || (dash(), dash()),
        |samples| {
            let median = Sample::median(&samples);
            let flood = thousands(median.per_second(floods[floods.len() / 2]));
            (median.busy(), flood)
        },
    );
    Shown {
        busy,
        flood,
        latencies: latencies(rounds),
    }
}

fn latencies(rounds: &[&Option<Heard>]) -> [Option<Duration>; 6] {
    let values = |heard: &Heard| {
        let parts = [&heard.others, &heard.calls, &heard.interrupts];
        let [others, calls, interrupts] =
            parts.map(|part| [percentile(50, part), percentile(99, part)]);
        [
            others[0],
            others[1],
            calls[0],
            calls[1],
            interrupts[0],
            interrupts[1],
        ]
    };
    let rounds: Vec<_> = rounds
        .iter()
        .map(|heard| heard.as_ref().map_or([None; 6], values))
        .collect();
    std::array::from_fn(|place| {
        let all: Option<Vec<_>> = rounds.iter().map(|values| values[place]).collect();
        percentile(50, &all?)
    })
}

fn main() {
    if load::is_wanted() {
        return load::serve();
    }
    if measure::awake::has_stayed_awake() {
        return;
    }
    let options = Options::from_arguments();
    // Before this thread is pinned: they would inherit its one core.
    let load = Load::start();
    let _awake = Awake::start();
    measure::pin(1);
    let mut rows = Vec::new();
    for (flood, groups, interval_micros) in FLOODS {
        let task = Task {
            groups,
            interval_micros,
            a_consumes: true,
            millis: if options.is_test { 100 } else { 1000 },
        };
        for (name, rounds) in sample_in_turns(&options, &CONTENDERS, task, &load) {
            let [consuming, stopped] = [0, 1].map(|which| {
                let rounds: Vec<_> = rounds.iter().map(|both| &both[which]).collect();
                shown(&rounds)
            });
            let is_heard = |shown: &Shown| shown.latencies[5].is_some();
            assert!(is_heard(&consuming), "{name} stalls");
            assert!(name == "baseline" || is_heard(&stopped), "{name} stalls");
            rows.push(row(flood, name, "consumes", &consuming, &consuming));
            rows.push(row(flood, name, "has stopped", &stopped, &consuming));
        }
    }
    print_table(
        &[
            "flood",
            "",
            "A",
            "busy",
            "flood/s",
            "others p50 us",
            "p99",
            "calls p50",
            "p99",
            "interrupts p50",
            "p99",
            "others p50/consumes",
            "p99/consumes",
            "calls p50/consumes",
            "p99/consumes",
        ],
        &rows,
    );
}

fn row(flood: &str, name: &str, a: &str, shown: &Shown, consuming: &Shown) -> Vec<String> {
    let dash = || "-".to_owned();
    let mut row = [flood, name, a, &shown.busy, &shown.flood]
        .map(str::to_owned)
        .to_vec();
    let values = shown.latencies;
    row.extend(values.map(|value| value.map_or_else(dash, micros)));
    let ratios = values.into_iter().zip(consuming.latencies).take(4);
    row.extend(ratios.map(|(value, consuming)| {
        value.map_or_else(dash, |value| {
            let consuming = consuming.map(|consuming| consuming.as_secs_f64());
            ratio(value.as_secs_f64(), consuming)
        })
    }));
    row
}
