//! The short way for what comes most, output and results, and for what is largest, files: in the very form in
//! which servers send them.
//!
//! Whatever is written in any other form, be it an escape or a space, is left to [`decode`](super::decode()),
//! which knows them all and has the words for what is wrong. Here nothing is an error.

use std::ops::Range;

use bytes::Bytes;

use crate::protocol::{Stream, base64};

mod value;

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

/// Reads the answer to a request for a file, if it is written as servers do. Returns the id of the request
/// and the bytes.
pub(crate) fn plain_file(text: &[u8]) -> Option<(i64, Bytes)> {
    let (id, start) = plain_file_start(text)?;
    let content = text[start..].strip_suffix(PLAIN_FILE_END)?;
    Some((id, base64::decode(content)?))
}

/// Finds, at the beginning of such an answer, the id, and where the base64 begins.
pub(crate) fn plain_file_start(text: &[u8]) -> Option<(i64, usize)> {
    let (id, rest) = answered(text)?;
    let content = rest.strip_prefix(br#"{"dataBase64":""#)?;
    Some((id, text.len() - content.len()))
}

/// What is behind the base64.
pub(crate) const PLAIN_FILE_END: &[u8] = br#""}}"#;

/// Reads the answer to a request, if it has a result and nothing else, and all of it is ASCII without escapes,
/// spaces and fractions. Returns the id of the request, and where the result lies.
pub(crate) fn plain_result(text: &[u8]) -> Option<(i64, Range<usize>)> {
    let (id, rest) = answered(text)?;
    let start = text.len() - rest.len();
    let end = text.len() - b"}".len();
    (value::behind(rest)? == b"}").then_some((id, start..end))
}

/// Reads the beginning of an answer, up to the result.
fn answered(text: &[u8]) -> Option<(i64, &[u8])> {
    let (id, rest) = number(text.strip_prefix(br#"{"id":"#)?)?;
    let id = i64::try_from(id).ok()?;
    Some((id, rest.strip_prefix(br#","result":"#)?))
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
