//! The process actor: one for each process, until it is forgotten and nobody of its group is left.
//!
//! | message | answer | sent by |
//! | --- | --- | --- |
//! | `Act` | the result, as JSON | the session, for each request about this process |
//! | `Consumed` | – | the session, as the client tells it |
//! | `Kill` | when the process has been reaped | the session, when it ends |
//! | `Written`, `StreamEnded`, `Exited`, `Forget` | – | the actor's own tasks and timers |

mod environment;
mod group;
mod log;
mod spawn;
mod stdin;

use std::{cell::RefCell, io, rc::Rc, time::Duration};

use actix::{
    Actor, ActorContext as _, Addr, AsyncContext as _, Context, Handler, Message, ResponseFuture,
    WeakAddr,
};
use bytes::Bytes;
use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout_at},
};

pub(super) use self::spawn::{Size, Start};
use self::{
    group::Group,
    log::{Log, Source},
    spawn::{Spawned, Terminal},
    stdin::{Input, Stdin, Write},
};
use super::{
    envelope::RpcError,
    fs::Files,
    outbox::Attachment,
    registry::Counted,
    session::{Forgotten, Session},
};
use crate::{
    protocol::base64,
    task::{self, Task},
};

/// A request about one process.
#[derive(Debug)]
pub(super) enum Action {
    Read {
        after_seq: u64,
        max_bytes: Option<u64>,
        wait: Duration,
    },
    Write {
        id: String,
        chunk: Bytes,
    },
    CloseStdin,
    Resize(Size),
    Signal(Signal),
    Terminate,
}

pub(super) struct Act(pub(super) Action);

impl Message for Act {
    type Result = Result<String, RpcError>;
}

/// The client has consumed all output up to this `seq`, or does not tell any more.
pub(super) struct Consumed(pub(super) Option<u64>);

impl Message for Consumed {
    type Result = ();
}

/// The session is over: nothing of the process may be left.
pub(super) struct Kill;

impl Message for Kill {
    type Result = ();
}

/// One input has been written, or nobody reads it.
struct Written;

impl Message for Written {
    type Result = ();
}

struct StreamEnded;

impl Message for StreamEnded {
    type Result = ();
}

struct Exited(i32);

impl Message for Exited {
    type Result = ();
}

/// Largest piece of output.
const CHUNK: usize = 8192;
/// How often it is looked whether anybody of a group is left.
const GROUP_CHECK: Duration = Duration::from_secs(1);

/// What the tasks that read the process share with its actor.
struct Shared {
    id: String,
    /// As it is written in notifications.
    json_id: String,
    log: RefCell<Log>,
    /// Something came, for those who wait to read it.
    changed: Notify,
    /// The client lets more come.
    room: Notify,
    attachment: Rc<Attachment>,
}

/// The actor of one process.
pub(super) struct Process {
    shared: Rc<Shared>,
    session: WeakAddr<Session>,
    group: Group,
    stdin: Stdin<Reply>,
    /// To the task that writes; `None` when nobody reads any more.
    input: Option<mpsc::UnboundedSender<Input>>,
    terminal: Option<Terminal>,
    streams: usize,
    reading: Vec<Task>,
    is_terminated: bool,
    forgotten_after: Duration,
    is_forgotten: bool,
    killed: Vec<oneshot::Sender<()>>,
    _counted: Counted,
}

/// Who waits for the answer to a write, and what it is.
struct Reply {
    sender: oneshot::Sender<Result<String, RpcError>>,
    status: &'static str,
}

impl Reply {
    fn new(status: &'static str) -> (Self, oneshot::Receiver<Result<String, RpcError>>) {
        let (sender, receiver) = oneshot::channel();
        (Reply { sender, status }, receiver)
    }

    fn send(self, status: &str) {
        // The client may have gone.
        let _gone = self.sender.send(Ok(status_json(status)));
    }

    fn accepted(self) {
        let status = self.status;
        self.send(status);
    }
}

