//! Processes that try to outlive the server, the session or the request that ends them.

use std::{fs, time::Duration};

use execmux::{
    ProcessId,
    server::{Server, ServerConfig},
};
use serde_json::{Value, json};

use crate::support::{checked, raw::Raw, soon};

/// Stands for the command that has to be gone in the end. It is in nobody else's command line.
const SLEEP: &str = "SLEEP";

/// What a process does to be left over.
struct Case {
    name: &'static str,
    /// The script that `bash` runs, or what is typed into `bash -i` on a terminal.
    script: &'static str,
    is_typed: bool,
    /// How many [`SLEEP`]s run when it is ended.
    sleeping: usize,
    /// The leader has exited by then.
    leader_exits: bool,
}

const fn script(name: &'static str, sleeping: usize, script: &'static str) -> Case {
    Case {
        name,
        script,
        is_typed: false,
        sleeping,
        leader_exits: false,
    }
}

/// Every process that is still in the session of the leader, or hangs below it.
const CASES: &[Case] = &[
    script("one command", 1, "exec SLEEP"),
    script("background job", 2, "set -m; SLEEP & SLEEP"),
    script("disowned", 2, "set -m; SLEEP & disown; SLEEP"),
    script("hangs up for nobody", 2, "set -m; nohup SLEEP & SLEEP"),
    script(
        "terms ignored",
        2,
        "trap '' TERM HUP INT; set -m; SLEEP & SLEEP",
    ),
    script(
        "many groups",
        9,
        "set -m; for n in 1 2 3 4 5 6 7 8; do SLEEP & done; SLEEP",
    ),
    script(
        "stopped job",
        2,
        "set -m; SLEEP & until grep -q sleep /proc/$!/comm; do :; done; kill -STOP $!; SLEEP",
    ),
    script("own session below", 2, "setsid SLEEP & SLEEP"),
    script(
        "groups of a session below",
        3,
        "setsid bash -c 'set -m; SLEEP & SLEEP' & SLEEP",
    ),
    script("orphan in a group", 2, "set -m; (SLEEP & exit 0) & SLEEP"),
    script(
        "forks and forks",
        1,
        "set -m; f() { (sleep 0.01; f) & }; f; f; SLEEP",
    ),
    Case {
        name: "leader exits",
        script: "set -m; SLEEP & SLEEP & exit 0",
        is_typed: false,
        sleeping: 2,
        leader_exits: true,
    },
    Case {
        name: "leader exits from a pipe",
        script: "SLEEP < /dev/null > /dev/null 2>&1 & exit 0",
        is_typed: false,
        sleeping: 1,
        leader_exits: true,
    },
    Case {
        name: "interactive shell",
        script: "SLEEP &\nSLEEP &\nSLEEP\n",
        is_typed: true,
        sleeping: 3,
        leader_exits: false,
    },
    Case {
        name: "interactive shell exits",
        script: "SLEEP & disown\nexit\n",
        is_typed: true,
        sleeping: 1,
        leader_exits: true,
    },
];

/// How the process is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Terminate,
    WindowOver,
    Stop,
    Drop,
}

/// Returns the processes that have `marker` in their command line and are no zombies.
pub(crate) fn pids(marker: &str) -> Vec<String> {
    let is_it = |pid: &str| -> Option<bool> {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        // Of a zombie, the command line is empty.
        let words = command.split(|&byte| byte == 0).collect::<Vec<_>>();
        Some(words.first()?.ends_with(b"sleep") && words.get(1)? == &marker.as_bytes())
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| is_it(pid) == Some(true))
        .collect()
}

pub(crate) fn alive(marker: &str) -> usize {
    pids(marker).len()
}

