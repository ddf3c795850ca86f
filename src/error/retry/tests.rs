use std::time::Duration;

use super::*;
use crate::{
    error::{DisconnectReason, InvalidRequest, JsonError},
    protocol::jsonrpc::ErrorObject,
};

const MISSING: &str = "No such file or directory (os error 2)";

fn gone() -> DisconnectReason {
    DisconnectReason::PeerClosed { code: None }
}

/// Returns the error of a call that was refused so. The kind is that of 0.171.
fn rejected(method: &'static str, code: i64, kind: Option<&str>, message: &str) -> CallError {
    let error = ErrorObject {
        code: ErrorCode(code),
        message: message.to_owned(),
        kind: kind.map(Into::into),
    };
    CallError::rejected(method, error)
}

fn disconnected(sent: bool) -> CallError {
    CallError::Disconnected {
        method: "m",
        reason: gone(),
        sent,
    }
}

fn late(sent: bool) -> CallError {
    CallError::DeadlineExceeded {
        method: "m",
        after: Duration::ZERO,
        sent,
    }
}

fn not_consumed(source: CallError) -> CallError {
    CallError::OutputNotConsumed {
        method: "m",
        process_id: "p".into(),
        unconsumed: 1,
        source: Box::new(source),
    }
}

fn helper_failed(source: HelperFailure) -> CallError {
    CallError::HelperFailed {
        method: "m",
        source,
    }
}

#[test]
fn p8_each_call_error_tells_what_is_missing_and_whether_to_try_again() {
    let json = || JsonError::new("wrong");
    let start = "process/start";
    let (no, yes) = (false, true);
    for (error, is_not_found, is_retryable) in [
        (
            rejected(start, -32603, Some("spawnNotFound"), MISSING),
            yes,
            no,
        ),
        (
            rejected(start, -32603, Some("spawnPermissionDenied"), ""),
            no,
            no,
        ),
        (rejected(start, -32603, Some("spawnFailed"), ""), no, no),
        (rejected(start, -32603, None, MISSING), yes, no),
        (
            rejected(start, -32600, None, "process p already exists"),
            no,
            no,
        ),
        (rejected("fs/readFile", -32004, None, MISSING), yes, no),
        (
            rejected("fs/readBlock", -32004, None, "unknown file handle"),
            yes,
            no,
        ),
        // The form of March 2026.
        (rejected("fs/readFile", -32603, None, MISSING), yes, no),
        (
            rejected("fs/readFile", -32603, None, "Not a directory (os error 20)"),
            no,
            no,
        ),
        // Other methods have other reasons for the same words.
        (rejected("http/request", -32603, None, MISSING), no, no),
        (
            rejected("process/read", -32600, None, "unknown process id p"),
            yes,
            no,
        ),
        (rejected("process/read", -32601, None, "stub"), no, no),
        (rejected("process/read", -32010, None, "attached"), no, no),
        (rejected("process/read", -32011, None, "full"), no, yes),
        (late(true), no, no),
        (late(false), no, yes),
        (not_consumed(late(true)), no, no),
        (not_consumed(late(false)), no, yes),
        (
            CallError::Overloaded {
                method: "m",
                in_flight: 1,
                queued_bytes: 1,
            },
            no,
            yes,
        ),
        (disconnected(true), no, no),
        (disconnected(false), no, yes),
        (
            CallError::OutcomeUnknown {
                method: "m",
                reason: gone(),
            },
            no,
            no,
        ),
        (
            CallError::Stuck {
                method: "m",
                process_id: "p".into(),
            },
            no,
            no,
        ),
        (
            CallError::Unsupported {
                method: "m",
                capability: "c",
                remedy: "r",
            },
            no,
            no,
        ),
        (helper_failed(HelperFailure::NotRecorded), no, no),
        (helper_failed(HelperFailure::NotFound), no, no),
        (helper_failed(HelperFailure::NoTerminal), no, no),
        (
            helper_failed(HelperFailure::NotStarted(RegisterError::Duplicate(
                "p".into(),
            ))),
            no,
            no,
        ),
        (
            helper_failed(HelperFailure::NotStarted(RegisterError::Disconnected(
                gone(),
            ))),
            no,
            yes,
        ),
        (
            helper_failed(HelperFailure::Lost(FailureReason::Forgotten)),
            no,
            no,
        ),
        (
            helper_failed(HelperFailure::Failed {
                exit_code: None,
                said: MISSING.to_owned(),
            }),
            no,
            no,
        ),
        (
            CallError::InvalidRequest {
                method: "m",
                source: InvalidRequest::EmptyArgv,
            },
            no,
            no,
        ),
        (
            CallError::InvalidResponse {
                method: "m",
                source: json(),
            },
            no,
            no,
        ),
    ] {
        assert_eq!(error.is_not_found(), is_not_found, "not found: {error:?}");
        assert_eq!(error.is_retryable(), is_retryable, "retryable: {error:?}");
        let start = StartError::Call(error);
        assert_eq!(start.is_not_found(), is_not_found, "not found: {start:?}");
        assert_eq!(start.is_retryable(), is_retryable, "retryable: {start:?}");
    }
}

