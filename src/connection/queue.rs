//! What waits to be written, in its lanes. No actor, no socket, no clock.
//!
//! Control requests go before all others; what is consumed is told in turns with those. Of the writes to the
//! stdin of one process one is under way at a time; the others wait here. A process that does not read its
//! stdin is marked as *stuck*: the server would not answer any request of the connection before its writes are
//! taken. Of the starts of processes, a bounded number is unanswered at a time; the others wait here, too.

mod starts;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    mem,
    ops::Bound,
};

use bytes::Bytes;
use foldhash::fast::RandomState;
use tokio::time::{Duration, Instant};

use self::starts::Starts;
use super::pending::{RequestId, after};
use crate::protocol::{Lane, ProcessId};

/// What keeping a request costs beside its bytes.
const OVERHEAD: usize = 128;

/// How many requests are remembered as written and not answered. More than that no server leaves, and
/// one that answers nothing shall not cost memory for each call that times out.
const MAX_SENT: usize = 16_384;

/// A request that waits, or that may have to be made again.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) json: Bytes,
    pub(crate) turn: Turn,
}

/// When a request is written that is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Before all others.
    Control,
    /// In the order of the calls.
    Ordinary,
    /// In the order of the calls, when there is a place for it among the unanswered starts.
    Start,
}

impl From<Lane<'_>> for Turn {
    fn from(lane: Lane<'_>) -> Self {
        match lane {
            Lane::Control => Turn::Control,
            Lane::Ordinary | Lane::Stdin(_) => Turn::Ordinary,
            Lane::Start => Turn::Start,
        }
    }
}

impl Request {
    fn cost(&self) -> usize {
        self.json.len() + OVERHEAD
    }
}

/// Why a request cannot wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// A bound is reached.
    Full,
    /// The process does not read its stdin.
    Stuck(ProcessId),
}

/// The requests of one connection that are not written yet.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Up to which `seq` the output of processes is consumed, of those whose server is yet to be told. Only
    /// the last word counts, so that it costs no more than the processes do.
    consumed: BTreeMap<ProcessId, u64>,
    /// The process of which that was told last: it goes on behind it.
    consumed_after: Option<ProcessId>,
    /// Whether that was the last that was taken out.
    has_told: bool,
    control: VecDeque<Request>,
    ordinary: VecDeque<Request>,
    stdins: HashMap<ProcessId, Stdin>,
    starts: Starts,
    /// The write of each process that is under way.
    writing: HashMap<RequestId, ProcessId, RandomState>,
    /// Ordinary requests in the order in which they were written, from the first that is not answered.
    sent: VecDeque<Sent>,
    /// Of the requests that wait.
    bytes: usize,
    /// Of those that are being written.
    flushing: usize,
    /// When the socket has last taken something.
    flowed: Option<Instant>,
    /// The writes to processes and the starts among those.
    flushing_timed: Vec<RequestId>,
    max_bytes: usize,
    max_stdin_bytes: usize,
}

/// The writes to one process.
#[derive(Debug, Default)]
struct Stdin {
    under_way: Option<UnderWay>,
    waiting: VecDeque<Request>,
    bytes: usize,
    is_stuck: bool,
}

#[derive(Debug)]
struct UnderWay {
    id: RequestId,
    /// Since when the socket has it.
    since: Option<Instant>,
}

/// A request that was written.
#[derive(Debug)]
struct Sent {
    id: RequestId,
    is_answered: bool,
}

impl Queue {
    pub(crate) fn new(max_bytes: usize, max_stdin_bytes: usize) -> Self {
        Queue {
            consumed: BTreeMap::new(),
            consumed_after: None,
            has_told: false,
            control: VecDeque::new(),
            ordinary: VecDeque::new(),
            stdins: HashMap::new(),
            starts: Starts::default(),
            writing: HashMap::default(),
            sent: VecDeque::new(),
            bytes: 0,
            flushing: 0,
            flowed: None,
            flushing_timed: Vec::new(),
            max_bytes,
            max_stdin_bytes,
        }
    }

    /// Lets so many starts be unanswered at a time.
    pub(crate) fn max_starts(mut self, max: usize) -> Self {
        self.starts = Starts::at_most(max);
        self
    }

