//! The sessions of a server, for connections to find them, and how many of what there are.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix::Addr;
use tokio::sync::Notify;

use super::{
    auth::Auth,
    environment::Environment,
    fs::Files,
    journal::Journal,
    leftovers::Leftovers,
    limits::{Limits, Memory},
    liveness::Patience,
    outbox::Outbox,
    process::{DropOutput, Process},
    retained::Retained,
    session::Session,
};

/// What all connections of a server share.
pub(super) struct Registry {
    pub(super) auth: Auth,
    pub(super) files: Files,
    pub(super) leftovers: Leftovers,
    pub(super) environment: Environment,
    pub(super) session_window: Duration,
    pub(super) forgotten_after: Duration,
    pub(super) patience: Patience,
    pub(super) limits: Limits,
    pub(super) memory: Memory,
    retained: Mutex<Retained<Addr<Process>>>,
    sessions: Mutex<Sessions>,
    connections: Mutex<HashMap<u64, Arc<Outbox>>>,
    /// The last connection has ended.
    all_ended: Notify,
    pub(super) counts: Counts,
    pub(super) journal: Journal,
}

#[derive(Default)]
struct Sessions {
    by_id: HashMap<String, Addr<Session>>,
    /// No more are begun.
    is_stopping: bool,
}

/// A connection, until it has ended.
pub(super) struct Admitted {
    registry: Arc<Registry>,
    number: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut connections = self.registry.lock_connections();
        connections.remove(&self.number);
        if connections.is_empty() {
            self.registry.all_ended.notify_waiters();
        }
    }
}

/// How many there are now, and how many connections there have been.
#[derive(Debug, Default)]
pub(super) struct Counts {
    admitted: AtomicU64,
    pub(super) sessions: Arc<AtomicUsize>,
    pub(super) processes: Arc<AtomicUsize>,
}

/// One that is counted as long as it is there.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registry {
    pub(super) fn new(
        auth: Auth,
        files: Files,
        leftovers: Leftovers,
        session_window: Duration,
        forgotten_after: Duration,
        patience: Patience,
        limits: Limits,
    ) -> Self {
        Registry {
            memory: Memory::new(limits.max_held_bytes),
            retained: Mutex::new(Retained::new(limits.max_retained_bytes)),
            limits,
            auth,
            files,
            leftovers,
            environment: Environment::look(session_window),
            session_window,
            forgotten_after,
            patience,
            sessions: Mutex::default(),
            connections: Mutex::default(),
            all_ended: Notify::new(),
            counts: Counts::default(),
            journal: Journal::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the output that is retained of a process that has ended now, and has that of others dropped where it is too much.
    pub(super) fn retain(&self, process: Addr<Process>, bytes: usize) {
        for process in self.lock_retained().add(process, bytes) {
            process.do_send(DropOutput);
        }
    }

    /// Counts the output of a process no more.
    pub(super) fn release(&self, process: &Addr<Process>) {
        self.lock_retained().remove(process);
    }

    fn lock_retained(&self) -> MutexGuard<'_, Retained<Addr<Process>>> {
        self.retained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a session, unless the server is stopping.
    pub(super) fn add(&self, id: String, session: Addr<Session>) -> bool {
        let mut sessions = self.lock();
        if !sessions.is_stopping {
            sessions.by_id.insert(id, session);
        }
        !sessions.is_stopping
    }

    pub(super) fn find(&self, id: &str) -> Option<Addr<Session>> {
        self.lock().by_id.get(id).cloned()
    }

    pub(super) fn remove(&self, id: &str) {
        self.lock().by_id.remove(id);
    }

    fn lock_connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<Outbox>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection, if there is room for it.
    pub(super) fn admit(self: &Arc<Self>, outbox: &Arc<Outbox>) -> Option<Admitted> {
        let mut connections = self.lock_connections();
        if connections.len() >= self.limits.max_connections {
            return None;
        }
        let number = self.counts.admitted.fetch_add(1, Ordering::Relaxed);
        connections.insert(number, outbox.clone());
        Some(Admitted {
            registry: self.clone(),
            number,
        })
    }

    /// Counts the connections.
    pub(super) fn connections(&self) -> usize {
        self.lock_connections().len()
    }

    /// Waits until the last connection has ended.
    pub(super) async fn all_ended(&self) {
        loop {
            let ended = self.all_ended.notified();
            if self.connections() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Ends all connections, and returns all sessions. None is added any more.
    pub(super) fn close(&self) -> Vec<Addr<Session>> {
        for outbox in self.lock_connections().values() {
            outbox.close();
        }
        let mut sessions = self.lock();
        if !sessions.is_stopping {
            self.journal.stops();
        }
        sessions.is_stopping = true;
        sessions.by_id.drain().map(|(_, session)| session).collect()
    }
}
