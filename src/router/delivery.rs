//! What one session is told: order, credit, healing, and the one terminal event. No actor, no clock.
//!
//! Events come as *pushes* of the server, in any order. What finds no credit is dropped, and read again
//! later, in slices that fit; so is what a lost connection has swallowed. A read tells more than
//! pushes do: a `seq` below its first chunk that is not the exit's has left the server's window, and
//! becomes a gap.

mod window;

use std::{collections::BTreeMap, mem};

use bytes::Bytes;

use self::window::Window;
use super::{
    budget::{Budget, Permit, cost},
    session::{Closed, Exited, Failed, Gap, Output, Overflow, SessionEvent},
};
use crate::{
    error::FailureReason,
    protocol::{OutputChunk, ProcessEvent, ProcessId, RetainedOutput, Stream},
};

/// How many pushes may wait for an earlier one. Servers were seen to be 17 places out of order.
const MAX_EARLY: usize = 256;

/// Servers send output in chunks of at most this many bytes.
pub(super) const CHUNK: usize = 8192;

/// The most that one healing read asks for, so that others get their turn.
const MAX_READ: usize = 256 << 10;

/// How often the end of what a server retains is looked for. It moves while the process writes.
const MAX_TAIL_READS: u8 = 3;

/// The state of one process's delivery.
#[derive(Debug)]
pub(crate) struct Delivery {
    process_id: ProcessId,
    budget: Budget,
    overflow: Overflow,
    /// The `seq` that is delivered next.
    next_seq: u64,
    /// Events that came before an earlier one.
    early: BTreeMap<u64, Granted>,
    /// The credit of those.
    early_held: usize,
    /// The highest `seq` of a push that was dropped. What is below it and missing has to be read.
    dropped_to: u64,
    healing: Healing,
    /// How many reads were asked for: tells the answer to one from that to an older one.
    reads: u64,
    /// Where *exited* has its place, once known. It costs no credit, and so may come only once.
    exit_seq: Option<u64>,
    /// As for *exited*.
    closed_seq: Option<u64>,
    /// From *exited*, once delivered.
    exit_code: Option<i32>,
    has_gap: bool,
    /// `next_seq` when it was last looked whether something is stuck.
    next_seq_at_tick: u64,
    /// What the server has to be told for it to let the process write on.
    window: Window,
}

/// How far what is missing is from being read.
#[derive(Debug)]
enum Healing {
    /// Nothing has to be read: what is missing is on its way.
    Live,
    /// To be read as soon as it is this session's turn.
    Wanted(Scope),
    /// Being read.
    Reading {
        scope: Scope,
        /// Keeps room for the answer.
        reserved: Option<Permit>,
        /// The highest push that had been dropped when it was asked.
        dropped_to: u64,
    },
    /// To be read when the session has consumed.
    Starved,
    /// The answer cannot be understood without *exited* or *closed*, whose pushes are on their way.
    AwaitingEnd,
}

/// What a read is for.
#[derive(Debug)]
enum Scope {
    /// Pushes that were dropped.
    Dropped,
    /// Everything, as pushes may have been lost: output, *exited* and *closed*. Those two a read only
    /// tells by flags, so that their places have to be found among all that is retained.
    Missed {
        tail_reads: u8,
        read: Option<RetainedOutput>,
    },
}

const MISSED: Scope = Scope::Missed {
    tail_reads: 0,
    read: None,
};

