//! A session that consumes as it likes, and checks what it is told against what the server did.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};

use actix::{Actor, ActorContext as _, AsyncContext as _, Context, Handler};
use execmux::{Closed, Failed, FailureReason, Gap, Output, Overflow, Permit, SessionEvent};
use tokio::{sync::Notify, time::Instant};

use super::super::faulty_server::{Event, FaultyServer, Process};

/// What keeping an output costs beside its bytes, as the documentation of the budget says.
const OVERHEAD: usize = 128;

/// The longest output of the server.
const LONGEST: usize = 2000;

/// How a session consumes.
#[derive(Debug, Clone, Copy)]
pub enum Mode {
    AtOnce,
    /// Each output is held for so long.
    Slowly(Duration),
    /// Only its credit is held for so long.
    InParts(Duration),
    /// So many are held, and all are dropped together, then or after a second.
    InHeaps(usize),
}

/// What a session was told, checked as it came.
#[derive(Debug)]
pub struct Told {
    pub process_id: String,
    pub overflow: Overflow,
    pub budget: usize,
    pub link_events: bool,
    pub events: u64,
    pub last_seq: u64,
    pub exited: Option<(u64, i32)>,
    pub lost: Vec<u64>,
    pub end: Option<End>,
    pub faults: Vec<String>,
    /// Bytes of credit that are held.
    held: usize,
    interrupted: bool,
    /// Whether it has waited for itself, as [`Overflow::Block`] does.
    pub has_blocked: bool,
    /// When it has consumed something, or stopped.
    pub consumed_at: Vec<Instant>,
    /// Whether its actor has stopped by itself.
    pub stopped: bool,
    /// Wakes whoever waits for the end.
    pub ended: Rc<Notify>,
}

/// The last event.
#[derive(Debug)]
pub enum End {
    Closed { complete: bool },
    Failed(FailureReason),
}

impl Told {
    pub fn new(process_id: &str, overflow: Overflow, budget: usize, link_events: bool) -> Self {
        Told {
            process_id: process_id.to_owned(),
            overflow,
            budget,
            link_events,
            events: 0,
            last_seq: 0,
            exited: None,
            lost: Vec::new(),
            end: None,
            faults: Vec::new(),
            held: 0,
            interrupted: false,
            has_blocked: false,
            consumed_at: Vec::new(),
            stopped: false,
            ended: Rc::default(),
        }
    }

    fn hear(&mut self, event: &SessionEvent, server: &FaultyServer) -> Result<(), String> {
        let is_of_link = matches!(
            event,
            SessionEvent::Interrupted(_) | SessionEvent::Resumed(_)
        );
        self.events += u64::from(!is_of_link);
        if let Some(end) = &self.end {
            return Err(format!("after the end ({end:?}) came {event:?}"));
        }
        let state = server.state();
        let Some(process) = state.processes.get(&self.process_id) else {
            return match event {
                SessionEvent::Failed(failed) => self.failed(failed, None),
                SessionEvent::Interrupted(_) => self.link(true),
                SessionEvent::Resumed(_) => self.link(false),
                _ => Err(format!("there is no such process: {event:?}")),
            };
        };
        match event {
            SessionEvent::Output(output) => self.output(output, process),
            SessionEvent::Gap(gap) => self.gap(gap, process),
            SessionEvent::Exited(exited) => {
                self.follow(exited.seq)?;
                if self.exited.is_some() {
                    return Err("exited twice".into());
                }
                if !process.exited || exited.exit_code != process.exit_code {
                    return Err(format!(
                        "{exited:?}, and not {:?} {}",
                        process.exited, process.exit_code
                    ));
                }
                self.exited = Some((exited.seq, exited.exit_code));
                Ok(())
            }
            SessionEvent::Closed(closed) => self.closed(closed, process),
            SessionEvent::Failed(failed) => self.failed(failed, Some(process)),
            SessionEvent::Interrupted(_) => self.link(true),
            SessionEvent::Resumed(_) => self.link(false),
            other => Err(format!("{other:?}")),
        }
    }

    fn follow(&mut self, seq: u64) -> Result<(), String> {
        if seq != self.last_seq + 1 {
            return Err(format!("{seq} after {}", self.last_seq));
        }
        self.last_seq = seq;
        Ok(())
    }

    fn output(&mut self, output: &Output, process: &Process) -> Result<(), String> {
        self.follow(output.seq)?;
        let done = process.events.get(output.seq as usize - 1);
        let Some(&Event::Output { stream, length }) = done else {
            return Err(format!("{} is no output but {done:?}", output.seq));
        };
        let same = format!("{:?}", output.stream).to_lowercase() == stream
            && output.chunk == Process::content(process.id(), output.seq, length);
        if !same {
            return Err(format!("{} is not as it was written", output.seq));
        }
        self.held += output.chunk.len() + OVERHEAD;
        // One always fits; so does one that came early, and all of those with `Block`.
        let beyond = if self.overflow == Overflow::Block {
            20
        } else {
            2
        };
        if self.held > self.budget + beyond * (LONGEST + OVERHEAD) {
            return Err(format!("{} bytes of {}", self.held, self.budget));
        }
        self.has_blocked |= self.held >= self.budget;
        Ok(())
    }

    /// What is called lost must not be retained, also where it is the place of the exit.
    fn gap(&mut self, gap: &Gap, process: &Process) -> Result<(), String> {
        if gap.after_seq != self.last_seq || gap.before_seq < gap.after_seq + 2 {
            return Err(format!("{gap:?} after {}", self.last_seq));
        }
        for seq in gap.after_seq + 1..gap.before_seq {
            if seq > process.evicted_to && !process.is_forgotten {
                return Err(format!(
                    "{gap:?}, but only up to {} is lost",
                    process.evicted_to
                ));
            }
            self.lost.push(seq);
        }
        self.last_seq = gap.before_seq - 1;
        Ok(())
    }

