//! The words of the exec-server protocol, and the trait that makes one value of each method.
//!
//! A method is a plain struct; its [`Method`] implementation names it, says what it answers with
//! and writes its params. To add one: the struct, the implementation, the response. For example:
//!
//! ```
//! use execmux::protocol::{InvalidRequest, Method, Params};
//!
//! struct EnvironmentStatus;
//!
//! #[derive(serde::Deserialize)]
//! struct Status {
//!     status: String,
//! }
//!
//! impl Method for EnvironmentStatus {
//!     const NAME: &'static str = "environment/status";
//!     type Response = Status;
//!
//!     fn write_params(&self, _: &mut Params<'_>) -> Result<(), InvalidRequest> {
//!         Ok(())
//!     }
//! }
//! ```

pub(crate) mod base64;
mod dialect;
mod environment;
mod fs;
mod id;
pub(crate) mod jsonrpc;
mod notification;
mod params;
mod process;
mod start;

use serde::{Deserialize, de::DeserializeOwned};

pub(crate) use self::notification::{Notification, ProcessEvent};
pub use self::{
    dialect::{Dialect, PathSpelling},
    environment::{EnvironmentInfo, ReadEnvironmentInfo, Shell},
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
pub use crate::error::InvalidRequest;

/// A remote method: one value is one request.
pub trait Method: Send + 'static {
    /// Its name on the wire.
    const NAME: &'static str;
    /// What the server answers with.
    type Response: DeserializeOwned + Send + 'static;

    /// Writes the params, in the dialect of the server that they go to.
    ///
    /// # Errors
    ///
    /// When the request cannot be put on the wire, say because a path is relative.
    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest>;
}

/// The response of methods that answer with an empty object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Done {}
