//! A start that was refused because the program or its working directory is missing: the server is asked which.

use std::{path::PathBuf, time::Duration};

use actix::{WeakAddr, dev::OneshotSender};
use tokio::time::Instant;

use crate::{
    connection::{Call, Connection, Dispatch, ReplySlot, decode_response, reply},
    error::{CallError, StartError, StartRefusal},
    protocol::{Metadata, ReadMetadata, Repeat, Started, words},
};

/// The longest that a caller is kept waiting for a better reason than the one that the server has given.
const PATIENCE: Duration = Duration::from_secs(5);

/// What it takes to ask a server about a working directory.
pub(super) struct Question {
    pub(super) connection: WeakAddr<Connection>,
    pub(super) cwd: PathBuf,
    /// The deadline of the start.
    pub(super) until: Instant,
}

impl Question {
    /// Tells the caller why its start was refused, after asking what is at the working directory if that decides it. The
    /// caller is told in any case, if not all that there is to know.
    pub(super) fn settle(
        self,
        refused: CallError,
        sender: OneshotSender<Result<Started, StartError>>,
    ) {
        let left = self.until.saturating_duration_since(Instant::now());
        let connection = self
            .connection
            .upgrade()
            .filter(|_| is_undecided(&refused) && !left.is_zero() && !sender.is_closed());
        let Some(connection) = connection else {
            return reply(sender, Err(refused.into()));
        };
        connection.do_send(Dispatch {
            call: Call::new(ReadMetadata::new(self.cwd)).timeout(left.min(PATIENCE)),
            // The refusal does not wait for another link.
            repeat: Repeat::Never,
            slot: Box::new(CwdSlot { refused, sender }),
        });
    }
}

/// Returns true if either the program or the working directory may be the reason.
fn is_undecided(refused: &CallError) -> bool {
    match refused.refusal() {
        Some(StartRefusal::ProgramOrCwdNotFound) => true,
        // A file may be in the path of either.
        Some(StartRefusal::Failed) => is_not_a_directory(refused),
        Some(
            StartRefusal::ProgramNotFound
            | StartRefusal::CwdNotFound
            | StartRefusal::CwdNotADirectory
            | StartRefusal::PermissionDenied
            | StartRefusal::SandboxUnavailable
            | StartRefusal::SandboxPreparation
            | StartRefusal::Other { .. },
        )
        | None => false,
    }
}

fn is_not_a_directory(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Rejected { code, message, .. } if words::is_not_a_directory(*code, message)
    )
}

/// Where the answer about the working directory goes.
struct CwdSlot {
    refused: CallError,
    sender: OneshotSender<Result<Started, StartError>>,
}

impl ReplySlot for CwdSlot {
    fn resolve(self: Box<Self>, outcome: Result<&str, CallError>) {
        let CwdSlot {
            mut refused,
            sender,
        } = *self;
        let cwd = outcome.and_then(decode_response::<ReadMetadata>);
        if let CallError::Rejected {
            refusal: Some(refusal),
            ..
        } = &mut refused
            && let Some(decided) = decide(refusal, cwd)
        {
            *refusal = decided;
        }
        reply(sender, Err(refused.into()));
    }

    fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Returns the reason for which a start was refused, now that it is known what is at its working directory; `None` if
/// that decides nothing.
fn decide(refusal: &StartRefusal, cwd: Result<Metadata, CallError>) -> Option<StartRefusal> {
    match cwd {
        Ok(cwd) if cwd.is_directory => refusal
            .is_not_found()
            .then_some(StartRefusal::ProgramNotFound),
        Ok(_) => Some(StartRefusal::CwdNotADirectory),
        Err(error) if error.is_not_found() => Some(StartRefusal::CwdNotFound),
        Err(error) if is_not_a_directory(&error) => Some(StartRefusal::CwdNotADirectory),
        Err(_) => None,
    }
}
