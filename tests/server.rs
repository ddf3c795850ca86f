//! The crate's own server, with the crate's own client.

#![cfg(all(feature = "server", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use execmux::{
    Config, ConnectError, Mux, ProcessId,
    protocol::StartProcess,
    server::{Auth, Server, ServerConfig, ServerError, SignedToken},
};
use serde_json::{Value, json};
use support::{checked, jwt, raw::Raw, recorder::Recorder, soon};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn start() -> (Server, Mux) {
    let server = soon(Server::start(ServerConfig::new())).await.unwrap();
    let mux = soon(Mux::connect(Config::new(server.url()))).await.unwrap();
    (server, mux)
}

fn shell(script: &str) -> StartProcess {
    StartProcess::new(ProcessId::unique(), ["sh", "-c", script], "/").env("PATH", "/usr/bin:/bin")
}

#[actix::test]
async fn a_pipe_process_runs_to_its_end() {
    checked(async {
        let (server, mux) = start().await;
        let (session, recording) = Recorder::start_session();
        let process = shell("echo out; echo err >&2; exit 3");
        soon(mux.start(process, session)).await.unwrap();
        let record = recording.record().await;
        assert_eq!(record.stdout, b"out\n");
        assert_eq!(record.stderr, b"err\n");
        assert_eq!(record.exit_code(), 3);
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn five_megabytes_arrive_whole() {
    checked(async {
        let (server, mux) = start().await;
        let (session, recording) = Recorder::start_session();
        soon(mux.start(shell("head -c 5000000 /dev/zero"), session))
            .await
            .unwrap();
        let record = recording.record().await;
        assert_eq!((record.stdout.len(), record.exit_code()), (5_000_000, 0));
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn a_terminated_process_ends_and_an_unknown_one_is_not_running() {
    checked(async {
        let (server, mux) = start().await;
        let (session, mut recording) = Recorder::start_session();
        let process = shell("echo up; exec sleep 60");
        let id = process.process_id().clone();
        soon(mux.start(process, session)).await.unwrap();
        recording.began().await;
        assert!(soon(mux.terminate(&id)).await.unwrap().running);
        assert_eq!(recording.record().await.exit_code(), 137);
        assert!(!soon(mux.terminate("nobody")).await.unwrap().running);
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn an_interrupted_process_ends() {
    checked(async {
        let (server, mux) = start().await;
        let (session, mut recording) = Recorder::start_session();
        let script = "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.1; done";
        let process = shell(script);
        let id = process.process_id().clone();
        soon(mux.start(process, session)).await.unwrap();
        recording.began().await;
        soon(mux.interrupt(&id)).await.unwrap();
        let record = recording.record().await;
        assert_eq!(record.stdout, b"up\ncaught\n");
        assert_eq!(record.exit_code(), 9);
        soon(mux.shutdown()).await.unwrap();
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn a_method_that_is_not_there_is_refused() {
    checked(async {
        let (server, mux) = start().await;
        soon(mux.shutdown()).await.unwrap();
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        let error = raw.call("http/request", json!({})).await.unwrap_err();
        assert_eq!(error["code"], -32601, "{error}");
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn an_address_that_others_reach_is_refused() {
    let mut config = ServerConfig::new();
    config.listen = "0.0.0.0:0".parse().unwrap();
    let error = soon(Server::start(config)).await.unwrap_err();
    assert!(matches!(error, ServerError::Unauthenticated(_)), "{error}");
}

fn process(id: &str, script: &str) -> Value {
    json!({"processId": id, "argv": ["sh", "-c", script], "cwd": "file:///tmp",
           "env": {"PATH": "/usr/bin:/bin"}, "tty": false, "pipeStdin": true})
}

fn with(mut params: Value, key: &str, value: Value) -> Value {
    params[key] = value;
    params
}

async fn listen(change: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = ServerConfig::new();
    change(&mut config);
    soon(Server::start(config)).await.unwrap()
}

/// What a process has written to a stream, as it was told.
fn output(raw: &Raw, id: &str, stream: &str) -> Vec<u8> {
    raw.notifications
        .iter()
        .filter(|message| {
            message["method"] == "process/output"
                && message["params"]["processId"] == id
                && message["params"]["stream"] == stream
        })
        .flat_map(|message| {
            let chunk = message["params"]["chunk"].as_str().unwrap();
            base64_simd::STANDARD.decode_to_vec(chunk).unwrap()
        })
        .collect()
}

/// Waits until a process has written something new. Returns what it was.
async fn more_output(raw: &mut Raw, id: &str) -> Value {
    loop {
        let message = raw.next().await.unwrap();
        raw.notifications.push(message.clone());
        if message["method"] == "process/output" && message["params"]["processId"] == id {
            return message["params"].clone();
        }
    }
}

fn exists(pid: i32) -> bool {
    // A zombie that its new parent has not reaped is as good as gone.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}

/// Looks again and again, for as long as a test may take.
async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[actix::test]
async fn closed_stdin_is_an_end_of_file_behind_what_was_written() {
    checked(async {
        let server = listen(|_| {}).await;
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        raw.call("process/start", process("p", "cat; echo end"))
            .await
            .unwrap();
        let id = json!({"processId": "p"});
        raw.call(
            "process/write",
            json!({"processId": "p", "writeId": "1", "chunk": "aGkK"}),
        )
        .await
        .unwrap();
        let closed = raw.call("process/closeStdin", id.clone()).await.unwrap();
        assert_eq!(closed["status"], "closed");
        let late = json!({"processId": "p", "writeId": "2", "chunk": "aGkK"});
        let late = raw.call("process/write", late).await.unwrap();
        assert_eq!(late["status"], "stdinClosed");
        raw.closed("p").await;
        assert_eq!(output(&raw, "p", "stdout"), b"hi\nend\n");
        let nobody = json!({"processId": "nobody"});
        let nobody = raw.call("process/closeStdin", nobody).await.unwrap();
        assert_eq!(nobody["status"], "unknownProcess");
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn a_terminal_has_the_size_it_is_given() {
    checked(async {
        let server = listen(|_| {}).await;
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        let start = with(
            process("p", "stty size; read x; stty size"),
            "tty",
            json!(true),
        );
        let start = with(start, "size", json!({"rows": 7, "cols": 33}));
        raw.call("process/start", start).await.unwrap();
        if output(&raw, "p", "pty").is_empty() {
            more_output(&mut raw, "p").await;
        }
        let resize = json!({"processId": "p", "size": {"rows": 9, "cols": 44}});
        raw.call("process/resize", resize).await.unwrap();
        raw.call(
            "process/write",
            json!({"processId": "p", "writeId": "1", "chunk": "Cg=="}),
        )
        .await
        .unwrap();
        raw.closed("p").await;
        let said = String::from_utf8(output(&raw, "p", "pty")).unwrap();
        assert!(
            said.starts_with("7 33\r\n") && said.ends_with("9 44\r\n"),
            "{said}"
        );
        let zero = json!({"processId": "p", "size": {"rows": 0, "cols": 1}});
        assert_eq!(
            raw.call("process/resize", zero).await.unwrap_err()["code"],
            -32602
        );
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn any_signal_reaches_the_process() {
    checked(async {
        let server = listen(|_| {}).await;
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        for (signal, code) in [("SIGTERM", 5), ("SIGUSR1", 6)] {
            let script = format!(
                "trap 'exit {code}' {}; echo up; while :; do sleep 0.05; done",
                &signal[3..]
            );
            raw.call("process/start", process(signal, &script))
                .await
                .unwrap();
            if output(&raw, signal, "stdout").is_empty() {
                more_output(&mut raw, signal).await;
            }
            let params = json!({"processId": signal, "signal": signal});
            raw.call("process/signal", params).await.unwrap();
            raw.closed(signal).await;
            let exited = (raw.notifications.iter())
                .find(|message| {
                    message["method"] == "process/exited"
                        && message["params"]["processId"] == signal
                })
                .unwrap();
            assert_eq!(exited["params"]["exitCode"], code);
        }
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn a_window_holds_a_process_back_until_its_output_is_consumed() {
    const BYTES: usize = 1_000_000;
    const WINDOW: usize = 20_000;
    checked(async {
        let server = listen(|_| {}).await;
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        let start = process("p", &format!("yes | head -c {BYTES}"));
        raw.call("process/start", with(start, "outputWindow", json!(WINDOW)))
            .await
            .unwrap();
        let mut consumed = 0;
        while output(&raw, "p", "stdout").len() < WINDOW {
            consumed = more_output(&mut raw, "p").await["seq"].as_u64().unwrap();
        }
        // Nothing is behind that, not even for one who waits for it.
        let read = json!({"processId": "p", "afterSeq": consumed, "waitMs": 200});
        let read = raw.call("process/read", read).await.unwrap();
        assert_eq!((&read["nextSeq"], &read["exited"]), (&json!(consumed + 1), &json!(false)));
        let held = output(&raw, "p", "stdout").len();
        assert!(held < WINDOW + 8192, "{held}");
        let consume = |seq: u64| json!({"method": "process/consumed", "params": {"processId": "p", "seq": seq}});
        let mut total = held;
        raw.notifications.clear();
        while total < BYTES {
            raw.send(&consume(consumed).to_string()).await;
            let params = more_output(&mut raw, "p").await;
            // The exit may have its place before the last of the output.
            consumed = params["seq"].as_u64().unwrap();
            total += base64_simd::STANDARD
                .decode_to_vec(params["chunk"].as_str().unwrap())
                .unwrap()
                .len();
        }
        assert_eq!(total, BYTES);
        raw.closed("p").await;
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn p9_a_stuck_stdin_holds_nobody_else_up() {
    checked(async {
        let server = listen(|_| {}).await;
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        raw.call("process/start", process("stuck", "exec sleep 600"))
            .await
            .unwrap();
        raw.call("process/start", process("cat", "exec cat"))
            .await
            .unwrap();
        let chunk = base64_simd::STANDARD.encode_to_string(vec![b'x'; 4096]);
        for n in 0..300 {
            let write = json!({"processId": "stuck", "writeId": n.to_string(), "chunk": chunk});
            raw.send(&json!({"id": n, "method": "process/write", "params": write}).to_string())
                .await;
        }
        let write = json!({"processId": "cat", "writeId": "1", "chunk": "aGkK"});
        raw.send(&json!({"id": "cat", "method": "process/write", "params": write}).to_string())
            .await;
        let mut answered = 0;
        loop {
            let answer = raw.answer().await.unwrap();
            if answer["id"] == "cat" {
                break assert_eq!(answer["result"]["status"], "accepted");
            }
            answered += 1;
        }
        assert!((128..300).contains(&answered), "{answered}");
        if output(&raw, "cat", "stdout").is_empty() {
            more_output(&mut raw, "cat").await;
        }
        assert_eq!(output(&raw, "cat", "stdout"), b"hi\n");
        soon(server.stop()).await;
    })
    .await;
}

#[cfg(target_os = "linux")]
#[actix::test]
async fn an_interrupted_process_ends_also_where_its_server_would_not() {
    let again = tokio::process::Command::new("sh")
        .args([
            "-c",
            r#"trap "" INT; exec "$0" --exact an_interrupted_process_ends"#,
        ])
        .arg(std::env::current_exe().unwrap())
        .output();
    let output = soon(again).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

/// Says this to a server, and returns the first line and the body of what it answers.
async fn http(server: &Server, head: &str) -> (String, String) {
    let mut socket = soon(TcpStream::connect(server.address())).await.unwrap();
    let request = format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n");
    soon(socket.write_all(request.as_bytes())).await.unwrap();
    let mut answer = String::new();
    soon(socket.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.to_owned(), body.to_owned())
}

#[actix::test]
async fn http_is_answered_as_far_as_it_goes() {
    checked(async {
        let server =
            listen(|config| config.auth = Auth::Token("a secret of 22 letters".to_owned())).await;
        for (head, status) in [
            ("GET /readyz HTTP/1.1", "200"),
            ("POST /readyz HTTP/1.1", "405"),
            ("GET /other HTTP/1.1", "404"),
            ("GET /readyz HTTP/1.1\r\nOrigin: http://x", "403"),
            ("GET / HTTP/1.1\r\nOrigin: http://x", "403"),
        ] {
            assert_eq!(http(&server, head).await.0, status, "{head}");
        }
        for (head, reason) in [
            ("GET / HTTP/1.1", "missing websocket bearer token"),
            (
                "GET / HTTP/1.1\r\nAuthorization: Bearer wrong",
                "invalid websocket bearer token",
            ),
            (
                "GET / HTTP/1.1\r\nAuthorization: Basic x",
                "invalid authorization header",
            ),
        ] {
            let (status, body) = http(&server, head).await;
            assert_eq!((&*status, &*body), ("401", reason));
        }
        // The token is right, and only the upgrade is missing.
        let right = http(
            &server,
            "GET / HTTP/1.1\r\nAuthorization: bearer a secret of 22 letters",
        )
        .await;
        assert_eq!(right.0, "400");
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn only_a_token_that_is_signed_in_time_and_for_the_server_lets_a_client_in() {
    const SECRET: [u8; 32] = [7; 32];
    checked(async {
        let mut signed = SignedToken::new(SECRET);
        signed.audience = Some("me".to_owned());
        let server = listen(|config| config.auth = Auth::SignedToken(signed)).await;
        let later = jwt::seconds_from_now(Duration::from_secs(600));
        // The clocks may differ by 30 s.
        let (a_little_before, before) = (later - 620, later - 640);
        let good = json!({"exp": later, "aud": ["you", "me"]});
        for (claims, secret, reason) in [
            (&good, SECRET, None),
            (&json!({"exp": a_little_before, "aud": "me"}), SECRET, None),
            (
                &json!({"exp": before, "aud": "me"}),
                SECRET,
                Some("expired websocket jwt"),
            ),
            (&good, [8; 32], Some("invalid websocket jwt")),
            (
                &json!({"exp": later, "aud": "you"}),
                SECRET,
                Some("websocket jwt audience mismatch"),
            ),
        ] {
            let token = jwt::sign(claims, &secret);
            let mut config = Config::new(server.url());
            config.bearer_token = Some(token.clone());
            let connected = soon(Mux::connect(config)).await;
            let head = format!("GET / HTTP/1.1\r\nAuthorization: Bearer {token}");
            let (status, body) = http(&server, &head).await;
            match (connected, reason) {
                (Ok(mux), None) => {
                    let (session, recording) = Recorder::start_session();
                    soon(mux.start(shell("exit 3"), session)).await.unwrap();
                    assert_eq!(recording.record().await.exit_code(), 3);
                    soon(mux.shutdown()).await.unwrap();
                    assert_eq!(status, "400", "only the upgrade is missing");
                }
                (Err(ConnectError::UpgradeRefused { status: 401, .. }), Some(reason)) => {
                    assert_eq!((&*status, &*body), ("401", reason));
                }
                (connected, reason) => panic!("{claims} {reason:?}: {connected:?}"),
            }
        }
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn a_root_confines_files_and_where_processes_start() {
    checked(async {
        let root = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(&*ProcessId::unique().to_string());
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("a"), "hello").unwrap();
        let server = listen(|config| config.root = Some(root.clone())).await;
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        let inside = format!("file://{}", root.display());
        let read = |path: String| json!({"path": path});
        raw.call("fs/readFile", read(format!("{inside}/a")))
            .await
            .unwrap();
        raw.call("fs/readFile", read("file:///etc/hostname".to_owned()))
            .await
            .unwrap_err();
        raw.call("fs/readFile", read(format!("{inside}/../x")))
            .await
            .unwrap_err();
        raw.call("process/start", process("p", "true"))
            .await
            .unwrap_err();
        raw.call(
            "process/start",
            with(process("p", "true"), "cwd", json!(inside)),
        )
        .await
        .unwrap();
        raw.closed("p").await;
        soon(server.stop()).await;
        std::fs::remove_dir_all(root).unwrap();
    })
    .await;
}

#[actix::test]
async fn p12_a_start_below_a_root_is_refused_with_the_kind_that_it_has_without_one() {
    checked(async {
        let root = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(&*ProcessId::unique().to_string());
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("file"), "hello").unwrap();
        let server = listen(|config| config.root = Some(root.clone())).await;
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        let inside = format!("file://{}", root.display());
        for (cwd, kind) in [
            ("/none", "spawnNotFound"),
            ("/none/x/../y", "spawnNotFound"),
            ("/file", "spawnFailed"),
            ("/file/x", "spawnFailed"),
        ] {
            let cwd = format!("{inside}{cwd}");
            let start = with(process("p", "true"), "cwd", json!(cwd));
            let error = raw.call("process/start", start).await.unwrap_err();
            assert_eq!(
                (&error["code"], &error["data"]["kind"]),
                (&json!(-32603), &json!(kind)),
                "{cwd}: {error}"
            );
        }
        let start = with(process("p", "true"), "cwd", json!(inside));
        let sandboxed = with(start, "sandbox", json!({}));
        let error = raw.call("process/start", sandboxed).await.unwrap_err();
        assert_eq!(error["data"]["kind"], "sandboxUnavailable", "{error}");
        soon(server.stop()).await;
        std::fs::remove_dir_all(root).unwrap();
    })
    .await;
}

/// Starts a shell that ends, and leaves somebody behind. Returns who that is.
async fn leave_somebody(raw: &mut Raw) -> i32 {
    raw.call("process/start", process("p", "sleep 1000 & echo $!"))
        .await
        .unwrap();
    if output(raw, "p", "stdout").is_empty() {
        more_output(raw, "p").await;
    }
    let pid = String::from_utf8(output(raw, "p", "stdout")).unwrap();
    let pid = pid.trim().parse().unwrap();
    assert!(exists(pid));
    pid
}

#[actix::test]
async fn a_session_is_resumed_and_leaves_nothing_when_it_expires() {
    checked(async {
        let server = listen(|config| config.session_window = Duration::from_millis(500)).await;
        let (mut raw, session) = Raw::greet(&server.url(), None).await;
        let pid = leave_somebody(&mut raw).await;
        drop(raw);
        until(|| server.statistics().connections == 0).await;
        let (raw, resumed) = Raw::greet(&server.url(), Some(&session)).await;
        assert_eq!(resumed, session);
        assert!(exists(pid));
        drop(raw);
        until(|| server.statistics().sessions == 0).await;
        until(|| !exists(pid)).await;
        let mut raw = Raw::connect(&server.url()).await;
        let params = json!({"clientName": "x", "resumeSessionId": session});
        assert_eq!(
            raw.call("initialize", params).await.unwrap_err()["code"],
            -32600
        );
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn a_server_that_stops_leaves_nothing() {
    checked(async {
        let server = listen(|_| {}).await;
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        let pid = leave_somebody(&mut raw).await;
        soon(server.stop()).await;
        until(|| !exists(pid)).await;
    })
    .await;
}
