//! The two halves of an open WebSocket: messages in, messages out.

use std::{
    cell::RefCell,
    future::poll_fn,
    io, mem,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use awc::BoxedSocket;
use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite as _, ReadBuf};

use super::frame::{Decoder, Encoder, KEPT_CAPACITY, Message};
use crate::error::DisconnectReason;

/// Reads whole messages from a socket.
pub(crate) struct MessageReader {
    socket: Readable,
    buffer: BytesMut,
    decoder: Decoder,
    read_size: ReadSize,
}

/// What a socket has done that panics.
pub(crate) fn panicked() -> io::Error {
    io::Error::other("it panicked")
}

/// A socket that is written elsewhere on this thread. That of tokio's `split` is locked each time.
struct Readable(Rc<RefCell<BoxedSocket>>);

impl AsyncRead for Readable {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_read(context, buffer)
    }
}

/// How much one read may bring.
///
/// Much, so that it takes few reads and wakes; little, so that it is still in the cache, with all that is made of
/// it, when the consumers run. For messages of 1 KiB and less the one weighs more: by 1 MiB they take a tenth less
/// than by 512 KiB, and a fifth less than by 128. For those of 8 KiB and more it is the other: they take a third
/// longer by 512 KiB than by 128.
#[derive(Debug, Default)]
struct ReadSize {
    are_large: bool,
    /// What the last read has brought.
    bytes: usize,
    /// How many messages have been cut since.
    messages: usize,
    /// Of the last reads, the later the more.
    recent_bytes: usize,
    recent_messages: usize,
}

/// No more, so that what one read brings has room in the default budget of a session, however small its outputs are,
/// and others have their turn within a millisecond or two.
const SMALL_MESSAGES: usize = 720 << 10;
const LARGE_MESSAGES: usize = 128 << 10;

/// Of a file that is decoded as it comes there are no consumers yet: by 128 KiB it takes an eighth longer.
const FILE: usize = 512 << 10;

impl ReadSize {
    /// Returns how much to read next, after what the last read has brought.
    fn next(&mut self) -> usize {
        let bytes = mem::take(&mut self.bytes);
        let messages = mem::take(&mut self.messages);
        if bytes > 0 {
            self.recent_bytes = self.recent_bytes - self.recent_bytes / 4 + bytes;
            self.recent_messages = self.recent_messages - self.recent_messages / 4 + messages;
            // Of a message that is not whole, so much has come at least.
            let mean = self.recent_bytes / self.recent_messages.max(1);
            // Where they are in between, it stays as it was: to change costs an allocation.
            self.are_large = mean >= 4096 || self.are_large && mean >= 2048;
        }
        if self.are_large {
            LARGE_MESSAGES
        } else {
            SMALL_MESSAGES
        }
    }
}

/// Writes messages to a socket: gathers them, then flushes.
pub(crate) struct MessageWriter {
    socket: Rc<RefCell<BoxedSocket>>,
    pub(crate) buffer: BytesMut,
    /// How much of that the socket has taken.
    written: usize,
    pub(crate) encoder: Encoder,
}

/// Splits an upgraded socket. `read` is what was read behind the upgrade already.
pub(crate) fn split(
    socket: BoxedSocket,
    read: BytesMut,
    max_message_size: usize,
) -> (MessageReader, MessageWriter) {
    let socket = Rc::new(RefCell::new(socket));
    let reader = MessageReader {
        socket: Readable(socket.clone()),
        buffer: read,
        decoder: Decoder::new(max_message_size),
        read_size: ReadSize::default(),
    };
    let writer = MessageWriter {
        socket,
        buffer: BytesMut::new(),
        written: 0,
        encoder: Encoder::default(),
    };
    (reader, writer)
}

impl MessageReader {
    /// Returns the next message that has been read as a whole.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Option<Message<'_>>, DisconnectReason> {
        let message = self.decoder.decode(&mut self.buffer)?;
        self.read_size.messages += usize::from(message.is_some());
        Ok(message)
    }

    /// Reads more. The peer's end of the connection is an error: there is no more.
    ///
    /// Nothing is lost if the future is dropped.
    pub(crate) async fn fill(&mut self) -> Result<(), DisconnectReason> {
        let were_large = self.read_size.are_large;
        let mut read_size = self.read_size.next();
        if self.decoder.is_within_file() {
            read_size = FILE;
        }
        let unread = self.buffer.len();
        if self.read_size.are_large && !were_large && unread < read_size {
            // Otherwise it would go round in all of the larger one.
            let mut smaller = BytesMut::with_capacity(read_size);
            smaller.extend_from_slice(&self.buffer);
            self.buffer = smaller;
        }
        // Memory is committed as data comes, not as a header announces it.
        let missing = self.decoder.missing(&self.buffer).min(unread);
        // Together with what is there already, so that the same memory is used again and again.
        let wanted = read_size
            .saturating_sub(unread)
            .max(read_size / 4)
            .max(missing);
        self.buffer.reserve(wanted);
        // The buffer may have more room than that, but consumers have room for a batch, not for more.
        let mut room = (&mut self.buffer).limit(wanted);
        let read = self.socket.read_buf(&mut room).await;
        self.read_size.bytes = *read.as_ref().unwrap_or(&0);
        match read {
            Ok(0) if self.buffer.is_empty() && !self.decoder.is_within_message() => {
                Err(DisconnectReason::PeerClosed { code: None })
            }
            Ok(0) => Err(DisconnectReason::CutOff),
            Ok(_) => Ok(()),
            Err(error) => Err(DisconnectReason::ReadFailed(Arc::new(error))),
        }
    }
}

