//! A link that is slow, and a server whose answers are late: neither is taken for one that is gone.

use std::time::Duration;

use actix_http::ws;
use execmux::{CallError, Mux};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, duplex},
    time::{Instant, pause, sleep, timeout},
};

use crate::support::{
    checked,
    peer::{Peer, config},
};

/// Connects over a pipe that holds 64 KiB.
async fn connect_over_narrow_pipe() -> (Mux, tokio::io::DuplexStream) {
    let (client, server) = duplex(64 << 10);
    let mut peer = Peer::new(server);
    let mut config = config();
    config.silence_timeout = Duration::from_secs(10);
    config.ping_interval = Duration::from_secs(5);
    config.call_timeout = Duration::from_secs(600);
    let (mux, ()) = tokio::join!(Mux::connect_over(client, config), peer.shake_hands());
    (mux.unwrap(), peer.into_socket())
}

/// The ping waits behind the message, and so does its answer.
#[actix::test]
async fn p2_a_peer_that_takes_a_large_message_slowly_is_not_silent() {
    checked(async {
        pause();
        let (mux, mut peer) = connect_over_narrow_pipe().await;
        let written = mux.clone();
        let written = actix::spawn(async move { written.write_file("/x", vec![0; 4 << 20]).await });
        let mut read = vec![0; 64 << 10];
        let begun = Instant::now();
        // Three quarters of it, one piece a second.
        for _ in 0..60 {
            sleep(Duration::from_secs(1)).await;
            peer.read_exact(&mut read).await.unwrap();
        }
        assert!(!written.is_finished(), "{:?}", begun.elapsed());
        // The peer takes nothing any more: that is silence.
        let stalled = Instant::now();
        match timeout(Duration::from_secs(30), written)
            .await
            .unwrap()
            .unwrap()
        {
            Err(CallError::Disconnected { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(stalled.elapsed() >= Duration::from_secs(5));
        drop(mux);
    })
    .await;
}

/// The server answers the question whether it answers anything, only late: its link had stalled.
#[actix::test]
async fn p9_a_late_answer_clears_a_server_of_the_suspicion_that_it_hangs() {
    checked(async {
        pause();
        let mut config = config();
        config.call_timeout = Duration::from_secs(60);
        config.write_timeout = Duration::from_secs(10);
        config.probe_timeout = Duration::from_secs(5);
        let server = json!({"sessionId": "5e5510", "environmentInfo": {"cwd": null}});
        let (mux, mut peer, _dials) = Peer::connect_resumable(config, server).await;
        let written = mux.clone();
        let written = actix::spawn(async move { written.write("p", "x").await });
        let write = peer.expect("process/write").await;
        let begun = Instant::now();
        let (mut stalled_until, mut questions) = (None, 0);
        // Each question is answered after 7 s, in which nothing is heard; after that the server is heard all the time.
        while begun.elapsed() < Duration::from_secs(50) {
            let Ok(frame) = timeout(Duration::from_millis(200), peer.frame()).await else {
                if stalled_until.is_none_or(|until| Instant::now() >= until) {
                    peer.message(ws::Message::Pong("".into())).await;
                }
                continue;
            };
            match frame.expect("the link holds") {
                ws::Frame::Text(text) => {
                    let asked: Value = serde_json::from_slice(&text).unwrap();
                    assert_eq!(asked["method"], "process/read", "{asked}");
                    questions += 1;
                    stalled_until = Some(Instant::now() + Duration::from_secs(7));
                    sleep(Duration::from_secs(7)).await;
                    let nothing = json!({"chunks": [], "nextSeq": 1, "exited": false, "exitCode": null, "closed": false});
                    peer.send(json!({"id": asked["id"], "result": nothing})).await;
                }
                ws::Frame::Ping(_) | ws::Frame::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(questions >= 2, "{questions}");
        peer.answer(&write, json!({"status": "accepted"})).await;
        written.await.unwrap().unwrap();
        drop(mux);
    })
    .await;
}
