//! Files by their absolute paths: all that this process may reach, or those below a root only.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use cap_std::{
    ambient_authority,
    fs::{File, Metadata, OpenOptions},
};

use super::{
    root::{Last, Root, leads_out},
    uri::FileUri,
};
use crate::server::envelope::RpcError;

/// Names of a directory, as they are read.
pub(super) type Names = Box<dyn Iterator<Item = io::Result<OsString>>>;

/// The files that clients may use. A clone uses the same root.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct Files {
    root: Option<Arc<Root>>,
}

/// A directory for a process to start in.
pub(in crate::server) struct Directory {
    path: PathBuf,
    /// Keeps the directory open, where `path` names this handle.
    _handle: Option<OwnedFd>,
}

impl Directory {
    pub(in crate::server) fn path(&self) -> &Path {
        &self.path
    }
}

impl Files {
    /// Allows all paths, or those below a root, which must exist.
    pub(in crate::server) fn new(root: Option<PathBuf>) -> io::Result<Self> {
        let root = root.map(Root::open).transpose()?.map(Arc::new);
        Ok(Files { root })
    }

    /// Returns the directory that a URI names, in which a process may start.
    pub(in crate::server) fn directory(&self, uri: &str) -> Result<Directory, RpcError> {
        let path = FileUri::parse(uri)
            .map_err(RpcError::invalid_params)?
            .path()
            .map_err(|error| {
                RpcError::invalid_params(format!(
                    "cwd URI `{uri}` is not valid on this exec-server host: {}",
                    error.message
                ))
            })?;
        self.directory_at(path).map_err(super::failed)
    }

    fn directory_at(&self, path: PathBuf) -> io::Result<Directory> {
        let Some(root) = &self.root else {
            return Ok(Directory {
                path,
                _handle: None,
            });
        };
        let directory = root.with(&path, Last::Follow, |dir, path| dir.open_dir(path))?;
        if !cfg!(any(target_os = "linux", target_os = "android")) {
            let path = self.canonicalize(&path)?;
            return Ok(Directory {
                path,
                _handle: None,
            });
        }
        let handle = OwnedFd::from(directory.into_std_file());
        // The child enters the directory through its copy of the handle, so that nobody can put another in its place.
        let number = std::os::fd::AsRawFd::as_raw_fd(&handle);
        Ok(Directory {
            path: format!("/proc/self/fd/{number}").into(),
            _handle: Some(handle),
        })
    }

    /// Returns a handle on the directory at which a path begins, and the names to follow from there.
    pub(super) fn anchor(&self, path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
        match &self.root {
            Some(root) => {
                let relative = root.relative(path)?;
                let anchor = root.dir().try_clone()?.into_std_file();
                Ok((anchor.into(), relative))
            }
            None => {
                let anchor = super::nofollow::top()?;
                Ok((anchor, path.to_owned()))
            }
        }
    }

    /// Returns true if a path names the root itself.
    pub(super) fn is_root(&self, path: &Path) -> bool {
        self.root.as_ref().is_some_and(|root| root.is(path))
    }

    pub(super) fn open(&self, path: &Path, options: &OpenOptions) -> io::Result<fs::File> {
        let file = match &self.root {
            Some(root) => root.with(path, Last::Follow, |dir, path| dir.open_with(path, options)),
            None => File::open_ambient_with(path, options, ambient_authority()),
        };
        file.map(File::into_std)
    }

    /// Describes what a path leads to.
    pub(super) fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        match &self.root {
            Some(root) => root.with(path, Last::Follow, |dir, path| dir.metadata(path)),
            None => fs::metadata(path).map(Metadata::from_just_metadata),
        }
    }

    /// Describes what is at a path, which may be a link.
    pub(super) fn symlink_metadata(&self, path: &Path) -> io::Result<Metadata> {
        match &self.root {
            Some(root) => root.with(path, Last::Keep, |dir, path| dir.symlink_metadata(path)),
            None => fs::symlink_metadata(path).map(Metadata::from_just_metadata),
        }
    }

    pub(super) fn names(&self, path: &Path) -> io::Result<Names> {
        Ok(match &self.root {
            Some(root) => {
                let entries = root.with(path, Last::Follow, |dir, path| dir.read_dir(path))?;
                Box::new(entries.map(|entry| entry.map(|entry| entry.file_name())))
            }
            None => Box::new(fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name()))),
        })
    }

    pub(super) fn create_dir(&self, path: &Path) -> io::Result<()> {
        match &self.root {
            Some(root) => root.with(path, Last::Keep, |dir, path| dir.create_dir(path)),
            None => fs::create_dir(path),
        }
    }

    pub(super) fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        match &self.root {
            Some(root) => root.with(path, Last::Keep, |dir, path| dir.create_dir_all(path)),
            None => fs::create_dir_all(path),
        }
    }

    pub(super) fn remove_file(&self, path: &Path) -> io::Result<()> {
        match &self.root {
            Some(root) => root.with(path, Last::Keep, |dir, path| dir.remove_file(path)),
            None => fs::remove_file(path),
        }
    }

    pub(super) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        match &self.root {
            Some(root) => root.with(path, Last::Keep, |dir, path| dir.remove_dir(path)),
            None => fs::remove_dir(path),
        }
    }

    pub(super) fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match &self.root {
            Some(root) => root.with(path, Last::Keep, |dir, path| dir.remove_dir_all(path)),
            None => fs::remove_dir_all(path),
        }
    }

    /// Returns what a link holds.
    pub(super) fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        match &self.root {
            Some(root) => root.with(path, Last::Keep, |dir, path| dir.read_link_contents(path)),
            None => fs::read_link(path),
        }
    }

    /// Creates a link, unless it would lead out of the root.
    pub(super) fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        let Some(root) = &self.root else {
            return symlink(target, path);
        };
        let folder = path.parent().ok_or_else(leads_out)?;
        let folder = root.absolute(&root.resolve(folder, Last::Follow)?);
        root.resolve(&folder.join(target), Last::Follow)?;
        root.with(path, Last::Keep, |dir, path| {
            dir.symlink_contents(target, path)
        })
    }

    /// Returns the path without links of what a path leads to.
    pub(super) fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        match &self.root {
            Some(root) => root
                .with(path, Last::Follow, |dir, path| dir.canonicalize(path))
                .map(|relative| root.absolute(&relative)),
            None => fs::canonicalize(path),
        }
    }
}

/// Returns the names of a path, one directory after the other.
pub(super) fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        std::path::Component::Normal(name) => Some(name),
        _ => None,
    })
}
