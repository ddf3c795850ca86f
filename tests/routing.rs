//! Processes and their sessions, against a scripted peer.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use actix::Addr;
use actix_http::ws;
use execmux::{
    CallError, FailureReason, Mux, Overflow, Register, RegisterError, Session, SessionEvent, Start,
    StartError, Started,
    protocol::{StartProcess, Stream},
};
use serde_json::{Value, json};
use support::{
    checked,
    peer::{Peer, Request, config, frame},
    recorder::{Recorder, Stop, Tap},
    soon,
};
use tokio::{task::JoinHandle, time::pause};

fn spawn_start(
    mux: &Mux,
    process_id: &str,
    session: impl Into<Session>,
) -> JoinHandle<Result<Started, StartError>> {
    let (mux, session) = (mux.clone(), session.into());
    let process = StartProcess::new(process_id, ["true"], "/");
    actix::spawn(async move { mux.start(process, session).await })
}

/// Starts a process that the peer agrees to.
async fn start(mux: &Mux, peer: &mut Peer, process_id: &str, session: impl Into<Session>) {
    let started = spawn_start(mux, process_id, session);
    let request = peer.expect("process/start").await;
    assert_eq!(request.params["processId"], process_id);
    peer.answer(&request, json!({"processId": process_id}))
        .await;
    soon(started).await.unwrap().unwrap();
}

#[actix::test]
async fn p1_a_session_gets_its_events_in_order_each_once() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, recording) = Recorder::start_session();
        start(&mux, &mut peer, "p", session).await;
        peer.closed("p", 5).await;
        peer.output("p", 2, "stderr", "err").await;
        peer.exited("p", 3, 7).await;
        peer.output("p", 2, "stderr", "err").await;
        peer.output("p", 4, "stdout", " late").await;
        peer.output("p", 1, "stdout", "out").await;
        peer.output("p", 1, "stdout", "out").await;
        let record = recording.record().await;
        assert_eq!(record.stdout, b"out late");
        assert_eq!(record.stderr, b"err");
        assert_eq!((record.exit_code(), record.last_seq), (7, 5));
    })
    .await;
}

#[actix::test]
async fn p1_output_before_the_answer_to_the_start_is_not_lost() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, recording) = Recorder::start_session();
        let started = spawn_start(&mux, "p", session);
        let request = peer.expect("process/start").await;
        peer.output("p", 1, "stdout", "early").await;
        peer.exited("p", 2, 0).await;
        peer.closed("p", 3).await;
        let record = recording.record().await;
        assert_eq!(record.stdout, b"early");
        peer.answer(&request, json!({"processId": "p", "sandboxType": "none"}))
            .await;
        let started = soon(started).await.unwrap().unwrap();
        assert_eq!(started.sandbox_type.as_deref(), Some("none"));
    })
    .await;
}

#[actix::test]
async fn each_session_gets_the_events_of_its_process() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let mut recordings = Vec::new();
        for n in 0..10 {
            let (session, recording) = Recorder::start_session();
            start(&mux, &mut peer, &format!("p{n}"), session).await;
            recordings.push(recording);
        }
        for seq in 1..=20 {
            for n in 0..10 {
                peer.output(&format!("p{n}"), seq, "pty", &format!("{n}:{seq} "))
                    .await;
            }
        }
        for n in 0..10 {
            peer.exited(&format!("p{n}"), 21, n).await;
            peer.closed(&format!("p{n}"), 22).await;
        }
        for (n, recording) in recordings.into_iter().enumerate() {
            let record = recording.record().await;
            let expected: String = (1..=20).map(|seq| format!("{n}:{seq} ")).collect();
            assert_eq!(String::from_utf8_lossy(&record.pty), expected);
            assert_eq!(record.exit_code(), n as i32);
        }
    })
    .await;
}

