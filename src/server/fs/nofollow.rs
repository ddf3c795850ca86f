//! Paths in which no link is followed: each directory is opened in the one above it.

use std::{
    ffi::OsString,
    fs::{File, Metadata},
    io,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, mkdirat, open, openat, statat, unlinkat},
    io::Errno,
};

use super::{
    failed,
    files::{Files, names},
};
use crate::server::envelope::RpcError;

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What a directory is opened for when all that is wanted are things in it. Then it need not be readable.
#[cfg(any(target_os = "linux", target_os = "android"))]
const PASS: OFlags = OFlags::PATH;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const PASS: OFlags = OFlags::RDONLY;

fn error(errno: Errno) -> RpcError {
    failed(errno.into())
}

fn link_error() -> RpcError {
    RpcError::invalid_request("path contains a symbolic link")
}

/// Opens the directory at the top of this machine.
pub(super) fn top() -> io::Result<OwnedFd> {
    Ok(open("/", PASS | DIRECTORY, Mode::empty())?)
}

/// Opens the directory that holds the last name of the path. `None` if there is no name in it.
fn parent(files: &Files, path: &Path) -> Result<Option<(OwnedFd, OsString)>, RpcError> {
    let (mut directory, path) = files.anchor(path).map_err(failed)?;
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    for name in names(above) {
        directory = openat(&directory, name, PASS | DIRECTORY, Mode::empty()).map_err(error)?;
    }
    Ok(Some((directory, name.to_owned())))
}

fn entry(files: &Files, path: &Path) -> Result<(OwnedFd, OsString), RpcError> {
    parent(files, path)?.ok_or_else(|| RpcError::invalid_request("path must name an entry"))
}

/// Opens a file with these flags beside those that keep from following and from waiting.
pub(super) fn open_file(files: &Files, path: &Path, flags: OFlags) -> Result<File, RpcError> {
    let (directory, name) = entry(files, path)?;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(&directory, name, flags, Mode::from_raw_mode(0o666)).map_err(error)?;
    Ok(file.into())
}

/// Describes what is at the path. A link is refused, and so is a path that leads through one.
pub(super) fn metadata(files: &Files, path: &Path) -> Result<Metadata, RpcError> {
    let (directory, name) = match parent(files, path)? {
        Some(entry) => entry,
        None => (files.anchor(path).map_err(failed)?.0, ".".into()),
    };
    let stat = statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(error)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(link_error());
    }
    let flags = PASS | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = openat(&directory, &name, flags, Mode::empty())
        .map_err(error)?
        .into();
    let metadata = file.metadata().map_err(failed)?;
    match metadata.is_symlink() {
        true => Err(link_error()),
        false => Ok(metadata),
    }
}

pub(super) fn create_directory(
    files: &Files,
    path: &Path,
    recursive: bool,
) -> Result<(), RpcError> {
    let mode = Mode::from_raw_mode(0o777);
    if !recursive {
        let Some((directory, name)) = parent(files, path)? else {
            return Err(RpcError::internal("directory already exists"));
        };
        return mkdirat(&directory, &name, mode).map_err(error);
    }
    let (mut directory, path) = files.anchor(path).map_err(failed)?;
    for name in names(&path) {
        match mkdirat(&directory, name, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            // Where one may not create, there may still be one.
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {}
            Err(errno) => return Err(error(errno)),
        }
        directory = openat(&directory, name, PASS | DIRECTORY, Mode::empty()).map_err(error)?;
    }
    Ok(())
}

pub(super) fn remove(
    files: &Files,
    path: &Path,
    recursive: bool,
    force: bool,
) -> Result<(), RpcError> {
    if recursive {
        return Err(RpcError::internal(
            "recursive no-follow removal is unsupported",
        ));
    }
    match remove_one(files, path) {
        Err(error) if force && error.code == RpcError::not_found("").code => Ok(()),
        result => result,
    }
}

fn remove_one(files: &Files, path: &Path) -> Result<(), RpcError> {
    let (directory, name) = entry(files, path)?;
    let stat = statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(error)?;
    let flags = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => return Err(link_error()),
        FileType::Directory => AtFlags::REMOVEDIR,
        _ => AtFlags::empty(),
    };
    unlinkat(&directory, name, flags).map_err(error)
}
