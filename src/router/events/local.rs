//! Delivery in an actor's context, and the queue for it where the router runs on the actor's thread: that
//! takes no lock for an event.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    fmt, mem,
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

use super::{
    Queue, SessionEvents,
    turn::{self, Places},
};
use crate::{cache, router::session::SessionEvent};

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
    /// Whether it was woken by an event, and has not yet had its turn.
    pub(super) awaits_turn: Cell<bool>,
    pub(super) places: Cell<Places>,
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
    pub(super) fn new() -> Rc<Self> {
        Rc::new(LocalQueue {
            events: RefCell::default(),
            waker: RefCell::default(),
            // It is polled a first time.
            is_woken: Cell::new(true),
            is_abandoned: Cell::new(false),
            awaits_turn: Cell::new(false),
            places: Cell::default(),
        })
    }

    /// Adds an event, and wakes the session if it waits. Returns whether it has, or the session is gone.
    #[inline]
    pub(crate) fn send(self: &Rc<Self>, event: SessionEvent) -> bool {
        if self.is_abandoned() {
            return false;
        }
        self.events.borrow_mut().push(event);
        if !self.is_woken.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
            turn::woken(self);
        }
        true
    }

    /// Whether nobody takes the events any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.is_abandoned.get()
    }

    /// Fetches what it takes to wake the actor. To be called when this itself has been fetched.
    pub(crate) fn fetch_waker(&self) {
        self.places.get().fetch_waker();
    }

    /// As [`fetch_waker`](Self::fetch_waker), for what it takes to handle and drop the next event.
    pub(super) fn fetch_event(&self) {
        if let Ok(events) = self.events.try_borrow()
            && let Some(SessionEvent::Output(output)) = &events.first
        {
            output.permit.fetch();
            cache::fetch(
                output.chunk.as_ptr(),
                output.chunk.len().min(2 * cache::LINE),
            );
        }
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
        let local = LocalQueue::new();
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
        turn::begin(&this.local);
        let is_new_task = this.local.wait(task);
        if !this.local.places.get().are_known() {
            // Once: to drop the only address wakes the actor.
            let address = context.address();
            let places = Places::new(task.waker(), actor, &address, this, &this.shared.0.has_news);
            this.local.places.set(places);
        }
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
mod tests;
