//! The router actor: owns the map process id -> session, and tells each session what happens to
//! its process.
//!
//! | message | answer | sent by |
//! | --- | --- | --- |
//! | [`Start`] | `Result<Started, StartError>` | anyone |
//! | [`Register`] | `Result<(), RegisterError>` | anyone |
//! | [`Unregister`] | `bool` | anyone |
//! | [`Shutdown`] | – | anyone |
//! | [`ConnectionEvent`] | – | the connection |
//! | `StartFailed`, `Unterminated`, `CheckSessions` | – | the router's own calls and timer |
//!
//! It sends [`SessionEvent`]s, and never waits for a session.

mod delivery;
mod routes;
mod session;

use std::{fmt, mem, time::Duration};

use actix::{
    Actor, Addr, AsyncContext as _, Context, Handler, Message, MessageResult, ResponseFuture,
    WeakAddr,
    dev::{MessageResponse, OneshotSender},
};
use bytestring::ByteString;
use log::debug;
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};

pub use self::session::{Closed, Exited, Failed, Output, Session, SessionEvent};
use self::{
    delivery::Progress,
    routes::{Route, RouteKey, Routes},
};
use crate::{
    connection::{Call, Close, Connection, ConnectionEvent, Dispatch, ReplySlot, decode_response},
    error::{CallError, DisconnectReason, FailureReason, RegisterError, StartError},
    protocol::{Notification, ProcessId, StartProcess, Started, Terminate},
};

/// Registers a session, then starts its process.
///
/// The session is registered first because output can arrive before the answer to the start.
///
/// # Errors
///
/// See [`StartError`]. If the process was not started, the session hears nothing. If it is not known
/// whether it was, because the answer did not come in time or not intelligibly, the process is
/// asked to terminate and the session gets [`Failed`].
///
/// # Cancel safety
///
/// A start that is dropped after the router has handled it goes on: the process runs and its
/// session receives its events.
#[derive(Debug)]
pub struct Start {
    /// What to start.
    pub process: StartProcess,
    /// Who receives its events.
    pub session: Session,
    /// How long to wait for the answer, if not as long as for other calls.
    pub timeout: Option<Duration>,
}

impl Message for Start {
    type Result = Result<Started, StartError>;
}

/// Registers a session for a process that something else starts.
///
/// # Errors
///
/// See [`RegisterError`].
#[derive(Debug)]
pub struct Register {
    /// The process.
    pub process_id: ProcessId,
    /// Who receives its events.
    pub session: Session,
}

impl Message for Register {
    type Result = Result<(), RegisterError>;
}

/// Takes a session off its process, which goes on running. The session hears nothing more, not even
/// a last event. Answers whether there was one.
#[derive(Debug)]
pub struct Unregister {
    /// The process.
    pub process_id: ProcessId,
}

impl Message for Unregister {
    type Result = bool;
}

/// Closes the connection in order: requests that wait are written first. Answers when the connection
/// is gone and all sessions have been told, at the latest after
/// [`Config::close_timeout`](crate::Config::close_timeout).
///
/// The processes that run are left to the server. It ends them at once (before 0.120) or when it
/// forgets the session (10 to 80 s later).
#[derive(Debug, Clone, Copy)]
pub struct Shutdown;

impl Message for Shutdown {
    type Result = ();
}

/// A start has no process to show.
struct StartFailed {
    process_id: ProcessId,
    key: RouteKey,
    /// Whether there may be a process all the same.
    may_run: bool,
}

impl Message for StartFailed {
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
            checking: None,
            session_budget,
            session_check_interval,
        }
    }

    fn register(
        &mut self,
        process_id: ProcessId,
        session: Session,
        context: &mut Context<Self>,
    ) -> Result<RouteKey, RegisterError> {
        if let State::Closed(reason) = &self.state {
            return Err(RegisterError::Disconnected(reason.clone()));
        }
        let key = self
            .routes
            .insert(process_id, session, self.session_budget)?;
        if self.checking.is_none() {
            let router = context.address().downgrade();
            let check = check_sessions(router, self.session_check_interval);
            self.checking = Some(actix_rt::spawn(check));
        }
        Ok(key)
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
        if session.has_stopped() {
            self.routes.remove(&process_id);
            self.terminate(process_id, context);
            return;
        }
        let (last, may_run) = match delivery.accept(seq, event, |event| session.send(event)) {
            Progress::Open => return,
            Progress::Closed(last) => (last, false),
            Progress::Failed(last) => (last, true),
        };
        // The route goes first: whoever hears the last event may use the process id again.
        if let Some(route) = self.routes.remove(&process_id) {
            route.session.send(last);
        }
        if may_run {
            self.terminate(process_id, context);
        }
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
        PendingStart(
            self.register(process_id.clone(), session, context)
                .map(|key| Registered {
                    call: match timeout {
                        Some(timeout) => Call::new(process).timeout(timeout),
                        None => Call::new(process),
                    },
                    process_id,
                    key,
                    connection: self.connection.clone(),
                    router: context.address().downgrade(),
                }),
        )
    }
}

