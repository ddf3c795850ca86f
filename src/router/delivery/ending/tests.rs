//! Deliveries whose reads bring nothing, one event and one read at a time.

use super::{
    super::tests::{answer, delivery, exited, output, read, run, word},
    *,
};

/// A delivery that lacks 1 to 4 of a process that has ended, and wants to read.
fn without_a_beginning() -> (Delivery, Instant) {
    let mut delivery = delivery();
    let last = [(5, output("e")), (6, exited(7)), (7, ProcessEvent::Closed)];
    assert!(run(&mut delivery, last).is_empty());
    let now = Instant::now();
    delivery.tick(now);
    delivery.tick(now);
    assert!(delivery.wants_read());
    (delivery, now)
}

/// Has a delivery read, each second and for so long, and ends each read. Returns what is told, and when it read.
fn read_each_second(
    delivery: &mut Delivery,
    begun: Instant,
    seconds: u64,
    mut end: impl FnMut(&mut Delivery, u64, Instant, &mut Vec<String>) -> Progress,
) -> (Vec<String>, Vec<u64>) {
    let (mut told, mut read_at) = (Vec::new(), Vec::new());
    for second in 0..seconds {
        let now = begun + Duration::from_secs(second);
        delivery.tick(now);
        let mut at_once = 0;
        while delivery.wants_read()
            && let Some(wanted) = delivery.next_read()
        {
            read_at.push(second);
            at_once += 1;
            assert!(at_once < 10, "without pause: {delivery:?}");
            match end(delivery, wanted.number, now, &mut told) {
                Progress::Open => {}
                Progress::Closed(last) | Progress::Failed(last) => {
                    told.push(word(&last));
                    return (told, read_at);
                }
                Progress::NoCredit(_) | Progress::Blocked(_) => panic!("reads do not block"),
            }
        }
    }
    (told, read_at)
}

const AFTER_A_GAP: [&str; 4] = [
    "gap 0..5",
    "5:e",
    "6:exited 7",
    "7:closed Some(7) incomplete",
];

#[test]
fn p2_p5_where_reads_fail_again_and_again_what_is_missing_is_lost_and_the_end_is_told() {
    for (fruitless, times) in [
        (Fruitless::Useless, vec![0, 1, 3, 7, 15, 31]),
        (
            Fruitless::Unanswered,
            vec![0, 1, 3, 7, 15, 31, 61, 91, 121, 151, 181, 211],
        ),
    ] {
        let (mut delivery, now) = without_a_beginning();
        let (told, read_at) =
            read_each_second(&mut delivery, now, 1000, |delivery, n, now, told| {
                delivery.fail_read(n, fruitless, now, |event| told.push(word(&event)))
            });
        assert_eq!(told, AFTER_A_GAP);
        assert_eq!(read_at, times);
    }
}

#[test]
fn p2_p5_answers_that_bring_nothing_are_no_better_than_none() {
    let answers: [fn() -> RetainedOutput; 5] = [
        || read([0], 1, ""),
        || read([0], 8, "exited closed"),
        || read([], 0, ""),
        || read([], 1, "exited closed"),
        || read([0, 0, 0], 0, ""),
    ];
    for answer in answers {
        let (mut delivery, now) = without_a_beginning();
        let (told, read_at) =
            read_each_second(&mut delivery, now, 100, |delivery, n, now, told| {
                delivery.accept_read(n, answer(), now, |event| told.push(word(&event)))
            });
        assert_eq!(told, AFTER_A_GAP, "{:?}", answer());
        assert!(read_at.len() <= 6, "{:?}: {read_at:?}", answer());
    }
}

#[test]
fn p5_a_read_that_brings_something_is_followed_at_once_and_pushes_count_meanwhile() {
    let (mut delivery, now) = without_a_beginning();
    let wanted = delivery.next_read().unwrap();
    let failed = delivery.fail_read(wanted.number, Fruitless::Useless, now, |_| {});
    assert!(matches!(failed, Progress::Open));
    assert_eq!(run(&mut delivery, [(1, output("a"))]), ["1:a"]);
    assert!(run(&mut delivery, [(3, output("c"))]).is_empty(), "kept");
    delivery.tick(now + Duration::from_secs(1));
    let wanted = delivery.next_read().unwrap();
    assert_eq!(wanted.after_seq, 1);
    assert_eq!(
        answer(&mut delivery, wanted.number, read([2], 3, "exited closed")),
        ["2:r2", "3:c"]
    );
    assert!(delivery.wants_read(), "without a pause");
    let wanted = delivery.next_read().unwrap();
    assert_eq!(
        answer(&mut delivery, wanted.number, read([4], 8, "exited closed")),
        ["4:r4", "5:e", "6:exited 7", "7:closed Some(7)"]
    );
}

#[test]
fn p6_a_new_link_is_asked_at_once_and_not_more_often_in_all() {
    let mut delivery = delivery();
    let now = Instant::now();
    let fail = |delivery: &mut Delivery| {
        let wanted = delivery.next_read().unwrap();
        delivery.fail_read(wanted.number, Fruitless::Useless, now, |event| {
            panic!("{event:?}")
        })
    };
    for _ in 0..5 {
        delivery.interrupted();
        assert!(matches!(fail(&mut delivery), Progress::Open));
        assert!(!delivery.wants_read(), "it pauses");
    }
    delivery.interrupted();
    match fail(&mut delivery) {
        Progress::Failed(last) => assert_eq!(
            word(&last),
            "failed after 0: what the process did while the connection was lost is not known: 6 reads in a row told \
             nothing"
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn p2_a_process_that_goes_on_is_not_failed_where_reads_fail() {
    let mut delivery = delivery();
    let now = Instant::now();
    delivery.interrupted();
    let mut seq = 0;
    let (told, read_at) = read_each_second(&mut delivery, now, 60, |delivery, n, now, told| {
        seq += 1;
        told.extend(run(delivery, [(seq, output("x"))]));
        delivery.fail_read(n, Fruitless::Useless, now, |event| told.push(word(&event)))
    });
    assert_eq!(told.len(), 6, "{told:?}");
    assert_eq!(read_at, [0, 1, 3, 7, 15, 31]);
    assert!(delivery.needs_ticks(), "its end may have been missed");
}

#[test]
fn p2_an_end_whose_place_was_told_as_lost_is_told_all_the_same() {
    let mut delivery = delivery();
    delivery.interrupted();
    let wanted = delivery.next_read().unwrap();
    let lie = read([], 1000, "");
    assert_eq!(answer(&mut delivery, wanted.number, lie), ["gap 0..1000"]);
    let events = [
        (4, output("lost")),
        (5, exited(7)),
        (5, exited(7)),
        (1001, output("y")),
        (6, ProcessEvent::Closed),
    ];
    assert_eq!(
        run(&mut delivery, events),
        ["gap 999..1001", "1001:y", "1002:closed Some(7) incomplete"]
    );
}

#[test]
fn p5_an_end_told_before_what_has_come_does_not_swallow_it() {
    let mut delivery = delivery();
    delivery.interrupted();
    let wanted = delivery.next_read().unwrap();
    assert!(run(&mut delivery, [(5, output("e"))]).is_empty());
    let lie = read([], 3, "exited closed");
    let told = answer(&mut delivery, wanted.number, lie);
    assert!(told.is_empty() || !told[0].contains("closed"), "{told:?}");
}
