//! A connection that is lost and resumed: what becomes of its calls, its sessions, and those who watch.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::VecDeque, ops::RangeInclusive, pin::pin, time::Duration};

use actix::{Actor, Addr, Context, Handler};
use actix_http::ws;
use execmux::{
    Call, CallError, Config, ConnectError, DisconnectReason, FailureReason, LinkState, Mux,
    Overflow, ResumeError, Session, SessionEvent, Shutdown, StartError, Started,
    protocol::{StartProcess, WriteStatus, WriteStdin, Written},
};
use futures_util::poll;
use serde_json::{Value, json};
use support::{
    checked,
    peer::{Dials, Peer, Request, config, frame},
    recorder::{Recorder, Tap},
    soon, told,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
    time::{Instant, pause},
};

/// As servers from 0.150 on introduce themselves.
fn new_server() -> Value {
    json!({"sessionId": "5e5510", "environmentInfo": {"cwd": null}})
}

async fn connect(config: Config) -> (Mux, Peer, Dials) {
    Peer::connect_resumable(config, new_server()).await
}

/// What a server answers to a read that finds nothing new.
fn nothing_new(next_seq: u64) -> Value {
    json!({"chunks": [], "nextSeq": next_seq, "exited": false, "exitCode": null, "closed": false})
}

fn call<T: 'static>(mux: &Mux, call: impl AsyncFnOnce(Mux) -> T + 'static) -> JoinHandle<T> {
    let mux = mux.clone();
    actix::spawn(async move { call(mux).await })
}

/// Tells its test of the link.
struct Watcher(UnboundedSender<LinkState>);

impl Actor for Watcher {
    type Context = Context<Self>;
}

impl Handler<LinkState> for Watcher {
    type Result = ();

    fn handle(&mut self, state: LinkState, _: &mut Self::Context) {
        // The test may have seen enough.
        let _gone = self.0.send(state);
    }
}

#[actix::test]
async fn p6_a_watcher_that_nobody_else_holds_hears_of_the_link_until_it_is_closed() {
    checked(async {
        pause();
        let (mux, peer, mut dials) = connect(config()).await;
        let (sender, mut states) = unbounded_channel();
        // The connection alone holds the actor, as `Mux::start` does with a session.
        mux.subscribe(Watcher(sender).start().recipient()).await;
        assert!(matches!(soon(states.recv()).await, Some(LinkState::Open)));
        drop(peer);
        let recovering = soon(states.recv()).await;
        assert!(
            matches!(recovering, Some(LinkState::Recovering { .. })),
            "{recovering:?}"
        );
        let peer = dials.resume().await;
        assert!(matches!(soon(states.recv()).await, Some(LinkState::Open)));
        drop(peer);
        drop(dials);
        let last = soon(async {
            loop {
                match states.recv().await {
                    Some(LinkState::Recovering { .. }) => {}
                    state => break state,
                }
            }
        })
        .await;
        assert!(matches!(last, Some(LinkState::Closed(_))), "{last:?}");
        // Then it is let go: its sender goes with the actor.
        assert!(soon(states.recv()).await.is_none());
    })
    .await;
}

/// An actor that holds a `Mux` and watches its link.
struct Keeper {
    _mux: Mux,
    states: UnboundedSender<LinkState>,
}

impl Actor for Keeper {
    type Context = Context<Self>;
}

impl Handler<LinkState> for Keeper {
    type Result = ();

    fn handle(&mut self, state: LinkState, _: &mut Self::Context) {
        // The test may have seen enough.
        let _gone = self.states.send(state);
    }
}

#[actix::test]
async fn p6_a_watcher_given_weakly_does_not_keep_its_own_mux_open() {
    for as_address in [true, false] {
        checked(async {
            let (mux, mut peer, _dials) = connect(config()).await;
            let (sender, mut states) = unbounded_channel();
            let keeper = Keeper {
                _mux: mux.clone(),
                states: sender,
            }
            .start();
            if as_address {
                mux.subscribe(keeper.downgrade()).await;
            } else {
                mux.subscribe(keeper.downgrade().recipient()).await;
            }
            drop(mux);
            assert!(matches!(soon(states.recv()).await, Some(LinkState::Open)));
            drop(keeper);
            assert!(soon(states.recv()).await.is_none(), "the actor has ended");
            // A goodbye, and nothing else: the last `Mux` is gone.
            assert!(peer.rest().await > 0);
        })
        .await;
    }
}

async fn watch(mux: &Mux) -> (Addr<Watcher>, UnboundedReceiver<LinkState>) {
    let (sender, states) = unbounded_channel();
    let watcher = Watcher(sender).start();
    mux.subscribe(watcher.clone().recipient()).await;
    (watcher, states)
}

