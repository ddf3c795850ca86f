//! What can go wrong, one enum per operation, and the [`DisconnectReason`] they share.
//!
//! The text of an error leaves its cause to `source`.

mod causes;

mod refusal;
mod retry;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

pub(crate) use self::causes::Causes;
pub use self::refusal::StartRefusal;
use crate::protocol::{ErrorCode, ProcessId, Unsupported};

/// Why a connection could not be opened.
///
/// Texts name the server as `scheme://host:port/path`: user name, password and query of the URL
/// never appear in them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL is not one that can be dialled. Expected is `ws://HOST[:PORT][/]`.
    #[error("cannot use the URL: {problem}; expected something like ws://127.0.0.1:8080")]
    InvalidUrl {
        /// What is wrong with it.
        problem: String,
    },
    /// A credential (bearer token, or user and password in the URL) would travel unencrypted to a
    /// host that is not loopback. Set [`Config::allow_plaintext_credentials`] if that is intended.
    ///
    /// [`Config::allow_plaintext_credentials`]: crate::Config::allow_plaintext_credentials
    #[error(
        "refusing to send credentials to {server} unencrypted: it is not a loopback address \
         (allow_plaintext_credentials permits it)"
    )]
    PlaintextCredentials {
        /// The server, without credentials.
        server: String,
    },
    /// The credentials cannot be sent as an HTTP header.
    #[error("cannot use the credentials: {problem}")]
    InvalidCredentials {
        /// What is wrong with them.
        problem: &'static str,
    },
    /// No connection within [`Config::connect_timeout`](crate::Config::connect_timeout).
    #[error("no connection to {server} within {after:?}")]
    Timeout {
        /// The server, without credentials.
        server: String,
        /// The time-out that passed.
        after: Duration,
    },
    /// The host could not be found or reached, or refused the connection, or ended it before it had answered.
    #[error("cannot reach {server}: {problem}")]
    Unreachable {
        /// The server, without credentials.
        server: String,
        /// What the resolver or the operating system said.
        problem: String,
    },
    /// The server answered the upgrade with an HTTP status: 401 asks for a token, 403 is what newer
    /// servers say to an `Origin` header, 404 is a wrong path.
    #[error("{server} refused the WebSocket upgrade with HTTP status {status}{}", remedy(.status, .retry_after))]
    UpgradeRefused {
        /// The server, without credentials.
        server: String,
        /// The HTTP status.
        status: u16,
        /// How long the server asks to be left alone, if it said so with `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// What listens there does not speak WebSocket.
    #[error("{server} is not a WebSocket server: {problem}")]
    NotWebSocket {
        /// The server, without credentials.
        server: String,
        /// What it did instead.
        problem: String,
    },
    /// The WebSocket stands, but what answers is not an exec-server.
    #[error("{server} is not an exec-server: {problem}")]
    NotExecServer {
        /// The server, without credentials.
        server: String,
        /// What it did instead.
        problem: String,
    },
    /// The server refused the `initialize` request.
    #[error("{server} refused the handshake: {message} ({code})")]
    HandshakeRejected {
        /// The server, without credentials.
        server: String,
        /// JSON-RPC error code.
        code: ErrorCode,
        /// The server's words.
        message: String,
    },
    /// The server refused to resume the session, as it still holds the connection that was lost: it has not noticed that
    /// the network has gone silent. The session is kept meanwhile. A first connect never fails this way.
    #[error(
        "{server} did not resume the session: it is already attached to another connection, whose \
         loss the server has not noticed yet"
    )]
    StillAttached {
        /// The server, without credentials.
        server: String,
    },
    /// The handshake was not over within [`Config::handshake_timeout`](crate::Config::handshake_timeout).
    #[error("{server} did not finish the handshake within {after:?}")]
    HandshakeTimeout {
        /// The server, without credentials.
        server: String,
        /// The time-out that passed.
        after: Duration,
    },
    /// The arbiter that [`Mux::connect_on`](crate::Mux::connect_on) was to connect on has stopped.
    #[error("the arbiter to connect on has stopped: take one that runs")]
    ArbiterStopped,
    /// The connection ended during the handshake.
    #[error("{server} ended the connection during the handshake")]
    HandshakeDisconnected {
        /// The server, without credentials.
        server: String,
        /// How it ended.
        #[source]
        reason: DisconnectReason,
    },
}