/// Looks again and again, for as long as a test may take.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let mut tries = 0;
    while !condition() {
        tries += 1;
        assert!(tries < 2000, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns an argument for `sleep` that nobody else uses.
pub(crate) fn marker() -> String {
    let digits: String = ProcessId::unique()
        .to_string()
        .bytes()
        .map(|byte| format!("{byte:03}"))
        .collect();
    format!("100000.{digits}")
}

pub(crate) fn start_params(id: &str, argv: Value, tty: bool) -> Value {
    json!({"processId": id, "argv": argv, "cwd": "file:///tmp", "tty": tty, "pipeStdin": true,
           "env": {"PATH": "/usr/bin:/bin", "PS1": "", "HISTFILE": ""}})
}

/// Starts what the case says, and waits until it has come as far as it is to come.
async fn start(raw: &mut Raw, case: &Case, marker: &str) {
    let script = case.script.replace(SLEEP, &format!("sleep {marker}"));
    let argv = match case.is_typed {
        true => json!(["bash", "--norc", "-i"]),
        false => json!(["bash", "-c", script]),
    };
    raw.call("process/start", start_params("p", argv, case.is_typed))
        .await
        .unwrap();
    if case.is_typed {
        let chunk = base64_simd::STANDARD.encode_to_string(script);
        let write = json!({"processId": "p", "writeId": "1", "chunk": chunk});
        raw.call("process/write", write).await.unwrap();
    }
    until(case.name, || alive(marker) == case.sleeping).await;
    let is_exit = |message: &Value| message["method"] == "process/exited";
    while case.leader_exits && !raw.notifications.iter().any(is_exit) {
        let message = raw.next().await.unwrap();
        raw.notifications.push(message);
    }
}

async fn ends(case: &Case, end: End) {
    let mut config = ServerConfig::new();
    if end == End::WindowOver {
        config.session_window = Duration::from_millis(1);
    }
    let server = soon(Server::start(config)).await.unwrap();
    let (mut raw, _) = Raw::greet(&server.url(), None).await;
    let marker = marker();
    start(&mut raw, case, &marker).await;
    let problem = format!("{} is left by {end:?}", case.name);
    match end {
        End::Terminate => {
            let params = json!({"processId": "p"});
            let answer = raw.call("process/terminate", params).await.unwrap();
            assert_eq!(answer["running"], !case.leader_exits, "{}", case.name);
            until(&problem, || alive(&marker) == 0).await;
            raw.closed("p").await;
            soon(server.stop()).await;
        }
        End::WindowOver => {
            drop(raw);
            until(&problem, || alive(&marker) == 0).await;
            soon(server.stop()).await;
        }
        End::Stop => {
            soon(server.stop()).await;
            assert_eq!(alive(&marker), 0, "{problem}");
        }
        End::Drop => {
            drop(server);
            until(&problem, || alive(&marker) == 0).await;
        }
    }
}

async fn all_end(end: End) {
    checked(async {
        for case in CASES {
            ends(case, end).await;
        }
    })
    .await;
}

#[actix::test]
async fn p13_nothing_is_left_of_a_process_that_is_terminated() {
    all_end(End::Terminate).await;
}

#[actix::test]
async fn p13_nothing_is_left_of_a_session_whose_window_is_over() {
    all_end(End::WindowOver).await;
}

#[actix::test]
async fn p13_nothing_is_left_when_a_server_has_stopped() {
    all_end(End::Stop).await;
}

#[actix::test]
async fn p13_nothing_is_left_by_a_server_that_is_dropped() {
    all_end(End::Drop).await;
}

/// What is not the server's lives on, whatever its relation to the process that is ended.
#[actix::test]
async fn p13_what_other_processes_run_is_left_alone() {
    checked(async {
        let server = soon(Server::start(ServerConfig::new())).await.unwrap();
        let (mut raw, _) = Raw::greet(&server.url(), None).await;
        let (marker, own, other) = (marker(), marker(), marker());
        let mut child = tokio::process::Command::new("sleep")
            .arg(&own)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let argv = json!(["sleep", other]);
        raw.call("process/start", start_params("other", argv, false))
            .await
            .unwrap();
        start(&mut raw, &CASES[1], &marker).await;
        until("start", || alive(&own) == 1 && alive(&other) == 1).await;
        let params = json!({"processId": "p"});
        raw.call("process/terminate", params).await.unwrap();
        raw.closed("p").await;
        until("end", || alive(&marker) == 0).await;
        assert_eq!((alive(&own), alive(&other)), (1, 1));
        soon(server.stop()).await;
        assert_eq!((alive(&own), alive(&other)), (1, 0));
        child.kill().await.unwrap();
    })
    .await;
}

/// The program, ended by each signal that ends it.
#[cfg(feature = "cli")]
mod program {
    use rustix::process::Signal;

    use super::*;
    use crate::support::program::{Serving, signal};

    #[actix::test]
    async fn p13_nothing_is_left_by_the_program() {
        checked(async {
            for (number, ending) in [Signal::TERM, Signal::INT, Signal::HUP]
                .into_iter()
                .cycle()
                .take(CASES.len())
                .enumerate()
            {
                ends_with(&CASES[number], ending).await;
            }
        })
        .await;
    }

    /// A daemon that has left its session and lost its parent can only be found by a program that adopts it.
    #[actix::test]
    async fn p13_not_even_a_daemon_is_left_by_the_program() {
        const DAEMON: Case = script("daemon", 2, "(setsid SLEEP & exit 0); SLEEP");
        checked(ends_with(&DAEMON, Signal::TERM)).await;
    }

    async fn ends_with(case: &Case, ending: Signal) {
        let mut serving = Serving::start(&[]).await;
        let (mut raw, _) = Raw::greet(&serving.url, None).await;
        let marker = marker();
        start(&mut raw, case, &marker).await;
        signal(&serving.child, ending);
        let status = soon(serving.child.wait()).await.unwrap();
        assert!(status.success(), "{} {ending:?}: {status}", case.name);
        assert_eq!(alive(&marker), 0, "{} is left by {ending:?}", case.name);
    }
}
