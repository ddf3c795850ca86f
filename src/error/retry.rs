//! Tells of each error if something was not there, and if the same call may be made again.
//!
//! Every match names each variant, so that a new one needs a decision.

use super::{
    CallError, ConnectError, FailureReason, HelperFailure, RegisterError, StartError, StartRefusal,
};
use crate::protocol::{ErrorCode, words};

impl CallError {
    /// Returns true if what the call is about does not exist, as the server says: the program or the working directory
    /// of a start, the file or file handle of a file method, or the process.
    ///
    /// | error | `is_not_found` | `is_retryable` |
    /// | --- | --- | --- |
    /// | [`Rejected`](Self::Rejected) | if the server says so | **true for [`ErrorCode::OVERLOADED`]**; else the same call is refused again, until something changes there |
    /// | [`DeadlineExceeded`](Self::DeadlineExceeded) | false | **true if it was not sent**; else the server may still carry it out |
    /// | [`Overloaded`](Self::Overloaded) | false | **true**: it was not sent |
    /// | [`Disconnected`](Self::Disconnected) | false | **true if it was not sent**, over a new connection |
    /// | [`OutcomeUnknown`](Self::OutcomeUnknown) | false | false: it may have been carried out |
    /// | [`Stuck`](Self::Stuck) | false | false: part of the input may have been read |
    /// | [`OutputNotConsumed`](Self::OutputNotConsumed) | false | as its cause |
    /// | [`Unsupported`](Self::Unsupported) | false | false: this server never can |
    /// | [`HelperFailed`](Self::HelperFailed) | false | as the reason for which a helper was not started; else false |
    /// | [`InvalidRequest`](Self::InvalidRequest) | false | false: the request itself is wrong |
    /// | [`InvalidResponse`](Self::InvalidResponse) | false | false: it was carried out |
    pub fn is_not_found(&self) -> bool {
        match self {
            CallError::Rejected {
                method,
                code,
                message,
                refusal,
            } => {
                let is_file = method.starts_with("fs/");
                refusal.as_ref().is_some_and(StartRefusal::is_not_found)
                    || *code == ErrorCode::NOT_FOUND
                    || is_file && words::is_missing_file(*code, message)
                    || words::is_unknown_process(*code, message)
            }
            // Each of these is about this side, the connection, or a helper.
            CallError::DeadlineExceeded { .. }
            | CallError::Overloaded { .. }
            | CallError::Disconnected { .. }
            | CallError::OutcomeUnknown { .. }
            | CallError::Stuck { .. }
            | CallError::OutputNotConsumed { .. }
            | CallError::Unsupported { .. }
            | CallError::HelperFailed { .. }
            | CallError::InvalidRequest { .. }
            | CallError::InvalidResponse { .. } => false,
        }
    }

    /// Returns true if the same call, unchanged, may succeed later and it is safe to make it again: it is certain that
    /// the server has not carried it out. Where the connection is gone, it takes a new one.
    ///
    /// False does not mean that it is unsafe: whoever knows that a call only reads may make it again after
    /// [`DeadlineExceeded`](Self::DeadlineExceeded), too. The table is at [`is_not_found`](Self::is_not_found).
    pub fn is_retryable(&self) -> bool {
        match self {
            CallError::Overloaded { .. } => true,
            CallError::Disconnected { sent, .. } | CallError::DeadlineExceeded { sent, .. } => {
                !sent
            }
            CallError::Rejected { code, .. } => *code == ErrorCode::OVERLOADED,
            CallError::OutputNotConsumed { source, .. } => source.is_retryable(),
            CallError::HelperFailed { source, .. } => match source {
                HelperFailure::NotStarted(error) => error.is_retryable(),
                HelperFailure::Lost(reason) => reason.is_retryable(),
                HelperFailure::NotRecorded
                | HelperFailure::NotFound
                | HelperFailure::NoTerminal
                | HelperFailure::Failed { .. } => false,
            },
            CallError::OutcomeUnknown { .. }
            | CallError::Stuck { .. }
            | CallError::Unsupported { .. }
            | CallError::InvalidRequest { .. }
            | CallError::InvalidResponse { .. } => false,
        }
    }
}

impl StartError {
    /// Returns true if the program or the working directory does not exist, as the server says:
    /// [`refusal`](Self::refusal) tells which.
    pub fn is_not_found(&self) -> bool {
        match self {
            StartError::Register(_) => false,
            StartError::Call(error) => error.is_not_found(),
        }
    }

