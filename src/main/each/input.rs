//! What to run: the lines as they come, and the command that each is put into.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    thread,
};

use tokio::sync::{mpsc, oneshot};

/// How many lines may wait for the commands that run. Of shorter input the total is known soon.
pub(super) const READ_AHEAD: usize = 100_000;

/// The lines but empty ones, as they come.
pub(super) struct Lines(mpsc::Receiver<Result<String, String>>);

impl Lines {
    /// Opens a file, or takes stdin for `-`. A FIFO is open when somebody writes to it.
    pub(super) async fn open(file: String) -> Result<Self, String> {
        let (opened, is_open) = oneshot::channel();
        let (sender, lines) = mpsc::channel(64);
        // A thread of its own: such a read cannot be given up.
        thread::spawn(move || {
            if file == "-" {
                let _leaving = opened.send(Ok(()));
                return read(io::stdin().lock(), "stdin", &sender);
            }
            match File::open(&file) {
                Ok(open) => {
                    let _leaving = opened.send(Ok(()));
                    read(BufReader::new(open), &file, &sender);
                }
                Err(error) => {
                    let _leaving = opened.send(Err(problem(&file, &error)));
                }
            }
        });
        let opened = is_open.await.map_err(|error| error.to_string())?;
        opened.map(|()| Lines(lines))
    }

    /// The next one, or why there is none; `None` at the end.
    ///
    /// # Cancel safety
    ///
    /// No line is lost.
    pub(super) async fn next(&mut self) -> Option<Result<String, String>> {
        self.0.recv().await
    }
}

fn problem(name: &str, error: &io::Error) -> String {
    format!("cannot read commands from {name}: {error}")
}

fn read(input: impl BufRead, name: &str, sender: &mpsc::Sender<Result<String, String>>) {
    for line in input.lines() {
        let line = line.map_err(|error| problem(name, &error));
        if line.as_ref().is_ok_and(|line| line.trim().is_empty()) {
            continue;
        }
        let is_over = line.is_err();
        if sender.blocking_send(line).is_err() || is_over {
            return;
        }
    }
}

/// The command that each line is put into.
#[derive(Debug)]
pub(super) enum Template {
    /// The line is the command.
    Shell,
    /// Each `{}` of the arguments is replaced by the line.
    Arguments(Vec<String>),
}

/// What is replaced.
const PLACE: &str = "{}";

impl Template {
    pub(super) fn new(mut argv: Vec<String>) -> Self {
        if argv.is_empty() {
            return Template::Shell;
        }
        if !argv.iter().any(|argument| argument.contains(PLACE)) {
            argv.push(PLACE.to_owned());
        }
        Template::Arguments(argv)
    }

    pub(super) fn argv(&self, line: &str) -> Vec<String> {
        match self {
            Template::Shell => ["sh", "-c", line].map(str::to_owned).to_vec(),
            Template::Arguments(argv) => argv
                .iter()
                .map(|argument| argument.replace(PLACE, line))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(template: &[&str], line: &str) -> Vec<String> {
        let template = template.iter().map(|&argument| argument.to_owned());
        Template::new(template.collect()).argv(line)
    }

    #[test]
    fn a_line_is_a_command_or_takes_its_place_in_one() {
        assert_eq!(argv(&[], "echo $A"), ["sh", "-c", "echo $A"]);
        assert_eq!(argv(&["cc", "-c"], "a b.c"), ["cc", "-c", "a b.c"]);
        assert_eq!(argv(&["mv", "{}", "{}.old"], "a"), ["mv", "a", "a.old"]);
    }
}