/// More sessions than the router keeps in the cache, and some that end while others go on.
#[actix::test]
async fn p1_of_a_thousand_sessions_each_gets_its_events_while_others_end() {
    const SESSIONS: u64 = 1000;
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let mut recordings = Vec::new();
        for n in 0..SESSIONS {
            let (session, recording) = Recorder::start_session();
            mux.register(format!("p{n}"), session).await.unwrap();
            recordings.push(recording);
        }
        let mut said = Vec::new();
        let mut say = |method: &str, params: serde_json::Value| {
            let json = json!({"method": method, "params": params}).to_string();
            said.extend_from_slice(&frame(ws::Message::Text(json.into())));
        };
        // Process n writes n % 5 times, and then ends.
        for seq in 1..=6 {
            for n in 0..SESSIONS {
                let (id, outputs) = (format!("p{n}"), n % 5);
                let chunk = base64_simd::STANDARD.encode_to_string(format!("{n}:{seq} "));
                if seq <= outputs {
                    let params =
                        json!({"processId": id, "seq": seq, "stream": "stdout", "chunk": chunk});
                    say("process/output", params);
                } else if seq == outputs + 1 {
                    say(
                        "process/exited",
                        json!({"processId": id, "seq": seq, "exitCode": n % 100}),
                    );
                    say("process/closed", json!({"processId": id, "seq": seq + 1}));
                }
            }
        }
        peer.bytes(&said).await;
        for (n, recording) in (0..).zip(recordings) {
            let record = recording.record().await;
            let expected: String = (1..=n % 5).map(|seq| format!("{n}:{seq} ")).collect();
            assert_eq!(String::from_utf8_lossy(&record.stdout), expected);
            assert_eq!(record.exit_code() as u64, n % 100);
        }
    })
    .await;
}

#[actix::test]
async fn one_actor_can_be_the_session_of_several_processes() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (tap, mut events) = Tap::start_session();
        for id in ["a", "b"] {
            start(&mux, &mut peer, id, tap.clone().recipient()).await;
        }
        peer.output("b", 1, "stdout", "x").await;
        peer.exited("a", 1, 0).await;
        match events.next().await.unwrap() {
            SessionEvent::Output(output) => {
                assert_eq!(
                    (output.process_id.as_str(), output.stream),
                    ("b", Stream::Stdout)
                );
            }
            other => panic!("{other:?}"),
        }
        match events.next().await.unwrap() {
            SessionEvent::Exited(exited) => assert_eq!(exited.process_id.as_str(), "a"),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn a_duplicate_is_refused_by_name_and_nothing_is_sent() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, recording) = Recorder::start_session();
        start(&mux, &mut peer, "p", session).await;
        let (other, _other_recording) = Recorder::start_session();
        match spawn_start(&mux, "p", other.clone()).await.unwrap() {
            Err(StartError::Register(RegisterError::Duplicate(id))) => assert_eq!(id.as_str(), "p"),
            answer => panic!("{answer:?}"),
        }
        let error = mux.register("p", other).await.unwrap_err();
        assert_eq!(error.to_string(), "process p has a session already");
        // The first is as it was.
        peer.exited("p", 1, 0).await;
        peer.closed("p", 2).await;
        assert_eq!(recording.record().await.exit_code(), 0);
    })
    .await;
}

#[actix::test]
async fn a_refused_start_leaves_no_route_when_it_is_told() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        for _ in 0..3 {
            let (session, recording) = Recorder::start_session();
            let started = spawn_start(&mux, "p", session);
            let request = peer.expect("process/start").await;
            peer.reject(&request, -32603, "no such file").await;
            match soon(started).await.unwrap() {
                Err(StartError::Call(CallError::Rejected { message, .. })) => {
                    assert_eq!(message, "no such file")
                }
                answer => panic!("{answer:?}"),
            }
            assert_eq!(recording.partial().await.last_seq, 0);
        }
    })
    .await;
}

/// Three outputs of a session that has room for two, so that what comes behind them waits until it has consumed.
fn more_than_fits(process_id: &str) -> [Value; 3] {
    let chunk = base64_simd::STANDARD.encode_to_string("x".repeat(1000));
    [1, 2, 3].map(|seq| {
        let params =
            json!({"processId": process_id, "seq": seq, "stream": "stdout", "chunk": chunk});
        json!({"method": "process/output", "params": params})
    })
}

/// The end of a process, and behind it the refusal of a request, as a process is not known.
fn end_and_refusal(process_id: &str, seq: u64, request: &Request) -> [Value; 3] {
    let exited = json!({"processId": process_id, "seq": seq, "exitCode": 7});
    let closed = json!({"processId": process_id, "seq": seq + 1});
    let error = json!({"code": -32600, "message": format!("unknown process id {process_id}")});
    [
        json!({"method": "process/exited", "params": exited}),
        json!({"method": "process/closed", "params": closed}),
        json!({"id": request.id, "error": error}),
    ]
}

