//! Replays what real servers have sent: every recorded conversation goes through decoder and router,
//! and gives the events that it should.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeSet, fs, path::Path};

use execmux::{SessionEvent, Statistics};
use serde_json::Value;
use support::{
    peer::{Peer, config},
    recorder::{Events, Tap},
};

/// Scenario, the servers it was recorded with, and what each process's session is told, in order of
/// `seq`: outputs of one stream in a row as `STREAM:COUNT/BYTES`, `exited:CODE`, and the last event.
/// `failed` is the end of the recording, not of the process.
#[rustfmt::skip]
const EXPECTED: &[(&str, &[&str], &[&str])] = &[
    ("duplicate-id", &["2026-03", "0.120.0", "0.140.0"], &["d1 exited:-1 closed"]),
    ("duplicate-id", &["0.150.0", "0.169.0", "0.171.0"], &["d1 exited:137 closed"]),
    ("fs-roundtrip", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0", "0.171.0"], &[]),
    ("grandchild-holds-pipe", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0"], &["g1 stdout:1/2 exited:4 stdout:1/5 closed"]),
    ("grandchild-holds-pipe", &["0.171.0"], &["g1 exited:4 stdout:2/7 closed"]),
    ("handshake", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0", "0.171.0"], &[]),
    ("http-request", &["0.140.0", "0.150.0", "0.169.0", "0.171.0"], &[]),
    ("long-poll-blocks", &["2026-03", "0.120.0", "0.140.0"], &["b1 exited:-1 closed"]),
    ("long-poll-blocks", &["0.150.0", "0.169.0", "0.171.0"], &["b1 exited:137 closed"]),
    ("malformed", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0", "0.171.0"], &[]),
    ("malformed-id", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0", "0.171.0"], &[]),
    ("network-policy", &["0.169.0", "0.171.0"], &["n1 stdout:1/29 exited:0 closed"]),
    ("notification-before-response", &["0.120.0"], &["m11 stdout:1/2 exited:0 closed"]),
    ("notification-before-response", &["0.140.0"], &["m49 stdout:1/2 exited:0 closed"]),
    ("notification-before-response", &["0.150.0"], &["m24 stdout:1/2 exited:0 closed"]),
    ("notification-before-response", &["2026-03", "0.169.0"], &["m10 stdout:1/2 exited:0 closed"]),
    ("ordering", &["0.120.0"], &["o1 stdout:11/209 stderr:6/114 stdout:13/247 stderr:19/361 exited:0 stdout:2/38 closed"]),
    ("ordering", &["0.140.0"], &["o5 stdout:25/475 stderr:19/361 exited:0 stderr:6/114 closed"]),
    ("ordering", &["0.150.0"], &["o0 stderr:16/304 stdout:8/152 stderr:9/171 stdout:5/95 exited:0 stdout:12/228 closed"]),
    ("ordering", &["0.169.0"], &["o22 stdout:17/323 stderr:8/152 stdout:13/247 stderr:17/323 exited:0 closed"]),
    ("ordering", &["0.171.0"], &["o5 stdout:8/152 stderr:8/152 stdout:2/38 stderr:8/152 stdout:14/266 stderr:8/152 stdout:1/19 stderr:1/19 exited:0 closed"]),
    ("ordering", &["2026-03"], &["o0 stdout:1/19 stderr:14/266 stdout:18/342 stderr:1/19 stdout:2/38 stderr:2/38 stdout:1/19 stderr:1/19 stdout:1/19 stderr:1/19 stdout:1/19 stderr:2/38 stdout:1/19 stderr:4/76 exited:0 closed"]),
    ("path-format", &["2026-03", "0.120.0", "0.140.0"], &["cwd-1 stdout:1/10 exited:0 closed", "cwd-3 stdout:1/10 exited:0 closed"]),
    ("path-format", &["0.150.0", "0.169.0", "0.171.0"], &["cwd-2 stdout:1/10 exited:0 closed"]),
    ("pipe-process", &["0.120.0", "0.140.0", "0.150.0", "0.169.0", "0.171.0"], &["p1 stdout:1/4 stderr:1/4 exited:3 closed"]),
    ("pipe-process", &["2026-03"], &["p1 stderr:1/4 stdout:1/4 exited:3 closed"]),
    ("pipe-stdin", &["2026-03", "0.120.0"], &["c0 exited:0 closed", "c1 exited:0 closed"]),
    ("pipe-stdin", &["0.140.0", "0.150.0", "0.169.0"], &["c0 exited:0 closed", "c1 stdout:1/8 exited:0 closed"]),
    ("pipe-stdin", &["0.171.0"], &["c0 exited:0 closed", "c1 exited:0 stdout:1/8 closed"]),
    ("read-paging", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0", "0.171.0"], &["r1 stdout:4/24 exited:0 closed"]),
    ("resume", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0"], &["j1 stdout:3/18 failed"]),
    ("resume", &["0.171.0"], &["j1 stdout:2/12 failed"]),
    ("retention", &["0.120.0"], &["big stdout:353/6706 exited:0 closed"]),
    ("retention", &["0.140.0"], &["big stdout:147/2793 exited:0 stdout:37/702 closed"]),
    ("retention", &["0.150.0"], &["big stdout:196/3724 exited:0 stdout:43/816 closed"]),
    ("retention", &["0.169.0"], &["big stdout:187/3552 exited:0 closed"]),
    ("retention", &["0.171.0"], &["big stdout:182/3458 exited:0 stdout:2/37 closed"]),
    ("retention", &["2026-03"], &["big stdout:184/3495 exited:0 closed"]),
    ("signal", &["2026-03", "0.120.0"], &["s1 stdout:1/3 exited:-1 closed", "s2 exited:-1 closed"]),
    ("signal", &["0.140.0", "0.169.0", "0.171.0"], &["s1 stdout:2/7 exited:7 closed", "s2 exited:130 closed"]),
    ("signal", &["0.150.0"], &["s1 stdout:1/3 exited:7 stdout:1/4 closed", "s2 exited:130 closed"]),
    ("start-errors", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0", "0.171.0"], &["e1 exited:0 closed"]),
    ("terminate", &["0.120.0"], &["k1 stdout:1/3 exited:-1 closed", "k2 pty:1/4 exited:1 pty:1/2 closed", "k3 exited:-1 closed"]),
    ("terminate", &["0.140.0", "0.150.0", "0.169.0", "0.171.0"], &["k1 stdout:1/3 exited:137 closed", "k2 pty:1/4 exited:1 closed", "k3 exited:143 closed"]),
    ("terminate", &["2026-03"], &["k1 stdout:1/3 exited:-1 closed", "k2 pty:2/6 exited:1 closed", "k3 exited:-1 closed"]),
    ("tty-write", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0"], &["t1 pty:2/14 exited:0 closed"]),
    ("tty-write", &["0.171.0"], &["t1 pty:1/14 exited:0 closed"]),
    ("unexpected-response", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0", "0.171.0"], &[]),
    ("unknown-id", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0", "0.171.0"], &[]),
    ("unknown-notification", &["2026-03", "0.120.0", "0.140.0", "0.150.0", "0.169.0", "0.171.0"], &[]),
];

#[actix::test]
async fn every_recorded_conversation_gives_the_expected_events() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut recorded: BTreeSet<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for (scenario, versions, expected) in EXPECTED {
        for version in *versions {
            let name = format!("{version}-{scenario}.jsonl");
            assert!(
                recorded.remove(&name),
                "{name} is listed twice, or not there"
            );
            let frames = received(&directory.join(&name));
            assert_eq!(replay(&name, &frames).await, *expected, "{name}");
        }
    }
    assert!(recorded.is_empty(), "not in the table: {recorded:?}");
}

/// The messages that the server sent in a recorded conversation.
fn received(path: &Path) -> Vec<Value> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["dir"] == "recv")
        .map(|mut line| line["frame"].take())
        .collect()
}

/// Sends `frames` to a client with a session for each process in them, and returns what these were
/// told.
async fn replay(name: &str, frames: &[Value]) -> Vec<String> {
    let (mux, mut peer) = Peer::connect(config()).await;
    let process_ids: BTreeSet<&str> = frames
        .iter()
        .filter(|frame| frame.get("id").is_none())
        .filter_map(|frame| frame["params"]["processId"].as_str())
        .collect();
    let mut sessions = Vec::new();
    for process_id in process_ids {
        let (tap, events) = Tap::start_session();
        mux.register(process_id, tap.recipient()).await.unwrap();
        sessions.push((process_id, events));
    }
    for frame in frames {
        peer.send(frame.clone()).await;
        if frame.get("id").is_some() && frame.get("method").is_some() {
            let refusal = peer.json().await;
            assert_eq!(
                (&refusal["id"], &refusal["error"]["code"]),
                (&frame["id"], &(-32601).into())
            );
        }
    }
    drop(peer);

    let mut told = Vec::new();
    for (process_id, events) in sessions {
        told.push(format!("{process_id} {}", words(events).await));
    }
    // Waits for the end of the connection also where no session does.
    let _outcome = mux.shutdown().await;
    check_counters(name, frames, mux.statistics().await.unwrap());
    told
}

/// No call waits for any of the recorded answers.
fn check_counters(name: &str, frames: &[Value], statistics: Statistics) {
    let answers = frames
        .iter()
        .filter(|frame| frame.get("id").is_some() && frame.get("method").is_none());
    let (to_nothing, to_calls): (Vec<&Value>, Vec<&Value>) =
        answers.partition(|frame| frame["id"] == -1);
    assert_eq!(
        statistics.connection_errors,
        to_nothing.len() as u64,
        "{name}"
    );
    assert_eq!(statistics.unknown_answers, to_calls.len() as u64, "{name}");
}

async fn words(mut events: Events) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut run: Option<(String, usize, usize)> = None;
    let finish = |run: &mut Option<(String, usize, usize)>, words: &mut Vec<String>| {
        words.extend(
            run.take()
                .map(|(stream, count, bytes)| format!("{stream}:{count}/{bytes}")),
        );
    };
    while let Some(event) = events.next().await {
        if let SessionEvent::Output(output) = event {
            let stream = format!("{:?}", output.stream).to_lowercase();
            match &mut run {
                Some((same, count, bytes)) if *same == stream => {
                    *count += 1;
                    *bytes += output.chunk.len();
                }
                _ => {
                    finish(&mut run, &mut words);
                    run = Some((stream, 1, output.chunk.len()));
                }
            }
            continue;
        }
        finish(&mut run, &mut words);
        words.push(match event {
            SessionEvent::Exited(exited) => format!("exited:{}", exited.exit_code),
            SessionEvent::Closed(_) => "closed".to_owned(),
            SessionEvent::Failed(_) => "failed".to_owned(),
            other => panic!("{other:?}"),
        });
    }
    words.join(" ")
}
