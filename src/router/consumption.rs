//! What sessions consume: what they have missed is read then, and a server that holds their processes back is
//! told.

use actix::{Handler, Message, MessageResult};

use super::{Router, routes::RouteKey};
use crate::{connection::TellConsumed, protocol::ProcessId};

/// A session has consumed so much that it may be told more, or that the server is to be told.
pub(super) struct CreditReturned {
    pub(super) process_id: ProcessId,
    pub(super) key: RouteKey,
}

impl Message for CreditReturned {
    type Result = ();
}

/// Asks how many bytes of the output of a process its session holds, if the process waits for them to be consumed.
pub(crate) struct FindUnconsumed {
    pub(crate) process_id: ProcessId,
}

impl Message for FindUnconsumed {
    type Result = Option<usize>;
}

impl Router {
    /// Has the server let a process write on that it holds back.
    fn tell_consumed(&self, process_id: ProcessId, seq: u64) {
        self.connection.do_send(TellConsumed { process_id, seq });
    }

    /// Tells the server again what may have been lost with the link.
    pub(super) fn repeat_consumed(&mut self, process_id: ProcessId) {
        if let Some(route) = self.routes.get_mut(process_id.as_str())
            && let Some(seq) = route.delivery.told_consumed()
        {
            self.tell_consumed(process_id, seq);
        }
    }
}

impl Handler<CreditReturned> for Router {
    type Result = ();

    fn handle(&mut self, returned: CreditReturned, context: &mut Self::Context) {
        let CreditReturned { process_id, key } = returned;
        let Some(route) = self.routes.get_keyed(&process_id, key) else {
            return self.unpark(context);
        };
        let has_room = route.delivery.credit_returned();
        if let Some(seq) = route.delivery.consumed() {
            self.tell_consumed(process_id.clone(), seq);
        }
        if has_room {
            self.queue_read(&process_id);
            self.read_next(context);
            self.unpark(context);
        }
    }
}

impl Handler<FindUnconsumed> for Router {
    type Result = MessageResult<FindUnconsumed>;

    fn handle(&mut self, find: FindUnconsumed, _: &mut Self::Context) -> Self::Result {
        let route = self.routes.get_mut(find.process_id.as_str());
        MessageResult(route.and_then(|route| route.delivery.holds_up()))
    }
}
