//! The routing table: process id -> session. No actor of its own.

mod pages;

use std::{hash::BuildHasher as _, mem};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use self::pages::Pages;
use super::{
    budget::Budget,
    delivery::Delivery,
    session::{Receiver, Session},
};
use crate::{
    cache,
    error::RegisterError,
    protocol::{ProcessId, Record},
};

/// Tells a route from a later one of the same process id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RouteKey(u64);

#[cfg(test)]
impl RouteKey {
    pub(crate) fn for_test(key: u64) -> Self {
        RouteKey(key)
    }
}

/// Where the events of one process go.
///
/// Of thousands, none is in the cache when its next event comes: what each event needs lies side by side, in as few lines
/// as can be.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Route {
    pub(crate) session: Receiver,
    /// When something was last delivered to it, in turns of the router's.
    pub(crate) delivered_in: u64,
    /// Whether its session is told what becomes of the connection.
    pub(crate) hears_of_link: bool,
    /// Whether the server was heard of to know the process. Until then it may be that somebody is yet to
    /// start it.
    pub(crate) is_known: bool,
    /// Whether the server has not yet answered the start of the process.
    pub(crate) starting: bool,
    /// Whether it waits for its turn to read.
    pub(crate) is_queued: bool,
    /// Whether its session was told that the connection is lost, and is to be told when it is there again.
    pub(crate) is_interrupted: bool,
    pub(crate) delivery: Delivery,
    // What few events need.
    key: RouteKey,
    /// How helper processes find the process, if it was started for that.
    pub(crate) record: Option<Box<Record>>,
}

/// So many bytes of a route are used by each event.
const USED_FOR_EACH: usize = mem::offset_of!(Route, delivery) + Delivery::USED_FOR_EACH;

impl Route {
    pub(crate) fn key(&self) -> RouteKey {
        self.key
    }
}

/// The routes of all processes that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// By process id, which is only in the route: so the table of thousands is small enough for the cache.
    places: HashTable<Place>,
    hasher: RandomState,
    routes: Pages<Route>,
    last_key: u64,
}

/// Where there is, or was, a route of a process id with this hash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    hash: u32,
    place: u32,
}

