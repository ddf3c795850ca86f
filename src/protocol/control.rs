//! What is done to a process beside its streams: the end of its input, signals, the size of its terminal.

use serde::{Deserialize, Serialize};

use super::{
    Capabilities, Done, InvalidRequest, Lane, Method, Params, ProcessId, Repeat, Unsupported,
    process::can_interrupt,
};

/// `process/closeStdin`: ends the input of a process with
/// [`pipe_stdin`](super::StartProcess::pipe_stdin), behind the writes that were made before (servers with
/// [`close_stdin`](Capabilities::close_stdin)). To a process on a pty, write `\x04`.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct CloseStdin {
    /// The process.
    pub process_id: ProcessId,
}

impl CloseStdin {
    /// Ends the input of `process_id`.
    pub fn new(process_id: impl Into<ProcessId>) -> Self {
        CloseStdin {
            process_id: process_id.into(),
        }
    }
}

impl Method for CloseStdin {
    const NAME: &'static str = "process/closeStdin";
    type Response = StdinClosed;
    const REPEAT: Repeat = Repeat::Always;

    fn lane(&self) -> Lane<'_> {
        Lane::Stdin(&self.process_id)
    }

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        capabilities.close_stdin.then_some(()).ok_or(Unsupported {
            capability: "close_stdin",
            remedy: "the stdin of a pipe cannot be closed there; use a tty and write \\x04, or have a \
                     shell read the input from a file that was written before",
        })
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)
    }
}

/// The answer to [`CloseStdin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct StdinClosed {
    /// What became of it.
    pub status: CloseStatus,
}

/// What became of closing a stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum CloseStatus {
    /// The process gets the end of its input behind what was written before.
    Closed,
    /// There is no such process.
    UnknownProcess,
    /// The process has no stdin that could be closed.
    StdinClosed,
    /// Its start is not finished yet: try again.
    Starting,
    /// A word that this version of the crate does not know.
    #[serde(other)]
    Unknown,
}

/// The size of a terminal. Neither may be zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

impl TerminalSize {
    /// So many lines of so many characters.
    pub const fn new(rows: u16, cols: u16) -> Self {
        TerminalSize { rows, cols }
    }

    pub(crate) fn check(self) -> Result<Self, InvalidRequest> {
        if self.rows == 0 || self.cols == 0 {
            return Err(InvalidRequest::EmptyTerminal);
        }
        Ok(self)
    }
}

/// `process/resize`: sets the size of the pty of a process (servers with
/// [`resize`](Capabilities::resize)). A process that is not there is not an error.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct ResizeTerminal {
    /// The process.
    pub process_id: ProcessId,
    /// The size.
    pub size: TerminalSize,
}

impl ResizeTerminal {
    /// Gives the pty of `process_id` this size.
    pub fn new(process_id: impl Into<ProcessId>, size: TerminalSize) -> Self {
        ResizeTerminal {
            process_id: process_id.into(),
            size,
        }
    }
}

impl Method for ResizeTerminal {
    const NAME: &'static str = "process/resize";
    type Response = Done;
    const REPEAT: Repeat = Repeat::Always;

    fn lane(&self) -> Lane<'_> {
        Lane::Control
    }

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        capabilities.resize.then_some(()).ok_or(Unsupported {
            capability: "resize",
            remedy: "start the process with StartProcess::helper_processes and resize it with Mux::resize, \
                     or give the size at the start (StartProcess::size)",
        })
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)?;
        params.field("size", &self.size.check()?)
    }
}

/// A POSIX signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// SIGHUP.
    Hangup,
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    Quit,
    /// SIGABRT.
    Abort,
    /// SIGALRM.
    Alarm,
    /// SIGKILL.
    Kill,
    /// SIGUSR1.
    User1,
    /// SIGUSR2.
    User2,
    /// SIGTERM.
    Terminate,
    /// SIGCONT.
    Continue,
    /// SIGSTOP.
    Stop,
    /// SIGTSTP.
    TerminalStop,
    /// SIGWINCH.
    WindowChange,
}

