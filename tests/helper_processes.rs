//! Signals and sizes of terminals on servers that have no request for them, and what is left of that.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use execmux::{
    CallError, HelperFailure, Mux, ProcessId, Session, SessionEvent, SessionEvents, Shutdown,
    StartError, StartProcess,
    protocol::{Signal, TerminalSize},
};
use serde_json::json;
use support::{
    exec_server::{EMBEDDED, ExecServer, scenarios},
    peer::{Peer, config},
    recorder::Recorder,
    soon,
};

scenarios! {
    signals_reach_a_process_that_catches_them,
    a_signal_right_behind_the_start_arrives,
    a_terminal_is_resized_as_often_as_it_takes,
    the_program_notices_nothing,
    a_process_that_has_exited_is_no_error_and_its_group_is_left_alone,
    without_helpers_what_is_missing_is_said_with_the_remedy,
    what_a_shell_cannot_start_is_refused_or_ends_with_127,
    a_process_without_a_session_is_not_helped,
    what_is_not_the_process_any_more_is_not_signalled,
    nothing_is_left_of_many_that_are_shut_down,
}

/// A process for helpers, which says its pid and that it is up first.
fn shell(server: &ExecServer, script: &str) -> StartProcess {
    let script = format!("echo pid $$.; {script}");
    StartProcess::new(
        ProcessId::unique(),
        ["sh", "-c", &script],
        &server.directory,
    )
    .env("PATH", "/usr/bin:/bin")
    .helper_processes(true)
}

/// A process, what it has written so far, and how it ended.
struct Running {
    id: ProcessId,
    events: SessionEvents,
    seen: String,
    pid: String,
}

impl Running {
    async fn start(mux: &Mux, process: StartProcess) -> Self {
        let id = process.process_id().clone();
        let (session, events) = Session::stream();
        soon(mux.start(process, session)).await.unwrap();
        let mut running = Running {
            id,
            events,
            seen: String::new(),
            pid: String::new(),
        };
        running.see(".").await;
        let pid = running.seen.strip_prefix("pid ").unwrap();
        running.pid = pid[..pid.find('.').unwrap()].to_owned();
        running
    }

