//! The exec-server's handshake: `initialize`, `initialized`, and which dialect it speaks.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use bytes::Bytes;
use log::debug;
use serde_json::value::RawValue;

use super::{
    frame::Message,
    pending::RequestId,
    socket::{MessageReader, MessageWriter},
};
use crate::{
    error::{ConnectError, DisconnectReason, InvalidRequest},
    protocol::{
        Capabilities, Dialect, EnvironmentInfo, ErrorCode, FileContent, Generation, Interrupt,
        Method, PathSpelling, ReadEnvironmentInfo, SessionId,
        jsonrpc::{self, ErrorObject, Id, Incoming},
    },
};

/// What the handshake learns of the server.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerInfo {
    /// What it speaks.
    pub dialect: Dialect,
    /// What it can do beyond what all can.
    pub capabilities: Capabilities,
    /// What it runs on and can do, as far as it told: servers before 0.139 tell nothing.
    pub environment: Option<EnvironmentInfo>,
}

impl ServerInfo {
    /// Where temporary files go, as far as it told.
    pub(crate) fn temporary_directory(&self) -> PathBuf {
        let environment = self.environment.as_ref();
        environment
            .and_then(|environment| environment.temp_dir.clone())
            .unwrap_or_else(|| "/tmp".into())
    }
}

/// The ids of the handshake's requests; those of calls follow.
const INITIALIZE: RequestId = 1;
const ENVIRONMENT: RequestId = 2;
const CLOSE_FILE: RequestId = 3;
const INTERRUPT: RequestId = 4;
pub(crate) const LAST_ID: RequestId = INTERRUPT;

/// What a handshake leads to.
pub(crate) struct Introduced {
    pub(crate) server: ServerInfo,
    /// Under which name the server knows the session; none before 0.120.
    pub(crate) session: Option<SessionId>,
}

struct Initialize<'a> {
    client_name: &'a str,
    resume: Option<&'a SessionId>,
}

impl Initialize<'_> {
    fn request(&self) -> Result<Vec<u8>, InvalidRequest> {
        jsonrpc::encode(INITIALIZE, "initialize", PLAIN, |params| {
            params.field("clientName", self.client_name)?;
            params.optional("resumeSessionId", self.resume)
        })
    }
}

/// No path is in the requests of the handshake, so that any dialect will do.
const PLAIN: Dialect = Dialect::new(PathSpelling::Plain);

/// Whatever it is that a version answers with; but not something else than an object. That a member is
/// there may decide; what it says is for information, and may be new.
type Initialized = BTreeMap<String, Box<RawValue>>;

/// Introduces this client. `server` names the server in errors.
pub(crate) async fn handshake(
    reader: &mut MessageReader,
    writer: &mut MessageWriter,
    client_name: &str,
    server: &str,
) -> Result<Introduced, ConnectError> {
    let mut exchange = Exchange {
        reader,
        writer,
        server,
    };
    let initialize = Initialize {
        client_name,
        resume: None,
    };
    let initialized = exchange.initialize(&initialize).await?;
    let session = session_id(&initialized);
    let mut dialect = PLAIN;
    dialect.resume_window = session.as_ref().map(|_| Duration::from_secs(10));
    let (generation, environment) = match initialized.get("environmentInfo") {
        Some(info) => {
            dialect.deduplicates_writes = true;
            dialect.paths = PathSpelling::Uri;
            (Generation::Telling, serde_json::from_str(info.get()).ok())
        }
        None => exchange.explore(&mut dialect).await?,
    };
    if dialect.deduplicates_writes && session.is_some() {
        dialect.resume_window = Some(resume_window(environment.as_ref()));
    }
    Ok(Introduced {
        server: ServerInfo {
            dialect,
            capabilities: Capabilities::new(generation, environment.as_ref()),
            environment,
        },
        session,
    })
}

fn session_id(initialized: &Initialized) -> Option<SessionId> {
    serde_json::from_str(initialized.get("sessionId")?.get()).ok()
}

