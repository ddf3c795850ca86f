//! Servers that push the end of a process, and keep what came before it to themselves: whatever they answer to
//! `process/read`, the session is told one end, soon, and the server is not asked without pause.

use std::{cell::Cell, rc::Rc, time::Duration};

use actix_http::ws;
use execmux::{Config, Mux, Session, SessionEvent, SessionEvents, StartProcess};
use serde_json::{Value, json};
use tokio::time::{Instant, pause, sleep, timeout};

use crate::support::{
    checked,
    peer::{Dials, Peer, config},
};

/// What a server answers to a read.
enum Answer {
    Result(Value),
    Refused(i64),
    /// Not what the method answers with.
    Garbage(Value),
    Nothing,
}

/// What a server pushes.
#[derive(Clone, Copy)]
enum Push {
    Output(u64),
    Exited(u64),
    Closed(u64),
}

use Push::{Closed, Exited, Output};

/// When a server pushes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    AtOnce,
    /// After the first answer to a read.
    AfterAnswer,
}

/// What a server does, and what must happen.
struct Row {
    name: &'static str,
    pushes: &'static [Push],
    when: When,
    answer: fn(after_seq: u64) -> Answer,
    /// What the session is told.
    told: &'static [&'static str],
    /// The most reads.
    reads: usize,
    /// The most time until the end.
    seconds: u64,
}

/// How the server and the client meet.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Plain,
    /// The server holds processes back until their output is consumed.
    WithWindow,
    /// The link was lost before the server pushes anything.
    Resumed,
}

fn retained(seqs: &[u64], next_seq: u64) -> Value {
    let chunks: Vec<_> = seqs
        .iter()
        .map(|seq| json!({"seq": seq, "stream": "stdout", "chunk": "cg=="}))
        .collect();
    json!({"chunks": chunks, "nextSeq": next_seq, "exited": false, "exitCode": null, "closed": false})
}

fn ended(seqs: &[u64], next_seq: u64, exit_code: Option<i32>) -> Value {
    let mut read = retained(seqs, next_seq);
    read["exited"] = true.into();
    read["exitCode"] = exit_code.into();
    read["closed"] = true.into();
    read
}

const LAST_THREE: &[Push] = &[Output(5), Exited(6), Closed(7)];
const AFTER_A_GAP: &[&str] = &["gap 0..5", "output 5", "exited 6", "closed 7 Some(7) false"];

/// So long it takes to give up a server that answers: half a minute of pauses, and the checks before them.
const SOON: u64 = 45;

fn rows() -> Vec<Row> {
    let after_a_gap = |name, answer| Row {
        name,
        pushes: LAST_THREE,
        when: When::AtOnce,
        answer,
        told: AFTER_A_GAP,
        reads: 12,
        seconds: SOON,
    };
    vec![
        after_a_gap("refused", |_| Answer::Refused(-32603)),
        after_a_gap("refused as malformed", |_| Answer::Refused(-32600)),
        after_a_gap("no object", |_| Answer::Garbage(json!(5))),
        after_a_gap("no list", |_| {
            let mut read = retained(&[], 8);
            read["chunks"] = json!({"seq": 1});
            Answer::Garbage(read)
        }),
        after_a_gap("no base64", |_| {
            let mut read = retained(&[1], 8);
            read["chunks"][0]["chunk"] = "!".into();
            Answer::Garbage(read)
        }),
        after_a_gap("negative seq", |_| {
            let mut read = retained(&[1], 8);
            read["chunks"][0]["seq"] = (-1).into();
            Answer::Garbage(read)
        }),
        after_a_gap("a chunk of seq 0", |_| Answer::Result(retained(&[0], 1))),
        after_a_gap("a chunk of seq 0, and all counted", |_| {
            Answer::Result(ended(&[0], 8, Some(7)))
        }),
        after_a_gap("what was asked not to be sent", |after| {
            Answer::Result(retained(&[after], after + 1))
        }),
        after_a_gap("nextSeq goes back", |_| Answer::Result(retained(&[], 0))),
        after_a_gap("nextSeq stays", |after| {
            Answer::Result(retained(&[], after + 1))
        }),
        after_a_gap("an end without a place", |after| {
            Answer::Result(ended(&[], after + 1, None))
        }),
        after_a_gap("nothing, and a larger nextSeq", |_| {
            Answer::Result(retained(&[], 1000))
        }),
        after_a_gap("nothing, and the largest nextSeq", |_| {
            Answer::Result(ended(&[], u64::MAX, Some(7)))
        }),
        after_a_gap("only the last chunk", |_| {
            Answer::Result(ended(&[5], 8, Some(7)))
        }),
        Row {
            // What comes behind the process's own end is not told any more.
            name: "a chunk far beyond",
            pushes: LAST_THREE,
            when: When::AtOnce,
            answer: |_| Answer::Result(retained(&[u64::MAX - 1], u64::MAX)),
            told: AFTER_A_GAP,
            reads: 12,
            seconds: SOON,
        },
        Row {
            name: "not in order",
            pushes: LAST_THREE,
            when: When::AtOnce,
            answer: |after| {
                Answer::Result(match after {
                    0 => retained(&[2, 1, 2, 4, 3], 5),
                    _ => retained(&[], 5),
                })
            },
            told: &[
                "gap 0..2",
                "output 2",
                "gap 2..4",
                "output 4",
                "output 5",
                "exited 6",
                "closed 7 Some(7) false",
            ],
            reads: 12,
            seconds: SOON,
        },
        Row {
            name: "one at a time",
            pushes: LAST_THREE,
            when: When::AtOnce,
            answer: |after| Answer::Result(retained(&[after + 1], after + 2)),
            told: &[
                "output 1",
                "output 2",
                "output 3",
                "output 4",
                "output 5",
                "exited 6",
                "closed 7 Some(7) true",
            ],
            reads: 12,
            seconds: SOON,
        },
        Row {
            name: "never answered",
            pushes: LAST_THREE,
            when: When::AtOnce,
            answer: |_| Answer::Nothing,
            told: AFTER_A_GAP,
            reads: 12,
            seconds: 600,
        },
    ]
}

