//! The orderly end.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use actix::{Context, Handler, Message, ResponseFuture};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{Router, State, routes::Routes};
use crate::{
    connection::{Close, Survivor, after},
    error::DisconnectReason,
    task::Task,
};

/// Closes the connection in order, and answers when it is gone and all sessions have been told.
///
/// By default the processes are terminated first, and their sessions get [`Closed`](crate::Closed) as
/// far as the deadline allows; those that are left get [`Failed`](crate::Failed). Meanwhile nothing new can be
/// started.
///
/// # Errors
///
/// See [`ShutdownError`]. Without an error, all processes are known to have ended, or were left alone as asked for. A
/// shutdown of what was shut down before answers as that did. A shutdown that leaves the processes alone does not fail.
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
    type Result = Result<(), ShutdownError>;
}

/// Why the processes of a [`Mux`](crate::Mux) are not known to have ended by its shutdown.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ShutdownError {
    /// The arbiter, or the whole actix system, on which the [`Mux`](crate::Mux) ran has stopped before. The processes were
    /// terminated as far as the socket took the requests at that moment, and the server was not heard any more.
    ///
    /// Servers of actix-web stop the system on SIGTERM and SIGINT unless they are told not to
    /// (`HttpServer::disable_signals`): see [`Mux::shutdown`](crate::Mux::shutdown).
    #[error(
        "processes may still run: the arbiter of the connection has stopped before they were ended; shut the connection \
         down before the actix system stops"
    )]
    ArbiterStopped,
    /// The server did not tell in time that all processes have ended.
    #[error(
        "{processes} processes are not known to have ended within {deadline:?}; a longer deadline gives them more time, \
         and the server ends them when it forgets the session"
    )]
    DeadlinePassed {
        /// How many processes had not ended.
        processes: usize,
        /// The deadline of the shutdown.
        deadline: Duration,
    },
    /// The connection was lost for good, before the shutdown or meanwhile.
    #[error(
        "{processes} processes are not known to have ended: the connection was lost before; the server ends them when it \
         forgets the session"
    )]
    Disconnected {
        /// How many processes had not ended when the connection was lost.
        processes: usize,
        /// How the connection was lost.
        #[source]
        reason: DisconnectReason,
    },
}

/// How a [`Mux`](crate::Mux) ended, once it has. Shared with its handles, which outlive the router.
pub(crate) type Outcome = Arc<OnceLock<Result<(), ShutdownError>>>;

/// Somebody who waits for the end.
pub(super) struct Waiting {
    processes: Processes,
    ended: oneshot::Sender<Result<(), ShutdownError>>,
}

/// The time that the processes have to end, if they are to.
pub(super) struct Draining {
    until: Instant,
    deadline: Duration,
    processes: Processes,
    /// Nothing is waited for any more, and the connection was told to close.
    is_closing: bool,
    /// Closes the connection when the time is up.
    overdue: Option<Task>,
}

impl Router {
    /// Whether a shutdown waits for something.
    pub(super) fn is_draining(&self) -> bool {
        match &self.state {
            State::Open { draining, .. } => draining.as_ref().is_some_and(|it| !it.is_closing),
            State::Closed(_) => false,
        }
    }

    /// Closes the connection of a shutdown that has nothing to wait for any more.
    pub(super) fn close_if_drained(&mut self) {
        if let State::Open { draining, .. } = &mut self.state
            && self.errands == 0
            && self.unremoved.is_empty()
            && let Some(draining) = draining
            && !draining.is_closing
            && (draining.processes == Processes::Detach
                || self.routes.is_empty()
                    && self.condemned.is_empty()
                    && self.ended_while_starting.is_empty())
        {
            draining.is_closing = true;
            draining.overdue = None;
            self.connection.do_send(Close { by: draining.until });
        }
    }

