//! Calls and their one answer each, against a scripted peer, with paused time.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    cell::Cell,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use actix_http::ws;
use execmux::{
    Call, CallError, DisconnectReason, FailureReason, Mux,
    protocol::{
        ErrorCode, Interrupt, InvalidRequest, Method, Params, ReadFile, ReadProcess, Terminate,
        Terminated,
    },
};
use futures_util::poll;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use support::{
    checked,
    peer::{Peer, config},
    recorder::Recorder,
    soon, told,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, duplex},
    join,
    time::{Instant, pause},
};

fn spawn_terminate(
    mux: &Mux,
    process_id: &'static str,
) -> tokio::task::JoinHandle<Result<Terminated, CallError>> {
    let mux = mux.clone();
    actix::spawn(async move { mux.terminate(process_id).await })
}

async fn in_flight(mux: &Mux) -> usize {
    mux.statistics().await.unwrap().calls_in_flight
}

#[actix::test]
async fn answers_find_their_calls_in_any_order() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let calls = ["a", "b", "c"].map(|id| spawn_terminate(&mux, id));
        let mut requests = Vec::new();
        for _ in 0..3 {
            requests.push(peer.expect("process/terminate").await);
        }
        for request in requests.iter().rev() {
            let running = request.params["processId"] == "b";
            peer.answer(request, json!({"running": running})).await;
        }
        let mut answers = Vec::new();
        for call in calls {
            answers.push(soon(call).await.unwrap().unwrap().running);
        }
        assert_eq!(answers, [false, true, false]);
        assert_eq!(in_flight(&mux).await, 0);
    })
    .await;
}

#[actix::test]
async fn an_error_of_the_server_is_a_rejection_with_code_and_words() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let call = actix::spawn(async move { mux.call(Interrupt::new("p")).await });
        let request = peer.expect("process/signal").await;
        assert_eq!(
            request.params,
            json!({"processId": "p", "signal": "interrupt"})
        );
        peer.reject(&request, -32601, "stub").await;
        match soon(call).await.unwrap().unwrap_err() {
            CallError::Rejected {
                method,
                code,
                message,
                refusal,
            } => {
                assert_eq!(refusal, None, "it is about starts");
                assert_eq!(
                    (method, code),
                    ("process/signal", ErrorCode::METHOD_NOT_FOUND)
                );
                assert_eq!(message, "stub");
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn an_answer_of_another_shape_fails_its_call_only() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        for answer in [
            json!({"result": 7}),
            json!({"result": {}}),
            json!({}),
            json!({"result": {"running": "secret"}}),
        ] {
            let call = spawn_terminate(&mux, "p");
            let request = peer.request().await;
            let mut message = answer.clone();
            message["id"] = json!(request.id);
            peer.send(message).await;
            let error = soon(call).await.unwrap().unwrap_err();
            assert!(
                matches!(
                    error,
                    CallError::InvalidResponse {
                        method: "process/terminate",
                        ..
                    }
                ),
                "{answer}: {error:?}"
            );
            assert!(
                !format!("{error} {error:?}").contains("secret"),
                "{error:?}"
            );
        }
        let call = spawn_terminate(&mux, "p");
        let request = peer.request().await;
        peer.answer(&request, json!({"running": true})).await;
        assert!(soon(call).await.unwrap().unwrap().running);
    })
    .await;
}

/// A method of the application, whose response it cannot decode.
#[derive(Debug)]
struct Careless;

#[derive(Debug)]
struct NeverDecoded;

impl<'de> Deserialize<'de> for NeverDecoded {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("careless")
    }
}

impl Method for Careless {
    const NAME: &'static str = "careless";
    type Response = NeverDecoded;

    fn write_params(&self, _: &mut Params<'_>) -> Result<(), InvalidRequest> {
        Ok(())
    }
}

#[actix::test]
async fn p10_a_response_that_panics_fails_its_call_only() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let call = actix::spawn({
            let mux = mux.clone();
            async move { mux.call(Careless).await }
        });
        let request = peer.expect("careless").await;
        peer.answer(&request, json!({})).await;
        match soon(call).await.unwrap().unwrap_err() {
            CallError::InvalidResponse { method, .. } => assert_eq!(method, "careless"),
            other => panic!("{other:?}"),
        }
        let call = spawn_terminate(&mux, "p");
        let request = peer.request().await;
        peer.answer(&request, json!({"running": true})).await;
        assert!(soon(call).await.unwrap().unwrap().running);
    })
    .await;
}

