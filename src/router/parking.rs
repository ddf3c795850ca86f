//! What waits for a session that wants nothing to be lost: the socket is read on when it is taken.

use std::{cell::RefCell, mem, rc::Rc};

use actix::{
    Context,
    dev::{MessageResponse, OneshotSender},
};

use super::{Router, healing::ReadEnded, start::StartEnded};
use crate::{
    connection::ConnectionEvent,
    protocol::{Notifications, ProcessId},
};

/// Notifications that have to wait, and who waits until they are taken.
#[derive(Debug)]
pub(super) struct Parked {
    notifications: Notifications,
    taken: TakenSender,
}

/// An answer that changes what becomes of the events of a process, and waits for those that came before it.
pub(super) enum Following {
    Read(ReadEnded),
    Start(StartEnded),
}

impl Following {
    fn process_id(&self) -> &ProcessId {
        match self {
            Following::Read(ended) => &ended.process_id,
            Following::Start(ended) => &ended.process_id,
        }
    }
}

impl Router {
    /// Takes an answer into account, or, if events of its process wait, when all that waits is taken.
    pub(super) fn follow(&mut self, answer: Following, context: &mut Context<Self>) {
        let parked = self.parked.as_ref();
        if parked.is_some_and(|parked| parked.has_events_of(answer.process_id())) {
            self.following.push_back(answer);
            return;
        }
        match answer {
            Following::Read(ended) => self.end_read(ended, context),
            Following::Start(ended) => self.end_start(ended, context),
        }
    }

    /// Takes into account what had to wait for events, when these do not any more.
    pub(super) fn follow_up(&mut self, context: &mut Context<Self>) {
        for answer in mem::take(&mut self.following) {
            self.follow(answer, context);
        }
    }
}

/// Tells the task that reads that its batch is taken.
#[derive(Debug, Clone, Default)]
pub(crate) struct TakenSender(Rc<RefCell<Option<OneshotSender<Notifications>>>>);

/// The answer to a batch of notifications. actix hands over its reply sender only after the handler has
/// returned.
#[derive(Debug)]
pub(crate) enum Taken {
    Now(Notifications),
    Later(TakenSender),
}

impl Parked {
    pub(super) fn new(notifications: Notifications) -> Self {
        Parked {
            notifications,
            taken: TakenSender::default(),
        }
    }

    pub(super) fn with(self, taken: TakenSender) -> Self {
        Parked { taken, ..self }
    }

    pub(super) fn taken(&self) -> TakenSender {
        self.taken.clone()
    }

    /// Whether events of a process are among them.
    fn has_events_of(&self, process_id: &ProcessId) -> bool {
        let process_id = process_id.as_str().as_bytes();
        let mut waiting = self.notifications.process_ids();
        waiting.any(|waiting| waiting == process_id)
    }

    pub(super) fn into_parts(self) -> (Notifications, TakenSender) {
        (self.notifications, self.taken)
    }
}

impl TakenSender {
    pub(super) fn send(&self, notifications: Notifications) {
        if let Some(sender) = self.0.borrow_mut().take() {
            // The task that reads ends with its connection.
            let _gone = sender.send(notifications);
        }
    }
}

impl MessageResponse<Router, ConnectionEvent> for Taken {
    fn handle(self, _: &mut Context<Router>, sender: Option<OneshotSender<Notifications>>) {
        match (self, sender) {
            (Taken::Later(later), sender) => *later.0.borrow_mut() = sender,
            (Taken::Now(notifications), Some(sender)) => {
                // The task that reads ends with its connection.
                let _gone = sender.send(notifications);
            }
            (Taken::Now(_), None) => {}
        }
    }
}
