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
    // The decoder takes padding for the end wherever it is.
    let expected = decoded_len(text)?;
    if STANDARD.estimate_decoded_len(text.len()) <= SMALL {
        return DECODED.with_borrow_mut(|decoded| match STANDARD.decode_into(text, decoded) {
            Ok(length) if length == expected => Some(Bytes::copy_from_slice(&decoded[..length])),
            _ => None,
        });
    }
    match STANDARD.decode(text) {
        Ok(bytes) if bytes.len() == expected => Some(Bytes::from(bytes)),
        _ => None,
    }
}

/// Returns how much room it takes to decode so much, which may be a little more than it comes to.
pub(crate) fn decoded_at_most(length: usize) -> usize {
    STANDARD.estimate_decoded_len(length)
}

/// Decodes a part of a base64 text behind what is in `bytes`; padding is only in the last. `false` if it is not that;
/// then `bytes` are as they were.
pub(crate) fn decode_behind(text: &[u8], is_last: bool, bytes: &mut Vec<u8>) -> bool {
    let expected = match is_last {
        true => decoded_len(text),
        false => text.len().is_multiple_of(4).then(|| text.len() / 4 * 3),
    };
    let start = bytes.len();
    bytes.resize(start + decoded_at_most(text.len()), 0);
    let decoded = STANDARD.decode_into(text, &mut bytes[start..]).ok();
    let decoded = decoded.filter(|_| decoded == expected);
    bytes.truncate(start + decoded.unwrap_or(0));
    decoded.is_some()
}

