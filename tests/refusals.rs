//! Starts that a server refuses: what the caller is told, and what the server is asked for that.
#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use execmux::{
    CallError, Mux, ProcessId, Start, StartError, StartRefusal, Started, protocol::StartProcess,
};
use serde_json::{Value, json};
use support::{
    checked,
    exec_server::{EMBEDDED, ExecServer, scenarios},
    peer::{Peer, Request, config},
    recorder::{Recorder, Recording},
    soon,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, pause},
};

scenarios! {
    p12_a_refused_start_tells_the_same_on_every_server,
    p12_a_missing_cwd_of_a_pty_is_refused_by_the_own_server_only,
}

const MISSING: &str = "No such file or directory (os error 2)";
const NO_DIRECTORY: &str = "Not a directory (os error 20)";

type Starting = JoinHandle<Result<Started, StartError>>;

/// Starts process `p` in `/work`, with a timeout if there is one.
fn start(mux: &Mux, timeout: Option<Duration>) -> (Starting, Recording) {
    let (session, recording) = Recorder::start_session();
    let mut start = Start::new(StartProcess::new("p", ["true"], "/work"), session);
    start.timeout = timeout;
    let router = mux.router().clone();
    let starting = actix::spawn(async move { router.send(start).await.unwrap() });
    (starting, recording)
}

/// Refuses a start as release 0.171 does; without a kind, as older ones do.
async fn refuse(peer: &mut Peer, request: &Request, kind: Option<&str>, message: &str) {
    let mut error = json!({"code": -32603, "message": message});
    if let Some(kind) = kind {
        error["data"] = json!({"kind": kind});
    }
    peer.send(json!({"id": request.id, "error": error})).await;
}

async fn refusal(starting: Starting) -> StartRefusal {
    match soon(starting).await.unwrap() {
        Err(error @ StartError::Call(CallError::Rejected { .. })) => {
            error.refusal().unwrap().clone()
        }
        other => panic!("{other:?}"),
    }
}

#[actix::test]
async fn p12_what_is_at_the_cwd_decides_what_is_missing() {
    checked(async {
        let is = |is_directory: bool| {
            json!({"result": {"isDirectory": is_directory, "isFile": !is_directory,
                              "createdAtMs": 0, "modifiedAtMs": 0}})
        };
        let refused =
            |code: i64, message: &str| json!({"error": {"code": code, "message": message}});
        let not_found = Some("spawnNotFound");
        for (kind, message, cwd, expected) in [
            (not_found, MISSING, is(true), StartRefusal::ProgramNotFound),
            (
                not_found,
                MISSING,
                is(false),
                StartRefusal::CwdNotADirectory,
            ),
            (
                not_found,
                MISSING,
                refused(-32004, MISSING),
                StartRefusal::CwdNotFound,
            ),
            (
                not_found,
                MISSING,
                refused(-32603, NO_DIRECTORY),
                StartRefusal::CwdNotADirectory,
            ),
            (
                not_found,
                MISSING,
                refused(-32600, "no"),
                StartRefusal::ProgramOrCwdNotFound,
            ),
            (
                not_found,
                MISSING,
                json!({"result": 7}),
                StartRefusal::ProgramOrCwdNotFound,
            ),
            (
                not_found,
                MISSING,
                json!({}),
                StartRefusal::ProgramOrCwdNotFound,
            ),
            (None, MISSING, is(true), StartRefusal::ProgramNotFound),
            (
                None,
                MISSING,
                refused(-32004, MISSING),
                StartRefusal::CwdNotFound,
            ),
            // The form of March 2026.
            (
                None,
                MISSING,
                refused(-32603, MISSING),
                StartRefusal::CwdNotFound,
            ),
            (
                Some("spawnFailed"),
                NO_DIRECTORY,
                is(false),
                StartRefusal::CwdNotADirectory,
            ),
            (
                Some("spawnFailed"),
                NO_DIRECTORY,
                is(true),
                StartRefusal::Failed,
            ),
            (
                None,
                NO_DIRECTORY,
                refused(-32603, NO_DIRECTORY),
                StartRefusal::CwdNotADirectory,
            ),
            (
                None,
                NO_DIRECTORY,
                refused(-32603, "no"),
                StartRefusal::Failed,
            ),
        ] {
            let (mux, mut peer) = Peer::connect(config()).await;
            let (starting, recording) = start(&mux, None);
            let request = peer.expect("process/start").await;
            refuse(&mut peer, &request, kind, message).await;
            let question = peer.expect("fs/getMetadata").await;
            assert_eq!(question.params["path"], "file:///work");
            let mut answer: Value = cwd.clone();
            answer["id"] = question.id.into();
            peer.send(answer).await;
            assert_eq!(
                refusal(starting).await,
                expected,
                "{kind:?} {message} {cwd}"
            );
            assert_eq!(recording.partial().await.last_seq, 0);
        }
    })
    .await;
}

