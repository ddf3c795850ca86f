//! The same scenarios against real exec-servers of three versions.
//!
//! `tests/install-servers.sh` installs them; without them the tests say that they are skipped, or
//! fail if `EXECMUX_REQUIRE_SERVERS` is set.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use execmux::{
    CallError, Config, DisconnectReason, FailureReason, InvalidRequest, Mux, ProcessId,
    RegisterError, Shutdown, StartError,
    protocol::{
        CopyPath, CreateDirectory, ErrorCode, PathSpelling, ReadProcess, RemovePath, StartProcess,
        WriteStatus, WriteStdin,
    },
};
use sha2::{Digest as _, Sha256};
use support::{
    exec_server::{EMBEDDED, ExecServer, scenarios},
    recorder::{Record, Recorder, Stop, Tap},
    soon,
};

scenarios! {
    a_pipe_process_runs_to_its_end,
    a_tty_process_reads_and_writes,
    stdin_of_a_pipe_process_is_written_where_the_server_can,
    p1_a_hundred_processes_at_once_are_kept_apart,
    twenty_megabytes_arrive_whole,
    files_are_read_written_listed_copied_and_removed,
    large_files_travel_in_one_message_each_way,
    an_id_in_use_is_refused,
    unknown_ids_are_told,
    a_start_that_fails_frees_its_id,
    a_terminated_process_ends,
    an_interrupted_process_ends_where_the_server_can,
    p2_a_killed_server_fails_every_session_and_call_once,
    p12_the_dialect_is_detected,
    p13_the_process_of_a_stopped_session_is_terminated,
    p14_a_shutdown_terminates_or_detaches_and_answers_when_all_have_been_told,
    p7_a_deadline_ends_a_call_and_its_late_answer_is_ignored,
}

fn shell(server: &ExecServer, script: &str) -> StartProcess {
    StartProcess::new(ProcessId::unique(), ["sh", "-c", script], &server.directory)
        .env("PATH", "/usr/bin:/bin")
}

async fn run(mux: &Mux, process: StartProcess) -> Record {
    let (session, recording) = Recorder::start_session();
    soon(mux.start(process, session)).await.expect("starts");
    recording.record().await
}

async fn a_pipe_process_runs_to_its_end(server: ExecServer) {
    let mux = server.connect().await;
    let record = run(&mux, shell(&server, "echo out; echo err >&2; exit 3")).await;
    assert_eq!(record.stdout, b"out\n");
    assert_eq!(record.stderr, b"err\n");
    assert_eq!(record.exit_code(), 3);
    let record = run(&mux, shell(&server, "true")).await;
    assert_eq!((record.stdout.len(), record.exit_code()), (0, 0));
}

async fn a_tty_process_reads_and_writes(server: ExecServer) {
    let mux = server.connect().await;
    let process = shell(&server, "test -t 0 && cat").tty(true);
    let id = process.process_id().clone();
    let (session, recording) = Recorder::start_session();
    soon(mux.start(process, session)).await.unwrap();
    for chunk in ["hello\n", "\x04"] {
        let written = soon(mux.write(&id, chunk)).await.unwrap();
        assert_eq!(written.status, WriteStatus::Accepted);
    }
    let record = recording.record().await;
    // The echo of the terminal, and what `cat` makes of it.
    assert_eq!(
        String::from_utf8_lossy(&record.pty)
            .matches("hello\r\n")
            .count(),
        2
    );
    assert_eq!(record.exit_code(), 0);
}

async fn stdin_of_a_pipe_process_is_written_where_the_server_can(server: ExecServer) {
    let mux = server.connect().await;
    let process = shell(&server, "read line; echo got $line").pipe_stdin(true);
    let id = process.process_id().clone();
    let (session, recording) = Recorder::start_session();
    soon(mux.start(process, session)).await.unwrap();
    let write = WriteStdin::new(&id, "hello\n").write_id("once");
    let written = soon(mux.call(write)).await.unwrap();
    let record = recording.record().await;
    if server.is_at_least(130) {
        assert_eq!(written.status, WriteStatus::Accepted);
        assert_eq!(record.stdout, b"got hello\n");
    } else {
        assert_eq!(written.status, WriteStatus::StdinClosed);
        assert_eq!(record.stdout, b"got\n");
    }
}

