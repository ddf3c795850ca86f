//! `execmux run`: runs one command, with its streams and its exit code as if it ran here.

use std::{
    convert::Infallible,
    env::VarError,
    io::{self, IsTerminal as _, Read as _},
    path::PathBuf,
    thread,
    time::Duration,
};

use actix::{Actor, ActorContext as _, Arbiter, ArbiterHandle, Context, Handler, System};
use actix_rt::{signal::ctrl_c, time::timeout};
use bytes::Bytes;
use clap::Args;
use execmux::{
    CallError, Config, LinkState, Mux, ProcessId, SessionEvent, StartError, Started,
    protocol::{
        EnvironmentPolicy, ErrorCode, InheritEnvironment, StartProcess, Stream, WriteStatus,
    },
};
use log::{debug, warn};
use tokio::sync::{mpsc, oneshot};

/// Runs a command on an exec-server, with its streams and exit code as if it ran here
#[derive(Debug, Args)]
#[command(after_help = "\
Exit code: that of the command; 125 if something goes wrong on this side or the connection is lost for good.
Ctrl-C interrupts the command (or terminates it, on servers before 0.140); a second one leaves.
EXECMUX_TOKEN holds the bearer token for servers that ask for one.

Example: execmux run --url ws://127.0.0.1:8080 --env GREETING=hello -- sh -c 'echo $GREETING'")]
pub(crate) struct Run {
    /// Where the server listens: ws://HOST:PORT
    #[arg(long)]
    url: String,
    /// Absolute directory to run in [default: the server's own if it tells, else /]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Sets a variable, over the basic ones (PATH, HOME …) of the server; can be given repeatedly
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Runs it on a terminal of 24 rows and 80 columns
    #[arg(long)]
    tty: bool,
    /// How long to try to resume a lost connection [default: as long as the server keeps the command]
    #[arg(long, value_name = "SECONDS")]
    resume_timeout: Option<u64>,
    /// Does not forward stdin: the command finds its own at the end
    #[arg(short = 'n', long)]
    no_stdin: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// How the command ended.
enum Outcome {
    Closed {
        exit_code: Option<i32>,
    },
    Failed {
        reason: String,
    },
    /// Our own stdout or stderr does not take any more.
    Unwritable(io::Error),
}

/// Where programs are on most systems.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// That the command has ended, and as what.
struct Ended {
    exit_code: u8,
    /// Or because this side did not want it any more.
    by_itself: bool,
}

/// How long it may take to tell the server that this side leaves.
const LEAVING: Duration = Duration::from_secs(1);

/// Exit code of a program that Ctrl-C has ended: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;
/// As of one that SIGPIPE has ended: whoever read our output has seen enough.
const BROKEN_PIPE: u8 = 141;

impl Run {
    /// Returns the exit code, or what went wrong on this side.
    pub(crate) fn execute(self) -> Result<u8, String> {
        System::new().block_on(self.run())
    }

    async fn run(self) -> Result<u8, String> {
        // The session writes to stdout, which may block, on the connection's own thread: then no more
        // is read, and the command waits as it would in a pipeline. Signals are handled on this one.
        let arbiter = Arbiter::new().handle();
        let mut config = Config::new(&self.url);
        config.bearer_token = match std::env::var("EXECMUX_TOKEN") {
            Ok(token) => Some(token).filter(|token| !token.is_empty()),
            Err(VarError::NotPresent) => None,
            Err(VarError::NotUnicode(_)) => return Err("EXECMUX_TOKEN is not UTF-8".to_owned()),
        };
        if let Some(seconds) = self.resume_timeout {
            config.resume_timeout = Duration::from_secs(seconds);
        }
        let resume_timeout = config.resume_timeout;
        let mut interrupts = watch_interrupts();
        let mux = tokio::select! {
            connected = Mux::connect_on(&arbiter, config) => {
                connected.map_err(|error| error.to_string())?
            }
            Some(()) = interrupts.recv() => return Ok(INTERRUPTED),
        };
        let server = mux.server().await;
        let window = server.and_then(|server| server.dialect.resume_window);
        let window = window.unwrap_or_default().min(resume_timeout);
        let watcher = Watcher::start_in_arbiter(&arbiter, move |_| Watcher {
            window,
            is_lost: false,
        });
        mux.subscribe(watcher.clone().recipient()).await;
        let result = self.run_on(&mux, &arbiter, interrupts).await;
        if !matches!(
            result,
            Ok(Ended {
                by_itself: true,
                ..
            })
        ) {
            // What is left to be said to the server, say that the command is not wanted any more.
            let _unanswered = timeout(LEAVING, mux.shutdown()).await;
        }
        result.map(|ended| ended.exit_code)
    }

