//! What a session is, and what it is told.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use actix::{Message, Recipient, WeakRecipient};
use bytes::Bytes;

use crate::{
    error::FailureReason,
    protocol::{ProcessId, Stream},
};

/// What happens to the process of a session, in order.
///
/// A session gets each event once, in the order of `seq`, and one of [`Closed`] and [`Failed`] as
/// the last.
#[derive(Debug)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The process wrote something.
    Output(Output),
    /// The process ended. Output may still follow.
    Exited(Exited),
    /// The process has ended and all its output has been delivered. Nothing follows.
    Closed(Closed),
    /// The end of the process will not be known. Nothing follows.
    Failed(Failed),
}

impl Message for SessionEvent {
    type Result = ();
}

/// A piece of output.
///
/// As long as it exists it counts against the session's budget
/// ([`Config::session_budget`](crate::Config::session_budget)): drop it when it is consumed.
#[non_exhaustive]
pub struct Output {
    /// The process.
    pub process_id: ProcessId,
    /// Its place among all events of the process, from 1.
    pub seq: u64,
    /// Where the process wrote it. The order of `seq` says nothing about the order in which a process
    /// wrote to different streams.
    pub stream: Stream,
    /// The bytes, mostly at most 8 KiB. A character may be split between two pieces.
    pub chunk: Bytes,
    pub(crate) _permit: Permit,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("process_id", &self.process_id)
            .field("seq", &self.seq)
            .field("stream", &self.stream)
            .field("bytes", &self.chunk.len())
            .finish()
    }
}

/// The process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exited {
    /// The process.
    pub process_id: ProcessId,
    /// Its place among all events of the process.
    pub seq: u64,
    /// The exit code. A process ended by signal n has 128 + n on servers from 0.140 on, and -1 on
    /// older ones.
    pub exit_code: i32,
    /// Whether the sandbox refused it something (servers from 0.150 on).
    pub sandbox_denied: Option<bool>,
}

/// The process has ended and so have its streams.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// The process.
    pub process_id: ProcessId,
    /// Its place among all events of the process: the last.
    pub seq: u64,
    /// The exit code, if the server told it.
    pub exit_code: Option<i32>,
}

/// What becomes of the process will not be known.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Failed {
    /// The process.
    pub process_id: ProcessId,
    /// Why.
    pub reason: FailureReason,
    /// The `seq` of the last event delivered before this one, 0 if there was none.
    pub last_seq: u64,
}

/// The actor that receives the events of a process, held or only known.
///
/// Made from a [`Recipient`], it is held until its process has ended: a session that nobody else
/// holds lives as long as its process. Made from a [`WeakRecipient`], it is left to whoever owns it.
/// Either way, when it stops before its process has ended, the process is terminated.
#[derive(Debug, Clone)]
pub struct Session(Holding);

#[derive(Debug, Clone)]
enum Holding {
    Strong(Recipient<SessionEvent>),
    Weak(WeakRecipient<SessionEvent>),
}

impl Session {
    /// Returns where its events go, or `None` if its actor has stopped.
    ///
    /// What is sent there with `do_send` is queued without bound of the mailbox's; the bound is the
    /// permits that outputs carry.
    pub(crate) fn reach(&self) -> Option<Cow<'_, Recipient<SessionEvent>>> {
        let recipient = match &self.0 {
            Holding::Strong(recipient) => Cow::Borrowed(recipient),
            Holding::Weak(recipient) => Cow::Owned(recipient.upgrade()?),
        };
        recipient.connected().then_some(recipient)
    }

    /// Sends an event without waiting. It vanishes if the actor has stopped.
    pub(crate) fn send(&self, event: SessionEvent) {
        if let Some(recipient) = self.reach() {
            recipient.do_send(event);
        }
    }

    /// Whether its actor has stopped.
    pub(crate) fn has_stopped(&self) -> bool {
        self.reach().is_none()
    }
}

impl From<Recipient<SessionEvent>> for Session {
    fn from(recipient: Recipient<SessionEvent>) -> Self {
        Session(Holding::Strong(recipient))
    }
}

impl From<WeakRecipient<SessionEvent>> for Session {
    fn from(recipient: WeakRecipient<SessionEvent>) -> Self {
        Session(Holding::Weak(recipient))
    }
}

/// The bytes that one session may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    held: AtomicUsize,
}

impl Budget {
    /// What keeping an output costs beside its bytes: the event, its place in the mailbox, and what
    /// the allocator adds. Without it, a flood of small outputs would hold many times the budget.
    const OVERHEAD: usize = 128;

    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Budget {
            limit,
            held: AtomicUsize::new(0),
        })
    }

    /// Grants `bytes`, until the permit is dropped.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Permit, FailureReason> {
        let bytes = bytes.saturating_add(Self::OVERHEAD);
        // Only the router takes, so that what is read here can only shrink.
        let held = self.held.load(Ordering::Relaxed).saturating_add(bytes);
        if held > self.limit {
            return Err(FailureReason::Overflow {
                held,
                budget: self.limit,
            });
        }
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Ok(Permit {
            budget: self.clone(),
            bytes,
        })
    }
}

/// Credit of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p4_a_budget_grants_up_to_its_limit_and_again_what_is_given_back() {
        let budget = Budget::new(1000);
        let first = budget.take(372).unwrap();
        let _second = budget.take(372).unwrap();
        match budget.take(0) {
            Err(FailureReason::Overflow {
                held: 1128,
                budget: 1000,
            }) => {}
            other => panic!("{other:?}"),
        }
        drop(first);
        assert!(budget.take(372).is_ok());
        assert!(budget.take(usize::MAX).is_err());
    }

    #[test]
    fn p11_debug_does_not_show_output() {
        let output = Output {
            process_id: "p".into(),
            seq: 1,
            stream: Stream::Stdout,
            chunk: "secret".into(),
            _permit: Budget::new(1000).take(6).unwrap(),
        };
        let shown = format!("{:?}", SessionEvent::Output(output));
        assert!(
            shown.contains("bytes: 6") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
