//! The router actor: owns the map process id -> session, and tells each session what happens to
//! its process.
//!
//! | message | answer | sent by |
//! | --- | --- | --- |
//! | [`Start`] | `Result<Started, StartError>` | anyone |
//! | [`Register`] | `Result<(), RegisterError>` | anyone |
//! | [`Unregister`] | `Option<u64>` | anyone |
//! | [`Shutdown`] | – | anyone |
//! | `FindRecord` | `Found` | the mux, to have a helper process do what the server cannot |
//! | `ConnectionEvent` | when it is taken | the connection |
//! | `StartEnded`, `ReadEnded`, `Unterminated`, `RecordRemoved` | – | the router's own calls |
//! | `CreditReturned` | – | whoever consumes output that a session waited for |
//! | `CheckSessions` | – | the router's timer |
//! | `TurnOver` | – | the router's own task, behind the sessions that it has woken |
//!
//! It sends [`SessionEvent`]s, and never waits for a session. A session that has chosen
//! [`Overflow::Block`] makes the connection wait instead: its batch is not *taken*.

mod budget;
mod delivery;
mod events;
mod healing;
mod parking;
mod record;
mod routes;
mod session;
mod shutdown;
mod start;

use std::{collections::HashSet, fmt, mem, path::PathBuf, rc::Rc, time::Duration};

use actix::{
    Actor, Addr, AsyncContext as _, Context, Handler, Message, MessageResult, ResponseFuture,
    WeakAddr,
};
use bytestring::ByteString;
use log::debug;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};

pub(crate) use self::record::{FindRecord, Found};
pub use self::{
    budget::Permit,
    events::SessionEvents,
    session::{
        Closed, Exited, Failed, Gap, Interrupted, Output, Overflow, Resumed, Session, SessionEvent,
    },
    shutdown::{Processes, Shutdown},
    start::{PendingStart, Start},
};
use self::{
    budget::{Budget, Pool},
    delivery::Progress,
    healing::{CreditReturned, ReadEnded, ReadSlot, Turns},
    parking::{Parked, Taken},
    routes::{Place, Route, RouteKey, Routes},
    start::{Registered, StartEnded, StartedProcess},
};
use crate::{
    config::Config,
    connection::{
        Call, Close, Connection, ConnectionEvent, Dispatch, ForgetProcess, ReplySlot, ServerInfo,
        TellConsumed, after,
    },
    error::{CallError, DisconnectReason, FailureReason, RegisterError},
    protocol::{
        Capabilities, ErrorCode, Notifications, ProcessEvent, ProcessId, ReadProcess, Record,
        Repeat, Terminate,
    },
    task::{self, Alive, Task},
};

/// Registers a session for a process that something else starts, or has started.
///
/// Events that came before are not told again: say with [`after_seq`](Register::after_seq) which was
/// the last, or the session waits for the first in vain.
///
/// # Errors
///
/// See [`RegisterError`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Register {
    /// The process.
    pub process_id: ProcessId,
    /// Who receives its events.
    pub session: Session,
    /// The `seq` of the last event that the session does not need to be told, 0 for none.
    pub after_seq: u64,
}

impl Register {
    /// Registers `session` for all events of `process_id`.
    pub fn new(process_id: impl Into<ProcessId>, session: impl Into<Session>) -> Self {
        Register {
            process_id: process_id.into(),
            session: session.into(),
            after_seq: 0,
        }
    }

    /// Registers it for the events after this one, say what [`Unregister`] answered.
    #[must_use]
    pub fn after_seq(mut self, seq: u64) -> Self {
        self.after_seq = seq;
        self
    }
}

impl Message for Register {
    type Result = Result<(), RegisterError>;
}

/// Takes a session off its process, which goes on running, and is not [held back](Session::hold_back) any
/// more. The session hears nothing more, not even a last event. Answers with the `seq` of the last event that it was told, 0 for none, or with
/// `None` if there was no session.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unregister {
    /// The process.
    pub process_id: ProcessId,
}

