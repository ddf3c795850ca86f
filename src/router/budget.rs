//! Credit for output: how many bytes one session, and all of a connection, may hold.
//!
//! The router counts what it hands out, and whoever drops an output counts what it gives back, on any
//! thread: neither writes to the other's counter.

mod account;

use std::{cell::Cell, fmt, mem, rc::Rc, sync::Arc};

use self::account::{Account, Ledger, NEVER};
use crate::{cache, protocol::OUTPUT_OVERHEAD};

/// What an output of so many bytes costs.
pub(crate) fn cost(bytes: usize) -> usize {
    bytes.saturating_add(OUTPUT_OVERHEAD)
}

/// The bytes that all sessions of a connection may hold together.
#[derive(Debug)]
pub(crate) struct Pool {
    limit: usize,
    /// All that was ever taken.
    taken: Cell<u64>,
    ledger: &'static Ledger,
}

impl Pool {
    /// For a router on this thread.
    pub(crate) fn new(limit: usize) -> Rc<Self> {
        let ledger = Ledger::open();
        Rc::new(Pool {
            limit,
            taken: Cell::new(ledger.returned()),
            ledger,
        })
    }

    fn held(&self) -> usize {
        (self.taken.get() - self.ledger.returned()) as usize
    }

    /// What one session may hold. The first half goes to whoever comes; the second is divided among
    /// all, so that those who do not consume leave the others their part.
    fn share(&self) -> usize {
        let half = self.limit / 2;
        if self.held() < half {
            return self.limit;
        }
        half / self.ledger.sessions().max(1)
    }

    fn available(&self) -> usize {
        self.limit.saturating_sub(self.held())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.ledger.close();
    }
}

/// The bytes that one session may hold.
///
/// Only the router takes from it; what has been taken returns from any thread.
pub(crate) struct Budget {
    limit: usize,
    /// All that was ever taken of this account, but for what was [cancelled](Self::cancel).
    taken: Cell<u64>,
    /// What had returned when it was last looked, which is only when that does not do: the account is in no cache.
    known_returned: Cell<u64>,
    /// What has to have returned for there to be the room that is waited for.
    room_at: Cell<u64>,
    /// What has to have returned for the server to be told.
    tell_at: Cell<u64>,
    pool: Rc<Pool>,
    account: &'static Account,
}

impl Budget {
    /// `wake` is called, from any thread, when credit that was waited for has returned.
    pub(crate) fn new(
        limit: usize,
        pool: Rc<Pool>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let account = pool.ledger.account(Arc::new(wake));
        Budget {
            limit,
            taken: Cell::new(account.returned()),
            known_returned: Cell::new(account.returned()),
            room_at: Cell::new(NEVER),
            tell_at: Cell::new(NEVER),
            pool,
            account,
        }
    }

    #[inline]
    pub(crate) fn limit(&self) -> usize {
        self.limit.min(self.pool.share())
    }

    #[inline]
    pub(crate) fn held(&self) -> usize {
        (self.taken.get() - self.returned()) as usize
    }

    /// All that was ever taken of its account: that may have been another session's before.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// All that has ever been given back to its account.
    #[inline]
    pub(crate) fn returned(&self) -> u64 {
        self.account.returned()
    }

    /// What may be taken now.
    #[inline]
    pub(crate) fn available(&self) -> usize {
        self.available_beside(self.held())
    }

    /// What may be taken if so much is held.
    #[inline]
    fn available_beside(&self, held: usize) -> usize {
        let own = self.limit().saturating_sub(held);
        own.min(self.pool.available())
    }

    /// Grants an output of so many bytes, until the permit is dropped. Where no more than `own` is held,
    /// one is granted whatever its size: a session that consumes gets on.
    #[inline]
    pub(crate) fn take(&self, bytes: usize, own: usize) -> Option<Permit> {
        let bytes = cost(bytes);
        let held = (self.taken.get() - self.known_returned.get()) as usize;
        if bytes > self.available_beside(held) {
            self.known_returned.set(self.returned());
            // Only the router takes, so that what is read here can only shrink.
            if self.held() > own && bytes > self.available() {
                return None;
            }
        }
        self.taken.set(self.taken.get() + bytes as u64);
        self.pool.taken.set(self.pool.taken.get() + bytes as u64);
        Some(Permit {
            account: self.account,
            bytes,
        })
    }

