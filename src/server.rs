//! An exec-server in this process: for development and tests, and for hosts where a large binary is too much.
//!
//! It speaks the protocol as release 0.171.0 does, without HTTP requests, network policy and sandboxes, and can
//! what that cannot: close stdin, resize terminals, send any signal, let processes not wait for each
//! other, and hold a process back until its output is consumed. It runs on a thread of its own, and what it runs has the
//! rights of this process.
//!
//! # Extensions
//!
//! What other servers do not have is announced in the `capabilities` of `environmentInfo`, which other clients
//! can use, too. To a process that is not there, `resize`, signals and `releaseOutput` are answered with `{}`.
//!
//! | capability | on the wire |
//! | --- | --- |
//! | `processCloseStdin` | `process/closeStdin {processId}` -> `{status}`: `closed`, `stdinClosed`, `unknownProcess`. Ends the stdin of a process with `pipeStdin`, behind what was written before |
//! | `processResize` | `process/resize {processId, size: {rows, cols}}` -> `{}`, and `size` in `process/start` |
//! | `processSignals` | `process/signal` with `signal` also `SIGTERM` and the like, by name |
//! | `processConcurrency` | Requests about different processes do not wait for each other; those about one are handled in order |
//! | `processOutputWindow` | `outputWindow` in `process/start`: how many bytes of output may wait for the client, each piece counting for 128 more; at most 1 MiB. With so many, the pipe of the process is not read on. The notification `process/consumed {processId, seq}` says that everything up to this `seq` is consumed, until then it is kept; the request `process/releaseOutput {processId}` -> `{}`, that the process need not wait any more |
//!
//! A request for which the server has no room ([`Limits`]) is refused with the code −32011. The server ends a connection with a Close
//! frame that says why, and answers one.
//!
//! `environmentInfo.sessionWindowMs` says how long a session waits for its client to come back.
//!
//! # What it logs
//!
//! Through the `log` crate, with the target `execmux::server` and below, and key-values: each start and stop of the server, of
//! sessions and of processes at level `info`; clients and requests that are refused at `warn`, of which no more than 20 in 10 s
//! are written. No line holds a token, the id of a session, or more of a command than its program.
//!
//! # Examples
//!
//! ```
//! use execmux::{
//!     Config, Mux, ProcessId, Session, SessionEvent, StartProcess,
//!     server::{Server, ServerConfig},
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! actix::System::new().block_on(async {
//!     let server = Server::start(ServerConfig::new()).await?;
//!     let mux = Mux::connect(Config::new(server.url())).await?;
//!
//!     let (session, mut events) = Session::stream();
//!     let echo = StartProcess::new(ProcessId::unique(), ["echo", "hello"], "/");
//!     mux.start(echo, session).await?;
//!     let mut said = Vec::new();
//!     while let Some(event) = events.recv().await {
//!         if let SessionEvent::Output(output) = event {
//!             said.extend_from_slice(&output.chunk);
//!         }
//!     }
//!     assert_eq!(said, b"hello\n");
//!
//!     server.stop().await;
//!     Ok(())
//! })
//! # }
//! ```

mod auth;
mod connection;
mod descriptors;
mod envelope;
mod environment;
mod frame_guard;
mod fs;
mod ignored;
mod journal;
mod leftovers;
mod limits;
mod liveness;
mod outbox;
mod process;
mod registry;
mod retained;
mod session;
mod socket;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use actix_web::{
    App, FromRequest as _, HttpRequest, HttpResponse, HttpServer,
    dev::{self, ServerHandle},
    http::header,
    web::{self, Payload},
};
use thiserror::Error;
use tokio::{sync::oneshot, time::timeout};

use self::{
    auth::Unfit,
    frame_guard::FrameGuard,
    fs::Files,
    leftovers::Leftovers,
    liveness::{Cutter, Heard, Patience, Taken},
    outbox::Outbox,
    registry::Registry,
    session::Stop,
};
pub use self::{
    auth::{Auth, SignedToken},
    limits::Limits,
};

/// Options of a server. Make one with [`ServerConfig::new`] and change what you need.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Where it listens. A free port of `127.0.0.1` by default.
    pub listen: SocketAddr,
    /// Who may connect. Everyone by default, which is refused where others than this machine can reach it.
    pub auth: Auth,
    /// Whether everyone may connect from anywhere. Off by default.
    pub allow_unauthenticated: bool,
    /// The only directory whose files the `fs/` methods read and change, and below which processes start. All by default.
    ///
    /// Each file operation goes through a handle on this directory. A link that leads out of it is refused, also one that somebody
    /// puts there while the operation runs. A link to a place below the root is followed. What is mounted below the root, or is a
    /// hard link there, belongs to it.
    ///
    /// A root does not confine processes. They start below it and then may go wherever the rights of this process let them.
    pub root: Option<PathBuf>,
    /// How long a session waits for its client to come back. 30 s by default. When it is over, its processes
    /// are killed.
    pub session_window: Duration,
    /// How long a client may send nothing before it is pinged. 10 s by default, so that what is between does not take
    /// the connection for idle. A client is pinged after half of `silence_timeout` at the latest.
    pub ping_interval: Duration,
    /// How long a client may give no sign of life before its connection is dropped and the session waits for the client
    /// to come back. 25 s by default, with which a client that has lost the network in silence can come back before
    /// `session_window` has passed once. Signs of life are all bytes that come from the client, and that its socket
    /// takes more after it was full: a client that is slow in taking a large message is not dropped. A client that stops
    /// reading for longer has to send pongs that nobody has asked for, as the client of this crate does.
    pub silence_timeout: Duration,
    /// How long a client may take to give a sign of life, once pinged, when another connection asks to resume its
    /// session. After that, the other connection gets the session, and this one is dropped. 3 s by default. It should be
    /// less than half of what clients wait for the answer to their handshake
    /// ([`Config::handshake_timeout`](crate::Config::handshake_timeout)).
    pub takeover_timeout: Duration,
    /// How long a process that has ended can be asked about, and its id is taken. 30 s by default.
    pub forgotten_after: Duration,
    /// How much the server holds for its clients, in bytes, and how many of them there may be.
    pub limits: Limits,
    /// Whether this process adopts those below it that lose their parents (`PR_SET_CHILD_SUBREAPER`), and ends them
    /// when the server stops. Off by default; Linux only, elsewhere the server does not start with it.
    ///
    /// With it, a server that stops ends also what has left its session and its parents, as daemons do. It is for
    /// programs that start no other processes than the server's: whichever process it finds below itself, except
    /// for children that were there when the server started, is killed when the server stops, and reaped.
    pub adopt_orphans: bool,
}

impl ServerConfig {
    /// Returns the defaults.
    pub fn new() -> Self {
        ServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            auth: Auth::None,
            allow_unauthenticated: false,
            root: None,
            session_window: Duration::from_secs(30),
            ping_interval: Duration::from_secs(10),
            silence_timeout: Duration::from_secs(25),
            takeover_timeout: Duration::from_secs(3),
            forgotten_after: Duration::from_secs(30),
            limits: Limits::default(),
            adopt_orphans: false,
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig::new()
    }
}

/// Why a server did not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Whoever reaches it could run anything.
    #[error(
        "refusing to listen on {0} for everyone: it is not loopback; ask for a token, or allow it explicitly"
    )]
    Unauthenticated(SocketAddr),
    /// A token, or a secret that tokens are signed with, that is too easy to guess.
    #[error("the {what} is too short: at least {least} bytes are needed, and best random ones")]
    WeakSecret {
        /// What it is.
        what: &'static str,
        /// How long it has to be.
        least: usize,
    },
    /// A token that clients could not send as it is, or a secret that was not saved as it was meant.
    #[error("the {what} cannot be used: {problem}")]
    UnusableSecret {
        /// What it is.
        what: &'static str,
        /// What is wrong with it, and what to do about it.
        problem: &'static str,
    },
    /// The root is not there.
    #[error("cannot use {} as the root", path.display())]
    Root {
        /// What was to be the root.
        path: PathBuf,
        /// Why it cannot.
        source: io::Error,
    },
    /// Processes cannot be looked after: there is no thread for it, or orphans cannot be adopted on this system.
    #[error("cannot look after processes")]
    Processes(#[source] io::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where it should have listened.
        address: SocketAddr,
        /// Why it cannot.
        source: io::Error,
    },
}

