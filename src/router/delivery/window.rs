//! What a server that holds a process back has to be told of what its session has consumed. No clock, and
//! nothing is sent.

use std::collections::VecDeque;

use crate::protocol::MAX_OUTPUT_WINDOW;

/// So many times in a window the server is told, as long as the session keeps up.
const TIMES: u64 = 4;

/// So many times in a window it is known what is consumed. What has not come that far is never told.
const MARKS: u64 = 64;

/// As many marks are kept room for when there are none.
const KEPT_MARKS: usize = 16;

/// What is delivered to one session, and what of it is consumed, as far as the server has to know.
///
/// It counts the credit of outputs: what has returned in all, and what will have when a mark is reached.
#[derive(Debug)]
pub(super) struct Window {
    /// How much has to be delivered for the next mark.
    mark_at: u64,
    /// Set if the server holds the process back. Apart, as few events need it.
    holding: Option<Box<Holding>>,
}

/// The server holds the process back.
#[derive(Debug)]
struct Holding {
    /// While so many are not told to be consumed.
    bytes: u64,
    /// What a session may hold beyond that: no server keeps so much back, and it has been delivered.
    beyond: u64,
    /// Those that are not reached, in order.
    marks: VecDeque<Mark>,
    told: Mark,
}

#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    seq: u64,
    delivered: u64,
}

impl Window {
    /// The process is not held back.
    pub(super) fn off() -> Self {
        Window {
            mark_at: u64::MAX,
            holding: None,
        }
    }