async fn p1_a_hundred_processes_at_once_are_kept_apart(server: ExecServer) {
    let mux = server.connect().await;
    let mut records = Vec::new();
    for n in 0..100 {
        let script =
            format!("for i in $(seq 200); do echo {n} $i; echo {n} e $i >&2; done; exit {n}");
        let (session, recording) = Recorder::start_session();
        soon(mux.start(shell(&server, &script), session))
            .await
            .unwrap();
        records.push(actix::spawn(recording.record()));
    }
    for (n, record) in records.into_iter().enumerate() {
        let record = soon(record).await.unwrap();
        let stdout: String = (1..=200).map(|i| format!("{n} {i}\n")).collect();
        let stderr: String = (1..=200).map(|i| format!("{n} e {i}\n")).collect();
        assert_eq!(String::from_utf8_lossy(&record.stdout), stdout);
        assert_eq!(String::from_utf8_lossy(&record.stderr), stderr);
        assert_eq!(record.exit_code(), n as i32);
    }
}

async fn twenty_megabytes_arrive_whole(server: ExecServer) {
    let mux = server.connect().await;
    let script = "head -c 20000000 /dev/urandom | tee random | sha256sum >&2; cat random";
    let record = run(&mux, shell(&server, script)).await;
    assert_eq!(record.stdout.len(), 20_000_000);
    let hash: String = Sha256::digest(&record.stdout)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        String::from_utf8_lossy(&record.stderr),
        format!("{hash}  -\n")
    );
    assert_eq!(record.exit_code(), 0);
}

async fn files_are_read_written_listed_copied_and_removed(server: ExecServer) {
    let mux = server.connect().await;
    // A name that has to be escaped in URIs.
    let directory = server.directory.join("a b#c%20ä");
    let file = directory.join("file?");
    soon(mux.create_directory(&directory)).await.unwrap();
    let again = soon(mux.create_directory(&directory)).await.unwrap_err();
    assert!(
        matches!(
            again,
            CallError::Rejected {
                method: "fs/createDirectory",
                ..
            }
        ),
        "{again}"
    );
    soon(mux.call(CreateDirectory::new(directory.join("x/y")).recursive(true)))
        .await
        .unwrap();
    assert!(directory.join("x/y").is_dir());

    let content: Vec<u8> = (0..=255).collect();
    soon(mux.write_file(&file, content.clone())).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), content);
    assert_eq!(soon(mux.read_file(&file)).await.unwrap().content, content);

    let metadata = soon(mux.metadata(&file)).await.unwrap();
    assert!(metadata.is_file && !metadata.is_directory && metadata.modified_at_ms > 0);
    if server.is_at_least(140) {
        assert_eq!(metadata.size, Some(256));
    }

    soon(mux.copy(&file, directory.join("copy"))).await.unwrap();
    let error = soon(mux.copy(directory.join("x"), directory.join("z")))
        .await
        .unwrap_err();
    assert!(
        matches!(error, CallError::Rejected { .. }),
        "a directory needs `recursive`: {error}"
    );
    let copy = CopyPath::new(directory.join("x"), directory.join("z")).recursive(true);
    soon(mux.call(copy)).await.unwrap();

    let listing = soon(mux.read_directory(&directory)).await.unwrap();
    let mut names: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| (entry.file_name.as_str(), entry.is_directory, entry.is_file))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            ("copy", false, true),
            ("file?", false, true),
            ("x", true, false),
            ("z", true, false)
        ]
    );

    let error = soon(mux.remove(directory.join("x"))).await.unwrap_err();
    assert!(
        matches!(error, CallError::Rejected { .. }),
        "not empty: {error}"
    );
    soon(mux.remove(&file)).await.unwrap();
    let missing = soon(mux.remove(&file)).await.unwrap_err();
    assert_eq!(
        missing.code(),
        Some(ErrorCode::NOT_FOUND),
        "not forced: {missing}"
    );
    soon(mux.call(RemovePath::new(&file).force(true)))
        .await
        .unwrap();
    soon(mux.call(RemovePath::new(&directory).recursive(true)))
        .await
        .unwrap();
    assert!(!directory.exists());

    let missing = soon(mux.read_file(&file)).await.unwrap_err();
    assert_eq!(missing.code(), Some(ErrorCode::NOT_FOUND));
    let relative = soon(mux.read_file("file")).await.unwrap_err();
    assert!(matches!(
        relative,
        CallError::InvalidRequest {
            source: InvalidRequest::RelativePath { .. },
            ..
        }
    ));
}