/// Why a connection ended. The same value reaches every waiting call, every session and everyone
/// who asks later.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// This side closed it: by [`Shutdown`](crate::Shutdown), or because the last
    /// [`Mux`](crate::Mux) was dropped.
    #[error("closed by this side")]
    Closed,
    /// The peer ended it. Exec-servers never send a close frame, so the code is mostly absent.
    #[error("closed by the peer{}", close_code(.code))]
    PeerClosed {
        /// The code of the peer's close frame, if it sent one.
        code: Option<u16>,
    },
    /// The peer ended it within a frame, so that what it was saying is lost.
    #[error("closed by the peer in the middle of a frame")]
    CutOff,
    /// Reading from the socket failed, or panicked.
    #[error("reading from the socket failed")]
    ReadFailed(#[source] Arc<io::Error>),
    /// Writing to the socket failed, or panicked.
    #[error("writing to the socket failed")]
    WriteFailed(#[source] Arc<io::Error>),
    /// Nothing came for [`Config::silence_timeout`](crate::Config::silence_timeout), not even the
    /// answer to a ping.
    #[error("the peer was silent for {after:?}")]
    Silent {
        /// How long nothing came.
        after: Duration,
    },
    /// The server stopped answering: it waits for a process that does not read its stdin. The connection is
    /// given up, because resuming it frees it.
    #[error(
        "the server waits for process {process_id} to read its stdin, and answers nothing else"
    )]
    Wedged {
        /// The process.
        process_id: ProcessId,
    },
    /// The connection was lost and could not be resumed.
    #[error("the connection was lost ({}) and is not resumed", Causes(.lost.as_ref()))]
    NotResumed {
        /// How it was lost.
        lost: Box<DisconnectReason>,
        /// Why it could not be resumed.
        #[source]
        why: ResumeError,
    },
    /// A message is larger than [`Config::max_message_size`](crate::Config::max_message_size).
    #[error("the peer announced a message of {size} bytes, more than the {limit} allowed")]
    MessageTooLarge {
        /// Size announced so far, in bytes.
        size: u64,
        /// The configured limit, in bytes.
        limit: usize,
    },
    /// The peer broke the WebSocket protocol.
    #[error("the peer broke the WebSocket protocol: {0}")]
    WebSocketViolation(&'static str),
    /// A text message is not UTF-8.
    #[error("the peer sent a text message that is not UTF-8")]
    InvalidUtf8,
    /// A binary message came; exec-servers only send text.
    #[error("the peer sent a binary message of {size} bytes where only text is expected")]
    BinaryMessage {
        /// Its size in bytes.
        size: usize,
    },
    /// A message is not a JSON-RPC message.
    #[error("the peer sent a message that is not JSON-RPC")]
    InvalidMessage(#[source] JsonError),
    /// A notification that this crate knows has params that it does not understand: what it said
    /// is lost, so the connection cannot go on as if nothing had happened.
    #[error("the params of a {method} notification do not decode")]
    InvalidNotification {
        /// The method.
        method: &'static str,
        /// What is wrong with the params.
        source: JsonError,
    },
}

/// Why a lost connection could not be resumed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// The server does not know the session: it was away for too long, or is another one by now.
    #[error("the server does not know the session any more")]
    SessionUnknown,
    /// No attempt succeeded in the time that the server keeps a session
    /// ([`Dialect::resume_window`](crate::protocol::Dialect::resume_window)) or that the configuration allows
    /// ([`Config::resume_timeout`](crate::Config::resume_timeout)).
    #[error("none of {attempts} attempts in {after:?} succeeded")]
    WindowPassed {
        /// How long it was tried.
        after: Duration,
        /// How often.
        attempts: u32,
        /// How the last attempt failed.
        #[source]
        last: Arc<ConnectError>,
    },
    /// The server, or something before it, refused in a way that waiting does not change.
    #[error("the server, or something before it, refuses the session")]
    Refused(#[source] Arc<ConnectError>),
}

/// What to do about an HTTP status, where that is known.
fn remedy(status: &u16, retry_after: &Option<Duration>) -> String {
    match (status, retry_after) {
        (_, Some(wait)) => format!("; it asks to come back in {wait:?}"),
        (401, None) => "; it asks for a token, or does not know the one it got".to_owned(),
        (403, None) => "; it does not let this client in".to_owned(),
        (404, None) => "; the path of the URL is wrong, or something else listens there".to_owned(),
        (_, None) => String::new(),
    }
}

fn late(sent: &bool) -> &'static str {
    match sent {
        true => "the server may still carry it out",
        false => "it was not sent, as others were under way, and can be made again",
    }
}

