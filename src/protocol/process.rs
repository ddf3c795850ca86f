//! What is done with a process that runs: read, write, terminate, interrupt.

use std::{fmt, time::Duration};

use bytes::Bytes;
use serde::Deserialize;

use super::{
    Capabilities, Done, InvalidRequest, Lane, Method, Params, ProcessId, Repeat, Unsupported,
    WriteId, base64,
};

/// One of the streams of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output of a process with pipes.
    Stdout,
    /// Standard error of a process with pipes.
    Stderr,
    /// Both, of a process on a pty.
    Pty,
}

/// `process/read`: reads what the server retains of the output of a process: the newest 1 MiB.
///
/// Sessions get output without asking; this is for looking again.
#[derive(Debug, Clone)]
#[must_use]
pub struct ReadProcess {
    process_id: ProcessId,
    after_seq: Option<u64>,
    max_bytes: Option<u64>,
    wait: Duration,
}

impl ReadProcess {
    /// Reads all that is retained of `process_id`.
    pub fn new(process_id: impl Into<ProcessId>) -> Self {
        ReadProcess {
            process_id: process_id.into(),
            after_seq: None,
            max_bytes: None,
            wait: Duration::ZERO,
        }
    }

    /// Reads only what came after this `seq`.
    pub fn after_seq(mut self, seq: u64) -> Self {
        self.after_seq = Some(seq);
        self
    }

    /// Stops before exceeding so many bytes, but returns one chunk at least.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Waits so long for something to read; not at all by default.
    ///
    /// Servers handle the requests of a connection one after the other: while this one waits, every
    /// other call of the whole application waits behind it.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

impl Method for ReadProcess {
    const NAME: &'static str = "process/read";
    type Response = RetainedOutput;
    const REPEAT: Repeat = Repeat::Always;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)?;
        params.optional("afterSeq", self.after_seq.as_ref())?;
        params.optional("maxBytes", self.max_bytes.as_ref())?;
        params.field(
            "waitMs",
            &u64::try_from(self.wait.as_millis()).unwrap_or(u64::MAX),
        )
    }
}

/// What a server retains of a process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RetainedOutput {
    /// Output in order of `seq`. What has left the server's window is missing without a word.
    pub chunks: Vec<OutputChunk>,
    /// Reading goes on with `after_seq` set to one less than this.
    pub next_seq: u64,
    /// Whether the process has ended.
    pub exited: bool,
    /// Its exit code, if it has ended.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Whether its streams have ended too.
    pub closed: bool,
    /// Never seen to be anything but `None`.
    #[serde(default)]
    pub failure: Option<String>,
    /// Whether the sandbox refused it something (0.142 on).
    #[serde(default)]
    pub sandbox_denied: Option<bool>,
}

/// A piece of retained output.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct OutputChunk {
    /// Its place among all events of the process.
    pub seq: u64,
    /// Where the process wrote it.
    pub stream: Stream,
    /// The bytes.
    #[serde(deserialize_with = "base64::deserialize")]
    pub chunk: Bytes,
}

impl fmt::Debug for OutputChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputChunk")
            .field("seq", &self.seq)
            .field("stream", &self.stream)
            .field("bytes", &self.chunk.len())
            .finish()
    }
}

/// `process/write`: writes to the stdin of a process on a pty, or with
/// [`pipe_stdin`](super::StartProcess::pipe_stdin).
///
/// The writes to one process are sent one after the other, each when the one before is answered.
#[derive(Clone)]
#[must_use]
pub struct WriteStdin {
    process_id: ProcessId,
    chunk: Bytes,
    write_id: WriteId,
}

impl WriteStdin {
    /// Writes `chunk`, at most about 48 MiB, under an id of its own.
    pub fn new(process_id: impl Into<ProcessId>, chunk: impl Into<Bytes>) -> Self {
        WriteStdin {
            process_id: process_id.into(),
            chunk: chunk.into(),
            write_id: WriteId::unique(),
        }
    }

    /// Gives the write an id, so that it can be repeated without writing twice. Must not be empty.
    pub fn write_id(mut self, write_id: impl Into<WriteId>) -> Self {
        self.write_id = write_id.into();
        self
    }
}

impl fmt::Debug for WriteStdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteStdin")
            .field("process_id", &self.process_id)
            .field("bytes", &self.chunk.len())
            .finish_non_exhaustive()
    }
}

impl Method for WriteStdin {
    const NAME: &'static str = "process/write";
    type Response = Written;
    const REPEAT: Repeat = Repeat::ById;

    fn lane(&self) -> Lane<'_> {
        Lane::Stdin(&self.process_id)
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)?;
        params.base64("chunk", &self.chunk);
        params.field("writeId", &self.write_id)
    }
}