async fn large_files_travel_in_one_message_each_way(server: ExecServer) {
    let mux = server.connect().await;
    let file = server.directory.join("large");
    // 30 MB on the wire: twice what servers take in one frame.
    let content: Vec<u8> = (0..22_000_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    soon(mux.write_file(&file, content.clone())).await.unwrap();
    assert!(std::fs::read(&file).unwrap() == content);
    assert!(soon(mux.read_file(&file)).await.unwrap().content == content);
    // What no server takes is refused before it is sent, and nothing else is lost.
    let error = soon(mux.write_file(&file, vec![0; 60_000_000]))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        CallError::InvalidRequest {
            source: InvalidRequest::TooLarge { .. },
            ..
        }
    ));
    assert!(soon(mux.metadata(&file)).await.unwrap().is_file);
}

async fn an_id_in_use_is_refused(server: ExecServer) {
    let mux = server.connect().await;
    let process = || {
        StartProcess::new(
            "twin",
            ["sh", "-c", "echo up; exec sleep 60"],
            &server.directory,
        )
        .env("PATH", "/usr/bin:/bin")
    };
    let (session, mut recording) = Recorder::start_session();
    soon(mux.start(process(), session)).await.unwrap();
    recording.began().await;

    let (other, _recording) = Recorder::start_session();
    match soon(mux.start(process(), other.clone())).await {
        Err(StartError::Register(RegisterError::Duplicate(id))) => assert_eq!(id.as_str(), "twin"),
        answer => panic!("{answer:?}"),
    }
    // The server knows of it also when this side has let go.
    assert!(mux.unregister("twin").await.is_some());
    match soon(mux.start(process(), other)).await {
        Err(StartError::Call(CallError::Rejected { code, .. })) => {
            assert_eq!(code, ErrorCode::INVALID_REQUEST);
        }
        answer => panic!("{answer:?}"),
    }
    assert_eq!(
        mux.unregister("twin").await,
        None,
        "a refused start leaves no route"
    );
    assert!(soon(mux.terminate("twin")).await.unwrap().running);
}

async fn unknown_ids_are_told(server: ExecServer) {
    let mux = server.connect().await;
    let read = soon(mux.read(ReadProcess::new("nobody")))
        .await
        .unwrap_err();
    assert_eq!(read.code(), Some(ErrorCode::INVALID_REQUEST));
    let written = soon(mux.write("nobody", "x")).await.unwrap();
    assert_eq!(written.status, WriteStatus::UnknownProcess);
    assert!(!soon(mux.terminate("nobody")).await.unwrap().running);
}

async fn a_start_that_fails_frees_its_id(server: ExecServer) {
    let mux = server.connect().await;
    let start = async |argv: Vec<&str>, cwd: &std::path::Path| {
        let (session, recording) = Recorder::start_session();
        let process = StartProcess::new("again", argv, cwd).env("PATH", "/usr/bin:/bin");
        let answer = soon(mux.start(process, session)).await;
        (answer, recording)
    };
    for (argv, cwd) in [
        (vec!["/no/such/program"], server.directory.as_path()),
        (vec!["true"], std::path::Path::new("/no/such/directory")),
    ] {
        let (answer, recording) = start(argv, cwd).await;
        match answer {
            Err(StartError::Call(CallError::Rejected { code, .. })) => {
                assert_eq!(code, ErrorCode::INTERNAL_ERROR);
            }
            answer => panic!("{answer:?}"),
        }
        assert_eq!(
            recording.partial().await.last_seq,
            0,
            "its session hears nothing"
        );
    }
    for (argv, cwd) in [
        (vec![], server.directory.as_path()),
        (vec!["true"], std::path::Path::new("here")),
    ] {
        let (answer, _recording) = start(argv, cwd).await;
        assert!(
            matches!(
                answer,
                Err(StartError::Call(CallError::InvalidRequest { .. }))
            ),
            "{answer:?}"
        );
    }
    let (answer, recording) = start(vec!["true"], &server.directory).await;
    assert_eq!(answer.unwrap().process_id.as_str(), "again");
    assert_eq!(recording.record().await.exit_code(), 0);
}