fn close_code(code: &Option<u16>) -> String {
    code.map_or_else(String::new, |code| format!(" (code {code})"))
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The server answered with an error.
    #[error("the server rejected {method}: {}{message} ({code})", refusal::prefix(.refusal))]
    Rejected {
        /// The method called.
        method: &'static str,
        /// JSON-RPC error code.
        code: ErrorCode,
        /// The server's words. They differ between versions: branch on the code.
        message: String,
        /// Why it refused to start a process; `None` for other methods, and where the request itself was wrong.
        refusal: Option<StartRefusal>,
    },
    /// No answer before the deadline. If it was sent, the server may still carry the call out.
    #[error("no answer to {method} within {after:?}; {}", late(.sent))]
    DeadlineExceeded {
        /// The method called.
        method: &'static str,
        /// The time allowed.
        after: Duration,
        /// True if the request may have reached the server. False if it is certain that no byte of it was sent: it waited for
        /// the socket, for a link, for the write before it to the same stdin, or for one of
        /// [`Config::max_starts_in_flight`](crate::Config::max_starts_in_flight).
        sent: bool,
    },
    /// Too many calls are waiting for an answer, or too many bytes for the socket. The call was not
    /// sent; try again when others have ended.
    #[error("{method} not sent: {in_flight} calls and {queued_bytes} bytes are waiting already")]
    Overloaded {
        /// The method called.
        method: &'static str,
        /// Calls that wait for an answer.
        in_flight: usize,
        /// Bytes that wait for the socket.
        queued_bytes: usize,
    },
    /// The connection is gone. A call that was already sent may have been carried out.
    #[error("no answer to {method}: the connection is gone")]
    Disconnected {
        /// The method called.
        method: &'static str,
        /// Why the connection ended.
        #[source]
        reason: DisconnectReason,
        /// True if the request may have reached the server. False if it is certain that no byte of it was sent.
        sent: bool,
    },
    /// The connection was lost before the answer came, and it is not known whether the server has carried
    /// out the call. It was not repeated, as it may not be done twice, or was several times, and the
    /// connection was lost each time. The connection may have been
    /// resumed: look, and decide.
    #[error("it is not known whether {method} was carried out: the connection was lost")]
    OutcomeUnknown {
        /// The method called.
        method: &'static str,
        /// How the connection was lost.
        #[source]
        reason: DisconnectReason,
    },
    /// The process does not read its stdin. It may still get what was accepted before, and perhaps the
    /// write that was under way; what waited behind that was not sent. Nothing more is written to it.
    #[error("{method} given up: process {process_id} does not read its stdin")]
    Stuck {
        /// The method called.
        method: &'static str,
        /// The process.
        process_id: ProcessId,
    },
    /// A write to the stdin of a process failed because nobody consumes the output of that process: its session is full, so
    /// the process cannot write, and does not read its stdin. Have the session consume while you write. The cause says what
    /// became of the write. Told by [`Mux::write`](crate::Mux::write), where the server holds the process back
    /// ([`Session::hold_back`](crate::Session::hold_back)) or the session has chosen
    /// [`Overflow::Block`](crate::Overflow::Block).
    #[error(
        "{method} failed: nobody consumes the output of process {process_id}, of which its session holds {unconsumed} \
         bytes, so that the process does not read its stdin; consume its output while writing to it"
    )]
    OutputNotConsumed {
        /// The method called.
        method: &'static str,
        /// The process.
        process_id: ProcessId,
        /// What the session holds, in bytes, as its budget counts them.
        unconsumed: usize,
        /// How the write failed.
        source: Box<CallError>,
    },
    /// The server cannot do it, and nothing else helps. Nothing was sent.
    #[error("{method} not sent: the server does not have the capability {capability}: {remedy}")]
    Unsupported {
        /// The method called.
        method: &'static str,
        /// The field of [`Capabilities`](crate::protocol::Capabilities) that would have to be set.
        capability: &'static str,
        /// What can be done without it.
        remedy: &'static str,
    },
    /// The helper process that was to do it, as the server cannot, has not
    /// ([`StartProcess::helper_processes`](crate::StartProcess::helper_processes)).
    #[error("{method} not carried out by a helper process")]
    HelperFailed {
        /// The method called.
        method: &'static str,
        /// What went wrong.
        source: HelperFailure,
    },
    /// The request cannot be sent as it is. Nothing was sent.
    #[error("{method} not sent: the request is not valid")]
    InvalidRequest {
        /// The method called.
        method: &'static str,
        /// What is wrong with it.
        source: InvalidRequest,
    },
    /// The server's answer is not what the method answers with.
    #[error("the answer to {method} does not decode")]
    InvalidResponse {
        /// The method called.
        method: &'static str,
        /// What is wrong with the answer.
        source: JsonError,
    },
}

