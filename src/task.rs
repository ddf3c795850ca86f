//! Tasks beside the actors, and a count of what is alive, so that tests can see that nothing is left.

use std::{cell::Cell, future::Future, marker::PhantomData};

use tokio::task::JoinHandle;

thread_local! {
    static ALIVE: Cell<usize> = const { Cell::new(0) };
}

/// Returns how many actors and tasks of this crate are alive on this thread. For its tests.
#[doc(hidden)]
pub fn alive() -> usize {
    ALIVE.get()
}

/// Counts its owner, which stays on one thread.
#[derive(Debug)]
pub(crate) struct Alive(PhantomData<*const ()>);

impl Alive {
    pub(crate) fn new() -> Self {
        ALIVE.set(ALIVE.get() + 1);
        Alive(PhantomData)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        ALIVE.set(ALIVE.get() - 1);
    }
}

/// Starts a task that ends by itself.
pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
    let alive = Alive::new();
    actix_rt::spawn(async move {
        let _alive = alive;
        future.await;
    })
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        Task(spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