#[actix::test]
async fn p9_a_write_goes_when_the_one_before_it_is_answered() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let writes = ["a", "b"].map(|input| {
            let mux = mux.clone();
            actix::spawn(async move { mux.write("p", input).await })
        });
        let first = peer.expect("process/write").await;
        assert_eq!(first.params["chunk"], "YQ==");
        // What is asked later comes before the second.
        let call = spawn_terminate(&mux, "q");
        let request = peer.expect("process/terminate").await;
        peer.answer(&request, json!({"running": false})).await;
        soon(call).await.unwrap().unwrap();
        peer.answer(&first, json!({"status": "accepted"})).await;
        let second = peer.expect("process/write").await;
        assert_eq!(second.params["chunk"], "Yg==");
        peer.answer(&second, json!({"status": "accepted"})).await;
        for write in writes {
            soon(write).await.unwrap().unwrap();
        }
    })
    .await;
}

/// Wakes nobody.
struct Hostile;

impl Wake for Hostile {
    fn wake(self: Arc<Self>) {
        panic!("hostile")
    }
}

#[actix::test]
async fn p7_a_caller_that_panics_when_it_is_woken_harms_nobody_else() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let waker = Waker::from(Arc::new(Hostile));
        let mut answered = pin!(mux.call(Interrupt::new("p")));
        let mut lost = pin!(mux.call(Interrupt::new("q")));
        for hostile in [answered.as_mut(), lost.as_mut()] {
            assert!(hostile.poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let request = peer.expect("process/signal").await;
        peer.expect("process/signal").await;
        let (session, recording) = Recorder::start_session();
        mux.register("r", session).await.unwrap();
        let calls = ["a", "b"].map(|id| spawn_terminate(&mux, id));
        let first = peer.expect("process/terminate").await;
        peer.send_at_once([
            json!({"id": request.id, "result": {}}),
            json!({"id": first.id, "result": {"running": true}}),
        ])
        .await;
        let [first, last] = calls;
        assert!(soon(first).await.unwrap().unwrap().running);
        drop(peer);
        assert!(matches!(
            soon(last).await.unwrap(),
            Err(CallError::Disconnected { .. })
        ));
        let failed = recording.record().await.failed.unwrap();
        assert!(
            matches!(failed.reason, FailureReason::Disconnected(_)),
            "{failed:?}"
        );
    })
    .await;
}