    /// Takes a permit back that no session was given, as if it had never been taken.
    pub(crate) fn cancel(&self, mut permit: Permit) {
        let bytes = mem::take(&mut permit.bytes) as u64;
        self.taken.set(self.taken.get() - bytes);
        self.pool.taken.set(self.pool.taken.get() - bytes);
    }

    /// Has `wake` called when there is room for `room` bytes, or half of what is held beside `own` has
    /// returned. Returns whether there is anything to wait for.
    pub(crate) fn wake_at(&self, room: usize, own: usize) -> bool {
        let half = own + self.held().saturating_sub(own) / 2;
        let enough = half.max(self.limit().saturating_sub(room));
        self.room_at
            .set(self.taken.get().saturating_sub(enough as u64));
        self.arm();
        // What returned in between did not see that somebody waits.
        if self.held() <= enough && self.account.disarm() {
            self.room_at.set(NEVER);
            self.rearm();
            return false;
        }
        true
    }

    /// Has `wake` called when so much has returned in all.
    pub(crate) fn wake_to_tell(&self, returned: u64) {
        self.tell_at.set(returned);
        self.rearm();
    }

    /// Returns whether there is the room that was waited for. To be asked when `wake` was called: it may have
    /// been for something else, and what has not come yet is waited for again.
    pub(crate) fn woken(&self) -> bool {
        let returned = self.returned();
        let has_come = |at: &Cell<u64>| {
            let has_come = returned >= at.get();
            if has_come {
                at.set(NEVER);
            }
            has_come
        };
        has_come(&self.tell_at);
        let has_room = has_come(&self.room_at);
        self.rearm();
        has_room
    }

    fn arm(&self) {
        let at = self.room_at.get().min(self.tell_at.get());
        self.account.wake_at(at);
    }

