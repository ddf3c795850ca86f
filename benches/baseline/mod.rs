//! The client that this crate is measured against: the design it came from, done with care, in a few
//! hundred lines. One task reads, makes a tree of each message and a type of the tree, finds the session
//! in a map that is copied when it changes, and waits for room in the session's channel. A call has a
//! slot in a table behind a lock, and a task writes and flushes one message after the other.
//!
//! It does less: it restores no order, bounds no bytes, and a lost connection is the end.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned, de::Error as _};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

/// How many events of a session may wait for it.
const EVENTS: usize = 256;

/// How many requests may wait for the socket.
const REQUESTS: usize = 128;

#[derive(Debug)]
pub enum Event {
    Output(Output),
    Exited(Exited),
    Closed(Closed),
    Failed(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub process_id: String,
    pub seq: u64,
    pub stream: Stream,
    #[serde(deserialize_with = "decode_base64")]
    pub chunk: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
    Pty,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exited {
    pub process_id: String,
    pub seq: u64,
    pub exit_code: i32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Closed {
    pub process_id: String,
    pub seq: u64,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    pub is_directory: bool,
    pub is_file: bool,
    pub created_at_ms: i64,
    pub modified_at_ms: i64,
}

#[derive(Debug)]
pub enum Error {
    Rejected { code: i64, message: String },
    Disconnected,
    Json(serde_json::Error),
}

#[derive(Serialize)]
struct Request<'a> {
    id: i64,
    method: &'a str,
    params: Value,
}

#[derive(Deserialize)]
struct Notification {
    method: String,
    params: Value,
}

#[derive(Deserialize)]
struct Response {
    id: i64,
    result: Value,
}

#[derive(Deserialize)]
struct Rejection {
    id: i64,
    error: ErrorObject,
}

#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    message: String,
}

pub fn decode_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(D::Error::custom)
}

struct Session {
    events: mpsc::Sender<Event>,
}

#[derive(Default)]
struct Shared {
    /// Copied whole by whoever changes it, so that the reader never waits for a lock.
    sessions: ArcSwap<HashMap<String, Arc<Session>>>,
    pending: Mutex<HashMap<i64, oneshot::Sender<Result<Value, Error>>>>,
}

/// A connection. Its tasks end when it is dropped.
pub struct Client {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Message>,
    next_id: AtomicI64,
    _tasks: JoinSet<()>,
}

impl Client {
    /// Connects to `127.0.0.1`, and shakes hands.
    pub async fn connect(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("connects");
        socket.set_nodelay(true).expect("a socket");
        // A file comes as one frame, of which the default would refuse more than 16 MiB.
        let config = WebSocketConfig::default().max_frame_size(Some(64 << 20));
        let url = format!("ws://127.0.0.1:{port}/");
        let (socket, _) = client_async_with_config(url, socket, Some(config))
            .await
            .expect("an upgrade");
        let (sink, stream) = socket.split();
        let (requests, queue) = mpsc::channel(REQUESTS);
        let shared = Arc::<Shared>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(write(sink, queue));
        tasks.spawn(read(stream, shared.clone()));
        let client = Client {
            shared,
            requests,
            next_id: AtomicI64::new(1),
            _tasks: tasks,
        };
        let params = serde_json::json!({"clientName": "baseline"});
        let _initialized: Value = client.call("initialize", params).await.expect("an answer");
        let initialized = r#"{"method":"initialized","params":{}}"#;
        let sent = client.requests.send(Message::text(initialized)).await;
        sent.expect("a connection");
        client
    }

