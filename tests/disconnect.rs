//! The end of a connection, however it comes: one reason, told once to everyone.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use actix_http::ws;
use execmux::{
    CallError, DisconnectReason, FailureReason, Mux, RegisterError, Session, Shutdown,
    ShutdownError, StartError,
    protocol::{ReadFile, StartProcess},
};
use futures_util::FutureExt as _;
use serde_json::json;
use support::{
    checked,
    peer::{Peer, config, frame},
    recorder::{Recorder, Recording},
    soon, told,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, pause},
};

/// A connection with three sessions, of which one has had output, and three calls that wait.
struct Busy {
    mux: Mux,
    peer: Peer,
    recordings: Vec<Recording>,
    calls: Vec<JoinHandle<Result<(), CallError>>>,
}

impl Busy {
    async fn start() -> Self {
        Busy::start_with(config()).await
    }

    async fn start_with(config: execmux::Config) -> Self {
        let (mux, mut peer) = Peer::connect(config).await;
        let mut recordings = Vec::new();
        for id in ["a", "b", "c"] {
            let (session, recording) = Recorder::start_session();
            mux.register(id, session).await.unwrap();
            recordings.push(recording);
        }
        peer.output("a", 1, "stdout", "x").await;
        recordings[0].began().await;
        let mut calls = Vec::new();
        for _ in 0..3 {
            let mux = mux.clone();
            calls.push(actix::spawn(async move {
                mux.call(ReadFile::new("/x")).await.map(|_| ())
            }));
            peer.expect("fs/readFile").await;
        }
        Busy {
            mux,
            peer,
            recordings,
            calls,
        }
    }

    /// Waits for the end, and returns its one reason, checked to have reached everyone once.
    async fn end(self) -> DisconnectReason {
        let Busy {
            mux,
            peer,
            recordings,
            calls,
        } = self;
        let mut reasons = Vec::new();
        for call in calls {
            match soon(call).await.unwrap() {
                Err(CallError::Disconnected { reason, .. }) => reasons.push(reason),
                answer => panic!("{answer:?}"),
            }
        }
        for (recording, last_seq) in recordings.into_iter().zip([1, 0, 0]) {
            // The recorder checks that nothing follows.
            let failed = recording
                .record()
                .await
                .failed
                .expect("no success is made up");
            assert_eq!(failed.last_seq, last_seq);
            match failed.reason {
                FailureReason::Disconnected(reason) => reasons.push(reason),
                other => panic!("{other:?}"),
            }
        }
        match mux.call(ReadFile::new("/x")).await {
            Err(CallError::Disconnected { reason, .. }) => reasons.push(reason),
            answer => panic!("{answer:?}"),
        }
        let (session, _recording) = Recorder::start_session();
        match mux.register("d", session.clone()).await {
            Err(RegisterError::Disconnected(reason)) => reasons.push(reason),
            answer => panic!("{answer:?}"),
        }
        match mux
            .start(StartProcess::new("d", ["true"], "/"), session)
            .await
        {
            Err(StartError::Register(RegisterError::Disconnected(reason))) => reasons.push(reason),
            answer => panic!("{answer:?}"),
        }
        assert_eq!(
            mux.statistics().await.unwrap().calls_in_flight,
            0,
            "an empty table"
        );
        assert_eq!(reasons.len(), 9);
        let mut texts: Vec<_> = reasons.iter().map(ToString::to_string).collect();
        texts.dedup();
        assert_eq!(texts.len(), 1, "one reason for all: {texts:?}");
        drop(peer);
        reasons.remove(0)
    }
}

#[actix::test]
async fn p2_a_peer_that_closes_tells_everyone_once() {
    checked(async {
        let Busy {
            mux,
            peer,
            recordings,
            calls,
        } = Busy::start().await;
        drop(peer);
        let (_, peer) = Peer::connect(config()).await;
        let reason = Busy {
            mux,
            peer,
            recordings,
            calls,
        }
        .end()
        .await;
        assert!(
            matches!(
                reason,
                DisconnectReason::PeerClosed { code: None } | DisconnectReason::WriteFailed(_)
            ),
            "{reason:?}"
        );
    })
    .await;
}

#[actix::test]
async fn a_close_frame_is_told_with_its_code() {
    checked(async {
        let mut busy = Busy::start().await;
        busy.peer
            .message(ws::Message::Close(Some(ws::CloseCode::Restart.into())))
            .await;
        let reason = busy.end().await;
        assert!(
            matches!(reason, DisconnectReason::PeerClosed { code: Some(1012) }),
            "{reason:?}"
        );
    })
    .await;
}

