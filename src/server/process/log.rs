//! What a process has written and how it ended: its events by `seq`, the newest output retained, and how
//! much may be read on while nobody has consumed it. No actor, no pipe.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::protocol::{MAX_OUTPUT_WINDOW, OUTPUT_OVERHEAD, base64};

/// How much output is retained, whole chunks, as long as nobody is to be waited for.
const RETAINED_BYTES: usize = 1 << 20;
const RETAINED_CHUNKS: usize = 50_000;

/// What the JSON of an answer to a read takes beside its chunks, and that of a chunk beside its bytes, at most.
const ANSWER_OVERHEAD: usize = 192;
const CHUNK_OVERHEAD: usize = 64;

/// Where a process wrote something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
    Pty,
}

impl Source {
    pub(super) fn name(self) -> &'static str {
        match self {
            Source::Stdout => "stdout",
            Source::Stderr => "stderr",
            Source::Pty => "pty",
        }
    }
}

#[derive(Debug)]
struct Chunk {
    seq: u64,
    source: Source,
    bytes: Bytes,
}

/// The events of one process.
#[derive(Debug, Default)]
pub(super) struct Log {
    chunks: VecDeque<Chunk>,
    retained: usize,
    last_seq: u64,
    exit: Option<Exit>,
    is_closed: bool,
    window: Option<Window>,
}

#[derive(Debug, Clone, Copy)]
struct Exit {
    seq: u64,
    code: i32,
}

/// How much output a client lets come that it has not consumed.
#[derive(Debug)]
struct Window {
    bytes: usize,
    /// Everything up to this `seq` is consumed.
    consumed: u64,
    /// What the outputs behind that count for.
    unconsumed: usize,
}

/// What an output counts for in a window.
fn cost(bytes: &Bytes) -> usize {
    bytes.len() + OUTPUT_OVERHEAD
}

impl Log {
    /// `window` is the number of bytes that may wait for the client; `None` where it does not tell what it
    /// consumes.
    pub(super) fn new(window: Option<usize>) -> Self {
        Log {
            window: window.map(|bytes| Window {
                bytes: bytes.clamp(1, MAX_OUTPUT_WINDOW),
                consumed: 0,
                unconsumed: 0,
            }),
            ..Log::default()
        }
    }

    fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    /// Takes output and returns its `seq`. What the client has not consumed is kept; beyond that, the newest.
    pub(super) fn output(&mut self, source: Source, bytes: Bytes) -> u64 {
        let seq = self.next_seq();
        self.retained += bytes.len();
        if let Some(window) = &mut self.window {
            window.unconsumed += cost(&bytes);
        }
        self.chunks.push_back(Chunk { seq, source, bytes });
        self.evict();
        seq
    }

    fn evict(&mut self) {
        let keep_after = self.window.as_ref().map(|window| window.consumed);
        while self.retained > RETAINED_BYTES || self.chunks.len() > RETAINED_CHUNKS {
            let is_kept = |chunk: &Chunk| keep_after.is_some_and(|consumed| chunk.seq > consumed);
            match self.chunks.front() {
                Some(chunk) if !is_kept(chunk) => {
                    self.retained -= chunk.bytes.len();
                    self.chunks.pop_front();
                }
                _ => return,
            }
        }
    }

    /// Drops all output that is retained. Reading shows a gap in its place.
    pub(super) fn drop_output(&mut self) {
        self.chunks.clear();
        self.retained = 0;
    }

    /// Returns what the retained output takes, in bytes.
    pub(super) fn retained(&self) -> usize {
        self.retained + self.chunks.len() * OUTPUT_OVERHEAD
    }

    /// Returns how large the answer to a read is at most, in bytes.
    pub(super) fn answer_size(&self, after_seq: u64, max_bytes: Option<u64>) -> usize {
        let from = self.chunks.partition_point(|chunk| chunk.seq <= after_seq);
        let mut size = ANSWER_OVERHEAD;
        let mut bytes = 0;
        for (n, chunk) in self.chunks.range(from..).enumerate() {
            bytes += chunk.bytes.len() as u64;
            if n > 0 && max_bytes.is_some_and(|max| bytes > max) {
                break;
            }
            size += chunk.bytes.len().div_ceil(3) * 4 + CHUNK_OVERHEAD;
        }
        size
    }

