//! A scripted server: the test says, frame by frame, what it does.

use std::time::Duration;

use actix_codec::{Decoder as _, Encoder as _};
use actix_http::ws;
use bytes::BytesMut;
use execmux::{Config, Mux};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

/// The server's end of a WebSocket after the upgrade.
pub struct Peer<S = DuplexStream> {
    socket: S,
    codec: ws::Codec,
    read: BytesMut,
}

/// A request of the client.
#[derive(Debug)]
pub struct Request {
    pub id: i64,
    pub method: String,
    pub params: Value,
}

/// A config for tests without a socket. Peers that say nothing for a while are let be.
pub fn config() -> Config {
    let mut config = Config::new("ws://peer.test");
    config.ping_interval = Duration::from_secs(30);
    config.silence_timeout = Duration::from_secs(60);
    config
}

/// A message as a server frames it.
pub fn frame(message: ws::Message) -> BytesMut {
    let mut frame = BytesMut::new();
    ws::Codec::new()
        .encode(message, &mut frame)
        .expect("a frame");
    frame
}

impl Peer {
    /// Connects a client to a new peer, which speaks as newer servers do.
    pub async fn connect(config: Config) -> (Mux, Peer) {
        let (client, server) = duplex(1 << 20);
        let mut peer = Peer::new(server);
        let (mux, ()) = tokio::join!(Mux::connect_over(client, config), peer.shake_hands());
        (mux.expect("the peer shakes hands"), peer)
    }
}

/// The links that a client dials after its first.
pub struct Dials(UnboundedReceiver<DuplexStream>);

impl Dials {
    /// Waits until the client dials again.
    pub async fn next(&mut self) -> Peer {
        Peer::new(
            super::soon(self.0.recv())
                .await
                .expect("a client that dials"),
        )
    }

    /// Waits until the client dials again, and resumes the session.
    pub async fn resume(&mut self) -> Peer {
        let mut peer = self.next().await;
        let initialize = peer.initialize_to_resume().await;
        peer.answer(&initialize, json!({"sessionId": "5e5510"}))
            .await;
        assert_eq!(peer.json().await["method"], "initialized");
        peer
    }

    /// Waits until nobody can dial any more.
    pub async fn ended(&mut self) {
        assert!(super::soon(self.0.recv()).await.is_none(), "dialled again");
    }
}

