use super::*;

fn queue() -> Queue {
    Queue::new(10_000, 1_000)
}

fn request(id: RequestId) -> Request {
    Request {
        id,
        json: "x".into(),
        turn: Turn::Ordinary,
    }
}

fn start(id: RequestId) -> Request {
    Request {
        turn: Turn::Start,
        ..request(id)
    }
}

/// A queue in which as many starts as may be are written, up to this id, and more wait.
fn starting(written: RequestId, last: RequestId) -> Queue {
    let mut queue = queue().max_starts(3);
    for id in 1..=last {
        queue.push(Lane::Start, start(id)).unwrap();
    }
    let expected: Vec<_> = (1..=written).collect();
    assert_eq!(taken(&mut queue), expected);
    queue
}

fn taken(queue: &mut Queue) -> Vec<RequestId> {
    let taken = std::iter::from_fn(|| queue.next())
        .map(|request| request.id)
        .collect();
    queue.flushed(Instant::now());
    taken
}

#[test]
fn p4_of_what_is_consumed_only_the_last_word_waits() {
    let mut queue = Queue::new(1000, 1000);
    queue.consumed("b".into(), 1);
    queue.consumed("a".into(), 5);
    queue.consumed("b".into(), 3);
    assert_eq!(queue.next_consumed(), Some(("a".into(), 5)));
    queue.consumed("a".into(), 6);
    assert_eq!(queue.next_consumed(), Some(("b".into(), 3)), "in turns");
    assert_eq!(queue.next_consumed(), Some(("a".into(), 6)));
    assert_eq!(queue.next_consumed(), None);
    queue.consumed("c".into(), 1);
    queue.drop_waiting();
    assert_eq!(queue.next_consumed(), None);
}

#[test]
fn p7_what_is_consumed_does_not_keep_requests_waiting() {
    let mut queue = Queue::new(1000, 1000);
    for process_id in ["a", "b", "c"] {
        queue.consumed(process_id.into(), 1);
    }
    queue.push(Lane::Ordinary, request(1)).unwrap();
    queue.push(Lane::Ordinary, request(2)).unwrap();
    queue.push(Lane::Control, request(3)).unwrap();
    let mut taken = Vec::new();
    loop {
        if let Some((process_id, _)) = queue.next_consumed() {
            taken.push(process_id.to_string());
        } else if let Some(request) = queue.next() {
            taken.push(request.id.to_string());
        } else {
            break;
        }
    }
    assert_eq!(taken, ["3", "a", "1", "b", "2", "c"]);
}

#[test]
fn p9_control_overtakes_and_others_keep_their_order() {
    let mut queue = queue();
    queue.push(Lane::Ordinary, request(1)).unwrap();
    queue.push(Lane::Ordinary, request(2)).unwrap();
    queue.push(Lane::Control, request(3)).unwrap();
    queue.push(Lane::Control, request(4)).unwrap();
    assert_eq!(taken(&mut queue), [3, 4, 1, 2]);
    assert_eq!(queue.bytes(), 0);
}

#[test]
fn p9_one_write_of_a_process_is_under_way_at_a_time() {
    let (mut queue, a, b) = (queue(), ProcessId::from("a"), ProcessId::from("b"));
    for id in 1..=3 {
        queue.push(Lane::Stdin(&a), request(id)).unwrap();
    }
    queue.push(Lane::Stdin(&b), request(4)).unwrap();
    assert_eq!(taken(&mut queue), [1, 4]);
    queue.answered(1);
    queue.answered(1);
    assert_eq!(taken(&mut queue), [2]);
    queue.answered(2);
    queue.answered(4);
    assert_eq!(queue.stdins.len(), 1);
    assert_eq!(taken(&mut queue), [3]);
    queue.answered(3);
    assert!(queue.stdins.is_empty() && queue.writing.is_empty());
    assert_eq!(queue.bytes(), 0);
}

#[test]
fn p4_what_waits_is_bounded() {
    let (mut queue, a) = (queue(), ProcessId::from("a"));
    let accepted = (1..100)
        .take_while(|&id| queue.push(Lane::Stdin(&a), request(id)).is_ok())
        .count();
    assert_eq!(accepted, 1 + 1_000 / 129);
    let accepted = (100..1000)
        .take_while(|&id| queue.push(Lane::Ordinary, request(id)).is_ok())
        .count();
    assert_eq!(accepted, 10_000 / 129 - 8);
    assert!(queue.remove(3) && queue.remove(101) && !queue.remove(1000));
    assert!(queue.push(Lane::Control, request(2000)).is_ok());
    queue.mark_stuck(&a);
    taken(&mut queue);
    assert_eq!(queue.bytes(), 0);
    let huge = Request {
        json: vec![0; 20_000].into(),
        ..request(3000)
    };
    assert!(queue.push(Lane::Ordinary, huge).is_ok(), "one always fits");
}

