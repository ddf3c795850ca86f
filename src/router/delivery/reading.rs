//! What a session has missed: whether it has to be read, how much at once, and what the answer tells.
//!
//! A read tells more than pushes do: a `seq` below its first chunk that is not the exit's has left the
//! server's window, and becomes a gap.

use std::mem;

use super::{CHUNK, Delivery, Granted, Progress};
use crate::{
    error::FailureReason,
    protocol::{OutputChunk, RetainedOutput},
    router::{
        budget::{Permit, cost},
        session::{Gap, SessionEvent},
    },
};

/// The most that one healing read asks for, so that others get their turn.
const MAX_READ: usize = 256 << 10;

/// How often the end of what a server retains is looked for. It moves while the process writes.
const MAX_TAIL_READS: u8 = 3;

/// How far what is missing is from being read.
#[derive(Debug)]
pub(super) enum Healing {
    /// Nothing has to be read: what is missing is on its way.
    Live,
    /// To be read as soon as it is this session's turn.
    Wanted(Scope),
    /// Being read.
    Reading(Box<Reading>),
    /// To be read when the session has consumed.
    Starved,
    /// The answer cannot be understood without *exited* or *closed*, whose pushes are on their way.
    AwaitingEnd,
}

/// A read that is under way.
#[derive(Debug)]
pub(super) struct Reading {
    scope: Scope,
    /// Keeps room for the answer.
    reserved: Option<Permit>,
    /// The highest push that had been dropped when it was asked.
    dropped_to: u64,
}

/// What a read is for.
#[derive(Debug)]
pub(super) enum Scope {
    /// Pushes that were dropped.
    Dropped,
    /// Everything, as pushes may have been lost: output, *exited* and *closed*. Those two a read only
    /// tells by flags, so that their places have to be found among all that is retained.
    Missed {
        tail_reads: u8,
        read: Option<Box<RetainedOutput>>,
    },
}

pub(super) const MISSED: Scope = Scope::Missed {
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

impl Delivery {
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
        self.healing = Healing::Reading(Box::new(Reading {
            scope,
            dropped_to: self.dropped_to,
            reserved: max_bytes.and_then(|bytes| self.budget.take(bytes, usize::MAX)),
        }));
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

    /// The credit that is kept for the answer to a read.
    pub(super) fn reserved(&self) -> usize {
        match &self.healing {
            Healing::Reading(reading) => reading.reserved.as_ref().map_or(0, Permit::bytes),
            _ => 0,
        }
    }

    /// Notes that pushes may have been lost, with the connection.
    pub(crate) fn interrupted(&mut self) {
        self.end_read(self.reads);
        self.healing = Healing::Wanted(MISSED);
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
                    Some(read) => join(*read, answer),
                    None => answer,
                };
                if hides_tail && self.lacks_end(&answer) && tail_reads < MAX_TAIL_READS {
                    self.healing = Healing::Wanted(Scope::Missed {
                        tail_reads: tail_reads + 1,
                        read: Some(Box::new(answer)),
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
        if !self.has_exited() {
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

    /// Ends the read that is under way, if it is this one.
    pub(super) fn end_read(&mut self, number: u64) -> Option<(Scope, u64)> {
        if number != self.reads {
            return None;
        }
        match mem::replace(&mut self.healing, Healing::Live) {
            Healing::Reading(reading) => {
                let Reading {
                    scope,
                    reserved,
                    dropped_to,
                } = *reading;
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
        read.exited && !self.has_exited() || read.closed && !self.is_closed()
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
        if read.closed && !self.is_closed() && !self.is_filled(last, read) {
            self.ending().is_closed = true;
            self.keep(last, Granted::Closed);
        }
        if let (true, false, Some(exit_code)) = (read.exited, self.has_exited(), read.exit_code)
            && let Some(seq) = self.last_unfilled(read)
        {
            self.ending().has_exited = true;
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
}

/// Joins two reads, of which the second goes on where the first has ended.
fn join(mut read: RetainedOutput, rest: RetainedOutput) -> RetainedOutput {
    read.chunks.extend(rest.chunks);
    RetainedOutput {
        chunks: read.chunks,
        ..rest
    }
}
