//! What a checker has found, and how it compares with what was written.

use std::ops::RangeInclusive;

use execmux::{FailureReason, Stream};

use super::{PAD, stamped};

/// What a checker has found.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// The first thing that was wrong.
    pub fault: Option<String>,
    /// Events with a `seq` that were told.
    pub events: u64,
    /// Bytes of output.
    pub bytes: u64,
    /// Of the last event told.
    pub last_seq: u64,
    /// The `seq`s declared lost.
    pub gaps: Vec<RangeInclusive<u64>>,
    pub lost_events: u64,
    /// As [`Exited`](Event::Exited) told it.
    pub exited: Option<i32>,
    /// As [`Closed`](Event::Closed) told it.
    pub exit_code: Option<i32>,
    pub closed: Option<Ending>,
    pub failed: Option<FailureReason>,
    pub interrupted: u64,
    pub resumed: u64,
    pub stdout: Lines,
    pub stderr: Lines,
    pub pty: Lines,
}

/// That a process was followed to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    pub complete: bool,
}

/// The stamped lines of one stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Lines {
    /// How many came whole.
    pub count: u64,
    /// The stamp of the last of them.
    pub last: u64,
    /// Stamps that a declared gap has taken.
    pub lost: Vec<RangeInclusive<u64>>,
    /// Stamps that an echo left out.
    pub missing: Vec<RangeInclusive<u64>>,
    /// Whether a gap came after the last whole line, so that more may have been written.
    pub open_end: bool,
    /// Whether the output ended within a line.
    pub unfinished: bool,
}

impl Report {
    pub fn has_ended(&self) -> bool {
        self.closed.is_some() || self.failed.is_some()
    }

    pub fn lines(&self, stream: Stream) -> &Lines {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
            Stream::Pty => &self.pty,
        }
    }

    /// Whether everything was in order and declared, however it ended.
    pub fn sound(&self) -> Result<(), String> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Whether the process was followed to its end and what is missing of the lines that it wrote
    /// was declared.
    pub fn no_undeclared_loss(&self, written: &[(Stream, u64)]) -> Result<(), String> {
        self.sound()?;
        if let Some(reason) = &self.failed {
            return Err(format!("failed: {reason}"));
        }
        for stream in [Stream::Stdout, Stream::Stderr, Stream::Pty] {
            let written = written.iter().find(|(of, _)| *of == stream);
            let written = written.map_or(0, |(_, lines)| *lines);
            let Lines {
                last,
                open_end,
                unfinished,
                ..
            } = *self.lines(stream);
            let as_written = match open_end {
                true => last <= written,
                false => last == written && !unfinished,
            };
            if !as_written {
                return Err(format!(
                    "{stream:?} ended with line {last} of {written}{}",
                    if unfinished { " and a torn one" } else { "" }
                ));
            }
        }
        Ok(())
    }

    /// Whether it all came.
    pub fn complete(&self, written: &[(Stream, u64)]) -> Result<(), String> {
        self.no_undeclared_loss(written)?;
        if !self.gaps.is_empty() || self.closed != Some(Ending { complete: true }) {
            return Err(format!("{:?} were lost", self.gaps));
        }
        Ok(())
    }

    /// Whether the lines that an echo repeated are those of the writes that were accepted, each once
    /// and in order.
    pub fn repeats(&self, stream: Stream, writes: &Writes) -> Result<(), String> {
        self.sound()?;
        let lines = self.lines(stream);
        if lines.last > writes.count() {
            return Err(format!("line {} was never written", lines.last));
        }
        let mut missing = lines
            .missing
            .iter()
            .flat_map(RangeInclusive::clone)
            .peekable();
        let mut lost = lines.lost.iter().flat_map(RangeInclusive::clone).peekable();
        for (n, fate) in (1..).zip(&writes.0) {
            let after_the_last = n > lines.last;
            if lost.next_if_eq(&n).is_some() || (after_the_last && lines.open_end) {
                // Whether it came cannot be told.
                continue;
            }
            let came = !after_the_last && missing.next_if_eq(&n).is_none();
            match fate {
                Fate::Accepted if !came => {
                    return Err(format!("line {n} was accepted and never came"));
                }
                Fate::Refused if came => return Err(format!("line {n} was refused, and came")),
                Fate::Accepted | Fate::Refused | Fate::Unknown => {}
            }
        }
        Ok(())
    }

    /// What was told is in order, and what is missing was declared.
    #[track_caller]
    pub fn assert_sound(&self) {
        self.assert(self.sound());
    }

    /// The process was followed to its end, and of the lines that it wrote to each stream only those
    /// are missing that were declared lost.
    #[track_caller]
    pub fn assert_no_undeclared_loss(&self, written: &[(Stream, u64)]) {
        self.assert(self.no_undeclared_loss(written));
    }

    /// The process was followed to its end, and all the lines that it wrote to each stream came.
    #[track_caller]
    pub fn assert_complete(&self, written: &[(Stream, u64)]) {
        self.assert(self.complete(written));
    }

    /// Each accepted write arrived, once and in order, and none that was refused.
    #[track_caller]
    pub fn assert_writes(&self, stream: Stream, writes: &Writes) {
        self.assert(self.repeats(stream, writes));
    }

    #[track_caller]
    fn assert(&self, result: Result<(), String>) {
        if let Err(fault) = result {
            panic!("{fault}\n{self:#?}");
        }
    }
}

/// What became of the stamped lines that a test wrote to an echo, in order.
#[derive(Debug, Default)]
pub struct Writes(Vec<Fate>);

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Accepted,
    /// It may have been carried out, or not.
    Unknown,
    /// It was not carried out.
    Refused,
}

impl Writes {
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The line to write next.
    pub fn line(&self) -> String {
        stamped(self.count() + 1, PAD)
    }

    /// What became of it.
    pub fn ended(&mut self, fate: Fate) {
        self.0.push(fate);
    }
}
