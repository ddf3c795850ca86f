//! `execmux each`: commands as they come, over connections that are lost, until Ctrl-C.
#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, fs, path::Path, process::Stdio};

use rustix::process::{Pid, test_kill_process};
use serde_json::Value;
use support::{
    exec_server::ExecServer,
    program::{Directory, Serving, Terminal, execmux, piped, said, with_input},
    proxy::Proxy,
    soon,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

#[actix::test]
async fn each_runs_two_hundred_commands_and_lists_what_failed() {
    let lines: String = (0..200)
        .map(|n| format!("for i in 1 2 3; do echo {n} $i; done; test {n} != 77\n"))
        .collect();
    let output = with_input(&["each", "--jobs", "8"], lines.as_bytes()).await;
    let (code, stdout, stderr) = said(&output);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("199 succeeded, 1 failed"), "{stderr}");
    assert!(stderr.contains("test 77 != 77"), "{stderr}");
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 600);
    for whole in lines.chunks(3) {
        let (n, _) = whole[0].split_once(' ').unwrap();
        let expected = [1, 2, 3].map(|i| format!("{n} {i}"));
        assert_eq!(whole, expected, "the output of each is whole");
    }
    let tagged = with_input(&["each", "--tag"], b"echo a\n").await;
    assert!(said(&tagged).1.ends_with("a\n") && said(&tagged).1.len() > 2);
    let json = with_input(&["each", "--json"], b"echo a; exit 2\n").await;
    let line: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(line["exit_code"], 2, "{line}");
}

#[actix::test]
async fn a_command_runs_before_the_input_ends() {
    let mut child = piped(&["each", "--jobs", "2"]);
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Each line is written when the output of the one before has come.
    for n in ["one", "two", "three"] {
        stdin
            .write_all(format!("\necho {n}\n").as_bytes())
            .await
            .unwrap();
        assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), n);
    }
    // The last line may have no end.
    stdin.write_all(b"echo four; exit 1").await.unwrap();
    drop(stdin);
    assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "four");
    let output = soon(child.wait_with_output()).await.unwrap();
    let (code, _, stderr) = said(&output);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("3 succeeded, 1 failed in"), "{stderr}");
}

#[actix::test]
async fn a_fifo_is_read_as_it_is_written() {
    let directory = Directory::new();
    let fifo = directory.at("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let mut child = execmux(&["each", &fifo])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let path = fifo.clone();
    let writing =
        tokio::task::spawn_blocking(move || fs::OpenOptions::new().write(true).open(path));
    let mut writer = soon(writing).await.unwrap().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    std::io::Write::write_all(&mut writer, b"echo one\n").unwrap();
    assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "one");
    drop(writer);
    assert_eq!(soon(child.wait()).await.unwrap().code(), Some(0));
}

