//! What waits to be written, and what writes it: a task, or for a request by itself who makes it.

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::VecDeque,
    future::poll_fn,
    mem,
    panic::{self, AssertUnwindSafe},
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    select,
    sync::{Notify, oneshot},
    time::{Instant, sleep, sleep_until},
};

use super::{
    farewell::{Farewell, Unfinished},
    pending::RequestId,
    queue::Queue,
    socket::{self, MessageWriter},
};
use crate::{
    error::DisconnectReason,
    protocol::{Lane, ProcessId, encode_consumed},
    task,
};

/// Gathered and written at once, as far as there is so much.
const WRITE_SIZE: usize = 64 << 10;

/// Answers to what the peer asks: pongs and refusals. They overtake requests, and beyond this count
/// they are dropped, for a peer that asks without reading is not owed any.
const MAX_ANSWERS: usize = 64;

#[derive(Debug)]
enum Frame {
    Text(Bytes),
    Ping,
    Pong(Bytes),
}

/// The requests of one connection that wait for a link, and outlive it.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: RefCell<Queue>,
    changed: Notify,
}

impl Outgoing {
    pub(crate) fn new(queue: Queue) -> Self {
        Outgoing(Rc::new(Shared {
            queue: RefCell::new(queue),
            changed: Notify::new(),
        }))
    }

    /// The queue. What is added to it is written when the caller returns to its task.
    pub(crate) fn queue(&self) -> RefMut<'_, Queue> {
        self.write_soon();
        self.queue_quietly()
    }

    /// The queue, for those who see to it that what they add to it is written.
    pub(crate) fn queue_quietly(&self) -> RefMut<'_, Queue> {
        self.0.queue.borrow_mut()
    }

    /// Has what waits written when the caller returns to its task.
    pub(crate) fn write_soon(&self) {
        self.0.changed.notify_one();
    }

    /// Notes that a request is answered.
    pub(crate) fn answered(&self, id: RequestId) {
        if self.queue_quietly().answered(id) {
            self.write_soon();
        }
    }

    /// Forgets a process that has ended.
    pub(crate) fn forget(&self, process_id: &ProcessId) {
        self.queue_quietly().forget(process_id);
    }

    /// Bytes of requests that are not written yet.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.0.queue.borrow().bytes()
    }
}

/// What writes to one link. When it is dropped, what is queued is still written, and then the socket is
/// closed.
#[derive(Debug)]
pub(crate) struct Writer {
    outgoing: Outgoing,
    answers: Rc<RefCell<VecDeque<Frame>>>,
    is_finishing: Rc<Cell<bool>>,
    /// The task's.
    writing: Weak<RefCell<Writing>>,
    /// Tells the task until when it may write what is queued; dropped with this, that it may for as long
    /// as a close may take.
    stop: Option<oneshot::Sender<Instant>>,
}

impl Writer {
    /// Starts the task that writes what is `outgoing` to `writer`. When writing fails, `failed` is told
    /// why.
    pub(crate) fn start(
        writer: MessageWriter,
        outgoing: Outgoing,
        close_timeout: Duration,
        failed: oneshot::Sender<DisconnectReason>,
        farewell: Rc<Farewell>,
    ) -> (Self, Answers) {
        let (stop, stopped) = oneshot::channel();
        let answers = Rc::new(RefCell::new(VecDeque::new()));
        let is_finishing = Rc::new(Cell::new(false));
        let writing = Writing {
            writer,
            outgoing: outgoing.clone(),
            answers: answers.clone(),
            gathered: 0,
            is_first_apart: false,
            failed: None,
            is_over: false,
        };
        let writing = Rc::new(RefCell::new(writing));
        let for_writer = Rc::downgrade(&writing);
        let unfinished = Unfinished::new(writing.clone(), farewell);
        let run = run(writing, outgoing.clone(), is_finishing.clone());
        // Ends when the handle is dropped: after what is queued is written, or after the timeout.
        task::spawn(async move {
            let overdue = async {
                match stopped.await {
                    // At once, if that is meant: a timer would take its time.
                    Ok(until) if until <= Instant::now() => {}
                    Ok(until) => sleep_until(until).await,
                    Err(_) => sleep(close_timeout).await,
                }
            };
            select! {
                biased;
                () = overdue => {}
                written = run => if let Err(reason) = written {
                    // If nobody listens, the connection has ended for another reason.
                    let _unheard = failed.send(reason);
                },
            }
            unfinished.finish();
        });
        let for_answers = Answers {
            outgoing: outgoing.clone(),
            answers: answers.clone(),
        };
        let writer = Writer {
            outgoing,
            answers,
            is_finishing,
            writing: for_writer,
            stop: Some(stop),
        };
        (writer, for_answers)
    }