#[test]
fn p4_a_server_that_answers_nothing_costs_no_memory() {
    let mut queue = queue();
    for id in 1..=2 * MAX_SENT as RequestId {
        queue.push(Lane::Ordinary, request(id)).unwrap();
        assert_eq!(taken(&mut queue), [id]);
    }
    assert_eq!(queue.sent.len(), MAX_SENT);
}

#[test]
fn p9_a_stuck_process_takes_no_more_writes_until_it_has_ended() {
    let (mut queue, a) = (queue(), ProcessId::from("a"));
    for id in 1..=3 {
        queue.push(Lane::Stdin(&a), request(id)).unwrap();
    }
    assert_eq!(taken(&mut queue), [1]);
    assert_eq!(queue.mark_stuck(&a), [1, 2, 3]);
    let refused = Err(Refused::Stuck(a.clone()));
    assert_eq!(queue.push(Lane::Stdin(&a), request(4)), refused);
    queue.answered(1);
    assert_eq!((taken(&mut queue), queue.bytes()), (vec![], 0));
    queue.forget(&a);
    assert_eq!(queue.push(Lane::Stdin(&a), request(5)), Ok(()));
}

#[test]
fn p9_the_write_that_holds_up_the_others_is_found() {
    let (mut queue, a) = (queue(), ProcessId::from("a"));
    let second = Duration::from_secs(1);
    let begun = Instant::now();
    queue.push(Lane::Ordinary, request(1)).unwrap();
    queue.push(Lane::Stdin(&a), request(2)).unwrap();
    queue.push(Lane::Ordinary, request(3)).unwrap();
    assert_eq!(queue.next_overdue(second), None, "not written yet");
    while queue.next().is_some() {}
    assert_eq!(queue.next_overdue(second), None, "not with the socket yet");
    queue.flushed(begun);
    assert_eq!(queue.next_overdue(second), Some(begun + second));
    assert_eq!(
        queue.blocking(begun + second, second),
        None,
        "1 is before it"
    );
    queue.answered(3);
    queue.answered(1);
    assert_eq!(queue.blocking(begun, second), None, "not for so long");
    assert_eq!(queue.blocking(begun + second, second), Some(a.clone()));
    assert_eq!(queue.overdue(begun + second, second, |id| id == 2), [a]);
    assert!(
        queue
            .overdue(begun + second, second, |id| id == 3)
            .is_empty()
    );
}

#[test]
fn p8_a_write_that_is_lost_and_not_repeated_lets_the_next_go() {
    let (mut queue, a) = (queue(), ProcessId::from("a"));
    queue.push(Lane::Stdin(&a), request(1)).unwrap();
    queue.push(Lane::Stdin(&a), request(2)).unwrap();
    assert_eq!(taken(&mut queue), [1]);
    queue.link_lost(Vec::new());
    assert_eq!(taken(&mut queue), [2]);
    queue.answered(2);
    assert!(queue.stdins.is_empty() && queue.bytes() == 0);
}

#[test]
fn p8_what_is_repeated_goes_first_and_in_order() {
    let (mut queue, a) = (queue(), ProcessId::from("a"));
    queue.push(Lane::Ordinary, request(1)).unwrap();
    queue.push(Lane::Stdin(&a), request(2)).unwrap();
    assert_eq!(taken(&mut queue), [1, 2]);
    queue.push(Lane::Ordinary, request(3)).unwrap();
    queue.push(Lane::Stdin(&a), request(4)).unwrap();
    assert_eq!(queue.ids(), HashSet::from([3, 4]));
    queue.link_lost(vec![request(1), request(2)]);
    assert_eq!(queue.next_overdue(Duration::ZERO), None);
    assert_eq!(taken(&mut queue), [1, 2, 3]);
    queue.answered(2);
    assert_eq!(taken(&mut queue), [4]);
}

#[test]
fn a_request_passes_where_nothing_waits() {
    let (mut queue, a) = (queue(), ProcessId::from("a"));
    assert!(queue.pass(Lane::Ordinary, 1, 10));
    assert!(!queue.pass(Lane::Ordinary, 2, 10), "it is being written");
    assert_eq!(queue.bytes(), 10 + OVERHEAD);
    queue.flushed(Instant::now());
    assert_eq!(queue.bytes(), 0);
    assert!(queue.pass(Lane::Control, 2, 10));
    queue.flushed(Instant::now());
    queue.consumed(a, 1);
    assert!(!queue.pass(Lane::Control, 3, 10));
    assert!(queue.next_consumed().is_some());
    queue.push(Lane::Ordinary, request(3)).unwrap();
    assert!(!queue.pass(Lane::Control, 4, 10));
}

