//! The history checker itself: that it lets through what is right, and that it sees each fault.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;

use execmux::{FailureReason, Stream};
use support::{
    history::{Checker, Event, Fate, PAD, Report, Writes, stamped, writer},
    soon,
};

fn output(seq: u64, text: &str) -> Event<'_> {
    Event::Output {
        seq,
        stream: Stream::Stdout,
        chunk: text.as_bytes(),
    }
}

fn gap(after_seq: u64, before_seq: u64) -> Event<'static> {
    Event::Gap {
        after_seq,
        before_seq,
    }
}

fn exited(seq: u64) -> Event<'static> {
    Event::Exited { seq, exit_code: 3 }
}

fn closed(seq: u64, complete: bool) -> Event<'static> {
    Event::Closed {
        seq,
        exit_code: Some(3),
        complete,
    }
}

fn failed(last_seq: u64) -> Event<'static> {
    Event::Failed {
        last_seq,
        reason: FailureReason::StartUnanswered,
    }
}

fn report<'a>(mut checker: Checker, events: impl IntoIterator<Item = Event<'a>>) -> Report {
    for event in events {
        let _in_the_report = checker.tell(event);
    }
    checker.end()
}

#[track_caller]
fn assert_fault<'a>(events: impl IntoIterator<Item = Event<'a>>, fault: &str) {
    let report = report(Checker::stamps(), events);
    let found = report.sound().expect_err("a fault");
    assert!(found.contains(fault), "{found}");
    assert!(report.complete(&[]).is_err());
}

const STDOUT: Stream = Stream::Stdout;

#[test]
fn what_is_right_is_let_through() {
    let lines = report(
        Checker::stamps(),
        [
            output(1, "#1 .. 1\n#2 .. 2\n#3 ."),
            Event::Output {
                seq: 2,
                stream: Stream::Stderr,
                chunk: b"#1 .... 1\n",
            },
            output(3, ". "),
            exited(4),
            output(5, "3\n"),
            closed(6, true),
        ],
    );
    lines.assert_complete(&[(STDOUT, 3), (Stream::Stderr, 1)]);
    assert_eq!((lines.events, lines.last_seq, lines.bytes), (6, 6, 34));
    assert_eq!((lines.exited, lines.exit_code), (Some(3), Some(3)));

    let silent = report(Checker::stamps(), [exited(1), closed(2, true)]);
    silent.assert_complete(&[]);

    let anything = [output(1, "as it likes"), exited(2), closed(3, true)];
    report(Checker::anything(), anything).assert_sound();

    let terminal = [output(1, "#1 .. 1\r\n"), exited(2), closed(3, true)];
    report(Checker::stamps(), terminal).assert_complete(&[(STDOUT, 1)]);
}

#[test]
fn a_declared_gap_is_let_through() {
    for (after_the_gap, lost) in [
        ("#9 .. 9\n#10 .. 10\n", 2..=8),
        // A torn line, of which there is more or less.
        (". 8\n#9 .. 9\n#10 .. 10\n", 2..=8),
        ("\n#9 .. 9\n#10 .. 10\n", 2..=8),
        // The gap was in the other stream only, or in that of nobody.
        (". 2\n#3 .. 3\n#4 .. 4\n#5 .. 5\n#6 .. 6\n", 2..=2),
    ] {
        let events = [
            output(1, "#1 .. 1\n#2 ."),
            gap(1, 7),
            output(7, after_the_gap),
            exited(8),
            closed(9, false),
        ];
        let lines = report(Checker::stamps(), events);
        let last = lines.stdout.last;
        lines.assert_no_undeclared_loss(&[(STDOUT, last)]);
        assert_eq!(lines.stdout.lost, [lost]);
        assert_eq!((lines.gaps.clone(), lines.lost_events), (vec![2..=6], 5));
        lines.complete(&[(STDOUT, last)]).unwrap_err();
        // After the last whole line is no gap.
        lines.no_undeclared_loss(&[(STDOUT, last + 1)]).unwrap_err();
        lines.no_undeclared_loss(&[(STDOUT, last - 1)]).unwrap_err();
    }
}

