//! Bounds how many starts of processes are unanswered at a time. Releases leave some of many that come at once without
//! an answer.

use std::collections::{HashMap, VecDeque};

use tokio::time::{Duration, Instant};

use super::{Request, RequestId, after};

/// How many starts may be unanswered, unless the configuration says otherwise.
const MAX_STARTS: usize = 32;

/// How long a start that is written and not answered keeps its place. A server that never answers some starts must not
/// block all further ones for ever.
///
/// Well below the default `call_timeout`, so that those which wait for a place have their turn before their own time is up.
pub(super) const LEASE: Duration = Duration::from_secs(10);

/// The starts that are unanswered, and those that wait for a place among them.
#[derive(Debug)]
pub(super) struct Starts {
    max: usize,
    /// Since when the socket has them; `None` before that.
    unanswered: HashMap<RequestId, Option<Instant>>,
    waiting: VecDeque<Request>,
}

impl Default for Starts {
    fn default() -> Self {
        Starts::at_most(MAX_STARTS)
    }
}

impl Starts {
    /// Allows for so many, but always for one.
    pub(super) fn at_most(max: usize) -> Self {
        Starts {
            max: max.max(1),
            unanswered: HashMap::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Takes a place for a start, if there is one that no other start waits for.
    pub(super) fn begin(&mut self, id: RequestId) -> bool {
        let has_place = self.waiting.is_empty() && self.unanswered.len() < self.max;
        if has_place {
            self.unanswered.insert(id, None);
        }
        has_place
    }

    /// Has a start wait behind the others.
    pub(super) fn wait(&mut self, request: Request) {
        self.waiting.push_back(request);
    }

    /// Takes out the start that waits for longest, if there is a place for it.
    pub(super) fn next(&mut self) -> Option<Request> {
        if self.unanswered.len() >= self.max {
            return None;
        }
        let request = self.waiting.pop_front()?;
        self.unanswered.insert(request.id, None);
        Some(request)
    }

    pub(super) fn has_place(&self, id: RequestId) -> bool {
        self.unanswered.contains_key(&id)
    }

    /// Notes that the socket has a start.
    pub(super) fn written(&mut self, id: RequestId, now: Instant) {
        if let Some(since) = self.unanswered.get_mut(&id) {
            *since = Some(now);
        }
    }

    /// Frees the place of a start that is answered, or was never sent.
    pub(super) fn ended(&mut self, id: RequestId) -> bool {
        self.unanswered.remove(&id).is_some()
    }

    /// Frees the places of starts that are unanswered for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.unanswered
            .retain(|_, since| since.is_none_or(|since| after(since, LEASE) > now));
    }

    /// Frees the places of starts that were lost with their link. Those in `unsent` were not. Those that are made
    /// `again` take places first; the ones for which there is none wait before all others.
    pub(super) fn link_lost(
        &mut self,
        is_unsent: impl Fn(RequestId) -> bool,
        again: impl Iterator<Item = Request>,
    ) {
        self.unanswered.retain(|id, _| is_unsent(*id));
        let mut without_place = VecDeque::new();
        for request in again {
            if self.unanswered.len() < self.max {
                self.unanswered.insert(request.id, None);
            } else {
                without_place.push_back(request);
            }
        }
        without_place.append(&mut self.waiting);
        self.waiting = without_place;
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &Request> {
        self.waiting.iter()
    }

    /// Takes out a start that waits.
    pub(super) fn remove(&mut self, id: RequestId) -> Option<Request> {
        let at = self.waiting.iter().position(|request| request.id == id)?;
        self.waiting.remove(at)
    }

    /// Forgets all. Returns how many bytes the requests that waited cost.
    pub(super) fn clear(&mut self) -> usize {
        self.unanswered.clear();
        self.waiting.drain(..).map(|request| request.cost()).sum()
    }
}
