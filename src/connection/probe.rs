//! Writes that a process does not take: the question whether the server still answers anything, and what
//! follows from the answer.

use actix::{Handler, Message, WeakAddr};
use log::debug;
use tokio::time::{Duration, Instant};

use super::{
    ABANDONED_CHECK, Connection,
    pending::{Entry, ReplySlot, after},
    queue::{Request, Turn},
};
use crate::{
    error::{CallError, DisconnectReason},
    protocol::{Method as _, ProcessId, ReadProcess, jsonrpc},
};

/// How often the server is asked for a sign of life, and listened to, while an answer may take `timeout`: often enough
/// that a server which is there is never taken to pause.
fn between_looks(timeout: Duration) -> Duration {
    ABANDONED_CHECK.min(timeout / 4)
}

/// What was read is usually taken at once. Where it takes longer than this, the socket is not read meanwhile.
const HELD_UP: Duration = Duration::from_millis(100);

/// The shortest time for which a server is listened to before anything follows.
const LEAST_PATIENCE: Duration = Duration::from_millis(100);

/// A question to a server that does not answer a write, and what was heard of the server since. No clock.
///
/// An unanswered question alone does not show that the write blocks the connection: the network may have gone silent.
/// That something was heard after the question does not show it either: it may have been under way for long. Only a
/// server that is heard again and again for a while, and answers neither, hangs on the write.
#[derive(Debug)]
pub(super) struct Inquiry {
    asked: Instant,
    /// When the server was last asked for a sign of life.
    pinged: Instant,
    /// The first and the last time that the server was heard, without a long pause in between.
    heard: Option<(Instant, Instant)>,
}

impl Inquiry {
    fn new(now: Instant) -> Self {
        Inquiry {
            asked: now,
            pinged: now,
            heard: None,
        }
    }

    /// Notes when the server was last heard. A pause of more than half of `timeout` begins anew: what comes after a
    /// stall may be followed by the answer.
    fn hear(&mut self, last: Option<Instant>, timeout: Duration) {
        let Some(at) = last.filter(|at| *at >= self.asked) else {
            return;
        };
        self.heard = match self.heard {
            Some((first, last)) if at <= after(last, timeout / 2) => Some((first, at.max(last))),
            Some(_) | None => Some((at, at)),
        };
    }

    /// Notes that this side does not read: the server may wait for that, and not for the process.
    fn hold_up(&mut self) {
        self.heard = None;
    }

    /// Returns true if the server was heard for as long as `timeout`, until now, and has not answered.
    fn shows_block(&self, now: Instant, timeout: Duration) -> bool {
        self.is_overdue(now, timeout)
            && self.heard.is_some_and(|(first, last)| {
                after(first, timeout) <= now && now <= after(last, timeout / 2)
            })
    }

    /// Returns true if the time for the answer is up. A later one is an answer all the same.
    fn is_overdue(&self, now: Instant, timeout: Duration) -> bool {
        after(self.asked, timeout) <= now
    }
}

/// After how long the question is asked again, where too little was heard to decide and the answer may take `timeout`.
fn given_up_after(timeout: Duration) -> Duration {
    timeout.saturating_mul(3)
}