#[actix::test]
async fn p2_a_session_is_told_what_comes_with_the_refusal_of_its_start() {
    for others_lag in [false, true] {
        checked(async {
            let (mux, mut peer) = Peer::connect(config()).await;
            let (other, others) = Recorder::start_session();
            start(&mux, &mut peer, "other", other.budget(2500)).await;
            let (session, recording) = Recorder::start_session();
            let refused = spawn_start(&mux, "p", session);
            let request = peer.expect("process/start").await;
            let mut said = Vec::new();
            if others_lag {
                said.extend(more_than_fits("other"));
            }
            said.extend(end_and_refusal("p", 1, &request));
            peer.send_at_once(said).await;
            let error = soon(refused).await.unwrap().unwrap_err();
            assert!(matches!(error, StartError::Call(_)), "{error:?}");
            let record = recording.record().await;
            assert_eq!((record.exit_code(), record.last_seq), (7, 2));
            drop(others);
        })
        .await;
    }
}

#[actix::test]
async fn p2_a_start_without_an_answer_fails_its_session_and_ends_its_process() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, recording) = Recorder::start_session();
        let router = mux.router().clone();
        let started = actix::spawn(async move {
            let process = StartProcess::new("p", ["true"], "/");
            let start = Start::new(process, session).timeout(Duration::from_secs(5));
            router.send(start).await.unwrap()
        });
        peer.expect("process/start").await;
        peer.output("p", 1, "stdout", "it runs").await;
        match soon(started).await.unwrap() {
            Err(StartError::Call(CallError::DeadlineExceeded { after, .. })) => {
                assert_eq!(after.as_secs(), 5)
            }
            answer => panic!("{answer:?}"),
        }
        let failed = recording.record().await.failed.unwrap();
        assert!(
            matches!(failed.reason, FailureReason::StartUnanswered),
            "{failed:?}"
        );
        assert_eq!(failed.last_seq, 1);
        assert_eq!(
            peer.expect("process/terminate").await.params,
            json!({"processId": "p"})
        );
        assert_eq!(mux.unregister("p").await, None);
    })
    .await;
}

#[actix::test]
async fn a_start_whose_caller_has_gone_goes_on() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        for refused in [true, false] {
            let (session, recording) = Recorder::start_session();
            let started = spawn_start(&mux, "p", session);
            let request = peer.expect("process/start").await;
            started.abort();
            assert!(started.await.unwrap_err().is_cancelled());
            // Calls that nobody waits for are forgotten by now; the router still waits for this one.
            tokio::time::advance(Duration::from_secs(2)).await;
            assert_eq!(mux.statistics().await.unwrap().calls_in_flight, 1);
            if refused {
                peer.reject(&request, -32603, "no such file").await;
                assert_eq!(recording.partial().await.last_seq, 0);
            } else {
                peer.answer(&request, json!({"processId": "p"})).await;
                peer.exited("p", 1, 4).await;
                peer.closed("p", 2).await;
                assert_eq!(recording.record().await.exit_code(), 4);
            }
        }
    })
    .await;
}

#[actix::test]
async fn a_closed_process_frees_its_id_before_its_session_hears_of_it() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (tap, mut events) = Tap::start_session();
        start(&mux, &mut peer, "p", tap.clone().recipient()).await;
        peer.closed("p", 1).await;
        while !matches!(events.next().await.unwrap(), SessionEvent::Closed(_)) {}
        mux.register("p", Session::from(tap.recipient()))
            .await
            .unwrap();
    })
    .await;
}

#[actix::test]
async fn an_unregistered_session_hears_nothing_more() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, recording) = Recorder::start_session();
        start(&mux, &mut peer, "p", session).await;
        assert_eq!(mux.unregister("p").await, Some(0));
        assert_eq!(mux.unregister("p").await, None);
        peer.closed("p", 1).await;
        let record = recording.partial().await;
        assert!(!record.has_ended() && record.last_seq == 0);
        // The process is left alone: the next request is another's.
        let (session, _recording) = Recorder::start_session();
        start(&mux, &mut peer, "q", session).await;
    })
    .await;
}

#[actix::test]
async fn a_session_can_be_registered_for_what_others_start() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, recording) = Recorder::start_session();
        let register = Register::new("p", session);
        mux.router().send(register).await.unwrap().unwrap();
        peer.exited("p", 1, 0).await;
        peer.closed("p", 2).await;
        assert_eq!(recording.record().await.exit_code(), 0);
    })
    .await;
}

