//! One connection of a client: the handshake, and its requests one after the other.

use std::net::SocketAddr;

use actix_ws::{AggregatedMessage, MessageStream, Session};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::sync::mpsc::channel;

use super::{
    envelope::{Incoming, RequestId, RpcError, decode, encode_answer},
    fs::{self, Files, Handles},
    process::Processes,
};

/// Largest message of a client, and largest frame.
const MESSAGE: usize = 64 << 20;
const FRAME: usize = 16 << 20;
/// How many messages wait for the socket.
const QUEUE: usize = 64;

/// How far the handshake has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handshake {
    New,
    Initialized,
    Ready,
}

/// Serves a client until one of both ends it.
pub(super) async fn serve(
    peer: Option<SocketAddr>,
    mut socket: Session,
    messages: MessageStream,
    files: Files,
) {
    let (out, mut queue) = channel::<String>(QUEUE);
    let mut writer = socket.clone();
    let writing = actix_rt::spawn(async move {
        while let Some(text) = queue.recv().await {
            if writer.text(text).await.is_err() {
                break;
            }
        }
    });
    let processes = Processes::default();
    let handles = Handles;
    let mut handshake = Handshake::New;
    let mut messages = messages
        .max_frame_size(FRAME)
        .aggregate_continuations()
        .max_continuation_size(MESSAGE);
    while let Some(Ok(message)) = messages.recv().await {
        let text = match message {
            AggregatedMessage::Text(text) => text.into_bytes(),
            AggregatedMessage::Binary(bytes) => bytes,
            AggregatedMessage::Ping(bytes) => {
                if socket.pong(&bytes).await.is_err() {
                    break;
                }
                continue;
            }
            AggregatedMessage::Pong(_) => continue,
            AggregatedMessage::Close(_) => break,
        };
        let answer = match decode(&text) {
            Ok(Incoming::Request { id, method, params }) => {
                let answer = match method.as_str() {
                    "initialize" => initialize(&mut handshake, &params),
                    "process/start" => {
                        ready(handshake, "exec").and_then(|()| processes.start(&params, &out))
                    }
                    "process/terminate" => {
                        ready(handshake, "exec").and_then(|()| processes.terminate(&params))
                    }
                    "environment/info" => ready(handshake, "environment info")
                        .map(|()| environment_info().to_string()),
                    "environment/status" => ready(handshake, "environment status")
                        .map(|()| r#"{"status":"ready"}"#.to_owned()),
                    method => ready(handshake, "filesystem")
                        .and_then(|()| fs::handle(&files, &handles, method, &params).transpose())
                        .transpose()
                        .unwrap_or_else(|| Err(RpcError::method_not_found(method))),
                };
                encode_answer(&id, answer)
            }
            Ok(Incoming::Notification { method })
                if method == "initialized" && handshake != Handshake::New =>
            {
                handshake = Handshake::Ready;
                continue;
            }
            Ok(Incoming::Notification { .. } | Incoming::Answer) => break,
            Err(error) => {
                let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
                let message = format!(
                    "failed to parse websocket JSON-RPC message from exec-server websocket {peer}: {error}"
                );
                encode_answer(
                    &RequestId::Number(-1),
                    Err(RpcError::invalid_request(message)),
                )
            }
        };
        if out.send(answer).await.is_err() {
            break;
        }
    }
    processes.kill_all();
    writing.abort();
}

fn initialize(handshake: &mut Handshake, params: &RawValue) -> Result<String, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Initialize {
        #[serde(rename = "clientName")]
        _client_name: String,
        resume_session_id: Option<String>,
    }
    if *handshake != Handshake::New {
        return Err(RpcError::invalid_request(
            "initialize may only be sent once per connection",
        ));
    }
    let initialize: Initialize = serde_json::from_str(params.get())
        .map_err(|error| RpcError::invalid_params(error.to_string()))?;
    if let Some(id) = initialize.resume_session_id {
        return Err(RpcError::invalid_request(format!(
            "unknown session id {id}"
        )));
    }
    let session_id = session_id()?;
    *handshake = Handshake::Initialized;
    Ok(json!({"sessionId": session_id, "environmentInfo": environment_info()}).to_string())
}

fn ready(handshake: Handshake, what: &str) -> Result<(), RpcError> {
    let missing = match handshake {
        Handshake::New => "call initialize",
        Handshake::Initialized => "send initialized",
        Handshake::Ready => return Ok(()),
    };
    Err(RpcError::invalid_request(format!(
        "client must {missing} before using {what} methods"
    )))
}

/// A UUID of version 4: a secret.
fn session_id() -> Result<String, RpcError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| RpcError::internal(error.to_string()))?;
    bytes[6] = bytes[6] & 0x0F | 0x40;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    let mut text = String::with_capacity(36);
    for (n, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&n) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

fn environment_info() -> serde_json::Value {
    json!({
        "shell": {"name": "sh", "path": "/bin/sh"},
        "executorVersion": concat!("execmux/", env!("CARGO_PKG_VERSION")),
        "platformOs": std::env::consts::OS,
        "cwd": null,
        "capabilities": {},
    })
}