    /// Waits until it has written this.
    async fn see(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match soon(self.events.recv()).await {
                Some(SessionEvent::Output(output)) => {
                    self.seen += std::str::from_utf8(&output.chunk).unwrap();
                }
                other => panic!("{text:?} is not in {:?}, but {other:?}", self.seen),
            }
        }
    }

    async fn exited(&mut self) -> i32 {
        loop {
            match soon(self.events.recv()).await.unwrap() {
                SessionEvent::Exited(exited) => return exited.exit_code,
                SessionEvent::Output(output) => {
                    self.seen += std::str::from_utf8(&output.chunk).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    }

    async fn closed(&mut self) {
        loop {
            match soon(self.events.recv()).await.unwrap() {
                SessionEvent::Closed(_) => return,
                SessionEvent::Output(output) => {
                    self.seen += std::str::from_utf8(&output.chunk).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The file by which helpers find it.
    fn record(&self) -> Option<PathBuf> {
        let directories = [std::env::temp_dir(), "/tmp".into()];
        let files = directories.iter().filter_map(|it| fs::read_dir(it).ok());
        let is_its = |path: &Path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("execmux-")
                && fs::read_to_string(path)
                    .is_ok_and(|text| text.lines().next() == Some(self.pid.as_str()))
        };
        let mut files = files.flatten().map(|entry| entry.unwrap().path());
        files.find(|path| is_its(path))
    }

    async fn record_is_gone(&self) {
        soon(async {
            while self.record().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

fn assert_unsupported(error: &CallError, expected: &str) {
    match error {
        CallError::Unsupported {
            capability, remedy, ..
        } => {
            assert_eq!(*capability, expected);
            assert!(
                remedy.contains("StartProcess::helper_processes"),
                "{remedy}"
            );
        }
        other => panic!("{other}"),
    }
}

async fn signals_reach_a_process_that_catches_them(server: ExecServer) {
    let mux = server.connect().await;
    let script = "trap 'echo user' USR1; trap 'echo interrupt' INT; trap 'exit 9' TERM
                  echo up; while :; do sleep 0.05; done";
    let mut running = Running::start(&mux, shell(&server, script)).await;
    running.see("up").await;
    let record = running.record();
    assert_eq!(record.is_some(), server.version != EMBEDDED);
    if let Some(record) = record {
        let mode = fs::metadata(record).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    soon(mux.signal(&running.id, Signal::User1)).await.unwrap();
    running.see("user").await;
    soon(mux.signal(&running.id, Signal::Interrupt))
        .await
        .unwrap();
    running.see("interrupt").await;
    soon(mux.signal(&running.id, Signal::Terminate))
        .await
        .unwrap();
    assert_eq!(running.exited().await, 9);
    running.closed().await;
    running.record_is_gone().await;
    soon(mux.signal(&running.id, Signal::Terminate))
        .await
        .unwrap();
    soon(mux.shutdown()).await.unwrap();
}

async fn a_signal_right_behind_the_start_arrives(server: ExecServer) {
    let mux = server.connect().await;
    for _ in 0..5 {
        let process = StartProcess::new(ProcessId::unique(), ["sleep", "600"], "/")
            .env("PATH", "/usr/bin:/bin")
            .helper_processes(true);
        let id = process.process_id().clone();
        let (session, recording) = Recorder::start_session();
        soon(mux.start(process, session)).await.unwrap();
        soon(mux.signal(&id, Signal::Terminate)).await.unwrap();
        let by_signal = if server.is_at_least(140) { 143 } else { -1 };
        assert_eq!(recording.record().await.exit_code(), by_signal);
    }
    soon(mux.shutdown()).await.unwrap();
}

async fn a_terminal_is_resized_as_often_as_it_takes(server: ExecServer) {
    let mux = server.connect().await;
    let script = "stty size; trap 'stty size' WINCH; trap 'exit 3' TERM
                  echo up; while :; do sleep 0.05; done";
    let process = shell(&server, script)
        .tty(true)
        .size(TerminalSize::new(31, 97));
    let mut running = Running::start(&mux, process).await;
    running.see("31 97").await;
    running.see("up").await;
    for size in [TerminalSize::new(7, 11), TerminalSize::new(50, 200)] {
        soon(mux.resize(&running.id, size)).await.unwrap();
        running.see(&format!("{} {}", size.rows, size.cols)).await;
    }
    let nothing = soon(mux.resize(&running.id, TerminalSize::new(0, 1))).await;
    assert!(
        matches!(nothing, Err(CallError::InvalidRequest { .. })),
        "{nothing:?}"
    );
    soon(mux.signal(&running.id, Signal::Terminate))
        .await
        .unwrap();
    assert_eq!(running.exited().await, 3);
    running.closed().await;
    soon(mux.resize(&running.id, TerminalSize::new(1, 1)))
        .await
        .unwrap();
    running.record_is_gone().await;

    let mut piped = Running::start(&mux, shell(&server, "echo up; exec sleep 600")).await;
    piped.see("up").await;
    let resized = soon(mux.resize(&piped.id, TerminalSize::new(1, 1))).await;
    match resized.unwrap_err() {
        CallError::HelperFailed {
            source: HelperFailure::NoTerminal,
            ..
        } => {}
        CallError::Rejected { .. } => assert_eq!(server.version, EMBEDDED),
        other => panic!("{other}"),
    }
    soon(mux.shutdown()).await.unwrap();
    piped.record_is_gone().await;
}

async fn the_program_notices_nothing(server: ExecServer) {
    let mux = server.connect().await;
    let script = "umask; echo $# $0 \"$@\"; env | grep EXECMUX; test -t 0 || echo no terminal
                  set -e; echo a >made; echo b >made";
    let argv = ["sh", "-c", script, "name", "a b", "*"];
    let mut said = Vec::new();
    for helped in [false, true] {
        let process = StartProcess::new(ProcessId::unique(), argv, &server.directory)
            .env("PATH", "/usr/bin:/bin")
            .helper_processes(helped);
        let (session, recording) = Recorder::start_session();
        soon(mux.start(process, session)).await.unwrap();
        let record = recording.record().await;
        assert_eq!(record.exit_code(), 0, "{record:?}");
        said.push(String::from_utf8(record.stdout).unwrap());
    }
    assert_eq!(said[0], said[1]);
    assert!(
        said[1].ends_with("\n2 name a b *\nno terminal\n"),
        "{said:?}"
    );
    soon(mux.shutdown()).await.unwrap();
}

async fn a_process_that_has_exited_is_no_error_and_its_group_is_left_alone(server: ExecServer) {
    let mux = server.connect().await;
    let script = "(trap 'echo hit' USR1; echo up; while :; do sleep 0.05; done) & echo child $!,
                  until [ -e go ]; do sleep 0.05; done; exit 5";
    let mut running = Running::start(&mux, shell(&server, script)).await;
    running.see("up").await;
    running.see(",").await;
    fs::write(server.directory.join("go"), "").unwrap();
    assert_eq!(running.exited().await, 5);
    soon(mux.signal(&running.id, Signal::User1)).await.unwrap();
    let (_, child) = running.seen.split_once("child ").unwrap();
    let killed = tokio::process::Command::new("kill")
        .args(["-s", "KILL", child.split(',').next().unwrap()])
        .status();
    assert!(soon(killed).await.unwrap().success());
    running.closed().await;
    assert!(!running.seen.contains("hit"), "{}", running.seen);
    running.record_is_gone().await;
    soon(mux.shutdown()).await.unwrap();
}

async fn without_helpers_what_is_missing_is_said_with_the_remedy(server: ExecServer) {
    let mux = server.connect().await;
    let process = shell(&server, "echo up; exec sleep 600")
        .tty(true)
        .helper_processes(false);
    let mut running = Running::start(&mux, process).await;
    running.see("up").await;
    assert_eq!(running.record(), None);
    let resized = soon(mux.resize(&running.id, TerminalSize::new(5, 6))).await;
    let signalled = soon(mux.signal(&running.id, Signal::Terminate)).await;
    if server.version == EMBEDDED {
        resized.unwrap();
        signalled.unwrap();
    } else {
        assert_unsupported(&resized.unwrap_err(), "resize");
        assert_unsupported(&signalled.unwrap_err(), "signals");
    }
    if !server.is_at_least(140) {
        let interrupted = soon(mux.signal(&running.id, Signal::Interrupt)).await;
        assert_unsupported(&interrupted.unwrap_err(), "interrupt");
    }
    soon(mux.signal(&running.id, Signal::Kill)).await.unwrap();
    running.exited().await;
    soon(mux.shutdown()).await.unwrap();
}

async fn what_a_shell_cannot_start_is_refused_or_ends_with_127(server: ExecServer) {
    let mux = server.connect().await;
    let (session, recording) = Recorder::start_session();
    let named = shell(&server, "exit 3").arg0("another");
    match soon(mux.start(named, session)).await {
        Ok(_) => {
            assert_eq!(server.version, EMBEDDED);
            assert_eq!(recording.record().await.exit_code(), 3);
        }
        Err(StartError::Call(CallError::Unsupported { capability, .. })) => {
            assert_eq!(capability, "signals");
        }
        Err(error) => panic!("{error}"),
    }
    let (session, recording) = Recorder::start_session();
    let nothing =
        StartProcess::new(ProcessId::unique(), ["/not/there"], "/").helper_processes(true);
    match soon(mux.start(nothing, session)).await {
        Ok(_) => assert_eq!(recording.record().await.exit_code(), 127),
        Err(error) => assert_eq!(server.version, EMBEDDED, "{error}"),
    }
    soon(mux.shutdown()).await.unwrap();
}

async fn a_process_without_a_session_is_not_helped(server: ExecServer) {
    let mux = server.connect().await;
    let mut running = Running::start(&mux, shell(&server, "echo up; exec sleep 600")).await;
    running.see("up").await;
    soon(mux.unregister(&running.id)).await.unwrap();
    running.record_is_gone().await;
    let signalled = soon(mux.signal(&running.id, Signal::User1)).await;
    if server.version == EMBEDDED {
        signalled.unwrap();
    } else {
        assert_unsupported(&signalled.unwrap_err(), "signals");
    }
    soon(mux.terminate(&running.id)).await.unwrap();
    // The server needs a moment to notice that it has ended.
    soon(async {
        while let Err(error) = mux.signal(&running.id, Signal::User1).await {
            assert_unsupported(&error, "signals");
        }
    })
    .await;
    soon(mux.shutdown()).await.unwrap();
}

async fn what_is_not_the_process_any_more_is_not_signalled(server: ExecServer) {
    if server.version == EMBEDDED {
        // Has no need for records.
        return;
    }
    let mux = server.connect().await;
    let script = "trap 'echo hit' USR1; echo up; while :; do sleep 0.05; done";
    let mut running = Running::start(&mux, shell(&server, script)).await;
    running.see("up").await;
    let path = running.record().unwrap();
    // As if another had the pid by now.
    let record = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<_> = record.lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{record}");
    lines[1].push('0');
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    let signalled = soon(mux.signal(&running.id, Signal::User1)).await;
    match signalled.unwrap_err() {
        CallError::HelperFailed {
            source: HelperFailure::NotFound,
            ..
        } => {}
        other => panic!("{other}"),
    }
    fs::remove_file(&path).unwrap();
    let signalled = soon(mux.signal(&running.id, Signal::User1)).await;
    match signalled.unwrap_err() {
        CallError::HelperFailed {
            source: HelperFailure::NotRecorded,
            ..
        } => {}
        other => panic!("{other}"),
    }
    soon(mux.terminate(&running.id)).await.unwrap();
    running.exited().await;
    assert!(!running.seen.contains("hit"), "{}", running.seen);
    soon(mux.shutdown()).await.unwrap();
}

async fn nothing_is_left_of_many_that_are_shut_down(server: ExecServer) {
    for shutdown in [Shutdown::new(), Shutdown::detach()] {
        let mux = server.connect().await;
        let mut all = Vec::new();
        for _ in 0..20 {
            all.push(Running::start(&mux, shell(&server, "exec sleep 60")).await);
        }
        for running in &all {
            assert_eq!(running.record().is_some(), server.version != EMBEDDED);
        }
        soon(mux.router().send(shutdown)).await.unwrap().unwrap();
        for running in &all {
            assert_eq!(running.record(), None, "{shutdown:?}");
        }
    }
}

/// Starts a process for helpers on a scripted server without signals.
async fn start_at(peer: &mut Peer, mux: &Mux, process_id: &str, tty: bool) -> SessionEvents {
    let process = StartProcess::new(process_id, ["true"], "/")
        .tty(tty)
        .helper_processes(true);
    let (session, events) = Session::stream();
    let answering = async {
        let request = peer.expect("process/start").await;
        peer.answer(&request, json!({"processId": process_id}))
            .await;
    };
    let (started, ()) = tokio::join!(mux.start(process, session), answering);
    started.unwrap();
    events
}

#[actix::test]
async fn what_a_terminal_echoes_does_not_say_that_there_is_a_record() {
    for (tty, stream, tries) in [(false, "stdout", "1"), (true, "pty", "200")] {
        let (mux, mut peer) = Peer::connect(config()).await;
        let mut events = start_at(&mut peer, &mux, "p", tty).await;
        peer.output("p", 1, stream, "typed").await;
        let event = soon(events.recv()).await;
        assert!(matches!(event, Some(SessionEvent::Output(_))), "{event:?}");
        let signalling = actix::spawn({
            let mux = mux.clone();
            async move { mux.signal("p", Signal::Terminate).await }
        });
        let helper = peer.expect("process/start").await;
        assert_eq!(helper.params["argv"][4], tries);
        signalling.abort();
    }
}

#[actix::test]
async fn a_shutdown_waits_for_records_that_could_not_be_removed_at_once() {
    let mut config = config();
    config.max_calls_in_flight = 1;
    let (mux, mut peer) = Peer::connect(config).await;
    let _a = start_at(&mut peer, &mux, "a", false).await;
    let _b = start_at(&mut peer, &mux, "b", false).await;
    let shutdown = actix::spawn(async move { mux.router().send(Shutdown::detach()).await });
    let mut removed = Vec::new();
    for _ in 0..2 {
        let request = peer.expect("fs/remove").await;
        removed.push(request.params["path"].clone());
        peer.answer(&request, json!({})).await;
    }
    assert_ne!(removed[0], removed[1]);
    soon(shutdown).await.unwrap().unwrap().unwrap();
}