#[actix::test]
async fn a_process_can_be_handed_from_one_session_to_another() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (tap, mut events) = Tap::start_session();
        mux.register("p", tap.clone().recipient()).await.unwrap();
        peer.output("p", 1, "stdout", "a").await;
        peer.output("p", 2, "stdout", "b").await;
        for _ in 0..2 {
            events.next().await.unwrap();
        }
        let last_seq = mux.unregister("p").await.unwrap();
        assert_eq!(last_seq, 2);
        let (other, mut others) = Tap::start_session();
        let register = Register::new("p", other.recipient()).after_seq(last_seq);
        mux.router().send(register).await.unwrap().unwrap();
        peer.closed("p", 3).await;
        match others.next().await.unwrap() {
            SessionEvent::Closed(closed) => assert_eq!((closed.seq, closed.exit_code), (3, None)),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p13_a_process_that_starts_after_it_was_terminated_is_terminated_again() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (tap, _events) = Tap::start_session();
        let started = spawn_start(&mux, "p", tap.clone().recipient());
        let start = peer.expect("process/start").await;
        stop(tap).await;
        peer.output("p", 1, "stdout", "x").await;
        // A server that handles several requests at once answers this one first.
        let terminate = peer.expect("process/terminate").await;
        peer.answer(&terminate, json!({"running": false})).await;
        peer.answer(&start, json!({"processId": "p"})).await;
        soon(started).await.unwrap().unwrap();
        expect_terminate(&mut peer, "p").await;
    })
    .await;
}

#[actix::test]
async fn a_start_without_an_answer_leaves_alone_what_was_unregistered() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, _recording) = Recorder::start_session();
        let started = spawn_start(&mux, "p", session);
        peer.expect("process/start").await;
        assert_eq!(mux.unregister("p").await, Some(0));
        assert!(soon(started).await.unwrap().is_err(), "after 30 s");
        let (session, _recording) = Recorder::start_session();
        let _next = spawn_start(&mux, "q", session);
        loop {
            // A ping may have come in the time that has passed.
            if let Some(ws::Frame::Text(text)) = peer.frame().await {
                assert!(
                    text.starts_with(b"{\"id\":6,\"method\":\"process/start\""),
                    "{text:?}"
                );
                break;
            }
        }
    })
    .await;
}