/// A read that a session needs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WantedRead {
    /// To be given back with the answer.
    pub(crate) number: u64,
    pub(crate) after_seq: u64,
    pub(crate) max_bytes: Option<usize>,
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
            exit_seq: None,
            closed_seq: None,
            exit_code: None,
            has_gap: false,
            next_seq_at_tick: 0,
            window: Window::default(),
        }
    }

    /// Notes that the server holds the process back while so much of its output is not consumed. Before the
    /// first event.
    pub(crate) fn held_back(&mut self, window: usize) {
        self.window = Window::new(window);
    }

    /// Whether the server holds the process back.
    pub(crate) fn is_held_back(&self) -> bool {
        self.window.is_open()
    }

    /// Returns the `seq` up to which the session has newly consumed so much that the server is to be told.
    pub(crate) fn consumed(&mut self) -> Option<u64> {
        let consumed = self.window.consumed(self.budget.returned());
        if let Some(mark) = self.window.next_mark() {
            self.budget.wake_to_tell(mark);
        }
        consumed
    }

    /// Returns what the server was last told to be consumed, 0 for nothing.
    pub(crate) fn told_consumed(&self) -> u64 {
        self.window.told()
    }

    /// Accepts an event that the server has pushed, and gives `deliver` those whose turn has come. After a
    /// terminal event nothing may be accepted any more.
    pub(crate) fn accept(
        &mut self,
        seq: u64,
        event: ProcessEvent,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        let event = match event {
            // As nearly always.
            ProcessEvent::Output { stream, chunk } if self.is_in_order(seq) => {
                let Some(permit) = self.budget.take(chunk.len(), 0) else {
                    return Progress::NoCredit(ProcessEvent::Output { stream, chunk });
                };
                deliver(self.output(seq, stream, chunk, permit));
                return Progress::Open;
            }
            event => event,
        };
        if seq < self.next_seq || self.early.contains_key(&seq) {
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
                if self.exit_seq.replace(seq).is_some() {
                    return Progress::Failed(self.fail(FailureReason::ExitedTwice));
                }
                Granted::Exited {
                    exit_code,
                    sandbox_denied,
                }
            }
            ProcessEvent::Closed => {
                if self.closed_seq.replace(seq).is_some() {
                    return Progress::Failed(self.fail(FailureReason::ClosedTwice));
                }
                Granted::Closed
            }
        };
        if !matches!(granted, Granted::Output { .. })
            && let Healing::AwaitingEnd = self.healing
        {
            self.healing = Healing::Wanted(Scope::Dropped);
        }
        self.place(seq, granted, deliver)
    }

    /// Whether a read is needed, and it is not known to be in vain.
    pub(crate) fn wants_read(&self) -> bool {
        matches!(self.healing, Healing::Wanted(_))
    }

    /// Whether a part of what it reads is held until the rest has come.
    pub(crate) fn is_half_read(&self) -> bool {
        matches!(
            self.healing,
            Healing::Wanted(Scope::Missed { read: Some(_), .. })
        )
    }

    /// Returns the read to be made now; `None` if there is none, or no credit for its answer yet.
    pub(crate) fn next_read(&mut self) -> Option<WantedRead> {
        let scope = match mem::replace(&mut self.healing, Healing::Starved) {
            Healing::Wanted(scope) => scope,
            other => {
                self.healing = other;
                return None;
            }
        };
        let (after_seq, max_bytes) = match &scope {
            Scope::Missed { read, .. } => {
                let last = read.as_ref().and_then(|read| read.chunks.last());
                (last.map_or(self.last_seq(), |chunk| chunk.seq), None)
            }
            Scope::Dropped => (self.last_seq(), Some(self.room_to_read()?)),
        };
        self.reads += 1;
        self.healing = Healing::Reading {
            scope,
            dropped_to: self.dropped_to,
            reserved: max_bytes.and_then(|bytes| self.budget.take(bytes, usize::MAX)),
        };
        Some(WantedRead {
            number: self.reads,
            after_seq,
            max_bytes,
        })
    }

    /// Returns how much may be read, or `None` if that has to wait for the session.
    fn room_to_read(&mut self) -> Option<usize> {
        let worth = (self.budget.limit() / 4).clamp(cost(CHUNK), MAX_READ);
        if self.budget.available() < worth {
            // What is to be read comes before what came early.
            self.evict();
        }
        for _ in 0..2 {
            let available = self.budget.available();
            if available >= worth || self.budget.held() == 0 {
                // Less what each chunk costs beside its bytes.
                return Some((available.min(MAX_READ) / 64 * 63).max(1));
            }
            if self.budget.wake_at(worth, 0) {
                return None;
            }
            // Credit has just returned, or it is not this session that holds what is missing: then it is
            // looked at again with the next tick.
        }
        None
    }

    /// Notes that credit has returned. What there is to tell the server of it, [`consumed`](Self::consumed)
    /// returns.
    pub(crate) fn credit_returned(&mut self) {
        if self.budget.woken()
            && let Healing::Starved = self.healing
        {
            self.healing = Healing::Wanted(Scope::Dropped);
        }
    }

    /// Has credit waited for after [`Progress::Blocked`]. Returns whether there is anything to wait for.
    pub(crate) fn wait_for_credit(&self, event: &ProcessEvent) -> bool {
        let bytes = match event {
            ProcessEvent::Output { chunk, .. } => chunk.len(),
            ProcessEvent::Exited { .. } | ProcessEvent::Closed => 0,
        };
        self.budget.wake_at(cost(bytes), self.early_held)
    }

    /// The credit that is kept for the answer to a read.
    fn reserved(&self) -> usize {
        match &self.healing {
            Healing::Reading {
                reserved: Some(permit),
                ..
            } => permit.bytes(),
            _ => 0,
        }
    }

    /// Notes that pushes may have been lost, with the connection.
    pub(crate) fn interrupted(&mut self) {
        self.end_read(self.reads);
        self.healing = Healing::Wanted(MISSED);
    }

    /// Looks whether something is stuck: an event that does not come although later ones did. To be
    /// called now and then.
    pub(crate) fn tick(&mut self) {
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
            _ => {}
        }
    }

    /// Has it looked whether the process has ended, unless that is about to be done anyway.
    pub(crate) fn check_end(&mut self) {
        if let Healing::Live = self.healing {
            self.healing = Healing::Wanted(MISSED);
        }
    }

    /// Accepts the answer to a read.
    pub(crate) fn accept_read(
        &mut self,
        number: u64,
        answer: RetainedOutput,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        let Some((scope, dropped_to)) = self.end_read(number) else {
            return Progress::Open;
        };
        if answer.chunks.is_empty() && self.dropped_to == dropped_to {
            // Nothing is to be had of what was dropped, whatever the server called it.
            self.dropped_to = self.dropped_to.min(answer.next_seq.saturating_sub(1));
        }
        let read = match scope {
            Scope::Dropped => answer,
            Scope::Missed { tail_reads, read } => {
                // Where chunks came, servers up to 0.140 do not count *exited* and *closed* behind them.
                let hides_tail = answer
                    .chunks
                    .last()
                    .is_some_and(|last| answer.next_seq == last.seq.saturating_add(1));
                let answer = match read {
                    Some(read) => join(read, answer),
                    None => answer,
                };
                if hides_tail && self.lacks_end(&answer) && tail_reads < MAX_TAIL_READS {
                    self.healing = Healing::Wanted(Scope::Missed {
                        tail_reads: tail_reads + 1,
                        read: Some(answer),
                    });
                    return Progress::Open;
                }
                self.find_end(&answer);
                answer
            }
        };
        let begin = read.chunks.first().map_or(read.next_seq, |chunk| chunk.seq);
        if self.is_missing_before(begin) && self.lacks_end(&read) {
            // One of what is missing may be the end, not output: its push is on its way.
            if let Some(last) = read.chunks.last() {
                self.dropped_to = self.dropped_to.max(last.seq);
            }
            self.dropped_to = self.dropped_to.max(begin - 1);
            self.healing = Healing::AwaitingEnd;
            return Progress::Open;
        }
        if let Some(last) = self.skip_to(begin, &mut deliver) {
            return Progress::Closed(last);
        }
        self.accept_chunks(read.chunks, deliver)
    }

    fn accept_chunks(
        &mut self,
        chunks: Vec<OutputChunk>,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        let last_seq = chunks.last().map_or(0, |chunk| chunk.seq);
        for OutputChunk { seq, stream, chunk } in chunks {
            if seq < self.next_seq || self.early.contains_key(&seq) {
                continue;
            }
            let own = self.own(seq, chunk.len());
            let Some(permit) = self.budget.take(chunk.len(), own) else {
                // Whatever the policy: it was this side that asked for so much at once.
                self.lag(last_seq);
                break;
            };
            let granted = Granted::Output {
                stream,
                chunk,
                permit,
            };
            match self.place(seq, granted, &mut deliver) {
                Progress::Open => {}
                last => return last,
            }
        }
        if let Healing::Live = self.healing
            && self.next_seq <= self.dropped_to
        {
            self.healing = Healing::Wanted(Scope::Dropped);
        }
        Progress::Open
    }

    /// Accepts that a read has failed. It is wanted again.
    pub(crate) fn fail_read(&mut self, number: u64) {
        self.healing = match self.end_read(number) {
            Some((Scope::Dropped, _)) => Healing::Wanted(Scope::Dropped),
            Some((Scope::Missed { .. }, _)) => Healing::Wanted(MISSED),
            None => return,
        };
    }

    /// Accepts that the server does not know the process yet. Its pushes will come.
    pub(crate) fn read_too_early(&mut self, number: u64) -> Progress {
        self.end_read(number);
        Progress::Open
    }

    /// Accepts that the server does not know the process any more. After its exit that is its end.
    pub(crate) fn forget(
        &mut self,
        number: u64,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        if self.end_read(number).is_none() {
            return Progress::Open;
        }
        if self.exit_seq.is_none() {
            return Progress::Failed(self.fail(FailureReason::Forgotten));
        }
        let known_to = self.early.last_key_value().map_or(0, |(&seq, _)| seq);
        let end = known_to.max(self.dropped_to).saturating_add(1);
        if let Some(last) = self.skip_to(end, &mut deliver) {
            return Progress::Closed(last);
        }
        self.has_gap = true;
        let seq = self.next_seq;
        Progress::Closed(self.advance(seq, Granted::Closed))
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

    /// Whether the process has exited and its end is awaited.
    pub(crate) fn has_exited(&self) -> bool {
        self.exit_seq.is_some()
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
    /// neither be blamed for that nor make the socket wait, behind which the answer is.
    fn policy(&self) -> Overflow {
        match self.healing {
            Healing::Live => self.overflow,
            _ => Overflow::Heal,
        }
    }

    /// Whether pushes beyond what is missing are of no use: they are read anyway.
    fn is_waiting(&self) -> bool {
        match self.healing {
            Healing::Live | Healing::Reading { .. } => false,
            Healing::Wanted(_) | Healing::Starved | Healing::AwaitingEnd => true,
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
        }
        Progress::Open
    }

    /// Ends the read that is under way, if it is this one.
    fn end_read(&mut self, number: u64) -> Option<(Scope, u64)> {
        if number != self.reads {
            return None;
        }
        match mem::replace(&mut self.healing, Healing::Live) {
            Healing::Reading {
                scope,
                reserved,
                dropped_to,
            } => {
                if let Some(reserved) = reserved {
                    self.budget.cancel(reserved);
                }
                Some((scope, dropped_to))
            }
            other => {
                self.healing = other;
                None
            }
        }
    }

    /// Whether the read tells of an end whose place is not known.
    fn lacks_end(&self, read: &RetainedOutput) -> bool {
        read.exited && self.exit_seq.is_none() || read.closed && self.closed_seq.is_none()
    }

    /// Whether something below `begin` has not come.
    fn is_missing_before(&self, begin: u64) -> bool {
        let come = self.early.range(..begin).count() as u64;
        begin.saturating_sub(self.next_seq) > come
    }

    /// Finds the places of *exited* and *closed* in all that a server retains: *closed* is the last of all,
    /// *exited* the one that no chunk fills. If it is lost with output, it is put behind that.
    fn find_end(&mut self, read: &RetainedOutput) {
        let last = read.next_seq.saturating_sub(1);
        if read.closed && self.closed_seq.is_none() && !self.is_filled(last, read) {
            self.closed_seq = Some(last);
            self.keep(last, Granted::Closed);
        }
        if let (true, None, Some(exit_code)) = (read.exited, self.exit_seq, read.exit_code)
            && let Some(seq) = self.last_unfilled(read)
        {
            self.exit_seq = Some(seq);
            let sandbox_denied = read.sandbox_denied;
            self.keep(
                seq,
                Granted::Exited {
                    exit_code,
                    sandbox_denied,
                },
            );
        }
    }

    fn is_filled(&self, seq: u64, read: &RetainedOutput) -> bool {
        seq < self.next_seq
            || self.early.contains_key(&seq)
            || read
                .chunks
                .binary_search_by_key(&seq, |chunk| chunk.seq)
                .is_ok()
    }

    /// Returns the highest `seq` that has been given and that nothing fills. It ends soon, as it only
    /// passes over what is filled.
    fn last_unfilled(&self, read: &RetainedOutput) -> Option<u64> {
        let mut seq = read.next_seq.checked_sub(1)?;
        while seq >= self.next_seq {
            if !self.is_filled(seq, read) {
                return Some(seq);
            }
            seq -= 1;
        }
        None
    }

    /// Goes on at `begin`: delivers what came before it, and tells what is missing there. Returns the last
    /// event, if it is among them.
    fn skip_to(
        &mut self,
        begin: u64,
        deliver: &mut impl FnMut(SessionEvent),
    ) -> Option<SessionEvent> {
        while self.next_seq < begin {
            let known = self.early.range(..begin).next().map(|(&seq, _)| seq);
            let before_seq = known.unwrap_or(begin);
            if before_seq > self.next_seq {
                self.has_gap = true;
                deliver(SessionEvent::Gap(Gap {
                    process_id: self.process_id.clone(),
                    after_seq: self.last_seq(),
                    before_seq,
                }));
                self.next_seq = before_seq;
            }
            if let Progress::Closed(last) = self.deliver_in_order(&mut *deliver) {
                return Some(last);
            }
        }
        None
    }

    /// Whether this event could be delivered now, if it were small.
    pub(crate) fn is_ready(&self, seq: u64) -> bool {
        self.is_in_order(seq) && self.budget.held() < self.budget.limit()
    }

    /// Whether it is this event's turn, and nothing else is to be thought of.
    fn is_in_order(&self, seq: u64) -> bool {
        seq == self.next_seq && self.early.is_empty() && matches!(self.healing, Healing::Live)
    }

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
        let was_idle = self.window.next_mark().is_none();
        self.window.mark(seq, self.budget.taken() - kept);
        if was_idle && let Some(mark) = self.window.next_mark() {
            self.budget.wake_to_tell(mark);
        }
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
                self.exit_code = Some(exit_code);
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
                exit_code: self.exit_code,
                complete: !self.has_gap,
            }),
        }
    }
}

/// Joins two reads, of which the second goes on where the first has ended.
fn join(mut read: RetainedOutput, rest: RetainedOutput) -> RetainedOutput {
    read.chunks.extend(rest.chunks);
    RetainedOutput {
        chunks: read.chunks,
        ..rest
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests;