    /// Has the processes of a router that goes ended if its runtime ends, unless they are to be left alone.
    pub(super) fn say_farewell(&self, state: &State, reason: &DisconnectReason, routes: &Routes) {
        let is_detached = match state {
            State::Open { draining, .. } => {
                (draining.as_ref()).is_some_and(|draining| draining.processes == Processes::Detach)
            }
            State::Closed(_) => true,
        };
        // Where the connection was lost, there is no socket.
        if is_detached || !matches!(reason, DisconnectReason::Closed) {
            return;
        }
        let survivors = routes.iter().map(|route| Survivor {
            process_id: route.delivery.process_id().clone(),
            is_starting: route.starting,
        });
        self.farewell.leave_processes(survivors.collect());
    }

    /// Tells everyone who waits for the end how it was. So many processes had not ended.
    pub(super) fn end_shutdowns(&self, state: State, reason: &DisconnectReason, processes: usize) {
        let State::Open {
            shutdowns,
            draining,
        } = state
        else {
            return;
        };
        let is_detached = (draining.as_ref()).is_some_and(|it| it.processes == Processes::Detach);
        let outcome = match (draining, reason) {
            _ if processes == 0 => Ok(()),
            // Also if it was overtaken by a shutdown that leaves the processes alone, which does not wait.
            (Some(draining), DisconnectReason::Closed)
                if is_detached || draining.until <= Instant::now() =>
            {
                Err(ShutdownError::DeadlinePassed {
                    processes,
                    deadline: draining.deadline,
                })
            }
            (_, DisconnectReason::Closed) => Err(ShutdownError::ArbiterStopped),
            (_, reason) => Err(ShutdownError::Disconnected {
                processes,
                reason: reason.clone(),
            }),
        };
        for Waiting { processes, ended } in shutdowns {
            let outcome = match processes {
                Processes::Terminate => outcome.clone(),
                Processes::Detach => Ok(()),
            };
            // Whoever has gone does not need to know.
            let _gone = ended.send(outcome);
        }
        let outcome = if is_detached { Ok(()) } else { outcome };
        // It is set here only, and this runs once.
        let _set_before = self.outcome.set(outcome);
    }
}

impl Handler<Shutdown> for Router {
    type Result = ResponseFuture<Result<(), ShutdownError>>;

    fn handle(&mut self, shutdown: Shutdown, context: &mut Self::Context) -> Self::Result {
        let State::Open {
            shutdowns,
            draining,
        } = &mut self.state
        else {
            let outcome = match shutdown.processes {
                Processes::Terminate => self.outcome.get().cloned().unwrap_or(Ok(())),
                Processes::Detach => Ok(()),
            };
            return Box::pin(async { outcome });
        };
        let (ended, has_ended) = oneshot::channel();
        let processes = shutdown.processes;
        shutdowns.push(Waiting { processes, ended });
        let deadline = shutdown.deadline.unwrap_or(self.close_timeout);
        let until = after(Instant::now(), deadline);
        let connection = self.connection.downgrade();
        let overdue = Task::spawn(async move {
            sleep_until(until).await;
            if let Some(connection) = connection.upgrade() {
                connection.do_send(Close { by: until });
            }
        });
        *draining = Some(Draining {
            until,
            deadline,
            processes,
            is_closing: false,
            overdue: Some(overdue),
        });
        match processes {
            Processes::Terminate => self.terminate_all(context),
            Processes::Detach => self.let_all_go(context),
        }
        self.remove_unremoved(context);
        self.close_if_drained();
        Box::pin(async {
            // Sent when the connection is gone, or dropped with the router, which tells before.
            has_ended
                .await
                .unwrap_or(Err(ShutdownError::ArbiterStopped))
        })
    }
}

impl Router {
    fn terminate_all(&mut self, context: &mut Context<Self>) {
        for route in self.routes.iter_mut() {
            if route.starting {
                self.ended_while_starting.insert(route.key());
            }
        }
        for process_id in self.routes.process_ids() {
            self.terminate(process_id, context);
        }
    }

    /// Nobody consumes for the processes or helps them any more.
    fn let_all_go(&mut self, context: &mut Context<Self>) {
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
