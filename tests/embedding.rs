//! A real actix-web application that drives remote processes: handlers on the server's own workers,
//! the connection on an arbiter of its own, sessions on a third.
//!
//! The exec-server is a real one where it is installed (`tests/install-servers.sh`).
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::HashMap, error::Error as _, time::Duration};

use actix::{Actor, Addr, Arbiter, Context, Handler, Message, MessageResult};
use actix_web::{App, HttpResponse, HttpServer, ResponseError, http::StatusCode, web};
use execmux::{
    CallError, Config, Mux, ProcessId, SessionEvent, StartError, StartProcess,
    protocol::WriteStatus,
};
use support::{exec_server::ExecServer, soon};
use tokio::sync::oneshot;

/// What the handlers share. `Mux` can be sent to every worker.
#[derive(Clone)]
struct Application {
    mux: Mux,
    jobs: Addr<Jobs>,
    directory: std::path::PathBuf,
}

/// The one actor of the application that is the session of all its processes.
#[derive(Default)]
struct Jobs {
    output: HashMap<ProcessId, Vec<u8>>,
    ended: HashMap<ProcessId, String>,
    waiting: HashMap<ProcessId, Vec<oneshot::Sender<String>>>,
}

impl Actor for Jobs {
    type Context = Context<Self>;
}

impl Jobs {
    fn end(&mut self, process_id: ProcessId, end: String) {
        let output = self.output.remove(&process_id).unwrap_or_default();
        let text = format!("{}{end}", String::from_utf8_lossy(&output));
        for waiting in self.waiting.remove(&process_id).unwrap_or_default() {
            let _gone = waiting.send(text.clone());
        }
        assert!(self.ended.insert(process_id, text).is_none(), "ended twice");
    }
}

impl Handler<SessionEvent> for Jobs {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        match event {
            SessionEvent::Output(output) => {
                self.output
                    .entry(output.process_id.clone())
                    .or_default()
                    .extend_from_slice(&output.chunk);
            }
            SessionEvent::Closed(closed) => {
                let code = closed.exit_code.expect("servers tell the exit code");
                self.end(closed.process_id, format!("[{code}]"));
            }
            SessionEvent::Failed(failed) => {
                let cause = failed.reason.source().map(ToString::to_string);
                let cause = cause.unwrap_or_default();
                self.end(failed.process_id, format!("[{}: {cause}]", failed.reason));
            }
            _ => {}
        }
    }
}

/// Waits for the end of a process.
struct Wait(ProcessId);

impl Message for Wait {
    type Result = oneshot::Receiver<String>;
}

impl Handler<Wait> for Jobs {
    type Result = MessageResult<Wait>;

