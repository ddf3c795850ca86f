//! The checker of one session: no actor, and nothing that it waits for.

use std::mem;

use execmux::{FailureReason, SessionEvent, Stream};

use super::report::{Ending, Lines, Report};

/// The longest line that a checker takes.
const LONGEST: usize = 1 << 16;

/// What a session is told, without what tests cannot make.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    Output {
        seq: u64,
        stream: Stream,
        chunk: &'a [u8],
    },
    Gap {
        after_seq: u64,
        before_seq: u64,
    },
    Exited {
        seq: u64,
        exit_code: i32,
    },
    Closed {
        seq: u64,
        exit_code: Option<i32>,
        complete: bool,
    },
    Failed {
        last_seq: u64,
        reason: FailureReason,
    },
    Interrupted,
    Resumed,
    /// A kind that the checker does not know.
    Unknown,
}

impl<'a> From<&'a SessionEvent> for Event<'a> {
    fn from(event: &'a SessionEvent) -> Self {
        match event {
            SessionEvent::Output(output) => Event::Output {
                seq: output.seq,
                stream: output.stream,
                chunk: &output.chunk,
            },
            SessionEvent::Gap(gap) => Event::Gap {
                after_seq: gap.after_seq,
                before_seq: gap.before_seq,
            },
            SessionEvent::Exited(exited) => Event::Exited {
                seq: exited.seq,
                exit_code: exited.exit_code,
            },
            SessionEvent::Closed(closed) => Event::Closed {
                seq: closed.seq,
                exit_code: closed.exit_code,
                complete: closed.complete,
            },
            SessionEvent::Failed(failed) => Event::Failed {
                last_seq: failed.last_seq,
                reason: failed.reason.clone(),
            },
            SessionEvent::Interrupted(_) => Event::Interrupted,
            SessionEvent::Resumed(_) => Event::Resumed,
            _ => Event::Unknown,
        }
    }
}

/// Checks the events of one session as they come.
#[derive(Debug)]
pub struct Checker {
    content: Content,
    pub(super) asked_for_link_events: bool,
    may_be_forgotten: bool,
    interrupted: bool,
    /// The `seq` up to which everything was told or declared lost.
    accounted: u64,
    pub(super) report: Report,
    stdout: Reader,
    stderr: Reader,
    pty: Reader,
}

/// What a process writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Stamped lines, on each stream from 1.
    Stamps,
    /// Stamped lines that it was sent, of which some may never have come.
    Echo,
    Anything,
}

impl Checker {
    /// Of a process that writes stamped lines, on each of its streams from 1.
    pub fn stamps() -> Self {
        Checker::of(Content::Stamps)
    }

    /// Of a process that repeats the stamped lines that are written to it. What may be missing is
    /// for [`Report::assert_writes`] to say.
    pub fn echo() -> Self {
        Checker::of(Content::Echo)
    }

    /// Of a process that writes what it likes.
    pub fn anything() -> Self {
        Checker::of(Content::Anything)
    }

    fn of(content: Content) -> Self {
        Checker {
            content,
            asked_for_link_events: false,
            may_be_forgotten: false,
            interrupted: false,
            accounted: 0,
            report: Report::default(),
            stdout: Reader::default(),
            stderr: Reader::default(),
            pty: Reader::default(),
        }
    }

    /// The session has asked for [`Interrupted`](Event::Interrupted) and [`Resumed`](Event::Resumed).
    #[must_use]
    pub fn link_events(mut self) -> Self {
        self.asked_for_link_events = true;
        self
    }

    /// The server may forget the process before its streams end, so that it is not complete without
    /// a gap.
    #[must_use]
    pub fn may_be_forgotten(mut self) -> Self {
        self.may_be_forgotten = true;
        self
    }

    /// Takes the next event, or says what is wrong with it. The first fault stays.
    pub fn tell(&mut self, event: Event<'_>) -> Result<(), String> {
        if self.report.fault.is_none() {
            self.report.fault = self.check(event).err();
        }
        self.report.sound()
    }