pub(super) fn status_json(status: &str) -> String {
    format!(r#"{{"status":"{status}"}}"#)
}

/// What a process needs to know of its session.
pub(super) struct Surroundings {
    pub(super) session: Addr<Session>,
    pub(super) attachment: Rc<Attachment>,
    pub(super) forgotten_after: Duration,
    pub(super) counted: Counted,
}

impl Process {
    /// Starts the program and its actor.
    pub(super) fn launch(
        start: Start,
        files: &Files,
        surroundings: Surroundings,
    ) -> Result<Addr<Self>, RpcError> {
        let id = start.process_id.clone();
        let log = RefCell::new(Log::new(start.window()));
        let spawned = start.spawn(files)?;
        let Surroundings {
            session,
            attachment,
            forgotten_after,
            counted,
        } = surroundings;
        let shared = Rc::new(Shared {
            json_id: serde_json::Value::from(id.as_str()).to_string(),
            id,
            log,
            changed: Notify::new(),
            room: Notify::new(),
            attachment,
        });
        Ok(Process::create(|context| {
            context.set_mailbox_capacity(usize::MAX >> 4);
            let Spawned {
                group,
                exit,
                outputs,
                stdin,
                terminal,
            } = spawned;
            let own = context.address();
            let weak = own.downgrade();
            let streams = outputs.len();
            let reading = outputs
                .into_iter()
                .map(|(source, pipe)| Task::spawn(read(shared.clone(), source, pipe, weak.clone())))
                .collect();
            let is_open = stdin.is_some();
            let input = stdin.map(|pipe| {
                let (sender, inputs) = mpsc::unbounded_channel();
                task::spawn(write(pipe, inputs, weak.clone()));
                sender
            });
            // It holds the actor: until the process is reaped, somebody has to wait for it.
            task::spawn(async move {
                let exit_code = exit.await;
                own.do_send(Exited(exit_code));
            });
            Process {
                shared,
                session: session.downgrade(),
                group,
                stdin: Stdin::new(is_open),
                input,
                terminal,
                streams,
                reading,
                is_terminated: false,
                forgotten_after,
                is_forgotten: false,
                killed: Vec::new(),
                _counted: counted,
            }
        }))
    }

    fn send(&mut self, written: Write<Reply>) {
        match written {
            Write::Queued(input, reply) => {
                self.input(input);
                reply.accepted();
            }
            Write::Known(reply) => reply.accepted(),
            Write::Waits => {}
            Write::Closed(reply) => reply.send("stdinClosed"),
            Write::Full(reply) => {
                let message = format!("too many writes wait for process {}", self.shared.id);
                let _gone = reply.sender.send(Err(RpcError::invalid_request(message)));
            }
        }
    }

    /// Passes on what has its place. A process that has ended is written to in vain, and without waiting.
    fn input(&mut self, input: Input) {
        let unread = match &self.input {
            Some(writer) => writer.send(input).is_err(),
            None => true,
        };
        if unread {
            self.written();
        }
    }

    fn written(&mut self) {
        if let Some((input, reply)) = self.stdin.written() {
            reply.accepted();
            self.input(input);
        }
    }

    fn exited(&mut self, exit_code: i32, context: &mut Context<Self>) {
        self.group.leader_ended();
        for killed in self.killed.drain(..) {
            let _gone = killed.send(());
        }
        let seq = self.shared.log.borrow_mut().exited(exit_code);
        self.shared.changed.notify_waiters();
        let id = &self.shared.json_id;
        self.shared.attachment.notify(|| {
            format!(
                r#"{{"method":"process/exited","params":{{"processId":{id},"seq":{seq},"exitCode":{exit_code},"sandboxDenied":false}}}}"#
            )
        });
        if self.is_terminated {
            // What holds its streams open has left its group.
            self.reading.clear();
            self.streams = 0;
        }
        if self.terminal.is_some() {
            self.input = None;
        }
        self.look_for_end(context);
        if self.group.is_leaderless() {
            context.run_interval(GROUP_CHECK, |process, context| {
                process.group.look();
                process.stop_if_over(context);
            });
        }
    }

    fn look_for_end(&mut self, context: &mut Context<Self>) {
        let mut log = self.shared.log.borrow_mut();
        if !log.has_exited() || log.is_closed() || self.streams > 0 {
            return;
        }
        let seq = log.closed();
        drop(log);
        self.input = None;
        self.terminal = None;
        self.shared.changed.notify_waiters();
        let id = &self.shared.json_id;
        self.shared.attachment.notify(|| {
            format!(r#"{{"method":"process/closed","params":{{"processId":{id},"seq":{seq}}}}}"#)
        });
        context.run_later(self.forgotten_after, |process, context| {
            process.is_forgotten = true;
            if let Some(session) = process.session.upgrade() {
                session.do_send(Forgotten(process.shared.id.clone()));
            }
            process.stop_if_over(context);
        });
    }

    /// Nobody may be left in its group when its actor goes.
    fn stop_if_over(&mut self, context: &mut Context<Self>) {
        if self.is_forgotten && !self.group.is_leaderless() {
            context.stop();
        }
    }
}

/// Reads a stream to its end, as fast as the client lets it.
async fn read<R: AsyncRead + Unpin>(
    shared: Rc<Shared>,
    source: Source,
    mut pipe: R,
    process: WeakAddr<Process>,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        shared.may_read().await;
        // An error is an end like another: a terminal has no other.
        let Ok(length @ 1..) = pipe.read(&mut buffer).await else {
            break;
        };
        shared.output(source, &buffer[..length]);
    }
    if let Some(process) = process.upgrade() {
        process.do_send(StreamEnded);
    }
}

/// Writes what comes to the stdin of the process, until the end of it or of the process.
async fn write<W: AsyncWrite + Unpin>(
    mut pipe: W,
    mut inputs: mpsc::UnboundedReceiver<Input>,
    process: WeakAddr<Process>,
) {
    while let Some(Input::Chunk(chunk)) = inputs.recv().await {
        let written: io::Result<()> = async {
            pipe.write_all(&chunk).await?;
            pipe.flush().await
        }
        .await;
        let Some(process) = process.upgrade() else {
            return;
        };
        process.do_send(Written);
        if written.is_err() {
            // Nobody reads it any more. What is queued goes unread too.
            while inputs.recv().await.is_some() {
                process.do_send(Written);
            }
            return;
        }
    }
}

impl Shared {
    async fn may_read(&self) {
        loop {
            let room = self.room.notified();
            if self.log.borrow().has_room() {
                break;
            }
            room.await;
        }
        self.attachment.has_room().await;
    }

    fn output(&self, source: Source, bytes: &[u8]) {
        let seq = self
            .log
            .borrow_mut()
            .output(source, Bytes::copy_from_slice(bytes));
        self.changed.notify_waiters();
        self.attachment.notify(|| {
            let (id, name) = (&self.json_id, source.name());
            let mut json = Vec::with_capacity(bytes.len() / 3 * 4 + id.len() + 160);
            json.extend_from_slice(
                format!(
                    r#"{{"method":"process/output","params":{{"processId":{id},"seq":{seq},"stream":"{name}","chunk":"#
                )
                .as_bytes(),
            );
            base64::append_json(bytes, &mut json);
            json.extend_from_slice(b"}}");
            String::from_utf8(json).expect("the id is UTF-8, and base64 ASCII")
        });
    }

    /// Answers a read when there is something to tell, or its time is up.
    async fn answer(
        self: Rc<Self>,
        after_seq: u64,
        max_bytes: Option<u64>,
        until: Option<Instant>,
    ) -> String {
        loop {
            let changed = self.changed.notified();
            if self.log.borrow().is_news(after_seq) {
                break;
            }
            match until {
                Some(until) if timeout_at(until, changed).await.is_ok() => {}
                _ => break,
            }
        }
        self.log.borrow().read(after_seq, max_bytes)
    }
}

impl Actor for Process {
    type Context = Context<Self>;
}

impl Handler<Act> for Process {
    type Result = ResponseFuture<Result<String, RpcError>>;

    fn handle(&mut self, Act(action): Act, _: &mut Self::Context) -> Self::Result {
        let now = |result| -> Self::Result { Box::pin(async move { result }) };
        let done = || Ok("{}".to_owned());
        let is_running = !self.shared.log.borrow().has_exited();
        match action {
            Action::Read {
                after_seq,
                max_bytes,
                wait,
            } => {
                let until = (!wait.is_zero())
                    .then(|| Instant::now().checked_add(wait))
                    .flatten();
                let answer = self.shared.clone().answer(after_seq, max_bytes, until);
                Box::pin(async move { Ok(answer.await) })
            }
            Action::Write { id, chunk } => {
                let (reply, answer) = Reply::new("accepted");
                let written = self.stdin.write(id, chunk, reply);
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
                    self.group.signal(signal);
                }
                now(done())
            }
            Action::Terminate => {
                if is_running {
                    self.is_terminated = true;
                    self.group.signal(Signal::KILL);
                }
                now(Ok(format!(r#"{{"running":{is_running}}}"#)))
            }
        }
    }
}

/// The answer to a write, as soon as it has its place.
fn later(
    answer: oneshot::Receiver<Result<String, RpcError>>,
) -> ResponseFuture<Result<String, RpcError>> {
    Box::pin(async move {
        answer
            .await
            // The process is gone, with its queue.
            .unwrap_or_else(|_| Ok(status_json("unknownProcess")))
    })
}

impl Handler<Consumed> for Process {
    type Result = ();

    fn handle(&mut self, Consumed(seq): Consumed, _: &mut Self::Context) {
        if self.shared.log.borrow_mut().consume(seq) {
            self.shared.room.notify_waiters();
        }
    }
}

impl Handler<Kill> for Process {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Kill, context: &mut Self::Context) -> Self::Result {
        self.group.signal(Signal::KILL);
        self.is_terminated = true;
        self.is_forgotten = true;
        if self.shared.log.borrow().has_exited() {
            // What is left of its group has been killed, or is when the actor is dropped.
            context.stop();
            return Box::pin(async {});
        }
        let (sender, killed) = oneshot::channel();
        self.killed.push(sender);
        Box::pin(async move {
            // Dropped with the actor, which ends its group.
            let _gone = killed.await;
        })
    }
}

impl Handler<Written> for Process {
    type Result = ();

    fn handle(&mut self, _: Written, _: &mut Self::Context) {
        self.written();
    }
}

impl Handler<StreamEnded> for Process {
    type Result = ();

    fn handle(&mut self, _: StreamEnded, context: &mut Self::Context) {
        self.streams = self.streams.saturating_sub(1);
        self.look_for_end(context);
    }
}

impl Handler<Exited> for Process {
    type Result = ();

    fn handle(&mut self, Exited(exit_code): Exited, context: &mut Self::Context) {
        let is_over = self.is_forgotten;
        self.exited(exit_code, context);
        if is_over {
            context.stop();
        }
    }
}
