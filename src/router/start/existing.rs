//! The question that decides a start whose answer was lost with the link: the server refuses the same start again,
//! perhaps because the first one has started the process.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{StartSlot, StartedProcess};
use crate::{
    connection::{Call, Dispatch, ReplySlot},
    error::{CallError, DisconnectReason},
    protocol::{ErrorCode, Method as _, ReadProcess, Repeat, StartProcess, Started},
    router::healing::is_unknown_process,
    task,
};

/// How long to wait before a question is asked again that could not be answered yet. Doubled with each.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// How long a process may be told as starting. A start that is under way for its own connection alone hangs for good when
/// that is lost: the releases say `is starting` for ever then.
const STARTING_FOR: Duration = Duration::from_secs(10);

/// Where the answer goes to whether a process exists whose start was refused the second time.
pub(super) struct ExistsSlot {
    start: Box<StartSlot>,
    rejection: CallError,
    pause: Duration,
    /// When the server first said that the process is starting.
    starting_since: Option<Instant>,
}

/// What an answer means for the start.
#[derive(Debug)]
enum Verdict {
    Exists,
    /// It was started, has ended, and was forgotten.
    Forgotten,
    NeverStarted,
    /// It is not known yet.
    AskAgain,
    /// Nor here: the server has not decided.
    Starting,
    TimeIsUp,
    Disconnected(DisconnectReason),
    NotToBeKnown,
}

impl ExistsSlot {
    pub(super) fn new(start: Box<StartSlot>, rejection: CallError) -> Box<Self> {
        Box::new(ExistsSlot {
            start,
            rejection,
            pause: FIRST_PAUSE,
            starting_since: None,
        })
    }

    /// Asks, for as long as the start may take.
    pub(super) fn ask(self: Box<Self>) {
        let left = self
            .start
            .deadline
            .saturating_duration_since(Instant::now());
        if left.is_zero() {
            return self.end(Verdict::TimeIsUp);
        }
        let Some(connection) = self.start.connection.upgrade() else {
            return self.end(Verdict::Disconnected(DisconnectReason::Closed));
        };
        let read = ReadProcess::new(&self.start.process_id).max_bytes(1);
        connection.do_send(Dispatch {
            call: Call::new(read).timeout(left),
            repeat: Repeat::Always,
            slot: self,
        });
    }

    /// Asks again after a pause.
    fn ask_later(mut self: Box<Self>) {
        let pause = self.pause;
        self.pause = MAX_PAUSE.min(pause * 2);
        let until = self.start.deadline.min(Instant::now() + pause);
        task::spawn(async move {
            sleep(until.saturating_duration_since(Instant::now())).await;
            self.ask();
        });
    }

    fn end(self, verdict: Verdict) {
        let method = StartProcess::NAME;
        let ExistsSlot {
            start, rejection, ..
        } = self;
        let started = Started {
            process_id: start.process_id.clone(),
            sandbox_type: None,
        };
        match verdict {
            Verdict::Exists => start.end(Ok(started)),
            Verdict::Forgotten => start.end_as(Some(StartedProcess::Forgotten), Ok(started)),
            Verdict::NeverStarted => start.end(Err(rejection)),
            Verdict::AskAgain | Verdict::Starting | Verdict::TimeIsUp => {
                let after = start.timeout;
                start.end(Err(CallError::DeadlineExceeded {
                    method,
                    after,
                    sent: true,
                }));
            }
            Verdict::Disconnected(reason) => {
                // The start was sent before, whether or not this question was.
                let sent = true;
                start.end(Err(CallError::Disconnected {
                    method,
                    reason,
                    sent,
                }));
            }
            Verdict::NotToBeKnown => {
                let reason = start.repeated.clone().unwrap_or(DisconnectReason::CutOff);
                start.end(Err(CallError::OutcomeUnknown { method, reason }));
            }
        }
    }
}

