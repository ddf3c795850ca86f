//! The router actor: owns the map process id -> session, and tells each session what happens to
//! its process.
//!
//! | message | answer | sent by |
//! | --- | --- | --- |
//! | [`Start`] | `Result<Started, StartError>` | anyone |
//! | [`Register`] | `Result<(), RegisterError>` | anyone |
//! | [`Unregister`] | `Option<u64>` | anyone |
//! | [`Shutdown`] | – | anyone |
//! | `ConnectionEvent` | – | the connection |
//! | `StartEnded`, `Unterminated`, `CheckSessions` | – | the router's own calls and timer |
//!
//! It sends [`SessionEvent`]s, and never waits for a session.

mod delivery;
mod routes;
mod session;
mod start;

use std::{collections::HashSet, fmt, mem, time::Duration};

use actix::{
    Actor, Addr, AsyncContext as _, Context, Handler, Message, MessageResult, ResponseFuture,
    WeakAddr,
};
use bytestring::ByteString;
use log::debug;
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};

use self::{
    delivery::Progress,
    routes::{Route, RouteKey, Routes},
    start::{Registered, StartEnded, StartedProcess},
};
pub use self::{
    session::{Closed, Exited, Failed, Output, Session, SessionEvent},
    start::{PendingStart, Start},
};
use crate::{
    connection::{Call, Close, Connection, ConnectionEvent, Dispatch, ReplySlot},
    error::{CallError, DisconnectReason, FailureReason, RegisterError},
    protocol::{Notification, ProcessId, Terminate},
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

/// Takes a session off its process, which goes on running. The session hears nothing more, not even
/// a last event. Answers with the `seq` of the last event that it was told, 0 for none, or with
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

/// Closes the connection in order: requests that wait are written first. Answers when the connection
/// is gone and all sessions have been told, at the latest after
/// [`Config::close_timeout`](crate::Config::close_timeout).
///
/// The processes that run are left to the server. It ends them at once (before 0.120) or when it
/// forgets the session (10 to 80 s later).
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Shutdown {}

impl Shutdown {
    /// Closes the connection.
    pub fn new() -> Self {
        Shutdown {}
    }
}

impl Message for Shutdown {
    type Result = ();
}

/// A process without a session could not be asked to terminate, because the connection is overloaded.
struct Unterminated {
    process_id: ProcessId,
}

impl Message for Unterminated {
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
    /// Processes without a session that are still to be terminated.
    orphans: Vec<ProcessId>,
    /// Routes that ended before their starts. A server that handles several requests at once may
    /// have terminated such a process before it started it.
    ended_while_starting: HashSet<RouteKey>,
    /// Runs while there are routes.
    checking: Option<JoinHandle<()>>,
    session_budget: usize,
    session_check_interval: Duration,
}

enum State {
    Open {
        /// Who waits for the end.
        shutdowns: Vec<oneshot::Sender<()>>,
    },
    Closed(DisconnectReason),
}

impl Router {
    pub(crate) fn new(
        connection: Addr<Connection>,
        session_budget: usize,
        session_check_interval: Duration,
    ) -> Self {
        Router {
            state: State::Open {
                shutdowns: Vec::new(),
            },
            connection,
            routes: Routes::default(),
            orphans: Vec::new(),
            ended_while_starting: HashSet::new(),
            checking: None,
            session_budget,
            session_check_interval,
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
            State::Open { shutdowns } if shutdowns.is_empty() => {}
            State::Open { .. } => {
                return Err(RegisterError::Disconnected(DisconnectReason::Closed));
            }
            State::Closed(reason) => return Err(RegisterError::Disconnected(reason.clone())),
        }
        let budget = self.session_budget;
        let key = self.routes.insert(process_id, session, budget, after_seq)?;
        self.check_sessions(context);
        Ok(key)
    }

    /// Has the sessions checked from now on.
    fn check_sessions(&mut self, context: &mut Context<Self>) {
        if self.checking.is_none() {
            let router = context.address().downgrade();
            let check = check_sessions(router, self.session_check_interval);
            self.checking = Some(actix_rt::spawn(check));
        }
    }

    fn forward(&mut self, notification: Notification, context: &mut Context<Self>) {
        let Notification {
            process_id,
            seq,
            event,
        } = notification;
        let Some(Route {
            session, delivery, ..
        }) = self.routes.get_mut(&process_id)
        else {
            debug!(process_id:%, seq; "event without a session ignored");
            return;
        };
        // Once for all that this event sets free: for a session held weakly it is not for nothing.
        let Some(recipient) = session.reach() else {
            self.abandon(process_id, context);
            return;
        };
        let deliver = |event| recipient.do_send(event);
        let (last, may_run) = match delivery.accept(seq, event, deliver) {
            Progress::Open => return,
            Progress::Closed(last) => (last, false),
            Progress::Failed(last) => (last, true),
        };
        // The route goes first: whoever hears the last event may use the process id again.
        let route = if may_run {
            self.abandon(process_id, context)
        } else {
            self.routes.remove(&process_id)
        };
        if let Some(route) = route {
            route.session.send(last);
        }
    }

    /// Removes the route of a process that may run, and ends the process.
    fn abandon(&mut self, process_id: ProcessId, context: &mut Context<Self>) -> Option<Route> {
        let route = self.routes.remove(&process_id);
        if let Some(route) = &route
            && route.starting
        {
            self.ended_while_starting.insert(route.key());
        }
        self.terminate(process_id, context);
        route
    }

    /// Ends a process that has no session any more.
    fn terminate(&mut self, process_id: ProcessId, context: &mut Context<Self>) {
        debug!(process_id:%; "terminating a process without a session");
        self.connection.do_send(Dispatch {
            call: Call::new(Terminate::new(&process_id)),
            slot: Box::new(TerminateSlot {
                router: context.address().downgrade(),
                process_id,
            }),
        });
    }

    /// The one place where routing ends: tells every session and everyone who waits for it, once.
    fn close(&mut self, reason: DisconnectReason) {
        if let State::Closed(_) = self.state {
            return;
        }
        let state = mem::replace(&mut self.state, State::Closed(reason.clone()));
        for Route {
            session, delivery, ..
        } in self.routes.drain()
        {
            session.send(delivery.fail(FailureReason::Disconnected(reason.clone())));
        }
        self.orphans.clear();
        self.ended_while_starting.clear();
        if let Some(checking) = self.checking.take() {
            checking.abort();
        }
        if let State::Open { shutdowns } = state {
            for shutdown in shutdowns {
                // Whoever has gone does not need to know.
                let _gone = shutdown.send(());
            }
        }
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
        let process_id = process.process_id().clone();
        let register = Register::new(&process_id, session);
        PendingStart(self.register(register, context).map(|key| {
            if let Some(route) = self.routes.get_keyed(&process_id, key) {
                route.starting = true;
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
            Err(CallError::Overloaded { .. }) => {
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
        self.register(register, context).map(|_| ())
    }
}

impl Handler<Unregister> for Router {
    type Result = MessageResult<Unregister>;

    fn handle(&mut self, unregister: Unregister, _: &mut Self::Context) -> Self::Result {
        let route = self.routes.remove(&unregister.process_id);
        MessageResult(route.map(|route| route.delivery.last_seq()))
    }
}

impl Handler<Shutdown> for Router {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) -> Self::Result {
        let State::Open { shutdowns } = &mut self.state else {
            return Box::pin(async {});
        };
        let (shutdown, ended) = oneshot::channel();
        shutdowns.push(shutdown);
        self.connection.do_send(Close);
        Box::pin(async {
            // Sent when the connection is gone, or dropped with the router, which is as good.
            let _ended = ended.await;
        })
    }
}

impl Handler<ConnectionEvent> for Router {
    type Result = ();

    fn handle(&mut self, event: ConnectionEvent, context: &mut Self::Context) {
        match event {
            ConnectionEvent::Notifications(notifications) => {
                for notification in notifications {
                    self.forward(notification, context);
                }
            }
            ConnectionEvent::Disconnected(reason) => self.close(reason),
        }
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
            StartedProcess::Running => route.starting = false,
            StartedProcess::NotStarted => {
                self.routes.remove(&process_id);
            }
            StartedProcess::Unknown => {
                let last = route.delivery.fail(FailureReason::StartUnanswered);
                route.session.send(last);
                self.routes.remove(&process_id);
                self.terminate(process_id, context);
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
        let is_idle = orphans.is_empty() && self.routes.is_empty();
        for process_id in orphans {
            self.terminate(process_id, context);
        }
        for process_id in stopped {
            self.abandon(process_id, context);
        }
        if is_idle && let Some(checking) = self.checking.take() {
            checking.abort();
        }
    }
}
