//! What does a session cost?
//!
//! Registering many on one connection, one after the other, and ending them all as the load tells their
//! ends: microseconds for each. And the bytes of each while it is idle, of its actor and of what the router
//! keeps of it. Actors are made while the clock does not run, a thousand at a time.
//!
//! Where there are many, `last/first` compares what it took to register the last tenth of them with what it took for the
//! first, and `longest` is what the worst thousand took, each: nothing should grow with the number of sessions, and
//! nothing should be put off until there are many. Fewer sessions leave a smaller heap behind, which stays in the cache
//! for the next: so `register/first` compares memory too.
//!
//! `execmux` is this crate, with an actor to each session, in whose context it is; `messages` the same with
//! a recipient; `all made` the first with all actors made before the first is registered: of many, each is in no
//! cache any more when its turn comes. `baseline` the design it came from, which copies its map for each that comes or goes: it is
//! quadratic, and not asked for the most.
//!
//! Allocations are counted, which makes each a little slower, for all alike.
//!
//! `cargo bench --bench sessions -- [--test] [--rounds N] [SESSIONS] [CONTENDER...]`
#![allow(missing_docs, clippy::unwrap_used)]

mod baseline;
mod load;
mod measure;

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{Actor, Context, Handler, System};
use execmux::{
    Config, Method, Mux, Session, SessionEvent,
    protocol::{Done, InvalidRequest, Params},
};
use peak_alloc::PeakAlloc;
use serde_json::{Value, json};
use tokio::{runtime, sync::Notify, task::LocalSet, time::timeout};

use self::{
    load::Load,
    measure::{
        Contender, Options, median, micros, micros_each, print_table, ratio, sample_in_turns,
    },
};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const SESSIONS: [usize; 3] = [1_000, 10_000, 100_000];

/// The baseline would take minutes for more.
const MOST_OF_BASELINE: usize = 10_000;

/// A net, never the end of a measurement.
const PATIENCE: Duration = Duration::from_secs(120);

/// So many actors are made, and then registered.
const AT_A_TIME: usize = 1_000;

const CONTENDERS: [Contender<usize, Option<Cost>>; 4] = [
    Contender {
        name: "execmux",
        measure: |sessions, load| Some(execmux(sessions, AT_A_TIME, load, Listener::in_context)),
    },
    Contender {
        name: "messages",
        measure: |sessions, load| Some(execmux(sessions, AT_A_TIME, load, Listener::with_messages)),
    },
    Contender {
        name: "all made",
        measure: |sessions, load| Some(execmux(sessions, sessions, load, Listener::in_context)),
    },
    Contender {
        name: "baseline",
        measure: |sessions, load| (sessions <= MOST_OF_BASELINE).then(|| baseline(sessions, load)),
    },
];

/// Of all sessions together.
#[derive(Clone, Copy)]
struct Cost {
    registering: Duration,
    /// Registering the last tenth, in times of the first; and the longest that those took that were made together, for
    /// each. Unless all were.
    course: Option<(f64, Duration)>,
    ending: Duration,
    /// Of the actors, without what is kept to route to them.
    actor_bytes: usize,
    route_bytes: usize,
}

/// Asks the load to tell the ends of processes.
struct End(usize);

impl Method for End {
    const NAME: &'static str = "bench/end";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("sessions", &self.0)
    }
}

/// How many sessions are still to be told of their end. They run on one thread.
struct Unended {
    left: std::cell::Cell<usize>,
    all: Notify,
}

impl Unended {
    fn new(sessions: usize) -> Rc<Self> {
        Rc::new(Unended {
            left: sessions.into(),
            all: Notify::new(),
        })
    }

    fn count(&self) {
        self.left
            .set(self.left.get().checked_sub(1).expect("one end each"));
        if self.left.get() == 0 {
            self.all.notify_one();
        }
    }

