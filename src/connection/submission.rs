//! How a call is made: whether it may be, its request on its way, and the end of those whose time is up.

use std::mem;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    ABANDONED_CHECK, Call, Connection,
    call::Submitted,
    pending::{Entry, RequestId},
    queue::{Refused, Request},
};
use crate::{
    error::CallError,
    protocol::{Method, Repeat, jsonrpc},
};

/// How much memory is kept for the next request.
const KEPT_SCRATCH: usize = 1 << 10;

impl Connection {
    /// Writes a request, or queues it. Returns the id under which its answer is to be awaited, and the request if it is
    /// to be made again when the answer is lost.
    fn submit<M: Method>(
        &mut self,
        call: &Call<M>,
        repeat: Repeat,
    ) -> Result<(RequestId, Option<Request>), CallError> {
        let method = &call.method;
        if let Some(reason) = self.lifecycle.refusal() {
            return Err(CallError::Disconnected {
                method: M::NAME,
                reason,
                sent: false,
            });
        }
        method
            .supported_by(&self.server.capabilities)
            .map_err(|missing| CallError::unsupported(M::NAME, missing))?;
        let in_flight = self.calls.pending.borrow().len();
        let refused = |refused, queued_bytes| match refused {
            Refused::Full => CallError::Overloaded {
                method: M::NAME,
                in_flight,
                queued_bytes,
            },
            Refused::Stuck(process_id) => CallError::Stuck {
                method: M::NAME,
                process_id,
            },
        };
        if in_flight >= self.config.max_calls_in_flight && !call.exceeds_cap {
            return Err(refused(Refused::Full, self.outgoing.queued_bytes()));
        }
        let lane = method.lane();
        let stuck = self.outgoing.queue_quietly().check(lane);
        stuck.map_err(|why| refused(why, 0))?;
        let id = self.calls.pending.borrow_mut().next_id();
        let mut json = mem::take(&mut self.scratch);
        jsonrpc::write_request(id, method, self.server.dialect, &mut json).map_err(|source| {
            CallError::InvalidRequest {
                method: M::NAME,
                source,
            }
        })?;
        let is_repeatable = match repeat {
            Repeat::Never => false,
            Repeat::Always => true,
            Repeat::ById => self.server.dialect.deduplicates_writes,
        };
        let is_repeated = is_repeatable && self.lifecycle.can_resume();
        // Where nothing else is under way, there is nothing that it should be written together with. If the link is over,
        // it is for the next one.
        let link = self
            .link
            .as_ref()
            .filter(|link| !link.hearing.is_over.get());
        let writer = link.and_then(|link| link.writer.as_ref());
        let is_written =
            in_flight == 0 && writer.is_some_and(|writer| writer.write_at_once(lane, id, &json));
        if is_written && !is_repeated {
            self.recycle(json);
            return Ok((id, None));
        }
        let request = Request {
            id,
            json: self.keep(json),
            turn: lane.into(),
        };
        if is_written {
            return Ok((id, Some(request)));
        }
        let repeat = is_repeated.then(|| request.clone());
        let mut queue = self.outgoing.queue();
        queue
            .push(lane, request)
            .map_err(|why| refused(why, queue.bytes()))?;
        Ok((id, repeat))
    }

    /// Returns a request to be kept. A copy of a small one has its exact size: more room would be another allocation.
    fn keep(&mut self, json: Vec<u8>) -> Bytes {
        if json.capacity() > KEPT_SCRATCH {
            return json.into();
        }
        let exact = Bytes::copy_from_slice(&json);
        self.recycle(json);
        exact
    }

    /// Keeps the memory of a request for the next one, if it is not much.
    fn recycle(&mut self, mut json: Vec<u8>) {
        if json.capacity() <= KEPT_SCRATCH {
            json.clear();
            self.scratch = json;
        }
    }

    /// Makes room, sends the request, and sees to its deadline.
    pub(super) fn call<M: Method>(
        &mut self,
        call: &Call<M>,
        repeat: Repeat,
    ) -> Result<Submitted, CallError> {
        let in_flight = self.calls.pending.borrow().len();
        let now = (in_flight > 0).then(|| self.make_room(in_flight));
        let (id, repeat) = self.submit(call, repeat)?;
        // Of a call by itself the clock is read when it is on its way.
        let now = now.unwrap_or_else(Instant::now);
        let timeout = call.timeout.unwrap_or(self.config.call_timeout);
        self.sweeper.before(now + timeout.min(ABANDONED_CHECK));
        Ok(Submitted {
            id,
            now,
            timeout,
            repeat,
            calls: self.calls.clone(),
        })
    }

    /// Sweeps if it is time to, or if that may find room for another call. Returns what time it is.
    fn make_room(&mut self, in_flight: usize) -> Instant {
        let now = Instant::now();
        let is_full = in_flight >= self.config.max_calls_in_flight;
        if self.sweeper.is_due(now) || is_full && self.sweeper.may_find_room(now) {
            self.sweep(now);
        }
        now
    }

    /// Ends the calls whose time is up and drops those that nobody waits for.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.sweeper.swept(now);
        loop {
            // In a statement of its own: the table is not borrowed while the slot resolves.
            let expired = self.calls.pending.borrow_mut().take_expired(now);
            let Some((id, entry)) = expired else {
                break;
            };
            let Entry {
                method,
                timeout,
                slot,
                repeats,
                ..
            } = entry;
            // Not sent after its caller was told.
            let is_unsent = self.outgoing.queue().remove(id) && repeats == 0;
            slot.resolve(Err(CallError::DeadlineExceeded {
                method,
                after: timeout,
                sent: !is_unsent,
            }));
        }
        let mut pending = self.calls.pending.borrow_mut();
        let abandoned = pending.remove_abandoned();
        let mut queue = self.outgoing.queue_quietly();
        for id in abandoned {
            queue.remove_start(id);
        }
        if queue.expire_starts(now) {
            self.outgoing.write_soon();
        }
        drop(queue);
        if let Some(deadline) = pending.next_deadline() {
            self.sweeper.before(deadline.min(now + ABANDONED_CHECK));
        }
        drop(pending);
        self.look_for_stuck(now);
    }
}