#[actix::test]
async fn p12_nothing_is_asked_where_the_reason_is_clear() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        for (kind, message, expected) in [
            (
                Some("spawnPermissionDenied"),
                "Permission denied (os error 13)",
                StartRefusal::PermissionDenied,
            ),
            (
                Some("spawnFailed"),
                "Unable to spawn x because:\nNo viable candidates found in PATH \"/bin\"",
                StartRefusal::ProgramNotFound,
            ),
            (
                Some("spawnFailed"),
                "missing program for pipe spawn",
                StartRefusal::Failed,
            ),
            (None, "whatever", StartRefusal::Failed),
            (
                Some("sandboxUnavailable"),
                MISSING,
                StartRefusal::SandboxUnavailable,
            ),
            (
                Some("unheardOf"),
                MISSING,
                StartRefusal::Other {
                    kind: "unheardOf".into(),
                },
            ),
        ] {
            let (starting, _recording) = start(&mux, None);
            // Each start comes right behind the one before: no question is between them.
            let request = peer.expect("process/start").await;
            refuse(&mut peer, &request, kind, message).await;
            assert_eq!(refusal(starting).await, expected, "{kind:?} {message}");
        }
        let (starting, _recording) = start(&mux, None);
        let request = peer.expect("process/start").await;
        peer.reject(&request, -32600, "process p already exists")
            .await;
        let taken = soon(starting).await.unwrap().unwrap_err();
        assert_eq!(taken.refusal(), None, "{taken}");
    })
    .await;
}

#[actix::test]
async fn p7_a_refusal_is_told_in_time_where_the_question_is_not_answered() {
    checked(async {
        pause();
        for (timeout, longest) in [(None, 5), (Some(2), 2), (Some(60), 5)] {
            let (mux, mut peer) = Peer::connect(config()).await;
            let begun = Instant::now();
            let (starting, _recording) = start(&mux, timeout.map(Duration::from_secs));
            let request = peer.expect("process/start").await;
            refuse(&mut peer, &request, None, MISSING).await;
            let question = peer.expect("fs/getMetadata").await;
            assert_eq!(refusal(starting).await, StartRefusal::ProgramOrCwdNotFound);
            let longest = Duration::from_secs(longest);
            assert!(
                begun.elapsed() <= longest + Duration::from_millis(1),
                "{:?}",
                begun.elapsed()
            );
            // An answer that comes too late is nobody's.
            peer.answer(&question, json!({})).await;
            while mux.statistics().await.unwrap().unknown_answers == 0 {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
}

#[actix::test]
async fn p8_a_refusal_is_told_where_the_link_is_lost_with_the_question() {
    checked(async {
        pause();
        let new_server = json!({"sessionId": "5e5510", "environmentInfo": {"cwd": null}});
        let (mux, mut peer, mut dials) = Peer::connect_resumable(config(), new_server).await;
        let (starting, recording) = start(&mux, None);
        let request = peer.expect("process/start").await;
        refuse(&mut peer, &request, None, MISSING).await;
        peer.expect("fs/getMetadata").await;
        drop(peer);
        assert_eq!(refusal(starting).await, StartRefusal::ProgramOrCwdNotFound);
        // Neither the start nor the question is made again.
        let mut peer = dials.resume().await;
        let late = actix::spawn({
            let mux = mux.clone();
            async move { mux.terminate("other").await }
        });
        peer.expect("process/terminate").await;
        drop(peer);
        let mut peer = dials.next().await;
        let initialize = peer.initialize_to_resume().await;
        peer.reject(&initialize, -32600, "unknown session id 5e5510")
            .await;
        soon(late).await.unwrap().unwrap_err();
        assert!(
            !recording.partial().await.has_ended(),
            "it was told already"
        );
    })
    .await;
}

#[actix::test]
async fn p8_a_refused_start_is_no_lost_session_where_the_connection_ends_with_the_question() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (starting, recording) = start(&mux, None);
        let request = peer.expect("process/start").await;
        refuse(&mut peer, &request, None, MISSING).await;
        peer.expect("fs/getMetadata").await;
        drop(peer);
        assert_eq!(refusal(starting).await, StartRefusal::ProgramOrCwdNotFound);
        assert!(!recording.partial().await.has_ended());
    })
    .await;
}

#[actix::test]
async fn a_process_id_is_free_again_while_the_cwd_is_asked_for() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (refused, _recording) = start(&mux, None);
        let request = peer.expect("process/start").await;
        refuse(&mut peer, &request, None, MISSING).await;
        let question = peer.expect("fs/getMetadata").await;
        let (again, _recording) = start(&mux, None);
        let request = peer.expect("process/start").await;
        peer.answer(&request, json!({"processId": "p"})).await;
        soon(again).await.unwrap().unwrap();
        peer.reject(&question, -32004, MISSING).await;
        assert_eq!(refusal(refused).await, StartRefusal::CwdNotFound);
    })
    .await;
}

