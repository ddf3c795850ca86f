//! How fast events get from the wire into session actors?
//!
//! `execmux` takes frames from an in-memory socket through framing, parsing, ordering, budgets and
//! mailboxes into the handlers of 100 sessions. `generic_tree` is a baseline for its parsing
//! alone: each message into a `serde_json::Value`, and that into its type.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, System};
use base64_simd::STANDARD;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use execmux::{Config, Mux, SessionEvent};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    sync::mpsc,
};

const SESSIONS: u64 = 100;
const EVENTS: u64 = 10_000;
const SIZES: [usize; 3] = [64, 1024, 8192];

/// The `round`th [`EVENTS`] outputs of `size` bytes, spread over the sessions, as JSON.
fn messages(size: usize, round: u64) -> Vec<String> {
    let chunk = STANDARD.encode_to_string(vec![b'x'; size]);
    let per_session = EVENTS / SESSIONS;
    (0..EVENTS)
        .map(|n| {
            let (process, seq) = (n % SESSIONS, round * per_session + n / SESSIONS + 1);
            format!(
                r#"{{"method":"process/output","params":{{"processId":"p{process}","seq":{seq},"stream":"stdout","chunk":"{chunk}"}}}}"#
            )
        })
        .collect()
}

fn frame(json: &str, frames: &mut Vec<u8>) {
    match json.len() {
        length @ 0..=125 => frames.extend_from_slice(&[0x81, length as u8]),
        length @ 126..=0xFFFF => {
            frames.extend_from_slice(&[0x81, 126]);
            frames.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => unreachable!("no message of these benches is that long"),
    }
    frames.extend_from_slice(json.as_bytes());
}

/// Counts bytes, and reports each event's.
struct Counter(mpsc::UnboundedSender<usize>);

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Counter {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        if let SessionEvent::Output(output) = event {
            self.0.send(output.chunk.len()).unwrap();
        }
    }
}

async fn deliver(size: usize, rounds: u64) -> Duration {
    let (client, server) = duplex(256 << 10);
    let (mut reads, mut peer) = tokio::io::split(server);
    actix::spawn(async move {
        let mut ignored = [0; 4096];
        while reads
            .read(&mut ignored)
            .await
            .is_ok_and(|length| length > 0)
        {}
    });
    // The answer to a handshake that is about to come.
    let mut hello = Vec::new();
    frame(r#"{"id":1,"result":{"environmentInfo":{}}}"#, &mut hello);
    peer.write_all(&hello).await.unwrap();
    let mux = Mux::connect_over(client, Config::new("ws://bench"))
        .await
        .unwrap();
    let (counts, mut counted) = mpsc::unbounded_channel();
    for n in 0..SESSIONS {
        let session = Counter(counts.clone()).start().recipient();
        mux.register(format!("p{n}"), session).await.unwrap();
    }
    let mut elapsed = Duration::ZERO;
    for round in 0..rounds {
        let mut frames = Vec::new();
        for message in messages(size, round) {
            frame(&message, &mut frames);
        }
        let begun = Instant::now();
        let (written, bytes) = tokio::join!(peer.write_all(&frames), async {
            let mut bytes = 0;
            for _ in 0..EVENTS {
                bytes += counted.recv().await.unwrap();
            }
            bytes
        });
        elapsed += begun.elapsed();
        written.unwrap();
        assert_eq!(bytes, size * EVENTS as usize);
    }
    elapsed
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    process_id: String,
    seq: u64,
    chunk: String,
}

fn parse_twice(json: &str) -> usize {
    let mut tree: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(tree["method"], "process/output");
    let output: Output = serde_json::from_value(tree["params"].take()).unwrap();
    std::hint::black_box((&output.process_id, output.seq));
    STANDARD.decode_to_vec(output.chunk).unwrap().len()
}

fn events(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("events");
    group.throughput(Throughput::Elements(EVENTS));
    group.sample_size(10);
    for size in SIZES {
        group.bench_function(BenchmarkId::new("execmux", size), |bencher| {
            bencher.iter_custom(|rounds| System::new().block_on(deliver(size, rounds)));
        });
        let messages = messages(size, 0);
        group.bench_function(BenchmarkId::new("generic_tree", size), |bencher| {
            bencher.iter(|| messages.iter().map(|json| parse_twice(json)).sum::<usize>());
        });
    }
    group.finish();
}

criterion_group!(benches, events);
criterion_main!(benches);