    /// Arms `wake`, and calls it if that came too late.
    fn rearm(&self) {
        self.arm();
        self.account.look();
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.account.close(self.taken.get());
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("limit", &self.limit())
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

/// The credit of an [`Output`](crate::Output). It returns to the session's budget when this is dropped,
/// on any thread.
#[must_use = "dropping it returns the credit"]
pub struct Permit {
    account: &'static Account,
    bytes: usize,
}

impl Permit {
    /// What it counts for, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Fetches what it takes to drop it.
    pub(crate) fn fetch(&self) {
        cache::fetch_all(self.account);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.account.give_back(self.bytes as u64);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn budget(limit: usize) -> (Budget, Arc<AtomicUsize>) {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let wake = move || {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        (Budget::new(limit, Pool::new(1 << 20), wake), wakes)
    }

    #[test]
    fn p4_a_budget_grants_up_to_its_limit_and_again_what_is_given_back() {
        let (budget, _) = budget(1000);
        let first = budget.take(372, 0).unwrap();
        let _second = budget.take(372, 0).unwrap();
        assert!(budget.take(0, 0).is_none());
        drop(first);
        assert!(budget.take(372, 0).is_some());
        assert!(budget.take(usize::MAX, 0).is_none());
    }

    #[test]
    fn p3_one_output_always_fits_a_session_that_holds_none() {
        let (budget, _) = budget(10);
        let large = budget.take(8192, 0).unwrap();
        assert_eq!(large.bytes(), 8192 + OUTPUT_OVERHEAD);
        assert!(budget.take(1, 0).is_none());
        assert!(
            budget.take(1, large.bytes()).is_some(),
            "held by the router itself"
        );
    }

    #[test]
    fn p4_sessions_share_the_pool() {
        let pool = Pool::new(4000);
        let budgets: Vec<_> = (0..4)
            .map(|_| Budget::new(10_000, pool.clone(), || {}))
            .collect();
        let fill =
            |budget: &Budget| -> Vec<_> { (0..20).map_while(|_| budget.take(122, 0)).collect() };
        let greedy = fill(&budgets[0]);
        assert_eq!(greedy.len(), 8, "the first half");
        for other in &budgets[1..] {
            assert_eq!(
                fill(other).len(),
                2,
                "the others have their part of the second"
            );
        }
        drop(budgets);
        let sessions = || pool.ledger.sessions();
        assert_eq!(sessions(), 1, "as long as it holds something");
        drop(greedy);
        assert_eq!(sessions(), 0);
        assert_eq!(pool.available(), 4000);
    }

    #[test]
    fn p4_sessions_that_join_later_do_not_exceed_the_pool() {
        let pool = Pool::new(1_000_000);
        let mut held = Vec::new();
        let mut budgets = Vec::new();
        for _ in 0..50 {
            // Each takes its part, which was larger for those before it.
            let budget = Budget::new(usize::MAX, pool.clone(), || {});
            held.extend(std::iter::from_fn(|| budget.take(122, 0)));
            budgets.push(budget);
        }
        let total: usize = held.iter().map(Permit::bytes).sum();
        assert!(total > 900_000, "{total}");
        assert!(total <= 1_000_000 + 50 * 250, "{total}: one each beyond it");
    }

    #[test]
    fn one_wake_does_for_two_waits_without_losing_either() {
        let (budget, wakes) = budget(100_000);
        let before = budget.returned();
        let count = || wakes.load(Ordering::SeqCst);
        let mut held: Vec<_> = (0..10).map(|_| budget.take(872, 0).unwrap()).collect();
        budget.wake_to_tell(before + 2000);
        assert!(budget.wake_at(100_000, 0), "for half");
        held.truncate(9);
        assert_eq!(count(), 0);
        held.truncate(8);
        assert_eq!(count(), 1);
        assert!(!budget.woken(), "it was to tell");
        budget.wake_to_tell(before + 9000);
        held.truncate(5);
        assert_eq!(count(), 2);
        assert!(budget.woken());
        held.truncate(2);
        assert_eq!((count(), budget.woken()), (2, false));
        budget.wake_to_tell(before + 8000);
        assert_eq!(count(), 3, "too late to be told by one who returns");
        budget.woken();
        held.clear();
        assert_eq!(count(), 3);
    }

    #[test]
    fn p4_what_no_session_was_given_counts_as_never_taken() {
        let (budget, wakes) = budget(100_000);
        let before = budget.returned();
        let given = budget.take(872, 0).unwrap();
        let reserved = budget.take(9872, 0).unwrap();
        budget.wake_to_tell(before + 1000);
        budget.cancel(reserved);
        assert_eq!(wakes.load(Ordering::SeqCst), 0);
        assert_eq!((budget.held(), budget.pool.held()), (1000, 1000));
        drop(given);
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
        assert_eq!((budget.held(), budget.pool.held()), (0, 0));
    }

    #[test]
    fn the_wake_comes_once_when_half_is_back_or_there_is_room() {
        let (budget, wakes) = budget(1000);
        let count = || wakes.load(Ordering::SeqCst);
        let mut held: Vec<_> = (0..4).map(|_| budget.take(100, 0).unwrap()).collect();
        held.pop();
        assert_eq!(count(), 0, "nobody waits");
        held.push(budget.take(100, 0).unwrap());
        assert!(budget.wake_at(1000, 0));
        held.pop();
        assert_eq!(count(), 0);
        held.pop();
        assert_eq!(count(), 1);
        held.clear();
        assert_eq!(count(), 1);
        assert!(!budget.wake_at(1000, 0), "nothing is held");
        assert_eq!(count(), 1);
        held.extend((0..4).map(|_| budget.take(100, 0).unwrap()));
        assert!(budget.wake_at(300, 0));
        held.pop();
        assert_eq!(count(), 2);
    }
}
