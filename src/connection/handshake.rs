//! The exec-server's handshake: `initialize`, `initialized`, and which dialect it speaks.

use std::{collections::BTreeMap, fmt};

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
        Dialect, EnvironmentInfo, Method, Params, PathSpelling, ReadEnvironmentInfo,
        jsonrpc::{self, ErrorObject, Id, Incoming},
    },
};

/// What the handshake learns of the server.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerInfo {
    /// What it speaks.
    pub dialect: Dialect,
    /// What it runs on and can do, as far as it told: servers before 0.139 tell nothing.
    pub environment: Option<EnvironmentInfo>,
}

/// The ids of the handshake's requests; those of calls follow.
const INITIALIZE: RequestId = 1;
const ENVIRONMENT: RequestId = 2;
pub(crate) const LAST_ID: RequestId = ENVIRONMENT;

struct Initialize {
    client_name: String,
}

impl Method for Initialize {
    const NAME: &'static str = "initialize";
    // Whatever it is that a version answers with; but not something else than an object.
    type Response = BTreeMap<String, Box<RawValue>>;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("clientName", &self.client_name)
    }
}

/// Introduces this client. `server` names the server in errors.
pub(crate) async fn handshake(
    reader: &mut MessageReader,
    writer: &mut MessageWriter,
    client_name: &str,
    server: &str,
) -> Result<ServerInfo, ConnectError> {
    let mut exchange = Exchange {
        reader,
        writer,
        server,
    };
    let initialize = Initialize {
        client_name: client_name.to_owned(),
    };
    let result = match exchange.call(INITIALIZE, &initialize).await? {
        Ok(result) => result,
        Err(error) => {
            return Err(ConnectError::HandshakeRejected {
                server: server.to_owned(),
                code: error.code,
                message: error.message,
            });
        }
    };
    let mut initialized: <Initialize as Method>::Response = serde_json::from_str(result.get())
        .map_err(|error| exchange.not_exec_server(crate::JsonError::from(error)))?;
    exchange
        .send(br#"{"method":"initialized","params":{}}"#)
        .await?;

    // That it is there decides; what it says is for information, and may be new.
    if let Some(info) = initialized.remove("environmentInfo") {
        return Ok(ServerInfo {
            dialect: Dialect::new(PathSpelling::Uri),
            environment: serde_json::from_str(info.get()).ok(),
        });
    }
    // An older server. Those that know the key `cwd`, if only as null, want URIs.
    match exchange.call(ENVIRONMENT, &ReadEnvironmentInfo).await? {
        Ok(result) => {
            let knows_cwd = serde_json::from_str::<serde_json::Value>(result.get())
                .is_ok_and(|info| info.get("cwd").is_some());
            let paths = if knows_cwd {
                PathSpelling::Uri
            } else {
                PathSpelling::Plain
            };
            Ok(ServerInfo {
                dialect: Dialect::new(paths),
                environment: serde_json::from_str(result.get()).ok(),
            })
        }
        Err(ErrorObject { code, .. }) => {
            debug!(code:%; "no environment/info, an older server");
            Ok(ServerInfo {
                dialect: Dialect::new(PathSpelling::Plain),
                environment: None,
            })
        }
    }
}

/// Requests and their answers, one after the other, before there is anything else.
struct Exchange<'a> {
    reader: &'a mut MessageReader,
    writer: &'a mut MessageWriter,
    server: &'a str,
}

impl Exchange<'_> {
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
        // No path is in these requests, so that any dialect will do.
        let json = jsonrpc::encode_request(id, method, Dialect::new(PathSpelling::Plain))
            .map_err(|error| self.not_exec_server(error))?;
        self.send(&json).await?;
        loop {
            let message = self.reader.message().await;
            let text = match message.map_err(|reason| self.disconnected(reason))? {
                Message::Text(text) => text,
                Message::Binary(bytes) => {
                    let size = bytes.len();
                    return Err(self.not_exec_server(DisconnectReason::BinaryMessage { size }));
                }
                Message::Ping(payload) => {
                    self.writer.encoder.pong(&payload, &mut self.writer.buffer);
                    self.flush().await?;
                    continue;
                }
                Message::Pong => continue,
                Message::Close { code } => {
                    return Err(self.disconnected(DisconnectReason::PeerClosed { code }));
                }
            };
            match jsonrpc::decode(&text).map_err(|reason| self.not_exec_server(reason))? {
                Incoming::Response {
                    id: Id::Number(answered),
                    result,
                } if answered == id => {
                    let result = result.ok_or_else(|| {
                        self.not_exec_server(format_args!("its answer to {} is empty", M::NAME))
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
                        "it did not understand {}: {}",
                        M::NAME,
                        error.message
                    )));
                }
                Incoming::Request { method, .. } => {
                    return Err(self.not_exec_server(format_args!(
                        "it sent a request ({method}) before the handshake was over"
                    )));
                }
                Incoming::Response { .. } => {
                    return Err(self.not_exec_server("it answered what was not asked"));
                }
                // Nothing of this client runs yet, so that this is not for it.
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
            | DisconnectReason::InvalidUtf8
            | DisconnectReason::MessageTooLarge { .. } => self.not_exec_server(reason),
            reason => ConnectError::HandshakeDisconnected {
                server: self.server.to_owned(),
                reason,
            },
        }
    }
}
