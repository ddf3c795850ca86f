//! The two halves of an open WebSocket: messages in, messages out.

use std::{io, sync::Arc};

use awc::BoxedSocket;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

use super::frame::{Decoder, Encoder, KEPT_CAPACITY, Message};
use crate::error::DisconnectReason;

/// What one read may bring. A batch of this size is still in the cache when its consumers run; half of it
/// wakes them so often that 1 KiB outputs take a tenth to a fifth longer, and twice as much is no better.
const READ_SIZE: usize = 512 << 10;

/// Reads whole messages from a socket.
pub(crate) struct MessageReader {
    socket: ReadHalf<BoxedSocket>,
    buffer: BytesMut,
    decoder: Decoder,
}

/// Writes messages to a socket: gathers them, then flushes.
pub(crate) struct MessageWriter {
    socket: WriteHalf<BoxedSocket>,
    pub(crate) buffer: BytesMut,
    pub(crate) encoder: Encoder,
}

/// Splits an upgraded socket. `read` is what was read behind the upgrade already.
pub(crate) fn split(
    socket: BoxedSocket,
    read: BytesMut,
    max_message_size: usize,
) -> (MessageReader, MessageWriter) {
    let (read_half, write_half) = tokio::io::split(socket);
    let reader = MessageReader {
        socket: read_half,
        buffer: read,
        decoder: Decoder::new(max_message_size),
    };
    let writer = MessageWriter {
        socket: write_half,
        buffer: BytesMut::new(),
        encoder: Encoder::default(),
    };
    (reader, writer)
}

impl MessageReader {
    /// Returns the next message that has been read as a whole.
    pub(crate) fn next(&mut self) -> Result<Option<Message<'_>>, DisconnectReason> {
        self.decoder.decode(&mut self.buffer)
    }

    /// Reads more. The peer's end of the connection is an error: there is no more.
    ///
    /// Nothing is lost if the future is dropped.
    pub(crate) async fn fill(&mut self) -> Result<(), DisconnectReason> {
        // Memory is committed as data comes, not as a header announces it.
        let wanted = self.decoder.missing(&self.buffer).min(self.buffer.len());
        let wanted = wanted.max(READ_SIZE);
        self.buffer.reserve(wanted);
        // The buffer may have more room than that, but consumers have room for a batch, not for more.
        let mut socket = (&mut self.socket).take(wanted as u64);
        match socket.read_buf(&mut self.buffer).await {
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
        self.flush_noting(|| {}).await
    }

    /// Writes what has been gathered, and has it noted when the socket takes some of it.
    pub(crate) async fn flush_noting(&mut self, flows: impl Fn()) -> Result<(), DisconnectReason> {
        let failed = |error| DisconnectReason::WriteFailed(Arc::new(error));
        let mut rest = &self.buffer[..];
        while !rest.is_empty() {
            match self.socket.write(rest).await {
                Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
                Ok(length) => rest = &rest[length..],
                Err(error) => return Err(failed(error)),
            }
            flows();
        }
        self.socket.flush().await.map_err(failed)?;
        self.buffer.clear();
        if self.buffer.capacity() > KEPT_CAPACITY {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }

    /// Says goodbye and ends this direction.
    pub(crate) async fn close(&mut self) -> Result<(), DisconnectReason> {
        self.encoder.close(&mut self.buffer);
        self.flush().await?;
        self.socket
            .shutdown()
            .await
            .map_err(|error| DisconnectReason::WriteFailed(Arc::new(error)))
    }
}
