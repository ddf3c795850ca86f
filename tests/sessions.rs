//! Sessions that take their events past a mailbox: in the context of an actor, and as a stream.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, Arbiter, AsyncContext as _, Context, Handler,
    Message, ResponseFuture, WrapFuture as _,
};
use execmux::{Config, Session, SessionEvent};
use support::{
    checked,
    peer::{Peer, config},
    soon,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, pause, sleep},
};

/// Writes down what it is told, one word for each event, and does as the words say.
struct Listener(UnboundedSender<String>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Listener {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, context: &mut Self::Context) {
        let word = word(&event);
        match word.as_str() {
            "wait" => context.wait(
                sleep(Duration::from_secs(60))
                    .into_actor(self)
                    .map(|(), listener, _| listener.0.send("waited".to_owned()).unwrap()),
            ),
            "stop" => context.stop(),
            _ => {}
        }
        self.0.send(word).unwrap();
    }
}

fn word(event: &SessionEvent) -> String {
    match event {
        SessionEvent::Output(output) => String::from_utf8(output.chunk.to_vec()).unwrap(),
        SessionEvent::Exited(exited) => format!("exited {}", exited.exit_code),
        SessionEvent::Closed(_) => "closed".to_owned(),
        SessionEvent::Failed(_) => "failed".to_owned(),
        other => panic!("{other:?}"),
    }
}

/// Starts an actor that nobody holds but its session.
fn listen() -> (Session, UnboundedReceiver<String>) {
    let (sender, words) = unbounded_channel();
    let mut session = None;
    Listener::create(|context| {
        session = Some(Session::in_context(context));
        Listener(sender)
    });
    (session.unwrap(), words)
}

/// Waits for all words, to the end of the actor.
async fn all(mut words: UnboundedReceiver<String>) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(word) = soon(words.recv()).await {
        all.push(word);
    }
    all
}

#[actix::test]
async fn p1_an_actor_is_told_in_its_context_what_its_mailbox_would_tell() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, words) = listen();
        mux.register("p", session).await.unwrap();
        peer.output("p", 2, "stdout", "b").await;
        peer.output("p", 1, "stdout", "a").await;
        peer.closed("p", 4).await;
        peer.exited("p", 3, 7).await;
        // The actor ends with its process.
        assert_eq!(all(words).await, ["a", "b", "exited 7", "closed"]);
    })
    .await;
}

#[actix::test]
async fn an_actor_that_waits_is_told_the_rest_after_that() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, words) = listen();
        mux.register("p", session).await.unwrap();
        for (seq, text) in (1..).zip(["a", "wait", "b", "c"]) {
            peer.output("p", seq, "stdout", text).await;
        }
        peer.closed("p", 5).await;
        let told = all(words).await;
        assert_eq!(told, ["a", "wait", "waited", "b", "c", "closed"]);
    })
    .await;
}

#[actix::test]
async fn p13_an_actor_that_stops_in_the_midst_ends_its_process_and_hears_no_more() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, words) = listen();
        mux.register("p", session).await.unwrap();
        for (seq, text) in (1..).zip(["a", "stop", "b"]) {
            peer.output("p", seq, "stdout", text).await;
        }
        assert_eq!(all(words).await, ["a", "stop"]);
        let terminate = peer.expect("process/terminate").await;
        assert_eq!(terminate.params["processId"], "p");
    })
    .await;
}

#[actix::test]
async fn p2_an_actor_is_told_in_its_context_that_the_connection_is_gone() {
    checked(async {
        let (mux, peer) = Peer::connect(config()).await;
        let (session, words) = listen();
        mux.register("p", session).await.unwrap();
        drop(peer);
        assert_eq!(all(words).await, ["failed"]);
    })
    .await;
}

#[actix::test]
async fn a_stream_ends_after_the_last_event() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, mut events) = Session::stream();
        mux.register("p", session).await.unwrap();
        peer.output("p", 1, "stdout", "a").await;
        peer.closed("p", 2).await;
        let mut words = Vec::new();
        while let Some(event) = soon(events.recv()).await {
            words.push(word(&event));
        }
        assert_eq!(words, ["a", "closed"]);
    })
    .await;
}

#[actix::test]
async fn p13_a_stream_that_is_dropped_ends_its_process() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, events) = Session::stream();
        mux.register("p", session).await.unwrap();
        drop(events);
        let terminate = peer.expect("process/terminate").await;
        assert_eq!(terminate.params["processId"], "p");
    })
    .await;
}

/// Settings with which nothing is noticed by looking now and then.
fn without_checks() -> Config {
    let mut config = config();
    config.session_check_interval = Duration::from_secs(1_000_000);
    config
}

async fn expect_terminate(peer: &mut Peer, process_id: &str) {
    let terminate = peer.expect("process/terminate").await;
    assert_eq!(terminate.params["processId"], process_id);
}

