//! Finds out whether the client of a connection is still there.
//!
//! Two things are signs of life: bytes that came from the client, and bytes that its socket took after it had taken
//! none for a while. The second covers a client that is slow in taking a large message: its answer to a ping waits
//! behind that message. A client whose application stops reading for longer than [`Patience::silence_timeout`] gives
//! neither, and has to send pongs of its own accord, as the client of this crate does.

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    error::Error,
    future::poll_fn,
    net,
    os::fd::AsFd as _,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_rt::net::TcpStream;
use actix_web::{
    body::{BodySize, BoxBody, MessageBody},
    dev::{Extensions, Payload},
    error::PayloadError,
};
use bytes::Bytes;
use futures_core::Stream;
use log::debug;
use tokio::{
    select,
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{
    frame_guard::{FrameGuard, Refusal},
    outbox::Outbox,
};
use crate::connection::after;

/// How long the socket must have taken nothing for its taking more to be a sign of life. Until its buffers are full, it
/// takes everything at once, whether anybody receives it or not.
const HELD_UP: Duration = Duration::from_millis(100);

/// What the socket is given at once. A large message in one piece would hide that the socket takes any of it.
const PIECE: usize = 32 << 10;

/// How many bytes of a client are kept for later while its last message is being handled. Pongs have six.
const KEPT: usize = 64 << 10;

/// A timer that fires so much too late shows that this process did not run: what the client sent meanwhile has not been
/// looked at.
const LATE: Duration = Duration::from_secs(1);

/// How long clients may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// After so much silence the client is pinged.
    pub(super) ping_interval: Duration,
    /// After so much silence the client is given up.
    pub(super) silence_timeout: Duration,
    /// How long a client may take to answer a ping when another one wants its session.
    pub(super) takeover_timeout: Duration,
}

/// The signs of life of one client, and the wish to ping it.
#[derive(Debug)]
pub(super) struct Life {
    last_sign: watch::Sender<Instant>,
    ping_wanted: Notify,
}

impl Default for Life {
    fn default() -> Self {
        Life {
            last_sign: watch::Sender::new(Instant::now()),
            ping_wanted: Notify::new(),
        }
    }
}

impl Life {
    pub(super) fn note_sign(&self) {
        self.last_sign.send_replace(Instant::now());
    }

    /// Waits until the client is to be pinged. One task does.
    pub(super) async fn ping_wanted(&self) {
        self.ping_wanted.notified().await;
    }

    /// Pings the client, and returns whether it gives a sign of life within this time.
    pub(super) async fn answers_ping(&self, within: Duration) -> bool {
        loop {
            let mut signs = self.last_sign.subscribe();
            self.ping_wanted.notify_one();
            let until = after(Instant::now(), within);
            select! {
                biased;
                // The sender lives as long as `self`.
                _ = signs.changed() => return true,
                () = sleep_until(until) => {}
            }
            if until.elapsed() < LATE {
                return false;
            }
        }
    }

    /// Pings the client whenever it has been silent for a while, and returns when it has been silent for too long.
    pub(super) async fn ends(&self, patience: &Patience) {
        // So that there is as much time for the answer.
        let ping_after = patience.ping_interval.min(patience.silence_timeout / 2);
        let grace = patience.silence_timeout - ping_after;
        loop {
            let ping_at = after(*self.last_sign.borrow(), ping_after);
            if Instant::now() < ping_at {
                sleep_until(ping_at).await;
            } else if !self.answers_ping(grace).await {
                return;
            }
        }
    }
}

/// The bytes that a client sends, as they come. It can be listened to while nobody takes them.
#[derive(Clone)]
pub(super) struct Heard(Rc<RefCell<Arriving>>);

struct Arriving {
    payload: Payload,
    outbox: Arc<Outbox>,
    guard: FrameGuard,
    refusal: Option<Refusal>,
    kept: VecDeque<Result<Bytes, PayloadError>>,
    kept_bytes: usize,
    has_ended: bool,
}

impl Heard {
    pub(super) fn new(payload: Payload, outbox: Arc<Outbox>, guard: FrameGuard) -> Self {
        Heard(Rc::new(RefCell::new(Arriving {
            payload,
            outbox,
            guard,
            refusal: None,
            kept: VecDeque::new(),
            kept_bytes: 0,
            has_ended: false,
        })))
    }

    /// Lets messages of up to so many bytes through from now on.
    pub(super) fn allow(&self, max_message_size: usize) {
        self.0.borrow_mut().guard.allow(max_message_size);
    }

