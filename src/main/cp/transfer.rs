//! One file after the other, in blocks where the server can.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use execmux::{
    Call, CallError, Method, ProcessId,
    protocol::{
        CloseFile, CreateDirectory, ErrorCode, HandleId, OpenFile, OpenMode, ReadBlock, ReadFile,
        RemovePath, WriteBlock, WriteFile,
    },
};
use indicatif::ProgressBar;
use log::{debug, warn};
use tokio::task::JoinSet;

use super::{
    local::{self, Temporary},
    place::{self, Placed},
    tree::File,
};
use crate::{connect::Remote, problem::told};

/// The most that servers take or give at once.
const BLOCK: usize = 1 << 20;
/// How many blocks of a file are under way.
const BLOCKS_AT_ONCE: usize = 4;
/// How often a file is begun, if the connection is lost meanwhile: its handles go with it.
const ATTEMPTS: u32 = 3;
/// How long a block, a whole file where there are no blocks, or a script may take.
pub(super) const SLOW: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

pub(super) struct Transfer {
    pub(super) remote: Rc<Remote>,
    pub(super) way: Way,
    pub(super) bar: ProgressBar,
    /// What is half-written on the server.
    temporaries: RefCell<BTreeSet<PathBuf>>,
}

/// Why a file is not copied.
pub(super) enum Problem {
    /// The connection was lost; it may go better when it is there again.
    Interrupted(String),
    Other(String),
}

impl Problem {
    /// Says what was being done.
    pub(super) fn within(self, what: &str) -> Self {
        match self {
            Problem::Interrupted(problem) => Problem::Interrupted(format!("{what}: {problem}")),
            Problem::Other(problem) => Problem::Other(format!("{what}: {problem}")),
        }
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        match &error {
            CallError::OutcomeUnknown { .. } => Problem::Interrupted(told(&error)),
            CallError::Rejected {
                method: ReadBlock::NAME | WriteBlock::NAME,
                code: ErrorCode::NOT_FOUND,
                ..
            } => Problem::Interrupted(told(&error)),
            _ => Problem::Other(told(&error)),
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Problem::Other(told(&error))
    }
}

impl Transfer {
    pub(super) fn new(remote: Rc<Remote>, way: Way, bar: ProgressBar) -> Self {
        Transfer {
            remote,
            way,
            bar,
            temporaries: RefCell::default(),
        }
    }

    pub(super) async fn create_folder(&self, path: &Path) -> Result<(), String> {
        let created = match self.way {
            Way::Up => {
                let create = CreateDirectory::new(path).recursive(true);
                let created = self.remote.mux.call(create).await;
                created.map(|_| ()).map_err(|error| told(&error))
            }
            Way::Down => {
                let path = path.to_owned();
                let created = local::blocking(move || fs::create_dir_all(path)).await;
                created.map_err(|error| told(&error))
            }
        };
        created.map_err(|problem| format!("cannot create {}: {problem}", path.display()))
    }

    pub(super) async fn copy(&self, file: File) -> Result<(), String> {
        let mut attempt = 1;
        loop {
            let mut done = 0;
            let copied = match self.way {
                Way::Up => self.up(&file, &mut done).await,
                Way::Down => self.down(&file, &mut done).await,
            };
            let problem = match copied {
                Ok(()) => return Ok(()),
                Err(Problem::Interrupted(problem)) if attempt < ATTEMPTS => {
                    debug!("{} is begun again: {problem}", file.source.display());
                    attempt += 1;
                    self.bar.dec(done);
                    continue;
                }
                Err(Problem::Interrupted(problem) | Problem::Other(problem)) => problem,
            };
            return Err(format!("cannot copy {}: {problem}", file.source.display()));
        }
    }

    async fn call<M: Method>(&self, method: M) -> Result<M::Response, CallError> {
        self.remote.mux.call(Call::new(method).timeout(SLOW)).await
    }

    fn progress(&self, done: &mut u64, bytes: u64) {
        *done += bytes;
        self.bar.inc(bytes);
    }

    async fn up(&self, file: &File, done: &mut u64) -> Result<(), Problem> {
        let folder = file.destination.parent().unwrap_or(Path::new("/"));
        let temporary = folder.join(format!(".execmux-{}.part", ProcessId::unique()));
        self.temporaries.borrow_mut().insert(temporary.clone());
        let copied = self.up_to(file, &temporary, done).await;
        if !matches!(copied, Ok(Placed::Renamed)) {
            self.remove(&temporary).await;
        }
        self.temporaries.borrow_mut().remove(&temporary);
        copied.map(|_| ())
    }

    async fn up_to(
        &self,
        file: &File,
        temporary: &Path,
        done: &mut u64,
    ) -> Result<Placed, Problem> {
        let source = local::open(file.source.clone()).await?;
        let written = if self.remote.capabilities.file_writes {
            self.write_blocks(&source, temporary, done).await?
        } else {
            self.write_whole(source, temporary, done).await?
        };
        let size = self.remote.mux.metadata(temporary).await?.size;
        check_size(written, size, "the server has")?;
        let destination = &file.destination;
        let placed = place::put(&self.remote, temporary, destination, file.mode).await?;
        if placed == Placed::Copied {
            let size = self.remote.mux.metadata(destination).await?.size;
            check_size(written, size, "at its place are")?;
        }
        Ok(placed)
    }

    async fn write_whole(
        &self,
        source: Arc<fs::File>,
        temporary: &Path,
        done: &mut u64,
    ) -> Result<u64, Problem> {
        let content = local::blocking(move || {
            let mut content = Vec::new();
            (&*source).read_to_end(&mut content).map(|_| content)
        })
        .await?;
        let size = content.len() as u64;
        self.call(WriteFile::new(temporary, content)).await?;
        self.progress(done, size);
        Ok(size)
    }

