//! How fast do events get from the wire into session actors?
//!
//! Over a loopback socket, from a load on another core. Each contender has one core, for the connection
//! and all sessions. `execmux` is this crate, with an actor to each session, in whose context it is;
//! `messages` the same with a message for each event; `baseline` the design it came from, with a
//! task to each; `floor` counts frames and looks into none. Each round is a process of its own.
//!
//! `cargo bench --bench events -- [--test] [--rounds N] [SIZE [SESSIONS]] [CONTENDER...]`
#![allow(missing_docs, clippy::unwrap_used)]

mod baseline;
mod floor;
mod load;
mod measure;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::{Actor, Context, Handler, System};
use execmux::{
    Config, Method, Mux, Session, SessionEvent,
    protocol::{Done, InvalidRequest, Params},
};
use serde_json::{Value, json};
use tokio::{runtime, sync::Notify, time::timeout};

use self::{
    floor::Floor,
    load::Load,
    measure::{
        Contender, Medians, Options, Sample, Stopwatch, print_table, ratio, take_turns_apart,
        thousands,
    },
};

/// Decoded bytes of an output, and how many of that size take some 0.3 s.
const SIZES: [(usize, u64); 4] = [
    (64, 400_000),
    (1024, 200_000),
    (8192, 40_000),
    (65_536, 6_000),
];

/// A net under each flood, never the end of one.
const PATIENCE: Duration = Duration::from_secs(60);

const SESSIONS: [usize; 3] = [1, 100, 10_000];

/// Who can take part. Another way to deliver to a session is one more line and its `Session`.
const CONTENDERS: [Contender<Flood>; 4] = [
    Contender {
        name: "execmux",
        measure: |flood, load| execmux(flood, load, Counter::in_context),
    },
    Contender {
        name: "messages",
        measure: |flood, load| execmux(flood, load, Counter::with_messages),
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

/// Asks the load for outputs.
#[derive(Debug, Clone, Copy)]
struct Flood {
    size: usize,
    sessions: usize,
    events: u64,
}

impl Flood {
    /// A smaller one, to begin with.
    fn warm_up(self) -> Self {
        Flood {
            events: self.events / 10,
            ..self
        }
    }

    /// For another process to [read](Self::read).
    fn describe(self) -> Vec<String> {
        [self.size as u64, self.sessions as u64, self.events]
            .map(|number| number.to_string())
            .to_vec()
    }

    fn read(arguments: &[String]) -> Self {
        let numbers: Vec<u64> = arguments.iter().map(|one| one.parse().unwrap()).collect();
        Flood {
            size: numbers[0] as usize,
            sessions: numbers[1] as usize,
            events: numbers[2],
        }
    }

    fn params(self) -> Value {
        json!({"size": self.size, "sessions": self.sessions, "events": self.events})
    }

    fn process_ids(self) -> impl Iterator<Item = String> {
        (0..self.sessions).map(|n| format!("p{n}"))
    }
}

impl Method for Flood {
    const NAME: &'static str = "bench/flood";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("size", &self.size)?;
        params.field("sessions", &self.sessions)?;
        params.field("events", &self.events)
    }
}

/// What has been delivered to all sessions. They run on one thread, so that nothing is added twice.
#[derive(Default)]
struct Tally {
    events: AtomicU64,
    bytes: AtomicU64,
    awaited: AtomicU64,
    reached: Notify,
    is_broken: AtomicBool,
}

impl Tally {
    fn count(&self, bytes: usize) {
        let events = self.events.load(Relaxed) + 1;
        self.events.store(events, Relaxed);
        let bytes = self.bytes.load(Relaxed) + bytes as u64;
        self.bytes.store(bytes, Relaxed);
        if events == self.awaited.load(Relaxed) {
            self.reached.notify_one();
        }
    }

    /// Something came that should not have.
    fn fail(&self) {
        self.is_broken.store(true, Relaxed);
        self.reached.notify_one();
    }

    /// Measures from the request for a flood until its last event is counted.
    async fn measure<F: Future>(&self, flood: Flood, request: impl Fn(Flood) -> F) -> Sample {
        self.receive(flood.warm_up(), &request).await;
        let stopwatch = Stopwatch::start();
        self.receive(flood, &request).await;
        stopwatch.stop()
    }

    async fn receive<F: Future>(&self, flood: Flood, request: impl Fn(Flood) -> F) {
        let events = self.events.load(Relaxed) + flood.events;
        let bytes = self.bytes.load(Relaxed) + flood.events * flood.size as u64;
        self.awaited.store(events, Relaxed);
        let received = async { tokio::join!(request(flood), self.reached.notified()) };
        let received = timeout(PATIENCE, received).await;
        assert!(
            !self.is_broken.load(Relaxed),
            "an event is out of its order"
        );
        let delivered = (self.events.load(Relaxed), self.bytes.load(Relaxed));
        assert_eq!(delivered, (events, bytes), "of {flood:?}");
        received.expect("all is delivered");
    }
}

/// A session that counts what it is told.
struct Counter {
    tally: Arc<Tally>,
    next_seq: u64,
}

impl Counter {
    fn with_messages(tally: Arc<Tally>) -> Session {
        let counter = Counter { tally, next_seq: 1 };
        counter.start().recipient().into()
    }

    fn in_context(tally: Arc<Tally>) -> Session {
        let mut session = None;
        Counter::create(|context| {
            session = Some(Session::in_context(context));
            Counter { tally, next_seq: 1 }
        });
        session.unwrap()
    }

    fn count(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Output(output) if output.seq == self.next_seq => {
                self.next_seq += 1;
                self.tally.count(output.chunk.len());
            }
            _ => self.tally.fail(),
        }
    }
}

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Counter {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        self.count(event);
    }
}