    /// Returns why a message was refused from its header. Nothing comes after it.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.0.borrow().refusal
    }

    /// Does `work`, and notes the signs of life that come meanwhile.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        select! {
            biased;
            done = work => done,
            never = self.listen() => match never {},
        }
    }

    async fn listen(&self) -> Infallible {
        poll_fn(|context| self.0.borrow_mut().poll_keep(context).map(|()| ())).await;
        std::future::pending().await
    }

    /// Waits until the client has ended the connection. It may never be known of one that sends much more before.
    pub(super) async fn ended(&self) {
        poll_fn(|context| self.0.borrow_mut().poll_keep(context)).await;
    }

    /// Throws away what the client still sends, until it ends the connection. A socket that is closed while bytes are unread
    /// resets the connection, and the client may lose what it was sent last.
    pub(super) async fn discard(&self) {
        poll_fn(|context| self.0.borrow_mut().poll_discard(context)).await;
    }
}

impl Arriving {
    fn poll_arrive(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, PayloadError>>> {
        if self.is_over() {
            return Poll::Ready(None);
        }
        let arrived = ready!(Pin::new(&mut self.payload).poll_next(context));
        match &arrived {
            Some(Ok(bytes)) => {
                self.outbox.life.note_sign();
                self.refusal = self.guard.follow(bytes).err();
            }
            Some(Err(_)) | None => self.has_ended = true,
        }
        if self.refusal.is_some() {
            return Poll::Ready(Some(Err(PayloadError::Overflow)));
        }
        Poll::Ready(arrived)
    }

    /// Whether nothing more is taken.
    fn is_over(&self) -> bool {
        self.has_ended || self.refusal.is_some()
    }

    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.kept.clear();
        while !self.has_ended {
            let arrived = ready!(Pin::new(&mut self.payload).poll_next(context));
            self.has_ended = !matches!(arrived, Some(Ok(_)));
        }
        Poll::Ready(())
    }

    /// Keeps what comes, as far as there is room, until the end.
    fn poll_keep(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while !self.is_over() {
            if self.kept_bytes >= KEPT {
                return Poll::Pending;
            }
            if let Some(arrived) = ready!(self.poll_arrive(context)) {
                self.kept_bytes += arrived.as_ref().map_or(0, Bytes::len);
                self.kept.push_back(arrived);
            }
        }
        Poll::Ready(())
    }
}

impl Stream for Heard {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut arriving = self.0.borrow_mut();
        match arriving.kept.pop_front() {
            Some(kept) => {
                arriving.kept_bytes -= kept.as_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(kept))
            }
            None => arriving.poll_arrive(context),
        }
    }
}

/// The bytes that go to a client, in pieces. Notes when the socket takes more after it had taken none for a while.
pub(super) struct Taken {
    body: BoxBody,
    outbox: Arc<Outbox>,
    rest: Bytes,
    /// When the last piece was taken, if nothing was asked for since.
    taken: Option<Instant>,
}

impl Taken {
    pub(super) fn new(body: impl MessageBody + 'static, outbox: Arc<Outbox>) -> Self {
        Taken {
            body: BoxBody::new(body),
            outbox,
            rest: Bytes::new(),
            taken: None,
        }
    }
}

impl MessageBody for Taken {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let now = Instant::now();
        if self
            .taken
            .take()
            .is_some_and(|taken| now - taken >= HELD_UP)
        {
            // The server asks at once for more, unless the socket is full.
            self.outbox.life.note_sign();
        }
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_next(context)) {
                Some(Ok(bytes)) => self.rest = bytes,
                last => return Poll::Ready(last),
            }
        }
        self.taken = Some(now);
        let length = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(self.rest.split_to(length))))
    }
}

/// Ends a TCP connection, whatever still waits to be written to it.
#[derive(Debug, Clone)]
pub(super) struct Cutter(Arc<net::TcpStream>);

impl Cutter {
    /// Gives each accepted connection its cutter.
    pub(super) fn add(socket: &dyn std::any::Any, connection: &mut Extensions) {
        let Some(socket) = socket.downcast_ref::<TcpStream>() else {
            return;
        };
        match socket.as_fd().try_clone_to_owned() {
            Ok(socket) => {
                connection.insert(Cutter(Arc::new(socket.into())));
            }
            Err(error) => debug!(error:%; "a connection will not be cut when its client is silent"),
        }
    }

    /// Tells the client that nothing more comes.
    pub(super) fn end_writing(&self) {
        let _ended = self.0.shutdown(net::Shutdown::Write);
    }

    pub(super) fn cut(&self) {
        // It may have ended by itself.
        let _ended = self.0.shutdown(net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests;
