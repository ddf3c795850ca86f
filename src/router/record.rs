//! The records of processes that are started by a shell, for helper processes to find them: who asks for one,
//! and how they go when they are not needed any more.

use std::{mem, time::Duration};

use actix::{AsyncContext as _, Context, Handler, Message, MessageResult, WeakAddr};
use log::debug;

use super::{Router, routes::Route};
use crate::{
    connection::{Call, Dispatch, ReplySlot},
    error::{CallError, Causes},
    protocol::{ProcessId, Record, Repeat},
};

/// When a removal is tried again that a shutdown waits for.
const AGAIN: Duration = Duration::from_millis(50);

/// Asks how a helper process finds a process.
pub(crate) struct FindRecord {
    pub(crate) process_id: ProcessId,
}

/// Whether a helper process finds a process, and how.
pub(crate) enum Found {
    Recorded {
        record: Record,
        /// Whether the process itself has been heard of, so that the record is written by now if it ever
        /// will be.
        is_written: bool,
    },
    /// It was not started for that.
    NotRecorded,
    /// It is known to have exited: its pid may be another's by now.
    Exited,
    /// It may be another's process, or have ended.
    NoSession,
}

impl Message for FindRecord {
    type Result = Found;
}

/// A record is removed, or has to be tried again.
pub(super) struct RecordRemoved {
    again: Option<Record>,
}

impl Message for RecordRemoved {
    type Result = ();
}

impl Router {
    /// Removes the record of a process that has lost its session.
    pub(super) fn forget_record(&mut self, route: &mut Route, context: &Context<Self>) {
        if let Some(record) = route.record.take() {
            self.remove_record(*record, context);
        }
    }

    pub(super) fn remove_record(&mut self, record: Record, context: &Context<Self>) {
        self.errands += 1;
        self.connection.do_send(Dispatch {
            call: Call::new(record.remove()),
            repeat: Repeat::Always,
            slot: Box::new(RemoveSlot {
                router: context.address().downgrade(),
                record,
            }),
        });
    }

    /// Tries those removals again that have failed.
    pub(super) fn remove_unremoved(&mut self, context: &Context<Self>) {
        for record in mem::take(&mut self.unremoved) {
            self.remove_record(record, context);
        }
    }
}

impl Handler<FindRecord> for Router {
    type Result = MessageResult<FindRecord>;

    fn handle(&mut self, find: FindRecord, _: &mut Self::Context) -> Self::Result {
        MessageResult(match self.routes.get_mut(find.process_id.as_str()) {
            None => Found::NoSession,
            Some(route) if route.delivery.has_exited() => Found::Exited,
            Some(route) => match &route.record {
                None => Found::NotRecorded,
                Some(record) => Found::Recorded {
                    record: (**record).clone(),
                    // A pty echoes what is typed before the process has done anything.
                    is_written: route.delivery.has_begun() && !record.is_tty(),
                },
            },
        })
    }
}

impl Handler<RecordRemoved> for Router {
    type Result = ();

    fn handle(&mut self, removed: RecordRemoved, context: &mut Self::Context) {
        self.errands -= 1;
        if let Some(record) = removed.again {
            self.unremoved.push(record);
            if self.is_draining() {
                context.run_later(AGAIN, |router, context| router.remove_unremoved(context));
            } else {
                // With the next check of the sessions.
                self.check_sessions(context);
            }
        }
        // Servers drop what is not answered when the connection closes.
        self.close_if_drained();
    }
}

/// Where the answer to the removal of a record goes.
struct RemoveSlot {
    router: WeakAddr<Router>,
    record: Record,
}

impl ReplySlot for RemoveSlot {
    fn resolve(self: Box<Self>, outcome: Result<&str, CallError>) {
        let RemoveSlot { router, record } = *self;
        let again = match outcome {
            Ok(_) => None,
            Err(
                CallError::Overloaded { .. }
                | CallError::DeadlineExceeded { .. }
                | CallError::OutcomeUnknown { .. },
            ) => Some(record),
            Err(error) => {
                debug!(error:% = Causes(&error); "the record of a process stays behind");
                None
            }
        };
        if let Some(router) = router.upgrade() {
            router.do_send(RecordRemoved { again });
        }
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}
