//! The orderly end.

use std::time::Duration;

use actix::Message;

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