    /// Calls a method.
    pub async fn call<R: DeserializeOwned>(&self, method: &str, params: Value) -> Result<R, Error> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (slot, answer) = oneshot::channel();
        let request = Request { id, method, params };
        let json = serde_json::to_string(&request).map_err(Error::Json)?;
        self.shared.pending().insert(id, slot);
        if self.requests.send(Message::text(json)).await.is_err() {
            self.shared.pending().remove(&id);
            return Err(Error::Disconnected);
        }
        let result = answer.await.map_err(|_| Error::Disconnected)??;
        serde_json::from_value(result).map_err(Error::Json)
    }

    /// Asks for the events of a process.
    pub fn register(&self, process_id: &str) -> mpsc::Receiver<Event> {
        let mut receivers = self.register_all([process_id.to_owned()]);
        receivers.pop().expect("there is one")
    }

    /// Asks for the events of many processes, with one copy of the map for all: with one for each,
    /// 10,000 take seconds.
    pub fn register_all(
        &self,
        process_ids: impl IntoIterator<Item = String>,
    ) -> Vec<mpsc::Receiver<Event>> {
        let (added, receivers): (Vec<_>, Vec<_>) = process_ids
            .into_iter()
            .map(|process_id| {
                let (events, receiver) = mpsc::channel(EVENTS);
                ((process_id, Arc::new(Session { events })), receiver)
            })
            .unzip();
        self.shared.sessions.rcu(|sessions| {
            let mut sessions = HashMap::clone(sessions);
            sessions.extend(added.iter().cloned());
            sessions
        });
        receivers
    }

    pub fn unregister(&self, process_id: &str) {
        self.shared.unregister(process_id);
    }
}

impl Shared {
    fn pending(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<i64, oneshot::Sender<Result<Value, Error>>>> {
        self.pending.lock().expect("nobody panics with it")
    }

    fn unregister(&self, process_id: &str) {
        self.sessions.rcu(|sessions| {
            let mut sessions = HashMap::clone(sessions);
            sessions.remove(process_id);
            sessions
        });
    }

    async fn handle(&self, json: &str) -> Result<(), serde_json::Error> {
        let message: Value = serde_json::from_str(json)?;
        if message.get("method").is_some() {
            return self.notify(serde_json::from_value(message)?).await;
        }
        let (id, outcome) = if message.get("error").is_some() {
            let Rejection { id, error } = serde_json::from_value(message)?;
            let ErrorObject { code, message } = error;
            (id, Err(Error::Rejected { code, message }))
        } else {
            let Response { id, result } = serde_json::from_value(message)?;
            (id, Ok(result))
        };
        let slot = self.pending().remove(&id);
        if let Some(slot) = slot {
            let _abandoned = slot.send(outcome);
        }
        Ok(())
    }

    async fn notify(&self, notification: Notification) -> Result<(), serde_json::Error> {
        let Notification { method, params } = notification;
        match method.as_str() {
            "process/output" => {
                let output: Output = serde_json::from_value(params)?;
                if let Some(session) = self.session(&output.process_id) {
                    session.tell(Event::Output(output)).await;
                }
            }
            "process/exited" => {
                let exited: Exited = serde_json::from_value(params)?;
                if let Some(session) = self.session(&exited.process_id) {
                    session.tell(Event::Exited(exited)).await;
                }
            }
            "process/closed" => {
                let closed: Closed = serde_json::from_value(params)?;
                if let Some(session) = self.session(&closed.process_id) {
                    self.unregister(&closed.process_id);
                    session.tell(Event::Closed(closed)).await;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn session(&self, process_id: &str) -> Option<Arc<Session>> {
        self.sessions.load().get(process_id).cloned()
    }

    /// Tells everyone that nothing more comes. A session that is full notices by its channel.
    fn disconnected(&self, reason: &str) {
        let sessions = self.sessions.swap(Arc::default());
        for session in sessions.values() {
            let _full = session.events.try_send(Event::Failed(reason.to_owned()));
        }
        for (_, slot) in self.pending().drain() {
            let _abandoned = slot.send(Err(Error::Disconnected));
        }
    }
}

impl Session {
    async fn tell(&self, event: Event) {
        let _gone = self.events.send(event).await;
    }
}

async fn read(mut stream: SplitStream<WebSocketStream<TcpStream>>, shared: Arc<Shared>) {
    let reason = loop {
        match stream.next().await {
            Some(Ok(Message::Text(json))) => {
                if let Err(error) = shared.handle(&json).await {
                    break error.to_string();
                }
            }
            Some(Ok(Message::Close(_))) | None => break "closed".to_owned(),
            Some(Ok(_)) => {}
            Some(Err(error)) => break error.to_string(),
        }
    };
    shared.disconnected(&reason);
}

async fn write(
    mut sink: SplitSink<WebSocketStream<TcpStream>, Message>,
    mut requests: mpsc::Receiver<Message>,
) {
    while let Some(request) = requests.recv().await {
        if sink.send(request).await.is_err() {
            return;
        }
    }
}
