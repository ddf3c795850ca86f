//! What waits for the socket of one connection, and which connection a session is attached to.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::{
    envelope::RpcError,
    limits::{Held, Limits, Memory, OverLimit},
    liveness::Life,
};

/// With more than this, the processes of the session are not read.
const FULL: usize = 4 << 20;

/// Room for answers is counted in units of so many bytes.
const UNIT: usize = 1 << 10;

/// What a queued message counts for beside its text.
const OVERHEAD: usize = 128;

/// Messages for a client, in order.
#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<State>,
    /// With more than this, the requests of the client are not read either: it does not take its answers.
    max_queued_bytes: usize,
    /// Room for the answers that are large.
    answers: Arc<Semaphore>,
    memory: Memory,
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
    messages: VecDeque<(String, Room)>,
    bytes: usize,
    is_closed: bool,
}

/// Room for one answer, until the socket has taken it. The default is none, for messages that are small or counted otherwise.
#[derive(Debug, Default)]
pub(super) struct Room {
    _answers: Option<OwnedSemaphorePermit>,
    _held: Option<Held>,
}

/// Why there is no room for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// The connection is gone.
    Gone,
    /// The server holds as much for all of its clients as it may.
    OverLimit(OverLimit),
}

impl From<NoRoom> for RpcError {
    fn from(no_room: NoRoom) -> Self {
        match no_room {
            NoRoom::Gone => RpcError::invalid_request("the connection is gone"),
            NoRoom::OverLimit(over) => over.into(),
        }
    }
}

/// The result of a request, as JSON, and the room that it takes.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) json: String,
    pub(super) room: Room,
}

/// An answer that is small.
impl From<String> for Answer {
    fn from(json: String) -> Self {
        Answer {
            json,
            room: Room::default(),
        }
    }
}

/// The outbox of a server with default limits.
impl Default for Outbox {
    fn default() -> Self {
        let limits = Limits::default();
        Outbox::new(&limits, Memory::new(limits.max_held_bytes))
    }
}

impl Outbox {
    pub(super) fn new(limits: &Limits, memory: Memory) -> Self {
        Outbox {
            state: Mutex::default(),
            max_queued_bytes: limits.max_queued_bytes,
            answers: Arc::new(Semaphore::new(units(limits.max_queued_bytes) as usize)),
            memory,
            filled: Notify::new(),
            drained: Notify::new(),
            displaced: Notify::new(),
            life: Life::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for an answer of so many bytes, which is not made before. An answer that is larger than all room of
    /// the connection waits until no other answer does.
    pub(super) async fn room(&self, bytes: usize) -> Result<Room, NoRoom> {
        let units = units(bytes.min(self.max_queued_bytes));
        let answers = self.answers.clone().acquire_many_owned(units).await;
        let answers = answers.map_err(|_| NoRoom::Gone)?;
        let held = self.memory.hold(bytes).map_err(NoRoom::OverLimit)?;
        Ok(Room {
            _answers: Some(answers),
            _held: Some(held),
        })
    }

    /// Queues a message. It vanishes when the connection is gone.
    pub(super) fn push(&self, message: String, room: Room) {
        let mut state = self.lock();
        if state.is_closed {
            return;
        }
        state.bytes += message.len() + OVERHEAD;
        state.messages.push_back((message, room));
        drop(state);
        self.filled.notify_one();
    }

    /// Waits for the next message; `None` when the connection is gone.
    pub(super) async fn next(&self) -> Option<(String, Room)> {
        loop {
            {
                let mut state = self.lock();
                if state.is_closed {
                    return None;
                }
                if let Some((message, room)) = state.messages.pop_front() {
                    let before = state.bytes;
                    state.bytes -= message.len() + OVERHEAD;
                    let passes = |limit: usize| before > limit && state.bytes <= limit;
                    let is_drained = passes(FULL) || passes(self.max_queued_bytes);
                    drop(state);
                    if is_drained {
                        self.drained.notify_waiters();
                    }
                    return Some((message, room));
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
        self.answers.close();
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
        self.wait_below(self.max_queued_bytes).await;
    }
}

/// Returns how many units of room so many bytes take.
pub(super) fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX >> 4)
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
            outbox.push(message(), Room::default());
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
