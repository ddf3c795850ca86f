//! A look at all processes of the machine, as Linux tells them in `/proc`: who belongs to whom.

use std::{
    collections::{HashMap, HashSet, hash_map},
    fs,
};

/// A process, as its `/proc/PID/stat` describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    /// When it started, in ticks since the machine did. With the pid, it names the process for ever.
    pub(super) started: u64,
    /// It has ended, and waits for its parent to take notice.
    pub(super) is_dead: bool,
}

impl Entry {
    /// Reads what is known of a process now.
    pub(super) fn read(pid: i32) -> Option<Self> {
        Entry::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The name of the program may hold spaces, parentheses, and bytes that are no text.
        let open = stat.iter().position(|&byte| byte == b'(')?;
        let close = stat.iter().rposition(|&byte| byte == b')')?;
        let pid = std::str::from_utf8(stat.get(..open)?).ok()?;
        let mut fields = std::str::from_utf8(stat.get(close + 1..)?)
            .ok()?
            .split_ascii_whitespace();
        let state = fields.next()?;
        let mut number = || fields.next()?.parse::<i32>().ok();
        let (parent, group, session) = (number()?, number()?, number()?);
        // Between the session and the threads stand 13 fields, between the threads and the start 1.
        let threads: u64 = fields.nth(13)?.parse().ok()?;
        let started = fields.nth(1)?.parse().ok()?;
        Some(Entry {
            pid: pid.trim().parse().ok()?,
            parent,
            group,
            session,
            started,
            // A process whose main thread has ended before the others looks like a zombie, too.
            is_dead: matches!(state, "Z" | "X") && threads <= 1,
        })
    }

    /// Returns whether it still is the process that it was, in the same group.
    pub(super) fn is_unchanged(&self) -> bool {
        Entry::read(self.pid).is_some_and(|now| {
            (now.started, now.group, now.session) == (self.started, self.group, self.session)
        })
    }
}

/// The sessions in which the processes of one family are: the number of each, and when the process that leads it
/// started, if that was ever seen.
#[derive(Debug, Default)]
pub(super) struct Sessions(HashMap<i32, Option<u64>>);

impl Sessions {
    /// The session that a process leads.
    pub(super) fn led_by(leader: &Entry) -> Self {
        Sessions(HashMap::from([(leader.pid, Some(leader.started))]))
    }
}

/// All processes, as they were at one time.
#[derive(Debug)]
pub(super) struct Census {
    own: i32,
    entries: HashMap<i32, Entry>,
    by_session: HashMap<i32, Vec<i32>>,
    by_parent: HashMap<i32, Vec<i32>>,
}

