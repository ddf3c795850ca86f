//! Open files that a process of the server must not get.

use std::{
    fs::{self, File},
    process::Command,
};

use execmux::server::{Server, ServerConfig};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::{Value, json};

use crate::{
    server_leftovers::{alive, marker, pids, start_params, until},
    support::{checked, raw::Raw, soon},
};

/// Returns the descriptors that the process with this marker has.
fn descriptors(marker: &str) -> Vec<String> {
    let pid = pids(marker).remove(0);
    let mut names: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Starts a process in each way, and checks that it has nothing but its own streams.
async fn check(raw: &mut Raw, when: &str) {
    for (id, tty, pipe_stdin) in [
        ("pty", true, false),
        ("pipes", false, true),
        ("null", false, false),
    ] {
        let marker = marker();
        let mut params = start_params(&format!("{id} {when}"), json!(["sleep", marker]), tty);
        params["pipeStdin"] = Value::from(pipe_stdin);
        raw.call("process/start", params).await.unwrap();
        // The loader of a program opens files of its own for a moment.
        let what = format!("{id} {when} has only its streams");
        until(&what, || {
            alive(&marker) == 1 && descriptors(&marker) == ["0", "1", "2"]
        })
        .await;
    }
}

/// Opens a file that whoever this process starts inherits.
fn open_for_all() -> File {
    let file = File::open("/dev/null").unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    file
}

#[actix::test]
async fn a_process_gets_no_descriptor_of_the_application() {
    checked(async {
        let before = open_for_all();
        let server = soon(Server::start(ServerConfig::new())).await.unwrap();
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        check(&mut raw, "first").await;
        let between = open_for_all();
        check(&mut raw, "again").await;
        soon(server.stop()).await;
        drop((before, between));
    })
    .await;
}

/// A lock that a shell holds on descriptor 9 is not held by what the server starts.
#[cfg(feature = "cli")]
#[actix::test]
async fn a_process_gets_no_descriptor_that_the_program_has_inherited() {
    use crate::support::program::{Directory, Serving};
    checked(async {
        let directory = Directory::new();
        let lock = directory.at("lock");
        let serving = Serving::start_from_shell(&format!("exec 9>'{lock}'; flock 9;")).await;
        let is_locked = || {
            let tried = Command::new("flock").args(["-n", &lock, "true"]).status();
            !tried.unwrap().success()
        };
        assert!(is_locked(), "the program has it");
        let (mut raw, _) = Raw::greet(&serving.url, None).await;
        check(&mut raw, "first").await;
        serving.stop().await;
        assert!(!is_locked());
    })
    .await;
}
