//! A runtime that ends under a connection, in this thread: what is written to the socket then, and what is told.
#![allow(clippy::unwrap_used)]

mod support;

use actix::System;
use actix_codec::Decoder as _;
use actix_http::ws::{self, Frame};
use bytes::BytesMut;
use execmux::{
    DisconnectReason, FailureReason, Mux, Session, SessionEvent, SessionEvents, Shutdown,
    ShutdownError, StartProcess,
};
use futures_util::FutureExt as _;
use serde_json::Value;
use support::peer::{Peer, config};
use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

/// A client in a system of its own, and what its peer has read.
struct Client {
    system: actix::SystemRunner,
    mux: Mux,
    peer: DuplexStream,
    read: BytesMut,
}

impl Client {
    /// Connects over a pipe that holds so many bytes.
    fn connect(pipe: usize) -> Self {
        let system = System::new();
        let (mux, peer) = system.block_on(async {
            let (client, server) = duplex(pipe);
            let mut peer = Peer::new(server);
            let (mux, ()) = tokio::join!(Mux::connect_over(client, config()), peer.shake_hands());
            (mux.unwrap(), peer.into_socket())
        });
        Client {
            system,
            mux,
            peer,
            read: BytesMut::new(),
        }
    }

    fn register(&self, process_id: &str) -> SessionEvents {
        let (session, events) = Session::stream();
        self.system
            .block_on(self.mux.register(process_id, session))
            .unwrap();
        events
    }

    /// Has a file written that is larger than the pipe, up to where the peer has to read.
    fn fill_pipe(&self, size: usize) {
        self.system.block_on(async {
            let mux = self.mux.clone();
            actix::spawn(async move { mux.write_file("/x", vec![0; size]).await });
            while self.mux.statistics().await.unwrap().queued_bytes == 0 {
                tokio::task::yield_now().await;
            }
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        });
    }

    /// Has the system end, and returns what it wrote then and before: requests, and whether there was a goodbye. What is
    /// left in `read` is no whole frame.
    fn end(self) -> (Vec<Value>, bool, BytesMut) {
        let Client {
            system,
            mux,
            mut peer,
            mut read,
        } = self;
        drop((mux, system));
        assert!(!drain(&mut peer, &mut read), "the socket is closed");
        let (requests, has_goodbye) = frames(&mut read);
        (requests, has_goodbye, read)
    }
}

/// Reads what there is, without any task having its turn. Returns false at the end.
fn drain(peer: &mut DuplexStream, read: &mut BytesMut) -> bool {
    loop {
        match peer.read_buf(read).now_or_never() {
            None => return true,
            Some(Ok(0)) => return false,
            Some(read) => {
                read.unwrap();
            }
        }
    }
}

/// Splits what was read into requests and the rest that is no frame. Checks that a goodbye comes last, if any does.
fn frames(read: &mut BytesMut) -> (Vec<Value>, bool) {
    let mut codec = ws::Codec::new().max_size(1 << 30);
    let (mut requests, mut has_goodbye) = (Vec::new(), false);
    while let Some(frame) = codec.decode(read).unwrap() {
        assert!(!has_goodbye, "{frame:?} comes behind the goodbye");
        match frame {
            Frame::Text(text) => requests.push(serde_json::from_slice(&text).unwrap()),
            Frame::Close(_) => has_goodbye = true,
            other => panic!("{other:?}"),
        }
    }
    (requests, has_goodbye)
}

fn summary(requests: &[Value]) -> Vec<(&str, Option<&str>)> {
    requests
        .iter()
        .map(|it| {
            (
                it["method"].as_str().unwrap(),
                it["params"]["processId"].as_str(),
            )
        })
        .collect()
}

