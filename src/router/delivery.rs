//! What one session is told: order, credit, healing, and the one terminal event. No actor, no clock.
//!
//! Events come as *pushes* of the server, in any order. What finds no credit is dropped, and read again
//! later, in slices that fit; so is what a lost connection has swallowed. A read tells more than
//! pushes do: a `seq` below its first chunk that is not the exit's has left the server's window, and
//! becomes a gap.

use std::{collections::BTreeMap, mem, sync::Arc};

use bytes::Bytes;

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
const CHUNK: usize = 8192;

/// The most that one healing read asks for, so that others get their turn.
const MAX_READ: usize = 256 << 10;

/// How often the end of what a server retains is looked for. It moves while the process writes.
const MAX_TAIL_READS: u8 = 3;

/// The state of one process's delivery.
#[derive(Debug)]
pub(crate) struct Delivery {
    process_id: ProcessId,
    budget: Arc<Budget>,
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
        budget: Arc<Budget>,
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
        }
    }

    /// Accepts an event that the server has pushed, and gives `deliver` those whose turn has come. After a
    /// terminal event nothing may be accepted any more.
    pub(crate) fn accept(
        &mut self,
        seq: u64,
        event: ProcessEvent,
        deliver: impl FnMut(SessionEvent),
    ) -> Progress {
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
                    return self.overflow(seq, ProcessEvent::Output { stream, chunk });
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

    /// Notes that credit has returned that was waited for.
    pub(crate) fn credit_returned(&mut self) {
        if let Healing::Starved = self.healing {
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

    fn overflow(&mut self, seq: u64, event: ProcessEvent) -> Progress {
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
        let dropped_to = &mut self.dropped_to;
        self.early.retain(|&seq, granted| {
            let is_output = matches!(granted, Granted::Output { .. });
            if is_output {
                *dropped_to = (*dropped_to).max(seq);
            }
            !is_output
        });
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
                scope, dropped_to, ..
            } => Some((scope, dropped_to)),
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

    /// Turns the event whose turn it is into what the session is told.
    fn advance(&mut self, seq: u64, granted: Granted) -> SessionEvent {
        let process_id = self.process_id.clone();
        // Saturates only where a peer has counted to the end, and then nothing can follow.
        self.next_seq = seq.saturating_add(1);
        match granted {
            Granted::Output {
                stream,
                chunk,
                permit,
            } => SessionEvent::Output(Output {
                process_id,
                seq,
                stream,
                chunk,
                permit,
            }),
            Granted::Exited {
                exit_code,
                sandbox_denied,
            } => {
                self.exit_code = Some(exit_code);
                SessionEvent::Exited(Exited {
                    process_id,
                    seq,
                    exit_code,
                    sandbox_denied,
                })
            }
            Granted::Closed => SessionEvent::Closed(Closed {
                process_id,
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
mod tests {
    use super::*;
    use crate::router::budget::Pool;

    fn output(text: &'static str) -> ProcessEvent {
        ProcessEvent::Output {
            stream: Stream::Stdout,
            chunk: text.into(),
        }
    }

    fn exited(exit_code: i32) -> ProcessEvent {
        ProcessEvent::Exited {
            exit_code,
            sandbox_denied: None,
        }
    }

    /// Feeds events and writes down what comes out, one word for each.
    fn run(
        delivery: &mut Delivery,
        events: impl IntoIterator<Item = (u64, ProcessEvent)>,
    ) -> Vec<String> {
        let mut told = Vec::new();
        for (seq, event) in events {
            let mut delivered = Vec::new();
            match delivery.accept(seq, event, |event| delivered.push(event)) {
                Progress::Open => {}
                Progress::Blocked(_) => panic!("blocked at {seq}"),
                Progress::Closed(last) | Progress::Failed(last) => delivered.push(last),
            }
            told.extend(delivered.iter().map(word));
        }
        told
    }

    fn word(event: &SessionEvent) -> String {
        match event {
            SessionEvent::Gap(gap) => format!("gap {}..{}", gap.after_seq, gap.before_seq),
            SessionEvent::Interrupted(_) | SessionEvent::Resumed(_) => "link".to_owned(),
            SessionEvent::Output(output) => {
                format!("{}:{}", output.seq, String::from_utf8_lossy(&output.chunk))
            }
            SessionEvent::Exited(exited) => format!("{}:exited {}", exited.seq, exited.exit_code),
            SessionEvent::Closed(closed) => {
                let incomplete = if closed.complete { "" } else { " incomplete" };
                format!("{}:closed {:?}{incomplete}", closed.seq, closed.exit_code)
            }
            SessionEvent::Failed(failed) => {
                format!("failed after {}: {}", failed.last_seq, failed.reason)
            }
        }
    }

    fn delivery() -> Delivery {
        delivery_with(1 << 20, Overflow::Heal)
    }

    fn delivery_with(budget: usize, overflow: Overflow) -> Delivery {
        delivery_after(budget, overflow, 0)
    }

    fn delivery_after(budget: usize, overflow: Overflow, after_seq: u64) -> Delivery {
        let budget = Budget::new(budget, Pool::new(1 << 30), || {});
        Delivery::new("p".into(), budget, overflow, after_seq)
    }

    #[test]
    fn p1_events_leave_in_order_of_seq_whatever_order_they_come_in() {
        let expected = ["1:a", "2:b", "3:exited 7", "4:c", "5:closed Some(7)"];
        let event = |seq| match seq {
            1 => (1, output("a")),
            2 => (2, output("b")),
            3 => (3, exited(7)),
            4 => (4, output("c")),
            _ => (5, ProcessEvent::Closed),
        };
        let mut orders = vec![vec![]];
        for seq in 1..=5u64 {
            orders = orders
                .into_iter()
                .flat_map(|order: Vec<u64>| {
                    (0..=order.len()).map(move |at| {
                        let mut order = order.clone();
                        order.insert(at, seq);
                        order
                    })
                })
                .collect();
        }
        assert_eq!(orders.len(), 120);
        for order in orders {
            let told = run(&mut delivery(), order.iter().map(|&seq| event(seq)));
            assert_eq!(told, expected, "came as {order:?}");
        }
    }

    #[test]
    fn p1_each_event_leaves_once() {
        let twice = [
            (0, output("zero")),
            (1, output("a")),
            (1, output("a")),
            (3, output("c")),
            (3, output("c")),
            (2, output("b")),
            (2, output("b")),
            (3, output("c")),
        ];
        assert_eq!(run(&mut delivery(), twice), ["1:a", "2:b", "3:c"]);
    }

    #[test]
    fn p2_closed_is_last_and_waits_for_what_is_missing() {
        let told = run(
            &mut delivery(),
            [(4, ProcessEvent::Closed), (2, exited(0)), (1, output("a"))],
        );
        assert_eq!(told, ["1:a", "2:exited 0"]);
    }

    #[test]
    fn p2_no_exit_code_is_made_up() {
        let told = run(&mut delivery(), [(1, ProcessEvent::Closed)]);
        assert_eq!(told, ["1:closed None"]);
    }

    #[test]
    fn p4_a_second_exit_fails_the_session() {
        let told = run(
            &mut delivery(),
            [(1, exited(0)), (2, exited(0)), (3, exited(0))],
        );
        assert_eq!(
            told[..2],
            [
                "1:exited 0",
                "failed after 1: the server told of the exit twice"
            ]
        );
        let told = run(&mut delivery(), [(3, exited(0)), (2, exited(0))]);
        assert_eq!(told, ["failed after 0: the server told of the exit twice"]);
    }

    #[test]
    fn a_delivery_can_begin_in_the_middle() {
        let mut delivery = delivery_after(1000, Overflow::Heal, 2);
        let told = run(
            &mut delivery,
            [(4, exited(0)), (2, output("b")), (3, output("c"))],
        );
        assert_eq!(
            (told, delivery.last_seq()),
            (vec!["3:c".into(), "4:exited 0".into()], 4)
        );
        let mut delivery = delivery_after(1000, Overflow::Heal, u64::MAX);
        assert!(run(&mut delivery, [(1, exited(0))]).is_empty());
    }

    /// Feeds outputs of one byte until the budget is used up, and returns what the session holds.
    fn fill(delivery: &mut Delivery, seqs: std::ops::RangeInclusive<u64>) -> Vec<SessionEvent> {
        let mut held = Vec::new();
        for seq in seqs {
            let progress = delivery.accept(seq, output("x"), |event| held.push(event));
            assert!(matches!(progress, Progress::Open), "{seq}: {progress:?}");
        }
        held
    }

    #[test]
    fn p4_a_session_that_chose_to_fails_at_its_budget() {
        let mut delivery = delivery_with(1000, Overflow::Fail);
        let held = fill(&mut delivery, 1..=7);
        let Progress::Failed(last) = delivery.accept(8, output("x"), |_| {}) else {
            panic!("over its budget");
        };
        assert_eq!(
            word(&last),
            "failed after 7: the session holds 1032 bytes of unconsumed output, more than its budget of 1000"
        );
        assert_eq!(held.len(), 7);
    }

    #[test]
    fn p4_a_session_that_chose_to_makes_its_server_wait() {
        let mut delivery = delivery_with(1000, Overflow::Block);
        let mut held = fill(&mut delivery, 1..=7);
        for (seq, event) in [(8, output("x")), (9, output("y"))] {
            match delivery.accept(seq, event, |_| {}) {
                Progress::Blocked(ProcessEvent::Output { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(delivery.wait_for_credit(&output("x")));
        assert!(!delivery.wants_read());
        held.truncate(3);
        assert_eq!(fill(&mut delivery, 8..=8).len(), 1);
    }

    #[test]
    fn p4_what_came_early_does_not_block_what_it_waits_for() {
        let mut delivery = delivery_with(1000, Overflow::Block);
        assert!(fill(&mut delivery, 2..=20).is_empty());
        assert_eq!(fill(&mut delivery, 1..=1).len(), 20);
    }

    #[test]
    fn p4_output_that_is_consumed_costs_no_budget() {
        for overflow in [Overflow::Heal, Overflow::Block, Overflow::Fail] {
            let mut delivery = delivery_with(1000, overflow);
            let events = (1..=1000).map(|seq| (seq, output("x")));
            assert_eq!(run(&mut delivery, events).len(), 1000);
            assert!(!delivery.wants_read());
        }
    }

    #[test]
    fn p4_events_that_come_early_are_bounded_by_count_and_by_budget() {
        let mut delivery = delivery();
        assert!(fill(&mut delivery, 2..=257).is_empty());
        assert!(!delivery.wants_read());
        assert!(fill(&mut delivery, 258..=1000).is_empty());
        assert!(delivery.wants_read() && delivery.early.is_empty());
        assert_eq!(delivery.budget.held(), 0);

        let mut delivery = delivery_with(1000, Overflow::Heal);
        assert!(fill(&mut delivery, 2..=20).is_empty());
        assert!(delivery.wants_read() && delivery.early.is_empty());

        let early = (2..=300).map(|seq| (seq, output("x")));
        assert_eq!(
            run(&mut delivery_with(1 << 20, Overflow::Fail), early)[0],
            "failed after 0: the event with seq 1 never came, and 257 later ones wait for it"
        );
        let told = run(
            &mut delivery_with(1 << 20, Overflow::Heal),
            (2..=1000).map(|seq| (seq, ProcessEvent::Closed)),
        );
        assert_eq!(
            told[0],
            "failed after 0: the server told of the end of the streams twice"
        );
    }

    /// What a server answers: chunks of these seqs, the next seq, and the flags.
    fn read(seqs: impl IntoIterator<Item = u64>, next_seq: u64, ends: &str) -> RetainedOutput {
        let chunks = seqs.into_iter().map(|seq| OutputChunk {
            seq,
            stream: Stream::Stdout,
            chunk: format!("r{seq}").into(),
        });
        RetainedOutput {
            chunks: chunks.collect(),
            next_seq,
            exited: ends.contains("exited"),
            exit_code: ends.contains("exited").then_some(7),
            closed: ends.contains("closed"),
            failure: None,
            sandbox_denied: None,
        }
    }

    fn answer(delivery: &mut Delivery, number: u64, read: RetainedOutput) -> Vec<String> {
        let mut told = Vec::new();
        match delivery.accept_read(number, read, |event| told.push(word(&event))) {
            Progress::Open => {}
            Progress::Blocked(_) => panic!("reads do not block"),
            Progress::Closed(last) | Progress::Failed(last) => told.push(word(&last)),
        }
        told
    }

    /// A delivery that was told up to 7, whose session holds all of it, and that has dropped 8 and 9.
    fn lagging() -> (Delivery, Vec<SessionEvent>) {
        let mut delivery = delivery_with(1000, Overflow::Heal);
        let held = fill(&mut delivery, 1..=7);
        assert!(fill(&mut delivery, 8..=9).is_empty());
        (delivery, held)
    }

    #[test]
    fn p5_what_was_dropped_is_read_when_credit_returns_and_then_pushes_count_again() {
        let (mut delivery, mut held) = lagging();
        assert!(delivery.wants_read());
        assert_eq!(delivery.next_read(), None, "no credit");
        held.truncate(2);
        delivery.credit_returned();
        let wanted = delivery.next_read();
        let expected = WantedRead {
            number: 1,
            after_seq: 7,
            max_bytes: Some(693),
        };
        assert_eq!(wanted, None, "an output of full size would not fit");
        held.clear();
        delivery.credit_returned();
        assert_eq!(
            delivery.next_read(),
            Some(WantedRead {
                max_bytes: Some(945),
                ..expected
            })
        );
        assert!(
            fill(&mut delivery, 10..=10).is_empty(),
            "there is no room before the answer"
        );
        assert_eq!(answer(&mut delivery, 1, read([8], 9, "")), ["8:r8"]);
        assert!(delivery.wants_read());
        assert_eq!(delivery.next_read().map(|read| read.after_seq), Some(8));
        assert_eq!(
            answer(&mut delivery, 2, read([9, 10], 11, "")),
            ["9:r9", "10:r10"]
        );
        assert!(!delivery.wants_read());
        assert_eq!(fill(&mut delivery, 11..=11).len(), 1);
    }

    #[test]
    fn p3_a_session_that_waits_for_others_neither_spins_nor_is_forgotten() {
        let pool = Pool::new(100_000);
        let others = Budget::new(usize::MAX, pool.clone(), || {});
        let budget = Budget::new(1 << 20, pool, || {});
        let mut delivery = Delivery::new("p".into(), budget, Overflow::Heal, 0);
        let held = fill(&mut delivery, 1..=1);
        let theirs = others.take(99_000, usize::MAX).unwrap();
        assert!(fill(&mut delivery, 2..=10).len() < 9, "the pool is drained");
        assert!(delivery.wants_read());
        assert_eq!(delivery.next_read(), None);
        drop(theirs);
        assert!(!delivery.wants_read(), "nobody has told");
        delivery.tick();
        assert!(delivery.next_read().is_some());
        drop(held);
    }

    #[test]
    fn p5_what_has_left_the_window_is_a_gap_in_its_place() {
        let (mut delivery, held) = lagging();
        drop(held);
        assert!(delivery.next_read().is_some());
        let told = answer(&mut delivery, 1, read([20, 21], 22, ""));
        assert_eq!(told, ["gap 7..20", "20:r20", "21:r21"]);
        let told = run(&mut delivery, [(22, exited(0)), (23, ProcessEvent::Closed)]);
        assert_eq!(told, ["22:exited 0", "23:closed Some(0) incomplete"]);
    }

    #[test]
    fn p5_an_exit_that_was_pushed_divides_the_gap() {
        let (mut delivery, held) = lagging();
        assert!(run(&mut delivery, [(15, exited(3))]).is_empty());
        drop(held);
        assert!(delivery.next_read().is_some());
        let told = answer(&mut delivery, 1, read([20, 21], 22, "exited"));
        assert_eq!(
            told,
            ["gap 7..15", "15:exited 3", "gap 15..20", "20:r20", "21:r21"]
        );
    }

    #[test]
    fn p5_where_the_exit_may_be_what_is_missing_its_push_is_awaited() {
        let (mut delivery, held) = lagging();
        drop(held);
        assert!(delivery.next_read().is_some());
        assert!(answer(&mut delivery, 1, read([9, 10], 11, "exited")).is_empty());
        assert!(!delivery.wants_read());
        assert_eq!(run(&mut delivery, [(8, exited(3))]), ["8:exited 3"]);
        assert!(delivery.wants_read());
        assert_eq!(delivery.next_read().map(|read| read.after_seq), Some(8));
        let told = answer(&mut delivery, 2, read([9, 10], 11, "exited"));
        assert_eq!(told, ["9:r9", "10:r10"]);
    }

    #[test]
    fn p5_a_read_that_fails_is_wanted_again() {
        let (mut delivery, held) = lagging();
        drop(held);
        assert!(delivery.next_read().is_some());
        delivery.fail_read(1);
        assert!(delivery.wants_read());
        assert!(delivery.next_read().is_some());
        assert!(
            answer(&mut delivery, 1, read([8, 9], 10, "")).is_empty(),
            "too late"
        );
        assert_eq!(answer(&mut delivery, 2, read([8, 9], 10, "")).len(), 2);
    }

    #[test]
    fn p5_an_event_that_does_not_come_is_read() {
        let mut delivery = delivery();
        let events = [(2, output("b")), (3, exited(7)), (4, ProcessEvent::Closed)];
        assert!(run(&mut delivery, events).is_empty());
        delivery.tick();
        assert!(!delivery.wants_read(), "it may only be late");
        delivery.tick();
        assert_eq!(delivery.next_read().map(|read| read.after_seq), Some(0));
        let told = answer(&mut delivery, 1, read([1, 2], 5, "exited closed"));
        assert_eq!(told, ["1:r1", "2:b", "3:exited 7", "4:closed Some(7)"]);
    }

    /// What a session that was told 1 and 2 is told after an interruption, of these answers.
    fn resumed(answers: impl IntoIterator<Item = RetainedOutput>) -> Vec<String> {
        let mut delivery = delivery();
        drop(fill(&mut delivery, 1..=2));
        delivery.interrupted();
        let mut told = Vec::new();
        for read in answers {
            let wanted = delivery.next_read().expect("wants more");
            assert_eq!(wanted.max_bytes, None);
            told.extend(answer(&mut delivery, wanted.number, read));
        }
        assert!(!delivery.wants_read());
        told
    }

    #[test]
    fn p6_ends_that_were_missed_are_found_among_what_is_retained() {
        // Servers from 0.142 on count all.
        assert!(resumed([read([], 3, "")]).is_empty());
        assert_eq!(resumed([read([3, 4], 5, "")]), ["3:r3", "4:r4"]);
        assert_eq!(resumed([read([], 4, "exited")]), ["3:exited 7"]);
        assert_eq!(
            resumed([read([], 5, "exited closed")]),
            ["3:exited 7", "4:closed Some(7)"]
        );
        assert_eq!(
            resumed([read([3, 5], 7, "exited closed")]),
            ["3:r3", "4:exited 7", "5:r5", "6:closed Some(7)"]
        );
        assert_eq!(
            resumed([read([3, 4], 7, "exited closed")]),
            ["3:r3", "4:r4", "5:exited 7", "6:closed Some(7)"]
        );
        // The exit is the one that is missing in front.
        assert_eq!(
            resumed([read([4, 5], 7, "exited closed"),]),
            ["3:exited 7", "4:r4", "5:r5", "6:closed Some(7)"]
        );
        // The exit is lost with output: behind the gap. It is behind what is retained: in its place.
        assert_eq!(
            resumed([read([9], 11, "exited closed")]),
            [
                "gap 2..8",
                "8:exited 7",
                "9:r9",
                "10:closed Some(7) incomplete"
            ]
        );
        assert_eq!(
            resumed([read([9], 12, "exited closed")]),
            [
                "gap 2..9",
                "9:r9",
                "10:exited 7",
                "11:closed Some(7) incomplete"
            ]
        );
    }

    #[test]
    fn p6_servers_that_do_not_count_the_end_behind_chunks_are_asked_again() {
        assert_eq!(
            resumed([
                read([3, 4], 5, "exited closed"),
                read([], 7, "exited closed")
            ]),
            ["3:r3", "4:r4", "5:exited 7", "6:closed Some(7)"]
        );
        assert_eq!(
            resumed([read([4], 5, "exited"), read([], 5, "exited")]),
            ["3:exited 7", "4:r4"]
        );
        assert_eq!(
            resumed([
                read([4], 5, "exited"),
                read([5], 6, "exited"),
                read([], 7, "exited")
            ]),
            ["gap 2..4", "4:r4", "5:r5", "6:exited 7"]
        );
    }

    #[test]
    fn p6_pushes_and_reads_overlap_without_doubling() {
        let mut delivery = delivery();
        drop(fill(&mut delivery, 1..=2));
        delivery.interrupted();
        let wanted = delivery.next_read().unwrap();
        assert!(run(&mut delivery, [(5, output("e")), (6, exited(7))]).is_empty());
        let told = answer(&mut delivery, wanted.number, read([3, 4, 5], 7, "exited"));
        assert_eq!(told, ["3:r3", "4:r4", "5:e", "6:exited 7"]);
        assert_eq!(
            run(&mut delivery, [(6, exited(7)), (5, output("e"))]),
            [""; 0]
        );
    }

    #[test]
    fn p2_a_process_that_is_forgotten_has_ended_if_it_has_exited() {
        let mut delivery = delivery();
        run(&mut delivery, [(1, output("a")), (2, exited(7))]);
        delivery.check_end();
        let wanted = delivery.next_read().unwrap();
        let mut told = Vec::new();
        let progress = delivery.forget(wanted.number, |event| told.push(word(&event)));
        assert!(told.is_empty());
        match progress {
            Progress::Closed(last) => assert_eq!(word(&last), "3:closed Some(7) incomplete"),
            other => panic!("{other:?}"),
        }

        let mut delivery = super::tests::delivery();
        run(&mut delivery, [(1, output("a"))]);
        delivery.interrupted();
        let wanted = delivery.next_read().unwrap();
        match delivery.forget(wanted.number, |event| panic!("{event:?}")) {
            Progress::Failed(last) => assert_eq!(
                word(&last),
                "failed after 1: the server has forgotten the process, and with it how it ended"
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_highest_seq_is_no_trap() {
        let told = run(&mut delivery(), [(u64::MAX, output("x")), (1, output("a"))]);
        assert_eq!(told, ["1:a"]);
    }
}
