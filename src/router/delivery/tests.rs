//! Deliveries, one event and one read at a time.

use std::ops::Range;

use tokio::time::Duration;

use super::{reading::WantedRead, *};
use crate::{
    protocol::{OutputChunk, RetainedOutput},
    router::budget::Pool,
};

pub(super) fn output(text: &'static str) -> ProcessEvent {
    ProcessEvent::Output {
        stream: Stream::Stdout,
        chunk: text.into(),
    }
}

pub(super) fn exited(exit_code: i32) -> ProcessEvent {
    ProcessEvent::Exited {
        exit_code,
        sandbox_denied: None,
    }
}

/// Has a session that has had its time overflow at once.
fn accept(
    delivery: &mut Delivery,
    seq: u64,
    event: ProcessEvent,
    deliver: impl FnMut(SessionEvent),
) -> Progress {
    match delivery.accept(seq, event, deliver) {
        Progress::NoCredit(event) => delivery.overflow(seq, event),
        progress => progress,
    }
}

/// Feeds events and writes down what comes out, one word for each.
pub(super) fn run(
    delivery: &mut Delivery,
    events: impl IntoIterator<Item = (u64, ProcessEvent)>,
) -> Vec<String> {
    let mut told = Vec::new();
    for (seq, event) in events {
        let mut delivered = Vec::new();
        match accept(delivery, seq, event, |event| delivered.push(event)) {
            Progress::Open => {}
            Progress::NoCredit(_) | Progress::Blocked(_) => panic!("blocked at {seq}"),
            Progress::Closed(last) | Progress::Failed(last) => delivered.push(last),
        }
        told.extend(delivered.iter().map(word));
    }
    told
}

pub(super) fn word(event: &SessionEvent) -> String {
    match event {
        SessionEvent::Gap(gap) => format!("gap {}..{}", gap.after_seq, gap.before_seq),
        SessionEvent::Interrupted(_) | SessionEvent::Resumed(_) => "link".to_owned(),
        SessionEvent::Output(output) => {
            format!("{}:{}", output.seq, String::from_utf8_lossy(&output.chunk))
        }
        SessionEvent::Exited(exited) => format!("{}:exited {}", exited.seq, exited.exit_code),
        SessionEvent::Closed(closed) => {
            let incomplete = if closed.complete { "" } else { " incomplete" };
            format!("{}:closed {:?}{incomplete}", closed.seq, closed.exit_code)
        }
        SessionEvent::Failed(failed) => {
            format!("failed after {}: {}", failed.last_seq, failed.reason)
        }
    }
}

pub(super) fn delivery() -> Delivery {
    delivery_with(1 << 20, Overflow::Heal)
}

fn delivery_with(budget: usize, overflow: Overflow) -> Delivery {
    delivery_after(budget, overflow, 0)
}

fn delivery_after(budget: usize, overflow: Overflow, after_seq: u64) -> Delivery {
    let budget = Budget::new(budget, Pool::new(1 << 30), || {});
    Delivery::new("p".into(), budget, overflow, after_seq)
}

#[test]
fn p1_events_leave_in_order_of_seq_whatever_order_they_come_in() {
    let expected = ["1:a", "2:b", "3:exited 7", "4:c", "5:closed Some(7)"];
    let event = |seq| match seq {
        1 => (1, output("a")),
        2 => (2, output("b")),
        3 => (3, exited(7)),
        4 => (4, output("c")),
        _ => (5, ProcessEvent::Closed),
    };
    let mut orders = vec![vec![]];
    for seq in 1..=5u64 {
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<u64>| {
                (0..=order.len()).map(move |at| {
                    let mut order = order.clone();
                    order.insert(at, seq);
                    order
                })
            })
            .collect();
    }
    assert_eq!(orders.len(), 120);
    for order in orders {
        let told = run(&mut delivery(), order.iter().map(|&seq| event(seq)));
        assert_eq!(told, expected, "came as {order:?}");
    }
}

#[test]
fn p1_each_event_leaves_once() {
    let twice = [
        (0, output("zero")),
        (1, output("a")),
        (1, output("a")),
        (3, output("c")),
        (3, output("c")),
        (2, output("b")),
        (2, output("b")),
        (3, output("c")),
    ];
    assert_eq!(run(&mut delivery(), twice), ["1:a", "2:b", "3:c"]);
}

#[test]
fn p2_closed_is_last_and_waits_for_what_is_missing() {
    let told = run(
        &mut delivery(),
        [(4, ProcessEvent::Closed), (2, exited(0)), (1, output("a"))],
    );
    assert_eq!(told, ["1:a", "2:exited 0"]);
}

