//! Starting a process for a session: the message, and where the server's answer goes.

mod cwd;
mod existing;

use std::{fmt, time::Duration};

use actix::{
    Addr, AsyncContext as _, Context, Handler, Message, WeakAddr,
    dev::{MessageResponse, OneshotSender},
};

use tokio::time::Instant;

use self::{cwd::Question, existing::ExistsSlot};
use super::{Router, parking::Following, register::Register, routes::RouteKey, session::Session};
use crate::{
    connection::{Call, Connection, Dispatch, ReplySlot, after, decode_response, reply},
    error::{CallError, DisconnectReason, FailureReason, RegisterError, StartError},
    protocol::{ErrorCode, MAX_OUTPUT_WINDOW, ProcessId, Repeat, StartProcess, Started},
};

/// Registers a session, then starts its process.
///
/// The session is registered first because output can arrive before the answer to the start.
///
/// # Errors
///
/// See [`StartError`]. If the server refuses the start, or it is not sent, the session hears nothing.
/// [`StartError::refusal`] tells why a server refused it. If that is a missing program or working directory, the server is
/// asked once which of both, within the timeout of the start and for 5 s at most; without an answer the reason is
/// [`ProgramOrCwdNotFound`](crate::StartRefusal::ProgramOrCwdNotFound). A program that a shell has to start (see
/// [`StartProcess::size`] and [`StartProcess::helper_processes`]) is not found as an exit code of 127.
///
/// If it is not known whether the process was started, because the answer did not come in time or
/// not intelligibly, it is asked to terminate and the session gets [`Failed`](crate::Failed). If the connection is
/// lost meanwhile and resumed, the server is asked what has become of the start; the id of the process
/// must not have been used before.
///
/// # Cancel safety
///
/// A start that is dropped after the router has handled it goes on: the process runs and its
/// session receives its events.
#[derive(Debug)]
#[non_exhaustive]
pub struct Start {
    /// What to start.
    pub process: StartProcess,
    /// Who receives its events.
    pub session: Session,
    /// How long to wait for the answer, if not as long as for other calls.
    pub timeout: Option<Duration>,
}

impl Start {
    /// Starts `process` for `session`.
    pub fn new(process: StartProcess, session: impl Into<Session>) -> Self {
        Start {
            process,
            session: session.into(),
            timeout: None,
        }
    }

    /// Waits for the answer no longer than this.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl Message for Start {
    type Result = Result<Started, StartError>;
}

/// A start has been answered, or never will be.
pub(super) struct StartEnded {
    pub(super) process_id: ProcessId,
    pub(super) key: RouteKey,
    pub(super) process: StartedProcess,
}

/// What a start has led to.
pub(super) enum StartedProcess {
    Running,
    NotStarted,
    Unknown,
    /// It was started, and the server has forgotten it since.
    Forgotten,
}

impl Message for StartEnded {
    type Result = ();
}

/// The answer of `Handler<Start>`: sends the call with actix's own reply sender in its slot.
pub struct PendingStart(pub(super) Result<Registered, RegisterError>);

/// A start whose session is registered.
pub(super) struct Registered {
    pub(super) call: Call<StartProcess>,
    /// How long the answer may take.
    pub(super) timeout: Duration,
    pub(super) process_id: ProcessId,
    pub(super) key: RouteKey,
    pub(super) connection: Addr<Connection>,
    pub(super) router: WeakAddr<Router>,
    /// For when the start is refused.
    question: Question,
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
                repeat: Repeat::Always,
                slot: Box::new(StartSlot {
                    connection: registered.connection.downgrade(),
                    router: registered.router,
                    process_id: registered.process_id,
                    key: registered.key,
                    repeated: None,
                    question: registered.question,
                    timeout: registered.timeout,
                    deadline: after(Instant::now(), registered.timeout),
                    sender,
                }),
            }),
            Err(error) => {
                if let Some(sender) = sender {
                    reply(sender, Err(error.into()));
                }
            }
        }
    }
}

/// Where the answer to a start goes: to the router, and to the caller.
struct StartSlot {
    connection: WeakAddr<Connection>,
    router: WeakAddr<Router>,
    process_id: ProcessId,
    key: RouteKey,
    /// Set if the request was made twice: how the answer to the first was lost.
    repeated: Option<DisconnectReason>,
    question: Question,
    timeout: Duration,
    /// When the time for the answer is up, also for what has to be asked to find it out.
    deadline: Instant,
    sender: Option<OneshotSender<Result<Started, StartError>>>,
}

