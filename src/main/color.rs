//! When to use colors.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use env_logger::WriteStyle;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

impl Color {
    pub(crate) fn of_log(self) -> WriteStyle {
        match self {
            Color::Auto => WriteStyle::Auto,
            Color::Always => WriteStyle::Always,
            Color::Never => WriteStyle::Never,
        }
    }

    /// Whether what is written to stderr is colored.
    fn is_on(self) -> bool {
        match self {
            Color::Auto => {
                std::io::stderr().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
            Color::Always => true,
            Color::Never => false,
        }
    }

    /// Shows `text` as what announces a problem.
    pub(crate) fn of_problem(self, text: &str) -> String {
        if self.is_on() {
            format!("\x1b[1;31m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