#[test]
fn p2_no_exit_code_is_made_up() {
    let told = run(&mut delivery(), [(1, ProcessEvent::Closed)]);
    assert_eq!(told, ["1:closed None"]);
}

#[test]
fn p4_a_second_exit_fails_the_session() {
    let told = run(
        &mut delivery(),
        [(1, exited(0)), (2, exited(0)), (3, exited(0))],
    );
    assert_eq!(
        told[..2],
        [
            "1:exited 0",
            "failed after 1: the server told of the exit twice"
        ]
    );
    let told = run(&mut delivery(), [(3, exited(0)), (2, exited(0))]);
    assert_eq!(told, ["failed after 0: the server told of the exit twice"]);
}

#[test]
fn a_delivery_can_begin_in_the_middle() {
    let mut delivery = delivery_after(1000, Overflow::Heal, 2);
    let told = run(
        &mut delivery,
        [(4, exited(0)), (2, output("b")), (3, output("c"))],
    );
    assert_eq!(
        (told, delivery.last_seq()),
        (vec!["3:c".into(), "4:exited 0".into()], 4)
    );
    let mut delivery = delivery_after(1000, Overflow::Heal, u64::MAX);
    assert!(run(&mut delivery, [(1, exited(0))]).is_empty());
}

/// Feeds outputs of one byte until the budget is used up, and returns what the session holds.
fn fill(delivery: &mut Delivery, seqs: std::ops::RangeInclusive<u64>) -> Vec<SessionEvent> {
    let mut held = Vec::new();
    for seq in seqs {
        let progress = accept(delivery, seq, output("x"), |event| held.push(event));
        assert!(matches!(progress, Progress::Open), "{seq}: {progress:?}");
    }
    held
}

#[test]
fn p4_a_session_that_chose_to_fails_at_its_budget() {
    let mut delivery = delivery_with(1000, Overflow::Fail);
    let held = fill(&mut delivery, 1..=7);
    let Progress::Failed(last) = accept(&mut delivery, 8, output("x"), |_| {}) else {
        panic!("over its budget");
    };
    assert_eq!(
        word(&last),
        "failed after 7: the session holds 1032 bytes of unconsumed output, more than its budget of 1000"
    );
    assert_eq!(held.len(), 7);
}

