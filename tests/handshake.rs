//! From a URL to an open connection, and all that can go wrong on the way.
#![allow(clippy::unwrap_used)]

mod support;

use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};

use actix_http::ws;
use execmux::{Config, ConnectError, DisconnectReason, Mux, protocol::PathSpelling};
use serde_json::{Value, json};
use support::{
    checked,
    listener::{acceptance, respond_once, serve_once, upgrade_once},
    peer::{Peer, config, frame},
    soon,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    net::TcpListener,
    time::{Instant, pause},
};

async fn connect(url: String) -> Result<Mux, ConnectError> {
    soon(Mux::connect(Config::new(url))).await
}

/// Runs a handshake against a peer that does what `script` says.
async fn shake(script: impl AsyncFnOnce(&mut Peer)) -> Result<Mux, ConnectError> {
    let (client, server) = duplex(1 << 16);
    let mut peer = Peer::new(server);
    let (connected, _peer) = tokio::join!(Mux::connect_over(client, config()), async {
        script(&mut peer).await;
        peer
    });
    connected
}

#[actix::test]
async fn a_wrong_url_is_told_before_anything_is_dialled() {
    checked(async {
        for url in [
            "",
            "nonsense",
            "http://127.0.0.1:1",
            "wss://127.0.0.1:1",
            "ws://",
        ] {
            let error = connect(url.into()).await.unwrap_err();
            assert!(
                matches!(error, ConnectError::InvalidUrl { .. }),
                "{url}: {error}"
            );
        }
    })
    .await;
}

#[actix::test]
async fn nobody_listening_is_unreachable() {
    checked(async {
        let unused = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = connect(format!("ws://me:secret@{unused}/?token=secret"))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::Unreachable { .. }),
            "{error:?}"
        );
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains(&unused.to_string()) && !shown.contains("secret"),
            "{shown}"
        );
    })
    .await;
}

#[actix::test]
async fn a_refused_upgrade_is_told_with_its_status() {
    checked(async {
        for (response, code) in [
            (
                "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n",
                401,
            ),
            ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", 403),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 404),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", 200),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", 503),
        ] {
            let error = connect(format!("ws://{}", respond_once(response).await))
                .await
                .unwrap_err();
            match error {
                ConnectError::UpgradeRefused { status, .. } => assert_eq!(status, code),
                other => panic!("{code}: {other:?}"),
            }
        }
    })
    .await;
}

#[actix::test]
async fn a_refused_upgrade_tells_how_long_to_wait() {
    checked(async {
        for (response, expected) in [
            (
                "HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
                Some(7),
            ),
            (
                "HTTP/1.1 429 Too Many Requests\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n",
                Some(0),
            ),
            ("HTTP/1.1 503 Service Unavailable\r\nretry-after: soon\r\n\r\n", None),
            ("HTTP/1.1 502 Bad Gateway\r\n\r\n", None),
        ] {
            let error = connect(format!("WS://{}", respond_once(response).await))
                .await
                .unwrap_err();
            match error {
                ConnectError::UpgradeRefused { retry_after, .. } => {
                    assert_eq!(retry_after, expected.map(Duration::from_secs), "{response}");
                }
                other => panic!("{response}: {other:?}"),
            }
        }
    })
    .await;
}

/// Answers one connection after the other, each with the next of these, and then no more.
async fn respond(responses: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    actix::spawn(async move {
        for response in responses {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            socket.write_all(response.as_bytes()).await.unwrap();
        }
    });
    address
}

