//! What a session is, and what it is told.

use std::{borrow::Cow, fmt, hint::black_box, rc::Rc, sync::Arc};

use actix::{Actor, AsyncContext, Handler, Message, Recipient, WeakRecipient};
use bytes::Bytes;

use super::{
    budget::{Permit, cost},
    delivery::CHUNK,
    events::{self, Delivering, EventSender, LocalQueue, SessionEvents, StopNotice},
};
use crate::{
    cache,
    error::FailureReason,
    protocol::{ProcessId, Stream},
};

/// What happens to the process of a session, in order.
///
/// A session gets each event once, in the order of `seq`, a [`Gap`] in the place of those that are
/// lost, and one of [`Closed`] and [`Failed`] as the last.
#[derive(Debug)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The process wrote something.
    Output(Output),
    /// Something is missing here, and will not come.
    Gap(Gap),
    /// The process ended. Output may still follow.
    Exited(Exited),
    /// The process has ended and all its output has been delivered. Nothing follows.
    Closed(Closed),
    /// The end of the process will not be known. Nothing follows.
    Failed(Failed),
    /// The connection was lost; it is being resumed. Only told to a session that asked for it with
    /// [`link_events`](Session::link_events).
    Interrupted(Interrupted),
    /// The connection is there again, and what was missed follows. Only told to a session that asked
    /// for it with [`link_events`](Session::link_events).
    Resumed(Resumed),
}

impl Message for SessionEvent {
    type Result = ();
}

/// A piece of output.
///
/// As long as it exists it counts against the session's budget ([`Session::budget`]): drop it when it
/// is consumed, or take it apart with [`into_parts`](Output::into_parts).
#[non_exhaustive]
pub struct Output {
    /// The process.
    pub process_id: ProcessId,
    /// Its place among all events of the process, from 1.
    pub seq: u64,
    /// Where the process wrote it. The order of `seq` says nothing about the order in which a process
    /// wrote to different streams.
    pub stream: Stream,
    /// The bytes, mostly at most 8 KiB. A character may be split between two pieces.
    pub chunk: Bytes,
    pub(crate) permit: Permit,
}

impl Output {
    /// Takes the bytes and their credit apart: for those who queue the bytes further, and want the
    /// process to be held back until they are gone from there too. The credit returns when the permit
    /// is dropped.
    pub fn into_parts(self) -> (Bytes, Permit) {
        (self.chunk, self.permit)
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("process_id", &self.process_id)
            .field("seq", &self.seq)
            .field("stream", &self.stream)
            .field("bytes", &self.chunk.len())
            .finish()
    }
}

/// Output or other events are lost: the server keeps the newest 1 MiB of output of each process,
/// and these had left that window before they could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// The process.
    pub process_id: ProcessId,
    /// The `seq` of the event before the gap, 0 if there was none.
    pub after_seq: u64,
    /// The `seq` of the event that follows. What lies between the two is lost.
    pub before_seq: u64,
}

/// The connection was lost, and is being resumed. The process runs on, for as long as the server
/// waits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interrupted {
    /// The process.
    pub process_id: ProcessId,
}

/// The connection is there again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resumed {
    /// The process.
    pub process_id: ProcessId,
}

/// The process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exited {
    /// The process.
    pub process_id: ProcessId,
    /// Its place among all events of the process. If it was lost together with output, it is told at
    /// the end of the gap.
    pub seq: u64,
    /// The exit code. A process ended by signal n has 128 + n on servers from 0.140 on, and -1 on
    /// older ones.
    pub exit_code: i32,
    /// Whether the sandbox refused it something (servers from 0.150 on).
    pub sandbox_denied: Option<bool>,
}

/// The process has ended and so have its streams.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// The process.
    pub process_id: ProcessId,
    /// Its place among all events of the process: the last.
    pub seq: u64,
    /// The exit code, if the server told it.
    pub exit_code: Option<i32>,
    /// Whether the session was told everything: no [`Gap`], and the streams were seen to end. Servers
    /// up to 0.120 forget a process 30 s after its exit, also if something still writes to its
    /// streams.
    pub complete: bool,
}