#[actix::test]
async fn p3_p4_a_session_that_does_not_consume_fails_alone_at_its_budget() {
    checked(async {
        let mut config = config();
        config.session_budget = 100_000;
        let (mux, mut peer) = Peer::connect(config).await;
        let (idle, mut held) = Tap::start_session();
        let idle = Session::from(idle.recipient()).overflow(Overflow::Fail);
        start(&mux, &mut peer, "idle", idle).await;
        let (session, recording) = Recorder::start_session();
        start(&mux, &mut peer, "busy", session).await;
        for seq in 1..=200 {
            peer.output("idle", seq, "stdout", &"x".repeat(1000)).await;
            peer.output("busy", seq, "stdout", &"y".repeat(1000)).await;
        }
        peer.exited("busy", 201, 0).await;
        peer.closed("busy", 202).await;
        assert_eq!(recording.record().await.stdout.len(), 200_000);

        let mut outputs = Vec::new();
        let failed = loop {
            match held.next().await.unwrap() {
                SessionEvent::Output(output) => outputs.push(output),
                SessionEvent::Failed(failed) => break failed,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((outputs.len(), failed.last_seq), (88, 88));
        match failed.reason {
            FailureReason::Overflow {
                held,
                budget: 100_000,
            } => assert_eq!(held, 89 * 1128),
            other => panic!("{other:?}"),
        }
        assert!(
            held.next().await.is_none(),
            "nothing follows, and nobody holds the session"
        );
        assert_eq!(
            peer.expect("process/terminate").await.params["processId"],
            "idle"
        );
    })
    .await;
}

#[actix::test]
async fn p3_a_session_that_consumes_is_not_behind_however_much_comes_at_once() {
    for overflow in [Overflow::Heal, Overflow::Fail, Overflow::Block] {
        checked(async {
            let (mux, mut peer) = Peer::connect(config()).await;
            let (session, recording) = Recorder::start_session();
            let session = session.budget(10_000).overflow(overflow);
            start(&mux, &mut peer, "p", session).await;
            // Makes the read buffer large, and then fills it at once.
            peer.send(json!({"id": 99, "result": "x".repeat(1_000_000)}))
                .await;
            let chunk = base64_simd::STANDARD.encode_to_string("x".repeat(1000));
            let mut said = Vec::new();
            for seq in 1..=1000 {
                let params =
                    json!({"processId": "p", "seq": seq, "stream": "stdout", "chunk": chunk});
                let output = json!({"method": "process/output", "params": params}).to_string();
                said.extend_from_slice(&frame(ws::Message::Text(output.into())));
            }
            peer.bytes(&said).await;
            peer.exited("p", 1001, 0).await;
            peer.closed("p", 1002).await;
            // Nothing had to be read again.
            assert_eq!(recording.record().await.stdout.len(), 1_000_000);
        })
        .await;
    }
}

/// What a server answers to a read, of outputs with 1,000 letters.
fn retained(seqs: std::ops::RangeInclusive<u64>) -> serde_json::Value {
    let chunk = base64_simd::STANDARD.encode_to_string("x".repeat(1000));
    let next_seq = seqs.end() + 1;
    let chunks: Vec<_> = seqs
        .map(|seq| json!({"seq": seq, "stream": "stdout", "chunk": chunk}))
        .collect();
    json!({"chunks": chunks, "nextSeq": next_seq, "exited": false, "exitCode": null, "closed": false})
}

#[actix::test]
async fn p5_a_session_that_lags_is_healed_when_it_consumes_and_others_do_not_notice() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (idle, mut held) = Tap::start_session();
        let idle = Session::from(idle.recipient()).budget(100_000);
        start(&mux, &mut peer, "idle", idle).await;
        let (session, recording) = Recorder::start_session();
        start(&mux, &mut peer, "busy", session).await;
        for seq in 1..=200 {
            peer.output("idle", seq, "stdout", &"x".repeat(1000)).await;
            peer.output("busy", seq, "stdout", &"y".repeat(1000)).await;
        }
        peer.exited("busy", 201, 0).await;
        peer.closed("busy", 202).await;
        assert_eq!(recording.record().await.stdout.len(), 200_000);

        let mut kept = Vec::new();
        for seq in 1..=88 {
            match held.next().await.unwrap() {
                SessionEvent::Output(output) if output.seq == seq => kept.push(output),
                other => panic!("{other:?}"),
            }
        }
        // The chunk alone does not give the credit back, its permit does.
        let permits: Vec<_> = kept
            .drain(..44)
            .map(|output| output.into_parts())
            .map(|(chunk, permit)| (chunk.len(), permit))
            .collect();
        assert!(permits.iter().all(|(length, _)| *length == 1000));
        drop(permits);
        let read = peer.expect("process/read").await;
        assert_eq!(read.params["afterSeq"], 88);
        assert_eq!(read.params["waitMs"], 0);
        let max_bytes = read.params["maxBytes"].as_u64().unwrap();
        assert!(
            (40_000..=100_000 - 44 * 1128).contains(&max_bytes),
            "{max_bytes}"
        );
        peer.answer(&read, retained(89..=120)).await;
        for seq in 89..=120 {
            match held.next().await.unwrap() {
                SessionEvent::Output(output) => assert_eq!(output.seq, seq),
                other => panic!("{other:?}"),
            }
        }
        let read = peer.expect("process/read").await;
        assert_eq!(read.params["afterSeq"], 120);
        peer.answer(&read, retained(170..=200)).await;
        match held.next().await.unwrap() {
            SessionEvent::Gap(gap) => assert_eq!((gap.after_seq, gap.before_seq), (120, 170)),
            other => panic!("{other:?}"),
        }
        peer.output("idle", 201, "stdout", "live").await;
        for seq in 170..=201 {
            match held.next().await.unwrap() {
                SessionEvent::Output(output) => assert_eq!(output.seq, seq),
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
}

#[actix::test]
async fn p2_an_end_that_comes_with_the_refusal_of_a_read_is_told() {
    for others_lag in [false, true] {
        checked(async {
            let (mux, mut peer) = Peer::connect(config()).await;
            let (other, others) = Recorder::start_session();
            start(&mux, &mut peer, "other", other.budget(2500)).await;
            let (tap, mut events) = Tap::start_session();
            let session = Session::from(tap.recipient()).budget(2500);
            start(&mux, &mut peer, "p", session).await;
            for output in more_than_fits("p") {
                peer.send(output).await;
            }
            for seq in 1..=2 {
                match events.next().await.unwrap() {
                    SessionEvent::Output(output) => assert_eq!(output.seq, seq),
                    other => panic!("{other:?}"),
                }
            }
            let read = peer.expect("process/read").await;
            assert_eq!(read.params["afterSeq"], 2);
            let mut said = Vec::new();
            if others_lag {
                said.extend(more_than_fits("other"));
            }
            said.extend(end_and_refusal("p", 4, &read));
            peer.send_at_once(said).await;
            match events.next().await.unwrap() {
                SessionEvent::Gap(gap) => assert_eq!((gap.after_seq, gap.before_seq), (2, 4)),
                other => panic!("{other:?}"),
            }
            match events.next().await.unwrap() {
                SessionEvent::Exited(exited) => assert_eq!((exited.seq, exited.exit_code), (4, 7)),
                other => panic!("{other:?}"),
            }
            match events.next().await.unwrap() {
                SessionEvent::Closed(closed) => assert!(closed.seq == 5 && !closed.complete),
                other => panic!("{other:?}"),
            }
            drop(others);
        })
        .await;
    }
}

#[actix::test]
async fn p5_healing_reads_are_few_at_a_time() {
    checked(async {
        let mut config = config();
        config.session_budget = 100;
        let (mux, mut peer) = Peer::connect(config).await;
        let mut sessions = Vec::new();
        for n in 0..10 {
            let (tap, events) = Tap::start_session();
            mux.register(format!("p{n}"), tap.recipient())
                .await
                .unwrap();
            sessions.push(events);
        }
        for n in 0..10 {
            for seq in 1..=2 {
                peer.output(&format!("p{n}"), seq, "stdout", "x").await;
            }
        }
        for events in &mut sessions {
            drop(events.next().await);
        }
        let mut reads = Vec::new();
        for _ in 0..4 {
            reads.push(peer.expect("process/read").await);
        }
        for left in (0..10).rev() {
            // One is asked for when one has been answered, and no more.
            let in_flight = mux.statistics().await.unwrap().calls_in_flight;
            assert!((reads.len()..=4).contains(&in_flight), "{in_flight}");
            let read = reads.remove(0);
            peer.answer(&read, retained(2..=2)).await;
            if left >= 4 {
                reads.push(peer.expect("process/read").await);
            }
        }
        for events in &mut sessions {
            assert!(matches!(events.next().await, Some(SessionEvent::Output(_))));
        }
    })
    .await;
}

#[actix::test]
async fn p4_a_session_that_blocks_makes_its_peer_wait_and_loses_nothing() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (tap, mut held) = Tap::start_session();
        let session = Session::from(tap.recipient())
            .budget(100_000)
            .overflow(Overflow::Block);
        start(&mux, &mut peer, "p", session).await;
        let (said, mut sent) = tokio::sync::oneshot::channel();
        let saying = actix::spawn(async move {
            // More than the budget and all buffers on the way hold.
            for seq in 1..=4000 {
                peer.output("p", seq, "stdout", &"x".repeat(1000)).await;
            }
            peer.exited("p", 4001, 0).await;
            peer.closed("p", 4002).await;
            said.send(()).unwrap();
            peer
        });
        let mut kept = Vec::new();
        for _ in 0..88 {
            kept.push(held.next().await.unwrap());
        }
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(sent.try_recv().is_err(), "the peer has to wait");
        // Others are still served, from this side.
        assert!(mux.register("q", Recorder::start_session().0).await.is_ok());
        drop(kept);
        let mut seqs = 89..;
        loop {
            match held.next().await.unwrap() {
                SessionEvent::Output(output) => assert_eq!(Some(output.seq), seqs.next()),
                SessionEvent::Exited(exited) => assert_eq!(exited.seq, 4001),
                SessionEvent::Closed(closed) => break assert!(closed.complete),
                other => panic!("{other:?}"),
            }
        }
        drop(soon(saying).await.unwrap());
    })
    .await;
}

