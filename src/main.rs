//! The `execmux` program.

// The program is the binary of a library whose API is documented; its own items are its own.
#![allow(missing_docs)]

#[path = "main/run.rs"]
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code of everything that goes wrong on this side, so that it is not taken for the command's.
const OWN_FAILURE: u8 = 125;

#[derive(Debug, Parser)]
#[command(
    name = "execmux",
    version,
    about = "Runs commands on a remote exec-server",
    after_help = "Set RUST_LOG (say, RUST_LOG=execmux=debug) to see what happens."
)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let program = match Program::try_parse() {
        Ok(program) => program,
        Err(error) if !error.use_stderr() => {
            // Help or version, as asked for. If it cannot be printed, nobody is there to be told.
            let _unread = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&usage_problem(&error)),
    };
    let Command::Run(run) = program.command;
    match run.execute() {
        Ok(code) => ExitCode::from(code),
        Err(problem) => fail(&problem),
    }
}

/// The first paragraph of what clap says, on one line.
fn usage_problem(error: &clap::Error) -> String {
    let text = error.to_string();
    let problem: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let problem = problem.join(" ");
    format!(
        "{} (see execmux run --help)",
        problem.trim_start_matches("error: ")
    )
}

fn fail(problem: &str) -> ExitCode {
    // One line, also where the words are the server's.
    let problem: Vec<&str> = problem.lines().map(str::trim).collect();
    eprintln!("execmux: {}", problem.join(" "));
    ExitCode::from(OWN_FAILURE)
}
