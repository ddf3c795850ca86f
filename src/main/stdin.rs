//! Our stdin, forwarded to a command.

use std::{
    io::{self, IsTerminal as _, Read as _},
    thread,
    time::Duration,
};

use bytes::Bytes;
use execmux::{ProcessId, protocol::WriteStatus};
use log::{debug, warn};
use tokio::sync::mpsc;

use crate::{connect::Remote, problem::told};

/// Forwards our stdin until it ends or the command does not take it.
pub(crate) async fn forward(remote: &Remote, process_id: &ProcessId, tty: bool) {
    let mux = &remote.mux;
    let mut chunks = read();
    let mut is_line_begun = false;
    while let Some(chunk) = chunks.recv().await {
        is_line_begun = !chunk.ends_with(b"\n");
        match mux.write(process_id, chunk).await {
            Ok(written) if written.status == WriteStatus::Accepted => {}
            Ok(written) => {
                debug!("stdin is not forwarded any more: {:?}", written.status);
                return;
            }
            Err(error) => {
                warn!("stdin is not forwarded any more: {}", told(&error));
                return;
            }
        }
    }
    if tty {
        // What a terminal takes for the end of input; behind a line that has begun, the first only
        // ends that. The command may have ended before.
        let end = if is_line_begun { "\x04\x04" } else { "\x04" };
        let _ended = mux.write(process_id, end).await;
        return;
    }
    if remote.capabilities.close_stdin {
        match mux.close_stdin(process_id).await {
            Ok(closed) => debug!("stdin has ended: {:?}", closed.status),
            Err(error) => warn!(
                "cannot tell the command that stdin has ended: {}",
                told(&error)
            ),
        }
        return;
    }
    // This server cannot close a pipe. Most commands that do not read it end on their own.
    actix_rt::time::sleep(Duration::from_secs(2)).await;
    warn!("stdin has ended, but this server cannot tell the command, which may wait for more");
}

/// Reads stdin in a thread of its own: such a read cannot be given up.
fn read() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        let mut buffer = vec![0; 8192];
        loop {
            match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let chunk = Bytes::copy_from_slice(&buffer[..length]);
                    if sender.blocking_send(chunk).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    warn!("cannot read stdin: {error}");
                    return;
                }
            }
        }
    });
    receiver
}

/// Reads all of our stdin if it is a file, which has an end, and not too large. `None` if it is something
/// else, of which nothing has been read then.
pub(crate) fn whole_file() -> io::Result<Option<Bytes>> {
    let metadata = std::fs::metadata("/dev/stdin")?;
    if !metadata.is_file() || metadata.len() > LARGEST_FILE {
        return Ok(None);
    }
    let mut content = Vec::new();
    // It may grow meanwhile.
    io::stdin()
        .take(LARGEST_FILE + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other("it has grown too large meanwhile"));
    }
    Ok(Some(content.into()))
}

/// What a server takes as one file.
const LARGEST_FILE: u64 = 40 << 20;

/// Whether our stdin is at its end from the start: then the command's may be closed too.
pub(crate) fn is_null() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let rdev = |path| std::fs::metadata(path).map(|metadata| metadata.rdev()).ok();
    !io::stdin().is_terminal() && rdev("/dev/stdin") == rdev("/dev/null")
}