fn execmux(flood: Flood, load: &Load, session: fn(Arc<Tally>) -> Session) -> Sample {
    System::new().block_on(async {
        let mux = Mux::connect(Config::new(load.url())).await.unwrap();
        let tally = Arc::<Tally>::default();
        for process_id in flood.process_ids() {
            let session = session(tally.clone());
            mux.register(process_id, session).await.unwrap();
        }
        let request = async |flood| mux.call(flood).await.unwrap();
        tally.measure(flood, request).await
    })
}

fn baseline(flood: Flood, load: &Load) -> Sample {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = baseline::Client::connect(load.port()).await;
        let tally = Arc::<Tally>::default();
        for events in client.register_all(flood.process_ids()) {
            tokio::spawn(count(events, tally.clone()));
        }
        let request = async |flood: Flood| -> Value {
            let answer = client.call(Flood::NAME, flood.params()).await;
            answer.unwrap()
        };
        tally.measure(flood, request).await
    })
}

async fn count(mut events: tokio::sync::mpsc::Receiver<baseline::Event>, tally: Arc<Tally>) {
    let mut next_seq = 1;
    while let Some(event) = events.recv().await {
        match event {
            baseline::Event::Output(output) if output.seq == next_seq => {
                next_seq += 1;
                tally.count(output.chunk.len());
            }
            _ => tally.fail(),
        }
    }
}

fn floor(flood: Flood, load: &Load) -> Sample {
    System::new().block_on(async {
        let mut floor = Floor::connect(&load.url()).await;
        let mut receive = async |flood: Flood| {
            let params = flood.params();
            let request = format!(r#"{{"id":1,"method":"{}","params":{params}}}"#, Flood::NAME);
            floor.send(request).await;
            // The answer is one too.
            let counted = timeout(PATIENCE, floor.count(flood.events + 1)).await;
            counted.expect("all is delivered");
        };
        receive(flood.warm_up()).await;
        let stopwatch = Stopwatch::start();
        receive(flood).await;
        stopwatch.stop()
    })
}

fn main() {
    if load::is_wanted() {
        return load::serve();
    }
    if measure::is_round(&CONTENDERS, Flood::read) {
        return;
    }
    let options = Options::from_arguments();
    let load = Load::start();
    let mut rows = Vec::new();
    for size in options.choose(0, &SIZES.map(|(size, _)| size)) {
        // For another size, those of the next larger one.
        let (_, events) = SIZES
            .into_iter()
            .find(|&(known, _)| known >= size)
            .unwrap_or(SIZES[3]);
        for sessions in options.choose(1, &SESSIONS) {
            let flood = Flood {
                size,
                sessions,
                events: options.scale(events),
            };
            let medians = take_turns_apart(&options, &CONTENDERS, flood, &load, Flood::describe);
            rows.extend(rows_of(flood, &medians));
        }
    }
    print_table(
        &[
            "bytes",
            "sessions",
            "",
            "events/s",
            "MB/s",
            "busy",
            "CPU us",
            "rate/baseline",
            "per core/baseline",
        ],
        &rows,
    );
}

fn rows_of(flood: Flood, medians: &Medians) -> impl Iterator<Item = Vec<String>> {
    let rate = move |sample: Sample| sample.per_second(flood.events);
    let cpu = move |sample: Sample| sample.cpu_each(flood.events);
    let baseline = medians.of("baseline");
    medians.iter().map(move |(name, median)| {
        vec![
            flood.size.to_string(),
            flood.sessions.to_string(),
            name.to_owned(),
            thousands(rate(median)),
            format!("{:.0}", rate(median) * flood.size as f64 / 1e6),
            median.busy(),
            format!("{:.2}", cpu(median)),
            ratio(rate(median), baseline.map(rate)),
            // Where the load is too slow to keep the core busy, the rate tells of the load.
            ratio(
                1.0 / cpu(median),
                baseline.map(|baseline| 1.0 / cpu(baseline)),
            ),
        ]
    })
}