#[actix::test]
async fn p4_a_session_that_blocks_among_a_thousand_mixes_nothing_up() {
    const SESSIONS: usize = 1000;
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (tap, mut held) = Tap::start_session();
        let session = Session::from(tap.recipient());
        let session = session.budget(100).overflow(Overflow::Block);
        mux.register("blocks", session).await.unwrap();
        let mut recordings = Vec::new();
        for n in 0..SESSIONS {
            let (session, recording) = Recorder::start_session();
            mux.register(format!("p{n}"), session).await.unwrap();
            recordings.push(recording);
        }
        for n in 0..SESSIONS {
            // Now and then, with others before and behind it.
            if n % 25 == 7 {
                let seq = n as u64 / 25 + 1;
                peer.output("blocks", seq, "stdout", "blocks").await;
            }
            let id = format!("p{n}");
            peer.output(&id, 1, "stdout", &id).await;
            peer.exited(&id, 2, 0).await;
            peer.closed(&id, 3).await;
        }
        for seq in 1..=SESSIONS as u64 / 25 {
            match held.next().await.unwrap() {
                SessionEvent::Output(output) => assert_eq!(output.seq, seq),
                other => panic!("{other:?}"),
            }
        }
        for (n, recording) in recordings.into_iter().enumerate() {
            let record = recording.record().await;
            assert_eq!(record.stdout, format!("p{n}").as_bytes());
        }
    })
    .await;
}