/// Rows for a client that reads before anything is pushed, as one that has resumed does.
fn rows_after_resume() -> Vec<Row> {
    let row = |name, answer| Row {
        name,
        pushes: LAST_THREE,
        when: When::AfterAnswer,
        answer,
        told: AFTER_A_GAP,
        reads: 14,
        seconds: SOON,
    };
    vec![
        row("refused", |_| Answer::Refused(-32603)),
        row("a chunk of seq 0", |_| Answer::Result(retained(&[0], 1))),
        row("nextSeq goes back", |_| Answer::Result(retained(&[], 0))),
        Row {
            told: &["gap 0..1000", "closed 1000 Some(7) false"],
            ..row("nothing, and a larger nextSeq", |_| {
                Answer::Result(retained(&[], 1000))
            })
        },
        Row {
            told: &[
                "gap 0..9007199254740992",
                "output 9007199254740992",
                "closed 9007199254740993 Some(7) false",
            ],
            ..row("a chunk far beyond", |_| {
                Answer::Result(retained(&[1 << 53], (1 << 53) + 1))
            })
        },
        Row {
            pushes: &[],
            told: &[
                "failed 0: what the process did while the connection was lost is not known: 6 reads in a row told nothing",
            ],
            ..row("refused, and nothing pushed", |_| Answer::Refused(-32603))
        },
        Row {
            pushes: &[],
            told: &[
                "failed 0: what the process did while the connection was lost is not known: 12 reads in a row told nothing",
            ],
            seconds: 600,
            ..row("never answered, and nothing pushed", |_| Answer::Nothing)
        },
        Row {
            pushes: &[],
            told: &["closed 1 Some(7) false"],
            ..row("an end without a place, and nothing pushed", |_| {
                Answer::Result(ended(&[], 1, Some(7)))
            })
        },
    ]
}

fn word(event: SessionEvent) -> String {
    match event {
        SessionEvent::Output(output) => format!("output {}", output.seq),
        SessionEvent::Gap(gap) => format!("gap {}..{}", gap.after_seq, gap.before_seq),
        SessionEvent::Exited(exited) => format!("exited {}", exited.seq),
        SessionEvent::Closed(closed) => format!(
            "closed {} {:?} {}",
            closed.seq, closed.exit_code, closed.complete
        ),
        SessionEvent::Failed(failed) => format!("failed {}: {}", failed.last_seq, failed.reason),
        other => panic!("{other:?}"),
    }
}

fn server(way: Way) -> Value {
    let capabilities = json!({"processOutputWindow": way == Way::WithWindow});
    json!({"sessionId": "5e5510", "environmentInfo": {"cwd": null, "capabilities": capabilities}})
}

