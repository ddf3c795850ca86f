use std::{io, mem, pin::Pin};

use bytes::BytesMut;
use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, DuplexStream, ReadBuf, duplex},
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::timeout,
};

use super::{
    super::{
        calls::Calls,
        pending::Pending,
        queue::{Request, Turn},
    },
    *,
};
use crate::protocol::{Dialect, PathSpelling};

const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

struct Started {
    writer: Writer,
    answers: Answers,
    outgoing: Outgoing,
    failed: oneshot::Receiver<DisconnectReason>,
}

fn start(socket: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Started {
    let (_, writer) = socket::split(Box::new(socket), BytesMut::new(), 1000);
    let outgoing = Outgoing::new(Queue::new(10_000, 1_000));
    let (tell, failed) = oneshot::channel();
    let calls = Rc::new(Calls::new(Pending::after(0), outgoing.clone()));
    let dialect = Dialect::new(PathSpelling::Uri);
    let farewell = Farewell::new(calls, outgoing.clone(), dialect);
    let (writer, answers) = Writer::start(writer, outgoing.clone(), CLOSE_TIMEOUT, tell, farewell);
    Started {
        writer,
        answers,
        outgoing,
        failed,
    }
}

impl Started {
    /// Has the task do what it can.
    async fn waits(&self) {
        for _ in 0..3 {
            yield_now().await;
        }
    }

    fn write(&self, id: RequestId) -> bool {
        self.writer.write_at_once(Lane::Ordinary, id, &json(id))
    }

    fn queue(&self, id: RequestId) {
        let request = Request {
            id,
            json: json(id).into(),
            turn: Turn::Ordinary,
        };
        let mut queue = self.outgoing.queue();
        queue.push(Lane::Ordinary, request).unwrap();
    }
}

fn json(id: RequestId) -> Vec<u8> {
    format!("request {id}").into_bytes()
}

/// What there is to read without waiting for any task.
fn arrived(peer: &mut DuplexStream) -> Vec<String> {
    let mut bytes = BytesMut::new();
    while let Some(read) = peer.read_buf(&mut bytes).now_or_never() {
        assert!(read.unwrap() > 0);
    }
    texts(&bytes)
}

/// What comes as the tasks have their turns, of the requests up to this one.
async fn comes(peer: &mut DuplexStream, last: RequestId) -> Vec<String> {
    let mut bytes = BytesMut::new();
    let coming = async {
        while !texts(&bytes).contains(&format!("request {last}")) {
            assert!(peer.read_buf(&mut bytes).await.unwrap() > 0);
        }
    };
    timeout(CLOSE_TIMEOUT, coming).await.unwrap();
    texts(&bytes)
}

/// The payloads of whole frames, all of which are short.
fn texts(mut bytes: &[u8]) -> Vec<String> {
    let mut texts = Vec::new();
    while let &[_, length, ref rest @ ..] = bytes
        && let Some((frame, after)) = rest.split_at_checked(4 + usize::from(length & 0x7F))
    {
        let (mask, payload) = frame.split_at(4);
        let unmasked = payload.iter().zip(mask.iter().cycle());
        let unmasked = unmasked.map(|(byte, mask)| byte ^ mask).collect();
        texts.push(String::from_utf8(unmasked).unwrap());
        bytes = after;
    }
    texts
}

#[actix::test]
async fn a_request_by_itself_is_written_before_any_task_has_its_turn() {
    let (socket, mut peer) = duplex(1000);
    let started = start(socket);
    for id in 1..=3 {
        assert!(started.write(id));
        assert_eq!(arrived(&mut peer), [format!("request {id}")]);
        assert_eq!(started.outgoing.queued_bytes(), 0);
    }
}

#[actix::test]
async fn what_waits_goes_first() {
    let (socket, mut peer) = duplex(1000);
    let started = start(socket);
    started.queue(1);
    assert!(!started.write(2));
    started.queue(2);
    assert_eq!(comes(&mut peer, 2).await, ["request 1", "request 2"]);

    // They were two at a time: who follows waits for others to come with it.
    assert!(!started.write(3));
    started.queue(3);
    assert_eq!(comes(&mut peer, 3).await, ["request 3"]);
    assert!(started.write(4), "by itself again");
    assert_eq!(arrived(&mut peer), ["request 4"]);

    started.answers.pong(Bytes::from_static(b"pong"));
    assert!(!started.write(5));
    started.queue(5);
    assert_eq!(comes(&mut peer, 5).await, ["pong", "request 5"]);
}

#[actix::test]
async fn two_who_call_together_are_written_together() {
    let (socket, mut peer) = duplex(1000);
    let started = start(socket);
    started.waits().await;
    // Nobody knows yet that there are two.
    assert!(started.write(1));
    started.queue(2);
    assert_eq!(comes(&mut peer, 2).await, ["request 1", "request 2"]);
    assert!(!started.write(3));
    started.queue(3);
    started.queue(4);
    started.waits().await;
    assert_eq!(arrived(&mut peer), ["request 3", "request 4"]);
}

/// Of a real socket, whose readiness is told to one waker.
#[actix::test]
async fn the_task_writes_what_a_real_socket_does_not_take_at_once() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (socket, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let started = start(socket.unwrap());
    started.waits().await;
    let large = vec![b'x'; 8 << 20];
    assert!(started.writer.write_at_once(Lane::Control, 1, &large));
    assert!(started.outgoing.queued_bytes() > 0);
    started.waits().await;
    let mut read = BytesMut::new();
    let (mut peer, _) = accepted.unwrap();
    let reading = async {
        while read.len() < 14 + large.len() {
            assert!(peer.read_buf(&mut read).await.unwrap() > 0);
        }
    };
    timeout(CLOSE_TIMEOUT, reading).await.unwrap();
    started.waits().await;
    assert_eq!(started.outgoing.queued_bytes(), 0);
}

#[actix::test]
async fn the_task_writes_what_the_socket_does_not_take_at_once() {
    let (socket, mut peer) = duplex(10);
    let started = start(socket);
    started.waits().await;
    assert!(started.write(1));
    assert!(started.outgoing.queued_bytes() > 0);
    assert!(!started.write(2), "behind what is being written");
    assert_eq!(comes(&mut peer, 1).await, ["request 1"]);

    started.answers.pong(Bytes::from_static(b"more than that"));
    started.waits().await;
    assert!(!started.write(2), "behind an answer");
    started.queue(2);
    assert_eq!(comes(&mut peer, 2).await, ["more than that", "request 2"]);
}

/// A socket that says once that nothing can be written to it.
struct Unwritable {
    panics: bool,
    has_said: bool,
}

impl AsyncRead for Unwritable {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Unwritable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[u8],
    ) -> Poll<io::Result<usize>> {
        if mem::replace(&mut self.has_said, true) {
            return Poll::Pending;
        }
        assert!(!self.panics, "cannot be written");
        Poll::Ready(Err(io::Error::other("cannot be written")))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[actix::test]
async fn p7_who_waits_is_told_why_nothing_can_be_written() {
    for (panics, problem) in [(false, "cannot be written"), (true, "it panicked")] {
        for at_once in [true, false] {
            let started = start(Unwritable {
                panics,
                has_said: false,
            });
            started.waits().await;
            if at_once {
                assert!(started.write(1), "it is not to be written again");
                assert!(!started.write(2));
            } else {
                started.queue(1);
            }
            let failed = timeout(CLOSE_TIMEOUT, started.failed).await;
            match failed.unwrap().unwrap() {
                DisconnectReason::WriteFailed(error) => assert_eq!(error.to_string(), problem),
                other => panic!("{other:?}"),
            }
        }
    }
}
