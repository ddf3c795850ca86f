//! Paths in which no link is followed: each directory is opened in the one above it.

use std::{
    ffi::OsStr,
    fs::File,
    os::fd::OwnedFd,
    path::{Component, Path},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, mkdirat, open, openat, statat, unlinkat},
    io::Errno,
};

use super::failed;
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

fn top() -> Result<OwnedFd, RpcError> {
    open("/", PASS | DIRECTORY, Mode::empty()).map_err(error)
}

fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

/// Opens the directory that holds the last name of the path. `None` if there is no name in it.
fn parent(path: &Path) -> Result<Option<(OwnedFd, &OsStr)>, RpcError> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    let mut directory = top()?;
    for name in names(above) {
        directory = openat(&directory, name, PASS | DIRECTORY, Mode::empty()).map_err(error)?;
    }
    Ok(Some((directory, name)))
}

fn entry(path: &Path) -> Result<(OwnedFd, &OsStr), RpcError> {
    parent(path)?.ok_or_else(|| RpcError::invalid_request("path must name an entry"))
}

/// Opens a file with these flags beside those that keep from following and from waiting.
pub(super) fn open_file(path: &Path, flags: OFlags) -> Result<File, RpcError> {
    let (directory, name) = entry(path)?;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(&directory, name, flags, Mode::from_raw_mode(0o666)).map_err(error)?;
    Ok(file.into())
}

/// Refuses the path if what it names is a link, or is behind one.
pub(super) fn check(path: &Path) -> Result<(), RpcError> {
    let Some((directory, name)) = parent(path)? else {
        return Ok(());
    };
    let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(error)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Err(link_error()),
        _ => Ok(()),
    }
}

pub(super) fn create_directory(path: &Path, recursive: bool) -> Result<(), RpcError> {
    let mode = Mode::from_raw_mode(0o777);
    if !recursive {
        let Some((directory, name)) = parent(path)? else {
            return Err(RpcError::internal("directory already exists"));
        };
        return mkdirat(&directory, name, mode).map_err(error);
    }
    let mut directory = top()?;
    for name in names(path) {
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

pub(super) fn remove(path: &Path, recursive: bool, force: bool) -> Result<(), RpcError> {
    if recursive {
        return Err(RpcError::internal(
            "recursive no-follow removal is unsupported",
        ));
    }
    match remove_one(path) {
        Err(error) if force && error.code == RpcError::not_found("").code => Ok(()),
        result => result,
    }
}

fn remove_one(path: &Path) -> Result<(), RpcError> {
    let (directory, name) = entry(path)?;
    let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(error)?;
    let flags = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => return Err(link_error()),
        FileType::Directory => AtFlags::REMOVEDIR,
        _ => AtFlags::empty(),
    };
    unlinkat(&directory, name, flags).map_err(error)
}