impl Unregister {
    /// Takes the session off `process_id`.
    pub fn new(process_id: impl Into<ProcessId>) -> Self {
        Unregister {
            process_id: process_id.into(),
        }
    }
}

impl Message for Unregister {
    type Result = Option<u64>;
}

/// A process without a session could not be asked to terminate, or has not answered.
struct Unterminated {
    process_id: ProcessId,
}

impl Message for Unterminated {
    type Result = ();
}

/// The sessions that were told something have had their time to consume it, if they run on this thread.
struct TurnOver;

impl Message for TurnOver {
    type Result = ();
}

/// It is time to look for sessions that have stopped.
struct CheckSessions;

impl Message for CheckSessions {
    type Result = ();
}

/// The actor that owns the routes. [`Mux`](crate::Mux) starts it.
///
/// When the connection is gone it goes on to refuse registrations with the reason.
pub struct Router {
    state: State,
    connection: Addr<Connection>,
    routes: Routes,
    /// Where the routes of a batch are.
    places: Vec<Option<Place>>,
    /// Counts the times that sessions have had to consume: before that, none is behind.
    turn: u64,
    /// The turn in which sessions were last checked.
    checked: u64,
    /// Sessions that want to read what they have missed.
    turns: Turns,
    /// What waits for a session that has chosen [`Overflow::Block`].
    parked: Option<Parked>,
    /// Processes without a session that are still to be terminated.
    orphans: Vec<ProcessId>,
    /// Records of processes that are being removed.
    removals: usize,
    /// Records of processes that are still to be removed.
    unremoved: Vec<Record>,
    /// Routes that ended before their starts. A server that handles several requests at once may
    /// have terminated such a process before it started it.
    ended_while_starting: HashSet<RouteKey>,
    /// Runs while there are routes.
    checking: Option<Task>,
    /// What all sessions may hold together.
    pool: Rc<Pool>,
    session_budget: usize,
    session_check_interval: Duration,
    close_timeout: Duration,
    capabilities: Capabilities,
    /// The server's directory for temporary files.
    temporary: PathBuf,
    _alive: Alive,
}

enum State {
    Open {
        /// Who waits for the end.
        shutdowns: Vec<oneshot::Sender<()>>,
        /// Set while the processes are being terminated and their records removed; the connection closes
        /// with the last.
        draining: Option<Draining>,
    },
    Closed(DisconnectReason),
}

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

/// The time that the processes have to end, if they are to.
struct Draining {
    until: Instant,
    processes: Processes,
    _overdue: Task,
}

/// After a process has exited, how long its end is awaited before it is asked for. Servers up to 0.120
/// forget a process 30 s after its exit, and then tell nothing.
const END_OVERDUE: Duration = Duration::from_secs(35);

impl Router {
    pub(crate) fn new(connection: Addr<Connection>, config: &Config, server: &ServerInfo) -> Self {
        Router {
            state: State::Open {
                shutdowns: Vec::new(),
                draining: None,
            },
            connection,
            routes: Routes::default(),
            places: Vec::new(),
            turn: 1,
            checked: 0,
            turns: Turns::default(),
            parked: None,
            orphans: Vec::new(),
            removals: 0,
            unremoved: Vec::new(),
            ended_while_starting: HashSet::new(),
            checking: None,
            pool: Pool::new(config.connection_budget),
            session_budget: config.session_budget,
            session_check_interval: config.session_check_interval,
            close_timeout: config.close_timeout,
            capabilities: server.capabilities,
            temporary: server.temporary_directory(),
            _alive: Alive::new(),
        }
    }

