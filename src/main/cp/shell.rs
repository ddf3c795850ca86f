//! What sh does on the server, where the protocol has no words for it: renaming, permissions.

use std::path::Path;

use execmux::{
    ProcessId, Session, SessionEvent, StartProcess, Stream,
    protocol::{EnvironmentPolicy, InheritEnvironment},
};

use crate::connect::{DEFAULT_PATH, Remote};

/// Why a script has not done its work.
pub(super) struct Failure {
    /// `None` if it did not run to its end; then there may be no sh.
    pub(super) exit_code: Option<i32>,
    pub(super) problem: String,
}

impl From<String> for Failure {
    fn from(problem: String) -> Self {
        Failure {
            exit_code: None,
            problem,
        }
    }
}

/// Runs a script in a folder, and returns its stdout.
pub(super) async fn run(
    remote: &Remote,
    folder: &Path,
    script: &str,
    arguments: impl IntoIterator<Item = String>,
) -> Result<Vec<u8>, Failure> {
    let argv = ["sh", "-c", script, "sh"].map(str::to_owned);
    let argv = argv.into_iter().chain(arguments);
    let process = StartProcess::new(ProcessId::unique(), argv, folder)
        .env_policy(EnvironmentPolicy::new(InheritEnvironment::Core))
        .env("PATH", DEFAULT_PATH);
    let (session, mut events) = Session::stream();
    let started = remote.mux.start(process, session).await;
    started.map_err(|error| error.to_string())?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(event) = events.recv().await {
        match event {
            SessionEvent::Output(output) => match output.stream {
                Stream::Stdout | Stream::Pty => stdout.extend_from_slice(&output.chunk),
                Stream::Stderr => stderr.extend_from_slice(&output.chunk),
            },
            SessionEvent::Closed(closed) if closed.exit_code == Some(0) => return Ok(stdout),
            SessionEvent::Closed(closed) => {
                return Err(Failure {
                    exit_code: closed.exit_code,
                    problem: String::from_utf8_lossy(&stderr).into_owned(),
                });
            }
            SessionEvent::Failed(failed) => return Err(failed.reason.to_string().into()),
            _ => {}
        }
    }
    Err("the session of sh ended".to_owned().into())
}

/// A path as an argument.
pub(super) fn argument(path: &Path) -> Result<String, String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| "a path is not UTF-8".to_owned())
}
