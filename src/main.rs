//! The `execmux` program.

// The program is the binary of a library whose API is documented; its own items are its own.
#![allow(missing_docs)]

#[path = "main/color.rs"]
mod color;
#[path = "main/completions.rs"]
mod completions;
#[path = "main/connect.rs"]
mod connect;
#[path = "main/cp.rs"]
mod cp;
#[path = "main/each.rs"]
mod each;
#[path = "main/embedded.rs"]
mod embedded;
#[path = "main/info.rs"]
mod info;
#[path = "main/problem.rs"]
mod problem;
#[path = "main/run.rs"]
mod run;
#[path = "main/serve.rs"]
mod serve;
#[path = "main/signals.rs"]
mod signals;
#[path = "main/stdin.rs"]
mod stdin;
#[path = "main/terminal.rs"]
mod terminal;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use color::Color;

#[cfg(not(unix))]
compile_error!("the execmux program needs a Unix system; the library does not");

/// Exit code of everything that goes wrong on this side, so that it is not taken for the command's.
const OWN_FAILURE: u8 = 125;

#[derive(Debug, Parser)]
#[command(
    name = "execmux",
    version,
    about = "Runs commands on an exec-server, and copies files to and from it",
    after_help = "\
EXECMUX_URL stands for --url, EXECMUX_TOKEN is the bearer token for servers that ask for one. Without a URL, run and
each run commands on this machine, on a server in this program.
NO_COLOR turns colors off, RUST_LOG (say, RUST_LOG=execmux=debug) shows what happens.

Examples:
  execmux run -- make -j4
  execmux run --url ws://127.0.0.1:8080 --tty -- bash
  execmux each --url ws://127.0.0.1:8080 --jobs 8 commands.txt
  execmux cp --url ws://127.0.0.1:8080 src remote:/srv/project"
)]
struct Program {
    /// When to use colors
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    color: Color,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Each(each::Each),
    Cp(cp::Cp),
    Serve(serve::Serve),
    Info(info::Info),
    Completions(completions::Completions),
}

impl Command {
    /// Exit code of what goes wrong on this side.
    fn own_failure(&self) -> u8 {
        match self {
            Command::Each(_) => each::OWN_FAILURE,
            Command::Run(_)
            | Command::Cp(_)
            | Command::Serve(_)
            | Command::Info(_)
            | Command::Completions(_) => OWN_FAILURE,
        }
    }

    /// What is logged if `RUST_LOG` does not say.
    fn log_filter(&self) -> &'static str {
        match self {
            Command::Serve(_) => "warn,execmux=info",
            Command::Run(_)
            | Command::Each(_)
            | Command::Cp(_)
            | Command::Info(_)
            | Command::Completions(_) => "warn",
        }
    }

    /// Returns the exit code, or what went wrong on this side.
    fn execute(self) -> Result<u8, String> {
        match self {
            Command::Run(run) => run.execute(),
            Command::Each(each) => each.execute(),
            Command::Cp(cp) => cp.execute(),
            Command::Serve(serve) => serve.execute(),
            Command::Info(info) => info.execute(),
            Command::Completions(completions) => completions.execute(),
        }
    }
}

fn main() -> ExitCode {
    let program = match Program::try_parse() {
        Ok(program) => program,
        Err(error) if !error.use_stderr() => {
            // Help or version, as asked for. If it cannot be printed, nobody is there to be told.
            let _unread = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let code = match std::env::args().nth(1).as_deref() {
                Some("each") => each::OWN_FAILURE,
                _ => OWN_FAILURE,
            };
            return fail(&usage_problem(&error), code, Color::Auto);
        }
    };
    let color = program.color;
    let mut log = env_logger::Builder::from_env(
        env_logger::Env::default().default_filter_or(program.command.log_filter()),
    );
    log.write_style(color.of_log());
    if matches!(&program.command, Command::Run(run) if run.is_raw()) {
        // A raw terminal does not return to the beginning of the line by itself.
        log.format_suffix("\r\n");
    }
    log.init();
    let own_failure = program.command.own_failure();
    match program.command.execute() {
        Ok(code) => ExitCode::from(code),
        Err(problem) => fail(&problem, own_failure, color),
    }
}

/// The first paragraph of what clap says, on one line, and where help is.
fn usage_problem(error: &clap::Error) -> String {
    let text = error.to_string();
    let problem: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let problem = problem.join(" ");
    let subcommand = std::env::args().nth(1).filter(|name| {
        <Program as clap::CommandFactory>::command()
            .find_subcommand(name)
            .is_some()
    });
    format!(
        "{} (see execmux {}--help)",
        problem.trim_start_matches("error: "),
        subcommand.map_or_else(String::new, |name| format!("{name} "))
    )
}

fn fail(problem: &str, code: u8, color: Color) -> ExitCode {
    // One line, also where the words are the server's.
    let problem: Vec<&str> = problem.lines().map(str::trim).collect();
    eprintln!("{} {}", color.of_problem("execmux:"), problem.join(" "));
    ExitCode::from(code)
}
