//! Requests that are written when the runtime ends under a connection: no task is polled any more then, and tasks are
//! dropped in an order that is the runtime's own.
//!
//! Two things are needed, and each is left here by whoever is dropped first. The task that writes leaves its socket. The
//! router leaves the processes that are to be ended. The second of the two has both, and writes as much as the socket takes
//! at that moment. Nobody waits for the socket, and nobody reads an answer. The socket is closed a moment later.

use std::{
    cell::{Cell, RefCell},
    mem,
    rc::Rc,
    thread,
    time::Duration,
};

use log::debug;

use super::{
    calls::Calls,
    outgoing::{Outgoing, Writing},
    queue::{Request, Turn},
};
use crate::protocol::{Dialect, ProcessId, Terminate, jsonrpc};

/// How long the socket stays open behind the last requests. Servers drop a request that they have not handled when its
/// connection closes. Nothing can be read any more, so this thread sleeps instead of waiting for the answers: once, for all
/// of its connections.
const LINGER: Duration = Duration::from_millis(250);

thread_local! {
    static THREAD: Thread = Thread::default();
}

/// The connections of one thread.
#[derive(Default)]
struct Thread {
    /// How many farewells there may still be.
    open: Cell<usize>,
    /// The sockets that stay open for a moment.
    lingering: RefCell<Vec<Rc<RefCell<Writing>>>>,
}

impl Thread {
    /// Notes that a connection is gone. With the last one, the sockets are closed.
    fn end_one(&self) {
        self.open.set(self.open.get() - 1);
        if self.open.get() > 0 {
            return;
        }
        let lingering = self.lingering.take();
        if !lingering.is_empty() {
            thread::sleep(LINGER);
        }
        for writing in lingering {
            writing.borrow_mut().close_last();
        }
    }
}

/// What is left by the tasks and actors of a connection that are dropped without an orderly end.
pub(crate) struct Farewell {
    calls: Rc<Calls>,
    outgoing: Outgoing,
    dialect: Dialect,
    left: RefCell<Left>,
}

#[derive(Default)]
enum Left {
    #[default]
    Nothing,
    /// The router is gone: these processes are to be ended if the runtime ends before the socket is closed.
    Processes(Vec<Survivor>),
    /// The runtime ends: the task that writes was dropped, and this is its socket.
    Socket(Rc<RefCell<Writing>>),
}

/// A process that runs when its router goes.
pub(crate) struct Survivor {
    pub(crate) process_id: ProcessId,
    /// The server has not answered its start, which may still be queued: it must not be overtaken.
    pub(crate) is_starting: bool,
}

impl Farewell {
    pub(super) fn new(calls: Rc<Calls>, outgoing: Outgoing, dialect: Dialect) -> Rc<Self> {
        THREAD.with(|thread| thread.open.update(|open| open + 1));
        Rc::new(Farewell {
            calls,
            outgoing,
            dialect,
            left: RefCell::default(),
        })
    }

    /// Has the processes ended if the runtime ends: at once if it is known to end already. If the connection is closed
    /// in order instead, nothing is written.
    pub(crate) fn leave_processes(&self, survivors: Vec<Survivor>) {
        match self.left.take() {
            Left::Socket(writing) => self.write(survivors, writing),
            Left::Nothing | Left::Processes(_) => {
                self.left.replace(Left::Processes(survivors));
            }
        }
    }

    /// Notes that the task that writes is dropped by its runtime.
    pub(super) fn leave_socket(&self, writing: Rc<RefCell<Writing>>) {
        if writing.borrow().is_over {
            return;
        }
        match self.left.take() {
            Left::Processes(survivors) => self.write(survivors, writing),
            Left::Nothing | Left::Socket(_) => {
                self.left.replace(Left::Socket(writing));
            }
        }
    }

    fn write(&self, survivors: Vec<Survivor>, writing: Rc<RefCell<Writing>>) {
        let processes = survivors.len();
        debug!(processes; "the runtime ends, so that processes are terminated unheard");
        for survivor in survivors {
            let id = self.calls.pending.borrow_mut().next_id();
            let terminate = Terminate::new(survivor.process_id);
            // A process id always serialises.
            if let Ok(json) = jsonrpc::encode_request(id, &terminate, self.dialect) {
                self.outgoing.queue_quietly().push_last(Request {
                    id,
                    json: json.into(),
                    turn: match survivor.is_starting {
                        true => Turn::Ordinary,
                        false => Turn::Control,
                    },
                });
            }
        }
        if writing.borrow_mut().write_last() && processes > 0 {
            // In a thread that ends, the socket closes at once.
            let _ends = THREAD.try_with(|thread| thread.lingering.borrow_mut().push(writing));
        } else {
            writing.borrow_mut().close_last();
        }
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let _ends = THREAD.try_with(Thread::end_one);
    }
}

/// Held by the task that writes. Leaves its socket when the task is dropped before it has come to its end, as only a
/// runtime does.
pub(super) struct Unfinished {
    writing: Option<Rc<RefCell<Writing>>>,
    farewell: Rc<Farewell>,
}

impl Unfinished {
    pub(super) fn new(writing: Rc<RefCell<Writing>>, farewell: Rc<Farewell>) -> Self {
        Unfinished {
            writing: Some(writing),
            farewell,
        }
    }

    /// Notes that the task has come to its end.
    pub(super) fn finish(mut self) {
        self.writing = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(writing) = mem::take(&mut self.writing) {
            self.farewell.leave_socket(writing);
        }
    }
}
