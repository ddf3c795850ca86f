//! What the server at the other end speaks, decided once, at the handshake.

/// What differs between server versions and is decided at the handshake.
///
/// Callers give paths as paths; the dialect spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dialect {
    /// How paths are written.
    pub paths: PathSpelling,
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
    pub(crate) const fn new(paths: PathSpelling) -> Self {
        Dialect { paths }
    }
}
