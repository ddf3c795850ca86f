//! A call as its callers see it, and the slot in which it awaits its answer.

use std::{
    any::Any,
    fmt,
    panic::{self, AssertUnwindSafe, UnwindSafe},
    rc::Rc,
    time::Duration,
};

use actix::{
    Context, Message,
    dev::{MessageResponse, OneshotSender},
};
use log::debug;
use tokio::time::Instant;

use super::{
    Connection,
    calls::Calls,
    pending::{Entry, ReplySlot, RequestId},
    queue::Request,
};
use crate::{
    error::{CallError, JsonError},
    protocol::{FileContent, Method, Repeat, jsonrpc},
};

/// Calls a remote method: one request, one answer.
///
/// # Errors
///
/// See [`CallError`]. Every call ends: with an answer, a rejection, at its deadline, or with the
/// connection.
///
/// # Cancel safety
///
/// A call that is dropped before the connection has handled it is not sent. After that the server
/// carries it out, and its answer is ignored; but a start that still waits for its turn
/// ([`Config::max_starts_in_flight`](crate::Config::max_starts_in_flight)) is mostly not sent.
#[derive(Debug, Clone)]
pub struct Call<M> {
    pub(super) method: M,
    pub(super) timeout: Option<Duration>,
    /// Whether it may be made where as many calls wait for an answer as may.
    pub(super) exceeds_cap: bool,
}

impl<M: Method> Call<M> {
    /// Calls `method` with the connection's [`call_timeout`](crate::Config::call_timeout).
    pub fn new(method: M) -> Self {
        Call {
            method,
            timeout: None,
            exceeds_cap: false,
        }
    }

    /// Waits for the answer no longer than this, counted from when the connection handles the call.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Has it made however many calls of the application wait for an answer: for the few of the router's own, without which
    /// sessions would miss output while the application is busy.
    pub(crate) fn beyond_cap(mut self) -> Self {
        self.exceeds_cap = true;
        self
    }
}

impl<M: Method> From<M> for Call<M> {
    fn from(method: M) -> Self {
        Call::new(method)
    }
}

impl<M: Method> Message for Call<M> {
    type Result = Result<M::Response, CallError>;
}

/// A call whose answer goes to a slot of the sender's.
pub(crate) struct Dispatch<M> {
    pub(crate) call: Call<M>,
    /// What is done when the answer is lost with the link, whatever the method says.
    pub(crate) repeat: Repeat,
    pub(crate) slot: Box<dyn ReplySlot + Send>,
}

impl<M: Method> Message for Dispatch<M> {
    type Result = ();
}

/// The answer of `Handler<Call<M>>`: puts actix's own reply sender into the table, which saves a
/// channel and a task for each call.
pub struct PendingCall(pub(super) Result<Submitted, CallError>);

/// A request on its way, whose answer wants a slot.
pub(super) struct Submitted {
    pub(super) id: RequestId,
    pub(super) now: Instant,
    pub(super) timeout: Duration,
    pub(super) repeat: Option<Request>,
    pub(super) calls: Rc<Calls>,
}

impl Submitted {
    pub(super) fn await_in<M: Method>(self, slot: Box<dyn ReplySlot>) {
        let entry = Entry {
            method: M::NAME,
            timeout: self.timeout,
            slot,
            repeat: self.repeat,
            repeats: 0,
        };
        let mut pending = self.calls.pending.borrow_mut();
        pending.insert(self.id, self.now, entry);
    }
}

impl fmt::Debug for PendingCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PendingCall")
            .field(&self.0.as_ref().map(|submitted| submitted.id))
            .finish()
    }
}

impl<M: Method> MessageResponse<Connection, Call<M>> for PendingCall {
    fn handle(
        self,
        _: &mut Context<Connection>,
        sender: Option<OneshotSender<Result<M::Response, CallError>>>,
    ) {
        match self.0 {
            Ok(submitted) => submitted.await_in::<M>(Box::new(CallSlot::<M>(sender))),
            Err(error) => {
                if let Some(sender) = sender {
                    reply(sender, Err(error));
                }
            }
        }
    }
}

/// Where the answer to a `Call<M>` goes; nowhere, if it was sent without waiting for one.
struct CallSlot<M: Method>(Option<OneshotSender<Result<M::Response, CallError>>>);

impl<M: Method> ReplySlot for CallSlot<M> {
    fn resolve(self: Box<Self>, outcome: Result<&str, CallError>) {
        if let Some(sender) = self.0
            && !sender.is_closed()
        {
            reply(sender, outcome.and_then(|json| decode_response::<M>(json)));
        }
    }

    fn resolve_at_once(&mut self, json: &str) -> bool {
        // Nobody decodes what nobody waits for: then it is not known where it ends.
        let waits = |sender: &mut OneshotSender<_>| !sender.is_closed();
        let Some(sender) = self.0.take_if(waits) else {
            return false;
        };
        match decode_at_once::<M>(json) {
            Some(outcome) => {
                reply(sender, outcome);
                true
            }
            None => {
                self.0 = Some(sender);
                false
            }
        }
    }

    fn resolve_file(self: Box<Self>, file: FileContent) {
        if self.is_abandoned() {
            return;
        }
        let mut file = Some(file);
        let same = (&mut file as &mut dyn Any).downcast_mut::<Option<M::Response>>();
        let response = same.and_then(Option::take);
        match (response, file) {
            (Some(response), _) => {
                if let Some(sender) = self.0 {
                    reply(sender, Ok(response));
                }
            }
            // A method of the application's own, which has another type for it.
            (None, Some(file)) => self.resolve(Ok(&file.to_json())),
            (None, None) => {}
        }
    }

    fn is_abandoned(&self) -> bool {
        self.0.as_ref().is_none_or(OneshotSender::is_closed)
    }
}

/// Tells a caller how its call has ended. A caller that has gone does not need it.
///
/// That runs the application's code: who waits is woken, and what nobody wants is dropped. What panics there harms
/// nobody else.
pub(crate) fn reply<T>(sender: OneshotSender<T>, outcome: T) {
    let send = AssertUnwindSafe(|| drop(sender.send(outcome)));
    if panic::catch_unwind(send).is_err() {
        debug!("who waits for an answer panics when it is told");
    }
}

/// Decodes the result of a call of `M`.
pub(crate) fn decode_response<M: Method>(json: &str) -> Result<M::Response, CallError> {
    let source = match catch_panic(|| serde_json::from_str(json)) {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(error)) => JsonError::from(error),
        Err(error) => error,
    };
    Err(invalid::<M>(source))
}

/// Decodes the result of a call of `M` that `json` begins with, if only the end of the answer is behind it.
fn decode_at_once<M: Method>(json: &str) -> Option<Result<M::Response, CallError>> {
    match catch_panic(|| jsonrpc::plain_result(json)) {
        Ok(response) => response.map(Ok),
        Err(error) => Some(Err(invalid::<M>(error))),
    }
}

/// Decoding may be the application's code: if it panics, this call fails, and not the task that reads for all.
fn catch_panic<T>(decode: impl FnOnce() -> T + UnwindSafe) -> Result<T, JsonError> {
    panic::catch_unwind(decode).map_err(|_| JsonError::new("the type of the response panics"))
}

fn invalid<M: Method>(source: JsonError) -> CallError {
    CallError::InvalidResponse {
        method: M::NAME,
        source,
    }
}
