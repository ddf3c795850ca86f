//! Files in pieces, whole trees, and where a path leads.

use std::{fmt, path::PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{
    Capabilities, Done, InvalidRequest, Method, Params, Repeat, Unsupported, base64, id,
    params::read_path,
};

/// The most that one block may hold, in bytes.
pub const MAX_BLOCK: usize = 1 << 20;

/// The name of an open file, chosen by the client, at most 32 bytes. A server has 128 of a connection open
/// at most, and closes them when the connection is lost, also if that is resumed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HandleId(String);

impl HandleId {
    /// Makes an id that no other call has made.
    pub fn unique() -> Self {
        HandleId(id::unique_name())
    }

    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for HandleId {
    fn from(text: &str) -> Self {
        HandleId(text.to_owned())
    }
}

impl From<String> for HandleId {
    fn from(text: String) -> Self {
        HandleId(text)
    }
}

impl From<&HandleId> for HandleId {
    fn from(id: &HandleId) -> Self {
        id.clone()
    }
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OpenMode {
    /// To read it.
    #[default]
    Read,
    /// To replace what it holds, which is gone at once (servers with
    /// [`file_writes`](Capabilities::file_writes)).
    Replace,
}

/// `fs/open`: opens a file, to read or write it in pieces (servers with
/// [`file_blocks`](Capabilities::file_blocks)).
#[derive(Debug, Clone)]
#[must_use]
pub struct OpenFile {
    handle: HandleId,
    path: PathBuf,
    mode: OpenMode,
    sandbox: Option<Value>,
}

impl OpenFile {
    /// Opens the file at `path` for reading, under a name of its own.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        OpenFile {
            handle: HandleId::unique(),
            path: path.into(),
            mode: OpenMode::Read,
            sandbox: None,
        }
    }

    /// Names the open file.
    pub fn handle(mut self, handle: impl Into<HandleId>) -> Self {
        self.handle = handle.into();
        self
    }

    /// Says what it is opened for.
    pub fn mode(mut self, mode: OpenMode) -> Self {
        self.mode = mode;
        self
    }

    /// Runs the operation inside a sandbox, given as the server wants it.
    pub fn sandbox(mut self, sandbox: Value) -> Self {
        self.sandbox = Some(sandbox);
        self
    }
}

impl Method for OpenFile {
    const NAME: &'static str = "fs/open";
    type Response = OpenedFile;

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        // Servers that do not know the mode open the file for reading.
        if self.mode == OpenMode::Replace && !capabilities.file_writes {
            return Err(Unsupported {
                capability: "file_writes",
                remedy: "write the file as a whole (Mux::write_file)",
            });
        }
        has_blocks(capabilities)
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("handleId", &self.handle)?;
        params.path("path", &self.path)?;
        if self.mode != OpenMode::Read {
            params.field("mode", &self.mode)?;
        }
        params.optional("sandbox", self.sandbox.as_ref())
    }
}

fn has_blocks(capabilities: &Capabilities) -> Result<(), Unsupported> {
    capabilities.file_blocks.then_some(()).ok_or(Unsupported {
        capability: "file_blocks",
        remedy: "read the file as a whole (Mux::read_file)",
    })
}

/// The answer to [`OpenFile`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct OpenedFile {
    /// The name of the open file.
    pub handle_id: HandleId,
}

/// `fs/readBlock`: reads a piece of an open file.
#[derive(Debug, Clone)]
#[must_use]
pub struct ReadBlock {
    handle: HandleId,
    offset: u64,
    len: usize,
}

impl ReadBlock {
    /// Reads up to `len` bytes, 1 to [`MAX_BLOCK`], from `offset` on.
    pub fn new(handle: impl Into<HandleId>, offset: u64, len: usize) -> Self {
        ReadBlock {
            handle: handle.into(),
            offset,
            len,
        }
    }
}

impl Method for ReadBlock {
    const NAME: &'static str = "fs/readBlock";
    type Response = Block;
    const REPEAT: Repeat = Repeat::Always;

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        has_blocks(capabilities)
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("handleId", &self.handle)?;
        params.field("offset", &self.offset)?;
        params.field("len", &self.len)
    }
}

/// A piece of a file.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Block {
    /// The bytes.
    #[serde(deserialize_with = "base64::deserialize")]
    pub chunk: Bytes,
    /// Whether the file ends with them.
    pub eof: bool,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("bytes", &self.chunk.len())
            .field("eof", &self.eof)
            .finish()
    }
}

