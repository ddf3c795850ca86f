//! The order in which the actors of a thread were woken, and with it what the processor needs next.
//!
//! With thousands of sessions each is woken for one event, and when its turn comes nothing of it is in the cache. They
//! take their turns in the order in which they were woken, so that what the next ones need can be on its way
//! meanwhile.

use std::{
    cell::RefCell,
    collections::VecDeque,
    hash::{Hash as _, Hasher},
    ptr,
    rc::Rc,
    task::Waker,
};

use actix::{Actor, Addr};

use super::local::LocalQueue;
use crate::cache::{self, LINE};

/// So many turns before its own the queue of an actor is fetched, and then what that points to. Half and twice as many
/// do as well.
const QUEUE_AHEAD: usize = 8;
const ACTOR_AHEAD: usize = 4;

/// Of an actor's task no more is fetched: large ones do not need all of themselves for each event.
const MAX_TASK: usize = 8 * LINE;

thread_local! {
    /// Who was woken and has not yet had its turn, each once. Those that are gone stay until it is the turn of one
    /// behind them.
    static WOKEN: RefCell<VecDeque<Rc<LocalQueue>>> = const { RefCell::new(VecDeque::new()) };
}

/// Where lies what an actor needs for an event beside the event. Only ever fetched, and never read: it may be gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    task: *const u8,
    task_bytes: usize,
    delivering: *const u8,
    news: *const u8,
    mailbox: *const u8,
}

impl Default for Places {
    fn default() -> Self {
        Places {
            task: ptr::null(),
            task_bytes: 0,
            delivering: ptr::null(),
            news: ptr::null(),
            mailbox: ptr::null(),
        }
    }
}

impl Places {
    /// Of an actor in the task of this waker.
    pub(super) fn new<A, D, N>(
        waker: &Waker,
        actor: &A,
        address: &Addr<A>,
        delivering: &D,
        news: &N,
    ) -> Self
    where
        A: Actor,
    {
        // So it is with the executor of actix. Where it is not, what is fetched is of no use, and does no harm.
        let task = waker.data().cast::<u8>();
        let end = ptr::from_ref(actor).addr() + size_of::<A>();
        Places {
            task,
            task_bytes: end.saturating_sub(task.addr()).min(MAX_TASK),
            delivering: ptr::from_ref(delivering).cast(),
            news: ptr::from_ref(news).cast(),
            mailbox: Mailbox::of(address),
        }
    }

    pub(super) fn are_known(&self) -> bool {
        !self.mailbox.is_null()
    }

    fn fetch(&self) {
        cache::fetch(self.task, self.task_bytes);
        cache::fetch(self.delivering, LINE);
        cache::fetch(self.news, 1);
        // With what it points to, which was allocated just before it.
        cache::fetch(self.mailbox.wrapping_sub(LINE), 3 * LINE);
    }

    /// Fetches what it takes to wake the actor.
    pub(super) fn fetch_waker(&self) {
        cache::fetch(self.task, LINE);
    }
}

/// Where a mailbox lies, which a look is taken into each turn: all that an address tells of it is its hash.
struct Mailbox(*const u8);

impl Mailbox {
    fn of<A: Actor>(address: &Addr<A>) -> *const u8 {
        let mut mailbox = Mailbox(ptr::null());
        address.hash(&mut mailbox);
        mailbox.0
    }
}

impl Hasher for Mailbox {
    fn write_usize(&mut self, place: usize) {
        self.0 = ptr::without_provenance(place);
    }

    fn write(&mut self, _: &[u8]) {}

    fn finish(&self) -> u64 {
        self.0.addr() as u64
    }
}

/// Notes that an actor was woken.
pub(super) fn woken(queue: &Rc<LocalQueue>) {
    let _ = WOKEN.try_with(|woken| {
        if let Ok(mut woken) = woken.try_borrow_mut()
            && !queue.awaits_turn.replace(true)
        {
            woken.push_back(queue.clone());
        }
    });
}

/// Notes that it is the turn of an actor, and fetches what the next ones need.
pub(super) fn begin(queue: &LocalQueue) {
    if !queue.awaits_turn.get() {
        return;
    }
    let _ = WOKEN.try_with(|woken| {
        let Ok(mut woken) = woken.try_borrow_mut() else {
            return;
        };
        // Those that were woken before have had their turn, or nobody knows when they will.
        while let Some(next) = woken.pop_front() {
            next.awaits_turn.set(false);
            if ptr::eq(&*next, queue) {
                break;
            }
        }
        if let Some(next) = woken.get(QUEUE_AHEAD) {
            cache::fetch_all(Rc::as_ptr(next));
        }
        if let Some(next) = woken.get(ACTOR_AHEAD) {
            next.places.get().fetch();
            next.fetch_event();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn awaiting() -> usize {
        WOKEN.with_borrow(VecDeque::len)
    }

    #[actix::test]
    async fn a_mailbox_is_where_all_its_addresses_are() {
        struct Idle;

        impl Actor for Idle {
            type Context = actix::Context<Self>;
        }

        let (first, second) = (Idle.start(), Idle.start());
        assert!(!Mailbox::of(&first).is_null());
        assert_eq!(Mailbox::of(&first), Mailbox::of(&first.clone()));
        assert_ne!(Mailbox::of(&first), Mailbox::of(&second));
    }

    #[test]
    fn p4_each_awaits_its_turn_once_and_none_beyond_that_of_one_behind_it() {
        let queues: Vec<_> = (0..20).map(|_| LocalQueue::new()).collect();
        let [first, second, third, ..] = &queues[..] else {
            unreachable!()
        };
        for queue in &queues {
            woken(queue);
            woken(queue);
        }
        assert_eq!(awaiting(), 20);
        // Whoever was first has stopped, say.
        begin(second);
        assert_eq!(awaiting(), 18);
        assert_eq!(Rc::strong_count(first), 1);
        begin(first);
        begin(second);
        assert_eq!(awaiting(), 18, "they do not await one");
        woken(first);
        begin(third);
        assert_eq!(awaiting(), 18);
        begin(first);
        assert_eq!(awaiting(), 0, "the others were woken before");
        woken(third);
        begin(third);
        assert_eq!(awaiting(), 0);
    }
}