/// The answer of `Handler<Start>`: sends the call with actix's own reply sender in its slot.
pub struct PendingStart(Result<Registered, RegisterError>);

struct Registered {
    call: Call<StartProcess>,
    process_id: ProcessId,
    key: RouteKey,
    connection: Addr<Connection>,
    router: WeakAddr<Router>,
}

impl fmt::Debug for PendingStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PendingStart")
            .field(&self.0.as_ref().map(|registered| &registered.process_id))
            .finish()
    }
}

impl MessageResponse<Router, Start> for PendingStart {
    fn handle(
        self,
        _: &mut Context<Router>,
        sender: Option<OneshotSender<Result<Started, StartError>>>,
    ) {
        match self.0 {
            Ok(registered) => registered.connection.do_send(Dispatch {
                call: registered.call,
                slot: Box::new(StartSlot {
                    router: registered.router,
                    process_id: registered.process_id,
                    key: registered.key,
                    sender,
                }),
            }),
            Err(error) => {
                if let Some(sender) = sender {
                    // A caller that has gone does not need the error.
                    let _gone = sender.send(Err(error.into()));
                }
            }
        }
    }
}

/// Where the answer to a start goes: to the router if there is no process, and to the caller.
struct StartSlot {
    router: WeakAddr<Router>,
    process_id: ProcessId,
    key: RouteKey,
    sender: Option<OneshotSender<Result<Started, StartError>>>,
}

impl ReplySlot for StartSlot {
    fn resolve(self: Box<Self>, outcome: Result<ByteString, CallError>) {
        let outcome = outcome.and_then(|json| decode_response::<StartProcess>(&json));
        let may_run = match &outcome {
            // With the connection gone, all sessions are told anyway.
            Ok(_) | Err(CallError::Disconnected { .. }) => None,
            Err(CallError::DeadlineExceeded { .. } | CallError::InvalidResponse { .. }) => {
                Some(true)
            }
            Err(
                CallError::Rejected { .. }
                | CallError::Overloaded { .. }
                | CallError::InvalidRequest { .. },
            ) => Some(false),
        };
        // The router first, so that whoever hears of the failure can use the process id again.
        if let Some(may_run) = may_run
            && let Some(router) = self.router.upgrade()
        {
            router.do_send(StartFailed {
                process_id: self.process_id,
                key: self.key,
                may_run,
            });
        }
        if let Some(sender) = self.sender {
            // A caller that has gone does not need the answer: the session has its process.
            let _gone = sender.send(outcome.map_err(StartError::from));
        }
    }

    fn is_abandoned(&self) -> bool {
        // The router needs the answer also when the caller does not.
        false
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
        self.register(register.process_id, register.session, context)
            .map(|_| ())
    }
}

impl Handler<Unregister> for Router {
    type Result = MessageResult<Unregister>;

    fn handle(&mut self, unregister: Unregister, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.routes.remove(&unregister.process_id).is_some())
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

impl Handler<StartFailed> for Router {
    type Result = ();

    fn handle(&mut self, failed: StartFailed, context: &mut Self::Context) {
        let StartFailed {
            process_id,
            key,
            may_run,
        } = failed;
        let route = self.routes.remove_keyed(&process_id, key);
        if !may_run {
            return;
        }
        if let Some(Route {
            session, delivery, ..
        }) = route
        {
            session.send(delivery.fail(FailureReason::StartUnanswered));
        }
        self.terminate(process_id, context);
    }
}

impl Handler<Unterminated> for Router {
    type Result = ();

    fn handle(&mut self, unterminated: Unterminated, _: &mut Self::Context) {
        // Tried again with the next check of the sessions.
        self.orphans.push(unterminated.process_id);
    }
}

impl Handler<CheckSessions> for Router {
    type Result = ();

    fn handle(&mut self, _: CheckSessions, context: &mut Self::Context) {
        let mut orphans = mem::take(&mut self.orphans);
        orphans.append(&mut self.routes.remove_stopped());
        let none = orphans.is_empty();
        for process_id in orphans {
            self.terminate(process_id, context);
        }
        if none
            && self.routes.len() == 0
            && let Some(checking) = self.checking.take()
        {
            checking.abort();
        }
    }
}