#[actix::test]
async fn a_first_connect_is_tried_again_where_that_is_asked_for() {
    const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\n\r\n";
    const AWAY: &str = "HTTP/1.1 502 Bad Gateway\r\n\r\n";
    const MANY: &str = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\n\r\n";
    const LATE: &str = "HTTP/1.1 504 Gateway Timeout\r\n\r\n";
    const WRONG: &str = "HTTP/1.1 401 Unauthorized\r\n\r\n";
    checked(async {
        for (connect_retry, expected) in [(Duration::ZERO, 503), (Duration::MAX, 401)] {
            let address = respond(&[BUSY, AWAY, MANY, LATE, WRONG]).await;
            let mut config = Config::new(format!("ws://{address}"));
            config.connect_retry = connect_retry;
            match soon(Mux::connect(config)).await.unwrap_err() {
                ConnectError::UpgradeRefused { status, .. } => assert_eq!(status, expected),
                other => panic!("{other:?}"),
            }
        }
        // What is no exec-server will not be one.
        let address = respond(&["SSH-2.0-OpenSSH_9.2\r\n"]).await;
        let mut config = Config::new(format!("ws://{address}"));
        config.connect_retry = Duration::MAX;
        let error = soon(Mux::connect(config)).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::NotWebSocket { .. }),
            "{error:?}"
        );
    })
    .await;
}

#[actix::test]
async fn a_first_connect_is_tried_for_as_long_as_asked_for_and_not_longer() {
    checked(async {
        for (connect_retry, server_comes, expected) in
            [(60, 20, Ok(20)), (60, 600, Err(60)), (0, 1, Err(0))]
        {
            pause();
            let begun = Instant::now();
            let mut config = config();
            config.connect_retry = Duration::from_secs(connect_retry);
            let dialled = Rc::new(Cell::new(0));
            let count = dialled.clone();
            let connected = Mux::connect_through(config, move || {
                count.set(count.get() + 1);
                let is_there = begun.elapsed() >= Duration::from_secs(server_comes);
                let (client, server) = duplex(1 << 16);
                if is_there {
                    actix::spawn(async move {
                        let mut peer = Peer::new(server);
                        peer.shake_hands().await;
                        peer.rest().await;
                    });
                }
                async move {
                    match is_there {
                        true => Ok(client),
                        false => Err(std::io::Error::other("nobody is there")),
                    }
                }
            });
            let connected = soon(connected).await;
            let elapsed = begun.elapsed().as_secs();
            match expected {
                Ok(least) => assert!(connected.is_ok() && (least..least + 3).contains(&elapsed)),
                Err(most) => {
                    let error = connected.unwrap_err();
                    assert!(
                        matches!(error, ConnectError::Unreachable { .. }),
                        "{error:?}"
                    );
                    assert!(elapsed <= most && elapsed + 3 > most, "{elapsed}");
                    assert_eq!(dialled.get() == 1, connect_retry == 0);
                }
            }
            tokio::time::resume();
        }
    })
    .await;
}

#[actix::test]
async fn what_is_no_websocket_is_told() {
    checked(async {
    for response in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n",
    ] {
        let error = connect(format!("ws://{}", respond_once(response).await))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::NotWebSocket { .. }),
            "{response:?}: {error:?}"
        );
    }
    })
    .await;
}

/// A proxy whose server is not there yet takes the connection and ends it.
#[actix::test]
async fn a_connection_that_ends_without_an_answer_may_be_made_again() {
    checked(async {
        let error = connect(format!("ws://{}", respond_once("").await))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::Unreachable { .. }),
            "{error:?}"
        );
        assert!(error.is_retryable());
    })
    .await;
}

#[actix::test]
async fn a_server_that_does_not_answer_the_upgrade_times_out() {
    checked(async {
        let address = serve_once(|_, socket| async move {
            std::future::pending::<()>().await;
            drop(socket);
        })
        .await;
        let mut config = Config::new(format!("ws://me:secret@{address}"));
        config.connect_timeout = Duration::from_millis(50);
        let error = soon(Mux::connect(config)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("no connection to ws://{address}/ within 50ms")
        );
    })
    .await;
}

