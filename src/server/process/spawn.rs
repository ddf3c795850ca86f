//! Starts a program with pipes or on a pty, as the leader of a session and group of its own.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, path::PathBuf, pin::Pin, process::Stdio};

use process_wrap::tokio::{CommandWrap, ProcessSession};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{environment::Policy, log::Source};
use crate::server::{
    descriptors,
    envelope::RpcError,
    fs::{Directory, Files},
    leftovers::{Family, Leftovers},
};

/// The params of `process/start`. What is not here is ignored, as by any server that does not know it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct Start {
    pub(in crate::server) process_id: String,
    argv: Vec<String>,
    cwd: String,
    env: BTreeMap<String, String>,
    tty: bool,
    arg0: Option<String>,
    #[serde(default)]
    pipe_stdin: bool,
    env_policy: Option<Policy>,
    size: Option<Size>,
    output_window: Option<u64>,
    sandbox: Option<serde::de::IgnoredAny>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(in crate::server) struct Size {
    rows: u16,
    cols: u16,
}

impl Size {
    pub(in crate::server) fn check(self) -> Result<Self, RpcError> {
        if self.rows == 0 || self.cols == 0 {
            return Err(RpcError::invalid_params("rows and cols must not be 0"));
        }
        Ok(self)
    }

    fn winsize(self) -> Winsize {
        Winsize {
            ws_row: self.rows,
            ws_col: self.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        }
    }
}

type Reader = Box<dyn AsyncRead + Unpin>;
type Writer = Box<dyn AsyncWrite + Unpin>;
type Exit = Pin<Box<dyn Future<Output = i32>>>;

/// A process that has started, and the ends of its streams that are ours.
pub(super) struct Spawned {
    pub(super) family: Family,
    /// Waits for its end, and returns its exit code.
    pub(super) exit: Exit,
    pub(super) outputs: Vec<(Source, Reader)>,
    pub(super) stdin: Option<Writer>,
    pub(super) terminal: Option<Terminal>,
}

/// The terminal of a process.
pub(super) struct Terminal(OwnedFd);

impl Terminal {
    pub(super) fn resize(&self, size: Size) -> io::Result<()> {
        Ok(tcsetwinsize(&self.0, size.winsize())?)
    }
}

/// Where programs are if nobody says.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_SIZE: Size = Size { rows: 24, cols: 80 };

impl Start {
    pub(super) fn window(&self) -> Option<usize> {
        self.output_window
            .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Returns the program, or nothing where there is none.
    pub(in crate::server) fn program(&self) -> &str {
        self.argv.first().map_or("", String::as_str)
    }

    /// Checks what the params say, and starts the program.
    pub(super) fn spawn(self, files: &Files, leftovers: &Leftovers) -> Result<Spawned, RpcError> {
        if self.sandbox.is_some() {
            return Err(RpcError::invalid_request("sandbox is not supported")
                .with_kind("sandboxUnavailable"));
        }
        let Some(program) = self.argv.first() else {
            return Err(RpcError::invalid_params("argv must not be empty"));
        };
        if program.is_empty() {
            let kind = if self.tty { "PTY" } else { "pipe" };
            return Err(
                RpcError::internal(format!("missing program for {kind} spawn")).with_kind(FAILED),
            );
        }
        let size = self.size.map(Size::check).transpose()?;
        let cwd = files.directory(&self.cwd).map_err(no_cwd)?;
        let inherited = self.env_policy.map(|policy| {
            // What is not UTF-8 cannot be matched, and is not inherited.
            policy.apply(std::env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            }))
        });
        let mut env = inherited.unwrap_or_default();
        env.extend(self.env);
        let plan = Plan {
            argv: self.argv,
            arg0: self.arg0,
            cwd,
            env,
        };
        let spawned = match self.tty {
            true => plan.on_pty(size.unwrap_or(DEFAULT_SIZE), leftovers),
            false => plan.with_pipes(self.pipe_stdin, leftovers),
        };
        spawned.map_err(not_spawned)
    }
}

/// What kind of refusal it is when nothing more is known.
const FAILED: &str = "spawnFailed";
const NOT_FOUND: &str = "spawnNotFound";