async fn a_terminated_process_ends(server: ExecServer) {
    let mux = server.connect().await;
    let killed: &[i32] = if server.is_at_least(150) {
        &[137]
    } else if server.is_at_least(140) {
        // Both were recorded.
        &[-1, 137]
    } else {
        &[-1]
    };
    // Releases make a 1 of whatever ends a process on a pty.
    let killed_on_pty: &[i32] = if server.version == EMBEDDED {
        killed
    } else {
        &[1]
    };
    for (tty, exit_codes) in [(false, killed), (true, killed_on_pty)] {
        let process = shell(&server, "echo up; exec sleep 60").tty(tty);
        let id = process.process_id().clone();
        let (session, mut recording) = Recorder::start_session();
        soon(mux.start(process, session)).await.unwrap();
        recording.began().await;
        assert!(soon(mux.terminate(&id)).await.unwrap().running);
        let exit_code = recording.record().await.exit_code();
        assert!(exit_codes.contains(&exit_code), "{exit_code}");
        assert!(!soon(mux.terminate(&id)).await.unwrap().running);
    }
}

async fn an_interrupted_process_ends_where_the_server_can(server: ExecServer) {
    let mux = server.connect().await;
    let script = "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.1; done";
    let process = shell(&server, script);
    let id = process.process_id().clone();
    let (session, mut recording) = Recorder::start_session();
    soon(mux.start(process, session)).await.unwrap();
    recording.began().await;
    let interrupted = soon(mux.interrupt(&id)).await;
    if server.is_at_least(140) {
        interrupted.unwrap();
        let record = recording.record().await;
        assert_eq!(record.stdout, b"up\ncaught\n");
        assert_eq!(record.exit_code(), 9);
    } else {
        match interrupted.unwrap_err() {
            CallError::Unsupported { capability, .. } => assert_eq!(capability, "interrupt"),
            other => panic!("{other}"),
        }
        assert!(soon(mux.terminate(&id)).await.unwrap().running);
    }
}

async fn p2_a_killed_server_fails_every_session_and_call_once(mut server: ExecServer) {
    let mut config = Config::new(&server.url);
    config.resume_timeout = Duration::from_secs(1);
    let mux = soon(Mux::connect(config)).await.unwrap();
    let mut sessions = Vec::new();
    for _ in 0..20 {
        let (session, mut recording) = Recorder::start_session();
        let process = shell(&server, "while :; do echo some output; done");
        soon(mux.start(process, session)).await.unwrap();
        recording.began().await;
        sessions.push(recording);
    }
    // The server handles one call after the other, so that those behind this one are pending.
    let (session, _recording) = Recorder::start_session();
    let quiet = shell(&server, "exec sleep 60");
    let quiet_id = quiet.process_id().clone();
    soon(mux.start(quiet, session)).await.unwrap();
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let mux = mux.clone();
            let poll = ReadProcess::new(&quiet_id).wait(Duration::from_secs(60));
            actix::spawn(async move { mux.read(poll).await })
        })
        .collect();
    // In flight: the statistics are answered behind them.
    while soon(mux.statistics()).await.unwrap().calls_in_flight < 10 {
        tokio::task::yield_now().await;
    }

    server.kill().await;
    let mut reasons = Vec::new();
    for session in sessions {
        let failed = session
            .record()
            .await
            .failed
            .expect("no success is made up");
        match failed.reason {
            FailureReason::Disconnected(reason) => reasons.push(reason.to_string()),
            other => panic!("{other}"),
        }
        assert!(failed.last_seq > 0);
    }
    for call in calls {
        match soon(call).await.unwrap() {
            Err(CallError::Disconnected { reason, .. }) => reasons.push(reason.to_string()),
            answer => panic!("{answer:?}"),
        }
    }
    match soon(mux.environment_info()).await {
        Err(CallError::Disconnected { reason, .. }) => reasons.push(reason.to_string()),
        answer => panic!("{answer:?}"),
    }
    let (session, _recording) = Recorder::start_session();
    match soon(mux.start(shell(&server, "true"), session)).await {
        Err(StartError::Register(RegisterError::Disconnected(reason))) => {
            reasons.push(reason.to_string())
        }
        answer => panic!("{answer:?}"),
    }
    reasons.dedup();
    assert_eq!(reasons.len(), 1, "one reason for all: {reasons:?}");
    assert_eq!(soon(mux.statistics()).await.unwrap().calls_in_flight, 0);
}

