//! One connection of a client: reads its messages, and answers each when its answer is there.
//!
//! Requests about a process go to it through the session, so that processes do not wait for each other. Requests about files are
//! carried out in the order in which they came.

mod ending;
mod files;

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use actix::{Addr, MailboxError};
use actix_ws::{AggregatedMessage, MessageStream};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::{select, sync::Semaphore, time::sleep};

use self::{ending::Ending, files::FileQueue};
use super::{
    envelope::{Incoming, RequestId, RpcError, decode, decode_params, encode_answer},
    journal::Journal,
    liveness::{Cutter, Heard},
    outbox::{Answer, Outbox, Room},
    registry::{Admitted, Registry},
    session::{Attach, Detach, ProcessConsumed, ProcessRequest, Session},
    socket::Socket,
};
use crate::task::{self, Task};

/// Largest frame of a client.
const FRAME: usize = 16 << 20;
/// How many requests about processes may wait for their answers before no more messages are read.
const PENDING: usize = 16_384;
/// How many connections may be found to have a session, one after the other, by one that wants to resume it. Each is
/// given time to answer a ping, and the client does not wait for ever.
const RIVALS: usize = 2;

/// How far the handshake has come.
enum Handshake {
    New,
    /// It asks for this session, and may have got it.
    Attaching(Addr<Session>),
    Initialized(Addr<Session>),
    Ready(Addr<Session>),
}

struct Connection {
    peer: Rc<str>,
    registry: Arc<Registry>,
    outbox: Arc<Outbox>,
    handshake: Handshake,
    files: FileQueue,
    /// Room for requests about processes that wait for their answers.
    pending: Arc<Semaphore>,
    heard: Heard,
    is_introduced: Rc<Cell<bool>>,
    admitted: Option<Admitted>,
}

/// What leads to a client.
pub(super) struct Wire {
    pub(super) peer: String,
    pub(super) socket: Socket,
    pub(super) messages: MessageStream,
    pub(super) heard: Heard,
    pub(super) cutter: Option<Cutter>,
    pub(super) admitted: Admitted,
}

/// Serves a client until one of both ends it, the client is silent for too long, or another connection takes over the
/// session.
pub(super) async fn serve(registry: Arc<Registry>, outbox: Arc<Outbox>, wire: Wire) {
    let Wire {
        peer,
        socket,
        messages,
        heard,
        cutter,
        admitted,
    } = wire;
    let peer = Rc::<str>::from(peer);
    let (patience, limits) = (registry.patience, registry.limits.clone());
    let _writing = Task::spawn(write(outbox.clone(), socket.clone()));
    let is_introduced = Rc::<Cell<bool>>::default();
    let mut connection = Connection {
        peer: peer.clone(),
        admitted: Some(admitted),
        files: FileQueue::start(registry.clone(), outbox.clone(), peer.clone()),
        registry: registry.clone(),
        outbox: outbox.clone(),
        handshake: Handshake::New,
        pending: Arc::new(Semaphore::new(PENDING)),
        heard: heard.clone(),
        is_introduced: is_introduced.clone(),
    };
    let ending = select! {
        biased;
        ending = connection.read(&socket, messages) => ending,
        () = outbox.displaced() => Ending::Displaced,
        () = outbox.closed() => Ending::Stopped,
        () = outbox.life.ends(&patience) => Ending::Silent,
        () = stays_unknown(&is_introduced, limits.initialize_timeout) => Ending::Unknown,
    };
    // The session is free for another connection before this one is over.
    let admitted = connection.leave();
    match ending.is_refusal() {
        true => registry.journal.client_refused(&peer, ending),
        false => (registry.journal).connection_ends(&peer, is_introduced.get(), ending),
    }
    ending.carry_out(socket, &heard, cutter).await;
    drop(admitted);
}

/// Returns when the time for the handshake is over without one.
async fn stays_unknown(is_introduced: &Cell<bool>, timeout: Duration) {
    sleep(timeout).await;
    if is_introduced.get() {
        std::future::pending().await
    }
}

/// Sends what waits for the client.
async fn write(outbox: Arc<Outbox>, socket: Socket) {
    loop {
        let sent = tokio::select! {
            message = outbox.next() => match message {
                Some((message, room)) => socket.text(message, room).await,
                None => return,
            },
            () = outbox.life.ping_wanted() => socket.ping().await,
        };
        if sent.is_err() {
            return outbox.close();
        }
    }
}

/// Queues the answer to a request.
fn push(
    outbox: &Outbox,
    journal: &Journal,
    peer: &str,
    id: &RequestId,
    answer: Result<Answer, RpcError>,
) {
    let (answer, room) = match answer {
        Ok(Answer { json, room }) => (Ok(json), room),
        Err(error) => {
            if error.is_overload() {
                journal.request_refused(peer, &error);
            }
            (Err(error), Room::default())
        }
    };
    outbox.push(encode_answer(id, answer), room);
}