#[actix::test]
async fn p2_output_before_the_end_is_delivered() {
    checked(async {
    let (mux, mut peer) = Peer::connect(config()).await;
    let (session, recording) = Recorder::start_session();
    mux.register("p", session).await.unwrap();
    let mut said = Vec::new();
    for seq in 1..=100 {
        let chunk = base64_simd::STANDARD.encode_to_string("x");
        let output = json!({"method": "process/output", "params": {"processId": "p", "seq": seq, "stream": "stdout", "chunk": chunk}});
        said.extend_from_slice(&frame(ws::Message::Text(output.to_string().into())));
    }
    // Cut off in the middle of one more.
    said.extend_from_slice(b"\x81\x7e\x10");
    peer.bytes(&said).await;
    drop(peer);
    let record = recording.record().await;
    assert_eq!(record.stdout.len(), 100);
    let failed = record.failed.unwrap();
    assert_eq!(failed.last_seq, 100);
    assert!(
        matches!(
            failed.reason,
            FailureReason::Disconnected(DisconnectReason::CutOff)
        ),
        "{failed:?}"
    );
    })
    .await;
}

#[actix::test]
async fn p10_what_a_hostile_peer_sends_ends_the_connection_by_name() {
    checked(async {
    type Expected = fn(&DisconnectReason) -> bool;
    let cases: [(&str, &[u8], Expected); 10] = [
        ("garbage text", b"\x81\x05hello", |reason| {
            matches!(reason, DisconnectReason::InvalidMessage(_))
        }),
        ("a batch", b"\x81\x02[]", |reason| {
            matches!(reason, DisconnectReason::InvalidMessage(_))
        }),
        ("an empty object", b"\x81\x02{}", |reason| {
            matches!(reason, DisconnectReason::InvalidMessage(_))
        }),
        ("an empty message", b"\x81\x00", |reason| {
            matches!(reason, DisconnectReason::InvalidMessage(_))
        }),
        ("binary", b"\x82\x02{}", |reason| {
            matches!(reason, DisconnectReason::BinaryMessage { size: 2 })
        }),
        ("not UTF-8", b"\x81\x01\xff", |reason| {
            matches!(reason, DisconnectReason::InvalidUtf8)
        }),
        ("masked", b"\x81\x81abcde", |reason| {
            matches!(reason, DisconnectReason::WebSocketViolation(_))
        }),
        ("a stray fragment", b"\x80\x00", |reason| {
            matches!(reason, DisconnectReason::WebSocketViolation(_))
        }),
        (
            "16 GiB announced",
            b"\x81\x7f\x00\x00\x00\x04\x00\x00\x00\x00",
            |reason| matches!(reason, DisconnectReason::MessageTooLarge { size, .. } if *size == 16 << 30),
        ),
        (
            "a notification without its params",
            b"\x81\x1b{\"method\":\"process/output\"}",
            |reason| {
                matches!(
                    reason,
                    DisconnectReason::InvalidNotification {
                        method: "process/output",
                        ..
                    }
                )
            },
        ),
    ];
    for (what, bytes, expected) in cases {
        let mut busy = Busy::start().await;
        // What came before it is not lost.
        let answer = json!({"id": 2, "result": {}}).to_string();
        busy.peer
            .bytes(&frame(ws::Message::Text(answer.into())))
            .await;
        busy.peer.bytes(bytes).await;
        let mux = busy.mux.clone();
        let reason = busy.end().await;
        assert!(expected(&reason), "{what}: {reason:?}");
        assert_eq!(mux.statistics().await.unwrap().unknown_answers, 1, "{what}");
    }
    })
    .await;
}

#[actix::test]
async fn a_notification_that_does_not_decode_ends_the_connection_and_names_its_method() {
    checked(async {
        let mut busy = Busy::start().await;
        let params =
            json!({"processId": "a", "seq": 2, "stream": "stdout", "chunk": "not base64!"});
        busy.peer
            .send(json!({"method": "process/output", "params": params}))
            .await;
        let reason = told(&busy.end().await);
        assert!(
            reason.starts_with(
                "the params of a process/output notification do not decode: invalid base64"
            ),
            "{reason}"
        );
    })
    .await;
}