#[actix::test]
async fn p13_a_blocked_session_that_stops_lets_the_others_go_on() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (tap, mut held) = Tap::start_session();
        let session = Session::from(tap.clone().recipient())
            .budget(100)
            .overflow(Overflow::Block);
        start(&mux, &mut peer, "p", session).await;
        let (session, recording) = Recorder::start_session();
        start(&mux, &mut peer, "q", session).await;
        peer.output("p", 1, "stdout", "a").await;
        peer.output("p", 2, "stdout", "b").await;
        peer.exited("q", 1, 0).await;
        peer.closed("q", 2).await;
        let kept = held.next().await.unwrap();
        tap.send(Stop).await.unwrap();
        assert_eq!(recording.record().await.exit_code(), 0);
        drop(kept);
    })
    .await;
}

#[actix::test]
async fn p13_a_blocked_session_that_can_tell_lets_the_others_go_on_at_once() {
    checked(async {
        let mut config = config();
        config.session_check_interval = Duration::from_secs(1_000_000);
        let (mux, mut peer) = Peer::connect(config).await;
        let (session, mut events) = Session::stream();
        let session = session.budget(100).overflow(Overflow::Block);
        mux.register("p", session).await.unwrap();
        let (session, recording) = Recorder::start_session();
        mux.register("q", session).await.unwrap();
        peer.output("p", 1, "stdout", "a").await;
        peer.output("p", 2, "stdout", "b").await;
        peer.exited("q", 1, 0).await;
        peer.closed("q", 2).await;
        let kept = soon(events.recv()).await.unwrap();
        drop(events);
        assert_eq!(recording.record().await.exit_code(), 0);
        drop(kept);
    })
    .await;
}

/// Waits for a request, answering the pings that come in the time that passes.
async fn next_request(peer: &mut Peer) -> serde_json::Value {
    loop {
        match peer.frame().await.unwrap() {
            ws::Frame::Text(text) => return serde_json::from_slice(&text).unwrap(),
            _ => peer.message(ws::Message::Pong("".into())).await,
        }
    }
}

#[actix::test]
async fn what_has_waited_for_others_to_consume_is_looked_after() {
    checked(async {
        pause();
        let mut config = config();
        config.connection_budget = 1000;
        let (mux, mut peer) = Peer::connect(config).await;
        let (session, mut others) = Session::stream();
        mux.register("other", session).await.unwrap();
        let (session, mut events) = Session::stream();
        let session = session.overflow(Overflow::Block);
        mux.register("p", session).await.unwrap();
        let (session, recording) = Recorder::start_session();
        mux.register("q", session).await.unwrap();

        // All that there is for all.
        peer.output("other", 1, "stdout", &"x".repeat(800)).await;
        let others_hold = soon(others.recv()).await.unwrap();
        peer.output("p", 1, "stdout", "a").await;
        peer.output("p", 2, "stdout", "b").await;
        peer.exited("q", 1, 3).await;
        let _held = soon(events.recv()).await.unwrap();
        // Long enough for nothing else to be left to look at.
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(others_hold);
        let _held_too = soon(events.recv()).await.unwrap();

        let read = soon(next_request(&mut peer)).await;
        assert_eq!(read["method"], "process/read");
        assert_eq!(read["params"]["processId"], "q");
        let error = json!({"code": -32600, "message": "unknown process id q"});
        peer.send(json!({"id": read["id"], "error": error})).await;
        assert_eq!(recording.record().await.exit_code(), 3);
    })
    .await;
}