impl Peer {
    /// Connects a client that dials again when its link is lost. The first peer speaks as `initialized`
    /// says; without `environmentInfo`, as servers before 0.139 do.
    pub async fn connect_resumable(config: Config, initialized: Value) -> (Mux, Peer, Dials) {
        let (dialled, dials) = unbounded_channel();
        let mut dials = Dials(dials);
        let connect = move || {
            let (client, server) = duplex(1 << 20);
            let dialled = dialled.send(server);
            async move {
                match dialled {
                    Ok(()) => Ok(client),
                    Err(_) => Err(std::io::Error::other("nobody answers")),
                }
            }
        };
        let shake = async {
            let mut peer = dials.next().await;
            let initialize = peer.expect("initialize").await;
            assert_eq!(initialize.params.get("resumeSessionId"), None);
            let is_old = initialized.get("environmentInfo").is_none();
            peer.answer(&initialize, initialized).await;
            assert_eq!(peer.json().await["method"], "initialized");
            if is_old {
                let info = peer.expect("environment/info").await;
                peer.reject(&info, -32601, "stub").await;
            }
            peer
        };
        let (mux, peer) = tokio::join!(Mux::connect_through(config, connect), shake);
        (mux.expect("the peer shakes hands"), peer, dials)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub async fn initialize_to_resume(&mut self) -> Request {
        let initialize = self.expect("initialize").await;
        assert_eq!(initialize.params["resumeSessionId"], "5e5510");
        initialize
    }

    pub fn new(socket: S) -> Self {
        Peer {
            socket,
            codec: ws::Codec::new().max_size(1 << 30),
            read: BytesMut::new(),
        }
    }

    /// Returns the socket. What was read from it and is no whole frame is lost.
    pub fn into_socket(self) -> S {
        self.socket
    }

    pub async fn shake_hands(&mut self) {
        let initialize = self.request().await;
        assert_eq!(initialize.method, "initialize");
        self.answer(
            &initialize,
            json!({"sessionId": "s", "environmentInfo": {"cwd": null}}),
        )
        .await;
        assert_eq!(self.json().await["method"], "initialized");
    }

    /// Waits for the client's next frame; `None` when it has closed.
    pub async fn frame(&mut self) -> Option<ws::Frame> {
        super::soon(async {
            loop {
                if let Some(frame) = self.codec.decode(&mut self.read).expect("frames are right") {
                    return Some(frame);
                }
                let read = self.socket.read_buf(&mut self.read).await;
                if read.is_err() || read.is_ok_and(|length| length == 0) {
                    return None;
                }
            }
        })
        .await
    }

    /// Waits for the client's next message.
    pub async fn json(&mut self) -> Value {
        match self.frame().await {
            Some(ws::Frame::Text(text)) => serde_json::from_slice(&text).expect("JSON"),
            other => panic!("expected a message, got {other:?}"),
        }
    }

    /// Waits for the client's next request.
    pub async fn request(&mut self) -> Request {
        let mut json = self.json().await;
        Request {
            id: json["id"]
                .as_i64()
                .unwrap_or_else(|| panic!("no request: {json}")),
            method: json["method"].as_str().expect("a method").to_owned(),
            params: json["params"].take(),
        }
    }

    /// Waits for a request of this method.
    pub async fn expect(&mut self, method: &str) -> Request {
        let request = self.request().await;
        assert_eq!(request.method, method, "{request:?}");
        request
    }

    pub async fn answer(&mut self, request: &Request, result: Value) {
        self.send(json!({"id": request.id, "result": result})).await;
    }

    pub async fn reject(&mut self, request: &Request, code: i64, message: &str) {
        let error = json!({"code": code, "message": message});
        self.send(json!({"id": request.id, "error": error})).await;
    }

    pub async fn output(&mut self, process_id: &str, seq: u64, stream: &str, text: &str) {
        let chunk = base64_simd::STANDARD.encode_to_string(text);
        let params = json!({"processId": process_id, "seq": seq, "stream": stream, "chunk": chunk});
        self.send(json!({"method": "process/output", "params": params}))
            .await;
    }

    pub async fn exited(&mut self, process_id: &str, seq: u64, exit_code: i32) {
        let params = json!({"processId": process_id, "seq": seq, "exitCode": exit_code});
        self.send(json!({"method": "process/exited", "params": params}))
            .await;
    }

    pub async fn closed(&mut self, process_id: &str, seq: u64) {
        let params = json!({"processId": process_id, "seq": seq});
        self.send(json!({"method": "process/closed", "params": params}))
            .await;
    }

    pub async fn send(&mut self, json: Value) {
        self.message(ws::Message::Text(json.to_string().into()))
            .await;
    }

    /// Sends messages that the client gets with one read.
    pub async fn send_at_once(&mut self, messages: impl IntoIterator<Item = Value>) {
        let mut frames = Vec::new();
        for message in messages {
            frames.extend_from_slice(&frame(ws::Message::Text(message.to_string().into())));
        }
        self.bytes(&frames).await;
    }

    pub async fn message(&mut self, message: ws::Message) {
        self.bytes(&frame(message)).await;
    }

    /// Reads to the end, and returns how many bytes that were.
    pub async fn rest(&mut self) -> usize {
        let mut rest = Vec::new();
        super::soon(self.socket.read_to_end(&mut rest))
            .await
            .expect("the client closes");
        rest.len()
    }

    /// Sends bytes as they are. The client may have closed.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        let _closed = self.socket.write_all(bytes).await;
    }
}