fn failed(events: &mut SessionEvents) {
    match events.recv().now_or_never() {
        Some(Some(SessionEvent::Failed(failed))) => assert!(
            matches!(
                failed.reason,
                FailureReason::Disconnected(DisconnectReason::Closed)
            ),
            "{failed:?}"
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn p13_processes_are_terminated_when_the_system_ends_under_the_mux() {
    // The handle may be dropped before the system, or outlive it.
    for is_dropped_first in [true, false] {
        let client = Client::connect(1 << 16);
        let mut events = ["a", "b"].map(|id| client.register(id));
        let mux = (!is_dropped_first).then(|| client.mux.clone());
        let (mut requests, has_goodbye, _) = client.end();
        requests.sort_by_key(|it| it["params"]["processId"].to_string());
        let expected = ["a", "b"].map(|id| ("process/terminate", Some(id)));
        assert_eq!(summary(&requests), expected);
        assert!(has_goodbye);
        events.iter_mut().for_each(failed);
        if let Some(mux) = mux {
            let outcome = mux.shutdown().now_or_never().unwrap();
            assert!(
                matches!(outcome, Err(ShutdownError::ArbiterStopped)),
                "{outcome:?}"
            );
        }
    }
}

#[test]
fn p14_a_shutdown_after_the_system_has_ended_is_no_error_if_no_process_ran() {
    let client = Client::connect(1 << 16);
    let mux = client.mux.clone();
    client.end();
    mux.shutdown().now_or_never().unwrap().unwrap();
}

#[test]
fn p13_half_a_frame_is_finished_before_processes_are_terminated_when_the_system_ends() {
    let mut client = Client::connect(1 << 16);
    let _events = client.register("p");
    client.fill_pipe(70 << 10);
    assert!(drain(&mut client.peer, &mut client.read));
    let (requests, has_goodbye, rest) = client.end();
    let expected = [("fs/writeFile", None), ("process/terminate", Some("p"))];
    assert_eq!(summary(&requests), expected);
    assert!(has_goodbye && rest.is_empty());
}

#[test]
fn p10_half_a_frame_is_followed_by_nothing_when_the_socket_takes_no_more() {
    let client = Client::connect(1 << 16);
    let _events = client.register("p");
    client.fill_pipe(200 << 10);
    let (requests, has_goodbye, rest) = client.end();
    assert!(requests.is_empty() && !has_goodbye, "{requests:?}");
    assert_eq!(rest.len(), 1 << 16, "what the pipe held");
}

#[test]
fn p13_a_queued_start_is_not_overtaken_by_the_end_of_its_process_when_the_system_ends() {
    let mut client = Client::connect(1 << 16);
    let _events = client.register("runs");
    client.fill_pipe(70 << 10);
    client.system.block_on(async {
        let mux = client.mux.clone();
        actix::spawn(async move {
            let (session, _events) = Session::stream();
            let process = StartProcess::new("starts", ["true"], "/");
            mux.start(process, session).await
        });
        while client.mux.statistics().await.unwrap().calls_in_flight < 2 {
            tokio::task::yield_now().await;
        }
    });
    assert!(drain(&mut client.peer, &mut client.read));
    let (requests, has_goodbye, _) = client.end();
    let expected = [
        ("fs/writeFile", None),
        ("process/terminate", Some("runs")),
        ("process/start", Some("starts")),
        ("process/terminate", Some("starts")),
    ];
    assert_eq!(summary(&requests), expected);
    assert!(has_goodbye);
}

#[test]
fn p14_processes_that_are_left_alone_are_not_terminated_when_the_system_ends() {
    let client = Client::connect(1 << 16);
    let _events = client.register("p");
    client.system.block_on(async {
        let detach = client.mux.router().send(Shutdown::detach());
        // Long enough for the router to be told, and not for the peer to close.
        actix::spawn(detach);
        tokio::task::yield_now().await;
    });
    let (requests, _, _) = client.end();
    assert_eq!(summary(&requests), [], "{requests:?}");
}

/// A supervisor gives a program some seconds to end, however many connections it has.
#[test]
fn p13_many_connections_wait_together_for_their_servers() {
    const CONNECTIONS: usize = 16;
    let system = System::new();
    let mut ends = Vec::new();
    for _ in 0..CONNECTIONS {
        let end = system.block_on(async {
            let (client, server) = duplex(1 << 16);
            let mut peer = Peer::new(server);
            let (mux, ()) = tokio::join!(Mux::connect_over(client, config()), peer.shake_hands());
            let mux = mux.unwrap();
            let (session, events) = Session::stream();
            mux.register("p", session).await.unwrap();
            (mux, events, peer.into_socket())
        });
        ends.push(end);
    }
    let begun = std::time::Instant::now();
    drop(system);
    // One after the other would take 4 s.
    assert!(begun.elapsed().as_secs() < 2, "{:?}", begun.elapsed());
    for (mux, _events, mut peer) in ends {
        drop(mux);
        let mut read = BytesMut::new();
        assert!(!drain(&mut peer, &mut read), "the socket is closed");
        let (requests, has_goodbye) = frames(&mut read);
        assert_eq!(
            summary(&requests),
            [("process/terminate", Some("p"))],
            "and it was said"
        );
        assert!(has_goodbye);
    }
}
