//! The session actor: one for each client, with its processes. It outlives its connections by a window in
//! which the client may come back.
//!
//! | message | answer | sent by |
//! | --- | --- | --- |
//! | `Attach` | the connection that has it, if one does | a connection that resumes it |
//! | `Detach` | – | a connection that ends |
//! | `ProcessRequest` | the result, as JSON | its connection |
//! | `ProcessConsumed` | – | its connection |
//! | `Stop` | when all its processes have been reaped | the server |
//! | `Forgotten` | – | a process that has ended long ago |

use std::{collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext as _, Addr, AsyncContext as _, Context, Handler, Message, MessageResult,
    ResponseFuture, SpawnHandle,
};
use bytes::Bytes;
use rustix::process::Signal;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::value::RawValue;

use super::{
    envelope::{RpcError, decode_params as decode},
    outbox::{Answer, Attachment, Outbox},
    process::{Act, Action, Consumed, Kill, Process, Size, Start, Surroundings, status_json},
    registry::{Counted, Registry},
};
use crate::protocol::base64;

/// A connection is there for the session.
pub(super) struct Attach {
    pub(super) outbox: Arc<Outbox>,
    /// The connection that it may displace: its client gave no sign of life.
    pub(super) instead_of: Option<Arc<Outbox>>,
    /// The address of its client.
    pub(super) peer: String,
}

impl Message for Attach {
    /// Another connection has the session, and keeps it for now.
    type Result = Result<(), Arc<Outbox>>;
}

/// The connection is gone.
pub(super) struct Detach(pub(super) Arc<Outbox>);

impl Message for Detach {
    type Result = ();
}

/// A request whose method begins with `process/`.
pub(super) struct ProcessRequest {
    pub(super) method: String,
    pub(super) params: Box<RawValue>,
    /// The connection that asks.
    pub(super) asking: Arc<Outbox>,
}

impl Message for ProcessRequest {
    type Result = Result<Answer, RpcError>;
}

/// The notification `process/consumed`.
pub(super) struct ProcessConsumed(pub(super) Box<RawValue>);

impl Message for ProcessConsumed {
    type Result = ();
}

/// The server stops.
pub(super) struct Stop;

impl Message for Stop {
    type Result = ();
}

/// The id of this process may be used again.
pub(super) struct Forgotten(pub(super) String);

impl Message for Forgotten {
    type Result = ();
}

/// The actor of one session.
pub(super) struct Session {
    id: String,
    /// What it is called in the log. The id is a secret.
    number: u64,
    registry: Arc<Registry>,
    attachment: Rc<Attachment>,
    processes: HashMap<String, Addr<Process>>,
    /// Of these, the process is forgotten, but others of its family live on.
    survived: Vec<Addr<Process>>,
    /// Ends the session when nobody comes back.
    expiry: Option<SpawnHandle>,
    _counted: Counted,
}

impl Session {
    /// Starts the actor on the current arbiter, attached to a connection.
    pub(super) fn begin(
        id: String,
        peer: &str,
        registry: Arc<Registry>,
        outbox: Arc<Outbox>,
    ) -> Addr<Self> {
        let number = registry.journal.session_begins(peer);
        Session::create(|context| {
            // What is sent is handled in the order in which it was sent.
            context.set_mailbox_capacity(usize::MAX >> 4);
            let attachment = Rc::<Attachment>::default();
            attachment.attach(outbox);
            Session {
                id,
                number,
                attachment,
                processes: HashMap::new(),
                survived: Vec::new(),
                expiry: None,
                _counted: Counted::new(&registry.counts.sessions),
                registry,
            }
        })
    }

    fn start(&mut self, params: &RawValue, context: &Context<Self>) -> Result<String, RpcError> {
        let start: Start = decode(params)?;
        let id = start.process_id.clone();
        if self.processes.contains_key(&id) {
            return Err(RpcError::invalid_request(format!(
                "process {id} already exists"
            )));
        }
        let surroundings = Surroundings {
            registry: self.registry.clone(),
            session: context.address(),
            session_number: self.number,
            attachment: self.attachment.clone(),
            counted: Counted::new(&self.registry.counts.processes),
        };
        let journal = &self.registry.journal;
        let program = start.program().to_owned();
        let process = Process::launch(start, surroundings)
            .inspect_err(|error| journal.start_refused(self.number, &id, error))?;
        journal.process_starts(self.number, &id, &program);
        let result = serde_json::json!({"processId": id, "sandboxType": "none"}).to_string();
        self.processes.insert(id, process);
        Ok(result)
    }

