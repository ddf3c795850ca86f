//! What has returned of the credit that was handed out: one account for each session, one ledger for all of a
//! connection.
//!
//! Every output that is consumed writes to both. Whoever is on the router's thread, as most are, does so without a
//! locked instruction, and nobody counts who knows an account: they are never freed. When a session has ended and all
//! of its credit has returned, its account is the next one's of the same ledger, and when a connection has ended and
//! all has returned, its ledger is the next one's. So there are as many accounts, of 64 bytes each, as there ever were
//! sessions at a time on the connections of which something is still held.

use std::{
    array,
    cell::Cell,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// As many accounts are made at once.
const PAGE: usize = 32;

/// As long as nobody waits.
pub(super) const NEVER: u64 = u64::MAX;

/// Those that nobody uses.
static LEDGERS: Mutex<Vec<&'static Ledger>> = Mutex::new(Vec::new());

/// The last thread that was given a number.
static LAST_THREAD: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The number of this thread, 0 if it has none: those without a router need none.
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

/// Tells this thread from all others, those that have ended too.
fn this_thread() -> u64 {
    if THREAD.get() == 0 {
        THREAD.set(LAST_THREAD.fetch_add(1, Ordering::Relaxed) + 1);
    }
    THREAD.get()
}

/// What is done when credit has returned that was waited for.
pub(super) type Wake = Arc<dyn Fn() + Send + Sync>;

/// What has returned to all sessions of a connection.
pub(super) struct Ledger {
    /// The router's.
    thread: AtomicU64,
    returned: Returned,
    /// The connection, and the sessions that have not ended or of which credit is still to return.
    users: AtomicUsize,
    /// The accounts that nobody uses.
    free: Mutex<Vec<&'static Account>>,
}

/// What has returned to one session.
#[repr(align(64))]
pub(super) struct Account {
    returned: Returned,
    /// At how much returned there is something to do, once.
    wake_at: AtomicU64,
    ledger: &'static Ledger,
    /// What there is to do, until the session has ended.
    wake: Mutex<Option<Wake>>,
    /// At how much returned nobody needs it any more. Known once the session has ended, and only read with `wake`
    /// locked.
    free_at: AtomicU64,
}

/// Counts up, for whoever uses it next too.
#[derive(Default)]
struct Returned {
    /// Written by the router's thread alone.
    there: AtomicU64,
    elsewhere: AtomicU64,
}

impl Returned {
    #[inline]
    fn total(&self) -> u64 {
        self.there.load(Ordering::SeqCst) + self.elsewhere.load(Ordering::SeqCst)
    }
}

/// No code of others runs while one of these is locked, so that nothing is left half done in it by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// Has one for the connection whose router is on this thread, until that [closes](Self::close) it.
    pub(super) fn open() -> &'static Self {
        let free = lock(&LEDGERS).pop();
        free.unwrap_or_else(Self::new).begin()
    }

    fn new() -> &'static Self {
        Box::leak(Box::new(Ledger {
            thread: AtomicU64::new(0),
            returned: Returned::default(),
            users: AtomicUsize::new(0),
            free: Mutex::default(),
        }))
    }

    fn begin(&'static self) -> &'static Self {
        self.thread.store(this_thread(), Ordering::Relaxed);
        self.users.store(1, Ordering::Relaxed);
        self
    }

    pub(super) fn close(&'static self) {
        // Whoever has it next sees what was written by all.
        if self.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            lock(&LEDGERS).push(self);
        }
    }

    #[inline]
    pub(super) fn returned(&self) -> u64 {
        self.returned.total()
    }

    /// How many sessions share it, or still hold something.
    pub(super) fn sessions(&self) -> usize {
        self.users.load(Ordering::Relaxed) - 1
    }

    /// Has an account for a session, until that [closes](Account::close) it.
    pub(super) fn account(&'static self, wake: Wake) -> &'static Account {
        self.users.fetch_add(1, Ordering::Relaxed);
        let mut free = lock(&self.free);
        if free.is_empty() {
            let page = Box::new(array::from_fn::<_, PAGE, _>(|_| Account {
                returned: Returned::default(),
                wake_at: AtomicU64::new(NEVER),
                ledger: self,
                wake: Mutex::new(None),
                free_at: AtomicU64::new(NEVER),
            }));
            // From the back, so that they are taken as they lie.
            free.extend(Box::leak(page).iter().rev());
        }
        let account = free.pop().expect("a page was added");
        drop(free);
        *lock(&account.wake) = Some(wake);
        account
    }
}