    /// Whether more of the output may be read from the process.
    pub(super) fn has_room(&self) -> bool {
        self.window
            .as_ref()
            .is_none_or(|window| window.unconsumed < window.bytes)
    }

    /// Notes that the client does not tell any more what it has consumed. Returns whether there is room again.
    pub(super) fn release(&mut self) -> bool {
        let had_room = self.has_room();
        self.window = None;
        self.evict();
        !had_room
    }

    /// Notes that the client has consumed everything up to `seq`. Returns whether there is room again.
    pub(super) fn consume(&mut self, seq: u64) -> bool {
        let had_room = self.has_room();
        let seq = seq.min(self.last_seq);
        let Some(window) = &mut self.window else {
            return false;
        };
        if seq <= window.consumed {
            return false;
        }
        let from = self
            .chunks
            .partition_point(|chunk| chunk.seq <= window.consumed);
        let to = self.chunks.partition_point(|chunk| chunk.seq <= seq);
        let consumed: usize = self
            .chunks
            .range(from..to)
            .map(|chunk| cost(&chunk.bytes))
            .sum();
        window.consumed = seq;
        window.unconsumed -= consumed;
        self.evict();
        !had_room && self.has_room()
    }

    /// The process has ended.
    pub(super) fn exited(&mut self, code: i32) -> u64 {
        let seq = self.next_seq();
        self.exit = Some(Exit { seq, code });
        seq
    }

    /// Its streams have ended too.
    pub(super) fn closed(&mut self) -> u64 {
        self.is_closed = true;
        self.next_seq()
    }

