//! Slow sessions on a server that holds their processes back: nothing is lost, and nobody else waits.

#![cfg(all(unix, feature = "server"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use execmux::{
    CallError, Config, FailureReason, Mux, Overflow, ProcessId, Session, SessionEvent,
    SessionEvents, Shutdown, Start, StartProcess,
    protocol::ReadProcess,
    server::{Server, ServerConfig},
};
use futures_util::FutureExt as _;
use serde_json::json;
use support::{
    checked,
    peer::{self, Peer},
    proxy::Proxy,
    recorder::Recorder,
    soon,
};

/// More than the server retains, than a session may hold, and than sockets and pipes do.
const BYTES: usize = 24_000_000;

const BUDGET: usize = 64 << 10;

async fn serve() -> Server {
    Server::start(ServerConfig::new()).await.unwrap()
}

async fn connect(url: String) -> Mux {
    soon(Mux::connect(Config::new(url))).await.unwrap()
}

fn shell(id: &ProcessId, script: &str) -> StartProcess {
    StartProcess::new(id, ["sh", "-c", script], "/").env("PATH", "/usr/bin:/bin")
}

fn flooding() -> String {
    format!("seq 1 9999999 | head -c {BYTES}")
}

/// Starts a process that writes numbered lines, for a session that consumes when the test does.
async fn flood(mux: &Mux, change: impl FnOnce(Session) -> Session) -> (ProcessId, SessionEvents) {
    let id = ProcessId::unique();
    let (session, events) = Session::stream();
    let script = format!("{}; exit 3", flooding());
    let session = change(session.budget(BUDGET));
    soon(mux.start(shell(&id, &script), session)).await.unwrap();
    (id, events)
}

/// Checks that the next lines are those that `seq` writes.
#[derive(Default)]
struct Numbers {
    line: Vec<u8>,
    last: u64,
    bytes: usize,
}

impl Numbers {
    fn check(&mut self, chunk: &[u8]) {
        self.bytes += chunk.len();
        for &byte in chunk {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let number: u64 = String::from_utf8_lossy(&self.line).parse().unwrap();
            assert_eq!(number, self.last + 1);
            self.last = number;
            self.line.clear();
        }
    }
}

/// Consumes what comes until so many bytes have.
async fn consume(events: &mut SessionEvents, numbers: &mut Numbers, bytes: usize) {
    while numbers.bytes < bytes {
        match soon(events.recv()).await {
            Some(SessionEvent::Output(output)) => numbers.check(&output.chunk),
            // Its place may be before the last output.
            Some(SessionEvent::Exited(_)) => {}
            other => panic!("{other:?} after {} bytes", numbers.bytes),
        }
    }
}

/// Consumes the rest, which has to be all.
async fn consume_all(mut events: SessionEvents, mut numbers: Numbers) {
    consume(&mut events, &mut numbers, BYTES).await;
    assert_eq!(numbers.bytes, BYTES);
    let closed = loop {
        match soon(events.recv()).await {
            Some(SessionEvent::Exited(_)) => {}
            Some(SessionEvent::Closed(closed)) => break closed,
            other => panic!("{other:?}"),
        }
    };
    assert!(closed.complete);
    assert_eq!(closed.exit_code, Some(3));
}

/// Lets another session have a lot, for which the first must not be in the way.
async fn exchange(mux: &Mux) {
    let (session, recording) = Recorder::start_session();
    let script = format!("head -c {BYTES} /dev/zero");
    soon(mux.start(shell(&ProcessId::unique(), &script), session))
        .await
        .unwrap();
    let record = recording.record().await;
    assert_eq!((record.stdout.len(), record.exit_code()), (BYTES, 0));
}

async fn is_running(mux: &Mux, id: &ProcessId) -> bool {
    let read = soon(mux.read(ReadProcess::new(id).max_bytes(1))).await;
    !read.unwrap().exited
}

