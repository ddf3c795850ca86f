//! What does a session cost the others that does not consume?
//!
//! A process floods its session A; in between, another writes a little to its session B. Measured is
//! the time from that write of the server to B's handler: with A consuming, and with A stopped for
//! good, at its budget. The second should be no more than the first.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, System};
use base64_simd::STANDARD;
use criterion::{Criterion, criterion_group, criterion_main};
use execmux::{Config, Mux, SessionEvent};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    sync::mpsc,
};

/// Outputs for A before each for B, and their size.
const FLOOD: u64 = 64;
const SIZE: usize = 8192;

fn output(process_id: &str, seq: u64, chunk: &str, frames: &mut Vec<u8>) {
    let json = format!(
        r#"{{"method":"process/output","params":{{"processId":"{process_id}","seq":{seq},"stream":"stdout","chunk":"{chunk}"}}}}"#
    );
    frame(&json, frames);
}

fn frame(json: &str, frames: &mut Vec<u8>) {
    let length = u16::try_from(json.len()).unwrap();
    frames.extend_from_slice(&[0x81, 126]);
    frames.extend_from_slice(&length.to_be_bytes());
    frames.extend_from_slice(json.as_bytes());
}

/// A: consumes, or keeps everything.
struct Flooded {
    kept: Option<Vec<SessionEvent>>,
}

impl Actor for Flooded {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Flooded {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        if let Some(kept) = &mut self.kept {
            kept.push(event);
        }
    }
}

/// B: tells when it hears something.
struct Prompt(mpsc::UnboundedSender<Instant>);

impl Actor for Prompt {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Prompt {
    type Result = ();

    fn handle(&mut self, _: SessionEvent, _: &mut Self::Context) {
        self.0.send(Instant::now()).unwrap();
    }
}

async fn latency(a_consumes: bool, rounds: u64) -> Duration {
    let (client, server) = duplex(1 << 20);
    let (mut reads, mut peer) = tokio::io::split(server);
    // Whatever is asked, A's server has nothing to say to it.
    actix::spawn(async move {
        let mut ignored = [0; 4096];
        while reads
            .read(&mut ignored)
            .await
            .is_ok_and(|length| length > 0)
        {}
    });
    let mut hello = Vec::new();
    let padding = " ".repeat(126);
    frame(
        &format!(r#"{{"id":1,"result":{{"environmentInfo":{{}}}}}}{padding}"#),
        &mut hello,
    );
    peer.write_all(&hello).await.unwrap();
    let mux = Mux::connect_over(client, Config::new("ws://bench"))
        .await
        .unwrap();
    let kept = (!a_consumes).then(Vec::new);
    let (heard, mut hears) = mpsc::unbounded_channel();
    mux.register("a", Flooded { kept }.start().recipient())
        .await
        .unwrap();
    mux.register("b", Prompt(heard).start().recipient())
        .await
        .unwrap();
    let large = STANDARD.encode_to_string(vec![b'x'; SIZE]);
    let small = STANDARD.encode_to_string("x");
    let mut elapsed = Duration::ZERO;
    // First fills A's budget.
    for round in 0..rounds + 3 {
        let mut frames = Vec::new();
        for n in 1..=FLOOD {
            output("a", round * FLOOD + n, &large, &mut frames);
        }
        output("b", round + 1, &small, &mut frames);
        let begun = Instant::now();
        let (written, heard) = tokio::join!(peer.write_all(&frames), hears.recv());
        written.unwrap();
        if round >= 3 {
            elapsed += heard.unwrap() - begun;
        }
    }
    elapsed
}

fn isolation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("isolation");
    group.sample_size(20);
    for (name, a_consumes) in [("a_consumes", true), ("a_has_stopped", false)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| System::new().block_on(latency(a_consumes, rounds)));
        });
    }
    group.finish();
}

criterion_group!(benches, isolation);
criterion_main!(benches);