/// A socket that panics when there is something to read, once it is to.
struct Careful<S> {
    socket: S,
    panics: Rc<Cell<bool>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Careful<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        assert!(read.is_pending() || !self.panics.get(), "careful");
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Careful<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[actix::test]
async fn p7_a_socket_that_panics_leaves_nobody_waiting() {
    checked(async {
        let (client, server) = duplex(1 << 20);
        let panics = Rc::new(Cell::new(false));
        let client = Careful {
            socket: client,
            panics: panics.clone(),
        };
        let mut peer = Peer::new(server);
        let (mux, ()) = join!(Mux::connect_over(client, config()), peer.shake_hands());
        let call = spawn_terminate(&mux.unwrap(), "p");
        let request = peer.expect("process/terminate").await;
        panics.set(true);
        peer.answer(&request, json!({"running": true})).await;
        match soon(call).await.unwrap().unwrap_err() {
            CallError::Disconnected {
                reason: DisconnectReason::ReadFailed(error),
                ..
            } => assert!(error.to_string().contains("panicked"), "{error}"),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn p7_every_call_has_a_deadline_of_its_own() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let begun = Instant::now();
        let (default, short) = tokio::join!(
            async { (mux.call(Terminate::new("a")).await, begun.elapsed()) },
            async {
                let call = Call::new(Terminate::new("b")).timeout(Duration::from_millis(1500));
                (mux.call(call).await, begun.elapsed())
            },
        );
        for ((answer, elapsed), expected) in [(default, 30_000), (short, 1500)] {
            match answer {
                Err(CallError::DeadlineExceeded { after, .. }) => {
                    assert_eq!(after, Duration::from_millis(expected));
                }
                other => panic!("{other:?}"),
            }
            let late = elapsed - Duration::from_millis(expected);
            assert!(late < Duration::from_millis(5), "{late:?} late");
        }
        assert_eq!(in_flight(&mux).await, 0);

        // A late answer harms nothing, and is counted.
        for _ in 0..2 {
            let request = peer.request().await;
            peer.answer(&request, json!({"running": true})).await;
        }
        let call = spawn_terminate(&mux, "c");
        loop {
            // A ping may have come in the time that has passed.
            if let Some(ws::Frame::Text(text)) = peer.frame().await {
                let request: Value = serde_json::from_slice(&text).unwrap();
                peer.send(json!({"id": request["id"], "result": {"running": true}}))
                    .await;
                break;
            }
        }
        assert!(soon(call).await.unwrap().unwrap().running);
        assert_eq!(mux.statistics().await.unwrap().unknown_answers, 2);
    })
    .await;
}

#[actix::test]
async fn p7_deadlines_hold_while_calls_flood_the_connection() {
    checked(async {
        let mut config = config();
        config.call_timeout = Duration::from_millis(20);
        config.max_calls_in_flight = 1;
        let (mux, _peer) = Peer::connect(config).await;
        let mut first = pin!(mux.call(Terminate::new("first")));
        assert!(poll!(&mut first).is_pending());
        // No wait in between, so that the connection's mailbox is never empty for long.
        let flood = async {
            while let Err(CallError::Overloaded { .. }) = mux.call(Terminate::new("flood")).await {}
        };
        let answer = tokio::select! {
            biased;
            answer = &mut first => answer,
            () = flood => first.await,
        };
        assert!(
            matches!(answer, Err(CallError::DeadlineExceeded { .. })),
            "{answer:?}"
        );
    })
    .await;
}

#[actix::test]
async fn p7_calls_beyond_the_cap_are_refused_and_others_go_on() {
    checked(async {
        let mut config = config();
        config.max_calls_in_flight = 2;
        let (mux, mut peer) = Peer::connect(config).await;
        let calls = ["a", "b"].map(|id| spawn_terminate(&mux, id));
        let first = peer.request().await;
        let second = peer.request().await;
        match mux.terminate("c").await {
            Err(CallError::Overloaded { in_flight: 2, .. }) => {}
            other => panic!("{other:?}"),
        }
        peer.answer(&first, json!({"running": true})).await;
        let [a, b] = calls;
        soon(a).await.unwrap().unwrap();
        let again = spawn_terminate(&mux, "d");
        let third = peer.request().await;
        assert_eq!(third.params["processId"], "d");
        for request in [second, third] {
            peer.answer(&request, json!({"running": true})).await;
        }
        soon(b).await.unwrap().unwrap();
        soon(again).await.unwrap().unwrap();
    })
    .await;
}

#[actix::test]
async fn p7_a_call_whose_caller_has_gone_leaves_its_place() {
    checked(async {
        pause();
        let mut config = config();
        config.max_calls_in_flight = 2;
        let (mux, mut peer) = Peer::connect(config).await;
        for _ in 0..5 {
            let calls = ["a", "b"].map(|id| spawn_terminate(&mux, id));
            for _ in 0..2 {
                peer.expect("process/terminate").await;
            }
            for call in calls {
                call.abort();
                assert!(call.await.unwrap_err().is_cancelled());
            }
            // Room is made when it is needed …
            let wanted = spawn_terminate(&mux, "wanted");
            let request = peer.request().await;
            assert_eq!(request.params["processId"], "wanted");
            peer.answer(&request, json!({"running": true})).await;
            soon(wanted).await.unwrap().unwrap();
            // … but not looked for at each call that is refused.
            tokio::time::advance(Duration::from_millis(11)).await;
        }
        // Without need it is made in a second, not at the deadline.
        let call = spawn_terminate(&mux, "a");
        peer.expect("process/terminate").await;
        call.abort();
        let begun = Instant::now();
        while in_flight(&mux).await > 0 {
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(
            begun.elapsed() <= Duration::from_millis(1100),
            "{:?}",
            begun.elapsed()
        );
    })
    .await;
}

#[actix::test]
async fn a_call_dropped_before_it_is_handled_is_not_sent() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let call = mux.call(Terminate::new("never"));
        drop(call);
        let call = spawn_terminate(&mux, "this");
        assert_eq!(peer.request().await.params["processId"], "this");
        call.abort();
    })
    .await;
}

#[actix::test]
async fn p4_requests_that_wait_for_the_socket_are_bounded() {
    checked(async {
        let mut config = config();
        config.max_queued_bytes = 1 << 20;
        let (mux, mut peer) = Peer::connect(config).await;
        // The pipe holds 1 MiB, and the peer does not read.
        let content = vec![b'x'; 600 << 10];
        let mut writes = Vec::new();
        let refused = loop {
            let (mux, content) = (mux.clone(), content.clone());
            let mut write = actix::spawn(async move { mux.write_file("/x", content).await });
            let refused = tokio::select! {
                answer = &mut write => Some(answer.unwrap().unwrap_err()),
                () = async { for _ in 0..100 { tokio::task::yield_now().await } } => None,
            };
            match refused {
                Some(error) => break error,
                None => writes.push(write),
            }
            assert!(writes.len() < 10, "never refused");
        };
        match refused {
            CallError::Overloaded { queued_bytes, .. } => assert!(queued_bytes <= 1 << 20),
            other => panic!("{other:?}"),
        }
        // Those that were taken arrive once the peer reads.
        for write in writes {
            let request = peer.expect("fs/writeFile").await;
            peer.answer(&request, json!({})).await;
            soon(write).await.unwrap().unwrap();
        }
        assert_eq!(mux.statistics().await.unwrap().queued_bytes, 0);
    })
    .await;
}

