//! What waits to be written, and the task that writes it.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::{
    select,
    sync::{
        mpsc::{self, UnboundedReceiver, UnboundedSender, WeakUnboundedSender},
        oneshot,
    },
    time::sleep,
};

use super::socket::MessageWriter;
use crate::error::DisconnectReason;

/// Gathered and written at once, as far as there is so much.
const WRITE_SIZE: usize = 64 << 10;

/// Answers to what the peer asks: pongs and refusals. They overtake requests, and beyond this count
/// they are dropped, for a peer that asks without reading is not owed any.
const MAX_ANSWERS: usize = 64;

enum Frame {
    Text(Vec<u8>),
    Ping,
    Pong(Bytes),
}

/// The queue of one connection. Its channels have no bound of their own: requests are bounded by
/// bytes, answers by count, both here. When it is dropped, the writer writes what is queued and then
/// closes the socket.
#[derive(Debug)]
pub(crate) struct Outgoing {
    requests: UnboundedSender<Frame>,
    queued: Rc<Queued>,
    max_bytes: usize,
    /// Keeps the channel open that [`Answers`] hold weakly.
    _answers: UnboundedSender<Frame>,
    /// Tells the writer to stop; dropped with this, that its time is limited.
    stop: oneshot::Sender<()>,
}

/// For answers; does not keep the queue open.
#[derive(Debug)]
pub(crate) struct Answers {
    answers: WeakUnboundedSender<Frame>,
    queued: Rc<Queued>,
}

#[derive(Debug, Default)]
struct Queued {
    bytes: Cell<usize>,
    answers: Cell<usize>,
}

impl Outgoing {
    /// Starts the task that writes to `writer`. When writing fails, `failed` is told why.
    pub(crate) fn start(
        writer: MessageWriter,
        max_bytes: usize,
        close_timeout: Duration,
        failed: oneshot::Sender<DisconnectReason>,
    ) -> (Self, Answers) {
        let (requests, queued_requests) = mpsc::unbounded_channel();
        let (answers, queued_answers) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let queued = Rc::new(Queued::default());
        let writing = Writing {
            writer,
            requests: queued_requests,
            answers: queued_answers,
            queued: queued.clone(),
        };
        // Ends when the queue is dropped: after what is queued is written, or after the timeout.
        actix_rt::spawn(async move {
            let overdue = async {
                if stopped.await.is_err() {
                    sleep(close_timeout).await;
                }
            };
            select! {
                biased;
                () = overdue => {}
                written = writing.run() => if let Err(reason) = written {
                    // If nobody listens, the connection has ended for another reason.
                    let _unheard = failed.send(reason);
                },
            }
        });
        let for_answers = Answers {
            answers: answers.downgrade(),
            queued: queued.clone(),
        };
        let outgoing = Outgoing {
            requests,
            queued,
            max_bytes,
            _answers: answers,
            stop,
        };
        (outgoing, for_answers)
    }

    /// Queues a request, unless that exceeds the bound. One request always fits.
    pub(crate) fn request(&self, json: Vec<u8>) -> Result<(), QueueFull> {
        let queued_bytes = self.queued.bytes.get();
        if queued_bytes > 0 && queued_bytes + json.len() > self.max_bytes {
            return Err(QueueFull { queued_bytes });
        }
        self.queued.bytes.set(queued_bytes + json.len());
        // The writer is gone only after an error, and then the reader is about to end all calls.
        let _ended = self.requests.send(Frame::Text(json));
        Ok(())
    }

    /// Forgets what is queued. Its callers are told that the connection is gone, so that it must not
    /// be carried out after that.
    pub(crate) fn discard(self) {
        // The writer may have ended.
        let _ended = self.stop.send(());
    }

    /// Bytes of requests that are not written yet.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued.bytes.get()
    }
}

/// The bound of the queue is reached.
#[derive(Debug)]
pub(crate) struct QueueFull {
    pub(crate) queued_bytes: usize,
}

impl Answers {
    pub(crate) fn ping(&self) {
        self.push(Frame::Ping);
    }

    pub(crate) fn pong(&self, payload: Bytes) {
        self.push(Frame::Pong(payload));
    }

    pub(crate) fn text(&self, json: Vec<u8>) {
        self.push(Frame::Text(json));
    }

    fn push(&self, frame: Frame) {
        let count = self.queued.answers.get();
        if count < MAX_ANSWERS
            && let Some(answers) = self.answers.upgrade()
            && answers.send(frame).is_ok()
        {
            self.queued.answers.set(count + 1);
        }
    }
}

struct Writing {
    writer: MessageWriter,
    requests: UnboundedReceiver<Frame>,
    answers: UnboundedReceiver<Frame>,
    queued: Rc<Queued>,
}

impl Writing {
    async fn run(mut self) -> Result<(), DisconnectReason> {
        loop {
            let mut bytes = 0;
            let mut answers = 0;
            select! {
                biased;
                Some(answer) = self.answers.recv() => {
                    answers += 1;
                    self.gather(answer);
                }
                Some(request) = self.requests.recv() => bytes += self.gather(request),
                else => return self.writer.close().await,
            }
            while self.writer.buffer.len() < WRITE_SIZE {
                if let Ok(answer) = self.answers.try_recv() {
                    answers += 1;
                    self.gather(answer);
                } else if let Ok(request) = self.requests.try_recv() {
                    bytes += self.gather(request);
                } else {
                    break;
                }
            }
            self.writer.flush().await?;
            self.queued.bytes.update(|queued| queued - bytes);
            self.queued.answers.update(|queued| queued - answers);
        }
    }

    /// Encodes a frame and returns the bytes of its text.
    fn gather(&mut self, frame: Frame) -> usize {
        let MessageWriter {
            encoder, buffer, ..
        } = &mut self.writer;
        match frame {
            Frame::Text(json) => {
                encoder.text(&json, buffer);
                json.len()
            }
            Frame::Ping => {
                encoder.ping(buffer);
                0
            }
            Frame::Pong(payload) => {
                encoder.pong(&payload, buffer);
                0
            }
        }
    }
}