#[test]
fn a_gap_at_either_end_is_let_through() {
    let at_the_end = [output(1, "#1 .. 1\n#2 ."), gap(1, 7), closed(7, false)];
    let at_the_end = report(Checker::stamps(), at_the_end);
    at_the_end.assert_no_undeclared_loss(&[(STDOUT, 20)]);
    at_the_end.assert_no_undeclared_loss(&[(STDOUT, 1)]);
    at_the_end.no_undeclared_loss(&[]).unwrap_err();
    assert_eq!((at_the_end.exited, at_the_end.exit_code), (None, Some(3)));

    let at_the_beginning = [
        gap(0, 3),
        output(3, "#5 . 5\n"),
        exited(4),
        closed(5, false),
    ];
    report(Checker::stamps(), at_the_beginning).assert_no_undeclared_loss(&[(STDOUT, 5)]);

    let one_after_the_other = [gap(0, 3), gap(2, 6), exited(6), closed(7, false)];
    report(Checker::stamps(), one_after_the_other).assert_no_undeclared_loss(&[]);
}

#[test]
fn a_failure_is_let_through_and_is_no_end_of_the_process() {
    for events in [
        vec![failed(0)],
        vec![output(1, "#1 .. 1\n#2"), failed(1)],
        vec![output(1, "#1 .. 1\n"), gap(1, 5), failed(1)],
        vec![output(1, "#1 .. 1\n"), gap(1, 5), failed(4)],
    ] {
        let report = report(Checker::stamps(), events);
        report.assert_sound();
        assert!(report.failed.is_some() && report.closed.is_none());
        let lines = [(STDOUT, report.stdout.last)];
        assert!(report.no_undeclared_loss(&lines).is_err());
    }
    assert_fault([output(1, "#1 .. 1\n"), failed(0)], "failed after seq 0");
    assert_fault([failed(1)], "failed after seq 1");
}

#[test]
fn an_event_twice_is_seen() {
    let twice = [output(1, "#1 . 1\n"), output(1, "#1 . 1\n")];
    assert_fault(twice, "seq 1 comes after 1");
    let exits = [exited(1), exited(2)];
    assert_fault(exits, "exited again");
    let declared_lost = [gap(0, 3), output(2, "#2 . 2\n")];
    assert_fault(declared_lost, "seq 2 comes after 2");
}

#[test]
fn a_swapped_event_is_seen() {
    let swapped = [output(2, "#2 . 2\n"), output(1, "#1 . 1\n")];
    assert_fault(swapped, "1..=1 are missing");
}

#[test]
fn an_event_that_is_missing_is_seen() {
    let hole = [output(1, "#1 . 1\n"), output(4, "#4 . 4\n")];
    assert_fault(hole, "2..=3 are missing and not declared lost");
    assert_fault([exited(2)], "1..=1 are missing");
    assert_fault([exited(1), closed(3, true)], "2..=2 are missing");
}

#[test]
fn a_gap_at_the_wrong_place_is_seen() {
    let first = || output(1, "#1 . 1\n");
    assert_fault([first(), gap(0, 4)], "a gap after 0 comes after 1");
    assert_fault([first(), gap(2, 4)], "a gap after 2 comes after 1");
    assert_fault([first(), gap(1, 2)], "a gap of nothing");
    assert_fault([first(), gap(1, 1)], "a gap of nothing");
    let after = [first(), gap(1, 4), output(5, "#5 . 5\n")];
    assert_fault(after, "4..=4 are missing");
}

#[test]
fn lines_that_are_missing_doubled_or_swapped_are_seen() {
    let lines = |text| [output(1, text)];
    let missing = "#1 . 1\n#4 . 4\n";
    assert_fault(lines(missing), "lines 2..=3 are missing");
    assert_fault(lines("#2 . 2\n"), "lines 1..=1 are missing");
    let doubled = "#1 . 1\n#2 . 2\n#2 . 2\n";
    assert_fault(lines(doubled), "line 2 comes after line 2");
    let swapped = "#1 . 1\n#3 . 3\n#2 . 2\n";
    assert_fault(lines(swapped), "lines 2..=2 are missing");
    let backwards = [gap(0, 3), output(3, "#4 . 4\n#3 . 3\n")];
    assert_fault(backwards, "line 3 comes after line 4");
    let twice_over_a_gap = [
        output(1, "#1 . 1\n#2 . 2\n"),
        gap(1, 3),
        output(3, "#2 . 2\n"),
    ];
    assert_fault(twice_over_a_gap, "line 2 comes after line 2");
    // One gap excuses one hole.
    let behind_a_gap = [gap(0, 3), output(3, "#4 . 4\n#6 . 6\n")];
    assert_fault(behind_a_gap, "lines 5..=5 are missing");
}

