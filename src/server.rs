//! An exec-server in this process. It serves processes with pipes so far.
//!
//! ```
//! use execmux::{Config, Mux, server::{Server, ServerConfig}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let system = actix::System::new();
//! system.block_on(async {
//!     let server = Server::start(ServerConfig::new()).await?;
//!     let mux = Mux::connect(Config::new(server.url())).await?;
//!     assert!(mux.environment_info().await?.shell.is_some());
//!     server.stop().await;
//!     Ok(())
//! })
//! # }
//! ```

mod connection;
mod envelope;
mod fs;
mod process;

use std::{io, net::SocketAddr, path::PathBuf, thread};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::ServerHandle,
    http::header,
    web::{self, Payload},
};
use thiserror::Error;

use self::fs::Files;

/// Options of a server. Make one with [`ServerConfig::new`] and change what you need.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Where it listens. A free port of `127.0.0.1` by default. There is no authentication yet, so that it
    /// must be loopback.
    pub listen: SocketAddr,
    /// Where files are looked for.
    pub root: Option<PathBuf>,
}

impl ServerConfig {
    /// Returns the defaults.
    pub fn new() -> Self {
        ServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            root: None,
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
    #[error("refusing to listen on {0}: it is not loopback, and there is no authentication")]
    Unauthenticated(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen")]
    Listen(#[source] io::Error),
}

/// A server that runs on a thread of its own. It stops when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    handle: ServerHandle,
}

impl Server {
    /// Starts a server, and returns when it listens.
    ///
    /// # Errors
    ///
    /// When it cannot listen there, or must not.
    pub async fn start(config: ServerConfig) -> Result<Self, ServerError> {
        if !config.listen.ip().is_loopback() {
            return Err(ServerError::Unauthenticated(config.listen));
        }
        let (started, answer) = tokio::sync::oneshot::channel();
        thread::Builder::new()
            .name("exec-server".to_owned())
            .spawn(move || run(config, started))
            .map_err(ServerError::Listen)?;
        let (address, handle) = answer
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the server's thread has ended")))
            .map_err(ServerError::Listen)?;
        Ok(Server { address, handle })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns what clients connect to.
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Stops it, with all processes and connections.
    pub async fn stop(self) {
        self.handle.stop(false).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The command is sent at once; the future only waits for it to be carried out.
        drop(self.handle.stop(false));
    }
}

type Started = tokio::sync::oneshot::Sender<io::Result<(SocketAddr, ServerHandle)>>;

fn run(config: ServerConfig, started: Started) {
    actix_rt::System::new().block_on(async move {
        let files = Files { root: config.root };
        let server = HttpServer::new(move || {
            App::new()
                .app_data(web::Data::new(files.clone()))
                .route("/readyz", web::get().to(readyz))
                .route("/", web::get().to(upgrade))
        })
        .workers(1)
        .disable_signals()
        .bind(config.listen);
        let server = match server {
            Ok(server) => server,
            Err(error) => return drop(started.send(Err(error))),
        };
        let Some(address) = server.addrs().first().copied() else {
            return;
        };
        let server = server.run();
        if started.send(Ok((address, server.handle()))).is_err() {
            return;
        }
        if let Err(error) = server.await {
            log::warn!(error:% = error; "the server has failed");
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
    files: web::Data<Files>,
) -> actix_web::Result<HttpResponse> {
    if has_origin(&request) {
        return Ok(HttpResponse::Forbidden().finish());
    }
    let (response, session, messages) = actix_ws::handle(&request, body)?;
    let files = Files::clone(&files);
    actix_rt::spawn(connection::serve(
        request.peer_addr(),
        session,
        messages,
        files,
    ));
    Ok(response)
}

/// A browser sends it, for a page that has no business here.
fn has_origin(request: &HttpRequest) -> bool {
    request.headers().contains_key(header::ORIGIN)
}
