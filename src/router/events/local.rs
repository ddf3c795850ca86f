//! Delivery in an actor's context, and the queue for it where the router runs on the actor's thread: that
//! takes no lock for an event.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    fmt,
    hint::black_box,
    mem,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
};

use actix::{
    Actor, ActorContext as _, ActorFuture, ActorState, AsyncContext, Handler,
    dev::MessageResponse as _,
};
use foldhash::fast::RandomState;

use super::{Queue, SessionEvents};
use crate::router::session::SessionEvent;

thread_local! {
    /// The queues of the actors on this thread, by the queue that a session carries to any thread.
    static LOCAL_QUEUES: RefCell<HashMap<*const Queue, Rc<LocalQueue>, RandomState>> = RefCell::default();
}

/// Finds the queue that belongs to this one, if its actor is on this thread.
pub(super) fn find(queue: &Arc<Queue>) -> Option<Rc<LocalQueue>> {
    let found = LOCAL_QUEUES.try_with(|queues| queues.borrow().get(&Arc::as_ptr(queue)).cloned());
    // A thread that ends has no actors.
    found.ok().flatten()
}

/// What is to be handled by an actor on this thread.
pub(crate) struct LocalQueue {
    events: RefCell<Events>,
    /// The actor's task.
    waker: RefCell<Option<Waker>>,
    /// Whether that will look here anyway.
    is_woken: Cell<bool>,
    is_abandoned: Cell<bool>,
}

/// Events in order.
///
/// Thousands of sessions have one at a time each: it lies here, not in a buffer of its own that is in no cache.
#[derive(Default)]
struct Events {
    first: Option<SessionEvent>,
    more: VecDeque<SessionEvent>,
}

impl Events {
    #[inline]
    fn push(&mut self, event: SessionEvent) {
        if self.is_empty() {
            self.first = Some(event);
        } else {
            self.more.push_back(event);
        }
    }

    #[inline]
    fn pop(&mut self) -> Option<SessionEvent> {
        self.first.take().or_else(|| self.more.pop_front())
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_empty()
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }
}

impl LocalQueue {
    /// Adds an event, and wakes the session if it waits. Returns whether it has, or the session is gone.
    #[inline]
    pub(crate) fn send(&self, event: SessionEvent) -> bool {
        if self.is_abandoned() {
            return false;
        }
        self.events.borrow_mut().push(event);
        if !self.is_woken.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
        true
    }

    /// Whether nobody takes the events any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.is_abandoned.get()
    }

    /// Brings what the next event needs into the cache.
    pub(crate) fn look_at(&self) {
        black_box(self.is_abandoned());
        black_box(self.events.borrow().is_empty());
        black_box(self.waker.borrow().is_some());
    }

    /// Gives back the memory of a flood that is over.
    pub(crate) fn shrink(&self) {
        let mut events = self.events.borrow_mut();
        if events.more.is_empty() {
            events.more = VecDeque::new();
        }
    }

    /// Has the next event wake this task. Returns whether it is not the one of before.
    fn wait(&self, task: &Context<'_>) -> bool {
        self.is_woken.set(false);
        let waker = self.waker.borrow();
        let is_same = waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(task.waker()));
        if !is_same {
            drop(waker);
            self.waker.replace(Some(task.waker().clone()));
        }
        !is_same
    }

    /// Has the task look here again.
    fn wake(&self, task: &Context<'_>) {
        self.is_woken.set(true);
        task.waker().wake_by_ref();
    }

    fn pop(&self) -> Option<SessionEvent> {
        self.events.borrow_mut().pop()
    }
}

impl fmt::Debug for LocalQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalQueue")
            .field("waiting", &self.events.borrow().len())
            .finish_non_exhaustive()
    }
}

/// Hands the events to the handler of an actor, in its context. It ends with the queue.
pub(crate) struct Delivering {
    /// What comes from other threads.
    shared: SessionEvents,
    local: Rc<LocalQueue>,
    /// Whether the local queue has the memory of the shared one.
    has_shared_memory: bool,
}

impl Delivering {
    /// To be polled on this thread.
    pub(crate) fn new(shared: SessionEvents) -> Self {
        let local = Rc::new(LocalQueue {
            events: RefCell::default(),
            waker: RefCell::default(),
            // It is polled a first time.
            is_woken: Cell::new(true),
            is_abandoned: Cell::new(false),
        });
        LOCAL_QUEUES.with_borrow_mut(|queues| {
            queues.insert(Arc::as_ptr(&shared.0), local.clone());
        });
        Delivering {
            shared,
            local,
            has_shared_memory: false,
        }
    }

    /// Takes in what has come from other threads. Returns whether nothing will come any more.
    fn take_shared(&mut self, task: &Context<'_>) -> bool {
        let queue = &self.shared.0;
        let mut state = queue.lock();
        let mut events = self.local.events.borrow_mut();
        if events.is_empty() {
            mem::swap(&mut events.more, &mut state.events);
            self.has_shared_memory = true;
        } else {
            events.more.append(&mut state.events);
        }
        let is_over = state.senders == 0;
        if !is_over {
            state.wait(task);
        }
        queue.has_news.store(is_over, Ordering::Release);
        is_over
    }

    /// Gives the memory back to the shared queue, for more of its events, and so that the router can have it freed.
    fn put_back(&mut self) {
        self.has_shared_memory = false;
        let mut memory = mem::take(&mut self.local.events.borrow_mut().more);
        let mut state = self.shared.0.lock();
        memory.append(&mut state.events);
        state.events = memory;
    }
}

impl<A> ActorFuture<A> for Delivering
where
    A: Actor + Handler<SessionEvent>,
    A::Context: AsyncContext<A>,
{
    type Output = ();

    /// Handles what has come by now. What comes meanwhile waits until the actor has had a look at its
    /// mailbox.
    fn poll(
        self: Pin<&mut Self>,
        actor: &mut A,
        context: &mut A::Context,
        task: &mut Context<'_>,
    ) -> Poll<()> {
        let this = self.get_mut();
        let is_new_task = this.local.wait(task);
        let has_news = is_new_task || this.shared.0.has_news.load(Ordering::Acquire);
        let is_over = has_news && this.take_shared(task);
        let come = this.local.events.borrow().len();
        for _ in 0..come {
            let Some(event) = this.local.pop() else {
                break;
            };
            actor.handle(event, context).handle(context, None);
            let is_stopping = !matches!(context.state(), ActorState::Started | ActorState::Running);
            if is_stopping || context.waiting() {
                // It is polled again after what it waits for, or if it changes its mind.
                this.local.wake(task);
                return Poll::Pending;
            }
        }
        let mut events = this.local.events.borrow_mut();
        if !events.is_empty() {
            this.local.wake(task);
            return Poll::Pending;
        }
        // Begins again with the first place, which is in the cache.
        events.more.clear();
        drop(events);
        if is_over {
            return Poll::Ready(());
        }
        if this.has_shared_memory {
            this.put_back();
        }
        Poll::Pending
    }
}

impl Drop for Delivering {
    fn drop(&mut self) {
        self.local.is_abandoned.set(true);
        self.local.waker.take();
        let queue = Arc::as_ptr(&self.shared.0);
        let known = LOCAL_QUEUES.try_with(|queues| queues.borrow_mut().remove(&queue));
        // Dropped when nothing is borrowed: their credit returns to somebody.
        let events = self.local.events.take();
        drop((known, events));
    }
}

#[cfg(test)]
mod tests {
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
        let (_sender, events) = super::super::queue();
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
        let (sender, events) = super::super::queue();
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
}
