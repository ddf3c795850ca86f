//! How a connection ends: with which Close frame, and what is sent before it.

use std::time::Duration;

use execmux::server::{Server, ServerConfig};
use futures_util::{SinkExt as _, StreamExt as _, future::join_all};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Message, http,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::support::{checked, soon};

type Socket = WebSocketStream<TcpStream>;

async fn connect(server: &Server) -> Socket {
    let socket = soon(TcpStream::connect(server.address())).await.unwrap();
    let request = http::Uri::try_from(format!("{}/", server.url())).unwrap();
    let config = WebSocketConfig::default().max_frame_size(None);
    soon(client_async_with_config(request, socket, Some(config)))
        .await
        .unwrap()
        .0
}

async fn send(socket: &mut Socket, message: Value) {
    let text = Message::text(message.to_string());
    soon(socket.send(text)).await.unwrap();
}

async fn greet(socket: &mut Socket) {
    let params = json!({"clientName": "close"});
    send(
        socket,
        json!({"id": 1, "method": "initialize", "params": params}),
    )
    .await;
    send(socket, json!({"method": "initialized"})).await;
    soon(socket.next()).await.unwrap().unwrap();
}

/// Reads to the end of the connection. Returns the texts that came, and the code and the reason of the Close frame.
async fn end(socket: &mut Socket) -> (Vec<String>, Option<(u16, String)>) {
    let mut texts = Vec::new();
    let mut close = None;
    while let Some(Ok(message)) = soon(socket.next()).await {
        match message {
            Message::Text(text) => texts.push(text.to_string()),
            Message::Close(frame) => {
                assert!(close.is_none(), "closed twice");
                close = Some(frame.map_or((1005, String::new()), |frame| {
                    (frame.code.into(), frame.reason.to_string())
                }));
            }
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
    (texts, close)
}

async fn serve() -> Server {
    soon(Server::start(ServerConfig::new())).await.unwrap()
}

#[actix::test]
async fn a_client_that_closes_is_answered_with_what_it_said() {
    checked(async {
        let server = serve().await;
        let frame = |code, reason: &str| {
            Some(CloseFrame {
                code: CloseCode::from(code),
                reason: reason.to_owned().into(),
            })
        };
        let cases = [
            (None, 1005),
            (frame(1000, ""), 1000),
            (frame(1001, "going"), 1001),
            (frame(4321, "own"), 4321),
        ];
        let checks = cases.iter().flat_map(|case| [(case, false), (case, true)]);
        join_all(checks.map(|((sent, answered), is_greeted)| {
            let server = &server;
            async move {
                let mut socket = connect(server).await;
                if is_greeted {
                    greet(&mut socket).await;
                }
                soon(socket.send(Message::Close(sent.clone())))
                    .await
                    .unwrap();
                let (_, close) = end(&mut socket).await;
                assert_eq!(close.map(|(code, _)| code), Some(*answered), "{sent:?}");
            }
        }))
        .await;
        soon(server.stop()).await;
    })
    .await;
}

/// What breaks the protocol of WebSockets, or the one above it: bytes after the upgrade, and the code of the answer.
#[actix::test]
async fn p10_a_client_that_breaks_the_protocol_is_told_how() {
    /// A frame of a client, masked with zeros.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            length @ ..=125 => bytes.push(0x80 | length as u8),
            length @ ..=0xFFFF => {
                bytes.push(0x80 | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(0x80 | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }
    checked(async {
        let server = serve().await;
        let text = |json: &str| frame(0x81, json.as_bytes());
        let cases: Vec<(&str, Vec<u8>, u16)> = vec![
            ("not masked", b"\x81\x02{}".to_vec(), 1002),
            ("a reserved bit", frame(0xC1, b"{}"), 1002),
            ("an unknown opcode", frame(0x83, b"{}"), 1002),
            ("continues nothing", frame(0x80, b"{}"), 1002),
            (
                "a message within another",
                [frame(0x01, b"{"), frame(0x81, b"{}")].concat(),
                1002,
            ),
            ("a long ping", frame(0x89, &[0; 126]), 1002),
            ("a ping in fragments", frame(0x09, b"x"), 1002),
            ("half a code", frame(0x88, b"\x03"), 1002),
            ("a reserved code", frame(0x88, b"\x03\xED"), 1002),
            ("no UTF-8", frame(0x81, b"\xFF"), 1007),
            (
                "no UTF-8 in fragments",
                [frame(0x01, b"\xC3"), frame(0x80, b"(")].concat(),
                1007,
            ),
            ("too big", frame(0x82, &vec![0; 1 << 20]), 1009),
            ("an unknown notification", text(r#"{"method":"x"}"#), 1008),
            (
                "an answer to nothing",
                text(r#"{"id":1,"result":{}}"#),
                1008,
            ),
            (
                "initialized too early",
                text(r#"{"method":"initialized"}"#),
                1008,
            ),
        ];
        // At once: a server takes a second to close what it has ended, for the client to read to the end.
        let checks = cases.into_iter().map(|(name, bytes, code)| {
            let server = &server;
            async move {
                let mut socket = connect(server).await;
                soon(socket.get_mut().write_all(&bytes)).await.unwrap();
                let (texts, close) = end(&mut socket).await;
                assert!(texts.is_empty(), "{name}: {texts:?}");
                let (closed, reason) = close.unwrap_or_else(|| panic!("{name}: no Close frame"));
                assert_eq!(closed, code, "{name}: {reason}");
                assert!(!reason.is_empty(), "{name}");
            }
        });
        join_all(checks).await;
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn a_server_that_stops_says_so_behind_what_it_had_to_say() {
    checked(async {
        let server = serve().await;
        let mut fresh = connect(&server).await;
        let mut greeted = connect(&server).await;
        greet(&mut greeted).await;
        for id in 0..1000 {
            send(
                &mut greeted,
                json!({"id": id, "method": "environment/status"}),
            )
            .await;
        }
        // The last answer is there: all others are on their way.
        let mut seen = 0;
        while seen < 500 {
            soon(greeted.next()).await.unwrap().unwrap();
            seen += 1;
        }
        let (_, (_, of_fresh), (texts, of_greeted)) =
            soon(async { tokio::join!(server.stop(), end(&mut fresh), end(&mut greeted)) }).await;
        assert_eq!(of_fresh.unwrap().0, 1001);
        assert_eq!(of_greeted.unwrap().0, 1001);
        let first: Value = serde_json::from_str(texts.first().map_or("{}", |text| text)).unwrap();
        assert!(texts.is_empty() || first["id"] == seen, "{first}");
    })
    .await;
}

#[actix::test]
async fn p14_a_client_that_does_not_read_does_not_keep_a_server_from_stopping() {
    checked(async {
        let server = serve().await;
        let mut deaf = connect(&server).await;
        greet(&mut deaf).await;
        let start = json!({"processId": "p", "argv": ["cat", "/dev/zero"], "cwd": "file:///",
                           "env": {"PATH": "/usr/bin:/bin"}, "tty": false});
        send(
            &mut deaf,
            json!({"id": 2, "method": "process/start", "params": start}),
        )
        .await;
        // Its output fills the socket. What is answered behind it never comes.
        while server.statistics().processes == 0 {
            tokio::task::yield_now().await;
        }
        let began = std::time::Instant::now();
        soon(server.stop()).await;
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "{:?}",
            began.elapsed()
        );
        drop(deaf);
    })
    .await;
}

/// After the Close frame, the session waits for its client as after any other end.
#[actix::test]
async fn p6_a_session_is_resumed_after_an_orderly_end() {
    checked(async {
        let server = serve().await;
        let mut socket = connect(&server).await;
        let params = json!({"clientName": "close"});
        send(
            &mut socket,
            json!({"id": 1, "method": "initialize", "params": params}),
        )
        .await;
        let answer = soon(socket.next()).await.unwrap().unwrap();
        let answer: Value = serde_json::from_str(answer.to_text().unwrap()).unwrap();
        soon(socket.close(None)).await.unwrap();
        // Not even the end of the old connection is waited for.
        let mut again = connect(&server).await;
        let params =
            json!({"clientName": "close", "resumeSessionId": answer["result"]["sessionId"]});
        send(
            &mut again,
            json!({"id": 1, "method": "initialize", "params": params}),
        )
        .await;
        let resumed = soon(again.next()).await.unwrap().unwrap();
        let resumed: Value = serde_json::from_str(resumed.to_text().unwrap()).unwrap();
        assert_eq!(
            resumed["result"]["sessionId"],
            answer["result"]["sessionId"]
        );
        end(&mut socket).await;
        soon(server.stop()).await;
    })
    .await;
}
