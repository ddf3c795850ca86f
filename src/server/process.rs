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
mod output;
mod requests;
mod spawn;
mod stdin;
mod streams;

use std::{cell::RefCell, rc::Rc, time::Duration};

use actix::{
    Actor, ActorContext as _, Addr, AsyncContext as _, Context, Handler, Message, ResponseFuture,
    WeakAddr,
};
use rustix::process::Signal;
use tokio::sync::{Notify, mpsc, oneshot};

use self::{
    group::Group,
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
    fs::Files,
    outbox::Attachment,
    registry::Counted,
    session::{Forgotten, Session},
};
use crate::task::{self, Task};

/// The client has consumed all output up to this `seq`.
pub(super) struct Consumed(pub(super) u64);

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

/// How often it is looked whether anybody of a group is left.
const GROUP_CHECK: Duration = Duration::from_secs(1);

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
                .map(|(source, pipe)| {
                    Task::spawn(streams::read(shared.clone(), source, pipe, weak.clone()))
                })
                .collect();
            let is_open = stdin.is_some();
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

impl Actor for Process {
    type Context = Context<Self>;
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