    fn handle(&mut self, Wait(process_id): Wait, _: &mut Self::Context) -> Self::Result {
        let (sender, receiver) = oneshot::channel();
        match self.ended.get(&process_id) {
            Some(text) => drop(sender.send(text.clone())),
            None => self.waiting.entry(process_id).or_default().push(sender),
        }
        MessageResult(receiver)
    }
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Call(#[from] CallError),
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        match self {
            Problem::Start(StartError::Call(CallError::Rejected { .. })) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Problem::Start(StartError::Register(_))
            | Problem::Call(CallError::Disconnected { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Runs a script, and answers with its output when it has ended.
async fn run(app: web::Data<Application>, script: String) -> Result<String, Problem> {
    let process_id = start(&app, ["sh", "-c", &script], false).await?;
    Ok(wait(&app, process_id).await)
}

/// Starts `cat` on a terminal, and answers with its process id.
async fn open(app: web::Data<Application>) -> Result<String, Problem> {
    Ok(start(&app, ["sh", "-c", "stty -echo; cat"], true)
        .await?
        .to_string())
}

async fn write(
    app: web::Data<Application>,
    id: web::Path<String>,
    body: web::Bytes,
) -> Result<HttpResponse, Problem> {
    let written = app.mux.write(id.into_inner(), body).await?;
    Ok(match written.status {
        WriteStatus::Accepted => HttpResponse::NoContent().finish(),
        WriteStatus::UnknownProcess => HttpResponse::NotFound().finish(),
        status => HttpResponse::Conflict().body(format!("{status:?}")),
    })
}

async fn close(app: web::Data<Application>, id: web::Path<String>) -> Result<String, Problem> {
    let id = id.into_inner();
    app.mux.write(id.as_str(), "\x04").await?;
    Ok(wait(&app, id.into()).await)
}

async fn start(app: &Application, argv: [&str; 3], tty: bool) -> Result<ProcessId, Problem> {
    let process = StartProcess::new(ProcessId::unique(), argv, &app.directory)
        .env("PATH", "/usr/bin:/bin")
        .tty(tty);
    // Weakly: the application owns its actor.
    let session = app.jobs.downgrade().recipient();
    let started = app.mux.start(process, session).await?;
    Ok(started.process_id)
}

async fn wait(app: &Application, process_id: ProcessId) -> String {
    let end = app
        .jobs
        .send(Wait(process_id))
        .await
        .expect("the actor lives");
    end.await.expect("every process ends")
}

/// Sends a request to the application and returns status and body.
async fn post(url: &str, body: impl Into<String>) -> (u16, String) {
    let client = awc::Client::builder()
        .timeout(Duration::from_secs(60))
        .finish();
    let mut response = soon(client.post(url).send_body(body.into())).await.unwrap();
    let body = soon(response.body()).await.unwrap();
    (
        response.status().as_u16(),
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

#[actix::test]
async fn an_actix_web_application_drives_processes_across_arbiters() {
    let Some(mut server) = ExecServer::start("0.171.0", "embedding").await else {
        return;
    };
    let (for_connection, for_sessions) = (Arbiter::new(), Arbiter::new());
    let mut config = Config::new(&server.url);
    config.resume_timeout = Duration::from_secs(1);
    let mux = Mux::connect_on(&for_connection.handle(), config)
        .await
        .unwrap();
    let jobs = Jobs::start_in_arbiter(&for_sessions.handle(), |_| Jobs::default());
    let application = Application {
        mux,
        jobs,
        directory: server.directory.clone(),
    };
    let shared = web::Data::new(application.clone());
    let http = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            .route("/run", web::post().to(run))
            .route("/open", web::post().to(open))
            .route("/{id}/write", web::post().to(write))
            .route("/{id}/close", web::post().to(close))
    })
    .workers(2)
    .bind("127.0.0.1:0")
    .unwrap();
    let url = format!("http://{}", http.addrs()[0]);
    let http = http.disable_signals().run();
    let handle = http.handle();
    let serving = actix::spawn(http);

    // Many at once, from both workers.
    let mut answers = Vec::new();
    for n in 0..40 {
        let url = format!("{url}/run");
        let script = format!("for i in 1 2 3; do echo {n}.$i; done; exit {n}");
        answers.push(actix::spawn(async move { post(&url, script).await }));
    }
    for (n, answer) in answers.into_iter().enumerate() {
        let expected = format!("{n}.1\n{n}.2\n{n}.3\n[{n}]");
        assert_eq!(soon(answer).await.unwrap(), (200, expected));
    }

    // A terminal that lives across requests.
    let (status, id) = post(&format!("{url}/open"), "").await;
    assert_eq!(status, 200, "{id}");
    for line in ["hello\n", "again\n"] {
        assert_eq!(post(&format!("{url}/{id}/write"), line).await.0, 204);
    }
    let (status, text) = post(&format!("{url}/{id}/close"), "").await;
    assert_eq!(
        (status, text.ends_with("hello\r\nagain\r\n[0]")),
        (200, true),
        "{text}"
    );
    assert_eq!(post(&format!("{url}/nobody/write"), "x").await.0, 404);

    // A start that the server refuses, and then a server that is gone.
    assert!(
        application
            .mux
            .server()
            .await
            .unwrap()
            .environment
            .is_some()
    );
    let missing = StartProcess::new("missing", ["/no/such/program"], "/");
    let session = application.jobs.downgrade().recipient();
    let refused = Problem::from(application.mux.start(missing, session).await.unwrap_err());
    assert_eq!(refused.status_code(), 422, "{refused}");
    let lost = tokio::spawn({
        // Its future can be sent to any thread.
        let mux = application.mux.clone();
        async move { mux.terminate("nobody").await }
    });
    soon(lost).await.unwrap().unwrap();

    let (status, id) = post(&format!("{url}/open"), "").await;
    assert_eq!(status, 200, "{id}");
    server.kill().await;
    let end = soon(wait(&application, id.as_str().into())).await;
    assert!(end.contains("[the connection is gone: "), "{end}");
    assert_eq!(post(&format!("{url}/{id}/write"), "x").await.0, 503);
    let (status, text) = post(&format!("{url}/run"), "true").await;
    assert_eq!(status, 503);
    assert!(text.contains("the connection is gone"), "{text}");

    soon(handle.stop(true)).await;
    soon(serving).await.unwrap().unwrap();
}
