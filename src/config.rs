//! Options of a connection, with their defaults.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// Options of a connection. Make one with [`Config::new`] and change what you need.
///
/// ```
/// use std::time::Duration;
/// use execmux::Config;
///
/// let mut config = Config::new("ws://127.0.0.1:8080");
/// config.client_name = "my-application".into();
/// config.call_timeout = Duration::from_secs(10);
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// Where the exec-server listens: `ws://HOST:PORT`. A user name and password in it are sent as
    /// HTTP basic authentication, for a proxy in front of the server.
    pub url: String,
    /// Sent as `Authorization: Bearer …` with the WebSocket upgrade (servers from 0.160 on can ask
    /// for one). None by default. No log, error or `Debug` shows it.
    pub bearer_token: Option<String>,
    /// Whether credentials may be sent unencrypted to a host that is not loopback. Off by default.
    pub allow_plaintext_credentials: bool,
    /// What this client calls itself. `execmux` by default.
    pub client_name: String,
    /// How long resolving, connecting and the WebSocket upgrade may take together. 10 s by default.
    pub connect_timeout: Duration,
    /// How long the exec-server's own handshake may take after that. 10 s by default.
    pub handshake_timeout: Duration,
    /// How long a call waits for its answer unless it says otherwise. 30 s by default.
    pub call_timeout: Duration,
    /// How many calls may wait for an answer; those beyond it are refused with
    /// [`Overloaded`](crate::CallError::Overloaded). 4,096 by default.
    pub max_calls_in_flight: usize,
    /// How many starts of processes may wait for an answer; those beyond it wait until it is their turn, in the order in
    /// which they were made. Releases leave some of many that come at once without an answer. A start that the server has
    /// not answered in 30 s gives up its place, though not its answer, so that others are not blocked for ever. One is
    /// always allowed. 32 by default.
    pub max_starts_in_flight: usize,
    /// How many bytes of requests may wait for the socket; calls beyond it are refused with
    /// [`Overloaded`](crate::CallError::Overloaded). A single request may exceed it when nothing else
    /// waits. 64 MiB by default.
    pub max_queued_bytes: usize,
    /// Largest message that is accepted. It is refused from its header, before it is held. 1 GiB by
    /// default, because a file comes as one message: 512 MiB of it, the most that servers read, are
    /// 683 MiB on the wire.
    pub max_message_size: usize,
    /// How long nothing may come before the peer is pinged. 5 s by default. A connection that is not read, because a
    /// session of it has chosen [`Overflow::Block`](crate::Overflow::Block), sends a pong as often, which tells servers
    /// that this client is there.
    pub ping_interval: Duration,
    /// How long nothing may come, not even the answer to a ping, before the connection is given up. 15 s by default, and
    /// never more than half of the time for which the server keeps a lost session (10, 30 or 80 s, depending on its
    /// version, or what it tells), but at least 1 s of it, so that the other half is left for resuming it. The ping is sent
    /// after half of this at the latest. While a large message goes out behind which the ping has to wait, that counts as long as
    /// the socket takes more of it.
    pub silence_timeout: Duration,
    /// How many bytes of output a session may have queued or in its hands, unless it says otherwise
    /// ([`Session::budget`](crate::Session::budget)). What happens beyond it is for the session to choose
    /// ([`Overflow`](crate::Overflow)); the others do not notice. Every piece of output counts for its bytes
    /// and 128 more for keeping it. 1 MiB by default.
    pub session_budget: usize,
    /// How many bytes of output all sessions together may have queued or in their hands. Once half of
    /// it is in use, each session gets no more than an equal part of the other half, but always one
    /// piece of output. 64 MiB by default.
    pub connection_budget: usize,
    /// How often the router looks for sessions that have stopped, to end their processes, where nobody tells it:
    /// it learns of an actor that it knows by its address when it looks, or has something for it; of others it
    /// learns at once, though of many that stop one after the other with the next look. It looks for what is stuck
    /// and for what is to be tried again as often, and not at all while there is nothing to look at. 1 s by default.
    pub session_check_interval: Duration,
    /// How long to try to resume a lost connection, if that is less than what the server allows (10, 30 or
    /// 80 s, depending on its version). Zero for not at all. As long as the server allows by default.
    pub resume_timeout: Duration,
    /// How long to try to resume a lost connection of which the server answers that it still holds it
    /// ([`StillAttached`](crate::ConnectError::StillAttached)), counted from the loss. The server's own time begins only
    /// when it notices the loss, so each such answer gives all of it again, up to this. `resume_timeout` holds all the
    /// same. 5 minutes by default.
    pub attached_timeout: Duration,
    /// How long a first connect is tried again while it fails in a way that may pass
    /// ([`ConnectError::is_retryable`](crate::ConnectError::is_retryable)). Zero by default: it is tried once. The waits between
    /// the attempts grow from 50 ms to 2 s, with what the server asks for in `Retry-After` on top. Other errors end it at once.
    pub connect_retry: Duration,
    /// Decides on the waits between the attempts to resume, so that many clients do not come back at the
    /// same moment. Random by default.
    pub jitter_seed: u64,
    /// How many bytes of writes to the stdin of one process may wait for the one under way; those beyond
    /// are refused with [`Overloaded`](crate::CallError::Overloaded). 1 MiB by default.
    pub max_queued_stdin_bytes: usize,
    /// How long a write to the stdin of a process may go unanswered before the server is asked whether it
    /// still answers anything. 10 s by default.
    pub write_timeout: Duration,
    /// How long the server may take to say so. If it does not, and the write is what it hangs on, the
    /// process counts as stuck ([`Stuck`](crate::CallError::Stuck)), and the connection is cut and resumed,
    /// which frees it. 5 s by default.
    pub probe_timeout: Duration,
    /// How long an orderly close may take before the socket is dropped. 5 s by default.
    pub close_timeout: Duration,
}

impl Config {
    /// Returns the defaults for the server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Config {
            url: url.into(),
            bearer_token: None,
            allow_plaintext_credentials: false,
            client_name: "execmux".to_owned(),
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(30),
            max_calls_in_flight: 4096,
            max_starts_in_flight: 32,
            max_queued_bytes: 64 << 20,
            max_message_size: 1 << 30,
            ping_interval: Duration::from_secs(5),
            silence_timeout: Duration::from_secs(15),
            session_budget: 1 << 20,
            connection_budget: 64 << 20,
            session_check_interval: Duration::from_secs(1),
            resume_timeout: Duration::MAX,
            attached_timeout: Duration::from_secs(300),
            connect_retry: Duration::ZERO,
            jitter_seed: RandomState::new().hash_one(0),
            max_queued_stdin_bytes: 1 << 20,
            write_timeout: Duration::from_secs(10),
            probe_timeout: Duration::from_secs(5),
            close_timeout: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("server", &crate::connection::server_name(&self.url))
            .field("bearer_token", &self.bearer_token.as_ref().map(|_| "…"))
            .field("client_name", &self.client_name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_debug_shows_no_credentials() {
        let mut config = Config::new("ws://me:secret@127.0.0.1:1/path?token=secret");
        config.bearer_token = Some("secret".into());
        let shown = format!("{config:?}");
        assert!(shown.contains("ws://127.0.0.1:1/path"), "{shown}");
        assert!(!shown.contains("secret"), "{shown}");
    }
}
