//! Lost connections to real exec-servers of three versions, behind a proxy that loses them.
//!
//! `tests/install-servers.sh` installs the servers; without them the tests say that they are
//! skipped, or fail if `EXECMUX_REQUIRE_SERVERS` is set. `EXECMUX_CUTS` says how often the connection of many processes is
//! cut, 100 times if it does not.

#![allow(clippy::unwrap_used)]

mod support;

use std::{cell::Cell, net::SocketAddr, path::Path, rc::Rc, time::Duration};

use actix::{Actor, Addr, Context, Handler};
use execmux::{
    CallError, Config, FailureReason, LinkState, Mux, ProcessId, RegisterError, ShutdownError,
    StartError, Stream,
    protocol::{StartProcess, WriteStatus},
};
use support::{
    exec_server::{EMBEDDED, ExecServer, scenarios},
    history::{Checker, Fate, History, Progress, Watch, Writes, writer},
    proxy::Proxy,
    soon,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::yield_now,
    time::sleep,
};

scenarios! {
    p6_fifty_processes_lose_nothing_over_a_hundred_cuts,
    p5_output_that_left_the_window_is_declared,
    p6_a_session_that_is_still_attached_is_resumed_when_it_is_free,
    p6_a_restarted_server_ends_every_session,
    p8_writes_arrive_once_and_in_order_over_cuts,
    p9_a_wedged_tty_is_unwedged,
}

async fn p6_fifty_processes_lose_nothing_over_a_hundred_cuts(server: ExecServer) {
    const PROCESSES: usize = 50;
    let cuts = std::env::var("EXECMUX_CUTS").map_or(100, |cuts| cuts.parse().unwrap());
    let (proxy, mux, mut links) = connect(&server, |_| {}).await;
    let progress = Progress::new();
    let mut watches = Vec::new();
    for n in 0..PROCESSES {
        let program = format!(
            r#"do {{
                last = there("finish-{group}"); both(last ? 200 : 40); if (!last) nap(0.3)
            }} while (!last); tell("count-{n}"); exit {n}"#,
            group = n % 2,
        );
        let checker = match n % 3 {
            0 => Checker::stamps().link_events(),
            _ => Checker::stamps(),
        };
        watches.push(start(&mux, writing(&server, &program), checker, &progress).await);
    }

    for round in 0..cuts {
        proxy.slice(if round % 10 == 7 { 500 } else { usize::MAX });
        match round % 5 {
            // As soon as the connection is open, while it is catching up.
            0 => proxy.cut(),
            // Mostly within a frame.
            1 => proxy.cut_after(1 + (round as usize * 977) % 20_000),
            2 => {
                progress.more(100).await;
                proxy.reset();
            }
            // And once more within the handshake.
            3 => {
                progress.more(100).await;
                proxy.cut();
                proxy.cut_after(60);
            }
            _ => {
                progress.more(100).await;
                proxy.cut();
            }
        }
        links.resumed().await;
    }
    proxy.slice(usize::MAX);

    // One half ends over more cuts.
    touch(&server.directory.join("finish-0"));
    for _ in 0..5 {
        progress.more(20).await;
        proxy.cut();
        links.resumed().await;
    }
    // The other half while there is no connection.
    proxy.refuse(true);
    proxy.cut();
    touch(&server.directory.join("finish-1"));
    for n in (1..PROCESSES).step_by(2) {
        written(&server.directory.join(format!("count-{n}"))).await;
    }
    proxy.refuse(false);

    for (n, watch) in watches.into_iter().enumerate() {
        let report = watch.finished().await;
        let lines = count(&server.directory.join(format!("count-{n}")));
        report.assert_complete(&[(Stream::Stdout, lines), (Stream::Stderr, lines)]);
        assert_eq!(report.exit_code, Some(n as i32));
        assert_eq!(report.interrupted > 0, n % 3 == 0, "{report:?}");
    }
    let statistics = soon(mux.statistics()).await.unwrap();
    assert!(statistics.resumes > cuts, "{statistics:?}");
    assert!(proxy.cuts() as u64 > cuts);
    println!("{} cuts, {} resumes", proxy.cuts(), statistics.resumes);
    end(mux).await;
}

