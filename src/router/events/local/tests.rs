use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::Wake,
    thread,
};

use actix::{Addr, Message, MessageResult};
use tokio::{
    sync::oneshot,
    task::yield_now,
    time::{Duration, timeout},
};

use super::*;
use crate::router::session::{Closed, Receiver, Resumed, Session};

/// Keeps what it is told, until it is told the last.
#[derive(Default)]
struct Keeper {
    heard: Vec<String>,
    ended: Option<oneshot::Sender<Vec<String>>>,
}

impl Keeper {
    fn start(ended: oneshot::Sender<Vec<String>>) -> (Addr<Self>, Session) {
        let mut session = None;
        let address = Keeper::create(|context| {
            session = Some(Session::in_context(context));
            Keeper {
                heard: Vec::new(),
                ended: Some(ended),
            }
        });
        (address, session.unwrap())
    }
}

impl Actor for Keeper {
    type Context = actix::Context<Self>;
}

impl Handler<SessionEvent> for Keeper {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, context: &mut Self::Context) {
        match event {
            SessionEvent::Resumed(resumed) => {
                let name = resumed.process_id.to_string();
                if name == "wait" {
                    context.wait(actix::fut::wrap_future(yield_now()));
                }
                self.heard.push(name);
            }
            _ => {
                let ended = self.ended.take().unwrap();
                ended.send(mem::take(&mut self.heard)).unwrap();
            }
        }
    }
}

struct Heard;

impl Message for Heard {
    type Result = usize;
}

impl Handler<Heard> for Keeper {
    type Result = MessageResult<Heard>;

    fn handle(&mut self, _: Heard, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.heard.len())
    }
}

struct Stop;

impl Message for Stop {
    type Result = ();
}

impl Handler<Stop> for Keeper {
    type Result = ();

    fn handle(&mut self, _: Stop, context: &mut Self::Context) {
        context.stop();
    }
}

fn event(name: impl Into<String>) -> SessionEvent {
    SessionEvent::Resumed(Resumed {
        process_id: name.into().into(),
    })
}

fn last() -> SessionEvent {
    SessionEvent::Closed(Closed {
        process_id: "p".into(),
        seq: 1,
        exit_code: None,
        complete: true,
    })
}

