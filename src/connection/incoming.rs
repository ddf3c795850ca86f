//! The task that reads: cuts what comes into batches, and hands them to those they are for.

use std::{cell::Cell, mem, pin::Pin, rc::Rc};

use actix::{Recipient, WeakAddr, WeakRecipient};
use bytes::Bytes;
use log::debug;
use tokio::{
    select,
    sync::oneshot,
    time::{Duration, Instant, Sleep, sleep_until},
};

use super::{
    Connection, ConnectionEvent, LinkEnded, Received, Reply,
    frame::{KEPT_CAPACITY, Message, Text},
    outgoing::Answers,
    pending::after,
    socket::MessageReader,
};
use crate::{
    error::DisconnectReason,
    protocol::{
        FileContent, Notification, Notifications, ProcessEvent,
        jsonrpc::{self, Id, Incoming, PlainOutput},
    },
};

/// Reads until the link ends, and then tells the connection why.
///
/// It holds its actors weakly, so that it keeps none of them alive.
pub(crate) struct Reading {
    pub(crate) reader: MessageReader,
    pub(crate) answers: Answers,
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
}

/// What one read has brought.
#[derive(Default)]
struct Batch {
    replies: Vec<Reply>,
    notifications: Notifications,
}

impl Reading {
    pub(crate) async fn run(mut self) {
        let reason = self.read().await;
        if let Some(connection) = self.connection.upgrade() {
            connection.do_send(LinkEnded {
                link: self.link,
                reason,
            });
        }
    }

    /// Each batch is handed over, and taken, before more is read: what the receivers have not taken
    /// stays in the socket, and they run while the data is still in the cache.
    async fn read(&mut self) -> DisconnectReason {
        let mut last_read = Instant::now();
        let mut pinged = None;
        let heartbeat = sleep_until(after(last_read, self.ping_after()));
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
        let mut batch = Batch::default();
        loop {
            let cut = self.cut(&mut batch);
            self.hearing.is_delivering.set(true);
            let delivered = self.deliver(&mut batch).await;
            self.hearing.is_delivering.set(false);
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
                    last_read = Instant::now();
                    self.hearing.last.set(Some(last_read));
                    pinged = None;
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
        self.ping_interval.min(self.silence_timeout / 2)
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
        let grace = self.silence_timeout - self.ping_after();
        let next = match *pinged {
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
        heartbeat.reset(next);
        None
    }

    /// Cuts what has been read into `batch`, up to the first message that ends the link.
    fn cut(&mut self, batch: &mut Batch) -> Result<(), DisconnectReason> {
        while let Some(message) = self.reader.next()? {
            match message {
                Message::Text(text) => batch.sort(text, &self.answers)?,
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

    /// Hands a batch to the connection and to the receiver of its events, and waits until they have
    /// taken it. They give back the memory.
    async fn deliver(&self, batch: &mut Batch) -> Result<(), DisconnectReason> {
        let mut replies = None;
        if !batch.replies.is_empty() {
            let connection = self.connection.upgrade().ok_or(DisconnectReason::Closed)?;
            replies = Some(connection.send(Received(mem::take(&mut batch.replies))));
        }
        if !batch.notifications.is_empty() {
            let event = ConnectionEvent::Notifications(mem::take(&mut batch.notifications));
            let taken = self
                .events
                .upgrade()
                .map(|events: Recipient<_>| events.send(event));
            if let Some(taken) = taken {
                batch.notifications = taken.await.map_err(|_| DisconnectReason::Closed)?;
            }
        }
        if let Some(replies) = replies {
            batch.replies = replies.await.map_err(|_| DisconnectReason::Closed)?;
        }
        Ok(())
    }
}

/// Takes a text for what a file holds, or gives it back.
fn plain_file(text: Text<'_>) -> Result<(i64, Bytes), Text<'_>> {
    if text.bytes().len() > KEPT_CAPACITY {
        // Its buffer is not used for anything else.
        return jsonrpc::plain_file_in_place(text.into_bytes()).map_err(Text::Joined);
    }
    jsonrpc::plain_file(text.bytes()).ok_or(text)
}

impl Batch {
    #[inline]
    fn sort(&mut self, text: Text<'_>, answers: &Answers) -> Result<(), DisconnectReason> {
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
        self.sort_other(text, answers)
    }

    /// Sorts what is no output in its usual form.
    #[inline(never)]
    fn sort_other(&mut self, text: Text<'_>, answers: &Answers) -> Result<(), DisconnectReason> {
        let text = match plain_file(text) {
            Ok((id, content)) => {
                let file = FileContent { content };
                self.replies.push(Reply::File { id, file });
                return Ok(());
            }
            Err(text) => text,
        };
        if let Some((id, result)) = jsonrpc::plain_result(text.bytes()) {
            let text = text.into_string()?;
            let result = Some(text.slice_ref(&text[result]));
            self.replies.push(Reply::Result { id, result });
            return Ok(());
        }
        let text = text.into_string()?;
        match jsonrpc::decode(&text)? {
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
                    answers.text(refusal);
                }
            }
            Incoming::Response { id, result } => {
                let result = result.map(|json| text.slice_ref(json.get()));
                self.replies.push(match id {
                    Id::Number(id) => Reply::Result { id, result },
                    Id::Text(_) | Id::Invalid => Reply::Unknown,
                });
            }
            Incoming::Error { id, error } => self.replies.push(match id {
                Id::Number(id) if id > 0 => Reply::Error { id, error },
                Id::Text(_) => Reply::Unknown,
                // The server could not read a message of ours, and so cannot say which.
                Id::Number(_) | Id::Invalid => {
                    debug!(code:% = error.code; "the server could not read a message of this client");
                    Reply::ConnectionError
                }
            }),
        }
        Ok(())
    }
}
