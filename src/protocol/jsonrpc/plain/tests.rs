//! Outputs and files in every form, good and bad, from one seed each: the short ways and the general way
//! agree on all, and what servers write takes a short one.

use std::{fs, path::Path};

use serde_json::{Value, value::RawValue};

use super::{plain_answer, plain_file, plain_len, plain_result};
use crate::{
    fuzzing::{self, Way},
    seeds::{self, Random},
};

/// How many seeds are tried, unless `EXECMUX_SEEDS` says otherwise.
const SEEDS: u64 = 20_000;

const EXAMPLE: &str = r#"{"method":"process/output","params":{"processId":"p-1","seq":307,"stream":"pty","chunk":"aGVsbG8gdGhlcmU="}}"#;

const FILE: &str = r#"{"id":7,"result":{"dataBase64":"aGVsbG8sIHdvcmxkCg=="}}"#;

const RESULT: &str =
    r#"{"id":19,"result":{"isFile":true,"size":null,"a b":[{},-10,["x",false,[]],{"b":"c"}]}}"#;

/// One message. Each of its parts is odd with a chance of `oddness` percent.
struct Writer<'r> {
    random: &'r mut Random,
    oddness: u64,
}

type Members = Vec<(Vec<u8>, Vec<u8>)>;

impl Writer<'_> {
    fn is_odd(&mut self) -> bool {
        self.random.chance(self.oddness)
    }

    fn pick(&mut self, of: &[&[u8]]) -> Vec<u8> {
        of[self.random.below(of.len() as u64) as usize].to_vec()
    }

    fn message(&mut self) -> Vec<u8> {
        let params = vec![
            self.member("processId", Self::process_id),
            self.member("seq", Self::seq),
            self.member("stream", Self::stream),
            self.member("chunk", Self::chunk),
        ];
        let params = self.object(params);
        let method = match self.is_odd() {
            true => self.pick(&[
                br#""process\/output""#,
                br#""process/exited""#,
                br#""process/outputs""#,
                b"null",
            ]),
            false => br#""process/output""#.to_vec(),
        };
        let mut message = vec![
            (br#""method""#.to_vec(), method),
            (br#""params""#.to_vec(), params),
        ];
        if self.is_odd() {
            message.push((br#""jsonrpc""#.to_vec(), br#""2.0""#.to_vec()));
        }
        if self.is_odd() {
            let id = self.pick(&[b"1", b"null", br#""a""#]);
            message.push((br#""id""#.to_vec(), id));
        }
        let mut message = self.object(message);
        if self.is_odd() {
            let behind = self.pick(&[b" ", b"\n", b"}", b"\"}}", b"{}", b"x", b"\0"]);
            message.extend(behind);
        }
        message
    }

    fn file(&mut self) -> Vec<u8> {
        let id = match self.is_odd() {
            true => self.pick(&[br#""1""#, b"null", b"9223372036854775808", b"-9"]),
            false => match self.seq() {
                id if str::from_utf8(&id).is_ok_and(|id| id.parse::<i64>().is_err()) => {
                    b"9223372036854775807".to_vec()
                }
                id => id,
            },
        };
        let content = self.member("dataBase64", Self::chunk);
        let result = self.object(vec![content]);
        let mut file = vec![(br#""id""#.to_vec(), id), (br#""result""#.to_vec(), result)];
        if self.is_odd() {
            let error = self.pick(&[b"null", b"1", br#"{"code":1}"#]);
            file.push((br#""error""#.to_vec(), error));
        }
        if self.is_odd() {
            file.push((br#""method""#.to_vec(), br#""process/output""#.to_vec()));
        }
        self.object(file)
    }

    fn result(&mut self) -> Vec<u8> {
        let result = self.value(0);
        let id = self.random.below(1000).to_string().into_bytes();
        let mut answer = vec![(br#""id""#.to_vec(), id), (br#""result""#.to_vec(), result)];
        if self.is_odd() {
            let error = self.pick(&[b"null", b"1", br#"{"code":1}"#]);
            answer.push((br#""error""#.to_vec(), error));
        }
        self.object(answer)
    }

    /// Any value, with others in it.
    fn value(&mut self, depth: usize) -> Vec<u8> {
        match self.random.below(if depth < 4 { 7 } else { 5 }) {
            0 => self.seq(),
            1 => [b"-", &self.seq()[..]].concat(),
            2 => self.process_id(),
            3 => self.pick(&[b"true", b"false", b"null"]),
            4 => self.pick(&[b"{}", b"[]"]),
            5 => {
                let names = ["a", "b", "createdAtMs", "a longer name {of} [it]: 1, 2"];
                let count = self.random.below(names.len() as u64) as usize;
                let members = names[..count].iter();
                let members = members
                    .map(|name| self.member(name, |writer| writer.value(depth + 1)))
                    .collect::<Members>();
                match members.is_empty() {
                    true => b"{}".to_vec(),
                    false => self.object(members),
                }
            }
            _ => {
                let count = 1 + self.random.below(3);
                let values: Vec<_> = (0..count).map(|_| self.value(depth + 1)).collect();
                [b"[", &values.join(&b","[..])[..], b"]"].concat()
            }
        }
    }

    fn member(
        &mut self,
        name: &str,
        value: impl FnOnce(&mut Self) -> Vec<u8>,
    ) -> (Vec<u8>, Vec<u8>) {
        let value = value(self);
        let value = match self.is_odd() && self.random.chance(30) {
            true => self.pick(&[
                b"null",
                b"1",
                b"\"\"",
                b"[]",
                b"{}",
                br#"{"pty":null}"#,
                b"true",
                b"",
            ]),
            false => value,
        };
        let name = match self.is_odd() && self.random.chance(30) {
            // The same name as a parser reads it, or another.
            true if self.random.chance(50) => {
                format!(r#""\u{:04x}{}""#, name.as_bytes()[0], &name[1..])
            }
            true => format!(r#""{name} ""#),
            false => format!(r#""{name}""#),
        };
        (name.into_bytes(), value)
    }

    fn object(&mut self, mut members: Members) -> Vec<u8> {
        if self.is_odd() {
            for last in 1..members.len() {
                members.swap(last, self.random.below(last as u64 + 1) as usize);
            }
        }
        if self.is_odd() {
            let value = self.pick(&[b"1", br#""}}""#, br#"{"a":[{}]}"#, b"null"]);
            self.insert(&mut members, (br#""other""#.to_vec(), value));
        }
        if self.is_odd() {
            let again = self.random.below(members.len() as u64) as usize;
            let again = members[again].clone();
            self.insert(&mut members, again);
        }
        if self.is_odd() && self.random.chance(30) {
            members.remove(self.random.below(members.len() as u64) as usize);
        }
        let mut json = b"{".to_vec();
        for (index, (name, value)) in members.iter().enumerate() {
            if index > 0 {
                json.push(b',');
            }
            self.space(&mut json);
            json.extend_from_slice(name);
            self.space(&mut json);
            json.push(b':');
            self.space(&mut json);
            json.extend_from_slice(value);
            self.space(&mut json);
        }
        json.push(b'}');
        json
    }

    fn insert(&mut self, members: &mut Members, member: (Vec<u8>, Vec<u8>)) {
        let at = self.random.below(members.len() as u64 + 1) as usize;
        members.insert(at, member);
    }

    fn space(&mut self, json: &mut Vec<u8>) {
        if self.is_odd() && self.random.chance(30) {
            json.extend(self.pick(&[b" ", b"\n", b"\t ", b"\r", b"\x0B", b"\xA0"]));
        }
    }

    fn process_id(&mut self) -> Vec<u8> {
        let length = self.random.pick(&[0, 1, 2, 8, 36, 64, 300]);
        let mut id: Vec<u8> = (0..length)
            .map(|_| b' ' + self.random.below(95) as u8)
            .filter(|byte| !matches!(byte, b'"' | b'\\'))
            .collect();
        if self.is_odd() {
            let odd = self.pick(&[
                br#"\""#,
                br"\\",
                br"\",
                br#"""#,
                br"\u0041",
                br"\u00e4",
                br"\ud83d\ude00",
                br"\ud800",
                br"\n",
                br"\x",
                b"\n",
                b"\0",
                b"\x1F",
                b"\x7F",
                b"\xFF",
                b"\xC3",
                "ä".as_bytes(),
                "\u{10FFFF}".as_bytes(),
                br#"","seq":1,"processId":""#,
                br#""}}"#,
            ]);
            let at = self.random.below(id.len() as u64 + 1) as usize;
            id.splice(at..at, odd);
        }
        [b"\"", &id[..], b"\""].concat()
    }

    fn seq(&mut self) -> Vec<u8> {
        if self.is_odd() {
            return self.pick(&[
                b"00",
                b"01",
                b"007",
                b"-0",
                b"-1",
                b"+1",
                b"1.0",
                b"0.5",
                b"1.",
                b".1",
                b"1e0",
                b"1E3",
                b"0e0",
                b"1e-1",
                b"0x1",
                b"1_0",
                b"",
                b"-",
                b"\"1\"",
                b"null",
                b"NaN",
                b"0000000000000000001",
                b"00000000000000000001",
                b"10000000000000000000",
                b"18446744073709551615",
                b"18446744073709551616",
                b"99999999999999999999",
                b"100000000000000000000",
                "١".as_bytes(),
            ]);
        }
        let short = self.random.next() >> (1 + self.random.below(63));
        let seq = self.random.pick(&[
            0,
            1,
            9,
            10,
            u64::from(u32::MAX),
            (1 << 53) + 1,
            i64::MAX as u64,
            i64::MAX as u64 + 1,
            999_999_999_999_999_999,
            1_000_000_000_000_000_000,
            9_999_999_999_999_999_999,
            short,
            short,
            short,
        ]);
        seq.to_string().into_bytes()
    }

    fn stream(&mut self) -> Vec<u8> {
        if self.is_odd() {
            return self.pick(&[
                br#""stdin""#,
                br#""""#,
                br#""Stdout""#,
                br#""stdou""#,
                br#""stdoutt""#,
                br#""stdout ""#,
                br#""std\u006fut""#,
                br#""pt\y""#,
                br#""stdout\"#,
                br#"0"#,
            ]);
        }
        self.pick(&[br#""stdout""#, br#""stderr""#, br#""pty""#])
    }

    fn chunk(&mut self) -> Vec<u8> {
        let below = self.random.pick(&[1, 4, 16, 64, 600, 600, 20 << 10]);
        let bytes: Vec<u8> = (0..self.random.below(below))
            .map(|_| self.random.next() as u8)
            .collect();
        let mut text = base64_simd::STANDARD.encode_to_string(bytes).into_bytes();
        if self.is_odd() {
            let at = self.random.below(text.len() as u64 + 1) as usize;
            match self.random.below(6) {
                0 => {
                    text.splice(at..at, b"=".repeat(1 + at % 4));
                }
                1 => text.truncate(at),
                2 => text.extend(b"=".repeat(1 + at % 4)),
                3 => {
                    let last = text.iter().rposition(|&byte| byte != b'=');
                    if let Some(last) = last {
                        text[last] = self.pick(&[b"A", b"B", b"Q", b"R", b"/"])[0];
                    }
                }
                4 => text.extend_from_within(..),
                _ => {
                    let odd = self.pick(&[
                        br#""}}"#,
                        br#"""#,
                        br"\/",
                        br"\u0041",
                        br"\\",
                        br"\",
                        b"\n",
                        b" ",
                        b"-",
                        b"_",
                        b"!",
                        b"\0",
                        b"\x7F",
                        b"\xFF",
                        "ä".as_bytes(),
                        br#"","seq":1"#,
                    ]);
                    let covered = match self.random.chance(50) {
                        true => odd.len().min(text.len() - at),
                        false => 0,
                    };
                    text.splice(at..at + covered, odd);
                }
            }
        }
        [b"\"", &text[..], b"\""].concat()
    }
}

fn mutate(message: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        let at = random.below(message.len() as u64 + 1) as usize;
        let to = message.len().min(at + 1 + random.below(4) as usize);
        let byte = random.pick(b"\"\\{}:,0=A \x80\xFF\xC3\0");
        match random.below(6) {
            0 if at < to => message[at] ^= 1 << random.below(8),
            1 if at < to => message[at] = byte,
            2 => message.insert(at, byte),
            3 => drop(message.drain(at..to)),
            4 => message.truncate(at),
            _ => message.extend_from_within(at..to),
        }
    }
}

#[test]
fn p10_the_short_ways_and_the_general_way_agree_on_whatever_comes() {
    let ways = seeds::each(SEEDS, "messages", |random| {
        let oddness = random.pick(&[0, 2, 5, 20, 50]);
        let is_mutated = random.chance(30);
        let kind = random.below(3);
        let mut writer = Writer { random, oddness };
        let mut message = match kind {
            0 => writer.file(),
            1 => writer.result(),
            _ => writer.message(),
        };
        if is_mutated {
            mutate(&mut message, random);
        }
        let way = fuzzing::message(&message);
        if oddness == 0 && !is_mutated {
            assert_eq!(way, Way::Short, "{}", message.escape_ascii());
        }
        way
    });
    if ways.len() >= 1000 {
        // All are met, so that the test tests all.
        for way in [Way::Short, Way::General, Way::Refused] {
            let met = ways.iter().filter(|&&met| met == way).count();
            assert!(met > ways.len() / 20, "{way:?}: {met}");
        }
    }
}

#[test]
fn p10_the_ways_agree_on_each_change_of_one_byte() {
    for example in [EXAMPLE, FILE, RESULT].map(str::as_bytes) {
        assert_eq!(fuzzing::message(example), Way::Short);
        for at in 0..example.len() {
            let (before, behind) = example.split_at(at);
            assert_ne!(fuzzing::message(before), Way::Short);
            fuzzing::message(&[before, &behind[1..]].concat());
            for byte in 0..=u8::MAX {
                fuzzing::message(&[before, &[byte], &behind[1..]].concat());
                fuzzing::message(&[before, &[byte], behind].concat());
            }
        }
    }
}

#[test]
fn answers_in_other_forms_take_the_general_way_but_their_results_may_have_any() {
    for text in [
        r#"{"id":7,"result":{"dataBase64":"aGk="},"x":1}"#,
        r#"{"id":7, "result":{"dataBase64":"aGk="}}"#,
        r#"{"id":7,"result":{"dataBase64":"aGk="} }"#,
        r#"{"result":{"dataBase64":"aGk="},"id":7}"#,
        r#"{"id":"7","result":{"dataBase64":"aGk="}}"#,
        r#"{"id":7,"result":{"dataBase64":["aGk"}}}"#,
        r#"{"id":7,"result":7"#,
        r#"{"id":7,"result":}"#,
    ] {
        assert_ne!(fuzzing::message(text.as_bytes()), Way::Short, "{text}");
    }
    for text in [
        r#"{"id":7,"result":{"dataBase64":"aGk=","eof":1.5}}"#,
        r#"{"id":7,"result":{"dataBase64":"aG\u006b="}}"#,
        r#"{"id":7,"result":{"ä": -1e3,"a":2}}"#,
        r#"{"id":7,"result":{"a":1.5,"a":1}}"#,
        r#"{"id":7,"result":null}"#,
        r#"{"id":7,"result":7}"#,
    ] {
        assert_eq!(fuzzing::message(text.as_bytes()), Way::Short, "{text}");
    }
    for no_file in [
        r#"{"dataBase64":"aGk"}"#,
        r#"{"dataBase64":"aGk=","eof":true}"#,
    ] {
        let text = format!(r#"{{"id":7,"result":{no_file}}}"#);
        let (id, result) = plain_answer(text.as_bytes()).unwrap();
        assert_eq!((id, &text[result..result + no_file.len()]), (7, no_file));
        assert_eq!(plain_file(&text.as_bytes()[result..]), None);
        let value: Value = plain_result(&text[result..]).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(no_file).unwrap());
    }
    for at_the_end in ["9223372036854775807", "0"] {
        let text = format!(r#"{{"id":{at_the_end},"result":{{"dataBase64":""}}}}"#);
        assert_eq!(fuzzing::message(text.as_bytes()), Way::Short, "{text}");
    }
}

#[test]
fn outputs_and_results_of_every_recorded_release_take_the_short_way() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let (mut count, mut results) = (0, 0);
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        for line in fs::read_to_string(&path).unwrap().lines() {
            #[derive(serde::Deserialize)]
            struct Line<'a> {
                #[serde(borrow)]
                frame: Option<&'a RawValue>,
                dir: &'a str,
            }
            let Line { frame, dir } = serde_json::from_str(line).unwrap();
            let (Some(frame), "recv") = (frame, dir) else {
                continue;
            };
            let way = fuzzing::message(frame.get().as_bytes());
            let frame: Value = serde_json::from_str(frame.get()).unwrap();
            if frame["method"] != "process/output" {
                let has_result = frame["id"].is_u64() && frame.get("result").is_some();
                results += u64::from(has_result);
                let expected = if has_result { Way::Short } else { Way::General };
                assert_eq!(way, expected, "{frame}");
                continue;
            }
            // The server before the first release writes the chunk first.
            let is_release = !path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("2026-03");
            let expected = if is_release { Way::Short } else { Way::General };
            assert_eq!(way, expected, "{frame}");
            count += u64::from(is_release);
        }
    }
    assert!(count > 1000, "{count}");
    assert!(results > 100, "{results}");
}

#[test]
fn bytes_that_stand_for_themselves_are_counted_wherever_others_lie() {
    let by_one = |text: &[u8]| {
        let is_plain = |byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        text.iter().take_while(|&&byte| is_plain(byte)).count()
    };
    for first in 0..=u8::MAX {
        for second in [
            0, 1, b' ', b'!', b'"', b'#', b'[', b'\\', b']', b'~', 0x7F, 0x80, 0xFF,
        ] {
            for at in 0..20 {
                let mut text = [b'a'; 21];
                text[at] = first;
                text[at + 1] = second;
                for length in 0..=text.len() {
                    let text = &text[..length];
                    assert_eq!(plain_len(text), by_one(text), "{}", text.escape_ascii());
                }
            }
        }
    }
}