#[actix::test]
async fn notifications_without_a_use_are_ignored() {
    checked(async {
        let mut busy = Busy::start().await;
        busy.peer
            .send(json!({"method": "process/later", "params": {"processId": "a"}}))
            .await;
        busy.peer
            .send(json!({"method": "fs/missingChanged", "params": {"watchId": 1}}))
            .await;
        busy.peer.message(ws::Message::Close(None)).await;
        let reason = busy.end().await;
        assert!(
            matches!(reason, DisconnectReason::PeerClosed { code: None }),
            "{reason:?}"
        );
    })
    .await;
}

#[actix::test]
async fn a_silent_link_is_pinged_and_then_given_up() {
    checked(async {
        pause();
        let mut config = config();
        config.call_timeout = Duration::from_secs(3600);
        let mut busy = Busy::start_with(config).await;
        let begun = Instant::now();
        assert_eq!(busy.peer.frame().await, Some(ws::Frame::Ping("".into())));
        assert_eq!(begun.elapsed().as_secs(), 30);
        let reason = busy.end().await;
        assert!(
            matches!(reason, DisconnectReason::Silent { after } if after.as_secs() == 60),
            "{reason:?}"
        );
        assert_eq!(begun.elapsed().as_secs(), 60);
    })
    .await;
}

#[actix::test]
async fn a_link_that_gives_signs_of_life_is_kept() {
    checked(async {
        pause();
        let mut config = config();
        config.call_timeout = Duration::from_secs(3600);
        let mut busy = Busy::start_with(config).await;
        let begun = Instant::now();
        for _ in 0..10 {
            assert_eq!(busy.peer.frame().await, Some(ws::Frame::Ping("".into())));
            busy.peer.message(ws::Message::Pong("".into())).await;
        }
        assert!(begun.elapsed().as_secs() >= 300);
        // Output is a sign of life as well, and saves the ping.
        for seq in 2..20 {
            tokio::time::advance(Duration::from_secs(25)).await;
            busy.peer.output("a", seq, "stdout", "x").await;
            tokio::task::yield_now().await;
        }
        let last_output = Instant::now();
        assert_eq!(busy.peer.frame().await, Some(ws::Frame::Ping("".into())));
        assert_eq!(last_output.elapsed().as_secs(), 30);
        assert_eq!(busy.mux.statistics().await.unwrap().calls_in_flight, 3);
        busy.calls.clear();
    })
    .await;
}

#[actix::test]
async fn an_orderly_shutdown_writes_what_waits_and_answers_when_all_are_told() {
    checked(async {
        let mut busy = Busy::start().await;
        // Queued when the shutdown comes: still written, and its answer still taken.
        let last = actix::spawn({
            let mux = busy.mux.clone();
            async move { mux.terminate("last").await }
        });
        tokio::task::yield_now().await;
        let shutdown = actix::spawn({
            let mux = busy.mux.clone();
            async move { mux.router().send(Shutdown::detach()).await.unwrap() }
        });
        let request = busy.peer.expect("process/terminate").await;
        assert_eq!(request.params["processId"], "last");
        let expected = ws::Frame::Close(Some(ws::CloseCode::Normal.into()));
        assert_eq!(busy.peer.frame().await, Some(expected));
        busy.peer.answer(&request, json!({"running": true})).await;
        assert!(soon(last).await.unwrap().unwrap().running);
        assert!(!shutdown.is_finished(), "the peer has not closed yet");
        // What comes in now is refused, and its session hears nothing.
        let (session, recording) = Recorder::start_session();
        let process = StartProcess::new("late", ["true"], "/");
        match busy.mux.start(process, session).await {
            Err(StartError::Register(RegisterError::Disconnected(DisconnectReason::Closed))) => {}
            answer => panic!("{answer:?}"),
        }
        assert!(!recording.partial().await.has_ended());
        match busy.mux.terminate("late").await {
            Err(CallError::Disconnected {
                reason: DisconnectReason::Closed,
                ..
            }) => {}
            answer => panic!("{answer:?}"),
        }
        let Busy {
            mux,
            peer,
            recordings,
            calls,
        } = busy;
        drop(peer);
        soon(shutdown).await.unwrap().unwrap();
        let (_, peer) = Peer::connect(config()).await;
        let reason = Busy {
            mux: mux.clone(),
            peer,
            recordings,
            calls,
        }
        .end()
        .await;
        assert!(matches!(reason, DisconnectReason::Closed), "{reason:?}");
        soon(mux.shutdown()).await.unwrap();
    })
    .await;
}

