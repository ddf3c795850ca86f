//! The correlation table: id -> reply slot and deadline. No actor, no clock.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fmt,
    time::Duration,
};

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::queue::Request;
use crate::{
    error::{CallError, DisconnectReason},
    protocol::FileContent,
};

/// Returns `now + duration`, or, for those who mean "never" by it, an instant far enough.
pub(crate) fn after(now: Instant, duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now + duration.min(FAR)
}

/// The id of a request of ours. Counted from 1 and never used twice.
pub(crate) type RequestId = i64;

/// Where the answer to one call goes.
pub(crate) trait ReplySlot {
    /// Hands over the answer: the JSON of the result, or why there is none.
    fn resolve(self: Box<Self>, outcome: Result<&str, CallError>);

    /// Hands over the result that `json` begins with, if only the end of the answer is behind it, and tells whether that
    /// is so. Only for those who find out by decoding it.
    fn resolve_at_once(&mut self, json: &str) -> bool {
        let _ = json;
        false
    }

    /// Hands over a result that is what a file holds, decoded already.
    fn resolve_file(self: Box<Self>, file: FileContent) {
        self.resolve(Ok(&file.to_json()));
    }

    /// Whether nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;

    /// Whether who gets the answer must have the notifications first that came before it.
    fn follows_notifications(&self) -> bool {
        false
    }

    /// Notes that the request is made again, on another link, as the answer was lost for this reason:
    /// the server may have carried it out before.
    fn repeated(&mut self, reason: &DisconnectReason) {
        let _ = reason;
    }
}

/// A call that waits for its answer.
pub(crate) struct Entry {
    pub(crate) method: &'static str,
    pub(crate) timeout: Duration,
    pub(crate) slot: Box<dyn ReplySlot>,
    /// For making the request again if its answer is lost with the link.
    pub(crate) repeat: Option<Request>,
    /// How often that was done.
    pub(crate) repeats: u8,
}

/// How often a request is made again. One that still has no answer may be what ends the links.
const MAX_REPEATS: u8 = 5;

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// Calls that wait for their answers. Each entry leaves it once: answered, expired, abandoned, or
/// drained at the end of the connection.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    last_id: RequestId,
    entries: HashMap<RequestId, Entry, RandomState>,
    /// Deadlines, soonest first. Those of entries that have left are taken out when they come up, or
    /// when they outnumber the others.
    deadlines: BinaryHeap<Reverse<(Instant, RequestId)>>,
}

impl Pending {
    /// Ids begin after `last_id`: those up to it were used by the handshake.
    pub(crate) fn after(last_id: RequestId) -> Self {
        Pending {
            last_id,
            ..Pending::default()
        }
    }

    /// Returns the id for the next request.
    pub(crate) fn next_id(&mut self) -> RequestId {
        self.last_id += 1;
        self.last_id
    }

    /// Enters a call under an id of [`next_id`](Self::next_id).
    pub(crate) fn insert(&mut self, id: RequestId, now: Instant, entry: Entry) {
        let deadline = after(now, entry.timeout);
        self.deadlines.push(Reverse((deadline, id)));
        let taken = self.entries.insert(id, entry);
        debug_assert!(taken.is_none(), "ids are never used twice");
        if self.deadlines.len() > 2 * self.entries.len() + 64 {
            self.deadlines
                .retain(|Reverse((_, id))| self.entries.contains_key(id));
        }
    }

    /// Takes out the call that an answer belongs to; `None` if there is none, say because it came
    /// too late.
    pub(crate) fn take(&mut self, id: RequestId) -> Option<Entry> {
        self.entries.remove(&id)
    }

    /// Enters again a call that was just taken out.
    pub(crate) fn put_back(&mut self, id: RequestId, entry: Entry) {
        self.entries.insert(id, entry);
    }