    fn register(
        &mut self,
        register: Register,
        context: &mut Context<Self>,
    ) -> Result<RouteKey, RegisterError> {
        let Register {
            process_id,
            session,
            after_seq,
        } = register;
        match &self.state {
            State::Open { shutdowns, .. } if shutdowns.is_empty() => {}
            State::Open { .. } => {
                return Err(RegisterError::Disconnected(DisconnectReason::Closed));
            }
            State::Closed(reason) => return Err(RegisterError::Disconnected(reason.clone())),
        }
        let router = context.address().downgrade();
        let (pool, limit) = (self.pool.clone(), self.session_budget);
        let id = process_id.clone();
        let budget = move |session: &Session, key| {
            Budget::new(session.budget.unwrap_or(limit), pool, move || {
                if let Some(router) = router.upgrade() {
                    let process_id = id.clone();
                    router.do_send(CreditReturned { process_id, key });
                }
            })
        };
        let key = self
            .routes
            .insert(process_id.clone(), session, after_seq, budget)?;
        if (after_seq > 0 || self.turns.is_down())
            && let Some(route) = self.routes.get_mut(process_id.as_str())
        {
            // What it is to be told may have been pushed before.
            route.delivery.interrupted();
        }
        self.check_sessions(context);
        Ok(key)
    }

    /// Has the sessions checked from now on.
    fn check_sessions(&mut self, context: &mut Context<Self>) {
        if self.checking.is_none() {
            let router = context.address().downgrade();
            let check = check_sessions(router, self.session_check_interval);
            self.checking = Some(Task::spawn(check));
        }
    }

