//! The calls of a connection: made by its actor, answered by the task that reads, in turns on one thread.
//!
//! An answer is decoded where it lies in the read buffer and goes straight to who waits for it: through the mailbox of
//! the actor, it would take two messages more. What is for the router follows the notifications of the same read.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};

use log::debug;

use super::{
    outgoing::Outgoing,
    pending::{Entry, Pending, ReplySlot, RequestId},
};
use crate::{
    error::{CallError, JsonError},
    protocol::{FileContent, jsonrpc::ErrorObject},
};

/// The table of calls that wait for an answer, and what answers without a call are counted as.
pub(super) struct Calls {
    pub(super) pending: RefCell<Pending>,
    outgoing: Outgoing,
    /// Answers that have come, and follow the notifications that have come with them.
    postponed: RefCell<VecDeque<Postponed>>,
    unknown_answers: Cell<u64>,
    connection_errors: Cell<u64>,
}

/// An answer, and who gets it.
struct Postponed {
    slot: Box<dyn ReplySlot>,
    outcome: Result<String, CallError>,
}

impl Calls {
    pub(super) fn new(pending: Pending, outgoing: Outgoing) -> Self {
        Calls {
            pending: RefCell::new(pending),
            outgoing,
            postponed: RefCell::default(),
            unknown_answers: Cell::new(0),
            connection_errors: Cell::new(0),
        }
    }

    /// Hands over a result; `None` if the server left it out.
    pub(super) fn succeed(&self, id: RequestId, result: Option<&str>) {
        let Some(Entry { method, slot, .. }) = self.take_answered(id) else {
            return;
        };
        let outcome = result.ok_or_else(|| CallError::InvalidResponse {
            method,
            source: JsonError::new("it has neither result nor error"),
        });
        self.hand_over(slot, outcome);
    }

    /// Hands over the result that `json` begins with, if only the end of the answer is behind it and who waits for it
    /// can tell. If not, nothing has happened.
    pub(super) fn succeed_at_once(&self, id: RequestId, json: &str) -> bool {
        let entry = self.pending.borrow_mut().take(id);
        let Some(mut entry) = entry else {
            return false;
        };
        let is_resolved = entry.slot.resolve_at_once(json);
        if is_resolved {
            self.outgoing.answered(id);
        } else {
            self.pending.borrow_mut().put_back(id, entry);
        }
        is_resolved
    }

    /// Hands over a result that is what a file holds, decoded already.
    pub(super) fn succeed_with_file(&self, id: RequestId, file: FileContent) {
        match self.take_answered(id) {
            Some(entry) if entry.slot.follows_notifications() => {
                self.hand_over(entry.slot, Ok(&file.to_json()));
            }
            Some(entry) => entry.slot.resolve_file(file),
            None => {}
        }
    }

    /// Hands over the server's refusal.
    pub(super) fn reject(&self, id: RequestId, error: ErrorObject) {
        if let Some(Entry { method, slot, .. }) = self.take_answered(id) {
            self.hand_over(slot, Err(CallError::rejected(method, error)));
        }
    }

    fn hand_over(&self, slot: Box<dyn ReplySlot>, outcome: Result<&str, CallError>) {
        if slot.follows_notifications() {
            let outcome = outcome.map(str::to_owned);
            self.postponed
                .borrow_mut()
                .push_back(Postponed { slot, outcome });
        } else {
            slot.resolve(outcome);
        }
    }

    /// Hands over what has waited until the notifications before it were on their way.
    pub(super) fn hand_over_postponed(&self) {
        loop {
            // In a statement of its own: not borrowed while the slot resolves.
            let postponed = self.postponed.borrow_mut().pop_front();
            match postponed {
                Some(Postponed { slot, outcome }) => match outcome {
                    Ok(json) => slot.resolve(Ok(&json)),
                    Err(error) => slot.resolve(Err(error)),
                },
                None => break,
            }
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
