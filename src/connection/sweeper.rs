//! The one timer for all deadlines, in a task of its own.
//!
//! A timer in the actor's context would be polled at each of its wakes, and would keep the actor
//! alive after its last address is gone.

use std::{cell::Cell, rc::Rc, time::Duration};

use actix::WeakAddr;
use tokio::{
    select,
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{Connection, Sweep};
use crate::task::Task;

/// How soon room is looked for again after it was not found: with thousands of calls in the table
/// that is not done for each call that is refused.
const RETRY: Duration = Duration::from_millis(10);

/// Has the connection swept when it is time to.
pub(super) struct Sweeper {
    timer: Rc<Timer>,
    last: Option<Instant>,
    connection: WeakAddr<Connection>,
    _task: Task,
}

struct Timer {
    at: Cell<Option<Instant>>,
    set: Notify,
}

impl Sweeper {
    pub(super) fn start(connection: WeakAddr<Connection>) -> Self {
        let timer = Rc::new(Timer {
            at: Cell::new(None),
            set: Notify::new(),
        });
        let task = Task::spawn(run(timer.clone(), connection.clone()));
        Sweeper {
            timer,
            last: None,
            connection,
            _task: task,
        }
    }

    /// The connection that it has swept.
    pub(super) fn connection(&self) -> WeakAddr<Connection> {
        self.connection.clone()
    }

    /// Sees to it that the next sweep is not later than `at`.
    pub(super) fn before(&self, at: Instant) {
        if self.timer.at.get().is_none_or(|set| at < set) {
            self.timer.at.set(Some(at));
            self.timer.set.notify_one();
        }
    }

    /// Whether a sweep is due. The task's message may wait behind a flood of calls.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.timer.at.get().is_some_and(|at| at <= now)
    }

    /// Whether a sweep may find room that the last one did not.
    pub(super) fn may_find_room(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now >= last + RETRY)
    }

    /// Notes that a sweep is being done. The next one has to be asked for.
    pub(super) fn swept(&mut self, now: Instant) {
        self.timer.at.set(None);
        self.last = Some(now);
    }
}

async fn run(timer: Rc<Timer>, connection: WeakAddr<Connection>) {
    loop {
        let Some(at) = timer.at.get() else {
            timer.set.notified().await;
            continue;
        };
        select! {
            () = sleep_until(at) => {
                timer.at.set(None);
                let Some(connection) = connection.upgrade() else {
                    return;
                };
                connection.do_send(Sweep);
            }
            () = timer.set.notified() => {}
        }
    }
}