async fn p5_output_that_left_the_window_is_declared(server: ExecServer) {
    let (proxy, mux, mut links) = connect(&server, |_| {}).await;
    let progress = Progress::new();
    // Four times what the server keeps, or more. One process ends with it, the other goes on.
    let away = r#"lines(100); while (!there("go")) nap(0.05); lines(45000);"#;
    let ending = writing(
        &server,
        &format!(r#"{away} tell("written-ending"); exit 3"#),
    );
    // Nothing would leave the window of a server that holds them back.
    let start_unheld = async |process, checker| {
        let (session, watch) = History::start(checker, &progress);
        let started = mux.start(process, session.hold_back(false));
        soon(started).await.unwrap();
        watch
    };
    let mut ending = start_unheld(ending, Checker::stamps()).await;
    let going_on = writing(
        &server,
        &format!(
            r#"{away} tell("written-going-on");
            while (!there("back")) nap(0.05); lines(100); exit 4"#
        ),
    );
    let checker = Checker::stamps().link_events();
    let mut going_on = start_unheld(going_on, checker).await;
    ending.began().await;
    going_on.began().await;

    proxy.refuse(true);
    proxy.cut();
    links.lost().await;
    touch(&server.directory.join("go"));
    for marker in ["written-ending", "written-going-on"] {
        written(&server.directory.join(marker)).await;
    }
    proxy.refuse(false);
    // Not earlier: what it writes would push out more of what the server holds.
    going_on.line(45_100).await;
    touch(&server.directory.join("back"));

    let ending = ending.finished().await;
    let going_on = going_on.finished().await;
    for (report, lines, exit_code) in [(&ending, 45_100, 3), (&going_on, 45_200, 4)] {
        report.assert_no_undeclared_loss(&[(Stream::Stdout, lines)]);
        assert_eq!(report.exit_code, Some(exit_code));
        assert!(!report.closed.unwrap().complete);
        assert_eq!(report.gaps.len(), 1, "{report:?}");
        // All came that the server still held, but for a piece that did not fit.
        assert!(report.bytes > (1 << 20) - 8192, "{report:?}");
        assert!(!report.stdout.open_end, "{report:?}");
    }
    assert_eq!((going_on.interrupted, going_on.resumed), (1, 1));
    end(mux).await;
}

async fn p6_a_session_that_is_still_attached_is_resumed_when_it_is_free(server: ExecServer) {
    let (proxy, mux, mut links) = connect(&server, |_| {}).await;
    let progress = Progress::new();
    let program = r#"do { last = there("finish"); both(20); if (!last) nap(0.05) } while (!last);
        tell("count"); exit 5"#;
    let checker = Checker::stamps().link_events();
    let watch = start(&mux, writing(&server, program), checker, &progress).await;
    progress.more(10).await;

    let accepted = proxy.accepted();
    proxy.half_open();
    // This crate's own server gives the session to whoever resumes it, as the old connection answers no ping.
    let refusals = if server.version == EMBEDDED { 0 } else { 2 };
    links
        .until(|state| matches!(state, LinkState::Recovering { attempts, .. } if *attempts >= refusals))
        .await;
    if server.version == EMBEDDED {
        links.open().await;
    }
    assert!(proxy.accepted() >= accepted + refusals as usize);
    proxy.release();
    if server.version != EMBEDDED {
        links.open().await;
    }

    progress.more(10).await;
    touch(&server.directory.join("finish"));
    let report = watch.finished().await;
    let lines = count(&server.directory.join("count"));
    report.assert_complete(&[(Stream::Stdout, lines), (Stream::Stderr, lines)]);
    assert_eq!(report.exit_code, Some(5));
    assert_eq!((report.interrupted, report.resumed), (1, 1));
    assert_eq!(soon(mux.statistics()).await.unwrap().resumes, 1);
    end(mux).await;
}

async fn p6_a_restarted_server_ends_every_session(mut server: ExecServer) {
    let (proxy, mux, mut links) = connect(&server, |_| {}).await;
    let progress = Progress::new();
    let mut watches = Vec::new();
    for _ in 0..10 {
        let program = "while (1) { both(20); nap(0.05) }";
        let process = writing(&server, program);
        let mut watch = start(&mux, process, Checker::stamps(), &progress).await;
        watch.began().await;
        watches.push(watch);
    }

    let successor = ExecServer::start(server.version, "p6_a_successor")
        .await
        .unwrap();
    proxy.set_target(address(&successor));
    server.kill().await;

    let closed = match links.closed().await {
        LinkState::Closed(reason) => reason.to_string(),
        state => panic!("{state:?}"),
    };
    for watch in watches {
        let report = watch.finished().await;
        report.assert_sound();
        match report.failed {
            Some(FailureReason::Disconnected(reason)) => assert_eq!(reason.to_string(), closed),
            other => panic!("no success is made up: {other:?}"),
        }
        assert!(report.last_seq > 0);
        assert_eq!(report.exit_code, None);
    }
    match soon(mux.environment_info()).await {
        Err(CallError::Disconnected { reason, .. }) => assert_eq!(reason.to_string(), closed),
        answer => panic!("{answer:?}"),
    }
    let (session, watch) = History::start_session();
    match soon(mux.start(writing(&successor, "exit"), session)).await {
        Err(StartError::Register(RegisterError::Disconnected(reason))) => {
            assert_eq!(reason.to_string(), closed);
        }
        answer => panic!("{answer:?}"),
    }
    assert_eq!(watch.finished().await.events, 0);
    match soon(mux.shutdown()).await {
        Err(ShutdownError::Disconnected { processes, reason }) => {
            assert_eq!((processes, reason.to_string()), (10, closed));
        }
        answer => panic!("{answer:?}"),
    }
}

async fn p8_writes_arrive_once_and_in_order_over_cuts(server: ExecServer) {
    const WRITES: u64 = 500;
    if !server.is_at_least(142) {
        // Pipes cannot be written to, and a write cannot be repeated without writing twice.
        return;
    }
    let (proxy, mux, _links) = connect(&server, |_| {}).await;
    let process = echoing(&server);
    let id = process.process_id().clone();
    let watch = start(&mux, process, Checker::echo(), &Progress::new()).await;

    let mut writes = Writes::default();
    for n in 0..WRITES {
        let write = mux.write(&id, writes.line());
        let cut = async {
            // Before it is sent, while it is under way, or after it was answered.
            for _ in 0..n % 23 * 10 {
                yield_now().await;
            }
            match n % 20 {
                0 => proxy.cut(),
                // Its answer is lost, or that of the next.
                10 => proxy.cut_after(1 + n as usize % 50),
                _ => {}
            }
        };
        let (written, ()) = soon(async { tokio::join!(write, cut) }).await;
        assert_eq!(written.unwrap().status, WriteStatus::Accepted, "write {n}");
        writes.ended(Fate::Accepted);
    }
    soon(mux.write(&id, "end\n")).await.unwrap();

    let report = watch.finished().await;
    report.assert_complete(&[(Stream::Stdout, WRITES)]);
    report.assert_writes(Stream::Stdout, &writes);
    assert_eq!(report.exit_code, Some(7));
    assert!(soon(mux.statistics()).await.unwrap().resumes >= WRITES / 20);
    end(mux).await;
}

async fn p9_a_wedged_tty_is_unwedged(server: ExecServer) {
    let (_proxy, mux, _links) = connect(&server, |config| {
        config.write_timeout = Duration::from_secs(1);
        config.probe_timeout = Duration::from_secs(1);
    })
    .await;
    let progress = Progress::new();
    let stuck = shell(&server, "exec sleep 600").tty(true);
    let stuck_id = stuck.process_id().clone();
    let stuck = start(&mux, stuck, Checker::anything(), &Progress::new()).await;
    let lively = writing(&server, "while (1) { both(20); nap(0.05) }");
    let lively_id = lively.process_id().clone();
    let mut lively = start(&mux, lively, Checker::stamps(), &progress).await;
    lively.began().await;

    // Others go on all the time.
    let ended = Rc::new(Cell::new(false));
    let calls = actix::spawn({
        let (mux, ended, directory) = (mux.clone(), ended.clone(), server.directory.clone());
        async move {
            let mut calls = 0;
            while !ended.get() {
                assert!(soon(mux.metadata(&directory)).await.unwrap().is_directory);
                calls += 1;
            }
            calls
        }
    });
    let echo = echoing(&server);
    let writes = actix::spawn({
        let (mux, ended) = (mux.clone(), ended.clone());
        let writable = server.is_at_least(142);
        async move {
            if !writable {
                return;
            }
            let id = echo.process_id().clone();
            let watch = start(&mux, echo, Checker::echo(), &Progress::new()).await;
            let mut writes = Writes::default();
            while !ended.get() {
                let written = soon(mux.write(&id, writes.line())).await.unwrap();
                assert_eq!(written.status, WriteStatus::Accepted);
                writes.ended(Fate::Accepted);
            }
            soon(mux.write(&id, "end\n")).await.unwrap();
            let report = watch.finished().await;
            report.assert_complete(&[(Stream::Stdout, writes.count())]);
            report.assert_writes(Stream::Stdout, &writes);
        }
    });

    // A terminal takes no more once it holds a line that nobody reads.
    let chunk = "a line that nobody reads\n".repeat(164);
    let mut accepted = 0;
    let error = loop {
        match soon(mux.write(&stuck_id, chunk.clone())).await {
            Ok(written) => assert_eq!(written.status, WriteStatus::Accepted),
            Err(error) => break error,
        }
        accepted += 1;
        assert!(accepted < 10_000, "the server takes what nobody reads");
    };
    match error {
        CallError::Stuck { process_id, .. } => assert_eq!(process_id, stuck_id),
        CallError::OutcomeUnknown { .. } => {}
        CallError::DeadlineExceeded { .. } if server.version == EMBEDDED => {}
        error => panic!("{error}"),
    }
    // Some wait at the server.
    assert!(accepted >= 100, "{accepted}");

    progress.more(100).await;
    ended.set(true);
    assert!(soon(calls).await.unwrap() > 0);
    soon(writes).await.unwrap();
    for (id, watch) in [(lively_id, lively), (stuck_id, stuck)] {
        assert!(soon(mux.terminate(&id)).await.unwrap().running);
        let report = watch.finished().await;
        report.assert_sound();
        assert!(report.closed.unwrap().complete, "{report:?}");
    }
    // The crate's own server has nobody else wait for that terminal: there is nothing to be freed by another connection.
    let resumes = soon(mux.statistics()).await.unwrap().resumes;
    assert_eq!(resumes > 0, server.version != EMBEDDED, "{resumes}");
    end(mux).await;
}

/// Connects through a proxy, and watches what becomes of the connection.
async fn connect(server: &ExecServer, options: impl FnOnce(&mut Config)) -> (Proxy, Mux, Links) {
    let proxy = Proxy::start(address(server)).await;
    let mut config = Config::new(proxy.url());
    options(&mut config);
    let mux = soon(Mux::connect(config)).await.unwrap();
    let links = Links::of(&mux).await;
    (proxy, mux, links)
}

fn address(server: &ExecServer) -> SocketAddr {
    server.url.strip_prefix("ws://").unwrap().parse().unwrap()
}

/// Ends it all, when nothing waits for an answer any more.
async fn end(mux: Mux) {
    let idle = async {
        while mux.statistics().await.unwrap().calls_in_flight > 0 {
            yield_now().await;
        }
    };
    soon(idle).await;
    soon(mux.shutdown()).await.unwrap();
    assert_eq!(soon(mux.statistics()).await.unwrap().calls_in_flight, 0);
}

fn shell(server: &ExecServer, script: &str) -> StartProcess {
    StartProcess::new(ProcessId::unique(), ["sh", "-c", script], &server.directory)
        .env("PATH", "/usr/bin:/bin")
}

/// Writes stamped lines: see [`writer`].
fn writing(server: &ExecServer, program: &str) -> StartProcess {
    shell(server, &writer(program))
}

/// Repeats each line that is written to it, up to one that says `end`.
fn echoing(server: &ExecServer) -> StartProcess {
    let script = r#"while IFS= read -r line; do
            if [ "$line" = end ]; then exit 7; fi
            printf '%s\n' "$line"
        done"#;
    shell(server, script).pipe_stdin(true)
}

async fn start(mux: &Mux, process: StartProcess, checker: Checker, all: &Progress) -> Watch {
    let (session, watch) = History::start(checker, all);
    soon(mux.start(process, session)).await.unwrap();
    watch
}

/// Makes the file that a process waits for.
fn touch(file: &Path) {
    std::fs::write(file, "").unwrap();
}

/// Waits for the file that a process makes.
async fn written(file: &Path) {
    let there = async {
        while !file.exists() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon(there).await;
}

/// What a process has put into a file before it ended.
fn count(file: &Path) -> u64 {
    let count = std::fs::read_to_string(file).unwrap();
    count.trim().parse().unwrap()
}

/// What becomes of a connection, in order.
struct Links {
    states: UnboundedReceiver<LinkState>,
    _subscriber: Addr<Subscriber>,
}

struct Subscriber(UnboundedSender<LinkState>);

impl Links {
    async fn of(mux: &Mux) -> Self {
        let (sender, states) = unbounded_channel();
        let subscriber = Subscriber(sender).start();
        mux.subscribe(subscriber.clone().recipient()).await;
        Links {
            states,
            _subscriber: subscriber,
        }
    }

    /// Waits until it has been lost, and is open again.
    async fn resumed(&mut self) {
        self.lost().await;
        self.open().await;
    }

    async fn lost(&mut self) {
        self.until(|state| matches!(state, LinkState::Recovering { .. }))
            .await;
    }

    async fn open(&mut self) {
        self.until(|state| matches!(state, LinkState::Open)).await;
    }

    async fn closed(&mut self) -> LinkState {
        self.until(|state| matches!(state, LinkState::Closed(_)))
            .await
    }

    async fn until(&mut self, wanted: impl Fn(&LinkState) -> bool) -> LinkState {
        loop {
            let state = soon(self.states.recv()).await.expect("a state");
            if wanted(&state) {
                return state;
            }
            assert!(!matches!(state, LinkState::Closed(_)), "{state:?}");
        }
    }
}

impl Actor for Subscriber {
    type Context = Context<Self>;
}

impl Handler<LinkState> for Subscriber {
    type Result = ();

    fn handle(&mut self, state: LinkState, _: &mut Self::Context) {
        // The test may have seen enough.
        let _gone = self.0.send(state);
    }
}