    /// No more will come.
    pub fn end(mut self) -> Report {
        if self.report.fault.is_none() && !self.report.has_ended() {
            self.report.fault = Some(format!("no last event after seq {}", self.accounted));
        }
        for (reader, lines) in [
            (&self.stdout, &mut self.report.stdout),
            (&self.stderr, &mut self.report.stderr),
            (&self.pty, &mut self.report.pty),
        ] {
            lines.unfinished = !reader.line.is_empty();
        }
        self.report
    }

    fn check(&mut self, event: Event<'_>) -> Result<(), String> {
        if self.report.has_ended() {
            return Err(format!("after the last event came {event:?}"));
        }
        match event {
            Event::Output { seq, stream, chunk } => {
                self.next(seq)?;
                self.output(stream, chunk)
                    .map_err(|fault| format!("{stream:?} in seq {seq}: {fault}"))
            }
            Event::Gap {
                after_seq,
                before_seq,
            } => self.gap(after_seq, before_seq),
            Event::Exited { seq, exit_code } => {
                self.next(seq)?;
                match self.report.exited.replace(exit_code) {
                    None => Ok(()),
                    Some(_) => Err(format!("exited again with seq {seq}")),
                }
            }
            Event::Closed {
                seq,
                exit_code,
                complete,
            } => self.closed(seq, exit_code, complete),
            Event::Failed { last_seq, reason } => {
                // After a gap, both the last event and the end of the gap can be meant.
                if last_seq != self.report.last_seq && last_seq != self.accounted {
                    let told = self.report.last_seq;
                    return Err(format!("failed after seq {last_seq}, but {told} was told"));
                }
                self.report.failed = Some(reason);
                Ok(())
            }
            Event::Interrupted | Event::Resumed => self.link_event(&event),
            Event::Unknown => Err("an event of an unknown kind".to_owned()),
        }
    }

    fn next(&mut self, seq: u64) -> Result<(), String> {
        let accounted = self.accounted;
        if seq <= accounted {
            return Err(format!("seq {seq} comes after {accounted}"));
        }
        if seq > accounted + 1 {
            return Err(format!(
                "{:?} are missing and not declared lost",
                accounted + 1..=seq - 1
            ));
        }
        self.accounted = seq;
        self.report.last_seq = seq;
        self.report.events += 1;
        Ok(())
    }

    fn gap(&mut self, after_seq: u64, before_seq: u64) -> Result<(), String> {
        let accounted = self.accounted;
        if after_seq != accounted {
            return Err(format!("a gap after {after_seq} comes after {accounted}"));
        }
        if before_seq <= after_seq + 1 {
            return Err(format!(
                "a gap of nothing, after {after_seq} and before {before_seq}"
            ));
        }
        self.accounted = before_seq - 1;
        self.report.gaps.push(after_seq + 1..=before_seq - 1);
        self.report.lost_events += before_seq - after_seq - 1;
        for (reader, lines) in [
            (&mut self.stdout, &mut self.report.stdout),
            (&mut self.stderr, &mut self.report.stderr),
            (&mut self.pty, &mut self.report.pty),
        ] {
            reader.tear();
            lines.open_end = true;
        }
        Ok(())
    }

    fn output(&mut self, stream: Stream, chunk: &[u8]) -> Result<(), String> {
        self.report.bytes += chunk.len() as u64;
        let may_miss = match self.content {
            Content::Anything => return Ok(()),
            Content::Stamps => false,
            Content::Echo => true,
        };
        match stream {
            Stream::Stdout => self.stdout.read(chunk, may_miss, &mut self.report.stdout),
            Stream::Stderr => self.stderr.read(chunk, may_miss, &mut self.report.stderr),
            Stream::Pty => self.pty.read(chunk, may_miss, &mut self.report.pty),
        }
    }