    /// Takes out one call whose deadline has passed.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Option<(RequestId, Entry)> {
        while let Some(&Reverse((deadline, id))) = self.deadlines.peek() {
            if deadline > now && self.entries.contains_key(&id) {
                return None;
            }
            self.deadlines.pop();
            if let Some(entry) = self.entries.remove(&id) {
                return Some((id, entry));
            }
        }
        None
    }

    /// Removes the calls that nobody waits for any more, and returns their ids.
    pub(crate) fn remove_abandoned(&mut self) -> Vec<RequestId> {
        let mut abandoned = Vec::new();
        self.entries.retain(|id, entry| {
            let is_abandoned = entry.slot.is_abandoned();
            if is_abandoned {
                abandoned.push(*id);
            }
            !is_abandoned
        });
        abandoned
    }

    /// Takes out all calls, in the order in which they were made.
    pub(crate) fn drain(&mut self) -> Vec<(RequestId, Entry)> {
        self.deadlines.clear();
        let mut entries: Vec<_> = self.entries.drain().collect();
        entries.sort_unstable_by_key(|(id, _)| *id);
        entries
    }

    /// Takes out the calls whose answers are lost with the link and that cannot be made again, and returns
    /// the requests of the others, both in order. `is_unsent` tells which were not written yet.
    pub(crate) fn resolve_lost(
        &mut self,
        reason: &DisconnectReason,
        is_unsent: impl Fn(RequestId) -> bool,
    ) -> (Vec<(RequestId, Entry)>, Vec<Request>) {
        let mut sent: Vec<_> = self
            .entries
            .keys()
            .copied()
            .filter(|&id| !is_unsent(id))
            .collect();
        sent.sort_unstable();
        let (mut lost, mut again) = (Vec::new(), Vec::new());
        for id in sent {
            let Some(Entry {
                slot,
                repeat,
                repeats,
                ..
            }) = self.entries.get_mut(&id)
            else {
                continue;
            };
            match repeat {
                Some(request) if *repeats < MAX_REPEATS => {
                    *repeats += 1;
                    slot.repeated(reason);
                    again.push(request.clone());
                }
                _ => lost.extend(self.entries.remove(&id).map(|entry| (id, entry))),
            }
        }
        (lost, again)
    }

    pub(crate) fn contains(&self, id: RequestId) -> bool {
        self.entries.contains_key(&id)
    }

    /// Returns the soonest deadline of a call that waits.
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        while let Some(&Reverse((deadline, id))) = self.deadlines.peek() {
            if self.entries.contains_key(&id) {
                return Some(deadline);
            }
            self.deadlines.pop();
        }
        None
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::connection::queue::Turn;

    #[derive(Default)]
    struct Log {
        abandoned: bool,
        outcomes: Vec<Result<String, CallError>>,
    }

    struct LogSlot(Rc<RefCell<Log>>);

    impl ReplySlot for LogSlot {
        fn resolve(self: Box<Self>, outcome: Result<&str, CallError>) {
            let outcome = outcome.map(str::to_owned);
            self.0.borrow_mut().outcomes.push(outcome);
        }

        fn is_abandoned(&self) -> bool {
            self.0.borrow().abandoned
        }
    }

    fn enter(pending: &mut Pending, now: Instant, seconds: u64) -> (RequestId, Rc<RefCell<Log>>) {
        let log = Rc::new(RefCell::new(Log::default()));
        let id = pending.next_id();
        let entry = Entry {
            method: "x",
            timeout: Duration::from_secs(seconds),
            slot: Box::new(LogSlot(log.clone())),
            repeat: None,
            repeats: 0,
        };
        pending.insert(id, now, entry);
        (id, log)
    }

    #[test]
    fn p7_an_answer_takes_its_entry_out_once_in_any_order() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let (a, log_a) = enter(&mut pending, now, 1);
        let (b, log_b) = enter(&mut pending, now, 1);
        pending.take(b).unwrap().slot.resolve(Ok("b"));
        pending.take(a).unwrap().slot.resolve(Ok("a"));
        assert!(pending.take(a).is_none() && pending.take(b).is_none());
        assert_eq!(pending.len(), 0);
        assert!(matches!(&log_a.borrow().outcomes[..], [Ok(json)] if json == "a"));
        assert!(matches!(&log_b.borrow().outcomes[..], [Ok(json)] if json == "b"));
    }

    #[test]
    fn unknown_ids_are_none() {
        let (now, mut pending) = (Instant::now(), Pending::after(2));
        let (id, _log) = enter(&mut pending, now, 1);
        assert_eq!(id, 3);
        for unknown in [0, -1, 1, 2, 4, i64::MIN, i64::MAX] {
            assert!(pending.take(unknown).is_none());
        }
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn p7_entries_expire_at_their_deadline_soonest_first() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        enter(&mut pending, now, 5);
        enter(&mut pending, now, 1);
        let (answered, _log) = enter(&mut pending, now, 2);
        pending.take(answered).unwrap();
        assert_eq!(pending.next_deadline(), Some(now + Duration::from_secs(1)));
        assert!(pending.take_expired(now).is_none());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(
            pending.take_expired(at(1)).unwrap().1.timeout,
            Duration::from_secs(1)
        );
        assert!(pending.take_expired(at(4)).is_none());
        assert_eq!(pending.next_deadline(), Some(at(5)));
        assert_eq!(
            pending.take_expired(at(9)).unwrap().1.timeout,
            Duration::from_secs(5)
        );
        assert!(pending.take_expired(at(9)).is_none());
        assert_eq!((pending.len(), pending.next_deadline()), (0, None));
    }

    #[test]
    fn p7_abandoned_entries_are_removed_and_others_stay() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let (gone_id, gone) = enter(&mut pending, now, 1);
        let (id, _log) = enter(&mut pending, now, 1);
        gone.borrow_mut().abandoned = true;
        assert_eq!(pending.remove_abandoned(), [gone_id]);
        assert_eq!(pending.len(), 1);
        assert!(pending.take(id).is_some());
        assert!(gone.borrow().outcomes.is_empty());
    }

    #[test]
    fn a_timeout_that_means_never_is_no_panic() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        enter(&mut pending, now, u64::MAX);
        assert!(
            pending
                .take_expired(now + Duration::from_secs(1 << 25))
                .is_none()
        );
    }

    #[test]
    fn p8_answers_that_are_lost_are_asked_for_again_or_given_up() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let (again, _log) = enter(&mut pending, now, 1);
        let (given_up, _log) = enter(&mut pending, now, 1);
        let (unsent, _log) = enter(&mut pending, now, 1);
        pending.entries.get_mut(&again).unwrap().repeat = Some(Request {
            id: again,
            json: "again".into(),
            turn: Turn::Ordinary,
        });
        let (lost, repeat) = pending.resolve_lost(&DisconnectReason::CutOff, |id| id == unsent);
        assert_eq!(
            lost.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            [given_up]
        );
        assert_eq!(
            repeat.iter().map(|request| request.id).collect::<Vec<_>>(),
            [again]
        );
        assert!(pending.contains(again) && pending.contains(unsent));
        assert_eq!(pending.len(), 2);
        // One that ends the link each time is not made again for ever.
        let lost = (0..=MAX_REPEATS)
            .map(|_| pending.resolve_lost(&DisconnectReason::CutOff, |id| id == unsent))
            .find(|(lost, _)| !lost.is_empty());
        assert_eq!(lost.unwrap().0[0].0, again);
    }

    #[test]
    fn draining_empties_the_table_in_order() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        for seconds in [3, 1, 2] {
            enter(&mut pending, now, seconds);
        }
        let timeouts: Vec<_> = pending
            .drain()
            .iter()
            .map(|(_, entry)| entry.timeout.as_secs())
            .collect();
        assert_eq!(timeouts, [3, 1, 2]);
        assert_eq!((pending.len(), pending.next_deadline()), (0, None));
    }

    #[test]
    fn p4_deadlines_of_answered_calls_do_not_pile_up() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        for _ in 0..10_000 {
            let (id, _log) = enter(&mut pending, now, 30);
            pending.take(id).unwrap();
        }
        assert!(pending.deadlines.len() < 100, "{}", pending.deadlines.len());
    }
}