#[actix::test]
async fn a_call_that_cannot_be_sent_is_told_and_takes_no_place() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let error = mux.call(ReadFile::new("relative")).await.unwrap_err();
        assert_eq!(
            told(&error),
            "fs/readFile not sent: the request is not valid: path must be an absolute path, got relative"
        );
        assert_eq!(in_flight(&mux).await, 0);
        let call = spawn_terminate(&mux, "p");
        peer.expect("process/terminate").await;
        call.abort();
    })
    .await;
}

#[actix::test]
async fn p12_the_call_is_spelled_in_the_dialect_of_the_server() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let read = actix::spawn(async move { mux.read_file("/tmp/a b").await });
        let request = peer.expect("fs/readFile").await;
        assert_eq!(request.params, json!({"path": "file:///tmp/a%20b"}));
        peer.answer(&request, json!({"dataBase64": "aGk="})).await;
        assert_eq!(soon(read).await.unwrap().unwrap().content, "hi");
    })
    .await;
}

#[actix::test]
async fn messages_sent_without_waiting_are_calls_too() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        mux.connection().do_send(Call::new(Terminate::new("p")));
        let request = peer.expect("process/terminate").await;
        peer.answer(&request, json!({"running": true})).await;
        let answer = actix::spawn({
            let mux = mux.clone();
            async move {
                mux.connection()
                    .send(Call::new(ReadProcess::new("p")))
                    .await
            }
        });
        let request = peer.expect("process/read").await;
        peer.answer(
            &request,
            json!({"chunks": [], "nextSeq": 1, "exited": false, "exitCode": null, "closed": false}),
        )
        .await;
        assert_eq!(soon(answer).await.unwrap().unwrap().unwrap().next_seq, 1);
        assert_eq!(mux.statistics().await.unwrap().unknown_answers, 0);
    })
    .await;
}

#[actix::test]
async fn answers_to_nothing_are_ignored_and_counted() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        for id in [json!(99), json!("text"), json!(0), json!(-7)] {
            peer.send(json!({"id": id, "result": {}})).await;
        }
        peer.send(json!({"id": "text", "error": {"code": 1, "message": ""}}))
            .await;
        for id in [json!(-1), json!(null)] {
            peer.send(json!({"id": id, "error": {"code": -32600, "message": "what?"}}))
                .await;
        }
        let call = spawn_terminate(&mux, "p");
        let request = peer.request().await;
        peer.answer(&request, json!({"running": true})).await;
        soon(call).await.unwrap().unwrap();
        let statistics = mux.statistics().await.unwrap();
        assert_eq!(
            (statistics.unknown_answers, statistics.connection_errors),
            (5, 2)
        );
    })
    .await;
}

#[actix::test]
async fn requests_of_the_server_are_refused_and_pings_answered() {
    checked(async {
        let (_mux, mut peer) = Peer::connect(config()).await;
        peer.send(
            json!({"id": 1, "method": "network/policyRequest", "params": {"processId": "p"}}),
        )
        .await;
        let refusal = peer.json().await;
        assert_eq!(
            (&refusal["id"], &refusal["error"]["code"]),
            (&json!(1), &json!(-32601))
        );
        peer.message(ws::Message::Ping("hello".into())).await;
        assert_eq!(peer.frame().await, Some(ws::Frame::Pong("hello".into())));
    })
    .await;
}

#[actix::test]
async fn p4_a_peer_that_asks_without_reading_is_not_owed_every_answer() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let mut pings = Vec::new();
        for _ in 0..100_000 {
            pings.extend_from_slice(b"\x89\x7d");
            pings.extend_from_slice(&[b'x'; 125]);
        }
        peer.bytes(&pings).await;
        let call = spawn_terminate(&mux, "p");
        let mut pongs = 0;
        loop {
            match peer.frame().await.unwrap() {
                ws::Frame::Pong(_) => pongs += 1,
                ws::Frame::Text(_) => break,
                other => panic!("{other:?}"),
            }
        }
        // What fits into the pipe, and the few that are queued.
        assert!((1..10_000).contains(&pongs), "{pongs}");
        call.abort();
    })
    .await;
}
