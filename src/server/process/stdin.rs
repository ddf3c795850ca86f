//! The way to the stdin of a process: what is queued, what waits for a place, and which writes are known. No
//! actor, no pipe. Both what is queued and what waits are bounded by their number and their bytes.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

use crate::server::limits::Held;

/// How many writes are queued for a process that does not read.
const QUEUED: usize = 128;
/// How many more may wait for a place. The client should have noticed by then.
const WAITING: usize = 1024;
/// How many ids of writes are remembered.
const REMEMBERED: usize = 4096;

/// What is written to the process, in order.
#[derive(Debug)]
pub(super) enum Input {
    /// Bytes, which are counted as held until they are written.
    Chunk(Bytes, Option<Held>),
    /// The end of it.
    Eof,
}

impl Input {
    fn len(&self) -> usize {
        match self {
            Input::Chunk(bytes, _) => bytes.len(),
            Input::Eof => 0,
        }
    }
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
    max_bytes: usize,
    /// The lengths of what is queued, in order.
    queued: VecDeque<usize>,
    queued_bytes: usize,
    waiting: VecDeque<(Input, R)>,
    waiting_bytes: usize,
    known: HashSet<String>,
    known_in_order: VecDeque<String>,
}

impl<R> Stdin<R> {
    /// As many as `max_bytes` may be queued, and as many again may wait.
    pub(super) fn new(is_open: bool, max_bytes: usize) -> Self {
        Stdin {
            is_open,
            max_bytes,
            queued: VecDeque::new(),
            queued_bytes: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            known: HashSet::new(),
            known_in_order: VecDeque::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    pub(super) fn write(
        &mut self,
        id: String,
        chunk: Bytes,
        held: Option<Held>,
        reply: R,
    ) -> Write<R> {
        if self.known.contains(&id) {
            return Write::Known(reply);
        }
        if !self.is_open {
            return Write::Closed(reply);
        }
        let may_wait =
            self.waiting.len() < WAITING && self.within_limit(self.waiting_bytes, chunk.len());
        if !self.has_place(chunk.len()) && !may_wait {
            return Write::Full(reply);
        }
        if self.known_in_order.len() == REMEMBERED
            && let Some(oldest) = self.known_in_order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.known.insert(id.clone());
        self.known_in_order.push_back(id);
        self.queue(Input::Chunk(chunk, held), reply)
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
        if !self.has_place(input.len()) {
            self.waiting_bytes += input.len();
            self.waiting.push_back((input, reply));
            return Write::Waits;
        }
        self.take_place(input.len());
        Write::Queued(input, reply)
    }

    /// Returns true if an input of so many bytes may be queued now, behind nothing that waits.
    fn has_place(&self, length: usize) -> bool {
        self.waiting.is_empty() && self.fits(length)
    }

    fn fits(&self, length: usize) -> bool {
        self.queued.len() < QUEUED && self.within_limit(self.queued_bytes, length)
    }

    /// Returns true if so many bytes may join those that are there. An input that is larger than the limit may be there alone.
    fn within_limit(&self, there: usize, length: usize) -> bool {
        there == 0 || there.saturating_add(length) <= self.max_bytes
    }

    fn take_place(&mut self, length: usize) {
        self.queued.push_back(length);
        self.queued_bytes += length;
    }

    /// The first of what was queued is written. Returns what waited and has its place now.
    pub(super) fn written(&mut self) -> Vec<(Input, R)> {
        if let Some(length) = self.queued.pop_front() {
            self.queued_bytes -= length;
        }
        let mut placed = Vec::new();
        while let Some((input, _)) = self.waiting.front()
            && self.fits(input.len())
        {
            let length = input.len();
            self.waiting_bytes -= length;
            self.take_place(length);
            placed.extend(self.waiting.pop_front());
        }
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(stdin: &mut Stdin<u32>, n: u32) -> Write<u32> {
        stdin.write(n.to_string(), Bytes::new(), None, n)
    }

    fn stdin() -> Stdin<u32> {
        Stdin::new(true, 1000)
    }

    fn write_bytes(stdin: &mut Stdin<u32>, n: u32, bytes: usize) -> Write<u32> {
        stdin.write(n.to_string(), vec![0; bytes].into(), None, n)
    }

    #[test]
    fn a_write_is_written_once() {
        let mut stdin = stdin();
        assert!(matches!(
            write(&mut stdin, 1),
            Write::Queued(Input::Chunk(..), 1)
        ));
        assert!(matches!(write(&mut stdin, 1), Write::Known(1)));
        for n in 2..2 + REMEMBERED as u32 {
            assert!(matches!(write(&mut stdin, n), Write::Queued(..)));
            assert!(stdin.written().is_empty());
        }
        assert!(
            matches!(write(&mut stdin, 1), Write::Queued(..)),
            "forgotten"
        );
        assert!(matches!(write(&mut stdin, 4), Write::Known(4)));
    }

    #[test]
    fn what_finds_no_place_waits_in_order_and_the_end_comes_last() {
        let mut stdin = stdin();
        for n in 0..QUEUED as u32 {
            assert!(matches!(write(&mut stdin, n), Write::Queued(..)));
        }
        assert!(matches!(write(&mut stdin, 1000), Write::Waits));
        assert!(matches!(stdin.close(1001), Write::Waits));
        assert!(matches!(write(&mut stdin, 1002), Write::Closed(1002)));
        assert!(matches!(stdin.close(1003), Write::Closed(1003)));
        assert!(matches!(stdin.written()[..], [(Input::Chunk(..), 1000)]));
        assert!(matches!(stdin.written()[..], [(Input::Eof, 1001)]));
        assert!(stdin.written().is_empty());
    }

    #[test]
    fn p4_not_any_number_waits() {
        let mut stdin = stdin();
        for n in 0..(QUEUED + WAITING) as u32 {
            assert!(!matches!(write(&mut stdin, n), Write::Full(_)));
        }
        assert!(matches!(write(&mut stdin, 99_999), Write::Full(99_999)));
    }

    #[test]
    fn p4_not_any_number_of_bytes_is_queued_or_waits() {
        let mut stdin = stdin();
        assert!(
            matches!(write_bytes(&mut stdin, 1, 5000), Write::Queued(..)),
            "alone"
        );
        assert!(matches!(write_bytes(&mut stdin, 2, 600), Write::Waits));
        assert!(matches!(write_bytes(&mut stdin, 3, 400), Write::Waits));
        assert!(matches!(write_bytes(&mut stdin, 4, 1), Write::Full(4)));
        assert!(
            matches!(write_bytes(&mut stdin, 2, 600), Write::Known(2)),
            "it waits already"
        );
        // Both have their place at once, behind each other.
        assert!(matches!(stdin.written()[..], [(_, 2), (_, 3)]));
        assert!(
            matches!(write_bytes(&mut stdin, 4, 1), Write::Waits),
            "it was refused, and not written"
        );
        assert!(matches!(write_bytes(&mut stdin, 5, 999), Write::Waits));
        assert!(matches!(write_bytes(&mut stdin, 6, 1), Write::Full(6)));
        assert!(matches!(stdin.written()[..], [(_, 4)]));
        assert!(matches!(stdin.written()[..], [(_, 5)]));
    }
}
