//! What one session is told: order, credit, healing, and the one terminal event. No actor, no clock.
//!
//! Events come as *pushes* of the server, in any order. What finds no credit is dropped, and read again
//! later, in slices that fit; so is what a lost connection has swallowed.

mod ending;
mod patience;
mod reading;
mod window;

use std::{collections::BTreeMap, mem};

use bytes::Bytes;
use tokio::time::Instant;

pub(crate) use self::patience::Fruitless;
use self::{
    ending::Ending,
    reading::{Healing, MISSED, Scope},
    window::Window,
};
use super::{
    budget::{Budget, Permit, cost},
    session::{Closed, Exited, Failed, Output, Overflow, SessionEvent},
};
use crate::{
    error::FailureReason,
    protocol::{ProcessEvent, ProcessId, Stream},
};

/// How many pushes may wait for an earlier one. Servers were seen to be 17 places out of order.
const MAX_EARLY: usize = 256;

/// Servers send output in chunks of at most this many bytes.
pub(super) const CHUNK: usize = 8192;

/// The state of one process's delivery.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Delivery {
    // What each event needs, side by side: see `Route`.
    /// The `seq` that is delivered next.
    next_seq: u64,
    /// What the server has to be told for it to let the process write on.
    window: Window,
    budget: Budget,
    /// Events that came before an earlier one.
    early: BTreeMap<u64, Granted>,
    process_id: ProcessId,
    healing: Healing,
    // What few events need.
    overflow: Overflow,
    has_gap: bool,
    /// The credit of the early ones.
    early_held: usize,
    /// The highest `seq` of a push that was dropped. What is below it and missing has to be read.
    dropped_to: u64,
    /// How many reads were asked for: tells the answer to one from that to an older one.
    reads: u64,
    /// `next_seq` when it was last looked whether something is stuck.
    next_seq_at_tick: u64,
    /// Set once something is known of it.
    ending: Option<Box<Ending>>,
}

/// An event, and the credit for its bytes.
#[derive(Debug)]
enum Granted {
    Output {
        stream: Stream,
        chunk: Bytes,
        permit: Permit,
    },
    Exited {
        exit_code: i32,
        sandbox_denied: Option<bool>,
    },
    Closed,
}

/// What an event or a read has led to.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More is to come.
    Open,
    /// There is no credit for this event. Either it is accepted again when the session has had the time
    /// to consume, or it has [overflown](Delivery::overflow).
    NoCredit(ProcessEvent),
    /// There is no credit for this event, which is to be accepted again when some has returned.
    Blocked(ProcessEvent),
    /// This is the last event: *closed*.
    Closed(SessionEvent),
    /// This is the last event: the session failed, while its process may still run.
    Failed(SessionEvent),
}

impl Delivery {
    /// So many bytes of it are used by each event.
    pub(crate) const USED_FOR_EACH: usize = mem::offset_of!(Delivery, overflow);

    /// Delivers what comes after `after_seq`.
    pub(crate) fn new(
        process_id: ProcessId,
        budget: Budget,
        overflow: Overflow,
        after_seq: u64,
    ) -> Self {
        Delivery {
            process_id,
            budget,
            overflow,
            next_seq: after_seq.saturating_add(1),
            early: BTreeMap::new(),
            early_held: 0,
            dropped_to: 0,
            healing: Healing::Live,
            reads: 0,
            has_gap: false,
            next_seq_at_tick: 0,
            ending: None,
            window: Window::off(),
        }
    }

    /// Notes that the server holds the process back while so much of its output is not consumed, or as much as
    /// servers keep back. Before the first event.
    pub(crate) fn held_back(&mut self, room: usize) {
        self.window = Window::new(room, self.budget.taken());
    }

    /// Whether the server holds the process back.
    pub(crate) fn is_held_back(&self) -> bool {
        self.window.is_on()
    }

    /// Returns how many bytes the session holds, if that is what its process waits for: where the server holds the process
    /// back, or nothing is read from the socket before the session consumes.
    pub(crate) fn holds_up(&self) -> Option<usize> {
        let held = self.budget.held();
        let is_blocking = self.overflow == Overflow::Block && held > self.budget.limit() / 2;
        (is_blocking || self.window.is_behind(self.budget.taken())).then_some(held)
    }