    /// Forwards what one read has brought, up to an event that has to wait. Returns the memory.
    fn forward_all(
        &mut self,
        mut notifications: Notifications,
        context: &mut Context<Self>,
    ) -> Result<Notifications, Parked> {
        let mut places = mem::take(&mut self.places);
        places.extend(notifications.iter().map(|(process_id, seq)| {
            let place = self.routes.find(process_id);
            // With thousands of sessions the state of none is in the cache. All of a batch are fetched at
            // once if they are looked at before the first is dealt with.
            place.inspect(|&place| self.routes.look_at(place, seq))
        }));
        let mut found = places.drain(..);
        while let Some(mut entry) = notifications.pop() {
            let process_id = notifications.process_id(&entry);
            let place = found.next().flatten();
            let mut attempts = 0;
            while let Some(held_up) =
                self.forward(process_id, place, entry.seq, entry.event, context)
            {
                attempts += 1;
                let is_worth_waiting = match held_up.until {
                    Until::TurnOver => {
                        self.end_turn(context);
                        true
                    }
                    Until::Credit => self
                        .routes
                        .get_mut(process_id)
                        .is_some_and(|route| route.delivery.wait_for_credit(&held_up.event)),
                };
                entry.event = held_up.event;
                // Either its credit has just returned, or it is not this session that holds what is
                // missing: then it is looked at again with the next check.
                if is_worth_waiting || attempts > 1 {
                    notifications.put_back(entry);
                    return Err(Parked::new(notifications));
                }
            }
        }
        drop(found);
        self.places = places;
        notifications.clear();
        Ok(notifications)
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
    fn unpark(&mut self, context: &mut Context<Self>) {
        let Some(parked) = self.parked.take() else {
            return;
        };
        let (notifications, taken) = parked.into_parts();
        match self.forward_all(notifications, context) {
            Err(still) => self.parked = Some(still.with(taken)),
            Ok(notifications) => taken.send(notifications),
        }
    }

    /// Forwards an event, or returns it if it has to wait.
    fn forward(
        &mut self,
        process_id: &str,
        place: Option<Place>,
        seq: u64,
        event: ProcessEvent,
        context: &mut Context<Self>,
    ) -> Option<HeldUp> {
        let Some(route) = self.routes.at(place, process_id) else {
            debug!(process_id, seq; "event without a session ignored");
            return None;
        };
        route.is_known = true;
        // Once for all that this event sets free: for a session held weakly it is not for nothing.
        let Some(reached) = route.session.reach() else {
            self.abandon(process_id.into(), context);
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
            progress => self.go_on(process_id.into(), progress, context),
        }
        None
    }

    /// Does what a session's progress asks for: ends its route, or lets it have its turn to read.
    fn go_on(&mut self, process_id: ProcessId, progress: Progress, context: &mut Context<Self>) {
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

    fn queue_read(&mut self, process_id: &ProcessId) {
        if let Some(route) = self.routes.get_mut(process_id.as_str())
            && route.delivery.wants_read()
            && !route.is_queued
            // Before it is known to run, there is nothing to read.
            && !route.starting
        {
            route.is_queued = true;
            if route.delivery.is_half_read() {
                self.turns.push_first(process_id.clone(), route.key());
            } else {
                self.turns.push(process_id.clone(), route.key());
            }
        }
    }

    /// Has those read whose turn it is.
    fn read_next(&mut self, context: &mut Context<Self>) {
        while let Some((process_id, key)) = self.turns.next() {
            let Some(route) = self.routes.get_keyed(&process_id, key) else {
                continue;
            };
            route.is_queued = false;
            let Some(wanted) = route.delivery.next_read() else {
                continue;
            };
            debug!(process_id:%, after_seq = wanted.after_seq; "reading what a session has missed");
            let mut read = ReadProcess::new(&process_id).after_seq(wanted.after_seq);
            if let Some(bytes) = wanted.max_bytes {
                read = read.max_bytes(bytes as u64);
            }
            let slot = ReadSlot {
                router: context.address().downgrade(),
                process_id,
                key,
                number: wanted.number,
                link: self.turns.begin(),
            };
            self.connection.do_send(Dispatch {
                call: Call::new(read),
                // The new link is asked for everything that was missed.
                repeat: Repeat::Never,
                slot: Box::new(slot),
            });
        }
    }

    /// Has the server let a process write on that it holds back.
    fn tell_consumed(&self, process_id: ProcessId, seq: Option<u64>) {
        self.connection.do_send(TellConsumed { process_id, seq });
    }

    /// Tells the server again what may have been lost with the link.
    fn repeat_consumed(&mut self, process_id: ProcessId) {
        if let Some(route) = self.routes.get_mut(process_id.as_str())
            && route.delivery.told_consumed() > 0
        {
            let seq = route.delivery.told_consumed();
            self.tell_consumed(process_id, Some(seq));
        }
    }

    fn remove(&mut self, process_id: &ProcessId, context: &Context<Self>) -> Option<Route> {
        let route = self.detach(process_id, context)?;
        self.connection.do_send(ForgetProcess {
            process_id: process_id.clone(),
        });
        Some(route)
    }

    /// Removes the route of a process that goes on without it.
    fn detach(&mut self, process_id: &ProcessId, context: &Context<Self>) -> Option<Route> {
        let mut route = self.routes.remove(process_id)?;
        self.forget_record(&mut route, context);
        self.close_if_drained();
        Some(route)
    }

    /// Closes the connection of a shutdown that has nothing to wait for any more.
    fn close_if_drained(&mut self) {
        if let State::Open { draining, .. } = &mut self.state
            && self.removals == 0
            && let Some(Draining { until, .. }) =
                draining.take_if(|it| it.processes == Processes::Detach || self.routes.is_empty())
        {
            self.connection.do_send(Close { by: until });
        }
    }

    /// Removes the route of a process that may run, and ends the process.
    fn abandon(&mut self, process_id: ProcessId, context: &mut Context<Self>) -> Option<Route> {
        self.terminate(process_id.clone(), context);
        let route = self.remove(&process_id, context)?;
        if route.starting {
            self.ended_while_starting.insert(route.key());
        }
        Some(route)
    }

    /// Ends a process that has no session any more.
    fn terminate(&mut self, process_id: ProcessId, context: &mut Context<Self>) {
        debug!(process_id:%; "terminating a process without a session");
        self.connection.do_send(Dispatch {
            call: Call::new(Terminate::new(&process_id)),
            repeat: Repeat::Always,
            slot: Box::new(TerminateSlot {
                router: context.address().downgrade(),
                process_id,
            }),
        });
    }

    /// The one place where routing ends: tells every session and everyone who waits for it, once. Returns
    /// the routes, with which sessions may end that nobody else holds.
    fn close(&mut self, reason: DisconnectReason) -> Routes {
        if let State::Closed(_) = self.state {
            return Routes::default();
        }
        let state = mem::replace(&mut self.state, State::Closed(reason.clone()));
        let routes = self.routes.take();
        for Route {
            session, delivery, ..
        } in routes.iter()
        {
            session.send(delivery.fail(FailureReason::Disconnected(reason.clone())));
        }
        self.parked = None;
        self.orphans.clear();
        self.unremoved.clear();
        self.ended_while_starting.clear();
        self.checking = None;
        if let State::Open { shutdowns, .. } = state {
            for shutdown in shutdowns {
                // Whoever has gone does not need to know.
                let _gone = shutdown.send(());
            }
        }
        routes
    }
}

/// Has the router check its sessions, until it is gone.
async fn check_sessions(router: WeakAddr<Router>, interval: Duration) {
    loop {
        sleep(interval).await;
        let Some(router) = router.upgrade() else {
            return;
        };
        router.do_send(CheckSessions);
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("routes", &self.routes.len())
            .finish_non_exhaustive()
    }
}

impl Actor for Router {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.close(DisconnectReason::Closed);
    }
}

impl Handler<Start> for Router {
    type Result = PendingStart;

