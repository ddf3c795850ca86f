//! How a router learns, without asking, that a session's receiver is gone.

use std::{
    fmt, mem,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

/// Tells one router that there are sessions that have stopped: once, until it looks for them.
pub(crate) struct StopNotice {
    is_given: AtomicBool,
    give: Box<dyn Fn() + Send + Sync>,
}

impl StopNotice {
    /// `give` is called, from any thread.
    pub(crate) fn new(give: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(StopNotice {
            is_given: AtomicBool::new(false),
            give: Box::new(give),
        })
    }

    /// Has those told of that stop from now on. To be called before they are looked for.
    pub(crate) fn take(&self) {
        // Acquires what all have done that found it given already.
        self.is_given.swap(false, Ordering::AcqRel);
    }

    fn give(&self) {
        if !self.is_given.swap(true, Ordering::AcqRel) {
            (self.give)();
        }
    }
}

impl fmt::Debug for StopNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopNotice")
            .field("is_given", &self.is_given)
            .finish_non_exhaustive()
    }
}

/// The routers that a session's receiver has been registered with: nearly always one.
#[derive(Debug, Default)]
pub(super) enum Watchers {
    #[default]
    None,
    One(Weak<StopNotice>),
    Many(Vec<Weak<StopNotice>>),
}

impl Watchers {
    /// Adds a router, unless it is there, and forgets those that are gone.
    pub(super) fn add(&mut self, notice: &Arc<StopNotice>) {
        let new = Arc::downgrade(notice);
        *self = match mem::take(self) {
            Watchers::One(known) if !known.ptr_eq(&new) && known.strong_count() > 0 => {
                Watchers::Many(vec![known, new])
            }
            Watchers::None | Watchers::One(_) => Watchers::One(new),
            Watchers::Many(mut known) => {
                if !known.iter().any(|known| known.ptr_eq(&new)) {
                    known.retain(|known| known.strong_count() > 0);
                    known.push(new);
                }
                Watchers::Many(known)
            }
        };
    }

    pub(super) fn tell(self) {
        let (one, many) = match self {
            Watchers::None => (None, Vec::new()),
            Watchers::One(one) => (Some(one), Vec::new()),
            Watchers::Many(many) => (None, many),
        };
        for notice in one.into_iter().chain(many) {
            if let Some(notice) = notice.upgrade() {
                notice.give();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::router::events::queue;

    fn notice() -> (Arc<StopNotice>, Arc<AtomicUsize>) {
        let given = Arc::new(AtomicUsize::new(0));
        let notice = StopNotice::new({
            let given = given.clone();
            move || {
                given.fetch_add(1, Ordering::Relaxed);
            }
        });
        (notice, given)
    }

    #[test]
    fn p13_a_router_is_told_once_until_it_looks() {
        let (notice, given) = notice();
        let [(a, a_events), (b, b_events), (c, c_events)] = [queue(), queue(), queue()];
        for sender in [&a, &b, &c] {
            sender.watch(&notice);
        }
        assert_eq!(given.load(Ordering::Relaxed), 0);
        drop((a_events, b_events));
        assert_eq!(given.load(Ordering::Relaxed), 1);
        notice.take();
        drop(c_events);
        assert_eq!(given.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn p13_a_session_that_stopped_before_it_was_watched_is_told_too() {
        let (notice, given) = notice();
        let (sender, events) = queue();
        drop(events);
        sender.watch(&notice);
        assert_eq!(given.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn nobody_is_told_of_a_session_that_nobody_has() {
        let (notice, given) = notice();
        let (sender, events) = queue();
        sender.watch(&notice);
        drop(sender);
        drop(events);
        assert_eq!(given.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn p13_every_router_of_a_session_is_told() {
        let (sender, events) = queue();
        let notices = [notice(), notice(), notice()];
        for (notice, _) in notices.iter().chain(&notices) {
            sender.watch(notice);
        }
        drop(events);
        for (_, given) in &notices {
            assert_eq!(given.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn p4_routers_that_are_gone_are_forgotten() {
        let mut watchers = Watchers::default();
        let (stays, _) = notice();
        watchers.add(&stays);
        for _ in 0..100 {
            watchers.add(&notice().0);
        }
        let Watchers::Many(known) = &watchers else {
            panic!("{watchers:?}");
        };
        assert!(known.len() <= 2, "{watchers:?}");
    }
}