/// For the table, which looks at both ends of a hash.
fn widen(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

impl Routes {
    /// Adds a route for what comes after `after_seq`, unless the process id or the session cannot have one.
    pub(crate) fn insert(
        &mut self,
        process_id: ProcessId,
        session: Session,
        after_seq: u64,
        budget: impl FnOnce(&Session, RouteKey) -> Budget,
    ) -> Result<RouteKey, RegisterError> {
        if session.has_stopped() {
            return Err(RegisterError::SessionStopped(process_id));
        }
        let hash = self.hash(process_id.as_str().as_bytes());
        if self.look_up(hash, process_id.as_str().as_bytes()).is_some() {
            return Err(RegisterError::Duplicate(process_id));
        }
        self.last_key += 1;
        let key = RouteKey(self.last_key);
        let budget = budget(&session, key);
        let delivery = Delivery::new(process_id, budget, session.overflow, after_seq);
        let place = self.routes.insert(Route {
            key,
            hears_of_link: session.link_events,
            session: session.into(),
            delivery,
            delivered_in: 0,
            starting: false,
            is_known: after_seq > 0,
            is_queued: false,
            is_interrupted: false,
            record: None,
        });
        let place = Place { hash, place };
        self.places
            .insert_unique(widen(hash), place, |place| widen(place.hash));
        Ok(key)
    }

    fn hash(&self, process_id: &[u8]) -> u32 {
        self.hasher.hash_one(process_id) as u32
    }

    /// Whether the route of this process is there.
    #[inline]
    fn is_at(&self, place: Place, process_id: &[u8]) -> bool {
        self.routes
            .get(place.place)
            .is_some_and(|route| route.delivery.process_id().as_str().as_bytes() == process_id)
    }

    #[inline]
    fn look_up(&self, hash: u32, process_id: &[u8]) -> Option<Place> {
        let is_sought = |&found: &Place| found.hash == hash && self.is_at(found, process_id);
        self.places.find(widen(hash), is_sought).copied()
    }

    /// Finds where the route of a process is, most likely, without a look at it: for [`at`](Self::at).
    pub(crate) fn guess(&self, process_id: &[u8]) -> Option<Place> {
        let hash = self.hash(process_id);
        let found = self.places.find(widen(hash), |found| found.hash == hash);
        found.copied()
    }

    /// Returns the route of a process, wherever it is: there, if that was guessed well.
    #[inline]
    pub(crate) fn at(&mut self, guess: Option<Place>, process_id: &[u8]) -> Option<&mut Route> {
        let place = guess
            .filter(|&guess| self.is_at(guess, process_id))
            .or_else(|| self.look_up(self.hash(process_id), process_id))?;
        self.routes.get_mut(place.place)
    }

    /// Has these routes brought into the cache.
    pub(crate) fn fetch<'a>(&self, places: impl Iterator<Item = &'a Option<Place>>) {
        for place in places.flatten() {
            if let Some(route) = self.routes.address(place.place) {
                cache::fetch(route, USED_FOR_EACH);
            }
        }
    }

    /// As [`fetch`](Self::fetch), for what they point to, when they are there themselves.
    pub(crate) fn fetch_queues<'a>(&self, places: impl Iterator<Item = &'a Option<Place>>) {
        for place in places.flatten() {
            if let Some(route) = self.routes.get(place.place) {
                route.session.fetch_queue();
            }
        }
    }

    /// As [`fetch`](Self::fetch), for what it takes to wake their actors, when their queues are there.
    pub(crate) fn fetch_wakers<'a>(&self, places: impl Iterator<Item = &'a Option<Place>>) {
        for place in places.flatten() {
            if let Some(route) = self.routes.get(place.place) {
                route.session.fetch_waker();
            }
        }
    }

    pub(crate) fn get_mut(&mut self, process_id: &str) -> Option<&mut Route> {
        self.at(None, process_id.as_bytes())
    }

    pub(crate) fn remove(&mut self, process_id: &ProcessId) -> Option<Route> {
        let process_id = process_id.as_str().as_bytes();
        let hash = self.hash(process_id);
        let Place { place, .. } = self.look_up(hash, process_id)?;
        let found = self
            .places
            .find_entry(widen(hash), |found| found.place == place);
        found.ok()?.remove();
        self.routes.remove(place)
    }

    /// Returns this very route, not a later one of the same process id.
    pub(crate) fn get_keyed(
        &mut self,
        process_id: &ProcessId,
        key: RouteKey,
    ) -> Option<&mut Route> {
        self.get_mut(process_id.as_str())
            .filter(|route| route.key == key)
    }

    /// Returns the processes whose sessions have stopped.
    pub(crate) fn stopped(&self) -> Vec<ProcessId> {
        self.routes
            .iter()
            .filter(|route| route.session.has_stopped())
            .map(|route| route.delivery.process_id().clone())
            .collect()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Route> {
        self.routes.iter_mut()
    }

    pub(crate) fn process_ids(&self) -> Vec<ProcessId> {
        self.iter()
            .map(|route| route.delivery.process_id().clone())
            .collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }

    /// Takes all out as they lie: to move each costs as much as to tell it something.
    pub(crate) fn take(&mut self) -> Routes {
        mem::replace(
            self,
            Routes {
                last_key: self.last_key,
                ..Routes::default()
            },
        )
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.routes.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use actix::{Actor, ActorContext as _, Addr, Context, Handler, Message};

    use super::*;
    use crate::router::{budget::Pool, session::SessionEvent};

    fn budget(_: &Session, _: RouteKey) -> Budget {
        Budget::new(1, Pool::new(1), || {})
    }

    struct Idle;

    impl Actor for Idle {
        type Context = Context<Self>;
    }

    impl Handler<SessionEvent> for Idle {
        type Result = ();

        fn handle(&mut self, _: SessionEvent, _: &mut Self::Context) {}
    }

    struct Stop;

    impl Message for Stop {
        type Result = ();
    }

    impl Handler<Stop> for Idle {
        type Result = ();

        fn handle(&mut self, _: Stop, context: &mut Self::Context) {
            context.stop();
        }
    }

    fn session() -> (Addr<Idle>, Session) {
        let address = Idle.start();
        let session = Session::from(address.clone().recipient());
        (address, session)
    }

    #[actix::test]
    async fn a_duplicate_is_refused_by_name_and_leaves_the_first() {
        let mut routes = Routes::default();
        let key = routes.insert("p".into(), session().1, 0, budget).unwrap();
        match routes.insert("p".into(), session().1, 0, budget) {
            Err(RegisterError::Duplicate(id)) => assert_eq!(id, "p".into()),
            other => panic!("{other:?}"),
        }
        assert_eq!(routes.len(), 1);
        assert!(routes.get_keyed(&"p".into(), key).is_some());
    }

    #[actix::test]
    async fn an_old_key_does_not_find_a_later_route() {
        let mut routes = Routes::default();
        let old = routes.insert("p".into(), session().1, 0, budget).unwrap();
        let place = routes.guess(b"p");
        assert_eq!(routes.at(place, b"p").map(|route| route.key()), Some(old));
        assert!(routes.remove(&"p".into()).is_some());
        assert!(routes.get_keyed(&"p".into(), old).is_none());
        let new = routes.insert("p".into(), session().1, 0, budget).unwrap();
        assert_eq!(routes.at(place, b"p").map(|route| route.key()), Some(new));
        assert!(routes.at(place, b"x").is_none(), "another is where it was");
        assert!(routes.get_keyed(&"p".into(), old).is_none());
        assert!(routes.get_keyed(&"x".into(), new).is_none());
        assert!(routes.get_keyed(&"p".into(), new).is_some());
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn p4_a_route_takes_four_lines_of_the_cache_and_an_event_three_of_them() {
        assert_eq!(size_of::<Option<Route>>(), 4 * cache::LINE);
        assert_eq!(USED_FOR_EACH, 3 * cache::LINE);
    }

    /// Two process ids with the same hash.
    fn alike(routes: &Routes) -> (String, String) {
        let mut known = HashMap::new();
        (0..)
            .map(|n| format!("p{n}"))
            .find_map(|id| {
                let other = known.insert(routes.hash(id.as_bytes()), id.clone())?;
                Some((other, id))
            })
            .unwrap()
    }

    #[actix::test]
    async fn p1_process_ids_of_the_same_hash_have_their_own_routes() {
        let mut routes = Routes::default();
        let (first, second) = alike(&routes);
        let mut insert = |id: &str| routes.insert(id.into(), session().1, 0, budget).unwrap();
        let others = ["x", "y"].map(&mut insert);
        let key = insert(&first);
        assert_eq!(others.len() + 1, routes.len());
        let guess = routes.guess(second.as_bytes());
        assert!(guess.is_some(), "it is not looked at");
        assert!(routes.at(guess, second.as_bytes()).is_none());
        let other = routes
            .insert(second.as_str().into(), session().1, 0, budget)
            .unwrap();
        for (id, key) in [(&first, key), (&second, other)] {
            for guess in [guess, routes.guess(id.as_bytes()), None] {
                let found = routes.at(guess, id.as_bytes());
                assert_eq!(found.map(|route| route.key()), Some(key));
            }
        }
        assert!(routes.remove(&second.as_str().into()).is_some());
        assert!(routes.remove(&second.as_str().into()).is_none());
        let found = routes.at(guess, first.as_bytes());
        assert_eq!(found.map(|route| route.key()), Some(key));
        assert!(routes.remove(&first.as_str().into()).is_some());
    }

    #[actix::test]
    async fn p13_routes_of_stopped_sessions_are_found() {
        let mut routes = Routes::default();
        let (stopped, stopping) = session();
        let (owner, _) = session();
        let weak = Session::from(owner.downgrade().recipient());
        routes
            .insert("stops".into(), stopping.clone(), 0, budget)
            .unwrap();
        routes.insert("weak".into(), weak, 0, budget).unwrap();
        routes
            .insert("stays".into(), session().1, 0, budget)
            .unwrap();
        assert!(routes.stopped().is_empty());

        stopped.send(Stop).await.unwrap();
        assert_eq!(routes.stopped(), ["stops".into()]);
        routes.remove(&"stops".into());
        drop(owner);
        // Gives the actor the turn in which it notices that nobody holds it.
        tokio::task::yield_now().await;
        assert_eq!(routes.stopped(), ["weak".into()]);
        assert!(matches!(
            routes.insert("late".into(), stopping, 0, budget),
            Err(RegisterError::SessionStopped(_))
        ));
    }
}
