//! What the server at the other end speaks, decided once, at the handshake.

use std::time::Duration;

/// What differs between server versions and is decided at the handshake.
///
/// Callers give paths as paths; the dialect spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dialect {
    /// How paths are written.
    pub paths: PathSpelling,
    /// Whether a write that is repeated under its id is written once: servers from 0.142 on.
    pub deduplicates_writes: bool,
    /// How long the server keeps the processes of a connection that is lost, for it to be resumed. `None`
    /// if it does not: servers before 0.120.
    pub resume_window: Option<Duration>,
}

/// How a server wants paths to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathSpelling {
    /// As they are: servers up to 0.142.
    Plain,
    /// As `file:` URIs: servers from 0.150 on, which take nothing else.
    Uri,
}

impl Dialect {
    /// What the oldest server speaks, but for the spelling of paths.
    pub(crate) const fn new(paths: PathSpelling) -> Self {
        Dialect {
            paths,
            deduplicates_writes: false,
            resume_window: None,
        }
    }
}