    fn handle(&mut self, start: Start, context: &mut Self::Context) -> PendingStart {
        let Start {
            process,
            session,
            timeout,
        } = start;
        let (mut process, record) = process.adapted(&self.capabilities, &self.temporary);
        let can_hold_back = self.capabilities.output_window;
        let window = session
            .output_window(self.session_budget)
            .filter(|_| can_hold_back);
        if let Some(window) = window {
            process = process.output_window(window);
        }
        let process_id = process.process_id().clone();
        let register = Register::new(&process_id, session);
        PendingStart(self.register(register, context).map(|key| {
            if let Some(route) = self.routes.get_keyed(&process_id, key) {
                route.starting = true;
                route.record = record;
                if let Some(window) = window {
                    route.delivery.held_back(window);
                }
            }
            Registered {
                call: match timeout {
                    Some(timeout) => Call::new(process).timeout(timeout),
                    None => Call::new(process),
                },
                process_id,
                key,
                connection: self.connection.clone(),
                router: context.address().downgrade(),
            }
        }))
    }
}

/// Where the answer to the termination of an orphan goes.
struct TerminateSlot {
    router: WeakAddr<Router>,
    process_id: ProcessId,
}

impl ReplySlot for TerminateSlot {
    fn resolve(self: Box<Self>, outcome: Result<ByteString, CallError>) {
        match outcome {
            // It may not have been sent, or the server may not have got it.
            Err(
                CallError::Overloaded { .. }
                | CallError::DeadlineExceeded { .. }
                | CallError::OutcomeUnknown { .. },
            ) => {
                if let Some(router) = self.router.upgrade() {
                    router.do_send(Unterminated {
                        process_id: self.process_id,
                    });
                }
            }
            Err(error) => debug!(process_id:% = self.process_id, error:%; "not terminated"),
            Ok(_) => {}
        }
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

impl Handler<Register> for Router {
    type Result = Result<(), RegisterError>;

    fn handle(&mut self, register: Register, context: &mut Self::Context) -> Self::Result {
        let process_id = register.process_id.clone();
        self.register(register, context)?;
        self.queue_read(&process_id);
        self.read_next(context);
        Ok(())
    }
}

impl Handler<Unregister> for Router {
    type Result = MessageResult<Unregister>;

    fn handle(&mut self, unregister: Unregister, context: &mut Self::Context) -> Self::Result {
        let Unregister { process_id } = unregister;
        let route = self.detach(&process_id, context);
        self.unpark(context);
        let route = route.inspect(|route| {
            // Nobody will consume what it writes.
            if route.delivery.is_held_back() {
                self.tell_consumed(process_id, None);
            }
        });
        MessageResult(route.map(|route| route.delivery.last_seq()))
    }
}

impl Handler<Shutdown> for Router {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, shutdown: Shutdown, context: &mut Self::Context) -> Self::Result {
        let State::Open {
            shutdowns,
            draining,
        } = &mut self.state
        else {
            return Box::pin(async {});
        };
        let (end, ended) = oneshot::channel();
        shutdowns.push(end);
        let until = after(
            Instant::now(),
            shutdown.deadline.unwrap_or(self.close_timeout),
        );
        let connection = self.connection.downgrade();
        let overdue = Task::spawn(async move {
            sleep_until(until).await;
            if let Some(connection) = connection.upgrade() {
                connection.do_send(Close { by: until });
            }
        });
        *draining = Some(Draining {
            until,
            processes: shutdown.processes,
            _overdue: overdue,
        });
        match shutdown.processes {
            Processes::Terminate => {
                for route in self.routes.iter_mut() {
                    if route.starting {
                        self.ended_while_starting.insert(route.key());
                    }
                }
                for process_id in self.routes.process_ids() {
                    self.terminate(process_id, context);
                }
            }
            // Nobody helps them any more.
            Processes::Detach => {
                let records: Vec<_> = (self.routes.iter_mut())
                    .filter_map(|route| route.record.take())
                    .collect();
                for record in records {
                    self.remove_record(record, context);
                }
            }
        }
        self.close_if_drained();
        Box::pin(async {
            // Sent when the connection is gone, or dropped with the router, which is as good.
            let _ended = ended.await;
        })
    }
}

impl Handler<ConnectionEvent> for Router {
    type Result = Taken;

