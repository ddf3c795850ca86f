//! What only some servers can do, and what is done on the others.

#![allow(clippy::unwrap_used)]

mod support;

use execmux::{
    CallError, Mux, ProcessId, StartError, StartProcess,
    protocol::{Signal, TerminalSize, WriteStatus},
};
use support::{
    exec_server::{EMBEDDED, ExecServer, scenarios},
    recorder::{Record, Recorder},
    soon,
};

scenarios! {
    input_that_is_known_comes_to_its_end,
    a_process_that_does_not_read_its_input_ends_all_the_same,
    a_start_with_input_that_fails_leaves_nothing,
    stdin_is_closed_where_the_server_can,
    a_terminal_has_its_size_and_another_where_the_server_can,
    signals_are_sent_where_the_server_can,
}

fn shell(server: &ExecServer, script: &str) -> StartProcess {
    StartProcess::new(ProcessId::unique(), ["sh", "-c", script], &server.directory)
        .env("PATH", "/usr/bin:/bin")
}

async fn with_input(mux: &Mux, process: StartProcess, input: impl Into<Vec<u8>>) -> Record {
    let (session, recording) = Recorder::start_session();
    soon(mux.start_with_input(process, session, input.into()))
        .await
        .unwrap();
    recording.record().await
}

fn assert_unsupported(error: &CallError, expected: &str) {
    match error {
        CallError::Unsupported { capability, .. } => assert_eq!(*capability, expected),
        other => panic!("{other}"),
    }
}

async fn input_that_is_known_comes_to_its_end(server: ExecServer) {
    let mux = server.connect().await;
    let record = with_input(&mux, shell(&server, "sort; echo $# >&2; exit 4"), "b\na\n").await;
    assert_eq!((&*record.stdout, record.exit_code()), (&b"a\nb\n"[..], 4));
    assert_eq!(record.stderr, b"0\n", "the arguments are the program's own");
    let record = with_input(&mux, shell(&server, "wc -c"), vec![b'x'; 3_000_000]).await;
    assert_eq!(String::from_utf8_lossy(&record.stdout).trim(), "3000000");
    let record = with_input(&mux, shell(&server, "cat"), "").await;
    assert_eq!((record.stdout.len(), record.exit_code()), (0, 0));
}

async fn a_process_that_does_not_read_its_input_ends_all_the_same(server: ExecServer) {
    let mux = server.connect().await;
    let record = with_input(&mux, shell(&server, "exit 5"), vec![b'x'; 3_000_000]).await;
    assert_eq!(record.exit_code(), 5);
    // What is not written by now is not wanted.
    soon(mux.shutdown()).await.unwrap();
}

async fn a_start_with_input_that_fails_leaves_nothing(server: ExecServer) {
    let mux = server.connect().await;
    let nowhere = server.directory.join("not-there");
    let process = StartProcess::new(ProcessId::unique(), ["cat"], nowhere);
    let (session, _recording) = Recorder::start_session();
    let error = soon(mux.start_with_input(process, session, "x"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, StartError::Call(CallError::Rejected { .. })),
        "{error}"
    );
    let (session, recording) = Recorder::start_session();
    let named = shell(&server, "cat").arg0("dog");
    let started = soon(mux.start_with_input(named, session, "x")).await;
    match started {
        Ok(_) => {
            assert_eq!(server.version, EMBEDDED);
            assert_eq!(recording.record().await.stdout, b"x");
            soon(mux.shutdown()).await.unwrap();
        }
        Err(StartError::Call(error)) => assert_unsupported(&error, "close_stdin"),
        Err(error) => panic!("{error}"),
    }
}

async fn stdin_is_closed_where_the_server_can(server: ExecServer) {
    let mux = server.connect().await;
    let process = shell(&server, "cat; echo end").pipe_stdin(true);
    let id = process.process_id().clone();
    let (session, recording) = Recorder::start_session();
    soon(mux.start(process, session)).await.unwrap();
    if server.version != EMBEDDED {
        let error = soon(mux.close_stdin(&id)).await.unwrap_err();
        assert_unsupported(&error, "close_stdin");
        soon(mux.terminate(&id)).await.unwrap();
        return;
    }
    soon(mux.write(&id, "hello ")).await.unwrap();
    soon(mux.close_stdin(&id)).await.unwrap();
    soon(mux.close_stdin(&id)).await.unwrap();
    let written = soon(mux.write(&id, "too late")).await.unwrap();
    assert_eq!(written.status, WriteStatus::StdinClosed);
    let record = recording.record().await;
    assert_eq!(record.stdout, b"hello end\n");
}

async fn a_terminal_has_its_size_and_another_where_the_server_can(server: ExecServer) {
    let mux = server.connect().await;
    let script = "stty size; trap 'stty size; exit 3' WINCH; echo up; while :; do sleep 0.05; done";
    let process = shell(&server, script)
        .tty(true)
        .size(TerminalSize { rows: 31, cols: 97 });
    let id = process.process_id().clone();
    let (session, mut recording) = Recorder::start_session();
    soon(mux.start(process, session)).await.unwrap();
    recording.began().await;
    let resized = soon(mux.resize(&id, TerminalSize { rows: 7, cols: 11 })).await;
    if server.version != EMBEDDED {
        assert_unsupported(&resized.unwrap_err(), "resize");
        soon(mux.terminate(&id)).await.unwrap();
        let record = recording.record().await;
        assert!(record.pty.starts_with(b"31 97\r\n"), "{record:?}");
        return;
    }
    resized.unwrap();
    let record = recording.record().await;
    let said = String::from_utf8_lossy(&record.pty).into_owned();
    assert!(
        said.starts_with("31 97\r\n") && said.ends_with("7 11\r\n"),
        "{said}"
    );
    assert_eq!(record.exit_code(), 3);
}

async fn signals_are_sent_where_the_server_can(server: ExecServer) {
    let mux = server.connect().await;
    let script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done";
    for (signal, exit_code) in [(Signal::Terminate, 9), (Signal::Kill, 137)] {
        let process = shell(&server, script);
        let id = process.process_id().clone();
        let (session, mut recording) = Recorder::start_session();
        soon(mux.start(process, session)).await.unwrap();
        recording.began().await;
        match soon(mux.signal(&id, signal)).await {
            Ok(_) if server.is_at_least(150) => {
                assert_eq!(recording.record().await.exit_code(), exit_code);
            }
            Ok(_) => {
                recording.record().await;
            }
            Err(error) => {
                assert!(server.version != EMBEDDED && signal == Signal::Terminate);
                assert_unsupported(&error, "signals");
                soon(mux.terminate(&id)).await.unwrap();
            }
        }
    }
}
