//! The program as a user meets it, against real exec-servers where they are installed.
#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeSet, path::PathBuf, process::Output};

use support::{
    between::{Between, Verdict},
    exec_server::ExecServer,
    program::{execmux, piped},
    proxy::Proxy,
    soon,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
};

async fn output(arguments: &[&str]) -> Output {
    soon(execmux(arguments).output()).await.unwrap()
}

/// Runs `argv` on the server and returns exit code, stdout and stderr.
async fn run(server: &ExecServer, options: &[&str], argv: &[&str]) -> (i32, String, String) {
    run_at(&server.url, options, argv).await
}

async fn run_at(url: &str, options: &[&str], argv: &[&str]) -> (i32, String, String) {
    let output = output(&[&["run", "--url", url], options, &["--"], argv].concat()).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn spawn(server: &ExecServer, options: &[&str], argv: &[&str]) -> Child {
    spawn_at(&server.url, options, argv)
}

fn spawn_at(url: &str, options: &[&str], argv: &[&str]) -> Child {
    piped(&[&["run", "--url", url], options, &["--"], argv].concat())
}

async fn signal(child: &Child, name: &str) {
    let id = child.id().unwrap().to_string();
    let sent = Command::new("kill")
        .args(["-s", name, &id])
        .status()
        .await
        .unwrap();
    assert!(sent.success());
}

#[actix::test]
async fn our_own_failures_are_one_line_and_exit_code_125() {
    for (arguments, problem) in [
        (
            &["run", "--url", "ws://127.0.0.1:1", "--", "true"][..],
            "cannot reach ws://127.0.0.1:1/: ",
        ),
        (
            &["run", "--url", "ws://me:secret@127.0.0.1:1", "--", "true"],
            "cannot reach ws://127.0.0.1:1/: ",
        ),
        (
            &["run", "--url", "http://127.0.0.1", "--", "true"],
            "cannot use the URL: the scheme is http",
        ),
        (&["run"], "the following required arguments"),
        (
            &["run", "--url", "ws://127.0.0.1:1"],
            "the following required arguments",
        ),
        (&["run", "--bogus"], "unexpected argument '--bogus'"),
        (
            &[
                "run",
                "--url",
                "ws://127.0.0.1:1",
                "--env",
                "=x",
                "--",
                "true",
            ],
            "invalid value '=x'",
        ),
        (&["bogus"], "unrecognized subcommand 'bogus'"),
    ] {
        let output = output(arguments).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {stderr}");
        assert!(
            stderr.starts_with("execmux: ") && stderr.contains(problem),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[actix::test]
async fn help_is_no_failure() {
    let help = output(&["run", "--help"]).await;
    assert!(help.status.success() && help.stderr.is_empty());
    assert!(
        String::from_utf8(help.stdout)
            .unwrap()
            .contains("Examples:\n  execmux run -- sh")
    );
}

#[actix::test]
async fn a_command_runs_with_its_streams_and_its_exit_code() {
    for version in ["0.120.0", "0.142.0", "0.171.0"] {
        let Some(server) = ExecServer::start(version, "program_streams").await else {
            return;
        };
        let answer = run(
            &server,
            &[],
            &["sh", "-c", "echo out; echo err >&2; exit 7"],
        )
        .await;
        assert_eq!(answer, (7, "out\n".into(), "err\n".into()));
        let options = ["--cwd", "/usr", "--env", "A=1=2", "--env", "B="];
        let answer = run(
            &server,
            &options,
            &["sh", "-c", "pwd; echo $A $B; test -n \"$PATH\""],
        )
        .await;
        assert_eq!(answer, (0, "/usr\n1=2\n".into(), String::new()));
        let (code, stdout, _) = run(
            &server,
            &["--tty", "-n"],
            &["sh", "-c", "test -t 1 && echo tty"],
        )
        .await;
        assert_eq!((code, stdout.as_str()), (0, "tty\r\n"));
        // With nothing to read, it does not wait.
        assert_eq!(
            run(&server, &[], &["cat"]).await,
            (0, String::new(), String::new())
        );
        let (code, stdout, stderr) = run(&server, &[], &["/no/such/program"]).await;
        assert_eq!(
            (code, stdout.as_str(), stderr.lines().count()),
            // It is a shell that does not find it.
            (127, "", 1),
            "{stderr}"
        );
        let (code, _, stderr) = run(&server, &["--cwd", "here"], &["true"]).await;
        assert_eq!(code, 125);
        assert!(
            stderr.contains("cwd must be an absolute path, got here"),
            "{stderr}"
        );
    }
}

#[actix::test]
async fn stdin_is_forwarded() {
    let Some(server) = ExecServer::start("0.171.0", "program_stdin").await else {
        return;
    };
    for options in [&[][..], &["--tty"]] {
        let mut child = spawn(
            &server,
            options,
            &["sh", "-c", "read a; read b; echo got $a $b"],
        );
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"one\ntwo\n").await.unwrap();
        let output = soon(child.wait_with_output()).await.unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && stdout.contains("got one two"),
            "{options:?}: {stdout}"
        );
    }
    // The end of input reaches a terminal, also within a line.
    for text in ["line\n", "begun"] {
        let mut child = spawn(&server, &["--tty"], &["cat"]);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).await.unwrap();
        drop(stdin);
        assert!(soon(child.wait()).await.unwrap().success(), "{text:?}");
    }
}

#[actix::test]
async fn a_hundred_megabytes_come_through() {
    let Some(server) = ExecServer::start("0.171.0", "program_large").await else {
        return;
    };
    let mut child = spawn(&server, &["-n"], &["head", "-c", "100000000", "/dev/zero"]);
    let mut stdout = child.stdout.take().unwrap();
    let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
    loop {
        let length = soon(stdout.read(&mut buffer)).await.unwrap();
        if length == 0 {
            break;
        }
        assert!(buffer[..length].iter().all(|&byte| byte == 0));
        total += length;
    }
    assert_eq!(total, 100_000_000);
    assert!(soon(child.wait()).await.unwrap().success());
}

#[actix::test]
async fn ctrl_c_interrupts_and_a_second_one_leaves() {
    let Some(server) = ExecServer::start("0.171.0", "program_interrupt").await else {
        return;
    };
    for (script, signals, code) in [
        (
            "trap 'exit 9' INT; echo up; while :; do sleep 0.1; done",
            1,
            9,
        ),
        (
            "trap 'echo again' INT; echo up; while :; do sleep 0.1; done",
            2,
            130,
        ),
    ] {
        let mut child = spawn(&server, &["-n"], &["sh", "-c", script]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "up");
        signal(&child, "INT").await;
        if signals == 2 {
            assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "again");
            signal(&child, "INT").await;
        }
        assert_eq!(soon(child.wait()).await.unwrap().code(), Some(code));
    }
}