    /// Waits until all have been told, and returns how long it took from `begun` on.
    async fn wait(&self, begun: Instant) -> Duration {
        let ended = timeout(PATIENCE, self.all.notified()).await;
        ended.unwrap_or_else(|_| panic!("{} have not ended", self.left.get()));
        begun.elapsed()
    }
}

/// A session that waits for its end.
struct Listener(Rc<Unended>);

impl Listener {
    fn with_messages(unended: Rc<Unended>) -> Session {
        Listener(unended).start().recipient().into()
    }

    fn in_context(unended: Rc<Unended>) -> Session {
        let mut session = None;
        Listener::create(|context| {
            session = Some(Session::in_context(context));
            Listener(unended)
        });
        session.unwrap()
    }
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Listener {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        match event {
            SessionEvent::Exited(_) => {}
            SessionEvent::Closed(closed) => {
                assert!(closed.complete && closed.exit_code == Some(0));
                self.0.count();
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Returns how many bytes `make` has allocated and not freed, with what it made.
async fn count_bytes<T>(make: impl Future<Output = T>) -> (T, usize) {
    let before = ALLOCATOR.current_usage();
    let made = make.await;
    (made, ALLOCATOR.current_usage().saturating_sub(before))
}

/// Lets the actors that were started have their first turn.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// What became of the time it takes to register so many, as there were more and more.
fn course(batches: &[Duration], at_a_time: usize) -> Option<(f64, Duration)> {
    let tenth = batches.len() / 10;
    let (first, last) = (batches.get(..tenth)?, batches.get(batches.len() - tenth..)?);
    if tenth == 0 {
        return None;
    }
    let [first, last] = [first, last].map(|part| median(part.iter().copied()).as_secs_f64());
    let longest = batches.iter().max()?;
    Some((last / first, *longest / at_a_time as u32))
}

fn execmux(
    sessions: usize,
    at_a_time: usize,
    load: &Load,
    make: fn(Rc<Unended>) -> Session,
) -> Cost {
    System::new().block_on(async {
        let mux = Mux::connect(Config::new(load.url())).await.unwrap();
        let unended = Unended::new(sessions);
        let mut batches = Vec::new();
        let mut actor_bytes = 0;
        let before = ALLOCATOR.current_usage();
        for first in (0..sessions).step_by(at_a_time) {
            let last = sessions.min(first + at_a_time);
            let making = async {
                let made: Vec<_> = (first..last).map(|_| make(unended.clone())).collect();
                settle().await;
                made
            };
            let (made, bytes) = count_bytes(making).await;
            actor_bytes += bytes - made.capacity() * size_of::<Session>();
            let begun = Instant::now();
            for (n, session) in (first..).zip(made) {
                mux.register(format!("p{n}"), session).await.unwrap();
            }
            batches.push(begun.elapsed());
        }
        settle().await;
        let route_bytes = ALLOCATOR.current_usage() - before - actor_bytes;
        let begun = Instant::now();
        mux.call(End(sessions)).await.unwrap();
        Cost {
            registering: batches.iter().sum(),
            course: course(&batches, at_a_time),
            ending: unended.wait(begun).await,
            actor_bytes,
            route_bytes,
        }
    })
}

fn baseline(sessions: usize, load: &Load) -> Cost {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let client = baseline::Client::connect(load.port()).await;
        let unended = Unended::new(sessions);
        let begun = Instant::now();
        let registering = async {
            let registered = (0..sessions).map(|n| client.register(&format!("p{n}")));
            let registered: Vec<_> = registered.collect();
            (begun.elapsed(), registered)
        };
        let ((registering, registered), route_bytes) = count_bytes(registering).await;
        let list_bytes =
            registered.capacity() * size_of::<tokio::sync::mpsc::Receiver<baseline::Event>>();
        // The list of receivers goes as the tasks come.
        let spawning = async {
            for mut events in registered {
                let unended = unended.clone();
                tokio::task::spawn_local(async move {
                    while let Some(event) = events.recv().await {
                        match event {
                            baseline::Event::Exited(_) => {}
                            baseline::Event::Closed(_) => unended.count(),
                            other => panic!("{other:?}"),
                        }
                    }
                });
            }
            settle().await;
        };
        let before = ALLOCATOR.current_usage() - list_bytes;
        spawning.await;
        let actor_bytes = ALLOCATOR.current_usage() - before;
        let begun = Instant::now();
        let ending: Value = client
            .call(End::NAME, json!({"sessions": sessions}))
            .await
            .unwrap();
        assert!(ending.is_object());
        Cost {
            registering,
            course: None,
            ending: unended.wait(begun).await,
            actor_bytes,
            route_bytes: route_bytes - list_bytes,
        }
    })
}

fn main() {
    if load::is_wanted() {
        return load::serve();
    }
    let options = Options::from_arguments();
    // Before this thread is pinned: the load would inherit its one core.
    let load = Load::start();
    measure::pin(1);
    let mut rows = Vec::new();
    // What each contender's first number of sessions has cost.
    let mut first: Vec<(&str, Cost)> = Vec::new();
    for sessions in options.choose(0, &SESSIONS) {
        let sessions = options.scale(sessions as u64) as usize;
        let samples = sample_in_turns(&options, &CONTENDERS, sessions, &load);
        let mut costs = Vec::new();
        for (name, samples) in samples {
            if let Some(samples) = samples.into_iter().collect::<Option<Vec<_>>>() {
                let mut courses: Vec<_> = samples.iter().filter_map(|cost| cost.course).collect();
                courses.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
                let growth = courses.get(courses.len() / 2).map(|&(growth, _)| growth);
                let longest = courses.iter().map(|&(_, longest)| longest);
                let cost = Cost {
                    course: growth.map(|growth| (growth, median(longest))),
                    registering: median(samples.iter().map(|cost| cost.registering)),
                    ending: median(samples.iter().map(|cost| cost.ending)),
                    // The same each time, but for the buffers of the connection.
                    ..samples[samples.len() - 1]
                };
                costs.push((name, cost));
            }
        }
        let find = |costs: &[(&str, Cost)], wanted: &str| {
            let found = costs.iter().find(|(name, _)| *name == wanted);
            found.map(|&(_, cost)| cost)
        };
        let baseline = find(&costs, "baseline");
        for &(name, cost) in &costs {
            let each = |duration: Duration| duration.as_secs_f64() / sessions as f64;
            let baseline =
                |duration: fn(Cost) -> Duration| baseline.map(|cost| each(duration(cost)));
            if find(&first, name).is_none() {
                // For one session, to be compared with other numbers of them.
                first.push((
                    name,
                    Cost {
                        registering: cost.registering / sessions as u32,
                        ending: cost.ending / sessions as u32,
                        ..cost
                    },
                ));
            }
            let first = |duration: fn(Cost) -> Duration| {
                find(&first, name).map(|cost| duration(cost).as_secs_f64())
            };
            rows.push(vec![
                sessions.to_string(),
                name.to_owned(),
                micros_each(cost.registering, sessions as u64),
                micros_each(cost.ending, sessions as u64),
                cost.course
                    .map_or_else(|| "-".to_owned(), |(growth, _)| format!("{growth:.2}")),
                cost.course
                    .map_or_else(|| "-".to_owned(), |(_, longest)| micros(longest)),
                (cost.actor_bytes / sessions).to_string(),
                (cost.route_bytes / sessions).to_string(),
                ratio(each(cost.registering), first(|cost| cost.registering)),
                ratio(each(cost.ending), first(|cost| cost.ending)),
                ratio(each(cost.registering), baseline(|cost| cost.registering)),
                ratio(each(cost.ending), baseline(|cost| cost.ending)),
            ]);
        }
    }
    print_table(
        &[
            "sessions",
            "",
            "register us",
            "end us",
            "last/first",
            "longest us",
            "actor bytes",
            "route bytes",
            "register/first",
            "end/first",
            "register/baseline",
            "end/baseline",
        ],
        &rows,
    );
}
