//! The words of the exec-server protocol, and the trait that makes one value of each method.
//!
//! A method is a plain struct; its [`Method`] implementation names it, says what it answers with
//! and writes its params. To add one: the struct, the implementation, the response. For example:
//!
//! ```
//! use execmux::protocol::{InvalidRequest, Method, Params};
//!
//! struct ReadClock;
//!
//! #[derive(serde::Deserialize)]
//! struct Clock {
//!     now: u64,
//! }
//!
//! impl Method for ReadClock {
//!     const NAME: &'static str = "environment/clock";
//!     type Response = Clock;
//!
//!     fn write_params(&self, _: &mut Params<'_>) -> Result<(), InvalidRequest> {
//!         Ok(())
//!     }
//! }
//! ```

pub(crate) mod base64;
mod blocks;
mod capabilities;
mod control;
mod dialect;
mod environment;
mod fs;
mod id;
pub(crate) mod jsonrpc;
mod notification;
mod params;
mod process;
mod record;
mod start;
mod window;
pub(crate) mod words;

use serde::{Deserialize, de::DeserializeOwned};

pub use self::{
    blocks::{
        Block, CanonicalPath, Canonicalize, CloseFile, EntryKind, HandleId, MAX_BLOCK, OpenFile,
        OpenMode, OpenedFile, ReadBlock, Walk, WalkError, WalkOptions, Walked, WalkedEntry,
        WriteBlock,
    },
    capabilities::{Capabilities, Unsupported},
    control::{
        CloseStatus, CloseStdin, ResizeTerminal, SendSignal, Signal, StdinClosed, TerminalSize,
    },
    dialect::{Dialect, PathSpelling},
    environment::{
        EnvironmentInfo, EnvironmentStatus, ReadEnvironmentInfo, ReadEnvironmentStatus, Shell,
    },
    fs::{
        CopyPath, CreateDirectory, DirectoryEntry, DirectoryListing, FileContent, Metadata,
        ReadDirectory, ReadFile, ReadMetadata, RemovePath, WriteFile,
    },
    id::{ProcessId, WriteId},
    jsonrpc::ErrorCode,
    params::Params,
    process::{
        Interrupt, OutputChunk, ReadProcess, RetainedOutput, Stream, Terminate, Terminated,
        WriteStatus, WriteStdin, Written,
    },
    start::{
        EnvironmentPolicy, InheritEnvironment, ProcessMetadata, ShellSnapshot, StartProcess,
        Started,
    },
};
pub(crate) use self::{
    capabilities::Generation,
    id::SessionId,
    notification::{Entry, Notification, Notifications, ProcessEvent},
    record::{NOT_FOUND, NOT_RECORDED, Record},
    window::{MAX_OUTPUT_WINDOW, OUTPUT_OVERHEAD, ReleaseOutput, encode_consumed},
};
pub use crate::error::InvalidRequest;

/// A remote method: one value is one request.
pub trait Method: Send + 'static {
    /// Its name on the wire.
    const NAME: &'static str;
    /// What the server answers with. It is decoded on the thread of the connection; if that panics, the call ends as
    /// [`InvalidResponse`](crate::CallError::InvalidResponse).
    type Response: DeserializeOwned + Send + 'static;
    /// What is done when the connection is lost before the answer has come. By default the call ends
    /// as [`OutcomeUnknown`](crate::CallError::OutcomeUnknown).
    const REPEAT: Repeat = Repeat::Never;

    /// Which queue the request waits in. By default the one for most.
    fn lane(&self) -> Lane<'_> {
        Lane::Ordinary
    }

    /// Whether a server with these capabilities has it. If not, it is not asked, and the call ends as
    /// [`Unsupported`](crate::CallError::Unsupported). By default all have it.
    ///
    /// # Errors
    ///
    /// What is missing.
    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        let _any = capabilities;
        Ok(())
    }

    /// Writes the params, in the dialect of the server that they go to.
    ///
    /// # Errors
    ///
    /// When the request cannot be put on the wire, say because a path is relative.
    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest>;
}

/// Whether a request may be made again on a resumed connection, when it is not known whether the server
/// has carried it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repeat {
    /// It may not: it changes something each time.
    Never,
    /// It may: twice is as good as once.
    Always,
    /// It may where the server knows it again by the id in its params: servers from 0.142 on.
    ById,
}

/// The queue that a request waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lane<'a> {
    /// In the order of the calls.
    Ordinary,
    /// Before all others: small, and urgent.
    Control,
    /// Behind the other writes to the stdin of this process, of which the server gets one at a time:
    /// several might be carried out in any order, and many that the process does not read would block
    /// the connection.
    Stdin(&'a ProcessId),
    /// In the order of the calls, but only so many unanswered at a time
    /// ([`Config::max_starts_in_flight`](crate::Config::max_starts_in_flight)). What is asked of a process before its
    /// start is answered may overtake the start.
    Start,
}

/// The response of methods that answer with an empty object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Done {}
