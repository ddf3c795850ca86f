//! The task that reads: answers calls as their answers come, and hands notifications over in batches.

use std::{
    cell::Cell,
    future::poll_fn,
    mem,
    panic::{self, AssertUnwindSafe},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use actix::{Recipient, WeakAddr, WeakRecipient};
use bytes::Bytes;
use log::debug;
use serde_json::value::RawValue;
use tokio::{
    select,
    sync::oneshot,
    time::{Duration, Instant, Sleep, sleep_until},
};

use super::{
    Connection, ConnectionEvent, LinkEnded,
    calls::Calls,
    frame::{Message, Text},
    outgoing::Answers,
    pending::after,
    socket::{MessageReader, panicked},
};
use crate::{
    error::DisconnectReason,
    protocol::{
        FileContent, Notification, Notifications, ProcessEvent,
        jsonrpc::{self, Id, Incoming, PlainOutput},
    },
};

/// The shortest pause between two looks at a silent peer, whatever the configuration says.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// The longest. Servers that look for signs of life allow for more silence than this.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Reads until the link ends, and then tells the connection why.
///
/// It holds its actors weakly, so that it keeps none of them alive.
pub(crate) struct Reading {
    pub(crate) reader: MessageReader,
    pub(crate) answers: Answers,
    pub(crate) calls: Rc<Calls>,
    pub(crate) connection: WeakAddr<Connection>,
    /// Which of the connection's links it reads.
    pub(crate) link: u64,
    pub(crate) hearing: Rc<Hearing>,
    pub(crate) events: WeakRecipient<ConnectionEvent>,
    /// Told by the writer when it fails; taken once reading begins.
    pub(crate) write_failed: Option<oneshot::Receiver<DisconnectReason>>,
    pub(crate) ping_interval: Duration,
    pub(crate) silence_timeout: Duration,
}

/// When something was last heard of the peer, for those who wonder why it does not answer.
#[derive(Debug, Default)]
pub(crate) struct Hearing {
    /// When a read has last brought something after the handshake.
    pub(crate) last: Cell<Option<Instant>>,
    /// Whether it is this side that does not read on, before what was read is taken.
    pub(crate) is_delivering: Cell<bool>,
    /// Whether the link has ended, and only the connection does not know it yet: what is written now is lost.
    pub(crate) is_over: Cell<bool>,
}

impl Hearing {
    /// Notes that a read has brought something, and returns what time it is.
    fn note_read(&self) -> Instant {
        let now = Instant::now();
        self.last.set(Some(now));
        now
    }
}

impl Reading {
    pub(crate) async fn run(mut self) {
        let reason = {
            let mut reading = pin!(self.read());
            poll_fn(|context| {
                // The socket may be the application's: if it panics, nobody would read any more, and nobody know.
                let read = AssertUnwindSafe(|| reading.as_mut().poll(context));
                panic::catch_unwind(read).unwrap_or_else(|_| {
                    Poll::Ready(DisconnectReason::ReadFailed(Arc::new(panicked())))
                })
            })
            .await
        };
        self.hearing.is_over.set(true);
        self.calls.hand_over_postponed();
        if let Some(connection) = self.connection.upgrade() {
            connection.do_send(LinkEnded {
                link: self.link,
                reason,
            });
        }
    }

    /// What one read has brought is handed over, and taken, before more is read: what the receivers have not taken
    /// stays in the socket, and they run while the data is still in the cache.
    async fn read(&mut self) -> DisconnectReason {
        let mut last_read = Instant::now();
        let mut has_read = false;
        let mut pinged = None;
        let heartbeat = sleep_until(after(last_read, self.ping_after().min(MAX_PAUSE)));
        let write_failed = self.write_failed.take();
        let write_failed = async {
            match write_failed {
                Some(failed) => match failed.await {
                    Ok(reason) => reason,
                    // The writer has ended in order.
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::pin!(heartbeat, write_failed);
        // Used again and again: allocations of this size, between the many small ones of what is delivered,
        // make the small ones slow too.
        let mut notifications = Notifications::default();
        loop {
            let cut = self.cut(&mut notifications);
            self.hearing.is_over.set(cut.is_err());
            // To ask what time it is takes its time: those whose calls were answered do not wait for that. How long the
            // receivers of notifications take is another matter.
            if has_read && !notifications.is_empty() {
                has_read = false;
                (last_read, pinged) = (self.hearing.note_read(), None);
            }
            let delivered = self.deliver(&mut notifications, heartbeat.as_mut()).await;
            if mem::take(&mut has_read) {
                (last_read, pinged) = (self.hearing.note_read(), None);
            }
            if let Err(reason) = delivered.and(cut) {
                return reason;
            }
            // First the socket: what the peer said before the link broke is read to its end.
            select! {
                biased;
                filled = self.reader.fill() => {
                    if let Err(reason) = filled {
                        return reason;
                    }
                    has_read = true;
                }
                reason = &mut write_failed => return reason,
                () = &mut heartbeat => {
                    if let Some(reason) = self.beat(last_read, &mut pinged, heartbeat.as_mut()) {
                        return reason;
                    }
                }
            }
        }
    }

    /// How long nothing may come before a ping: half of the whole time at most, so that there is time
    /// for the answer.
    fn ping_after(&self) -> Duration {
        (self.ping_interval.min(self.silence_timeout / 2)).max(LEAST_PAUSE)
    }

    /// Asks for a sign of life, or gives up if the peer was asked and gave none. The timer is set anew
    /// only when it fires, not at each read.
    fn beat(
        &self,
        last_read: Instant,
        pinged: &mut Option<Instant>,
        heartbeat: Pin<&mut Sleep>,
    ) -> Option<DisconnectReason> {
        let now = Instant::now();
        let ping_at = after(last_read, self.ping_after());
        // Counted from the ping: it may be late, where this thread was busy.
        let grace = self.silence_timeout.saturating_sub(self.ping_after());
        let next = match *pinged {
            // The ping waits behind a message of which the socket takes more and more.
            Some(asked) if now >= after(asked, grace) && self.answers.is_flowing(asked) => {
                *pinged = Some(now);
                after(now, grace)
            }
            Some(pinged) if now >= after(pinged, grace) => {
                return Some(DisconnectReason::Silent {
                    after: now - last_read,
                });
            }
            Some(pinged) => after(pinged, grace),
            None if now < ping_at => ping_at,
            None => {
                self.answers.ping();
                *pinged = Some(now);
                after(now, grace)
            }
        };
        heartbeat.reset(next.min(after(now, MAX_PAUSE)));
        None
    }

    /// Cuts what has been read into messages, up to the first that ends the link.
    fn cut(&mut self, notifications: &mut Notifications) -> Result<(), DisconnectReason> {
        let mut receivers = Receivers {
            notifications,
            calls: &self.calls,
            answers: &self.answers,
        };
        while let Some(message) = self.reader.next()? {
            match message {
                Message::Text(text) => receivers.hand_over(text)?,
                Message::File { id, content } => {
                    receivers
                        .calls
                        .succeed_with_file(id, FileContent { content });
                }
                Message::Binary { size } => {
                    return Err(DisconnectReason::BinaryMessage { size });
                }
                Message::Ping(payload) => self.answers.pong(payload),
                Message::Pong => {}
                Message::Close { code } => return Err(DisconnectReason::PeerClosed { code }),
            }
        }
        Ok(())
    }

    /// Hands the notifications to their receiver, and waits until it has taken them: it gives the memory back. Those
    /// whose calls were answered have their turn meanwhile, and what they call next is mostly on its way before more is
    /// read.
    ///
    /// A receiver may take its time. The peer, which is not read meanwhile, gets pongs in place of answers to its pings.
    async fn deliver(
        &self,
        notifications: &mut Notifications,
        mut heartbeat: Pin<&mut Sleep>,
    ) -> Result<(), DisconnectReason> {
        if notifications.is_empty() {
            self.calls.hand_over_postponed();
            if !self.hearing.is_over.get() {
                tokio::task::yield_now().await;
            }
            return Ok(());
        }
        let event = ConnectionEvent::Notifications(mem::take(notifications));
        let taken = self
            .events
            .upgrade()
            .map(|events: Recipient<_>| events.send(event));
        // In the mailbox, or nobody's any more: now what follows them.
        self.calls.hand_over_postponed();
        if let Some(taken) = taken {
            self.hearing.is_delivering.set(true);
            let mut taken = pin!(taken);
            // The timer was set when something was last read, and may be due.
            let mut has_waited = false;
            let taken = loop {
                select! {
                    biased;
                    taken = &mut taken => break taken,
                    () = heartbeat.as_mut() => {
                        if mem::replace(&mut has_waited, true) {
                            self.answers.pong(Bytes::new());
                        }
                        let next = after(Instant::now(), self.ping_after().min(MAX_PAUSE));
                        heartbeat.as_mut().reset(next);
                    }
                }
            };
            self.hearing.is_delivering.set(false);
            *notifications = taken.map_err(|_| DisconnectReason::Closed)?;
        }
        Ok(())
    }
}

/// Who gets what is in a message.
struct Receivers<'r> {
    notifications: &'r mut Notifications,
    calls: &'r Calls,
    /// What the peer asks is answered here.
    answers: &'r Answers,
}

impl Receivers<'_> {
    #[inline]
    fn hand_over(&mut self, text: Text<'_>) -> Result<(), DisconnectReason> {
        if let Some(output) = jsonrpc::plain_output(text.bytes()) {
            let PlainOutput {
                process_id,
                seq,
                stream,
                chunk,
            } = output;
            let event = ProcessEvent::Output { stream, chunk };
            self.notifications.push(process_id, seq, event);
            return Ok(());
        }
        self.hand_over_other(text)
    }

    /// Hands over what is no output in its usual form.
    #[inline(never)]
    fn hand_over_other(&mut self, text: Text<'_>) -> Result<(), DisconnectReason> {
        let answer = jsonrpc::plain_answer(text.bytes());
        if let Some((id, result)) = answer
            && let Some(content) = jsonrpc::plain_file(&text.bytes()[result..])
        {
            self.calls.succeed_with_file(id, FileContent { content });
            return Ok(());
        }
        let text = text.as_str()?;
        if let Some((id, result)) = answer
            && self.calls.succeed_at_once(id, &text[result..])
        {
            return Ok(());
        }
        match jsonrpc::decode(text)? {
            Incoming::Notification(notification) => {
                let Notification {
                    process_id,
                    seq,
                    event,
                } = notification;
                self.notifications
                    .push(process_id.as_str().as_bytes(), seq, event);
            }
            Incoming::OtherNotification { method } => {
                debug!(method:%; "notification without a use ignored");
            }
            Incoming::Request { id, method } => {
                debug!(method:%; "request of the server refused");
                if let Some(refusal) = jsonrpc::encode_method_not_found(&id) {
                    self.answers.text(refusal);
                }
            }
            Incoming::Response { id, result } => match id {
                Id::Number(id) => self.calls.succeed(id, result.map(RawValue::get)),
                Id::Text(_) | Id::Invalid => self.calls.count_unknown_answer(),
            },
            Incoming::Error { id, error } => match id {
                Id::Number(id) if id > 0 => self.calls.reject(id, error),
                Id::Text(_) => self.calls.count_unknown_answer(),
                // The server could not read a message of ours, and so cannot say which.
                Id::Number(_) | Id::Invalid => {
                    debug!(code:% = error.code; "the server could not read a message of this client");
                    self.calls.count_connection_error();
                }
            },
        }
        Ok(())
    }
}