async fn p12_the_dialect_is_detected(server: ExecServer) {
    let mux = server.connect().await;
    let info = mux.server().await.unwrap();
    let expected = if server.is_at_least(150) {
        PathSpelling::Uri
    } else {
        PathSpelling::Plain
    };
    assert_eq!(info.dialect.paths, expected);
    assert_eq!(info.environment.is_some(), server.is_at_least(139));
    match soon(mux.environment_info()).await {
        Ok(environment) => {
            assert!(environment.shell.is_some());
            if server.version == EMBEDDED {
                let version = environment.executor_version.unwrap();
                assert_eq!(version, concat!("execmux/", env!("CARGO_PKG_VERSION")));
                assert_eq!(environment.cwd, std::env::current_dir().ok());
            } else if server.is_at_least(160) {
                assert_eq!(
                    environment.executor_version.as_deref(),
                    Some(server.version)
                );
                assert_eq!(environment.cwd.as_deref(), Some(server.directory.as_path()));
            }
        }
        Err(error) => {
            assert!(!server.is_at_least(139), "{error}");
            match error {
                CallError::Unsupported { capability, .. } => {
                    assert_eq!(capability, "environment_info");
                }
                other => panic!("{other}"),
            }
        }
    }
}

async fn p13_the_process_of_a_stopped_session_is_terminated(server: ExecServer) {
    let mux = server.connect().await;
    let process = shell(&server, "echo up; exec sleep 60");
    let id = process.process_id().clone();
    let (session, mut events) = Tap::start_session();
    soon(mux.start(process, session.clone().recipient()))
        .await
        .unwrap();
    events.next().await.unwrap();
    soon(session.send(Stop)).await.unwrap();
    // Short polls: the router's request to terminate waits behind each.
    let ended = async {
        let poll = ReadProcess::new(&id)
            .after_seq(1)
            .wait(Duration::from_millis(50));
        while !mux.read(poll.clone()).await.unwrap().exited {}
    };
    soon(ended).await;
    assert_eq!(mux.unregister(&id).await, None, "its route is gone");
}

async fn p14_a_shutdown_terminates_or_detaches_and_answers_when_all_have_been_told(
    server: ExecServer,
) {
    let mux = server.connect().await;
    let (session, recording) = Recorder::start_session();
    soon(mux.start(shell(&server, "exec sleep 60"), session))
        .await
        .unwrap();
    soon(mux.router().send(Shutdown::detach()))
        .await
        .unwrap()
        .unwrap();
    let failed = recording.record().await.failed.unwrap();
    assert!(matches!(
        failed.reason,
        FailureReason::Disconnected(DisconnectReason::Closed)
    ));

    let mux = server.connect().await;
    let (session, recording) = Recorder::start_session();
    soon(mux.start(shell(&server, "exec sleep 60"), session))
        .await
        .unwrap();
    soon(mux.shutdown()).await.unwrap();
    assert_ne!(recording.record().await.exit_code(), 0);
    match soon(mux.terminate("x")).await {
        Err(CallError::Disconnected {
            reason: DisconnectReason::Closed,
            ..
        }) => {}
        answer => panic!("{answer:?}"),
    }
    soon(mux.shutdown()).await.unwrap();
}

async fn p7_a_deadline_ends_a_call_and_its_late_answer_is_ignored(server: ExecServer) {
    use execmux::Call;
    let mux = server.connect().await;
    let process = shell(&server, "exec sleep 60");
    let id = process.process_id().clone();
    let (session, _recording) = Recorder::start_session();
    soon(mux.start(process, session)).await.unwrap();
    let poll = ReadProcess::new(&id).wait(Duration::from_millis(400));
    let error = soon(mux.call(Call::new(poll).timeout(Duration::from_millis(50))))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            CallError::DeadlineExceeded {
                method: "process/read",
                ..
            }
        ),
        "{error}"
    );
    // Answered behind it, unless the server lets no process's requests wait for others.
    assert!(soon(mux.terminate(&id)).await.unwrap().running);
    soon(async {
        while mux.statistics().await.unwrap().unknown_answers == 0 {
            assert_eq!(server.version, EMBEDDED);
            mux.environment_info().await.unwrap();
        }
    })
    .await;
    assert_eq!(soon(mux.statistics()).await.unwrap().unknown_answers, 1);
}