#[actix::test]
async fn p5_a_slow_session_loses_nothing_and_stalls_nobody() {
    checked(async {
        let server = serve().await;
        let mux = connect(server.url()).await;
        for overflow in [Overflow::Heal, Overflow::Block] {
            let (id, mut events) = flood(&mux, |session| session.overflow(overflow)).await;
            let mut numbers = Numbers::default();
            exchange(&mux).await;
            assert!(is_running(&mux, &id).await, "it has to wait");
            consume(&mut events, &mut numbers, BYTES / 4).await;
            exchange(&mux).await;
            assert!(is_running(&mux, &id).await, "it has to wait again");
            consume_all(events, numbers).await;
        }
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn p6_a_process_is_held_back_over_lost_connections() {
    checked(async {
        let server = serve().await;
        let proxy = Proxy::start(server.address()).await;
        let mux = connect(proxy.url()).await;
        let (id, mut events) = flood(&mux, |session| session).await;
        let mut numbers = Numbers::default();
        for round in 1..=20 {
            consume(&mut events, &mut numbers, BYTES / 25 * round).await;
            match round % 3 {
                // What is consumed is told, and may be lost.
                0 => proxy.cut(),
                1 => proxy.cut_after(round * 1999),
                _ => proxy.reset(),
            }
        }
        assert!(is_running(&mux, &id).await);
        consume_all(events, numbers).await;
        assert!(proxy.cuts() >= 20);
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

/// Waits until the process has ended without having been consumed.
async fn runs_on(mux: &Mux, id: &ProcessId) {
    soon(async {
        let mut seq = 0;
        loop {
            let read = ReadProcess::new(id)
                .after_seq(seq)
                .wait(Duration::from_secs(1));
            let read = mux.read(read).await.unwrap();
            seq = read.next_seq - 1;
            if read.closed {
                return;
            }
        }
    })
    .await;
}

#[actix::test]
async fn p5_what_a_session_keeps_leaves_it_the_rest_of_its_budget() {
    checked(async {
        let server = serve().await;
        let mux = connect(server.url()).await;
        // The second keeps more than the server does.
        for (budget, keep) in [(256 << 10, 200 << 10), (6 << 20, 4 << 20)] {
            let (_, mut events) = flood(&mux, |session| session.budget(budget)).await;
            let mut numbers = Numbers::default();
            let mut kept = Vec::new();
            while numbers.bytes < keep {
                if let Some(SessionEvent::Output(output)) = soon(events.recv()).await {
                    numbers.check(&output.chunk);
                    kept.push(output);
                }
            }
            consume_all(events, numbers).await;
            drop(kept);
        }
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn p5_a_small_budget_lets_as_much_wait_as_it_has_room_for() {
    checked(async {
        let server = serve().await;
        let mux = connect(server.url()).await;
        let id = ProcessId::unique();
        let (session, mut events) = Session::stream();
        // Each line is an output of its own, as `read` waits for what is written next.
        let process = StartProcess::new(&id, ["cat"], "/").tty(true);
        soon(mux.start(process, session.budget(4096)))
            .await
            .unwrap();
        let mut kept = Vec::new();
        for _ in 0..8 {
            soon(mux.write(&id, "x")).await.unwrap();
            kept.push(soon(events.recv()).await.unwrap());
        }
        drop((kept, events));
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn p5_a_process_that_loses_its_session_runs_on() {
    checked(async {
        let server = serve().await;
        let proxy = Proxy::start(server.address()).await;
        let mux = connect(proxy.url()).await;
        // Where it stops.
        let (id, mut events) = flood(&mux, |session| session).await;
        consume(&mut events, &mut Numbers::default(), BUDGET).await;
        soon(mux.unregister(&id)).await.unwrap();
        runs_on(&mux, &id).await;
        // Over a connection that is lost, noticed or not.
        for is_half_open in [false, true] {
            let (id, mut events) = flood(&mux, |session| session).await;
            consume(&mut events, &mut Numbers::default(), BUDGET).await;
            if is_half_open {
                proxy.half_open();
            }
            soon(mux.unregister(&id)).await.unwrap();
            proxy.cut();
            proxy.release();
            runs_on(&mux, &id).await;
        }
        // Before it is started.
        let id = ProcessId::unique();
        let (session, _events) = Session::stream();
        let start = Start::new(shell(&id, &flooding()), session.budget(BUDGET));
        let started = mux.router().send(start);
        let unregistered = mux.unregister(&id);
        let (started, unregistered) = soon(async { tokio::join!(started, unregistered) }).await;
        started.unwrap().unwrap();
        assert_eq!(unregistered, Some(0));
        runs_on(&mux, &id).await;
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn p5_what_a_process_leaves_behind_runs_on_when_its_session_stops() {
    checked(async {
        let server = serve().await;
        let mux = connect(server.url()).await;
        let id = ProcessId::unique();
        let (session, mut events) = Session::stream();
        let script = format!("(seq 1 9999999 | head -c {BYTES}) & exit 3");
        let session = session.budget(BUDGET);
        soon(mux.start(shell(&id, &script), session)).await.unwrap();
        let mut kept = Vec::new();
        loop {
            match soon(events.recv()).await.unwrap() {
                SessionEvent::Exited(_) => break,
                event => kept.push(event),
            }
        }
        drop(events);
        runs_on(&mux, &id).await;
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn p5_a_process_that_is_left_to_the_server_runs_on() {
    checked(async {
        let server = serve().await;
        let mux = connect(server.url()).await;
        let file = std::env::temp_dir().join(format!("done-{}", ProcessId::unique()));
        let (session, events) = Session::stream();
        let script = format!("{}; : >'{}'", flooding(), file.display());
        let process = shell(&ProcessId::unique(), &script);
        soon(mux.start(process, session.budget(BUDGET)))
            .await
            .unwrap();
        soon(mux.router().send(Shutdown::detach()))
            .await
            .unwrap()
            .unwrap();
        soon(async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        std::fs::remove_file(file).unwrap();
        drop((events, mux));
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn p5_a_process_is_not_held_back_for_a_session_that_would_not_have_it() {
    checked(async {
        let server = serve().await;
        let mux = connect(server.url()).await;
        let (id, mut events) = flood(&mux, |session| session.hold_back(false)).await;
        runs_on(&mux, &id).await;
        let mut has_gap = false;
        loop {
            match soon(events.recv()).await.unwrap() {
                SessionEvent::Gap(_) => has_gap = true,
                SessionEvent::Closed(closed) => break assert!(!closed.complete),
                _ => {}
            }
        }
        assert!(has_gap);

        let (_, mut events) = flood(&mux, |session| session.overflow(Overflow::Fail)).await;
        let mut kept = Vec::new();
        let failed = loop {
            match soon(events.recv()).await.unwrap() {
                SessionEvent::Failed(failed) => break failed,
                event => kept.push(event),
            }
        };
        assert!(matches!(failed.reason, FailureReason::Overflow { .. }));
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

/// Starts a process on a scripted server, whose output nobody consumes: more than half of what the session may hold.
async fn start_unconsumed(mux: &Mux, peer: &mut Peer, overflow: Overflow) -> SessionEvents {
    let (session, events) = Session::stream();
    let started = mux.start(shell(&"p".into(), "cat"), session.overflow(overflow));
    let answering = async {
        let request = peer.expect("process/start").await;
        peer.answer(&request, json!({"processId": "p"})).await;
    };
    soon(async { tokio::join!(started, answering) })
        .await
        .0
        .unwrap();
    for seq in 1..=12 {
        peer.output("p", seq, "stdout", &"x".repeat(1000)).await;
    }
    events
}

#[actix::test]
async fn p7_a_write_that_waits_for_its_own_output_to_be_consumed_says_so() {
    tokio::time::pause();
    for overflow in [Overflow::Heal, Overflow::Block] {
        checked(async {
            let mut config = peer::config();
            config.session_budget = 12_000;
            config.max_queued_stdin_bytes = 1000;
            config.write_timeout = Duration::MAX;
            // Sooner than the connection is taken for silent.
            config.call_timeout = Duration::from_secs(5);
            // One server holds the process back; before the other, the session stops the socket.
            let holds_back = overflow == Overflow::Heal;
            let capabilities = json!({"processOutputWindow": holds_back});
            let environment = json!({"cwd": null, "capabilities": capabilities});
            let initialized = json!({"sessionId": "5e5510", "environmentInfo": environment});
            let (mux, mut peer, _dials) = Peer::connect_resumable(config, initialized).await;
            let mut events = start_unconsumed(&mux, &mut peer, overflow).await;
            let write = |size: usize| {
                let mux = mux.clone();
                actix::spawn(async move { mux.write("p", vec![b'x'; size]).await })
            };
            let (first, second) = (write(10), write(2000));
            peer.expect("process/write").await;
            // The queue of writes is full.
            match soon(write(2000)).await.unwrap() {
                Err(CallError::OutputNotConsumed {
                    unconsumed, source, ..
                }) if unconsumed > 5000 && matches!(*source, CallError::Overloaded { .. }) => {}
                other => panic!("{other:?}"),
            }
            // The process does not read, and so the server does not answer.
            for written in [first, second] {
                match soon(written).await.unwrap() {
                    Err(error @ CallError::OutputNotConsumed { .. }) => {
                        let source = std::error::Error::source(&error).unwrap();
                        let source = source.downcast_ref::<Box<CallError>>().unwrap();
                        assert!(
                            matches!(**source, CallError::DeadlineExceeded { .. }),
                            "{source:?}"
                        );
                        assert!(error.to_string().contains("consume its output"), "{error}");
                    }
                    other => panic!("{other:?}"),
                }
            }
            // Where the output is consumed, it is not to blame.
            while events.recv().now_or_never().is_some() {}
            tokio::task::yield_now().await;
            while events.recv().now_or_never().is_some() {}
            let last = soon(write(10)).await.unwrap();
            assert!(
                matches!(last, Err(CallError::DeadlineExceeded { .. })),
                "{last:?}"
            );
            drop(events);
        })
        .await;
    }
}
