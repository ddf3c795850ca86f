//! The file methods, as release 0.169.0 answers them. They block: the caller runs them where that is allowed.

mod confine;
mod content;
mod copy;
mod handles;
mod nofollow;
#[cfg(test)]
mod tests;
mod uri;
mod walk;

use std::{
    borrow::Cow,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

pub(super) use self::handles::Handles;
use self::{
    confine::{Last, Root},
    uri::FileUri,
};
use super::envelope::{RpcError, decode_params as decode};
use crate::protocol::base64;

/// More entries than this are not listed.
const MAX_ENTRIES: usize = 50_000;

/// Where files may be.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    root: Option<Arc<Root>>,
}

impl Files {
    /// Allows all paths, or those below a root, which must exist.
    pub(super) fn new(root: Option<PathBuf>) -> io::Result<Self> {
        let root = root.map(Root::new).transpose()?.map(Arc::new);
        Ok(Files { root })
    }

    fn resolve(&self, path: &Path, last: Last) -> Result<PathBuf, RpcError> {
        match &self.root {
            Some(root) => root.resolve(path, last),
            None => Ok(path.to_owned()),
        }
    }

    /// Returns the directory that a URI names, in which a process may run.
    pub(super) fn directory(&self, uri: &str) -> Result<PathBuf, RpcError> {
        let path = FileUri::parse(uri)
            .map_err(RpcError::invalid_params)?
            .path()
            .map_err(|error| {
                RpcError::invalid_params(format!(
                    "cwd URI `{uri}` is not valid on this exec-server host: {}",
                    error.message
                ))
            })?;
        self.resolve(&path, Last::Follow)
    }

    /// For paths in which no link is followed.
    fn check_names(&self, path: &Path) -> Result<PathBuf, RpcError> {
        match &self.root {
            Some(root) => root.check_names(path),
            None => Ok(path.to_owned()),
        }
    }

    /// Returns what a path leads to, if it leads to anything that may be seen.
    fn behind(&self, path: &Path) -> Option<Metadata> {
        self.resolve(path, Last::Follow).ok()?.metadata().ok()
    }
}

/// Carries out a request and returns its result as JSON, or `None` if the method is not one of these.
pub(super) fn handle(
    files: &Files,
    handles: &Handles,
    method: &str,
    params: &RawValue,
) -> Option<Result<String, RpcError>> {
    Some(match method {
        "fs/readFile" => decode(params).and_then(|params| read_file(files, params)),
        "fs/writeFile" => decode(params).and_then(|params| write_file(files, params)),
        "fs/createDirectory" => decode(params).and_then(|params| create_directory(files, params)),
        "fs/getMetadata" => decode(params).and_then(|params| metadata(files, params)),
        "fs/readDirectory" => decode(params).and_then(|params| read_directory(files, params)),
        "fs/remove" => decode(params).and_then(|params| remove(files, params)),
        "fs/copy" => decode(params).and_then(|params| copy(files, params)),
        "fs/canonicalize" => decode(params).and_then(|params| canonicalize(files, params)),
        "fs/walk" => decode(params).and_then(|params| walk_tree(files, params)),
        "fs/open" => decode(params).and_then(|params| open(files, handles, params)),
        "fs/readBlock" => decode(params).and_then(|params| read_block(handles, params)),
        "fs/writeBlock" => decode(params).and_then(|params| write_block(handles, params)),
        "fs/close" => decode(params).and_then(|params| close(handles, params)),
        _ => return None,
    })
}

/// Answers an error of the system as the service does.
fn failed(error: io::Error) -> RpcError {
    let message = error.to_string();
    match error.kind() {
        io::ErrorKind::NotFound => RpcError::not_found(message),
        io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied => {
            RpcError::invalid_request(message)
        }
        _ => RpcError::internal(message),
    }
}

fn to_json(result: &impl Serialize) -> Result<String, RpcError> {
    serde_json::to_string(result).map_err(|error| RpcError::internal(error.to_string()))
}

fn done() -> Result<String, RpcError> {
    Ok("{}".to_owned())
}

fn no_sandbox(sandbox: Option<IgnoredAny>) -> Result<(), RpcError> {
    match sandbox {
        None => Ok(()),
        Some(IgnoredAny) => Err(RpcError::invalid_request("sandbox is not supported")),
    }
}

