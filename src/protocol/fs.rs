//! The file methods. Paths are given as absolute paths; the dialect spells them.
//!
//! What the server would do on its own where a field is left out is not always harmless:
//! `fs/remove` deletes recursively and forgivingly. So each such field is always sent, and is off
//! unless asked for.

use std::path::PathBuf;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::{Done, InvalidRequest, Method, Params, Repeat, base64};

/// What most file methods take beside their own params.
#[derive(Debug, Clone, Default)]
struct CommonOptions {
    follow_symlinks: Option<bool>,
    sandbox: Option<Value>,
}

impl CommonOptions {
    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.optional("followSymlinks", self.follow_symlinks.as_ref())?;
        params.optional("sandbox", self.sandbox.as_ref())
    }
}

/// Declares the setters of the [`CommonOptions`] that a method has.
macro_rules! common_options {
    (sandbox) => {
        /// Runs the operation inside a sandbox, given as the server wants it.
        pub fn sandbox(mut self, sandbox: Value) -> Self {
            self.common.sandbox = Some(sandbox);
            self
        }
    };
    (sandbox, follow_symlinks) => {
        common_options!(sandbox);

        /// Whether links in the path are followed (0.150 on; older servers always do). With `false`
        /// a path with any link in it is refused. Left out, the server follows them.
        pub fn follow_symlinks(mut self, follow: bool) -> Self {
            self.common.follow_symlinks = Some(follow);
            self
        }
    };
}

/// `fs/readFile`: reads a whole file, up to 512 MiB.
///
/// The answer comes as one message, which
/// [`Config::max_message_size`](crate::Config::max_message_size) has to allow.
#[derive(Debug, Clone)]
#[must_use]
pub struct ReadFile {
    path: PathBuf,
    common: CommonOptions,
}

impl ReadFile {
    /// Reads the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        ReadFile {
            path: path.into(),
            common: CommonOptions::default(),
        }
    }

    common_options!(sandbox, follow_symlinks);
}

impl Method for ReadFile {
    const NAME: &'static str = "fs/readFile";
    type Response = FileContent;
    const REPEAT: Repeat = Repeat::Always;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.path("path", &self.path)?;
        self.common.write_params(params)
    }
}

/// What a file holds.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct FileContent {
    /// The bytes.
    #[serde(rename = "dataBase64", deserialize_with = "base64::deserialize")]
    pub content: Bytes,
}

impl FileContent {
    /// Writes it as it came.
    pub(crate) fn to_json(&self) -> String {
        let mut json = br#"{"dataBase64":"#.to_vec();
        base64::append_json(&self.content, &mut json);
        json.push(b'}');
        String::from_utf8(json).unwrap_or_default()
    }
}

impl std::fmt::Debug for FileContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileContent")
            .field("bytes", &self.content.len())
            .finish()
    }
}

/// `fs/writeFile`: creates a file or replaces what it holds. Its directory must exist. Not atomic.
#[derive(Clone)]
#[must_use]
pub struct WriteFile {
    path: PathBuf,
    content: Bytes,
    common: CommonOptions,
}

impl WriteFile {
    /// Writes `content` to the file at `path`, at most about 48 MiB.
    pub fn new(path: impl Into<PathBuf>, content: impl Into<Bytes>) -> Self {
        WriteFile {
            path: path.into(),
            content: content.into(),
            common: CommonOptions::default(),
        }
    }

    common_options!(sandbox, follow_symlinks);
}

impl std::fmt::Debug for WriteFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteFile")
            .field("path", &self.path)
            .field("bytes", &self.content.len())
            .finish_non_exhaustive()
    }
}

impl Method for WriteFile {
    const NAME: &'static str = "fs/writeFile";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.path("path", &self.path)?;
        params.base64("dataBase64", &self.content);
        self.common.write_params(params)
    }
}

/// `fs/createDirectory`: creates a directory.
#[derive(Debug, Clone)]
#[must_use]
pub struct CreateDirectory {
    path: PathBuf,
    recursive: bool,
    common: CommonOptions,
}

impl CreateDirectory {
    /// Creates the directory at `path`, which must not exist, in one that does.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        CreateDirectory {
            path: path.into(),
            recursive: false,
            common: CommonOptions::default(),
        }
    }

    /// Whether to create those above it too, and to be content if it is there. Off by default, and
    /// always sent.
    pub fn recursive(mut self, recursive: bool) -> Self {
        self.recursive = recursive;
        self
    }

    common_options!(sandbox, follow_symlinks);
}

impl Method for CreateDirectory {
    const NAME: &'static str = "fs/createDirectory";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.path("path", &self.path)?;
        params.field("recursive", &self.recursive)?;
        self.common.write_params(params)
    }
}

/// `fs/getMetadata`: asks what is at a path.
#[derive(Debug, Clone)]
#[must_use]
pub struct ReadMetadata {
    path: PathBuf,
    common: CommonOptions,
}

impl ReadMetadata {
    /// Asks what is at `path`. A link is followed, and one that leads nowhere is not found.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        ReadMetadata {
            path: path.into(),
            common: CommonOptions::default(),
        }
    }

    common_options!(sandbox, follow_symlinks);
}

