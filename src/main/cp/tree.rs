//! What is to be copied, and where to.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use execmux::{
    CallError,
    protocol::{ErrorCode, Metadata},
};
use tokio::task::JoinSet;

use super::{local, permissions};
use crate::{connect::Remote, problem::told};

/// A file to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) source: PathBuf,
    pub(super) destination: PathBuf,
    /// Not told by servers before 0.140.
    pub(super) size: Option<u64>,
    /// The permissions, if it is on this side.
    pub(super) mode: Option<u32>,
    /// Whether it can be executed, if it is on the server and that has sh: the protocol has no permissions.
    pub(super) is_executable: Option<bool>,
}

/// All that is to be copied.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Folders to create, those above before those below.
    pub(super) folders: Vec<PathBuf>,
    pub(super) files: Vec<File>,
    /// What cannot be copied, and why.
    pub(super) left_out: Vec<String>,
}

impl Plan {
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().filter_map(|file| file.size).sum()
    }

    /// From here to the server.
    pub(super) async fn up(
        remote: &Remote,
        source: PathBuf,
        destination: PathBuf,
    ) -> Result<Self, String> {
        let path = source.clone();
        let of_source = local::blocking(move || fs::metadata(path))
            .await
            .map_err(|error| format!("cannot copy {}: {error}", source.display()))?;
        let wants_folder = ends_with_slash(&destination);
        let destination = absolute(remote, destination)?;
        let there = there(remote, &destination).await?;
        let there = there.map(|it| Existing::new(it.is_directory, it.is_file));
        let destination = settle(
            &source,
            destination,
            of_source.is_dir(),
            there,
            wants_folder,
        )?;
        let mut plan = Plan::default();
        let walking =
            tokio::task::spawn_blocking(move || plan.walk(&source, destination).map(|()| plan));
        walking.await.map_err(|error| error.to_string())?
    }

    fn walk(&mut self, source: &Path, destination: PathBuf) -> Result<(), String> {
        let cannot = |error: io::Error| format!("cannot read {}: {error}", source.display());
        let metadata = fs::metadata(source).map_err(cannot)?;
        if metadata.is_file() {
            self.files.push(File {
                source: source.to_owned(),
                destination,
                size: Some(metadata.len()),
                mode: Some(metadata.permissions().mode() & 0o777),
                is_executable: None,
            });
            return Ok(());
        }
        if !metadata.is_dir() {
            self.leave_out(source, "neither file nor folder");
            return Ok(());
        }
        self.folders.push(destination.clone());
        let mut entries = fs::read_dir(source)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(cannot)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let is_link = entry.file_type().map_err(cannot)?.is_symlink();
            match fs::metadata(&path) {
                Ok(target) if is_link && target.is_dir() => {
                    self.leave_out(&path, "a link to a folder");
                }
                Err(_) if is_link => self.leave_out(&path, "a link that leads nowhere"),
                _ => self.walk(&path, destination.join(entry.file_name()))?,
            }
        }
        Ok(())
    }

    /// From the server to here.
    pub(super) async fn down(
        remote: &Remote,
        source: PathBuf,
        destination: PathBuf,
    ) -> Result<Self, String> {
        let source = absolute(remote, source)?;
        let of_source = there(remote, &source)
            .await?
            .ok_or_else(|| format!("cannot copy remote:{}: it does not exist", source.display()))?;
        let path = destination.clone();
        let here = local::blocking(move || fs::metadata(path)).await.ok();
        let here = here.map(|it| Existing::new(it.is_dir(), it.is_file()));
        let wants_folder = ends_with_slash(&destination);
        let destination = settle(
            &source,
            destination,
            of_source.is_directory,
            here,
            wants_folder,
        )?;
        let mut plan = Plan::default();
        let mut to_read = vec![(source, destination, of_source)];
        while let Some((source, destination, metadata)) = to_read.pop() {
            if metadata.is_file {
                plan.files.push(File {
                    source,
                    destination,
                    size: metadata.size,
                    mode: None,
                    is_executable: None,
                });
                continue;
            }
            if !metadata.is_directory {
                plan.leave_out(&source, "neither file nor folder");
                continue;
            }
            for (name, metadata) in list(remote, &source).await? {
                let path = source.join(&name);
                if metadata.is_directory && metadata.is_symlink == Some(true) {
                    plan.leave_out(&path, "a link to a folder");
                } else {
                    to_read.push((path, destination.join(name), metadata));
                }
            }
            plan.folders.push(destination);
        }
        permissions::ask(remote, &mut plan.files).await;
        Ok(plan)
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        self.left_out.push(format!("{} ({why})", path.display()));
    }
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// What the destination is, if it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Folder,
    File,
    /// A device, say.
    Other,
}