    async fn run_on(
        self,
        mux: &Mux,
        arbiter: &ArbiterHandle,
        interrupts: mpsc::UnboundedReceiver<()>,
    ) -> Result<Ended, String> {
        let forward_stdin = !self.no_stdin && (self.tty || !stdin_is_null());
        let tty = self.tty;
        let process = self.process(mux, forward_stdin).await;
        let process_id = process.process_id().clone();
        let (outcome, ended) = oneshot::channel();
        let terminal = Terminal::start_in_arbiter(arbiter, |_| Terminal {
            outcome: Some(outcome),
        });
        let start = mux.start(process, terminal.recipient());
        let forwarding = async {
            if forward_stdin {
                forward(mux, &process_id, tty).await;
            }
            std::future::pending().await
        };
        follow(mux, &process_id, start, ended, forwarding, interrupts).await
    }

    async fn process(self, mux: &Mux, pipe_stdin: bool) -> StartProcess {
        let environment = mux.server().await.and_then(|server| server.environment);
        let is_old = environment.is_none();
        let cwd = self
            .cwd
            .or_else(|| environment.and_then(|environment| environment.cwd))
            .unwrap_or_else(|| "/".into());
        let mut process = StartProcess::new(ProcessId::unique(), self.argv, cwd)
            .env_policy(EnvironmentPolicy::new(InheritEnvironment::Core))
            .tty(self.tty)
            .pipe_stdin(pipe_stdin && !self.tty);
        if is_old {
            // It may not know policies, and then finds programs for a pty nowhere.
            process = process.env("PATH", DEFAULT_PATH);
        }
        if self.tty
            && let Ok(term) = std::env::var("TERM")
        {
            process = process.env("TERM", term);
        }
        process.envs(self.env)
    }
}

/// Waits for the end of the command, and passes stdin and Ctrl-C on to it.
async fn follow(
    mux: &Mux,
    process_id: &ProcessId,
    start: impl Future<Output = Result<Started, StartError>>,
    mut ended: oneshot::Receiver<Outcome>,
    forwarding: impl Future<Output = Infallible>,
    mut interrupts: mpsc::UnboundedReceiver<()>,
) -> Result<Ended, String> {
    tokio::pin!(start, forwarding);
    let (mut is_started, mut is_session_gone, mut is_interrupted) = (false, false, false);
    let outcome = loop {
        tokio::select! {
            started = &mut start, if !is_started => {
                started.map_err(|error| error.to_string())?;
                is_started = true;
            }
            outcome = &mut ended, if !is_session_gone => match outcome {
                // A start that fails ends the session too, and knows why.
                Err(_) if !is_started => is_session_gone = true,
                outcome => break outcome,
            },
            _ = &mut forwarding, if is_started => {}
            Some(()) = interrupts.recv() => {
                if is_interrupted {
                    return Ok(leave(mux, process_id).await);
                }
                is_interrupted = true;
                actix_rt::spawn(interrupt(mux.clone(), process_id.clone()));
            }
        }
    };
    match outcome {
        Ok(Outcome::Closed {
            exit_code: Some(code),
        }) => {
            // What does not fit an exit status, as the -1 of old servers, is cut as a shell does, but
            // not to a success.
            let exit_code = match code.to_le_bytes()[0] {
                0 if code != 0 => u8::MAX,
                low => low,
            };
            Ok(Ended {
                exit_code,
                by_itself: true,
            })
        }
        Ok(Outcome::Closed { exit_code: None }) => {
            Err("the command has ended, but the server did not tell its exit code".to_owned())
        }
        Ok(Outcome::Failed { reason }) => Err(format!("lost the command: {reason}")),
        Ok(Outcome::Unwritable(error)) => {
            // Asked for here too, as the router only notices in a moment that the session is gone.
            let _unanswered = timeout(LEAVING, mux.terminate(process_id)).await;
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Ok(Ended {
                    exit_code: BROKEN_PIPE,
                    by_itself: false,
                });
            }
            Err(format!("cannot write the command's output: {error}"))
        }
        Err(_) => Err("lost the command: its session ended".to_owned()),
    }
}

/// Ends the command. The connection may be stuck; leaving may not.
async fn leave(mux: &Mux, process_id: &ProcessId) -> Ended {
    let _unanswered = timeout(LEAVING, mux.terminate(process_id)).await;
    Ended {
        exit_code: INTERRUPTED,
        by_itself: false,
    }
}

/// Reports each Ctrl-C from now on, so that none is missed between two waits.
fn watch_interrupts() -> mpsc::UnboundedReceiver<()> {
    let (sender, receiver) = mpsc::unbounded_channel();
    actix_rt::spawn(async move { while ctrl_c().await.is_ok() && sender.send(()).is_ok() {} });
    receiver
}