impl Account {
    #[inline]
    pub(super) fn returned(&self) -> u64 {
        self.returned.total()
    }

    /// Notes that so much has returned. On any thread.
    #[inline]
    pub(super) fn give_back(&'static self, bytes: u64) {
        if THREAD.get() != self.ledger.thread.load(Ordering::Relaxed) {
            return self.give_back_elsewhere(bytes);
        }
        // First there: with this account the ledger may become another's.
        let all = self.ledger.returned.there.load(Ordering::Relaxed) + bytes;
        self.ledger.returned.there.store(all, Ordering::Relaxed);
        let returned = self.returned.there.load(Ordering::Relaxed) + bytes;
        // Only this thread has anybody wait.
        if self.wake_at.load(Ordering::Relaxed) == NEVER {
            self.returned.there.store(returned, Ordering::Relaxed);
        } else {
            self.returned.there.store(returned, Ordering::SeqCst);
            self.look();
        }
    }

    #[inline(never)]
    fn give_back_elsewhere(&'static self, bytes: u64) {
        let all = &self.ledger.returned.elsewhere;
        all.fetch_add(bytes, Ordering::Relaxed);
        self.returned.elsewhere.fetch_add(bytes, Ordering::SeqCst);
        self.look();
    }

    /// Has `wake` called when so much has returned. To be [looked](Self::look) at then: that may have been before.
    /// On the router's thread.
    pub(super) fn wake_at(&self, returned: u64) {
        self.wake_at.store(returned, Ordering::SeqCst);
    }

    /// Has nobody wait any more. Returns whether somebody did.
    pub(super) fn disarm(&self) -> bool {
        self.wake_at.swap(NEVER, Ordering::SeqCst) != NEVER
    }

    /// Does what there is to do if so much has returned.
    ///
    /// Of two threads that return the last of it at a time, one sees what the other has written: all of that is in one
    /// order. What the router's thread has written while nobody waited is seen by whoever sees that somebody waits.
    pub(super) fn look(&'static self) {
        loop {
            let at = self.wake_at.load(Ordering::SeqCst);
            if at == NEVER || self.returned() < at {
                return;
            }
            // Unless another has done it, and there is something else to wait for by now.
            let order = Ordering::SeqCst;
            let disarmed = self.wake_at.compare_exchange(at, NEVER, order, order);
            if disarmed.is_ok() {
                return self.act();
            }
        }
    }

    fn act(&'static self) {
        let wake = lock(&self.wake);
        if let Some(call) = wake.as_ref().cloned() {
            drop(wake);
            call();
        } else if self.returned() >= self.free_at.load(Ordering::Relaxed) {
            // Whoever was about to wake the session when it ended comes here too.
            self.free_at.store(NEVER, Ordering::Relaxed);
            drop(wake);
            self.free();
        }
    }

    /// Ends it: its session has ended, after so much was taken in all.
    pub(super) fn close(&'static self, taken: u64) {
        let wake = self.end(taken);
        self.wake_at(taken);
        self.look();
        // Others' code, of which nothing depends on this any more.
        drop(wake);
    }

    fn end(&self, taken: u64) -> Option<Wake> {
        let mut wake = lock(&self.wake);
        self.free_at.store(taken, Ordering::Relaxed);
        wake.take()
    }

    fn free(&'static self) {
        let ledger = self.ledger;
        lock(&ledger.free).push(self);
        ledger.close();
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("returned", &self.returned())
            .field("sessions", &self.sessions())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        hint, ptr,
        sync::atomic::{AtomicBool, Ordering::SeqCst},
        thread,
    };

    use super::*;