impl CallError {
    /// Says what a server cannot do that `method` needs.
    pub(crate) fn unsupported(method: &'static str, missing: Unsupported) -> Self {
        CallError::Unsupported {
            method,
            capability: missing.capability,
            remedy: missing.remedy,
        }
    }

    /// Returns the code of a [`Rejected`](CallError::Rejected) call.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            CallError::Rejected { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Why a helper process has not done what it was to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperFailure {
    /// There is no record of the process: the directory for temporary files could not be written to from
    /// within it. Or the record is not its user's own.
    #[error(
        "the helper finds no record of the process, which could not write one to the temporary directory"
    )]
    NotRecorded,
    /// The process runs, but not under the pid that it knows of itself: it is in a sandbox. Or nothing there
    /// tells when a process began, neither `/proc` nor `ps -o lstart`.
    #[error("the helper does not see the process, which a sandbox may hide")]
    NotFound,
    /// The process does not run on a pty.
    #[error("the helper is not started: the process has no terminal")]
    NoTerminal,
    /// It could not be registered.
    #[error("the helper is not started")]
    NotStarted(#[source] RegisterError),
    /// It will not be known how it has ended.
    #[error("the helper is lost")]
    Lost(#[source] FailureReason),
    /// It has ended with an error.
    #[error("the helper failed{}: {said}", exit_code_text(.exit_code))]
    Failed {
        /// Its exit code, if the server told it.
        exit_code: Option<i32>,
        /// What `kill` or `stty` said.
        said: String,
    },
}

fn exit_code_text(code: &Option<i32>) -> String {
    code.map_or_else(String::new, |code| format!(" (exit code {code})"))
}

/// Why a request cannot be put on the wire. These are found before anything is sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRequest {
    /// A path is not absolute.
    #[error("{field} must be an absolute path, got {}", .path.display())]
    RelativePath {
        /// The param.
        field: &'static str,
        /// The path given.
        path: PathBuf,
    },
    /// The server takes paths as plain text, and this one is not UTF-8.
    #[error("{field} is not UTF-8 and this server takes plain paths only: {}", .path.display())]
    PathNotUtf8 {
        /// The param.
        field: &'static str,
        /// The path given.
        path: PathBuf,
    },
    /// `argv` is empty: there is no program to run.
    #[error("argv must name a program")]
    EmptyArgv,
    /// A terminal has to have a row and a column.
    #[error("a terminal must have at least one row and one column")]
    EmptyTerminal,
    /// A param does not serialise.
    #[error("{field} does not serialise")]
    Unserializable {
        /// The param.
        field: &'static str,
        /// What is wrong with it.
        source: JsonError,
    },
    /// The message is larger than a server accepts; it would drop the connection.
    #[error("the message has {size} bytes and servers drop the connection beyond {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// What servers accept, in bytes.
        limit: usize,
    },
}

/// Why a session could not be registered.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The process id has a session already.
    #[error("process {0} has a session already")]
    Duplicate(ProcessId),
    /// The session's actor has stopped.
    #[error("the session given for process {0} has stopped")]
    SessionStopped(ProcessId),
    /// The connection is gone.
    #[error("the connection is gone")]
    Disconnected(#[source] DisconnectReason),
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its session could not be registered. Nothing was sent.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// `process/start` failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl StartError {
    /// Returns why the server refused to start the process; `None` for every other error.
    pub fn refusal(&self) -> Option<&StartRefusal> {
        match self {
            StartError::Register(_) => None,
            StartError::Call(error) => error.refusal(),
        }
    }
}

