//! Whole files and blocks as base64, without a second copy of what is large.

use std::io::{self, Read};

use crate::{protocol::base64, server::envelope::RpcError};

/// Larger files are not read whole.
const MAX_FILE: u64 = 512 << 20;

/// How much is read and encoded at once: whole groups of base64, and small enough to stay in the cache.
const PIECE: usize = 3 << 14;

pub(super) fn too_large() -> RpcError {
    RpcError::invalid_request(format!(
        "file is too large to read: limit is {MAX_FILE} bytes"
    ))
}

pub(super) fn is_too_large(size: u64) -> bool {
    size > MAX_FILE
}

/// Returns how many characters so many bytes are as base64.
pub(super) fn encoded_size(size: u64) -> usize {
    usize::try_from(size.div_ceil(3).saturating_mul(4)).unwrap_or(usize::MAX)
}

/// Appends what `file` holds as a JSON string, piece by piece. `false` if it is too large, which a file may become
/// while it is read.
pub(super) fn append_file(mut file: impl Read, size: u64, json: &mut Vec<u8>) -> io::Result<bool> {
    // The envelope of the answer is put around it in the same memory.
    json.reserve(encoded_size(size) + 128);
    let mut piece = Vec::with_capacity(PIECE);
    let mut total = 0;
    loop {
        piece.clear();
        let read = file.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
        total += read as u64;
        if total > MAX_FILE {
            return Ok(false);
        }
        append_piece(&piece, total == read as u64, json);
        if read < PIECE {
            return Ok(true);
        }
    }
}

/// Appends to the string at the end of `json`, or begins one.
fn append_piece(piece: &[u8], is_first: bool, json: &mut Vec<u8>) {
    if is_first {
        base64::append_json(piece, json);
        return;
    }
    json.pop();
    // The new string opens in place of the last character so far, which is then put back.
    let Some(last) = json.pop() else { return };
    let at = json.len();
    base64::append_json(piece, json);
    json[at] = last;
}

/// Says in which way a text is no base64.
pub(super) fn defect(text: &[u8]) -> String {
    let is_symbol = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    let invalid = |at: usize| format!("Invalid symbol {}, offset {at}.", text[at]);
    let length = text.len();
    if let Some(&last) = text.last()
        && length % 4 == 1
        && last != b'='
        && !is_symbol(last)
    {
        return invalid(length - 1);
    }
    // All groups but the last have to be whole.
    let whole = length.saturating_sub(1) / 4 * 4;
    if let Some(at) = text[..whole].iter().position(|&byte| !is_symbol(byte)) {
        return invalid(at);
    }
    let mut padding = None;
    for (index, &byte) in text[whole..].iter().enumerate() {
        let at = whole + index;
        match padding {
            None if byte == b'=' && index >= 2 => padding = Some(at),
            Some(_) if byte == b'=' => {}
            Some(padding) => return invalid(padding),
            None if is_symbol(byte) => {}
            None => return invalid(at),
        }
    }
    let symbols = padding.unwrap_or(length) - whole;
    if symbols == 1 {
        return format!("Invalid input length: {length}");
    }
    if !length.is_multiple_of(4) {
        return "Invalid padding".to_owned();
    }
    let last = whole + symbols.saturating_sub(1);
    let symbol = text.get(last).copied().unwrap_or_default();
    format!("Invalid last symbol {symbol}, offset {last}.")
}
