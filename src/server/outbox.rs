//! What waits for the socket of one connection, and which connection a session is attached to.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::liveness::Life;

/// With more than this, the processes of the session are not read.
const FULL: usize = 4 << 20;
/// With more than this, the requests of the client are not read either: it does not take its answers.
const OVERFLOWING: usize = 64 << 20;

/// Messages for a client, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    /// There is something to send, or never will be.
    filled: Notify,
    /// There is room again, or nobody wants it.
    drained: Notify,
    /// Another connection has the session.
    displaced: Notify,
    /// Whether the client is still there.
    pub(super) life: Life,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<String>,
    bytes: usize,
    is_closed: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message. It vanishes when the connection is gone.
    pub(super) fn push(&self, message: String) {
        let mut state = self.lock();
        if state.is_closed {
            return;
        }
        state.bytes += message.len();
        state.messages.push_back(message);
        drop(state);
        self.filled.notify_one();
    }

    /// Waits for the next message; `None` when the connection is gone.
    pub(super) async fn next(&self) -> Option<String> {
        loop {
            {
                let mut state = self.lock();
                if state.is_closed {
                    return None;
                }
                if let Some(message) = state.messages.pop_front() {
                    let before = state.bytes;
                    state.bytes -= message.len();
                    let passes = |limit: usize| before > limit && state.bytes <= limit;
                    let is_drained = passes(FULL) || passes(OVERFLOWING);
                    drop(state);
                    if is_drained {
                        self.drained.notify_waiters();
                    }
                    return Some(message);
                }
            }
            self.filled.notified().await;
        }
    }

    /// The connection is gone.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        *state = State {
            is_closed: true,
            ..State::default()
        };
        drop(state);
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    /// Ends the connection, as another one has its session.
    fn displace(&self) {
        self.close();
        self.displaced.notify_one();
    }

    /// Waits until another connection has the session. One task does.
    pub(super) async fn displaced(&self) {
        self.displaced.notified().await;
    }

    /// Waits until the connection is gone.
    pub(super) async fn closed(&self) {
        loop {
            // Before the look, so that what happens in between is not missed.
            let drained = self.drained.notified();
            if self.lock().is_closed {
                return;
            }
            drained.await;
        }
    }

    async fn wait_below(&self, limit: usize) {
        loop {
            // Before the look, so that what happens in between is not missed.
            let drained = self.drained.notified();
            if self.lock().bytes <= limit {
                return;
            }
            drained.await;
        }
    }

    /// Waits until more requests may be read.
    pub(super) async fn is_bearable(&self) {
        self.wait_below(OVERFLOWING).await;
    }
}

/// The connection that a session is attached to, if any. Shared by the session with its processes.
#[derive(Debug, Default)]
pub(super) struct Attachment(RefCell<Option<Arc<Outbox>>>);

impl Attachment {
    pub(super) fn attach(&self, outbox: Arc<Outbox>) {
        *self.0.borrow_mut() = Some(outbox);
    }

    /// Attaches `outbox`, unless another one than `instead_of` is attached: that one is returned.
    pub(super) fn take_over(
        &self,
        outbox: Arc<Outbox>,
        instead_of: Option<&Arc<Outbox>>,
    ) -> Result<(), Arc<Outbox>> {
        let mut attached = self.0.borrow_mut();
        if let Some(present) = &*attached {
            if !instead_of.is_some_and(|expected| Arc::ptr_eq(expected, present)) {
                return Err(present.clone());
            }
            present.displace();
        }
        *attached = Some(outbox);
        Ok(())
    }

    /// Lets go of this connection. Returns whether it was attached.
    pub(super) fn detach(&self, outbox: &Arc<Outbox>) -> bool {
        let mut attached = self.0.borrow_mut();
        let is_attached = attached
            .as_ref()
            .is_some_and(|attached| Arc::ptr_eq(attached, outbox));
        if is_attached {
            *attached = None;
        }
        is_attached
    }

    /// Ends the connection, if there is one.
    pub(super) fn disconnect(&self) {
        if let Some(outbox) = self.0.borrow_mut().take() {
            outbox.close();
        }
    }

    pub(super) fn is_attached(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Tells the client, if it is there.
    pub(super) fn notify(&self, message: impl FnOnce() -> String) {
        if let Some(outbox) = &*self.0.borrow() {
            outbox.push(message());
        }
    }

    /// Waits until the client takes more, or is gone.
    pub(super) async fn has_room(&self) {
        let outbox = self.0.borrow().clone();
        if let Some(outbox) = outbox {
            outbox.wait_below(FULL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    #[test]
    fn p4_a_client_that_does_not_read_is_waited_for_until_it_is_gone() {
        let attachment = Attachment::default();
        let outbox = Arc::<Outbox>::default();
        attachment.attach(outbox.clone());
        attachment.notify(|| "x".repeat(FULL + 1));
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting = pin!(attachment.has_room());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let mut next = pin!(outbox.next());
        assert!(next.as_mut().poll(&mut context).is_ready());
        assert!(waiting.as_mut().poll(&mut context).is_ready());

        attachment.notify(|| "x".repeat(FULL + 1));
        let mut waiting = pin!(attachment.has_room());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert!(attachment.detach(&outbox) && !attachment.detach(&outbox));
        outbox.close();
        assert!(waiting.as_mut().poll(&mut context).is_ready());
        attachment.notify(|| unreachable!("nobody is there"));
    }
}