#[actix::test]
async fn p8_what_was_not_sent_when_the_link_failed_is_not_sent_after_that() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        // Fills the pipe, and waits for the peer to read.
        let write = actix::spawn({
            let mux = mux.clone();
            async move { mux.write_file("/x", vec![0; 2 << 20]).await }
        });
        while mux.statistics().await.unwrap().calls_in_flight < 1 {
            tokio::task::yield_now().await;
        }
        let behind_it = actix::spawn({
            let mux = mux.clone();
            async move { mux.terminate("p").await }
        });
        while mux.statistics().await.unwrap().calls_in_flight < 2 {
            tokio::task::yield_now().await;
        }
        peer.bytes(b"\x81\x02[]").await;
        match soon(write).await.unwrap() {
            // Part of it is in the pipe.
            Err(error @ CallError::Disconnected { sent: true, .. }) => {
                assert!(!error.is_retryable());
            }
            answer => panic!("{answer:?}"),
        }
        match soon(behind_it).await.unwrap() {
            Err(
                error @ CallError::Disconnected {
                    reason: DisconnectReason::InvalidMessage(_),
                    sent: false,
                    ..
                },
            ) => assert!(error.is_retryable()),
            answer => panic!("{answer:?}"),
        }
        let read = peer.rest().await;
        assert!(read <= 1 << 20, "{read}: more than the pipe held");
    })
    .await;
}

#[actix::test]
async fn times_that_mean_never_are_taken_as_such() {
    checked(async {
        pause();
        let mut config = config();
        config.call_timeout = Duration::MAX;
        config.ping_interval = Duration::MAX;
        config.silence_timeout = Duration::MAX;
        let mut busy = Busy::start_with(config).await;
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(1000)).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(busy.mux.statistics().await.unwrap().calls_in_flight, 3);
        busy.peer.message(ws::Message::Close(None)).await;
        let reason = busy.end().await;
        assert!(
            matches!(reason, DisconnectReason::PeerClosed { .. }),
            "{reason:?}"
        );
    })
    .await;
}

#[actix::test]
async fn p14_a_shutdown_does_not_wait_for_ever() {
    checked(async {
        pause();
        let busy = Busy::start().await;
        let begun = Instant::now();
        match busy.mux.shutdown().await {
            Err(ShutdownError::DeadlinePassed {
                processes: 3,
                deadline,
                ..
            }) => assert_eq!(deadline.as_secs(), 5),
            outcome => panic!("{outcome:?}"),
        }
        assert_eq!(begun.elapsed().as_secs(), 5);
        // A later shutdown knows of the earlier.
        assert!(matches!(
            busy.mux.shutdown().await,
            Err(ShutdownError::DeadlinePassed { processes: 3, .. })
        ));
        assert!(matches!(busy.end().await, DisconnectReason::Closed));
    })
    .await;
}

#[actix::test]
async fn p14_a_shutdown_terminates_the_processes_and_lets_them_end() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let mut recordings = Vec::new();
        for id in ["a", "b"] {
            let (session, recording) = Recorder::start_session();
            mux.register(id, session).await.unwrap();
            recordings.push(recording);
        }
        let shutdown = actix::spawn({
            let mux = mux.clone();
            async move { mux.shutdown().await }
        });
        for _ in 0..2 {
            let request = peer.expect("process/terminate").await;
            // Nothing new is taken on meanwhile.
            let (session, _recording) = Recorder::start_session();
            match mux.register("late", session).await {
                Err(RegisterError::Disconnected(DisconnectReason::Closed)) => {}
                other => panic!("{other:?}"),
            }
            let id = request.params["processId"].as_str().unwrap();
            peer.answer(&request, json!({"running": true})).await;
            peer.exited(id, 1, 137).await;
            peer.closed(id, 2).await;
        }
        let expected = ws::Frame::Close(Some(ws::CloseCode::Normal.into()));
        assert_eq!(peer.frame().await, Some(expected));
        drop(peer);
        soon(shutdown).await.unwrap().unwrap();
        for recording in recordings {
            assert_eq!(recording.record().await.exit_code(), 137);
        }
        soon(mux.shutdown()).await.unwrap();
    })
    .await;
}

/// A server may drop what it has not handled when the connection closes.
#[actix::test]
async fn p14_a_shutdown_waits_for_the_end_of_a_process_that_nobody_listens_to() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, events) = Session::stream();
        mux.register("p", session).await.unwrap();
        drop(events);
        let terminate = peer.expect("process/terminate").await;
        let shutdown = actix::spawn({
            let mux = mux.clone();
            async move { mux.shutdown().await }
        });
        // Handled behind the shutdown.
        mux.statistics().await.unwrap();
        assert!(peer.frame().now_or_never().is_none(), "no goodbye yet");
        assert!(!shutdown.is_finished());
        peer.answer(&terminate, json!({"running": true})).await;
        let goodbye = ws::Frame::Close(Some(ws::CloseCode::Normal.into()));
        assert_eq!(peer.frame().await, Some(goodbye));
        drop(peer);
        soon(shutdown).await.unwrap().unwrap();
    })
    .await;
}

