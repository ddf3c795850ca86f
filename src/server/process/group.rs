//! The process group of a process: who gets its signals, also when the process itself has ended.

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

/// A process group that this server made. When it is dropped, nothing of it is left.
#[derive(Debug)]
pub(super) struct Group {
    id: Pid,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Its leader has not been reaped, so that its number is its own.
    Led,
    /// Others of it live on, and keep the number.
    Leaderless,
    /// Nobody is left. The number may be another's.
    Gone,
}

impl Group {
    /// The group that the process with this number leads.
    pub(super) fn led_by(process: u32) -> Option<Self> {
        Some(Group {
            id: Pid::from_raw(i32::try_from(process).ok()?)?,
            state: State::Led,
        })
    }

    /// Sends a signal to all of it.
    pub(super) fn signal(&self, signal: Signal) {
        if self.state != State::Gone {
            // It may have ended already.
            let _ended = kill_process_group(self.id, signal);
        }
    }

    /// Its leader has been reaped.
    pub(super) fn leader_ended(&mut self) {
        self.state = State::Leaderless;
        self.look();
    }

    /// Looks whether anybody is left. To be called often enough that the number cannot be used again in
    /// between.
    pub(super) fn look(&mut self) {
        if self.state == State::Leaderless && test_kill_process_group(self.id).is_err() {
            self.state = State::Gone;
        }
    }

    pub(super) fn is_leaderless(&self) -> bool {
        self.state == State::Leaderless
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.look();
        self.signal(Signal::KILL);
    }
}