#[test]
fn a_line_that_is_torn_where_no_gap_is_is_seen() {
    for torn in [
        // The middle is missing, the end of one and the beginning of the next, a newline.
        "#1 .... 1\n#2 .. 2\n",
        "#1 .... 1\n#2 ... 3\n",
        "#1 .... 1\n#2 ....#3 .... 3\n",
        "#1 .... 1\n#2 .... 2#3 .... 3\n",
        "#1 .... 1\n.... 2\n",
        "#1 .... 1\n\n",
        "sh: awk: not found\n",
        "#1 ..x. 1\n",
        "#\u{fffd} .... \u{fffd}\n",
    ] {
        assert_fault([output(1, torn)], "a line");
    }
    // Only the first line after a gap.
    let later = [gap(0, 3), output(3, ". 1\n. 2\n")];
    assert_fault(later, "a line that is torn: . 2");
    let within = [gap(0, 3), output(3, "#3 . 3\n. 4\n")];
    assert_fault(within, "a line that is torn: . 4");
    let endless = "#".repeat(70_000);
    assert_fault([output(1, &endless)], "a line of more than");
}

#[test]
fn an_end_that_does_not_fit_is_seen() {
    let lines = || output(1, "#1 . 1\n");
    assert_fault([lines()], "no last event after seq 1");
    assert_fault([lines(), exited(2)], "no last event after seq 2");
    assert_fault([], "no last event after seq 0");
    let complete = [lines(), gap(1, 4), exited(4), closed(5, true)];
    assert_fault(complete, "complete, but");
    let incomplete = [lines(), exited(2), closed(3, false)];
    assert_fault(incomplete, "not complete, but");
    assert_fault([lines(), closed(2, true)], "no exit was told");
    let other_code = Event::Closed {
        seq: 2,
        exit_code: None,
        complete: true,
    };
    assert_fault([exited(1), other_code], "exited with Some(3)");

    // What is missing at the end is seen when it is known how much was written.
    let torn = [output(1, "#1 . 1\n#2 ."), exited(2), closed(3, true)];
    let torn = report(Checker::stamps(), torn);
    torn.assert_sound();
    for written in [0, 1, 2] {
        torn.complete(&[(STDOUT, written)]).unwrap_err();
        torn.no_undeclared_loss(&[(STDOUT, written)]).unwrap_err();
    }
    let short = [lines(), exited(2), closed(3, true)];
    let short = report(Checker::stamps(), short);
    short.complete(&[(STDOUT, 2)]).unwrap_err();
    let one_stream = [(STDOUT, 1), (Stream::Stderr, 1)];
    short.no_undeclared_loss(&one_stream).unwrap_err();
}

#[test]
fn what_comes_after_the_last_event_is_seen() {
    for after in [
        output(3, "#1 . 1\n"),
        closed(2, true),
        closed(3, true),
        failed(2),
        gap(2, 4),
        Event::Interrupted,
    ] {
        assert_fault([exited(1), closed(2, true), after], "after the last event");
    }
    assert_fault([failed(0), failed(0)], "after the last event");
    assert_fault([failed(0), exited(1)], "after the last event");
}

#[test]
fn a_process_that_was_forgotten_is_let_through_where_it_may_be() {
    for (seq, complete) in [(2, false), (3, false), (3, true)] {
        let events = || [output(1, "#1 . 1\n"), exited(2), closed(seq, complete)];
        report(Checker::stamps().may_be_forgotten(), events()).assert_sound();
        assert_eq!(
            report(Checker::stamps(), events()).fault.is_none(),
            complete
        );
    }
    let mut forgetful = Checker::stamps().may_be_forgotten();
    forgetful.tell(exited(1)).unwrap();
    forgetful.tell(closed(0, false)).unwrap_err();
}

#[test]
fn events_of_the_link_come_in_turns_to_those_who_asked() {
    use Event::{Interrupted, Resumed};
    let asked = || Checker::stamps().link_events();
    let turns = [Interrupted, Resumed, exited(1), Interrupted, failed(1)];
    let turns = report(asked(), turns);
    turns.assert_sound();
    assert_eq!((turns.interrupted, turns.resumed), (2, 1));
    for wrong in [
        vec![Resumed],
        vec![Interrupted, Interrupted],
        vec![Interrupted, Resumed, Resumed],
    ] {
        let wrong = report(asked(), wrong).sound().unwrap_err();
        assert!(wrong.contains("twice"), "{wrong}");
    }
    assert_fault([Interrupted], "without having been asked");
    assert_fault([Event::Unknown], "unknown kind");
}