/// `fs/writeBlock`: writes a piece of a file that is open for writing.
#[derive(Clone)]
#[must_use]
pub struct WriteBlock {
    handle: HandleId,
    offset: u64,
    chunk: Bytes,
}

impl WriteBlock {
    /// Writes `chunk`, 1 to [`MAX_BLOCK`] bytes, at `offset`.
    pub fn new(handle: impl Into<HandleId>, offset: u64, chunk: impl Into<Bytes>) -> Self {
        WriteBlock {
            handle: handle.into(),
            offset,
            chunk: chunk.into(),
        }
    }
}

impl fmt::Debug for WriteBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBlock")
            .field("handle", &self.handle)
            .field("offset", &self.offset)
            .field("bytes", &self.chunk.len())
            .finish()
    }
}

impl Method for WriteBlock {
    const NAME: &'static str = "fs/writeBlock";
    type Response = Done;
    /// The same bytes at the same place.
    const REPEAT: Repeat = Repeat::Always;

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        capabilities.file_writes.then_some(()).ok_or(Unsupported {
            capability: "file_writes",
            remedy: "write the file as a whole (Mux::write_file)",
        })
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("handleId", &self.handle)?;
        params.field("offset", &self.offset)?;
        params.base64("chunk", &self.chunk);
        Ok(())
    }
}

/// `fs/close`: closes an open file. One that is not open is not an error.
#[derive(Debug, Clone)]
#[must_use]
pub struct CloseFile {
    handle: HandleId,
}

impl CloseFile {
    /// Closes `handle`.
    pub fn new(handle: impl Into<HandleId>) -> Self {
        CloseFile {
            handle: handle.into(),
        }
    }
}

impl Method for CloseFile {
    const NAME: &'static str = "fs/close";
    type Response = Done;
    const REPEAT: Repeat = Repeat::Always;

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        has_blocks(capabilities)
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("handleId", &self.handle)
    }
}

/// `fs/walk`: lists a directory and all below it (servers with [`walk`](Capabilities::walk)).
#[derive(Debug, Clone)]
#[must_use]
pub struct Walk {
    path: PathBuf,
    options: WalkOptions,
    sandbox: Option<Value>,
}

impl Walk {
    /// Lists what is below `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Walk {
            path: path.into(),
            options: WalkOptions::default(),
            sandbox: None,
        }
    }

    /// Says how far to go.
    pub fn options(mut self, options: WalkOptions) -> Self {
        self.options = options;
        self
    }

    /// Runs the operation inside a sandbox, given as the server wants it.
    pub fn sandbox(mut self, sandbox: Value) -> Self {
        self.sandbox = Some(sandbox);
        self
    }
}

/// How far to go. Begin with the default, which goes as far as servers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct WalkOptions {
    /// How deep, 1 to 64.
    pub max_depth: u32,
    /// How many directories, 1 to 10,000.
    pub max_directories: u32,
    /// How many entries, 1 to 50,000.
    pub max_entries: u32,
    /// Whether links to directories are followed. Off by default.
    pub follow_directory_symlinks: bool,
    /// Whether to leave out what is in directories whose name begins with a dot. Off by default.
    pub prune_hidden_directories: bool,
}

impl Default for WalkOptions {
    fn default() -> Self {
        WalkOptions {
            max_depth: 64,
            max_directories: 10_000,
            max_entries: 50_000,
            follow_directory_symlinks: false,
            prune_hidden_directories: false,
        }
    }
}

impl Method for Walk {
    const NAME: &'static str = "fs/walk";
    type Response = Walked;
    const REPEAT: Repeat = Repeat::Always;

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        capabilities.walk.then_some(()).ok_or(Unsupported {
            capability: "walk",
            remedy: "list the directories one by one (Mux::read_directory)",
        })
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.path("path", &self.path)?;
        params.field("options", &self.options)?;
        params.optional("sandbox", self.sandbox.as_ref())
    }
}

/// What is below a directory, those nearer to it first.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Walked {
    /// Directories and regular files. Links to files are left out.
    pub entries: Vec<WalkedEntry>,
    /// What could not be read.
    #[serde(default)]
    pub errors: Vec<WalkError>,
    /// Whether a limit has ended it.
    pub truncated: bool,
}

