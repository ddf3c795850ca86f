//! The short way for what comes most, output and answers, and for what is largest, files: in the very form in
//! which servers send them.
//!
//! Whatever is written in any other form, be it an escape or a space beside a result, is left to
//! [`decode`](super::decode()), which knows them all and has the words for what is wrong. Here nothing is an error.

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::protocol::{Stream, base64};

#[cfg(test)]
mod tests;

/// A `process/output`, its process id, which is ASCII, where it lies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlainOutput<'a> {
    pub(crate) process_id: &'a [u8],
    pub(crate) seq: u64,
    pub(crate) stream: Stream,
    pub(crate) chunk: Bytes,
}

/// Reads an output that is written as servers do; `None` for everything else. The text need not have
/// been checked to be UTF-8: what is accepted is ASCII.
#[inline]
pub(crate) fn plain_output(text: &[u8]) -> Option<PlainOutput<'_>> {
    let rest = text.strip_prefix(br#"{"method":"process/output","params":{"processId":""#)?;
    let (process_id, rest) = plain_string(rest)?;
    let (seq, rest) = number(rest.strip_prefix(br#","seq":"#)?)?;
    let rest = rest.strip_prefix(br#","stream":""#)?;
    let (stream, rest) = match rest {
        [b's', b't', b'd', b'o', b'u', b't', rest @ ..] => (Stream::Stdout, rest),
        [b's', b't', b'd', b'e', b'r', b'r', rest @ ..] => (Stream::Stderr, rest),
        [b'p', b't', b'y', rest @ ..] => (Stream::Pty, rest),
        _ => return None,
    };
    // Base64 has no quote: that there is none before the last is found out by decoding it.
    let chunk = rest
        .strip_prefix(br#"","chunk":""#)?
        .strip_suffix(br#""}}"#)?;
    Some(PlainOutput {
        process_id,
        seq,
        stream,
        chunk: base64::decode(chunk)?,
    })
}

/// Reads the beginning of an answer with a result. Returns the id of the request, and where the result begins.
#[inline]
pub(crate) fn plain_answer(text: &[u8]) -> Option<(i64, usize)> {
    let (id, rest) = number(text.strip_prefix(br#"{"id":"#)?)?;
    let result = rest.strip_prefix(br#","result":"#)?;
    Some((i64::try_from(id).ok()?, text.len() - result.len()))
}

/// What is before the base64, where the result is what a file holds, and what is behind it.
pub(crate) const PLAIN_FILE: [&[u8]; 2] = [br#"{"dataBase64":""#, br#""}}"#];

/// Decodes the result that `text` begins with, if that is what a file holds and only the end of the answer is behind it.
#[inline]
pub(crate) fn plain_file(text: &[u8]) -> Option<Bytes> {
    let [start, end] = PLAIN_FILE;
    base64::decode(text.strip_prefix(start)?.strip_suffix(end)?)
}

/// Decodes the result that `json` begins with, if only the end of the answer is behind it. It is found out by decoding
/// where that is: nobody looks through the result before.
#[inline]
pub(crate) fn plain_result<T: DeserializeOwned>(json: &str) -> Option<T> {
    let mut results = serde_json::Deserializer::from_str(json).into_iter();
    let result = results.next()?.ok()?;
    let length = results.byte_offset();
    // A type may be there without having read anything.
    (length > 0 && json.as_bytes()[length..] == *b"}").then_some(result)
}

/// Reads the rest of a string of which the opening quote is gone, if it is ASCII and without escapes.
#[inline]
fn plain_string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (string, rest) = text.split_at(plain_len(text));
    Some((string, rest.strip_prefix(b"\"")?))
}

/// How many bytes stand for themselves in a string, up to its end or the first that does not. Found in eight at a time:
/// most strings are names of that length.
#[inline]
fn plain_len(text: &[u8]) -> usize {
    let (blocks, last) = text.as_chunks::<8>();
    for (before, block) in blocks.iter().enumerate() {
        let others = others(u64::from_le_bytes(*block));
        if others != 0 {
            return 8 * before + others.trailing_zeros() as usize / 8;
        }
    }
    let is_other = |&byte: &u8| !matches!(byte, b' '..=b'~') || byte == b'"' || byte == b'\\';
    let plain = last.iter().position(is_other).unwrap_or(last.len());
    text.len() - last.len() + plain
}

/// Sets the top bit of the lowest of eight bytes that does not stand for itself in a string, and maybe of some above it;
/// of none if all do.
#[inline]
fn others(bytes: u64) -> u64 {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    const TOP: u64 = 0x80 * EACH;
    // Less than that are those in which this borrows, if none below them is.
    let less_than = |bytes: u64, bound: u8| bytes.wrapping_sub(u64::from(bound) * EACH) & !bytes;
    let are = |byte: u8| less_than(bytes ^ (u64::from(byte) * EACH), 1);
    (bytes | less_than(bytes, b' ') | are(b'"') | are(b'\\') | are(0x7F)) & TOP
}

/// Reads a number in its shortest form, of as many digits as always fit.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    const MAX_DIGITS: usize = 19;
    let mut number = 0;
    for (length, &byte) in text.iter().enumerate() {
        match byte {
            b'0'..=b'9' if length == MAX_DIGITS => return None,
            // Only a nought by itself begins with one.
            b'0'..=b'9' if length == 1 && number == 0 => return None,
            b'0'..=b'9' => number = number * 10 + u64::from(byte - b'0'),
            _ if length == 0 => return None,
            _ => return Some((number, &text[length..])),
        }
    }
    None
}