/// How much of what a server has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStatistics {
    /// Open connections.
    pub connections: usize,
    /// Sessions, with a connection or waiting for one.
    pub sessions: usize,
    /// Processes that can be asked about, running or not, and those of which others live on.
    pub processes: usize,
}

/// A server that runs. When it is dropped it stops, as with [`stop`](Server::stop), but nobody waits for it.
///
/// # What is left of processes
///
/// A process that is terminated, whose session is over, or whose server stops, is killed with all that it has started:
/// on Linux everybody in its session, whatever their process groups (background jobs of a shell with job control,
/// too), everybody below them, and the sessions that were begun there; elsewhere its process group. What can get away
/// is a process that has begun a session of its own (`setsid`) and whose parents had ended before: a daemon. Only
/// [`ServerConfig::adopt_orphans`] ends such ones, when the server stops. A server that is itself killed
/// (`SIGKILL`) ends nothing.
///
/// # Descriptors
///
/// A process gets its three standard streams and no other descriptor of this process, also where this process has
/// inherited some or a library has opened some without `O_CLOEXEC`: before each start, the server marks all of them
/// as close-on-exec. An application that passes descriptors to processes of its own has to hand them over in the
/// child, between fork and exec, as the standard library does for the standard streams.
pub struct Server {
    address: SocketAddr,
    handle: ServerHandle,
    registry: Arc<Registry>,
}

