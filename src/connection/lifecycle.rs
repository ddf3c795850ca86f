//! The states of a connection: connecting, open, recovering, closing, closed. No actor, no socket, no
//! clock.

use std::{mem, sync::Arc, time::Duration};

use actix::Message;
use tokio::time::Instant;

use super::pending::after;
use crate::{
    error::{ConnectError, DisconnectReason, ResumeError},
    protocol::ErrorCode,
};

/// How long to wait before the second attempt; the first is made at once. Doubled with each.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// How long before the end the last attempt is made.
const LAST_ATTEMPT: Duration = Duration::from_millis(500);

/// The longest wait between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// The state of a connection, as [`Subscribe`](crate::Subscribe)d actors are told of it.
///
/// A connection that is not open yet has no actor: [`Mux::connect`](crate::Mux::connect) waits for that.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LinkState {
    /// The connection stands.
    Open,
    /// The connection is lost and being resumed. Calls wait, and sessions hear nothing.
    #[non_exhaustive]
    Recovering {
        /// Since when.
        since: std::time::Instant,
        /// How many attempts have failed.
        attempts: u32,
    },
    /// The connection is gone for good, and this is why. Nothing follows.
    Closed(DisconnectReason),
}

impl Message for LinkState {
    type Result = ();
}

/// What to do after something has happened.
#[derive(Debug)]
pub(crate) enum Next {
    /// Nothing: it does not concern this state.
    Nothing,
    /// Dial, not before `at`, and give up at `until`.
    Dial { at: Instant, until: Instant },
    /// All is over.
    Close(DisconnectReason),
}

/// The state of one connection, and what it may become.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    phase: Phase,
    /// How long the connection may be resumed after it was lost, if at all.
    window: Option<Duration>,
    jitter: Jitter,
    /// How many links in a row were lost before they brought anything.
    useless_links: u32,
}

#[derive(Debug)]
enum Phase {
    Connecting,
    Open,
    Recovering(Recovering),
    /// This side has closed; what is under way still comes.
    Closing,
    Closed(DisconnectReason),
}

#[derive(Debug)]
struct Recovering {
    lost: DisconnectReason,
    since: Instant,
    until: Instant,
    attempts: u32,
}

impl Lifecycle {
    /// Begins with connecting. `seed` decides on the waits between attempts.
    pub(crate) fn new(window: Option<Duration>, seed: u64) -> Self {
        Lifecycle {
            phase: Phase::Connecting,
            window,
            jitter: Jitter(seed),
            useless_links: 0,
        }
    }

    /// The link stands, for the first time or again.
    pub(crate) fn opened(&mut self) -> bool {
        let opens = matches!(self.phase, Phase::Connecting | Phase::Recovering(_));
        if opens {
            self.phase = Phase::Open;
        }
        opens
    }

    /// The link is lost. If it has brought something, another is dialled at once.
    pub(crate) fn lost(
        &mut self,
        reason: DisconnectReason,
        was_useful: bool,
        now: Instant,
    ) -> Next {
        match (&self.phase, self.window) {
            (Phase::Open, Some(window)) if !window.is_zero() && is_resumable(&reason) => {
                let until = after(now, window);
                self.phase = Phase::Recovering(Recovering {
                    lost: reason,
                    since: now,
                    until,
                    attempts: 0,
                });
                if was_useful {
                    self.useless_links = 0;
                    return Next::Dial { at: now, until };
                }
                self.useless_links += 1;
                let at = now + self.jitter.delay(self.useless_links);
                Next::Dial { at, until }
            }
            (Phase::Connecting | Phase::Open, _) => self.end(reason),
            // However the peer takes it, it was this side that closed.
            (Phase::Closing, _) => self.end(DisconnectReason::Closed),
            (Phase::Recovering(_) | Phase::Closed(_), _) => Next::Nothing,
        }
    }

