//! The way to the stdin of a process: what is queued, what waits for a place, and which writes are known. No
//! actor, no pipe.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

/// How many writes are queued for a process that does not read.
const QUEUED: usize = 128;
/// How many more may wait for a place. The client should have noticed by then.
const WAITING: usize = 1024;
/// How many ids of writes are remembered.
const REMEMBERED: usize = 4096;

/// What is written to the process, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    Chunk(Bytes),
    /// The end of it.
    Eof,
}

/// What becomes of a write at once.
#[derive(Debug)]
pub(super) enum Write<R> {
    /// To be written, and to be answered as accepted.
    Queued(Input, R),
    /// It is known, and not written again.
    Known(R),
    /// It is answered when there is a place for it.
    Waits,
    /// There is no stdin, or not any more.
    Closed(R),
    /// Too many wait.
    Full(R),
}

/// The queue of one process. `R` is who gets the answer to a write.
#[derive(Debug)]
pub(super) struct Stdin<R> {
    is_open: bool,
    queued: usize,
    waiting: VecDeque<(Input, R)>,
    known: HashSet<String>,
    known_in_order: VecDeque<String>,
}

impl<R> Stdin<R> {
    pub(super) fn new(is_open: bool) -> Self {
        Stdin {
            is_open,
            queued: 0,
            waiting: VecDeque::new(),
            known: HashSet::new(),
            known_in_order: VecDeque::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    pub(super) fn write(&mut self, id: String, chunk: Bytes, reply: R) -> Write<R> {
        if self.known.contains(&id) {
            return Write::Known(reply);
        }
        if !self.is_open {
            return Write::Closed(reply);
        }
        if self.waiting.len() >= WAITING {
            return Write::Full(reply);
        }
        if self.known_in_order.len() == REMEMBERED
            && let Some(oldest) = self.known_in_order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.known.insert(id.clone());
        self.known_in_order.push_back(id);
        self.queue(Input::Chunk(chunk), reply)
    }

    /// Ends it behind what was written before.
    pub(super) fn close(&mut self, reply: R) -> Write<R> {
        if !self.is_open {
            return Write::Closed(reply);
        }
        self.is_open = false;
        self.queue(Input::Eof, reply)
    }

    fn queue(&mut self, input: Input, reply: R) -> Write<R> {
        if self.queued >= QUEUED {
            self.waiting.push_back((input, reply));
            return Write::Waits;
        }
        self.queued += 1;
        Write::Queued(input, reply)
    }

    /// One that was queued is written. Returns the next that waits, which has its place now.
    pub(super) fn written(&mut self) -> Option<(Input, R)> {
        match self.waiting.pop_front() {
            Some(next) => Some(next),
            None => {
                self.queued = self.queued.saturating_sub(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(stdin: &mut Stdin<u32>, n: u32) -> Write<u32> {
        stdin.write(n.to_string(), Bytes::new(), n)
    }

    #[test]
    fn a_write_is_written_once() {
        let mut stdin = Stdin::new(true);
        assert!(matches!(
            write(&mut stdin, 1),
            Write::Queued(Input::Chunk(_), 1)
        ));
        assert!(matches!(write(&mut stdin, 1), Write::Known(1)));
        for n in 2..2 + REMEMBERED as u32 {
            assert!(matches!(write(&mut stdin, n), Write::Queued(..)));
            assert!(stdin.written().is_none());
        }
        assert!(
            matches!(write(&mut stdin, 1), Write::Queued(..)),
            "forgotten"
        );
        assert!(matches!(write(&mut stdin, 4), Write::Known(4)));
    }

    #[test]
    fn what_finds_no_place_waits_in_order_and_the_end_comes_last() {
        let mut stdin = Stdin::new(true);
        for n in 0..QUEUED as u32 {
            assert!(matches!(write(&mut stdin, n), Write::Queued(..)));
        }
        assert!(matches!(write(&mut stdin, 1000), Write::Waits));
        assert!(matches!(stdin.close(1001), Write::Waits));
        assert!(matches!(write(&mut stdin, 1002), Write::Closed(1002)));
        assert!(matches!(stdin.close(1003), Write::Closed(1003)));
        assert!(matches!(stdin.written(), Some((Input::Chunk(_), 1000))));
        assert!(matches!(stdin.written(), Some((Input::Eof, 1001))));
        assert!(stdin.written().is_none());
    }

    #[test]
    fn p4_not_any_number_waits() {
        let mut stdin = Stdin::new(true);
        for n in 0..(QUEUED + WAITING) as u32 {
            assert!(!matches!(write(&mut stdin, n), Write::Full(_)));
        }
        assert!(matches!(write(&mut stdin, 99_999), Write::Full(99_999)));
    }
}