impl StartSlot {
    fn end(self, outcome: Result<Started, CallError>) {
        let process = StartSlot::started(&outcome);
        self.end_as(process, outcome);
    }

    /// What an outcome tells of the process; `None` if all sessions are told of it anyway.
    fn started(outcome: &Result<Started, CallError>) -> Option<StartedProcess> {
        match outcome {
            Ok(_) => Some(StartedProcess::Running),
            Err(
                CallError::DeadlineExceeded { sent: true, .. } | CallError::InvalidResponse { .. },
            ) => Some(StartedProcess::Unknown),
            Err(
                CallError::Rejected { .. }
                | CallError::Overloaded { .. }
                | CallError::DeadlineExceeded { sent: false, .. }
                | CallError::Stuck { .. }
                | CallError::OutputNotConsumed { .. }
                | CallError::Unsupported { .. }
                | CallError::HelperFailed { .. }
                | CallError::InvalidRequest { .. },
            ) => Some(StartedProcess::NotStarted),
            Err(CallError::OutcomeUnknown { .. }) => Some(StartedProcess::Unknown),
            // All sessions are told of that.
            Err(CallError::Disconnected { .. }) => None,
        }
    }

    fn end_as(self, process: Option<StartedProcess>, outcome: Result<Started, CallError>) {
        // The router first, so that whoever hears of a failure can use the process id again.
        if let Some(process) = process
            && let Some(router) = self.router.upgrade()
        {
            router.do_send(StartEnded {
                process_id: self.process_id,
                key: self.key,
                process,
            });
        }
        // A caller that has gone does not need the answer: the session has its process.
        let Some(sender) = self.sender else {
            return;
        };
        match outcome {
            Ok(started) => reply(sender, Ok(started)),
            Err(error) => self.question.settle(error, sender),
        }
    }
}

impl ReplySlot for StartSlot {
    fn resolve(self: Box<Self>, outcome: Result<&str, CallError>) {
        match outcome {
            // That the id is taken may mean that the first request has started the process.
            Err(rejection)
                if self.repeated.is_some()
                    && rejection.code() == Some(ErrorCode::INVALID_REQUEST) =>
            {
                ExistsSlot::new(self, rejection).ask();
            }
            outcome => {
                let outcome = outcome.and_then(decode_response::<StartProcess>);
                self.end(outcome);
            }
        }
    }

    fn is_abandoned(&self) -> bool {
        // The router needs the answer also when the caller does not.
        false
    }

    fn repeated(&mut self, reason: &DisconnectReason) {
        self.repeated = Some(reason.clone());
    }

    fn follows_notifications(&self) -> bool {
        true
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
        let room = session.room(self.session_budget).filter(|_| can_hold_back);
        if let Some(room) = room {
            process = process.output_window(room.min(MAX_OUTPUT_WINDOW));
        }
        let process_id = process.process_id().clone();
        let question = Question {
            connection: self.connection.downgrade(),
            cwd: process.cwd().to_owned(),
            until: after(Instant::now(), timeout.unwrap_or(self.call_timeout)),
        };
        let register = Register::new(&process_id, session);
        PendingStart(self.register(register, context).map(|key| {
            if let Some(route) = self.routes.get_keyed(&process_id, key) {
                route.starting = true;
                route.record = record.map(Box::new);
                if let Some(room) = room {
                    route.delivery.held_back(room);
                }
            }
            let timeout = timeout.unwrap_or(self.call_timeout);
            Registered {
                call: Call::new(process).timeout(timeout),
                timeout,
                process_id,
                key,
                connection: self.connection.clone(),
                router: context.address().downgrade(),
                question,
            }
        }))
    }
}

impl Handler<StartEnded> for Router {
    type Result = ();

    fn handle(&mut self, ended: StartEnded, context: &mut Self::Context) {
        self.follow(Following::Start(ended), context);
    }
}

impl Router {
    pub(super) fn end_start(&mut self, ended: StartEnded, context: &mut Context<Self>) {
        let StartEnded {
            process_id,
            key,
            process,
        } = ended;
        let was_ended = self.ended_while_starting.remove(&key);
        let Some(route) = self.routes.get_keyed(&process_id, key) else {
            // Without a route because it was unregistered, the process is somebody else's.
            let may_run = match process {
                StartedProcess::Running | StartedProcess::Unknown => true,
                StartedProcess::NotStarted | StartedProcess::Forgotten => false,
            };
            if was_ended && may_run {
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
            StartedProcess::Forgotten => {
                let last = route.delivery.fail(FailureReason::Forgotten);
                route.session.send(last);
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
