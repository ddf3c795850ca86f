//! Where a JSON value ends, found in one pass that keeps nothing of it.

use super::{number, plain_string};

/// What lies deeper is left to the general way, which has its own bound.
const MAX_DEPTH: u32 = u64::BITS;

/// The arrays and objects that are open, the innermost in the lowest bit.
#[derive(Default)]
struct Open {
    are_objects: u64,
    depth: u32,
}

impl Open {
    fn push(&mut self, is_object: bool) -> Option<()> {
        self.depth += 1;
        self.are_objects = self.are_objects << 1 | u64::from(is_object);
        (self.depth <= MAX_DEPTH).then_some(())
    }

    fn pop(&mut self) {
        self.depth -= 1;
        self.are_objects >>= 1;
    }

    fn is_object(&self) -> bool {
        self.are_objects & 1 == 1
    }
}

/// Reads a JSON value, and returns what is behind it, if it is written without spaces, its strings in ASCII without
/// escapes, and its numbers whole. `None` for everything else, and where nothing is behind a number.
pub(super) fn behind(text: &[u8]) -> Option<&[u8]> {
    let mut open = Open::default();
    let mut rest = text;
    loop {
        rest = match rest {
            [b'{', b'}', rest @ ..] | [b'[', b']', rest @ ..] => rest,
            [b'{', first @ ..] => {
                open.push(true)?;
                rest = name(first)?;
                continue;
            }
            [b'[', first @ ..] => {
                open.push(false)?;
                rest = first;
                continue;
            }
            [b'"', string @ ..] => plain_string(string)?.1,
            [b't', b'r', b'u', b'e', rest @ ..] | [b'n', b'u', b'l', b'l', rest @ ..] => rest,
            [b'f', b'a', b'l', b's', b'e', rest @ ..] => rest,
            [b'-', digits @ ..] => number(digits)?.1,
            digits => number(digits)?.1,
        };
        loop {
            if open.depth == 0 {
                return Some(rest);
            }
            match (rest, open.is_object()) {
                ([b'}', behind @ ..], true) | ([b']', behind @ ..], false) => {
                    open.pop();
                    rest = behind;
                }
                ([b',', next @ ..], is_object) => {
                    rest = if is_object { name(next)? } else { next };
                    break;
                }
                _ => return None,
            }
        }
    }
}

/// Reads the name of a member.
fn name(text: &[u8]) -> Option<&[u8]> {
    let (_, rest) = plain_string(text.strip_prefix(b"\"")?)?;
    rest.strip_prefix(b":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_plain(text: &str) -> bool {
        behind(format!("{text}}}").as_bytes()) == Some(b"}")
    }

    #[test]
    fn values_as_servers_write_them_are_plain() {
        for text in [
            "{}",
            "[]",
            "true",
            "false",
            "null",
            "0",
            "-0",
            "-17",
            r#""""#,
            r#""a b""#,
            r#"{"a":1}"#,
            r#"{"a":{"b":[1,-2,"c",{},[],null,[{"d":true}]]},"e":false}"#,
            r#"[[],[[]],{}]"#,
            r#"{"a":1,"a":2}"#,
        ] {
            assert!(is_plain(text), "{text}");
        }
    }

    #[test]
    fn what_is_none_and_what_is_in_another_form_is_left() {
        for text in [
            "",
            " 1",
            "1 ",
            "1.5",
            "1e3",
            "01",
            "-",
            "--1",
            "+1",
            "12345678901234567890",
            "tru",
            "nulll",
            "{",
            "}",
            "]",
            "[",
            "[1",
            "[1,]",
            "[,1]",
            "[1 ]",
            "[1}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{"a":1]"#,
            r#"{,"a":1}"#,
            r#"{"a" :1}"#,
            r#"{a:1}"#,
            r#"{1:1}"#,
            r#"{"a":1}}"#,
            r#"{"a":1},"b":2"#,
            r#"{"a\n":1}"#,
            r#""a\u0041""#,
            r#""a"#,
            "\"ä\"",
            "\"\n\"",
            "\"\u{7F}\"",
        ] {
            assert!(!is_plain(text), "{text}");
        }
    }

    #[test]
    fn what_is_too_deep_is_left() {
        for (depth, expected) in [
            (1, true),
            (64, true),
            (65, false),
            (200, false),
            (1 << 20, false),
        ] {
            for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
                let text = [&open.repeat(depth), "1", &close.repeat(depth)].concat();
                assert_eq!(is_plain(&text), expected, "{depth} {open}");
            }
        }
    }
}