    /// An attempt to resume has failed.
    pub(crate) fn attempt_failed(&mut self, error: ConnectError, now: Instant) -> Next {
        let Phase::Recovering(recovering) = &mut self.phase else {
            return Next::Nothing;
        };
        recovering.attempts += 1;
        let attempts = recovering.attempts;
        let verdict = verdict(error);
        let why = match verdict {
            Ok(error) => {
                let until = recovering.until;
                let last = until.checked_sub(LAST_ATTEMPT).unwrap_or(now);
                if now < last {
                    let at = last.min(now + self.jitter.delay(attempts));
                    return Next::Dial { at, until };
                }
                ResumeError::WindowPassed {
                    after: now - recovering.since,
                    attempts,
                    last: Arc::new(error),
                }
            }
            Err(why) => why,
        };
        let lost = Box::new(recovering.lost.clone());
        self.end(DisconnectReason::NotResumed { lost, why })
    }

    /// This side wants to close. Returns whether there is something to be finished first.
    pub(crate) fn close(&mut self) -> Next {
        match self.phase {
            Phase::Open => {
                self.phase = Phase::Closing;
                Next::Nothing
            }
            Phase::Closing | Phase::Closed(_) => Next::Nothing,
            Phase::Connecting | Phase::Recovering(_) => self.end(DisconnectReason::Closed),
        }
    }

    /// All is over. Only the first reason counts.
    pub(crate) fn end(&mut self, reason: DisconnectReason) -> Next {
        if let Phase::Closed(_) = self.phase {
            return Next::Nothing;
        }
        let _ended = mem::replace(&mut self.phase, Phase::Closed(reason.clone()));
        Next::Close(reason)
    }

    /// Why no more calls are taken, if that is so.
    pub(crate) fn refusal(&self) -> Option<DisconnectReason> {
        match &self.phase {
            Phase::Connecting | Phase::Open | Phase::Recovering(_) => None,
            Phase::Closing => Some(DisconnectReason::Closed),
            Phase::Closed(reason) => Some(reason.clone()),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing)
    }

    /// Whether a lost link would be resumed.
    pub(crate) fn can_resume(&self) -> bool {
        self.window.is_some_and(|window| !window.is_zero())
    }

    /// What others are told of it.
    pub(crate) fn link_state(&self) -> LinkState {
        match &self.phase {
            Phase::Connecting | Phase::Open | Phase::Closing => LinkState::Open,
            Phase::Recovering(recovering) => LinkState::Recovering {
                since: recovering.since.into_std(),
                attempts: recovering.attempts,
            },
            Phase::Closed(reason) => LinkState::Closed(reason.clone()),
        }
    }
}

/// Whether a link that ended so may be followed by another: what ended was the link, not the
/// understanding between the two sides.
fn is_resumable(reason: &DisconnectReason) -> bool {
    matches!(
        reason,
        DisconnectReason::PeerClosed { .. }
            | DisconnectReason::CutOff
            | DisconnectReason::ReadFailed(_)
            | DisconnectReason::WriteFailed(_)
            | DisconnectReason::Silent { .. }
            | DisconnectReason::Wedged { .. }
    )
}

/// Returns the error of an attempt after which another may succeed, or why none will.
fn verdict(error: ConnectError) -> Result<ConnectError, ResumeError> {
    match &error {
        // Old servers tell by their words only.
        ConnectError::HandshakeRejected { code, message, .. } => {
            if *code == ErrorCode::SESSION_ATTACHED || message.contains("already attached") {
                Ok(error)
            } else if message.contains("unknown session") {
                Err(ResumeError::SessionUnknown)
            } else {
                Err(ResumeError::Refused(Arc::new(error)))
            }
        }
        // What proxies say while a server is away, and what may change by waiting.
        ConnectError::UpgradeRefused {
            status: 408 | 425 | 429 | 500..,
            ..
        }
        | ConnectError::Timeout { .. }
        | ConnectError::Unreachable { .. }
        | ConnectError::NotWebSocket { .. }
        | ConnectError::HandshakeTimeout { .. }
        | ConnectError::HandshakeDisconnected { .. } => Ok(error),
        ConnectError::UpgradeRefused { .. }
        | ConnectError::InvalidUrl { .. }
        | ConnectError::PlaintextCredentials { .. }
        | ConnectError::InvalidCredentials { .. }
        | ConnectError::NotExecServer { .. } => Err(ResumeError::Refused(Arc::new(error))),
    }
}

