//! A directory that no file operation leaves.
//!
//! Every operation goes through a handle on the root ([`Dir`]): the kernel itself resolves the path below that handle (`openat2` with
//! `RESOLVE_BENEATH`, or one directory at a time where it has no such call), so that no link leads out, whoever puts links in
//! place of folders meanwhile.
//!
//! A [`Dir`] follows no absolute link, not even one that leads to a place below the root. Such a path is resolved by its names
//! first, and the result is used through the handle as any other path is: a wrong result can only be refused.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    path::{Component, Path, PathBuf},
};

use cap_std::{ambient_authority, fs::Dir};
use rustix::io::Errno;

/// As many links as Linux follows in one path.
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
    dir: Dir,
    /// The path as the application gave it, which may lead through links.
    given: PathBuf,
    /// The same place without links.
    canonical: PathBuf,
}

impl Root {
    pub(super) fn open(given: PathBuf) -> io::Result<Self> {
        let canonical = given.canonicalize()?;
        let dir = Dir::open_ambient_dir(&canonical, ambient_authority())?;
        Ok(Root {
            dir,
            given,
            canonical,
        })
    }

    pub(super) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Carries out an operation on the place that an absolute path names, through the handle on the root.
    pub(super) fn with<T>(
        &self,
        path: &Path,
        last: Last,
        operation: impl Fn(&Dir, &Path) -> io::Result<T>,
    ) -> io::Result<T> {
        match operation(&self.dir, &self.relative(path)?) {
            Err(error) if is_refusal(&error) => {
                let resolved = self.resolve(path, last)?;
                operation(&self.dir, &resolved).map_err(|error| match is_refusal(&error) {
                    true => leads_out(),
                    false => error,
                })
            }
            result => result,
        }
    }

    /// Returns the path relative to the root, if its names alone do not lead out; `.` for the root itself.
    pub(super) fn relative(&self, path: &Path) -> io::Result<PathBuf> {
        self.below(&self.canonical_of(path)).ok_or_else(leads_out)
    }

    /// Returns the absolute path, without links, of a path relative to the root.
    pub(super) fn absolute(&self, relative: &Path) -> PathBuf {
        self.canonical.join(relative).components().collect()
    }

    /// Returns true if the path names the root itself.
    pub(super) fn is(&self, path: &Path) -> bool {
        self.canonical == self.canonical_of(path)
    }

    /// Resolves all links of a path by their names, and returns it relative to the root. The place need not exist: behind a
    /// name that is not there, `..` goes back by names.
    pub(super) fn resolve(&self, path: &Path, last: Last) -> io::Result<PathBuf> {
        let mut left = names(&self.canonical_of(path));
        let mut at = PathBuf::from("/");
        let mut links = 0;
        let mut is_missing = false;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(name);
            let is_kept = left.is_empty() && last == Last::Keep;
            let Some(target) = self.link_at(&at, is_kept || is_missing, &mut is_missing)? else {
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            for name in names(&self.canonical_of(&target)).into_iter().rev() {
                left.push_front(name);
            }
        }
        self.below(&at).ok_or_else(leads_out)
    }

    /// Reads the link at a path whose parent has no links. `None` if no link is there, or if it is not to be looked at.
    fn link_at(
        &self,
        path: &Path,
        is_skipped: bool,
        is_missing: &mut bool,
    ) -> io::Result<Option<PathBuf>> {
        if self.canonical.starts_with(path) {
            // On the way down to the root, which has no links.
            return Ok(None);
        }
        let below = self.below(path).ok_or_else(leads_out)?;
        if is_skipped {
            return Ok(None);
        }
        match self.dir.read_link_contents(below) {
            Ok(target) => Ok(Some(target)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *is_missing = true;
                Ok(None)
            }
            // Something is there that is not a link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
            Err(error) if is_refusal(&error) => Err(leads_out()),
            Err(error) => Err(error),
        }
    }

    /// Returns a path as it is named below the canonical root, where it begins with the root as it was given.
    fn canonical_of(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.given) {
            Ok(rest) => self.canonical.join(rest).components().collect(),
            Err(_) => path.to_owned(),
        }
    }

    fn below(&self, path: &Path) -> Option<PathBuf> {
        let rest = path.strip_prefix(&self.canonical).ok()?;
        Some(match rest.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => rest.to_owned(),
        })
    }
}

/// Returns true for the error of a handle whose path would lead out of it: no system call has failed then.
fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none()
}

/// The error of every path that leads out of the root.
pub(super) fn leads_out() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "path leads out of the root of this server",
    )
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
