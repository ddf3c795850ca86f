//! What a server can do beyond what all of them can.

use super::EnvironmentInfo;

/// What a server can do beyond what all of them can: found out at the handshake, and the same for as long
/// as the connection lasts.
///
/// Where something is missing, the methods of [`Mux`](crate::Mux) do what can be done without it, or end as
/// [`Unsupported`](crate::CallError::Unsupported), which names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// `process/closeStdin`: the end of input for a process with pipes (an extension).
    pub close_stdin: bool,
    /// `process/resize`, and the size of a pty at its start (an extension).
    pub resize: bool,
    /// `process/signal` with signals other than SIGINT (an extension).
    pub signals: bool,
    /// The server holds a process back until its output is consumed, and keeps it until then (an
    /// extension). Used for sessions that are started with [`Mux::start`](crate::Mux::start), unless they say
    /// [otherwise](crate::Session::hold_back).
    pub output_window: bool,
    /// Requests of different processes do not wait for each other (an extension).
    pub concurrency: bool,
    /// `process/signal` with SIGINT (0.140 on).
    pub interrupt: bool,
    /// `environment/info` (0.139 on).
    pub environment_info: bool,
    /// `environment/status` (0.150 on).
    pub environment_status: bool,
    /// `fs/canonicalize` (0.139 on).
    pub canonicalize: bool,
    /// `fs/walk` (0.150 on).
    pub walk: bool,
    /// `fs/open`, `fs/readBlock`, `fs/close`: files that are read in pieces (0.142 on).
    pub file_blocks: bool,
    /// `fs/open` for writing, `fs/writeBlock`: files that are written in pieces (0.169 on).
    pub file_writes: bool,
}

/// What a server's age tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    /// Before 0.139: without `environment/info`.
    Silent,
    /// 0.139: without `process/signal`.
    Deaf,
    /// 0.140.
    Interruptible,
    /// 0.142: with `fs/open`.
    Blocks,
    /// From 0.150 on: says what it can do.
    Telling,
}

impl Capabilities {
    /// What a server of this age can do that says this of itself.
    pub(crate) fn new(generation: Generation, info: Option<&EnvironmentInfo>) -> Self {
        let says = |name| info.is_some_and(|info| info.capabilities.get(name) == Some(&true));
        use Generation::{Blocks, Deaf, Interruptible, Silent, Telling};
        Capabilities {
            close_stdin: says("processCloseStdin"),
            resize: says("processResize"),
            signals: says("processSignals"),
            output_window: says("processOutputWindow"),
            concurrency: says("processConcurrency"),
            interrupt: matches!(generation, Interruptible | Blocks | Telling),
            environment_info: !matches!(generation, Silent),
            environment_status: matches!(generation, Telling),
            canonicalize: matches!(generation, Deaf | Interruptible | Blocks | Telling),
            walk: matches!(generation, Telling),
            file_blocks: matches!(generation, Blocks | Telling),
            file_writes: says("fileWriteStreaming"),
        }
    }
}

/// Something that a server cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server does not have the capability {capability}: {remedy}")]
#[non_exhaustive]
pub struct Unsupported {
    /// The field of [`Capabilities`] that would have to be set.
    pub capability: &'static str,
    /// Why nothing else helps, and what can be done.
    pub remedy: &'static str,
}

impl Unsupported {
    /// Names what is missing, and says what can be done without it.
    pub const fn new(capability: &'static str, remedy: &'static str) -> Self {
        Unsupported { capability, remedy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p12_age_and_words_tell_what_a_server_can_do() {
        assert_eq!(
            Capabilities::new(Generation::Silent, None),
            Capabilities::default()
        );
        let old = Capabilities::new(Generation::Blocks, None);
        assert!(old.interrupt && old.canonicalize && old.file_blocks);
        assert!(!old.walk && !old.signals && !old.file_writes);
        let info: EnvironmentInfo = serde_json::from_str(
            r#"{"capabilities": {"processCloseStdin": true, "processResize": false,
                "fileWriteStreaming": true}}"#,
        )
        .unwrap();
        let new = Capabilities::new(Generation::Telling, Some(&info));
        assert!(new.close_stdin && new.file_writes && new.walk && new.environment_status);
        assert!(!new.resize && !new.signals && !new.output_window && !new.concurrency);
    }
}
