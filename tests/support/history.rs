//! Checks what sessions are told against what their processes wrote.
//!
//! The processes write *stamped* lines, which tell their place in their stream, so that it shows
//! what is missing, doubled or swapped, and whether that was declared. Nothing is kept but the
//! line that is not whole yet.

mod checker;
mod report;

use actix::{Actor, Context, Handler};
use execmux::{Session, SessionEvent};
use tokio::sync::{oneshot, watch};

#[allow(unused_imports, reason = "each test file uses a part of it")]
pub use self::{
    checker::{Checker, Event},
    report::{Ending, Fate, Lines, Report, Writes},
};

/// Bytes of padding in the lines of [`writer`].
pub const PAD: usize = 90;

/// Line `n` of a stream, from 1. It tells the number at both ends, so that two halves of different
/// lines do not make one.
pub fn stamped(n: u64, pad: usize) -> String {
    format!("#{n} {} {n}\n", ".".repeat(pad))
}

/// A program for `sh -c` that writes stamped lines. `program` is awk without single quotes, and has
///
/// - `lines(count)`: writes the next lines to stdout; `both(count)`: and to stderr,
/// - `n`: how many lines it has written,
/// - `nap(seconds)`, `there(file)`, and `tell(file)`, which puts `n` there.
pub fn writer(program: &str) -> String {
    format!(
        r##"exec awk '
function line() {{ n++; return "#" n " " pad " " n }}
function lines(count) {{ while (count-- > 0) print line(); fflush() }}
function both(count,   text) {{
    while (count-- > 0) {{ text = line(); print text; print text > "/dev/stderr" }}
    fflush(); fflush("/dev/stderr")
}}
function there(file,   text) {{ return (getline text < file) >= 0 }}
function tell(file) {{ print n > file; close(file) }}
function nap(seconds) {{ system("exec sleep " seconds) }}
BEGIN {{ n = 0; while (length(pad) < {PAD}) pad = pad "."; {program} }}'"##
    )
}

/// Counts the pieces of output that sessions are told, of one or of several together.
#[derive(Debug, Clone)]
pub struct Progress(watch::Sender<u64>);

impl Progress {
    pub fn new() -> Self {
        Progress(watch::Sender::new(0))
    }

    pub fn count(&self) -> u64 {
        *self.0.borrow()
    }

    /// Waits until so many have come from now on.
    pub async fn more(&self, outputs: u64) {
        let enough = self.count() + outputs;
        let mut count = self.0.subscribe();
        super::soon(count.wait_for(|count| *count >= enough))
            .await
            .expect("`self` still counts");
    }

    fn add(&self) {
        self.0.send_modify(|count| *count += 1);
    }
}

/// A session that consumes every event as it comes, and checks it.
pub struct History {
    /// Until it ends.
    reporting: Option<(Checker, oneshot::Sender<Report>)>,
    all: Progress,
    told: watch::Sender<Told>,
}

/// How far a history has come.
#[derive(Debug, Default, Clone, Copy)]
struct Told {
    events: u64,
    /// The last whole line of stdout.
    line: u64,
}

/// What a history will tell its test.
pub struct Watch {
    told: watch::Receiver<Told>,
    ended: oneshot::Receiver<Report>,
}

impl History {
    /// Starts the session of a process that writes stamped lines. Nobody but its route holds it.
    pub fn start_session() -> (Session, Watch) {
        History::start(Checker::stamps(), &Progress::new())
    }

    /// Starts one that is checked otherwise, and counted together with others.
    pub fn start(checker: Checker, all: &Progress) -> (Session, Watch) {
        let link_events = checker.asked_for_link_events;
        let (sender, told) = watch::channel(Told::default());
        let (ended, ends) = oneshot::channel();
        let history = History {
            reporting: Some((checker, ended)),
            all: all.clone(),
            told: sender,
        };
        let watch = Watch { told, ended: ends };
        let session = Session::from(history.start().recipient()).link_events(link_events);
        (session, watch)
    }
}

impl Actor for History {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for History {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        if let Some((checker, _)) = &mut self.reporting {
            // The fault stays in the report.
            let _fault = checker.tell(Event::from(&event));
            self.told.send_modify(|told| {
                told.events += 1;
                told.line = checker.report.stdout.last;
            });
        }
        if let SessionEvent::Output(_) = event {
            self.all.add();
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        if let Some((checker, ended)) = self.reporting.take() {
            // The test may not care.
            let _gone = ended.send(checker.end());
        }
    }
}

impl Watch {
    /// Waits for the first event.
    pub async fn began(&mut self) {
        super::soon(self.told.wait_for(|told| told.events > 0))
            .await
            .expect("an event");
    }

    /// Waits for this line on stdout.
    pub async fn line(&mut self, line: u64) {
        super::soon(self.told.wait_for(|told| told.line >= line))
            .await
            .expect("a line");
    }

    /// Waits until the session is gone.
    pub async fn finished(self) -> Report {
        super::soon(self.ended)
            .await
            .expect("a history tells in the end")
    }
}
