//! How a connection of a client ends, and what the client is told of it.

use std::{fmt, io, time::Duration};

use actix_ws::ProtocolError;
use tokio::time::timeout;

use crate::server::{
    frame_guard::Refusal,
    liveness::{Cutter, Heard},
    socket::Socket,
};

/// How long the client's socket may take to take the Close frame, and how long the client may take to go then.
const CLOSING: Duration = Duration::from_secs(1);

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The client has ended the TCP connection.
    Gone,
    /// The client has sent a Close frame, with this code.
    Closed(Option<u16>),
    /// The client has sent a message that is larger than it may be, or than there is room for.
    Refused(Refusal),
    /// The client has broken the WebSocket protocol.
    Violation,
    /// The client has sent a text message that is not UTF-8.
    InvalidUtf8,
    /// The client has sent what no client of the exec-server protocol sends.
    Stray,
    /// The client has not introduced itself in time.
    Unknown,
    /// The server stops, or the session is over.
    Stopped,
    /// The client gives no sign of life.
    Silent,
    /// Another connection has taken over the session, as the client gave no sign of life.
    Displaced,
}

impl Ending {
    /// Returns the ending that an error of the codec leads to.
    pub(super) fn of(error: &ProtocolError, refusal: Option<Refusal>) -> Self {
        match (error, refusal) {
            (_, Some(refusal)) => Ending::Refused(refusal),
            (ProtocolError::Overflow, None) => Ending::Refused(Refusal::TooLarge),
            (ProtocolError::Io(error), None) if error.kind() == io::ErrorKind::InvalidData => {
                Ending::InvalidUtf8
            }
            (ProtocolError::Io(_), None) => Ending::Gone,
            (_, None) => Ending::Violation,
        }
    }

    /// Returns the code and the reason of the Close frame (RFC 6455, 7.4.1). `None` for a client that would not see it.
    fn frame(self) -> Option<(Option<u16>, &'static str)> {
        Some(match self {
            Ending::Gone | Ending::Silent | Ending::Displaced => return None,
            Ending::Closed(code) => (code, ""),
            Ending::Refused(Refusal::Violation(what)) => (Some(1002), what),
            Ending::Refused(Refusal::TooLarge) => (Some(1009), "the message is too large"),
            Ending::Refused(Refusal::OverLimit(_)) => (
                Some(1013),
                "the server holds as much as it may, try again later",
            ),
            Ending::Violation => (Some(1002), "the WebSocket protocol is broken"),
            Ending::InvalidUtf8 => (Some(1007), "the text message is not UTF-8"),
            Ending::Stray => (Some(1008), "no client sends this notification or answer"),
            Ending::Unknown => (Some(1008), "no initialize in time"),
            Ending::Stopped => (Some(1001), "the server stops"),
        })
    }

    /// Returns true if the client has done what it should not, or found no room.
    pub(super) fn is_refusal(self) -> bool {
        match self {
            Ending::Refused(_)
            | Ending::Violation
            | Ending::InvalidUtf8
            | Ending::Stray
            | Ending::Unknown => true,
            Ending::Gone
            | Ending::Closed(_)
            | Ending::Stopped
            | Ending::Silent
            | Ending::Displaced => false,
        }
    }

    /// Tells the client, as far as it listens, and ends the TCP connection.
    pub(super) async fn carry_out(self, socket: Socket, heard: &Heard, cutter: Option<Cutter>) {
        if let Some((code, reason)) = self.frame() {
            let closing = async {
                if socket.close(code, reason).await.is_ok() {
                    socket.taken().await;
                }
            };
            // Whoever does not read would have it wait for ever.
            if timeout(CLOSING, closing).await.is_ok() {
                if let Some(cutter) = &cutter {
                    cutter.end_writing();
                }
                // Nor does everyone go when told so.
                let _not_gone = timeout(CLOSING, heard.discard()).await;
            }
        }
        if let Some(cutter) = cutter {
            cutter.cut();
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Gone => f.write_str("the client has cut it"),
            Ending::Closed(Some(code)) => write!(f, "the client has closed it with code {code}"),
            Ending::Closed(None) => f.write_str("the client has closed it"),
            Ending::Silent => f.write_str("the client gives no sign of life"),
            Ending::Displaced => {
                f.write_str("another has taken over, as the client gives no sign of life")
            }
            Ending::Refused(_)
            | Ending::Violation
            | Ending::InvalidUtf8
            | Ending::Stray
            | Ending::Unknown
            | Ending::Stopped => f.write_str(self.frame().map_or("", |(_, reason)| reason)),
        }
    }
}