    /// Bytes of requests that are not written yet.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.flushing
    }

    /// Notes that the socket has what was taken out.
    pub(crate) fn flushed(&mut self, now: Instant) {
        self.flushing = 0;
        for id in mem::take(&mut self.flushing_timed) {
            self.starts.written(id, now);
            if let Some(under_way) = self.under_way(id) {
                under_way.since = Some(now);
            }
        }
    }

    /// Notes that the socket has taken something, if not all.
    pub(crate) fn flows(&mut self, now: Instant) {
        self.flowed = Some(now);
    }

    /// Whether what was taken out is still on its way into the socket, which has taken some of it since.
    pub(crate) fn is_flowing(&self, since: Instant) -> bool {
        self.flushing > 0 && self.flowed.is_some_and(|flowed| flowed >= since)
    }

    /// Notes that what was written is lost with its link, but for the requests that are made `again`. These
    /// go before all that wait; they are in order.
    pub(crate) fn link_lost(&mut self, again: Vec<Request>) {
        self.flushing = 0;
        self.flushing_timed.clear();
        self.sent.clear();
        let waiting: HashSet<_> = self.ids();
        let repeated: HashSet<_> = again.iter().map(|request| request.id).collect();
        let lost: Vec<_> = self
            .writing
            .keys()
            .copied()
            .filter(|id| !waiting.contains(id) && !repeated.contains(id))
            .collect();
        let starts = again.iter().filter(|request| request.turn == Turn::Start);
        self.starts
            .link_lost(|id| waiting.contains(&id), starts.cloned());
        for request in again.into_iter().rev() {
            self.bytes += request.cost();
            if let Some(under_way) = self.under_way(request.id) {
                under_way.since = None;
            }
            match request.turn {
                Turn::Control => self.control.push_front(request),
                Turn::Ordinary => self.ordinary.push_front(request),
                Turn::Start if self.starts.has_place(request.id) => {
                    self.ordinary.push_front(request);
                }
                // It waits for a place already.
                Turn::Start => {}
            }
        }
        // Nobody waits for their answers any more, but other writes wait for their end.
        for id in lost {
            self.ended(id);
        }
        self.let_starts_go();
    }

    /// Returns whether a request of this lane may wait, before it is made.
    pub(crate) fn check(&self, lane: Lane<'_>) -> Result<(), Refused> {
        match lane {
            Lane::Stdin(process_id) => match self.stdins.get(process_id) {
                Some(stdin) if stdin.is_stuck => Err(Refused::Stuck(process_id.clone())),
                _ => Ok(()),
            },
            Lane::Ordinary | Lane::Control | Lane::Start => Ok(()),
        }
    }

    /// Has a request wait. One always fits.
    pub(crate) fn push(&mut self, lane: Lane<'_>, request: Request) -> Result<(), Refused> {
        self.check(lane)?;
        let cost = request.cost();
        if self.bytes() > 0 && self.bytes() + cost > self.max_bytes {
            return Err(Refused::Full);
        }
        match lane {
            Lane::Control => self.control.push_back(request),
            Lane::Ordinary => self.ordinary.push_back(request),
            Lane::Start if self.starts.begin(request.id) => self.ordinary.push_back(request),
            Lane::Start => self.starts.wait(request),
            Lane::Stdin(process_id) => {
                if self.begin_write(process_id, request.id) {
                    self.ordinary.push_back(request);
                } else if let Some(stdin) = self.stdins.get_mut(process_id) {
                    if stdin.bytes > 0 && stdin.bytes + cost > self.max_stdin_bytes {
                        return Err(Refused::Full);
                    }
                    stdin.bytes += cost;
                    stdin.waiting.push_back(request);
                }
            }
        }
        self.bytes += cost;
        Ok(())
    }

    /// Notes that a request of this size is written past all that waits, if nothing does. It is not taken for written
    /// before [`flushed`](Self::flushed). Where it returns `false`, it is one to [`push`](Self::push).
    pub(crate) fn pass(&mut self, lane: Lane<'_>, id: RequestId, size: usize) -> bool {
        if self.bytes() > 0 || !self.consumed.is_empty() {
            return false;
        }
        match lane {
            Lane::Control => {}
            Lane::Ordinary => self.note_sent(id),
            Lane::Start => {
                if !self.starts.begin(id) {
                    return false;
                }
                self.note_sent(id);
            }
            Lane::Stdin(process_id) => {
                if !self.begin_write(process_id, id) {
                    return false;
                }
                self.note_sent(id);
            }
        }
        self.flushing += size + OVERHEAD;
        true
    }

    /// Has a write be the one that is under way to its process, if none is.
    fn begin_write(&mut self, process_id: &ProcessId, id: RequestId) -> bool {
        let stdin = match self.stdins.get_mut(process_id) {
            Some(stdin) => stdin,
            None => self.stdins.entry(process_id.clone()).or_default(),
        };
        if stdin.under_way.is_some() {
            return false;
        }
        stdin.under_way = Some(UnderWay { id, since: None });
        self.writing.insert(id, process_id.clone());
        true
    }

    /// Remembers that a request is written in the order of the calls.
    fn note_sent(&mut self, id: RequestId) {
        if self.sent.len() == MAX_SENT {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent {
            id,
            is_answered: false,
        });
        if self.writing.contains_key(&id) || self.starts.has_place(id) {
            self.flushing_timed.push(id);
        }
    }

    /// Has it told that the output of a process is consumed up to this `seq`.
    pub(crate) fn consumed(&mut self, process_id: ProcessId, seq: u64) {
        self.consumed.insert(process_id, seq);
    }

    /// Takes out what is told next of what is consumed, if it is not the turn of a request.
    pub(crate) fn next_consumed(&mut self) -> Option<(ProcessId, u64)> {
        if self.consumed.is_empty()
            || !self.control.is_empty()
            || self.has_told && !self.ordinary.is_empty()
        {
            return None;
        }
        let after = match &self.consumed_after {
            Some(last) => (Bound::Excluded(last), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let behind = self.consumed.range::<ProcessId, _>(after).next();
        let (process_id, _) = behind.or_else(|| self.consumed.first_key_value())?;
        let next = self.consumed.remove_entry(&process_id.clone())?;
        self.consumed_after = Some(next.0.clone());
        self.has_told = true;
        Some(next)
    }

    /// Takes out the request that is written next.
    pub(crate) fn next(&mut self) -> Option<Request> {
        self.has_told = false;
        let request = match self.control.pop_front() {
            Some(request) => request,
            None => {
                let request = self.ordinary.pop_front()?;
                self.note_sent(request.id);
                request
            }
        };
        self.bytes -= request.cost();
        self.flushing += request.cost();
        Some(request)
    }

    /// Notes that a request is answered. Returns whether the next write of its process, or another start, may go
    /// because of that.
    pub(crate) fn answered(&mut self, id: RequestId) -> bool {
        // Most servers answer in order.
        if let Some(sent) = self.sent.iter_mut().find(|sent| sent.id == id) {
            sent.is_answered = true;
        }
        while self.sent.front().is_some_and(|sent| sent.is_answered) {
            self.sent.pop_front();
        }
        self.ended(id)
    }

    /// Lets the starts go for which there are places. Returns whether there were any.
    fn let_starts_go(&mut self) -> bool {
        let waited = self.ordinary.len();
        while let Some(request) = self.starts.next() {
            self.ordinary.push_back(request);
        }
        self.ordinary.len() > waited
    }

    /// Lets starts go in place of those that are unanswered for too long. Returns whether there were any.
    pub(crate) fn expire_starts(&mut self, now: Instant) -> bool {
        self.starts.expire(now);
        self.let_starts_go()
    }

    /// Takes out a start that waits for its turn, and that nobody wants any more.
    pub(crate) fn remove_start(&mut self, id: RequestId) {
        if let Some(request) = self.starts.remove(id) {
            self.bytes -= request.cost();
        }
    }

    /// Lets the next write of a process go, or another start, if this one was under way.
    fn ended(&mut self, id: RequestId) -> bool {
        if self.starts.ended(id) {
            return self.let_starts_go();
        }
        let Some(process_id) = self.writing.remove(&id) else {
            return false;
        };
        let Some(stdin) = self.stdins.get_mut(&process_id) else {
            return false;
        };
        stdin.under_way = None;
        match stdin.waiting.pop_front() {
            Some(next) => {
                stdin.bytes -= next.cost();
                stdin.under_way = Some(UnderWay {
                    id: next.id,
                    since: None,
                });
                self.writing.insert(next.id, process_id);
                self.ordinary.push_back(next);
                return true;
            }
            None if stdin.is_stuck => {}
            None => {
                self.stdins.remove(&process_id);
            }
        }
        false
    }

    /// Takes out a request that still waits. A write that was under way is not, any more.
    pub(crate) fn remove(&mut self, id: RequestId) -> bool {
        let take = |lane: &mut VecDeque<Request>| {
            let at = lane.iter().position(|request| request.id == id)?;
            lane.remove(at)
        };
        let request = take(&mut self.control)
            .or_else(|| take(&mut self.ordinary))
            .or_else(|| self.starts.remove(id))
            .or_else(|| {
                self.stdins.values_mut().find_map(|stdin| {
                    let request = take(&mut stdin.waiting)?;
                    stdin.bytes -= request.cost();
                    Some(request)
                })
            });
        let Some(request) = request else {
            return false;
        };
        self.bytes -= request.cost();
        self.ended(id);
        true
    }

    /// The requests that still wait.
    pub(crate) fn ids(&self) -> HashSet<RequestId> {
        let waiting = self.stdins.values().flat_map(|stdin| &stdin.waiting);
        self.control
            .iter()
            .chain(&self.ordinary)
            .chain(waiting)
            .chain(self.starts.waiting())
            .map(|request| request.id)
            .collect()
    }

    /// Has a request written before all others that wait in the order of the calls, whatever the bounds.
    pub(crate) fn push_probe(&mut self, request: Request) {
        self.bytes += request.cost();
        self.ordinary.push_front(request);
    }

    /// Has a request wait whatever the bounds: with the control requests, or behind all that wait in the order of the
    /// calls.
    pub(crate) fn push_last(&mut self, request: Request) {
        self.bytes += request.cost();
        match request.turn {
            Turn::Control => self.control.push_back(request),
            Turn::Ordinary | Turn::Start => self.ordinary.push_back(request),
        }
    }

    /// Returns when the first of the writes under way will have been for so long.
    pub(crate) fn next_overdue(&self, timeout: Duration) -> Option<Instant> {
        self.writing
            .values()
            .filter_map(|process_id| self.stdins.get(process_id)?.under_way.as_ref()?.since)
            .min()
            .map(|since| after(since, timeout))
    }

    /// Returns the process whose write has been under way for so long, and may hold up all other requests:
    /// every one that was written before it is answered.
    pub(crate) fn blocking(&self, now: Instant, timeout: Duration) -> Option<ProcessId> {
        let process_id = self.writing.get(&self.sent.front()?.id)?;
        let since = self.stdins.get(process_id)?.under_way.as_ref()?.since?;
        (after(since, timeout) <= now).then(|| process_id.clone())
    }

    /// Returns the processes whose write has been under way for so long, of the writes chosen.
    pub(crate) fn overdue(
        &self,
        now: Instant,
        timeout: Duration,
        is_chosen: impl Fn(RequestId) -> bool,
    ) -> Vec<ProcessId> {
        let is_overdue = |id: RequestId, process_id: &ProcessId| {
            let since = self.stdins.get(process_id)?.under_way.as_ref()?.since?;
            Some(after(since, timeout) <= now && is_chosen(id))
        };
        self.writing
            .iter()
            .filter(|(id, process_id)| is_overdue(**id, process_id).unwrap_or(false))
            .map(|(_, process_id)| process_id.clone())
            .collect()
    }

    /// Takes no more writes for a process that does not read. Returns those that wait or are under way.
    pub(crate) fn mark_stuck(&mut self, process_id: &ProcessId) -> Vec<RequestId> {
        let Some(stdin) = self.stdins.get_mut(process_id) else {
            return Vec::new();
        };
        stdin.is_stuck = true;
        self.bytes -= mem::take(&mut stdin.bytes);
        let waiting = mem::take(&mut stdin.waiting);
        let under_way = stdin.under_way.take().map(|under_way| under_way.id);
        if let Some(id) = under_way {
            self.writing.remove(&id);
            if let Some(at) = self.ordinary.iter().position(|request| request.id == id)
                && let Some(request) = self.ordinary.remove(at)
            {
                self.bytes -= request.cost();
            }
        }
        under_way
            .into_iter()
            .chain(waiting.into_iter().map(|request| request.id))
            .collect()
    }

    /// Drops the writes and starts that wait for another to be answered: nothing is, any more.
    pub(crate) fn drop_waiting(&mut self) {
        self.consumed.clear();
        for (_, stdin) in self.stdins.drain() {
            self.bytes -= stdin.bytes;
        }
        self.bytes -= self.starts.clear();
        self.writing.clear();
    }

    /// Forgets a process that has ended.
    pub(crate) fn forget(&mut self, process_id: &ProcessId) {
        if let Some(stdin) = self.stdins.get_mut(process_id) {
            stdin.is_stuck = false;
            if stdin.under_way.is_none() {
                self.stdins.remove(process_id);
            }
        }
    }

    fn under_way(&mut self, id: RequestId) -> Option<&mut UnderWay> {
        let process_id = self.writing.get(&id)?;
        self.stdins.get_mut(process_id)?.under_way.as_mut()
    }
}

#[cfg(test)]
mod tests;
