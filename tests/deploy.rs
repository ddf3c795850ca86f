//! Real actix-web applications that get SIGTERM while a process of theirs runs, as at each deploy. Each is a child of its
//! test, and says on its stdout what it has done.
#![cfg(all(feature = "server", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use actix::{Arbiter, System};
use actix_web::{App, HttpServer, web};
use execmux::{
    Config, Mux, ProcessId, Session, SessionEvent, StartProcess,
    server::{Server, ServerConfig},
};
use support::soon;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    signal::unix::{SignalKind, signal},
};

/// What the application of a child does, and where its server is. Only set in a child.
const URL: &str = "EXECMUX_TEST_APPLICATION_URL";
const KIND: &str = "EXECMUX_TEST_APPLICATION_KIND";
const PIPE: &str = "EXECMUX_TEST_APPLICATION_PIPE";

/// The application, when a test below runs this file again. Does nothing otherwise.
#[test]
fn application() {
    let variable = |name| std::env::var(name).ok();
    let (Some(url), Some(kind), Some(pipe)) = (variable(URL), variable(KIND), variable(PIPE))
    else {
        return;
    };
    let run = async {
        match kind.as_str() {
            "recipe" => recipe(&url, &pipe).await,
            "returns" => returns(&url, &pipe).await,
            "late" => late(&url, &pipe).await,
            other => panic!("{other}"),
        }
    };
    System::new().block_on(run).unwrap();
}

type Done = Result<(), Box<dyn std::error::Error>>;

/// Starts a process that holds the pipe open as long as it runs, and waits until it does.
async fn start(mux: &Mux, pipe: &str) -> Done {
    let (session, mut events) = Session::stream();
    let script = r#"exec 3>"$0"; echo; exec sleep 600"#;
    let process = StartProcess::new(ProcessId::unique(), ["sh", "-c", script, pipe], "/")
        .env("PATH", "/usr/bin:/bin");
    mux.start(process, session).await?;
    let first = events.recv().await;
    assert!(matches!(first, Some(SessionEvent::Output(_))), "{first:?}");
    // The session lives as long as the application.
    std::mem::forget(events);
    Ok(())
}

/// An HTTP server whose handlers have the `Mux`.
macro_rules! http {
    ($mux:expr) => {{
        let mux = web::Data::new($mux.clone());
        HttpServer::new(move || {
            App::new()
                .app_data(mux.clone())
                .route("/", web::get().to(async |_: web::Data<Mux>| "hello"))
        })
        .workers(2)
        .bind("127.0.0.1:0")?
    }};
}

/// Ends the processes as the README says.
async fn recipe(url: &str, pipe: &str) -> Done {
    let mux = Mux::connect_on(&Arbiter::new().handle(), Config::new(url)).await?;
    start(&mux, pipe).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let http = http!(mux).disable_signals().run();
    let handle = http.handle();
    let serving = actix::spawn(http);
    println!("\nready");
    terminate.recv().await;
    handle.stop(true).await;
    mux.shutdown().await?;
    serving.await??;
    println!("\nshut down");
    Ok(())
}

/// Knows nothing of processes when its server has stopped.
async fn returns(url: &str, pipe: &str) -> Done {
    let mux = Mux::connect(Config::new(url)).await?;
    start(&mux, pipe).await?;
    let http = http!(mux).run();
    let ready = actix::spawn(async { println!("\nready") });
    http.await?;
    ready.await?;
    Ok(())
}

/// Ends the processes when the arbiter of its `Mux` is gone, or about to go.
async fn late(url: &str, pipe: &str) -> Done {
    let arbiter = Arbiter::new();
    let mux = Mux::connect_on(&arbiter.handle(), Config::new(url)).await?;
    start(&mux, pipe).await?;
    let http = http!(mux).run();
    let ready = actix::spawn(async { println!("\nready") });
    http.await?;
    ready.await?;
    // The system was told to stop its arbiters: when this one has stopped, it is too late.
    tokio::task::spawn_blocking(|| arbiter.join())
        .await?
        .unwrap();
    let outcome = mux.shutdown().await;
    println!("\n{}", outcome.unwrap_err());
    Ok(())
}

/// Runs such an application, sends it SIGTERM, and returns what it says when all that it ran has ended.
async fn deploy(kind: &str) -> Vec<String> {
    let mut config = ServerConfig::new();
    // A process that nobody ends outlives the test, and the net under it.
    config.session_window = Duration::from_secs(3600);
    let server = soon(Server::start(config)).await.unwrap();
    let directory = Directory::new(kind);
    let pipe = directory.0.join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(soon(made).await.unwrap().success());
    let opened = pipe.clone();
    // Ends when the last process that holds the pipe does.
    let ended = tokio::task::spawn_blocking(move || std::fs::read(opened));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["application", "--exact", "--nocapture"])
        .envs([(URL, server.url().as_str()), (KIND, kind)])
        .env(PIPE, &pipe)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    while let Some(line) = soon(lines.next_line()).await.unwrap() {
        if line == "ready" {
            let pid = child.id().unwrap().to_string();
            let killed = Command::new("kill").args(["-TERM", &pid]).status();
            assert!(soon(killed).await.unwrap().success());
        }
        said.push(line);
    }
    assert!(soon(child.wait()).await.unwrap().success(), "{said:?}");
    assert!(said.iter().any(|line| line == "ready"), "{said:?}");
    soon(ended).await.unwrap().unwrap();
    drop(server);
    said
}

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("deploy-{name}-{}", ProcessId::unique()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

#[actix::test]
async fn p14_an_application_that_handles_its_signals_shuts_down_in_order() {
    let said = deploy("recipe").await;
    assert!(said.iter().any(|line| line == "shut down"), "{said:?}");
}

#[actix::test]
async fn p13_an_application_that_just_returns_leaves_no_process() {
    deploy("returns").await;
}

#[actix::test]
async fn p13_an_application_that_shuts_down_too_late_is_told_and_leaves_no_process() {
    let said = deploy("late").await;
    assert!(
        said.iter()
            .any(|line| line.contains("the arbiter of the connection has stopped")),
        "{said:?}"
    );
}