#[actix::test]
async fn a_process_that_is_forgotten_after_its_exit_has_ended() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, recording) = Recorder::start_session();
        start(&mux, &mut peer, "p", session).await;
        peer.output("p", 1, "stdout", "a").await;
        peer.exited("p", 2, 3).await;
        let exited = tokio::time::Instant::now();
        let read = next_request(&mut peer).await;
        assert_eq!(read["method"], "process/read");
        assert!((35..40).contains(&exited.elapsed().as_secs()));
        let error = json!({"code": -32600, "message": "unknown process id p"});
        peer.send(json!({"id": read["id"], "error": error})).await;
        let record = recording.record().await;
        assert_eq!(record.exit_code(), 3);
        assert!(!record.closed.unwrap().complete);
    })
    .await;
}

#[actix::test]
async fn an_event_that_never_comes_fails_its_session_by_name() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, recording) = Recorder::start_session();
        start(&mux, &mut peer, "p", session.overflow(Overflow::Fail)).await;
        for seq in 2..=258 {
            peer.output("p", seq, "stdout", "x").await;
        }
        let failed = recording.record().await.failed.unwrap();
        assert!(
            matches!(
                failed.reason,
                FailureReason::MissingEvent {
                    missing: 1,
                    waiting: 257
                }
            ),
            "{failed:?}"
        );
        assert_eq!(
            peer.expect("process/terminate").await.params["processId"],
            "p"
        );
    })
    .await;
}

async fn expect_terminate(peer: &mut Peer, process_id: &str) {
    let request = peer.expect("process/terminate").await;
    assert_eq!(request.params["processId"], process_id);
    peer.answer(&request, json!({"running": true})).await;
}

async fn stop(tap: Addr<Tap>) {
    tap.send(Stop).await.unwrap();
}

#[actix::test]
async fn p13_a_stopped_session_is_noticed_with_its_next_event() {
    checked(async {
        let mut config = config();
        config.session_check_interval = Duration::from_secs(3600);
        let (mux, mut peer) = Peer::connect(config).await;
        let (tap, _events) = Tap::start_session();
        start(&mux, &mut peer, "p", tap.clone().recipient()).await;
        stop(tap).await;
        peer.output("p", 1, "stdout", "x").await;
        expect_terminate(&mut peer, "p").await;
        assert_eq!(mux.unregister("p").await, None);
    })
    .await;
}

#[actix::test]
async fn p13_a_stopped_session_is_noticed_without_an_event() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (tap, _events) = Tap::start_session();
        start(&mux, &mut peer, "p", tap.clone().recipient()).await;
        stop(tap).await;
        expect_terminate(&mut peer, "p").await;
        assert_eq!(mux.unregister("p").await, None);
    })
    .await;
}

#[actix::test]
async fn p13_a_session_held_weakly_is_left_to_its_owner() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (tap, mut events) = Tap::start_session();
        start(&mux, &mut peer, "p", tap.downgrade().recipient()).await;
        peer.output("p", 1, "stdout", "x").await;
        events.next().await.unwrap();
        drop(tap);
        assert!(events.next().await.is_none(), "nobody holds it");
        expect_terminate(&mut peer, "p").await;
    })
    .await;
}

#[actix::test]
async fn p13_a_termination_that_is_refused_for_overload_is_tried_again() {
    checked(async {
        pause();
        let mut config = config();
        config.max_calls_in_flight = 1;
        let (mux, mut peer) = Peer::connect(config).await;
        let (tap, _events) = Tap::start_session();
        start(&mux, &mut peer, "p", tap.clone().recipient()).await;
        let (session, mut recording) = Recorder::start_session();
        mux.register("q", session).await.unwrap();
        let call = actix::spawn({
            let mux = mux.clone();
            async move { mux.terminate("other").await }
        });
        let occupying = peer.expect("process/terminate").await;
        stop(tap).await;
        peer.output("p", 1, "stdout", "x").await;
        peer.output("q", 1, "stdout", "x").await;
        recording.began().await;
        assert_eq!(mux.unregister("p").await, None, "noticed");
        peer.answer(&occupying, json!({"running": true})).await;
        soon(call).await.unwrap().unwrap();
        expect_terminate(&mut peer, "p").await;
    })
    .await;
}

#[actix::test]
async fn a_session_that_has_stopped_is_not_registered() {
    checked(async {
        let (mux, _peer) = Peer::connect(config()).await;
        let (tap, _events) = Tap::start_session();
        stop(tap.clone()).await;
        let error = mux.register("p", tap.recipient()).await.unwrap_err();
        assert!(
            matches!(error, RegisterError::SessionStopped(_)),
            "{error:?}"
        );
    })
    .await;
}
