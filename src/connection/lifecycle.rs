//! The states of a connection: connecting, open, recovering, closing, closed. No actor, no socket, no
//! clock.

use std::{mem, sync::Arc, time::Duration};

use actix::Message;
use tokio::time::Instant;

use super::{
    pending::after,
    retry::{Jitter, resume_again},
};
use crate::error::{ConnectError, DisconnectReason, ResumeError};

/// How long before the end the last attempt is made.
const LAST_ATTEMPT: Duration = Duration::from_millis(500);

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
        /// How the connection was lost.
        lost: DisconnectReason,
        /// How the last attempt has failed, if one has.
        /// [`StillAttached`](ConnectError::StillAttached) says that the server does not know of the loss yet.
        last_failure: Option<Arc<ConnectError>>,
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
    /// How long the connection may be resumed after the server has noticed that it was lost, if at all.
    window: Option<Duration>,
    /// How long to try at most while the server has not noticed.
    longest: Duration,
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
    last_failure: Option<Arc<ConnectError>>,
}

impl Lifecycle {
    /// Begins with connecting. A lost link is resumed within `window` from when the server has noticed, and within
    /// `longest` from the loss while it has not. `seed` decides on the waits between attempts.
    pub(crate) fn new(window: Option<Duration>, longest: Duration, seed: u64) -> Self {
        Lifecycle {
            phase: Phase::Connecting,
            window,
            longest,
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
                    last_failure: None,
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
        let error = Arc::new(error);
        recovering.attempts += 1;
        recovering.last_failure = Some(error.clone());
        let attempts = recovering.attempts;
        let why = match resume_again(&error) {
            Ok(again) => {
                if let (true, Some(window)) = (again.is_attached, self.window) {
                    // The server's window begins when it notices the loss.
                    let longest = after(recovering.since, self.longest);
                    let until = after(now, window).min(longest);
                    recovering.until = recovering.until.max(until);
                }
                let until = recovering.until;
                let last = until.checked_sub(LAST_ATTEMPT).unwrap_or(now);
                if now < last {
                    // Rather asked too early than never.
                    let wait = again.wait.saturating_add(self.jitter.delay(attempts));
                    let at = last.min(after(now, wait));
                    return Next::Dial { at, until };
                }
                ResumeError::WindowPassed {
                    after: now - recovering.since,
                    attempts,
                    last: error,
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
                lost: recovering.lost.clone(),
                last_failure: recovering.last_failure.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        connection::retry::{FIRST_DELAY, MAX_DELAY},
        protocol::ErrorCode,
    };

    const WINDOW: Duration = Duration::from_secs(30);
    const LONGEST: Duration = Duration::from_secs(300);

    fn open(window: Option<Duration>) -> Lifecycle {
        let mut lifecycle = Lifecycle::new(window, LONGEST, 1);
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
            LinkState::Recovering {
                since,
                attempts: 0,
                lost: DisconnectReason::PeerClosed { .. },
                last_failure: None,
            } => assert_eq!(since, now.into_std()),
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

    fn attached() -> ConnectError {
        ConnectError::StillAttached { server: "s".into() }
    }

    #[test]
    fn p6_a_session_that_is_still_attached_is_tried_for_longer_than_the_window() {
        let (mut lifecycle, begun) = recovering();
        let mut now = begun;
        let (after, attempts) = loop {
            match lifecycle.attempt_failed(attached(), now) {
                Next::Dial { at, until } => {
                    assert!(at > now && at - now <= MAX_DELAY, "{:?}", at - now);
                    assert_eq!(until, (now + WINDOW).min(begun + LONGEST));
                    now = at;
                }
                Next::Close(DisconnectReason::NotResumed {
                    why:
                        ResumeError::WindowPassed {
                            after,
                            attempts,
                            last,
                        },
                    ..
                }) => {
                    assert!(matches!(*last, ConnectError::StillAttached { .. }));
                    break (after, attempts);
                }
                other => panic!("{other:?}"),
            }
            match lifecycle.link_state() {
                LinkState::Recovering {
                    last_failure: Some(why),
                    ..
                } => assert!(matches!(*why, ConnectError::StillAttached { .. })),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(after, LONGEST - LAST_ATTEMPT);
        assert!(attempts > 150, "{attempts}");
    }

    #[test]
    fn p6_the_window_begins_when_the_server_has_noticed_the_loss() {
        let (mut lifecycle, begun) = recovering();
        let noticed = begun + Duration::from_secs(100);
        let mut now = begun;
        let after = loop {
            let error = match now < noticed {
                true => attached(),
                false => unreachable(),
            };
            match lifecycle.attempt_failed(error, now) {
                Next::Dial { at, .. } => now = at,
                Next::Close(DisconnectReason::NotResumed {
                    why: ResumeError::WindowPassed { after, .. },
                    ..
                }) => break after,
                other => panic!("{other:?}"),
            }
        };
        let latest = noticed + WINDOW - begun;
        assert!(
            after <= latest && after > latest - 2 * MAX_DELAY,
            "{after:?}"
        );
    }

    #[test]
    fn p6_the_window_is_not_shortened_by_a_server_that_has_not_noticed_the_loss() {
        let mut lifecycle = Lifecycle::new(Some(WINDOW), Duration::ZERO, 1);
        let now = Instant::now();
        assert!(lifecycle.opened());
        assert!(matches!(
            lifecycle.lost(cut(), true, now),
            Next::Dial { .. }
        ));
        match lifecycle.attempt_failed(attached(), now) {
            Next::Dial { until, .. } => assert_eq!(until, now + WINDOW),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn p6_a_busy_server_is_left_alone_but_asked_before_the_window_is_over() {
        let busy = |seconds| ConnectError::UpgradeRefused {
            server: "s".into(),
            status: 503,
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let (mut lifecycle, now) = recovering();
        let at = match lifecycle.attempt_failed(busy(10), now) {
            Next::Dial { at, .. } => at,
            other => panic!("{other:?}"),
        };
        let asked = Duration::from_secs(10);
        assert!(at - now >= asked && at - now <= asked + MAX_DELAY);
        match lifecycle.attempt_failed(busy(u64::MAX), at) {
            Next::Dial { at, until } => assert_eq!(at, until - LAST_ATTEMPT),
            other => panic!("{other:?}"),
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
            retry_after: None,
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
