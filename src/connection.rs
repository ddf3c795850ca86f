//! The connection actor: owns the WebSocket, and shares the table of calls that wait for an answer with the task that
//! reads.
//!
//! | message | answer | sent by |
//! | --- | --- | --- |
//! | [`Call<M>`] | `Result<M::Response, CallError>` | anyone, for every [`Method`] |
//! | [`DescribeServer`] | [`ServerInfo`] | anyone |
//! | [`GetStatistics`] | [`Statistics`] | anyone |
//! | [`Subscribe`] | – | anyone, to be told of the state of the link |
//! | `Dispatch` | – | the router: a call whose answer goes to a slot of its own |
//! | `ForgetProcess`, `TellConsumed`, `Close` | – | the router |
//! | `LinkEnded` | – | the task that reads, which answers the calls itself |
//! | `Attempted` | – | the task that dials again |
//! | `Sweep`, `Probed` | – | the timer, and the connection's own call |
//!
//! It emits `ConnectionEvent`s and [`LinkState`]s. Reading, writing, dialling and the timer for deadlines
//! are tasks of their own, which take turns with the actor: in its context, they would wait until its
//! mailbox is empty. Only a call that is by itself is written where it is handled.
//!
//! A connection outlives its *links*: when one is lost, its calls and what waits to be written stay, and
//! go on over the next.

mod call;
mod calls;
mod dial;
mod farewell;
pub(crate) mod frame;
mod handshake;
mod incoming;
mod lifecycle;
mod link;
mod outgoing;
mod pending;
mod probe;
mod queue;
mod recovery;
mod retry;
mod socket;
mod submission;
mod subscriber;
mod sweeper;

use std::{collections::HashSet, fmt, rc::Rc, time::Duration};

use actix::{
    Actor, Addr, AsyncContext as _, Context, Handler, Message, MessageResult, WeakRecipient,
};
use log::debug;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

pub use self::{
    call::{Call, PendingCall},
    handshake::ServerInfo,
    lifecycle::LinkState,
    subscriber::{Subscribe, Subscriber},
};
pub(crate) use self::{
    call::{Dispatch, decode_response, reply},
    dial::server_name,
    farewell::{Farewell, Survivor},
    link::{Connecting, Dialler, FirstLink},
    pending::{ReplySlot, after},
};
use self::{
    calls::Calls,
    incoming::{Hearing, Reading},
    lifecycle::{Lifecycle, Next},
    link::Link,
    outgoing::{Answers, Outgoing, Writer},
    pending::{Pending, RequestId},
    probe::Inquiry,
    queue::Queue,
    recovery::{Attempt, Resume},
    sweeper::Sweeper,
};
use crate::{
    config::Config,
    error::{CallError, Causes, DisconnectReason},
    protocol::{Method, Notifications, ProcessId},
    task::{Alive, Task},
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
    /// How often the connection was lost and resumed.
    pub resumes: u64,
}

/// A process has ended: its stdin is not written to any more.
pub(crate) struct ForgetProcess {
    pub(crate) process_id: ProcessId,
}

impl Message for ForgetProcess {
    type Result = ();
}

/// Tells the server that the session of a process has consumed everything up to this `seq`.
pub(crate) struct TellConsumed {
    pub(crate) process_id: ProcessId,
    pub(crate) seq: u64,
}

impl Message for TellConsumed {
    type Result = ();
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
    Notifications(Notifications),
    /// The link is lost and may be resumed: what the server sends meanwhile is lost.
    Interrupted,
    /// There is a new link to the same session of the server.
    Resumed,
    /// The connection is gone. Nothing follows.
    Disconnected(DisconnectReason),
}

impl Message for ConnectionEvent {
    /// Notifications that have been handled, for their memory to be used again.
    type Result = Notifications;
}

/// It is time to look for calls to end.
struct Sweep;

impl Message for Sweep {
    type Result = ();
}

/// Nothing more will come over this link, and why.
struct LinkEnded {
    link: u64,
    reason: DisconnectReason,
}

impl Message for LinkEnded {
    type Result = ();
}

/// How often calls whose callers have gone are looked for. Their entries would otherwise stay until
/// their deadline.
const ABANDONED_CHECK: Duration = Duration::from_secs(1);

/// The shortest time for which a peer may be silent, if the configuration does not set a shorter one: however short its
/// window is, it needs time to answer a ping.
const LEAST_SILENCE: Duration = Duration::from_secs(1);

