//! The names that a client chooses: of processes, and of writes to them.

use std::{
    borrow::Borrow,
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use smol_str::SmolStr;

/// What a server calls a session of its own, for a connection that is lost to be resumed. It is a secret:
/// whoever knows it can take the session over.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct SessionId(String);

impl SessionId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId(…)")
    }
}

/// The name of a process on the wire, chosen by the client and unique in its session. Not a pid.
///
/// The id of an ended process stays taken for 30 to 80 seconds, depending on the server: use fresh
/// ones, say from [`ProcessId::unique`].
///
/// Each event carries a clone. One of up to 23 bytes, as [`unique`](ProcessId::unique) makes, is copied; that of
/// a longer one is shared.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(SmolStr);

impl ProcessId {
    /// Makes an id that no other call has made, in this program or another.
    pub fn unique() -> Self {
        ProcessId(unique_name().into())
    }

    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProcessId({:?})", self.as_str())
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Borrow<str> for ProcessId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl From<&str> for ProcessId {
    fn from(text: &str) -> Self {
        ProcessId(text.into())
    }
}

impl From<String> for ProcessId {
    fn from(text: String) -> Self {
        ProcessId(text.into())
    }
}

impl From<&ProcessId> for ProcessId {
    fn from(id: &ProcessId) -> Self {
        id.clone()
    }
}

impl Serialize for ProcessId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ProcessId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = ProcessId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a process id")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ProcessId, E> {
                Ok(text.into())
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// The name of one write. A server from 0.142 on that sees it again for the same process answers
/// without writing again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct WriteId(String);

impl WriteId {
    /// Makes an id that no other call has made.
    pub fn unique() -> Self {
        WriteId(unique_name())
    }
}

impl From<&str> for WriteId {
    fn from(text: &str) -> Self {
        WriteId(text.to_owned())
    }
}

impl From<String> for WriteId {
    fn from(text: String) -> Self {
        WriteId(text)
    }
}

/// 64 random bits for this program, and a counter.
pub(super) fn unique_name() -> String {
    static PROGRAM: LazyLock<u64> =
        LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static COUNTER: AtomicU64 = AtomicU64::new(1);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}-{count:x}", *PROGRAM)
}

/// 128 random bits, which nothing else that this program says tells anything of.
pub(super) fn unguessable_name() -> String {
    let keys = RandomState::new();
    format!("{:016x}{:016x}", keys.hash_one(0), keys.hash_one(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_ids_differ() {
        assert_ne!(ProcessId::unique(), ProcessId::unique());
    }
}