#[actix::test]
async fn p14_a_shutdown_says_of_a_process_that_nobody_listens_to_that_it_may_still_run() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, events) = Session::stream();
        mux.register("p", session).await.unwrap();
        drop(events);
        peer.expect("process/terminate").await;
        let shutdown = Shutdown::new().deadline(Duration::from_secs(3));
        match mux.router().send(shutdown).await.unwrap() {
            Err(ShutdownError::DeadlinePassed { processes: 1, .. }) => {}
            outcome => panic!("{outcome:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p14_processes_that_do_not_end_do_not_hold_up_a_shutdown() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, recording) = Recorder::start_session();
        mux.register("p", session).await.unwrap();
        let begun = Instant::now();
        let shutdown = actix::spawn({
            let deadline = Duration::from_secs(3);
            let shutdown = mux.router().send(Shutdown::new().deadline(deadline));
            async move { shutdown.await.unwrap() }
        });
        peer.expect("process/terminate").await;
        match shutdown.await.unwrap() {
            Err(ShutdownError::DeadlinePassed {
                processes: 1,
                deadline,
                ..
            }) => assert_eq!(deadline.as_secs(), 3),
            outcome => panic!("{outcome:?}"),
        }
        assert_eq!(begun.elapsed().as_secs(), 3);
        match recording.record().await.failed.unwrap().reason {
            FailureReason::Disconnected(DisconnectReason::Closed) => {}
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p14_a_shutdown_says_that_the_connection_was_lost_before_its_processes_had_ended() {
    checked(async {
        for is_lost_before in [true, false] {
            let (mux, mut peer) = Peer::connect(config()).await;
            let (session, recording) = Recorder::start_session();
            mux.register("p", session).await.unwrap();
            let shutdown = if is_lost_before {
                drop(peer);
                assert!(recording.record().await.failed.is_some());
                soon(mux.shutdown()).await
            } else {
                let shutdown = actix::spawn({
                    let mux = mux.clone();
                    async move { mux.shutdown().await }
                });
                peer.expect("process/terminate").await;
                drop(peer);
                soon(shutdown).await.unwrap()
            };
            match shutdown {
                Err(ShutdownError::Disconnected {
                    processes: 1,
                    reason: DisconnectReason::PeerClosed { .. },
                    ..
                }) => {}
                outcome => panic!("{outcome:?}"),
            }
            // To leave the processes alone is no failure.
            soon(mux.router().send(Shutdown::detach()))
                .await
                .unwrap()
                .unwrap();
        }
        let (mux, peer) = Peer::connect(config()).await;
        drop(peer);
        soon(mux.shutdown()).await.unwrap();
    })
    .await;
}

#[actix::test]
async fn dropping_the_last_handle_closes_the_connection() {
    checked(async {
        let Busy {
            mux,
            mut peer,
            recordings,
            calls,
        } = Busy::start().await;
        for call in calls {
            // Each holds a handle.
            call.abort();
        }
        drop(mux);
        let expected = ws::Frame::Close(Some(ws::CloseCode::Normal.into()));
        assert_eq!(peer.frame().await, Some(expected));
        assert_eq!(peer.frame().await, None, "the socket is closed");
        for recording in recordings {
            let failed = recording.record().await.failed.unwrap();
            assert!(
                matches!(
                    failed.reason,
                    FailureReason::Disconnected(DisconnectReason::Closed)
                ),
                "{failed:?}"
            );
        }
    })
    .await;
}

#[actix::test]
async fn a_peer_that_does_not_read_does_not_keep_a_dropped_connection() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let write = actix::spawn({
            let mux = mux.clone();
            async move { mux.write_file("/x", vec![0; 4 << 20]).await }
        });
        while mux.statistics().await.unwrap().queued_bytes == 0 {
            tokio::task::yield_now().await;
        }
        write.abort();
        drop((write.await, mux));
        // Lets the actors notice, and then the time be up: what is read is what the pipe held by then.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(Duration::from_secs(6)).await;
        let read = peer.rest().await;
        assert!(read <= 1 << 20, "{read}");
    })
    .await;
}
