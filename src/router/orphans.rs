//! Processes that have lost their sessions: they are terminated.

use actix::{AsyncContext as _, Context, Handler, Message, WeakAddr};
use bytestring::ByteString;
use log::debug;

use super::Router;
use crate::{
    connection::{Call, Dispatch, ReplySlot},
    error::CallError,
    protocol::{ProcessId, Repeat, Terminate},
};

/// A process without a session could not be asked to terminate, or has not answered.
struct Unterminated {
    process_id: ProcessId,
}

impl Message for Unterminated {
    type Result = ();
}

impl Router {
    /// Ends a process that has no session any more.
    pub(super) fn terminate(&mut self, process_id: ProcessId, context: &mut Context<Self>) {
        debug!(process_id:%; "terminating a process without a session");
        self.connection.do_send(Dispatch {
            call: Call::new(Terminate::new(&process_id)),
            repeat: Repeat::Always,
            slot: Box::new(TerminateSlot {
                router: context.address().downgrade(),
                process_id,
            }),
        });
    }
}

/// Where the answer to the termination of an orphan goes.
struct TerminateSlot {
    router: WeakAddr<Router>,
    process_id: ProcessId,
}

impl ReplySlot for TerminateSlot {
    fn resolve(self: Box<Self>, outcome: Result<ByteString, CallError>) {
        match outcome {
            // It may not have been sent, or the server may not have got it.
            Err(
                CallError::Overloaded { .. }
                | CallError::DeadlineExceeded { .. }
                | CallError::OutcomeUnknown { .. },
            ) => {
                if let Some(router) = self.router.upgrade() {
                    router.do_send(Unterminated {
                        process_id: self.process_id,
                    });
                }
            }
            Err(error) => debug!(process_id:% = self.process_id, error:%; "not terminated"),
            Ok(_) => {}
        }
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

impl Handler<Unterminated> for Router {
    type Result = ();

    fn handle(&mut self, unterminated: Unterminated, context: &mut Self::Context) {
        // Tried again with the next check of the sessions.
        self.orphans.push(unterminated.process_id);
        self.check_sessions(context);
    }
}
