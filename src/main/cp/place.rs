//! Puts a file that is on the server under another name in its place.

use std::path::Path;

use execmux::{
    Session, SessionEvent, StartProcess,
    protocol::{EnvironmentPolicy, InheritEnvironment, RemovePath},
};
use log::debug;

use crate::connect::{DEFAULT_PATH, Remote};

/// Takes the permissions, if there are any, the temporary, and the place.
const SCRIPT: &str = r#"if [ -n "$1" ]; then chmod -- "$1" "$2" || exit; fi; mv -f -- "$2" "$3""#;

/// The protocol cannot rename. A command can, where the server has it; else the server copies the file.
pub(super) async fn put(
    remote: &Remote,
    temporary: &Path,
    destination: &Path,
    mode: Option<u32>,
) -> Result<(), String> {
    match rename(remote, temporary, destination, mode).await {
        Ok(()) => return Ok(()),
        Err(problem) => debug!("a file is copied into place, as it cannot be renamed: {problem}"),
    }
    let copied = remote.mux.copy(temporary, destination).await;
    if let Err(error) = copied {
        let remove = RemovePath::new(destination).recursive(false).force(true);
        let removed = remote.mux.call(remove).await;
        let left = removed.err().map_or_else(String::new, |error| {
            format!("; what is at its place may be half-written: {error}")
        });
        return Err(format!("cannot put it in place: {error}{left}"));
    }
    let remove = RemovePath::new(temporary).recursive(false).force(true);
    let removed = remote.mux.call(remove).await;
    removed.map(|_| ()).map_err(|error| error.to_string())
}

async fn rename(
    remote: &Remote,
    temporary: &Path,
    destination: &Path,
    mode: Option<u32>,
) -> Result<(), String> {
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or("a path is not UTF-8")
    };
    let mode = mode.map_or_else(String::new, |mode| format!("{mode:o}"));
    let argv = [
        "sh".to_owned(),
        "-c".to_owned(),
        SCRIPT.to_owned(),
        "sh".to_owned(),
        mode,
        text(temporary)?,
        text(destination)?,
    ];
    let process = StartProcess::new(execmux::ProcessId::unique(), argv, "/")
        .env_policy(EnvironmentPolicy::new(InheritEnvironment::Core))
        .env("PATH", DEFAULT_PATH);
    let (session, mut events) = Session::stream();
    let started = remote.mux.start(process, session).await;
    started.map_err(|error| error.to_string())?;
    let mut said = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            SessionEvent::Output(output) => said.extend_from_slice(&output.chunk),
            SessionEvent::Closed(closed) if closed.exit_code == Some(0) => return Ok(()),
            SessionEvent::Closed(_) => return Err(String::from_utf8_lossy(&said).into_owned()),
            SessionEvent::Failed(failed) => return Err(failed.reason.to_string()),
            _ => {}
        }
    }
    Err("the session of mv ended".to_owned())
}
