//! `execmux run`: runs one command, with its streams and its exit code as if it ran here.

use std::{
    convert::Infallible,
    io::{self, IsTerminal as _},
};

use actix::{Actor, ActorContext as _, Addr, Context, Handler, System};
use actix_rt::time::timeout;
use bytes::Bytes;
use clap::Args;
use execmux::{
    CallError, ProcessId, SessionEvent, StartError, Started,
    protocol::{StartProcess, Stream},
};
use log::{debug, warn};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    connect::{LEAVING, PlaceOptions, Remote, ServerOptions},
    problem::told,
    signals::{self, BROKEN_PIPE, Signal},
    stdin,
    terminal::{self, Raw},
};

/// Runs a command on an exec-server, with its streams and exit code as if it ran here
#[derive(Debug, Args)]
#[command(after_help = "\
Exit code: that of the command, 128 + n if signal n has ended it; 125 if something goes wrong on this side or the
connection is lost for good; 127 if there is no such command, on a server that needs a shell to start it.
Ctrl-C interrupts the command; a second one leaves. SIGTERM and SIGHUP are passed on. Where the server cannot send
signals or resize terminals, short processes beside the command do, and a shell starts it so that they find it; where
there is no POSIX shell, a signal terminates it, and a terminal has 24 rows and 80 columns.
With --tty in a terminal every key goes to the command, Ctrl-Z too; a SIGTSTP from elsewhere stops this program, with the
terminal as it was until it is continued.

Without --url it runs on this machine, on a server in this program: in this directory, with this environment.

Examples:
  execmux run -- sh -c 'echo hello from $(pwd)'
  execmux run --url ws://127.0.0.1:8080 --env GREETING=hello -- sh -c 'echo $GREETING'
  execmux run --url ws://127.0.0.1:8080 --tty -- bash
  tar c src | execmux run --url ws://127.0.0.1:8080 --cwd /srv -- tar x")]
pub(crate) struct Run {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    place: PlaceOptions,
    /// Runs it on a terminal, of the size of this one, or of 24 rows and 80 columns
    #[arg(long)]
    tty: bool,
    /// Does not forward stdin: the command finds its own at the end
    #[arg(short = 'n', long)]
    no_stdin: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    argv: Vec<String>,
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

/// That the command has ended, and as what.
struct Ended {
    exit_code: u8,
    /// Or because this side did not want it any more.
    by_itself: bool,
}

impl Run {
    /// Whether the terminal that the program runs in will be raw.
    pub(crate) fn is_raw(&self) -> bool {
        self.tty && !self.no_stdin && io::stdin().is_terminal()
    }

    /// Returns the exit code, or what went wrong on this side.
    pub(crate) fn execute(self) -> Result<u8, String> {
        System::new().block_on(self.run())
    }