    pub(super) fn has_exited(&self) -> bool {
        self.exit.is_some()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether a read after this `seq` has to wait for nothing.
    pub(super) fn is_news(&self, after_seq: u64) -> bool {
        self.is_closed
            || self
                .chunks
                .back()
                .is_some_and(|chunk| chunk.seq > after_seq)
            || self.exit.is_some_and(|exit| exit.seq > after_seq)
    }

    /// Writes what is retained after a `seq`, as the answer to `process/read`. At least one chunk is in it,
    /// however few bytes it may have.
    pub(super) fn read(&self, after_seq: u64, max_bytes: Option<u64>) -> String {
        let from = self.chunks.partition_point(|chunk| chunk.seq <= after_seq);
        let mut json = br#"{"chunks":["#.to_vec();
        let (mut bytes, mut last) = (0, None);
        for chunk in self.chunks.range(from..) {
            bytes += chunk.bytes.len() as u64;
            if last.is_some() && max_bytes.is_some_and(|max| bytes > max) {
                break;
            }
            if last.is_some() {
                json.push(b',');
            }
            last = Some(chunk.seq);
            let name = chunk.source.name();
            json.extend_from_slice(
                format!(r#"{{"seq":{},"stream":"{name}","chunk":"#, chunk.seq).as_bytes(),
            );
            base64::append_json(&chunk.bytes, &mut json);
            json.push(b'}');
        }
        let next_seq = match (max_bytes, last) {
            (Some(_), Some(last)) => last + 1,
            _ => self.last_seq + 1,
        };
        let exited = self.exit.is_some();
        let exit_code = self
            .exit
            .map_or("null".to_owned(), |exit| exit.code.to_string());
        let closed = self.is_closed;
        json.extend_from_slice(
            format!(
                r#"],"nextSeq":{next_seq},"exited":{exited},"exitCode":{exit_code},"closed":{closed},"failure":null,"sandboxDenied":false}}"#
            )
            .as_bytes(),
        );
        String::from_utf8(json).expect("JSON and base64 are ASCII")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn write(log: &mut Log, bytes: usize) -> u64 {
        log.output(Source::Stdout, vec![0; bytes].into())
    }

    fn read(log: &Log, after_seq: u64, max_bytes: Option<u64>) -> (Vec<u64>, Value) {
        let read: Value = serde_json::from_str(&log.read(after_seq, max_bytes)).unwrap();
        let chunks = read["chunks"].as_array().unwrap();
        let seqs = chunks.iter().map(|chunk| chunk["seq"].as_u64().unwrap());
        (seqs.collect(), read)
    }

    #[test]
    fn a_read_has_what_comes_after_and_at_least_one_chunk() {
        let mut log = Log::new(None);
        for _ in 0..3 {
            write(&mut log, 4);
        }
        assert_eq!(read(&log, 1, None).0, [2, 3]);
        let (seqs, first) = read(&log, 0, Some(0));
        assert_eq!((seqs, &first["nextSeq"]), (vec![1], &json!(2)));
        let (seqs, two) = read(&log, 0, Some(8));
        assert_eq!((seqs, &two["nextSeq"]), (vec![1, 2], &json!(3)));
        let (seqs, none) = read(&log, 9, Some(8));
        assert_eq!((seqs.len(), &none["nextSeq"]), (0, &json!(4)));
        assert_eq!(
            (&none["exited"], &none["exitCode"]),
            (&json!(false), &json!(null))
        );
    }

    #[test]
    fn the_end_takes_part_in_the_count() {
        let mut log = Log::new(None);
        assert_eq!(write(&mut log, 1), 1);
        assert_eq!(log.exited(3), 2);
        assert!(log.is_news(1) && !log.is_news(2));
        assert_eq!(write(&mut log, 1), 3);
        assert_eq!(log.closed(), 4);
        let (seqs, all) = read(&log, 0, None);
        assert_eq!(seqs, [1, 3]);
        assert_eq!(
            (&all["nextSeq"], &all["exitCode"], &all["closed"]),
            (&json!(5), &json!(3), &json!(true))
        );
    }

    #[test]
    fn the_newest_mebibyte_is_retained() {
        let mut log = Log::new(None);
        for _ in 0..200 {
            write(&mut log, 8192);
        }
        let (seqs, _) = read(&log, 0, None);
        assert_eq!((seqs.len(), seqs[0]), (128, 73));
        assert!(log.has_room(), "nobody is waited for");
        assert!(!log.consume(100));
    }

    #[test]
    fn p5_what_is_not_consumed_is_kept_and_stops_the_reading() {
        let mut log = Log::new(Some(10_000));
        write(&mut log, 8192);
        assert!(log.has_room());
        write(&mut log, 8192);
        assert!(!log.has_room());
        assert!(log.consume(1));
        assert!(log.has_room() && !log.consume(1) && !log.consume(0));
        assert!(!log.consume(99), "there was room already");
        assert_eq!(read(&log, 0, None).0, [1, 2], "consumed is not gone");
        let mut log = Log::new(Some(1 << 20));
        for _ in 0..300 {
            write(&mut log, 8192);
        }
        assert_eq!(
            read(&log, 0, None).0.len(),
            300,
            "read or not, it is not dropped"
        );
        assert!(log.consume(299));
        assert_eq!(read(&log, 0, None).0.len(), 128);
    }

    #[test]
    fn p5_outputs_of_few_bytes_fill_a_window_too() {
        let mut log = Log::new(Some(1290));
        for _ in 0..10 {
            assert!(log.has_room());
            write(&mut log, 1);
        }
        assert!(!log.has_room());
    }

    #[test]
    fn p5_a_client_that_consumes_no_more_lets_the_process_run_on() {
        let mut log = Log::new(Some(1 << 20));
        for _ in 0..300 {
            write(&mut log, 8192);
        }
        assert!(log.release());
        assert_eq!(read(&log, 0, None).0.len(), 128, "only the newest");
        assert!(log.has_room() && !log.release() && !log.consume(1));
    }
}
