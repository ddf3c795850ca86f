//! How many instructions does one event take, and one call?
//!
//! They are counted, not timed, so that a change of a few percent shows on any machine: by valgrind, in
//! this executable started again, over a socket in memory. It runs a shape with two numbers of events or
//! calls; the difference is what those between them took. The peer's part is in it: a few copies, as all
//! that it writes is there before.
//!
//! It fails when a shape takes more than a tenth more than `benches/instructions.txt` says. Another
//! compiler or C library moves that by some percent; from run to run it moves by 0.1 %.
//!
//! `cargo bench --bench instructions -- [--record]`. Without valgrind it is skipped, unless
//! `EXECMUX_REQUIRE_VALGRIND` is set.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    cell::Cell,
    fmt::Write as _,
    fs,
    io::ErrorKind,
    process::{Command, ExitCode, Stdio},
    rc::Rc,
};

use actix::{Actor, Context, Handler, System};
use base64_simd::STANDARD;
use execmux::{Config, Mux, Session, SessionEvent};
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    sync::Notify,
};

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// How much more than recorded is too much.
const TOLERANCE: f64 = 0.10;

/// What is run to be counted. Everything is prepared for the larger number in both cases.
const COUNTS: [u64; 2] = [2_000, 12_000];

struct Shape {
    name: &'static str,
    /// Does so many of what is counted.
    run: fn(u64),
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "event",
        run: |events| deliver(events, Counter::in_context),
    },
    Shape {
        name: "event_message",
        run: |events| deliver(events, Counter::with_messages),
    },
    Shape {
        name: "call",
        run: call,
    },
];

/// Makes this executable run a shape, as its first argument.
const ARGUMENT: &str = "shape";

const SESSIONS: u64 = 100;

const IN_FLIGHT: u64 = 64;

fn push_frame(json: &str, frames: &mut Vec<u8>) {
    frames.push(0x81);
    match u8::try_from(json.len()) {
        Ok(length) if length <= 125 => frames.push(length),
        _ => {
            frames.push(126);
            frames.extend_from_slice(&u16::try_from(json.len()).unwrap().to_be_bytes());
        }
    }
    frames.extend_from_slice(json.as_bytes());
}

/// Connects, and answers the handshake. The first request after it is still to be read.
async fn connect() -> (Mux, DuplexStream) {
    let (client, mut peer) = duplex(256 << 10);
    let mut hello = Vec::new();
    push_frame(r#"{"id":1,"result":{"environmentInfo":{}}}"#, &mut hello);
    peer.write_all(&hello).await.unwrap();
    let mux = Mux::connect_over(client, Config::new("ws://bench")).await;
    (mux.unwrap(), peer)
}

/// What all sessions have heard.
#[derive(Default)]
struct Tally {
    left: Cell<u64>,
    all: Notify,
}

struct Counter(Rc<Tally>);

impl Counter {
    fn with_messages(tally: Rc<Tally>) -> Session {
        Counter(tally).start().recipient().into()
    }

    fn in_context(tally: Rc<Tally>) -> Session {
        let mut session = None;
        Counter::create(|context| {
            session = Some(Session::in_context(context));
            Counter(tally)
        });
        session.unwrap()
    }
}

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Counter {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        if let SessionEvent::Output(output) = event {
            assert_eq!(output.chunk.len(), 64);
            self.0.left.set(self.0.left.get() - 1);
            if self.0.left.get() == 0 {
                self.0.all.notify_one();
            }
        }
    }
}

/// Delivers so many events of 64 bytes to 100 sessions in turn.
fn deliver(events: u64, session: fn(Rc<Tally>) -> Session) {
    let chunk = STANDARD.encode_to_string([b'x'; 64]);
    let mut frames = Vec::new();
    let mut end = 0;
    for n in 0..COUNTS[1] {
        let (process, seq) = (n % SESSIONS, n / SESSIONS + 1);
        let json = format!(
            r#"{{"method":"process/output","params":{{"processId":"p{process}","seq":{seq},"stream":"stdout","chunk":"{chunk}"}}}}"#
        );
        push_frame(&json, &mut frames);
        if n + 1 == events {
            end = frames.len();
        }
    }
    System::new().block_on(async {
        let (mux, peer) = connect().await;
        let (mut reads, mut peer) = tokio::io::split(peer);
        let tally = Rc::<Tally>::default();
        tally.left.set(events);
        for n in 0..SESSIONS {
            let session = session(tally.clone());
            mux.register(format!("p{n}"), session).await.unwrap();
        }
        let ignored = actix::spawn(async move { reads.read_to_end(&mut Vec::new()).await });
        let (written, ()) = tokio::join!(peer.write_all(&frames[..end]), tally.all.notified());
        written.unwrap();
        ignored.abort();
    });
}