    /// Returns the `seq` up to which the session has newly consumed so much that the server is to be told.
    pub(crate) fn consumed(&mut self) -> Option<u64> {
        let consumed = self.window.consumed(self.budget.returned());
        self.wait_to_tell();
        consumed
    }

    fn wait_to_tell(&self) {
        if let Some(returned) = self.window.tell_at() {
            self.budget.wake_to_tell(returned);
        }
    }

    /// Returns up to which `seq` the server was last told that everything is consumed.
    pub(crate) fn told_consumed(&self) -> Option<u64> {
        self.window.told()
    }

    /// Accepts an output that the server has pushed if all is as nearly always: it is its turn, and there is
    /// credit for it. Gives it back otherwise, for [`accept`](Self::accept).
    #[inline]
    pub(crate) fn accept_next(
        &mut self,
        seq: u64,
        stream: Stream,
        chunk: Bytes,
    ) -> Result<SessionEvent, Bytes> {
        if self.is_in_order(seq)
            && let Some(permit) = self.budget.take(chunk.len(), 0)
        {
            return Ok(self.output(seq, stream, chunk, permit));
        }
        Err(chunk)
    }

    /// Accepts an event that the server has pushed, and gives `deliver` those whose turn has come. After a
    /// terminal event nothing may be accepted any more.
    pub(crate) fn accept(
        &mut self,
        seq: u64,
        event: ProcessEvent,
        deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        if seq < self.next_seq {
            return self.accept_past(&event, deliver);
        }
        if self.early.contains_key(&seq) {
            return Progress::Open;
        }
        let granted = match event {
            ProcessEvent::Output { stream, chunk } => {
                if seq > self.next_seq && self.is_waiting() {
                    self.dropped_to = self.dropped_to.max(seq);
                    return Progress::Open;
                }
                if seq > self.next_seq && self.early.len() >= MAX_EARLY {
                    if self.policy() == Overflow::Fail {
                        return Progress::Failed(self.fail(FailureReason::MissingEvent {
                            missing: self.next_seq,
                            waiting: self.early.len() + 1,
                        }));
                    }
                    self.lag(seq);
                    return Progress::Open;
                }
                let own = self.own(seq, chunk.len());
                let Some(permit) = self.budget.take(chunk.len(), own) else {
                    return Progress::NoCredit(ProcessEvent::Output { stream, chunk });
                };
                Granted::Output {
                    stream,
                    chunk,
                    permit,
                }
            }
            ProcessEvent::Exited {
                exit_code,
                sandbox_denied,
            } => {
                if mem::replace(&mut self.ending().has_exited, true) {
                    return Progress::Failed(self.fail(FailureReason::ExitedTwice));
                }
                Granted::Exited {
                    exit_code,
                    sandbox_denied,
                }
            }
            ProcessEvent::Closed => {
                if mem::replace(&mut self.ending().is_closed, true) {
                    return Progress::Failed(self.fail(FailureReason::ClosedTwice));
                }
                Granted::Closed
            }
        };
        if !matches!(granted, Granted::Output { .. })
            && let Healing::AwaitingEnd = self.healing
        {
            self.read_at_once();
            self.healing = Healing::Wanted(Scope::Dropped);
        }
        self.place(seq, granted, deliver)
    }

    /// Notes that credit has returned, and returns whether there is room for what waits. What there is to tell
    /// the server, [`consumed`](Self::consumed) returns.
    pub(crate) fn credit_returned(&mut self) -> bool {
        let has_room = self.budget.woken();
        if has_room && let Healing::Starved = self.healing {
            self.healing = Healing::Wanted(Scope::Dropped);
        }
        has_room
    }

    /// Has credit waited for after [`Progress::Blocked`]. Returns whether there is anything to wait for.
    pub(crate) fn wait_for_credit(&self, event: &ProcessEvent) -> bool {
        let bytes = match event {
            ProcessEvent::Output { chunk, .. } => chunk.len(),
            ProcessEvent::Exited { .. } | ProcessEvent::Closed => 0,
        };
        self.budget.wake_at(cost(bytes), self.early_held)
    }