    fn handle(&mut self, event: ConnectionEvent, context: &mut Self::Context) -> Taken {
        match event {
            ConnectionEvent::Notifications(notifications) => {
                self.turn += 1;
                return match self.forward_all(notifications, context) {
                    Ok(notifications) => Taken::Now(notifications),
                    Err(parked) => {
                        let taken = parked.taken();
                        self.parked = Some(parked);
                        Taken::Later(taken)
                    }
                };
            }
            ConnectionEvent::Interrupted => {
                self.turns.link_down();
                // What waits is read again with all else that is missed.
                self.parked = None;
                for route in self.routes.iter_mut() {
                    route.delivery.interrupted();
                    if route.session.link_events {
                        route.is_interrupted = true;
                        let process_id = route.delivery.process_id().clone();
                        route
                            .session
                            .send(SessionEvent::Interrupted(Interrupted { process_id }));
                    }
                }
            }
            ConnectionEvent::Resumed => {
                self.turns.link_up();
                for process_id in self.routes.process_ids() {
                    self.queue_read(&process_id);
                    if let Some(route) = self.routes.get_mut(process_id.as_str())
                        && mem::take(&mut route.is_interrupted)
                    {
                        let process_id = process_id.clone();
                        route
                            .session
                            .send(SessionEvent::Resumed(Resumed { process_id }));
                    }
                    self.repeat_consumed(process_id);
                }
                self.read_next(context);
            }
            ConnectionEvent::Disconnected(reason) => {
                let routes = self.close(reason);
                // After all have been told: the end of a session takes longer than that.
                task::spawn(async { drop(routes) });
            }
        }
        Taken::Now(Notifications::default())
    }
}

impl Handler<StartEnded> for Router {
    type Result = ();

    fn handle(&mut self, ended: StartEnded, context: &mut Self::Context) {
        let StartEnded {
            process_id,
            key,
            process,
        } = ended;
        let was_ended = self.ended_while_starting.remove(&key);
        let Some(route) = self.routes.get_keyed(&process_id, key) else {
            // Without a route because it was unregistered, the process is somebody else's.
            if was_ended && !matches!(process, StartedProcess::NotStarted) {
                self.terminate(process_id, context);
            }
            return;
        };
        match process {
            StartedProcess::Running => {
                route.starting = false;
                route.is_known = true;
                if was_ended {
                    self.terminate(process_id, context);
                } else {
                    self.queue_read(&process_id);
                    self.read_next(context);
                }
            }
            StartedProcess::NotStarted => {
                // Whoever was told something is told the end: it ran, and is forgotten already.
                if route.delivery.has_begun() {
                    let last = route.delivery.fail(FailureReason::Forgotten);
                    route.session.send(last);
                }
                // Nobody was there to write it.
                route.record = None;
                self.remove(&process_id, context);
            }
            StartedProcess::Unknown => {
                let last = route.delivery.fail(FailureReason::StartUnanswered);
                route.session.send(last);
                self.terminate(process_id.clone(), context);
                self.remove(&process_id, context);
            }
        }
    }
}

impl Handler<Unterminated> for Router {
    type Result = ();

