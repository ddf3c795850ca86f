//! What one session is told: order, budget, and the one terminal event. No actor, no clock.

use std::{collections::BTreeMap, mem, sync::Arc};

use super::session::{Budget, Closed, Exited, Failed, Output, Permit, SessionEvent};
use crate::{
    error::FailureReason,
    protocol::{ProcessEvent, ProcessId},
};

/// How many events may wait for an earlier one. Servers were seen to be 17 places out of order.
const MAX_EARLY: usize = 256;

/// The state of one process's delivery.
#[derive(Debug)]
pub(crate) struct Delivery {
    process_id: ProcessId,
    budget: Arc<Budget>,
    /// The `seq` that is delivered next.
    next_seq: u64,
    /// Events that came before an earlier one.
    early: BTreeMap<u64, Granted>,
    /// Whether *exited* has come. It costs no budget, and so may come only once.
    has_exited: bool,
    /// From *exited*, once delivered.
    exit_code: Option<i32>,
}

/// An event, and the credit for its bytes.
#[derive(Debug)]
enum Granted {
    Output {
        stream: crate::protocol::Stream,
        chunk: bytes::Bytes,
        permit: Permit,
    },
    Exited {
        exit_code: i32,
        sandbox_denied: Option<bool>,
    },
    Closed,
}

/// What accepting an event has led to.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More is to come.
    Open,
    /// This is the last event: *closed*.
    Closed(SessionEvent),
    /// This is the last event: the session failed, while its process may still run.
    Failed(SessionEvent),
}

impl Delivery {
    /// Delivers what comes after `after_seq`.
    pub(crate) fn new(process_id: ProcessId, budget: usize, after_seq: u64) -> Self {
        Delivery {
            process_id,
            budget: Budget::new(budget),
            next_seq: after_seq.saturating_add(1),
            early: BTreeMap::new(),
            has_exited: false,
            exit_code: None,
        }
    }

    /// Accepts an event of the server and gives `deliver` those whose turn has come. After a terminal
    /// event nothing may be accepted any more.
    pub(crate) fn accept(
        &mut self,
        seq: u64,
        event: ProcessEvent,
        mut deliver: impl FnMut(SessionEvent),
    ) -> Progress {
        if seq < self.next_seq || self.early.contains_key(&seq) {
            return Progress::Open;
        }
        let granted = match self.grant(event) {
            Ok(granted) => granted,
            Err(reason) => return Progress::Failed(self.fail(reason)),
        };
        if seq > self.next_seq {
            if self.early.len() == MAX_EARLY {
                return Progress::Failed(self.fail(FailureReason::MissingEvent {
                    missing: self.next_seq,
                    waiting: self.early.len() + 1,
                }));
            }
            self.early.insert(seq, granted);
            return Progress::Open;
        }
        let mut next = Some(granted);
        while let Some(granted) = next {
            let is_last = matches!(granted, Granted::Closed);
            let event = self.advance(granted);
            if is_last {
                return Progress::Closed(event);
            }
            deliver(event);
            next = self.early.remove(&self.next_seq);
        }
        Progress::Open
    }

    /// Returns the `seq` of the last event delivered, 0 if there was none.
    pub(crate) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// Makes the terminal event of a session whose process will not be followed to its end.
    pub(crate) fn fail(&self, reason: FailureReason) -> SessionEvent {
        SessionEvent::Failed(Failed {
            process_id: self.process_id.clone(),
            reason,
            last_seq: self.last_seq(),
        })
    }

    fn grant(&mut self, event: ProcessEvent) -> Result<Granted, FailureReason> {
        Ok(match event {
            ProcessEvent::Output { stream, chunk } => Granted::Output {
                permit: self.budget.take(chunk.len())?,
                stream,
                chunk,
            },
            ProcessEvent::Exited {
                exit_code,
                sandbox_denied,
            } => {
                if mem::replace(&mut self.has_exited, true) {
                    return Err(FailureReason::ExitedTwice);
                }
                Granted::Exited {
                    exit_code,
                    sandbox_denied,
                }
            }
            ProcessEvent::Closed => Granted::Closed,
        })
    }

