//! `execmux completions`: a script that completes this program's arguments.

use std::io;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

/// Prints a script with which a shell completes the arguments of this program
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  execmux completions bash > ~/.local/share/bash-completion/completions/execmux
  execmux completions zsh > ~/.zfunc/_execmux
  execmux completions fish > ~/.config/fish/completions/execmux.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn execute(self) -> Result<u8, String> {
        // Into memory first: clap panics when a pipe is closed.
        let mut script = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut crate::Program::command(),
            "execmux",
            &mut script,
        );
        io::Write::write_all(&mut io::stdout(), &script)
            .map_err(|error| format!("cannot print the script: {error}"))?;
        Ok(0)
    }
}
