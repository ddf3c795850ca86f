//! The router actor: owns the map process id -> session, and tells each session what happens to
//! its process.
//!
//! | message | answer | sent by |
//! | --- | --- | --- |
//! | [`Start`] | `Result<Started, StartError>` | anyone |
//! | [`Register`] | `Result<(), RegisterError>` | anyone |
//! | [`Unregister`] | `Option<u64>` | anyone |
//! | [`Shutdown`] | `Result<(), ShutdownError>` | anyone |
//! | `FindUnconsumed` | `Option<usize>` | the mux, to tell why a write failed |
//! | `FindRecord` | `Found` | the mux, to have a helper process do what the server cannot |
//! | `ConnectionEvent` | when it is taken | the connection |
//! | `StartEnded`, `ReadEnded`, `Settled`, `RecordRemoved` | – | the router's own calls |
//! | `CreditReturned` | – | whoever consumes output that a session, or the server, waits for |
//! | `CheckSessions` | – | the router's timer |
//! | `SessionsStopped` | – | sessions that stop |
//! | `TurnOver` | – | the router's own task, behind the sessions that it has woken |
//!
//! It sends [`SessionEvent`]s, and never waits for a session. A session that has chosen
//! [`Overflow::Block`] makes the connection wait instead: its batch is not *taken*.

mod budget;
mod checking;
mod consumption;
mod delivery;
mod events;
mod forwarding;
mod healing;
mod orphans;
mod parking;
mod record;
mod register;
mod routes;
mod session;
mod shutdown;
mod start;

