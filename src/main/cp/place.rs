//! Puts a file that is on the server under another name in its place.

use std::path::Path;

use execmux::{
    Call, CallError,
    protocol::{CopyPath, ErrorCode, Metadata, RemovePath},
};
use log::debug;

use super::{
    shell::{self, Failure},
    transfer::{Problem, SLOW},
};
use crate::connect::Remote;

/// Takes the permissions, if there are any, the temporary, and the place. To a folder, mv would move it into that.
const SCRIPT: &str = r#"if [ -e "$3" ] && [ ! -f "$3" ]; then exit 3; fi
if [ -n "$1" ]; then chmod -- "$1" "$2" || exit; fi
mv -f -- "$2" "$3""#;
/// Exit code of the script where something else than a file is.
const TAKEN: i32 = 3;

/// What has become of the temporary.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Placed {
    Renamed,
    /// It is still there.
    Copied,
}

/// The protocol cannot rename. A command can, where the server has it; else the server copies the file.
pub(super) async fn put(
    remote: &Remote,
    temporary: &Path,
    destination: &Path,
    mode: Option<u32>,
) -> Result<Placed, Problem> {
    match rename(remote, temporary, destination, mode).await {
        Ok(()) => return Ok(Placed::Renamed),
        Err(Failure::Exited {
            exit_code: TAKEN, ..
        }) => return Err(taken(destination)),
        // It may be in place, and would be copied to itself from nowhere, or yet be renamed while it is copied.
        Err(Failure::Unknown(problem)) => {
            return Err(problem.within("it is not known whether it is in place"));
        }
        Err(failure) => {
            debug!("a file is copied into place, as it cannot be renamed: {failure}");
        }
    }
    let before = look(remote, destination)
        .await
        .map_err(|error| Problem::from(error).within("cannot look at its place"))?;
    if before.as_ref().is_some_and(|it| !it.is_file) {
        return Err(taken(destination));
    }
    let copy = Call::new(CopyPath::new(temporary, destination)).timeout(SLOW);
    let Err(error) = remote.mux.call(copy).await else {
        return Ok(Placed::Copied);
    };
    let error = Problem::from(error);
    let left = match look(remote, destination).await {
        // What was there before stays, if the server has not begun to replace it.
        Ok(now) if now == before => return Err(error.within("cannot put it in place")),
        Ok(_) => {
            let remove = RemovePath::new(destination).recursive(false).force(true);
            remote.mux.call(remove).await.err()
        }
        // It may be whole.
        Err(unknown) => Some(unknown),
    };
    Err(match left {
        None => error.within("cannot put it in place"),
        Some(left) => error.within(&format!(
            "what is at its place may be half-written ({left}), as it cannot be put there"
        )),
    })
}

/// What is there, if anything is.
async fn look(remote: &Remote, path: &Path) -> Result<Option<Metadata>, CallError> {
    match remote.mux.metadata(path).await {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.code() == Some(ErrorCode::NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

fn taken(destination: &Path) -> Problem {
    Problem::Other(format!("remote:{} is no file", destination.display()))
}

async fn rename(
    remote: &Remote,
    temporary: &Path,
    destination: &Path,
    mode: Option<u32>,
) -> Result<(), Failure> {
    let mode = mode.map_or_else(String::new, |mode| format!("{mode:o}"));
    let paths = shell::argument(temporary).and_then(|it| Ok((it, shell::argument(destination)?)));
    let (from, to) = paths.map_err(Failure::NotRun)?;
    let arguments = [mode, from, to];
    // A server may let commands start only where it lets files be.
    let folder = temporary.parent().unwrap_or(Path::new("/"));
    shell::run(remote, folder, SCRIPT, arguments).await?;
    Ok(())
}