fn is_no_file(path: &Path) -> RpcError {
    RpcError::invalid_request(format!("path `{}` is not a file", path.display()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PathParams {
    path: FileUri,
    follow_symlinks: Option<bool>,
    sandbox: Option<IgnoredAny>,
}

fn read_file(files: &Files, params: PathParams) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    let path = params.path.path()?;
    let file = if params.follow_symlinks == Some(false) {
        let file = nofollow::open_file(&files.check_names(&path)?, OFlags::RDONLY)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(RpcError::invalid_request("path is not a regular file"));
        }
        file
    } else {
        open_to_read(files, &path)?
    };
    let size = file.metadata().map_err(failed)?.len();
    if content::is_too_large(size) {
        return Err(content::too_large());
    }
    let mut json = br#"{"dataBase64":"#.to_vec();
    if !content::append_file(file, size, &mut json).map_err(failed)? {
        return Err(content::too_large());
    }
    json.push(b'}');
    String::from_utf8(json).map_err(|error| RpcError::internal(error.to_string()))
}

/// Opens a regular file. Others are not even opened: a fifo would wait, a device may do anything.
fn open_to_read(files: &Files, path: &Path) -> Result<File, RpcError> {
    let target = files.resolve(path, Last::Follow)?;
    if !target.metadata().map_err(failed)?.is_file() {
        return Err(is_no_file(path));
    }
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(target)
        .map_err(failed)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WriteFileParams<'a> {
    path: FileUri,
    #[serde(borrow)]
    data_base64: Cow<'a, str>,
    follow_symlinks: Option<bool>,
    sandbox: Option<IgnoredAny>,
}

fn write_file(files: &Files, params: WriteFileParams<'_>) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    let content = decode_base64(&params.data_base64).map_err(|defect| {
        RpcError::invalid_request(format!(
            "fs/writeFile requires valid base64 dataBase64: {defect}"
        ))
    })?;
    let path = params.path.path()?;
    let mut file = if params.follow_symlinks == Some(false) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        nofollow::open_file(&files.check_names(&path)?, flags)?
    } else {
        open_to_write(&files.resolve(&path, Last::Follow)?)?
    };
    file.write_all(&content).map_err(failed)?;
    done()
}

fn open_to_write(path: &Path) -> Result<File, RpcError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        // A fifo that nobody reads is refused instead of waited for.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(failed)
}

fn decode_base64(text: &str) -> Result<Bytes, String> {
    base64::decode(text.as_bytes()).ok_or_else(|| content::defect(text.as_bytes()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateDirectoryParams {
    path: FileUri,
    recursive: Option<bool>,
    follow_symlinks: Option<bool>,
    sandbox: Option<IgnoredAny>,
}

fn create_directory(files: &Files, params: CreateDirectoryParams) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    let path = params.path.path()?;
    let recursive = params.recursive.unwrap_or(true);
    if params.follow_symlinks == Some(false) {
        nofollow::create_directory(&files.check_names(&path)?, recursive)?;
        return done();
    }
    // Where the last link leads is looked at, too, but a directory is never created behind one.
    files.resolve(&path, Last::Follow)?;
    let path = files.resolve(&path, Last::Keep)?;
    let created = match recursive {
        true => fs::create_dir_all(path),
        false => fs::create_dir(path),
    };
    created.map_err(failed)?;
    done()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MetadataResult {
    is_directory: bool,
    is_file: bool,
    is_symlink: bool,
    size: u64,
    created_at_ms: i64,
    modified_at_ms: i64,
}

fn metadata(files: &Files, params: PathParams) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    let path = params.path.path()?;
    let (metadata, is_symlink, created) = if params.follow_symlinks == Some(false) {
        let path = files.check_names(&path)?;
        nofollow::check(&path)?;
        let metadata = path.symlink_metadata().map_err(failed)?;
        let created = metadata.created().map_or(0, since_1970);
        (metadata, false, created)
    } else {
        let target = files.resolve(&path, Last::Follow)?;
        let metadata = target.metadata().map_err(failed)?;
        // Links are followed, and 0 is what 0.169.0 says then.
        let is_symlink = files.resolve(&path, Last::Keep)?.is_symlink();
        (metadata, is_symlink, 0)
    };
    to_json(&MetadataResult {
        is_directory: metadata.is_dir(),
        is_file: metadata.is_file(),
        is_symlink,
        size: metadata.len(),
        created_at_ms: created,
        modified_at_ms: metadata.modified().map_or(0, since_1970),
    })
}

fn since_1970(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[derive(Serialize)]
struct ListingResult {
    entries: Vec<ListingEntry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListingEntry {
    file_name: String,
    is_directory: bool,
    is_file: bool,
}

fn read_directory(files: &Files, params: PathParams) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    let path = files.resolve(&params.path.path()?, Last::Follow)?;
    let mut entries = Vec::new();
    for entry in path.read_dir().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // What leads nowhere is left out, and what leads out of the root.
        let Some(metadata) = files.behind(&entry.path()) else {
            continue;
        };
        if entries.len() == MAX_ENTRIES {
            return Err(RpcError::internal(format!(
                "directory has more than {MAX_ENTRIES} entries"
            )));
        }
        entries.push(ListingEntry {
            file_name: entry.file_name().to_string_lossy().into_owned(),
            is_directory: metadata.is_dir(),
            is_file: metadata.is_file(),
        });
    }
    to_json(&ListingResult { entries })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RemoveParams {
    path: FileUri,
    recursive: Option<bool>,
    force: Option<bool>,
    follow_symlinks: Option<bool>,
    sandbox: Option<IgnoredAny>,
}

fn remove(files: &Files, params: RemoveParams) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    let path = params.path.path()?;
    let recursive = params.recursive.unwrap_or(true);
    let force = params.force.unwrap_or(true);
    let follows = params.follow_symlinks != Some(false);
    let path = match follows {
        true => files.resolve(&path, Last::Keep)?,
        false => files.check_names(&path)?,
    };
    if files.root.as_ref().is_some_and(|root| root.is(&path)) {
        return Err(RpcError::invalid_request(
            "the root of this server cannot be removed",
        ));
    }
    if !follows {
        nofollow::remove(&path, recursive, force)?;
        return done();
    }
    match remove_path(&path, recursive) {
        Err(error) if force && error.kind() == io::ErrorKind::NotFound => done(),
        Err(error) => Err(failed(error)),
        Ok(()) => done(),
    }
}

fn remove_path(path: &Path, recursive: bool) -> io::Result<()> {
    if !path.symlink_metadata()?.is_dir() {
        return fs::remove_file(path);
    }
    match recursive {
        true => fs::remove_dir_all(path),
        false => fs::remove_dir(path),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CopyParams {
    source_path: FileUri,
    destination_path: FileUri,
    recursive: bool,
    sandbox: Option<IgnoredAny>,
}

fn copy(files: &Files, params: CopyParams) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    let (source, destination) = (params.source_path.path()?, params.destination_path.path()?);
    copy::copy(files, &source, &destination, params.recursive)?;
    done()
}

#[derive(Serialize)]
struct PathResult {
    #[serde(serialize_with = "uri::serialize")]
    path: PathBuf,
}

fn canonicalize(files: &Files, params: PathParams) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    let path = files.resolve(&params.path.path()?, Last::Follow)?;
    let path = path.canonicalize().map_err(failed)?;
    to_json(&PathResult { path })
}

#[derive(Deserialize)]
struct WalkParams {
    path: FileUri,
    options: walk::Options,
    sandbox: Option<IgnoredAny>,
}

fn walk_tree(files: &Files, params: WalkParams) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    params.options.check()?;
    to_json(&walk::walk(files, params.path.path()?, &params.options)?)
}

#[derive(Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Mode {
    #[default]
    Read,
    Replace,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OpenParams<'a> {
    #[serde(borrow)]
    handle_id: Cow<'a, str>,
    path: FileUri,
    #[serde(default)]
    mode: Mode,
    sandbox: Option<IgnoredAny>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OpenResult<'a> {
    handle_id: &'a str,
}

