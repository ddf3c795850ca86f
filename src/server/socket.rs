//! The way of messages to the socket of a client, one at a time.
//!
//! actix-ws has a channel of its own for that, which takes 32 messages, whatever their size, and copies them together. Here a message
//! stays counted in the outbox until the socket has taken its last byte, and is never copied.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::outbox::Room;

/// The largest content of a control frame (RFC 6455, 5.5).
const MAX_CONTROL: usize = 125;

/// Sends frames to a client. A clone sends to the same client.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    frames: mpsc::Sender<Frame>,
    /// Nothing is sent here: the connection ends when nobody holds it any more.
    _open: mpsc::Sender<Infallible>,
}

/// The client is gone.
#[derive(Debug)]
pub(super) struct Gone;

#[derive(Debug)]
struct Frame {
    header: Bytes,
    content: Bytes,
    is_last: bool,
    /// Given back when the socket has taken all of the frame.
    _room: Room,
}

impl Frame {
    fn new(opcode: u8, content: Bytes, room: Room) -> Self {
        let mut header = BytesMut::with_capacity(10);
        header.put_u8(0x80 | opcode);
        match content.len() {
            length @ 0..126 => header.put_u8(length as u8),
            length @ 126..0x1_0000 => {
                header.put_u8(126);
                header.put_u16(length as u16);
            }
            length => {
                header.put_u8(127);
                header.put_u64(length as u64);
            }
        }
        Frame {
            header: header.freeze(),
            content,
            is_last: opcode == CLOSE,
            _room: room,
        }
    }
}

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

impl Socket {
    /// Sends a text message. Waits until the socket has taken the message before.
    pub(super) async fn text(&self, text: String, room: Room) -> Result<(), Gone> {
        self.send(Frame::new(TEXT, text.into(), room)).await
    }

    pub(super) async fn ping(&self) -> Result<(), Gone> {
        self.send(Frame::new(PING, Bytes::new(), Room::default()))
            .await
    }

    /// Answers a ping with its content, of which no more is taken than a pong may hold.
    pub(super) async fn pong(&self, content: &[u8]) -> Result<(), Gone> {
        let content = Bytes::copy_from_slice(&content[..content.len().min(MAX_CONTROL)]);
        self.send(Frame::new(PONG, content, Room::default())).await
    }

    /// Sends a Close frame, after which nothing more is sent.
    pub(super) async fn close(&self, code: Option<u16>, reason: &str) -> Result<(), Gone> {
        let mut content = BytesMut::new();
        if let Some(code) = code {
            content.put_u16(code);
            let reason = reason.as_bytes();
            content.put_slice(&reason[..reason.len().min(MAX_CONTROL - 2)]);
        }
        self.send(Frame::new(CLOSE, content.freeze(), Room::default()))
            .await
    }

    /// Waits until the socket has taken the Close frame, or is gone.
    pub(super) async fn taken(&self) {
        self.frames.closed().await;
    }

    async fn send(&self, frame: Frame) -> Result<(), Gone> {
        self.frames.send(frame).await.map_err(|_| Gone)
    }
}

/// The body of the answer to the upgrade: the frames, as the socket takes them.
pub(super) struct Frames {
    frames: mpsc::Receiver<Frame>,
    open: mpsc::Receiver<Infallible>,
    current: Option<Frame>,
    /// The body that actix-ws made. Its end tells actix-ws that the connection is over.
    _original: BoxBody,
}

/// Returns both ends of the way to a client, in place of the body that actix-ws made.
pub(super) fn channel(original: BoxBody) -> (Socket, Frames) {
    let (sender, frames) = mpsc::channel(1);
    let (_open, open) = mpsc::channel(1);
    let frames = Frames {
        frames,
        open,
        current: None,
        _original: original,
    };
    let socket = Socket {
        frames: sender,
        _open,
    };
    (socket, frames)
}

impl MessageBody for Frames {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        loop {
            if let Some(frame) = &mut self.current {
                for part in [&mut frame.header, &mut frame.content] {
                    if !part.is_empty() {
                        return Poll::Ready(Some(Ok(std::mem::take(part))));
                    }
                }
                if frame.is_last {
                    self.frames.close();
                }
                self.current = None;
            }
            match ready!(self.frames.poll_recv(context)) {
                Some(frame) => self.current = Some(frame),
                // The client has to have time to read the last frame.
                None => {
                    ready!(self.open.poll_recv(context));
                    return Poll::Ready(None);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn written(frames: &mut Frames) -> Vec<u8> {
        let mut written = Vec::new();
        while let Some(Ok(bytes)) =
            poll_fn(|context| Pin::new(&mut *frames).poll_next(context)).await
        {
            written.extend_from_slice(&bytes);
        }
        written
    }

    #[tokio::test]
    async fn frames_are_written_as_rfc_6455_has_them_and_nothing_follows_a_close() {
        for (length, header) in [
            (0, vec![0x81, 0]),
            (125, vec![0x81, 125]),
            (126, vec![0x81, 126, 0, 126]),
            (0xFFFF, vec![0x81, 126, 0xFF, 0xFF]),
            (0x1_0000, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let (socket, mut frames) = channel(BoxBody::new(()));
            let text = "x".repeat(length);
            let sending = async {
                socket.text(text.clone(), Room::default()).await.unwrap();
                socket.pong(b"hi").await.unwrap();
                socket.close(Some(1001), "bye").await.unwrap();
                socket.taken().await;
                assert!(socket.ping().await.is_err(), "nothing follows");
                drop(socket);
            };
            let ((), written) = tokio::join!(sending, written(&mut frames));
            let mut expected = header;
            expected.extend(text.as_bytes());
            expected.extend([0x8A, 2, b'h', b'i', 0x88, 5, 3, 0xE9, b'b', b'y', b'e']);
            assert!(written == expected, "{length}");
        }
    }
}
