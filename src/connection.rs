//! The connection actor: owns the WebSocket and the table of calls that wait for an answer.
//!
//! | message | answer | sent by |
//! | --- | --- | --- |
//! | [`Call<M>`] | `Result<M::Response, CallError>` | anyone, for every [`Method`] |
//! | [`DescribeServer`] | [`ServerInfo`] | anyone |
//! | [`GetStatistics`] | [`Statistics`] | anyone |
//! | `Dispatch` | – | the router: a call whose answer goes to a slot of its own |
//! | `Close` | – | the router |
//! | `Received`, `LinkEnded` | – | the task that reads |
//!
//! It emits `ConnectionEvent`s. Reading, writing and the timer for deadlines are tasks of their own,
//! which take turns with the actor: in its context, they would wait until its mailbox is empty.

mod call;
mod dial;
mod frame;
mod handshake;
mod incoming;
mod link;
mod outgoing;
mod pending;
mod socket;
mod sweeper;

use std::{cell::RefCell, fmt, future::Future, mem, rc::Rc, time::Duration};

use actix::{
    Actor, Addr, AsyncContext as _, Context, Handler, Message, MessageResult, WeakRecipient,
};
use bytestring::ByteString;
use log::debug;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use self::{
    call::Submitted,
    incoming::Reading,
    outgoing::{Outgoing, QueueFull},
    pending::{Entry, Pending, RequestId},
    sweeper::Sweeper,
};
pub use self::{
    call::{Call, PendingCall},
    handshake::ServerInfo,
};
pub(crate) use self::{
    call::{Dispatch, decode_response},
    dial::server_name,
    link::Link,
    pending::{ReplySlot, after},
};
use crate::{
    config::Config,
    error::{CallError, DisconnectReason, JsonError},
    protocol::{
        Method, Notification,
        jsonrpc::{self, ErrorObject},
    },
};

/// Asks what the handshake learned of the server.
#[derive(Debug, Clone, Copy)]
pub struct DescribeServer;

impl Message for DescribeServer {
    type Result = ServerInfo;
}

/// Asks for the connection's counters.
#[derive(Debug, Clone, Copy)]
pub struct GetStatistics;

impl Message for GetStatistics {
    type Result = Statistics;
}

/// Counters of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Calls that wait for their answer now.
    pub calls_in_flight: usize,
    /// Bytes of requests that wait for the socket now.
    pub queued_bytes: usize,
    /// Answers to no known call: mostly those that came after the deadline.
    pub unknown_answers: u64,
    /// Errors that belong to no call: the server could not read a message of this client.
    pub connection_errors: u64,
}

/// Ends the connection in order: what is queued is written, and the socket closed.
pub(crate) struct Close {
    /// When it is to be over, in order or not.
    pub(crate) by: Instant,
}

impl Message for Close {
    type Result = ();
}

/// What a connection tells the recipient it was given.
#[derive(Debug)]
pub(crate) enum ConnectionEvent {
    /// What one read has brought, in the order in which the server sent it. More is read when it has
    /// been handled.
    Notifications(Vec<Notification>),
    #[expect(dead_code, reason = "there is no resume yet")]
    /// The link is lost and may be resumed: what the server sends meanwhile is lost.
    Interrupted,
    #[expect(dead_code, reason = "there is no resume yet")]
    /// There is a new link to the same session of the server.
    Resumed,
    /// The connection is gone. Nothing follows.
    Disconnected(DisconnectReason),
}

impl Message for ConnectionEvent {
    type Result = ();
}

/// Answers that one read has brought.
struct Received(Vec<Reply>);

impl Message for Received {
    type Result = ();
}

/// The server's answer to something.
enum Reply {
    Result {
        id: RequestId,
        /// `None` if the server left it out.
        result: Option<ByteString>,
    },
    Error {
        id: RequestId,
        error: ErrorObject,
    },
    /// To an id that this client never gives.
    Unknown,
    /// To a message that the server could not read.
    ConnectionError,
}

/// It is time to look for calls to end.
struct Sweep;

impl Message for Sweep {
    type Result = ();
}

/// Nothing more will come, and why.
struct LinkEnded {
    reason: DisconnectReason,
}

impl Message for LinkEnded {
    type Result = ();
}

/// How often calls whose callers have gone are looked for. Their entries would otherwise stay until
/// their deadline.
const ABANDONED_CHECK: Duration = Duration::from_secs(1);

/// The actor that owns a WebSocket and its calls. [`Mux`](crate::Mux) starts it.
///
/// When its connection is gone it goes on to answer every call with the reason.
pub struct Connection {
    state: State,
    /// Shared with the answer of [`Handler<Call>`], which actix asks for a place to put the reply
    /// sender only after `handle` has returned. Both run in the actor, never at the same time.
    pending: Rc<RefCell<Pending>>,
    sweeper: Sweeper,
    statistics: Statistics,
    server: ServerInfo,
    config: Config,
    events: WeakRecipient<ConnectionEvent>,
}

