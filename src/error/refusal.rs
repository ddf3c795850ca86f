//! Why a server refused to start a process.

use super::CallError;
use crate::protocol::{
    ErrorCode, Method as _, StartProcess,
    jsonrpc::ErrorObject,
    words::{self, SpawnFailure},
};

/// Why a server refused to start a process, where it could be found out.
///
/// Servers from 0.171 on tell it as `error.data.kind`. For older ones it is derived from the code and the text of the
/// error. Neither tells a missing program from a missing working directory: [`Start`](crate::Start) and
/// [`Mux::start`](crate::Mux::start) find that out by asking the server what is at the working directory.
///
/// It is carried by [`CallError::Rejected`], and returned by [`CallError::refusal`] and
/// [`StartError::refusal`](crate::StartError::refusal).
///
/// ```no_run
/// # async fn example(mux: execmux::Mux) -> Result<(), execmux::StartError> {
/// use execmux::{ProcessId, Session, StartProcess, StartRefusal};
///
/// let (session, _events) = Session::stream();
/// let make = StartProcess::new(ProcessId::unique(), ["make"], "/srv/project");
/// match mux.start(make, session).await {
///     Err(error) if error.refusal() == Some(&StartRefusal::CwdNotFound) => {
///         eprintln!("check the project out first");
///     }
///     started => {
///         started?;
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartRefusal {
    /// Nothing is at the path of the program, or no directory of `PATH` has it. Or the program is a script, and the
    /// interpreter in its first line does not exist.
    ProgramNotFound,
    /// The working directory does not exist. The program may be missing, too.
    CwdNotFound,
    /// The program or the working directory does not exist. Told where the server could not be asked about the working
    /// directory, and by a bare [`Call`](crate::Call) of [`StartProcess`].
    ProgramOrCwdNotFound,
    /// A file is at the path of the working directory, or within that path.
    CwdNotADirectory,
    /// The program may not be executed, or is a directory, or the working directory may not be entered.
    PermissionDenied,
    /// Any other failure to run the program: the text of the error may tell more.
    Failed,
    /// The server cannot run the sandbox that was asked for.
    SandboxUnavailable,
    /// The server could not prepare the sandbox that was asked for.
    SandboxPreparation,
    /// A reason that this version of the crate does not know.
    Other {
        /// What the server calls it: a word of at most 64 ASCII letters and digits.
        kind: Box<str>,
    },
}

impl StartRefusal {
    /// Returns true if the program or the working directory does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            StartRefusal::ProgramNotFound
            | StartRefusal::CwdNotFound
            | StartRefusal::ProgramOrCwdNotFound => true,
            StartRefusal::CwdNotADirectory
            | StartRefusal::PermissionDenied
            | StartRefusal::Failed
            | StartRefusal::SandboxUnavailable
            | StartRefusal::SandboxPreparation
            | StartRefusal::Other { .. } => false,
        }
    }

    /// Reads why `process/start` was answered with this error; `None` if the request itself was wrong, as when the
    /// process id is taken.
    pub(crate) fn of(error: &ErrorObject) -> Option<Self> {
        Some(match error.kind.as_deref() {
            Some("spawnNotFound") => StartRefusal::ProgramOrCwdNotFound,
            Some("spawnPermissionDenied") => StartRefusal::PermissionDenied,
            Some("sandboxUnavailable") => StartRefusal::SandboxUnavailable,
            Some("sandboxPreparation") => StartRefusal::SandboxPreparation,
            // A program that is not in the `PATH` is told so for a pty.
            Some("spawnFailed") => StartRefusal::by_words(&error.message),
            Some(kind) => StartRefusal::Other { kind: kind.into() },
            None if error.code == ErrorCode::INTERNAL_ERROR => {
                StartRefusal::by_words(&error.message)
            }
            None => return None,
        })
    }

    fn by_words(message: &str) -> Self {
        match words::spawn_failure(message) {
            SpawnFailure::ProgramNotFound => StartRefusal::ProgramNotFound,
            SpawnFailure::ProgramOrCwdNotFound => StartRefusal::ProgramOrCwdNotFound,
            SpawnFailure::PermissionDenied => StartRefusal::PermissionDenied,
            SpawnFailure::Other => StartRefusal::Failed,
        }
    }
}