fn open(files: &Files, handles: &Handles, params: OpenParams<'_>) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    handles.check_free(&params.handle_id)?;
    let path = params.path.path()?;
    let file = match params.mode {
        Mode::Read => open_to_read(files, &path)?,
        Mode::Replace => {
            let file = open_to_write(&files.resolve(&path, Last::Follow)?)?;
            if !file.metadata().map_err(failed)?.is_file() {
                return Err(is_no_file(&path));
            }
            file
        }
    };
    handles.insert(&params.handle_id, file)?;
    to_json(&OpenResult {
        handle_id: &params.handle_id,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadBlockParams<'a> {
    #[serde(borrow)]
    handle_id: Cow<'a, str>,
    offset: u64,
    len: usize,
}

fn read_block(handles: &Handles, params: ReadBlockParams<'_>) -> Result<String, RpcError> {
    let block = handles.read(&params.handle_id, params.offset, params.len)?;
    let mut json = br#"{"chunk":"#.to_vec();
    base64::append_json(&block, &mut json);
    let is_end = block.len() < params.len;
    json.extend_from_slice(match is_end {
        true => br#","eof":true}"#,
        false => br#","eof":false}"#,
    });
    String::from_utf8(json).map_err(|error| RpcError::internal(error.to_string()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WriteBlockParams<'a> {
    #[serde(borrow)]
    handle_id: Cow<'a, str>,
    offset: u64,
    #[serde(borrow)]
    chunk: Cow<'a, str>,
}

fn write_block(handles: &Handles, params: WriteBlockParams<'_>) -> Result<String, RpcError> {
    let block = decode_base64(&params.chunk).map_err(RpcError::invalid_params)?;
    handles.write(&params.handle_id, params.offset, &block)?;
    done()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CloseParams<'a> {
    #[serde(borrow)]
    handle_id: Cow<'a, str>,
}

fn close(handles: &Handles, params: CloseParams<'_>) -> Result<String, RpcError> {
    handles.close(&params.handle_id)?;
    done()
}
