//! Many processes at once, and clients that come and go: nothing of them is left.

#![cfg(all(feature = "server", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use execmux::{
    Config, Mux, ProcessId,
    protocol::StartProcess,
    server::{Server, ServerConfig},
};
use peak_alloc::PeakAlloc;
use serde_json::json;
use support::{checked, random::Random, raw::Raw, recorder::Recorder, soon};

/// Counts for the whole program: client, server and test.
#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// How long clients come and go.
const SECONDS: &str = "EXECMUX_SOAK_SECONDS";

/// One after the other: each counts what there is of the whole program.
#[actix::test]
async fn nothing_is_left_of_many() {
    // What the runtime keeps for itself is there from the first server on.
    checked(a_thousand_processes(3)).await;
    let before = descriptors();
    checked(a_thousand_processes(1000)).await;
    until("no descriptor is left", || descriptors() <= before).await;
    checked(clients_that_come_and_go()).await;
    until("no descriptor is left", || descriptors() <= before).await;
    until("no child is left", || children().is_empty()).await;
    checked(rounds_that_cost_no_memory()).await;
}

async fn a_thousand_processes(count: usize) {
    let server = soon(Server::start(ServerConfig::new())).await.unwrap();
    let mux = soon(Mux::connect(Config::new(server.url()))).await.unwrap();
    let mut recordings = Vec::new();
    for n in 0..count {
        let (session, recording) = Recorder::start_session();
        let script = format!("read x; echo {n}; exit {}", n % 100);
        let process = StartProcess::new(ProcessId::unique(), ["sh", "-c", &script], "/")
            .env("PATH", "/usr/bin:/bin")
            .pipe_stdin(true);
        let id = process.process_id().clone();
        soon(mux.start(process, session)).await.unwrap();
        recordings.push((n, id, recording));
    }
    assert_eq!(server.statistics().processes, count);
    for (_, id, _) in &recordings {
        soon(mux.write(id, "\n")).await.unwrap();
    }
    for (n, _, recording) in recordings {
        let record = soon(recording.record()).await;
        assert_eq!(record.stdout, format!("{n}\n").as_bytes());
        assert_eq!(record.exit_code(), i32::try_from(n % 100).unwrap());
    }
    soon(mux.shutdown()).await.unwrap();
    soon(server.stop()).await;
}

/// A server that has had the same load ten times more holds no more bytes than before.
async fn rounds_that_cost_no_memory() {
    const ROUNDS: usize = 10;
    /// 64 bytes for each of the 1,000 processes: less than anything that could be kept of one, with its id. It has
    /// been 0; a table or a queue may have another size by chance.
    const GROWTH: usize = ROUNDS * PROCESSES * 64;
    let mut config = ServerConfig::new();
    config.session_window = Duration::from_millis(10);
    config.forgotten_after = Duration::from_millis(10);
    let server = soon(Server::start(config)).await.unwrap();
    // Tables and pools of threads have their size then.
    for _ in 0..3 {
        a_round(&server).await;
    }
    let before = ALLOCATOR.current_usage();
    for _ in 0..ROUNDS {
        a_round(&server).await;
    }
    // What has ended on another thread is freed there, a moment later.
    let mut now = 0;
    let is_freed = || {
        now = ALLOCATOR.current_usage();
        now <= before + GROWTH
    };
    until("memory has not grown", is_freed).await;
    println!("{before} bytes before, {now} after {ROUNDS} rounds");
    soon(server.stop()).await;
}

/// How many run in a round.
const PROCESSES: usize = 100;

/// A client comes, processes write 64 KiB each, and all of it goes.
async fn a_round(server: &Server) {
    let mux = soon(Mux::connect(Config::new(server.url()))).await.unwrap();
    let mut recordings = Vec::new();
    for _ in 0..PROCESSES {
        let (session, recording) = Recorder::start_session();
        let process = StartProcess::new(
            ProcessId::unique(),
            ["head", "-c", "65536", "/dev/zero"],
            "/",
        )
        .env("PATH", "/usr/bin:/bin");
        soon(mux.start(process, session)).await.unwrap();
        recordings.push(recording);
    }
    for recording in recordings {
        let record = soon(recording.record()).await;
        assert_eq!((record.stdout.len(), record.exit_code()), (65_536, 0));
    }
    soon(mux.shutdown()).await.unwrap();
    drop(mux);
    nothing_counted(server).await;
}

/// The server does not tell when it has nothing any more.
async fn nothing_counted(server: &Server) {
    until("nothing is counted", || {
        let now = server.statistics();
        (now.connections, now.sessions, now.processes) == (0, 0, 0)
    })
    .await;
}

async fn clients_that_come_and_go() {
    let mut config = ServerConfig::new();
    config.session_window = Duration::from_millis(200);
    config.forgotten_after = Duration::from_millis(200);
    let server = soon(Server::start(config)).await.unwrap();
    let seconds = std::env::var(SECONDS).map_or(15, |seconds| seconds.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let clients: Vec<_> = (0..200)
        .map(|n| {
            let (url, random) = (server.url(), Random::of(7, &format!("client {n}")));
            actix::spawn(client(url, random, end))
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    nothing_counted(&server).await;
    until("no child is left", || children().is_empty()).await;
    soon(server.stop()).await;
}

/// Connects, starts this and that, and drops it, again and again.
async fn client(url: String, mut random: Random, end: Instant) {
    const SCRIPTS: [&str; 5] = [
        "true",
        "exec sleep 1000",
        "sleep 1000 & echo $!",
        "exec head -c 100000 /dev/zero",
        "exec cat",
    ];
    let mut last = None;
    for _ in 0..1000 {
        if Instant::now() >= end {
            return;
        }
        let mut raw = Raw::connect(&url).await;
        let resume = if random.chance(30) { last.take() } else { None };
        let params = json!({"clientName": "soak", "resumeSessionId": resume});
        // The session may be over, or not free yet.
        let Ok(greeting) = raw.call("initialize", params).await else {
            continue;
        };
        last = greeting["sessionId"].as_str().map(str::to_owned);
        raw.send(r#"{"method":"initialized"}"#).await;
        for _ in 0..random.below(4) {
            let start = json!({"processId": random.next().to_string(),
                "argv": ["sh", "-c", random.pick(&SCRIPTS)], "cwd": "file:///tmp",
                "env": {"PATH": "/usr/bin:/bin"}, "tty": random.chance(20), "pipeStdin": true});
            match random.chance(80) {
                true => drop(raw.call("process/start", start).await.unwrap()),
                // Gone before there is an answer.
                false => {
                    let start = json!({"id": 1, "method": "process/start", "params": start});
                    raw.send(&start.to_string()).await;
                    break;
                }
            }
        }
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The processes that this one has started, of all its threads.
fn children() -> String {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .collect()
}

/// Looks again and again, for as long as a test may take.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let net = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(
            Instant::now() < net,
            "{what}: {} descriptors, children {:?}, {} bytes",
            descriptors(),
            children(),
            ALLOCATOR.current_usage()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
