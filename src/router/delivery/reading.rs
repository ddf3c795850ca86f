//! What a session has missed: whether it has to be read, how much at once, and what the answer tells.
//!
//! A read tells more than pushes do: a `seq` below its first chunk that is not the exit's has left the
//! server's window, and becomes a gap.

use std::mem;

use tokio::time::Instant;

use super::{CHUNK, Delivery, Fruitless, Granted, Progress};
use crate::{
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
    /// To be read as soon as it is this session's turn; after a pause, if the last read has brought nothing.
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
    after_seq: u64,
    max_bytes: Option<usize>,
    /// What was delivered next when it was asked.
    next_seq: u64,
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
    /// Whether a read is needed now, and it is not known to be in vain.
    pub(crate) fn wants_read(&self) -> bool {
        matches!(self.healing, Healing::Wanted(_)) && !self.is_resting()
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
        if self.is_resting() {
            return None;
        }
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
            after_seq,
            max_bytes,
            next_seq: self.next_seq,
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
        self.ending().may_be_missed = true;
        // What was tried in vain over the old link may be tried over the new one at once, if not more often.
        self.read_at_once();
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
        mut answer: RetainedOutput,
        now: Instant,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        let Some(reading) = self.end_read(number) else {
            return Progress::Open;
        };
        let next_seq = reading.next_seq;
        let is_of_all = matches!(reading.scope, Scope::Missed { .. });
        if !keep_what_was_asked(&mut answer, reading.after_seq) {
            self.want_again(is_of_all);
            return self.fruitless(Fruitless::Useless, is_of_all, now, deliver);
        }
        let taken = self.take_in(reading, answer, &mut deliver);
        match taken {
            Taken::Last(last) => last,
            // The rest of it is to be read before it can be understood.
            Taken::Half => Progress::Open,
            // The session has to consume first: it is not the server that is to be left alone.
            Taken::NoCredit => Progress::Open,
            Taken::All if self.next_seq > next_seq || is_of_all && !self.is_missing() => {
                self.be_patient_again();
                Progress::Open
            }
            Taken::All => {
                if let Healing::Live = self.healing
                    && is_of_all
                    && self.is_end_told()
                {
                    // The end is said to be among what is retained, and no push will tell its place.
                    self.healing = Healing::Wanted(MISSED);
                }
                self.fruitless(Fruitless::Useless, is_of_all, now, deliver)
            }
        }
    }

    /// Returns true if something is known to be missing.
    fn is_missing(&self) -> bool {
        self.next_seq <= self.dropped_to
            || !self.early.is_empty()
            || matches!(self.healing, Healing::AwaitingEnd)
            || self.is_end_told()
    }

    fn take_in(
        &mut self,
        reading: Reading,
        answer: RetainedOutput,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Taken {
        let Reading {
            scope,
            dropped_to,
            max_bytes,
            ..
        } = reading;
        if answer.chunks.is_empty() && self.dropped_to == dropped_to {
            // Nothing is to be had of what was dropped, whatever the server called it.
            self.dropped_to = self.dropped_to.min(answer.next_seq.saturating_sub(1));
        }
        let read = match scope {
            Scope::Dropped => answer,
            Scope::Missed { tail_reads, read } => {
                self.ending().may_be_missed = false;
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
                    return Taken::Half;
                }
                self.find_end(&answer);
                answer
            }
        };
        self.note_told_end(&read);
        let begin = read.chunks.first().map_or(read.next_seq, |chunk| chunk.seq);
        if self.is_missing_before(begin) && self.lacks_end(&read) {
            // One of what is missing may be the end, not output: its push is on its way.
            if let Some(last) = read.chunks.last() {
                self.dropped_to = self.dropped_to.max(last.seq);
            }
            self.dropped_to = self.dropped_to.max(begin - 1);
            self.healing = Healing::AwaitingEnd;
            return Taken::All;
        }
        if let Some(last) = self.skip_to(begin, &mut deliver) {
            return Taken::Last(Progress::Closed(last));
        }
        self.accept_chunks(read.chunks, max_bytes, deliver)
    }

    fn accept_chunks(
        &mut self,
        chunks: Vec<OutputChunk>,
        max_bytes: Option<usize>,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Taken {
        let last_seq = chunks.last().map_or(0, |chunk| chunk.seq);
        let mut taken = Taken::All;
        for OutputChunk { seq, stream, chunk } in chunks {
            if seq < self.next_seq || self.early.contains_key(&seq) {
                continue;
            }
            let own = self.own(seq, chunk.len());
            let Some(permit) = self.budget.take(chunk.len(), own) else {
                // Whatever the policy: it was this side that asked for so much at once, unless it is more than that.
                if max_bytes.is_none_or(|max| chunk.len() <= max.max(CHUNK)) {
                    taken = Taken::NoCredit;
                }
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
                last => return Taken::Last(last),
            }
        }
        if let Healing::Live = self.healing
            && self.next_seq <= self.dropped_to
        {
            self.healing = Healing::Wanted(Scope::Dropped);
        }
        taken
    }

    /// Accepts that a read has failed. It is wanted again, for as long as there is patience.
    pub(crate) fn fail_read(
        &mut self,
        number: u64,
        fruitless: Fruitless,
        now: Instant,
        deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        let Some(reading) = self.end_read(number) else {
            return Progress::Open;
        };
        let is_of_all = matches!(reading.scope, Scope::Missed { .. });
        self.want_again(is_of_all);
        self.fruitless(fruitless, is_of_all, now, deliver)
    }

    fn want_again(&mut self, is_of_all: bool) {
        self.healing = Healing::Wanted(if is_of_all { MISSED } else { Scope::Dropped });
    }

    /// Ends the read that is under way, if it is this one.
    pub(super) fn end_read(&mut self, number: u64) -> Option<Reading> {
        if number != self.reads {
            return None;
        }
        match mem::replace(&mut self.healing, Healing::Live) {
            Healing::Reading(mut reading) => {
                if let Some(reserved) = reading.reserved.take() {
                    self.budget.cancel(reserved);
                }
                Some(*reading)
            }
            other => {
                self.healing = other;
                None
            }
        }
    }

    /// Whether something below `begin` has not come.
    fn is_missing_before(&self, begin: u64) -> bool {
        let come = self.early.range(..begin).count() as u64;
        begin.saturating_sub(self.next_seq) > come
    }

    /// Goes on at `begin`: delivers what came before it, and tells what is missing there. Returns the last
    /// event, if it is among them.
    pub(super) fn skip_to(
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

/// What the answer to a read has led to.
enum Taken {
    All,
    /// The rest has to be read.
    Half,
    /// Not all of it, for want of credit.
    NoCredit,
    /// The last event.
    Last(Progress),
}

/// Leaves only what a server may answer with: output behind `after_seq`, in order, and a `next_seq` behind that. Returns
/// false if there was output, and none of that kind.
fn keep_what_was_asked(answer: &mut RetainedOutput, after_seq: u64) -> bool {
    let was_empty = answer.chunks.is_empty();
    let mut last = after_seq;
    answer.chunks.retain(|chunk| {
        let is_next = chunk.seq > last;
        last = last.max(chunk.seq);
        is_next
    });
    answer.next_seq = answer.next_seq.max(last.saturating_add(1));
    was_empty || !answer.chunks.is_empty()
}

/// Joins two reads, of which the second goes on where the first has ended.
fn join(mut read: RetainedOutput, rest: RetainedOutput) -> RetainedOutput {
    read.chunks.extend(rest.chunks);
    RetainedOutput {
        chunks: read.chunks,
        ..rest
    }
}