    fn closed(&mut self, seq: u64, exit_code: Option<i32>, complete: bool) -> Result<(), String> {
        let forgotten = self.may_be_forgotten && !complete;
        if !forgotten {
            self.next(seq)?;
        } else if seq < self.accounted {
            return Err(format!("closed with seq {seq} after {}", self.accounted));
        }
        let exited = self.report.exited;
        let has_gap = !self.report.gaps.is_empty();
        if exited.is_some() && exited != exit_code {
            return Err(format!("exited with {exited:?}, closed with {exit_code:?}"));
        }
        if exited.is_none() && !has_gap {
            return Err("closed, but no exit was told or lost".to_owned());
        }
        if complete && has_gap {
            return Err(format!("complete, but {:?} were lost", self.report.gaps));
        }
        if !complete && !has_gap && !self.may_be_forgotten {
            return Err("not complete, but no gap was declared".to_owned());
        }
        self.report.exit_code = exit_code;
        self.report.closed = Some(Ending { complete });
        Ok(())
    }

    fn link_event(&mut self, event: &Event<'_>) -> Result<(), String> {
        let interrupted = matches!(event, Event::Interrupted);
        if !self.asked_for_link_events {
            return Err(format!("{event:?} without having been asked for"));
        }
        if interrupted == self.interrupted {
            return Err(format!("{event:?} twice, or without the other before it"));
        }
        self.interrupted = interrupted;
        match interrupted {
            true => self.report.interrupted += 1,
            false => self.report.resumed += 1,
        }
        Ok(())
    }
}

/// Puts the lines of one stream together.
#[derive(Debug, Default)]
struct Reader {
    /// The beginning of a line.
    line: Vec<u8>,
    torn: Torn,
    /// The padding of all lines, once known.
    pad: Option<usize>,
}

/// Whether a gap may have taken the beginning of the line that is read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Torn {
    #[default]
    No,
    /// Perhaps: nothing came since.
    Perhaps,
    Yes,
}

impl Reader {
    /// Here is a gap, in this stream or in another.
    fn tear(&mut self) {
        self.line.clear();
        self.torn = Torn::Perhaps;
    }

    fn read(&mut self, chunk: &[u8], may_miss: bool, lines: &mut Lines) -> Result<(), String> {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            if self.torn == Torn::Perhaps {
                self.torn = match piece.starts_with(b"#") {
                    true => Torn::No,
                    false => Torn::Yes,
                };
            }
            self.line.extend_from_slice(piece);
            if self.line.len() > LONGEST {
                return Err(format!("a line of more than {LONGEST} bytes"));
            }
            if !self.line.ends_with(b"\n") {
                // The last piece.
                break;
            }
            let line = mem::take(&mut self.line);
            if mem::take(&mut self.torn) == Torn::No {
                self.line(&line, may_miss, lines)?;
            }
            self.line = line;
            self.line.clear();
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], may_miss: bool, lines: &mut Lines) -> Result<(), String> {
        let Some((n, pad)) = parse(line) else {
            return Err(format!("a line that is torn: {}", shown(line)));
        };
        if *self.pad.get_or_insert(pad) != pad {
            return Err(format!("a line of another length: {}", shown(line)));
        }
        if n <= lines.last {
            return Err(format!("line {n} comes after line {}", lines.last));
        }
        if n > lines.last + 1 {
            let between = lines.last + 1..=n - 1;
            if lines.open_end {
                lines.lost.push(between);
            } else if may_miss {
                lines.missing.push(between);
            } else {
                return Err(format!(
                    "lines {between:?} are missing where no gap is declared"
                ));
            }
        }
        lines.last = n;
        lines.count += 1;
        lines.open_end = false;
        Ok(())
    }
}

/// The stamp and the length of the padding.
fn parse(line: &[u8]) -> Option<(u64, usize)> {
    let line = line.strip_suffix(b"\n")?;
    // Terminals add one.
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = std::str::from_utf8(line.strip_prefix(b"#")?).ok()?;
    let mut words = line.split(' ');
    let (stamp, pad, again) = (words.next()?, words.next()?, words.next()?);
    let whole = stamp == again && pad.bytes().all(|byte| byte == b'.') && words.next().is_none();
    let stamp = stamp.parse().ok()?;
    whole.then_some((stamp, pad.len()))
}

fn shown(line: &[u8]) -> String {
    line[..line.len().min(200)].escape_ascii().to_string()
}
