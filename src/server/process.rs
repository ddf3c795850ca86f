//! The process actor: one for each process, until it is forgotten and nobody of its family is left.
//!
//! | message | answer | sent by |
//! | --- | --- | --- |
//! | `Act` | the result, as JSON | the session, for each request about this process |
//! | `Consumed` | – | the session, as the client tells it |
//! | `DropOutput` | – | the registry, where too much is retained |
//! | `Kill` | when the process has been reaped, and nobody of its family is left | the session, when it ends |
//! | `Written`, `StreamEnded`, `Exited`, `Forget` | – | the actor's own tasks and timers |

mod environment;
mod log;
mod output;
mod requests;
mod spawn;
mod stdin;
mod streams;

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext as _, Addr, AsyncContext as _, Context, Handler, Message, ResponseFuture,
    WeakAddr,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::timeout,
};

use self::{
    log::Log,
    output::Shared,
    requests::Reply,
    spawn::{Spawned, Terminal},
    stdin::{Input, Stdin, Write},
};
pub(super) use self::{
    requests::{Act, Action, status_json},
    spawn::{Size, Start},
};
use super::{
    envelope::RpcError,
    leftovers::Family,
    outbox::Attachment,
    registry::{Counted, Registry},
    session::{Forgotten, Session},
};
use crate::task::{self, Task};

/// The client has consumed all output up to this `seq`.
pub(super) struct Consumed(pub(super) u64);

impl Message for Consumed {
    type Result = ();
}

/// The process has ended, and its output takes room that the server needs for that of others.
pub(super) struct DropOutput;

impl Message for DropOutput {
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

/// How often a process that is forgotten asks whether anybody of its family is left.
const FAMILY_CHECK: Duration = Duration::from_secs(1);
/// How long the end of a process that is killed is waited for.
const REAPING: Duration = Duration::from_secs(5);

/// The actor of one process.
pub(super) struct Process {
    shared: Rc<Shared>,
    registry: Arc<Registry>,
    session: WeakAddr<Session>,
    session_number: u64,
    family: Family,
    stdin: Stdin<Reply>,
    /// To the task that writes; `None` when nobody reads any more.
    input: Option<mpsc::UnboundedSender<Input>>,
    terminal: Option<Terminal>,
    streams: usize,
    reading: Vec<Task>,
    is_terminated: bool,
    is_forgotten: bool,
    killed: Vec<oneshot::Sender<()>>,
    _counted: Counted,
}

/// What a process needs to know of its session.
pub(super) struct Surroundings {
    pub(super) registry: Arc<Registry>,
    pub(super) session: Addr<Session>,
    pub(super) session_number: u64,
    pub(super) attachment: Rc<Attachment>,
    pub(super) counted: Counted,
}

impl Process {
    /// Starts the program and its actor.
    pub(super) fn launch(start: Start, surroundings: Surroundings) -> Result<Addr<Self>, RpcError> {
        let id = start.process_id.clone();
        let log = RefCell::new(Log::new(start.window()));
        let Surroundings {
            registry,
            session,
            session_number,
            attachment,
            counted,
        } = surroundings;
        let spawned = start.spawn(&registry.files, &registry.leftovers)?;
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
                family,
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
                .map(|(source, pipe)| {
                    Task::spawn(streams::read(shared.clone(), source, pipe, weak.clone()))
                })
                .collect();
            let queue = Stdin::new(stdin.is_some(), registry.limits.max_stdin_bytes);
            let input = stdin.map(|pipe| {
                let (sender, inputs) = mpsc::unbounded_channel();
                task::spawn(streams::write(pipe, inputs, weak.clone()));
                sender
            });
            // It holds the actor: until the process is reaped, somebody has to wait for it.
            task::spawn(async move {
                let exit_code = exit.await;
                own.do_send(Exited(exit_code));
            });
            Process {
                shared,
                registry,
                session: session.downgrade(),
                session_number,
                family,
                stdin: queue,
                input,
                terminal,
                streams,
                reading,
                is_terminated: false,
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
                let message = format!(
                    "process {} does not read its stdin: as much waits for it as may, {} bytes",
                    self.shared.id, self.registry.limits.max_stdin_bytes
                );
                let _gone = reply.sender.send(Err(RpcError::overloaded(message)));
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
        for (input, reply) in self.stdin.written() {
            reply.accepted();
            self.input(input);
        }
    }

    fn exited(&mut self, exit_code: i32, context: &mut Context<Self>) {
        self.family.leader_ended();
        for killed in self.killed.drain(..) {
            let _gone = killed.send(());
        }
        let session = self.session_number;
        (self.registry.journal).process_exits(session, &self.shared.id, exit_code);
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
    }

    fn look_for_end(&mut self, context: &mut Context<Self>) {
        let mut log = self.shared.log.borrow_mut();
        if !log.has_exited() || log.is_closed() || self.streams > 0 {
            return;
        }
        let seq = log.closed();
        let retained = log.retained();
        drop(log);
        self.registry.retain(context.address(), retained);
        self.input = None;
        self.terminal = None;
        self.shared.changed.notify_waiters();
        let id = &self.shared.json_id;
        self.shared.attachment.notify(|| {
            format!(r#"{{"method":"process/closed","params":{{"processId":{id},"seq":{seq}}}}}"#)
        });
        context.run_later(self.registry.forgotten_after, |process, context| {
            process.is_forgotten = true;
            if let Some(session) = process.session.upgrade() {
                session.do_send(Forgotten(process.shared.id.clone()));
            }
            process.stop_if_over(context);
        });
    }

    /// Stops the actor of a process that is forgotten, as soon as nobody of its family is left.
    fn stop_if_over(&mut self, context: &mut Context<Self>) {
        if self.family.is_leaderless() {
            context.run_later(FAMILY_CHECK, Process::stop_if_over);
        } else {
            context.stop();
        }
    }
}

impl Actor for Process {
    type Context = Context<Self>;

    fn stopped(&mut self, context: &mut Self::Context) {
        self.registry.release(&context.address());
    }
}

impl Handler<DropOutput> for Process {
    type Result = ();

    fn handle(&mut self, _: DropOutput, _: &mut Self::Context) {
        self.shared.log.borrow_mut().drop_output();
    }
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
        let ended = self.family.end();
        self.is_terminated = true;
        self.is_forgotten = true;
        if self.shared.log.borrow().has_exited() {
            context.stop();
            return Box::pin(ended);
        }
        let (sender, killed) = oneshot::channel();
        self.killed.push(sender);
        Box::pin(async move {
            ended.await;
            // Not answered if the actor is gone, nor in time if the process hangs in the system.
            let _gone = timeout(REAPING, killed).await;
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