/// Starts a process, and has its link lost and resumed if that is the way.
async fn start(config: Config, way: Way) -> (Mux, Peer, Dials, SessionEvents) {
    let (mux, mut peer, mut dials) = Peer::connect_resumable(config, server(way)).await;
    let (session, events) = Session::stream();
    let start = async {
        let start = peer.expect("process/start").await;
        assert_eq!(
            start.params.get("outputWindow").is_some(),
            way == Way::WithWindow
        );
        peer.answer(&start, json!({"processId": "p"})).await;
    };
    let (started, ()) = tokio::join!(
        mux.start(StartProcess::new("p", ["x"], "/"), session),
        start
    );
    started.unwrap();
    if way == Way::Resumed {
        drop(peer);
        peer = dials.resume().await;
    }
    (mux, peer, dials, events)
}

async fn push_all(peer: &mut Peer, pushes: &[Push]) {
    for push in pushes {
        match *push {
            Output(seq) => peer.output("p", seq, "stdout", "x").await,
            Exited(seq) => peer.exited("p", seq, 7).await,
            Closed(seq) => peer.closed("p", seq).await,
        }
    }
}

/// Plays the server of a row until the client has gone, and counts the reads.
async fn serve(mut peer: Peer, row: &Row, reads: Rc<Cell<usize>>) {
    let mut pushes = Some(row.pushes);
    if row.when == When::AtOnce {
        push_all(&mut peer, pushes.take().unwrap()).await;
    }
    while let Some(frame) = peer.frame().await {
        match frame {
            ws::Frame::Text(text) => {
                let request: Value = serde_json::from_slice(&text).unwrap();
                let Some(id) = request.get("id") else {
                    assert_eq!(request["method"], "process/consumed");
                    continue;
                };
                let answer = match request["method"].as_str().unwrap() {
                    "process/read" => {
                        reads.set(reads.get() + 1);
                        // Time stands still for a client that never rests.
                        assert!(reads.get() < 200, "{}: reads without pause", row.name);
                        (row.answer)(request["params"]["afterSeq"].as_u64().unwrap())
                    }
                    "process/terminate" => Answer::Result(json!({"running": true})),
                    "process/releaseOutput" => Answer::Result(json!({})),
                    other => panic!("{other}"),
                };
                match answer {
                    Answer::Result(result) | Answer::Garbage(result) => {
                        peer.send(json!({"id": id, "result": result})).await;
                    }
                    Answer::Refused(code) => {
                        let error = json!({"code": code, "message": "no"});
                        peer.send(json!({"id": id, "error": error})).await;
                    }
                    Answer::Nothing => {}
                }
                if reads.get() == 1
                    && let Some(pushes) = pushes.take()
                {
                    // Time is paused: the client has dealt with the answer when it goes on.
                    sleep(Duration::from_millis(1)).await;
                    push_all(&mut peer, pushes).await;
                }
            }
            ws::Frame::Ping(payload) => peer.message(ws::Message::Pong(payload)).await,
            ws::Frame::Close(_) => return,
            other => panic!("{other:?}"),
        }
    }
}

/// Lets the client meet the server of a row.
async fn meet(row: &'static Row, way: Way) {
    let (mux, peer, _dials, mut events) = start(config(), way).await;
    let reads = Rc::new(Cell::new(0));
    let serving = actix::spawn(serve(peer, row, reads.clone()));
    let name = format!("{} ({way:?}, {:?})", row.name, row.when);
    let begun = Instant::now();
    let mut told = Vec::new();
    let to_the_end = async {
        while let Some(event) = events.recv().await {
            told.push(word(event));
        }
    };
    let ended = timeout(Duration::from_secs(1000), to_the_end).await;
    assert!(
        ended.is_ok(),
        "{name}: no end after {told:?} and {} reads",
        reads.get()
    );
    let took = begun.elapsed().as_secs();
    assert_eq!(
        told,
        row.told,
        "{name}, after {took} s and {} reads",
        reads.get()
    );
    assert!(took <= row.seconds, "{name}: {took} s");
    // An ended process is not read any more.
    sleep(Duration::from_secs(60)).await;
    assert!(reads.get() <= row.reads, "{name}: {} reads", reads.get());
    drop(mux);
    serving.await.unwrap();
}

#[actix::test]
async fn p2_p5_an_ended_process_is_told_whatever_reads_are_answered() {
    pause();
    for row in Vec::leak(rows()) {
        for way in [Way::Plain, Way::WithWindow, Way::Resumed] {
            checked(meet(row, way)).await;
        }
    }
}

#[actix::test]
async fn p2_p6_what_was_missed_over_a_lost_link_does_not_keep_the_end_from_a_session() {
    pause();
    for row in Vec::leak(rows_after_resume()) {
        checked(meet(row, Way::Resumed)).await;
    }
}