#[actix::test]
async fn p13_sessions_that_stop_are_noticed_at_once() {
    checked(async {
        let (mux, mut peer) = Peer::connect(without_checks()).await;
        let (session, events) = Session::stream();
        mux.register("stream", session).await.unwrap();
        drop(events);
        expect_terminate(&mut peer, "stream").await;

        let (mux, mut peer) = Peer::connect(without_checks()).await;
        let (session, words) = listen();
        mux.register("actor", session).await.unwrap();
        peer.output("actor", 1, "stdout", "stop").await;
        assert_eq!(all(words).await, ["stop"]);
        expect_terminate(&mut peer, "actor").await;
    })
    .await;
}

#[actix::test]
async fn p13_sessions_that_stop_elsewhere_are_noticed_at_once() {
    checked(async {
        let (mux, mut peer) = Peer::connect(without_checks()).await;
        let arbiter = Arbiter::new();
        let elsewhere = Elsewhere::start_in_arbiter(&arbiter.handle(), |_| Elsewhere);
        let (sender, words) = unbounded_channel();
        let session = elsewhere.send(Listen(sender)).await.unwrap();
        mux.register("p", session).await.unwrap();
        peer.output("p", 1, "stdout", "stop").await;
        assert_eq!(all(words).await, ["stop"]);
        expect_terminate(&mut peer, "p").await;
        arbiter.stop();
        arbiter.join().unwrap();
    })
    .await;
}

#[actix::test]
async fn p13_sessions_that_stop_one_after_the_other_are_noticed_with_the_next_check() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let begun = Instant::now();
        for process_id in ["first", "second"] {
            let (session, events) = Session::stream();
            mux.register(process_id, session).await.unwrap();
            drop(events);
            let waited = begun.elapsed() >= Duration::from_secs(1);
            assert!(!waited, "{process_id}");
            expect_terminate(&mut peer, process_id).await;
        }
        assert!(begun.elapsed() >= Duration::from_secs(1));
    })
    .await;
}

/// Lets time pass for all that ends by itself to end. Returns what is left.
async fn alive_later() -> usize {
    sleep(Duration::from_secs(5)).await;
    execmux::alive()
}

#[actix::test]
async fn idle_sessions_have_no_timer() {
    checked(async {
        pause();
        let (mux, mut peer) = Peer::connect(config()).await;
        let without = alive_later().await;

        let (session, mut events) = Session::stream();
        mux.register("p", session).await.unwrap();
        assert_eq!(execmux::alive(), without);
        peer.output("p", 1, "stdout", "a").await;
        drop(soon(events.recv()).await);
        // The first check sees what has just come, the second gives its memory back.
        sleep(Duration::from_millis(1500)).await;
        assert_eq!(execmux::alive(), without + 1);
        assert_eq!(alive_later().await, without);
        peer.output("p", 2, "stdout", "b").await;
        drop(soon(events.recv()).await);
        assert_eq!(execmux::alive(), without + 1);
        assert_eq!(alive_later().await, without);

        // Nobody tells when an actor stops that is known by its address.
        let (sender, _words) = unbounded_channel();
        let recipient = Listener(sender).start().recipient();
        mux.register("q", recipient).await.unwrap();
        assert_eq!(alive_later().await, without + 1);
        mux.unregister("q").await.unwrap();
        assert_eq!(alive_later().await, without);
    })
    .await;
}

/// Makes the session of the actor that handles it, and takes it elsewhere.
struct Listen(UnboundedSender<String>);

impl Message for Listen {
    type Result = Session;
}

/// Starts listeners on its thread.
struct Elsewhere;

impl Actor for Elsewhere {
    type Context = Context<Self>;
}

impl Handler<Listen> for Elsewhere {
    type Result = ResponseFuture<Session>;

    fn handle(&mut self, Listen(sender): Listen, _: &mut Self::Context) -> Self::Result {
        let mut session = None;
        Listener::create(|context| {
            session = Some(Session::in_context(context));
            Listener(sender)
        });
        Box::pin(async { session.unwrap() })
    }
}

#[actix::test]
async fn p1_an_actor_on_another_thread_is_told_all() {
    checked(async {
        const EVENTS: u64 = 2000;
        let (mux, mut peer) = Peer::connect(config()).await;
        let arbiter = Arbiter::new();
        let elsewhere = Elsewhere::start_in_arbiter(&arbiter.handle(), |_| Elsewhere);
        let (sender, words) = unbounded_channel();
        let session = elsewhere.send(Listen(sender)).await.unwrap();
        mux.register("p", session).await.unwrap();
        for seq in 1..EVENTS {
            peer.output("p", seq, "stdout", &seq.to_string()).await;
        }
        peer.closed("p", EVENTS).await;
        let mut expected: Vec<_> = (1..EVENTS).map(|seq| seq.to_string()).collect();
        expected.push("closed".to_owned());
        assert_eq!(all(words).await, expected);
        arbiter.stop();
        arbiter.join().unwrap();
    })
    .await;
}