    /// The process is held back while so much credit is not returned. So much was delivered before, to others.
    pub(super) fn new(room: usize, delivered: u64) -> Self {
        let bytes = room.min(MAX_OUTPUT_WINDOW);
        Window {
            mark_at: 0,
            holding: Some(Box::new(Holding {
                bytes: bytes as u64,
                beyond: (room - bytes) as u64,
                marks: VecDeque::new(),
                told: Mark { seq: 0, delivered },
            })),
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.holding.is_some()
    }

    /// Returns whether so much is delivered and not told to be consumed that the server may have stopped the process.
    pub(super) fn is_behind(&self, delivered: u64) -> bool {
        (self.holding.as_ref())
            .is_some_and(|it| delivered.saturating_sub(it.told.delivered) > it.bytes / 2)
    }

    /// Returns how much has to be delivered for there to be a [mark](Self::mark).
    pub(super) fn mark_at(&self) -> u64 {
        self.mark_at
    }

    /// Notes that so much is delivered with the output of this `seq`, and marks that if it is enough.
    pub(super) fn mark(&mut self, seq: u64, delivered: u64) {
        if let Some(holding) = &mut self.holding
            && delivered >= self.mark_at
        {
            self.mark_at = delivered.saturating_add(holding.bytes / MARKS).max(1);
            holding.marks.push_back(Mark { seq, delivered });
        }
    }

    /// Returns how much has to have returned for there to be something to tell the server.
    pub(super) fn tell_at(&self) -> Option<u64> {
        let Holding {
            bytes,
            beyond,
            marks,
            told,
        } = &**self.holding.as_ref()?;
        let (first, last) = (marks.front()?, marks.back()?);
        // If the session has much to consume, the server may have stopped: each bit lets it go on.
        let is_behind = last.delivered - told.delivered > bytes / 2;
        let next = if is_behind {
            first
        } else {
            let enough = told.delivered + bytes / TIMES;
            marks.iter().find(|mark| mark.delivered >= enough)?
        };
        Some(next.delivered.saturating_sub(*beyond))
    }

    /// Returns the `seq` of the last mark that is reached when so much has returned, if it is a new one.
    pub(super) fn consumed(&mut self, returned: u64) -> Option<u64> {
        let Holding {
            beyond,
            marks,
            told,
            ..
        } = &mut **self.holding.as_mut()?;
        let consumed = returned.saturating_add(*beyond);
        let reached = marks.partition_point(|mark| mark.delivered <= consumed);
        *told = marks.drain(..reached).next_back()?;
        if marks.is_empty() {
            marks.shrink_to(KEPT_MARKS);
        }
        Some(told.seq)
    }

    /// Returns up to which `seq` everything was last told to be consumed, if anything was.
    pub(super) fn told(&self) -> Option<u64> {
        let told = self.holding.as_ref()?.told.seq;
        (told > 0).then_some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p5_a_session_that_keeps_up_tells_the_server_now_and_then() {
        for before in [0, 1_000_000] {
            let mut window = Window::new(6400, before);
            assert!(window.is_on());
            let mut told = Vec::new();
            for seq in 1..=20 {
                let delivered = before + seq * 200;
                window.mark(seq, delivered);
                // Consumed at once.
                if window.tell_at().is_some_and(|at| delivered >= at) {
                    told.extend(window.consumed(delivered));
                }
            }
            assert_eq!(told, [8, 16]);
            assert_eq!(window.told(), Some(16));
        }
    }

    #[test]
    fn p5_a_session_that_is_behind_tells_the_server_each_bit() {
        let mut window = Window::new(6400, 0);
        for seq in 1..=32 {
            window.mark(seq, seq * 200);
        }
        assert_eq!(window.tell_at(), Some(200));
        assert_eq!((window.consumed(199), window.told()), (None, None));
        assert_eq!(window.consumed(450), Some(2), "the last that is reached");
        assert_eq!(window.tell_at(), Some(600));
        assert_eq!(window.consumed(3300), Some(16));
        assert_eq!(
            window.tell_at(),
            Some(3200 + 1600),
            "it is not behind any more"
        );
        assert_eq!(window.consumed(u64::MAX), Some(32));
        assert_eq!((window.tell_at(), window.consumed(u64::MAX)), (None, None));
    }

    /// A server that has sent all that it may gets to know of room as soon as there is some, whatever part of
    /// it the session keeps.
    #[test]
    fn p5_what_a_session_keeps_holds_up_nothing_but_itself() {
        for bytes in [1, 3, 100, 10_000, 1 << 20] {
            for kept in [0, 1, bytes / 3, bytes / 4 * 3] {
                let mut window = Window::new(bytes, 0);
                let (bytes, kept) = (bytes as u64, kept as u64);
                let (mut delivered, mut returned, mut told, mut seq) = (0u64, 0, 0, 0);
                let mut at = vec![0];
                for _ in 0..2000 {
                    // The server sends while it may, the session returns all but what it keeps.
                    while delivered - told < bytes {
                        seq += 1;
                        delivered += 129 + seq * 97 % 700;
                        at.push(delivered);
                        window.mark(seq, delivered);
                    }
                    returned = returned.max(delivered.saturating_sub(kept));
                    if window.tell_at().is_some_and(|at| returned >= at) {
                        told = at[window.consumed(returned).unwrap() as usize];
                    } else {
                        let left = returned - told;
                        assert!(left <= bytes / MARKS + 829, "{bytes} {kept}: {left} untold");
                        break;
                    }
                }
                // Of a window that is smaller than an output, nothing can be kept.
                if kept == 0 || bytes >= 10_000 {
                    assert!(told > bytes, "{bytes} {kept}: {told}");
                }
            }
        }
    }

    #[test]
    fn p5_a_session_may_keep_more_than_a_server_does() {
        const BEYOND: u64 = 3_000_000;
        let mut window = Window::new(MAX_OUTPUT_WINDOW + BEYOND as usize, 0);
        let step = MAX_OUTPUT_WINDOW as u64;
        window.mark(1, step);
        assert_eq!((window.tell_at(), window.consumed(0)), (Some(0), Some(1)));
        window.mark(2, BEYOND + step);
        assert_eq!(window.tell_at(), Some(step));
        assert_eq!(window.consumed(step - 1), None);
        assert_eq!(window.consumed(step), Some(2));
        let mut window = Window::new(usize::MAX, 0);
        window.mark(1, 1);
        assert_eq!(window.consumed(0), Some(1), "all that it likes");
    }

    #[test]
    fn p5_a_process_that_is_not_held_back_is_not_marked() {
        let mut window = Window::off();
        window.mark(1, u64::MAX);
        assert!(!window.is_on());
        assert_eq!((window.tell_at(), window.consumed(u64::MAX)), (None, None));
    }
}