    /// Writes a request in the caller's turn, if nothing else is to be written, and the last write was of one message
    /// too: those who call together would have a write for the first, and then one for the others. Where it returns
    /// `false`, the request is one to queue.
    ///
    /// It spares the way through the queue, and the task its turn. Only where the socket does not take all, it is the
    /// task that goes on.
    pub(crate) fn write_at_once(&self, lane: Lane<'_>, id: RequestId, json: &[u8]) -> bool {
        let Some(writing) = self.writing.upgrade() else {
            return false;
        };
        let mut writing = writing.borrow_mut();
        if writing.gathered > 1
            || !writing.writer.buffer.is_empty()
            || !self.answers.borrow().is_empty()
            || !self.outgoing.queue_quietly().pass(lane, id, json.len())
        {
            return false;
        }
        let MessageWriter {
            encoder, buffer, ..
        } = &mut writing.writer;
        encoder.text(json, buffer);
        writing.is_first_apart = true;
        match writing.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(reason)) => {
                writing.failed = Some(reason);
                self.outgoing.write_soon();
            }
            Poll::Pending => self.outgoing.write_soon(),
        }
        true
    }

    /// Writes nothing more. What is queued stays: either for the next link, or its callers are told
    /// that the connection is gone, so that it must not be carried out after that.
    pub(crate) fn discard(self) {
        if let Some(writing) = self.writing.upgrade() {
            writing.borrow_mut().is_over = true;
        }
        self.finish(Instant::now());
    }

    /// Writes what is queued, until this time, and closes the socket.
    pub(crate) fn finish(mut self, until: Instant) {
        if let Some(stop) = self.stop.take() {
            // The task may have ended.
            let _ended = stop.send(until);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.is_finishing.set(true);
        self.answers.borrow_mut().clear();
        self.outgoing.write_soon();
    }
}

/// For answers to what the peer asks, and for asking it for a sign of life.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    outgoing: Outgoing,
    answers: Rc<RefCell<VecDeque<Frame>>>,
}

impl Answers {
    pub(crate) fn ping(&self) {
        self.push(Frame::Ping);
    }

    /// Whether what is being written has gone on since then, and has not come to its end.
    pub(crate) fn is_flowing(&self, since: Instant) -> bool {
        self.outgoing.queue_quietly().is_flowing(since)
    }

    pub(crate) fn pong(&self, payload: Bytes) {
        self.push(Frame::Pong(payload));
    }

    pub(crate) fn text(&self, json: Vec<u8>) {
        self.push(Frame::Text(json.into()));
    }

    fn push(&self, frame: Frame) {
        let mut answers = self.answers.borrow_mut();
        if answers.len() < MAX_ANSWERS {
            answers.push_back(frame);
            self.outgoing.write_soon();
        }
    }
}

/// What is being written to one link.
pub(super) struct Writing {
    writer: MessageWriter,
    outgoing: Outgoing,
    answers: Rc<RefCell<VecDeque<Frame>>>,
    /// How many messages the last write was of, and if one was written at once before it, with that.
    gathered: usize,
    /// Whether the last message was written at once.
    is_first_apart: bool,
    /// Why a write failed that was not the task's.
    failed: Option<DisconnectReason>,
    /// Nothing may be written any more: the link is given up, or the goodbye is said.
    pub(super) is_over: bool,
}