/// Makes so many calls, 64 at a time.
fn call(calls: u64) {
    let mut answers = Vec::new();
    // Where the answer to each id begins.
    let mut begins = Vec::new();
    for id in 0..COUNTS[1] + 100 {
        begins.push(answers.len());
        let json = format!(
            r#"{{"id":{id},"result":{{"isDirectory":true,"isFile":false,"createdAtMs":0,"modifiedAtMs":0}}}}"#
        );
        push_frame(&json, &mut answers);
    }
    System::new().block_on(async {
        let (mux, peer) = connect().await;
        let answering = actix::spawn(answer(peer, answers, begins));
        let left = Rc::new(Cell::new(calls));
        let callers = (0..IN_FLIGHT).map(|_| {
            let (mux, left) = (mux.clone(), left.clone());
            actix::spawn(async move {
                while left.get() > 0 {
                    left.set(left.get() - 1);
                    assert!(mux.metadata("/").await.unwrap().is_directory);
                }
            })
        });
        for made in join_all(callers).await {
            made.unwrap();
        }
        answering.abort();
    });
}

/// Answers all requests of a read at once. Their ids count up, so that only the first has to be looked at.
async fn answer(mut peer: DuplexStream, answers: Vec<u8>, begins: Vec<usize>) {
    let mut read = Vec::with_capacity(64 << 10);
    let mut next_id = None;
    loop {
        if peer.read_buf(&mut read).await.unwrap() == 0 {
            return;
        }
        let (mut begin, mut requests) = (0, 0);
        while let Some(&[_, length]) = read[begin..].first_chunk() {
            let length = usize::from(length & 0x7F);
            assert!(length <= 125, "a request is longer than was thought");
            let Some(frame) = read.get(begin..begin + 6 + length) else {
                break;
            };
            begin += frame.len();
            if next_id.is_none() {
                next_id = id(frame);
            }
            if next_id.is_some() {
                requests += 1;
            }
        }
        read.drain(..begin);
        if let Some(first) = next_id
            && requests > 0
        {
            next_id = Some(first + requests);
            let answers = &answers[begins[first]..begins[first + requests]];
            peer.write_all(answers).await.unwrap();
        }
    }
}

/// Finds the id of a call, unless it is a message of the handshake.
fn id(frame: &[u8]) -> Option<usize> {
    let (mask, payload) = (&frame[2..6], &frame[6..]);
    let unmasked = payload.iter().zip(mask.iter().cycle());
    let json: Vec<_> = unmasked.map(|(byte, mask)| byte ^ mask).collect();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    (json["method"] == "fs/getMetadata").then(|| json["id"].as_u64().unwrap() as usize)
}

/// Counts the instructions of one run of a shape; `None` without valgrind.
fn count(shape: &str, count: u64) -> Option<u64> {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args([ARGUMENT, shape, &count.to_string()])
        .stdin(Stdio::null())
        .output();
    let run = match run {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        run => run.unwrap(),
    };
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{shape} fails: {said}");
    let collected = said
        .lines()
        .find_map(|line| line.split("Collected :").nth(1));
    Some(
        collected
            .and_then(|count| count.trim().parse().ok())
            .unwrap(),
    )
}

/// Returns how many instructions each one takes.
fn each(shape: &str) -> Option<f64> {
    let [few, many] = COUNTS;
    let difference = count(shape, many)? - count(shape, few)?;
    Some(difference as f64 / (many - few) as f64)
}

fn recorded(shape: &str) -> Option<f64> {
    let recorded = fs::read_to_string(RECORDED).ok()?;
    let mut lines = recorded.lines();
    lines.find_map(|line| line.strip_prefix(shape)?.strip_prefix(' ')?.parse().ok())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut is_to_be_recorded = false;
    while let Some(argument) = arguments.next() {
        if argument == ARGUMENT {
            let shape = arguments.next().unwrap();
            let shape = SHAPES.iter().find(|known| known.name == shape).unwrap();
            (shape.run)(arguments.next().unwrap().parse().unwrap());
            return ExitCode::SUCCESS;
        }
        is_to_be_recorded |= argument == "--record";
    }
    let mut record = String::new();
    let mut is_more = false;
    for Shape { name: shape, .. } in SHAPES {
        let Some(each) = each(shape) else {
            eprintln!("skipped: there is no valgrind");
            let is_required = std::env::var_os("EXECMUX_REQUIRE_VALGRIND").is_some();
            return ExitCode::from(u8::from(is_required));
        };
        writeln!(record, "{shape} {each:.0}").unwrap();
        let Some(before) = recorded(shape) else {
            println!("{shape}: {each:.0} instructions, none recorded");
            is_more |= !is_to_be_recorded;
            continue;
        };
        let more = each / before - 1.0;
        let percent = more * 100.0;
        println!("{shape}: {each:.0} instructions, {percent:+.1} % on the {before:.0} recorded");
        is_more |= more > TOLERANCE;
    }
    if is_to_be_recorded {
        fs::write(RECORDED, record).unwrap();
    } else if is_more {
        eprintln!(
            "more than {:.0} % over what is recorded; if it is worth it, record it anew: `cargo bench --bench instructions -- --record`",
            TOLERANCE * 100.0
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
