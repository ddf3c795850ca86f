//! Reads that refill sessions: whose turn it is, and where the answers go.

use std::collections::VecDeque;

use actix::{AsyncContext as _, Context, Handler, Message, WeakAddr};
use log::debug;
use tokio::time::Instant;

use super::{Router, delivery::Fruitless, parking::Following, routes::RouteKey};
use crate::{
    connection::{Call, Dispatch, ReplySlot, decode_response},
    error::{CallError, Causes},
    protocol::{ErrorCode, ProcessId, ReadProcess, Repeat, RetainedOutput, words},
};

/// How many reads may be under way at a time. Servers handle the requests of a connection one after the
/// other: calls of the application wait behind no more than these.
const MAX_READS: usize = 4;

/// Sessions that want to read, in turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    queue: VecDeque<(ProcessId, RouteKey)>,
    under_way: usize,
    /// Counts the links: what was read on an old one does not count on the new.
    link: Link,
    is_down: bool,
}

/// One of the links that a connection has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Link(u64);

impl Turns {
    pub(super) fn push(&mut self, process_id: ProcessId, key: RouteKey) {
        self.queue.push_back((process_id, key));
    }

    /// For those who hold what they have read until they have read the rest.
    pub(super) fn push_first(&mut self, process_id: ProcessId, key: RouteKey) {
        self.queue.push_front((process_id, key));
    }

    /// Whether nothing can be read for now.
    pub(super) fn is_down(&self) -> bool {
        self.is_down
    }

    /// Returns whose turn it is, if there is one and not too much is being read.
    pub(super) fn next(&mut self) -> Option<(ProcessId, RouteKey)> {
        if self.is_down || self.under_way >= MAX_READS {
            return None;
        }
        self.queue.pop_front()
    }

    /// Notes that a read has begun.
    pub(super) fn begin(&mut self) -> Link {
        self.under_way += 1;
        self.link
    }

    /// Notes that a read has ended.
    pub(super) fn end(&mut self, link: Link) {
        if link == self.link {
            self.under_way -= 1;
        }
    }

    /// Notes that nothing can be read for now, and that what is under way will not be answered.
    pub(super) fn link_down(&mut self) {
        self.is_down = true;
        self.under_way = 0;
        self.link.0 += 1;
    }

    pub(super) fn link_up(&mut self) {
        self.is_down = false;
    }
}

/// A read has been answered, or will not be.
pub(super) struct ReadEnded {
    pub(super) process_id: ProcessId,
    pub(super) key: RouteKey,
    pub(super) number: u64,
    pub(super) link: Link,
    pub(super) outcome: Result<RetainedOutput, CallError>,
}

impl Message for ReadEnded {
    type Result = ();
}

/// Where the answer to a read goes.
pub(super) struct ReadSlot {
    pub(super) router: WeakAddr<Router>,
    pub(super) process_id: ProcessId,
    pub(super) key: RouteKey,
    pub(super) number: u64,
    pub(super) link: Link,
}

impl ReplySlot for ReadSlot {
    fn resolve(self: Box<Self>, outcome: Result<&str, CallError>) {
        if let Some(router) = self.router.upgrade() {
            router.do_send(ReadEnded {
                outcome: outcome.and_then(decode_response::<ReadProcess>),
                process_id: self.process_id,
                key: self.key,
                number: self.number,
                link: self.link,
            });
        }
    }

    fn is_abandoned(&self) -> bool {
        false
    }

    fn follows_notifications(&self) -> bool {
        true
    }
}

impl Router {
    pub(super) fn queue_read(&mut self, process_id: &ProcessId) {
        if let Some(route) = self.routes.get_mut(process_id.as_str())
            && route.delivery.wants_read()
            && !route.is_queued
            // Before it is known to run, there is nothing to read.
            && !route.starting
        {
            route.is_queued = true;
            if route.delivery.is_half_read() {
                self.turns.push_first(process_id.clone(), route.key());
            } else {
                self.turns.push(process_id.clone(), route.key());
            }
        }
    }

