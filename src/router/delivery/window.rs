//! What a server that holds a process back has to be told of what its session has consumed. No clock, and
//! nothing is sent.

use std::collections::VecDeque;

/// So many times in a window the server is told: before the process has to wait for it.
const TIMES: u64 = 4;

/// What is delivered to one session, and what of it is consumed, as far as the server has to know.
///
/// It counts the credit of outputs: what has returned in all, and what will have when a mark is reached.
#[derive(Debug)]
pub(super) struct Window {
    step: u64,
    /// How much has to be delivered for the next mark.
    mark_at: u64,
    /// Those that are not reached, in order.
    marks: VecDeque<Mark>,
    told: u64,
}

#[derive(Debug)]
struct Mark {
    seq: u64,
    delivered: u64,
}

impl Default for Window {
    /// The process is not held back.
    fn default() -> Self {
        Window {
            step: 0,
            mark_at: u64::MAX,
            marks: VecDeque::new(),
            told: 0,
        }
    }
}

impl Window {
    /// The process is held back while so much credit is not returned.
    pub(super) fn new(bytes: usize) -> Self {
        let step = (bytes as u64 / TIMES).max(1);
        Window {
            step,
            mark_at: step,
            ..Window::default()
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.step > 0
    }

    /// Returns how much has to be delivered for there to be a [mark](Self::mark).
    pub(super) fn mark_at(&self) -> u64 {
        self.mark_at
    }

    /// Notes that so much is delivered with the output of this `seq`, and marks that if it is enough.
    pub(super) fn mark(&mut self, seq: u64, delivered: u64) {
        if delivered >= self.mark_at {
            self.mark_at = delivered.saturating_add(self.step);
            self.marks.push_back(Mark { seq, delivered });
        }
    }

    /// Returns how much has to have returned for the next mark to be reached.
    pub(super) fn next_mark(&self) -> Option<u64> {
        self.marks.front().map(|mark| mark.delivered)
    }

    /// Returns the `seq` of the last mark that is reached when so much has returned, if it is a new one.
    pub(super) fn consumed(&mut self, returned: u64) -> Option<u64> {
        let reached = self
            .marks
            .partition_point(|mark| mark.delivered <= returned);
        let last = self.marks.drain(..reached).next_back()?;
        self.told = last.seq;
        Some(last.seq)
    }

    pub(super) fn told(&self) -> u64 {
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p5_the_server_is_told_several_times_in_a_window() {
        let mut window = Window::new(4000);
        assert!(window.is_open());
        for seq in 1..=8 {
            window.mark(seq, seq * 600);
        }
        assert_eq!(window.next_mark(), Some(1200));
        assert_eq!(window.consumed(1199), None);
        assert_eq!(window.consumed(1200), Some(2));
        assert_eq!((window.consumed(1200), window.told()), (None, 2));
        assert_eq!(window.next_mark(), Some(2400));
        assert_eq!(window.consumed(4700), Some(6), "the last that is reached");
        assert_eq!(window.consumed(u64::MAX), Some(8));
        assert_eq!((window.next_mark(), window.told()), (None, 8));
    }

    #[test]
    fn p5_what_is_never_told_is_less_than_a_window() {
        for bytes in [0, 1, 3, 100, 10_000] {
            let mut window = Window::new(bytes);
            let mut delivered = 0;
            for seq in 1..1000 {
                delivered += 129 + seq * 97 % 8192;
                window.mark(seq, delivered);
                let consumed = window.consumed(delivered);
                let untold = delivered.saturating_sub(window.mark_at() - window.step);
                assert!(consumed.is_some() || untold < bytes as u64, "{bytes} {seq}");
            }
        }
    }

    #[test]
    fn p5_a_process_that_is_not_held_back_is_not_marked() {
        let mut window = Window::default();
        window.mark(1, u64::MAX - 1);
        assert!(!window.is_open());
        assert_eq!(
            (window.next_mark(), window.consumed(u64::MAX)),
            (None, None)
        );
    }
}