/// The methods, by what they are about.
enum Kind {
    Initialize,
    Info,
    Status,
    Process,
    File,
    Unknown,
}

fn kind(method: &str) -> Kind {
    match method {
        "initialize" => Kind::Initialize,
        "environment/info" => Kind::Info,
        "environment/status" => Kind::Status,
        "process/start"
        | "process/read"
        | "process/write"
        | "process/terminate"
        | "process/signal"
        | "process/closeStdin"
        | "process/resize"
        | "process/releaseOutput" => Kind::Process,
        "fs/readFile" | "fs/writeFile" | "fs/createDirectory" | "fs/getMetadata"
        | "fs/readDirectory" | "fs/remove" | "fs/copy" | "fs/canonicalize" | "fs/walk"
        | "fs/open" | "fs/readBlock" | "fs/writeBlock" | "fs/close" => Kind::File,
        _ => Kind::Unknown,
    }
}

impl Connection {
    /// Reads and handles messages, until the client ends that.
    async fn read(&mut self, socket: &Socket, messages: MessageStream) -> Ending {
        let limit = self.registry.limits.max_message_size;
        let mut messages = messages
            .max_frame_size(FRAME.min(limit))
            .aggregate_continuations()
            .max_continuation_size(limit);
        let heard = self.heard.clone();
        while let Some(message) = messages.recv().await {
            let message = match message {
                Ok(message) => message,
                Err(error) => return Ending::of(&error, heard.refusal()),
            };
            let goes_on = match message {
                AggregatedMessage::Text(text) => heard.during(self.take(text.as_bytes())).await,
                AggregatedMessage::Binary(bytes) => heard.during(self.take(&bytes)).await,
                AggregatedMessage::Ping(bytes) => heard.during(socket.pong(&bytes)).await.is_ok(),
                AggregatedMessage::Pong(_) => true,
                AggregatedMessage::Close(reason) => {
                    return Ending::Closed(reason.map(|reason| reason.code.into()));
                }
            };
            if !goes_on {
                return Ending::Stray;
            }
            // A client that does not take its answers is asked for nothing more.
            heard.during(self.outbox.is_bearable()).await;
        }
        Ending::Gone
    }

    /// Ends the connection's part in its session, and all that it works on. It counts as a connection until the returned value is
    /// dropped.
    fn leave(mut self) -> Option<Admitted> {
        self.admitted.take()
    }

    /// Takes a message. Returns whether the connection goes on.
    async fn take(&mut self, text: &[u8]) -> bool {
        match decode(text) {
            Ok(Incoming::Request { id, method, params }) => self.request(id, method, params).await,
            Ok(Incoming::Notification { method, params }) => return self.notified(&method, params),
            Ok(Incoming::Answer) => return false,
            Err(error) => {
                let message = format!(
                    "failed to parse websocket JSON-RPC message from exec-server websocket {}: {error}",
                    self.peer
                );
                self.answer(
                    &RequestId::Number(-1),
                    Err(RpcError::invalid_request(message)),
                );
            }
        }
        true
    }

    fn notified(&mut self, method: &str, params: Box<RawValue>) -> bool {
        match (method, &self.handshake) {
            ("initialized", Handshake::Initialized(session) | Handshake::Ready(session)) => {
                self.handshake = Handshake::Ready(session.clone());
                true
            }
            ("process/consumed", Handshake::Ready(session)) => {
                session.do_send(ProcessConsumed(params));
                true
            }
            _ => false,
        }
    }

