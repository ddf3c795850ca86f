//! The families of a server: each process that it has started, and whatever that has left behind.
//!
//! A process leads a session of its own. Its jobs may have process groups of their own, but stay in the session
//! until they leave it by `setsid`. A family is everybody in the session, everybody below them, and everybody in
//! the sessions that were begun below them. On Linux, `/proc` tells who that is; elsewhere a family is the
//! process group of its leader.
//!
//! What gets away: a process that has begun a session of its own and has lost its parents before anybody looked.
//! Only a server that [adopts orphans](super::ServerConfig::adopt_orphans) finds it, when it stops.
//!
//! One thread for each server looks and kills, so that many that end together are looked for once.

mod census;
mod ending;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::sync::oneshot;

use self::{
    census::{Census, Entry, Sessions},
    ending::{Ending, Request},
};

/// The families of one server.
#[derive(Debug)]
pub(super) struct Leftovers {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

/// What the thread knows as well.
#[derive(Debug, Default)]
struct Shared {
    /// By the pid of the leader. Locked while a process is being started, so that nobody takes it for an orphan.
    families: Mutex<HashMap<i32, Arc<Tracked>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Arc<Tracked>>> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A family, as long as anybody of it may be left.
#[derive(Debug)]
struct Tracked {
    leader: Pid,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// `None` where `/proc` does not tell.
    sessions: Option<Sessions>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The leader has not been reaped, so that its number is its own.
    Led,
    /// The leader has been reaped. Others may live on.
    Leaderless,
    /// Nobody is left.
    Gone,
}

impl Tracked {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Sends a signal to the group of the leader, if its number is still the family's.
    fn signal_group(&self, signal: Signal) {
        let may_be_signalled = match self.phase() {
            Phase::Led => true,
            Phase::Leaderless => test_kill_process_group(self.leader).is_ok(),
            Phase::Gone => false,
        };
        if may_be_signalled {
            // It may have ended already.
            let _ended = kill_process_group(self.leader, signal);
        }
    }

    /// Returns who is alive, or `None` where nobody tells.
    fn members(&self, census: &Census) -> Option<Vec<Entry>> {
        let mut state = self.lock();
        if state.phase == Phase::Gone {
            return Some(Vec::new());
        }
        let sessions = state.sessions.as_mut()?;
        let members = census.members(sessions);
        if members.is_empty() && state.phase == Phase::Leaderless {
            state.phase = Phase::Gone;
        }
        Some(members)
    }

    /// Looks whether anybody is left where nothing but the group of the leader is known. To be called often enough
    /// that the number is not used again in between.
    fn look_at_group(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Leaderless && test_kill_process_group(self.leader).is_err() {
            state.phase = Phase::Gone;
        }
    }
}

impl Leftovers {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When there is no thread to be had, or orphans cannot be adopted here.
    pub(super) fn new(adopts_orphans: bool) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (requests, received) = mpsc::channel();
        let ending = Ending::new(received, shared.clone(), adopts_orphans)?;
        thread::Builder::new()
            .name("exec-server-end".to_owned())
            .spawn(move || ending.run())?;
        Ok(Leftovers { shared, requests })
    }

    /// Starts a process that leads a session of its own. `start` returns it with its pid.
    pub(super) fn start<T>(
        &self,
        start: impl FnOnce() -> io::Result<(T, Option<u32>)>,
    ) -> io::Result<(T, Family)> {
        let mut families = self.shared.lock();
        let (process, pid) = start()?;
        let leader = pid
            .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
            .ok_or_else(|| io::Error::other("the process has no id"))?;
        let number = leader.as_raw_nonzero().get();
        let tracked = Arc::new(Tracked {
            leader,
            state: Mutex::new(State {
                phase: Phase::Led,
                sessions: Entry::read(number).as_ref().map(Sessions::led_by),
            }),
        });
        families.insert(number, tracked.clone());
        let family = Family {
            tracked,
            shared: self.shared.clone(),
            requests: self.requests.clone(),
        };
        Ok((process, family))
    }

    /// Ends whatever this process has below it, if it adopts orphans; else nobody.
    pub(super) async fn end_orphans(&self) {
        let (ended, answer) = oneshot::channel();
        if self.requests.send(Request::EndOrphans(ended)).is_ok() {
            // Without an answer, there are none.
            let _none = answer.await;
        }
    }
}

/// A process that was started, with all that it leaves behind. When it is dropped, they are ended.
#[derive(Debug)]
pub(super) struct Family {
    tracked: Arc<Tracked>,
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

impl Family {
    /// Sends a signal to the process group of the leader.
    pub(super) fn signal(&self, signal: Signal) {
        self.tracked.signal_group(signal);
    }

    /// The leader has been reaped.
    pub(super) fn leader_ended(&self) {
        let mut state = self.tracked.lock();
        if state.phase == Phase::Led {
            state.phase = Phase::Leaderless;
        }
        drop(state);
        // Without the thread, nobody looks any more.
        let _over = self
            .requests
            .send(Request::LeaderEnded(self.tracked.clone()));
    }

    /// Returns whether others may live on without the leader.
    pub(super) fn is_leaderless(&self) -> bool {
        self.tracked.phase() == Phase::Leaderless
    }

    /// Kills everybody. The future is done when nobody is left, or nobody who can be killed; if it is dropped, they
    /// are killed all the same.
    pub(super) fn end(&self) -> impl Future<Output = ()> + use<> {
        let (ended, answer) = oneshot::channel();
        let request = Request::End(self.tracked.clone(), Some(ended));
        if self.requests.send(request).is_err() {
            // The thread is gone: that is not to be, but then the group is all that can be reached.
            self.tracked.signal_group(Signal::KILL);
        }
        async move {
            let _over = answer.await;
        }
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        if self.tracked.phase() != Phase::Gone {
            let request = Request::End(self.tracked.clone(), None);
            if self.requests.send(request).is_err() {
                self.tracked.signal_group(Signal::KILL);
            }
        }
        let mut families = self.shared.lock();
        let number = self.tracked.leader.as_raw_nonzero().get();
        // The number may be another family's by now.
        if (families.get(&number)).is_some_and(|known| Arc::ptr_eq(known, &self.tracked)) {
            families.remove(&number);
        }
    }
}