#[test]
fn p9_a_write_that_passes_is_under_way_as_any_other() {
    let (mut queue, a) = (queue(), ProcessId::from("a"));
    let (begun, second) = (Instant::now(), Duration::from_secs(1));
    assert!(queue.pass(Lane::Stdin(&a), 1, 10));
    assert_eq!(queue.next_overdue(second), None, "not with the socket yet");
    queue.flushed(begun);
    assert!(!queue.pass(Lane::Stdin(&a), 2, 10), "one at a time");
    queue.push(Lane::Stdin(&a), request(2)).unwrap();
    assert!(taken(&mut queue).is_empty());
    assert_eq!(queue.next_overdue(second), Some(begun + second));
    assert_eq!(queue.blocking(begun + second, second), Some(a.clone()));
    assert!(queue.answered(1), "the next may go");
    assert_eq!(taken(&mut queue), [2]);
    queue.answered(2);
    assert!(queue.stdins.is_empty() && queue.bytes() == 0);

    assert!(queue.pass(Lane::Stdin(&a), 3, 10));
    queue.flushed(begun);
    queue.link_lost(vec![request(3)]);
    assert_eq!(queue.next_overdue(second), None);
    assert_eq!(taken(&mut queue), [3]);
}

#[test]
fn p9_starts_beyond_a_number_wait_for_answers_in_order() {
    let mut queue = starting(3, 6);
    queue.push(Lane::Ordinary, request(7)).unwrap();
    queue.push(Lane::Control, request(8)).unwrap();
    assert_eq!(taken(&mut queue), [8, 7], "others are not held up");
    assert!(queue.answered(2));
    assert!(!queue.answered(2), "once");
    assert_eq!(taken(&mut queue), [4]);
    assert!(queue.answered(4) && queue.answered(1));
    assert_eq!(taken(&mut queue), [5, 6]);
    for id in [3, 5, 6] {
        assert!(!queue.answered(id));
    }
    queue.push(Lane::Start, start(9)).unwrap();
    assert_eq!((taken(&mut queue), queue.bytes()), (vec![9], 0));
}

#[test]
fn p7_a_start_that_is_given_up_while_it_waits_is_not_sent() {
    let mut queue = starting(3, 6);
    // By its deadline, and by its caller.
    assert!(queue.remove(4));
    queue.remove_start(5);
    queue.remove_start(5);
    queue.remove_start(1);
    assert!(!queue.remove(1), "it is sent, and keeps its place");
    assert!(taken(&mut queue).is_empty());
    assert!(queue.answered(1));
    assert_eq!((taken(&mut queue), queue.bytes()), (vec![6], 0));
}

#[test]
fn p7_a_start_that_is_given_up_before_it_is_written_frees_its_place() {
    let mut queue = queue().max_starts(1);
    for id in 1..=2 {
        queue.push(Lane::Start, start(id)).unwrap();
    }
    assert!(queue.remove(1));
    assert_eq!((taken(&mut queue), queue.bytes()), (vec![2], 0));
}

#[test]
fn p7_starts_that_are_never_answered_do_not_block_others_for_ever() {
    let mut queue = starting(3, 8);
    let written = Instant::now();
    assert!(!queue.expire_starts(written));
    assert!(queue.answered(3));
    assert_eq!(taken(&mut queue), [4]);
    assert!(queue.expire_starts(written + starts::LEASE));
    assert!(taken(&mut queue).len() >= 2);
    // An answer that comes all the same frees nothing that it does not hold.
    assert!(!queue.answered(1));
}

#[test]
fn p8_a_lost_link_frees_the_places_of_what_is_not_made_again() {
    let mut queue = starting(3, 6);
    queue.link_lost(vec![start(2)]);
    assert_eq!(queue.ids(), HashSet::from([2, 4, 5, 6]));
    assert_eq!(taken(&mut queue), [2, 4, 5]);
    queue.link_lost(vec![start(2), start(4), start(5)]);
    assert_eq!(taken(&mut queue), [2, 4, 5]);
    assert!(queue.answered(5));
    assert_eq!((taken(&mut queue), queue.bytes()), (vec![6], 0));
}

#[test]
fn p8_no_more_starts_are_made_again_at_once_than_may_be() {
    let mut queue = starting(3, 5);
    // Their places are free after so long, but they may still be answered.
    assert!(queue.expire_starts(Instant::now() + starts::LEASE));
    assert_eq!(taken(&mut queue), [4, 5]);
    queue.link_lost((1..=5).map(start).collect());
    assert_eq!(taken(&mut queue), [1, 2, 3]);
    assert!(queue.answered(3) && queue.answered(1));
    assert_eq!((taken(&mut queue), queue.bytes()), (vec![4, 5], 0));
}

#[test]
fn p4_starts_that_wait_count_and_are_dropped_at_the_end() {
    let mut queue = starting(3, 6);
    assert_eq!(queue.bytes(), 3 * (1 + OVERHEAD));
    assert!(!queue.pass(Lane::Start, 7, 10));
    queue.drop_waiting();
    assert_eq!(queue.bytes(), 0);
    assert!(queue.pass(Lane::Start, 8, 10));
    assert!(taken(&mut queue).is_empty());
}