/// How long a server from 0.142 on keeps a session. Most do not tell; their release is known by what they
/// can do.
fn resume_window(environment: Option<&EnvironmentInfo>) -> Duration {
    if let Some(told) = environment.and_then(|info| info.session_window_ms) {
        return Duration::from_millis(told);
    }
    let can = |capability| {
        environment.is_some_and(|info| info.capabilities.get(capability) == Some(&true))
    };
    if can("fileWriteStreaming") || can("fsWatchMissing") {
        return Duration::from_secs(80);
    }
    Duration::from_secs(30)
}

/// Introduces this client as the one whose connection was lost.
pub(crate) async fn resume(
    reader: &mut MessageReader,
    writer: &mut MessageWriter,
    client_name: &str,
    session: &SessionId,
    server: &str,
) -> Result<(), ConnectError> {
    let mut exchange = Exchange {
        reader,
        writer,
        server,
    };
    let initialize = Initialize {
        client_name,
        resume: Some(session),
    };
    let initialized = exchange.initialize(&initialize).await?;
    if session_id(&initialized).as_ref() == Some(session) {
        Ok(())
    } else {
        Err(exchange.not_exec_server("it has begun another session instead of resuming this one"))
    }
}

/// Requests and their answers, one after the other, before there is anything else.
struct Exchange<'a> {
    reader: &'a mut MessageReader,
    writer: &'a mut MessageWriter,
    server: &'a str,
}

/// What the peer says, apart from goodbye.
enum Heard {
    Text(String),
    Ping(Bytes),
    Pong,
}

