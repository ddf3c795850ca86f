//! How much a server holds for its clients, in bytes, and the account that all of them share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::envelope::RpcError;

/// How much a server holds for its clients. Beyond a limit a request is refused with a reason, or waits until there is room.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// How many clients may be connected at once. A further one is refused with HTTP status 503. 1,024 by default.
    pub max_connections: usize,
    /// How long a client may take from the WebSocket upgrade to a successful `initialize`. After that its connection is closed. 10 s
    /// by default.
    pub initialize_timeout: Duration,
    /// The largest message of a client, in bytes. A larger one is refused from the header of its frame, and the connection is closed.
    /// 64 MiB by default, as the releases have it. Before `initialize`, 64 KiB.
    pub max_message_size: usize,
    /// How many bytes one connection may have waiting in each direction: requests about files that wait to be carried out, and answers
    /// that wait for the socket. With more than that, no more requests of this client are read. One answer may be larger than that
    /// when no other one waits. 64 MiB by default.
    pub max_queued_bytes: usize,
    /// How many bytes may wait for one process to read its stdin. With more than that, writes are not answered until the process has
    /// read; when as much again waits for its answer, further writes are refused. 16 MiB by default.
    pub max_stdin_bytes: usize,
    /// How many bytes of all clients together may be held: messages that arrive, requests and answers that wait, input that
    /// processes have not read. With more than that, requests are refused. 1 GiB by default. The largest answer, a file of 512 MiB in
    /// base64, takes 683 MiB.
    pub max_held_bytes: usize,
    /// How many bytes of output may be retained of all processes that have ended, for clients that come back. With more than that,
    /// the output of those that ended first is dropped, which their clients are told as a gap. 64 MiB by default. Running processes
    /// are not counted: each retains up to 1 MiB.
    pub max_retained_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 1024,
            initialize_timeout: Duration::from_secs(10),
            max_message_size: 64 << 20,
            max_queued_bytes: 64 << 20,
            max_stdin_bytes: 16 << 20,
            max_held_bytes: 1 << 30,
            max_retained_bytes: 64 << 20,
        }
    }
}

/// Counts the bytes that a server holds for all of its clients. A clone counts in the same account.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    held: Arc<AtomicUsize>,
    limit: usize,
}

impl Memory {
    pub(super) fn new(limit: usize) -> Self {
        Memory {
            held: Arc::default(),
            limit,
        }
    }

    /// Counts so many bytes as held until the returned value is dropped.
    pub(super) fn hold(&self, bytes: usize) -> Result<Held, OverLimit> {
        let added = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.limit);
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, added)
            .map(|_| Held {
                held: self.held.clone(),
                bytes,
            })
            .map_err(|_| OverLimit { limit: self.limit })
    }
}

/// Bytes that are counted in a [`Memory`].
#[derive(Debug)]
pub(super) struct Held {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The server holds as much as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OverLimit {
    limit: usize,
}

impl From<OverLimit> for RpcError {
    fn from(OverLimit { limit }: OverLimit) -> Self {
        RpcError::overloaded(format!(
            "the server holds as much for its clients as it may, {limit} bytes: take the answers that wait, or try again later"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p4_no_more_is_held_than_the_limit_and_what_is_dropped_makes_room() {
        let memory = Memory::new(10);
        let first = memory.hold(6).unwrap();
        assert_eq!(memory.hold(5).unwrap_err(), OverLimit { limit: 10 });
        assert!(memory.hold(usize::MAX).is_err());
        let second = memory.clone().hold(4).unwrap();
        assert!(memory.hold(1).is_err());
        drop(first);
        assert!(memory.hold(7).is_err());
        drop(second);
        assert!(memory.hold(10).is_ok());
    }
}
