//! How long until all sessions are told that the connection is lost?
//!
//! The load drops its socket on request. Measured is the time from that request to the last session that
//! was told, and from the first to the last: what lies before the first is the way there and back.
//!
//! `execmux` is this crate, with an actor to each session, in whose context it is; `messages` the same with
//! a recipient; `baseline` the design it came from, with a task to each.
//!
//! `cargo bench --bench disconnect -- [--test] [--rounds N] [SESSIONS] [CONTENDER...]`
#![allow(missing_docs, clippy::unwrap_used)]

mod baseline;
mod load;
mod measure;

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{Actor, Context, Handler, System};
use execmux::{
    Call, Config, Method, Mux, Session, SessionEvent,
    protocol::{Done, InvalidRequest, Params},
};
use serde_json::{Value, json};
use tokio::{runtime, sync::Notify, task::LocalSet, time::timeout};

use self::{
    load::Load,
    measure::{Contender, Options, median, print_table, ratio, sample_in_turns},
};

const SESSIONS: [usize; 3] = [1_000, 10_000, 100_000];

/// A net, never the end of a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

const CONTENDERS: [Contender<usize, Told>; 3] = [
    Contender {
        name: "execmux",
        measure: |sessions, load| execmux(sessions, load, Listener::in_context),
    },
    Contender {
        name: "messages",
        measure: |sessions, load| execmux(sessions, load, Listener::with_messages),
    },
    Contender {
        name: "baseline",
        measure: baseline,
    },
];

/// How long it took.
#[derive(Clone, Copy)]
struct Told {
    /// From the request to the last session.
    all: Duration,
    /// From the first session to the last.
    spread: Duration,
}

/// Asks the load to drop the socket.
struct Drop;

impl Method for Drop {
    const NAME: &'static str = "bench/drop";
    type Response = Done;

    fn write_params(&self, _: &mut Params<'_>) -> Result<(), InvalidRequest> {
        Ok(())
    }
}

/// How many sessions are still to be told. They run on one thread.
struct Untold {
    left: Cell<usize>,
    first: Cell<Option<Instant>>,
    all: Notify,
}

impl Untold {
    fn new(sessions: usize) -> Rc<Self> {
        Rc::new(Untold {
            left: sessions.into(),
            first: Cell::new(None),
            all: Notify::new(),
        })
    }

    fn count(&self) {
        if self.first.get().is_none() {
            self.first.set(Some(Instant::now()));
        }
        self.left
            .set(self.left.get().checked_sub(1).expect("one end each"));
        if self.left.get() == 0 {
            self.all.notify_one();
        }
    }

    /// Waits until all have been told after a request that was `begun`.
    async fn wait(&self, begun: Instant) -> Told {
        let told = timeout(PATIENCE, self.all.notified()).await;
        told.unwrap_or_else(|_| panic!("{} were not told", self.left.get()));
        Told {
            all: begun.elapsed(),
            spread: self.first.get().unwrap().elapsed(),
        }
    }
}

/// A session that waits for its end.
struct Listener(Rc<Untold>);

impl Listener {
    fn with_messages(untold: Rc<Untold>) -> Session {
        Listener(untold).start().recipient().into()
    }

    fn in_context(untold: Rc<Untold>) -> Session {
        let mut session = None;
        Listener::create(|context| {
            session = Some(Session::in_context(context));
            Listener(untold)
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
            SessionEvent::Failed(_) => self.0.count(),
            other => panic!("{other:?}"),
        }
    }
}

/// Lets all that was started have its first turn before the clock runs.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

fn execmux(sessions: usize, load: &Load, make: fn(Rc<Untold>) -> Session) -> Told {
    System::new().block_on(async {
        let mut config = Config::new(load.url());
        config.resume_timeout = Duration::ZERO;
        let mux = Mux::connect(config).await.unwrap();
        let untold = Untold::new(sessions);
        for n in 0..sessions {
            let session = make(untold.clone());
            mux.register(format!("p{n}"), session).await.unwrap();
        }
        settle().await;
        let begun = Instant::now();
        mux.connection().do_send(Call::new(Drop));
        untold.wait(begun).await
    })
}

fn baseline(sessions: usize, load: &Load) -> Told {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let client = baseline::Client::connect(load.port()).await;
        let untold = Untold::new(sessions);
        for mut events in client.register_all((0..sessions).map(|n| format!("p{n}"))) {
            let untold = untold.clone();
            tokio::task::spawn_local(async move {
                match events.recv().await {
                    Some(baseline::Event::Failed(_)) => untold.count(),
                    other => panic!("{other:?}"),
                }
            });
        }
        settle().await;
        let begun = Instant::now();
        let (_lost, told) = tokio::join!(
            client.call::<Value>(Drop::NAME, json!({})),
            untold.wait(begun)
        );
        told
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
    for sessions in options.choose(0, &SESSIONS) {
        let sessions = options.scale(sessions as u64) as usize;
        let samples = sample_in_turns(&options, &CONTENDERS, sessions, &load);
        let medians: Vec<_> = samples
            .into_iter()
            .map(|(name, samples)| {
                let all = median(samples.iter().map(|told| told.all));
                let spread = median(samples.iter().map(|told| told.spread));
                (name, Told { all, spread })
            })
            .collect();
        let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
        let baseline = medians.iter().find(|(name, _)| *name == "baseline");
        let baseline = baseline.map(|(_, told)| millis(told.all));
        for (name, Told { all, spread }) in &medians {
            rows.push(vec![
                sessions.to_string(),
                (*name).to_owned(),
                format!("{:.2}", millis(*all)),
                format!("{:.2}", millis(*spread)),
                measure::micros_each(*all, sessions as u64),
                ratio(millis(*all), baseline),
            ]);
        }
    }
    print_table(
        &[
            "sessions",
            "",
            "all told ms",
            "first to last ms",
            "us each",
            "all/baseline",
        ],
        &rows,
    );
}