/// Encodes all bytes from `start` on where they lie.
#[cold]
pub(crate) fn encode_in_place(bytes: &mut Vec<u8>, start: usize) {
    const PIECE: usize = 48 << 10;
    let length = bytes.len() - start;
    let encoded = length.div_ceil(3) * 4;
    bytes.reserve_exact(encoded - length);
    bytes.resize(start + encoded, 0);
    let text = &mut bytes[start..];
    let mut beside = [0; PIECE];
    // From the end, where what is written reaches beyond what is still to be read.
    for begin in (0..length).step_by(PIECE).rev() {
        let piece = &mut beside[..PIECE.min(length - begin)];
        piece.copy_from_slice(&text[begin..begin + piece.len()]);
        let encoded = STANDARD.encode_into(&*piece, &mut text[begin / 3 * 4..]);
        debug_assert_eq!(encoded, Ok(piece.len().div_ceil(3) * 4));
    }
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
    use crate::seeds::{self, Random};

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

    /// Checks that a text decodes to the same as with a decoder that is strict by itself.
    fn check(text: &[u8]) {
        let expected = base64_simd::STANDARD.decode_to_vec(text).ok();
        let decoded = super::decode(text);
        assert!(
            decoded.as_deref() == expected.as_deref(),
            "{decoded:?} where it should be {expected:?}: {}",
            text.escape_ascii()
        );
        for piece in [4, 64, 128 << 10] {
            check_by_pieces(piece, text, expected.as_deref());
        }
    }

    fn check_by_pieces(piece: usize, text: &[u8], expected: Option<&[u8]>) {
        const BEFORE: &[u8] = b"before";
        let mut decoded = BEFORE.to_vec();
        let mut rest = text;
        while !rest.is_empty() {
            let (next, behind) = rest.split_at(rest.len().min(piece));
            if !decode_behind(next, behind.is_empty(), &mut decoded) {
                break;
            }
            rest = behind;
        }
        if rest.is_empty() {
            assert!(
                expected == Some(&decoded[BEFORE.len()..]),
                "{}",
                text.escape_ascii()
            );
        } else {
            assert!(
                expected.is_none(),
                "in pieces of {piece}: {}",
                text.escape_ascii()
            );
            encode_in_place(&mut decoded, BEFORE.len());
            assert!(
                [&decoded, rest].concat() == [BEFORE, text].concat(),
                "{}",
                text.escape_ascii()
            );
        }
    }

    fn random_bytes(random: &mut Random, length: usize) -> Vec<u8> {
        (0..length).map(|_| random.next() as u8).collect()
    }

    /// Encodes with both, which are to agree, and decodes it again.
    fn check_round_trip(bytes: &[u8]) -> Vec<u8> {
        let mut json = b"[".to_vec();
        append_json(bytes, &mut json);
        let text = base64_simd::STANDARD.encode_to_string(bytes);
        assert!(json == format!("[\"{text}\"").into_bytes(), "{text}");
        assert!(super::decode(text.as_bytes()).unwrap() == bytes, "{text}");
        text.into_bytes()
    }

    #[test]
    fn what_is_encoded_decodes_at_every_length() {
        let mut random = Random::of(0, "lengths");
        // Where a buffer of its own begins, too.
        for length in (0..=600).chain(SMALL - 8..=SMALL + 8) {
            for bytes in [
                vec![0; length],
                vec![0xFF; length],
                random_bytes(&mut random, length),
            ] {
                check_round_trip(&bytes);
            }
        }
    }

    #[test]
    fn p10_every_text_of_four_characters_around_the_padding_decodes_as_it_should() {
        // Each last character there is, and characters that are none.
        for [a, b] in [[b'A', b'B'], [b'/', b'='], [b'=', b'A'], [b'=', b'=']] {
            for c in 0..=u8::MAX {
                for d in 0..=u8::MAX {
                    check(&[a, b, c, d]);
                    check(&[a, c, b, d]);
                    check(&[a, c, d, b]);
                    check(&[c, a, d, b]);
                }
            }
        }
    }

    #[test]
    fn p10_a_text_with_any_one_character_changed_decodes_as_it_should() {
        let mut random = Random::of(0, "changes");
        // Of all paddings, on both sides of the widths at which decoders go by.
        for length in (0..=26).chain(46..=50).chain(94..=98) {
            let text = check_round_trip(&random_bytes(&mut random, length));
            for at in 0..text.len() {
                let mut changed = text.clone();
                for byte in 0..=u8::MAX {
                    changed[at] = byte;
                    check(&changed);
                }
                check(&text[..at]);
                check(&[&text[..at], &text[at + 1..]].concat());
                for added in [&b"="[..], b"==", b"===", b"====", b"A", b"AAAA", b"\n"] {
                    check(&[&text[..at], added, &text[at..]].concat());
                }
            }
        }
    }

    #[test]
    fn p10_long_texts_decode_as_they_should_wherever_they_are_wrong() {
        seeds::each(500, "base64", |random| {
            let below = random.pick(&[600, 5_000, 100 << 10]);
            let length = random.below(below) as usize;
            let mut text = check_round_trip(&random_bytes(random, length));
            for _ in 0..1 + random.below(3) {
                let byte = random.pick(b"=-_ \n\"\\\0\x7F\x80\xFFAB/");
                let at = match random.chance(50) {
                    true => random.below(text.len() as u64 + 1) as usize,
                    false => text.len() - text.len().min(random.below(6) as usize),
                };
                match random.below(3) {
                    0 if at < text.len() => text[at] = byte,
                    1 => text.truncate(at),
                    _ => text.insert(at, byte),
                }
                check(&text);
            }
        });
        // In pieces of the size in use.
        seeds::each(8, "large base64", |random| {
            let length = (300 << 10) + random.below(3) as usize;
            let mut text = check_round_trip(&random_bytes(random, length));
            check(&text);
            let at = random.below(text.len() as u64) as usize;
            text[at] = b'!';
            check(&text);
        });
        seeds::each(2_000, "no base64", |random| {
            let length = random.below(600) as usize;
            check(&random_bytes(random, length));
            let text: Vec<u8> = (0..length).map(|_| random.pick(b"A/+z09BQ=")).collect();
            check(&text);
        });
    }
}
