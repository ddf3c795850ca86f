//! What waits for a session that wants nothing to be lost: the socket is read on when it is taken.

use std::{cell::RefCell, rc::Rc};

use actix::{
    Context,
    dev::{MessageResponse, OneshotSender},
};

use super::Router;
use crate::{connection::ConnectionEvent, protocol::Notifications};

/// Notifications that have to wait, and who waits until they are taken.
#[derive(Debug)]
pub(super) struct Parked {
    notifications: Notifications,
    taken: TakenSender,
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
