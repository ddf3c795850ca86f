//! What a server writes to the log: its own start and stop, its clients, their sessions and processes, and what it refuses.
//!
//! No line holds a secret: no token, no id of a session (which lets anyone resume it; they are numbered here), and of a
//! command only the program. What clients have chosen is quoted, so that it cannot pass for a line of its own. What one who is
//! let in cannot do often is written each time; refusals, which anyone can cause, only so many in a while.

use std::{
    fmt::Display,
    net::SocketAddr,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use log::{debug, info, warn};

use super::envelope::RpcError;

/// How many refusals are written in each [`WHILE`].
const REFUSALS: u32 = 20;
const WHILE: Duration = Duration::from_secs(10);

/// Writes the lines.
#[derive(Debug, Default)]
pub(super) struct Journal {
    sessions: AtomicU64,
    refusals: Mutex<Refusals>,
}

impl Journal {
    pub(super) fn listens(&self, address: SocketAddr, clients: &str, root: Option<&Path>) {
        info!(address:%, clients, root:?; "the server listens");
    }

    pub(super) fn stops(&self) {
        info!("the server stops");
    }

    /// A session has begun. Returns its number.
    pub(super) fn session_begins(&self, peer: &str) -> u64 {
        let session = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        info!(session, peer; "a session begins");
        session
    }

    pub(super) fn session_resumed(&self, session: u64, peer: &str) {
        info!(session, peer; "a session is resumed");
    }

    /// The connection of a session is gone, and the client has so long to come back.
    pub(super) fn session_waits(&self, session: u64, window: Duration) {
        info!(session, window_seconds = window.as_secs(); "a session waits for its client");
    }

    pub(super) fn session_ends(&self, session: u64) {
        info!(session; "a session ends, and its processes with it");
    }

    pub(super) fn process_starts(&self, session: u64, process_id: &str, program: &str) {
        info!(session, process_id:?, program:?; "a process starts");
    }

    pub(super) fn process_exits(&self, session: u64, process_id: &str, exit_code: i32) {
        info!(session, process_id:?, exit_code; "a process has exited");
    }

    pub(super) fn start_refused(&self, session: u64, process_id: &str, why: &RpcError) {
        self.seldom(|left_out| {
            info!(session, process_id:?, why:? = why.message, left_out; "a start is refused");
        });
    }

    /// A client is not let in, or sent away.
    pub(super) fn client_refused(&self, peer: &str, why: impl Display) {
        self.seldom(|left_out| warn!(peer, why:%, left_out; "a client is refused"));
    }

    /// A request is refused for lack of room.
    pub(super) fn request_refused(&self, peer: &str, why: &RpcError) {
        self.seldom(|left_out| warn!(peer, why:? = why.message, left_out; "a request is refused"));
    }

    /// A connection ends in an order that is foreseen.
    pub(super) fn connection_ends(&self, peer: &str, was_introduced: bool, why: impl Display) {
        match was_introduced {
            true => info!(peer, why:%; "a connection ends"),
            false => debug!(peer, why:%; "a connection ends before it has begun a session"),
        }
    }

    /// Writes a line that anyone can cause, with the number of those that were left out before, unless there are too many.
    fn seldom(&self, write: impl FnOnce(u64)) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = refusals.add(Instant::now());
        drop(refusals);
        if let Some(left_out) = left_out {
            write(left_out);
        }
    }
}

/// How many lines there were of late. No clock.
#[derive(Debug, Default)]
struct Refusals {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Refusals {
    /// Adds one. Returns how many were left out before it, if it is to be written.
    fn add(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now >= since + WHILE) {
            self.since = Some(now);
            self.written = 0;
        }
        if self.written == REFUSALS {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_written() {
        let mut refusals = Refusals::default();
        let begun = Instant::now();
        for n in 0..REFUSALS {
            assert_eq!(refusals.add(begun), Some(0), "{n}");
        }
        for n in 0..1000 {
            let at = begun + WHILE.mul_f64(f64::from(n) / 1000.0);
            assert_eq!(refusals.add(at), None, "{n}");
        }
        assert_eq!(refusals.add(begun + WHILE), Some(1000));
        assert_eq!(refusals.add(begun + WHILE), Some(0));
    }
}