#[actix::test]
async fn what_comes_right_behind_the_upgrade_is_not_lost() {
    checked(async {
        let address = serve_once(|head, socket| async move {
            let answer = json!({"id": 1, "result": {"environmentInfo": {}}}).to_string();
            let mut said = acceptance(&head).into_bytes();
            said.extend_from_slice(&frame(ws::Message::Text(answer.into())));
            let mut peer = Peer::new(socket);
            peer.bytes(&said).await;
            while peer.frame().await.is_some() {}
        })
        .await;
        connect(format!("ws://{address}")).await.unwrap();
    })
    .await;
}

#[actix::test]
async fn p11_credentials_go_to_loopback_in_a_header_and_nowhere_else() {
    checked(async {
        for (url_credentials, token, expected) in [
            ("", Some("t0ken"), "authorization: Bearer t0ken"),
            ("me:p%40ss@", None, "authorization: Basic bWU6cEBzcw=="),
            ("me:p%40ss@", Some("t0ken"), "authorization: Bearer t0ken"),
        ] {
            let (heads, head) = tokio::sync::oneshot::channel();
            let address = serve_once(|head, _socket| async move {
                heads.send(head).unwrap();
            })
            .await;
            let mut config = Config::new(format!("ws://{url_credentials}{address}"));
            config.bearer_token = token.map(Into::into);
            let error = soon(Mux::connect(config)).await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains("t0ken"));
            let head = soon(head).await.unwrap();
            assert!(head.contains(expected), "{head}");
            assert!(
                !head.contains("p%40ss") && !head.to_lowercase().contains("origin"),
                "{head}"
            );
            assert!(
                !head.to_lowercase().contains("sec-websocket-extensions"),
                "{head}"
            );
        }
    })
    .await;
}

#[actix::test]
async fn p11_credentials_are_not_sent_in_the_clear_to_other_hosts() {
    checked(async {
        let mut config = Config::new("ws://exec.invalid:1");
        config.bearer_token = Some("t0ken".into());
        let error = Mux::connect(config).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::PlaintextCredentials { .. }),
            "{error:?}"
        );
        let error = Mux::connect(Config::new("ws://me:secret@exec.invalid:1"))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::PlaintextCredentials { .. }),
            "{error:?}"
        );
    })
    .await;
}

#[actix::test]
async fn the_handshake_introduces_the_client() {
    checked(async {
        let address = upgrade_once(|mut peer| async move {
            let initialize = peer.expect("initialize").await;
            assert_eq!(initialize.params, json!({"clientName": "my client"}));
            peer.answer(
                &initialize,
                json!({"sessionId": "s", "environmentInfo": {}}),
            )
            .await;
            assert_eq!(
                peer.json().await,
                json!({"method": "initialized", "params": {}})
            );
            while peer.frame().await.is_some() {}
        })
        .await;
        let mut config = Config::new(format!("ws://{address}"));
        config.client_name = "my client".into();
        soon(Mux::connect(config)).await.unwrap();
    })
    .await;
}