impl Signal {
    /// Returns its name, such as `SIGTERM`.
    pub const fn name(self) -> &'static str {
        match self {
            Signal::Hangup => "SIGHUP",
            Signal::Interrupt => "SIGINT",
            Signal::Quit => "SIGQUIT",
            Signal::Abort => "SIGABRT",
            Signal::Alarm => "SIGALRM",
            Signal::Kill => "SIGKILL",
            Signal::User1 => "SIGUSR1",
            Signal::User2 => "SIGUSR2",
            Signal::Terminate => "SIGTERM",
            Signal::Continue => "SIGCONT",
            Signal::Stop => "SIGSTOP",
            Signal::TerminalStop => "SIGTSTP",
            Signal::WindowChange => "SIGWINCH",
        }
    }
}

/// `process/signal`: sends a signal to the group of a process: SIGINT from 0.140 on, others to servers with
/// [`signals`](Capabilities::signals). [`Mux::signal`](crate::Mux::signal) can also do some without. A process
/// that is not there is not an error.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct SendSignal {
    /// The process.
    pub process_id: ProcessId,
    /// The signal.
    pub signal: Signal,
}

impl SendSignal {
    /// Sends `signal` to `process_id`.
    pub fn new(process_id: impl Into<ProcessId>, signal: Signal) -> Self {
        SendSignal {
            process_id: process_id.into(),
            signal,
        }
    }
}

impl Method for SendSignal {
    const NAME: &'static str = "process/signal";
    type Response = Done;
    /// A handler that runs twice may do harm; to be interrupted or killed twice is as good as once.
    const REPEAT: Repeat = Repeat::Never;

    fn lane(&self) -> Lane<'_> {
        Lane::Control
    }

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        if capabilities.signals {
            return Ok(());
        }
        if self.signal == Signal::Interrupt {
            return can_interrupt(capabilities);
        }
        Err(Unsupported {
            capability: "signals",
            remedy: "start the process with StartProcess::helper_processes and use Mux::signal, which without \
                     that sends only Interrupt (0.140 on) and Kill",
        })
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)?;
        match self.signal {
            // The one name that all servers know.
            Signal::Interrupt => params.field("signal", "interrupt"),
            signal => params.field("signal", signal.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::{
        Dialect, PathSpelling,
        jsonrpc::{encode_request, encoded_params},
    };

    #[test]
    fn control_is_written_as_servers_read_it() {
        let plain = PathSpelling::Plain;
        assert_eq!(
            encoded_params(plain, &CloseStdin::new("p")),
            json!({"processId": "p"})
        );
        assert_eq!(
            encoded_params(plain, &ResizeTerminal::new("p", TerminalSize::new(5, 6))),
            json!({"processId": "p", "size": {"rows": 5, "cols": 6}})
        );
        for (signal, word) in [
            (Signal::Interrupt, "interrupt"),
            (Signal::Terminate, "SIGTERM"),
            (Signal::WindowChange, "SIGWINCH"),
        ] {
            assert_eq!(
                encoded_params(plain, &SendSignal::new("p", signal)),
                json!({"processId": "p", "signal": word})
            );
        }
    }

    #[test]
    fn a_terminal_without_room_is_refused() {
        for size in [TerminalSize::new(0, 80), TerminalSize::new(24, 0)] {
            let resize = ResizeTerminal::new("p", size);
            let error = encode_request(1, &resize, Dialect::new(PathSpelling::Plain)).unwrap_err();
            assert!(matches!(error, InvalidRequest::EmptyTerminal));
        }
    }

    #[test]
    fn statuses_decode_also_those_of_later_servers() {
        for (word, status) in [
            ("closed", CloseStatus::Closed),
            ("unknownProcess", CloseStatus::UnknownProcess),
            ("stdinClosed", CloseStatus::StdinClosed),
            ("starting", CloseStatus::Starting),
            ("later", CloseStatus::Unknown),
        ] {
            let closed: StdinClosed = serde_json::from_value(json!({ "status": word })).unwrap();
            assert_eq!(closed.status, status);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut capabilities = Capabilities::default();
        let interrupt = SendSignal::new("p", Signal::Interrupt);
        let missing = interrupt.supported_by(&capabilities).unwrap_err();
        assert_eq!(missing.capability, "interrupt");
        capabilities.interrupt = true;
        assert_eq!(interrupt.supported_by(&capabilities), Ok(()));
        let hangup = SendSignal::new("p", Signal::Hangup);
        let missing = hangup.supported_by(&capabilities).unwrap_err();
        assert_eq!(missing.capability, "signals");
    }
}