#[actix::test]
async fn nothing_is_asked_for_a_caller_that_has_gone() {
    checked(async {
        let (mux, mut peer) = Peer::connect(config()).await;
        let (session, _recording) = Recorder::start_session();
        let process = StartProcess::new("p", ["true"], "/work");
        mux.router().do_send(Start::new(process, session));
        let request = peer.expect("process/start").await;
        refuse(&mut peer, &request, None, MISSING).await;
        while mux.statistics().await.unwrap().calls_in_flight > 0 {
            tokio::task::yield_now().await;
        }
        let next = actix::spawn(async move { mux.terminate("other").await });
        let request = peer.expect("process/terminate").await;
        peer.answer(&request, json!({"running": false})).await;
        soon(next).await.unwrap().unwrap();
    })
    .await;
}

/// Makes a file in the directory of the test.
fn file(server: &ExecServer, name: &str, content: &str, mode: u32) {
    let path = server.directory.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

async fn run(mux: &Mux, argv: [&str; 2], cwd: &Path, tty: bool) -> Result<Started, StartError> {
    let process = StartProcess::new(ProcessId::unique(), argv, cwd)
        .env("PATH", "/usr/bin:/bin")
        .tty(tty);
    let (session, _recording) = Recorder::start_session();
    soon(mux.start(process, session)).await
}

async fn p12_a_refused_start_tells_the_same_on_every_server(server: ExecServer) {
    use StartRefusal::{CwdNotADirectory, CwdNotFound, Failed, PermissionDenied, ProgramNotFound};
    let mux = server.connect().await;
    file(&server, "plain", "x", 0o644);
    file(&server, "script", "#!/no/such/interpreter\n", 0o755);
    let here = server.directory.as_path();
    let named = |name: &str| here.join(name).to_str().unwrap().to_owned();
    let (pipes, both): (&[bool], &[bool]) = (&[false], &[false, true]);
    for (ttys, program, cwd, expected) in [
        (both, "/no/such/program", here, ProgramNotFound),
        (both, "no-such-program", here, ProgramNotFound),
        (both, "./none", here, ProgramNotFound),
        (pipes, &*named("script"), here, ProgramNotFound),
        (pipes, "true", &here.join("none"), CwdNotFound),
        (pipes, "/no/such/program", &here.join("none"), CwdNotFound),
        (pipes, "true", &here.join("plain"), CwdNotADirectory),
        (pipes, "true", &here.join("plain/x"), CwdNotADirectory),
        (both, &*named("plain"), here, PermissionDenied),
        (both, "/tmp", here, PermissionDenied),
        (both, &*named("plain/x"), here, Failed),
        (both, "", here, Failed),
        (pipes, "true\0", here, Failed),
    ] {
        for &tty in ttys {
            let refused = run(&mux, [program, "x"], cwd, tty).await.unwrap_err();
            let case = format!("{program:?} in {cwd:?}, tty {tty}: {refused}");
            assert_eq!(refused.refusal(), Some(&expected), "{case}");
            let is_not_found = matches!(expected, ProgramNotFound | CwdNotFound);
            assert_eq!(refused.is_not_found(), is_not_found, "{case}");
            assert!(!refused.is_retryable(), "{case}");
        }
    }
    let no_file = soon(mux.metadata(here.join("none"))).await.unwrap_err();
    assert!(
        no_file.is_not_found() && no_file.refusal().is_none(),
        "{no_file}"
    );
    let read = soon(mux.read(execmux::protocol::ReadProcess::new("nobody"))).await;
    assert!(read.unwrap_err().is_not_found());
}

async fn p12_a_missing_cwd_of_a_pty_is_refused_by_the_own_server_only(server: ExecServer) {
    let mux = server.connect().await;
    file(&server, "plain", "x", 0o644);
    for (name, expected) in [
        ("none", StartRefusal::CwdNotFound),
        ("plain", StartRefusal::CwdNotADirectory),
    ] {
        let started = run(&mux, ["true", "x"], &server.directory.join(name), true).await;
        if server.version == EMBEDDED {
            assert_eq!(started.unwrap_err().refusal(), Some(&expected), "{name}");
        } else {
            // It runs in the home directory.
            started.unwrap();
        }
    }
}
