//! `execmux each`: runs many commands over one connection, some at a time.

#[path = "each/input.rs"]
mod input;
#[path = "each/job.rs"]
mod job;
#[path = "each/report.rs"]
mod report;

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _},
    num::NonZeroUsize,
    rc::Rc,
    time::Instant,
};

use actix::System;
use clap::Args;
use tokio::{sync::mpsc, task::JoinSet};

use self::{
    input::{Lines, READ_AHEAD, Template},
    job::{End, Finished, Job},
    report::{Format, Reporter},
};
use crate::{
    connect::{PlaceOptions, Remote, ServerOptions},
    signals::{self, BROKEN_PIPE, Signal},
};

/// Exit code of what goes wrong on this side: 1 to 101 tell how many commands have failed.
pub(crate) const OWN_FAILURE: u8 = 255;
/// Exit code for more failures than an exit code is given to.
const MANY: u8 = 101;

/// Runs a command for each line of a file or of stdin, several at a time, over one connection
#[derive(Debug, Args)]
#[command(after_help = "\
Without a command behind --, each line is one, run by sh -c. With one, it is run (without a shell) for each line, which
takes the place of {}, or is its last argument if there is no {}. Empty lines are left out. Commands are run as lines come,
and have no stdin.

The output of a command is printed when it has ended, whole: its stdout on stdout, its stderr on stderr.

Exit code: 0 if all have succeeded, else how many have failed, 101 for more than 100; 130 after Ctrl-C, which terminates
what runs; 255 for everything that goes wrong on this side, and if the connection is lost for good.

Examples:
  execmux each --url ws://127.0.0.1:8080 --jobs 8 commands.txt
  tail -f queue | execmux each --url ws://127.0.0.1:8080
  ls *.c | execmux each --url ws://127.0.0.1:8080 --cwd /srv/project -- cc -c {}
  execmux each --url ws://127.0.0.1:8080 --json commands.txt | jq 'select(.exit_code != 0)'")]
pub(crate) struct Each {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    place: PlaceOptions,
    /// How many run at a time [default: the number of CPUs here]
    #[arg(short, long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Prints each line of output as it comes, behind the line of input and a tab
    #[arg(long, conflicts_with = "json")]
    tag: bool,
    /// Prints one JSON object for each command when it has ended
    #[arg(long)]
    json: bool,
    /// Starts no more commands once one has failed
    #[arg(long)]
    halt: bool,
    /// Where the lines are, - for stdin
    #[arg(default_value = "-")]
    file: String,
    /// What to run for each line
    #[arg(last = true, value_name = "COMMAND")]
    template: Vec<String>,
}

/// Why no more commands are started.
enum Halt {
    Signal(Signal),
    /// The connection is gone for good, or the output cannot be written.
    Problem(String),
    BrokenPipe,
}

impl Each {
    pub(crate) fn execute(self) -> Result<u8, String> {
        System::new().block_on(self.run())
    }

    async fn run(self) -> Result<u8, String> {
        let mut signals = signals::watch(&[Signal::Interrupt, Signal::Terminate, Signal::HangUp]);
        let lines = tokio::select! {
            lines = Lines::open(self.file) => lines?,
            Some(signal) = signals.recv() => return Ok(signal.exit_code()),
        };
        let remote = tokio::select! {
            remote = Remote::connect(self.server) => remote?,
            Some(signal) = signals.recv() => return Ok(signal.exit_code()),
        };
        let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let format = match (self.tag, self.json) {
            (true, _) => Format::Tagged,
            (_, true) => Format::Json,
            _ => Format::Grouped,
        };
        let batch = Batch {
            remote: Rc::new(remote),
            place: self.place,
            template: Template::new(self.template),
            at_once: self.jobs.map_or(cpus, NonZeroUsize::get),
            stops_at_failure: self.halt,
            reporter: Reporter::new(format, io::stderr().is_terminal()),
        };
        batch.run(lines, signals).await
    }
}