    fn closed(&mut self, closed: &Closed, process: &Process) -> Result<(), String> {
        self.end = Some(End::Closed {
            complete: closed.complete,
        });
        if process.is_forgotten && !closed.complete {
            return match closed.seq <= process.events.len() as u64 + 1 {
                true => Ok(()),
                false => Err(format!("{closed:?} of a forgotten process")),
            };
        }
        self.follow(closed.seq)?;
        if process.events.get(closed.seq as usize - 1) != Some(&Event::Closed) {
            return Err(format!("{closed:?} is not where the process closed"));
        }
        if closed.exit_code != Some(process.exit_code) {
            return Err(format!("{closed:?}, but it was {}", process.exit_code));
        }
        if closed.complete != self.lost.is_empty() {
            return Err(format!("{closed:?} after the loss of {:?}", self.lost));
        }
        let Some((told_at, _)) = self.exited else {
            return Err("closed without an exit".into());
        };
        let true_at = process
            .events
            .iter()
            .position(|event| *event == Event::Exited);
        let true_at = true_at.map_or(0, |at| at as u64 + 1);
        // An exit whose push is lost is told by a flag only. Its place is among those that neither pushes nor the read
        // fill, and where output has left the server's window there are several: the answer is the same whichever of them
        // was the exit's (EXECMUX_SEED=700001821: pushes 10 and 12 came, the read begins with 12, and both 9 and 11 are
        // missing). The last of them is taken. So it may be told in the place of an output that the server has dropped,
        // if its own place is told as lost.
        let is_evicted = told_at <= process.evicted_to
            && matches!(
                process.events.get(told_at as usize - 1),
                Some(Event::Output { .. })
            );
        if told_at != true_at && !(self.lost.contains(&true_at) && is_evicted) {
            return Err(format!("exited told at {told_at}, was at {true_at}"));
        }
        Ok(())
    }

    fn failed(&mut self, failed: &Failed, process: Option<&Process>) -> Result<(), String> {
        self.end = Some(End::Failed(failed.reason.clone()));
        if failed.last_seq != self.last_seq {
            return Err(format!("{failed:?} after {}", self.last_seq));
        }
        let may_be = match &failed.reason {
            // Those two are checked at the end of the run.
            FailureReason::Disconnected(_) | FailureReason::StartUnanswered => true,
            FailureReason::Overflow { .. } => self.overflow == Overflow::Fail,
            FailureReason::Forgotten => process.is_some_and(|process| process.is_forgotten),
            _ => false,
        };
        if may_be {
            Ok(())
        } else {
            Err(format!("{failed:?}"))
        }
    }

    fn link(&mut self, interrupted: bool) -> Result<(), String> {
        if !self.link_events || self.interrupted == interrupted {
            return Err(format!(
                "the link was told to be interrupted: {interrupted}"
            ));
        }
        self.interrupted = interrupted;
        Ok(())
    }
}

/// The actor of a session.
pub struct Consumer {
    pub told: Rc<RefCell<Told>>,
    pub server: Rc<FaultyServer>,
    pub mode: Mode,
    /// After so many events it stops.
    pub stops_after: u64,
    held: VecDeque<Held>,
}

enum Held {
    Output(Output),
    Credit(Permit),
}

impl Consumer {
    pub fn new(
        told: Rc<RefCell<Told>>,
        server: Rc<FaultyServer>,
        mode: Mode,
        stops_after: u64,
    ) -> Self {
        Consumer {
            told,
            server,
            mode,
            stops_after,
            held: VecDeque::new(),
        }
    }

    fn release(&mut self, count: usize) {
        for held in self.held.drain(..count.min(self.held.len())) {
            let bytes = match &held {
                Held::Output(output) => output.chunk.len() + OVERHEAD,
                Held::Credit(permit) => permit.bytes(),
            };
            // Before the credit returns, as what it wakes may come at once.
            let mut told = self.told.borrow_mut();
            told.held -= bytes;
            told.consumed_at.push(Instant::now());
            drop(told);
            drop(held);
        }
    }

    fn hold(&mut self, held: Held, context: &mut Context<Self>) {
        self.held.push_back(held);
        match self.mode {
            Mode::AtOnce => self.release(1),
            Mode::Slowly(time) | Mode::InParts(time) => {
                context.run_later(time, |consumer, _| consumer.release(1));
            }
            Mode::InHeaps(count) if self.held.len() >= count => self.release(count),
            Mode::InHeaps(count) => {
                if self.held.len() == 1 {
                    let second = Duration::from_secs(1);
                    context.run_later(second, move |consumer, _| consumer.release(count));
                }
            }
        }
    }
}

impl Actor for Consumer {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Consumer {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, context: &mut Self::Context) {
        {
            let mut told = self.told.borrow_mut();
            if let Err(fault) = told.hear(&event, &self.server) {
                let fault = format!("session of {}: {fault}", told.process_id);
                told.faults.push(fault);
            }
            if told.end.is_some() {
                told.ended.notify_one();
            }
            if told.end.is_none() && told.events >= self.stops_after {
                told.stopped = true;
                told.consumed_at.push(Instant::now());
                told.ended.notify_one();
                context.stop();
            }
        }
        if let SessionEvent::Output(output) = event {
            let held = match self.mode {
                Mode::InParts(_) => {
                    let (_, permit) = output.into_parts();
                    Held::Credit(permit)
                }
                _ => Held::Output(output),
            };
            self.hold(held, context);
        }
    }
}