/// The question is answered, or its time is up and it is to be decided what that shows, or it is given up.
pub(super) struct Probed {
    /// On which link it was asked.
    pub(super) link: u64,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered,
    Overdue,
    GivenUp,
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
                outcome: match outcome {
                    Ok(_) | Err(CallError::Rejected { .. }) => Outcome::Answered,
                    Err(_) => Outcome::GivenUp,
                },
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
        self.follow_inquiry(now);
        // Without resume there is no remedy for a connection that is blocked.
        if let Some(process_id) = suspect
            && self.probed.is_none()
            && self.lifecycle.is_open()
            && self.lifecycle.can_resume()
        {
            self.probe(&process_id, now);
        }
    }

    /// Listens for signs of life while a question is open, and asks for the next one.
    fn follow_inquiry(&mut self, now: Instant) {
        self.listen(now);
        let patience = self.patience();
        let (Some(inquiry), Some(link)) = (&mut self.probed, &self.link) else {
            return;
        };
        let pause = between_looks(patience);
        if now >= after(inquiry.pinged, pause) {
            inquiry.pinged = now;
            link.answers.ping();
            if inquiry.is_overdue(now, patience)
                && let Some(connection) = self.sweeper.connection().upgrade()
            {
                connection.do_send(Probed {
                    link: self.links,
                    outcome: Outcome::Overdue,
                });
            }
        }
        self.sweeper.before(after(inquiry.pinged, pause));
    }

    /// How long the server may take to answer the question.
    fn patience(&self) -> Duration {
        self.config.probe_timeout.max(LEAST_PATIENCE)
    }

    /// Notes when the server was last heard, unless it is this side that does not read.
    fn listen(&mut self, now: Instant) {
        let patience = self.patience();
        let (Some(inquiry), Some(link)) = (&mut self.probed, &self.link) else {
            return;
        };
        let last = link.hearing.last.get();
        let is_held_up =
            link.hearing.is_delivering.get() && last.is_none_or(|last| after(last, HELD_UP) < now);
        match is_held_up {
            true => inquiry.hold_up(),
            false => inquiry.hear(last, patience),
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
            turn: Turn::Ordinary,
        });
        self.probed = Some(Inquiry::new(now));
        let timeout = self.patience();
        let entry = Entry {
            method: ReadProcess::NAME,
            timeout: given_up_after(timeout),
            slot: Box::new(ProbeSlot {
                connection: self.sweeper.connection(),
                link: self.links,
            }),
            repeat: None,
            repeats: 0,
        };
        self.calls.pending.borrow_mut().insert(id, now, entry);
        self.sweeper.before(after(now, between_looks(timeout)));
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
        let (now, timeout) = (Instant::now(), self.config.write_timeout);
        let patience = self.patience();
        self.listen(now);
        let Some(inquiry) = &mut self.probed else {
            return;
        };
        let queue = self.outgoing.queue();
        if probed.outcome == Outcome::Answered {
            self.probed = None;
            let pending = self.calls.pending.borrow();
            let given_up = queue.overdue(now, timeout, |id| !pending.contains(id));
            drop((queue, pending));
            for process_id in given_up {
                self.give_up_stdin(&process_id);
            }
            return;
        }
        let blocking = queue.blocking(now, timeout);
        // Unless the question is still on its way into the socket.
        let is_heard = inquiry.shows_block(now, patience) && !queue.is_flowing(inquiry.asked);
        drop(queue);
        match blocking {
            Some(process_id) if is_heard => {
                self.give_up_stdin(&process_id);
                self.lose(DisconnectReason::Wedged { process_id }, context);
            }
            Some(_) if probed.outcome == Outcome::Overdue => {}
            Some(_) | None => self.probed = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// Hears the server in some of the 30 seconds after the question. Returns the first second in which that shows that the
    /// write blocks the connection.
    fn shown_after(heard: impl Fn(u64) -> bool) -> Option<u64> {
        let asked = Instant::now();
        let mut inquiry = Inquiry::new(asked);
        let mut last = None;
        for second in 0..30 {
            let now = asked + Duration::from_secs(second);
            if heard(second) {
                last = Some(now);
            }
            inquiry.hear(last, TIMEOUT);
            if inquiry.shows_block(now, TIMEOUT) {
                return Some(second);
            }
        }
        None
    }

    #[test]
    fn p9_only_a_server_that_is_heard_all_the_time_is_taken_to_hang_on_a_write() {
        assert_eq!(shown_after(|_| true), Some(5));
        assert_eq!(shown_after(|second| second % 2 == 0), Some(5));
        assert_eq!(shown_after(|second| second >= 3), Some(8), "a long way off");
        assert_eq!(shown_after(|_| false), None);
        assert_eq!(
            shown_after(|second| second == 2),
            None,
            "the last word before the network went silent"
        );
        assert_eq!(
            shown_after(|second| second == 0 || second == 20),
            None,
            "the answer may follow what comes after a stall"
        );
        assert_eq!(
            shown_after(|second| second % 3 == 0),
            None,
            "not often enough"
        );
    }

    #[test]
    fn p9_what_was_heard_before_the_question_does_not_count() {
        let asked = Instant::now();
        let mut inquiry = Inquiry::new(asked + TIMEOUT);
        inquiry.hear(Some(asked), TIMEOUT);
        assert!(!inquiry.shows_block(asked + TIMEOUT, TIMEOUT));
        assert!(inquiry.heard.is_none());
        inquiry.hear(Some(asked + TIMEOUT), TIMEOUT);
        assert!(inquiry.heard.is_some());
        inquiry.hold_up();
        assert!(inquiry.heard.is_none(), "it may wait for this side");
        assert!(!inquiry.shows_block(asked + 2 * TIMEOUT, TIMEOUT));
    }
}
