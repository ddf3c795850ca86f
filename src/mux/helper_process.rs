//! Signals and sizes of terminals for processes on servers that have no request for them: short processes
//! beside them, over the same connection.

use std::time::Duration;

use actix_rt::time::{sleep, timeout};
use tokio::time::Instant;

use super::Mux;
use crate::{
    error::{CallError, DisconnectReason, FailureReason, HelperFailure, RegisterError, StartError},
    protocol::{
        Done, NOT_FOUND, NOT_RECORDED, ProcessId, ReadProcess, Record, StartProcess, Unsupported,
    },
    router::{FindRecord, Found, Session, SessionEvent, is_unknown_process},
};

/// How long a helper may take. It looks for its process for about 10 s.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked meanwhile whether the process has exited, and the helper has nothing to do.
const LOOK: Duration = Duration::from_millis(250);

/// How long the server may take to tell of the exit of a process that is gone.
const EXIT_OVERDUE: Duration = Duration::from_secs(5);

/// The most that is kept of what a helper says.
const SAID: usize = 1 << 10;

impl Mux {
    /// Has a helper do `method` to a process, which it may if the process was started for that.
    pub(super) async fn help(
        &self,
        method: &'static str,
        process_id: &ProcessId,
        missing: Unsupported,
        helper: impl FnOnce(&Record, bool) -> Result<StartProcess, HelperFailure>,
    ) -> Result<Done, CallError> {
        let failed = |source| CallError::HelperFailed { method, source };
        let (record, is_written) = match self.find_record(method, process_id).await? {
            Found::Recorded { record, is_written } => (record, is_written),
            Found::Exited => return Ok(Done {}),
            Found::NoSession if self.has_ended(process_id).await? => return Ok(Done {}),
            Found::NotRecorded | Found::NoSession => {
                return Err(CallError::unsupported(method, missing));
            }
        };
        let helper = helper(&record, is_written).map_err(failed)?;
        let helped = self.run_helper(method, process_id, helper).await?;
        let Err(failure) = helped else {
            return Ok(Done {});
        };
        // A process that has ended meanwhile is not an error. That it has may be about to be told.
        let patience = match failure {
            HelperFailure::NotFound => EXIT_OVERDUE,
            _ => Duration::ZERO,
        };
        let until = Instant::now() + patience;
        loop {
            if self.is_over(method, process_id).await? {
                return Ok(Done {});
            }
            if Instant::now() >= until {
                return Err(failed(failure));
            }
            sleep(LOOK / 5).await;
        }
    }

    /// Runs a helper to its end, or until the process has none any more that it could help.
    async fn run_helper(
        &self,
        method: &'static str,
        process_id: &ProcessId,
        helper: StartProcess,
    ) -> Result<Result<(), HelperFailure>, CallError> {
        let gone = |reason, sent| CallError::Disconnected {
            method,
            reason,
            sent,
        };
        // When the stream is dropped, a helper that still runs is terminated.
        let (session, mut events) = Session::stream();
        match self.start(helper, session).await {
            Ok(_) => {}
            Err(StartError::Call(error)) => return Err(error),
            Err(StartError::Register(RegisterError::Disconnected(reason))) => {
                return Err(gone(reason, false));
            }
            Err(StartError::Register(refused)) => {
                return Ok(Err(HelperFailure::NotStarted(refused)));
            }
        }
        let until = Instant::now() + TIMEOUT;
        let mut said = Vec::new();
        let exit_code = loop {
            match timeout(LOOK, events.recv()).await {
                Ok(Some(SessionEvent::Output(output))) => {
                    let room = SAID.saturating_sub(said.len());
                    said.extend_from_slice(&output.chunk[..output.chunk.len().min(room)]);
                }
                Ok(Some(SessionEvent::Closed(closed))) => break closed.exit_code,
                Ok(Some(SessionEvent::Failed(failed))) => match failed.reason {
                    FailureReason::Disconnected(reason) => return Err(gone(reason, true)),
                    reason => return Ok(Err(HelperFailure::Lost(reason))),
                },
                Ok(Some(_)) => {}
                Ok(None) => return Err(gone(DisconnectReason::Closed, true)),
                Err(_) if self.is_over(method, process_id).await? => return Ok(Ok(())),
                Err(_) if Instant::now() >= until => {
                    return Err(CallError::DeadlineExceeded {
                        method,
                        after: TIMEOUT,
                        sent: true,
                    });
                }
                Err(_) => {}
            }
        };
        Ok(match exit_code {
            Some(0) => Ok(()),
            Some(NOT_RECORDED) => Err(HelperFailure::NotRecorded),
            Some(NOT_FOUND) => Err(HelperFailure::NotFound),
            exit_code => Err(HelperFailure::Failed {
                exit_code,
                said: String::from_utf8_lossy(&said).trim().to_owned(),
            }),
        })
    }

    async fn find_record(
        &self,
        method: &'static str,
        process_id: &ProcessId,
    ) -> Result<Found, CallError> {
        let process_id = process_id.clone();
        let found = self.router.send(FindRecord { process_id }).await;
        found.map_err(|_| CallError::Disconnected {
            method,
            reason: DisconnectReason::Closed,
            // A helper may have been started before.
            sent: true,
        })
    }

    /// Whether a process is known to have exited. It is asked after a helper was started: what goes wrong here must not
    /// read as if nothing had been done yet.
    async fn is_over(
        &self,
        method: &'static str,
        process_id: &ProcessId,
    ) -> Result<bool, CallError> {
        match self.find_record(method, process_id).await? {
            Found::Exited => Ok(true),
            Found::NoSession => match self.has_ended(process_id).await {
                // It is asked again in a moment.
                Err(CallError::Overloaded { .. }) => Ok(false),
                Err(CallError::Disconnected { reason, .. }) => Err(CallError::Disconnected {
                    method,
                    reason,
                    sent: true,
                }),
                outcome => outcome,
            },
            Found::Recorded { .. } | Found::NotRecorded => Ok(false),
        }
    }

    /// Asks the server whether a process has exited.
    async fn has_ended(&self, process_id: &ProcessId) -> Result<bool, CallError> {
        match self.read(ReadProcess::new(process_id).max_bytes(1)).await {
            Ok(read) => Ok(read.exited),
            Err(error) if is_unknown_process(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
