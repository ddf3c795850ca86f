//! What sh does on the server, where the protocol has no words for it: renaming, permissions.

use std::{fmt, path::Path, time::Duration};

use actix_rt::time::timeout;
use execmux::{
    CallError, FailureReason, ProcessId, RegisterError, Session, SessionEvent, SessionEvents,
    StartError, StartProcess, Stream,
    protocol::{EnvironmentPolicy, InheritEnvironment},
};

use super::transfer::{Problem, SLOW};
use crate::{
    connect::{DEFAULT_PATH, Remote},
    problem::told,
};

/// The most that a script may write. The longest answers are a byte for each path of a command, and these are
/// shorter than this together.
const MOST: usize = 64 << 10;

/// Why a script has not done its work.
pub(super) enum Failure {
    /// It did not run; there may be no sh.
    NotRun(String),
    /// It ran to its end.
    Exited { exit_code: i32, stderr: String },
    /// It may have done its work, or may still do it.
    Unknown(Problem),
}

impl Failure {
    fn unknown(problem: impl Into<String>) -> Self {
        Failure::Unknown(Problem::Interrupted(problem.into()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotRun(problem)
            | Failure::Unknown(Problem::Interrupted(problem) | Problem::Other(problem)) => {
                f.write_str(problem)
            }
            Failure::Exited { exit_code, stderr } => {
                write!(f, "sh exited with {exit_code}: {}", stderr.trim_end())
            }
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let problem = told(&error);
        match error {
            // It will not go better.
            StartError::Call(CallError::Disconnected { .. })
            | StartError::Register(RegisterError::Disconnected(_)) => {
                Failure::Unknown(Problem::Other(problem))
            }
            StartError::Register(_)
            | StartError::Call(
                CallError::Rejected { .. }
                | CallError::Overloaded { .. }
                | CallError::Unsupported { .. }
                | CallError::InvalidRequest { .. },
            ) => Failure::NotRun(problem),
            _ => Failure::unknown(problem),
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
    run_within(SLOW, remote, folder, script, arguments).await
}

async fn run_within(
    deadline: Duration,
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
    // When the stream is dropped, a script that still runs is terminated.
    let (session, events) = Session::stream();
    let ended = timeout(deadline, async {
        remote.mux.start(process, session).await?;
        follow(events).await
    });
    ended.await.unwrap_or_else(|_| {
        Err(Failure::unknown(format!(
            "sh has not ended within {deadline:?}"
        )))
    })
}

/// Reads what a script says, until it ends.
async fn follow(mut events: SessionEvents) -> Result<Vec<u8>, Failure> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(event) = events.recv().await {
        match event {
            SessionEvent::Output(output) => {
                if stdout.len() + stderr.len() + output.chunk.len() > MOST {
                    return Err(Failure::unknown(format!("sh says more than {MOST} bytes")));
                }
                match output.stream {
                    Stream::Stdout | Stream::Pty => stdout.extend_from_slice(&output.chunk),
                    Stream::Stderr => stderr.extend_from_slice(&output.chunk),
                }
            }
            SessionEvent::Closed(closed) => {
                return match closed.exit_code {
                    Some(0) => Ok(stdout),
                    Some(exit_code @ 1..=128) => Err(Failure::Exited {
                        exit_code,
                        stderr: String::from_utf8_lossy(&stderr).into_owned(),
                    }),
                    // Old servers say -1.
                    Some(_) => Err(Failure::unknown("a signal has ended sh, or what it ran")),
                    None => Err(Failure::unknown("the server did not tell how sh ended")),
                };
            }
            SessionEvent::Failed(failed) => {
                let problem = told(&failed.reason);
                return Err(Failure::Unknown(match failed.reason {
                    FailureReason::Disconnected(_) => Problem::Other(problem),
                    _ => Problem::Interrupted(problem),
                }));
            }
            _ => {}
        }
    }
    Err(Failure::unknown("the session of sh ended"))
}

/// A path as an argument.
pub(super) fn argument(path: &Path) -> Result<String, String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| "a path is not UTF-8".to_owned())
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use crate::connect::ServerOptions;

    /// Why this fails when it is run in this program.
    async fn failure(deadline: Duration, script: &str) -> String {
        let remote = Remote::connect(ServerOptions::default()).await;
        let remote = remote.unwrap_or_else(|problem| panic!("{problem}"));
        let ran = run_within(deadline, &remote, Path::new("/"), script, []).await;
        remote.end().await;
        match ran {
            Err(Failure::Unknown(Problem::Interrupted(problem))) => problem,
            Err(failure) => panic!("{failure}"),
            Ok(stdout) => panic!("{} bytes", stdout.len()),
        }
    }

    #[actix::test]
    async fn a_script_that_does_not_end_is_left() {
        let problem = failure(Duration::from_millis(300), "exec sleep 600").await;
        assert!(problem.contains("not ended within 300ms"), "{problem}");
    }

    #[actix::test]
    async fn a_script_that_says_too_much_is_ended() {
        for script in ["while :; do echo y; done", "while :; do echo y; done >&2"] {
            let problem = failure(Duration::from_secs(60), script).await;
            assert!(problem.contains("more than 65536 bytes"), "{problem}");
        }
    }
}