    /// Looks whether something is stuck: an event that does not come although later ones did. To be
    /// called now and then.
    pub(crate) fn tick(&mut self, now: Instant) {
        if let Some(patience) = self.patience_mut() {
            patience.tick(now);
        }
        let is_stuck = mem::replace(&mut self.next_seq_at_tick, self.next_seq) == self.next_seq;
        match self.healing {
            Healing::Live if is_stuck => {
                if let Some((first, _)) = self.early.first_key_value() {
                    self.dropped_to = self.dropped_to.max(first - 1);
                    self.healing = Healing::Wanted(Scope::Dropped);
                }
            }
            Healing::AwaitingEnd if is_stuck => self.healing = Healing::Wanted(MISSED),
            // Others may have returned what it waits for.
            Healing::Starved => self.healing = Healing::Wanted(Scope::Dropped),
            Healing::Live | Healing::Wanted(_) | Healing::Reading(_) | Healing::AwaitingEnd => {}
        }
    }

    /// Whether [`tick`](Self::tick), or the time since the process has exited, may make a difference.
    pub(crate) fn needs_ticks(&self) -> bool {
        !matches!(self.healing, Healing::Live)
            || !self.early.is_empty()
            || self.is_end_awaited()
            || self.is_resting()
    }

    pub(crate) fn process_id(&self) -> &ProcessId {
        &self.process_id
    }

    /// Returns the `seq` of the last event delivered, 0 if there was none.
    pub(crate) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// Whether anything has come.
    pub(crate) fn has_begun(&self) -> bool {
        self.next_seq > 1 || !self.early.is_empty()
    }

    /// Makes the terminal event of a session whose process will not be followed to its end.
    pub(crate) fn fail(&self, reason: FailureReason) -> SessionEvent {
        SessionEvent::Failed(Failed {
            process_id: self.process_id.clone(),
            reason,
            last_seq: self.last_seq(),
        })
    }

    /// The credit that does not count against an event: the session does not hold it, and will not get
    /// rid of it before it has the event.
    fn own(&self, seq: u64, bytes: usize) -> usize {
        let is_early = seq > self.next_seq;
        if !is_early || self.policy() == Overflow::Block && bytes <= CHUNK {
            self.early_held + self.reserved()
        } else {
            0
        }
    }

    /// What becomes of a push without credit. While it is being read what was missed, a session can
    /// neither be blamed for that nor make the socket wait, behind which the answer is. A server that holds the
    /// process back also keeps what is not consumed, so that nobody has to wait for it to be read.
    fn policy(&self) -> Overflow {
        match self.healing {
            Healing::Live if self.window.is_on() => Overflow::Heal,
            Healing::Live => self.overflow,
            _ => Overflow::Heal,
        }
    }

    /// Whether pushes beyond what is missing are of no use: they are read anyway.
    fn is_waiting(&self) -> bool {
        match self.healing {
            Healing::Live | Healing::Reading(_) => false,
            // What is pushed during a pause is kept: a server that refuses reads may push well.
            Healing::Wanted(_) => !self.is_resting(),
            Healing::Starved | Healing::AwaitingEnd => true,
        }
    }

    /// Does what the session has chosen with an event for which it has no credit.
    pub(crate) fn overflow(&mut self, seq: u64, event: ProcessEvent) -> Progress {
        // What is held up by an earlier event is not the session's to consume.
        let policy = if self.budget.held() > self.early_held {
            self.policy()
        } else {
            Overflow::Heal
        };
        match (policy, &event) {
            (Overflow::Fail, ProcessEvent::Output { chunk, .. }) => {
                Progress::Failed(self.overflown(chunk.len()))
            }
            (Overflow::Block, _) => Progress::Blocked(event),
            _ => {
                self.lag(seq);
                Progress::Open
            }
        }
    }

    fn overflown(&self, bytes: usize) -> SessionEvent {
        self.fail(FailureReason::Overflow {
            held: self.budget.held().saturating_add(cost(bytes)),
            budget: self.budget.limit(),
        })
    }

