//! How much output is retained of processes that have ended, over a whole server.

use std::collections::VecDeque;

/// The ended processes whose output is retained, the one that ended first in front. `K` is how a process is reached.
#[derive(Debug)]
pub(super) struct Retained<K> {
    limit: usize,
    total: usize,
    ended: VecDeque<(K, usize)>,
}

impl<K: PartialEq> Retained<K> {
    pub(super) fn new(limit: usize) -> Self {
        Retained {
            limit,
            total: 0,
            ended: VecDeque::new(),
        }
    }

    /// Counts what is retained of a process that has ended now. Returns the processes whose output is to be dropped.
    pub(super) fn add(&mut self, process: K, bytes: usize) -> Vec<K> {
        self.total += bytes;
        self.ended.push_back((process, bytes));
        let mut dropped = Vec::new();
        while self.total > self.limit {
            let Some((process, bytes)) = self.ended.pop_front() else {
                break;
            };
            self.total -= bytes;
            dropped.push(process);
        }
        dropped
    }

    /// Forgets a process, if its output is still retained.
    pub(super) fn remove(&mut self, process: &K) {
        if let Some(at) = self.ended.iter().position(|(known, _)| known == process)
            && let Some((_, bytes)) = self.ended.remove(at)
        {
            self.total -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p4_the_output_of_those_that_ended_first_is_dropped_beyond_the_limit() {
        let mut retained = Retained::new(10);
        assert!(retained.add("a", 4).is_empty());
        assert!(retained.add("b", 3).is_empty());
        assert!(retained.add("c", 3).is_empty());
        assert_eq!(retained.add("d", 5), ["a", "b"]);
        retained.remove(&"c");
        retained.remove(&"a");
        assert!(retained.add("e", 5).is_empty());
        assert_eq!(retained.add("f", 11), ["d", "e", "f"]);
        assert_eq!(retained.total, 0);
    }
}