fn hear(message: Message<'_>) -> Result<Heard, DisconnectReason> {
    match message {
        Message::Text(text) => Ok(Heard::Text(text.as_str()?.to_owned())),
        // Of no use here, but an answer as any other.
        Message::File { id, content } => {
            let result = FileContent { content }.to_json();
            Ok(Heard::Text(format!(r#"{{"id":{id},"result":{result}}}"#)))
        }
        Message::Binary { size } => Err(DisconnectReason::BinaryMessage { size }),
        Message::Ping(payload) => Ok(Heard::Ping(payload)),
        Message::Pong => Ok(Heard::Pong),
        Message::Close { code } => Err(DisconnectReason::PeerClosed { code }),
    }
}

impl Exchange<'_> {
    async fn initialize(
        &mut self,
        initialize: &Initialize<'_>,
    ) -> Result<Initialized, ConnectError> {
        let request = initialize
            .request()
            .map_err(|error| self.not_exec_server(error))?;
        let result = match self.exchange(INITIALIZE, "initialize", &request).await? {
            Ok(result) => result,
            Err(error) => {
                // Old servers tell by their words only.
                let is_attached = error.code == ErrorCode::SESSION_ATTACHED
                    || error.message.contains("already attached");
                if initialize.resume.is_some() && is_attached {
                    let server = self.server.to_owned();
                    return Err(ConnectError::StillAttached { server });
                }
                // Servers name the session, whose id is a secret.
                let message = match initialize.resume {
                    Some(session) => error.message.replace(session.as_str(), "…"),
                    None => error.message,
                };
                return Err(ConnectError::HandshakeRejected {
                    server: self.server.to_owned(),
                    code: error.code,
                    message,
                });
            }
        };
        let initialized = serde_json::from_str(result.get())
            .map_err(|error| self.not_exec_server(crate::JsonError::from(error)))?;
        self.send(br#"{"method":"initialized","params":{}}"#)
            .await?;
        Ok(initialized)
    }

    /// Finds out what a server before 0.150 speaks, which does not tell.
    async fn explore(
        &mut self,
        dialect: &mut Dialect,
    ) -> Result<(Generation, Option<EnvironmentInfo>), ConnectError> {
        let info = match self.call(ENVIRONMENT, &ReadEnvironmentInfo).await? {
            Ok(info) => info,
            Err(ErrorObject { code, .. }) => {
                debug!(code:%; "no environment/info, a server before 0.139");
                return Ok((Generation::Silent, None));
            }
        };
        // Those that know the key `cwd`, if only as null, want URIs.
        let knows_cwd = serde_json::from_str::<serde_json::Value>(info.get())
            .is_ok_and(|info| info.get("cwd").is_some());
        let generation = if knows_cwd {
            dialect.paths = PathSpelling::Uri;
            dialect.deduplicates_writes = true;
            Generation::Telling
        } else {
            // Closing a file that is not open does nothing. The method came with much else, in 0.142.
            let request = jsonrpc::encode(CLOSE_FILE, "fs/close", PLAIN, |params| {
                params.field("handleId", "execmux")
            })
            .map_err(|error| self.not_exec_server(error))?;
            let closed = self.exchange(CLOSE_FILE, "fs/close", &request).await?;
            dialect.deduplicates_writes = closed.is_ok();
            if closed.is_ok() {
                Generation::Blocks
            } else if self
                .call(INTERRUPT, &Interrupt::new("execmux"))
                .await?
                .is_ok()
            {
                // A process that is not there is not an error, where the method is known: from 0.140 on.
                Generation::Interruptible
            } else {
                Generation::Deaf
            }
        };
        Ok((generation, serde_json::from_str(info.get()).ok()))
    }

    async fn send(&mut self, json: &[u8]) -> Result<(), ConnectError> {
        self.writer.encoder.text(json, &mut self.writer.buffer);
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), ConnectError> {
        let flushed = self.writer.flush().await;
        flushed.map_err(|reason| self.disconnected(reason))
    }

    async fn call<M: Method>(
        &mut self,
        id: RequestId,
        method: &M,
    ) -> Result<Result<Box<RawValue>, ErrorObject>, ConnectError> {
        let request = jsonrpc::encode_request(id, method, PLAIN)
            .map_err(|error| self.not_exec_server(error))?;
        self.exchange(id, M::NAME, &request).await
    }

    /// Sends a request and waits for its answer.
    async fn exchange(
        &mut self,
        id: RequestId,
        method: &str,
        request: &[u8],
    ) -> Result<Result<Box<RawValue>, ErrorObject>, ConnectError> {
        self.send(request).await?;
        loop {
            let next = match self.reader.next() {
                Ok(Some(message)) => Some(hear(message)),
                Ok(None) => None,
                Err(reason) => Some(Err(reason)),
            };
            let heard = match next {
                Some(heard) => heard.map_err(|reason| self.disconnected(reason))?,
                None => {
                    let filled = self.reader.fill().await;
                    filled.map_err(|reason| self.disconnected(reason))?;
                    continue;
                }
            };
            let text = match heard {
                Heard::Text(text) => text,
                Heard::Ping(payload) => {
                    self.writer.encoder.pong(&payload, &mut self.writer.buffer);
                    self.flush().await?;
                    continue;
                }
                Heard::Pong => continue,
            };
            match jsonrpc::decode(&text).map_err(|reason| self.not_exec_server(reason))? {
                Incoming::Response {
                    id: Id::Number(answered),
                    result,
                } if answered == id => {
                    let result = result.ok_or_else(|| {
                        self.not_exec_server(format_args!("its answer to {method} is empty"))
                    })?;
                    return Ok(Ok(result.to_owned()));
                }
                Incoming::Error {
                    id: Id::Number(answered),
                    error,
                } if answered == id => {
                    return Ok(Err(error));
                }
                Incoming::Error { error, .. } => {
                    return Err(self.not_exec_server(format_args!(
                        "it did not understand {method}: {}",
                        error.message
                    )));
                }
                Incoming::Request { method: theirs, .. } => {
                    return Err(self.not_exec_server(format_args!(
                        "it sent a request ({theirs}) before the handshake was over"
                    )));
                }
                Incoming::Response { .. } => {
                    return Err(self.not_exec_server("it answered what was not asked"));
                }
                // Either nothing of this client runs yet, or all that was missed is about to be read.
                Incoming::Notification(_) | Incoming::OtherNotification { .. } => {
                    debug!("notification during the handshake ignored");
                }
            }
        }
    }

    fn not_exec_server(&self, problem: impl fmt::Display) -> ConnectError {
        ConnectError::NotExecServer {
            server: self.server.to_owned(),
            problem: problem.to_string(),
        }
    }

    fn disconnected(&self, reason: DisconnectReason) -> ConnectError {
        match reason {
            DisconnectReason::WebSocketViolation(_)
            | DisconnectReason::BinaryMessage { .. }
            | DisconnectReason::InvalidUtf8
            | DisconnectReason::MessageTooLarge { .. } => self.not_exec_server(reason),
            reason => ConnectError::HandshakeDisconnected {
                server: self.server.to_owned(),
                reason,
            },
        }
    }
}
