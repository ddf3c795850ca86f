//! The way of events: from the connection to the sessions, up to one that has to wait.

use std::{collections::VecDeque, mem};

use actix::{AsyncContext as _, Context, Handler, Message};
use bytes::Bytes;
use log::debug;

use super::{Router, delivery::Progress, parking::Parked, routes::Place};
use crate::{
    protocol::{Entry, Notifications, ProcessEvent, ProcessId, Stream},
    task,
};

/// The sessions that were told something have had their time to consume it, if they run on this thread.
struct TurnOver;

impl Message for TurnOver {
    type Result = ();
}

/// So many routes stay in the cache from one batch to the next: 256 bytes each.
const CACHED_ROUTES: usize = 500;

/// So many are fetched together: few enough to be in the nearest cache when their turn comes.
const GROUP: usize = 4;

/// An event that has to wait, and until when.
struct HeldUp {
    event: ProcessEvent,
    until: Until,
}

enum Until {
    /// What came just before it has had time to be consumed.
    TurnOver,
    /// The session has consumed, however long that takes.
    Credit,
}

impl Router {
    /// Forwards what one read has brought, up to an event that has to wait. Returns the memory.
    pub(super) fn forward_all(
        &mut self,
        mut notifications: Notifications,
        context: &mut Context<Self>,
    ) -> Result<Notifications, Parked> {
        let mut places = mem::take(&mut self.places);
        places.clear();
        let is_in_cache = self.routes.len() <= CACHED_ROUTES;
        // Of the group whose turn it is.
        let mut left = 0_usize;
        loop {
            if !is_in_cache {
                if left == 0 {
                    self.look_ahead(&notifications, &mut places);
                    left = GROUP;
                }
                left -= 1;
            }
            let Some(Entry {
                process_id,
                seq,
                event,
            }) = notifications.pop()
            else {
                break;
            };
            let place = places.pop_front().flatten();
            let event = match event {
                ProcessEvent::Output { stream, chunk } => {
                    let id = notifications.process_id(&process_id);
                    match self.forward_next(id, place, seq, stream, chunk, context) {
                        Ok(()) => continue,
                        Err(chunk) => ProcessEvent::Output { stream, chunk },
                    }
                }
                event => event,
            };
            let entry = Entry {
                process_id,
                seq,
                event,
            };
            if let Some(entry) = self.forward_entry(&notifications, place, entry, context) {
                notifications.put_back(entry);
                self.places = places;
                return Err(Parked::new(notifications));
            }
        }
        self.places = places;
        notifications.clear();
        Ok(notifications)
    }

    /// Guesses the routes of the next notifications, and has them fetched.
    ///
    /// With thousands of sessions the state of none is in the cache: while one group is dealt with, what the next needs
    /// last is on its way, what the one behind it needs before that, and the routes of the one behind that.
    fn look_ahead(&self, notifications: &Notifications, places: &mut VecDeque<Option<Place>>) {
        let known = places.len();
        // The first time, everything has to be done at once.
        let not_yet = |groups: usize| if known == 0 { 0 } else { groups * GROUP };
        let next = notifications.process_ids().skip(known);
        let next = next.take(4 * GROUP - known);
        places.extend(next.map(|process_id| self.routes.guess(process_id)));
        let range = |from: usize, to: usize| {
            let to = places.len().min(to * GROUP);
            places.range(from.min(to)..to)
        };
        self.routes.fetch(range(not_yet(3), 4));
        self.routes.fetch_queues(range(not_yet(2), 3));
        self.routes.fetch_wakers(range(not_yet(1), 2));
    }

    /// Forwards an output if all is as nearly always, or returns it.
    #[inline]
    fn forward_next(
        &mut self,
        process_id: &[u8],
        place: Option<Place>,
        seq: u64,
        stream: Stream,
        chunk: Bytes,
        context: &mut Context<Self>,
    ) -> Result<(), Bytes> {
        let Some(route) = self.routes.at(place, process_id) else {
            return Err(chunk);
        };
        let event = route.delivery.accept_next(seq, stream, chunk)?;
        route.is_known = true;
        route.delivered_in = self.turn;
        if !route.session.send(event) {
            let process_id = route.delivery.process_id().clone();
            self.abandon(process_id, context);
        }
        Ok(())
    }

