//! The open files of one connection.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::failed;
use crate::server::envelope::RpcError;

const MAX_HANDLES: usize = 128;
const MAX_ID: usize = 32;
const MAX_BLOCK: usize = 1 << 20;

/// The open files of one connection, by the ids that the client chose. They close when the last clone is dropped.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct Handles {
    files: Arc<Mutex<HashMap<String, Arc<File>>>>,
}

impl Handles {
    /// Checks that a file may be opened under this id.
    pub(super) fn check_free(&self, id: &str) -> Result<(), RpcError> {
        check_id(id)?;
        check_free(&self.lock(), id)
    }

    pub(super) fn insert(&self, id: &str, file: File) -> Result<(), RpcError> {
        let mut files = self.lock();
        // Another request may have been quicker.
        check_free(&files, id)?;
        files.insert(id.to_owned(), Arc::new(file));
        Ok(())
    }

    /// Reads up to `length` bytes; fewer only at the end of the file. An error closes the file.
    pub(super) fn read(&self, id: &str, offset: u64, length: usize) -> Result<Vec<u8>, RpcError> {
        check_id(id)?;
        check_block(length, "read")?;
        let file = self.get(id)?;
        read_block(&file, offset, length).map_err(|error| {
            self.lock().remove(id);
            failed(error)
        })
    }

    pub(super) fn write(&self, id: &str, offset: u64, block: &[u8]) -> Result<(), RpcError> {
        check_id(id)?;
        check_block(block.len(), "write")?;
        let end = offset.checked_add(block.len() as u64);
        if end.is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(RpcError::invalid_request(
                "file write range exceeds the signed 64-bit file offset limit",
            ));
        }
        self.get(id)?.write_all_at(block, offset).map_err(failed)
    }

    pub(super) fn close(&self, id: &str) -> Result<(), RpcError> {
        check_id(id)?;
        let file = self.lock().remove(id);
        // Outside the lock: closing may take long.
        drop(file);
        Ok(())
    }

    fn get(&self, id: &str) -> Result<Arc<File>, RpcError> {
        let file = self.lock().get(id).cloned();
        file.ok_or_else(|| RpcError::not_found(format!("unknown file handle `{id}`")))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<File>>> {
        // The map is whole whatever happened to another request.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_id(id: &str) -> Result<(), RpcError> {
    if id.len() <= MAX_ID {
        return Ok(());
    }
    Err(RpcError::invalid_request(format!(
        "file handle ID must not exceed {MAX_ID} bytes"
    )))
}

fn check_free(files: &HashMap<String, Arc<File>>, id: &str) -> Result<(), RpcError> {
    if files.contains_key(id) {
        return Err(RpcError::invalid_request(format!(
            "file handle `{id}` already exists"
        )));
    }
    if files.len() >= MAX_HANDLES {
        return Err(RpcError::invalid_request(format!(
            "at most {MAX_HANDLES} file handles may be open per connection"
        )));
    }
    Ok(())
}

fn check_block(length: usize, what: &str) -> Result<(), RpcError> {
    if (1..=MAX_BLOCK).contains(&length) {
        return Ok(());
    }
    Err(RpcError::invalid_request(format!(
        "file {what} block length must be between 1 and {MAX_BLOCK}"
    )))
}

fn read_block(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut block = vec![0; length];
    let mut read = 0;
    while read < length {
        match file.read_at(&mut block[read..], offset.saturating_add(read as u64)) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    block.truncate(read);
    Ok(block)
}
