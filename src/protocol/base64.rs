//! Bytes as the wire writes them: standard base64 with padding.

use std::{cell::RefCell, fmt};

use base64_turbo::STANDARD;
use bytes::Bytes;
use serde::{Deserializer, de};

/// Decodes a base64 string of the input straight into the buffer that is handed on.
///
/// For `#[serde(deserialize_with)]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    deserializer.deserialize_str(Base64)
}

/// Appends `bytes` as a JSON string to `json`.
pub(crate) fn append_json(bytes: &[u8], json: &mut Vec<u8>) {
    let length = STANDARD.encoded_len(bytes.len());
    // With room for what closes the request: growing once more could double it.
    json.reserve(length + 64);
    json.push(b'"');
    let start = json.len();
    let end = start + length;
    json.resize(end, 0);
    // It is as long as was asked for.
    let encoded = STANDARD.encode_into(bytes, &mut json[start..]);
    debug_assert_eq!(encoded, Ok(end - start));
    json.push(b'"');
}

/// What comes to less than this is decoded into a place that is used again and again, and copied from there
/// into a buffer of the right size: one that is too large costs `Bytes` a second allocation.
const SMALL: usize = 4096;

thread_local! {
    static DECODED: RefCell<[u8; SMALL]> = const { RefCell::new([0; SMALL]) };
}

/// Decodes standard base64 with padding into a buffer that is handed on; `None` if it is not that.
pub(crate) fn decode(text: &[u8]) -> Option<Bytes> {
    let length = decoded_len(text)?;
    let bytes = if STANDARD.estimate_decoded_len(text.len()) <= SMALL {
        DECODED.with_borrow_mut(|decoded| {
            let length = STANDARD.decode_into(text, decoded).ok()?;
            Some(Bytes::copy_from_slice(&decoded[..length]))
        })?
    } else {
        Bytes::from(STANDARD.decode(text).ok()?)
    };
    // The decoder takes padding for the end wherever it is.
    (bytes.len() == length).then_some(bytes)
}

/// Returns what a text of base64 decodes to, if its end is in order: the decoder lets bits stand in the last
/// character that mean nothing.
fn decoded_len(text: &[u8]) -> Option<usize> {
    let (is_whole, padding) = match text {
        [.., last, b'=', b'='] => (b"AQgw".contains(last), 2),
        [.., last, b'='] => (b"AEIMQUYcgkosw048".contains(last), 1),
        _ => (true, 0),
    };
    let is_whole = is_whole && text.len().is_multiple_of(4);
    is_whole.then(|| text.len() / 4 * 3 - padding)
}

struct Base64;

impl de::Visitor<'_> for Base64 {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a base64 string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
        decode(text.as_bytes()).ok_or_else(|| E::custom("invalid base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(json: &str) -> Result<Bytes, serde_json::Error> {
        deserialize(&mut serde_json::Deserializer::from_str(json))
    }

    #[test]
    fn what_is_appended_decodes_to_the_same_bytes() {
        for bytes in [&b""[..], b"a", b"ab", b"abc", &[0, 255, 128, 63]] {
            let mut json = Vec::new();
            append_json(bytes, &mut json);
            let json = String::from_utf8(json).unwrap();
            assert_eq!(decode(&json).unwrap(), bytes, "{json}");
        }
    }

    #[test]
    fn a_string_with_json_escapes_decodes() {
        assert_eq!(decode(r#""\/\/\u002f\/""#).unwrap(), [255, 255, 255][..]);
    }

    #[test]
    fn what_is_not_base64_is_an_error_that_does_not_quote_it() {
        for json in [
            r#""a""#,
            r#""a===""#,
            r#""secret!!""#,
            r#""YQ""#,
            r#""YQ==YQ==""#,
        ] {
            let error = decode(json).unwrap_err().to_string();
            assert!(error.starts_with("invalid base64"), "{json}: {error}");
        }
        assert!(decode("7").is_err());
    }
}
