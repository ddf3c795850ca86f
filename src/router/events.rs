//! The queue between the router and a session, for those who take no message for each event.
//!
//! An event costs neither an envelope nor a place in a mailbox, and those that come together cost one
//! wake. The bound is the credit of the outputs, as for mailboxes.

mod local;
mod stopped;
mod turn;

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    mem,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures_core::Stream;

use self::stopped::Watchers;
pub(crate) use self::{
    local::{Delivering, LocalQueue},
    stopped::StopNotice,
};
use super::session::SessionEvent;

/// What happens to the process of a session, as a stream: see [`Session::stream`](crate::Session::stream).
///
/// It ends when no clone of its [`Session`](crate::Session) is left, which the router drops after the
/// last event. When it is dropped before that, the process is terminated, as when an actor stops.
#[must_use = "dropping it ends the session"]
pub struct SessionEvents(Arc<Queue>);

/// Puts events into the queue.
pub(crate) struct EventSender(Arc<Queue>);

struct Queue {
    state: Mutex<State>,
    /// Whether the receiver is gone.
    is_abandoned: AtomicBool,
    /// Whether something has happened since the receiver has last looked. Written only under the lock.
    has_news: AtomicBool,
}

struct State {
    events: VecDeque<SessionEvent>,
    /// Who waits for an event.
    waker: Option<Waker>,
    senders: usize,
    /// Who is told when the receiver is gone.
    watchers: Watchers,
}

/// Makes a queue.
pub(crate) fn queue() -> (EventSender, SessionEvents) {
    let queue = Arc::new(Queue {
        state: Mutex::new(State {
            events: VecDeque::new(),
            waker: None,
            senders: 1,
            watchers: Watchers::default(),
        }),
        is_abandoned: AtomicBool::new(false),
        has_news: AtomicBool::new(true),
    });
    (EventSender(queue.clone()), SessionEvents(queue))
}

impl Queue {
    /// No code of others runs while it is locked, so that nothing is left half done in it by a panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Has the next event wake this task.
    fn wait(&mut self, task: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(task.waker()),
            none => *none = Some(task.waker().clone()),
        }
    }
}

impl EventSender {
    /// Adds an event, and wakes the session if it waits. The event vanishes if the session is gone.
    pub(crate) fn send(&self, event: SessionEvent) {
        let mut state = self.0.lock();
        if self.is_abandoned() {
            // Dropped when nothing is locked: its credit returns to somebody.
            drop(state);
            drop(event);
            return;
        }
        state.events.push_back(event);
        self.0.has_news.store(true, Ordering::Release);
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
    }

    /// Whether nobody takes the events any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.is_abandoned.load(Ordering::Relaxed)
    }

    /// Has a router told when the receiver is gone and somebody still has the session: it itself, say.
    pub(crate) fn watch(&self, notice: &Arc<StopNotice>) {
        let mut state = self.0.lock();
        state.watchers.add(notice);
        if self.is_abandoned() {
            let watchers = mem::take(&mut state.watchers);
            drop(state);
            watchers.tell();
        }
    }

    /// Returns the queue that is filled without a lock, if the receiver is an actor on this thread.
    pub(crate) fn local(&self) -> Option<Rc<LocalQueue>> {
        local::find(&self.0)
    }

    /// Gives back the memory of a flood that is over.
    pub(crate) fn shrink(&self) {
        let mut state = self.0.lock();
        if state.events.is_empty() {
            state.events = VecDeque::new();
        }
    }
}

impl Clone for EventSender {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        EventSender(self.0.clone())
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.senders -= 1;
        if state.senders == 0 {
            self.0.has_news.store(true, Ordering::Release);
            if let Some(waker) = state.waker.take() {
                drop(state);
                waker.wake();
            }
        }
    }
}

impl fmt::Debug for EventSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSender")
    }
}

impl SessionEvents {
    /// Waits for the next event; `None` when there is none any more.
    ///
    /// # Cancel safety
    ///
    /// No event is lost if the future is dropped.
    pub async fn recv(&mut self) -> Option<SessionEvent> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<SessionEvent>> {
        let mut state = self.0.lock();
        if let Some(event) = state.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if state.senders == 0 {
            return Poll::Ready(None);
        }
        state.wait(context);
        Poll::Pending
    }
}

impl Stream for SessionEvents {
    type Item = SessionEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_recv(context)
    }
}

impl Drop for SessionEvents {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        // Under the lock: whoever has it sees this, and adds nothing any more.
        self.0.is_abandoned.store(true, Ordering::Relaxed);
        let events = mem::take(&mut state.events);
        let watchers = mem::take(&mut state.watchers);
        let is_held = state.senders > 0;
        drop(state);
        drop(events);
        if is_held {
            watchers.tell();
        }
    }
}

impl fmt::Debug for SessionEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionEvents")
            .field("waiting", &self.0.lock().events.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;
    use crate::router::session::Resumed;

    #[derive(Default)]
    struct Wakes(Mutex<usize>);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() += 1;
        }
    }

    fn event(process_id: &str) -> SessionEvent {
        SessionEvent::Resumed(Resumed {
            process_id: process_id.into(),
        })
    }

    fn process_id(polled: Poll<Option<SessionEvent>>) -> String {
        match polled {
            Poll::Ready(Some(SessionEvent::Resumed(resumed))) => resumed.process_id.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn events_come_in_order_and_wake_once() {
        let (sender, mut events) = queue();
        let wakes = Arc::new(Wakes::default());
        let waker = wakes.clone().into();
        let mut context = Context::from_waker(&waker);
        assert!(events.poll_recv(&mut context).is_pending());
        assert!(events.poll_recv(&mut context).is_pending());
        for process_id in ["a", "b", "c"] {
            sender.send(event(process_id));
        }
        assert_eq!(*wakes.0.lock().unwrap(), 1);
        for expected in ["a", "b", "c"] {
            assert_eq!(process_id(events.poll_recv(&mut context)), expected);
        }
        assert!(events.poll_recv(&mut context).is_pending());
    }

    #[test]
    fn the_stream_ends_with_its_last_session_after_what_was_sent() {
        let (sender, mut events) = queue();
        let other = sender.clone();
        let wakes = Arc::new(Wakes::default());
        let waker = wakes.clone().into();
        let mut context = Context::from_waker(&waker);
        assert!(events.poll_recv(&mut context).is_pending());
        drop(sender);
        assert_eq!(*wakes.0.lock().unwrap(), 0);
        other.send(event("a"));
        drop(other);
        assert_eq!(*wakes.0.lock().unwrap(), 1);
        assert_eq!(process_id(events.poll_recv(&mut context)), "a");
        assert!(matches!(events.poll_recv(&mut context), Poll::Ready(None)));
    }

    #[test]
    fn p13_a_session_whose_stream_is_dropped_has_stopped() {
        let (sender, events) = queue();
        sender.send(event("a"));
        assert!(!sender.is_abandoned());
        drop(events);
        assert!(sender.is_abandoned());
        sender.send(event("b"));
        assert!(sender.0.lock().events.is_empty());
    }

    #[test]
    fn p4_the_memory_of_a_flood_is_given_back() {
        let (sender, mut events) = queue();
        for _ in 0..1000 {
            sender.send(event("a"));
        }
        sender.shrink();
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..1000 {
            assert!(events.poll_recv(&mut context).is_ready());
        }
        assert!(sender.0.lock().events.capacity() >= 1000);
        sender.shrink();
        assert_eq!(sender.0.lock().events.capacity(), 0);
    }
}
