//! `fs/copy`: files, links, and directories with all that is in them.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink},
    path::Path,
};

use super::{Files, confine::Last, failed};
use crate::server::envelope::RpcError;

pub(super) fn copy(
    files: &Files,
    source: &Path,
    destination: &Path,
    recursive: bool,
) -> Result<(), RpcError> {
    let source = files.resolve(source, Last::Keep)?;
    let file_type = source.symlink_metadata().map_err(failed)?.file_type();
    if file_type.is_dir() {
        if !recursive {
            return Err(RpcError::invalid_request(
                "fs/copy requires recursive: true when sourcePath is a directory",
            ));
        }
        let destination = files.resolve(destination, Last::Follow)?;
        check_apart(&source, &destination)?;
        return copy_directory(&source, &destination).map_err(failed);
    }
    if file_type.is_symlink() {
        let destination = files.resolve(destination, Last::Keep)?;
        return copy_link(&source, &destination).map_err(failed);
    }
    if !file_type.is_file() {
        return Err(RpcError::invalid_request(
            "fs/copy only supports regular files, directories, and symlinks",
        ));
    }
    let destination = files.resolve(destination, Last::Follow)?;
    copy_file(&source, &destination).map_err(failed)
}

/// A copy of a directory in itself would never end.
fn check_apart(source: &Path, destination: &Path) -> Result<(), RpcError> {
    let source = source.canonicalize().map_err(failed)?;
    let Some(above) = destination
        .ancestors()
        .find_map(|above| above.canonicalize().ok())
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

fn copy_directory(source: &Path, destination: &Path) -> io::Result<()> {
    fs::create_dir_all(destination)?;
    for entry in source.read_dir()? {
        let entry = entry?;
        let (from, to) = (entry.path(), destination.join(entry.file_name()));
        let file_type = entry.file_type()?;
        if file_type.is_dir() {
            copy_directory(&from, &to)?;
        } else if file_type.is_symlink() {
            copy_link(&from, &to)?;
        } else if file_type.is_file() {
            copy_file(&from, &to)?;
        }
        // Devices, sockets and fifos are left out.
    }
    Ok(())
}

fn copy_link(source: &Path, destination: &Path) -> io::Result<()> {
    symlink(source.read_link()?, destination)
}

fn copy_file(source: &Path, destination: &Path) -> io::Result<()> {
    if let Ok(there) = destination.metadata() {
        let here = source.metadata()?;
        // To copy a file onto itself would empty it.
        if (here.dev(), here.ino()) == (there.dev(), there.ino()) {
            return Ok(());
        }
        // To open one that nobody reads would wait.
        if there.file_type().is_fifo() {
            return Err(rustix::io::Errno::NXIO.into());
        }
    }
    fs::copy(source, destination)?;
    Ok(())
}
