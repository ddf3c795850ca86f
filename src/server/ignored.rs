//! Signals that this process ignores. What it runs would ignore them, too: nohup, or `&` in a script, would
//! take from every process of the server that it can be interrupted.

use std::fs;

use tokio::signal::unix::{SignalKind, signal};

/// Has the processes that are started from now on take these signals as they are meant, where that can be found
/// out. This process goes on to ignore them.
pub(super) fn keep_from_processes() {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return;
    };
    let ignored = ignored(&status);
    for kind in [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::terminate(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ] {
        if ignored >> (kind.as_raw_value() - 1) & 1 == 1
            // What is caught, be it by nobody, is not inherited; the handler stays.
            && let Err(error) = signal(kind)
        {
            log::debug!(signal = kind.as_raw_value(), error:%; "processes will ignore it");
        }
    }
}

/// Returns the mask of ignored signals that the kernel tells.
fn ignored(status: &str) -> u64 {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_found_among_the_others() {
        let status = "Name:\tx\nSigBlk:\t0000000000000007\nSigIgn:\t0000000000001002\n";
        assert_eq!(ignored(status), 1 << (13 - 1) | 1 << (2 - 1));
        assert_eq!(ignored("Name:\tx\n"), 0);
    }
}