impl Server {
    /// Starts a server on a thread of its own, and returns when it listens.
    ///
    /// # Errors
    ///
    /// When it cannot listen there, or must not.
    pub async fn start(config: ServerConfig) -> Result<Self, ServerError> {
        let address = config.listen;
        config.check()?;
        let files = Files::new(config.root.clone()).map_err(|source| ServerError::Root {
            path: config.root.clone().unwrap_or_default(),
            source,
        })?;
        let leftovers = Leftovers::new(config.adopt_orphans).map_err(ServerError::Processes)?;
        let registry = Arc::new(Registry::new(
            config.auth,
            files,
            leftovers,
            config.session_window,
            config.forgotten_after,
            Patience {
                ping_interval: config.ping_interval,
                silence_timeout: config.silence_timeout,
                takeover_timeout: config.takeover_timeout,
            },
            config.limits,
        ));
        let failed = |source| ServerError::Listen { address, source };
        let (started, answer) = oneshot::channel();
        let shared = registry.clone();
        thread::Builder::new()
            .name("exec-server".to_owned())
            .spawn(move || run(address, shared, started))
            .map_err(failed)?;
        let (address, handle) = answer
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the server's thread has ended")))
            .map_err(failed)?;
        let clients = registry.auth.clients();
        (registry.journal).listens(address, clients, config.root.as_deref());
        Ok(Server {
            address,
            handle,
            registry,
        })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns what clients connect to.
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Counts what there is now.
    pub fn statistics(&self) -> ServerStatistics {
        let counts = &self.registry.counts;
        ServerStatistics {
            connections: self.registry.connections(),
            sessions: counts.sessions.load(Ordering::Relaxed),
            processes: counts.processes.load(Ordering::Relaxed),
        }
    }

    /// Stops it: kills all processes with what they have left behind, closes all connections, and returns when that
    /// is done. Processes that do not end when they are killed are waited for some seconds.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, it stops all the same.
    pub async fn stop(self) {
        let stopped: Vec<_> = self
            .registry
            .close()
            .into_iter()
            .map(|session| session.send(Stop))
            .collect();
        for stopped in stopped {
            // One that is gone already has left nothing.
            let _gone = stopped.await;
        }
        self.registry.leftovers.end_orphans().await;
        // Each client is told. Who does not read is not waited for.
        let _late = timeout(CLOSING, self.registry.all_ended()).await;
        self.handle.stop(false).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for session in self.registry.close() {
            session.do_send(Stop);
        }
        // The command is sent at once; the future only waits until it has been carried out.
        drop(self.handle.stop(false));
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}

/// How long clients may take to be told that the server stops.
const CLOSING: Duration = Duration::from_secs(2);

impl ServerConfig {
    fn check(&self) -> Result<(), ServerError> {
        if matches!(self.auth, Auth::None)
            && !self.listen.ip().is_loopback()
            && !self.allow_unauthenticated
        {
            return Err(ServerError::Unauthenticated(self.listen));
        }
        match self.auth.unfit() {
            None => Ok(()),
            Some(Unfit::Short { what, least }) => Err(ServerError::WeakSecret { what, least }),
            Some(Unfit::Unusable { what, problem }) => {
                Err(ServerError::UnusableSecret { what, problem })
            }
        }
    }
}

type Started = oneshot::Sender<io::Result<(SocketAddr, ServerHandle)>>;

fn run(listen: SocketAddr, registry: Arc<Registry>, started: Started) {
    actix_rt::System::new().block_on(async move {
        ignored::keep_from_processes();
        let registry = web::Data::new(registry);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(registry.clone())
                .service(web::resource("/readyz").route(web::get().to(readyz)))
                .route("/", web::get().to(upgrade))
        })
        .on_connect(Cutter::add)
        // Sessions stay on the thread on which they began, and are resumed there.
        .workers(1)
        .disable_signals()
        .bind(listen);
        let server = match server {
            Ok(server) => server,
            Err(error) => {
                let _gone = started.send(Err(error));
                return;
            }
        };
        let address = server.addrs().first().copied().unwrap_or(listen);
        let server = server.run();
        if started.send(Ok((address, server.handle()))).is_err() {
            return;
        }
        if let Err(error) = server.await {
            log::warn!(error:%; "the server has failed");
        }
    });
}

