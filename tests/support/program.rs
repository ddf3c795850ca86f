//! The program, as a child of the test: with pipes, or in a terminal of its own.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::{Output, Stdio},
};

use execmux::ProcessId;
use pty_process::{OwnedReadPty, OwnedWritePty, Size};
use rustix::{
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid},
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
};

use super::soon;

const PROGRAM: &str = env!("CARGO_BIN_EXE_execmux");

pub fn execmux(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("RUST_LOG")
        .env_remove("EXECMUX_URL")
        .env_remove("EXECMUX_TOKEN")
        .kill_on_drop(true);
    command
}

/// Starts it with pipes for all its streams.
pub fn piped(arguments: &[&str]) -> Child {
    execmux(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub async fn with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = piped(arguments);
    let mut stdin = child.stdin.take().unwrap();
    let (_, output) = tokio::join!(
        async move {
            // It may not read to the end.
            let _written = stdin.write_all(input).await;
        },
        soon(child.wait_with_output())
    );
    output.unwrap()
}

pub fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A directory that goes with the test.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("terminal-{}", ProcessId::unique()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// The program in a terminal of its own.
pub struct Terminal {
    pub child: Child,
    reader: OwnedReadPty,
    pub writer: OwnedWritePty,
    /// For a look at how the terminal is set.
    pty: OwnedFd,
    before: Termios,
    seen: String,
}

impl Terminal {
    pub fn start(arguments: &[&str], (rows, cols): (u16, u16)) -> Self {
        let (pty, pts) = pty_process::open().unwrap();
        pty.resize(Size::new(rows, cols)).unwrap();
        let own = pty.as_fd().try_clone_to_owned().unwrap();
        let before = tcgetattr(&own).unwrap();
        let child = pty_process::Command::new(PROGRAM)
            .args(arguments)
            .env_remove("RUST_LOG")
            .env_remove("EXECMUX_URL")
            .env_remove("EXECMUX_TOKEN")
            .kill_on_drop(true)
            .spawn(pts)
            .unwrap();
        let (reader, writer) = pty.into_split();
        Terminal {
            child,
            reader,
            writer,
            pty: own,
            before,
            seen: String::new(),
        }
    }

    /// Reads until `text` has come.
    pub async fn see(&mut self, text: &str) {
        let end = soon(async {
            loop {
                if let Some(at) = self.seen.find(text) {
                    break at + text.len();
                }
                let mut buffer = [0; 4096];
                match self.reader.read(&mut buffer).await {
                    Ok(length @ 1..) => {
                        self.seen += &String::from_utf8_lossy(&buffer[..length]);
                    }
                    _ => panic!("{text:?} is not in {:?}", self.seen),
                }
            }
        })
        .await;
        self.seen.drain(..end);
    }

    pub async fn press(&mut self, keys: &str) {
        soon(self.writer.write_all(keys.as_bytes())).await.unwrap();
    }

    /// Checks that the terminal is as it was.
    pub fn check_restored(&self) {
        let now = tcgetattr(&self.pty).unwrap();
        assert_eq!(now.input_modes, self.before.input_modes);
        assert_eq!(now.output_modes, self.before.output_modes);
        assert_eq!(now.local_modes, self.before.local_modes);
    }

    /// Sets it as it was, as a shell does.
    pub fn set_restored(&self) {
        tcsetattr(&self.pty, OptionalActions::Now, &self.before).unwrap();
    }

    pub fn is_raw(&self) -> bool {
        let now = tcgetattr(&self.pty).unwrap();
        !now.local_modes
            .intersects(LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Waits for the end, and checks that the terminal is as it was.
    pub async fn end(mut self) -> Option<i32> {
        let status = soon(self.child.wait()).await.unwrap();
        self.check_restored();
        status.code()
    }
}

/// `execmux serve`, and how to reach it.
pub struct Serving {
    pub url: String,
    pub child: Child,
}

impl Serving {
    pub async fn start(options: &[&str]) -> Self {
        Serving::of(execmux(&[&["serve"], options].concat())).await
    }

    /// Starts it from a shell that has said this before.
    pub async fn start_from_shell(script: &str) -> Self {
        let mut shell = Command::new("bash");
        shell
            .args(["-c", &format!("{script} exec \"$0\" serve"), PROGRAM])
            .env_remove("RUST_LOG")
            .kill_on_drop(true);
        Serving::of(shell).await
    }

    /// Starts it so that what it logs can be read.
    pub async fn start_with_log(options: &[&str]) -> Self {
        let mut command = execmux(&[&["serve"], options].concat());
        command.stderr(Stdio::piped());
        Serving::of(command).await
    }

    async fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        let stdout = child.stdout.take().unwrap();
        soon(BufReader::new(stdout).read_line(&mut url))
            .await
            .unwrap();
        Serving {
            url: url.trim().to_owned(),
            child,
        }
    }

    /// Ends it as it should be ended: killed, it would leave what it runs.
    pub async fn stop(mut self) {
        signal(&self.child, Signal::TERM);
        assert!(soon(self.child.wait()).await.unwrap().success());
    }
}

impl Serving {
    /// Ends it, and returns what it has logged.
    pub async fn stop_and_read_log(mut self) -> String {
        let mut stderr = self.child.stderr.take().unwrap();
        self.stop().await;
        let mut log = String::new();
        soon(stderr.read_to_string(&mut log)).await.unwrap();
        log
    }
}

fn pid(child: &Child) -> Pid {
    let id = i32::try_from(child.id().unwrap()).unwrap();
    Pid::from_raw(id).unwrap()
}

pub fn signal(child: &Child, signal: Signal) {
    kill_process(pid(child), signal).unwrap();
}

/// Waits until a signal has stopped it.
pub async fn stopped(child: &Child) {
    let id = WaitId::Pid(pid(child));
    let waiting = tokio::task::spawn_blocking(move || waitid(id, WaitIdOptions::STOPPED));
    soon(waiting).await.unwrap().unwrap();
}
