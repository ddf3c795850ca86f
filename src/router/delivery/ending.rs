//! The end of a process: what is known of it, how its place is found, and what is told where nothing tells the place.

use tokio::time::{Duration, Instant};

use super::{Delivery, Fruitless, Granted, Progress, patience::Patience, reading::Healing};
use crate::{
    error::FailureReason,
    protocol::{ProcessEvent, RetainedOutput},
    router::session::SessionEvent,
};

/// The end of a process: *exited* and *closed*. They cost no credit, and so each may come only once. And what stands in the
/// way of learning of it.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// Whether the place of *exited* is known.
    pub(super) has_exited: bool,
    /// Whether the place of *closed* is known.
    pub(super) is_closed: bool,
    /// From *exited*, once delivered.
    pub(super) exit_code: Option<i32>,
    /// When it was last looked whether a process that has exited has ended.
    checked: Option<Instant>,
    /// Set if reads have told of an end whose place is not known.
    told: Option<ToldEnd>,
    /// Set from when a link was lost until a read has told what was missed: the end may have been.
    pub(super) may_be_missed: bool,
    /// Set while reads bring nothing.
    patience: Option<Patience>,
}

/// What a read has told of the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ToldEnd {
    /// From *exited*, if the exit was told and its event has not come.
    exit_code: Option<i32>,
    is_closed: bool,
}

impl Delivery {
    /// Accepts an event whose place was passed. Mostly it is known. But if its place was told as lost, the end is still
    /// news: nothing else would tell the session of it.
    #[cold]
    pub(super) fn accept_past(
        &mut self,
        event: &ProcessEvent,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        match event {
            ProcessEvent::Exited { exit_code, .. } if self.has_gap && !self.has_exited() => {
                let ending = self.ending();
                ending.has_exited = true;
                ending.exit_code = Some(*exit_code);
                Progress::Open
            }
            ProcessEvent::Closed if self.has_gap && !self.is_closed() => {
                match self.skip_all(&mut deliver) {
                    Some(last) => Progress::Closed(last),
                    None => self.close_here(),
                }
            }
            ProcessEvent::Output { .. } | ProcessEvent::Exited { .. } | ProcessEvent::Closed => {
                Progress::Open
            }
        }
    }

