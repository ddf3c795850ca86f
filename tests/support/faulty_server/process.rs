//! The server's side of one process: what it will do, what it did, and what is retained of that.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use super::{super::random::Random, plan::Release};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Output { stream: &'static str, length: usize },
    Exited,
    Closed,
}

/// One process.
#[derive(Debug)]
pub struct Process {
    id: String,
    /// What it will do, and how long after the step before.
    plan: VecDeque<(Duration, Event)>,
    /// What has got a `seq`, the first 1.
    pub events: Vec<Event>,
    retained: VecDeque<(u64, usize)>,
    retained_bytes: usize,
    window: usize,
    /// Output up to here is not retained.
    pub evicted_to: u64,
    pub exit_code: i32,
    pub closed: bool,
    pub exited: bool,
    /// Whether the client was told that it was started.
    pub is_answered: bool,
    pub is_forgotten: bool,
    pub was_terminated: bool,
    pub heeds_interrupt: bool,
    /// What was written to it, in order.
    pub stdin: Vec<String>,
    write_ids: HashSet<String>,
    /// How many writes it takes before it does not read any more.
    reads: usize,
}

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Accepted,
    /// As its id is known.
    Repeated,
    /// Not before the process has ended.
    Later,
}

impl Process {
    /// Returns `None` for one that cannot be started.
    pub fn new(id: &str, random: &mut Random, reads: bool) -> Option<Self> {
        if random.chance(4) {
            return None;
        }
        let outputs = match random.below(12) {
            0 => 0,
            1 => 40 + random.below(60),
            _ => random.below(14),
        };
        let longest = random.pick(&[10, 200, 200, 2000]);
        let has_pty = random.chance(20);
        let pace = random.pick(&[2, 10, 50, 200]);
        let mut plan = VecDeque::new();
        for _ in 0..outputs {
            let stream = match has_pty {
                true => "pty",
                false => random.pick(&["stdout", "stdout", "stderr"]),
            };
            let length = 1 + random.below(longest) as usize;
            let wait = match random.below(100) {
                0 => random.millis(4000),
                1..=70 => Duration::ZERO,
                _ => random.millis(pace),
            };
            plan.push_back((wait, Event::Output { stream, length }));
        }
        // The exit may be numbered before some of the output.
        let late = random.below(outputs.min(5) + 1);
        let stops_reading = !reads && random.chance(70);
        let wait = match random.below(10) {
            // Long enough for that to be noticed.
            _ if stops_reading => Duration::from_secs(20) + random.millis(60_000),
            0 => random.millis(5000),
            _ => random.millis(pace),
        };
        plan.insert((outputs - late) as usize, (wait, Event::Exited));
        // Something that it has started may hold the pipes.
        let wait = match random.below(30) {
            0 => random.millis(45_000),
            _ => random.millis(10),
        };
        plan.push_back((wait, Event::Closed));
        let reads = match stops_reading {
            true => random.below(3) as usize,
            false => usize::MAX,
        };
        Some(Process {
            id: id.to_owned(),
            plan,
            events: Vec::new(),
            retained: VecDeque::new(),
            retained_bytes: 0,
            window: random.pick(&[4 << 10, 8 << 10, 32 << 10]),
            evicted_to: 0,
            exit_code: random.pick(&[0, 0, 1, 7, 255]),
            closed: false,
            exited: false,
            is_answered: false,
            is_forgotten: false,
            was_terminated: false,
            heeds_interrupt: random.chance(50),
            stdin: Vec::new(),
            write_ids: HashSet::new(),
            reads,
        })
    }

    pub fn next_seq(&self) -> u64 {
        self.events.len() as u64 + 1
    }

    /// When it does something next, if it is to do anything at all.
    pub fn next_step(&self) -> Option<Duration> {
        self.plan.front().map(|(wait, _)| *wait)
    }

    /// It does something.
    pub fn step(&mut self) -> Option<(u64, Event)> {
        if self.is_forgotten {
            return None;
        }
        let (_, event) = self.plan.pop_front()?;
        let seq = self.next_seq();
        self.events.push(event);
        match event {
            Event::Output { length, .. } => {
                self.retained.push_back((seq, length));
                self.retained_bytes += length;
                while self.retained_bytes > self.window
                    && let Some((seq, length)) = self.retained.pop_front()
                {
                    self.retained_bytes -= length;
                    self.evicted_to = seq;
                }
            }
            Event::Exited => self.exited = true,
            Event::Closed => self.closed = true,
        }
        Some((seq, event))
    }

    /// Kills it: what it has not written yet will not be. Returns whether it was running.
    pub fn kill(&mut self, exit_code: i32) -> bool {
        if self.exited || self.is_forgotten {
            return false;
        }
        self.exit_code = exit_code;
        self.was_terminated = true;
        self.plan = [
            (Duration::from_millis(2), Event::Exited),
            (Duration::from_millis(1), Event::Closed),
        ]
        .into();
        true
    }

    pub fn write(&mut self, write_id: &str, text: &str, release: Release) -> Taken {
        if release.is_newer() && self.write_ids.contains(write_id) {
            return Taken::Repeated;
        }
        if self.stdin.len() >= self.reads && !self.exited {
            return Taken::Later;
        }
        self.write_ids.insert(write_id.to_owned());
        self.stdin.push(text.to_owned());
        Taken::Accepted
    }

    /// What is retained after `after_seq`, and the `seq` to go on with.
    pub fn read(
        &self,
        after_seq: u64,
        max_bytes: Option<usize>,
        release: Release,
    ) -> (Vec<(u64, &'static str, usize)>, u64) {
        let mut chunks = Vec::new();
        let mut bytes = 0;
        for &(seq, length) in &self.retained {
            if seq <= after_seq {
                continue;
            }
            bytes += length;
            if !chunks.is_empty() && max_bytes.is_some_and(|max| bytes > max) {
                break;
            }
            let Event::Output { stream, .. } = self.events[seq as usize - 1] else {
                unreachable!("only output is retained");
            };
            chunks.push((seq, stream, length));
        }
        let next_seq = match chunks.last() {
            Some(&(last, ..)) if max_bytes.is_some() || !release.is_newer() => last + 1,
            _ => self.next_seq(),
        };
        (chunks, next_seq)
    }

    /// The bytes of one output, which tell whose and which they are.
    pub fn content(id: &str, seq: u64, length: usize) -> Vec<u8> {
        let stamp = format!("{id}#{seq} ");
        let mut content = stamp.repeat(length / stamp.len() + 1).into_bytes();
        content.truncate(length);
        content
    }

    pub fn id(&self) -> &str {
        &self.id
    }
}