/// The answer to [`WriteStdin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Written {
    /// What became of the write.
    pub status: WriteStatus,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum WriteStatus {
    /// Queued for the process; it may end without reading it.
    Accepted,
    /// There is no such process.
    UnknownProcess,
    /// The process has no stdin to write to.
    StdinClosed,
    /// Its start is not finished yet: try again.
    Starting,
    /// A word that this version of the crate does not know.
    #[serde(other)]
    Unknown,
}

/// `process/terminate`: kills a process and its group at once. Output that the server has not read
/// from the pipe yet is lost.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct Terminate {
    /// The process.
    pub process_id: ProcessId,
}

impl Terminate {
    /// Kills `process_id`.
    pub fn new(process_id: impl Into<ProcessId>) -> Self {
        Terminate {
            process_id: process_id.into(),
        }
    }
}

impl Method for Terminate {
    const NAME: &'static str = "process/terminate";
    type Response = Terminated;
    const REPEAT: Repeat = Repeat::Always;

    fn lane(&self) -> Lane<'_> {
        Lane::Control
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)
    }
}

/// The answer to [`Terminate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Terminated {
    /// Whether it was running; `false` also if it was never known.
    pub running: bool,
}

/// `process/signal`: sends SIGINT to the group of a process (servers with
/// [`interrupt`](Capabilities::interrupt)). A process that is not there is not an error.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct Interrupt {
    /// The process.
    pub process_id: ProcessId,
}

impl Interrupt {
    /// Interrupts `process_id`.
    pub fn new(process_id: impl Into<ProcessId>) -> Self {
        Interrupt {
            process_id: process_id.into(),
        }
    }
}

impl Method for Interrupt {
    const NAME: &'static str = "process/signal";
    type Response = Done;
    const REPEAT: Repeat = Repeat::Always;

    fn lane(&self) -> Lane<'_> {
        Lane::Control
    }

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        can_interrupt(capabilities)
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)?;
        params.field("signal", "interrupt")
    }
}

/// Whether SIGINT has a request of its own.
pub(super) fn can_interrupt(capabilities: &Capabilities) -> Result<(), Unsupported> {
    capabilities.interrupt.then_some(()).ok_or(Unsupported::new(
        "interrupt",
        "start the process with StartProcess::helper_processes and use Mux::signal, write \\x03 to one on a \
         pty, or kill it (Mux::terminate)",
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::{PathSpelling, jsonrpc::encoded_params};

    #[test]
    fn a_write_always_has_an_id_and_a_read_always_says_how_long_it_waits() {
        let (a, b) = (
            encoded_params(PathSpelling::Plain, &WriteStdin::new("p", "x")),
            encoded_params(PathSpelling::Plain, &WriteStdin::new("p", "x")),
        );
        assert_eq!(
            (&a["processId"], &a["chunk"]),
            (&json!("p"), &json!("eA=="))
        );
        assert_ne!(a["writeId"], b["writeId"]);
        assert_eq!(
            encoded_params(PathSpelling::Plain, &ReadProcess::new("p")),
            json!({"processId": "p", "waitMs": 0})
        );
        assert_eq!(
            encoded_params(
                PathSpelling::Plain,
                &ReadProcess::new("p")
                    .after_seq(3)
                    .max_bytes(9)
                    .wait(Duration::from_secs(1))
            ),
            json!({"processId": "p", "afterSeq": 3, "maxBytes": 9, "waitMs": 1000})
        );
    }

    #[test]
    fn write_statuses_decode_also_those_of_later_servers() {
        for (word, status) in [
            ("accepted", WriteStatus::Accepted),
            ("unknownProcess", WriteStatus::UnknownProcess),
            ("stdinClosed", WriteStatus::StdinClosed),
            ("starting", WriteStatus::Starting),
            ("later", WriteStatus::Unknown),
        ] {
            let written: Written = serde_json::from_value(json!({ "status": word })).unwrap();
            assert_eq!(written.status, status);
        }
    }

    #[test]
    fn a_server_that_cannot_interrupt_is_not_asked_to() {
        let mut capabilities = Capabilities::default();
        let interrupt = Interrupt::new("p");
        let missing = interrupt.supported_by(&capabilities).unwrap_err();
        assert_eq!(missing.capability, "interrupt");
        capabilities.interrupt = true;
        assert_eq!(interrupt.supported_by(&capabilities), Ok(()));
    }

    #[test]
    fn p11_debug_does_not_show_payload() {
        let write = WriteStdin::new("p", "secret");
        assert!(!format!("{write:?}").contains("secret"), "{write:?}");
    }
}
