use std::{io, sync::Arc, time::Duration};

use super::*;
use crate::{
    error::{
        CallError, ConnectError, DisconnectReason, FailureReason, HelperFailure, InvalidRequest,
        JsonError, RegisterError, ResumeError, StartError,
    },
    router::ShutdownError,
};

const METHOD: &str = "process/write";

fn lost() -> DisconnectReason {
    DisconnectReason::ReadFailed(Arc::new(io::Error::other("the disk is on fire")))
}

fn json() -> JsonError {
    JsonError::new("missing field `chunk`")
}

fn unreachable() -> Arc<ConnectError> {
    Arc::new(ConnectError::HandshakeDisconnected {
        server: "ws://host/".to_owned(),
        reason: lost(),
    })
}

/// One value of each variant that has a source.
fn all() -> Vec<Box<dyn Error>> {
    let window = ResumeError::WindowPassed {
        after: Duration::from_secs(30),
        attempts: 7,
        last: unreachable(),
    };
    let reasons = [
        lost(),
        DisconnectReason::WriteFailed(Arc::new(io::ErrorKind::BrokenPipe.into())),
        DisconnectReason::NotResumed {
            lost: Box::new(DisconnectReason::CutOff),
            why: window.clone(),
        },
        DisconnectReason::InvalidMessage(json()),
        DisconnectReason::InvalidNotification {
            method: METHOD,
            source: json(),
        },
    ];
    let calls = [
        CallError::Disconnected {
            method: METHOD,
            reason: lost(),
            sent: true,
        },
        CallError::OutcomeUnknown {
            method: METHOD,
            reason: lost(),
        },
        CallError::OutputNotConsumed {
            method: METHOD,
            process_id: "p".into(),
            unconsumed: 1000,
            source: Box::new(CallError::DeadlineExceeded {
                method: METHOD,
                after: Duration::from_secs(30),
                sent: true,
            }),
        },
        CallError::InvalidRequest {
            method: METHOD,
            source: InvalidRequest::EmptyArgv,
        },
        CallError::InvalidResponse {
            method: METHOD,
            source: json(),
        },
    ];
    let failures = || {
        [
            HelperFailure::NotStarted(RegisterError::Disconnected(lost())),
            HelperFailure::Lost(FailureReason::Disconnected(lost())),
        ]
    };
    let helpers = failures().map(|source| CallError::HelperFailed {
        method: METHOD,
        source,
    });
    let mut all: Vec<Box<dyn Error>> = vec![
        Box::new(ConnectError::HandshakeDisconnected {
            server: "ws://host/".to_owned(),
            reason: lost(),
        }),
        Box::new(window),
        Box::new(ResumeError::Refused(unreachable())),
        Box::new(InvalidRequest::Unserializable {
            field: "argv",
            source: json(),
        }),
        Box::new(RegisterError::Disconnected(lost())),
        Box::new(FailureReason::Disconnected(lost())),
        Box::new(StartError::Register(RegisterError::Disconnected(lost()))),
        Box::new(StartError::Call(CallError::Disconnected {
            method: METHOD,
            reason: lost(),
            sent: true,
        })),
        Box::new(ShutdownError::Disconnected {
            processes: 2,
            reason: lost(),
        }),
    ];
    all.extend(reasons.map(|it| Box::new(it) as _));
    all.extend(calls.map(|it| Box::new(it) as _));
    all.extend(helpers.map(|it| Box::new(it) as _));
    all.extend(failures().map(|it| Box::new(it) as _));
    #[cfg(all(feature = "server", unix))]
    all.extend([
        Box::new(crate::server::ServerError::Root {
            path: "/srv".into(),
            source: io::Error::other("the disk is on fire"),
        }) as Box<dyn Error>,
        Box::new(crate::server::ServerError::Listen {
            address: ([127, 0, 0, 1], 80).into(),
            source: io::Error::other("the disk is on fire"),
        }),
    ]);
    all
}

#[test]
fn the_text_of_an_error_does_not_tell_its_cause() {
    for error in all() {
        let source = error.source().expect("a cause");
        let text = error.to_string();
        assert!(!text.contains(&source.to_string()), "{error:?}: {text}");
        assert!(!text.is_empty());
        let mut cause = source.source();
        while let Some(deeper) = cause {
            assert!(!text.contains(&deeper.to_string()), "{error:?}: {text}");
            cause = deeper.source();
        }
    }
}

#[test]
fn an_error_with_its_causes_tells_each_once() {
    let error = CallError::Disconnected {
        method: METHOD,
        reason: lost(),
        sent: true,
    };
    assert_eq!(
        Causes(&error).to_string(),
        "no answer to process/write: the connection is gone: reading from the socket failed: the disk is on fire"
    );
}
