//! The terminal that this program runs in: raw for as long as a command's terminal is shown on it.

use std::{
    io::{self, IsTerminal as _},
    panic,
    sync::{Mutex, Once, PoisonError},
};

use execmux::protocol::TerminalSize;
use log::warn;
use rustix::{
    process::{Signal, getpid, kill_process},
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};

/// How the terminal was before it was made raw. Global, because also a panic on any thread restores it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// A terminal that is raw until this is dropped.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    /// Makes the terminal on stdin raw, so that each key goes to the command as it is. `None` if stdin is
    /// no terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        restore_on_panic();
        make_raw()?;
        Ok(Some(Raw(())))
    }

    /// Stops this program as Ctrl-Z does, with the terminal restored meanwhile.
    pub(crate) fn stop_for_a_while(&self) {
        restore();
        // SIGSTOP cannot be handled, so that this returns when the program is continued.
        let continued = kill_process(getpid(), Signal::STOP).map_err(io::Error::from);
        if let Err(error) = continued.and_then(|()| make_raw()) {
            warn!("cannot go back to the command's terminal: {error}");
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn make_raw() -> io::Result<()> {
    let stdin = io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut raw = before.clone();
    raw.make_raw();
    let mut saved = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
    *saved = Some(before);
    Ok(())
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before
        // A terminal that is gone needs no restoring.
        && let Err(error) = tcsetattr(io::stdin(), OptionalActions::Flush, &before)
    {
        warn!("cannot restore the terminal: {error}");
    }
}

/// Restores the terminal before a panic is reported, whose text would be a staircase otherwise.
fn restore_on_panic() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            report(info);
        }));
    });
}

/// The size of the terminal on stdin, or else on stdout. `None` if neither is one, or it does not know.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdin())
        .or_else(|_| tcgetwinsize(io::stdout()))
        .ok()?;
    let size = TerminalSize::new(size.ws_row, size.ws_col);
    (size.rows > 0 && size.cols > 0).then_some(size)
}
