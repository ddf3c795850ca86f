//! A flood to one process, with a little to others in between: `bench/mix {size, group, groups, others,
//! intervalMicros, millis}`.
//!
//! At each interval, or without a pause if that is 0, `groups` groups are written: `group` outputs of
//! `size` bytes to the process p0, and one to one of the `others` p1, p2, … in turn, whose chunk is the time
//! at which its group was begun. After so many milliseconds comes the answer: how many outputs there were of
//! both kinds. An interval that the load misses is left out, not made up for.
//!
//! Requests are read all the time, also when the client reads nothing. Answers go out between groups.

use std::{io, time::Duration};

use base64_simd::STANDARD;
use serde::Deserialize;
use tokio::{
    io::Interest,
    select,
    time::{Instant, sleep_until},
};

use super::{Conversation, push_answer, push_head};
use crate::measure;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Params {
    size: usize,
    group: u64,
    groups: u64,
    others: usize,
    interval_micros: u64,
    millis: u64,
}

impl Conversation {
    /// Writes the mix, and the answer to the request for it.
    pub(super) async fn write_mix(&mut self, id: &str, params: &Params) -> io::Result<()> {
        let tail = tail(&vec![b'x'; params.size]);
        self.heads.clear();
        if self.last_seqs.len() <= params.others {
            self.last_seqs.resize(params.others + 1, 0);
        }
        let end = Instant::now() + Duration::from_millis(params.millis);
        let interval = Duration::from_micros(params.interval_micros);
        let mut next = Instant::now() + interval;
        let (mut flooded, mut told) = (0, 0);
        // Of this interval.
        let mut groups_left = params.groups;
        loop {
            self.write_reading().await?;
            if Instant::now() >= end {
                break;
            }
            if groups_left == 0 {
                self.answer_until(next).await?;
                next = Instant::now().max(next + interval);
                groups_left = params.groups;
            }
            groups_left -= 1;
            let other = 1 + told as usize % params.others;
            let time = measure::shared_time().as_nanos().to_string();
            for _ in 0..params.group {
                self.push_output(0, &tail);
            }
            self.push_output(other, &self::tail(time.as_bytes()));
            flooded += params.group;
            told += 1;
        }
        let counts = format!(r#"{{"flooded":{flooded},"told":{told}}}"#);
        push_answer(id.as_bytes(), counts.as_bytes(), &mut self.answers);
        self.write_reading().await
    }

    /// Answers what is asked until then. A timer knows milliseconds only: for less, it asks what time it is.
    async fn answer_until(&mut self, then: Instant) -> io::Result<()> {
        while Instant::now() < then {
            if then - Instant::now() > Duration::from_millis(1) {
                select! {
                    () = sleep_until(then) => {}
                    readable = self.socket.readable() => readable?,
                }
            }
            self.read_requests().await?;
            self.write_reading().await?;
        }
        Ok(())
    }

    fn push_output(&mut self, process: usize, tail: &[u8]) {
        self.last_seqs[process] += 1;
        push_head(
            process,
            self.last_seqs[process],
            tail.len(),
            &mut self.heads,
        );
        self.heads.extend_from_slice(tail);
    }

    /// Writes what waits, and reads what comes meanwhile.
    async fn write_reading(&mut self) -> io::Result<()> {
        loop {
            // Whole frames, behind whole frames.
            let mut batch = std::mem::take(&mut self.heads);
            batch.append(&mut self.answers);
            let mut written = 0;
            while written < batch.len() {
                let interest = Interest::READABLE | Interest::WRITABLE;
                let ready = self.socket.ready(interest).await?;
                if ready.is_readable() {
                    self.read_requests().await?;
                }
                if ready.is_writable() {
                    match self.socket.try_write(&batch[written..]) {
                        Ok(length) => written += length,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            // Not to be allocated again for the next.
            batch.clear();
            self.heads = batch;
            // The runtime looks at the socket only when no task is ready.
            tokio::task::yield_now().await;
            self.read_requests().await?;
            if self.answers.is_empty() {
                return Ok(());
            }
        }
    }

    /// Handles what has come, if anything has.
    async fn read_requests(&mut self) -> io::Result<()> {
        self.read.reserve(64 << 10);
        match self.socket.try_read_buf(&mut self.read) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                let is_open = self.take_requests().await?;
                is_open
                    .then_some(())
                    .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What an output ends with.
fn tail(chunk: &[u8]) -> Vec<u8> {
    let chunk = STANDARD.encode_to_string(chunk);
    format!(r#"{chunk}"}}}}"#).into_bytes()
}
