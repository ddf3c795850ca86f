//! Puts a file that is on the server under another name in its place.

use std::path::Path;

use execmux::protocol::RemovePath;
use log::debug;

use super::{
    shell::{self, Failure},
    transfer::Problem,
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
        Err(Failure {
            exit_code: Some(TAKEN),
            ..
        }) => return Err(taken(destination)),
        Err(failure) => debug!(
            "a file is copied into place, as it cannot be renamed: {}",
            failure.problem
        ),
    }
    let before = remote.mux.metadata(destination).await.ok();
    if before.as_ref().is_some_and(|it| !it.is_file) {
        return Err(taken(destination));
    }
    let Err(error) = remote.mux.copy(temporary, destination).await else {
        return Ok(Placed::Copied);
    };
    let error = Problem::from(error);
    // What was there before stays, if the server has not begun to replace it.
    let is_whole = match remote.mux.metadata(destination).await {
        Ok(now) => before.as_ref() == Some(&now),
        Err(_) => before.is_none(),
    };
    if is_whole {
        return Err(error.within("cannot put it in place"));
    }
    let remove = RemovePath::new(destination).recursive(false).force(true);
    Err(match remote.mux.call(remove).await {
        Ok(_) => error.within("cannot put it in place"),
        Err(left) => error.within(&format!(
            "what is at its place may be half-written ({left}), as it cannot be put there"
        )),
    })
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
    let arguments = [
        mode,
        shell::argument(temporary)?,
        shell::argument(destination)?,
    ];
    // A server may let commands start only where it lets files be.
    let folder = temporary.parent().unwrap_or(Path::new("/"));
    shell::run(remote, folder, SCRIPT, arguments).await?;
    Ok(())
}
