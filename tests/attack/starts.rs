//! Starts whose answer was lost with the link, and servers that do not say clearly what has become of them.

use std::time::Duration;

use execmux::{
    CallError, FailureReason, Mux, Session, SessionEvent, Start, StartError, Started,
    protocol::StartProcess,
};
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Instant, pause},
};

use crate::support::{
    checked,
    peer::{Dials, Peer, config},
    recorder::{Recorder, Recording},
};

/// What a server answers to a read that finds nothing new.
fn nothing_new() -> Value {
    json!({"chunks": [], "nextSeq": 1, "exited": false, "exitCode": null, "closed": false})
}

/// Starts a process with these limits, loses the answer, and has the repeated start refused as its id is taken.
async fn start_refused_as_existing(
    timeout: Duration,
) -> (
    JoinHandle<Result<Started, StartError>>,
    Recording,
    Peer,
    (Mux, Dials),
) {
    let mut config = config();
    config.call_timeout = Duration::from_secs(1);
    let server = json!({"sessionId": "5e5510", "environmentInfo": {"cwd": null}});
    let (mux, mut peer, mut dials) = Peer::connect_resumable(config, server).await;
    let (session, recording) = Recorder::start_session();
    let process = StartProcess::new("p", ["true"], "/");
    let start = mux
        .router()
        .send(Start::new(process, session).timeout(timeout));
    let start = actix::spawn(async { start.await.unwrap() });
    peer.expect("process/start").await;
    drop(peer);
    let mut peer = dials.resume().await;
    let again = peer.expect("process/start").await;
    peer.reject(&again, -32600, "process p already exists")
        .await;
    (start, recording, peer, (mux, dials))
}

#[actix::test]
async fn p2_a_session_that_heard_nothing_is_told_the_end_of_a_process_forgotten_meanwhile() {
    checked(async {
        pause();
        let (start, recording, mut peer, _mux) =
            start_refused_as_existing(Duration::from_secs(30)).await;
        let read = peer.expect("process/read").await;
        peer.reject(&read, -32600, "unknown process id p").await;
        assert_eq!(start.await.unwrap().unwrap().process_id, "p".into());
        match recording.record().await.failed.unwrap().reason {
            FailureReason::Forgotten => {}
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p7_the_question_whether_a_process_exists_takes_no_longer_than_its_start_may() {
    checked(async {
        pause();
        let begun = Instant::now();
        let (start, recording, mut peer, _mux) =
            start_refused_as_existing(Duration::from_secs(7)).await;
        peer.expect("process/read").await;
        match start.await.unwrap() {
            Err(StartError::Call(CallError::DeadlineExceeded {
                method: "process/start",
                after,
                sent: true,
            })) => assert_eq!(after, Duration::from_secs(7)),
            other => panic!("{other:?}"),
        }
        // Not when a call of the connection's `call_timeout` would have ended.
        assert_eq!(begun.elapsed().as_secs(), 7);
        match recording.record().await.failed.unwrap().reason {
            FailureReason::StartUnanswered => {}
            other => panic!("{other:?}"),
        }
        peer.expect("process/terminate").await;
    })
    .await;
}

#[actix::test]
async fn p8_a_start_that_is_still_under_way_is_asked_for_until_it_is_known() {
    checked(async {
        pause();
        let begun = Instant::now();
        let (start, recording, mut peer, _mux) =
            start_refused_as_existing(Duration::from_secs(30)).await;
        for _ in 0..10 {
            let read = peer.expect("process/read").await;
            peer.reject(&read, -32600, "process id p is starting").await;
        }
        assert!((3..8).contains(&begun.elapsed().as_secs()));
        let read = peer.expect("process/read").await;
        peer.answer(&read, nothing_new()).await;
        assert_eq!(start.await.unwrap().unwrap().process_id, "p".into());
        let read = peer.expect("process/read").await;
        peer.answer(&read, nothing_new()).await;
        peer.exited("p", 1, 7).await;
        peer.closed("p", 2).await;
        assert_eq!(recording.record().await.exit_code(), 7);
    })
    .await;
}

#[actix::test]
async fn p7_a_start_that_hangs_for_good_since_its_link_was_lost_is_told_as_not_known() {
    checked(async {
        pause();
        let begun = Instant::now();
        let (start, recording, mut peer, _mux) =
            start_refused_as_existing(Duration::from_secs(30)).await;
        let hanging = async {
            loop {
                let asked = peer.request().await;
                if asked.method == "process/terminate" {
                    break;
                }
                assert_eq!(asked.method, "process/read");
                peer.reject(&asked, -32600, "process id p is starting")
                    .await;
            }
        };
        let (start, ()) = tokio::join!(start, hanging);
        match start.unwrap() {
            Err(StartError::Call(CallError::OutcomeUnknown {
                method: "process/start",
                ..
            })) => {}
            other => panic!("{other:?}"),
        }
        assert!((10..13).contains(&begun.elapsed().as_secs()));
        match recording.record().await.failed.unwrap().reason {
            FailureReason::StartUnanswered => {}
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p7_a_start_that_has_waited_for_others_all_its_time_was_not_sent_and_may_be_repeated() {
    checked(async {
        pause();
        let mut config = config();
        config.max_starts_in_flight = 1;
        config.call_timeout = Duration::from_secs(5);
        let (mux, mut peer) = Peer::connect(config).await;
        let start = |id: &str| {
            let (session, events) = Session::stream();
            let process = StartProcess::new(id, ["true"], "/");
            let start = mux.router().send(Start::new(process, session));
            (actix::spawn(async { start.await.unwrap() }), events)
        };
        let (first, _events) = start("a");
        peer.expect("process/start").await;
        let (second, mut events) = start("b");
        let error = second.await.unwrap().unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert!(error.to_string().contains("not sent"), "{error}");
        match error {
            StartError::Call(CallError::DeadlineExceeded { sent: false, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(events.recv().await.is_none(), "nothing has run");
        // The one that was sent is another matter.
        match first.await.unwrap().unwrap_err() {
            StartError::Call(error @ CallError::DeadlineExceeded { sent: true, .. }) => {
                assert!(!error.is_retryable());
            }
            other => panic!("{other:?}"),
        }
        let terminate = peer.expect("process/terminate").await;
        assert_eq!(terminate.params["processId"], "a");
    })
    .await;
}

#[actix::test]
async fn p7_starts_that_wait_have_their_turn_when_those_before_are_never_answered() {
    checked(async {
        pause();
        let mut config = config();
        config.max_starts_in_flight = 1;
        let (mux, mut peer) = Peer::connect(config).await;
        let mut starts = Vec::new();
        for id in ["a", "b"] {
            let (session, events) = Session::stream();
            let process = StartProcess::new(id, ["true"], "/");
            let start = mux.router().send(Start::new(process, session));
            starts.push((actix::spawn(async { start.await.unwrap() }), events));
        }
        peer.expect("process/start").await;
        // The default time of a call is not over by then.
        let second = peer.expect("process/start").await;
        assert_eq!(second.params["processId"], "b");
        peer.answer(&second, json!({"processId": "b"})).await;
        let (second, mut events) = starts.pop().unwrap();
        second.await.unwrap().unwrap();
        peer.exited("b", 1, 0).await;
        peer.closed("b", 2).await;
        loop {
            match events.recv().await.unwrap() {
                SessionEvent::Closed(_) => break,
                SessionEvent::Failed(failed) => panic!("{failed:?}"),
                _ => {}
            }
        }
    })
    .await;
}