/// Answers an error of starting a program as release 0.171.0 does.
fn not_spawned(error: io::Error) -> RpcError {
    let kind = match error.kind() {
        // Of the program or of its working directory.
        io::ErrorKind::NotFound => NOT_FOUND,
        io::ErrorKind::PermissionDenied => "spawnPermissionDenied",
        _ => FAILED,
    };
    RpcError::internal(error.to_string()).with_kind(kind)
}

/// Answers what is wrong with a working directory below a root as if the program had not started because of it.
fn no_cwd(error: RpcError) -> RpcError {
    let missing = RpcError::not_found("").code;
    let failed = RpcError::internal("").code;
    if error.code == missing {
        RpcError::internal(error.message).with_kind(NOT_FOUND)
    } else if error.code == failed {
        error.with_kind(FAILED)
    } else {
        error
    }
}

struct Plan {
    argv: Vec<String>,
    arg0: Option<String>,
    cwd: Directory,
    env: BTreeMap<String, String>,
}

impl Plan {
    fn with_pipes(mut self, pipe_stdin: bool, leftovers: &Leftovers) -> io::Result<Spawned> {
        self.find_path();
        let mut command = CommandWrap::with_new(&self.argv[0], |command| {
            let stdin = if pipe_stdin {
                Stdio::piped()
            } else {
                Stdio::null()
            };
            command
                .args(&self.argv[1..])
                .current_dir(self.cwd.path())
                .env_clear()
                .envs(&self.env)
                .stdin(stdin)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            if let Some(arg0) = &self.arg0 {
                command.arg0(arg0);
            }
        });
        command.wrap(ProcessSession);
        let (mut child, family) = leftovers.start(|| {
            descriptors::keep_from_processes();
            let child = command.spawn()?;
            let id = child.id();
            Ok((child, id))
        })?;
        let mut outputs: Vec<(Source, Reader)> = Vec::new();
        outputs.extend(
            child
                .stdout()
                .take()
                .map(|pipe| (Source::Stdout, Box::new(pipe) as _)),
        );
        outputs.extend(
            child
                .stderr()
                .take()
                .map(|pipe| (Source::Stderr, Box::new(pipe) as _)),
        );
        let stdin = child.stdin().take().map(|pipe| Box::new(pipe) as _);
        Ok(Spawned {
            family,
            outputs,
            stdin,
            terminal: None,
            exit: Box::pin(async move { exit_code(child.inner_mut().wait().await) }),
        })
    }

    fn on_pty(mut self, size: Size, leftovers: &Leftovers) -> io::Result<Spawned> {
        self.find_path();
        if !self.env.contains_key("SHELL") {
            let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
            self.env.insert("SHELL".to_owned(), shell);
        }
        let (pty, pts) = pty_process::open().map_err(io::Error::other)?;
        let terminal = Terminal(std::os::fd::AsFd::as_fd(&pty).try_clone_to_owned()?);
        terminal.resize(size)?;
        let mut command = pty_process::Command::new(&self.argv[0])
            .args(&self.argv[1..])
            .current_dir(self.cwd.path())
            .env_clear()
            .envs(&self.env);
        if let Some(arg0) = &self.arg0 {
            command = command.arg0(arg0);
        }
        let (mut child, family) = leftovers.start(|| {
            descriptors::keep_from_processes();
            let child = command.spawn(pts).map_err(|error| match error {
                pty_process::Error::Io(error) => error,
                error => io::Error::other(error),
            })?;
            let id = child.id();
            Ok((child, id))
        })?;
        let (output, input) = pty.into_split();
        Ok(Spawned {
            family,
            outputs: vec![(Source::Pty, Box::new(output))],
            stdin: Some(Box::new(input)),
            terminal: Some(terminal),
            exit: Box::pin(async move { exit_code(child.wait().await) }),
        })
    }

    /// Without a `PATH`, the program is looked for where programs are.
    fn find_path(&mut self) {
        if !self.argv[0].contains('/') && !self.env.contains_key("PATH") {
            let found = DEFAULT_PATH
                .split(':')
                .map(|directory| PathBuf::from(directory).join(&self.argv[0]))
                .find(|path| path.is_file());
            if let Some(Some(found)) = found.as_deref().map(|path| path.to_str()) {
                self.arg0.get_or_insert_with(|| self.argv[0].clone());
                self.argv[0] = found.to_owned();
            }
        }
    }
}

fn exit_code(status: io::Result<std::process::ExitStatus>) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    let Ok(status) = status else {
        return -1;
    };
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}