/// The files by which helpers find a process.
fn records(pid: &str) -> Vec<PathBuf> {
    let directories = BTreeSet::from([std::env::temp_dir(), "/tmp".into()]);
    let files = directories
        .iter()
        .flat_map(|it| std::fs::read_dir(it).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    let is_its = |path: &PathBuf| {
        path.to_string_lossy().contains("/execmux-")
            && std::fs::read_to_string(path).is_ok_and(|record| record.lines().next() == Some(pid))
    };
    paths.filter(is_its).collect()
}

#[actix::test]
async fn signals_are_passed_on_to_servers_that_have_none() {
    for version in ["0.120.0", "0.142.0", "0.171.0"] {
        let Some(server) = ExecServer::start(version, "program_signals").await else {
            return;
        };
        for (name, code) in [("INT", 7), ("TERM", 8), ("HUP", 9)] {
            let script =
                format!("trap 'exit {code}' {name}; echo up $$; while :; do sleep 0.1; done");
            let mut child = spawn(&server, &["-n"], &["sh", "-c", &script]);
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let up = soon(lines.next_line()).await.unwrap().unwrap();
            let pid = up.strip_prefix("up ").unwrap();
            signal(&child, name).await;
            assert_eq!(soon(child.wait()).await.unwrap().code(), Some(code));
            assert!(records(pid).is_empty(), "nothing is left");
        }
    }
}

#[actix::test]
async fn a_server_without_a_shell_runs_commands_all_the_same() {
    for version in ["0.120.0", "0.171.0"] {
        let Some(server) = ExecServer::start(version, "program_no_shell").await else {
            return;
        };
        let between = Between::start(&server.url, |request| {
            match request["params"]["argv"][0].as_str() {
                Some("/bin/sh") => Verdict::Reject(-32603, "no shell here"),
                _ => Verdict::Forward,
            }
        })
        .await;
        let url = &between.url;
        assert_eq!(
            run_at(url, &[], &["echo", "up"]).await,
            (0, "up\n".into(), String::new())
        );
        let (code, stdout, _) = run_at(url, &["--tty", "-n"], &["echo", "up"]).await;
        assert_eq!((code, &*stdout), (0, "up\r\n"));
        let (code, stdout, stderr) = run_at(url, &[], &["/no/such/program"]).await;
        assert_eq!((code, &*stdout), (125, ""), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(!stderr.contains("no shell here"), "{stderr}");
        // A signal still ends it.
        let mut child = spawn_at(url, &["-n"], &["sh", "-c", "echo up; exec sleep 600"]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "up");
        signal(&child, "TERM").await;
        assert_ne!(soon(child.wait()).await.unwrap().code(), Some(0));
    }
}

#[actix::test]
async fn a_reader_that_has_seen_enough_ends_the_command() {
    let Some(server) = ExecServer::start("0.171.0", "program_pipe").await else {
        return;
    };
    let mut child = spawn(&server, &["-n"], &["sh", "-c", "while :; do echo y; done"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "y");
    drop(lines);
    let output = soon(child.wait_with_output()).await.unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0));
}

#[actix::test]
async fn a_lost_server_is_a_failure_of_our_own() {
    let Some(mut server) = ExecServer::start("0.171.0", "program_lost").await else {
        return;
    };
    let options = ["-n", "--resume-timeout", "1"];
    let mut child = spawn(
        &server,
        &options,
        &["sh", "-c", "echo up $$; exec sleep 60"],
    );
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let up = soon(lines.next_line()).await.unwrap().unwrap();
    server.kill().await;
    let output = soon(child.wait_with_output()).await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("the connection is gone: "), "{stderr}");
    assert!(stderr.contains("trying to resume it for 1 s"), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    // A server that is gone cannot remove by what helpers would have found the command.
    for record in records(up.strip_prefix("up ").unwrap()) {
        std::fs::remove_file(record).unwrap();
    }
}

#[actix::test]
async fn a_lost_connection_is_resumed_and_said() {
    let Some(server) = ExecServer::start("0.171.0", "program_resumed").await else {
        return;
    };
    let proxy = Proxy::start(server.url.trim_start_matches("ws://").parse().unwrap()).await;
    let go_on = server.directory.join("go on");
    let script = format!(
        "echo up; until [ -e '{}' ]; do sleep 0.05; done; echo down; exit 3",
        go_on.display()
    );
    let mut child = spawn_at(&proxy.url(), &["-n"], &["sh", "-c", &script]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "up");
    proxy.cut();
    std::fs::write(go_on, "").unwrap();
    assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "down");
    let output = soon(child.wait_with_output()).await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("the connection is resumed"), "{stderr}");
}

#[actix::test]
async fn rust_log_shows_what_happens_and_no_secrets() {
    let Some(server) = ExecServer::start("0.171.0", "program_log").await else {
        return;
    };
    let url = server.url.replace("ws://", "ws://me:secret@");
    let output = execmux(&[
        "run",
        "--url",
        &url,
        "--env",
        "KEY=secret",
        "--",
        "echo",
        "secret",
    ])
    .env("RUST_LOG", "trace")
    .env("EXECMUX_TOKEN", "secret")
    .output();
    let output = soon(output).await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && stderr.contains("connected"),
        "{stderr}"
    );
    let leaks: Vec<_> = stderr
        .lines()
        .filter(|line| line.contains("secret"))
        .collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
}