enum State {
    Open {
        outgoing: Outgoing,
        reading: Task,
    },
    /// This side has closed; the answers still under way are taken until the peer closes too.
    Closing {
        _reading: Task,
        _overdue: Task,
    },
    Closed(DisconnectReason),
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Task {
    fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        Task(actix_rt::spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Starts the actor of an open link on the current arbiter.
    pub(crate) fn start_with(
        link: Link,
        config: Config,
        events: WeakRecipient<ConnectionEvent>,
    ) -> Addr<Self> {
        Connection::create(|context| {
            let (failed, write_failed) = oneshot::channel();
            let (outgoing, answers) = Outgoing::start(
                link.writer,
                config.max_queued_bytes,
                config.close_timeout,
                failed,
            );
            let reading = Reading {
                reader: link.reader,
                answers,
                connection: context.address().downgrade(),
                events: events.clone(),
                write_failed: Some(write_failed),
                ping_interval: config.ping_interval,
                silence_timeout: config.silence_timeout,
            };
            Connection {
                state: State::Open {
                    outgoing,
                    reading: Task::spawn(reading.run()),
                },
                pending: Rc::new(RefCell::new(Pending::after(handshake::LAST_ID))),
                sweeper: Sweeper::start(context.address().downgrade()),
                statistics: Statistics::default(),
                server: link.server,
                config,
                events,
            }
        })
    }

    /// Sends a request and returns the id under which its answer is to be awaited.
    fn submit<M: Method>(&mut self, method: &M) -> Result<RequestId, CallError> {
        let disconnected = |reason| CallError::Disconnected {
            method: M::NAME,
            reason,
        };
        let outgoing = match &self.state {
            State::Open { outgoing, .. } => outgoing,
            State::Closing { .. } => return Err(disconnected(DisconnectReason::Closed)),
            State::Closed(reason) => return Err(disconnected(reason.clone())),
        };
        let mut pending = self.pending.borrow_mut();
        let in_flight = pending.len();
        if in_flight >= self.config.max_calls_in_flight {
            return Err(CallError::Overloaded {
                method: M::NAME,
                in_flight,
                queued_bytes: outgoing.queued_bytes(),
            });
        }
        let id = pending.next_id();
        let json = jsonrpc::encode_request(id, method, self.server.dialect).map_err(|source| {
            CallError::InvalidRequest {
                method: M::NAME,
                source,
            }
        })?;
        outgoing
            .request(json)
            .map_err(|QueueFull { queued_bytes }| CallError::Overloaded {
                method: M::NAME,
                in_flight,
                queued_bytes,
            })?;
        Ok(id)
    }

    /// Makes room, sends the request, and sees to its deadline.
    fn call<M: Method>(&mut self, call: &Call<M>) -> Result<Submitted, CallError> {
        let now = Instant::now();
        let is_full = self.pending.borrow().len() >= self.config.max_calls_in_flight;
        if self.sweeper.is_due(now) || is_full && self.sweeper.may_find_room(now) {
            self.sweep(now);
        }
        let id = self.submit(&call.method)?;
        let timeout = call.timeout.unwrap_or(self.config.call_timeout);
        self.sweeper.before(now + timeout.min(ABANDONED_CHECK));
        Ok(Submitted {
            id,
            now,
            timeout,
            pending: self.pending.clone(),
        })
    }

    /// Ends the calls whose time is up and drops those that nobody waits for.
    fn sweep(&mut self, now: Instant) {
        self.sweeper.swept(now);
        loop {
            // In a statement of its own: the table is not borrowed while the slot resolves.
            let expired = self.pending.borrow_mut().take_expired(now);
            let Some(Entry {
                method,
                timeout,
                slot,
            }) = expired
            else {
                break;
            };
            slot.resolve(Err(CallError::DeadlineExceeded {
                method,
                after: timeout,
            }));
        }
        let mut pending = self.pending.borrow_mut();
        pending.remove_abandoned();
        if let Some(deadline) = pending.next_deadline() {
            self.sweeper.before(deadline.min(now + ABANDONED_CHECK));
        }
    }

    fn answer(&mut self, reply: Reply) {
        let (id, outcome) = match reply {
            Reply::Result { id, result } => (id, Ok(result)),
            Reply::Error { id, error } => (id, Err(error)),
            Reply::Unknown => {
                self.statistics.unknown_answers += 1;
                return;
            }
            Reply::ConnectionError => {
                self.statistics.connection_errors += 1;
                return;
            }
        };
        let entry = self.pending.borrow_mut().take(id);
        let Some(Entry { method, slot, .. }) = entry else {
            debug!(id; "answer to no known call ignored");
            self.statistics.unknown_answers += 1;
            return;
        };
        slot.resolve(match outcome {
            Ok(Some(result)) => Ok(result),
            Ok(None) => Err(CallError::InvalidResponse {
                method,
                source: JsonError::new("it has neither result nor error"),
            }),
            Err(ErrorObject { code, message }) => Err(CallError::Rejected {
                method,
                code,
                message,
            }),
        });
    }

    /// The one place where a connection ends: tells every call and the recipient of events, once.
    fn terminate(&mut self, reason: DisconnectReason) {
        if let State::Closed(_) = self.state {
            return;
        }
        let state = mem::replace(&mut self.state, State::Closed(reason.clone()));
        debug!(reason:%; "disconnected");
        match state {
            // This side closes: the writer writes what is queued first.
            State::Open { .. } if matches!(reason, DisconnectReason::Closed) => {}
            State::Open { outgoing, .. } => outgoing.discard(),
            State::Closing { .. } | State::Closed(_) => {}
        }
        let entries = self.pending.borrow_mut().drain();
        for Entry { method, slot, .. } in entries {
            slot.resolve(Err(CallError::Disconnected {
                method,
                reason: reason.clone(),
            }));
        }
        if let Some(events) = self.events.upgrade() {
            events.do_send(ConnectionEvent::Disconnected(reason));
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Open { .. } => "open",
            State::Closing { .. } => "closing",
            State::Closed(_) => "closed",
        };
        f.debug_struct("Connection")
            .field("state", &state)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Actor for Connection {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.terminate(DisconnectReason::Closed);
    }
}

impl<M: Method> Handler<Call<M>> for Connection {
    type Result = PendingCall;

    fn handle(&mut self, call: Call<M>, _: &mut Self::Context) -> PendingCall {
        PendingCall(self.call(&call))
    }
}

impl<M: Method> Handler<Dispatch<M>> for Connection {
    type Result = ();

    fn handle(&mut self, dispatch: Dispatch<M>, _: &mut Self::Context) {
        match self.call(&dispatch.call) {
            Ok(submitted) => submitted.await_in::<M>(dispatch.slot),
            Err(error) => dispatch.slot.resolve(Err(error)),
        }
    }
}

impl Handler<DescribeServer> for Connection {
    type Result = MessageResult<DescribeServer>;

    fn handle(&mut self, _: DescribeServer, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.server.clone())
    }
}

impl Handler<GetStatistics> for Connection {
    type Result = MessageResult<GetStatistics>;

    fn handle(&mut self, _: GetStatistics, _: &mut Self::Context) -> Self::Result {
        let queued_bytes = match &self.state {
            State::Open { outgoing, .. } => outgoing.queued_bytes(),
            State::Closing { .. } | State::Closed(_) => 0,
        };
        MessageResult(Statistics {
            calls_in_flight: self.pending.borrow().len(),
            queued_bytes,
            ..self.statistics
        })
    }
}

impl Handler<Close> for Connection {
    type Result = ();

    fn handle(&mut self, Close { by }: Close, context: &mut Self::Context) {
        let closed = State::Closed(DisconnectReason::Closed);
        match mem::replace(&mut self.state, closed) {
            State::Open { outgoing, reading } => {
                // The writer writes what is queued, and then closes.
                drop(outgoing);
                let connection = context.address().downgrade();
                let overdue = async move {
                    sleep_until(by).await;
                    if let Some(connection) = connection.upgrade() {
                        connection.do_send(LinkEnded {
                            reason: DisconnectReason::Closed,
                        });
                    }
                };
                self.state = State::Closing {
                    _reading: reading,
                    _overdue: Task::spawn(overdue),
                };
            }
            ended @ (State::Closing { .. } | State::Closed(_)) => self.state = ended,
        }
    }
}

impl Handler<Received> for Connection {
    type Result = ();

    fn handle(&mut self, Received(replies): Received, _: &mut Self::Context) {
        for reply in replies {
            self.answer(reply);
        }
    }
}

impl Handler<Sweep> for Connection {
    type Result = ();

    fn handle(&mut self, _: Sweep, _: &mut Self::Context) {
        self.sweep(Instant::now());
    }
}

impl Handler<LinkEnded> for Connection {
    type Result = ();

    fn handle(&mut self, LinkEnded { reason }: LinkEnded, _: &mut Self::Context) {
        self.terminate(match self.state {
            State::Open { .. } => reason,
            // However the peer takes it, it was this side that closed.
            State::Closing { .. } | State::Closed(_) => DisconnectReason::Closed,
        });
    }
}
