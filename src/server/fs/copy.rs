//! `fs/copy`: files, links, and directories with all that is in them.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use cap_std::fs::{FileTypeExt as _, OpenOptions, OpenOptionsExt as _};

use super::{NONBLOCK, failed, files::Files};
use crate::server::envelope::RpcError;

pub(super) fn copy(
    files: &Files,
    source: &Path,
    destination: &Path,
    recursive: bool,
) -> Result<(), RpcError> {
    let file_type = files.symlink_metadata(source).map_err(failed)?.file_type();
    if file_type.is_dir() {
        if !recursive {
            return Err(RpcError::invalid_request(
                "fs/copy requires recursive: true when sourcePath is a directory",
            ));
        }
        check_apart(files, source, destination)?;
        return copy_directory(files, source, destination).map_err(failed);
    }
    if file_type.is_symlink() {
        return copy_link(files, source, destination).map_err(failed);
    }
    if !file_type.is_file() {
        return Err(RpcError::invalid_request(
            "fs/copy only supports regular files, directories, and symlinks",
        ));
    }
    copy_file(files, source, destination).map_err(failed)
}

/// A copy of a directory in itself would never end.
fn check_apart(files: &Files, source: &Path, destination: &Path) -> Result<(), RpcError> {
    let source = files.canonicalize(source).map_err(failed)?;
    let Some(above) = destination
        .ancestors()
        .find_map(|above| files.canonicalize(above).ok())
    else {
        return Ok(());
    };
    if above.starts_with(source) {
        return Err(RpcError::invalid_request(
            "fs/copy cannot copy a directory to itself or one of its descendants",
        ));
    }
    Ok(())
}

/// Copies a directory and all below it, one directory after the other.
fn copy_directory(files: &Files, source: &Path, destination: &Path) -> io::Result<()> {
    let mut left: Vec<(PathBuf, PathBuf)> = vec![(source.to_owned(), destination.to_owned())];
    create_directory(files, destination)?;
    while let Some((source, destination)) = left.pop() {
        for name in files.names(&source)? {
            let name = name?;
            let (from, to) = (source.join(&name), destination.join(&name));
            let file_type = files.symlink_metadata(&from)?.file_type();
            if file_type.is_dir() {
                create_directory(files, &to)?;
                left.push((from, to));
            } else if file_type.is_symlink() {
                copy_link(files, &from, &to)?;
            } else if file_type.is_file() {
                copy_file(files, &from, &to)?;
            }
            // Devices, sockets and fifos are left out.
        }
    }
    Ok(())
}

/// Creates a directory with those above it, unless the path leads to one already.
fn create_directory(files: &Files, path: &Path) -> io::Result<()> {
    match files.metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Ok(_) | Err(_) => files.create_dir_all(path),
    }
}

fn copy_link(files: &Files, source: &Path, destination: &Path) -> io::Result<()> {
    files.symlink(&files.read_link(source)?, destination)
}

fn copy_file(files: &Files, source: &Path, destination: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut from = files.open(source, options.read(true).custom_flags(NONBLOCK))?;
    let here = from.metadata()?;
    if !here.is_file() {
        return Err(io::Error::other(
            "the source is not a regular file any more",
        ));
    }
    let mut to = open_copy(files, destination)?;
    let there = to.metadata()?;
    // To copy a file onto itself would empty it.
    if (here.dev(), here.ino()) == (there.dev(), there.ino()) {
        return Ok(());
    }
    if there.is_file() {
        to.set_len(0)?;
        to.set_permissions(here.permissions())?;
    }
    io::copy(&mut from, &mut to)?;
    Ok(())
}

/// Opens the file to copy to, as it is. A fifo is refused: the copy would wait for who reads it.
fn open_copy(files: &Files, path: &Path) -> io::Result<File> {
    if files
        .metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_fifo())
    {
        return Err(rustix::io::Errno::NXIO.into());
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).custom_flags(NONBLOCK);
    files.open(path, &options)
}