impl Census {
    /// Looks at all processes. Returns `None` where the system does not tell.
    pub(super) fn take() -> Option<Self> {
        let own = i32::try_from(std::process::id()).ok()?;
        let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.parse().ok()
        });
        Census::of(own, pids.filter_map(Entry::read))
    }

    /// Sorts the entries. Returns `None` if this process is not among them.
    fn of(own: i32, entries: impl Iterator<Item = Entry>) -> Option<Self> {
        let entries: HashMap<_, _> = entries.map(|entry| (entry.pid, entry)).collect();
        entries.get(&own)?;
        let mut by_session = HashMap::<_, Vec<_>>::new();
        let mut by_parent = HashMap::<_, Vec<_>>::new();
        for entry in entries.values() {
            by_session.entry(entry.session).or_default().push(entry.pid);
            by_parent.entry(entry.parent).or_default().push(entry.pid);
        }
        Some(Census {
            own,
            entries,
            by_session,
            by_parent,
        })
    }

    fn own_session(&self) -> i32 {
        self.entries
            .get(&self.own)
            .map_or(self.own, |own| own.session)
    }

    /// Returns who lives in these sessions or hangs below somebody in them. Sessions that were begun below them
    /// join them, those that are over leave.
    pub(super) fn members(&self, sessions: &mut Sessions) -> Vec<Entry> {
        // A session keeps its number as long as somebody is in it, and nobody else gets the number meanwhile. So if
        // the process with this number is another one than it was, the session is over.
        sessions.0.retain(|id, started| match self.entries.get(id) {
            Some(leader) => leader.session == *id && *started == Some(leader.started),
            None => true,
        });
        let mut found: Vec<i32> = sessions
            .0
            .keys()
            .filter_map(|id| self.by_session.get(id))
            .flatten()
            .copied()
            .collect();
        let mut seen = HashSet::new();
        let mut members = Vec::new();
        while let Some(pid) = found.pop() {
            let Some(&entry) = self.entries.get(&pid) else {
                continue;
            };
            if pid == self.own || entry.session == self.own_session() || !seen.insert(pid) {
                continue;
            }
            if let hash_map::Entry::Vacant(new) = sessions.0.entry(entry.session) {
                let leader = self.entries.get(&entry.session);
                new.insert(leader.map(|leader| leader.started));
                found.extend(self.by_session.get(&entry.session).into_iter().flatten());
            }
            found.extend(self.by_parent.get(&pid).into_iter().flatten());
            if !entry.is_dead {
                members.push(entry);
            }
        }
        members
    }

    /// Returns who lives below this process, beginning with those of its children that `is_wanted`.
    pub(super) fn below(&self, is_wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let mut found: Vec<Entry> = self.children().copied().filter(is_wanted).collect();
        let mut seen = HashSet::from([self.own]);
        let mut members = Vec::new();
        while let Some(entry) = found.pop() {
            // A child of ours that has just been forked is in our session, and in our group, until it has its own.
            if entry.session != self.own_session() && seen.insert(entry.pid) {
                let below = self.by_parent.get(&entry.pid).into_iter().flatten();
                found.extend(below.filter_map(|pid| self.entries.get(pid)));
                members.push(entry);
            }
        }
        members.retain(|entry| !entry.is_dead);
        members
    }

    /// Returns the processes whose parent is this one.
    pub(super) fn children(&self) -> impl Iterator<Item = &Entry> {
        let pids = self.by_parent.get(&self.own).into_iter().flatten();
        pids.filter_map(|pid| self.entries.get(pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_program_is_called() {
        let stat = b"12 (a) Z (\xFF 7) S 3 4 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 2 0 987 6 7\n";
        let entry = Entry::parse(stat).unwrap();
        let expected = Entry {
            pid: 12,
            parent: 3,
            group: 4,
            session: 5,
            started: 987,
            is_dead: false,
        };
        assert_eq!(entry, expected);
        let alive_without_main = b"12 (x) Z 3 4 5 0 -1 4 1 2 3 4 5 6 7 8 20 0 2 0 987";
        assert!(!Entry::parse(alive_without_main).unwrap().is_dead);
        let zombie = b"12 (x) Z 3 4 5 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 987";
        assert!(Entry::parse(zombie).unwrap().is_dead);
        for bad in [
            &b""[..],
            b"12",
            b"12 (x",
            b"12 (x) S 3 4",
            b") 12 (",
            b"x (x) S 1",
        ] {
            assert_eq!(Entry::parse(bad), None);
        }
    }

    fn entry(pid: i32, parent: i32, session: i32, started: u64) -> Entry {
        Entry {
            pid,
            parent,
            group: pid,
            session,
            started,
            is_dead: false,
        }
    }

    fn members(entries: &[Entry], sessions: &mut Sessions) -> Vec<i32> {
        let census = Census::of(10, entries.iter().copied()).unwrap();
        let mut pids: Vec<_> = census
            .members(sessions)
            .iter()
            .map(|entry| entry.pid)
            .collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn p13_a_family_is_whoever_is_in_its_sessions_or_below() {
        let (own, leader) = (entry(10, 1, 9, 1), entry(20, 10, 20, 2));
        let mut sessions = Sessions::led_by(&leader);
        let all = [
            own,
            leader,
            entry(30, 20, 20, 3),
            // Below, in a session of its own, and there somebody who has lost its parent.
            entry(40, 30, 40, 4),
            entry(41, 1, 40, 5),
            entry(42, 41, 42, 5),
            // Not of the family.
            entry(50, 10, 50, 6),
            entry(60, 1, 9, 7),
        ];
        assert_eq!(members(&all, &mut sessions), [20, 30, 40, 41, 42]);
        // The sessions are remembered when nothing connects them any more.
        let left = [own, entry(41, 1, 40, 5), entry(43, 1, 42, 8)];
        assert_eq!(members(&left, &mut sessions), [41, 43]);
        assert!(members(&[own], &mut sessions).is_empty());
    }

    #[test]
    fn p13_a_number_that_is_used_again_is_not_of_the_family() {
        let (own, leader) = (entry(10, 1, 9, 1), entry(20, 10, 20, 2));
        let mut sessions = Sessions::led_by(&leader);
        // Another process leads a session of this number.
        let other = [own, entry(20, 1, 20, 77), entry(21, 20, 20, 78)];
        assert!(members(&other, &mut sessions).is_empty());
        let mut sessions = Sessions::led_by(&leader);
        // Another process has the number, in another session.
        let other = [own, entry(20, 1, 5, 77), entry(21, 1, 5, 78)];
        assert!(members(&other, &mut sessions).is_empty());
    }

    #[test]
    fn p13_a_zombie_is_not_left_over() {
        let (own, mut leader) = (entry(10, 1, 9, 1), entry(20, 10, 20, 2));
        let mut sessions = Sessions::led_by(&leader);
        leader.is_dead = true;
        assert!(members(&[own, leader], &mut sessions).is_empty());
    }
}