async fn interrupt(mux: Mux, process_id: ProcessId) {
    let interrupted = mux.interrupt(&process_id).await.map(|_| ());
    let done = match interrupted {
        Err(CallError::Rejected {
            code: ErrorCode::METHOD_NOT_FOUND,
            ..
        }) => mux.terminate(&process_id).await.map(|_| ()),
        other => other,
    };
    if let Err(error) = done {
        warn!("cannot interrupt the command: {error}");
    }
}

/// Forwards our stdin until it ends or the command does not take it.
async fn forward(mux: &Mux, process_id: &ProcessId, tty: bool) {
    let mut chunks = read_stdin();
    let mut is_line_begun = false;
    while let Some(chunk) = chunks.recv().await {
        is_line_begun = !chunk.ends_with(b"\n");
        match mux.write(process_id, chunk).await {
            Ok(written) if written.status == WriteStatus::Accepted => {}
            Ok(written) => {
                debug!("stdin is not forwarded any more: {:?}", written.status);
                return;
            }
            Err(error) => {
                warn!("stdin is not forwarded any more: {error}");
                return;
            }
        }
    }
    if tty {
        // What a terminal takes for the end of input; behind a line that has begun, the first only
        // ends that. The command may have ended before.
        let end = if is_line_begun { "\x04\x04" } else { "\x04" };
        let _ended = mux.write(process_id, end).await;
        return;
    }
    // No server can close a pipe. Most commands that do not read it end on their own.
    actix_rt::time::sleep(Duration::from_secs(2)).await;
    warn!("stdin has ended, but this server cannot tell the command, which may wait for more");
}

/// Reads stdin in a thread of its own: such a read cannot be given up.
fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        let mut buffer = vec![0; 8192];
        loop {
            match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let chunk = Bytes::copy_from_slice(&buffer[..length]);
                    if sender.blocking_send(chunk).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    warn!("cannot read stdin: {error}");
                    return;
                }
            }
        }
    });
    receiver
}

/// Whether our stdin is at its end from the start: then the command's may be closed too.
fn stdin_is_null() -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let rdev = |path| std::fs::metadata(path).map(|metadata| metadata.rdev()).ok();
        !io::stdin().is_terminal() && rdev("/dev/stdin") == rdev("/dev/null")
    }
    #[cfg(not(unix))]
    {
        false
    }
}

/// Says that the command goes on unheard.
struct Watcher {
    window: Duration,
    is_lost: bool,
}

impl Actor for Watcher {
    type Context = Context<Self>;
}

impl Handler<LinkState> for Watcher {
    type Result = ();

    fn handle(&mut self, state: LinkState, _: &mut Self::Context) {
        match state {
            LinkState::Recovering { .. } if !self.is_lost => {
                self.is_lost = true;
                warn!(
                    "the connection is lost, trying to resume it for {} s",
                    self.window.as_secs()
                );
            }
            LinkState::Open if self.is_lost => {
                self.is_lost = false;
                warn!("the connection is resumed");
            }
            _ => {}
        }
    }
}

/// The session: writes to our stdout and stderr what the command writes to its own.
struct Terminal {
    outcome: Option<oneshot::Sender<Outcome>>,
}

impl Terminal {
    fn end(&mut self, outcome: Outcome) {
        if let Some(sender) = self.outcome.take() {
            // Nobody listens when the program is about to leave.
            let _leaving = sender.send(outcome);
        }
    }
}

impl Actor for Terminal {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Terminal {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, context: &mut Self::Context) {
        match event {
            SessionEvent::Output(output) => {
                let written = match output.stream {
                    Stream::Stdout | Stream::Pty => write(&mut io::stdout().lock(), &output.chunk),
                    Stream::Stderr => write(&mut io::stderr().lock(), &output.chunk),
                };
                if let Err(error) = written {
                    self.end(Outcome::Unwritable(error));
                    context.stop();
                }
            }
            SessionEvent::Exited(exited) => debug!("exited with {}", exited.exit_code),
            SessionEvent::Closed(closed) => self.end(Outcome::Closed {
                exit_code: closed.exit_code,
            }),
            SessionEvent::Failed(failed) => self.end(Outcome::Failed {
                reason: failed.reason.to_string(),
            }),
            // Events of later versions of the library; none of them is an end.
            other => debug!("{other:?}"),
        }
    }
}

fn write(stream: &mut impl io::Write, chunk: &[u8]) -> io::Result<()> {
    stream.write_all(chunk)?;
    stream.flush()
}
