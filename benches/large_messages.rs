//! What does a large file cost that comes in one answer?
//!
//! The time of `fs/readFile`, and how much more memory was resident at most than before, as a multiple of
//! the file (on Linux; elsewhere `-`). Each measurement is a process of its own, so that none begins with
//! what another has left to the allocator. A session hears of its process before and after.
//!
//! `execmux` is this crate; `baseline` the design it came from, whose WebSocket library refuses messages of
//! more than 64 MiB; `floor` reads the frame, and decodes nothing.
//!
//! `cargo bench --bench large_messages -- [--test] [--rounds N] [MIB] [CONTENDER...]`
#![allow(missing_docs, clippy::unwrap_used)]

mod baseline;
mod floor;
mod load;
mod measure;

use std::{
    cell::Cell,
    fs,
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{Actor, Context, Handler, System};
use execmux::{
    Config, Method, Mux, Session, SessionEvent,
    protocol::{Done, InvalidRequest, Params},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    runtime,
    time::{sleep, timeout},
};

use self::{
    floor::Floor,
    load::Load,
    measure::{Contender, Options, median, print_table, ratio, sample_in_turns},
};

const MIB: usize = 1 << 20;

/// Of the file, in MiB.
const SIZES: [usize; 2] = [8, 64];

/// How many outputs come before the file, and how many after it.
const OUTPUTS: u64 = 10;

/// A net, never the end of a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes this executable take one measurement, as its first argument.
const ARGUMENT: &str = "read";

const CONTENDERS: [Contender<usize, Option<Cost>>; 3] = [
    Contender {
        name: "execmux",
        measure: |mib, load| start("execmux", mib, load),
    },
    Contender {
        name: "baseline",
        measure: |mib, load| start("baseline", mib, load),
    },
    Contender {
        name: "floor",
        measure: |mib, load| start("floor", mib, load),
    },
];

/// What one read has taken.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Cost {
    wall: Duration,
    /// Resident bytes above those before, at most.
    peak: Option<usize>,
}

/// Asks the load for outputs.
struct Flood;

impl Method for Flood {
    const NAME: &'static str = "bench/flood";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("size", &64)?;
        params.field("sessions", &1)?;
        params.field("events", &OUTPUTS)
    }
}

impl Flood {
    fn params() -> Value {
        json!({"size": 64, "sessions": 1, "events": OUTPUTS})
    }
}

/// The session of the process that writes before and after.
struct Counter(Rc<Cell<u64>>);

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Counter {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        let SessionEvent::Output(output) = event else {
            panic!("{event:?}");
        };
        self.0.set(self.0.get() + 1);
        assert_eq!(output.seq, self.0.get());
    }
}

/// Waits until a session has heard so much.
async fn hear(heard: &Cell<u64>, outputs: u64) {
    let all = async {
        while heard.get() < outputs {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, all).await.expect("all is delivered");
}

/// How much of this process is resident, and how much was at most since [`forget_peak`], in bytes.
fn resident() -> Option<[usize; 2]> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let read = |name: &str| -> Option<usize> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib << 10)
    };
    Some([read("VmRSS:")?, read("VmHWM:")?])
}

fn forget_peak() -> Option<()> {
    fs::write("/proc/self/clear_refs", "5").ok()
}

/// Measures a read.
async fn measure<T>(read: impl Future<Output = T>) -> (T, Cost) {
    let before = forget_peak().and_then(|()| resident());
    let begun = Instant::now();
    let read = timeout(PATIENCE, read).await.expect("an answer");
    let wall = begun.elapsed();
    let peak = before
        .zip(resident())
        .map(|([before, _], [_, peak])| peak.saturating_sub(before));
    (read, Cost { wall, peak })
}

fn path(size: usize) -> String {
    format!("/{size}")
}

fn execmux(size: usize, url: &str) -> Cost {
    System::new().block_on(async {
        let mux = Mux::connect(Config::new(url)).await.unwrap();
        let heard = Rc::<Cell<u64>>::default();
        let mut session = None;
        Counter::create(|context| {
            session = Some(Session::in_context(context));
            Counter(heard.clone())
        });
        mux.register("p0", session.unwrap()).await.unwrap();
        mux.call(Flood).await.unwrap();
        hear(&heard, OUTPUTS).await;
        let (file, cost) = measure(mux.read_file(path(size))).await;
        assert_eq!(file.unwrap().content.len(), size);
        mux.call(Flood).await.unwrap();
        hear(&heard, 2 * OUTPUTS).await;
        cost
    })
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "dataBase64", deserialize_with = "baseline::decode_base64")]
    content: Vec<u8>,
}

