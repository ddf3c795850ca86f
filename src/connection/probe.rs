//! The question whether the server still answers anything.

use actix::{Message, WeakAddr};
use bytestring::ByteString;

use super::{Connection, pending::ReplySlot};
use crate::error::CallError;

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
    fn resolve(self: Box<Self>, outcome: Result<ByteString, CallError>) {
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