impl MessageWriter {
    /// Writes what has been gathered.
    pub(crate) async fn flush(&mut self) -> Result<(), DisconnectReason> {
        poll_fn(|context| self.poll_flush(context, || {})).await
    }

    /// Writes what has been gathered, and has it noted when the socket takes some of it.
    ///
    /// Until it is ready, nothing more may be gathered.
    pub(crate) fn poll_flush(
        &mut self,
        context: &mut Context<'_>,
        flows: impl Fn(),
    ) -> Poll<Result<(), DisconnectReason>> {
        let failed = |error| Poll::Ready(Err(DisconnectReason::WriteFailed(Arc::new(error))));
        let mut socket = self.socket.borrow_mut();
        while self.written < self.buffer.len() {
            let rest = &self.buffer[self.written..];
            match ready!(Pin::new(&mut *socket).poll_write(context, rest)) {
                Ok(0) => return failed(io::ErrorKind::WriteZero.into()),
                Ok(length) => self.written += length,
                Err(error) => return failed(error),
            }
            flows();
        }
        if let Err(error) = ready!(Pin::new(&mut *socket).poll_flush(context)) {
            return failed(error);
        }
        self.written = 0;
        self.buffer.clear();
        if self.buffer.capacity() > KEPT_CAPACITY {
            self.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Gathers a goodbye, behind which nothing may follow.
    pub(crate) fn gather_close(&mut self) {
        self.encoder.close(&mut self.buffer);
    }

    /// Writes what has been gathered, and ends this direction.
    pub(crate) fn poll_close(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), DisconnectReason>> {
        ready!(self.poll_flush(context, || {}))?;
        Pin::new(&mut *self.socket.borrow_mut())
            .poll_shutdown(context)
            .map_err(|error| DisconnectReason::WriteFailed(Arc::new(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(size: &mut ReadSize, bytes: usize, messages: usize) -> usize {
        size.bytes = bytes;
        size.messages = messages;
        size.next()
    }

    #[test]
    fn messages_decide_how_much_is_read_at_once() {
        let mut size = ReadSize::default();
        let mut after = |bytes, messages| {
            for _ in 0..20 {
                after(&mut size, bytes, messages);
            }
            after(&mut size, bytes, messages)
        };
        assert_eq!(after(0, 0), SMALL_MESSAGES, "nothing is known yet");
        assert_eq!(after(500_000, 350), SMALL_MESSAGES);
        assert_eq!(after(500_000, 200), SMALL_MESSAGES, "in between");
        assert_eq!(after(500_000, 100), LARGE_MESSAGES);
        assert_eq!(after(131_072, 50), LARGE_MESSAGES, "in between");
        assert_eq!(after(0, 0), LARGE_MESSAGES, "reads were given up");
        assert_eq!(after(131_072, 90), SMALL_MESSAGES);
        assert_eq!(after(131_072, 0), LARGE_MESSAGES, "parts of one");
        assert_eq!(after(150, 1), SMALL_MESSAGES);
        assert_eq!(after(0, 0), SMALL_MESSAGES, "reads were given up");
    }

    #[test]
    fn messages_of_all_sizes_one_by_one_do_not_change_it_each_time() {
        let mut size = ReadSize::default();
        let mut changes = 0;
        for n in 0..1000 {
            let before = size.are_large;
            after(&mut size, [150, 11_000, 300, 5_000][n % 4], 1);
            changes += usize::from(size.are_large != before);
        }
        assert!(changes <= 2, "{changes}");
    }

    /// However small they are: an output of one byte takes about 100 on the wire, and 129 of credit.
    #[test]
    fn p3_what_one_read_brings_has_room_in_a_session() {
        for decoded in 1..4096_usize {
            let json = r#"{"method":"process/output","params":{"processId":"p","seq":1,"stream":"pty","chunk":""}}"#;
            let wire = 2 + json.len() + decoded.div_ceil(3) * 4;
            let credit = (SMALL_MESSAGES / wire) * (decoded + crate::protocol::OUTPUT_OVERHEAD);
            assert!(
                credit <= crate::Config::new("ws://host").session_budget,
                "{decoded}: {credit}"
            );
        }
    }
}
