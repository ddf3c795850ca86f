//! From one link to the next: what becomes of calls when a link is lost, and how another is dialled.

use std::{cell::RefCell, rc::Rc};

use actix::{AsyncContext as _, Context, Handler, Message, WeakAddr};
use log::debug;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    Connection, ConnectionEvent, OpenLink,
    dial::server_name,
    lifecycle::Next,
    link::{Dialler, Link},
    pending::Entry,
};
use crate::{
    error::{CallError, Causes, ConnectError, DisconnectReason},
    protocol::SessionId,
    task::Task,
};

/// What it takes to get another link to the same session of the server.
pub(super) struct Resume {
    pub(super) dialler: Dialler,
    pub(super) session: SessionId,
}

pub(super) struct Attempt {
    /// Filled when the task ends. A link cannot be sent as a message, as it stays on its thread.
    outcome: Rc<RefCell<Option<Outcome>>>,
    _dialling: Task,
}

/// What is needed for the next attempt, and what this one has led to.
type Outcome = (Resume, Result<Link, ConnectError>);

/// Reports, when it is dropped, that an attempt to resume has ended.
struct Attempting(WeakAddr<Connection>);

impl Drop for Attempting {
    fn drop(&mut self) {
        if let Some(connection) = self.0.upgrade() {
            connection.do_send(Attempted);
        }
    }
}

/// An attempt to resume has ended.
struct Attempted;

impl Message for Attempted {
    type Result = ();
}

impl Connection {
    /// The link is lost: either another is sought, or all is over.
    pub(super) fn lose(&mut self, reason: DisconnectReason, context: &Context<Self>) {
        let was_useful = self
            .link
            .as_ref()
            .is_some_and(|link| link.hearing.last.get().is_some());
        let next = self
            .lifecycle
            .lost(reason.clone(), was_useful, Instant::now());
        if let Next::Dial { .. } = next {
            debug!(reason:% = Causes(&reason); "the link is lost");
            self.discard_link();
            self.probed = None;
            // First the router, so that it does not make calls for what it is about to miss.
            if let Some(events) = self.events.upgrade() {
                events.do_send(ConnectionEvent::Interrupted);
            }
            self.resolve_calls(&reason);
            self.announce();
        }
        self.go_on(next, context);
    }

    pub(super) fn discard_link(&mut self) {
        if let Some(OpenLink {
            writer: Some(writer),
            ..
        }) = self.link.take()
        {
            writer.discard();
        }
    }

    /// Decides what becomes of the calls whose answers are lost with the link.
    pub(super) fn resolve_calls(&mut self, reason: &DisconnectReason) {
        let unsent = self.outgoing.queue().ids();
        let (lost, again) = self
            .calls
            .pending
            .borrow_mut()
            .resolve_lost(reason, |id| unsent.contains(&id));
        debug!(lost = lost.len(), again = again.len(), unsent = unsent.len(); "calls");
        self.outgoing.queue().link_lost(again);
        for (_, Entry { method, slot, .. }) in lost {
            let reason = reason.clone();
            slot.resolve(Err(CallError::OutcomeUnknown { method, reason }));
        }
    }

    pub(super) fn go_on(&mut self, next: Next, context: &Context<Self>) {
        match next {
            Next::Nothing => {}
            Next::Dial { at, until } => self.dial(at, until, context),
            Next::Close(reason) => self.terminate(reason),
        }
    }

    /// Tries to get another link.
    pub(super) fn dial(&mut self, at: Instant, until: Instant, context: &Context<Self>) {
        let Some(mut resume) = self.resume.take() else {
            // An attempt is under way already.
            return;
        };
        let outcome = Rc::new(RefCell::new(None));
        let (filled, config) = (outcome.clone(), self.config.clone());
        // Also if what the application dials with should panic.
        let attempting = Attempting(context.address().downgrade());
        let dialling = Task::spawn(async move {
            sleep_until(at).await;
            let attempt = Link::resume(&mut resume.dialler, &resume.session, &config);
            let attempted = timeout_at(until, attempt).await.unwrap_or_else(|_| {
                Err(ConnectError::Timeout {
                    server: server_name(&config.url),
                    after: until - at,
                })
            });
            filled.replace(Some((resume, attempted)));
            drop(attempting);
        });
        self.attempt = Some(Attempt {
            outcome,
            _dialling: dialling,
        });
    }
}

impl Handler<Attempted> for Connection {
    type Result = ();

    fn handle(&mut self, _: Attempted, context: &mut Self::Context) {
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        let attempted = match attempt.outcome.take() {
            Some((resume, attempted)) => {
                self.resume = Some(resume);
                attempted
            }
            None => Err(ConnectError::NotExecServer {
                server: server_name(&self.config.url),
                problem: "dialling panicked".to_owned(),
            }),
        };
        match attempted {
            Ok(link) => {
                if !self.lifecycle.opened() {
                    return;
                }
                self.resumes += 1;
                // First the router, so that what the new link brings comes after it.
                if let Some(events) = self.events.upgrade() {
                    events.do_send(ConnectionEvent::Resumed);
                }
                self.attach(link, context);
                self.announce();
            }
            Err(error) => {
                debug!(error:% = Causes(&error); "not resumed yet");
                let next = self.lifecycle.attempt_failed(error, Instant::now());
                if let Next::Dial { .. } = next {
                    self.announce();
                }
                self.go_on(next, context);
            }
        }
    }
}