    /// Returns true if the same start, unchanged, may succeed later and it is certain that it has started nothing: see
    /// [`CallError::is_retryable`] and [`RegisterError::is_retryable`].
    pub fn is_retryable(&self) -> bool {
        match self {
            StartError::Register(error) => error.is_retryable(),
            StartError::Call(error) => error.is_retryable(),
        }
    }
}

impl RegisterError {
    /// Returns true if the same registration, or the start that it was part of, may succeed later, and nothing was sent.
    ///
    /// | error | `is_retryable` |
    /// | --- | --- |
    /// | [`Duplicate`](Self::Duplicate) | false: it takes another process id, or the end of the other session |
    /// | [`SessionStopped`](Self::SessionStopped) | false: it takes another session |
    /// | [`Disconnected`](Self::Disconnected) | **true**, over a new connection |
    pub fn is_retryable(&self) -> bool {
        match self {
            RegisterError::Disconnected(_) => true,
            RegisterError::Duplicate(_) | RegisterError::SessionStopped(_) => false,
        }
    }
}

impl FailureReason {
    /// Returns true if the session ended because the server does not know its process any more
    /// ([`Forgotten`](Self::Forgotten)).
    pub fn is_not_found(&self) -> bool {
        match self {
            FailureReason::Forgotten => true,
            FailureReason::Disconnected(_)
            | FailureReason::Overflow { .. }
            | FailureReason::MissingEvent { .. }
            | FailureReason::ExitedTwice
            | FailureReason::ClosedTwice
            | FailureReason::ReadsFailed { .. }
            | FailureReason::StartUnanswered => false,
        }
    }

    /// Returns true if it is safe to start the same process again. That is false for every reason so far: the process
    /// was started, or may have been, and has done an unknown part of its work.
    pub fn is_retryable(&self) -> bool {
        match self {
            // The process may still run.
            FailureReason::Disconnected(_)
            | FailureReason::ReadsFailed { .. }
            | FailureReason::StartUnanswered
            // The process ran, and was terminated at some point.
            | FailureReason::Overflow { .. }
            | FailureReason::MissingEvent { .. }
            | FailureReason::ExitedTwice
            | FailureReason::ClosedTwice
            // The process ran to its end.
            | FailureReason::Forgotten => false,
        }
    }
}

impl ConnectError {
    /// Returns true if the same attempt to connect, unchanged, may succeed later.
    ///
    /// | error | `is_retryable` |
    /// | --- | --- |
    /// | [`Timeout`](Self::Timeout), [`Unreachable`](Self::Unreachable) | **true** |
    /// | [`HandshakeTimeout`](Self::HandshakeTimeout), [`HandshakeDisconnected`](Self::HandshakeDisconnected) | **true** |
    /// | [`UpgradeRefused`](Self::UpgradeRefused) | **true for the statuses 408, 425, 429, 502, 503 and 504**, which tell of a state that passes |
    /// | [`HandshakeRejected`](Self::HandshakeRejected) | **true for [`ErrorCode::SESSION_ATTACHED`]** |
    /// | [`StillAttached`](Self::StillAttached) | **true** |
    /// | [`InvalidUrl`](Self::InvalidUrl), [`PlaintextCredentials`](Self::PlaintextCredentials), [`InvalidCredentials`](Self::InvalidCredentials) | false: the configuration is wrong |
    /// | [`ArbiterStopped`](Self::ArbiterStopped) | false: it takes another arbiter |
    /// | [`NotWebSocket`](Self::NotWebSocket), [`NotExecServer`](Self::NotExecServer) | false: something else listens there |
    pub fn is_retryable(&self) -> bool {
        match self {
            ConnectError::Timeout { .. }
            | ConnectError::Unreachable { .. }
            | ConnectError::HandshakeTimeout { .. }
            | ConnectError::HandshakeDisconnected { .. }
            | ConnectError::StillAttached { .. } => true,
            ConnectError::UpgradeRefused { status, .. } => {
                matches!(status, 408 | 425 | 429 | 502..=504)
            }
            ConnectError::HandshakeRejected { code, .. } => *code == ErrorCode::SESSION_ATTACHED,
            ConnectError::InvalidUrl { .. }
            | ConnectError::PlaintextCredentials { .. }
            | ConnectError::InvalidCredentials { .. }
            | ConnectError::ArbiterStopped
            | ConnectError::NotWebSocket { .. }
            | ConnectError::NotExecServer { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests;
