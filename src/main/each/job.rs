//! One command, from its start to its end.

use std::{io, time::Duration};

use execmux::{
    CallError, FailureReason, Mux, Overflow, RegisterError, Session, SessionEvent, StartError,
    StartProcess,
};
use tokio::time::Instant;

use super::report::Printer;
use crate::problem::told;

/// Exit code that a shell gives to a command that it cannot start.
const NOT_STARTED: i32 = 127;

pub(super) struct Job {
    /// Its place among the lines, from 1.
    pub(super) number: usize,
    pub(super) line: String,
}

pub(super) struct Finished {
    pub(super) job: Job,
    pub(super) end: End,
    /// What it wrote, as far as that is not printed yet.
    pub(super) printer: Printer,
    /// Whether nothing of its output is lost.
    pub(super) is_complete: bool,
    pub(super) took: Duration,
}

pub(super) enum End {
    Exited(i32),
    /// It did not start, or how it ended is not known.
    Problem(String),
    /// The connection is gone for good.
    Disconnected(String),
}

impl End {
    pub(super) fn is_success(&self) -> bool {
        matches!(self, End::Exited(0))
    }

    pub(super) fn exit_code(&self) -> i32 {
        match self {
            End::Exited(code) => *code,
            End::Problem(_) | End::Disconnected(_) => NOT_STARTED,
        }
    }
}

impl From<StartError> for End {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Register(RegisterError::Disconnected(_))
            | StartError::Call(CallError::Disconnected { .. }) => End::Disconnected(told(&error)),
            error => End::Problem(told(&error)),
        }
    }
}

impl Job {
    /// Runs it. An error is that of keeping or printing its output.
    pub(super) async fn run(
        self,
        mux: Mux,
        process: StartProcess,
        mut printer: Printer,
    ) -> Result<Finished, io::Error> {
        let begun = Instant::now();
        // All output is consumed here and at once, so that nobody waits for one of them in particular, and a
        // slow reader of ours loses nothing.
        let (session, mut events) = Session::stream();
        let started = mux.start(process, session.overflow(Overflow::Block)).await;
        let mut is_complete = true;
        let end = match started {
            Err(error) => End::from(error),
            Ok(_) => loop {
                match events.recv().await {
                    Some(SessionEvent::Output(output)) => {
                        printer.take(output.stream, &output.chunk)?;
                    }
                    Some(SessionEvent::Closed(closed)) => {
                        is_complete = closed.complete;
                        break closed.exit_code.map_or_else(
                            || End::Problem("the server did not tell its exit code".to_owned()),
                            End::Exited,
                        );
                    }
                    Some(SessionEvent::Failed(failed)) => {
                        let reason = told(&failed.reason);
                        break match failed.reason {
                            FailureReason::Disconnected(_) => End::Disconnected(reason),
                            _ => End::Problem(reason),
                        };
                    }
                    Some(_) => {}
                    None => break End::Problem("its session ended".to_owned()),
                }
            },
        };
        printer.end()?;
        Ok(Finished {
            job: self,
            end,
            printer,
            is_complete,
            took: begun.elapsed(),
        })
    }
}
