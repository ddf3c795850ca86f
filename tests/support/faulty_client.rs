//! An application over a faulty server: sessions and calls of all kinds, and the check that all of them
//! were told the truth.

mod calls;
mod consumer;

use std::{cell::RefCell, fmt::Debug, future::Future, rc::Rc, time::Duration};

use actix::{Actor as _, Addr};
use execmux::{
    CallError, Config, DisconnectReason, FailureReason, Mux, Overflow, RegisterError, Session,
    StartError, StartProcess, protocol::ReadProcess,
};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use self::{
    calls::{Fate, Made, What},
    consumer::{Consumer, End, Mode, Told},
};
use super::{
    faulty_server::{FaultyServer, Met, Plan},
    random::Random,
};

/// Nothing takes longer, in the time of the run: the longest are a call's deadline, the silence that is
/// noticed, and the time that a server keeps a session.
const BOUND: Duration = Duration::from_secs(900);

/// What a run has led to.
#[derive(Debug)]
pub struct Outcome {
    pub met: Met,
    pub faults: Vec<String>,
}

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finish {
    /// When all sessions have ended.
    Awaited,
    Shutdown,
    Dropped,
}

/// The application.
struct Client {
    mux: Mux,
    server: Rc<FaultyServer>,
    shared: Rc<RefCell<Shared>>,
    /// Whether nothing is written to processes, and many sessions block: a write that is held up has the
    /// connection cut, which would hide that nothing else gets it going.
    is_quiet: bool,
}

#[derive(Default)]
struct Shared {
    calls: Vec<Made>,
    sessions: Vec<Started>,
    faults: Vec<String>,
    /// Sessions that are left to whoever owns them.
    owned: Vec<Addr<Consumer>>,
}

/// A session, and how its start ended.
struct Started {
    told: Rc<RefCell<Told>>,
    start: Start,
}

#[derive(Debug)]
enum Start {
    UnderWay,
    Done,
    /// Nothing was started, and the session hears nothing.
    Refused,
    Late,
    Gone(DisconnectReason),
    Dropped,
}