async fn readyz(request: HttpRequest) -> HttpResponse {
    match has_origin(&request) {
        true => HttpResponse::Forbidden().finish(),
        false => HttpResponse::Ok().finish(),
    }
}

async fn upgrade(
    request: HttpRequest,
    body: Payload,
    registry: web::Data<Arc<Registry>>,
) -> actix_web::Result<HttpResponse> {
    let peer = request.peer_addr().map(|peer| peer.to_string());
    let peer = peer.unwrap_or_default();
    if has_origin(&request) {
        let why = "it has an Origin header, as pages in browsers have";
        registry.journal.client_refused(&peer, why);
        return Ok(HttpResponse::Forbidden().finish());
    }
    let authorization = request.headers().get_all(header::AUTHORIZATION);
    if let Err(reason) = registry
        .auth
        .check(authorization.map(|value| value.as_bytes()))
    {
        registry.journal.client_refused(&peer, reason);
        return Ok(HttpResponse::Unauthorized().body(reason));
    }
    let outbox = Arc::new(Outbox::new(&registry.limits, registry.memory.clone()));
    let Some(admitted) = registry.admit(&outbox) else {
        let reason = "as many clients are connected as this server takes";
        registry.journal.client_refused(&peer, reason);
        return Ok(HttpResponse::ServiceUnavailable().body(reason));
    };
    let guard = FrameGuard::new(registry.memory.clone());
    let heard = Heard::new(body.into_inner(), outbox.clone(), guard);
    let payload = Box::pin(heard.clone());
    let body = Payload::from_request(&request, &mut dev::Payload::Stream { payload }).await?;
    let (response, _, messages) = actix_ws::handle(&request, body)?;
    let (response, original) = response.into_parts();
    let (socket, frames) = socket::channel(original);
    let wire = connection::Wire {
        peer,
        socket,
        messages,
        heard,
        cutter: request.conn_data::<Cutter>().cloned(),
        admitted,
    };
    let taken = outbox.clone();
    crate::task::spawn(connection::serve(Arc::clone(&registry), outbox, wire));
    Ok(response
        .set_body(Taken::new(frames, taken))
        .map_into_boxed_body())
}

/// A browser sends it, for a page that has no business here.
fn has_origin(request: &HttpRequest) -> bool {
    request.headers().contains_key(header::ORIGIN)
}