#[test]
fn each_write_that_was_accepted_arrives_once() {
    use Fate::{Accepted, Refused, Unknown};
    let echo = |stamps: &[u64], fates: &[Fate]| {
        let mut writes = Writes::default();
        for fate in fates {
            writes.ended(*fate);
        }
        let text: String = stamps.iter().map(|n| stamped(*n, PAD)).collect();
        let events = [output(1, &text), exited(2), closed(3, true)];
        report(Checker::echo(), events).repeats(STDOUT, &writes)
    };
    echo(&[1, 2, 3], &[Accepted; 3]).unwrap();
    echo(&[1, 2, 3], &[Accepted, Unknown, Accepted]).unwrap();
    echo(&[1, 3], &[Accepted, Unknown, Accepted]).unwrap();
    echo(&[1, 3], &[Accepted, Refused, Accepted, Unknown]).unwrap();
    echo(&[2, 5], &[Refused, Accepted, Unknown, Refused, Accepted]).unwrap();

    for (stamps, fates, fault) in [
        (&[1, 2, 2, 3][..], &[Accepted; 3][..], "line 2 comes after"),
        (&[1, 3, 2], &[Accepted; 3], "line 2 comes after line 3"),
        (&[1, 3], &[Accepted; 3], "line 2 was accepted and never"),
        (&[1, 2], &[Accepted; 3], "line 3 was accepted and never"),
        (&[1, 2], &[Accepted, Refused], "line 2 was refused, and"),
        (&[1, 2, 2], &[Accepted, Unknown], "line 2 comes after"),
        (&[1, 2], &[Accepted], "line 2 was never written"),
    ] {
        let found = echo(stamps, fates).unwrap_err();
        assert!(found.contains(fault), "{found}");
    }
}

#[test]
fn a_gap_excuses_writes_that_never_came() {
    let mut writes = Writes::default();
    let text: Vec<String> = (0..6)
        .map(|_| {
            let line = writes.line();
            writes.ended(Fate::Accepted);
            line
        })
        .collect();
    let events = |first: usize| {
        [
            output(1, &text[first]),
            gap(1, 3),
            output(3, &text[3]),
            gap(3, 5),
            exited(5),
            closed(6, false),
        ]
    };
    report(Checker::echo(), events(0)).assert_writes(STDOUT, &writes);
    // Line 1 stands before the gap.
    let found = report(Checker::echo(), events(1)).repeats(STDOUT, &writes);
    assert_eq!(found.unwrap_err(), "line 1 was accepted and never came");
}

#[actix::test]
async fn the_writer_writes_what_the_checker_reads() {
    let directory = tempdir();
    let script = writer(
        r#"both(500); while (!there("go")) { tell("waiting"); nap(0.01) }
        lines(20000); tell("written"); exit 3"#,
    );
    let child = tokio::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(&directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // Before it looks, or while it waits.
    std::fs::write(directory.join("go"), "").unwrap();
    let written = soon(child.wait_with_output()).await.unwrap();
    assert_eq!(written.status.code(), Some(3));

    // In pieces of every length.
    let mut checker = Checker::stamps();
    let mut seq = 0;
    for (stream, mut rest) in [
        (Stream::Stdout, &written.stdout[..]),
        (Stream::Stderr, &written.stderr[..]),
    ] {
        while !rest.is_empty() {
            seq += 1;
            let (chunk, more) = rest.split_at(rest.len().min(1 + seq as usize % 8192));
            rest = more;
            checker.tell(Event::Output { seq, stream, chunk }).unwrap();
        }
    }
    checker.tell(exited(seq + 1)).unwrap();
    checker.tell(closed(seq + 2, true)).unwrap();
    let report = checker.end();
    report.assert_complete(&[(Stream::Stdout, 20_500), (Stream::Stderr, 500)]);
    assert!(stamped(1, PAD).as_bytes() == &written.stdout[..stamped(1, PAD).len()]);
    let told = std::fs::read_to_string(directory.join("written")).unwrap();
    assert_eq!(told, "20500\n");
    std::fs::remove_dir_all(directory).unwrap();
}

fn tempdir() -> std::path::PathBuf {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("history-{}", execmux::ProcessId::unique()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}