#[actix::test]
async fn p12_older_servers_are_asked_for_what_they_speak() {
    checked(async {
        let shell = json!({"shell": {"name": "sh", "path": "/bin/sh"}});
        let with_cwd = json!({"shell": {"name": "sh", "path": "/bin/sh"}, "cwd": null});
        let (plain, uri) = (PathSpelling::Plain, PathSpelling::Uri);
        // What it says to initialize, to environment/info, to fs/close if it is asked, and what that means:
        // paths, whether writes are deduplicated, and the window.
        for (initialized, environment, close, expected) in [
            (json!({}), Err(-32601), None, (plain, false, None)),
            (
                json!({"sessionId": "s"}),
                Err(-32601),
                None,
                (plain, false, Some(10)),
            ),
            (
                json!({"sessionId": "s"}),
                Ok(shell.clone()),
                Some(Err(-32601)),
                (plain, false, Some(10)),
            ),
            (
                json!({"sessionId": "s"}),
                Ok(shell),
                Some(Ok(json!({}))),
                (plain, true, Some(30)),
            ),
            (
                json!({"sessionId": "s"}),
                Ok(with_cwd),
                None,
                (uri, true, Some(30)),
            ),
            (
                json!({"sessionId": "s", "later": 1}),
                Ok(json!("nonsense")),
                Some(Err(-32601)),
                (plain, false, Some(10)),
            ),
        ] {
            let mux = shake(async |peer| {
                let initialize = peer.expect("initialize").await;
                peer.answer(&initialize, initialized).await;
                peer.json().await;
                // Without files in pieces it may be one that knows no signals.
                let is_blocky = close.as_ref().is_none_or(Result::is_ok);
                let signal = (!is_blocky).then(|| Ok(json!({})));
                let answers = [
                    ("environment/info", Some(environment)),
                    ("fs/close", close),
                    ("process/signal", signal),
                ];
                for (method, answer) in answers {
                    let Some(answer) = answer else { continue };
                    let request = peer.expect(method).await;
                    match answer {
                        Ok(result) => peer.answer(&request, result).await,
                        Err(code) => peer.reject(&request, code, "stub").await,
                    }
                }
            })
            .await
            .unwrap();
            let dialect = mux.server().await.unwrap().dialect;
            let (paths, deduplicates_writes, window) = expected;
            assert_eq!(dialect.paths, paths);
            assert_eq!(dialect.deduplicates_writes, deduplicates_writes);
            assert_eq!(dialect.resume_window, window.map(Duration::from_secs));
        }
    })
    .await;
}

#[actix::test]
async fn p12_newer_servers_are_known_by_what_they_can_do() {
    checked(async {
        for (capabilities, window) in [
            (json!({}), 30),
            (json!({"shellSnapshotV2": true}), 30),
            (json!({"fileWriteStreaming": false}), 30),
            (json!({"fileWriteStreaming": true}), 80),
            (json!({"fsWatchMissing": true}), 80),
        ] {
            let environment = json!({"cwd": null, "capabilities": capabilities});
            let mux = shake(async |peer| {
                let initialize = peer.expect("initialize").await;
                let initialized = json!({"sessionId": "s", "environmentInfo": environment});
                peer.answer(&initialize, initialized).await;
            })
            .await
            .unwrap();
            let dialect = mux.server().await.unwrap().dialect;
            assert!(dialect.deduplicates_writes);
            assert_eq!(dialect.resume_window, Some(Duration::from_secs(window)));
        }
    })
    .await;
}

#[actix::test]
async fn p12_what_a_newer_server_tells_of_itself_may_be_anything() {
    checked(async {
        for told in [
            json!({"shell": {"path": null}}),
            json!({"cwd": 7, "later": []}),
            json!("later"),
        ] {
            let mux = shake(async |peer| {
                let initialize = peer.expect("initialize").await;
                peer.answer(
                    &initialize,
                    json!({"sessionId": 7, "environmentInfo": told}),
                )
                .await;
            })
            .await
            .unwrap();
            let server = mux.server().await.unwrap();
            assert_eq!(
                (server.dialect.paths, server.environment),
                (PathSpelling::Uri, None)
            );
        }
    })
    .await;
}

#[actix::test]
async fn pings_and_notifications_during_the_handshake_do_no_harm() {
    checked(async {
        let mux = shake(async |peer| {
            let initialize = peer.expect("initialize").await;
            peer.message(ws::Message::Ping("x".into())).await;
            assert_eq!(peer.frame().await, Some(ws::Frame::Pong("x".into())));
            peer.closed("stray", 1).await;
            peer.send(json!({"method": "later/thing"})).await;
            peer.answer(&initialize, json!({"environmentInfo": {}}))
                .await;
        })
        .await;
        mux.unwrap();
    })
    .await;
}