/// The lines that have come.
#[derive(Default)]
struct Input {
    waiting: VecDeque<String>,
    found: usize,
    started: usize,
    /// No more come.
    is_over: bool,
    /// Why not, if it is not the end of them. What has come is run all the same.
    problem: Option<String>,
}

impl Input {
    fn has_room(&self) -> bool {
        !self.is_over && self.waiting.len() < READ_AHEAD
    }

    fn take(&mut self, line: Option<Result<String, String>>) {
        match line {
            Some(Ok(line)) => {
                self.found += 1;
                self.waiting.push_back(line);
            }
            Some(Err(problem)) => {
                self.is_over = true;
                self.problem = Some(problem);
            }
            None => self.is_over = true,
        }
    }

    fn next(&mut self) -> Option<Job> {
        let line = self.waiting.pop_front()?;
        self.started += 1;
        Some(Job {
            number: self.started,
            line,
        })
    }
}

/// All that the commands share.
struct Batch {
    remote: Rc<Remote>,
    place: PlaceOptions,
    template: Template,
    at_once: usize,
    stops_at_failure: bool,
    reporter: Reporter,
}

impl Batch {
    async fn run(
        mut self,
        mut lines: Lines,
        mut signals: mpsc::UnboundedReceiver<Signal>,
    ) -> Result<u8, String> {
        let begun = Instant::now();
        let mut input = Input::default();
        let mut running = JoinSet::new();
        let mut has_to_stop = false;
        let halt = loop {
            while running.len() < self.at_once && !has_to_stop {
                let Some(job) = input.next() else {
                    break;
                };
                self.start(&mut running, job);
            }
            if running.is_empty() && (has_to_stop || input.is_over) {
                break input.problem.take().map(Halt::Problem);
            }
            tokio::select! {
                line = lines.next(), if !has_to_stop && input.has_room() => {
                    input.take(line);
                    self.reporter.found(input.found, input.is_over);
                }
                Some(finished) = running.join_next() => match self.take(finished) {
                    Ok(succeeded) => has_to_stop |= self.stops_at_failure && !succeeded,
                    Err(halt) => break Some(halt),
                },
                Some(signal) = signals.recv() => break Some(Halt::Signal(signal)),
            }
        };
        // What runs is not wanted any more; without this it would be terminated by and by.
        let still_running = running.len();
        running.abort_all();
        self.remote.leave().await;
        self.reporter.summarize(
            begun.elapsed(),
            still_running,
            input.waiting.len(),
            input.is_over,
        );
        match halt {
            None => Ok(match self.reporter.failures() {
                failures @ 0..=100 => u8::try_from(failures).unwrap_or(MANY),
                _ => MANY,
            }),
            Some(Halt::Signal(signal)) => Ok(signal.exit_code()),
            Some(Halt::BrokenPipe) => Ok(BROKEN_PIPE),
            Some(Halt::Problem(problem)) => Err(problem),
        }
    }

    fn start(&self, running: &mut JoinSet<Result<Finished, io::Error>>, job: Job) {
        let process = self
            .remote
            .process(self.template.argv(&job.line), &self.place);
        let mux = self.remote.mux.clone();
        let printer = self.reporter.printer(&job);
        running.spawn_local(job.run(mux, process, printer));
    }

    /// Reports a command that has ended. Returns whether it succeeded.
    fn take(
        &mut self,
        finished: Result<Result<Finished, io::Error>, tokio::task::JoinError>,
    ) -> Result<bool, Halt> {
        let finished = finished
            .map_err(|error| Halt::Problem(error.to_string()))?
            .map_err(unwritable)?;
        if let End::Disconnected(reason) = &finished.end {
            return Err(Halt::Problem(format!(
                "lost command {} ({}): {reason}",
                finished.job.number, finished.job.line
            )));
        }
        let succeeded = finished.end.is_success();
        self.reporter.report(finished).map_err(unwritable)?;
        Ok(succeeded)
    }
}

fn unwritable(error: io::Error) -> Halt {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Halt::BrokenPipe;
    }
    Halt::Problem(format!("cannot keep or print output: {error}"))
}
