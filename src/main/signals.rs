//! The signals that this program gets, as values.

use actix_rt::signal::unix::{SignalKind, signal};
use execmux::protocol;
use log::debug;
use tokio::sync::mpsc;

/// Exit code of a program that SIGPIPE has ended: whoever read our output has seen enough.
pub(crate) const BROKEN_PIPE: u8 = 141;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
    HangUp,
    /// The terminal has another size.
    Resize,
    /// This program is to stop for a while, which a raw terminal would not survive.
    Stop,
    /// It goes on.
    Continue,
}

impl Signal {
    fn kind(self) -> SignalKind {
        match self {
            Signal::Interrupt => SignalKind::interrupt(),
            Signal::Terminate => SignalKind::terminate(),
            Signal::HangUp => SignalKind::hangup(),
            Signal::Resize => SignalKind::window_change(),
            Signal::Stop => SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw()),
            Signal::Continue => SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()),
        }
    }

    fn number(self) -> i32 {
        self.kind().as_raw_value()
    }

    /// What it is to a command; `None` if it says nothing to one.
    pub(crate) fn name(self) -> Option<protocol::Signal> {
        match self {
            Signal::Interrupt => Some(protocol::Signal::Interrupt),
            Signal::Terminate => Some(protocol::Signal::Terminate),
            Signal::HangUp => Some(protocol::Signal::Hangup),
            Signal::Resize | Signal::Stop | Signal::Continue => None,
        }
    }

    /// Exit code of a program that it has ended.
    pub(crate) fn exit_code(self) -> u8 {
        u8::try_from(self.number()).map_or(u8::MAX, |number| number.saturating_add(128))
    }
}

/// Reports each of `wanted` from now on, so that none is missed between two waits.
pub(crate) fn watch(wanted: &[Signal]) -> mpsc::UnboundedReceiver<Signal> {
    let (sender, receiver) = mpsc::unbounded_channel();
    for &wanted in wanted {
        let mut arrivals = match signal(wanted.kind()) {
            Ok(arrivals) => arrivals,
            Err(error) => {
                debug!("{wanted:?} is not watched: {error}");
                continue;
            }
        };
        let sender = sender.clone();
        actix_rt::spawn(async move {
            while arrivals.recv().await.is_some() && sender.send(wanted).is_ok() {}
        });
    }
    receiver
}
