//! What becomes of calls, and what the server did of them.

use std::fmt;

use execmux::{
    CallError, DisconnectReason,
    protocol::{WriteStatus, Written},
};

use super::super::faulty_server::FaultyServer;

/// How a call has ended.
#[derive(Debug)]
pub enum Fate {
    Done,
    /// The server said no, or that there is nobody to write to.
    Refused,
    NotSent,
    Late,
    Unknown,
    Stuck,
    Gone(DisconnectReason),
    /// The caller did not wait.
    Dropped,
}

/// A call whose traces are to be found at the server, or not.
#[derive(Debug)]
pub struct Made {
    pub what: What,
    pub fate: Fate,
}

#[derive(Debug)]
pub enum What {
    WriteFile(String),
    Write {
        process_id: String,
        text: String,
    },
    /// Something that can be asked twice.
    Harmless(&'static str),
}

impl Fate {
    /// Of a call that was waited for, or not.
    pub fn of<T>(outcome: Option<Result<T, CallError>>) -> Result<Self, String>
    where
        T: fmt::Debug,
    {
        Ok(match outcome {
            None => Fate::Dropped,
            Some(Ok(_)) => Fate::Done,
            Some(Err(CallError::Rejected { .. })) => Fate::Refused,
            Some(Err(
                CallError::Overloaded { .. }
                | CallError::DeadlineExceeded { sent: false, .. }
                | CallError::Unsupported { .. },
            )) => Fate::NotSent,
            Some(Err(CallError::DeadlineExceeded { .. })) => Fate::Late,
            Some(Err(CallError::OutputNotConsumed {
                unconsumed, source, ..
            })) if unconsumed > 0 => return Fate::of(Some(Err::<T, _>(*source))),
            Some(Err(CallError::OutcomeUnknown { .. })) => Fate::Unknown,
            Some(Err(CallError::Stuck { .. })) => Fate::Stuck,
            Some(Err(CallError::Disconnected { reason, .. })) => Fate::Gone(reason),
            Some(Err(other)) => return Err(format!("{other:?}")),
        })
    }

    pub fn of_write(outcome: Option<Result<Written, CallError>>) -> Result<Self, String> {
        match outcome {
            Some(Ok(Written {
                status: WriteStatus::Accepted,
                ..
            })) => Ok(Fate::Done),
            Some(Ok(_)) => Ok(Fate::Refused),
            other => Fate::of(other),
        }
    }
}

/// Checks that every call had the effect that its caller was told.
pub fn check(calls: &[Made], server: &FaultyServer) -> Vec<String> {
    let state = server.state();
    let release = server.plan.release;
    let mut faults = Vec::new();
    for Made { what, fate } in calls {
        let may_be_unknown = match what {
            What::WriteFile(_) => true,
            What::Write { .. } => !release.is_newer(),
            What::Harmless(_) => false,
        };
        if matches!(fate, Fate::Unknown) && !may_be_unknown {
            faults.push(format!("{what:?} could be repeated, and is {fate:?}"));
        }
        if let What::WriteFile(path) = what {
            let times = state.files.get(path).copied().unwrap_or(0);
            let is_right = match fate {
                Fate::Done => times == 1,
                Fate::Refused | Fate::NotSent => times == 0,
                _ => times <= 1,
            };
            if !is_right {
                faults.push(format!("{what:?} is {fate:?}, and was done {times} times"));
            }
        }
        if matches!(fate, Fate::Stuck) {
            let What::Write { process_id, .. } = what else {
                faults.push(format!("{what:?} is stuck"));
                continue;
            };
            if !state.blocking.contains(process_id) {
                faults.push(format!("{what:?} is stuck, and its process reads"));
            }
        }
    }
    for (process_id, process) in &state.processes {
        let mut came = process.stdin.iter().peekable();
        for Made { what, fate } in calls {
            let What::Write {
                process_id: to,
                text,
            } = what
            else {
                continue;
            };
            if to != process_id {
                continue;
            }
            let arrived = came.next_if_eq(&text).is_some();
            let is_right = match fate {
                Fate::Done => arrived,
                Fate::NotSent => !arrived,
                // A write that is repeated may find its process forgotten.
                Fate::Refused => !arrived || process.is_forgotten,
                _ => true,
            };
            if !is_right {
                faults.push(format!("{text} is {fate:?}, arrived: {arrived}"));
            }
        }
        if came.peek().is_some() {
            let stdin = &process.stdin;
            faults.push(format!("{process_id} got twice or out of order: {stdin:?}"));
        }
    }
    faults
}
