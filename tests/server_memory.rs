//! What floods of requests cost the server in memory: no more than its limits, whoever reads no answers.
//!
//! Alone in its file, as the allocator counts for the whole process.
#![allow(clippy::unwrap_used)]
#![cfg(all(feature = "server", unix))]

mod support;

use std::time::{Duration, Instant};

use execmux::server::{Server, ServerConfig};
use futures_util::future::join_all;
use peak_alloc::PeakAlloc;
use serde_json::{Value, json};
use support::{checked, raw::Raw, soon};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

/// Tables, tasks, buffers on the way, and the test itself.
const SLACK: usize = 8 * MIB;

async fn start(change: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = ServerConfig::new();
    config.limits.max_queued_bytes = 8 * MIB;
    config.limits.max_stdin_bytes = 4 * MIB;
    config.limits.max_held_bytes = 32 * MIB;
    config.limits.max_retained_bytes = 8 * MIB;
    change(&mut config);
    soon(Server::start(config)).await.unwrap()
}

/// A client that writes raw bytes, and reads only when it wants to.
struct Socket(TcpStream);

impl Socket {
    async fn connect(server: &Server) -> Self {
        let mut socket = soon(TcpStream::connect(server.address())).await.unwrap();
        let upgrade = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
        soon(socket.write_all(upgrade.as_bytes())).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(soon(socket.read_u8()).await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"), "{answer:?}");
        Socket(socket)
    }

    /// Connects and introduces itself. The answer stays unread.
    async fn greet(server: &Server) -> Self {
        let mut socket = Socket::connect(server).await;
        socket
            .ask(1, "initialize", &json!({"clientName": "raw"}))
            .await;
        socket.write(&text(r#"{"method":"initialized"}"#)).await;
        // Until the answer is there, only small messages are allowed.
        let mut begun = [0; 2];
        soon(socket.0.read_exact(&mut begun)).await.unwrap();
        socket
    }

    /// Writes, and returns false if the server takes no more for a while, or has ended the connection.
    async fn write(&mut self, bytes: &[u8]) -> bool {
        let writing = self.0.write_all(bytes);
        matches!(
            tokio::time::timeout(Duration::from_secs(2), writing).await,
            Ok(Ok(()))
        )
    }

    async fn ask(&mut self, id: usize, method: &str, params: &Value) -> bool {
        let request = json!({"id": id, "method": method, "params": params});
        self.write(&text(&request.to_string())).await
    }

    /// Returns true if the server has ended the connection.
    async fn has_ended(&mut self) -> bool {
        let mut rest = Vec::new();
        tokio::time::timeout(Duration::from_secs(10), self.0.read_to_end(&mut rest))
            .await
            .is_ok()
    }
}

/// The header of a masked frame. The mask changes nothing.
fn header(length: u64) -> Vec<u8> {
    let mut header = vec![0x81, 0x80 | 127];
    header.extend(length.to_be_bytes());
    header.extend([0; 4]);
    header
}

fn text(text: &str) -> Vec<u8> {
    let mut frame = header(text.len() as u64);
    frame.extend(text.as_bytes());
    frame
}

/// Carries out an attack, and checks what it made the server hold at most.
async fn attack(name: &str, most: usize, server: Server, attack: impl AsyncFnOnce(&Server)) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    attack(&server).await;
    let peak = ALLOCATOR.peak_usage().saturating_sub(before);
    println!(
        "{name}: {} KiB at most, {} KiB allowed",
        peak >> 10,
        most >> 10
    );
    assert!(peak <= most, "{name}: {peak} bytes, more than {most}");
    let stopping = Instant::now();
    server.stop().await;
    assert!(
        stopping.elapsed() < Duration::from_secs(5),
        "{name}: the server stops late"
    );
}

async fn huge_header(server: &Server) {
    for length in [1 << 40, u64::MAX, (64 << 10) + 1] {
        let mut socket = Socket::connect(server).await;
        let piece = vec![b' '; 64 << 10];
        let mut taken = socket.write(&header(length)).await;
        for _ in 0..512 {
            taken = taken && socket.write(&piece).await;
        }
        assert!(
            !taken || socket.has_ended().await,
            "32 MiB of {length} were taken"
        );
    }
    // Afterwards up to the limit, in fragments too.
    let mut socket = Socket::greet(server).await;
    socket.write(&header((64 << 20) + 1)).await;
    assert!(socket.has_ended().await);
}

async fn messages_that_do_not_end(server: &Server) {
    let mut sockets = Vec::new();
    let piece = vec![b' '; MIB];
    for _ in 0..24 {
        let mut socket = Socket::greet(server).await;
        socket.write(&header(8 << 20)).await;
        for _ in 0..7 {
            if !socket.write(&piece).await {
                break;
            }
        }
        sockets.push(socket);
    }
    let ended = join_all(sockets.iter_mut().map(|socket| async {
        let mut byte = [0; 4096];
        let read = tokio::time::timeout(Duration::from_millis(500), async {
            while matches!(socket.0.read(&mut byte).await, Ok(1..)) {}
        });
        read.await.is_ok()
    }));
    let ended = ended.await.into_iter().filter(|ended| *ended).count();
    assert!((16..24).contains(&ended), "{ended} of 24 were refused");
}

async fn unread_files(server: &Server, path: &str) {
    let mut socket = Socket::greet(server).await;
    for id in 0..78 {
        socket.ask(id, "fs/readFile", &json!({"path": path})).await;
    }
    // Nobody reads, and so the server takes no more requests at some time.
    assert!(!flooded(&mut socket).await);
}

/// Sends requests until the server takes no more. Returns false then.
async fn flooded(socket: &mut Socket) -> bool {
    let status = text(r#"{"id":1,"method":"environment/status"}"#).repeat(1000);
    for _ in 0..2000 {
        if !socket.write(&status).await {
            return false;
        }
    }
    true
}

async fn unread_output(server: &Server) {
    let mut raw = greeted(server).await;
    let start = json!({"processId": "p", "argv": ["head", "-c", "1048576", "/dev/zero"], "cwd": "file:///",
        "env": {"PATH": "/usr/bin:/bin"}, "tty": false});
    raw.call("process/start", start).await.unwrap();
    raw.closed("p").await;
    raw.notifications.clear();
    for id in 0..300 {
        let read = json!({"id": id, "method": "process/read", "params": {"processId": "p"}});
        raw.send(&read.to_string()).await;
    }
    // All are answered, as soon as somebody reads.
    for _ in 0..300 {
        let answer = raw.answer().await.unwrap();
        let length = answer["result"]["chunks"].as_array().unwrap().len();
        assert!(length >= 128, "{answer}");
    }
}

async fn greeted(server: &Server) -> Raw {
    Raw::greet(&server.url(), None).await.0
}

async fn unread_writes(server: &Server) {
    let mut raw = greeted(server).await;
    let start = json!({"processId": "p", "argv": ["sleep", "60"], "cwd": "file:///",
        "env": {"PATH": "/usr/bin:/bin"}, "tty": false, "pipeStdin": true});
    raw.call("process/start", start).await.unwrap();
    let chunk = "A".repeat(4 << 20);
    for id in 0..30 {
        let params = json!({"processId": "p", "chunk": chunk, "writeId": id.to_string()});
        let write = json!({"id": id, "method": "process/write", "params": params});
        raw.send(&write.to_string()).await;
    }
    // One has its place, one waits, and the others are refused with the reason.
    let mut refused = 0;
    while refused < 27 {
        let answer = raw.answer().await.unwrap();
        if let Some(error) = answer.get("error") {
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("does not read its stdin"), "{message}");
            refused += 1;
        }
    }
}

async fn ended_processes(server: &Server) {
    let mut raw = greeted(server).await;
    for n in 0..40 {
        let id = format!("p{n}");
        let start = json!({"processId": id, "argv": ["head", "-c", "1048576", "/dev/zero"],
            "cwd": "file:///", "env": {"PATH": "/usr/bin:/bin"}, "tty": false});
        raw.call("process/start", start).await.unwrap();
        raw.closed(&id).await;
        raw.notifications.clear();
    }
    let mut retained = 0;
    for n in 0..40 {
        let read = raw
            .call("process/read", json!({"processId": format!("p{n}")}))
            .await;
        let read = read.unwrap();
        assert_eq!(
            (&read["exited"], &read["closed"]),
            (&json!(true), &json!(true))
        );
        retained += usize::from(!read["chunks"].as_array().unwrap().is_empty());
    }
    assert!((6..=8).contains(&retained), "{retained} of 40 are retained");
}

async fn silent_sockets(server: &Server) {
    let mut sockets = Vec::new();
    for _ in 0..300 {
        sockets.push(Socket::connect(server).await);
    }
    for socket in &mut sockets {
        assert!(socket.has_ended().await);
    }
    let mut introduced = greeted(server).await;
    let refused = introduced.call("environment/status", json!({})).await;
    assert_eq!(refused.unwrap(), json!({"status": "ready"}));
}

#[actix::test]
async fn p4_p10_no_flood_makes_the_server_hold_more_than_its_limits() {
    checked(async {
        let directory = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("server-memory-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("large");
        std::fs::write(&file, vec![0; 8 << 20]).unwrap();
        let path = format!("file://{}", file.display());

        let server = start(|_| {}).await;
        attack("a header that lies", 2 * MIB + SLACK, server, huge_header).await;
        let server = start(|_| {}).await;
        attack(
            "messages that do not end",
            64 * MIB + SLACK,
            server,
            messages_that_do_not_end,
        )
        .await;
        let server = start(|_| {}).await;
        let files = async |server: &Server| unread_files(server, &path).await;
        attack("unread files", 48 * MIB + SLACK, server, files).await;
        let server = start(|_| {}).await;
        attack("unread reads", 32 * MIB + SLACK, server, unread_output).await;
        let server = start(|_| {}).await;
        attack("unread writes", 48 * MIB + SLACK, server, unread_writes).await;
        let server = start(|_| {}).await;
        attack("ended processes", 16 * MIB + SLACK, server, ended_processes).await;
        let short = |config: &mut ServerConfig| {
            config.limits.initialize_timeout = Duration::from_millis(500);
        };
        attack(
            "silent sockets",
            SLACK + 8 * MIB,
            start(short).await,
            silent_sockets,
        )
        .await;
        std::fs::remove_dir_all(directory).unwrap();
    })
    .await;
}
