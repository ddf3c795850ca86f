//! Files on this side, on threads that may block: the program's own has the signals and the progress.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tempfile::NamedTempFile;

/// Works where that may block.
///
/// # Cancel safety
///
/// What has begun is done.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// Opens a file to read it.
pub(super) async fn open(path: PathBuf) -> io::Result<Arc<File>> {
    blocking(move || File::open(path).map(Arc::new)).await
}

/// Reads up to `length` bytes; fewer only at the end of the file.
pub(super) async fn read_at(file: &Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
    let file = file.clone();
    blocking(move || {
        let mut block = vec![0; length];
        let mut filled = 0;
        while filled < block.len() {
            match file.read_at(&mut block[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        block.truncate(filled);
        Ok(block.into())
    })
    .await
}

/// Writes all of `content`.
pub(super) async fn write_at(file: Arc<File>, offset: u64, content: Bytes) -> io::Result<()> {
    blocking(move || file.write_all_at(&content, offset)).await
}

/// A file beside the place where it is to be. Removed when it is dropped.
pub(super) struct Temporary {
    named: NamedTempFile,
    /// For those who write: it may be gone before they notice.
    file: Arc<File>,
}

impl Temporary {
    /// With the permissions of what it replaces, or those of a new file, and executable or not, if that is known.
    pub(super) async fn beside(
        destination: PathBuf,
        is_executable: Option<bool>,
    ) -> io::Result<Self> {
        blocking(move || {
            let before = fs::metadata(&destination).ok();
            if before.as_ref().is_some_and(|it| !it.is_file()) {
                let problem = format!("{} is no file", destination.display());
                return Err(io::Error::other(problem));
            }
            let before = before.map(|it| it.permissions().mode() & 0o777);
            let mode = with_executable(before.unwrap_or(0o666), is_executable);
            let named = tempfile::Builder::new()
                .prefix(".execmux-")
                .suffix(".part")
                // Of these, a new file has what the umask leaves.
                .permissions(Permissions::from_mode(mode))
                .tempfile_in(folder_of(&destination))?;
            if before.is_some() {
                named
                    .as_file()
                    .set_permissions(Permissions::from_mode(mode))?;
            }
            let file = Arc::new(named.as_file().try_clone()?);
            Ok(Temporary { named, file })
        })
        .await
    }

    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Puts it in its place.
    pub(super) async fn persist(self, destination: PathBuf) -> io::Result<()> {
        blocking(move || {
            let persisted = self.named.persist(destination);
            persisted.map(drop).map_err(|error| error.error)
        })
        .await
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Who may read it may execute it, or nobody may.
fn with_executable(mode: u32, is_executable: Option<bool>) -> u32 {
    match is_executable {
        None => mode,
        Some(false) => mode & !0o111,
        Some(true) => mode | (mode & 0o444) >> 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_read_may_execute() {
        assert_eq!(with_executable(0o666, Some(true)), 0o777);
        assert_eq!(with_executable(0o640, Some(true)), 0o750);
        assert_eq!(with_executable(0o755, Some(false)), 0o644);
        assert_eq!(with_executable(0o711, None), 0o711);
    }
}