/// Waits for something that nobody tells. The time is a net.
async fn until(has_come: impl AsyncFn() -> bool) {
    let comes = async {
        while !has_come().await {
            yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), comes).await.unwrap();
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn events_of_one_batch_wake_once() {
    let (_sender, events) = crate::router::events::queue();
    let delivering = Delivering::new(events);
    let queue = &delivering.local;
    let wakes = Arc::new(Wakes::default());
    let waker = wakes.clone().into();
    assert!(queue.wait(&Context::from_waker(&waker)), "a new task");
    assert!(!queue.wait(&Context::from_waker(&waker)));
    for name in ["a", "b", "c"] {
        queue.send(event(name));
    }
    assert_eq!(wakes.0.load(SeqCst), 1);
    queue.wait(&Context::from_waker(&waker));
    queue.send(event("d"));
    assert_eq!(wakes.0.load(SeqCst), 2);
    let other = Arc::new(Wakes::default()).into();
    assert!(queue.wait(&Context::from_waker(&other)), "another task");
    queue.send(event("e"));
    assert_eq!(wakes.0.load(SeqCst), 2);
}

#[test]
fn p1_what_comes_while_others_wait_comes_behind_them() {
    let mut events = Events::default();
    let mut popped = Vec::new();
    for names in [&["a", "b", "c"][..], &["d"], &[], &["e"]] {
        for &name in names {
            events.push(event(name));
        }
        popped.extend(events.pop());
    }
    popped.extend(std::iter::from_fn(|| events.pop()));
    assert!(events.is_empty());
    let names = popped.iter().map(|event| match event {
        SessionEvent::Resumed(resumed) => resumed.process_id.as_str(),
        other => panic!("{other:?}"),
    });
    assert_eq!(names.collect::<String>(), "abcde");
}

#[actix::test]
async fn p1_what_comes_on_both_ways_is_handled_each_in_order_and_nothing_is_lost() {
    let (ended, heard) = oneshot::channel();
    let (address, session) = Keeper::start(ended);
    let elsewhere = session.clone();
    let other = thread::spawn(move || {
        let receiver = Receiver::from(elsewhere);
        assert!(!format!("{receiver:?}").contains("LocalQueue"));
        for n in 0..10_000 {
            receiver.send(event(format!("other {n}")));
        }
    });
    let receiver = Receiver::from(session);
    assert!(format!("{receiver:?}").contains("LocalQueue"));
    for n in 0..10_000 {
        receiver.send(event(format!("own {n}")));
        if n % 100 == 0 {
            yield_now().await;
        }
    }
    until(async || other.is_finished()).await;
    other.join().unwrap();
    until(async || address.send(Heard).await.unwrap() == 20_000).await;
    receiver.send(last());
    let heard = timeout(Duration::from_secs(10), heard).await.unwrap();
    let heard = heard.unwrap();
    for way in ["own", "other"] {
        let of_way = heard.iter().filter(|name| name.starts_with(way));
        let expected = (0..10_000).map(|n| format!("{way} {n}"));
        assert!(of_way.eq(expected.collect::<Vec<_>>().iter()), "{way}");
    }
}

#[test]
fn p1_what_comes_while_the_actor_handles_is_not_lost_with_the_memory() {
    let (sender, events) = crate::router::events::queue();
    let mut delivering = Delivering::new(events);
    let task = Context::from_waker(Waker::noop());
    sender.send(event("a"));
    assert!(!delivering.take_shared(&task));
    sender.send(event("b"));
    assert!(delivering.local.pop().is_some());
    assert!(delivering.has_shared_memory);
    delivering.put_back();
    assert_eq!(sender.0.lock().events.len(), 1);
    assert!(!delivering.take_shared(&task));
    assert!(delivering.local.pop().is_some());
}

#[actix::test]
async fn what_comes_from_another_thread_wakes_an_actor_that_does_nothing_else() {
    let (ended, heard) = oneshot::channel();
    let (_address, session) = Keeper::start(ended);
    yield_now().await;
    let (woken, wakes) = oneshot::channel();
    let other = thread::spawn(move || {
        // When the actor waits, and the thread sleeps.
        wakes.blocking_recv().unwrap();
        let receiver = Receiver::from(session);
        receiver.send(event("a"));
        receiver.send(last());
    });
    woken.send(()).unwrap();
    let heard = timeout(Duration::from_secs(10), heard).await.unwrap();
    assert_eq!(heard.unwrap(), ["a"]);
    other.join().unwrap();
}

#[actix::test]
async fn the_actor_ends_with_its_session_after_what_was_sent() {
    let (ended, heard) = oneshot::channel();
    let (address, session) = Keeper::start(ended);
    let weak = address.downgrade();
    drop(address);
    let receiver = Receiver::from(session);
    yield_now().await;
    assert!(weak.upgrade().is_some(), "as long as the session");
    let names = ["a", "wait", "b", "wait"];
    for name in names {
        receiver.send(event(name));
    }
    receiver.send(last());
    drop(receiver);
    let heard = timeout(Duration::from_secs(10), heard).await.unwrap();
    assert_eq!(heard.unwrap(), names);
    until(async || weak.upgrade().is_none()).await;
    assert!(LOCAL_QUEUES.with_borrow(HashMap::is_empty));
}

#[actix::test]
async fn p13_a_session_whose_actor_stops_has_stopped() {
    let (ended, heard) = oneshot::channel();
    let (address, session) = Keeper::start(ended);
    let receiver = Receiver::from(session);
    assert!(!receiver.has_stopped());
    address.send(Stop).await.unwrap();
    assert!(heard.await.is_err());
    assert!(receiver.has_stopped());
    receiver.send(event("a"));
    assert!(receiver.local_queue().events.borrow().is_empty());
    assert!(LOCAL_QUEUES.with_borrow(HashMap::is_empty));
}

#[actix::test]
async fn p4_the_memory_of_a_flood_from_another_thread_is_given_back() {
    let (ended, _heard) = oneshot::channel();
    let (address, session) = Keeper::start(ended);
    let local = Receiver::from(session.clone());
    let other = thread::spawn(move || {
        let receiver = Receiver::from(session);
        for n in 0..1000 {
            receiver.send(event(n.to_string()));
        }
    });
    until(async || address.send(Heard).await.unwrap() == 1000).await;
    other.join().unwrap();
    // Where it is freed with what is shared.
    assert_eq!(local.local_queue().events.borrow().more.capacity(), 0);
}

#[actix::test]
async fn p4_the_memory_of_a_flood_is_given_back() {
    let (ended, _heard) = oneshot::channel();
    let (address, session) = Keeper::start(ended);
    let receiver = Receiver::from(session);
    for n in 0..1000 {
        receiver.send(event(n.to_string()));
    }
    receiver.shrink();
    until(async || address.send(Heard).await.unwrap() == 1000).await;
    let capacity = || receiver.local_queue().events.borrow().more.capacity();
    assert!(capacity() >= 999);
    receiver.shrink();
    assert_eq!(capacity(), 0);
}
