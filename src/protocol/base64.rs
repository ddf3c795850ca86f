//! Bytes as the wire writes them: standard base64 with padding.

use std::fmt;

use base64_simd::STANDARD;
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
    json.reserve(STANDARD.encoded_length(bytes.len()) + 2);
    json.push(b'"');
    STANDARD.encode_append(bytes, json);
    json.push(b'"');
}

struct Base64;

impl de::Visitor<'_> for Base64 {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a base64 string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
        STANDARD
            .decode_to_vec(text)
            .map(Bytes::from)
            .map_err(|_| E::custom("invalid base64"))
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
