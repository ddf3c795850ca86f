use std::pin::pin;

use actix_web::body::MessageBody as _;
use futures_util::{StreamExt as _, future, poll, stream};
use tokio::time::{advance, timeout};

use super::*;
use crate::server::limits::Memory;

const PATIENCE: Patience = Patience {
    ping_interval: Duration::from_secs(10),
    silence_timeout: Duration::from_secs(25),
    takeover_timeout: Duration::from_secs(3),
};

#[tokio::test(start_paused = true)]
async fn p2_a_silent_client_is_pinged_and_then_given_up() {
    let (life, begun) = (Life::default(), Instant::now());
    let pinged = async {
        life.ping_wanted().await;
        begun.elapsed()
    };
    let (pinged, ()) = tokio::join!(pinged, life.ends(&PATIENCE));
    assert_eq!(pinged, PATIENCE.ping_interval);
    assert_eq!(begun.elapsed(), PATIENCE.silence_timeout);
}

#[tokio::test(start_paused = true)]
async fn p6_a_client_that_answers_no_ping_but_keeps_sending_is_kept() {
    let life = Life::default();
    let sending = async {
        for _ in 0..100 {
            tokio::time::sleep(PATIENCE.silence_timeout - Duration::from_millis(1)).await;
            life.note_sign();
        }
    };
    tokio::select! {
        () = life.ends(&PATIENCE) => panic!("it was sending"),
        () = sending => {}
    }
}

#[tokio::test(start_paused = true)]
async fn p6_a_client_is_asked_again_by_a_server_that_did_not_run() {
    let (life, begun) = (Life::default(), Instant::now());
    let mut ends = pin!(life.ends(&PATIENCE));
    assert!(poll!(&mut ends).is_pending());
    // This process was stopped for ten minutes.
    advance(Duration::from_secs(600)).await;
    assert!(poll!(&mut ends).is_pending());
    life.note_sign();
    assert!(poll!(&mut ends).is_pending());
    ends.await;
    assert_eq!(begun.elapsed().as_secs(), 600 + 25);
}

#[tokio::test(start_paused = true)]
async fn a_ping_is_answered_only_by_what_comes_after_it() {
    let life = Life::default();
    life.note_sign();
    assert!(!life.answers_ping(PATIENCE.takeover_timeout).await);
    let (answers, ()) = tokio::join!(life.answers_ping(PATIENCE.takeover_timeout), async {
        life.ping_wanted().await;
        life.note_sign();
    });
    assert!(answers);
}

/// Lets everything through.
fn guard() -> FrameGuard {
    let mut guard = FrameGuard::new(Memory::new(usize::MAX));
    guard.allow(usize::MAX);
    guard
}

fn taken(bytes: usize) -> (Taken, Arc<Outbox>) {
    let outbox = Arc::<Outbox>::default();
    let body = BoxBody::new(Bytes::from(vec![0; bytes]));
    (Taken::new(body, outbox.clone()), outbox)
}

async fn piece(taken: &mut Taken) -> Bytes {
    let piece = future::poll_fn(|context| Pin::new(&mut *taken).poll_next(context)).await;
    piece.unwrap().unwrap()
}

/// Whether the client has given a sign of life since `before`.
fn lives(outbox: &Outbox, before: Instant) -> bool {
    *outbox.life.last_sign.borrow() > before
}

#[tokio::test(start_paused = true)]
async fn p6_a_client_that_is_slow_in_taking_one_large_message_shows_life() {
    let (mut taken, outbox) = taken(10 * PIECE + 1);
    let begun = Instant::now();
    assert_eq!(piece(&mut taken).await.len(), PIECE);
    advance(HELD_UP / 2).await;
    // The buffers of the socket have room, whether anybody receives it or not.
    assert_eq!(piece(&mut taken).await.len(), PIECE);
    assert!(!lives(&outbox, begun));
    advance(HELD_UP).await;
    assert_eq!(piece(&mut taken).await.len(), PIECE);
    assert!(lives(&outbox, begun));
    for _ in 3..10 {
        assert_eq!(piece(&mut taken).await.len(), PIECE);
    }
    assert_eq!(piece(&mut taken).await.len(), 1, "nothing is lost");
}

#[tokio::test(start_paused = true)]
async fn p2_a_message_after_a_pause_is_no_sign_of_life() {
    let (sender, messages) = tokio::sync::mpsc::unbounded_channel();
    let messages = stream::unfold(messages, |mut messages| async {
        let bytes: Bytes = messages.recv().await?;
        Some((Ok::<_, actix_web::Error>(bytes), messages))
    });
    let outbox = Arc::<Outbox>::default();
    let body = BoxBody::new(actix_web::body::BodyStream::new(messages.boxed_local()));
    let (mut taken, begun) = (Taken::new(body, outbox.clone()), Instant::now());
    for _ in 0..3 {
        sender.send(Bytes::from_static(b"x")).unwrap();
        assert_eq!(piece(&mut taken).await, "x");
        // The server asks for more, and there is nothing.
        let asked = future::poll_fn(|context| Pin::new(&mut taken).poll_next(context));
        assert!(timeout(Duration::from_secs(5), asked).await.is_err());
    }
    assert!(!lives(&outbox, begun));
}

#[tokio::test(start_paused = true)]
async fn p6_a_client_is_heard_while_nobody_takes_what_it_sends() {
    let outbox = Arc::<Outbox>::default();
    let chunks = stream::iter((0..4_u8).map(|n| Ok(Bytes::from(vec![n; KEPT / 2]))));
    let payload = Payload::Stream {
        payload: chunks.chain(stream::pending()).boxed_local(),
    };
    let mut heard = Heard::new(payload, outbox.clone(), guard());
    let begun = Instant::now();
    advance(Duration::from_secs(1)).await;
    let work = tokio::time::sleep(Duration::from_secs(1));
    heard.during(work).await;
    assert!(lives(&outbox, begun));
    assert_eq!(heard.0.borrow().kept_bytes, KEPT, "and no more");
    for n in 0..4 {
        let chunk = heard.next().await.unwrap().unwrap();
        assert!(chunk.iter().all(|byte| *byte == n), "in order");
    }
    assert!(poll!(heard.next()).is_pending());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_client_is_known_while_its_last_message_is_handled() {
    let outbox = Arc::<Outbox>::default();
    let payload = Payload::Stream {
        payload: stream::iter([Ok(Bytes::from_static(b"\x81\x80"))]).boxed_local(),
    };
    let mut heard = Heard::new(payload, outbox, guard());
    heard.during(heard.ended()).await;
    assert_eq!(heard.next().await.unwrap().unwrap(), &b"\x81\x80"[..]);
    assert!(heard.next().await.is_none() && heard.next().await.is_none());
}
