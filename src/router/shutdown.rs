//! The orderly end.

use std::time::Duration;

use actix::{Handler, Message, ResponseFuture};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{Router, State};
use crate::{
    connection::{Close, after},
    task::Task,
};

/// Closes the connection in order, and answers when it is gone and all sessions have been told.
///
/// By default the processes are terminated first, and their sessions get [`Closed`](crate::Closed) as
/// far as the deadline allows; those that are left get [`Failed`](crate::Failed). Meanwhile nothing new can be
/// started.
///
/// # Cancel safety
///
/// Once the router has handled it, the connection closes also if nobody waits for the answer.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Shutdown {
    /// What becomes of the processes.
    pub processes: Processes,
    /// How long all of it may take. [`Config::close_timeout`](crate::Config::close_timeout) by default.
    pub deadline: Option<Duration>,
}

/// What becomes of the processes of a connection that is shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Processes {
    /// They are killed.
    #[default]
    Terminate,
    /// They are left to the server, which ends them when it forgets the session: 10 to 80 s later, and
    /// at once before 0.120. What still waits to be sent is sent, unless the connection is lost at this
    /// moment.
    Detach,
}

impl Shutdown {
    /// Terminates the processes and closes the connection.
    pub fn new() -> Self {
        Shutdown::default()
    }

    /// Leaves the processes to the server.
    #[must_use]
    pub fn detach() -> Self {
        Shutdown {
            processes: Processes::Detach,
            ..Shutdown::default()
        }
    }

    /// Gives up being orderly after this.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

impl Message for Shutdown {
    type Result = ();
}

/// The time that the processes have to end, if they are to.
pub(super) struct Draining {
    until: Instant,
    processes: Processes,
    _overdue: Task,
}

impl Router {
    /// Whether a shutdown waits for something.
    pub(super) fn is_draining(&self) -> bool {
        matches!(
            self.state,
            State::Open {
                draining: Some(_),
                ..
            }
        )
    }

    /// Closes the connection of a shutdown that has nothing to wait for any more.
    pub(super) fn close_if_drained(&mut self) {
        if let State::Open { draining, .. } = &mut self.state
            && self.errands == 0
            && self.unremoved.is_empty()
            && let Some(Draining { until, .. }) =
                draining.take_if(|it| it.processes == Processes::Detach || self.routes.is_empty())
        {
            self.connection.do_send(Close { by: until });
        }
    }
}

impl Handler<Shutdown> for Router {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, shutdown: Shutdown, context: &mut Self::Context) -> Self::Result {
        let State::Open {
            shutdowns,
            draining,
        } = &mut self.state
        else {
            return Box::pin(async {});
        };
        let (end, ended) = oneshot::channel();
        shutdowns.push(end);
        let until = after(
            Instant::now(),
            shutdown.deadline.unwrap_or(self.close_timeout),
        );
        let connection = self.connection.downgrade();
        let overdue = Task::spawn(async move {
            sleep_until(until).await;
            if let Some(connection) = connection.upgrade() {
                connection.do_send(Close { by: until });
            }
        });
        *draining = Some(Draining {
            until,
            processes: shutdown.processes,
            _overdue: overdue,
        });
        match shutdown.processes {
            Processes::Terminate => {
                for route in self.routes.iter_mut() {
                    if route.starting {
                        self.ended_while_starting.insert(route.key());
                    }
                }
                for process_id in self.routes.process_ids() {
                    self.terminate(process_id, context);
                }
            }
            // Nobody consumes for them or helps them any more.
            Processes::Detach => {
                let held_back: Vec<_> = (self.routes.iter_mut())
                    .filter(|route| route.delivery.is_held_back())
                    .map(|route| route.delivery.process_id().clone())
                    .collect();
                for process_id in held_back {
                    self.release(process_id, context);
                }
                let records: Vec<_> = (self.routes.iter_mut())
                    .filter_map(|route| route.record.take())
                    .collect();
                for record in records {
                    self.remove_record(*record, context);
                }
            }
        }
        self.remove_unremoved(context);
        self.close_if_drained();
        Box::pin(async {
            // Sent when the connection is gone, or dropped with the router, which is as good.
            let _ended = ended.await;
        })
    }
}
