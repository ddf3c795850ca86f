//! How often a session reads what it has missed although that brings nothing, and how long it waits in between. No clock.

use tokio::time::{Duration, Instant};

/// The wait after the first read in a row that brought nothing. Doubled with each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest wait.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How much of a session's patience there is: it lasts for 6 useless answers, in half a minute, or 12 reads without any
/// answer, which take some minutes.
const PATIENCE: u8 = 12;

/// Why a read has brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fruitless {
    /// The server refused it, or its answer tells nothing new: it will hardly do better the next time.
    Useless,
    /// There was no answer in time, or the read was not sent: that may change with the load, or with the link.
    Unanswered,
    /// It was this side that did not read the answer. That says nothing of the server.
    HeldUp,
}

impl Fruitless {
    fn cost(self) -> u8 {
        match self {
            Fruitless::HeldUp => 0,
            Fruitless::Useless => 2,
            Fruitless::Unanswered => 1,
        }
    }
}

/// What is left of a session's patience with a server whose reads bring nothing.
#[derive(Debug)]
pub(super) struct Patience {
    spent: u8,
    reads: u32,
    /// The `seq` that the session waited for when its patience was first tried.
    next_seq: u64,
    /// When it may be read again.
    until: Option<Instant>,
}

impl Patience {
    pub(super) fn new(next_seq: u64) -> Self {
        Patience {
            spent: 0,
            reads: 0,
            next_seq,
            until: None,
        }
    }

    /// Notes a read that has brought nothing. Returns false if there is no patience left.
    pub(super) fn try_on(&mut self, fruitless: Fruitless, now: Instant) -> bool {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.reads.min(8));
        self.until = Some(now + doubled.min(MAX_PAUSE));
        self.reads += u32::from(fruitless != Fruitless::HeldUp);
        self.spent += fruitless.cost();
        self.spent < PATIENCE
    }

    /// How many reads in a row have brought nothing.
    pub(super) fn reads(&self) -> u32 {
        self.reads
    }

    /// The `seq` that the session waited for when the first of them had brought nothing.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Has all reads wait for as long as reads ever do.
    pub(super) fn rest(now: Instant, next_seq: u64) -> Self {
        Patience {
            until: Some(now + MAX_PAUSE),
            ..Patience::new(next_seq)
        }
    }

    /// Returns true while it may not be read.
    pub(super) fn is_resting(&self) -> bool {
        self.until.is_some()
    }

    /// Lets it be read again at once, say over a new link.
    pub(super) fn wake(&mut self) {
        self.until = None;
    }

    /// Lets it be read again if the pause is over.
    pub(super) fn tick(&mut self, now: Instant) {
        self.until = self.until.filter(|until| *until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the pauses between reads that bring nothing, in seconds, and how many there are of these.
    fn pauses(fruitless: Fruitless) -> (Vec<u64>, u32) {
        let mut now = Instant::now();
        let (mut patience, mut pauses) = (Patience::new(1), Vec::new());
        while patience.try_on(fruitless, now) {
            let until = patience.until.unwrap();
            pauses.push((until - now).as_secs());
            patience.tick(until - Duration::from_millis(1));
            assert!(patience.is_resting());
            patience.tick(until);
            assert!(!patience.is_resting());
            now = until;
        }
        (pauses, patience.reads())
    }

    #[test]
    fn p5_reads_that_bring_nothing_are_few_and_ever_further_apart() {
        assert_eq!(pauses(Fruitless::Useless), (vec![1, 2, 4, 8, 16], 6));
        assert_eq!(
            pauses(Fruitless::Unanswered),
            (vec![1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30], 12)
        );
    }

    #[test]
    fn p5_answers_that_this_side_does_not_read_cost_a_server_nothing() {
        let (now, mut patience) = (Instant::now(), Patience::new(1));
        for _ in 0..1000 {
            assert!(patience.try_on(Fruitless::HeldUp, now));
            assert_eq!(patience.until, Some(now + FIRST_PAUSE));
        }
    }
}