    async fn write_blocks(
        &self,
        source: &Arc<fs::File>,
        temporary: &Path,
        done: &mut u64,
    ) -> Result<u64, Problem> {
        let handle_id = self.open(temporary, OpenMode::Replace).await?;
        let mut writing = JoinSet::new();
        let (mut offset, mut is_read) = (0, false);
        loop {
            while writing.len() < BLOCKS_AT_ONCE && !is_read {
                let chunk = local::read_at(source, offset, BLOCK).await?;
                is_read = chunk.len() < BLOCK;
                if chunk.is_empty() {
                    break;
                }
                let length = chunk.len() as u64;
                let mux = self.remote.mux.clone();
                let block = WriteBlock::new(handle_id.clone(), offset, chunk);
                offset += length;
                writing.spawn_local(async move {
                    mux.call(Call::new(block).timeout(SLOW))
                        .await
                        .map(|_| length)
                });
            }
            match writing.join_next().await {
                None => break,
                Some(written) => self.progress(done, written.map_err(failed)??),
            }
        }
        self.call(CloseFile::new(handle_id)).await?;
        Ok(offset)
    }

    async fn open(&self, path: &Path, mode: OpenMode) -> Result<HandleId, CallError> {
        let opened = self.call(OpenFile::new(path).mode(mode)).await?;
        Ok(opened.handle_id)
    }

    async fn down(&self, file: &File, done: &mut u64) -> Result<(), Problem> {
        let destination = &file.destination;
        let temporary = Temporary::beside(destination.clone(), file.is_executable).await?;
        let read = match file.size {
            Some(size) if self.remote.capabilities.file_blocks => {
                let handle_id = self.open(&file.source, OpenMode::Read).await?;
                self.read_blocks(handle_id, size, &temporary, done).await?
            }
            _ => self.read_whole(file, &temporary, done).await?,
        };
        let size = self.remote.mux.metadata(&file.source).await?.size;
        check_size(read, size, "it was changed meanwhile: the server now has")?;
        let written = temporary.file();
        let size = local::blocking(move || written.metadata().map(|it| it.len())).await?;
        check_size(read, Some(size), "here are")?;
        temporary.persist(destination.clone()).await?;
        Ok(())
    }

    async fn read_whole(
        &self,
        file: &File,
        temporary: &Temporary,
        done: &mut u64,
    ) -> Result<u64, Problem> {
        let content = self.call(ReadFile::new(&file.source)).await?.content;
        let size = content.len() as u64;
        local::write_at(temporary.file(), 0, content).await?;
        self.progress(done, size);
        Ok(size)
    }

    async fn read_blocks(
        &self,
        handle_id: HandleId,
        size: u64,
        temporary: &Temporary,
        done: &mut u64,
    ) -> Result<u64, Problem> {
        // What a block lacked is asked for again before the next one.
        let mut short = Vec::new();
        let mut next = 0;
        let mut reading = JoinSet::new();
        loop {
            while reading.len() < BLOCKS_AT_ONCE {
                let (offset, len) = if let Some(piece) = short.pop() {
                    piece
                } else if next < size {
                    let len = (BLOCK as u64).min(size - next);
                    next += len;
                    (next - len, len)
                } else {
                    break;
                };
                let mux = self.remote.mux.clone();
                // A block fits everywhere.
                let block = ReadBlock::new(handle_id.clone(), offset, len as usize);
                let file = temporary.file();
                reading.spawn_local(async move {
                    let block = mux.call(Call::new(block).timeout(SLOW)).await?;
                    let got = block.chunk.len() as u64;
                    if got > len || got == 0 || (got < len && block.eof) {
                        return Err(Problem::Other(format!(
                            "the server gave {got} bytes at {offset}, not {len}: was it changed meanwhile?"
                        )));
                    }
                    local::write_at(file, offset, block.chunk).await?;
                    Ok((offset, len, got))
                });
            }
            let Some(read) = reading.join_next().await else {
                break;
            };
            let (offset, len, got) = read.map_err(failed)??;
            self.progress(done, got);
            if got < len {
                short.push((offset + got, len - got));
            }
        }
        self.call(CloseFile::new(handle_id)).await?;
        Ok(size)
    }

    async fn remove(&self, path: &Path) {
        let remove = RemovePath::new(path).recursive(false).force(true);
        for _ in 0..ATTEMPTS {
            match self.remote.mux.call(remove.clone()).await {
                Ok(_) => return,
                // The connection was lost meanwhile. Removing it twice does no harm.
                Err(CallError::OutcomeUnknown { .. }) => {}
                Err(error) => {
                    warn!("remote:{} is left: {}", path.display(), told(&error));
                    return;
                }
            }
        }
        warn!("remote:{} may be left", path.display());
    }

    /// Removes what is half-written on the server.
    pub(super) async fn clean_up(&self) {
        let temporaries = self.temporaries.take();
        for temporary in &temporaries {
            self.remove(temporary).await;
        }
    }
}

/// A task of ours that panicked.
fn failed(error: tokio::task::JoinError) -> Problem {
    Problem::Other(told(&error))
}

/// Checks a size that is known.
fn check_size(copied: u64, size: Option<u64>, who: &str) -> Result<(), Problem> {
    match size {
        Some(size) if size != copied => Err(Problem::Other(format!(
            "{copied} bytes were copied, but {who} {size}"
        ))),
        _ => Ok(()),
    }
}