impl ReplySlot for ExistsSlot {
    fn resolve(mut self: Box<Self>, outcome: Result<&str, CallError>) {
        match verdict(outcome, &self.rejection) {
            Verdict::AskAgain => self.ask_later(),
            Verdict::Starting => {
                let now = Instant::now();
                let since = *self.starting_since.get_or_insert(now);
                match now.saturating_duration_since(since) < STARTING_FOR {
                    true => self.ask_later(),
                    false => self.end(Verdict::NotToBeKnown),
                }
            }
            verdict => self.end(verdict),
        }
    }

    fn is_abandoned(&self) -> bool {
        false
    }

    fn follows_notifications(&self) -> bool {
        true
    }
}

fn verdict(outcome: Result<&str, CallError>, rejection: &CallError) -> Verdict {
    match outcome {
        Ok(_) => Verdict::Exists,
        // The id was taken a moment ago, and nobody else may use it: it was this process that took it.
        Err(unknown) if is_unknown_process(&unknown) && says(rejection, "already exists") => {
            Verdict::Forgotten
        }
        Err(unknown) if is_unknown_process(&unknown) => Verdict::NeverStarted,
        Err(starting) if says(&starting, "is starting") => Verdict::Starting,
        // Not sent: too much else is under way.
        Err(CallError::Overloaded { .. }) => Verdict::AskAgain,
        // A deadline ended the start, and no longer the loss of the link.
        Err(CallError::DeadlineExceeded { .. }) => Verdict::TimeIsUp,
        Err(CallError::Disconnected { reason, .. }) => Verdict::Disconnected(reason),
        Err(_) => Verdict::NotToBeKnown,
    }
}

/// Returns true if the server refused a request in these words. It has no other way to tell.
fn says(rejection: &CallError, words: &str) -> bool {
    matches!(
        rejection,
        CallError::Rejected { code: ErrorCode::INVALID_REQUEST, message, .. } if message.contains(words)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(code: ErrorCode, message: &str) -> CallError {
        CallError::Rejected {
            method: "process/read",
            code,
            message: message.to_owned(),
            refusal: None,
        }
    }

    #[test]
    fn p8_a_start_is_resolved_by_what_the_server_says_of_its_process() {
        let exists = "process p already exists";
        let invalid = "'file:///x' is invalid on 'linux'";
        let refused = |message| Err(rejected(ErrorCode::INVALID_REQUEST, message));
        let (method, after) = ("process/read", Duration::from_secs(1));
        let table = [
            (exists, Ok("{}"), "Exists"),
            (exists, refused("unknown process id p"), "Forgotten"),
            (invalid, refused("unknown process id p"), "NeverStarted"),
            (exists, refused("process id p is starting"), "Starting"),
            (exists, refused("something else"), "NotToBeKnown"),
            (
                exists,
                Err(rejected(
                    ErrorCode::INTERNAL_ERROR,
                    "process id p is starting",
                )),
                "NotToBeKnown",
            ),
            (
                exists,
                Err(CallError::Overloaded {
                    method,
                    in_flight: 1,
                    queued_bytes: 0,
                }),
                "AskAgain",
            ),
            (
                exists,
                Err(CallError::DeadlineExceeded {
                    method,
                    after,
                    sent: true,
                }),
                "TimeIsUp",
            ),
            (
                exists,
                Err(CallError::Disconnected {
                    method,
                    reason: DisconnectReason::Closed,
                    sent: false,
                }),
                "Disconnected(Closed)",
            ),
            (
                exists,
                Err(CallError::OutcomeUnknown {
                    method,
                    reason: DisconnectReason::CutOff,
                }),
                "NotToBeKnown",
            ),
        ];
        for (rejection, answer, expected) in table {
            let rejection = rejected(ErrorCode::INVALID_REQUEST, rejection);
            let shown = format!("{answer:?}");
            let verdict = format!("{:?}", verdict(answer, &rejection));
            assert_eq!(verdict, expected, "{rejection:?} {shown}");
        }
    }
}