/// What becomes of the process will not be known.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Failed {
    /// The process.
    pub process_id: ProcessId,
    /// Why.
    pub reason: FailureReason,
    /// The `seq` of the last event delivered before this one, 0 if there was none.
    pub last_seq: u64,
}

/// Who receives the events of a process: an actor, held or only known, or whoever has their stream.
///
/// Made from a [`Recipient`], it is held until its process has ended: a session that nobody else
/// holds lives as long as its process. Made from a [`WeakRecipient`], it is left to whoever owns it.
/// Made [`in_context`](Session::in_context), it is held too, and events cost the least; with
/// [`stream`](Session::stream), no actor is needed. In each case, when it stops before its process has ended, the process is
/// terminated: at once, or with the next [check](crate::Config::session_check_interval) if others have stopped just before,
/// or if it was made from a recipient: nobody tells when its actor stops.
///
/// ```
/// # use actix::prelude::*;
/// use execmux::{Overflow, Session, SessionEvent};
///
/// # fn example(recipient: Recipient<SessionEvent>) -> Session {
/// Session::from(recipient).budget(64 << 10).overflow(Overflow::Fail)
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Session {
    holding: Holding,
    pub(crate) budget: Option<usize>,
    pub(crate) overflow: Overflow,
    pub(crate) link_events: bool,
    hold_back: bool,
}

/// What becomes of a session that does not consume its output as fast as its process writes it, once
/// its budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// What comes is dropped, and read again from the server when the session has consumed. The
    /// server keeps the newest 1 MiB per process; what has left that window by then is told as a
    /// [`Gap`], unless the server [holds the process back](Session::hold_back). Nobody else notices.
    #[default]
    Heal,
    /// Nothing more is read from the socket until the session has consumed: nothing is lost, but
    /// **everything else on the connection waits for this session**, answers to calls too, and that the
    /// connection is lost is not noticed meanwhile, perhaps until it is too late to resume it.
    Block,
    /// The session fails with [`FailureReason::Overflow`], and its process is terminated.
    Fail,
}

#[derive(Debug, Clone)]
enum Holding {
    Strong(Recipient<SessionEvent>),
    Weak(WeakRecipient<SessionEvent>),
    Queue(EventSender),
}

