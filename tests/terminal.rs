//! The program with the server in it, and in a real terminal.
#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, path::Path, time::Duration};

use pty_process::Size;
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};
use support::{
    between::{Between, Verdict},
    exec_server::ExecServer,
    jwt,
    program::{Directory, Serving, Terminal, execmux, said, signal, stopped, with_input},
    soon,
};

#[actix::test]
async fn a_command_runs_here_with_its_streams_its_directory_and_its_exit_code() {
    let script = "echo out $(pwd) $MINE; echo err >&2; exit 3";
    let output = soon(
        execmux(&["run", "--", "sh", "-c", script])
            .env("MINE", "mine")
            .output(),
    )
    .await
    .unwrap();
    let here = std::env::current_dir().unwrap();
    let expected = format!("out {} mine\n", here.display());
    assert_eq!(said(&output), (Some(3), expected, "err\n".into()));
}

#[actix::test]
async fn piped_stdin_comes_to_its_end() {
    let output = with_input(&["run", "--", "sort"], b"b\na\n").await;
    assert_eq!(said(&output), (Some(0), "a\nb\n".into(), String::new()));
    let large = vec![b'x'; 5_000_000];
    let output = with_input(&["run", "--", "wc", "-c"], &large).await;
    assert_eq!(said(&output).1.trim(), "5000000");
}

