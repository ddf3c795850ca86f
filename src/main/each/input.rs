//! What to run: the lines, and the command that each is put into.

use std::io::{self, Read as _};

/// Reads all lines but empty ones.
pub(super) fn read(file: &str) -> Result<Vec<String>, String> {
    let mut text = String::new();
    let result = match file {
        "-" => io::stdin().read_to_string(&mut text).map(|_| ()),
        path => std::fs::read_to_string(path).map(|content| text = content),
    };
    let name = if file == "-" { "stdin" } else { file };
    result.map_err(|error| format!("cannot read commands from {name}: {error}"))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(lines.map(str::to_owned).collect())
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