/// Returns what a refusal adds to the words of the server, to be written in front of them.
pub(super) fn prefix(refusal: &Option<StartRefusal>) -> &'static str {
    match refusal {
        Some(StartRefusal::ProgramNotFound) => "the program or its interpreter does not exist: ",
        Some(StartRefusal::CwdNotFound) => "the working directory does not exist: ",
        Some(StartRefusal::ProgramOrCwdNotFound) => {
            "the program or the working directory does not exist: "
        }
        Some(StartRefusal::CwdNotADirectory) => "the working directory is not a directory: ",
        // The words of the server tell it.
        Some(
            StartRefusal::PermissionDenied
            | StartRefusal::Failed
            | StartRefusal::SandboxUnavailable
            | StartRefusal::SandboxPreparation
            | StartRefusal::Other { .. },
        )
        | None => "",
    }
}

impl CallError {
    /// Makes the error of a call that the server has answered with an error.
    pub(crate) fn rejected(method: &'static str, error: ErrorObject) -> Self {
        let is_start = method == StartProcess::NAME;
        CallError::Rejected {
            method,
            code: error.code,
            refusal: is_start.then(|| StartRefusal::of(&error)).flatten(),
            message: error.message,
        }
    }

    /// Returns why the server refused to start a process; `None` for every other error.
    pub fn refusal(&self) -> Option<&StartRefusal> {
        let CallError::Rejected { refusal, .. } = self else {
            return None;
        };
        refusal.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i64, kind: Option<&str>, message: &str) -> ErrorObject {
        ErrorObject {
            code: ErrorCode(code),
            message: message.to_owned(),
            kind: kind.map(Into::into),
        }
    }

    #[test]
    fn p12_a_refused_start_has_a_reason_from_its_kind_or_from_its_text() {
        use StartRefusal::{
            Failed, PermissionDenied, ProgramNotFound, ProgramOrCwdNotFound, SandboxPreparation,
            SandboxUnavailable,
        };
        let missing = "No such file or directory (os error 2)";
        let not_in_path = "Unable to spawn x because:\nNo viable candidates found in PATH \"/bin\"";
        let other = |kind: &str| StartRefusal::Other { kind: kind.into() };
        for (code, kind, message, expected) in [
            // As 0.171.0 tells it.
            (
                -32603,
                Some("spawnNotFound"),
                missing,
                Some(ProgramOrCwdNotFound),
            ),
            (
                -32603,
                Some("spawnNotFound"),
                "",
                Some(ProgramOrCwdNotFound),
            ),
            (
                -32603,
                Some("spawnPermissionDenied"),
                "Permission denied (os error 13)",
                Some(PermissionDenied),
            ),
            (
                -32603,
                Some("spawnFailed"),
                "Not a directory (os error 20)",
                Some(Failed),
            ),
            (
                -32603,
                Some("spawnFailed"),
                "missing program for pipe spawn",
                Some(Failed),
            ),
            (
                -32603,
                Some("spawnFailed"),
                not_in_path,
                Some(ProgramNotFound),
            ),
            (
                -32603,
                Some("sandboxUnavailable"),
                "",
                Some(SandboxUnavailable),
            ),
            (
                -32603,
                Some("sandboxPreparation"),
                "",
                Some(SandboxPreparation),
            ),
            (
                -32600,
                Some("sandboxUnavailable"),
                "",
                Some(SandboxUnavailable),
            ),
            (
                -32603,
                Some("somethingNew"),
                missing,
                Some(other("somethingNew")),
            ),
            // As servers before it do.
            (-32603, None, missing, Some(ProgramOrCwdNotFound)),
            (
                -32603,
                None,
                "Permission denied (os error 13)",
                Some(PermissionDenied),
            ),
            (-32603, None, not_in_path, Some(ProgramNotFound)),
            (-32603, None, "whatever", Some(Failed)),
            (-32600, None, "process p already exists", None),
            (-32602, None, "argv must not be empty", None),
            (-32600, None, missing, None),
        ] {
            let error = CallError::rejected("process/start", error(code, kind, message));
            assert_eq!(
                error.refusal(),
                expected.as_ref(),
                "{code} {kind:?} {message}"
            );
        }
        let other_method = CallError::rejected("fs/remove", error(-32603, Some("spawnFailed"), ""));
        assert_eq!(other_method.refusal(), None);
    }

    #[test]
    fn a_refusal_says_what_the_words_of_the_server_leave_open() {
        let mut error = CallError::rejected(
            "process/start",
            error(-32603, None, "No such file or directory (os error 2)"),
        );
        assert_eq!(
            error.to_string(),
            "the server rejected process/start: the program or the working directory does not exist: \
             No such file or directory (os error 2) (-32603)"
        );
        if let CallError::Rejected { refusal, .. } = &mut error {
            *refusal = Some(StartRefusal::Failed);
        }
        assert_eq!(
            error.to_string(),
            "the server rejected process/start: No such file or directory (os error 2) (-32603)"
        );
    }
}