    /// Whether the process has exited and its end is awaited.
    pub(crate) fn has_exited(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.has_exited)
    }

    /// Returns true if a read has told of an end whose place is not known.
    pub(super) fn is_end_told(&self) -> bool {
        let ending = self.ending.as_ref();
        ending.is_some_and(|ending| ending.told.is_some())
    }

    /// Returns true if the end is to be looked for: the process has exited, or that may have been missed.
    pub(super) fn is_end_awaited(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| {
            ending.has_exited || ending.told.is_some() || ending.may_be_missed
        })
    }

    /// Whether the place of *closed* is known.
    pub(super) fn is_closed(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.is_closed)
    }

    pub(super) fn ending(&mut self) -> &mut Ending {
        self.ending.get_or_insert_default()
    }

    /// Whether the end of a process that has exited has not come for so long: since this was first asked, and then since
    /// it was last so.
    pub(crate) fn is_end_overdue(&mut self, now: Instant, patience: Duration) -> bool {
        if !self.is_end_awaited() {
            if let Some(ending) = &mut self.ending {
                ending.checked = None;
            }
            return false;
        }
        let checked = self.ending().checked.get_or_insert(now);
        let is_overdue = now - *checked >= patience;
        if is_overdue {
            *checked = now;
        }
        is_overdue
    }

    /// Notes whether a read tells of an end whose place is not known.
    pub(super) fn note_told_end(&mut self, read: &RetainedOutput) {
        if self.lacks_end(read) {
            self.ending().told = Some(ToldEnd {
                exit_code: read.exit_code,
                is_closed: read.closed,
            });
        } else if let Some(ending) = &mut self.ending {
            ending.told = None;
        }
    }

    /// Whether the read tells of an end whose place is not known.
    pub(super) fn lacks_end(&self, read: &RetainedOutput) -> bool {
        read.exited && !self.has_exited() || read.closed && !self.is_closed()
    }

    /// Finds the places of *exited* and *closed* in all that a server retains: *closed* is the last of all,
    /// *exited* the one that no chunk fills. If it is lost with output, it is put behind that.
    pub(super) fn find_end(&mut self, read: &RetainedOutput) {
        let last = read.next_seq.saturating_sub(1);
        // A server that has pushed what comes behind the end contradicts itself.
        let is_last = self.early.range(last..).next().is_none();
        if read.closed && is_last && !self.is_closed() && !self.is_filled(last, read) {
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

    /// Accepts that the server does not know the process yet. Its pushes will come.
    pub(crate) fn read_too_early(&mut self, number: u64) -> Progress {
        if self.end_read(number).is_some()
            && let Some(ending) = &mut self.ending
        {
            ending.may_be_missed = false;
        }
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
        if let Some(last) = self.skip_all(&mut deliver) {
            return Progress::Closed(last);
        }
        self.close_here()
    }
}

/// Reads that bring nothing.
impl Delivery {
    /// Notes that a read has brought nothing: the next one waits, and after some there is none, but what is missing is told
    /// as lost.
    pub(super) fn fruitless(
        &mut self,
        fruitless: Fruitless,
        is_of_all: bool,
        now: Instant,
        deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        let next_seq = self.next_seq;
        let patience = self
            .ending()
            .patience
            .get_or_insert_with(|| Patience::new(next_seq));
        if patience.try_on(fruitless, now) {
            return Progress::Open;
        }
        self.give_up(is_of_all, now, deliver)
    }

    /// Tells what is missing as lost, and goes on with what is known. If nothing is, and the end may have been missed,
    /// nothing would ever tell the session of it.
    fn give_up(
        &mut self,
        is_of_all: bool,
        now: Instant,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        let next_seq = self.next_seq;
        let rest = Patience::rest(now, next_seq);
        let tried = self.ending().patience.replace(rest);
        let has_heard = tried
            .as_ref()
            .is_some_and(|tried| tried.next_seq() < next_seq);
        self.healing = Healing::Live;
        if let Some(last) = self.skip_all(&mut deliver) {
            return Progress::Closed(last);
        }
        if let Some(ToldEnd {
            exit_code,
            is_closed: true,
        }) = self.ending().told
        {
            let ending = self.ending();
            ending.exit_code = ending.exit_code.or(exit_code);
            return self.close_here();
        }
        let has_skipped = self.next_seq > next_seq;
        if is_of_all && self.ending().may_be_missed && !has_skipped && !has_heard {
            let reads = tried.map_or(0, |tried| tried.reads());
            return Progress::Failed(self.fail(FailureReason::ReadsFailed { reads }));
        }
        Progress::Open
    }

    /// Delivers all that is known, and tells what is missing in between and behind as lost. Returns the last event, if it is
    /// among them.
    fn skip_all(&mut self, deliver: &mut impl FnMut(SessionEvent)) -> Option<SessionEvent> {
        let known_to = self.early.last_key_value().map_or(0, |(&seq, _)| seq);
        self.skip_to(known_to.max(self.dropped_to).saturating_add(1), deliver)
    }

    /// Closes a process of which it is known that it has closed, but not where.
    fn close_here(&mut self) -> Progress {
        self.has_gap = true;
        self.ending().is_closed = true;
        Progress::Closed(self.advance(self.next_seq, Granted::Closed))
    }

    /// Returns true while nothing may be read, because it brought nothing before.
    pub(super) fn is_resting(&self) -> bool {
        let patience = self
            .ending
            .as_ref()
            .and_then(|ending| ending.patience.as_ref());
        patience.is_some_and(Patience::is_resting)
    }

    /// Ends the pause that there may be: what has happened makes it likely that a read brings something.
    pub(super) fn read_at_once(&mut self) {
        if let Some(patience) = self.patience_mut() {
            patience.wake();
        }
    }

    /// Notes that what was missing has come.
    pub(super) fn be_patient_again(&mut self) {
        if let Some(ending) = &mut self.ending {
            ending.patience = None;
        }
    }

    pub(super) fn patience_mut(&mut self) -> Option<&mut Patience> {
        self.ending.as_mut()?.patience.as_mut()
    }
}

#[cfg(test)]
mod tests;
