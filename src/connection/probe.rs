//! Writes that a process does not take: the question whether the server still answers anything, and what
//! follows from the answer.

use actix::{Handler, Message, WeakAddr};
use log::debug;
use tokio::time::Instant;

use super::{
    ABANDONED_CHECK, Connection,
    pending::{Entry, ReplySlot, after},
    queue::Request,
};
use crate::{
    error::{CallError, DisconnectReason},
    protocol::{Method as _, ProcessId, ReadProcess, jsonrpc},
};

/// The question is answered, or is not.
pub(super) struct Probed {
    /// On which link it was asked.
    pub(super) link: u64,
    pub(super) is_answered: bool,
}

impl Message for Probed {
    type Result = ();
}

/// Where the answer goes.
pub(super) struct ProbeSlot {
    pub(super) connection: WeakAddr<Connection>,
    pub(super) link: u64,
}

impl ReplySlot for ProbeSlot {
    fn resolve(self: Box<Self>, outcome: Result<&str, CallError>) {
        if let Some(connection) = self.connection.upgrade() {
            connection.do_send(Probed {
                link: self.link,
                is_answered: matches!(outcome, Ok(_) | Err(CallError::Rejected { .. })),
            });
        }
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

impl Connection {
    /// Looks for writes that their processes do not take.
    pub(super) fn look_for_stuck(&mut self, now: Instant) {
        let timeout = self.config.write_timeout;
        let pending = self.calls.pending.borrow();
        let queue = self.outgoing.queue();
        let suspect = queue.blocking(now, timeout).or_else(|| {
            // Their callers were told that it has taken too long; those behind need not wait for that.
            let given_up = queue.overdue(now, timeout, |id| !pending.contains(id));
            given_up.into_iter().next()
        });
        let next = queue.next_overdue(timeout);
        drop((pending, queue));
        if let Some(next) = next {
            self.sweeper.before(next.max(now + ABANDONED_CHECK));
        }
        // Without resume there is no remedy for a connection that is blocked.
        if let Some(process_id) = suspect
            && self.probed.is_none()
            && self.lifecycle.is_open()
            && self.lifecycle.can_resume()
        {
            self.probe(&process_id, now);
        }
    }

    /// Asks the server whether it answers anything: with a call, and on the level of the WebSocket, where
    /// it answers also when a call holds up all others.
    pub(super) fn probe(&mut self, process_id: &ProcessId, now: Instant) {
        let Some(link) = &self.link else {
            return;
        };
        // In the lane that is suspected to be blocked; whatever the answer is.
        let probe = ReadProcess::new(process_id).max_bytes(1);
        let id = self.calls.pending.borrow_mut().next_id();
        let Ok(json) = jsonrpc::encode_request(id, &probe, self.server.dialect) else {
            return;
        };
        debug!(process_id:%; "a write is not answered, asking whether anything is");
        link.answers.ping();
        self.outgoing.queue().push_probe(Request {
            id,
            json: json.into(),
            is_control: false,
        });
        self.probed = Some(now);
        let timeout = self.config.probe_timeout;
        let entry = Entry {
            method: ReadProcess::NAME,
            timeout,
            slot: Box::new(ProbeSlot {
                connection: self.sweeper.connection(),
                link: self.links,
            }),
            repeat: None,
            repeats: 0,
        };
        self.calls.pending.borrow_mut().insert(id, now, entry);
        self.sweeper.before(after(now, timeout));
    }

    /// Ends all writes to a process that does not read.
    pub(super) fn give_up_stdin(&mut self, process_id: &ProcessId) {
        let writes = self.outgoing.queue().mark_stuck(process_id);
        debug!(process_id:%, writes = writes.len(); "the process does not read its stdin");
        for id in writes {
            let entry = self.calls.pending.borrow_mut().take(id);
            if let Some(Entry { method, slot, .. }) = entry {
                let process_id = process_id.clone();
                slot.resolve(Err(CallError::Stuck { method, process_id }));
            }
        }
    }
}

impl Handler<Probed> for Connection {
    type Result = ();

    fn handle(&mut self, probed: Probed, context: &mut Self::Context) {
        if probed.link != self.links {
            return;
        }
        let (Some(since), Some(link)) = (self.probed.take(), &self.link) else {
            return;
        };
        let (now, timeout) = (Instant::now(), self.config.write_timeout);
        let queue = self.outgoing.queue();
        if probed.is_answered {
            let pending = self.calls.pending.borrow();
            let given_up = queue.overdue(now, timeout, |id| !pending.contains(id));
            drop((queue, pending));
            for process_id in given_up {
                self.give_up_stdin(&process_id);
            }
            return;
        }
        // The peer has the question, is there, and its words are read: so it is the write that it hangs on.
        let is_heard = link.hearing.last.get().is_some_and(|last| last >= since)
            && !link.hearing.is_delivering.get()
            && !queue.is_flowing(since);
        let blocking = queue.blocking(now, timeout).filter(|_| is_heard);
        drop(queue);
        if let Some(process_id) = blocking {
            self.give_up_stdin(&process_id);
            self.lose(DisconnectReason::Wedged { process_id }, context);
        }
    }
}
