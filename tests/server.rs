//! The crate's own server, with the crate's own client.

#![cfg(all(feature = "server", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use execmux::{
    CallError, Config, Mux, ProcessId,
    protocol::{ErrorCode, StartProcess},
    server::{Server, ServerConfig, ServerError},
};
use support::{checked, recorder::Recorder, soon};

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
        soon(mux.shutdown()).await;
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
        soon(mux.shutdown()).await;
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
        soon(mux.shutdown()).await;
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
        soon(mux.shutdown()).await;
        soon(server.stop()).await;
    })
    .await;
}

#[actix::test]
async fn a_method_that_is_not_there_is_refused() {
    checked(async {
        let (server, mux) = start().await;
        let error = soon(mux.write("nobody", "x")).await.unwrap_err();
        assert!(matches!(error, CallError::Rejected { .. }), "{error}");
        assert_eq!(error.code(), Some(ErrorCode::METHOD_NOT_FOUND));
        soon(mux.shutdown()).await;
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