    async fn run(self) -> Result<u8, String> {
        // The session writes to stdout, which may block, on the connection's own thread: then no more
        // is read, and the command waits as it would in a pipeline. Signals are handled on this one.
        let mut wanted = vec![Signal::Interrupt, Signal::Terminate, Signal::HangUp];
        if self.is_raw() {
            wanted.extend([Signal::Resize, Signal::Stop, Signal::Continue]);
        }
        let mut signals = signals::watch(&wanted);
        let connecting = Remote::connect(self.server);
        tokio::pin!(connecting);
        let remote = loop {
            tokio::select! {
                remote = &mut connecting => break remote?,
                Some(signal) = signals.recv() => match signal {
                    Signal::Resize | Signal::Continue => {}
                    Signal::Stop => terminal::stop_for_a_while(),
                    Signal::Interrupt | Signal::Terminate | Signal::HangUp => {
                        return Ok(signal.exit_code());
                    }
                }
            }
        };
        let mut command = Command {
            forward_stdin: !self.no_stdin && (self.tty || !stdin::is_null()),
            tty: self.tty,
            is_raw: self.tty && !self.no_stdin && io::stdin().is_terminal(),
        };
        let is_helped = remote.has_posix_shell();
        let mut process = remote.process(self.argv, &self.place).tty(self.tty);
        let mut input = None;
        if !self.tty && command.forward_stdin {
            // Of a server that cannot close stdin, a command finds the end of a file all the same.
            if !remote.capabilities.close_stdin {
                input =
                    stdin::whole_file().map_err(|error| format!("cannot read stdin: {error}"))?;
            }
            process = process.pipe_stdin(input.is_none());
        }
        command.forward_stdin &= input.is_none();
        if self.tty
            && !self.place.sets("TERM")
            && let Ok(term) = std::env::var("TERM")
        {
            process = process.env("TERM", term);
        }
        let can_resize = remote.capabilities.resize;
        let size = terminal::size().filter(|_| self.tty);
        if can_resize && let Some(size) = size {
            process = process.size(size);
        }
        let needs_shell = !remote.capabilities.signals || self.tty && !can_resize;
        let mut plain = None;
        if is_helped && needs_shell {
            plain = Some(process.clone());
            process = process.helper_processes(true);
            if let Some(size) = size {
                process = process.size(size);
            }
        }
        let start = Start {
            process,
            plain,
            input,
        };
        let result = command.follow(&remote, start, signals).await;
        let has_ended = matches!(
            result,
            Ok(Ended {
                by_itself: true,
                ..
            })
        );
        if !has_ended || is_helped {
            // What is left to be said to the server, say that the command is not wanted any more, or the file
            // not by which helpers have found it.
            remote.leave().await;
        }
        remote.end().await;
        result.map(|ended| ended.exit_code)
    }
}

/// How the command is started.
struct Start {
    process: StartProcess,
    /// Without what takes a shell: for when there is none.
    plain: Option<StartProcess>,
    input: Option<Bytes>,
}

impl Start {
    async fn send(self, remote: &Remote, terminal: Addr<Terminal>) -> Result<Started, StartError> {
        let Start {
            process,
            plain,
            input,
        } = self;
        let started = send(remote, process, input.clone(), terminal.clone()).await;
        match (started, plain) {
            (Err(StartError::Call(error @ CallError::Rejected { .. })), Some(plain)) => {
                debug!("the command is started without a shell: {}", told(&error));
                send(remote, plain, input, terminal).await
            }
            (started, _) => started,
        }
    }
}

async fn send(
    remote: &Remote,
    process: StartProcess,
    input: Option<Bytes>,
    terminal: Addr<Terminal>,
) -> Result<Started, StartError> {
    let session = terminal.recipient();
    match input {
        Some(input) => remote.mux.start_with_input(process, session, input).await,
        None => remote.mux.start(process, session).await,
    }
}

/// What this side does for the command while it runs.
struct Command {
    forward_stdin: bool,
    tty: bool,
    is_raw: bool,
}

impl Command {
    /// Starts the command, waits for its end, and passes stdin and signals on to it.
    async fn follow(
        &self,
        remote: &Remote,
        start: Start,
        mut signals: mpsc::UnboundedReceiver<Signal>,
    ) -> Result<Ended, String> {
        let process_id = &start.process.process_id().clone();
        let (outcome, mut ended) = oneshot::channel();
        let terminal = Terminal::start_in_arbiter(&remote.arbiter, |_| Terminal {
            outcome: Some(outcome),
        });
        // It alone holds the session's actor.
        let start = start.send(remote, terminal);
        let forwarding = async {
            if self.forward_stdin {
                stdin::forward(remote, process_id, self.tty).await;
            }
            std::future::pending::<Infallible>().await
        };
        let resized = Notify::new();
        let resizing = async {
            loop {
                resized.notified().await;
                resize(remote, process_id).await;
            }
        };
        tokio::pin!(start, forwarding, resizing);
        let (mut is_started, mut is_session_gone, mut is_interrupted) = (false, false, false);
        // Restores the terminal when this function ends, however it does.
        let mut raw = None;
        let outcome = loop {
            tokio::select! {
                started = &mut start, if !is_started => {
                    let started: Result<Started, StartError> = started;
                    started.map_err(|error| told(&error))?;
                    is_started = true;
                    if self.is_raw {
                        raw = Raw::enter().map_err(|error| format!("cannot make the terminal raw: {error}"))?;
                    }
                }
                outcome = &mut ended, if !is_session_gone => match outcome {
                    // A start that fails ends the session too, and knows why.
                    Err(_) if !is_started => is_session_gone = true,
                    outcome => break outcome,
                },
                _ = &mut forwarding, if is_started => {}
                () = &mut resizing, if is_started => {}
                Some(signal) = signals.recv() => match signal {
                    Signal::Resize => resized.notify_one(),
                    Signal::Stop => {
                        terminal::stop_for_a_while();
                        resized.notify_one();
                    }
                    Signal::Continue => {
                        terminal::go_on();
                        resized.notify_one();
                    }
                    Signal::Interrupt | Signal::Terminate | Signal::HangUp => {
                        if is_interrupted {
                            return Ok(leave(remote, process_id, signal).await);
                        }
                        is_interrupted = true;
                        pass_on(remote, process_id, signal);
                    }
                },
            }
        };
        drop(raw);
        judge(remote, process_id, outcome).await
    }
}

/// What the end of the session means for ours.
async fn judge(
    remote: &Remote,
    process_id: &ProcessId,
    outcome: Result<Outcome, oneshot::error::RecvError>,
) -> Result<Ended, String> {
    match outcome {
        Ok(Outcome::Closed {
            exit_code: Some(code),
        }) => Ok(Ended {
            exit_code: exit_status(code),
            by_itself: true,
        }),
        Ok(Outcome::Closed { exit_code: None }) => {
            Err("the command has ended, but the server did not tell its exit code".to_owned())
        }
        Ok(Outcome::Failed { reason }) => Err(format!("lost the command: {reason}")),
        Ok(Outcome::Unwritable(error)) => {
            // Asked for here too, as the router only notices in a moment that the session is gone.
            let _unanswered = timeout(LEAVING, remote.mux.terminate(process_id)).await;
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

/// What does not fit an exit status, as the -1 of old servers, is cut as a shell does, but not to a success.
fn exit_status(code: i32) -> u8 {
    match code.to_le_bytes()[0] {
        0 if code != 0 => u8::MAX,
        low => low,
    }
}

/// Ends the command. The connection may be stuck; leaving may not.
async fn leave(remote: &Remote, process_id: &ProcessId, signal: Signal) -> Ended {
    let _unanswered = timeout(LEAVING, remote.mux.terminate(process_id)).await;
    Ended {
        exit_code: signal.exit_code(),
        by_itself: false,
    }
}

/// Passes a signal on to the command, in the background.
fn pass_on(remote: &Remote, process_id: &ProcessId, signal: Signal) {
    let (mux, process_id) = (remote.mux.clone(), process_id.clone());
    let Some(name) = signal.name() else {
        return;
    };
    actix_rt::spawn(async move {
        let done = match mux.signal(&process_id, name).await {
            Err(CallError::Unsupported { .. } | CallError::HelperFailed { .. }) => {
                mux.terminate(&process_id).await.map(|_| ())
            }
            sent => sent.map(|_| ()),
        };
        if let Err(error) = done {
            warn!("cannot pass {signal:?} on to the command: {}", told(&error));
        }
    });
}

/// Gives the command's terminal the size of ours. One after the other, or the last might not be the last there.
async fn resize(remote: &Remote, process_id: &ProcessId) {
    if let Some(size) = terminal::size()
        && let Err(error) = remote.mux.resize(process_id, size).await
    {
        debug!("the command's terminal is not resized: {}", told(&error));
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
                reason: told(&failed.reason),
            }),
            SessionEvent::Gap(gap) => warn!(
                "some output is lost, between its pieces {} and {}",
                gap.after_seq, gap.before_seq
            ),
            // Events of later versions of the library; none of them is an end.
            other => debug!("{other:?}"),
        }
    }
}

fn write(stream: &mut impl io::Write, chunk: &[u8]) -> io::Result<()> {
    stream.write_all(chunk)?;
    stream.flush()
}
