//! What the server says of processes without being asked.

use std::{fmt, mem, ops::Range};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, de::DeserializeSeed};

use super::{ProcessId, Stream, base64};

/// One `process/output`, `process/exited` or `process/closed`, as the server sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notification {
    /// The process.
    pub(crate) process_id: ProcessId,
    /// Its place among all events of the process, from 1 without gaps. Servers do not send them in
    /// this order.
    pub(crate) seq: u64,
    /// What happened.
    pub(crate) event: ProcessEvent,
}

/// What can happen to a process.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum ProcessEvent {
    /// It wrote something.
    Output {
        /// Where.
        stream: Stream,
        /// What: raw bytes, which may end within a character.
        chunk: Bytes,
    },
    /// It ended. More output may follow, from itself or from those it started.
    Exited {
        /// Its exit code.
        exit_code: i32,
        /// Whether the sandbox refused it something (servers from 0.150 on).
        sandbox_denied: Option<bool>,
    },
    /// It has ended and its streams are at their end.
    Closed,
}

/// What one read has brought of processes, in the order in which the server sent it.
#[derive(Debug, Default)]
pub(crate) struct Notifications {
    /// The process ids, one behind the other: to look a route up, none needs an allocation of its own, nor to be
    /// checked.
    process_ids: Vec<u8>,
    entries: Vec<Entry>,
    /// How many of them have been taken out.
    taken: usize,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where its process id lies.
    pub(crate) process_id: Range<usize>,
    pub(crate) seq: u64,
    pub(crate) event: ProcessEvent,
}

impl Notifications {
    #[inline]
    pub(crate) fn push(&mut self, process_id: &[u8], seq: u64, event: ProcessEvent) {
        let start = self.process_ids.len();
        self.process_ids.extend_from_slice(process_id);
        self.entries.push(Entry {
            process_id: start..self.process_ids.len(),
            seq,
            event,
        });
    }

    /// Takes out the first.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.get_mut(self.taken)?;
        self.taken += 1;
        Some(Entry {
            process_id: entry.process_id.clone(),
            seq: entry.seq,
            event: mem::replace(&mut entry.event, ProcessEvent::Closed),
        })
    }

    /// Puts one back that was just taken out.
    pub(crate) fn put_back(&mut self, entry: Entry) {
        self.taken -= 1;
        self.entries[self.taken] = entry;
    }

    /// The processes of those that were not taken out.
    pub(crate) fn process_ids(&self) -> impl Iterator<Item = &[u8]> {
        self.entries[self.taken..]
            .iter()
            .map(|entry| self.process_id(&entry.process_id))
    }

    /// The process id that lies there.
    #[inline]
    pub(crate) fn process_id(&self, place: &Range<usize>) -> &[u8] {
        &self.process_ids[place.clone()]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.len() == self.taken
    }

    /// Forgets all, but keeps the memory for the next read.
    pub(crate) fn clear(&mut self) {
        self.process_ids.clear();
        self.entries.clear();
        self.taken = 0;
    }
}

impl fmt::Debug for ProcessEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessEvent::Output { stream, chunk } => f
                .debug_struct("Output")
                .field("stream", stream)
                .field("bytes", &chunk.len())
                .finish(),
            ProcessEvent::Exited { exit_code, .. } => f
                .debug_struct("Exited")
                .field("exit_code", exit_code)
                .finish(),
            ProcessEvent::Closed => f.write_str("Closed"),
        }
    }
}

/// The notifications that this crate reads; as a seed, it reads the params of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KnownNotification {
    Output,
    Exited,
    Closed,
}

impl KnownNotification {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Output, Self::Exited, Self::Closed]
            .into_iter()
            .find(|known| known.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Output => "process/output",
            Self::Exited => "process/exited",
            Self::Closed => "process/closed",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OutputParams {
    process_id: ProcessId,
    seq: u64,
    stream: Stream,
    #[serde(deserialize_with = "base64::deserialize")]
    chunk: Bytes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExitedParams {
    process_id: ProcessId,
    seq: u64,
    exit_code: i32,
    #[serde(default)]
    sandbox_denied: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClosedParams {
    process_id: ProcessId,
    seq: u64,
}

impl<'de> DeserializeSeed<'de> for KnownNotification {
    type Value = Notification;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Notification, D::Error> {
        Ok(match self {
            Self::Output => {
                let params = OutputParams::deserialize(deserializer)?;
                Notification {
                    process_id: params.process_id,
                    seq: params.seq,
                    event: ProcessEvent::Output {
                        stream: params.stream,
                        chunk: params.chunk,
                    },
                }
            }
            Self::Exited => {
                let params = ExitedParams::deserialize(deserializer)?;
                Notification {
                    process_id: params.process_id,
                    seq: params.seq,
                    event: ProcessEvent::Exited {
                        exit_code: params.exit_code,
                        sandbox_denied: params.sandbox_denied,
                    },
                }
            }
            Self::Closed => {
                let params = ClosedParams::deserialize(deserializer)?;
                Notification {
                    process_id: params.process_id,
                    seq: params.seq,
                    event: ProcessEvent::Closed,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_debug_does_not_show_output() {
        let event = ProcessEvent::Output {
            stream: Stream::Stdout,
            chunk: "secret".into(),
        };
        assert_eq!(format!("{event:?}"), "Output { stream: Stdout, bytes: 6 }");
    }

    #[test]
    fn sandbox_denied_may_be_missing_or_null() {
        for (params, expected) in [
            (r#"{"processId":"p","seq":2,"exitCode":-1}"#, None),
            (
                r#"{"processId":"p","seq":2,"exitCode":-1,"sandboxDenied":null}"#,
                None,
            ),
            (
                r#"{"processId":"p","seq":2,"exitCode":-1,"sandboxDenied":true}"#,
                Some(true),
            ),
        ] {
            let notification = KnownNotification::Exited
                .deserialize(&mut serde_json::Deserializer::from_str(params))
                .unwrap();
            assert_eq!(
                notification.event,
                ProcessEvent::Exited {
                    exit_code: -1,
                    sandbox_denied: expected
                }
            );
        }
    }
}
