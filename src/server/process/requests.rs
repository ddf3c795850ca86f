//! The requests about one process, and their answers.

use std::{sync::Arc, time::Duration};

use actix::{Handler, Message, ResponseFuture};
use bytes::Bytes;
use rustix::process::Signal;
use tokio::{sync::oneshot, time::Instant};

use super::{Process, spawn::Size};
use crate::server::{
    envelope::RpcError,
    outbox::{Answer, Outbox},
};

/// A request about one process.
#[derive(Debug)]
pub(in crate::server) enum Action {
    Read {
        after_seq: u64,
        max_bytes: Option<u64>,
        wait: Duration,
        /// The connection that asks.
        asking: Arc<Outbox>,
    },
    Write {
        id: String,
        chunk: Bytes,
    },
    CloseStdin,
    Resize(Size),
    Signal(Signal),
    /// It is not held back any more.
    ReleaseOutput,
    Terminate,
}

pub(in crate::server) struct Act(pub(in crate::server) Action);

impl Message for Act {
    type Result = Result<Answer, RpcError>;
}

/// Who waits for the answer to a write, and what it is.
pub(super) struct Reply {
    pub(super) sender: oneshot::Sender<Result<String, RpcError>>,
    status: &'static str,
}

impl Reply {
    fn new(status: &'static str) -> (Self, oneshot::Receiver<Result<String, RpcError>>) {
        let (sender, receiver) = oneshot::channel();
        (Reply { sender, status }, receiver)
    }

    pub(super) fn send(self, status: &str) {
        // The client may have gone.
        let _gone = self.sender.send(Ok(status_json(status)));
    }

    pub(super) fn accepted(self) {
        let status = self.status;
        self.send(status);
    }
}

pub(in crate::server) fn status_json(status: &str) -> String {
    format!(r#"{{"status":"{status}"}}"#)
}

impl Handler<Act> for Process {
    type Result = ResponseFuture<Result<Answer, RpcError>>;

    fn handle(&mut self, Act(action): Act, _: &mut Self::Context) -> Self::Result {
        let now = |result: Result<String, RpcError>| -> Self::Result {
            Box::pin(async move { result.map(Answer::from) })
        };
        let done = || Ok("{}".to_owned());
        let is_running = !self.shared.log.borrow().has_exited();
        match action {
            Action::Read {
                after_seq,
                max_bytes,
                wait,
                asking,
            } => {
                let until = (!wait.is_zero())
                    .then(|| Instant::now().checked_add(wait))
                    .flatten();
                let shared = self.shared.clone();
                Box::pin(shared.answer(after_seq, max_bytes, until, asking))
            }
            Action::Write { id, chunk } => {
                let held = match self.registry.memory.hold(chunk.len()) {
                    Ok(held) => Some(held),
                    Err(over) => return now(Err(over.into())),
                };
                let (reply, answer) = Reply::new("accepted");
                let written = self.stdin.write(id, chunk, held, reply);
                self.send(written);
                later(answer)
            }
            Action::CloseStdin if self.terminal.is_some() => now(Err(RpcError::invalid_request(
                format!("process {} has a terminal: write \\x04", self.shared.id),
            ))),
            Action::CloseStdin => {
                let (reply, answer) = Reply::new("closed");
                let was_piped = self.input.is_some();
                match self.stdin.is_open() {
                    true => {
                        let closed = self.stdin.close(reply);
                        self.send(closed);
                    }
                    false if was_piped => reply.accepted(),
                    false => reply.send("stdinClosed"),
                }
                later(answer)
            }
            Action::Resize(size) => match &self.terminal {
                Some(terminal) => now(terminal
                    .resize(size)
                    .map(|()| "{}".to_owned())
                    .map_err(|error| RpcError::internal(error.to_string()))),
                None if !is_running => now(done()),
                None => now(Err(RpcError::invalid_request(format!(
                    "process {} has no terminal",
                    self.shared.id
                )))),
            },
            Action::Signal(signal) => {
                if is_running {
                    self.family.signal(signal);
                }
                now(done())
            }
            Action::ReleaseOutput => {
                if self.shared.log.borrow_mut().release() {
                    self.shared.room.notify_waiters();
                }
                now(done())
            }
            Action::Terminate => {
                if is_running {
                    self.is_terminated = true;
                }
                // Also where only others of the family are left. Nobody waits for it here.
                drop(self.family.end());
                now(Ok(format!(r#"{{"running":{is_running}}}"#)))
            }
        }
    }
}

/// The answer to a write, as soon as it has its place.
fn later(
    answer: oneshot::Receiver<Result<String, RpcError>>,
) -> ResponseFuture<Result<Answer, RpcError>> {
    Box::pin(async move {
        let answer = answer.await;
        // The process is gone, with its queue.
        let answer = answer.unwrap_or_else(|_| Ok(status_json("unknownProcess")));
        answer.map(Answer::from)
    })
}
