//! The terminal that this program runs in: raw for as long as a command's terminal is shown on it.

use std::{
    io::{self, IsTerminal as _},
    os::fd::{AsFd, OwnedFd},
    panic,
    sync::{Mutex, Once, PoisonError},
};

use execmux::protocol::TerminalSize;
use log::warn;
use rustix::{
    process::{Signal, getpid, kill_process},
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};

/// The terminal, while it is raw, and how it was before. Global, because also a panic on any thread restores it.
static BEFORE: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

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
        Raw::on(io::stdin().as_fd().try_clone_to_owned()?).map(Some)
    }

    fn on(terminal: OwnedFd) -> io::Result<Self> {
        restore_on_panic();
        make_raw(terminal)?;
        Ok(Raw(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Stops this program as Ctrl-Z does, with the terminal restored meanwhile.
pub(crate) fn stop_for_a_while() {
    let was_raw = restore();
    // SIGSTOP cannot be handled, so that this returns when the program is continued.
    let continued = kill_process(getpid(), Signal::STOP).map_err(io::Error::from);
    let Some(terminal) = was_raw else {
        return;
    };
    if let Err(error) = continued.and_then(|()| make_raw(terminal)) {
        warn!("cannot go back to the command's terminal: {error}");
    }
}

/// Makes the terminal raw as it was: a SIGSTOP comes unannounced, and a shell sets its own modes then.
pub(crate) fn go_on() {
    let saved = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((terminal, before)) = &*saved
        && let Err(error) = set_raw(terminal, before)
    {
        warn!("cannot go back to the command's terminal: {error}");
    }
}

fn make_raw(terminal: OwnedFd) -> io::Result<()> {
    let before = tcgetattr(&terminal)?;
    let mut saved = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    set_raw(&terminal, &before)?;
    *saved = Some((terminal, before));
    Ok(())
}

fn set_raw(terminal: &OwnedFd, before: &Termios) -> io::Result<()> {
    let mut raw = before.clone();
    raw.make_raw();
    Ok(tcsetattr(terminal, OptionalActions::Drain, &raw)?)
}

/// Returns the terminal, if it was raw.
fn restore() -> Option<OwnedFd> {
    let saved = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (terminal, before) = saved?;
    // A terminal that is gone needs no restoring.
    if let Err(error) = tcsetattr(&terminal, OptionalActions::Flush, &before) {
        warn!("cannot restore the terminal: {error}");
    }
    Some(terminal)
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

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::termios::LocalModes;

    use super::*;

    fn is_raw(terminal: &OwnedFd) -> bool {
        let now = tcgetattr(terminal).unwrap();
        !now.local_modes.contains(LocalModes::ICANON)
    }

    /// One test, as there is one terminal.
    #[test]
    fn a_terminal_is_restored_by_its_guard_and_by_a_panic_on_any_thread() {
        let (pty, _pts) = pty_process::blocking::open().unwrap();
        let terminal = pty.as_fd().try_clone_to_owned().unwrap();
        let before = tcgetattr(&terminal).unwrap();
        let enter = || Raw::on(terminal.try_clone().unwrap()).unwrap();

        let raw = enter();
        assert!(is_raw(&terminal));
        drop(raw);
        let now = tcgetattr(&terminal).unwrap();
        assert_eq!(now.local_modes, before.local_modes);
        assert_eq!(now.input_modes, before.input_modes);
        assert_eq!(now.output_modes, before.output_modes);

        let _raw = enter();
        assert!(is_raw(&terminal));
        assert!(thread::spawn(|| panic!("as planned")).join().is_err());
        assert!(!is_raw(&terminal), "while the guard still lives");
        go_on();
        assert!(!is_raw(&terminal), "it stays as the panic left it");
    }
}
