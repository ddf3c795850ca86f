//! Sessions for processes that others start: how they come and go.

use actix::{AsyncContext as _, Context, Handler, Message, MessageResult};

use super::{
    Router, State, budget::Budget, consumption::CreditReturned, routes::RouteKey, session::Session,
};
use crate::{
    error::{DisconnectReason, RegisterError},
    protocol::ProcessId,
};

/// Registers a session for a process that something else starts, or has started.
///
/// Events that came before are not told again: say with [`after_seq`](Register::after_seq) which was
/// the last, or the session waits for the first in vain.
///
/// # Errors
///
/// See [`RegisterError`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Register {
    /// The process.
    pub process_id: ProcessId,
    /// Who receives its events.
    pub session: Session,
    /// The `seq` of the last event that the session does not need to be told, 0 for none.
    pub after_seq: u64,
}

impl Register {
    /// Registers `session` for all events of `process_id`.
    pub fn new(process_id: impl Into<ProcessId>, session: impl Into<Session>) -> Self {
        Register {
            process_id: process_id.into(),
            session: session.into(),
            after_seq: 0,
        }
    }

    /// Registers it for the events after this one, say what [`Unregister`] answered.
    #[must_use]
    pub fn after_seq(mut self, seq: u64) -> Self {
        self.after_seq = seq;
        self
    }
}

impl Message for Register {
    type Result = Result<(), RegisterError>;
}

/// Takes a session off its process, which goes on running, and is not [held back](Session::hold_back) any
/// more. The session hears nothing more, not even a last event. Answers with the `seq` of the last event that
/// it was told, 0 for none, or with `None` if there was no session.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unregister {
    /// The process.
    pub process_id: ProcessId,
}

impl Unregister {
    /// Takes the session off `process_id`.
    pub fn new(process_id: impl Into<ProcessId>) -> Self {
        Unregister {
            process_id: process_id.into(),
        }
    }
}

impl Message for Unregister {
    type Result = Option<u64>;
}

impl Router {
    pub(super) fn register(
        &mut self,
        register: Register,
        context: &mut Context<Self>,
    ) -> Result<RouteKey, RegisterError> {
        let Register {
            process_id,
            session,
            after_seq,
        } = register;
        match &self.state {
            State::Open { shutdowns, .. } if shutdowns.is_empty() => {}
            State::Open { .. } => {
                return Err(RegisterError::Disconnected(DisconnectReason::Closed));
            }
            State::Closed(reason) => return Err(RegisterError::Disconnected(reason.clone())),
        }
        let router = context.address().downgrade();
        let (pool, limit) = (self.pool.clone(), self.session_budget);
        let id = process_id.clone();
        let budget = move |session: &Session, key| {
            Budget::new(session.budget.unwrap_or(limit), pool, move || {
                if let Some(router) = router.upgrade() {
                    let process_id = id.clone();
                    router.do_send(CreditReturned { process_id, key });
                }
            })
        };
        session.watch(&self.stop_notice);
        let stops_unnoticed = session.stops_unnoticed();
        let key = self
            .routes
            .insert(process_id.clone(), session, after_seq, budget)?;
        if (after_seq > 0 || self.turns.is_down())
            && let Some(route) = self.routes.get_mut(process_id.as_str())
        {
            // What it is to be told may have been pushed before.
            route.delivery.interrupted();
        }
        if stops_unnoticed {
            self.check_sessions(context);
        }
        Ok(key)
    }
}

impl Handler<Register> for Router {
    type Result = Result<(), RegisterError>;

    fn handle(&mut self, register: Register, context: &mut Self::Context) -> Self::Result {
        let process_id = register.process_id.clone();
        self.register(register, context)?;
        self.queue_read(&process_id);
        self.read_next(context);
        Ok(())
    }
}

impl Handler<Unregister> for Router {
    type Result = MessageResult<Unregister>;

    fn handle(&mut self, unregister: Unregister, context: &mut Self::Context) -> Self::Result {
        let Unregister { process_id } = unregister;
        let route = self.detach(&process_id, context);
        self.unpark(context);
        MessageResult(route.map(|route| {
            // Nobody will consume what it writes.
            if route.delivery.is_held_back() {
                self.release(process_id, context);
            }
            route.delivery.last_seq()
        }))
    }
}