#[test]
fn p4_a_session_that_chose_to_makes_its_server_wait() {
    let mut delivery = delivery_with(1000, Overflow::Block);
    let mut held = fill(&mut delivery, 1..=7);
    for (seq, event) in [(8, output("x")), (9, output("y"))] {
        match accept(&mut delivery, seq, event, |_| {}) {
            Progress::Blocked(ProcessEvent::Output { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(delivery.wait_for_credit(&output("x")));
    assert!(!delivery.wants_read());
    held.truncate(3);
    assert_eq!(fill(&mut delivery, 8..=8).len(), 1);
}

#[test]
fn p3_a_session_whose_process_is_held_back_makes_nobody_wait() {
    let mut delivery = delivery_with(1000, Overflow::Block);
    delivery.held_back(500);
    let _held = fill(&mut delivery, 1..=7);
    // More than the server should have sent.
    let progress = accept(&mut delivery, 8, output("x"), |_| {});
    assert!(matches!(progress, Progress::Open), "{progress:?}");
    assert!(delivery.wants_read(), "it keeps that");
}

#[test]
fn p4_what_came_early_does_not_block_what_it_waits_for() {
    let mut delivery = delivery_with(1000, Overflow::Block);
    assert!(fill(&mut delivery, 2..=20).is_empty());
    assert_eq!(fill(&mut delivery, 1..=1).len(), 20);
}

#[test]
fn p4_output_that_is_consumed_costs_no_budget() {
    for overflow in [Overflow::Heal, Overflow::Block, Overflow::Fail] {
        let mut delivery = delivery_with(1000, overflow);
        let events = (1..=1000).map(|seq| (seq, output("x")));
        assert_eq!(run(&mut delivery, events).len(), 1000);
        assert!(!delivery.wants_read());
    }
}

#[test]
fn p4_events_that_come_early_are_bounded_by_count_and_by_budget() {
    let mut delivery = delivery();
    assert!(fill(&mut delivery, 2..=257).is_empty());
    assert!(!delivery.wants_read());
    assert!(fill(&mut delivery, 258..=1000).is_empty());
    assert!(delivery.wants_read() && delivery.early.is_empty());
    assert_eq!(delivery.budget.held(), 0);

    let mut delivery = delivery_with(1000, Overflow::Heal);
    assert!(fill(&mut delivery, 2..=20).is_empty());
    assert!(delivery.wants_read() && delivery.early.is_empty());

    let early = (2..=300).map(|seq| (seq, output("x")));
    assert_eq!(
        run(&mut delivery_with(1 << 20, Overflow::Fail), early)[0],
        "failed after 0: the event with seq 1 never came, and 257 later ones wait for it"
    );
    let told = run(
        &mut delivery_with(1 << 20, Overflow::Heal),
        (2..=1000).map(|seq| (seq, ProcessEvent::Closed)),
    );
    assert_eq!(
        told[0],
        "failed after 0: the server told of the end of the streams twice"
    );
}

/// What a server answers: chunks of these seqs, the next seq, and the flags.
pub(super) fn read(
    seqs: impl IntoIterator<Item = u64>,
    next_seq: u64,
    ends: &str,
) -> RetainedOutput {
    let chunks = seqs.into_iter().map(|seq| OutputChunk {
        seq,
        stream: Stream::Stdout,
        chunk: format!("r{seq}").into(),
    });
    RetainedOutput {
        chunks: chunks.collect(),
        next_seq,
        exited: ends.contains("exited"),
        exit_code: ends.contains("exited").then_some(7),
        closed: ends.contains("closed"),
        failure: None,
        sandbox_denied: None,
    }
}

pub(super) fn answer(delivery: &mut Delivery, number: u64, read: RetainedOutput) -> Vec<String> {
    let mut told = Vec::new();
    match delivery.accept_read(number, read, Instant::now(), |event| {
        told.push(word(&event))
    }) {
        Progress::Open => {}
        Progress::NoCredit(_) | Progress::Blocked(_) => panic!("reads do not block"),
        Progress::Closed(last) | Progress::Failed(last) => told.push(word(&last)),
    }
    told
}

/// A delivery that was told up to 7, whose session holds all of it, and that has dropped 8 and 9.
fn lagging() -> (Delivery, Vec<SessionEvent>) {
    let mut delivery = delivery_with(1000, Overflow::Heal);
    let held = fill(&mut delivery, 1..=7);
    assert!(fill(&mut delivery, 8..=9).is_empty());
    (delivery, held)
}

#[test]
fn p5_what_was_dropped_is_read_when_credit_returns_and_then_pushes_count_again() {
    let (mut delivery, mut held) = lagging();
    assert!(delivery.wants_read());
    assert_eq!(delivery.next_read(), None, "no credit");
    held.truncate(2);
    assert!(delivery.credit_returned());
    let wanted = delivery.next_read();
    let expected = WantedRead {
        number: 1,
        after_seq: 7,
        max_bytes: Some(693),
    };
    assert_eq!(wanted, None, "an output of full size would not fit");
    held.clear();
    assert!(delivery.credit_returned());
    assert_eq!(
        delivery.next_read(),
        Some(WantedRead {
            max_bytes: Some(945),
            ..expected
        })
    );
    assert!(
        fill(&mut delivery, 10..=10).is_empty(),
        "there is no room before the answer"
    );
    assert_eq!(answer(&mut delivery, 1, read([8], 9, "")), ["8:r8"]);
    assert!(delivery.wants_read());
    assert_eq!(delivery.next_read().map(|read| read.after_seq), Some(8));
    assert_eq!(
        answer(&mut delivery, 2, read([9, 10], 11, "")),
        ["9:r9", "10:r10"]
    );
    assert!(!delivery.wants_read());
    assert_eq!(fill(&mut delivery, 11..=11).len(), 1);
}

#[test]
fn p3_a_session_that_waits_for_others_neither_spins_nor_is_forgotten() {
    let pool = Pool::new(100_000);
    let others = Budget::new(usize::MAX, pool.clone(), || {});
    let budget = Budget::new(1 << 20, pool, || {});
    let mut delivery = Delivery::new("p".into(), budget, Overflow::Heal, 0);
    let held = fill(&mut delivery, 1..=1);
    let theirs = others.take(99_000, usize::MAX).unwrap();
    assert!(fill(&mut delivery, 2..=10).len() < 9, "the pool is drained");
    assert!(delivery.wants_read());
    assert_eq!(delivery.next_read(), None);
    drop(theirs);
    assert!(!delivery.wants_read(), "nobody has told");
    delivery.tick(Instant::now());
    assert!(delivery.next_read().is_some());
    drop(held);
}

#[test]
fn p5_what_has_left_the_window_is_a_gap_in_its_place() {
    let (mut delivery, held) = lagging();
    drop(held);
    assert!(delivery.next_read().is_some());
    let told = answer(&mut delivery, 1, read([20, 21], 22, ""));
    assert_eq!(told, ["gap 7..20", "20:r20", "21:r21"]);
    let told = run(&mut delivery, [(22, exited(0)), (23, ProcessEvent::Closed)]);
    assert_eq!(told, ["22:exited 0", "23:closed Some(0) incomplete"]);
}

#[test]
fn p5_an_exit_that_was_pushed_divides_the_gap() {
    let (mut delivery, held) = lagging();
    assert!(run(&mut delivery, [(15, exited(3))]).is_empty());
    drop(held);
    assert!(delivery.next_read().is_some());
    let told = answer(&mut delivery, 1, read([20, 21], 22, "exited"));
    assert_eq!(
        told,
        ["gap 7..15", "15:exited 3", "gap 15..20", "20:r20", "21:r21"]
    );
}

#[test]
fn p5_where_the_exit_may_be_what_is_missing_its_push_is_awaited() {
    let (mut delivery, held) = lagging();
    drop(held);
    assert!(delivery.next_read().is_some());
    assert!(answer(&mut delivery, 1, read([9, 10], 11, "exited")).is_empty());
    assert!(!delivery.wants_read());
    assert_eq!(run(&mut delivery, [(8, exited(3))]), ["8:exited 3"]);
    assert!(delivery.wants_read());
    assert_eq!(delivery.next_read().map(|read| read.after_seq), Some(8));
    let told = answer(&mut delivery, 2, read([9, 10], 11, "exited"));
    assert_eq!(told, ["9:r9", "10:r10"]);
}

#[test]
fn p5_a_read_that_fails_is_wanted_again() {
    let (mut delivery, held) = lagging();
    drop(held);
    assert!(delivery.next_read().is_some());
    let now = Instant::now();
    let failed = delivery.fail_read(1, Fruitless::Useless, now, |event| panic!("{event:?}"));
    assert!(matches!(failed, Progress::Open));
    delivery.tick(now);
    assert!(!delivery.wants_read(), "not without a pause");
    delivery.tick(now + Duration::from_secs(1));
    assert!(delivery.wants_read());
    assert!(delivery.next_read().is_some());
    assert!(
        answer(&mut delivery, 1, read([8, 9], 10, "")).is_empty(),
        "too late"
    );
    assert_eq!(answer(&mut delivery, 2, read([8, 9], 10, "")).len(), 2);
}

#[test]
fn p5_an_event_that_does_not_come_is_read() {
    let mut delivery = delivery();
    let events = [(2, output("b")), (3, exited(7)), (4, ProcessEvent::Closed)];
    assert!(run(&mut delivery, events).is_empty());
    delivery.tick(Instant::now());
    assert!(!delivery.wants_read(), "it may only be late");
    delivery.tick(Instant::now());
    assert_eq!(delivery.next_read().map(|read| read.after_seq), Some(0));
    let told = answer(&mut delivery, 1, read([1, 2], 5, "exited closed"));
    assert_eq!(told, ["1:r1", "2:b", "3:exited 7", "4:closed Some(7)"]);
}

/// What a session that was told 1 and 2 is told after an interruption, of these answers.
fn resumed(answers: impl IntoIterator<Item = RetainedOutput>) -> Vec<String> {
    let mut delivery = delivery();
    drop(fill(&mut delivery, 1..=2));
    delivery.interrupted();
    let mut told = Vec::new();
    for read in answers {
        let wanted = delivery.next_read().expect("wants more");
        assert_eq!(wanted.max_bytes, None);
        told.extend(answer(&mut delivery, wanted.number, read));
    }
    assert!(!delivery.wants_read());
    told
}

#[test]
fn p6_ends_that_were_missed_are_found_among_what_is_retained() {
    // Servers from 0.142 on count all.
    assert!(resumed([read([], 3, "")]).is_empty());
    assert_eq!(resumed([read([3, 4], 5, "")]), ["3:r3", "4:r4"]);
    assert_eq!(resumed([read([], 4, "exited")]), ["3:exited 7"]);
    assert_eq!(
        resumed([read([], 5, "exited closed")]),
        ["3:exited 7", "4:closed Some(7)"]
    );
    assert_eq!(
        resumed([read([3, 5], 7, "exited closed")]),
        ["3:r3", "4:exited 7", "5:r5", "6:closed Some(7)"]
    );
    assert_eq!(
        resumed([read([3, 4], 7, "exited closed")]),
        ["3:r3", "4:r4", "5:exited 7", "6:closed Some(7)"]
    );
    // The exit is the one that is missing in front.
    assert_eq!(
        resumed([read([4, 5], 7, "exited closed"),]),
        ["3:exited 7", "4:r4", "5:r5", "6:closed Some(7)"]
    );
    // The exit is lost with output: behind the gap. It is behind what is retained: in its place.
    assert_eq!(
        resumed([read([9], 11, "exited closed")]),
        [
            "gap 2..8",
            "8:exited 7",
            "9:r9",
            "10:closed Some(7) incomplete"
        ]
    );
    assert_eq!(
        resumed([read([9], 12, "exited closed")]),
        [
            "gap 2..9",
            "9:r9",
            "10:exited 7",
            "11:closed Some(7) incomplete"
        ]
    );
}

#[test]
fn p6_servers_that_do_not_count_the_end_behind_chunks_are_asked_again() {
    assert_eq!(
        resumed([
            read([3, 4], 5, "exited closed"),
            read([], 7, "exited closed")
        ]),
        ["3:r3", "4:r4", "5:exited 7", "6:closed Some(7)"]
    );
    assert_eq!(
        resumed([read([4], 5, "exited"), read([], 5, "exited")]),
        ["3:exited 7", "4:r4"]
    );
    assert_eq!(
        resumed([
            read([4], 5, "exited"),
            read([5], 6, "exited"),
            read([], 7, "exited")
        ]),
        ["gap 2..4", "4:r4", "5:r5", "6:exited 7"]
    );
}

#[test]
fn p6_pushes_and_reads_overlap_without_doubling() {
    let mut delivery = delivery();
    drop(fill(&mut delivery, 1..=2));
    delivery.interrupted();
    let wanted = delivery.next_read().unwrap();
    assert!(run(&mut delivery, [(5, output("e")), (6, exited(7))]).is_empty());
    let told = answer(&mut delivery, wanted.number, read([3, 4, 5], 7, "exited"));
    assert_eq!(told, ["3:r3", "4:r4", "5:e", "6:exited 7"]);
    assert_eq!(
        run(&mut delivery, [(6, exited(7)), (5, output("e"))]),
        [""; 0]
    );
}

#[test]
fn p2_a_process_that_is_forgotten_has_ended_if_it_has_exited() {
    let mut delivery = delivery();
    run(&mut delivery, [(1, output("a")), (2, exited(7))]);
    delivery.check_end();
    let wanted = delivery.next_read().unwrap();
    let mut told = Vec::new();
    let progress = delivery.forget(wanted.number, |event| told.push(word(&event)));
    assert!(told.is_empty());
    match progress {
        Progress::Closed(last) => assert_eq!(word(&last), "3:closed Some(7) incomplete"),
        other => panic!("{other:?}"),
    }

    let mut delivery = super::tests::delivery();
    run(&mut delivery, [(1, output("a"))]);
    delivery.interrupted();
    let wanted = delivery.next_read().unwrap();
    match delivery.forget(wanted.number, |event| panic!("{event:?}")) {
        Progress::Failed(last) => assert_eq!(
            word(&last),
            "failed after 1: the server has forgotten the process, and with it how it ended"
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn p2_the_end_of_a_process_that_has_exited_is_looked_for_again_and_again_with_patience() {
    const PATIENCE: Duration = Duration::from_secs(35);
    let begun = Instant::now();
    let mut delivery = delivery();
    let overdue = |delivery: &mut Delivery, seconds: Range<u64>| -> Vec<_> {
        let is_overdue = |&seconds: &u64| {
            delivery.is_end_overdue(begun + Duration::from_secs(seconds), PATIENCE)
        };
        seconds.filter(is_overdue).collect()
    };
    assert_eq!(overdue(&mut delivery, 0..200), [0; 0], "it has not exited");
    run(&mut delivery, [(1, exited(7))]);
    assert_eq!(overdue(&mut delivery, 200..300), [235, 270]);
}

#[test]
fn the_highest_seq_is_no_trap() {
    let told = run(&mut delivery(), [(u64::MAX, output("x")), (1, output("a"))]);
    assert_eq!(told, ["1:a"]);
}