    /// Forwards any event, or returns it if it is to be tried again later.
    #[inline(never)]
    fn forward_entry(
        &mut self,
        notifications: &Notifications,
        place: Option<Place>,
        mut entry: Entry,
        context: &mut Context<Self>,
    ) -> Option<Entry> {
        let process_id = notifications.process_id(&entry.process_id);
        let mut attempts = 0;
        while let Some(held_up) = self.forward(process_id, place, entry.seq, entry.event, context) {
            attempts += 1;
            let is_worth_waiting = match held_up.until {
                Until::TurnOver => {
                    self.end_turn(context);
                    true
                }
                Until::Credit => self
                    .routes
                    .at(place, process_id)
                    .is_some_and(|route| route.delivery.wait_for_credit(&held_up.event)),
            };
            entry.event = held_up.event;
            // Either its credit has just returned, or it is not this session that holds what is
            // missing: then it is looked at again with the next check.
            if is_worth_waiting || attempts > 1 {
                return Some(entry);
            }
        }
        None
    }

    /// Lets the sessions consume that were woken, and then goes on.
    fn end_turn(&self, context: &mut Context<Self>) {
        let router = context.address().downgrade();
        task::spawn(async move {
            if let Some(router) = router.upgrade() {
                router.do_send(TurnOver);
            }
        });
    }

    /// Goes on with what had to wait.
    pub(super) fn unpark(&mut self, context: &mut Context<Self>) {
        let Some(parked) = self.parked.take() else {
            return;
        };
        let (notifications, taken) = parked.into_parts();
        match self.forward_all(notifications, context) {
            Err(still) => self.parked = Some(still.with(taken)),
            Ok(notifications) => {
                taken.send(notifications);
                self.follow_up(context);
            }
        }
    }

    /// Forwards an event, or returns it if it has to wait.
    fn forward(
        &mut self,
        process_id: &[u8],
        place: Option<Place>,
        seq: u64,
        event: ProcessEvent,
        context: &mut Context<Self>,
    ) -> Option<HeldUp> {
        let Some(route) = self.routes.at(place, process_id) else {
            let process_id = String::from_utf8_lossy(process_id);
            debug!(process_id:%, seq; "event without a session ignored");
            return None;
        };
        route.is_known = true;
        // Once for all that this event sets free: for a session held weakly it is not for nothing.
        let Some(reached) = route.session.reach() else {
            let process_id = route.delivery.process_id().clone();
            self.abandon(process_id, context);
            return None;
        };
        let deliver = |event| {
            route.delivered_in = self.turn;
            reached.send(event);
        };
        let progress = match route.delivery.accept(seq, event, deliver) {
            Progress::NoCredit(event) if route.delivered_in == self.turn => {
                let until = Until::TurnOver;
                return Some(HeldUp { event, until });
            }
            Progress::NoCredit(event) => route.delivery.overflow(seq, event),
            progress => progress,
        };
        match progress {
            Progress::Open if !route.delivery.wants_read() => {}
            Progress::Blocked(event) => {
                let until = Until::Credit;
                return Some(HeldUp { event, until });
            }
            progress => {
                let process_id = route.delivery.process_id().clone();
                self.go_on(process_id, progress, context);
            }
        }
        None
    }

    /// Does what a session's progress asks for: ends its route, or lets it have its turn to read.
    pub(super) fn go_on(
        &mut self,
        process_id: ProcessId,
        progress: Progress,
        context: &mut Context<Self>,
    ) {
        // The route goes first: whoever hears the last event may use the process id again.
        let (route, last) = match progress {
            Progress::Open | Progress::NoCredit(_) | Progress::Blocked(_) => {
                self.queue_read(&process_id);
                self.read_next(context);
                return;
            }
            Progress::Closed(last) => (self.remove(&process_id, context), last),
            Progress::Failed(last) => (self.abandon(process_id, context), last),
        };
        if let Some(route) = route {
            route.session.send(last);
        }
    }
}

impl Handler<TurnOver> for Router {
    type Result = ();

    fn handle(&mut self, _: TurnOver, context: &mut Self::Context) {
        self.turn += 1;
        self.unpark(context);
    }
}
