//! Do idle sessions wake anything?
//!
//! A connection on which nothing comes, without sessions and with 10,000: how often a second its thread
//! goes to sleep, which is as often as it was woken, and how much CPU time it takes. Some 0.3 a second are
//! the bench's own clock, in all rows.
//!
//! `execmux` is this crate, with sessions in their actors' contexts; `recipients` knows them by their addresses: they
//! cannot tell when they stop, so that it looks once a second whether they have. `baseline` is the design it came from, which has no timers
//! at all.
//!
//! `cargo bench --bench idle -- [--test] [--rounds N] [SESSIONS] [CONTENDER...]`
#![allow(missing_docs, clippy::unwrap_used)]

mod baseline;
mod load;
mod measure;

use std::{fs, time::Duration};

use actix::{Actor, Context, Handler, System};
use execmux::{Config, Mux, Session, SessionEvent};
use tokio::{
    runtime,
    task::LocalSet,
    time::{Instant, sleep},
};

use self::{
    load::Load,
    measure::{Contender, Options, cpu_time, median, print_table, ratio, sample_in_turns},
};

const SESSIONS: [usize; 2] = [0, 10_000];

const CONTENDERS: [Contender<Task, Idle>; 3] = [
    Contender {
        name: "execmux",
        measure: |task, load| execmux(task, load, in_context),
    },
    Contender {
        name: "recipients",
        measure: |task, load| execmux(task, load, recipient),
    },
    Contender {
        name: "baseline",
        measure: baseline,
    },
];

#[derive(Clone, Copy)]
struct Task {
    sessions: usize,
    lasts: Duration,
}

/// What an idle connection has taken, a second.
struct Idle {
    /// `None` where the system does not tell.
    wakes: Option<f64>,
    cpu: Duration,
}

/// How often the threads of this process have gone to sleep.
fn sleeps() -> Option<u64> {
    let mut sleeps = 0;
    for thread in fs::read_dir("/proc/self/task").ok()? {
        let status = fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        sleeps += count.trim().parse::<u64>().ok()?;
    }
    Some(sleeps)
}

/// Watches this process do nothing.
async fn watch(lasts: Duration) -> Idle {
    // What came with the registrations is over.
    sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    let (before, cpu) = (sleeps(), cpu_time());
    sleep(lasts).await;
    let cpu = cpu_time() - cpu;
    let sleeps = sleeps().zip(before).map(|(after, before)| after - before);
    let seconds = begun.elapsed().as_secs_f64();
    Idle {
        // The wake that ends this is not one of the connection's.
        wakes: sleeps.map(|sleeps| sleeps.saturating_sub(1) as f64 / seconds),
        cpu: cpu.div_f64(seconds),
    }
}

/// A session that is told nothing.
struct Listener;

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Listener {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        panic!("{event:?}");
    }
}

fn in_context() -> Session {
    let mut session = None;
    Listener::create(|context| {
        session = Some(Session::in_context(context));
        Listener
    });
    session.unwrap()
}

fn recipient() -> Session {
    Listener.start().recipient().into()
}

fn execmux(task: Task, load: &Load, listen: fn() -> Session) -> Idle {
    System::new().block_on(async {
        let mux = Mux::connect(Config::new(load.url())).await.unwrap();
        for n in 0..task.sessions {
            mux.register(format!("p{n}"), listen()).await.unwrap();
        }
        let idle = watch(task.lasts).await;
        // The connection has been there all the time.
        assert!(mux.metadata("/").await.unwrap().is_directory);
        idle
    })
}

fn baseline(task: Task, load: &Load) -> Idle {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let client = baseline::Client::connect(load.port()).await;
        for mut events in client.register_all((0..task.sessions).map(|n| format!("p{n}"))) {
            tokio::task::spawn_local(async move { panic!("{:?}", events.recv().await) });
        }
        watch(task.lasts).await
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
    let lasts = if options.is_test {
        Duration::from_millis(200)
    } else {
        // Whole seconds, as timers of one second are what there is to see.
        Duration::from_secs(3)
    };
    let mut rows = Vec::new();
    for sessions in options.choose(0, &SESSIONS) {
        let task = Task { sessions, lasts };
        let samples = sample_in_turns(&options, &CONTENDERS, task, &load);
        let medians: Vec<_> = samples
            .into_iter()
            .map(|(name, samples)| {
                let mut wakes: Vec<_> = samples.iter().filter_map(|idle| idle.wakes).collect();
                wakes.sort_unstable_by(f64::total_cmp);
                let cpu = median(samples.iter().map(|idle| idle.cpu));
                (name, wakes.get(wakes.len() / 2).copied(), cpu)
            })
            .collect();
        let baseline = medians.iter().find(|(name, ..)| *name == "baseline");
        let baseline = baseline.map(|(.., cpu)| cpu.as_secs_f64());
        for (name, wakes, cpu) in &medians {
            rows.push(vec![
                sessions.to_string(),
                (*name).to_owned(),
                wakes.map_or_else(|| "-".to_owned(), |wakes| format!("{wakes:.1}")),
                measure::micros(*cpu),
                ratio(cpu.as_secs_f64(), baseline),
            ]);
        }
    }
    print_table(
        &["sessions", "", "wakes/s", "CPU us/s", "CPU/baseline"],
        &rows,
    );
}
