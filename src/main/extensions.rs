//! Methods that only some servers have, and the capabilities by which they say so.

use std::path::PathBuf;

use bytes::Bytes;
use execmux::{
    Method, ProcessId,
    protocol::{Done, InvalidRequest, Lane, Params, Repeat},
};
use serde::{Deserialize, Deserializer, Serialize, de};

/// `process/closeStdin`.
pub(crate) const CLOSE_STDIN: &str = "processCloseStdin";
/// `process/resize`.
pub(crate) const RESIZE: &str = "processResize";
/// `process/signal` with other signals than `interrupt`.
pub(crate) const SIGNALS: &str = "processSignals";
/// `fs/writeBlock`.
pub(crate) const WRITE_BLOCKS: &str = "fileWriteStreaming";

/// Ends the stdin of a process, behind what has been written to it.
#[derive(Debug)]
pub(crate) struct CloseStdin {
    pub(crate) process_id: ProcessId,
}

#[derive(Debug, Deserialize)]
pub(crate) struct StdinStatus {
    pub(crate) status: String,
}

impl Method for CloseStdin {
    const NAME: &'static str = "process/closeStdin";
    type Response = StdinStatus;
    const REPEAT: Repeat = Repeat::Always;

    fn lane(&self) -> Lane<'_> {
        Lane::Stdin(&self.process_id)
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)
    }
}

/// Gives the terminal of a process another size.
#[derive(Debug)]
pub(crate) struct Resize {
    pub(crate) process_id: ProcessId,
    pub(crate) rows: u16,
    pub(crate) cols: u16,
}

#[derive(Serialize)]
struct Size {
    rows: u16,
    cols: u16,
}

impl Method for Resize {
    const NAME: &'static str = "process/resize";
    type Response = Done;
    const REPEAT: Repeat = Repeat::Always;

    fn lane(&self) -> Lane<'_> {
        Lane::Control
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)?;
        let (rows, cols) = (self.rows, self.cols);
        params.field("size", &Size { rows, cols })
    }
}

/// Sends a signal to the group of a process.
#[derive(Debug)]
pub(crate) struct SendSignal {
    pub(crate) process_id: ProcessId,
    pub(crate) signal: &'static str,
}

impl Method for SendSignal {
    const NAME: &'static str = "process/signal";
    type Response = Done;

    fn lane(&self) -> Lane<'_> {
        Lane::Control
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)?;
        params.field("signal", self.signal)
    }
}

/// Opens a file to be read or replaced in blocks. A handle is gone with its connection.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) handle_id: String,
    pub(crate) path: PathBuf,
    /// `read` or `replace`.
    pub(crate) mode: &'static str,
}

impl Method for OpenFile {
    const NAME: &'static str = "fs/open";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("handleId", &self.handle_id)?;
        params.path("path", &self.path)?;
        params.field("mode", self.mode)
    }
}

/// Reads a part of an open file, at most 1 MiB.
#[derive(Debug)]
pub(crate) struct ReadBlock {
    pub(crate) handle_id: String,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

#[derive(Deserialize)]
pub(crate) struct Block {
    #[serde(deserialize_with = "from_base64")]
    pub(crate) chunk: Bytes,
    pub(crate) eof: bool,
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = base64_turbo::STANDARD
        .decode(text)
        .map_err(de::Error::custom)?;
    Ok(bytes.into())
}

impl Method for ReadBlock {
    const NAME: &'static str = "fs/readBlock";
    type Response = Block;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("handleId", &self.handle_id)?;
        params.field("offset", &self.offset)?;
        params.field("len", &self.len)
    }
}

/// Writes a part of an open file, at most 1 MiB.
pub(crate) struct WriteBlock {
    pub(crate) handle_id: String,
    pub(crate) offset: u64,
    pub(crate) chunk: Bytes,
}

impl Method for WriteBlock {
    const NAME: &'static str = "fs/writeBlock";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("handleId", &self.handle_id)?;
        params.field("offset", &self.offset)?;
        params.base64("chunk", &self.chunk);
        Ok(())
    }
}

/// Closes an open file.
#[derive(Debug)]
pub(crate) struct CloseFile {
    pub(crate) handle_id: String,
}

impl Method for CloseFile {
    const NAME: &'static str = "fs/close";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("handleId", &self.handle_id)
    }
}