impl Method for ReadMetadata {
    const NAME: &'static str = "fs/getMetadata";
    type Response = Metadata;
    const REPEAT: Repeat = Repeat::Always;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.path("path", &self.path)?;
        self.common.write_params(params)
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Metadata {
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Whether it is a regular file.
    pub is_file: bool,
    /// Whether the path is a link (0.130 on).
    #[serde(default)]
    pub is_symlink: Option<bool>,
    /// Size in bytes (0.140 on).
    #[serde(default)]
    pub size: Option<u64>,
    /// Creation time in milliseconds since 1970; 0 where the server cannot tell.
    pub created_at_ms: i64,
    /// Time of the last change, in milliseconds since 1970.
    pub modified_at_ms: i64,
}

/// `fs/readDirectory`: lists a directory.
#[derive(Debug, Clone)]
#[must_use]
pub struct ReadDirectory {
    path: PathBuf,
    common: CommonOptions,
}

impl ReadDirectory {
    /// Lists the directory at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        ReadDirectory {
            path: path.into(),
            common: CommonOptions::default(),
        }
    }

    common_options!(sandbox);
}

impl Method for ReadDirectory {
    const NAME: &'static str = "fs/readDirectory";
    type Response = DirectoryListing;
    const REPEAT: Repeat = Repeat::Always;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.path("path", &self.path)?;
        self.common.write_params(params)
    }
}

/// What a directory holds, in no particular order.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct DirectoryListing {
    /// The entries. Links that lead nowhere are left out (0.120 and older fail instead).
    pub entries: Vec<DirectoryEntry>,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct DirectoryEntry {
    /// Its name; bytes that are not UTF-8 are replaced by the server.
    pub file_name: String,
    /// Whether it is, or leads to, a directory.
    pub is_directory: bool,
    /// Whether it is, or leads to, a regular file.
    pub is_file: bool,
}

/// `fs/remove`: removes a file or directory. A link is removed, not what it leads to.
#[derive(Debug, Clone)]
#[must_use]
pub struct RemovePath {
    path: PathBuf,
    recursive: bool,
    force: bool,
    common: CommonOptions,
}

impl RemovePath {
    /// Removes the file or empty directory at `path`, which must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        RemovePath {
            path: path.into(),
            recursive: false,
            force: false,
            common: CommonOptions::default(),
        }
    }

    /// Whether to remove a directory with all that is in it. Off by default, and always sent.
    pub fn recursive(mut self, recursive: bool) -> Self {
        self.recursive = recursive;
        self
    }

    /// Whether to be content if there is nothing at the path. Off by default, and always sent.
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    common_options!(sandbox, follow_symlinks);
}

impl Method for RemovePath {
    const NAME: &'static str = "fs/remove";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.path("path", &self.path)?;
        params.field("recursive", &self.recursive)?;
        params.field("force", &self.force)?;
        self.common.write_params(params)
    }
}

/// `fs/copy`: copies a file or directory on the server.
#[derive(Debug, Clone)]
#[must_use]
pub struct CopyPath {
    source: PathBuf,
    destination: PathBuf,
    recursive: bool,
    common: CommonOptions,
}

impl CopyPath {
    /// Copies the file at `source` to `destination`.
    pub fn new(source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Self {
        CopyPath {
            source: source.into(),
            destination: destination.into(),
            recursive: false,
            common: CommonOptions::default(),
        }
    }

    /// Whether to copy a directory with all that is in it. Off by default, and always sent.
    pub fn recursive(mut self, recursive: bool) -> Self {
        self.recursive = recursive;
        self
    }

    common_options!(sandbox);
}

impl Method for CopyPath {
    const NAME: &'static str = "fs/copy";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.path("sourcePath", &self.source)?;
        params.path("destinationPath", &self.destination)?;
        params.field("recursive", &self.recursive)?;
        self.common.write_params(params)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::{PathSpelling, jsonrpc::encoded_params};

    #[test]
    fn dangerous_defaults_are_always_spelled_out() {
        assert_eq!(
            encoded_params(PathSpelling::Uri, &RemovePath::new("/x")),
            json!({"path": "file:///x", "recursive": false, "force": false})
        );
        assert_eq!(
            encoded_params(PathSpelling::Uri, &CopyPath::new("/x", "/y")),
            json!({"sourcePath": "file:///x", "destinationPath": "file:///y", "recursive": false})
        );
        assert_eq!(
            encoded_params(PathSpelling::Uri, &CreateDirectory::new("/x")),
            json!({"path": "file:///x", "recursive": false})
        );
    }

    #[test]
    fn options_are_sent_when_given() {
        assert_eq!(
            encoded_params(
                PathSpelling::Uri,
                &RemovePath::new("/x")
                    .recursive(true)
                    .force(true)
                    .follow_symlinks(false)
            ),
            json!({"path": "file:///x", "recursive": true, "force": true, "followSymlinks": false})
        );
        assert_eq!(
            encoded_params(PathSpelling::Uri, &ReadFile::new("/x").sandbox(Value::Null)),
            json!({"path": "file:///x", "sandbox": null})
        );
        assert_eq!(
            encoded_params(PathSpelling::Uri, &WriteFile::new("/x", "hi")),
            json!({"path": "file:///x", "dataBase64": "aGk="})
        );
    }

    #[test]
    fn p12_metadata_of_old_and_new_servers_decodes() {
        let old = r#"{"isDirectory":false,"isFile":true,"createdAtMs":0,"modifiedAtMs":5}"#;
        let old: Metadata = serde_json::from_str(old).unwrap();
        assert_eq!((old.is_symlink, old.size), (None, None));
        let new = r#"{"isDirectory":false,"isFile":true,"isSymlink":false,"size":3,"createdAtMs":0,"modifiedAtMs":5}"#;
        let new: Metadata = serde_json::from_str(new).unwrap();
        assert_eq!((new.is_symlink, new.size), (Some(false), Some(3)));
    }

    #[test]
    fn p11_debug_does_not_show_content() {
        let write = WriteFile::new("/x", "secret");
        assert_eq!(
            format!("{write:?}"),
            r#"WriteFile { path: "/x", bytes: 6, .. }"#
        );
    }
}