    /// Drops this push, and those that came early: they take the credit of what has to come first.
    fn lag(&mut self, seq: u64) {
        self.evict();
        self.dropped_to = self.dropped_to.max(seq);
        if let Healing::Live = self.healing {
            self.healing = Healing::Wanted(Scope::Dropped);
        }
    }

    fn evict(&mut self) {
        let early = mem::take(&mut self.early);
        for (seq, granted) in early {
            match granted {
                Granted::Output { permit, .. } => {
                    self.dropped_to = self.dropped_to.max(seq);
                    self.budget.cancel(permit);
                }
                end => {
                    self.early.insert(seq, end);
                }
            }
        }
        self.early_held = 0;
    }

    fn keep(&mut self, seq: u64, granted: Granted) {
        if let Granted::Output { permit, .. } = &granted {
            self.early_held += permit.bytes();
        }
        self.early.insert(seq, granted);
    }

    /// Delivers an event if it is its turn, and keeps it otherwise.
    fn place(
        &mut self,
        seq: u64,
        granted: Granted,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        if seq > self.next_seq {
            self.keep(seq, granted);
            return Progress::Open;
        }
        let is_last = matches!(granted, Granted::Closed);
        let event = self.advance(seq, granted);
        if is_last {
            return Progress::Closed(event);
        }
        deliver(event);
        self.deliver_in_order(deliver)
    }

    /// Delivers what has come and whose turn it is.
    fn deliver_in_order(&mut self, mut deliver: impl FnMut(SessionEvent)) -> Progress {
        while let Some(granted) = self.early.remove(&self.next_seq) {
            if let Granted::Output { permit, .. } = &granted {
                self.early_held -= permit.bytes();
            }
            let is_last = matches!(granted, Granted::Closed);
            let event = self.advance(self.next_seq, granted);
            if is_last {
                return Progress::Closed(event);
            }
            deliver(event);
        }
        if self.next_seq > self.dropped_to
            && matches!(
                self.healing,
                Healing::Wanted(Scope::Dropped) | Healing::Starved | Healing::AwaitingEnd
            )
        {
            self.healing = Healing::Live;
            self.be_patient_again();
        }
        Progress::Open
    }

    /// Whether it is this event's turn, and nothing else is to be thought of.
    #[inline]
    fn is_in_order(&self, seq: u64) -> bool {
        seq == self.next_seq && self.early.is_empty() && matches!(self.healing, Healing::Live)
    }

    #[inline]
    fn output(&mut self, seq: u64, stream: Stream, chunk: Bytes, permit: Permit) -> SessionEvent {
        // Saturates only where a peer has counted to the end, and then nothing can follow.
        self.next_seq = seq.saturating_add(1);
        if self.budget.taken() >= self.window.mark_at() {
            self.mark(seq);
        }
        SessionEvent::Output(Output {
            process_id: self.process_id.clone(),
            seq,
            stream,
            chunk,
            permit,
        })
    }

    /// Notes how much will have returned when everything up to this `seq` is consumed.
    #[cold]
    fn mark(&mut self, seq: u64) {
        let kept = (self.early_held + self.reserved()) as u64;
        self.window.mark(seq, self.budget.taken() - kept);
        self.wait_to_tell();
    }

    /// Turns the event whose turn it is into what the session is told.
    fn advance(&mut self, seq: u64, granted: Granted) -> SessionEvent {
        self.next_seq = seq.saturating_add(1);
        match granted {
            Granted::Output {
                stream,
                chunk,
                permit,
            } => self.output(seq, stream, chunk, permit),
            Granted::Exited {
                exit_code,
                sandbox_denied,
            } => {
                self.ending().exit_code = Some(exit_code);
                SessionEvent::Exited(Exited {
                    process_id: self.process_id.clone(),
                    seq,
                    exit_code,
                    sandbox_denied,
                })
            }
            Granted::Closed => SessionEvent::Closed(Closed {
                process_id: self.process_id.clone(),
                seq,
                exit_code: self.ending.as_ref().and_then(|ending| ending.exit_code),
                complete: !self.has_gap,
            }),
        }
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests;