/// Why a session ended without [`Closed`](crate::Closed).
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FailureReason {
    /// The connection is gone. The process may still run.
    #[error("the connection is gone")]
    Disconnected(#[source] DisconnectReason),
    /// The session did not consume its output: more than its budget is queued to it, and it has chosen
    /// [`Overflow::Fail`](crate::Overflow::Fail). Its process was terminated.
    #[error(
        "the session holds {held} bytes of unconsumed output, more than its budget of {budget}"
    )]
    Overflow {
        /// Bytes queued, the refused output included.
        held: usize,
        /// The budget, in bytes.
        budget: usize,
    },
    /// Events came, but an earlier one never did, until more were waiting than are kept, and the session
    /// has chosen [`Overflow::Fail`](crate::Overflow::Fail). The process was terminated.
    #[error("the event with seq {missing} never came, and {waiting} later ones wait for it")]
    MissingEvent {
        /// The `seq` that is missing.
        missing: u64,
        /// Events that wait for it.
        waiting: usize,
    },
    /// The server told twice that the process has exited. The process was terminated.
    #[error("the server told of the exit twice")]
    ExitedTwice,
    /// The server told twice that the streams of the process have ended. The process was terminated.
    #[error("the server told of the end of the streams twice")]
    ClosedTwice,
    /// The server does not know the process any more: the connection was lost for longer than the
    /// server keeps a process that has ended. Its exit code will not be known.
    #[error("the server has forgotten the process, and with it how it ended")]
    Forgotten,
    /// The connection was lost and resumed, and the server did not tell what the process has done meanwhile, although it was
    /// asked again and again, for half a minute or more. Nothing was heard of the process since. It was asked to
    /// terminate.
    #[error(
        "what the process did while the connection was lost is not known: {reads} reads in a row told nothing"
    )]
    ReadsFailed {
        /// How many reads in a row failed or told nothing.
        reads: u32,
    },
    /// `process/start` was not answered in time, or not intelligibly, so that it is not known whether
    /// the process runs. It was asked to terminate.
    #[error("it is not known whether the process has started")]
    StartUnanswered,
}

/// What is wrong with a piece of JSON, and where.
///
/// It tells of shapes and names only: text that stood in the JSON is left out, as it may be output
/// of a process or content of a file.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(Arc<str>);

impl JsonError {
    pub(crate) fn new(problem: &str) -> Self {
        JsonError(problem.into())
    }
}

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> Self {
        let text = error.to_string();
        // serde quotes what it did not expect: invalid type: string "…", expected …
        let quotes = ["invalid type: ", "invalid value: ", "unknown variant "]
            .iter()
            .any(|quotes| text.starts_with(quotes));
        match text.rfind(", expected ") {
            Some(expected) if quotes => {
                let kind = text[..expected]
                    .split(['"', '`'])
                    .next()
                    .unwrap_or_default();
                JsonError(format!("{}{}", kind.trim_end(), &text[expected..]).into())
            }
            _ => JsonError(text.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_json_errors_leave_out_what_the_json_said() {
        let error = serde_json::from_str::<u64>(r#""secret \" output""#).unwrap_err();
        assert!(
            error.to_string().contains("secret"),
            "serde quotes: {error}"
        );
        let redacted = JsonError::from(error).to_string();
        assert_eq!(
            redacted,
            "invalid type: string, expected u64 at line 1 column 18"
        );
        for (json, redacted) in [
            (
                r#"{"stream": "secret, expected"}"#,
                "unknown variant, expected one of `stdout`, `stderr`, `pty`",
            ),
            (
                r#"{"stream": {"secret": 1}}"#,
                "unknown variant, expected one of",
            ),
            (r#"{"x": 1}"#, "missing field `stream`"),
        ] {
            #[derive(Debug, serde::Deserialize)]
            #[allow(dead_code, reason = "only decoded")]
            struct Chunk {
                stream: crate::protocol::Stream,
            }
            let error = serde_json::from_str::<Chunk>(json).unwrap_err();
            let text = JsonError::from(error).to_string();
            assert!(text.starts_with(redacted), "{json}: {text}");
            assert!(!text.contains("secret"), "{json}: {text}");
        }
        let error = serde_json::from_str::<u8>("4711").unwrap_err();
        assert!(error.to_string().contains("4711"), "serde quotes: {error}");
        let redacted = JsonError::from(error).to_string();
        assert_eq!(
            redacted,
            "invalid value: integer, expected u8 at line 1 column 4"
        );
    }

    #[test]
    fn errors_read_as_one_line_with_cause_and_remedy() {
        let error = ConnectError::PlaintextCredentials {
            server: "ws://example.org/".into(),
        };
        assert_eq!(
            error.to_string(),
            "refusing to send credentials to ws://example.org/ unencrypted: it is not a loopback \
             address (allow_plaintext_credentials permits it)"
        );
        assert_eq!(
            DisconnectReason::PeerClosed { code: Some(1001) }.to_string(),
            "closed by the peer (code 1001)"
        );
        assert_eq!(
            DisconnectReason::PeerClosed { code: None }.to_string(),
            "closed by the peer"
        );
    }
}
