//! Actor-based session multiplexer: any number of remote processes over one WebSocket to an
//! exec-server, each of them owned by one actor.

mod config;
mod connection;
mod error;
mod mux;
pub mod protocol;
mod router;

pub use crate::{
    config::Config,
    connection::{
        Call, Connection, ConnectionEvent, DescribeServer, GetStatistics, PendingCall, ServerInfo,
        Statistics,
    },
    error::{
        CallError, ConnectError, DisconnectReason, FailureReason, InvalidRequest, JsonError,
        RegisterError, StartError,
    },
    mux::Mux,
    protocol::{Method, ProcessId, StartProcess, Started, Stream},
    router::{
        Closed, Exited, Failed, Output, PendingStart, Register, Router, Session, SessionEvent,
        Shutdown, Start, Unregister,
    },
};