/// Writes what is queued, as it comes, until that is to be the end.
async fn run(
    writing: Rc<RefCell<Writing>>,
    outgoing: Outgoing,
    is_finishing: Rc<Cell<bool>>,
) -> Result<(), DisconnectReason> {
    loop {
        poll_fn(|context| writing.borrow_mut().poll(context)).await?;
        // A write that waits for another goes when that is answered.
        if is_finishing.get() && outgoing.queued_bytes() == 0 {
            break;
        }
        outgoing.0.changed.notified().await;
    }
    writing.borrow_mut().gather_close();
    poll_fn(|context| guard(|| writing.borrow_mut().writer.poll_close(context))).await
}

/// The socket may be the application's: if it panics, it is as if it had failed.
fn guard(
    write: impl FnOnce() -> Poll<Result<(), DisconnectReason>>,
) -> Poll<Result<(), DisconnectReason>> {
    panic::catch_unwind(AssertUnwindSafe(write)).unwrap_or_else(|_| {
        let error = Arc::new(socket::panicked());
        Poll::Ready(Err(DisconnectReason::WriteFailed(error)))
    })
}

impl Writing {
    /// Writes all that is queued.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), DisconnectReason>> {
        guard(|| self.poll_write(context))
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), DisconnectReason>> {
        if let Some(reason) = self.failed.take() {
            return Poll::Ready(Err(reason));
        }
        loop {
            if self.writer.buffer.is_empty() {
                match self.fill() {
                    0 => return Poll::Ready(Ok(())),
                    gathered => {
                        self.gathered = gathered + usize::from(mem::take(&mut self.is_first_apart));
                    }
                }
            }
            let queue = &self.outgoing.0.queue;
            let flows = || queue.borrow_mut().flows(Instant::now());
            ready!(self.writer.poll_flush(context, flows))?;
            queue.borrow_mut().flushed(Instant::now());
        }
    }

    /// Gathers what is to be written next, and returns how many messages that are.
    fn fill(&mut self) -> usize {
        let mut gathered = 0;
        while self.writer.buffer.len() < WRITE_SIZE {
            let answer = self.answers.borrow_mut().pop_front();
            if let Some(answer) = answer {
                self.gather(answer);
                gathered += 1;
                continue;
            }
            let consumed = self.outgoing.0.queue.borrow_mut().next_consumed();
            if let Some((process_id, seq)) = consumed {
                self.gather(Frame::Text(encode_consumed(&process_id, seq).into()));
                gathered += 1;
                continue;
            }
            let request = self.outgoing.0.queue.borrow_mut().next();
            let Some(request) = request else {
                break;
            };
            self.gather(Frame::Text(request.json));
            gathered += 1;
        }
        gathered
    }

    fn gather_close(&mut self) {
        self.is_over = true;
        self.writer.gather_close();
    }

    /// Writes as much of what is queued as the socket takes now, and returns whether that was all. For a runtime that has
    /// ended: nobody is woken when the socket takes more. A frame that was begun is finished first.
    pub(super) fn write_last(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        !self.is_over && matches!(self.poll(&mut context), Poll::Ready(Ok(())))
    }

    /// Says goodbye, as far as the socket takes it, if all that was written before has gone out.
    pub(super) fn close_last(&mut self) {
        if self.is_over || !self.writer.buffer.is_empty() {
            return;
        }
        self.gather_close();
        let mut context = Context::from_waker(Waker::noop());
        // There is nobody left to tell how that went.
        let _unheard = guard(|| self.writer.poll_close(&mut context));
    }

    fn gather(&mut self, frame: Frame) {
        let MessageWriter {
            encoder, buffer, ..
        } = &mut self.writer;
        match frame {
            Frame::Text(json) => encoder.text(&json, buffer),
            Frame::Ping => encoder.ping(buffer),
            Frame::Pong(payload) => encoder.pong(&payload, buffer),
        }
    }
}

#[cfg(test)]
mod tests;
