//! Processes that have lost their sessions: they are terminated, or let go if they are held back.

use actix::{AsyncContext as _, Context, Handler, Message, WeakAddr};
use log::debug;

use super::Router;
use crate::{
    connection::{Call, Dispatch, ReplySlot},
    error::{CallError, Causes},
    protocol::{ProcessId, ReleaseOutput, Repeat, Terminate},
};

/// A process without a session, and what the server is asked to do with it.
pub(super) struct Orphan {
    process_id: ProcessId,
    fate: Fate,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It is killed.
    Terminated,
    /// It goes on, and nobody consumes its output.
    Released,
}

/// The server has answered, or never will.
struct Settled {
    orphan: Orphan,
    answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The server has answered.
    Given,
    /// The server has to be asked again.
    Open,
    /// The connection is gone for good.
    Lost,
}

impl Message for Settled {
    type Result = ();
}

impl Router {
    /// Ends a process that has no session any more.
    pub(super) fn terminate(&mut self, process_id: ProcessId, context: &mut Context<Self>) {
        let fate = Fate::Terminated;
        self.settle(Orphan { process_id, fate }, context);
    }

    /// Lets a process go on that is held back for a session that it has no more.
    pub(super) fn release(&mut self, process_id: ProcessId, context: &mut Context<Self>) {
        let fate = Fate::Released;
        self.settle(Orphan { process_id, fate }, context);
    }

    pub(super) fn settle(&mut self, orphan: Orphan, context: &mut Context<Self>) {
        let Orphan { process_id, fate } = &orphan;
        debug!(process_id:%, fate:?; "a process has no session");
        let (process_id, fate) = (process_id.clone(), *fate);
        // What a shutdown has to wait for.
        match fate {
            Fate::Released => self.errands += 1,
            Fate::Terminated => {
                self.condemned.insert(process_id.clone());
            }
        }
        let slot = Box::new(SettleSlot {
            router: context.address().downgrade(),
            orphan,
        });
        let repeat = Repeat::Always;
        match fate {
            Fate::Terminated => self.connection.do_send(Dispatch {
                call: Call::new(Terminate::new(process_id)),
                repeat,
                slot,
            }),
            Fate::Released => self.connection.do_send(Dispatch {
                call: Call::new(ReleaseOutput { process_id }),
                repeat,
                slot,
            }),
        }
    }
}

/// Where the answer goes.
struct SettleSlot {
    router: WeakAddr<Router>,
    orphan: Orphan,
}

impl ReplySlot for SettleSlot {
    fn resolve(self: Box<Self>, outcome: Result<&str, CallError>) {
        let SettleSlot { router, orphan } = *self;
        let fate = orphan.fate;
        let answer = match outcome {
            // It may not have been sent, or the server may not have got it.
            Err(
                CallError::Overloaded { .. }
                | CallError::DeadlineExceeded { .. }
                | CallError::OutcomeUnknown { .. },
            ) => Answer::Open,
            Err(CallError::Disconnected { .. }) => Answer::Lost,
            Err(error) => {
                debug!(process_id:% = orphan.process_id, fate:?, error:% = Causes(&error); "not done");
                Answer::Given
            }
            Ok(_) => Answer::Given,
        };
        if let Some(router) = router.upgrade() {
            router.do_send(Settled { orphan, answer });
        }
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

impl Handler<Settled> for Router {
    type Result = ();

    fn handle(&mut self, settled: Settled, context: &mut Self::Context) {
        let Settled { orphan, answer } = settled;
        match (orphan.fate, answer) {
            (Fate::Released, _) => self.errands -= 1,
            (Fate::Terminated, Answer::Given) => {
                self.condemned.remove(&orphan.process_id);
            }
            (Fate::Terminated, Answer::Open | Answer::Lost) => {}
        }
        if answer == Answer::Open {
            // Tried again with the next check of the sessions.
            self.orphans.push(orphan);
            self.check_sessions(context);
        }
        self.close_if_drained();
    }
}