    fn account(ledger: &'static Ledger) -> (&'static Account, Arc<AtomicUsize>) {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let wake = move || {
            counted.fetch_add(1, SeqCst);
        };
        (ledger.account(Arc::new(wake)), wakes)
    }

    fn free(ledger: &'static Ledger) -> usize {
        lock(&ledger.free).len()
    }

    /// On other threads at once, and on this one meanwhile.
    fn give_back_on_three(account: &'static Account, mut here: impl FnMut()) {
        let begin = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !begin.load(SeqCst) {
                        hint::spin_loop();
                    }
                    account.give_back(10);
                });
            }
            begin.store(true, SeqCst);
            here();
        });
    }

    /// Other systems have larger locks.
    #[test]
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    fn p4_an_account_takes_one_line_of_the_cache() {
        assert_eq!(size_of::<Account>(), 64);
    }

    #[test]
    fn p5_whoever_returns_the_last_wakes_once() {
        let ledger = Ledger::new().begin();
        let (account, wakes) = account(ledger);
        for round in 1..=2000 {
            let all = 30 * round as u64;
            if round % 2 == 0 {
                account.wake_at(all);
                give_back_on_three(account, || account.give_back(10));
            } else {
                // Waits when some of it has returned.
                give_back_on_three(account, || {
                    account.give_back(10);
                    account.wake_at(all);
                    account.look();
                });
            }
            assert_eq!((account.returned(), wakes.load(SeqCst)), (all, round));
        }
        assert_eq!(ledger.returned(), 60_000);
    }

    #[test]
    fn p4_an_account_is_free_once_when_its_session_has_ended_and_all_has_returned() {
        let ledger = Ledger::new().begin();
        for round in 1..=2000 {
            let (account, wakes) = account(ledger);
            let before = account.returned();
            assert_eq!((free(ledger), ledger.sessions()), (PAGE - 1, 1));
            // It is about to be woken, or was, when it ends.
            account.wake_at(before + 10 * (round % 4));
            give_back_on_three(account, || {
                account.give_back(10);
                account.close(before + 30);
            });
            assert_eq!((free(ledger), ledger.sessions()), (PAGE, 0));
            assert!(wakes.load(SeqCst) <= 1);
            assert_eq!(account.wake_at.load(SeqCst), NEVER);
        }
    }

    #[test]
    fn p4_an_account_that_ends_while_it_is_woken_is_free_once() {
        let ledger = Ledger::new().begin();
        let (account, wakes) = account(ledger);
        // One thread has seen what the session waited for, and another ends it before that is told.
        drop(account.end(10));
        account.act();
        assert_eq!(free(ledger), PAGE - 1, "it is still to return");
        account.returned.elsewhere.store(10, SeqCst);
        account.act();
        account.wake_at(10);
        account.look();
        assert_eq!((free(ledger), ledger.sessions()), (PAGE, 0));
        assert_eq!(wakes.load(SeqCst), 0);
    }

    #[test]
    fn p4_an_account_is_kept_as_long_as_something_is_held() {
        let ledger = Ledger::new().begin();
        let (first, wakes) = account(ledger);
        first.close(first.returned() + 10);
        let (second, _) = account(ledger);
        assert!(!ptr::eq(first, second));
        assert_eq!(ledger.sessions(), 2);
        thread::spawn(|| first.give_back(10)).join().unwrap();
        assert_eq!(ledger.sessions(), 1);
        let (third, _) = account(ledger);
        assert!(ptr::eq(first, third), "counts on from 10");
        assert_eq!((third.returned(), wakes.load(SeqCst)), (10, 0));
    }

    #[test]
    fn p4_a_ledger_is_kept_as_long_as_something_is_held() {
        let ledger = Ledger::new().begin();
        let (account, _) = account(ledger);
        account.close(10);
        ledger.close();
        let others: Vec<_> = (0..100).map(|_| Ledger::open()).collect();
        assert!(others.iter().all(|other| !ptr::eq(*other, ledger)));
        for other in others {
            other.close();
        }
        assert_eq!(ledger.users.load(SeqCst), 1);
        account.give_back(10);
        // Another test may have opened it by now.
        assert!(ledger.returned() >= 10);
    }
}