/// Where the events of a session go that has not stopped.
pub(crate) enum Reached<'a> {
    Recipient(Cow<'a, Recipient<SessionEvent>>),
    Queue(&'a EventSender),
    Local(&'a Rc<LocalQueue>),
}

impl Reached<'_> {
    /// Sends an event without waiting.
    ///
    /// With `do_send` it is queued without bound of the mailbox's; the bound is the permits that
    /// outputs carry.
    #[inline(always)]
    pub(crate) fn send(&self, event: SessionEvent) {
        match self {
            Reached::Recipient(recipient) => recipient.do_send(event),
            Reached::Queue(sender) => sender.send(event),
            Reached::Local(queue) => {
                queue.send(event);
            }
        }
    }
}

impl Session {
    fn new(holding: Holding) -> Self {
        Session {
            holding,
            budget: None,
            overflow: Overflow::default(),
            link_events: false,
            hold_back: true,
        }
    }

    /// Makes the session of the actor whose context this is: the fastest way for an actor to get events.
    ///
    /// They go to the actor's handler as they do to a recipient of it, but past its mailbox: it is woken
    /// once for all that come together, and nothing is allocated for each; on the thread of the
    /// [`Mux`](crate::Mux) they take no lock either. The actor lives at least as long as the session, as with a
    /// [`Recipient`].
    ///
    /// ```
    /// # use actix::prelude::*;
    /// use execmux::{Session, SessionEvent};
    ///
    /// struct Build;
    ///
    /// impl Actor for Build {
    ///     type Context = Context<Self>;
    /// }
    ///
    /// impl Handler<SessionEvent> for Build {
    ///     type Result = ();
    ///
    ///     fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
    ///         println!("{event:?}");
    ///     }
    /// }
    ///
    /// # fn example() -> Session {
    /// let mut session = None;
    /// Build::create(|context| {
    ///     session = Some(Session::in_context(context));
    ///     Build
    /// });
    /// # session.unwrap()
    /// # }
    /// ```
    pub fn in_context<A, C>(context: &mut C) -> Self
    where
        A: Actor<Context = C> + Handler<SessionEvent>,
        C: AsyncContext<A>,
    {
        let (sender, events) = events::queue();
        context.spawn(Delivering::new(events));
        Session::new(Holding::Queue(sender))
    }

    /// Makes a session whose events are a stream, for those who would rather await them.
    ///
    /// ```
    /// use execmux::{Session, SessionEvent};
    ///
    /// # async fn example(mux: execmux::Mux, process: execmux::StartProcess) -> Result<(), execmux::StartError> {
    /// let (session, mut events) = Session::stream();
    /// mux.start(process, session).await?;
    /// while let Some(event) = events.recv().await {
    ///     println!("{event:?}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// An actor to which the stream is added handles 16 events a turn: too few for a fast process.
    /// [`in_context`](Session::in_context) is for actors.
    pub fn stream() -> (Self, SessionEvents) {
        let (sender, events) = events::queue();
        (Session::new(Holding::Queue(sender)), events)
    }

    /// Lets the session hold so many bytes of output, instead of
    /// [`Config::session_budget`](crate::Config::session_budget). Each piece counts for its bytes and 128
    /// more; a single one always fits.
    pub fn budget(mut self, bytes: usize) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Says what becomes of it when it does not consume. [`Overflow::Heal`] by default.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Whether the server holds the process back, as a full pipe does, while the session does not consume:
    /// then nothing is lost, however slow the session is, and nobody else notices. A session that keeps more
    /// than its [`budget`](Session::budget) less 32 KiB waits in vain for the rest. So it is by default where
    /// the server [can](crate::protocol::Capabilities::output_window) and [`Mux::start`](crate::Mux::start)
    /// starts the process, unless the session would rather [fail](Overflow::Fail). Without it, a process that
    /// writes faster than its session consumes runs on, and what becomes of its output
    /// [`overflow`](Session::overflow) says.
    pub fn hold_back(mut self, hold_back: bool) -> Self {
        self.hold_back = hold_back;
        self
    }

    /// Returns how much of the output may wait for a session with this budget, if its process is to be held
    /// back.
    pub(crate) fn room(&self, budget: usize) -> Option<usize> {
        let budget = self.budget.unwrap_or(budget);
        // Two outputs may come when that is full, one of each stream, and should fit, too. If they do not,
        // they are read again.
        let room = budget
            .saturating_sub(2 * cost(CHUNK))
            .max(budget / 2)
            .max(1);
        (self.hold_back && self.overflow != Overflow::Fail).then_some(room)
    }

    /// Has it told when the connection is lost and resumed ([`Interrupted`], [`Resumed`]). By default
    /// it notices nothing but time.
    pub fn link_events(mut self, wanted: bool) -> Self {
        self.link_events = wanted;
        self
    }

    /// Whether its actor has stopped.
    pub(crate) fn has_stopped(&self) -> bool {
        self.holding.reach().is_none()
    }

    /// Has a router told when it stops, if it can be. Who has only an actor's address has to look.
    pub(crate) fn watch(&self, notice: &Arc<StopNotice>) {
        if let Holding::Queue(sender) = &self.holding {
            sender.watch(notice);
        }
    }

    /// Whether nobody tells when it stops.
    pub(crate) fn stops_unnoticed(&self) -> bool {
        self.holding.stops_unnoticed()
    }
}

impl Holding {
    /// Returns where the events go, or `None` if the actor has stopped.
    fn reach(&self) -> Option<Reached<'_>> {
        let recipient = match self {
            Holding::Strong(recipient) => Cow::Borrowed(recipient),
            Holding::Weak(recipient) => Cow::Owned(recipient.upgrade()?),
            Holding::Queue(sender) => {
                return (!sender.is_abandoned()).then_some(Reached::Queue(sender));
            }
        };
        recipient
            .connected()
            .then_some(Reached::Recipient(recipient))
    }

    fn stops_unnoticed(&self) -> bool {
        match self {
            Holding::Strong(_) | Holding::Weak(_) => true,
            Holding::Queue(_) => false,
        }
    }
}