#[test]
fn p8_each_registration_error_tells_whether_to_try_again() {
    for (error, is_retryable) in [
        (RegisterError::Duplicate("p".into()), false),
        (RegisterError::SessionStopped("p".into()), false),
        (RegisterError::Disconnected(gone()), true),
    ] {
        assert_eq!(error.is_retryable(), is_retryable, "{error:?}");
        let start = StartError::Register(error);
        assert_eq!(start.is_retryable(), is_retryable, "{start:?}");
        assert!(!start.is_not_found(), "{start:?}");
    }
}

#[test]
fn p8_no_failed_session_may_be_started_again_as_if_nothing_had_happened() {
    for (reason, is_not_found) in [
        (FailureReason::Disconnected(gone()), false),
        (FailureReason::Overflow { held: 2, budget: 1 }, false),
        (
            FailureReason::MissingEvent {
                missing: 1,
                waiting: 1,
            },
            false,
        ),
        (FailureReason::ExitedTwice, false),
        (FailureReason::ClosedTwice, false),
        (FailureReason::Forgotten, true),
        (FailureReason::StartUnanswered, false),
    ] {
        assert_eq!(reason.is_not_found(), is_not_found, "{reason:?}");
        assert!(!reason.is_retryable(), "{reason:?}");
    }
}

#[test]
fn each_connect_error_tells_whether_to_try_again() {
    let server = || "ws://s/".to_owned();
    let problem = || "p".to_owned();
    let status = |status| ConnectError::UpgradeRefused {
        server: server(),
        status,
        retry_after: None,
    };
    let refused = |code| ConnectError::HandshakeRejected {
        server: server(),
        code,
        message: String::new(),
    };
    let after = Duration::ZERO;
    for (error, is_retryable) in [
        (ConnectError::InvalidUrl { problem: problem() }, false),
        (
            ConnectError::PlaintextCredentials { server: server() },
            false,
        ),
        (ConnectError::InvalidCredentials { problem: "p" }, false),
        (
            ConnectError::Timeout {
                server: server(),
                after,
            },
            true,
        ),
        (
            ConnectError::Unreachable {
                server: server(),
                problem: problem(),
            },
            true,
        ),
        (status(400), false),
        (status(401), false),
        (status(403), false),
        (status(404), false),
        (status(408), true),
        (status(425), true),
        (status(429), true),
        (status(500), false),
        (status(501), false),
        (status(502), true),
        (status(503), true),
        (status(504), true),
        (status(505), false),
        (
            ConnectError::NotWebSocket {
                server: server(),
                problem: problem(),
            },
            false,
        ),
        (
            ConnectError::NotExecServer {
                server: server(),
                problem: problem(),
            },
            false,
        ),
        (refused(ErrorCode::SESSION_ATTACHED), true),
        (refused(ErrorCode::INVALID_PARAMS), false),
        (
            ConnectError::HandshakeTimeout {
                server: server(),
                after,
            },
            true,
        ),
        (
            ConnectError::HandshakeDisconnected {
                server: server(),
                reason: gone(),
            },
            true,
        ),
    ] {
        assert_eq!(error.is_retryable(), is_retryable, "{error:?}");
    }
}