    async fn request(&mut self, id: RequestId, method: String, params: Box<RawValue>) {
        let what = match kind(&method) {
            Kind::Unknown => {
                return self.answer(&id, Err(RpcError::method_not_found(&method)));
            }
            Kind::Initialize => {
                let answer = self.initialize(&params).await;
                return self.answer(&id, answer);
            }
            Kind::Info | Kind::Status => "environment info",
            Kind::Process => "exec",
            Kind::File => "filesystem",
        };
        let session = match self.ready(what) {
            Ok(session) => session,
            Err(error) => return self.answer(&id, Err(error)),
        };
        match kind(&method) {
            Kind::Process => {
                let pending = self.pending.clone().acquire_owned().await;
                let outbox = self.outbox.clone();
                // Sent now, in the order in which it came.
                let answer = session.send(ProcessRequest {
                    method,
                    params,
                    asking: outbox.clone(),
                });
                let (registry, peer) = (self.registry.clone(), self.peer.clone());
                task::spawn(async move {
                    let _pending = pending;
                    let answer = answer
                        .await
                        .unwrap_or_else(|_| Err(RpcError::invalid_request("the session is over")));
                    push(&outbox, &registry.journal, &peer, &id, answer);
                });
            }
            Kind::File => {
                if let Err(over) = self.files.add(id.clone(), method, params).await {
                    self.answer(&id, Err(over.into()));
                }
            }
            Kind::Status => self.answer(&id, Ok(r#"{"status":"ready"}"#.to_owned())),
            Kind::Info | Kind::Initialize | Kind::Unknown => {
                self.answer(&id, Ok(self.registry.environment.info().to_string()));
            }
        }
    }

    fn answer(&self, id: &RequestId, answer: Result<String, RpcError>) {
        let answer = answer.map(Answer::from);
        push(&self.outbox, &self.registry.journal, &self.peer, id, answer);
    }

    fn ready(&self, what: &str) -> Result<&Addr<Session>, RpcError> {
        let missing = match &self.handshake {
            Handshake::New | Handshake::Attaching(_) => "call initialize",
            Handshake::Initialized(_) => "send initialized",
            Handshake::Ready(session) => return Ok(session),
        };
        Err(RpcError::invalid_request(format!(
            "client must {missing} before using {what} methods"
        )))
    }

    async fn initialize(&mut self, params: &RawValue) -> Result<String, RpcError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Initialize {
            #[serde(rename = "clientName")]
            _client_name: String,
            resume_session_id: Option<String>,
        }
        if !matches!(self.handshake, Handshake::New) {
            return Err(RpcError::invalid_request(
                "initialize may only be sent once per connection",
            ));
        }
        let initialize: Initialize = decode_params(params)?;
        let (id, session) = match initialize.resume_session_id {
            Some(id) => self.resume(id).await?,
            None => self.begin()?,
        };
        self.handshake = Handshake::Initialized(session);
        self.is_introduced.set(true);
        self.heard.allow(self.registry.limits.max_message_size);
        Ok(json!({
            "sessionId": id,
            "environmentInfo": self.registry.environment.info(),
        })
        .to_string())
    }

    fn begin(&self) -> Result<(String, Addr<Session>), RpcError> {
        let id = session_id()?;
        let session = Session::begin(
            id.clone(),
            &self.peer,
            self.registry.clone(),
            self.outbox.clone(),
        );
        if !self.registry.add(id.clone(), session.clone()) {
            return Err(RpcError::internal("the server is stopping"));
        }
        Ok((id, session))
    }

    async fn resume(&mut self, id: String) -> Result<(String, Addr<Session>), RpcError> {
        let unknown = || RpcError::invalid_request(format!("unknown session id {id}"));
        let session = self.registry.find(&id).ok_or_else(unknown)?;
        // Before it is asked: if the client goes now, the session may have it already.
        self.handshake = Handshake::Attaching(session.clone());
        let attached = self.attach(&session).await;
        if !matches!(attached, Ok(true)) {
            self.handshake = Handshake::New;
        }
        match attached {
            Ok(true) => Ok((id, session)),
            Ok(false) => Err(RpcError::session_attached(&id)),
            Err(_) => Err(unknown()),
        }
    }

    /// Attaches this connection to a session, if none has it, or one whose client does not answer a ping. Returns
    /// whether it has got the session. Fails if the session is over.
    async fn attach(&self, session: &Addr<Session>) -> Result<bool, MailboxError> {
        let mut instead_of = None;
        for _ in 0..=RIVALS {
            let attach = Attach {
                outbox: self.outbox.clone(),
                instead_of: instead_of.take(),
                peer: self.peer.to_string(),
            };
            let Err(present) = session.send(attach).await? else {
                return Ok(true);
            };
            let is_alive = select! {
                biased;
                // This client is gone, and needs no session.
                () = self.heard.ended() => return Ok(false),
                () = present.closed() => false,
                answers = present.life.answers_ping(self.registry.patience.takeover_timeout) => answers,
            };
            if is_alive {
                return Ok(false);
            }
            instead_of = Some(present);
        }
        Ok(false)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.outbox.close();
        match &self.handshake {
            Handshake::New => {}
            Handshake::Attaching(session)
            | Handshake::Initialized(session)
            | Handshake::Ready(session) => session.do_send(Detach(self.outbox.clone())),
        }
    }
}

/// A UUID of version 4: a secret.
fn session_id() -> Result<String, RpcError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| RpcError::internal(error.to_string()))?;
    let bits = u128::from_be_bytes(bytes);
    let bits = bits & !(0xF << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    Ok(format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        bits >> 96,
        bits >> 80 & 0xFFFF,
        bits >> 64 & 0xFFFF,
        bits >> 48 & 0xFFFF,
        bits & 0xFFFF_FFFF_FFFF
    ))
}