impl Existing {
    fn new(is_folder: bool, is_file: bool) -> Self {
        match (is_folder, is_file) {
            (true, _) => Existing::Folder,
            (_, true) => Existing::File,
            _ => Existing::Other,
        }
    }
}

/// Where `source` becomes what, as cp has it.
fn settle(
    source: &Path,
    destination: PathBuf,
    is_folder: bool,
    existing: Option<Existing>,
    wants_folder: bool,
) -> Result<PathBuf, String> {
    match existing {
        // What has no name, as `.` and `/`, is copied by its content.
        Some(Existing::Folder) => Ok(source
            .file_name()
            .map_or(destination.clone(), |name| destination.join(name))),
        Some(Existing::File | Existing::Other) if is_folder || wants_folder => {
            Err(format!("{} is not a folder", destination.display()))
        }
        // It would be replaced, not written to.
        Some(Existing::Other) => Err(format!(
            "{} is neither file nor folder",
            destination.display()
        )),
        None if wants_folder && !is_folder => Err(format!(
            "there is no folder {}: create it, or leave the slash away",
            destination.display()
        )),
        Some(Existing::File) | None => Ok(destination),
    }
}

/// The path on the server.
fn absolute(remote: &Remote, path: PathBuf) -> Result<PathBuf, String> {
    if path.is_absolute() {
        return Ok(path);
    }
    let cwd = remote.environment.as_ref().and_then(|it| it.cwd.as_ref());
    cwd.map(|cwd| cwd.join(&path)).ok_or_else(|| {
        format!(
            "remote:{} is relative, and this server does not tell its directory: give an absolute path",
            path.display()
        )
    })
}

/// What is at a path of the server, if anything.
async fn there(remote: &Remote, path: &Path) -> Result<Option<Metadata>, String> {
    match remote.mux.metadata(path).await {
        Ok(metadata) => Ok(Some(metadata)),
        Err(CallError::Rejected {
            code: ErrorCode::NOT_FOUND,
            ..
        }) => Ok(None),
        Err(error) => Err(format!("remote:{}: {}", path.display(), told(&error))),
    }
}

/// The entries of a folder of the server.
async fn list(remote: &Remote, folder: &Path) -> Result<Vec<(String, Metadata)>, String> {
    let problem = |error: CallError| format!("remote:{}: {}", folder.display(), told(&error));
    let listing = remote.mux.read_directory(folder).await.map_err(problem)?;
    let mut names: Vec<String> = listing.entries.into_iter().map(|it| it.file_name).collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    let mut entries = Vec::with_capacity(names.len());
    // Well below the calls that may be in flight.
    for names in names.chunks(256) {
        let mut asking = JoinSet::new();
        for name in names {
            if !is_plain(name) {
                return Err(format!(
                    "remote:{} holds an entry that is not a name: {name:?}",
                    folder.display()
                ));
            }
            let (mux, path, name) = (remote.mux.clone(), folder.join(name), name.clone());
            asking.spawn_local(async move { (name, mux.metadata(path).await) });
        }
        while let Some(answer) = asking.join_next().await {
            let (name, metadata) = answer.map_err(|error| error.to_string())?;
            entries.push((name, metadata.map_err(problem)?));
        }
    }
    Ok(entries)
}

/// Whether a name that the server gave stays in its folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(
        source: &str,
        is_folder: bool,
        existing: Option<Existing>,
        slash: bool,
    ) -> Option<String> {
        let settled = settle(source.as_ref(), "/d".into(), is_folder, existing, slash);
        settled.ok().map(|path| path.display().to_string())
    }

    #[test]
    fn it_goes_where_cp_would_have_it() {
        let to = |path: &str| Some(path.to_owned());
        assert_eq!(settled("a/b", false, None, false), to("/d"));
        assert_eq!(settled("a/b", false, Some(Existing::File), false), to("/d"));
        assert_eq!(settled("a/b", true, None, true), to("/d"));
        assert_eq!(
            settled("a/b", true, Some(Existing::Folder), false),
            to("/d/b")
        );
        assert_eq!(settled("..", true, Some(Existing::Folder), false), to("/d"));
        assert_eq!(settled("a/b", true, Some(Existing::File), false), None);
        assert_eq!(settled("a/b", false, None, true), None);
        let device = Some(Existing::Other);
        assert_eq!(settled("a/b", false, device, false), None);
    }

    #[test]
    fn p10_names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "../x", "/etc", "a/b", "a\0b"] {
            assert!(!is_plain(name), "{name:?}");
        }
        assert!(is_plain("..a") && is_plain("a b"));
    }
}