#[actix::test]
async fn nothing_is_left_of_what_ran_here() {
    let script = "sleep 1000 >/dev/null 2>&1 & echo $!";
    let output = soon(execmux(&["run", "--", "sh", "-c", script]).output())
        .await
        .unwrap();
    let (code, pid, _) = said(&output);
    assert_eq!(code, Some(0));
    let state = format!("/proc/{}/stat", pid.trim());
    soon(async {
        // It may be a zombie, if nobody takes care of orphans here.
        while fs::read_to_string(&state).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[actix::test]
async fn a_terminal_is_raw_has_its_size_and_is_restored() {
    let script = "stty size; read line; echo got $line; exit 4";
    let mut terminal = Terminal::start(&["run", "--tty", "--", "sh", "-c", script], (33, 101));
    terminal.see("33 101").await;
    terminal.press("hi\r").await;
    terminal.see("got hi").await;
    assert_eq!(terminal.end().await, Some(4));
}

#[actix::test]
async fn a_terminal_follows_the_size_of_ours() {
    let script = "trap 'stty size; exit 5' WINCH; echo up; while :; do sleep 0.05; done";
    let mut terminal = Terminal::start(&["run", "--tty", "--", "sh", "-c", script], (24, 80));
    terminal.see("up").await;
    let size = Size::new(40, 120);
    terminal.writer.resize(size).unwrap();
    terminal.see("40 120").await;
    assert_eq!(terminal.end().await, Some(5));
}

const CATCHING: &str = "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.05; done";

#[actix::test]
async fn ctrl_c_reaches_the_command_with_and_without_a_terminal_of_its_own() {
    for options in [&["run", "--tty"][..], &["run"]] {
        let arguments = [options, &["--", "sh", "-c", CATCHING]].concat();
        let mut terminal = Terminal::start(&arguments, (24, 80));
        terminal.see("up").await;
        terminal.press("\x03").await;
        terminal.see("caught").await;
        assert_eq!(terminal.end().await, Some(9));
    }
}

#[actix::test]
async fn ctrl_z_reaches_the_command_in_a_raw_terminal() {
    let script = "trap 'echo stopped; exit 6' TSTP; echo up; while :; do sleep 0.05; done";
    let mut terminal = Terminal::start(&["run", "--tty", "--", "sh", "-c", script], (24, 80));
    terminal.see("up").await;
    terminal.press("\x1a").await;
    terminal.see("stopped").await;
    assert_eq!(terminal.end().await, Some(6));
}

#[actix::test]
async fn a_program_that_is_stopped_gives_the_terminal_back_and_takes_it_again() {
    let script =
        "trap 'stty size' WINCH; trap 'exit 8' TERM; echo up; while :; do sleep 0.05; done";
    let mut terminal = Terminal::start(&["run", "--tty", "--", "sh", "-c", script], (24, 80));
    terminal.see("up").await;
    until_raw(&terminal).await;
    for rows in [40, 41] {
        signal(&terminal.child, Signal::TSTP);
        stopped(&terminal.child).await;
        terminal.check_restored();
        terminal.writer.resize(Size::new(rows, 120)).unwrap();
        signal(&terminal.child, Signal::CONT);
        terminal.see(&format!("{rows} 120")).await;
        until_raw(&terminal).await;
    }
    // Nobody can prepare for this one. What a shell sets then is not what the command is to find.
    signal(&terminal.child, Signal::STOP);
    stopped(&terminal.child).await;
    terminal.set_restored();
    assert!(!terminal.is_raw());
    signal(&terminal.child, Signal::CONT);
    until_raw(&terminal).await;
    signal(&terminal.child, Signal::TERM);
    assert_eq!(terminal.end().await, Some(8));
}

/// Nobody tells that a terminal has become raw.
async fn until_raw(terminal: &Terminal) {
    soon(async {
        while !terminal.is_raw() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[actix::test]
async fn a_program_that_is_still_connecting_can_be_stopped_too() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", silent.local_addr().unwrap());
    let arguments = ["run", "--url", &url, "--tty", "--", "true"];
    let terminal = Terminal::start(&arguments, (24, 80));
    let (_connection, _) = soon(silent.accept()).await.unwrap();
    signal(&terminal.child, Signal::TSTP);
    stopped(&terminal.child).await;
    signal(&terminal.child, Signal::CONT);
    signal(&terminal.child, Signal::INT);
    assert_eq!(terminal.end().await, Some(130));
}

#[actix::test]
async fn the_terminal_is_restored_when_the_program_is_terminated() {
    let script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let mut terminal = Terminal::start(&["run", "--tty", "--", "sh", "-c", script], (24, 80));
    terminal.see("up").await;
    signal(&terminal.child, Signal::TERM);
    assert_eq!(terminal.end().await, Some(7));
}

fn hash(path: impl AsRef<Path>) -> Vec<u8> {
    Sha256::digest(fs::read(path).unwrap()).to_vec()
}

#[actix::test]
async fn files_and_folders_are_copied_both_ways() {
    let directory = Directory::new();
    let serving = Serving::start(&[]).await;
    let large: Vec<u8> = (0..100_000_000_u32).map(|n| (n / 7) as u8).collect();
    fs::write(directory.at("large"), large).unwrap();
    fs::create_dir_all(directory.at("folder/in/it")).unwrap();
    fs::write(directory.at("folder/a"), "a").unwrap();
    fs::write(directory.at("folder/in/it/b c"), "b").unwrap();
    let copy = async |from: String, to: String| {
        let output = soon(execmux(&["cp", "--url", &serving.url, &from, &to]).output())
            .await
            .unwrap();
        assert_eq!(said(&output), (Some(0), String::new(), String::new()));
    };
    let there = |name: &str| format!("remote:{}", directory.at(name));
    for name in ["large", "folder"] {
        copy(directory.at(name), there(&format!("{name}-there"))).await;
        copy(
            there(&format!("{name}-there")),
            directory.at(&format!("{name}-back")),
        )
        .await;
    }
    assert_eq!(
        hash(directory.at("large")),
        hash(directory.at("large-back"))
    );
    for name in ["a", "in/it/b c"] {
        let copied = directory.at(&format!("folder-back/{name}"));
        assert_eq!(hash(directory.at(&format!("folder/{name}"))), hash(copied));
    }
    let names = fs::read_dir(&directory.0).unwrap();
    assert_eq!(names.count(), 6, "nothing half-written is left");
}

#[actix::test]
async fn a_wrong_token_a_wrong_url_and_a_wrong_flag_are_one_line() {
    let directory = Directory::new();
    fs::write(directory.at("token"), "the token, long enough\n").unwrap();
    let serving = Serving::start(&["--token-file", &directory.at("token")]).await;
    for (token, expected) in [
        (Some("the token, long enough"), 0),
        (Some("another"), 125),
        (None, 125),
    ] {
        let mut command = execmux(&["run", "--url", &serving.url, "--", "true"]);
        if let Some(token) = token {
            command.env("EXECMUX_TOKEN", token);
        }
        let (code, _, stderr) = said(&soon(command.output()).await.unwrap());
        assert_eq!(code, Some(expected), "{stderr}");
        assert_eq!(
            stderr.lines().count(),
            usize::from(expected != 0),
            "{stderr}"
        );
        assert_eq!(stderr.contains("EXECMUX_TOKEN"), expected != 0, "{stderr}");
        assert!(!stderr.contains("another") && !stderr.contains("the token,"));
    }
    for arguments in [
        &["run", "--url", "ws://127.0.0.1:1", "--", "true"][..],
        &["run", "--no-such-flag", "--", "true"],
        &["cp", "a", "b"],
        &["serve", "--listen", "0.0.0.0:0"],
        &["serve", "--root", "/no/such/directory"],
        &["info", "--url", "http://127.0.0.1"],
    ] {
        let (code, stdout, stderr) = said(&soon(execmux(arguments).output()).await.unwrap());
        assert_eq!((code, &*stdout), (Some(125), ""), "{arguments:?}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[actix::test]
async fn a_server_of_the_program_takes_signed_tokens() {
    let directory = Directory::new();
    let secret = "of the thirty-two bytes it takes";
    fs::write(directory.at("secret"), format!("{secret}\n")).unwrap();
    fs::write(directory.at("short"), "too short").unwrap();
    let secret_file = directory.at("secret");
    let serving = Serving::start(&[
        "--jwt-secret-file",
        &secret_file,
        "--jwt-issuer",
        "us",
        "--jwt-audience",
        "me",
        "--jwt-max-clock-skew",
        "0",
    ])
    .await;
    let soon_over = jwt::seconds_from_now(Duration::from_secs(600));
    let over = soon_over - 605;
    for (exp, issuer, audience, expected) in [
        (soon_over, "us", "me", 0),
        (over, "us", "me", 125),
        (soon_over, "them", "me", 125),
        (soon_over, "us", "you", 125),
    ] {
        let claims = serde_json::json!({"exp": exp, "iss": issuer, "aud": audience});
        let token = jwt::sign(&claims, secret.as_bytes());
        let mut command = execmux(&["run", "--url", &serving.url, "--", "true"]);
        command.env("EXECMUX_TOKEN", token);
        let (code, _, stderr) = said(&soon(command.output()).await.unwrap());
        assert_eq!(code, Some(expected), "{claims}: {stderr}");
    }
    for (options, problem) in [
        (
            &["--jwt-secret-file", &secret_file, "--token-file", "x"][..],
            "cannot be used with",
        ),
        (&["--jwt-audience", "me"], "--jwt-secret-file"),
        (
            &["--jwt-secret-file", &directory.at("short")],
            "the secret is too short: at least 32 bytes",
        ),
        (
            &["--jwt-secret-file", &directory.at("none")],
            "cannot read the secret in ",
        ),
    ] {
        let output = soon(execmux(&[&["serve"], options].concat()).output()).await;
        let (code, stdout, stderr) = said(&output.unwrap());
        assert_eq!((code, &*stdout), (Some(125), ""), "{options:?}");
        assert!(stderr.contains(problem), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[actix::test]
async fn a_terminal_on_a_real_server_follows_the_size_of_ours() {
    for version in ["0.120.0", "0.142.0", "0.171.0"] {
        let Some(server) = ExecServer::start(version, "terminal_size").await else {
            return;
        };
        let script =
            "trap 'stty size' WINCH; trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done";
        let arguments = [
            "run",
            "--url",
            &server.url,
            "--tty",
            "--",
            "sh",
            "-c",
            script,
        ];
        let mut terminal = Terminal::start(&arguments, (24, 80));
        terminal.see("up").await;
        // Faster than they can be passed on: the last counts.
        for rows in 30..40 {
            terminal.writer.resize(Size::new(rows, 120)).unwrap();
        }
        terminal.see("39 120").await;
        signal(&terminal.child, Signal::TERM);
        assert_eq!(terminal.end().await, Some(5));
    }
}

#[actix::test]
async fn a_terminal_without_a_shell_on_the_server_has_the_usual_size() {
    let Some(server) = ExecServer::start("0.171.0", "terminal_no_shell").await else {
        return;
    };
    let between = Between::start(&server.url, |request| {
        match request["params"]["argv"][0].as_str() {
            Some("/bin/sh") => Verdict::Reject(-32603, "no shell here"),
            _ => Verdict::Forward,
        }
    })
    .await;
    let arguments = ["run", "--url", &between.url, "--tty", "--", "stty", "size"];
    let mut terminal = Terminal::start(&arguments, (30, 120));
    terminal.see("24 80").await;
    assert_eq!(terminal.end().await, Some(0));
}