    /// Ends what it has started, and returns who is to be waited for.
    fn kill(&mut self) -> Vec<actix::dev::Request<Process, Kill>> {
        let processes = self.processes.drain().map(|(_, process)| process);
        processes
            .chain(self.survived.drain(..))
            .map(|process| process.send(Kill))
            .collect()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadParams {
    process_id: String,
    after_seq: Option<u64>,
    max_bytes: Option<u64>,
    wait_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WriteParams {
    process_id: String,
    #[serde(deserialize_with = "base64::deserialize")]
    chunk: Bytes,
    write_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdParams {
    process_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResizeParams {
    process_id: String,
    size: Size,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignalParams {
    process_id: String,
    #[serde(deserialize_with = "signal")]
    signal: Signal,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConsumedParams {
    process_id: String,
    seq: u64,
}

fn signal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Signal, D::Error> {
    let name = String::deserialize(deserializer)?;
    Ok(match name.as_str() {
        "interrupt" | "SIGINT" => Signal::INT,
        "SIGABRT" => Signal::ABORT,
        "SIGALRM" => Signal::ALARM,
        "SIGBUS" => Signal::BUS,
        "SIGCHLD" => Signal::CHILD,
        "SIGCONT" => Signal::CONT,
        "SIGFPE" => Signal::FPE,
        "SIGHUP" => Signal::HUP,
        "SIGILL" => Signal::ILL,
        "SIGKILL" => Signal::KILL,
        "SIGPIPE" => Signal::PIPE,
        "SIGPROF" => Signal::PROF,
        "SIGQUIT" => Signal::QUIT,
        "SIGSEGV" => Signal::SEGV,
        "SIGSTOP" => Signal::STOP,
        "SIGSYS" => Signal::SYS,
        "SIGTERM" => Signal::TERM,
        "SIGTRAP" => Signal::TRAP,
        "SIGTSTP" => Signal::TSTP,
        "SIGTTIN" => Signal::TTIN,
        "SIGTTOU" => Signal::TTOU,
        "SIGURG" => Signal::URG,
        "SIGUSR1" => Signal::USR1,
        "SIGUSR2" => Signal::USR2,
        "SIGVTALRM" => Signal::VTALARM,
        "SIGWINCH" => Signal::WINCH,
        "SIGXCPU" => Signal::XCPU,
        "SIGXFSZ" => Signal::XFSZ,
        _ => return Err(D::Error::custom(format!("unknown signal `{name}`"))),
    })
}

/// What is asked of which process.
fn action(
    method: &str,
    params: &RawValue,
    asking: Arc<Outbox>,
) -> Result<(String, Action), RpcError> {
    Ok(match method {
        "process/read" => {
            let params: ReadParams = decode(params)?;
            let action = Action::Read {
                after_seq: params.after_seq.unwrap_or(0),
                max_bytes: params.max_bytes,
                wait: Duration::from_millis(params.wait_ms.unwrap_or(0)),
                asking,
            };
            (params.process_id, action)
        }
        "process/write" => {
            let params: WriteParams = decode(params)?;
            if params.write_id.is_empty() {
                return Err(RpcError::invalid_params("writeId must not be empty"));
            }
            let action = Action::Write {
                id: params.write_id,
                chunk: params.chunk,
            };
            (params.process_id, action)
        }
        "process/resize" => {
            let params: ResizeParams = decode(params)?;
            (params.process_id, Action::Resize(params.size.check()?))
        }
        "process/signal" => {
            let params: SignalParams = decode(params)?;
            (params.process_id, Action::Signal(params.signal))
        }
        "process/closeStdin" => {
            let params: IdParams = decode(params)?;
            (params.process_id, Action::CloseStdin)
        }
        "process/releaseOutput" => {
            let params: IdParams = decode(params)?;
            (params.process_id, Action::ReleaseOutput)
        }
        "process/terminate" => {
            let params: IdParams = decode(params)?;
            (params.process_id, Action::Terminate)
        }
        _ => return Err(RpcError::method_not_found(method)),
    })
}

/// The answer where there is no such process.
fn without_process(id: &str, action: &Action) -> Result<String, RpcError> {
    match action {
        Action::Read { .. } => Err(RpcError::invalid_request(format!(
            "unknown process id {id}"
        ))),
        Action::Write { .. } | Action::CloseStdin => Ok(status_json("unknownProcess")),
        Action::Resize(_) | Action::Signal(_) | Action::ReleaseOutput => Ok("{}".to_owned()),
        Action::Terminate => Ok(r#"{"running":false}"#.to_owned()),
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.registry.remove(&self.id);
        self.registry.journal.session_ends(self.number);
        for process in self.processes.values().chain(&self.survived) {
            process.do_send(Kill);
        }
    }
}

impl Handler<Attach> for Session {
    type Result = Result<(), Arc<Outbox>>;

    fn handle(&mut self, attach: Attach, context: &mut Self::Context) -> Self::Result {
        let Attach {
            outbox,
            instead_of,
            peer,
        } = attach;
        self.attachment.take_over(outbox, instead_of.as_ref())?;
        self.registry.journal.session_resumed(self.number, &peer);
        if let Some(expiry) = self.expiry.take() {
            context.cancel_future(expiry);
        }
        Ok(())
    }
}

impl Handler<Detach> for Session {
    type Result = ();

    fn handle(&mut self, Detach(outbox): Detach, context: &mut Self::Context) {
        if self.attachment.detach(&outbox) {
            let window = self.registry.session_window;
            self.registry.journal.session_waits(self.number, window);
            let expiry = context.run_later(window, |session, context| {
                // A timer that is due is not cancelled any more by the message handled just before.
                if !session.attachment.is_attached() {
                    context.stop();
                }
            });
            self.expiry = Some(expiry);
        }
    }
}

impl Handler<ProcessRequest> for Session {
    type Result = ResponseFuture<Result<Answer, RpcError>>;

    fn handle(&mut self, request: ProcessRequest, context: &mut Self::Context) -> Self::Result {
        let ProcessRequest {
            method,
            params,
            asking,
        } = request;
        if method == "process/start" {
            let started = self.start(&params, context).map(Answer::from);
            return Box::pin(async move { started });
        }
        let (id, action) = match action(&method, &params, asking) {
            Ok(asked) => asked,
            Err(error) => return Box::pin(async move { Err(error) }),
        };
        match self.processes.get(&id) {
            Some(process) => {
                // Sent now, so that what is asked of one process is done in the order in which it was asked.
                let answer = process.send(Act(action));
                Box::pin(async move {
                    answer.await.unwrap_or_else(|_| {
                        Err(RpcError::invalid_request(format!(
                            "unknown process id {id}"
                        )))
                    })
                })
            }
            None => {
                let answer = without_process(&id, &action).map(Answer::from);
                Box::pin(async move { answer })
            }
        }
    }
}

impl Handler<ProcessConsumed> for Session {
    type Result = ();

    fn handle(&mut self, ProcessConsumed(params): ProcessConsumed, _: &mut Self::Context) {
        // There is nobody to be told what is wrong with a notification.
        if let Ok(params) = decode::<ConsumedParams>(&params)
            && let Some(process) = self.processes.get(&params.process_id)
        {
            process.do_send(Consumed(params.seq));
        }
    }
}

impl Handler<Stop> for Session {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Stop, context: &mut Self::Context) -> Self::Result {
        // The client is told that the connection ends, not how its processes were ended.
        self.attachment.disconnect();
        let killed = self.kill();
        context.stop();
        Box::pin(async move {
            for killed in killed {
                // One that is gone already has left nothing.
                let _gone = killed.await;
            }
        })
    }
}

impl Handler<Forgotten> for Session {
    type Result = MessageResult<Forgotten>;

    fn handle(&mut self, Forgotten(id): Forgotten, _: &mut Self::Context) -> Self::Result {
        self.survived.retain(Addr::connected);
        self.survived.extend(self.processes.remove(&id));
        MessageResult(())
    }
}