/// An entry below a directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct WalkedEntry {
    /// Where it is.
    #[serde(deserialize_with = "path")]
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A word that this version of the crate does not know.
    #[serde(other)]
    Unknown,
}

/// A path that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct WalkError {
    /// The path.
    #[serde(deserialize_with = "path")]
    pub path: PathBuf,
    /// The server's words.
    pub message: String,
}

/// `fs/canonicalize`: asks where a path leads, with all links resolved (servers with
/// [`canonicalize`](Capabilities::canonicalize)).
#[derive(Debug, Clone)]
#[must_use]
pub struct Canonicalize {
    path: PathBuf,
    sandbox: Option<Value>,
}

impl Canonicalize {
    /// Resolves `path`, which must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Canonicalize {
            path: path.into(),
            sandbox: None,
        }
    }

    /// Runs the operation inside a sandbox, given as the server wants it.
    pub fn sandbox(mut self, sandbox: Value) -> Self {
        self.sandbox = Some(sandbox);
        self
    }
}

impl Method for Canonicalize {
    const NAME: &'static str = "fs/canonicalize";
    type Response = CanonicalPath;
    const REPEAT: Repeat = Repeat::Always;

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        capabilities.canonicalize.then_some(()).ok_or(Unsupported {
            capability: "canonicalize",
            remedy: "run readlink -f or realpath on the server",
        })
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.path("path", &self.path)?;
        params.optional("sandbox", self.sandbox.as_ref())
    }
}

/// The answer to [`Canonicalize`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct CanonicalPath {
    /// The path without links.
    #[serde(deserialize_with = "path")]
    pub path: PathBuf,
}

fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    String::deserialize(deserializer).map(|text| read_path(&text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::{PathSpelling, jsonrpc::encoded_params};

    #[test]
    fn files_in_pieces_are_written_as_servers_read_them() {
        let uri = PathSpelling::Uri;
        let open = OpenFile::new("/a b").handle("h");
        assert_eq!(
            encoded_params(uri, &open),
            json!({"handleId": "h", "path": "file:///a%20b"})
        );
        assert_eq!(
            encoded_params(uri, &open.mode(OpenMode::Replace))["mode"],
            "replace"
        );
        assert_eq!(
            encoded_params(uri, &ReadBlock::new("h", 7, 9)),
            json!({"handleId": "h", "offset": 7, "len": 9})
        );
        assert_eq!(
            encoded_params(uri, &WriteBlock::new("h", 7, "hi")),
            json!({"handleId": "h", "offset": 7, "chunk": "aGk="})
        );
        assert_eq!(
            encoded_params(uri, &CloseFile::new("h")),
            json!({"handleId": "h"})
        );
        assert!(HandleId::unique().as_str().len() <= 32);
    }

    #[test]
    fn a_walk_says_how_far_and_reads_both_spellings() {
        let params = encoded_params(PathSpelling::Uri, &Walk::new("/x"));
        assert_eq!(
            params["options"],
            json!({"maxDepth": 64, "maxDirectories": 10_000, "maxEntries": 50_000,
                   "followDirectorySymlinks": false, "pruneHiddenDirectories": false})
        );
        let walked: Walked = serde_json::from_value(json!({
            "entries": [{"path": "file:///x/a%20b", "kind": "file"}, {"path": "/x/c", "kind": "socket"}],
            "errors": [{"path": "file:///x/d", "message": "no"}], "truncated": true
        }))
        .unwrap();
        assert_eq!(walked.entries[0].path, PathBuf::from("/x/a b"));
        assert_eq!(walked.entries[1].kind, EntryKind::Unknown);
        assert_eq!(walked.errors[0].path, PathBuf::from("/x/d"));
    }

    #[test]
    fn an_old_server_is_not_asked_to_open_for_writing() {
        let mut capabilities = Capabilities {
            file_blocks: true,
            ..Capabilities::default()
        };
        let open = OpenFile::new("/x").mode(OpenMode::Replace);
        let missing = open.supported_by(&capabilities).unwrap_err();
        assert_eq!(missing.capability, "file_writes");
        capabilities.file_writes = true;
        assert_eq!(open.supported_by(&capabilities), Ok(()));
    }

    #[test]
    fn p11_debug_does_not_show_content() {
        let block = Block {
            chunk: "secret".into(),
            eof: true,
        };
        let shown = format!("{block:?} {:?}", WriteBlock::new("h", 0, "secret"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
