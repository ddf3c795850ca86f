//! The thread that ends families, and looks whether those without a leader are gone.
//!
//! A family that is to end is stopped first (`SIGSTOP`), group by group, until nobody new is found: who is stopped
//! cannot fork, and keeps its place in the tree. Then all of them are killed.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::oneshot;

use super::{
    Phase, Shared, Tracked,
    census::{Census, Entry},
};

/// How often it is looked whether anybody is left of families without a leader, and for orphans that have ended.
const LOOK: Duration = Duration::from_secs(1);
/// How many times new members are stopped before they are killed as they are found.
const ROUNDS: u32 = 16;
/// How long those who are killed may take to be gone. One who sleeps in a broken device takes for ever.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long it takes until it is looked again whether they are gone, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Request {
    /// Nobody of a family may be left.
    End(Arc<Tracked>, Option<oneshot::Sender<()>>),
    /// Its leader has been reaped.
    LeaderEnded(Arc<Tracked>),
    /// No process that was adopted may be left, nor any other below this one.
    EndOrphans(oneshot::Sender<()>),
}

/// Who is to be ended.
#[derive(Debug)]
enum Target {
    Family(Arc<Tracked>),
    Orphans,
}

#[derive(Debug)]
struct Job {
    target: Target,
    answer: Option<oneshot::Sender<()>>,
    /// Who has been stopped: pid, and when it started.
    stopped: HashSet<(i32, u64)>,
    rounds: u32,
    until: Instant,
    pause: Duration,
}

impl Job {
    fn new(target: Target, answer: Option<oneshot::Sender<()>>) -> Self {
        Job {
            target,
            answer,
            stopped: HashSet::new(),
            rounds: 0,
            until: Instant::now() + DEADLINE,
            pause: Duration::ZERO,
        }
    }

    /// Does what is next. Returns whether it is done.
    fn step(&mut self, members: &[Entry]) -> bool {
        if members.is_empty() {
            return true;
        }
        let id = |entry: &Entry| (entry.pid, entry.started);
        let (known, new): (Vec<_>, Vec<_>) = members
            .iter()
            .copied()
            .partition(|entry| self.stopped.contains(&id(entry)));
        if !new.is_empty() && self.rounds < ROUNDS {
            self.rounds += 1;
            signal_groups(&new, Signal::STOP);
            self.stopped.extend(new.iter().map(id));
            self.pause = Duration::ZERO;
            return false;
        }
        signal_groups(&known, Signal::KILL);
        signal_groups(&new, Signal::KILL);
        if Instant::now() >= self.until {
            log::warn!(left = members.len(); "processes cannot be ended: they do not end when they are killed, or belong to another user");
            return true;
        }
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        false
    }
}

/// Sends a signal to the groups of these processes. Each is looked at again just before, so that a number that was
/// freed in between is not taken for a member's.
fn signal_groups(members: &[Entry], signal: Signal) {
    let mut done = HashSet::new();
    for member in members {
        if !done.contains(&member.group)
            && member.is_unchanged()
            && let Some(group) = Pid::from_raw(member.group)
        {
            done.insert(member.group);
            // All may have ended meanwhile, or be another user's.
            let _ended = kill_process_group(group, signal);
        }
    }
}

/// What is needed to take in processes that have lost their parents.
#[derive(Debug)]
struct Adoption {
    /// Children that were there before. They are left alone, with all below them.
    foreign: HashSet<(i32, u64)>,
}

impl Adoption {
    #[cfg(target_os = "linux")]
    fn begin() -> io::Result<Self> {
        let census = Census::take().ok_or_else(|| io::Error::other("/proc is not mounted"))?;
        let foreign = (census.children())
            .map(|child| (child.pid, child.started))
            .collect();
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(Adoption { foreign })
    }

    #[cfg(not(target_os = "linux"))]
    fn begin() -> io::Result<Self> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// Returns everybody below this process.
    fn members(&self, census: &Census) -> Vec<Entry> {
        census.below(|child| !self.foreign.contains(&(child.pid, child.started)))
    }

    /// Takes notice of the end of those who were adopted. The leaders of families are waited for elsewhere.
    fn reap(&self, census: &Census, shared: &Shared) {
        for child in census.children().filter(|child| child.is_dead) {
            let families = shared.lock();
            let is_ours = self.foreign.contains(&(child.pid, child.started))
                || (families.get(&child.pid)).is_some_and(|family| family.phase() == Phase::Led);
            if !is_ours && let Some(pid) = Pid::from_raw(child.pid) {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                // Somebody else may have been quicker.
                let _reaped = waitid(WaitId::Pid(pid), options);
            }
        }
    }
}