    /// Has those read whose turn it is.
    pub(super) fn read_next(&mut self, context: &mut Context<Self>) {
        while let Some((process_id, key)) = self.turns.next() {
            let Some(route) = self.routes.get_keyed(&process_id, key) else {
                continue;
            };
            route.is_queued = false;
            let wanted = route.delivery.next_read();
            // Whatever becomes of it, it may have to be read again.
            self.check_sessions(context);
            let Some(wanted) = wanted else {
                continue;
            };
            debug!(process_id:%, after_seq = wanted.after_seq; "reading what a session has missed");
            let mut read = ReadProcess::new(&process_id).after_seq(wanted.after_seq);
            if let Some(bytes) = wanted.max_bytes {
                read = read.max_bytes(bytes as u64);
            }
            let slot = ReadSlot {
                router: context.address().downgrade(),
                process_id,
                key,
                number: wanted.number,
                link: self.turns.begin(),
            };
            self.connection.do_send(Dispatch {
                call: Call::new(read).beyond_cap(),
                // The new link is asked for everything that was missed.
                repeat: Repeat::Never,
                slot: Box::new(slot),
            });
        }
    }
}

impl Handler<ReadEnded> for Router {
    type Result = ();

    fn handle(&mut self, ended: ReadEnded, context: &mut Self::Context) {
        self.follow(Following::Read(ended), context);
    }
}

impl Router {
    pub(super) fn end_read(&mut self, ended: ReadEnded, context: &mut Context<Self>) {
        let ReadEnded {
            process_id,
            key,
            number,
            link,
            outcome,
        } = ended;
        self.turns.end(link);
        let is_parked = self.parked.is_some();
        if let Some(route) = self.routes.get_keyed(&process_id, key) {
            let Some(reached) = route.session.reach() else {
                self.abandon(process_id, context);
                return self.read_next(context);
            };
            let deliver = |event| reached.send(event);
            let now = Instant::now();
            let progress = match outcome {
                Ok(read) => {
                    route.is_known = true;
                    route.delivery.accept_read(number, read, now, deliver)
                }
                Err(error) if is_unknown_process(&error) => {
                    if route.is_known {
                        route.delivery.forget(number, deliver)
                    } else {
                        route.delivery.read_too_early(number)
                    }
                }
                Err(error) => {
                    debug!(process_id:%, error:% = Causes(&error); "cannot read what a session has missed");
                    route
                        .delivery
                        .fail_read(number, fruitless(&error, is_parked), now, deliver)
                }
            };
            self.go_on(process_id, progress, context);
        }
        self.read_next(context);
    }
}

/// Says why a read has failed that will be tried again. While notifications are parked, the socket is not read, and an
/// answer may be in it.
fn fruitless(error: &CallError, is_parked: bool) -> Fruitless {
    match error {
        CallError::DeadlineExceeded { .. } if is_parked => Fruitless::HeldUp,
        CallError::Rejected { code, .. } if *code == ErrorCode::OVERLOADED => Fruitless::Unanswered,
        CallError::Rejected { .. }
        | CallError::InvalidResponse { .. }
        | CallError::InvalidRequest { .. }
        | CallError::Unsupported { .. }
        | CallError::HelperFailed { .. } => Fruitless::Useless,
        CallError::DeadlineExceeded { .. }
        | CallError::Overloaded { .. }
        | CallError::Stuck { .. }
        | CallError::OutputNotConsumed { .. }
        | CallError::Disconnected { .. }
        | CallError::OutcomeUnknown { .. } => Fruitless::Unanswered,
    }
}

/// Returns true if the server does not know the process that a request was about.
pub(crate) fn is_unknown_process(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Rejected { code, message, .. } if words::is_unknown_process(*code, message)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p5_few_read_at_a_time_and_in_turns() {
        let mut turns = Turns::default();
        let key = RouteKey::for_test(1);
        for n in 0..6 {
            turns.push(format!("p{n}").into(), key);
        }
        let mut links = Vec::new();
        for n in 0..4 {
            assert_eq!(turns.next(), Some((format!("p{n}").into(), key)));
            links.push(turns.begin());
        }
        assert_eq!(turns.next(), None);
        turns.end(links[2]);
        turns.push("p0".into(), key);
        assert_eq!(
            turns.next(),
            Some(("p4".into(), key)),
            "those who waited first"
        );
    }

    #[test]
    fn p6_answers_of_an_old_link_do_not_count() {
        let mut turns = Turns::default();
        let old = turns.begin();
        turns.push("p".into(), RouteKey::for_test(1));
        turns.link_down();
        assert_eq!(turns.next(), None);
        turns.end(old);
        turns.link_up();
        assert!(turns.next().is_some());
        let new = turns.begin();
        turns.end(old);
        assert_eq!(turns.under_way, 1);
        turns.end(new);
        assert_eq!(turns.under_way, 0);
    }
}
