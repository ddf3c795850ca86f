//! What is told of the commands: their output, the progress, and a summary.

use std::{
    io::{self, Read as _, Seek as _, Write},
    time::Duration,
};

use execmux::Stream;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tempfile::SpooledTempFile;

use super::job::{End, Finished, Job};

/// How much of a stream is held in memory before it goes to a temporary file.
const IN_MEMORY: usize = 1 << 20;
/// How long a line may get before a part of it is printed under its tag.
const LONGEST_LINE: usize = 1 << 16;
/// How many failures the summary lists.
const LISTED: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Each command's output as a whole, when it has ended.
    Grouped,
    /// Each line of output as it comes, behind the command's.
    Tagged,
    /// One object for each command, when it has ended.
    Json,
}

pub(super) struct Reporter {
    format: Format,
    bar: ProgressBar,
    is_total_known: bool,
    succeeded: usize,
    failures: Vec<String>,
    failed: usize,
}

impl Reporter {
    pub(super) fn new(format: Format, shows_progress: bool) -> Self {
        let target = if shows_progress {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        bar.set_style(style("{pos} of {len} or more {msg} {elapsed}"));
        Reporter {
            format,
            bar,
            is_total_known: false,
            succeeded: 0,
            failures: Vec::new(),
            failed: 0,
        }
    }

    /// So many commands there are up to now, or in all.
    pub(super) fn found(&mut self, count: usize, is_all: bool) {
        self.bar.set_length(count as u64);
        if is_all && !self.is_total_known {
            self.is_total_known = true;
            self.bar
                .set_style(style("{bar:30} {pos}/{len} {msg} {elapsed} left {eta}"));
        }
    }

    pub(super) fn failures(&self) -> usize {
        self.failed
    }

    /// What takes the output of a command.
    pub(super) fn printer(&self, job: &Job) -> Printer {
        match self.format {
            Format::Tagged => Printer::Tagged {
                tag: format!("{}\t", job.line),
                bar: self.bar.clone(),
                stdout: Vec::new(),
                stderr: Vec::new(),
            },
            Format::Grouped | Format::Json => Printer::Kept {
                stdout: SpooledTempFile::new(IN_MEMORY),
                stderr: SpooledTempFile::new(IN_MEMORY),
            },
        }
    }

    /// Prints what a command that has ended left to be printed, and counts it.
    pub(super) fn report(&mut self, finished: Finished) -> io::Result<()> {
        if finished.end.is_success() {
            self.succeeded += 1;
        } else {
            self.failed += 1;
            if self.failures.len() < LISTED {
                self.failures.push(describe_failure(&finished));
            }
            self.bar.set_message(format!("({} failed)", self.failed));
        }
        if !finished.is_complete {
            log::warn!("some output of command {} is lost", finished.job.number);
        }
        if let Printer::Kept {
            mut stdout,
            mut stderr,
        } = finished.printer
        {
            stdout.rewind()?;
            stderr.rewind()?;
            if self.format == Format::Json {
                let object = as_json(
                    &finished.job,
                    &finished.end,
                    finished.is_complete,
                    finished.took,
                    [content(stdout)?, content(stderr)?],
                );
                self.bar.suspend(|| writeln!(io::stdout(), "{object}"))?;
            } else {
                self.bar.suspend(|| -> io::Result<()> {
                    io::copy(&mut stdout, &mut io::stdout().lock())?;
                    io::stdout().flush()?;
                    io::copy(&mut stderr, &mut io::stderr().lock())?;
                    Ok(())
                })?;
            }
        }
        self.bar.inc(1);
        Ok(())
    }

    /// Says on stderr how it went.
    pub(super) fn summarize(
        &self,
        took: Duration,
        terminated: usize,
        not_started: usize,
        is_all_read: bool,
    ) {
        self.bar.finish_and_clear();
        let mut summary = format!(
            "execmux: {} succeeded, {} failed",
            self.succeeded, self.failed
        );
        for (number, what) in [(terminated, "terminated"), (not_started, "not started")] {
            if number > 0 {
                summary.push_str(&format!(", {number} {what}"));
            }
        }
        if !is_all_read {
            summary.push_str(", the rest of the input not read");
        }
        eprintln!("{summary} in {:.1} s", took.as_secs_f64());
        for failure in &self.failures {
            eprintln!("  {failure}");
        }
        if self.failed > self.failures.len() {
            eprintln!("  and {} more", self.failed - self.failures.len());
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are some")
}

fn describe_failure(finished: &Finished) -> String {
    let Job { number, line } = &finished.job;
    match &finished.end {
        End::Exited(code) => format!("{number}: exit code {code}: {line}"),
        End::Problem(problem) | End::Disconnected(problem) => {
            format!("{number}: {problem}: {line}")
        }
    }
}

fn content(mut spool: SpooledTempFile) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    spool.read_to_end(&mut content)?;
    Ok(content)
}

fn as_json(
    job: &Job,
    end: &End,
    is_complete: bool,
    took: Duration,
    [stdout, stderr]: [Vec<u8>; 2],
) -> Value {
    let mut object = json!({
        "number": job.number,
        "line": job.line,
        "exit_code": end.exit_code(),
        "seconds": took.as_secs_f64(),
        "complete": is_complete,
    });
    if let End::Problem(problem) | End::Disconnected(problem) = end {
        object["problem"] = json!(problem);
    }
    for (text, base64, bytes) in [
        ("stdout", "stdout_base64", stdout),
        ("stderr", "stderr_base64", stderr),
    ] {
        match String::from_utf8(bytes) {
            Ok(content) => object[text] = json!(content),
            Err(error) => {
                object[base64] = json!(base64_turbo::STANDARD.encode(error.as_bytes()));
            }
        }
    }
    object
}

/// Takes the output of one command.
pub(super) enum Printer {
    Kept {
        stdout: SpooledTempFile,
        stderr: SpooledTempFile,
    },
    Tagged {
        tag: String,
        bar: ProgressBar,
        /// The lines that have begun.
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    },
}

impl Printer {
    pub(super) fn take(&mut self, stream: Stream, chunk: &[u8]) -> io::Result<()> {
        match self {
            Printer::Kept { stdout, stderr } => match stream {
                Stream::Stdout | Stream::Pty => stdout.write_all(chunk),
                Stream::Stderr => stderr.write_all(chunk),
            },
            Printer::Tagged {
                tag,
                bar,
                stdout,
                stderr,
            } => match stream {
                Stream::Stdout | Stream::Pty => {
                    let lines = tagged(tag, stdout, chunk);
                    bar.suspend(|| print(&mut io::stdout().lock(), &lines))
                }
                Stream::Stderr => {
                    let lines = tagged(tag, stderr, chunk);
                    bar.suspend(|| print(&mut io::stderr().lock(), &lines))
                }
            },
        }
    }

    /// Prints lines that have not ended.
    pub(super) fn end(&mut self) -> io::Result<()> {
        let Printer::Tagged { stdout, stderr, .. } = self else {
            return Ok(());
        };
        let (stdout, stderr) = (stdout.is_empty(), stderr.is_empty());
        if !stdout {
            self.take(Stream::Stdout, b"\n")?;
        }
        if !stderr {
            self.take(Stream::Stderr, b"\n")?;
        }
        Ok(())
    }
}

fn print(stream: &mut impl Write, text: &[u8]) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    stream.write_all(text)?;
    stream.flush()
}

/// The lines that end in `chunk`, each behind the tag. What follows the last stays in `begun`.
fn tagged(tag: &str, begun: &mut Vec<u8>, chunk: &[u8]) -> Vec<u8> {
    let mut lines = Vec::new();
    for piece in chunk.split_inclusive(|&byte| byte == b'\n') {
        begun.extend_from_slice(piece);
        let is_whole = begun.ends_with(b"\n");
        if is_whole || begun.len() >= LONGEST_LINE {
            lines.extend_from_slice(tag.as_bytes());
            lines.append(begun);
            if !is_whole {
                lines.push(b'\n');
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_tagged_once_however_it_comes() {
        let mut begun = Vec::new();
        assert_eq!(tagged("t\t", &mut begun, b"a\nb"), b"t\ta\n");
        assert_eq!(tagged("t\t", &mut begun, b"c"), b"");
        assert_eq!(tagged("t\t", &mut begun, b"\n\nd\n"), b"t\tbc\nt\t\nt\td\n");
        assert!(begun.is_empty());
    }

    #[test]
    fn a_line_without_end_is_not_kept_without_bound() {
        let mut begun = Vec::new();
        let printed = tagged("t\t", &mut begun, &[b'x'; LONGEST_LINE]);
        assert_eq!(printed.len(), LONGEST_LINE + 3);
        assert!(begun.is_empty());
    }
}
