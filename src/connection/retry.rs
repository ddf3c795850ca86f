//! Which failed attempts to connect are worth another one, and how long to wait before it.

use std::{sync::Arc, time::Duration};

use crate::error::{ConnectError, ResumeError};

/// How long to wait before the second attempt; the first is made at once. Doubled with each.
pub(super) const FIRST_DELAY: Duration = Duration::from_millis(50);

/// The longest wait between two attempts, unless the server asks for a longer one.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(2);

/// The shortest wait after a server has said that it is asked too much and not for how long to wait.
pub(super) const BUSY_DELAY: Duration = Duration::from_secs(1);

/// What the next attempt to resume is made under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Again {
    /// How long the server wants to be left alone, beside the usual delay.
    pub(super) wait: Duration,
    /// Whether the server still holds the connection that was lost, so that its time for coming back has not begun.
    pub(super) is_attached: bool,
}

/// Returns under which conditions to resume is tried again after this error, or why it is not.
pub(super) fn resume_again(error: &Arc<ConnectError>) -> Result<Again, ResumeError> {
    let again = Again {
        wait: wait(error),
        is_attached: matches!(**error, ConnectError::StillAttached { .. }),
    };
    match &**error {
        // Servers tell by their words only.
        ConnectError::HandshakeRejected { message, .. } if message.contains("unknown session") => {
            Err(ResumeError::SessionUnknown)
        }
        ConnectError::StillAttached { .. }
        | ConnectError::Timeout { .. }
        | ConnectError::Unreachable { .. }
        | ConnectError::NotWebSocket { .. }
        | ConnectError::HandshakeTimeout { .. }
        | ConnectError::HandshakeDisconnected { .. }
        // Proxies say so while a server is away, or has too much to do.
        | ConnectError::UpgradeRefused {
            status: 408 | 425 | 429 | 500..,
            ..
        } => Ok(again),
        ConnectError::UpgradeRefused { .. }
        | ConnectError::HandshakeRejected { .. }
        | ConnectError::InvalidUrl { .. }
        | ConnectError::PlaintextCredentials { .. }
        | ConnectError::InvalidCredentials { .. }
        | ConnectError::ArbiterStopped
        | ConnectError::NotExecServer { .. } => Err(ResumeError::Refused(error.clone())),
    }
}

/// Returns how long to wait, beside the usual delay, before a first connect is tried again after this error. `None` if
/// it is not: what answers is not there for this client, whenever it is asked.
pub(super) fn connect_again(error: &ConnectError) -> Option<Duration> {
    error.is_retryable().then(|| wait(error))
}

/// Returns how long the server wants to be left alone.
fn wait(error: &ConnectError) -> Duration {
    let ConnectError::UpgradeRefused {
        status,
        retry_after,
        ..
    } = error
    else {
        return Duration::ZERO;
    };
    match (retry_after, status) {
        (Some(wait), _) => *wait,
        (None, 429 | 503) => BUSY_DELAY,
        (None, _) => Duration::ZERO,
    }
}

/// Keeps many clients from coming back at the same moment. splitmix64, which is enough for that.
#[derive(Debug)]
pub(super) struct Jitter(pub(super) u64);

impl Jitter {
    /// The wait before the attempt that follows so many failed ones: between half and all of a delay
    /// that doubles.
    pub(super) fn delay(&mut self, attempts: u32) -> Duration {
        let doubled = FIRST_DELAY.saturating_mul(1 << (attempts - 1).min(16));
        let half = doubled.min(MAX_DELAY) / 2;
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let fraction = ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24);
        half + half.mul_f64(fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<Duration>) -> ConnectError {
        ConnectError::UpgradeRefused {
            server: "s".into(),
            status,
            retry_after,
        }
    }

    #[test]
    fn p6_statuses_decide_whether_another_attempt_is_made() {
        for (code, resumes, connects) in [
            (400, false, false),
            (401, false, false),
            (403, false, false),
            (404, false, false),
            (410, false, false),
            (429, true, true),
            (500, true, false),
            (502, true, true),
            (503, true, true),
            (504, true, true),
        ] {
            let error = Arc::new(status(code, None));
            assert_eq!(resume_again(&error).is_ok(), resumes, "{code}");
            assert_eq!(connect_again(&error).is_some(), connects, "{code}");
        }
    }

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_says() {
        let hour = Duration::from_secs(3600);
        for (code, retry_after, expected) in [
            (429, Some(hour), hour),
            (429, Some(Duration::ZERO), Duration::ZERO),
            (429, None, BUSY_DELAY),
            (503, None, BUSY_DELAY),
            (502, None, Duration::ZERO),
            (502, Some(hour), hour),
        ] {
            let error = Arc::new(status(code, retry_after));
            assert_eq!(resume_again(&error).unwrap().wait, expected, "{code}");
            assert_eq!(connect_again(&error), Some(expected), "{code}");
        }
    }

    #[test]
    fn what_is_no_exec_server_is_not_dialled_again() {
        for error in [
            ConnectError::NotExecServer {
                server: "s".into(),
                problem: "p".into(),
            },
            ConnectError::NotWebSocket {
                server: "s".into(),
                problem: "p".into(),
            },
        ] {
            assert_eq!(connect_again(&error), None, "{error}");
        }
    }
}