#[actix::test]
async fn p6_sessions_carry_on_and_hear_of_it_only_if_they_want_to() {
    checked(async {
    let (mux, mut peer, mut dials) = connect(config()).await;
    let (deaf, deaf_recording) = Recorder::start_session();
    let (curious, mut curious_events) = Tap::start_session();
    mux.register("deaf", deaf).await.unwrap();
    let curious = Session::from(curious.recipient()).link_events(true);
    mux.register("curious", curious).await.unwrap();
    for id in ["deaf", "curious"] {
        peer.output(id, 1, "stdout", "a").await;
    }
    assert!(matches!(
        curious_events.next().await,
        Some(SessionEvent::Output(_))
    ));
    drop(peer);
    let mut peer = dials.resume().await;
    assert!(matches!(
        curious_events.next().await,
        Some(SessionEvent::Interrupted(_))
    ));
    assert!(matches!(
        curious_events.next().await,
        Some(SessionEvent::Resumed(_))
    ));
    for _ in 0..2 {
        let read = peer.expect("process/read").await;
        assert_eq!(read.params["afterSeq"], 1);
        assert_eq!(read.params.get("maxBytes"), None);
        let chunks = json!([{"seq": 2, "stream": "stdout", "chunk": "Yg=="}]);
        let missed =
            json!({"chunks": chunks, "nextSeq": 5, "exited": true, "exitCode": 3, "closed": true});
        peer.answer(&read, missed).await;
    }
    let record = deaf_recording.record().await;
    assert_eq!((&record.stdout[..], record.exit_code()), (&b"ab"[..], 3));
    assert_eq!(
        (record.last_seq, record.gaps, record.link_events),
        (4, 0, 0)
    );
    for seq in 2..=4 {
        match curious_events.next().await.unwrap() {
            SessionEvent::Output(output) => assert_eq!(output.seq, seq),
            SessionEvent::Exited(exited) => assert_eq!((exited.seq, exited.exit_code), (seq, 3)),
            SessionEvent::Closed(closed) => assert!(closed.seq == seq && closed.complete),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(mux.statistics().await.unwrap().resumes, 1);
    })
    .await;
}

#[actix::test]
async fn p3_a_session_is_not_behind_with_what_was_missed_and_what_comes_with_it() {
    for others_lag in [false, true] {
        checked(async {
            let (mux, mut peer, mut dials) = connect(config()).await;
            let (other, others) = Recorder::start_session();
            let (session, recording) = Recorder::start_session();
            // Two outputs fit in.
            let session = session.budget(2 * 129).overflow(Overflow::Fail);
            mux.register("p", session).await.unwrap();
            peer.output("p", 1, "stdout", "a").await;
            drop(peer);
            let mut peer = dials.resume().await;
            let read = peer.expect("process/read").await;
            let retained = |seqs: RangeInclusive<u64>| {
                let next_seq = seqs.end() + 1;
                let chunks: Vec<_> = seqs
                    .map(|seq| json!({"seq": seq, "stream": "stdout", "chunk": "Yg=="}))
                    .collect();
                json!({
                    "chunks": chunks, "nextSeq": next_seq,
                    "exited": false, "exitCode": null, "closed": false,
                })
            };
            let output = json!({"processId": "p", "seq": 4, "stream": "stdout", "chunk": "Yg=="});
            let mut said = Vec::new();
            if others_lag {
                mux.register("other", other.budget(2 * 129)).await.unwrap();
                said.extend([1, 2, 3].map(|seq| {
                let params =
                    json!({"processId": "other", "seq": seq, "stream": "stdout", "chunk": "Yg=="});
                json!({"method": "process/output", "params": params})
            }));
            }
            said.push(json!({"id": read.id, "result": retained(2..=3)}));
            said.push(json!({"method": "process/output", "params": output}));
            peer.send_at_once(said).await;
            // What does not fit is read again.
            let read = peer.expect("process/read").await;
            let after_seq = read.params["afterSeq"].as_u64().unwrap();
            peer.answer(&read, retained(after_seq + 1..=4)).await;
            peer.exited("p", 5, 0).await;
            peer.closed("p", 6).await;
            let record = recording.record().await;
            assert!(record.failed.is_none(), "{:?}", record.failed);
            assert_eq!((&record.stdout[..], record.exit_code()), (&b"abbb"[..], 0));
            drop(others);
        })
        .await;
    }
}

#[actix::test]
async fn p6_whoever_subscribes_is_told_of_every_change() {
    checked(async {
        pause();
        let (mux, peer, mut dials) = connect(config()).await;
        let (_watcher, mut states) = watch(&mux).await;
        let mut next = async || soon(states.recv()).await.unwrap();
        assert!(matches!(next().await, LinkState::Open));
        let cut = Instant::now();
        drop(peer);
        for expected in 0..3 {
            match next().await {
                LinkState::Recovering {
                    since, attempts, ..
                } => {
                    assert_eq!(since, cut.into_std());
                    assert_eq!(attempts, expected);
                }
                other => panic!("{other:?}"),
            }
            if expected < 2 {
                drop(dials.next().await);
            }
        }
        let peer = dials.resume().await;
        assert!(matches!(next().await, LinkState::Open));
        drop(peer);
        assert!(matches!(
            next().await,
            LinkState::Recovering { attempts: 0, .. }
        ));
        let mut peer = dials.next().await;
        let initialize = peer.initialize_to_resume().await;
        peer.reject(&initialize, -32600, "unknown session id 5e5510")
            .await;
        match next().await {
            LinkState::Closed(DisconnectReason::NotResumed {
                lost,
                why: ResumeError::SessionUnknown,
            }) => assert!(matches!(*lost, DisconnectReason::PeerClosed { .. })),
            other => panic!("{other:?}"),
        }
        let (_watcher, mut states) = watch(&mux).await;
        assert!(matches!(states.recv().await, Some(LinkState::Closed(_))));
    })
    .await;
}

#[actix::test]
async fn p6_a_session_that_is_still_attached_is_tried_again_until_it_is_free() {
    checked(async {
        pause();
        let (mux, peer, mut dials) = connect(config()).await;
        drop(peer);
        for (code, message) in [
            (
                -32010,
                "session 5e5510 is already attached to another connection",
            ),
            (
                -32600,
                "session 5e5510 is already attached to another connection",
            ),
        ] {
            let mut peer = dials.next().await;
            let initialize = peer.initialize_to_resume().await;
            peer.reject(&initialize, code, message).await;
        }
        let _peer = dials.resume().await;
        while mux.statistics().await.unwrap().resumes == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[actix::test]
async fn p6_a_server_that_still_holds_the_lost_link_is_asked_for_minutes_and_subscribers_know_why()
{
    checked(async {
        pause();
        let (mux, peer, mut dials) = connect(config()).await;
        let (session, recording) = Recorder::start_session();
        mux.register("p", session).await.unwrap();
        let (_watcher, mut states) = watch(&mux).await;
        let begun = Instant::now();
        drop(peer);
        // Nearly five minutes, of a server whose window is 30 s.
        while begun.elapsed() < Duration::from_secs(290) {
            let mut peer = dials.next().await;
            let initialize = peer.initialize_to_resume().await;
            peer.reject(&initialize, -32010, "session 5e5510 is already attached")
                .await;
        }
        let mut peer = dials.resume().await;
        let mut attached = 0;
        assert!(matches!(states.recv().await, Some(LinkState::Open)));
        loop {
            match soon(states.recv()).await.unwrap() {
                LinkState::Recovering {
                    attempts,
                    lost: DisconnectReason::PeerClosed { .. },
                    last_failure,
                    ..
                } => {
                    assert_eq!(attempts, attached);
                    match last_failure.as_deref() {
                        None => assert_eq!(attempts, 0),
                        Some(ConnectError::StillAttached { .. }) => {}
                        Some(other) => panic!("{other:?}"),
                    }
                    attached += 1;
                }
                LinkState::Open => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(attached > 100, "{attached}");
        let read = peer.expect("process/read").await;
        let missed =
            json!({"chunks": [], "nextSeq": 3, "exited": true, "exitCode": 3, "closed": true});
        peer.answer(&read, missed).await;
        assert_eq!(recording.record().await.exit_code(), 3);
    })
    .await;
}

#[actix::test]
async fn p6_a_server_that_never_lets_go_of_the_lost_link_is_given_up() {
    checked(async {
        for (attached_timeout, resume_timeout, expected) in [
            (Duration::from_secs(100), Duration::MAX, 100),
            (Duration::from_secs(50), Duration::MAX, 50),
            // Never before the window is over.
            (Duration::ZERO, Duration::MAX, 30),
            (Duration::from_secs(300), Duration::from_secs(4), 4),
        ] {
            pause();
            let mut config = config();
            config.attached_timeout = attached_timeout;
            config.resume_timeout = resume_timeout;
            let (mux, peer, mut dials) = connect(config).await;
            let (session, recording) = Recorder::start_session();
            mux.register("p", session).await.unwrap();
            let begun = Instant::now();
            drop(peer);
            actix::spawn(async move {
                loop {
                    let mut peer = dials.next().await;
                    let initialize = peer.initialize_to_resume().await;
                    peer.reject(&initialize, -32600, "session 5e5510 is already attached")
                        .await;
                }
            });
            let failed = recording.record().await.failed.unwrap();
            match failed.reason {
                FailureReason::Disconnected(DisconnectReason::NotResumed {
                    why: ResumeError::WindowPassed { last, .. },
                    ..
                }) => assert!(matches!(*last, ConnectError::StillAttached { .. })),
                other => panic!("{other:?}"),
            }
            let elapsed = begun.elapsed();
            assert!(elapsed <= Duration::from_secs(expected), "{elapsed:?}");
            assert!(elapsed > Duration::from_secs(expected - 1), "{elapsed:?}");
            tokio::time::resume();
        }
    })
    .await;
}

#[actix::test]
async fn p6_a_silent_link_is_lost_after_half_of_the_window_at_the_latest() {
    let told = |window: u64| json!({"cwd": null, "sessionWindowMs": window});
    let newest = json!({"cwd": null, "capabilities": {"fsWatchMissing": true}});
    for (environment, silence, expected) in [
        (json!({"cwd": null}), 15, 15_000),
        (json!({"cwd": null}), 60, 15_000),
        (newest, 60, 40_000),
        (told(20_000), 15, 10_000),
        (told(20_000), 3, 3_000),
        (told(u64::MAX), 15, 15_000),
        // However short the window is, there is time for an answer.
        (told(1), 15, 1_000),
    ] {
        checked(async {
            pause();
            let mut config = config();
            config.silence_timeout = Duration::from_secs(silence);
            let initialized = json!({"sessionId": "5e5510", "environmentInfo": environment});
            let (mux, mut peer, dials) = Peer::connect_resumable(config, initialized).await;
            let (_watcher, mut states) = watch(&mux).await;
            let begun = Instant::now();
            assert!(matches!(states.recv().await, Some(LinkState::Open)));
            assert_eq!(peer.frame().await, Some(ws::Frame::Ping("".into())));
            match soon(states.recv()).await {
                Some(LinkState::Recovering {
                    lost: DisconnectReason::Silent { .. },
                    ..
                }) => {}
                other => panic!("{other:?}"),
            }
            let elapsed = begun.elapsed().as_millis();
            assert!(elapsed.abs_diff(expected) < 10, "{environment}: {elapsed}");
            drop((mux, dials));
            tokio::time::resume();
        })
        .await;
    }
}

#[actix::test]
async fn p6_a_server_before_0142_is_lost_after_half_of_its_ten_seconds() {
    checked(async {
        pause();
        let initialized = json!({"sessionId": "5e5510"});
        let (mux, mut peer, _dials) = Peer::connect_resumable(config(), initialized).await;
        let (_watcher, mut states) = watch(&mux).await;
        let begun = Instant::now();
        assert!(matches!(states.recv().await, Some(LinkState::Open)));
        assert_eq!(peer.frame().await, Some(ws::Frame::Ping("".into())));
        assert!(matches!(
            soon(states.recv()).await,
            Some(LinkState::Recovering { .. })
        ));
        assert_eq!(begun.elapsed().as_secs(), 5);
    })
    .await;
}

#[actix::test]
async fn p6_a_client_whose_session_blocks_says_that_it_is_there_and_is_not_lost() {
    checked(async {
        pause();
        let mut config = config();
        config.ping_interval = Duration::from_secs(5);
        let (mux, mut peer, _dials) = connect(config).await;
        let (tap, mut held) = Tap::start_session();
        let session = Session::from(tap.recipient());
        let session = session.budget(100).overflow(Overflow::Block);
        mux.register("p", session).await.unwrap();
        for seq in 1..=3 {
            peer.output("p", seq, "stdout", &"x".repeat(100)).await;
        }
        let kept = held.next().await.unwrap();
        let begun = Instant::now();
        // Nobody reads that.
        peer.message(ws::Message::Ping("".into())).await;
        for _ in 0..100 {
            assert_eq!(peer.frame().await, Some(ws::Frame::Pong("".into())));
        }
        assert!(begun.elapsed() >= Duration::from_secs(99 * 5));
        drop(kept);
        for seq in 2..=3 {
            match held.next().await.unwrap() {
                SessionEvent::Output(output) => assert_eq!(output.seq, seq),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(mux.statistics().await.unwrap().resumes, 0);
    })
    .await;
}

#[actix::test]
async fn p6_when_the_window_has_passed_everyone_is_told() {
    checked(async {
        for (resume_timeout, expected) in [(Duration::MAX, 30), (Duration::from_secs(4), 4)] {
            pause();
            let mut config = config();
            config.resume_timeout = resume_timeout;
            let (mux, peer, mut dials) = connect(config).await;
            let (session, recording) = Recorder::start_session();
            mux.register("p", session).await.unwrap();
            let metadata = call(&mux, async |mux| {
                mux.call(
                    Call::new(execmux::protocol::ReadMetadata::new("/")).timeout(Duration::MAX),
                )
                .await
            });
            let begun = Instant::now();
            drop(peer);
            actix::spawn(async move {
                loop {
                    drop(dials.next().await);
                }
            });
            let failed = recording.record().await.failed.unwrap();
            // No attempt is worth making that would come after the end.
            let elapsed = begun.elapsed();
            assert!(elapsed <= Duration::from_secs(expected), "{elapsed:?}");
            assert!(elapsed > Duration::from_secs(expected - 3), "{elapsed:?}");
            match failed.reason {
                FailureReason::Disconnected(DisconnectReason::NotResumed {
                    why: ResumeError::WindowPassed { attempts, .. },
                    ..
                }) => assert!(attempts > 3, "{attempts}"),
                other => panic!("{other:?}"),
            }
            match metadata.await.unwrap() {
                Err(CallError::Disconnected { .. }) => {}
                other => panic!("{other:?}"),
            }
            tokio::time::resume();
        }
    })
    .await;
}

#[actix::test]
async fn p8_a_call_tells_if_any_link_has_carried_it() {
    checked(async {
        pause();
        let (mux, mut peer, mut dials) = connect(config()).await;
        let look = async |mux: Mux| mux.metadata("/").await;
        let repeated = call(&mux, look);
        peer.expect("fs/getMetadata").await;
        drop(peer);
        let mut peer = dials.next().await;
        let initialize = peer.initialize_to_resume().await;
        let unsent = call(&mux, look);
        while mux.statistics().await.unwrap().calls_in_flight < 2 {
            tokio::task::yield_now().await;
        }
        peer.reject(&initialize, -32600, "unknown session id 5e5510")
            .await;
        for (call, expected) in [(repeated, true), (unsent, false), (call(&mux, look), false)] {
            match soon(call).await.unwrap() {
                Err(error @ CallError::Disconnected { .. }) => {
                    assert_eq!(error.is_retryable(), !expected);
                    assert!(
                        matches!(error, CallError::Disconnected { sent, .. } if sent == expected)
                    );
                }
                other => panic!("{other:?}"),
            }
        }
        let (session, _recording) = Recorder::start_session();
        let late = mux.start(StartProcess::new("p", ["true"], "/"), session);
        assert!(late.await.unwrap_err().is_retryable(), "nothing was sent");
    })
    .await;
}

#[actix::test]
async fn p6_without_resume_all_ends_at_once() {
    checked(async {
        let mut never = config();
        never.resume_timeout = Duration::ZERO;
        for (config, initialized) in [
            (config(), json!({})),
            (never, json!({"sessionId": "5e5510"})),
        ] {
            let (mux, mut peer, mut dials) = Peer::connect_resumable(config, initialized).await;
            let (session, recording) = Recorder::start_session();
            mux.register("p", session).await.unwrap();
            peer.output("p", 1, "stdout", "a").await;
            drop(peer);
            let failed = recording.record().await.failed.unwrap();
            assert!(matches!(
                failed.reason,
                FailureReason::Disconnected(DisconnectReason::PeerClosed { .. })
            ));
            drop(mux);
            dials.ended().await;
        }
    })
    .await;
}

/// Calls of every kind whose answers are lost.
struct Unanswered {
    mux: Mux,
    start: JoinHandle<Result<Started, StartError>>,
    write: JoinHandle<Result<Written, CallError>>,
    write_file: JoinHandle<Result<(), CallError>>,
    others: Vec<JoinHandle<Result<(), CallError>>>,
    requests: Vec<Request>,
    dials: Dials,
}

async fn unanswered() -> Unanswered {
    let (mux, mut peer, dials) = connect(config()).await;
    let start = call(&mux, async |mux| {
        let (session, _recording) = Recorder::start_session();
        mux.start(StartProcess::new("new", ["true"], "/"), session)
            .await
    });
    let mut requests = vec![peer.expect("process/start").await];
    let write = call(&mux, async |mux| {
        let write = WriteStdin::new("p", "x").write_id("w");
        mux.call(write).await
    });
    requests.push(peer.expect("process/write").await);
    let write_file = call(&mux, async |mux| mux.write_file("/f", "x").await.map(drop));
    requests.push(peer.expect("fs/writeFile").await);
    let others = vec![
        call(&mux, async |mux| mux.metadata("/f").await.map(drop)),
        call(&mux, async |mux| mux.read_directory("/f").await.map(drop)),
        call(&mux, async |mux| mux.environment_info().await.map(drop)),
        call(&mux, async |mux| mux.terminate("p").await.map(drop)),
        call(&mux, async |mux| mux.interrupt("p").await.map(drop)),
    ];
    for _ in &others {
        requests.push(peer.request().await);
    }
    requests.sort_by_key(|request| request.id);
    drop(peer);
    Unanswered {
        mux,
        start,
        write,
        write_file,
        others,
        requests,
        dials,
    }
}

#[actix::test]
async fn p8_calls_without_an_answer_are_resolved() {
    checked(async {
    let Unanswered {
        mux,
        start,
        write,
        write_file,
        others,
        requests,
        mut dials,
    } = unanswered().await;
    match write_file.await.unwrap() {
        Err(CallError::OutcomeUnknown {
            method: "fs/writeFile",
            reason: DisconnectReason::PeerClosed { .. },
        }) => {}
        other => panic!("{other:?}"),
    }
    let mut peer = dials.resume().await;
    let mut again: Vec<Request> = Vec::new();
    for _ in 0..requests.len() - 1 {
        again.push(peer.request().await);
    }
    // The same requests, but that for the file. Control goes first.
    again.sort_by_key(|request| request.id);
    let expected = requests
        .iter()
        .filter(|request| request.method != "fs/writeFile");
    for (request, repeated) in expected.zip(&again) {
        assert_eq!(request.id, repeated.id);
        assert_eq!(request.params, repeated.params, "{}", request.method);
    }
    for request in &again {
        match request.method.as_str() {
            "process/start" => {
                peer.reject(request, -32600, "process new already exists")
                    .await;
            }
            "process/write" => peer.answer(request, json!({"status": "accepted"})).await,
            "fs/getMetadata" => {
                let metadata = json!({"isDirectory": false, "isFile": true, "createdAtMs": 0, "modifiedAtMs": 0});
                peer.answer(request, metadata).await;
            }
            "fs/readDirectory" => peer.answer(request, json!({"entries": []})).await,
            "process/terminate" => peer.answer(request, json!({"running": true})).await,
            _ => peer.answer(request, json!({})).await,
        }
    }
    // Whether it exists because of the first request, is asked.
    let read = peer.expect("process/read").await;
    assert_eq!(read.params["processId"], "new");
    peer.answer(&read, nothing_new(1)).await;
    assert_eq!(start.await.unwrap().unwrap().process_id, "new".into());
    assert_eq!(write.await.unwrap().unwrap().status, WriteStatus::Accepted);
    for other in others {
        other.await.unwrap().unwrap();
    }
    // Now that it is known to run, what it may have said is read.
    let read = peer.expect("process/read").await;
    assert_eq!(read.params["afterSeq"], 0);
    peer.answer(&read, nothing_new(1)).await;
    while mux.statistics().await.unwrap().calls_in_flight > 0 {
        tokio::task::yield_now().await;
    }
    })
    .await;
}

#[actix::test]
async fn p8_a_start_that_was_refused_both_times_is_refused() {
    checked(async {
        // The other calls end with the time that the server keeps the session.
        pause();
        let Unanswered {
            start, mut dials, ..
        } = unanswered().await;
        let mut peer = dials.resume().await;
        let start_again = loop {
            let request = peer.request().await;
            if request.method == "process/start" {
                break request;
            }
        };
        peer.reject(&start_again, -32600, "'file:///x' is invalid on 'linux'")
            .await;
        let read = loop {
            let request = peer.request().await;
            if request.method == "process/read" {
                break request;
            }
        };
        peer.reject(&read, -32600, "unknown process id new").await;
        match start.await.unwrap() {
            Err(StartError::Call(CallError::Rejected { message, .. })) => {
                assert!(message.contains("invalid"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p8_a_start_whose_fate_cannot_be_asked_any_more_may_have_been_carried_out() {
    checked(async {
        pause();
        let (mux, mut peer, mut dials) = connect(config()).await;
        let (session, _recording) = Recorder::start_session();
        let start = call(&mux, async |mux| {
            mux.start(StartProcess::new("new", ["true"], "/"), session)
                .await
        });
        peer.expect("process/start").await;
        drop(peer);
        let mut peer = dials.resume().await;
        let start_again = peer.expect("process/start").await;
        peer.reject(&start_again, -32600, "process new already exists")
            .await;
        peer.expect("process/read").await;
        // Breaks the protocol, so that nobody dials again.
        peer.bytes(b"\x81\x02[]").await;
        match soon(start).await.unwrap() {
            Err(StartError::Call(error @ CallError::Disconnected { .. })) => {
                assert!(error.to_string().contains("process/start"), "{error}");
                assert!(!error.is_retryable());
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p2_a_session_that_was_told_something_is_told_the_end_of_a_process_forgotten_meanwhile() {
    checked(async {
        pause();
        let (mux, mut peer, mut dials) = connect(config()).await;
        let (session, mut recording) = Recorder::start_session();
        let start = call(&mux, async |mux| {
            mux.start(StartProcess::new("p", ["true"], "/"), session)
                .await
        });
        peer.expect("process/start").await;
        peer.output("p", 1, "stdout", "a").await;
        recording.began().await;
        drop(peer);
        let mut peer = dials.resume().await;
        let again = peer.expect("process/start").await;
        peer.reject(&again, -32600, "process p already exists")
            .await;
        let read = peer.expect("process/read").await;
        peer.reject(&read, -32600, "unknown process id p").await;
        // The id was taken when the start was repeated, and so the process had been started.
        assert_eq!(start.await.unwrap().unwrap().process_id, "p".into());
        match recording.record().await.failed.unwrap().reason {
            FailureReason::Forgotten => {}
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p2_of_processes_that_others_start_those_heard_of_are_forgotten_and_the_others_awaited() {
    checked(async {
        pause();
        let (mux, mut peer, mut dials) = connect(config()).await;
        let (session, mut heard) = Recorder::start_session();
        mux.register("heard", session).await.unwrap();
        let (session, awaited) = Recorder::start_session();
        mux.register("awaited", session).await.unwrap();
        peer.output("heard", 1, "stdout", "a").await;
        heard.began().await;
        drop(peer);
        let mut peer = dials.resume().await;
        for _ in 0..2 {
            let read = peer.expect("process/read").await;
            peer.reject(&read, -32600, "unknown process id").await;
        }
        match heard.record().await.failed.unwrap().reason {
            FailureReason::Forgotten => {}
            other => panic!("{other:?}"),
        }
        peer.exited("awaited", 1, 7).await;
        peer.closed("awaited", 2).await;
        assert_eq!(awaited.record().await.exit_code(), 7);
    })
    .await;
}

#[actix::test]
async fn p8_writes_are_not_repeated_where_the_server_would_write_them_twice() {
    checked(async {
        // As servers from 0.120 to 0.130 introduce themselves.
        let old_server = json!({"sessionId": "5e5510"});
        let (mux, mut peer, mut dials) = Peer::connect_resumable(config(), old_server).await;
        let write = call(&mux, async |mux| mux.write("p", "x").await);
        peer.expect("process/write").await;
        let second = call(&mux, async |mux| mux.write("p", "y").await);
        tokio::task::yield_now().await;
        drop(peer);
        match write.await.unwrap() {
            Err(CallError::OutcomeUnknown { .. }) => {}
            other => panic!("{other:?}"),
        }
        // It was not sent yet.
        let mut peer = dials.resume().await;
        let write = peer.expect("process/write").await;
        assert_eq!(write.params["chunk"], "eQ==");
        peer.answer(&write, json!({"status": "accepted"})).await;
        assert_eq!(second.await.unwrap().unwrap().status, WriteStatus::Accepted);
    })
    .await;
}

#[actix::test]
async fn p8_what_is_called_because_of_the_last_answer_of_a_link_goes_over_the_next() {
    checked(async {
        let (mux, mut peer, mut dials) = connect(config()).await;
        let written = call(&mux, async |mux| {
            mux.metadata("/").await.unwrap();
            // Not made again, if it may have been carried out.
            mux.write_file("/f", "x").await
        });
        let request = peer.expect("fs/getMetadata").await;
        let metadata =
            json!({"isDirectory": true, "isFile": false, "createdAtMs": 0, "modifiedAtMs": 0});
        let answer = json!({"id": request.id, "result": metadata}).to_string();
        let mut last = frame(ws::Message::Text(answer.into()));
        last.extend(frame(ws::Message::Close(Some(
            ws::CloseCode::Restart.into(),
        ))));
        peer.bytes(&last).await;
        let mut peer = dials.resume().await;
        let request = peer.expect("fs/writeFile").await;
        peer.answer(&request, json!({})).await;
        written.await.unwrap().unwrap();
    })
    .await;
}

#[actix::test]
async fn p8_what_is_called_as_the_end_of_a_link_is_noticed_goes_over_the_next() {
    checked(async {
        let (mux, peer, mut dials) = connect(config()).await;
        drop(peer);
        // In the mailbox of the connection, before the task that reads has its turn.
        let mut written = pin!(mux.write_file("/f", "x"));
        assert!(poll!(&mut written).is_pending());
        let answered = async {
            let mut peer = dials.resume().await;
            let request = peer.expect("fs/writeFile").await;
            peer.answer(&request, json!({})).await;
            peer
        };
        let (written, _peer) = tokio::join!(written, answered);
        written.unwrap();
    })
    .await;
}

#[actix::test]
async fn p7_calls_made_while_recovering_wait_within_their_bounds() {
    checked(async {
        pause();
        let mut config = config();
        config.max_calls_in_flight = 3;
        let (mux, peer, mut dials) = connect(config).await;
        let (_watcher, mut states) = watch(&mux).await;
        drop(peer);
        while !matches!(states.recv().await, Some(LinkState::Recovering { .. })) {}
        let patient = call(&mux, async |mux| mux.write_file("/patient", "x").await);
        let hasty = call(&mux, async |mux| {
            let write = execmux::protocol::WriteFile::new("/hasty", "x");
            mux.call(Call::new(write).timeout(Duration::from_secs(2)))
                .await
        });
        let (session, recording) = Recorder::start_session();
        let start = call(&mux, async |mux| {
            mux.start(StartProcess::new("p", ["true"], "/"), session)
                .await
        });
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        match mux.metadata("/").await {
            Err(CallError::Overloaded { in_flight: 3, .. }) => {}
            other => panic!("{other:?}"),
        }
        let begun = Instant::now();
        match hasty.await.unwrap() {
            Err(CallError::DeadlineExceeded { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(begun.elapsed().as_secs(), 2);
        // The first dial has been waiting all the time. What has ended meanwhile is not sent.
        let mut peer = dials.resume().await;
        let written = peer.expect("fs/writeFile").await;
        assert!(
            written.params["path"]
                .as_str()
                .unwrap()
                .ends_with("/patient")
        );
        peer.answer(&written, json!({})).await;
        let started = peer.expect("process/start").await;
        peer.answer(&started, json!({"processId": "p"})).await;
        patient.await.unwrap().unwrap();
        start.await.unwrap().unwrap();
        peer.exited("p", 1, 0).await;
        peer.closed("p", 2).await;
        assert_eq!(recording.record().await.exit_code(), 0);
    })
    .await;
}

#[actix::test]
async fn p9_a_write_that_blocks_the_connection_is_given_up_and_the_connection_resumed() {
    checked(async {
        pause();
        let (mux, mut peer, mut dials) = connect(config()).await;
        let stuck: Vec<_> = (0..3)
            .map(|_| call(&mux, async |mux| mux.write("stuck", "x").await))
            .collect();
        let write = peer.expect("process/write").await;
        assert_eq!(write.params["processId"], "stuck");
        let behind = call(&mux, async |mux| mux.write("other", "x").await);
        let metadata = call(&mux, async |mux| mux.metadata("/").await);
        let begun = Instant::now();
        let mut probed = None;
        let mut behind_it = Vec::new();
        // Until it has waited long enough, asks whether anything is answered, and then hangs up.
        while let Some(frame) = peer.frame().await {
            match frame {
                actix_http::ws::Frame::Text(text) => {
                    let request: Value = serde_json::from_slice(&text).unwrap();
                    if request["method"] == "process/read" {
                        probed = Some(begun.elapsed().as_secs());
                    } else {
                        behind_it.push(request["method"].clone());
                    }
                }
                _ => peer.message(actix_http::ws::Message::Pong("".into())).await,
            }
        }
        assert_eq!(behind_it, ["process/write", "fs/getMetadata"]);
        assert!((10..=11).contains(&probed.unwrap()), "{probed:?}");
        assert!(
            (15..=17).contains(&begun.elapsed().as_secs()),
            "{:?}",
            begun.elapsed()
        );
        for write in stuck {
            match write.await.unwrap() {
                Err(CallError::Stuck { process_id, .. }) => assert_eq!(process_id, "stuck".into()),
                other => panic!("{other:?}"),
            }
        }
        let mut peer = dials.resume().await;
        let write = peer.expect("process/write").await;
        assert_eq!(write.params["processId"], "other");
        peer.answer(&write, json!({"status": "accepted"})).await;
        let read = peer.expect("fs/getMetadata").await;
        peer.answer(
            &read,
            json!({"isDirectory": true, "isFile": false, "createdAtMs": 0, "modifiedAtMs": 0}),
        )
        .await;
        behind.await.unwrap().unwrap();
        metadata.await.unwrap().unwrap();
        match mux.write("stuck", "again").await {
            Err(CallError::Stuck { .. }) => {}
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p9_a_server_that_takes_nothing_more_from_the_socket_is_noticed_too() {
    checked(async {
        pause();
        let (mux, mut peer, mut dials) = connect(config()).await;
        let stuck = call(&mux, async |mux| mux.write("stuck", "x").await);
        peer.expect("process/write").await;
        // More than the socket takes; the question behind it never gets through.
        let bulk = call(&mux, async |mux| {
            mux.write_file("/f", vec![0; 4 << 20]).await
        });
        let resumed = actix::spawn(async move { dials.resume().await });
        let mut seq = 0;
        while !resumed.is_finished() {
            seq += 1;
            peer.output("other", seq, "stdout", "it is there").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!((10..25).contains(&seq), "{seq} s");
        match stuck.await.unwrap() {
            Err(CallError::Stuck { .. }) => {}
            other => panic!("{other:?}"),
        }
        match bulk.await.unwrap() {
            Err(CallError::OutcomeUnknown { .. }) => {}
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p9_a_slow_write_is_left_alone_while_the_server_answers() {
    checked(async {
        pause();
        let (mux, mut peer, _dials) = connect(config()).await;
        let slow = call(&mux, async |mux| {
            let write = WriteStdin::new("slow", "x");
            mux.call(Call::new(write).timeout(Duration::from_secs(60)))
                .await
        });
        let write = peer.expect("process/write").await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(40) {
            match peer.frame().await.expect("not cut") {
                actix_http::ws::Frame::Text(text) => {
                    let request: Value = serde_json::from_slice(&text).unwrap();
                    assert_eq!(request["method"], "process/read");
                    peer.send(
                        json!({"id": request["id"], "error": {"code": -32601, "message": "?"}}),
                    )
                    .await;
                }
                _ => peer.message(actix_http::ws::Message::Pong("".into())).await,
            }
        }
        peer.answer(&write, json!({"status": "accepted"})).await;
        assert_eq!(slow.await.unwrap().unwrap().status, WriteStatus::Accepted);
    })
    .await;
}

#[actix::test]
async fn p9_control_calls_overtake_what_waits() {
    checked(async {
        let (mux, mut peer, _dials) = connect(config()).await;
        let bulk: Vec<_> = (0..20)
            .map(|_| {
                call(&mux, async |mux| {
                    mux.write_file("/f", vec![0; 1 << 20]).await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        let terminate = call(&mux, async |mux| mux.terminate("p").await);
        let mut overtaken = 0;
        loop {
            let request = peer.request().await;
            if request.method == "process/terminate" {
                break;
            }
            overtaken += 1;
        }
        assert!(overtaken <= 2, "{overtaken} were written before it");
        for call in bulk {
            call.abort();
        }
        terminate.abort();
    })
    .await;
}

#[actix::test]
async fn p14_a_shutdown_while_recovering_ends_it() {
    checked(async {
        pause();
        let (mux, peer, mut dials) = connect(config()).await;
        let (session, recording) = Recorder::start_session();
        mux.register("p", session).await.unwrap();
        drop(peer);
        let unanswered = dials.next().await;
        soon(mux.router().send(Shutdown::detach()))
            .await
            .unwrap()
            .unwrap();
        match recording.record().await.failed.unwrap().reason {
            FailureReason::Disconnected(DisconnectReason::Closed) => {}
            other => panic!("{other:?}"),
        }
        drop(unanswered);
        drop(mux);
        dials.ended().await;
    })
    .await;
}

#[actix::test]
async fn p14_dropping_the_last_handle_while_recovering_ends_it() {
    checked(async {
        pause();
        let (mux, peer, mut dials) = connect(config()).await;
        drop(peer);
        let unanswered = dials.next().await;
        drop(mux);
        dials.ended().await;
        drop(unanswered);
    })
    .await;
}

#[actix::test]
async fn p13_an_orphan_is_terminated_when_the_connection_is_there_again() {
    checked(async {
        pause();
        let (mux, peer, mut dials) = connect(config()).await;
        let (session, mut events) = Tap::start_session();
        mux.register("p", Session::from(session.downgrade().recipient()))
            .await
            .unwrap();
        drop(peer);
        let mut resumed = dials.next().await;
        drop(session);
        assert!(events.next().await.is_none());
        let initialize = resumed.initialize_to_resume().await;
        resumed
            .answer(&initialize, json!({"sessionId": "5e5510"}))
            .await;
        assert_eq!(resumed.json().await["method"], "initialized");
        // What it has missed may be asked for before it is noticed that nobody wants it.
        let terminate = loop {
            let request = resumed.request().await;
            if request.method != "process/read" {
                break request;
            }
        };
        assert_eq!(terminate.method, "process/terminate");
        assert_eq!(terminate.params["processId"], "p");
    })
    .await;
}

#[actix::test]
async fn p11_the_session_id_is_in_no_error_text() {
    checked(async {
        pause();
        let mut config = config();
        config.resume_timeout = Duration::from_secs(1);
        let (mux, peer, mut dials) = connect(config).await;
        let (session, recording) = Recorder::start_session();
        mux.register("p", session).await.unwrap();
        drop(peer);
        actix::spawn(async move {
            loop {
                let mut peer = dials.next().await;
                let initialize = peer.initialize_to_resume().await;
                let attached = "session 5e5510 is already attached to another connection";
                peer.reject(&initialize, -32010, attached).await;
            }
        });
        let failed = recording.record().await.failed.unwrap();
        let (text, debug) = (told(&failed.reason), format!("{failed:?}"));
        assert!(text.contains("is already attached"), "{text}");
        assert!(
            !text.contains("5e5510") && !debug.contains("5e5510"),
            "{debug}"
        );
    })
    .await;
}

#[actix::test]
async fn p6_a_server_that_begins_another_session_has_not_resumed() {
    checked(async {
        let (mux, peer, mut dials) = connect(config()).await;
        let (session, recording) = Recorder::start_session();
        mux.register("p", session).await.unwrap();
        drop(peer);
        let mut peer = dials.next().await;
        let initialize = peer.initialize_to_resume().await;
        peer.answer(&initialize, json!({"sessionId": "another"}))
            .await;
        match recording.record().await.failed.unwrap().reason {
            FailureReason::Disconnected(DisconnectReason::NotResumed {
                why: ResumeError::Refused(_),
                ..
            }) => {}
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p9_a_dead_network_is_not_taken_for_a_process_that_does_not_read() {
    checked(async {
        pause();
        let (mux, mut peer, mut dials) = connect(config()).await;
        let write = call(&mux, async |mux| {
            let write = WriteStdin::new("p", "x").write_id("w");
            mux.call(Call::new(write).timeout(Duration::from_secs(300)))
                .await
        });
        peer.expect("process/write").await;
        // Says nothing more, not even to pings, until the client gives it up.
        let begun = Instant::now();
        while peer.frame().await.is_some() {}
        assert!(begun.elapsed().as_secs() >= 15, "{:?}", begun.elapsed());
        let mut peer = dials.resume().await;
        let again = peer.expect("process/write").await;
        assert_eq!(again.params["writeId"], "w");
        peer.answer(&again, json!({"status": "accepted"})).await;
        assert_eq!(write.await.unwrap().unwrap().status, WriteStatus::Accepted);
    })
    .await;
}

#[actix::test]
async fn p8_a_write_whose_caller_has_gone_does_not_hold_up_the_next_ones() {
    checked(async {
        pause();
        let (mux, mut peer, mut dials) = connect(config()).await;
        let first = call(&mux, async |mux| mux.write("p", "x").await);
        peer.expect("process/write").await;
        first.abort();
        // Looked for once a second; then only the queue knows of the write.
        while mux.statistics().await.unwrap().calls_in_flight > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let second = call(&mux, async |mux| mux.write("p", "y").await);
        tokio::task::yield_now().await;
        drop(peer);
        let mut peer = dials.resume().await;
        let write = peer.expect("process/write").await;
        assert_eq!(write.params["chunk"], "eQ==");
        peer.answer(&write, json!({"status": "accepted"})).await;
        assert_eq!(second.await.unwrap().unwrap().status, WriteStatus::Accepted);
    })
    .await;
}

#[actix::test]
async fn p9_no_more_than_32_starts_are_unanswered_over_cuts_too() {
    checked(async {
        let (mux, mut peer, mut dials) = connect(config()).await;
        let mut starts = Vec::new();
        let mut recordings = Vec::new();
        for n in 0..200 {
            let (session, recording) = Recorder::start_session();
            recordings.push(recording);
            starts.push(call(&mux, async move |mux| {
                let process = StartProcess::new(format!("p{n}"), ["true"], "/");
                mux.start(process, session).await
            }));
        }
        let mut unanswered = VecDeque::new();
        for _ in 0..32 {
            unanswered.push_back(peer.expect("process/start").await);
        }
        // What is asked otherwise does not wait for a start, and no 33rd comes before it.
        let terminate = call(&mux, async |mux| mux.terminate("other").await);
        let request = peer.expect("process/terminate").await;
        peer.answer(&request, json!({"running": false})).await;
        terminate.await.unwrap().unwrap();
        let status = call(&mux, async |mux| mux.environment_info().await.map(drop));
        let request = peer.expect("environment/info").await;
        peer.answer(&request, json!({})).await;
        status.await.unwrap().unwrap();

        for answered in 0..200 {
            if answered == 100 {
                // The same are asked for again, and are as many.
                drop(peer);
                peer = dials.resume().await;
                let mut again = VecDeque::new();
                while again.len() < 32 {
                    let request = peer.request().await;
                    match request.method.as_str() {
                        "process/start" => again.push_back(request),
                        "process/read" => peer.answer(&request, nothing_new(1)).await,
                        other => panic!("{other}"),
                    }
                }
                let ids = |requests: &VecDeque<Request>| -> Vec<_> {
                    requests.iter().map(|request| request.id).collect()
                };
                assert_eq!(ids(&again), ids(&unanswered));
                unanswered = again;
            }
            let request = unanswered.pop_front().unwrap();
            let id = request.params["processId"].as_str().unwrap().to_owned();
            peer.answer(&request, json!({"processId": id})).await;
            if answered + 32 < 200 {
                loop {
                    let request = peer.request().await;
                    match request.method.as_str() {
                        "process/start" => break unanswered.push_back(request),
                        "process/read" => peer.answer(&request, nothing_new(1)).await,
                        other => panic!("{other}"),
                    }
                }
            }
        }
        for start in starts {
            soon(start).await.unwrap().unwrap();
        }
        drop((mux, recordings));
    })
    .await;
}

#[actix::test]
async fn p7_a_server_that_answers_no_start_still_gets_later_ones() {
    checked(async {
        pause();
        let mut config = config();
        config.max_starts_in_flight = 2;
        config.ping_interval = Duration::MAX;
        config.silence_timeout = Duration::MAX;
        let (mux, mut peer) = Peer::connect(config).await;
        let begun = Instant::now();
        let start = async |mux: Mux, id: &'static str, seconds: u64| {
            let process = StartProcess::new(id, ["true"], "/");
            let start = Call::new(process).timeout(Duration::from_secs(seconds));
            mux.call(start).await
        };
        // They are told soon that there is no answer, but the server may still be at them.
        let first = call(&mux, async move |mux| start(mux, "a", 5).await);
        let second = call(&mux, async move |mux| start(mux, "b", 5).await);
        for id in ["a", "b"] {
            assert_eq!(peer.expect("process/start").await.params["processId"], id);
        }
        let given_up = call(&mux, async move |mux| start(mux, "c", 1).await);
        let dropped = call(&mux, async move |mux| start(mux, "d", 100).await);
        let third = call(&mux, async move |mux| start(mux, "e", 100).await);
        for unanswered in [first, second, given_up] {
            assert!(matches!(
                soon(unanswered).await.unwrap(),
                Err(CallError::DeadlineExceeded { .. })
            ));
        }
        dropped.abort();
        let request = peer.expect("process/start").await;
        assert_eq!(request.params["processId"], "e");
        let elapsed = begun.elapsed().as_secs();
        assert!((10..13).contains(&elapsed), "{elapsed}");
        peer.answer(&request, json!({"processId": "e"})).await;
        soon(third).await.unwrap().unwrap();
    })
    .await;
}