    /// Turns the event whose turn it is into what the session is told.
    fn advance(&mut self, granted: Granted) -> SessionEvent {
        let process_id = self.process_id.clone();
        let seq = self.next_seq;
        // Saturates only where a peer has counted to the end, and then nothing can follow.
        self.next_seq = self.next_seq.saturating_add(1);
        match granted {
            Granted::Output {
                stream,
                chunk,
                permit,
            } => SessionEvent::Output(Output {
                process_id,
                seq,
                stream,
                chunk,
                _permit: permit,
            }),
            Granted::Exited {
                exit_code,
                sandbox_denied,
            } => {
                self.exit_code = Some(exit_code);
                SessionEvent::Exited(Exited {
                    process_id,
                    seq,
                    exit_code,
                    sandbox_denied,
                })
            }
            Granted::Closed => SessionEvent::Closed(Closed {
                process_id,
                seq,
                exit_code: self.exit_code,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Stream;

    fn output(text: &'static str) -> ProcessEvent {
        ProcessEvent::Output {
            stream: Stream::Stdout,
            chunk: text.into(),
        }
    }

    fn exited(exit_code: i32) -> ProcessEvent {
        ProcessEvent::Exited {
            exit_code,
            sandbox_denied: None,
        }
    }

    /// Feeds events and writes down what comes out, one word for each.
    fn run(
        delivery: &mut Delivery,
        events: impl IntoIterator<Item = (u64, ProcessEvent)>,
    ) -> Vec<String> {
        let mut told = Vec::new();
        for (seq, event) in events {
            let mut delivered = Vec::new();
            match delivery.accept(seq, event, |event| delivered.push(event)) {
                Progress::Open => {}
                Progress::Closed(last) | Progress::Failed(last) => delivered.push(last),
            }
            told.extend(delivered.iter().map(word));
        }
        told
    }

    fn word(event: &SessionEvent) -> String {
        match event {
            SessionEvent::Output(output) => {
                format!("{}:{}", output.seq, String::from_utf8_lossy(&output.chunk))
            }
            SessionEvent::Exited(exited) => format!("{}:exited {}", exited.seq, exited.exit_code),
            SessionEvent::Closed(closed) => format!("{}:closed {:?}", closed.seq, closed.exit_code),
            SessionEvent::Failed(failed) => {
                format!("failed after {}: {}", failed.last_seq, failed.reason)
            }
        }
    }

    fn delivery() -> Delivery {
        Delivery::new("p".into(), 1 << 20, 0)
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
        let mut delivery = Delivery::new("p".into(), 1000, 2);
        let told = run(
            &mut delivery,
            [(4, exited(0)), (2, output("b")), (3, output("c"))],
        );
        assert_eq!(
            (told, delivery.last_seq()),
            (vec!["3:c".into(), "4:exited 0".into()], 4)
        );
        let mut delivery = Delivery::new("p".into(), 1000, u64::MAX);
        assert!(run(&mut delivery, [(1, exited(0))]).is_empty());
    }

    #[test]
    fn p4_what_is_not_consumed_fails_the_session_at_its_budget() {
        let mut delivery = Delivery::new("p".into(), 1000, 0);
        let mut held = Vec::new();
        for seq in 1..=7 {
            let progress = delivery.accept(seq, output("x"), |event| held.push(event));
            assert!(matches!(progress, Progress::Open), "{seq}");
        }
        let Progress::Failed(last) = delivery.accept(8, output("x"), |event| held.push(event))
        else {
            panic!("over its budget");
        };
        assert_eq!(
            word(&last),
            "failed after 7: the session holds 1032 bytes of unconsumed output, more than its budget of 1000"
        );
        assert_eq!(held.len(), 7);
    }

    #[test]
    fn p4_output_that_is_consumed_costs_no_budget() {
        let mut delivery = Delivery::new("p".into(), 1000, 0);
        let events = (1..=1000).map(|seq| (seq, output("x")));
        assert_eq!(run(&mut delivery, events).len(), 1000);
    }

    #[test]
    fn p4_events_that_come_early_are_bounded_by_count_and_by_budget() {
        let early = (2..=1000).map(|seq| (seq, ProcessEvent::Closed));
        assert_eq!(
            run(&mut delivery(), early)[0],
            "failed after 0: the event with seq 1 never came, and 257 later ones wait for it"
        );
        let early = (2..=20).map(|seq| (seq, output("x")));
        let told = run(&mut Delivery::new("p".into(), 1000, 0), early);
        assert!(
            told[0].starts_with("failed after 0: the session holds 1032 bytes"),
            "{told:?}"
        );
    }

    #[test]
    fn the_highest_seq_is_no_trap() {
        let told = run(&mut delivery(), [(u64::MAX, output("x")), (1, output("a"))]);
        assert_eq!(told, ["1:a"]);
    }
}