/// The actor that owns a WebSocket and its calls. [`Mux`](crate::Mux) starts it.
///
/// When its connection is gone it goes on to answer every call with the reason.
pub struct Connection {
    lifecycle: Lifecycle,
    link: Option<OpenLink>,
    /// Counts the links, to tell what comes late from one before.
    links: u64,
    /// The attempt to get another link.
    attempt: Option<Attempt>,
    resume: Option<Resume>,
    /// Ends an orderly close that takes too long.
    overdue: Option<Task>,
    outgoing: Outgoing,
    /// Shared with the task that reads, and with the answer of [`Handler<Call>`], which actix asks for a place to put
    /// the reply sender only after `handle` has returned. None of them run at the same time.
    calls: Rc<Calls>,
    /// Empty: memory for the next request to be encoded in.
    scratch: Vec<u8>,
    sweeper: Sweeper,
    /// Set while the server is asked whether it still answers.
    probed: Option<Inquiry>,
    /// How often the connection was resumed.
    resumes: u64,
    server: ServerInfo,
    config: Rc<Config>,
    farewell: Rc<Farewell>,
    events: WeakRecipient<ConnectionEvent>,
    subscribers: Vec<Subscriber>,
    _alive: Alive,
}

/// The tasks of a link.
struct OpenLink {
    /// None when this side has closed; the answers still under way are taken until the peer closes too.
    writer: Option<Writer>,
    answers: Answers,
    hearing: Rc<Hearing>,
    _reading: Task,
}

impl Connection {
    /// Starts the actor of an open link on the current arbiter. Returns also what ends processes when the runtime ends.
    pub(crate) fn start_with(
        first: FirstLink,
        config: Rc<Config>,
        events: WeakRecipient<ConnectionEvent>,
    ) -> (Addr<Self>, Rc<Farewell>) {
        let FirstLink {
            link,
            server,
            resume,
        } = first;
        let resume = resume.map(|(dialler, session)| Resume { dialler, session });
        let window = server.dialect.resume_window.filter(|_| resume.is_some());
        let window = window.map(|window| window.min(config.resume_timeout));
        let longest = config.attached_timeout.min(config.resume_timeout);
        let queue = Queue::new(config.max_queued_bytes, config.max_queued_stdin_bytes)
            .max_starts(config.max_starts_in_flight);
        let outgoing = Outgoing::new(queue);
        let pending = Pending::after(handshake::LAST_ID);
        let calls = Rc::new(Calls::new(pending, outgoing.clone()));
        let farewell = Farewell::new(calls.clone(), outgoing.clone(), server.dialect);
        let for_router = farewell.clone();
        let address = Connection::create(|context| {
            let mut connection = Connection {
                lifecycle: Lifecycle::new(window, longest, config.jitter_seed),
                link: None,
                links: 0,
                attempt: None,
                resume,
                overdue: None,
                calls,
                outgoing,
                scratch: Vec::new(),
                sweeper: Sweeper::start(context.address().downgrade()),
                probed: None,
                resumes: 0,
                server,
                config,
                farewell,
                events,
                subscribers: Vec::new(),
                _alive: Alive::new(),
            };
            connection.lifecycle.opened();
            connection.attach(link, context);
            connection
        });
        (address, for_router)
    }

    /// Goes on over this link.
    fn attach(&mut self, link: Link, context: &Context<Self>) {
        self.links += 1;
        let (failed, write_failed) = oneshot::channel();
        let outgoing = self.outgoing.clone();
        let (writer, answers) = Writer::start(
            link.writer,
            outgoing,
            self.config.close_timeout,
            failed,
            self.farewell.clone(),
        );
        let hearing = Rc::<Hearing>::default();
        let reading = Reading {
            reader: link.reader,
            answers: answers.clone(),
            calls: self.calls.clone(),
            hearing: hearing.clone(),
            connection: context.address().downgrade(),
            link: self.links,
            events: self.events.clone(),
            write_failed: Some(write_failed),
            ping_interval: self.config.ping_interval,
            silence_timeout: self.silence_timeout(),
        };
        self.link = Some(OpenLink {
            writer: Some(writer),
            answers,
            hearing,
            _reading: Task::spawn(reading.run()),
        });
    }

    /// Returns how long the peer may be silent. A loss has to be noticed while the session can still be resumed.
    fn silence_timeout(&self) -> Duration {
        let window = self.server.dialect.resume_window;
        match window.filter(|_| self.lifecycle.can_resume()) {
            Some(window) => {
                let most = (window / 2).max(LEAST_SILENCE);
                self.config.silence_timeout.min(most)
            }
            None => self.config.silence_timeout,
        }
    }

