//! `fs/walk`: lists a tree, directory by directory.

use std::{
    collections::{BinaryHeap, HashSet, VecDeque},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use cap_std::fs::MetadataExt as _;
use serde::{Deserialize, Serialize};

use super::{failed, files::Files, uri};
use crate::server::envelope::RpcError;

const MAX_DEPTH: usize = 64;
const MAX_DIRECTORIES: usize = 10_000;
const MAX_ENTRIES: usize = 50_000;

/// What the listed paths and messages may come to.
const MAX_RESPONSE: usize = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Options {
    max_depth: usize,
    max_directories: usize,
    max_entries: usize,
    follow_directory_symlinks: bool,
    #[serde(default)]
    prune_hidden_directories: bool,
}

impl Options {
    pub(super) fn check(&self) -> Result<(), RpcError> {
        if self.max_directories == 0 || self.max_entries == 0 {
            return Err(RpcError::invalid_request(
                "filesystem walk limits must be greater than zero",
            ));
        }
        if self.max_depth > MAX_DEPTH
            || self.max_directories > MAX_DIRECTORIES
            || self.max_entries > MAX_ENTRIES
        {
            return Err(RpcError::invalid_request(format!(
                "filesystem walk limits exceed maximums: depth={MAX_DEPTH}, \
                 directories={MAX_DIRECTORIES}, entries={MAX_ENTRIES}"
            )));
        }
        Ok(())
    }
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Tree {
    entries: Vec<Entry>,
    errors: Vec<Failure>,
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct Entry {
    #[serde(serialize_with = "uri::serialize")]
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Kind {
    Directory,
    File,
}

#[derive(Debug, Serialize)]
struct Failure {
    #[serde(serialize_with = "uri::serialize")]
    path: PathBuf,
    message: String,
}

/// Lists what is below `path`; nothing if it is no directory.
pub(super) fn walk(files: &Files, path: PathBuf, options: &Options) -> Result<Tree, RpcError> {
    let metadata = match files.metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Tree::default()),
        Err(error) => return Err(failed(error)),
    };
    let is_link = files.symlink_metadata(&path).map_err(failed)?.is_symlink();
    if !metadata.is_dir() || (is_link && !options.follow_directory_symlinks) {
        return Ok(Tree::default());
    }
    let mut walk = Walk {
        files,
        options,
        seen: HashSet::from([(metadata.dev(), metadata.ino())]),
        queue: VecDeque::from([(path, 0)]),
        examined: 0,
        size: 0,
        tree: Tree::default(),
    };
    while let Some((directory, depth)) = walk.queue.pop_front() {
        if !walk.list(&directory, depth) {
            walk.tree.truncated = true;
            break;
        }
    }
    Ok(walk.tree)
}

struct Walk<'a> {
    files: &'a Files,
    options: &'a Options,
    /// Device and inode of each directory that is or will be listed, so that links do not lead in circles.
    seen: HashSet<(u64, u64)>,
    queue: VecDeque<(PathBuf, usize)>,
    examined: usize,
    size: usize,
    tree: Tree,
}

impl Walk<'_> {
    /// Returns `false` when a limit ends it all.
    fn list(&mut self, directory: &Path, depth: usize) -> bool {
        let names = match self.names(directory) {
            Ok(names) => names,
            Err(error) => return self.fail(directory.to_owned(), error.to_string()),
        };
        for path in names {
            if self.examined == self.options.max_entries {
                return false;
            }
            self.examined += 1;
            let goes_on = match self.examine(&path, depth) {
                Ok(goes_on) => goes_on,
                Err(error) => self.fail(path, error.to_string()),
            };
            if !goes_on {
                return false;
            }
        }
        true
    }

    /// Returns the first of what is in a directory, sorted: one more than may be looked at, so that a limit is noticed. No more are
    /// held, however many there are.
    fn names(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let most = self.options.max_entries - self.examined + 1;
        let mut first = BinaryHeap::new();
        for name in self.files.names(directory)? {
            first.push(name?);
            if first.len() > most {
                first.pop();
            }
        }
        let names = first.into_sorted_vec().into_iter();
        Ok(names.map(|name| directory.join(name)).collect())
    }

    fn examine(&mut self, path: &Path, depth: usize) -> io::Result<bool> {
        let mut metadata = self.files.symlink_metadata(path)?;
        let is_link = metadata.is_symlink();
        if is_link {
            if !self.options.follow_directory_symlinks {
                return Ok(true);
            }
            // One that leads nowhere, in a circle or out of the root is none to a directory.
            let Ok(target) = self.files.metadata(path) else {
                return Ok(true);
            };
            metadata = target;
        }
        let kind = if metadata.is_dir() {
            Kind::Directory
        } else if metadata.is_file() && !is_link {
            Kind::File
        } else {
            return Ok(true);
        };
        if !self.has_room(path.as_os_str().len()) {
            return Ok(false);
        }
        self.tree.entries.push(Entry {
            path: path.to_owned(),
            kind,
        });
        if kind == Kind::Directory {
            self.enter(path, depth + 1, (metadata.dev(), metadata.ino()));
        }
        Ok(true)
    }

    fn enter(&mut self, directory: &Path, depth: usize, id: (u64, u64)) {
        let is_hidden = directory
            .file_name()
            .is_some_and(|name| name.as_bytes().starts_with(b"."));
        let is_pruned = is_hidden && self.options.prune_hidden_directories;
        if depth > self.options.max_depth || is_pruned || self.seen.contains(&id) {
            return;
        }
        if self.seen.len() == self.options.max_directories {
            self.tree.truncated = true;
            return;
        }
        self.seen.insert(id);
        self.queue.push_back((directory.to_owned(), depth));
    }

    fn fail(&mut self, path: PathBuf, message: String) -> bool {
        let has_room = self.has_room(path.as_os_str().len() + message.len());
        if has_room {
            self.tree.errors.push(Failure { path, message });
        }
        has_room
    }

    fn has_room(&mut self, text: usize) -> bool {
        // What stands around each: the longest are the names of the fields of a directory, and `file://`. Most bytes
        // are written as they are; a few take three.
        self.size += text + 48;
        self.size <= MAX_RESPONSE
    }
}