/// The thread.
#[derive(Debug)]
pub(super) struct Ending {
    requests: Receiver<Request>,
    shared: Arc<Shared>,
    adoption: Option<Adoption>,
    jobs: Vec<Job>,
    /// Families without a leader.
    watched: Vec<Arc<Tracked>>,
    next_look: Instant,
}

impl Ending {
    pub(super) fn new(
        requests: Receiver<Request>,
        shared: Arc<Shared>,
        adopts_orphans: bool,
    ) -> io::Result<Self> {
        Ok(Ending {
            requests,
            shared,
            adoption: adopts_orphans.then(Adoption::begin).transpose()?,
            jobs: Vec::new(),
            watched: Vec::new(),
            next_look: Instant::now() + LOOK,
        })
    }

    /// Runs until nobody can ask for anything any more, and everything that was asked for is done.
    pub(super) fn run(mut self) {
        let mut is_asked = true;
        while is_asked || !self.jobs.is_empty() {
            if is_asked {
                is_asked = self.receive();
                if !is_asked && self.adoption.is_some() {
                    self.jobs.push(Job::new(Target::Orphans, None));
                }
            } else {
                std::thread::sleep(self.pause());
            }
            let is_look = Instant::now() >= self.next_look;
            if self.jobs.is_empty() && !is_look {
                continue;
            }
            if is_look {
                self.next_look = Instant::now() + LOOK;
                if self.is_idle() {
                    continue;
                }
            }
            let census = Census::take();
            self.work(census.as_ref());
            self.look(census.as_ref());
        }
    }

    /// Nobody is to be looked for.
    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.watched.is_empty() && self.adoption.is_none()
    }

    fn pause(&self) -> Duration {
        let pauses = self.jobs.iter().map(|job| job.pause);
        pauses.min().unwrap_or_default()
    }

    /// Waits for what is next. Returns whether anybody can ask for anything any more.
    fn receive(&mut self) -> bool {
        let first = if !self.jobs.is_empty() {
            self.requests.recv_timeout(self.pause())
        } else if self.is_idle() {
            self.requests.recv().map_err(RecvTimeoutError::from)
        } else {
            let wait = self.next_look.saturating_duration_since(Instant::now());
            self.requests.recv_timeout(wait)
        };
        match first {
            Ok(request) => self.take(request),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        loop {
            match self.requests.try_recv() {
                Ok(request) => self.take(request),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::End(family, answer) => {
                self.jobs.push(Job::new(Target::Family(family), answer));
            }
            Request::LeaderEnded(family) => {
                if self.is_idle() {
                    self.next_look = Instant::now() + LOOK;
                }
                self.watched.push(family);
            }
            Request::EndOrphans(answer) if self.adoption.is_some() => {
                self.jobs.push(Job::new(Target::Orphans, Some(answer)));
            }
            // Dropped unanswered: there are none.
            Request::EndOrphans(_) => {}
        }
    }

    /// Goes on with all jobs.
    fn work(&mut self, census: Option<&Census>) {
        let adoption = self.adoption.as_ref();
        self.jobs.retain_mut(|job| {
            let members = census.and_then(|census| match &job.target {
                Target::Family(family) => family.members(census),
                Target::Orphans => adoption.map(|adoption| adoption.members(census)),
            });
            let is_done = match (members, &job.target) {
                (Some(members), _) => job.step(&members),
                (None, Target::Family(family)) => {
                    family.signal_group(Signal::KILL);
                    true
                }
                (None, Target::Orphans) => true,
            };
            if is_done && let Some(answer) = job.answer.take() {
                // Nobody may wait for it.
                let _gone = answer.send(());
            }
            !is_done
        });
    }

    /// Looks whether anybody is left of families without a leader, and reaps orphans.
    fn look(&mut self, census: Option<&Census>) {
        self.watched.retain(|family| {
            match census {
                Some(census) if family.members(census).is_some() => {}
                _ => family.look_at_group(),
            }
            family.phase() == Phase::Leaderless
        });
        if let (Some(census), Some(adoption)) = (census, &self.adoption) {
            adoption.reap(census, &self.shared);
        }
    }
}
