//! The file methods, as release 0.171.0 answers them. They block: the caller runs them where that is allowed.

mod content;
mod copy;
mod files;
mod handles;
mod nofollow;
mod root;
#[cfg(test)]
mod tests;
mod uri;
mod walk;

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use cap_std::fs::{OpenOptions, OpenOptionsExt as _};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

use self::uri::FileUri;
pub(super) use self::{
    files::{Directory, Files},
    handles::Handles,
};
use super::{
    envelope::{RpcError, decode_params as decode},
    limits::Memory,
};
use crate::protocol::base64;

/// More entries than this are not listed.
const MAX_ENTRIES: usize = 50_000;

/// Carries out a request and returns its result as JSON, or `None` if the method is not one of these.
pub(super) fn handle(
    files: &Files,
    handles: &Handles,
    memory: &Memory,
    method: &str,
    params: &RawValue,
) -> Option<Result<String, RpcError>> {
    Some(match method {
        "fs/readFile" => decode(params).and_then(|params| read_file(files, memory, params)),
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

fn read_file(files: &Files, memory: &Memory, params: PathParams) -> Result<String, RpcError> {
    no_sandbox(params.sandbox)?;
    let path = params.path.path()?;
    let file = if params.follow_symlinks == Some(false) {
        let file = nofollow::open_file(files, &path, OFlags::RDONLY)?;
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
    // Before the answer is made: its own room is counted when it is.
    let _held = memory.hold(content::encoded_size(size))?;
    let mut json = br#"{"dataBase64":"#.to_vec();
    if !content::append_file(file, size, &mut json).map_err(failed)? {
        return Err(content::too_large());
    }
    json.push(b'}');
    String::from_utf8(json).map_err(|error| RpcError::internal(error.to_string()))
}

/// Opens a regular file. Others are not even opened: a fifo would wait, a device may do anything.
fn open_to_read(files: &Files, path: &Path) -> Result<File, RpcError> {
    if !files.metadata(path).map_err(failed)?.is_file() {
        return Err(is_no_file(path));
    }
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(NONBLOCK);
    let file = files.open(path, &options).map_err(failed)?;
    // Something else may have been put in its place.
    match file.metadata().map_err(failed)?.is_file() {
        true => Ok(file),
        false => Err(is_no_file(path)),
    }
}

/// A fifo that nobody has at its other end is refused instead of waited for.
const NONBLOCK: i32 = OFlags::NONBLOCK.bits() as i32;

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
        nofollow::open_file(files, &path, flags)?
    } else {
        open_to_write(files, &path)?
    };
    file.write_all(&content).map_err(failed)?;
    done()
}

fn open_to_write(files: &Files, path: &Path) -> Result<File, RpcError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    options.custom_flags(NONBLOCK);
    files.open(path, &options).map_err(failed)
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
        nofollow::create_directory(files, &path, recursive)?;
        return done();
    }
    // A directory is never created behind a link, but a link that leads out is refused as such.
    if let Err(error) = files.metadata(&path)
        && error.kind() == io::ErrorKind::PermissionDenied
    {
        return Err(failed(error));
    }
    let created = match recursive {
        true => files.create_dir_all(&path),
        false => files.create_dir(&path),
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
    if params.follow_symlinks == Some(false) {
        let metadata = nofollow::metadata(files, &path)?;
        return to_json(&MetadataResult {
            is_directory: metadata.is_dir(),
            is_file: metadata.is_file(),
            is_symlink: false,
            size: metadata.len(),
            created_at_ms: metadata.created().map_or(0, since_1970),
            modified_at_ms: metadata.modified().map_or(0, since_1970),
        });
    }
    let metadata = files.metadata(&path).map_err(failed)?;
    let modified = metadata.modified().map(|time| since_1970(time.into_std()));
    to_json(&MetadataResult {
        is_directory: metadata.is_dir(),
        is_file: metadata.is_file(),
        is_symlink: files
            .symlink_metadata(&path)
            .is_ok_and(|metadata| metadata.is_symlink()),
        size: metadata.len(),
        // The release says so where links are followed.
        created_at_ms: 0,
        modified_at_ms: modified.unwrap_or(0),
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
    let path = params.path.path()?;
    let mut entries = Vec::new();
    for name in files.names(&path).map_err(failed)? {
        let name = name.map_err(failed)?;
        // What leads nowhere is left out, and what leads out of the root.
        let Ok(metadata) = files.metadata(&path.join(&name)) else {
            continue;
        };
        if entries.len() == MAX_ENTRIES {
            return Err(RpcError::internal(format!(
                "directory has more than {MAX_ENTRIES} entries"
            )));
        }
        entries.push(ListingEntry {
            file_name: name.to_string_lossy().into_owned(),
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
    if files.is_root(&path) {
        return Err(RpcError::invalid_request(
            "the root of this server cannot be removed",
        ));
    }
    if params.follow_symlinks == Some(false) {
        nofollow::remove(files, &path, recursive, force)?;
        return done();
    }
    match remove_path(files, &path, recursive) {
        Err(error) if force && error.kind() == io::ErrorKind::NotFound => done(),
        Err(error) => Err(failed(error)),
        Ok(()) => done(),
    }
}

fn remove_path(files: &Files, path: &Path, recursive: bool) -> io::Result<()> {
    if !files.symlink_metadata(path)?.is_dir() {
        return files.remove_file(path);
    }
    match recursive {
        true => files.remove_dir_all(path),
        false => files.remove_dir(path),
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
    let path = files.canonicalize(&params.path.path()?).map_err(failed)?;
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
            let file = open_to_write(files, &path)?;
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