    fn handle(&mut self, unterminated: Unterminated, context: &mut Self::Context) {
        // Tried again with the next check of the sessions.
        self.orphans.push(unterminated.process_id);
        self.check_sessions(context);
    }
}

impl Handler<CheckSessions> for Router {
    type Result = ();

    fn handle(&mut self, _: CheckSessions, context: &mut Self::Context) {
        let orphans = mem::take(&mut self.orphans);
        let stopped = self.routes.stopped();
        let unremoved = mem::take(&mut self.unremoved);
        let is_idle = orphans.is_empty() && unremoved.is_empty() && self.routes.is_empty();
        for process_id in orphans {
            self.terminate(process_id, context);
        }
        for record in unremoved {
            self.remove_record(record, context);
        }
        for process_id in stopped {
            self.abandon(process_id, context);
        }
        let now = Instant::now();
        let checked = mem::replace(&mut self.checked, self.turn);
        let mut behind = Vec::new();
        for route in self.routes.iter_mut() {
            route.delivery.tick();
            // Once, when nothing was delivered since the last check.
            if (1..=checked).contains(&route.delivered_in) {
                route.delivered_in = 0;
                route.session.shrink();
            }
            if route.delivery.has_exited()
                && now - *route.end_checked.get_or_insert(now) >= END_OVERDUE
            {
                route.end_checked = Some(now);
                route.delivery.check_end();
            }
            if route.delivery.wants_read() {
                behind.push(route.delivery.process_id().clone());
            }
        }
        for process_id in behind {
            self.queue_read(&process_id);
        }
        self.read_next(context);
        self.unpark(context);
        if is_idle {
            self.checking = None;
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

impl Handler<CreditReturned> for Router {
    type Result = ();

    fn handle(&mut self, returned: CreditReturned, context: &mut Self::Context) {
        let CreditReturned { process_id, key } = returned;
        if let Some(route) = self.routes.get_keyed(&process_id, key) {
            route.delivery.credit_returned();
            if let Some(seq) = route.delivery.consumed() {
                self.tell_consumed(process_id.clone(), Some(seq));
            }
            self.queue_read(&process_id);
            self.read_next(context);
        }
        self.unpark(context);
    }
}

impl Handler<ReadEnded> for Router {
    type Result = ();

    fn handle(&mut self, ended: ReadEnded, context: &mut Self::Context) {
        let ReadEnded {
            process_id,
            key,
            number,
            link,
            outcome,
        } = ended;
        self.turns.end(link);
        if let Some(route) = self.routes.get_keyed(&process_id, key) {
            let Some(reached) = route.session.reach() else {
                self.abandon(process_id, context);
                return self.read_next(context);
            };
            let deliver = |event| reached.send(event);
            let progress = match outcome {
                Ok(read) => {
                    route.is_known = true;
                    route.delivery.accept_read(number, read, deliver)
                }
                Err(error) if is_unknown_process(&error) => {
                    if route.is_known {
                        route.delivery.forget(number, deliver)
                    } else {
                        route.delivery.read_too_early(number)
                    }
                }
                Err(error) => {
                    debug!(process_id:%, error:%; "cannot read what a session has missed");
                    // Read again with the next check of the sessions.
                    route.delivery.fail_read(number);
                    return self.read_next(context);
                }
            };
            self.go_on(process_id, progress, context);
        }
        self.read_next(context);
    }
}

/// Servers tell this only by their words.
pub(crate) fn is_unknown_process(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Rejected { code: ErrorCode::INVALID_REQUEST, message, .. }
            if message.contains("unknown process id")
    )
}
