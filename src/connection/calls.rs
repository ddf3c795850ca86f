//! The calls of a connection: made by its actor, answered by the task that reads, in turns on one thread.
//!
//! An answer is decoded where it lies in the read buffer and goes straight to who waits for it: through the mailbox of
//! the actor, it would take two messages more.

use std::cell::{Cell, RefCell};

use log::debug;

use super::{
    outgoing::Outgoing,
    pending::{Entry, Pending, RequestId},
};
use crate::{
    error::{CallError, JsonError},
    protocol::{FileContent, jsonrpc::ErrorObject},
};

/// The table of calls that wait for an answer, and what answers without a call are counted as.
pub(super) struct Calls {
    pub(super) pending: RefCell<Pending>,
    outgoing: Outgoing,
    unknown_answers: Cell<u64>,
    connection_errors: Cell<u64>,
}

impl Calls {
    pub(super) fn new(pending: Pending, outgoing: Outgoing) -> Self {
        Calls {
            pending: RefCell::new(pending),
            outgoing,
            unknown_answers: Cell::new(0),
            connection_errors: Cell::new(0),
        }
    }

    /// Hands over a result; `None` if the server left it out.
    pub(super) fn succeed(&self, id: RequestId, result: Option<&str>) {
        let Some(Entry { method, slot, .. }) = self.take_answered(id) else {
            return;
        };
        slot.resolve(result.ok_or_else(|| CallError::InvalidResponse {
            method,
            source: JsonError::new("it has neither result nor error"),
        }));
    }

    /// Hands over a result that is what a file holds, decoded already.
    pub(super) fn succeed_with_file(&self, id: RequestId, file: FileContent) {
        if let Some(entry) = self.take_answered(id) {
            entry.slot.resolve_file(file);
        }
    }

    /// Hands over the server's refusal.
    pub(super) fn reject(&self, id: RequestId, error: ErrorObject) {
        if let Some(Entry { method, slot, .. }) = self.take_answered(id) {
            slot.resolve(Err(CallError::Rejected {
                method,
                code: error.code,
                message: error.message,
            }));
        }
    }

    /// Notes an answer to an id that this client does not await, or never gives.
    pub(super) fn count_unknown_answer(&self) {
        self.unknown_answers.set(self.unknown_answers.get() + 1);
    }

    /// Notes that the server could not read a message.
    pub(super) fn count_connection_error(&self) {
        self.connection_errors.set(self.connection_errors.get() + 1);
    }

    pub(super) fn unknown_answers(&self) -> u64 {
        self.unknown_answers.get()
    }

    pub(super) fn connection_errors(&self) -> u64 {
        self.connection_errors.get()
    }

    /// Takes out the call that is answered, if there is one. The table is not borrowed while its slot resolves.
    fn take_answered(&self, id: RequestId) -> Option<Entry> {
        self.outgoing.answered(id);
        let entry = self.pending.borrow_mut().take(id);
        if entry.is_none() {
            debug!(id; "answer to no known call ignored");
            self.count_unknown_answer();
        }
        entry
    }
}
