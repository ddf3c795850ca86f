//! The tasks that read what a process writes, and write what it reads.

use std::{io, rc::Rc};

use actix::WeakAddr;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

use super::{Process, StreamEnded, Written, log::Source, output::Shared, stdin::Input};

/// Largest piece of output.
const CHUNK: usize = 8192;

/// Reads a stream to its end, as fast as the client lets it.
pub(super) async fn read<R: AsyncRead + Unpin>(
    shared: Rc<Shared>,
    source: Source,
    mut pipe: R,
    process: WeakAddr<Process>,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        shared.may_read().await;
        // An error is an end like another: a terminal has no other.
        let Ok(length @ 1..) = pipe.read(&mut buffer).await else {
            break;
        };
        shared.output(source, &buffer[..length]);
    }
    if let Some(process) = process.upgrade() {
        process.do_send(StreamEnded);
    }
}

/// Writes what comes to the stdin of the process, until the end of it or of the process.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    mut pipe: W,
    mut inputs: mpsc::UnboundedReceiver<Input>,
    process: WeakAddr<Process>,
) {
    while let Some(Input::Chunk(chunk, _held)) = inputs.recv().await {
        let written: io::Result<()> = async {
            pipe.write_all(&chunk).await?;
            pipe.flush().await
        }
        .await;
        let Some(process) = process.upgrade() else {
            return;
        };
        process.do_send(Written);
        if written.is_err() {
            // Nobody reads it any more. What is queued goes unread too.
            while inputs.recv().await.is_some() {
                process.do_send(Written);
            }
            return;
        }
    }
}