#[actix::test]
async fn what_cannot_be_read_is_said_and_what_came_before_is_run() {
    let missing = soon(execmux(&["each", "/no/such/file"]).output())
        .await
        .unwrap();
    let (code, _, stderr) = said(&missing);
    assert_eq!(code, Some(255), "{stderr}");
    assert!(
        stderr.contains("cannot read commands from /no/such/file"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let output = with_input(&["each"], b"echo one\n\xff\necho two\n").await;
    let (code, stdout, stderr) = said(&output);
    assert_eq!((code, &*stdout), (Some(255), "one\n"), "{stderr}");
    assert!(
        stderr.contains("cannot read commands from stdin"),
        "{stderr}"
    );
}

#[actix::test]
async fn no_more_is_started_and_read_once_one_has_failed() {
    let mut child = piped(&["each", "--halt", "--jobs", "1"]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"exit 1\n").await.unwrap();
    // It does not wait for the end of the input.
    let output = soon(child.wait_with_output()).await.unwrap();
    let (code, _, stderr) = said(&output);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("the rest of the input not read"),
        "{stderr}"
    );
    drop(stdin);
}

#[actix::test]
async fn the_total_is_shown_when_it_is_known() {
    let mut terminal = Terminal::start(&["each"], (24, 200));
    terminal.press("echo o''ne\r").await;
    terminal.see("one\r\n").await;
    terminal.see("1 of 1 or more").await;
    terminal.press("echo t''wo; exec sleep 0.3\r\x04").await;
    terminal.see("1/2").await;
    terminal.see("2 succeeded, 0 failed").await;
    assert_eq!(terminal.end().await, Some(0));
}

/// The ids of the processes that wrote them to files.
fn pids(directory: &Directory, names: &[&str]) -> Vec<Pid> {
    let read = |name: &&str| fs::read_to_string(directory.at(name)).unwrap();
    let ids = names.iter().map(read);
    ids.map(|id| Pid::from_raw(id.trim().parse().unwrap()).unwrap())
        .collect()
}

/// Waits until they are gone. Nobody is told: they are not our children.
async fn gone(pids: Vec<Pid>) {
    soon(async {
        for pid in pids {
            while test_kill_process(pid).is_ok() && !is_zombie(pid) {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
}

fn is_zombie(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
        .is_ok_and(|stat| stat.contains(") Z "))
}

#[actix::test]
async fn ctrl_c_ends_what_runs_and_says_how_far_it_came() {
    let serving = Serving::start(&[]).await;
    let real = ExecServer::start("0.171.0", "each_ctrl_c").await;
    let real = real.as_ref().map(|server| server.url.as_str());
    for url in [Some(""), Some(serving.url.as_str()), real]
        .into_iter()
        .flatten()
    {
        let directory = Directory::new();
        let forever = |name: &str| {
            let path = directory.at(name);
            format!("echo $$ > '{path}'; sleep 1000 & echo $! > '{path} child'; echo u''p; wait\n")
        };
        let lines = ["true\n", &forever("a"), &forever("b"), "echo never\n"].concat();
        fs::write(directory.at("lines"), lines).unwrap();
        let file = directory.at("lines");
        let arguments = ["each", "--url", url, "--tag", "--jobs", "2", &file];
        let mut terminal = Terminal::start(&arguments, (24, 200));
        terminal.see("up").await;
        terminal.see("up").await;
        let pids = pids(&directory, &["a", "a child", "b", "b child"]);
        terminal.press("\x03").await;
        terminal
            .see("1 succeeded, 0 failed, 2 terminated, 1 not started in")
            .await;
        assert_eq!(terminal.end().await, Some(130));
        gone(pids).await;
    }
}

#[actix::test]
async fn ctrl_c_also_ends_the_wait_for_input() {
    let mut terminal = Terminal::start(&["each"], (24, 200));
    terminal.press("echo o''ne\r").await;
    terminal.see("one\r\n").await;
    terminal.press("\x03").await;
    terminal
        .see("1 succeeded, 0 failed, the rest of the input not read")
        .await;
    assert_eq!(terminal.end().await, Some(130));
}

/// Commands that count how often they are run, wait to be let go, and end in ways of their own.
fn counting(directory: &Path, count: usize) -> String {
    let directory = directory.display();
    (0..count)
        .map(|n| {
            format!(
                "echo >> '{directory}/{n}'; until [ -e '{directory}/go' ]; do sleep 0.02; done; \
                 for i in 1 2 3; do echo {n} $i; done; exit {}\n",
                n % 3
            )
        })
        .collect()
}

/// While the connection is lost again and again, each command runs once, and is told once and as it was.
///
/// A real server forgets how a start ends that was under way when the connection was lost: it says for ever that
/// the process is starting. Such a command is told as not known, and has not run twice.
async fn lost_and_resumed(url: &str, forgets_starts: bool) {
    const COUNT: usize = 60;
    let directory = Directory::new();
    fs::write(directory.at("lines"), counting(&directory.0, COUNT)).unwrap();
    let proxy = Proxy::start(url.trim_start_matches("ws://").parse().unwrap()).await;
    let (url, file) = (proxy.url(), directory.at("lines"));
    let mut child = execmux(&["each", "--url", &url, "--json", "--jobs", "8", &file])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    soon(async {
        // The first eight are about to start, or run.
        while !Path::new(&directory.at("7")).exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    proxy.cut();
    fs::write(directory.at("go"), "").unwrap();
    let mut told = BTreeMap::new();
    while let Some(line) = soon(lines.next_line()).await.unwrap() {
        let object: Value = serde_json::from_str(&line).unwrap();
        let number = object["number"].as_u64().unwrap();
        assert!(told.insert(number, object).is_none(), "{line} again");
        // Some cuts are in the middle of a message, and some between starts.
        match told.len() {
            len if len % 10 == 0 => proxy.cut(),
            len if len % 10 == 5 => proxy.cut_after(700),
            _ => {}
        }
    }
    let output = soon(child.wait_with_output()).await.unwrap();
    let (code, _, stderr) = said(&output);
    assert!(stderr.contains("the connection is resumed"), "{stderr}");
    assert!(proxy.cuts() >= 5, "{} cuts", proxy.cuts());
    assert_eq!(told.len(), COUNT);
    let mut failed = 0;
    for (number, object) in told {
        let n = number - 1;
        let runs = fs::read_to_string(directory.at(&n.to_string())).unwrap_or_default();
        failed += i32::from(object["exit_code"] != 0);
        if let Some(problem) = object["problem"].as_str() {
            assert!(forgets_starts && problem.contains("not known"), "{object}");
            assert!(runs.lines().count() <= 1, "command {number}");
            continue;
        }
        let expected: String = (1..=3).map(|i| format!("{n} {i}\n")).collect();
        assert_eq!(object["exit_code"], n % 3, "{object}");
        assert_eq!(object["stdout"], expected, "{object}");
        assert_eq!(object["complete"], true, "{object}");
        assert_eq!(runs.lines().count(), 1, "command {number}");
    }
    let summary = format!("{} succeeded, {failed} failed", COUNT as i32 - failed);
    assert!(stderr.contains(&summary), "{stderr}");
    assert_eq!(code, Some(failed), "{stderr}");
}

#[actix::test]
async fn a_lost_connection_costs_time_and_no_command() {
    if let Some(server) = ExecServer::start("0.171.0", "each_lost").await {
        lost_and_resumed(&server.url, true).await;
    }
    let serving = Serving::start(&[]).await;
    lost_and_resumed(&serving.url, false).await;
    serving.stop().await;
}

#[actix::test]
async fn a_connection_that_is_lost_for_good_is_a_failure_of_our_own() {
    let serving = Serving::start(&[]).await;
    let proxy = Proxy::start(serving.url.trim_start_matches("ws://").parse().unwrap()).await;
    let url = proxy.url();
    let mut child = piped(&["each", "--url", &url, "--tag", "--resume-timeout", "1", "-"]);
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(b"echo up; exec sleep 1000\n")
        .await
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        soon(lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .ends_with("up")
    );
    proxy.refuse(true);
    proxy.cut();
    let output = soon(child.wait_with_output()).await.unwrap();
    let (code, _, stderr) = said(&output);
    assert_eq!(code, Some(255), "{stderr}");
    assert!(
        stderr.contains("lost command 1 (echo up; exec sleep 1000)"),
        "{stderr}"
    );
    // It still waits for its client.
    serving.stop().await;
}
