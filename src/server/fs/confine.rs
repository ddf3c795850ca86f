//! Keeps paths below a root.
//!
//! A path is resolved link by link before it is used, and no component outside the root is looked at. What remains is a
//! race: whoever can change directories below the root can put a link in place of one between the check and the use.
//! Processes that the server starts are not confined at all, so this keeps out mistakes and clients that may only use
//! files, not processes beside them.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    path::{Component, Path, PathBuf},
};

use super::failed;
use crate::server::envelope::RpcError;

/// As many as Linux follows.
const MAX_LINKS: usize = 40;

/// What happens to a link that the path ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Follow,
    Keep,
}

/// A directory that no path may leave.
#[derive(Debug)]
pub(super) struct Root {
    given: PathBuf,
    canonical: PathBuf,
}

impl Root {
    pub(super) fn new(root: PathBuf) -> io::Result<Self> {
        let canonical = root.canonicalize()?;
        Ok(Root {
            given: root,
            canonical,
        })
    }

    /// Returns the same place without links, which need not exist.
    pub(super) fn resolve(&self, path: &Path, last: Last) -> Result<PathBuf, RpcError> {
        let path = self.canonical_of(path);
        let mut left: VecDeque<OsString> = names(&path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(name);
            self.check_way(&at)?;
            let metadata = match at.symlink_metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Nothing there can lead anywhere, so neither can what follows lead up again.
                    if left.iter().any(|name| name == "..") {
                        return Err(failed(error));
                    }
                    at.extend(left.drain(..));
                    break;
                }
                Err(error) => return Err(failed(error)),
            };
            if !metadata.is_symlink() || (left.is_empty() && last == Last::Keep) {
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(failed(rustix::io::Errno::LOOP.into()));
            }
            let target = at.read_link().map_err(failed)?;
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            for name in names(&target).into_iter().rev() {
                left.push_front(name);
            }
        }
        self.check(&at)?;
        Ok(at)
    }

    /// Checks a path in which links are not followed later.
    pub(super) fn check_names(&self, path: &Path) -> Result<PathBuf, RpcError> {
        let path = self.canonical_of(path);
        self.check(&path)?;
        Ok(path)
    }

    pub(super) fn is(&self, path: &Path) -> bool {
        self.canonical == path
    }

    fn canonical_of(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.given) {
            // Joined with nothing it would end with a slash.
            Ok(rest) if rest.as_os_str().is_empty() => self.canonical.clone(),
            Ok(rest) => self.canonical.join(rest),
            Err(_) => path.to_owned(),
        }
    }

    /// Lets the way down to the root pass, too.
    fn check_way(&self, path: &Path) -> Result<(), RpcError> {
        if self.canonical.starts_with(path) {
            return Ok(());
        }
        self.check(path)
    }

    fn check(&self, path: &Path) -> Result<(), RpcError> {
        if path.starts_with(&self.canonical) {
            return Ok(());
        }
        Err(RpcError::invalid_request(
            "path leads out of the root of this server",
        ))
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}