    /// Tells everyone who wants to know of the state.
    fn announce(&mut self) {
        let state = self.lifecycle.link_state();
        self.subscribers
            .retain(|subscriber| subscriber.tell(state.clone()));
    }

    /// Drops the requests that wait behind others. Returns the ids of all requests that will not be sent any more.
    fn drop_unsent(&self, reason: &DisconnectReason) -> HashSet<RequestId> {
        let mut queue = self.outgoing.queue();
        let queued = queue.ids();
        queue.drop_waiting();
        // When this side closes an open link, what is left in the queue is written before that.
        if matches!(reason, DisconnectReason::Closed) && self.link.is_some() {
            let written = queue.ids();
            return queued.difference(&written).copied().collect();
        }
        queued
    }

    /// Ends the connection, as far as it has not ended, because its actor goes.
    fn end(&mut self) {
        if let Next::Close(reason) = self.lifecycle.end(DisconnectReason::Closed) {
            self.terminate(reason);
        }
    }

    /// The one place where a connection ends: tells every call, the recipient of events and everyone who
    /// wants to know, once.
    fn terminate(&mut self, reason: DisconnectReason) {
        debug!(reason:% = Causes(&reason); "disconnected");
        self.attempt = None;
        self.overdue = None;
        let unsent = self.drop_unsent(&reason);
        match reason {
            // This side closes: the writer writes what is queued first.
            DisconnectReason::Closed => self.link = None,
            _ => self.discard_link(),
        }
        let entries = self.calls.pending.borrow_mut().drain();
        for (id, entry) in entries {
            // A request that is made again was sent before.
            let sent = entry.repeats > 0 || !unsent.contains(&id);
            entry.slot.resolve(Err(CallError::Disconnected {
                method: entry.method,
                reason: reason.clone(),
                sent,
            }));
        }
        if let Some(events) = self.events.upgrade() {
            events.do_send(ConnectionEvent::Disconnected(reason));
        }
        self.announce();
        self.subscribers.clear();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("state", &self.lifecycle.link_state())
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Actor for Connection {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.end();
    }
}

impl Drop for Connection {
    /// A runtime that ends drops its actors, and stops only those that have an address left.
    fn drop(&mut self) {
        self.end();
    }
}

impl<M: Method> Handler<Call<M>> for Connection {
    type Result = PendingCall;

    fn handle(&mut self, call: Call<M>, _: &mut Self::Context) -> PendingCall {
        PendingCall(self.call(&call, M::REPEAT))
    }
}

impl<M: Method> Handler<Dispatch<M>> for Connection {
    type Result = ();

    fn handle(&mut self, dispatch: Dispatch<M>, _: &mut Self::Context) {
        match self.call(&dispatch.call, dispatch.repeat) {
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
        let queued_bytes = match self.lifecycle.refusal() {
            None => self.outgoing.queued_bytes(),
            Some(_) => 0,
        };
        MessageResult(Statistics {
            calls_in_flight: self.calls.pending.borrow().len(),
            queued_bytes,
            unknown_answers: self.calls.unknown_answers(),
            connection_errors: self.calls.connection_errors(),
            resumes: self.resumes,
        })
    }
}

impl Handler<Close> for Connection {
    type Result = ();

    fn handle(&mut self, Close { by }: Close, context: &mut Self::Context) {
        let next = self.lifecycle.close();
        if self.lifecycle.is_closing() {
            if let Some(link) = &mut self.link {
                // The task writes what is queued, and then closes.
                if let Some(writer) = link.writer.take() {
                    writer.finish(by);
                }
            }
            let (connection, link) = (context.address().downgrade(), self.links);
            self.overdue = Some(Task::spawn(async move {
                sleep_until(by).await;
                if let Some(connection) = connection.upgrade() {
                    let reason = DisconnectReason::Closed;
                    connection.do_send(LinkEnded { link, reason });
                }
            }));
        }
        self.go_on(next, context);
    }
}

impl Handler<ForgetProcess> for Connection {
    type Result = ();

    fn handle(&mut self, forget: ForgetProcess, _: &mut Self::Context) {
        self.outgoing.forget(&forget.process_id);
    }
}

impl Handler<TellConsumed> for Connection {
    type Result = ();

    fn handle(&mut self, tell: TellConsumed, _: &mut Self::Context) {
        if self.lifecycle.refusal().is_none() {
            let TellConsumed { process_id, seq } = tell;
            self.outgoing.queue().consumed(process_id, seq);
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

    fn handle(&mut self, LinkEnded { link, reason }: LinkEnded, context: &mut Self::Context) {
        if link == self.links {
            self.lose(reason, context);
        }
    }
}