#[actix::test]
async fn an_answer_in_the_handshake_may_look_like_a_large_file() {
    checked(async {
        let mux = shake(async |peer| {
            let initialize = peer.expect("initialize").await;
            peer.answer(&initialize, json!({"dataBase64": "A".repeat(2 << 20)}))
                .await;
            assert_eq!(peer.json().await["method"], "initialized");
            let info = peer.expect("environment/info").await;
            peer.reject(&info, -32601, "stub").await;
        });
        mux.await.unwrap();
    })
    .await;
}

#[actix::test]
async fn what_is_no_exec_server_is_told() {
    checked(async {
        type Script = fn(i64) -> Value;
        let scripts: [(&str, Script); 7] = [
            ("a string", |id| json!({"id": id, "result": "hello"})),
            ("a list", |id| json!({"id": id, "result": [1]})),
            ("no result", |id| json!({"id": id})),
            ("another id", |id| json!({"id": id + 5, "result": {}})),
            (
                "an echo",
                |id| json!({"id": id, "method": "initialize", "params": {}}),
            ),
            (
                "not understood",
                |_| json!({"id": -1, "error": {"code": -32600, "message": "what?"}}),
            ),
            ("no JSON-RPC", |_| json!(["hello"])),
        ];
        for (what, script) in scripts {
            let error = shake(async |peer| {
                let initialize = peer.expect("initialize").await;
                peer.send(script(initialize.id)).await;
            })
            .await
            .unwrap_err();
            assert!(
                matches!(error, ConnectError::NotExecServer { .. }),
                "{what}: {error:?}"
            );
        }
        let raw: [(&str, &[u8]); 5] = [
            ("garbage text", b"\x81\x05hello"),
            ("binary", b"\x82\x02{}"),
            ("not UTF-8", b"\x81\x01\xff"),
            ("not a frame", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            ("oversized", b"\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff"),
        ];
        for (what, bytes) in raw {
            let error = shake(async |peer| peer.bytes(bytes).await)
                .await
                .unwrap_err();
            assert!(
                matches!(error, ConnectError::NotExecServer { .. }),
                "{what}: {error:?}"
            );
        }
    })
    .await;
}

#[actix::test]
async fn a_refused_handshake_is_told_with_code_and_words() {
    checked(async {
        let error = shake(async |peer| {
            let initialize = peer.expect("initialize").await;
            peer.reject(&initialize, -32602, "missing field").await;
        })
        .await
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "ws://peer.test/ refused the handshake: missing field (-32602)"
        );
    })
    .await;
}

#[actix::test]
async fn a_server_gone_in_the_handshake_is_told() {
    checked(async {
        let (client, server) = duplex(1 << 16);
        drop(server);
        let error = Mux::connect_over(client, config()).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::HandshakeDisconnected { .. }),
            "at once: {error:?}"
        );
        let (client, server) = duplex(1 << 16);
        let mut peer = Peer::new(server);
        let (connected, ()) = tokio::join!(Mux::connect_over(client, config()), async move {
            let initialize = peer.expect("initialize").await;
            peer.answer(&initialize, json!({})).await;
            peer.json().await;
        });
        match connected.unwrap_err() {
            ConnectError::HandshakeDisconnected {
                reason:
                    DisconnectReason::PeerClosed { code: None } | DisconnectReason::WriteFailed(_),
                ..
            } => {}
            other => panic!("later: {other:?}"),
        }
        let error = shake(async |peer| {
            peer.message(ws::Message::Close(Some(ws::CloseCode::Away.into())))
                .await
        })
        .await
        .unwrap_err();
        match error {
            ConnectError::HandshakeDisconnected {
                reason: DisconnectReason::PeerClosed { code: Some(1001) },
                ..
            } => {}
            other => panic!("with a close frame: {other:?}"),
        }
    })
    .await;
}

#[actix::test]
async fn a_server_that_does_not_answer_the_handshake_times_out() {
    checked(async {
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        let error = shake(async |_| {}).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::HandshakeTimeout { .. }),
            "{error:?}"
        );
        assert_eq!(begun.elapsed().as_secs(), 10);
    })
    .await;
}
