//! Actor-based session multiplexer: any number of remote processes over one WebSocket to an
//! exec-server, each of them owned by one actor of the application.
//!
//! ```text
//! application actors ── Start, Call<M> ──┐         ┌── SessionEvent ──> session actors
//!                                        v         |
//! exec-server <══ WebSocket ══> Connection ──────> Router
//!                               calls in flight    process id -> session
//! ```
//!
//! A *session* is any actor that handles [`SessionEvent`]. It is given to [`Mux::start`] together
//! with what to run, and is told of output, of the exit, and of the end: [`Closed`], or [`Failed`]
//! with the reason. One of the two comes last, once. What is lost on the way is told as a [`Gap`].
//!
//! A connection that is lost is resumed, as long as the server keeps the processes. Sessions notice
//! nothing but time, and calls are asked again where that does no harm.
//!
//! ```no_run
//! use actix::prelude::*;
//! use execmux::{Config, Mux, ProcessId, SessionEvent, StartProcess};
//!
//! struct Printer;
//!
//! impl Actor for Printer {
//!     type Context = Context<Self>;
//!
//!     fn stopped(&mut self, _: &mut Self::Context) {
//!         System::current().stop();
//!     }
//! }
//!
//! impl Handler<SessionEvent> for Printer {
//!     type Result = ();
//!
//!     fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
//!         match event {
//!             SessionEvent::Output(output) => print!("{}", output.chunk.escape_ascii()),
//!             SessionEvent::Closed(closed) => println!("exit code {:?}", closed.exit_code),
//!             SessionEvent::Failed(failed) => eprintln!("failed: {:?}", failed.reason),
//!             _ => {}
//!         }
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let system = System::new();
//!     let mux = system.block_on(async {
//!         let mux = Mux::connect(Config::new("ws://127.0.0.1:8080")).await?;
//!         let process = StartProcess::new(ProcessId::unique(), ["ls", "-l"], "/tmp")
//!             .env("PATH", "/usr/bin:/bin");
//!         mux.start(process, Printer.start().recipient()).await?;
//!         Ok::<_, Box<dyn std::error::Error>>(mux)
//!     })?;
//!     system.run()?;
//!     drop(mux);
//!     Ok(())
//! }
//! ```
//!
//! # Map
//!
//! - [`Mux`]: the handle of a connection; [`Config`] its options.
//! - [`Start`], [`Register`], [`Unregister`], [`Shutdown`]: what the [`Router`] answers.
//! - [`Session`]: who is told, with which budget; [`SessionEvents`]: its events as a stream;
//!   [`Overflow`]: what becomes of it when it does not consume.
//! - [`Call`], [`DescribeServer`], [`GetStatistics`], [`Subscribe`]: what the [`Connection`] answers; [`Subscriber`]: who
//!   is told of the link, and who keeps it alive.
//! - [`protocol`]: the methods, one struct each, and what they answer with.
//! - [`ConnectError`], [`CallError`], [`StartError`], [`RegisterError`], [`ShutdownError`]: one enum per operation;
//!   [`StartRefusal`]: why a server did not start a process;
//!   [`DisconnectReason`], [`ResumeError`] and [`FailureReason`]: why things end; [`HelperFailure`]. The text of an error
//!   leaves its cause to [`source`](std::error::Error::source): print the whole chain, as `{:#}` of anyhow does.
//!
//! # Features
//!
//! - none by default: the library.
//! - `cli`: the `execmux` program (Unix only; brings `server`).
//! - `server`: an exec-server in this process (Unix only).

mod cache;
mod config;
mod connection;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod mux;
pub mod protocol;
mod router;
#[cfg(test)]
mod seeds;
#[cfg(all(feature = "server", unix))]
pub mod server;
mod task;

pub use crate::{
    config::Config,
    connection::{
        Call, Connection, DescribeServer, GetStatistics, LinkState, PendingCall, ServerInfo,
        Statistics, Subscribe, Subscriber,
    },
    error::{
        CallError, ConnectError, DisconnectReason, FailureReason, HelperFailure, InvalidRequest,
        JsonError, RegisterError, ResumeError, StartError, StartRefusal,
    },
    mux::Mux,
    protocol::{Method, ProcessId, StartProcess, Started, Stream},
    router::{
        Closed, Exited, Failed, Gap, Interrupted, Output, Overflow, PendingStart, Permit,
        Processes, Register, Resumed, Router, Session, SessionEvent, SessionEvents, Shutdown,
        ShutdownError, Start, Unregister,
    },
    task::alive,
};

/// The examples of the README, of which one needs the server.
#[cfg(all(doctest, feature = "server", unix))]
#[doc = include_str!("../README.md")]
pub struct Readme;
