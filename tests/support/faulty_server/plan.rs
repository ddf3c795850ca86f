//! What a seed decides about a server: its release, and how each of its connections fares.

use std::time::Duration;

use super::super::random::Random;

/// A release whose ways differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Knows no sessions: processes end with their connection.
    March2026,
    R120,
    R140,
    R142,
    R150,
    R169,
}

impl Release {
    /// How long it keeps a session without a connection.
    pub fn window(self) -> Option<Duration> {
        Some(Duration::from_secs(match self {
            Release::March2026 => return None,
            Release::R120 | Release::R140 => 10,
            Release::R142 | Release::R150 => 30,
            Release::R169 => 80,
        }))
    }

    /// How long it knows a process that has ended.
    pub fn keeps(self) -> Duration {
        Duration::from_secs(if self == Release::R169 { 80 } else { 30 })
    }

    /// Whether that time begins with the exit already.
    pub fn forgets_after_exit(self) -> bool {
        matches!(self, Release::March2026 | Release::R120)
    }

    /// From 0.142 on: writes are known again by their ids, reads count what is behind the last chunk, and
    /// much else.
    pub fn is_newer(self) -> bool {
        matches!(self, Release::R142 | Release::R150 | Release::R169)
    }

    /// Whether pipes can be written to, and signals be sent.
    pub fn writes_pipes(self) -> bool {
        !self.forgets_after_exit()
    }
}

/// What ends the session for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fatal {
    /// Nobody can be reached until the session is forgotten.
    Away,
    /// The lost connection stays attached for longer than it is tried to resume.
    Attached,
    /// The server is another one by now.
    Restarted,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    BetweenFrames,
    WithinFrame,
    /// With a close frame.
    Goodbye,
    /// After a request was carried out, and before its answer.
    AnswerLost,
    /// Before a request was read.
    Unread,
    /// The server neither says nor hears anything.
    Silent,
    /// Wherever it is after so many milliseconds.
    AtTime,
}

/// How one connection fares.
#[derive(Debug, Clone)]
pub struct Link {
    /// How many bytes are written at a time, at most.
    pub slice: usize,
    /// How many bytes are read at a time.
    pub sip: usize,
    /// How long a frame may take, in milliseconds.
    pub latency: u64,
    /// After so many frames nothing goes on for this time.
    pub stall: Option<(u64, Duration)>,
    /// How many of a hundred notifications are sent twice.
    pub duplicates: u64,
    /// How many places a notification may be sent too early.
    pub places: usize,
    /// How it ends, and after how many frames, requests or milliseconds.
    pub end: Option<(How, u64)>,
    /// How long the server takes it for attached after it has ended.
    pub noticed_after: Duration,
    /// How long nobody can connect then.
    pub away: Duration,
    pub buffer: usize,
}

/// What a seed decides about a server.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub release: Release,
    /// So many connections end, one after the other. The next one stands.
    pub losses: u64,
    /// What the last of them does.
    pub fatal: Option<Fatal>,
    /// Whether processes are forgotten soon after their end.
    pub forgets_early: bool,
    /// Whether the first connection may end within its handshake.
    pub is_rough: bool,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::of(seed, "plan");
        let release = match random.below(100) {
            0..=3 => Release::March2026,
            4..=14 => Release::R120,
            15..=29 => Release::R140,
            30..=54 => Release::R142,
            55..=84 => Release::R150,
            _ => Release::R169,
        };
        let losses = random.pick(&[0, 1, 1, 1, 2, 2, 3, 4]);
        let fatal = (losses > 0 && random.chance(6))
            .then(|| random.pick(&[Fatal::Away, Fatal::Attached, Fatal::Restarted]));
        Plan {
            seed,
            release,
            losses,
            fatal,
            forgets_early: random.chance(4),
            is_rough: random.chance(2),
        }
    }

    /// Whether a lost connection may be found to be resumed.
    pub fn resumes(&self) -> bool {
        self.fatal.is_none() && (self.release.window().is_some() || self.losses == 0)
    }

    /// How the connection of this number fares, from 0.
    pub fn link(&self, number: u64) -> Link {
        let mut random = Random::of(self.seed, &format!("link {number}"));
        let how = random.pick(&[
            How::BetweenFrames,
            How::WithinFrame,
            How::Goodbye,
            How::AnswerLost,
            How::AnswerLost,
            How::Unread,
            How::Silent,
            How::AtTime,
            How::AtTime,
        ]);
        let mut after = match how {
            How::BetweenFrames | How::WithinFrame | How::Goodbye | How::Silent => random.below(60),
            How::AnswerLost | How::Unread => random.below(16),
            How::AtTime => random.below(3000),
        };
        if number == 0 && !self.is_rough && how != How::AtTime {
            // What follows the handshake is of interest.
            after += 3;
        }
        if number > 0 && how == How::Silent {
            // A handshake that is never answered would use up the time of an old server.
            after += 1;
        }
        let mut link = Link {
            slice: random.pick(&[1, 7, 60, 500, usize::MAX, usize::MAX, usize::MAX]),
            sip: random.pick(&[20, 100, 4096, 4096, 4096]),
            latency: random.pick(&[0, 0, 0, 3, 20]),
            stall: random.chance(8).then(|| {
                let seconds = random.pick(&[1, 5, 12, 25, 40]);
                (3 + random.below(40), Duration::from_secs(seconds))
            }),
            duplicates: random.pick(&[0, 0, 0, 5, 30]),
            places: random.pick(&[1, 2, 8, 8]),
            end: (number < self.losses).then_some((how, after)),
            noticed_after: Duration::ZERO,
            away: Duration::ZERO,
            buffer: random.pick(&[200, 1024, 64 << 10, 64 << 10]),
        };
        if link.end.is_some() {
            if random.chance(30) {
                link.noticed_after = random.millis(1500);
            }
            if random.chance(30) {
                link.away = random.millis(1000);
            }
        }
        let window = self.release.window().unwrap_or_default();
        if let (Some(fatal), true) = (self.fatal, number + 1 == self.losses) {
            match fatal {
                Fatal::Away => link.away = window + Duration::from_secs(5),
                Fatal::Attached => link.noticed_after = window * 2,
                Fatal::Restarted => {}
            }
        }
        // A connection that is given up meanwhile must still be found to be resumed.
        let longest = window.saturating_sub(Duration::from_secs(8));
        if link.stall.is_some_and(|(_, time)| time > longest) && !window.is_zero() {
            link.stall = None;
        }
        link
    }
}