use std::{
    collections::{HashSet, VecDeque},
    fmt, mem,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix::{Actor, Addr, Context, Handler, WeakAddr};

pub use self::{
    budget::Permit,
    events::SessionEvents,
    register::{Register, Unregister},
    session::{
        Closed, Exited, Failed, Gap, Interrupted, Output, Overflow, Resumed, Session, SessionEvent,
    },
    shutdown::{Processes, Shutdown, ShutdownError},
    start::{PendingStart, Start},
};
use self::{
    budget::Pool,
    events::StopNotice,
    healing::Turns,
    orphans::Orphan,
    parking::{Following, Parked, Taken},
    routes::{Place, Route, RouteKey, Routes},
    shutdown::{Draining, Waiting},
};
pub(crate) use self::{
    consumption::FindUnconsumed,
    healing::is_unknown_process,
    record::{FindRecord, Found},
    shutdown::Outcome,
};
use crate::{
    config::Config,
    connection::{Connection, ConnectionEvent, Farewell, ForgetProcess, ServerInfo},
    error::{DisconnectReason, FailureReason},
    protocol::{Capabilities, Notifications, ProcessId, Record},
    task::{self, Alive, Task},
};

/// The actor that owns the routes. [`Mux`](crate::Mux) starts it.
///
/// When the connection is gone it goes on to refuse registrations with the reason.
pub struct Router {
    state: State,
    connection: Addr<Connection>,
    /// Ends the processes if the runtime ends under the connection.
    farewell: Rc<Farewell>,
    /// How it all ended, once it has: for those who ask when this actor is gone.
    outcome: Outcome,
    routes: Routes,
    /// Where the routes of the next notifications are.
    places: VecDeque<Option<Place>>,
    /// Counts the times that sessions have had to consume: before that, none is behind.
    turn: u64,
    /// The turn in which sessions were last checked.
    checked: u64,
    /// Sessions that want to read what they have missed.
    turns: Turns,
    /// What waits for a session that has chosen [`Overflow::Block`].
    parked: Option<Parked>,
    /// What waits for that.
    following: VecDeque<Following>,
    /// Processes without a session that the server is still to be asked about.
    orphans: Vec<Orphan>,
    /// The processes that the server was asked to terminate, and has not said that it has.
    condemned: HashSet<ProcessId>,
    /// Requests of the router's own that a shutdown waits for.
    errands: usize,
    /// Records of processes that are still to be removed.
    unremoved: Vec<Record>,
    /// Routes that ended before their starts. A server that handles several requests at once may
    /// have terminated such a process before it started it.
    ended_while_starting: HashSet<RouteKey>,
    /// Runs while there is anything to look at.
    checking: Option<Task>,
    /// What all sessions may hold together.
    pool: Rc<Pool>,
    session_budget: usize,
    session_check_interval: Duration,
    call_timeout: Duration,
    close_timeout: Duration,
    capabilities: Capabilities,
    /// The server's directory for temporary files.
    temporary: PathBuf,
    /// Tells of sessions that have stopped.
    stop_notice: Arc<StopNotice>,
    /// Whether they were looked for since the last check.
    has_abandoned_stopped: bool,
    _alive: Alive,
}

enum State {
    Open {
        /// Who waits for the end.
        shutdowns: Vec<Waiting>,
        /// Set from the first shutdown on.
        draining: Option<Draining>,
    },
    Closed(DisconnectReason),
}

impl Router {
    pub(crate) fn new(
        router: WeakAddr<Router>,
        connection: Addr<Connection>,
        farewell: Rc<Farewell>,
        outcome: Outcome,
        config: &Config,
        server: &ServerInfo,
    ) -> Self {
        Router {
            state: State::Open {
                shutdowns: Vec::new(),
                draining: None,
            },
            connection,
            farewell,
            outcome,
            routes: Routes::default(),
            places: VecDeque::new(),
            turn: 1,
            checked: 0,
            turns: Turns::default(),
            parked: None,
            following: VecDeque::new(),
            orphans: Vec::new(),
            condemned: HashSet::new(),
            errands: 0,
            unremoved: Vec::new(),
            ended_while_starting: HashSet::new(),
            checking: None,
            pool: Pool::new(config.connection_budget),
            session_budget: config.session_budget,
            session_check_interval: config.session_check_interval,
            call_timeout: config.call_timeout,
            close_timeout: config.close_timeout,
            capabilities: server.capabilities,
            temporary: server.temporary_directory(),
            stop_notice: checking::stop_notice(router),
            has_abandoned_stopped: false,
            _alive: Alive::new(),
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

    /// Removes the route of a process that may run, and ends the process.
    fn abandon(&mut self, process_id: ProcessId, context: &mut Context<Self>) -> Option<Route> {
        self.terminate(process_id.clone(), context);
        let route = self.remove(&process_id, context)?;
        if route.delivery.is_held_back() {
            // What it has started may live on.
            self.release(process_id, context);
        }
        if route.starting {
            self.ended_while_starting.insert(route.key());
        }
        Some(route)
    }

    /// The one place where routing ends: tells every session and everyone who waits for it, once. Returns
    /// the routes, with which sessions may end that nobody else holds.
    fn close(&mut self, reason: DisconnectReason) -> Routes {
        if let State::Closed(_) = self.state {
            return Routes::default();
        }
        let state = mem::replace(&mut self.state, State::Closed(reason.clone()));
        let routes = self.routes.take();
        self.say_farewell(&state, &reason, &routes);
        for Route {
            session, delivery, ..
        } in routes.iter()
        {
            session.send(delivery.fail(FailureReason::Disconnected(reason.clone())));
        }
        self.parked = None;
        self.following.clear();
        self.orphans.clear();
        for route in routes.iter() {
            self.condemned.insert(route.delivery.process_id().clone());
        }
        let processes = mem::take(&mut self.condemned).len();
        self.unremoved.clear();
        self.ended_while_starting.clear();
        self.checking = None;
        self.end_shutdowns(state, &reason, processes);
        routes
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

impl Drop for Router {
    /// A runtime that ends drops its actors, and stops only those that have an address left.
    fn drop(&mut self) {
        self.close(DisconnectReason::Closed);
    }
}

impl Handler<ConnectionEvent> for Router {
    type Result = Taken;

    fn handle(&mut self, event: ConnectionEvent, context: &mut Self::Context) -> Taken {
        match event {
            ConnectionEvent::Notifications(notifications) => {
                self.turn += 1;
                self.check_sessions(context);
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
                    if route.hears_of_link {
                        route.is_interrupted = true;
                        let process_id = route.delivery.process_id().clone();
                        route
                            .session
                            .send(SessionEvent::Interrupted(Interrupted { process_id }));
                    }
                }
                self.follow_up(context);
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