/// Runs one seed to its end.
pub async fn run(seed: u64) -> Outcome {
    let plan = Plan::new(seed);
    let server = FaultyServer::new(plan);
    let mut random = Random::of(seed, "client");
    let connect = {
        let server = server.clone();
        move || server.clone().connect()
    };
    let config = config(&mut random);
    let silence_timeout = config.silence_timeout;
    let gives_up = config.resume_timeout < Duration::from_secs(10);
    let mux = match Mux::connect_through(config, connect).await {
        Ok(mux) => mux,
        Err(error) => {
            let mut faults = Vec::new();
            if server.plan.losses == 0 {
                faults.push(format!("not connected: {error}"));
            }
            server.met("handshake failed");
            let met = server.state().met.clone();
            return Outcome { met, faults };
        }
    };
    let finish = match random.below(100) {
        0..=9 => Finish::Shutdown,
        10..=17 => Finish::Dropped,
        _ => Finish::Awaited,
    };
    let addresses = (mux.connection().downgrade(), mux.router().downgrade());
    let client = Rc::new(Client {
        mux,
        server: server.clone(),
        shared: Rc::default(),
        is_quiet: random.chance(15),
    });
    let mut tasks = Vec::new();
    for n in 0..1 + random.below(4) {
        let random = Random::of(seed, &format!("session {n}"));
        tasks.push(actix::spawn(client.clone().session(n, random)));
    }
    for n in 0..random.below(3) {
        let random = Random::of(seed, &format!("caller {n}"));
        tasks.push(actix::spawn(client.clone().caller(n, random)));
    }
    match finish {
        Finish::Awaited => {
            for task in &mut tasks {
                client.bounded("a caller", task).await;
            }
            client.await_sessions().await;
            client.await_empty_table().await;
        }
        Finish::Shutdown => {
            sleep(random.millis(3000)).await;
            let began = Instant::now();
            // Whether all processes are known to have ended depends on the faults.
            let _outcome = client.bounded("the shutdown", client.mux.shutdown()).await;
            // Its deadline, and a connection that does not close in order gets as much again.
            if began.elapsed() > Duration::from_secs(11) {
                client.fault(format!("the shutdown took {:?}", began.elapsed()));
            }
            client.await_sessions().await;
            for task in &mut tasks {
                client.bounded("a caller", task).await;
            }
            client.await_empty_table().await;
        }
        Finish::Dropped => {
            sleep(random.millis(3000)).await;
            for task in &tasks {
                task.abort();
            }
            for task in &mut tasks {
                // It was aborted, or had ended.
                let _ended = task.await;
            }
        }
    }
    drop(tasks);
    let Client { shared, .. } = Rc::into_inner(client).expect("no task is left");
    let mut faults = Vec::new();
    if timeout(BOUND, gone(&addresses)).await.is_err() {
        faults.push("an actor is left".to_owned());
    }
    let closed = async {
        while server.state().open > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(BOUND, closed).await.is_err() {
        faults.push(format!("{} connections are open", server.state().open));
    }
    let shared = shared.take();
    let may_disconnect = !server.plan.resumes()
        || gives_up
        || was_noticed_late(&shared.sessions, &server)
        || was_given_up(silence_timeout, &server)
        || finish != Finish::Awaited;
    faults.extend(shared.faults);
    faults.extend(check_sessions(&shared.sessions, &server, may_disconnect));
    faults.extend(calls::check(&shared.calls, &server));
    for Made { what, fate } in &shared.calls {
        if let Fate::Gone(reason) = fate
            && !may_disconnect
        {
            faults.push(format!("{what:?} is gone: {reason}"));
        }
        match fate {
            Fate::Unknown => server.met("outcome unknown"),
            Fate::Late => server.met("deadline exceeded"),
            Fate::NotSent => server.met("overloaded"),
            Fate::Stuck => server.met("stuck"),
            Fate::Gone(_) => server.met("disconnected"),
            Fate::Dropped => server.met("caller gone"),
            Fate::Done | Fate::Refused => {}
        }
    }
    if !faults.is_empty() {
        // What it takes to understand it.
        let links = (0..=server.plan.losses).map(|n| server.plan.link(n));
        faults.push(format!("{:?} {:?}", server.plan, links.collect::<Vec<_>>()));
        for Started { told, start } in &shared.sessions {
            faults.push(format!("{:?}, started: {start:?}", told.borrow()));
        }
        faults.push(format!("{finish:?} {:?}", shared.calls));
    }
    let met = server.state().met.clone();
    Outcome { met, faults }
}

fn config(random: &mut Random) -> Config {
    let mut config = super::peer::config();
    config.jitter_seed = random.next();
    if random.chance(30) {
        config.call_timeout = Duration::from_secs(random.pick(&[1, 3, 8]));
    }
    if random.chance(20) {
        config.silence_timeout = Duration::from_secs(random.pick(&[2, 10]));
    }
    if random.chance(10) {
        config.max_calls_in_flight = random.pick(&[1, 3, 6]);
    }
    if random.chance(10) {
        config.max_queued_stdin_bytes = random.pick(&[300, 1000]);
    }
    if random.chance(10) {
        config.connection_budget = random.pick(&[3000, 20_000]);
    }
    if random.chance(5) {
        config.resume_timeout = random.millis(1000);
    }
    config
}

/// Waits until both actors are gone.
async fn gone(
    (connection, router): &(
        actix::WeakAddr<execmux::Connection>,
        actix::WeakAddr<execmux::Router>,
    ),
) {
    while connection.upgrade().is_some() || router.upgrade().is_some() {
        sleep(Duration::from_millis(20)).await;
    }
}

impl Client {
    fn fault(&self, fault: String) {
        self.shared.borrow_mut().faults.push(fault);
    }

    /// Bounds a wait: everything ends.
    async fn bounded<F: Future>(&self, what: &str, future: F) -> Option<F::Output> {
        let outcome = timeout(BOUND, future).await;
        if outcome.is_err() {
            self.fault(format!("{what} never ends"));
        }
        outcome.ok()
    }

    /// Awaits something, or not for long.
    async fn perhaps<F: Future>(random: &mut Random, future: F) -> Option<F::Output> {
        if random.chance(90) {
            return Some(future.await);
        }
        timeout(random.millis(30), future).await.ok()
    }

    /// One session, with its writes.
    async fn session(self: Rc<Self>, n: u64, mut random: Random) {
        sleep(random.millis(300)).await;
        let is_deaf = random.chance(8);
        let process_id = format!("{}{n}", if is_deaf { "deaf" } else { "p" });
        let budget = random.pick(&[1, 500, 3000, 10_000, 1 << 20, 1 << 20]);
        let overflow = match random.below(100) {
            0..=59 if self.is_quiet => Overflow::Block,
            0..=11 => Overflow::Block,
            12..=21 => Overflow::Fail,
            _ => Overflow::Heal,
        };
        let mode = match random.below(10) {
            0..=3 => Mode::AtOnce,
            4..=5 => Mode::Slowly(random.millis(300)),
            6..=7 => Mode::InParts(random.millis(100)),
            _ => Mode::InHeaps(1 + random.below(30) as usize),
        };
        let link_events = random.chance(30);
        let stops_after = match random.chance(4) {
            true => 1 + random.below(10),
            false => u64::MAX,
        };
        let told = Told::new(&process_id, overflow, budget, link_events);
        let told = Rc::new(RefCell::new(told));
        let consumer = Consumer::new(told.clone(), self.server.clone(), mode, stops_after).start();
        let session = if random.chance(20) {
            let recipient = consumer.downgrade().recipient();
            self.shared.borrow_mut().owned.push(consumer);
            Session::from(recipient)
        } else {
            Session::from(consumer.recipient())
        };
        let session = session
            .budget(budget)
            .overflow(overflow)
            .link_events(link_events);
        let at = {
            let mut shared = self.shared.borrow_mut();
            shared.sessions.push(Started {
                told,
                start: Start::UnderWay,
            });
            shared.sessions.len() - 1
        };
        let process = StartProcess::new(process_id.as_str(), ["x"], "/").pipe_stdin(true);
        let start = self.mux.start(process, session);
        let start = match Client::perhaps(&mut random, start).await {
            None => Start::Dropped,
            Some(Ok(_)) => Start::Done,
            Some(Err(StartError::Register(RegisterError::Disconnected(_)))) => Start::Refused,
            Some(Err(StartError::Call(error))) => match error {
                CallError::Rejected { .. }
                | CallError::Overloaded { .. }
                | CallError::DeadlineExceeded { sent: false, .. } => Start::Refused,
                CallError::DeadlineExceeded { .. } => Start::Late,
                CallError::Disconnected { reason, .. } => Start::Gone(reason),
                other => {
                    self.fault(format!("start of {process_id}: {other:?}"));
                    Start::Dropped
                }
            },
            Some(Err(other)) => {
                self.fault(format!("start of {process_id}: {other:?}"));
                Start::Dropped
            }
        };
        let is_done = matches!(start, Start::Done);
        self.shared.borrow_mut().sessions[at].start = start;
        if is_done && !self.is_quiet {
            self.write(&process_id, &mut random).await;
        }
    }

    /// Writes to a process, and perhaps ends it.
    async fn write(&self, process_id: &str, random: &mut Random) {
        let mut written = 0;
        for _ in 0..random.below(5) {
            if random.chance(50) {
                sleep(random.millis(400)).await;
            }
            let count = match random.chance(40) {
                true => 2 + random.below(7),
                false => 1,
            };
            let writes = (written..written + count).map(|n| {
                let text = format!("{process_id}:{n};");
                let write = self.mux.write(process_id, text.clone());
                let process_id = process_id.to_owned();
                let what = What::Write { process_id, text };
                let mut random = Random::of(random.next(), "write");
                async move { self.make(what, &mut random, write, Fate::of_write).await }
            });
            join_all(writes).await;
            written += count;
        }
        if random.chance(10) {
            let interrupt = self.mux.interrupt(process_id);
            let what = What::Harmless("interrupt");
            self.make(what, random, interrupt, Fate::of).await;
        }
        if random.chance(10) {
            let terminate = self.mux.terminate(process_id);
            let what = What::Harmless("terminate");
            self.make(what, random, terminate, Fate::of).await;
        }
    }

    /// Calls that have nothing to do with sessions.
    async fn caller(self: Rc<Self>, caller: u64, mut random: Random) {
        for n in 0..2 + random.below(5) {
            sleep(random.millis(400)).await;
            match random.below(6) {
                0..=2 => {
                    let refused = if random.chance(10) { "refused" } else { "" };
                    let path = format!("/{refused}{caller}-{n}");
                    let call = self.mux.write_file(&path, "content");
                    let what = What::WriteFile(path.clone());
                    self.make(what, &mut random, call, Fate::of).await;
                }
                3..=4 => {
                    let path = random.pick(&["/there", "/missing"]);
                    let call = self.mux.metadata(path);
                    let what = What::Harmless("metadata");
                    self.make(what, &mut random, call, Fate::of).await;
                }
                _ => {
                    let call = self.mux.read(ReadProcess::new("p0").after_seq(n));
                    let what = What::Harmless("read");
                    self.make(what, &mut random, call, Fate::of).await;
                }
            }
        }
    }

    /// Makes a call, and notes what becomes of it.
    async fn make<T>(
        &self,
        what: What,
        random: &mut Random,
        call: impl Future<Output = Result<T, CallError>>,
        fate: impl FnOnce(Option<Result<T, CallError>>) -> Result<Fate, String>,
    ) {
        let at = {
            let mut shared = self.shared.borrow_mut();
            // As long as it is not known better: this future may be dropped, too.
            let fate = Fate::Dropped;
            shared.calls.push(Made { what, fate });
            shared.calls.len() - 1
        };
        let outcome = Client::perhaps(random, call).await;
        match fate(outcome) {
            Ok(fate) => self.shared.borrow_mut().calls[at].fate = fate,
            Err(error) => self.fault(format!("call {at}: {error}")),
        }
    }

    /// Waits for the last event of every session that is to have one.
    async fn await_sessions(&self) {
        let sessions: Vec<_> = self
            .shared
            .borrow()
            .sessions
            .iter()
            .filter(|started| matches!(started.start, Start::Done | Start::Late | Start::Gone(_)))
            .map(|started| started.told.clone())
            .collect();
        for told in sessions {
            let ended = told.borrow().ended.clone();
            let has_ended = told.borrow().end.is_some() || told.borrow().stopped;
            if !has_ended {
                let what = format!("session of {}", told.borrow().process_id);
                self.bounded(&what, ended.notified()).await;
            }
            let (stopped, process_id) = {
                let told = told.borrow();
                (told.stopped, told.process_id.clone())
            };
            if stopped {
                self.await_termination(&process_id).await;
            }
        }
    }

    /// Waits until the process of a session that has stopped is asked to end, or has ended, unless there
    /// is no connection to do so over.
    async fn await_termination(&self, process_id: &str) {
        let asked = async {
            loop {
                {
                    let state = self.server.state();
                    let process = state.processes.get(process_id);
                    let has_ended = process.is_none_or(|process| process.exited);
                    if has_ended || state.is_over || state.terminated.contains(process_id) {
                        return;
                    }
                }
                sleep(Duration::from_millis(500)).await;
            }
        };
        let what = format!("process {process_id}, to which nobody listens,");
        self.bounded(&what, asked).await;
    }

    /// Waits until no call is in the table: those that nobody waits for end too.
    async fn await_empty_table(&self) {
        let empty = async {
            loop {
                let statistics = self.mux.statistics().await;
                if statistics.is_none_or(|statistics| statistics.calls_in_flight == 0) {
                    return;
                }
                sleep(Duration::from_millis(200)).await;
            }
        };
        self.bounded("a call in the table", empty).await;
    }
}

/// Returns true if the loss of a connection was noticed too late to resume it because of a session that blocks.
///
/// [`Overflow::Block`] says that nothing is read until such a session has consumed, and that a loss is not noticed
/// meanwhile, perhaps until it is too late. No release keeps a session for long enough to rule that out: a session of 100
/// outputs that holds each for a second takes longer than the 80 s of the newest. That this was the reason shows in the
/// times: a client that reads dials at once when a connection is lost. One that was held up dials when something was
/// consumed, or with the next check of the sessions if it was a session that stopped.
fn was_noticed_late(sessions: &[Started], server: &FaultyServer) -> bool {
    let is_blocking = |started: &Started| started.told.borrow().overflow == Overflow::Block;
    if !sessions.iter().any(is_blocking) {
        return false;
    }
    let window = server.plan.release.window().unwrap_or_default();
    let has_just_consumed = |dialled: Instant| {
        let since = dialled - Duration::from_millis(1100);
        let in_time = |at: &Instant| (since..=dialled).contains(at);
        sessions
            .iter()
            .any(|started| started.told.borrow().consumed_at.iter().any(in_time))
    };
    let state = server.state();
    state.detached_at.iter().any(|&lost| {
        let next = state.dialled_at.iter().find(|dialled| **dialled > lost);
        next.is_some_and(|&next| next - lost >= window && has_just_consumed(next))
    })
}

/// Returns true if the client was right to give up a connection that nothing went over, for good.
///
/// [`Config::silence_timeout`] is how long nothing may come, and the server stalled for as long. Where the connection can be
/// resumed, it has to be; a server without sessions ends it with the connection.
fn was_given_up(silence_timeout: Duration, server: &FaultyServer) -> bool {
    server.plan.release.window().is_none() && server.state().longest_stall >= silence_timeout
}

/// Checks that every session has ended as it should.
fn check_sessions(
    sessions: &[Started],
    server: &FaultyServer,
    may_disconnect: bool,
) -> Vec<String> {
    let mut faults = Vec::new();
    for Started { told, start } in sessions {
        let told = told.borrow();
        let id = &told.process_id;
        faults.extend(told.faults.iter().cloned());
        let mut fault = |text: &dyn Debug| faults.push(format!("session of {id}: {text:?}"));
        let starts = server.state().starts.get(id).copied().unwrap_or(0);
        let has_ended = told.end.is_some() || told.stopped;
        match start {
            Start::Done if starts != 1 => fault(&format!("started {starts} times")),
            Start::Done | Start::Late | Start::Gone(_) if !has_ended => {
                fault(&format!("no last event, started: {start:?}"));
            }
            Start::Refused if told.events > 0 || starts > 0 => {
                fault(&format!(
                    "refused, but has {} events and was started {starts} times",
                    told.events
                ));
            }
            _ if starts > 1 => fault(&format!("started {starts} times")),
            _ => {}
        }
        match (&told.end, start) {
            (Some(End::Failed(FailureReason::StartUnanswered)), Start::Done) => {
                fault(&"its start was answered, and not");
            }
            // Nobody has waited for the end of that one.
            (
                Some(End::Failed(FailureReason::Disconnected(DisconnectReason::Closed))),
                Start::Dropped,
            ) => {}
            (Some(End::Failed(FailureReason::Disconnected(reason))), _) if !may_disconnect => {
                fault(&format!("disconnected: {reason}"));
            }
            _ => {}
        }
        if let Start::Gone(reason) = start
            && !may_disconnect
        {
            fault(&format!("not started: {reason}"));
        }
        if !told.lost.is_empty() {
            server.met("gap");
        }
        if told.overflow == Overflow::Block && told.has_blocked {
            server.met("blocked by a session");
        }
        if told.stopped {
            server.met("session stopped");
        }
        match &told.end {
            Some(End::Closed { complete: true }) => server.met("closed"),
            Some(End::Closed { complete: false }) => server.met("closed, not complete"),
            Some(End::Failed(FailureReason::Disconnected(_))) => server.met("failed: disconnected"),
            Some(End::Failed(FailureReason::Overflow { .. })) => server.met("failed: overflow"),
            Some(End::Failed(FailureReason::Forgotten)) => server.met("failed: forgotten"),
            Some(End::Failed(FailureReason::StartUnanswered)) => server.met("failed: unanswered"),
            Some(End::Failed(_)) | None => {}
        }
    }
    faults
}
