//! Reads that this side holds up itself: what is not the server's fault costs no output.

use std::time::Duration;

use actix_http::ws;
use execmux::{Mux, Overflow, Session, SessionEvent, SessionEvents, StartProcess};
use serde_json::{Value, json};
use tokio::time::{Instant, pause, sleep, timeout};

use crate::support::{
    checked,
    peer::{Peer, config},
};

async fn start(mux: &Mux, peer: &mut Peer, process_id: &str, session: Session) {
    let answer = async {
        let start = peer.expect("process/start").await;
        peer.answer(&start, json!({"processId": process_id})).await;
    };
    let process = StartProcess::new(process_id, ["x"], "/");
    let (started, ()) = tokio::join!(mux.start(process, session), answer);
    started.unwrap();
}

/// Pushes the end of `p`, and holds back what came before.
async fn push_the_end(peer: &mut Peer) {
    peer.output("p", 5, "stdout", "x").await;
    peer.exited("p", 6, 7).await;
    peer.closed("p", 7).await;
}

/// Answers reads of `p` with all that it has written, until the client has gone. Returns how many there were.
async fn answer_reads(mut peer: Peer, chunk: String) -> usize {
    let mut reads = 0;
    while let Some(frame) = peer.frame().await {
        match frame {
            ws::Frame::Text(text) => {
                let request: Value = serde_json::from_slice(&text).unwrap();
                if request["method"] != "process/read" {
                    continue;
                }
                reads += 1;
                // Time stands still for a client that never rests.
                assert!(reads < 200, "reads without pause");
                let after = request["params"]["afterSeq"].as_u64().unwrap();
                let chunks: Vec<_> = (after + 1..=5)
                    .map(|seq| json!({"seq": seq, "stream": "stdout", "chunk": chunk}))
                    .collect();
                let read = json!({"chunks": chunks, "nextSeq": 8, "exited": true, "exitCode": 7, "closed": true});
                peer.send(json!({"id": request["id"], "result": read}))
                    .await;
            }
            ws::Frame::Ping(payload) => peer.message(ws::Message::Pong(payload)).await,
            // A client sends one unasked while it does not read.
            ws::Frame::Pong(_) => {}
            ws::Frame::Close(_) => break,
            other => panic!("{other:?}"),
        }
    }
    reads
}

/// Returns all that a session is told, and what it was told of its end.
async fn tell(events: &mut SessionEvents) -> Vec<String> {
    let mut told = Vec::new();
    let to_the_end = async {
        while let Some(event) = events.recv().await {
            told.push(match event {
                SessionEvent::Output(output) => output.seq.to_string(),
                SessionEvent::Gap(gap) => format!("gap {}..{}", gap.after_seq, gap.before_seq),
                SessionEvent::Exited(exited) => format!("exited {}", exited.seq),
                SessionEvent::Closed(closed) => format!("closed {}", closed.complete),
                other => panic!("{other:?}"),
            });
        }
    };
    timeout(Duration::from_secs(1000), to_the_end)
        .await
        .expect("an end");
    told
}

const ALL: &[&str] = &["1", "2", "3", "4", "5", "exited 6", "closed true"];
const LOST: &[&str] = &["gap 0..5", "5", "exited 6", "closed false"];

#[actix::test]
async fn p5_a_session_reads_what_it_has_missed_however_many_calls_the_application_makes() {
    checked(async {
        pause();
        let mut config = config();
        config.max_calls_in_flight = 1;
        let (mux, mut peer) = Peer::connect(config).await;
        let (session, mut events) = Session::stream();
        start(&mux, &mut peer, "p", session).await;
        let forever = actix::spawn({
            let mux = mux.clone();
            async move { mux.metadata("/").await }
        });
        peer.expect("fs/getMetadata").await;
        let begun = Instant::now();
        push_the_end(&mut peer).await;
        let answering = actix::spawn(answer_reads(peer, "cg==".into()));
        assert_eq!(tell(&mut events).await, ALL);
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(mux);
        forever.abort();
        assert_eq!(answering.await.unwrap(), 1);
    })
    .await;
}

#[actix::test]
async fn p2_p4_a_session_is_told_its_end_although_nothing_more_can_be_sent() {
    checked(async {
        pause();
        let mut config = config();
        config.max_queued_bytes = 1;
        let (mux, mut peer) = Peer::connect(config).await;
        let (session, mut events) = Session::stream();
        start(&mux, &mut peer, "p", session).await;
        // More than the socket takes, of which the server reads nothing: every read is refused by this side.
        let bulk = actix::spawn({
            let mux = mux.clone();
            async move { mux.write_file("/f", vec![0; 4 << 20]).await }
        });
        push_the_end(&mut peer).await;
        let babble = actix::spawn(async move {
            for seq in 1.. {
                peer.output("other", seq, "stdout", "it is there").await;
                sleep(Duration::from_secs(5)).await;
            }
        });
        let begun = Instant::now();
        assert_eq!(tell(&mut events).await, LOST);
        assert!((180..300).contains(&begun.elapsed().as_secs()));
        assert!(bulk.await.unwrap().is_err());
        babble.abort();
    })
    .await;
}

#[actix::test]
async fn p3_what_waits_for_a_session_that_blocks_is_not_given_up() {
    checked(async {
        pause();
        let mut config = config();
        config.call_timeout = Duration::from_secs(5);
        let (mux, mut peer) = Peer::connect(config).await;
        let (session, mut events) = Session::stream();
        start(&mux, &mut peer, "p", session).await;
        let (session, mut blocking) = Session::stream();
        let session = session.budget(1).overflow(Overflow::Block);
        start(&mux, &mut peer, "b", session).await;
        push_the_end(&mut peer).await;
        for seq in 1..=2 {
            peer.output("b", seq, "stdout", "x").await;
        }
        let answering = actix::spawn(answer_reads(peer, "cg==".into()));
        let Some(SessionEvent::Output(held)) = blocking.recv().await else {
            panic!("an output");
        };
        let mut told = Box::pin(tell(&mut events));
        // The answers are in the socket, which is not read.
        assert!(timeout(Duration::from_secs(600), &mut told).await.is_err());
        drop(held);
        assert_eq!(told.await, ALL);
        drop(mux);
        let reads = answering.await.unwrap();
        assert!((10..=101).contains(&reads), "{reads}");
    })
    .await;
}

#[actix::test]
async fn p4_answers_larger_than_was_asked_are_not_asked_for_without_pause() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, mut events) = Session::stream();
        start(&mux, &mut peer, "p", session.budget(100_000)).await;
        peer.output("p", 1, "stdout", "held").await;
        let Some(SessionEvent::Output(held)) = events.recv().await else {
            panic!("an output");
        };
        push_the_end(&mut peer).await;
        let large = base64_simd::STANDARD.encode_to_string(vec![0; 1 << 20]);
        let answering = actix::spawn(answer_reads(peer, large));
        let begun = Instant::now();
        // What came early gave way to what has to come before it.
        assert_eq!(
            tell(&mut events).await,
            ["gap 1..6", "exited 6", "closed false"]
        );
        assert!(begun.elapsed() < Duration::from_secs(45));
        drop((held, mux));
        assert_eq!(answering.await.unwrap(), 6);
    })
    .await;
}
