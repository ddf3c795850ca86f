//! A process whose whole input is known when it starts: it finds the end of it, on any server.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Mux;
use crate::{
    error::{CallError, Causes, StartError},
    protocol::{
        CloseStdin, Method as _, ProcessId, RemovePath, StartProcess, Started, Unsupported,
        WriteStatus,
    },
    router::{Session, SessionEvent},
};

/// What is written at once, so that the writes to other processes get their turn.
const PIECE: usize = 256 << 10;

/// Takes its input from a file, which only this process needs, and becomes the program.
const SPOOLED: &str = r#"exec <"$0" && rm -rf -- "${0%/*}" && exec "$@""#;

impl Mux {
    /// Starts a process with pipes whose stdin is `input`, and then ends.
    ///
    /// Where the server can close stdin ([`Capabilities::close_stdin`](crate::protocol::Capabilities)),
    /// `input` is written while the process runs, and the future does not wait for that. Elsewhere it is
    /// put into a file in a directory of its own that nobody else may read, in the server's directory for
    /// temporary files, and the process is started by a POSIX shell that takes its stdin from there and
    /// removes it.
    ///
    /// ```no_run
    /// # async fn example(mux: execmux::Mux) -> Result<(), execmux::StartError> {
    /// use execmux::{ProcessId, Session, StartProcess};
    ///
    /// let (session, events) = Session::stream();
    /// let sort = StartProcess::new(ProcessId::unique(), ["sort"], "/tmp");
    /// mux.start_with_input(sort, session, "b\na\n").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`StartError`]. [`Unsupported`](CallError::Unsupported) where the process is on a pty or has an
    /// `arg0` and the server cannot close stdin, or where there is no shell.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the process may run or not; a file that was written for it may stay.
    pub async fn start_with_input(
        &self,
        process: StartProcess,
        session: impl Into<Session>,
        input: impl Into<Bytes>,
    ) -> Result<Started, StartError> {
        let input = input.into();
        let can_close = self
            .capabilities()
            .await
            .is_some_and(|capabilities| capabilities.close_stdin);
        if can_close && !process.is_tty() {
            let process_id = process.process_id().clone();
            let started = self.start(process.pipe_stdin(true), session).await?;
            // Nobody waits for it: the process may not read, and ends all the same.
            tokio::spawn(feed(self.clone(), process_id, input));
            return Ok(started);
        }
        self.start_spooled(process, session.into(), input).await
    }

    async fn start_spooled(
        &self,
        process: StartProcess,
        session: Session,
        input: Bytes,
    ) -> Result<Started, StartError> {
        let unsupported = |remedy| {
            let missing = Unsupported::new("close_stdin", remedy);
            StartError::Call(CallError::unsupported(CloseStdin::NAME, missing))
        };
        if process.is_tty() {
            return Err(unsupported(
                "a process on a pty is told of the end of its input by writing \\x04",
            ));
        }
        let directory = self.spool_directory().await;
        let Some(process) = process.run_by_shell(SPOOLED, &directory.join("input")) else {
            return Err(unsupported(
                "the input could be put into a file by a shell, but that cannot set arg0: leave it out",
            ));
        };
        if !self.make_private(&directory).await? {
            return Err(unsupported(
                "the input could be put into a file, but the server has no POSIX shell or directory for \
                 temporary files",
            ));
        }
        let started = match self.write_file(directory.join("input"), input).await {
            Ok(_) => self.start(process, session).await,
            Err(error) => Err(error.into()),
        };
        if started.is_err() {
            self.forget_spool(directory).await;
        }
        started
    }

    /// A name in the server's directory for temporary files that nothing has.
    async fn spool_directory(&self) -> PathBuf {
        let directory = self.server().await.map(|it| it.temporary_directory());
        directory
            .unwrap_or_else(|| "/tmp".into())
            .join(format!("execmux-{}", ProcessId::unique()))
    }

    /// Makes a directory that is nobody else's. Returns whether that could be done.
    async fn make_private(&self, directory: &Path) -> Result<bool, StartError> {
        let Some(path) = directory.to_str() else {
            return Ok(false);
        };
        let argv = ["/bin/sh", "-c", r#"umask 077 && mkdir -- "$0""#, path];
        let (session, mut events) = Session::stream();
        let mkdir = StartProcess::new(ProcessId::unique(), argv, "/").env("PATH", "/usr/bin:/bin");
        match self.start(mkdir, session).await {
            Ok(_) => {}
            Err(StartError::Call(CallError::Rejected { .. })) => return Ok(false),
            Err(error) => return Err(error),
        }
        let mut is_made = false;
        while let Some(event) = events.recv().await {
            if let SessionEvent::Closed(closed) = event {
                is_made = closed.exit_code == Some(0);
            }
        }
        Ok(is_made)
    }

    async fn forget_spool(&self, directory: PathBuf) {
        let remove = RemovePath::new(directory).recursive(true).force(true);
        if let Err(error) = self.call(remove).await {
            log::debug!(error:% = Causes(&error); "the input of a process that did not start stays behind");
        }
    }
}

/// Writes all of it, and closes stdin.
async fn feed(mux: Mux, process_id: ProcessId, mut input: Bytes) {
    while !input.is_empty() {
        let piece = input.split_to(input.len().min(PIECE));
        match mux.write(&process_id, piece).await {
            Ok(written) if written.status == WriteStatus::Accepted => {}
            // It has ended, or the connection: whoever has the session is told.
            Ok(_) => return,
            Err(error) => {
                log::warn!(process_id:%, error:% = Causes(&error); "the input is not written any further");
                break;
            }
        }
    }
    if let Err(error) = mux.close_stdin(&process_id).await {
        log::debug!(process_id:%, error:% = Causes(&error); "stdin is not closed");
    }
}