/// Keeps many clients from coming back at the same moment. splitmix64, which is enough for that.
#[derive(Debug)]
struct Jitter(u64);

impl Jitter {
    /// The wait before the attempt that follows so many failed ones: between half and all of a delay
    /// that doubles.
    fn delay(&mut self, attempts: u32) -> Duration {
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

    const WINDOW: Duration = Duration::from_secs(30);

    fn open(window: Option<Duration>) -> Lifecycle {
        let mut lifecycle = Lifecycle::new(window, 1);
        assert!(lifecycle.opened());
        lifecycle
    }

    fn cut() -> DisconnectReason {
        DisconnectReason::PeerClosed { code: None }
    }

    fn unreachable() -> ConnectError {
        ConnectError::Unreachable {
            server: "s".into(),
            problem: "p".into(),
        }
    }

    fn rejected(code: ErrorCode, message: &str) -> ConnectError {
        ConnectError::HandshakeRejected {
            server: "s".into(),
            code,
            message: message.into(),
        }
    }

    fn recovering() -> (Lifecycle, Instant) {
        let (mut lifecycle, now) = (open(Some(WINDOW)), Instant::now());
        match lifecycle.lost(cut(), true, now) {
            Next::Dial { at, until } => assert_eq!((at, until), (now, now + WINDOW)),
            other => panic!("{other:?}"),
        }
        (lifecycle, now)
    }

    #[test]
    fn p6_a_lost_link_is_dialled_at_once_and_open_again_when_resumed() {
        let (mut lifecycle, now) = recovering();
        assert!(!lifecycle.is_open() && lifecycle.refusal().is_none());
        match lifecycle.link_state() {
            LinkState::Recovering { since, attempts: 0 } => assert_eq!(since, now.into_std()),
            other => panic!("{other:?}"),
        }
        assert!(
            matches!(lifecycle.lost(cut(), true, now), Next::Nothing),
            "of the old link"
        );
        assert!(lifecycle.opened() && lifecycle.is_open());
        assert!(!lifecycle.opened(), "it is already");
        assert!(matches!(lifecycle.link_state(), LinkState::Open));
    }

    #[test]
    fn p6_servers_that_do_not_resume_end_it_at_once() {
        for window in [None, Some(Duration::ZERO)] {
            let mut lifecycle = open(window);
            match lifecycle.lost(cut(), true, Instant::now()) {
                Next::Close(DisconnectReason::PeerClosed { .. }) => {}
                other => panic!("{other:?}"),
            }
            assert!(!lifecycle.opened(), "closed stays closed");
            assert!(lifecycle.refusal().is_some());
        }
    }

    #[test]
    fn p10_a_peer_that_breaks_the_protocol_is_not_resumed() {
        let mut lifecycle = open(Some(WINDOW));
        match lifecycle.lost(DisconnectReason::InvalidUtf8, true, Instant::now()) {
            Next::Close(DisconnectReason::InvalidUtf8) => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn p6_attempts_wait_longer_and_longer_but_not_beyond_the_window() {
        let (mut lifecycle, begun) = recovering();
        let (mut now, mut delays) = (begun, Vec::new());
        let reason = loop {
            match lifecycle.attempt_failed(unreachable(), now) {
                Next::Dial { at, until } => {
                    assert_eq!(until, begun + WINDOW);
                    delays.push(at - now);
                    now = at;
                }
                Next::Close(reason) => break reason,
                Next::Nothing => panic!("still recovering"),
            }
        };
        assert_eq!(now, begun + WINDOW - LAST_ATTEMPT, "{delays:?}");
        delays.pop();
        for (n, delay) in delays.iter().enumerate() {
            let full = (FIRST_DELAY * 2_u32.pow(n.min(10) as u32)).min(MAX_DELAY);
            assert!((full / 2..=full).contains(delay), "{n}: {delay:?}");
        }
        match reason {
            DisconnectReason::NotResumed {
                lost,
                why: ResumeError::WindowPassed { attempts, .. },
            } => {
                assert!(matches!(*lost, DisconnectReason::PeerClosed { .. }));
                assert_eq!(attempts as usize, delays.len() + 2);
            }
            other => panic!("{other:?}"),
        }
        let again: Vec<_> = (1..=5).map(|n| Jitter(1).delay(n)).collect();
        let same: Vec<_> = (1..=5).map(|n| Jitter(1).delay(n)).collect();
        let other: Vec<_> = (1..=5).map(|n| Jitter(2).delay(n)).collect();
        assert!(again == same && again != other, "the seed decides");
    }

    #[test]
    fn p6_links_that_bring_nothing_are_not_dialled_without_pause() {
        let (mut lifecycle, now) = (open(Some(WINDOW)), Instant::now());
        let mut wait = |was_useful| match lifecycle.lost(cut(), was_useful, now) {
            Next::Dial { at, .. } => {
                assert!(lifecycle.opened());
                at - now
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(true), Duration::ZERO);
        assert!(wait(false) >= FIRST_DELAY / 2);
        assert!(wait(false) >= FIRST_DELAY);
        assert!(wait(false) >= FIRST_DELAY * 2);
        assert_eq!(wait(true), Duration::ZERO);
        assert!(wait(false) <= FIRST_DELAY);
    }

    #[test]
    fn p6_a_session_that_is_still_attached_is_tried_again() {
        for attached in [
            rejected(ErrorCode::SESSION_ATTACHED, "whatever"),
            rejected(
                ErrorCode::INVALID_REQUEST,
                "session s is already attached to another connection",
            ),
        ] {
            let (mut lifecycle, now) = recovering();
            assert!(matches!(
                lifecycle.attempt_failed(attached, now),
                Next::Dial { .. }
            ));
        }
    }

    #[test]
    fn p6_a_session_that_is_unknown_ends_it() {
        let (mut lifecycle, now) = recovering();
        let error = rejected(ErrorCode::INVALID_REQUEST, "unknown session id s");
        match lifecycle.attempt_failed(error, now) {
            Next::Close(DisconnectReason::NotResumed {
                why: ResumeError::SessionUnknown,
                ..
            }) => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn p6_what_waiting_does_not_change_ends_it() {
        let status = |status| ConnectError::UpgradeRefused {
            server: "s".into(),
            status,
        };
        for error in [
            status(401),
            status(404),
            rejected(ErrorCode::INVALID_PARAMS, "no"),
            ConnectError::NotExecServer {
                server: "s".into(),
                problem: "p".into(),
            },
        ] {
            let (mut lifecycle, now) = recovering();
            match lifecycle.attempt_failed(error, now) {
                Next::Close(DisconnectReason::NotResumed {
                    why: ResumeError::Refused(_),
                    ..
                }) => {}
                other => panic!("{other:?}"),
            }
        }
        let (mut lifecycle, now) = recovering();
        assert!(matches!(
            lifecycle.attempt_failed(status(502), now),
            Next::Dial { .. }
        ));
    }

    #[test]
    fn p14_this_side_closes_in_order_when_open_and_at_once_when_not() {
        let mut lifecycle = open(Some(WINDOW));
        assert!(matches!(lifecycle.close(), Next::Nothing));
        assert!(lifecycle.is_closing());
        assert!(matches!(
            lifecycle.refusal(),
            Some(DisconnectReason::Closed)
        ));
        match lifecycle.lost(cut(), true, Instant::now()) {
            Next::Close(DisconnectReason::Closed) => {}
            other => panic!("{other:?}"),
        }
        assert!(matches!(lifecycle.close(), Next::Nothing));

        let (mut lifecycle, now) = recovering();
        match lifecycle.close() {
            Next::Close(DisconnectReason::Closed) => {}
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            lifecycle.attempt_failed(unreachable(), now),
            Next::Nothing
        ));
        assert!(matches!(lifecycle.end(cut()), Next::Nothing), "one reason");
    }
}