fn baseline(size: usize, port: u16) -> Option<Cost> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = baseline::Client::connect(port).await;
        let mut events = client.register("p0");
        let mut heard = 0;
        let mut hear = async || {
            let answer = client.call::<Value>(Flood::NAME, Flood::params()).await;
            answer.unwrap();
            for _ in 0..OUTPUTS {
                heard += 1;
                match timeout(PATIENCE, events.recv()).await.unwrap() {
                    Some(baseline::Event::Output(output)) => assert_eq!(output.seq, heard),
                    other => panic!("{other:?}"),
                }
            }
        };
        hear().await;
        let params = json!({"path": format!("file://{}", path(size))});
        let read = client.call::<File>("fs/readFile", params);
        let (file, cost) = measure(read).await;
        let Ok(file) = file else {
            return None;
        };
        assert_eq!(file.content.len(), size);
        hear().await;
        Some(cost)
    })
}

fn floor(size: usize, url: &str) -> Cost {
    System::new().block_on(async {
        let mut floor = Floor::connect(url).await;
        let flood = format!(
            r#"{{"id":1,"method":"{}","params":{}}}"#,
            Flood::NAME,
            Flood::params()
        );
        floor.send(flood.clone()).await;
        floor.count(OUTPUTS + 1).await;
        let read = format!(
            r#"{{"id":2,"method":"fs/readFile","params":{{"path":"file://{}"}}}}"#,
            path(size)
        );
        let read = async {
            floor.send(read).await;
            floor.count(1).await;
        };
        let ((), cost) = measure(read).await;
        floor.send(flood).await;
        let counted = timeout(PATIENCE, floor.count(OUTPUTS + 1)).await;
        counted.expect("all is delivered");
        cost
    })
}

/// Has a process of its own take a measurement; `None` if the file is refused.
fn start(contender: &str, mib: usize, load: &Load) -> Option<Cost> {
    let bench = std::env::current_exe().unwrap();
    let run = Command::new(bench)
        .args([
            ARGUMENT,
            contender,
            &mib.to_string(),
            &load.port().to_string(),
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{contender} fails: {said}");
    serde_json::from_slice(&run.stdout).unwrap()
}

/// Takes a measurement, and says what it was.
fn read(mut arguments: impl Iterator<Item = String>) {
    let contender = arguments.next().unwrap();
    let mib: usize = arguments.next().unwrap().parse().unwrap();
    let port = arguments.next().unwrap().parse().unwrap();
    let (size, url) = (mib * MIB, format!("ws://127.0.0.1:{port}/"));
    let cost = match contender.as_str() {
        "execmux" => Some(execmux(size, &url)),
        "baseline" => baseline(size, port),
        _ => Some(floor(size, &url)),
    };
    println!("{}", serde_json::to_string(&cost).unwrap());
}

fn main() {
    if load::is_wanted() {
        return load::serve();
    }
    let mut arguments = std::env::args().skip(1);
    if arguments.next().is_some_and(|first| first == ARGUMENT) {
        return read(arguments);
    }
    let options = Options::from_arguments();
    // Before this thread is pinned: the load would inherit its one core.
    let load = Load::start();
    // Those that measure inherit it.
    measure::pin(1);
    let mut rows = Vec::new();
    for mib in options.choose(0, if options.is_test { &SIZES[..1] } else { &SIZES }) {
        // The load makes the file when it is first asked for it.
        start("floor", mib, &load);
        let samples = sample_in_turns(&options, &CONTENDERS, mib, &load);
        let medians: Vec<_> = samples
            .into_iter()
            .map(|(name, samples)| (name, median_cost(&samples)))
            .collect();
        let wall = |wanted: &str| {
            let (_, cost) = medians.iter().find(|(name, _)| *name == wanted)?;
            Some(cost.as_ref()?.wall.as_secs_f64())
        };
        for (name, cost) in &medians {
            let mut row = vec![mib.to_string(), (*name).to_owned()];
            match cost {
                Some(Cost { wall: took, peak }) => {
                    let took = took.as_secs_f64();
                    row.push(format!("{:.1}", took * 1e3));
                    row.push(peak.map_or_else(
                        || "-".to_owned(),
                        |peak| format!("{:.2}", peak as f64 / (mib * MIB) as f64),
                    ));
                    row.push(ratio(took, wall("baseline")));
                    row.push(ratio(took, wall("floor")));
                }
                None => row.extend(["refused", "-", "-", "-"].map(str::to_owned)),
            }
            rows.push(row);
        }
    }
    print_table(
        &["MiB", "", "ms", "peak/size", "time/baseline", "time/floor"],
        &rows,
    );
}

/// Takes the median of the times, and the largest of the peaks; `None` if the file was refused.
fn median_cost(samples: &[Option<Cost>]) -> Option<Cost> {
    let samples = samples.iter().copied().collect::<Option<Vec<_>>>()?;
    Some(Cost {
        wall: median(samples.iter().map(|cost| cost.wall)),
        peak: samples.iter().filter_map(|cost| cost.peak).max(),
    })
}
