//! The sessions of a server, for connections to find them, and how many of what there are.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix::Addr;

use super::{
    auth::Auth, environment::Environment, fs::Files, liveness::Patience, session::Session,
};

/// What all connections of a server share.
pub(super) struct Registry {
    pub(super) auth: Auth,
    pub(super) files: Files,
    pub(super) environment: Environment,
    pub(super) session_window: Duration,
    pub(super) forgotten_after: Duration,
    pub(super) patience: Patience,
    sessions: Mutex<Sessions>,
    pub(super) counts: Counts,
}

#[derive(Default)]
struct Sessions {
    by_id: HashMap<String, Addr<Session>>,
    /// No more are begun.
    is_stopping: bool,
}

/// How many there are now.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) connections: Arc<AtomicUsize>,
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
        session_window: Duration,
        forgotten_after: Duration,
        patience: Patience,
    ) -> Self {
        Registry {
            auth,
            files,
            environment: Environment::look(session_window),
            session_window,
            forgotten_after,
            patience,
            sessions: Mutex::default(),
            counts: Counts::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Returns all sessions, after which none is added any more.
    pub(super) fn close(&self) -> Vec<Addr<Session>> {
        let mut sessions = self.lock();
        sessions.is_stopping = true;
        sessions.by_id.drain().map(|(_, session)| session).collect()
    }
}