/// What the router needs of a session while it has a route, on its thread.
#[derive(Debug)]
pub(crate) struct Receiver {
    holding: Holding,
    /// Its queue, if it has one on this thread.
    local: Option<Rc<LocalQueue>>,
}

impl From<Session> for Receiver {
    fn from(session: Session) -> Self {
        let local = match &session.holding {
            Holding::Queue(sender) => sender.local(),
            Holding::Strong(_) | Holding::Weak(_) => None,
        };
        Receiver {
            holding: session.holding,
            local,
        }
    }
}

impl Receiver {
    /// Returns where its events go, or `None` if it has stopped.
    #[inline]
    pub(crate) fn reach(&self) -> Option<Reached<'_>> {
        match &self.local {
            Some(queue) => (!queue.is_abandoned()).then_some(Reached::Local(queue)),
            None => self.holding.reach(),
        }
    }

    /// Sends an event without waiting. Returns whether it has, or the session has stopped.
    #[inline]
    pub(crate) fn send(&self, event: SessionEvent) -> bool {
        match &self.local {
            Some(queue) => queue.send(event),
            None => match self.holding.reach() {
                Some(reached) => {
                    reached.send(event);
                    true
                }
                None => false,
            },
        }
    }

    /// Whether it has stopped.
    pub(crate) fn has_stopped(&self) -> bool {
        self.reach().is_none()
    }

    /// Whether nobody tells when it stops.
    pub(crate) fn stops_unnoticed(&self) -> bool {
        self.holding.stops_unnoticed()
    }

    /// Fetches what the next event needs beside this.
    pub(crate) fn fetch_queue(&self) {
        match &self.local {
            Some(queue) => cache::fetch_all(Rc::as_ptr(queue)),
            None => {
                black_box(self.holding.reach().is_some());
            }
        }
    }

    /// As [`fetch_queue`](Self::fetch_queue), for what is beside that.
    pub(crate) fn fetch_waker(&self) {
        if let Some(queue) = &self.local {
            queue.fetch_waker();
        }
    }

    #[cfg(test)]
    pub(crate) fn local_queue(&self) -> &LocalQueue {
        self.local.as_ref().expect("its actor is on this thread")
    }

    /// Gives back the memory of a flood that is over.
    pub(crate) fn shrink(&self) {
        if let Holding::Queue(sender) = &self.holding {
            sender.shrink();
        }
        if let Some(queue) = &self.local {
            queue.shrink();
        }
    }
}

impl From<Recipient<SessionEvent>> for Session {
    fn from(recipient: Recipient<SessionEvent>) -> Self {
        Session::new(Holding::Strong(recipient))
    }
}

impl From<WeakRecipient<SessionEvent>> for Session {
    fn from(recipient: WeakRecipient<SessionEvent>) -> Self {
        Session::new(Holding::Weak(recipient))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::budget::{Budget, Pool};

    #[test]
    fn p11_debug_does_not_show_output() {
        let output = Output {
            process_id: "p".into(),
            seq: 1,
            stream: Stream::Stdout,
            chunk: "secret".into(),
            permit: Budget::new(1000, Pool::new(1000), || {})
                .take(6, 0)
                .unwrap(),
        };
        let shown = format!("{:?}", SessionEvent::Output(output));
        assert!(
            shown.contains("bytes: 6") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
