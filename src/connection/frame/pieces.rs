//! What a server may send, and what it may not, from one seed each: the messages do not depend on where
//! the reads end, nor on how they are cut into fragments.

use crate::{
    fuzzing::{Cut, read, whole_file},
    seeds::{self, Random},
};

/// How many seeds are tried, unless `EXECMUX_SEEDS` says otherwise.
const SEEDS: u64 = 1_000;

const LIMIT: usize = 100_000;

/// What a server sends, and what should be cut out of it.
#[derive(Default)]
struct Sent {
    bytes: Vec<u8>,
    messages: Vec<Cut>,
}

impl Sent {
    fn frame(&mut self, first: u8, payload: &[u8], random: &mut Random) {
        self.bytes.push(first);
        let length = payload.len();
        // A longer form than it takes is good too.
        let is_control = first & 8 != 0;
        let form = if is_control { 0 } else { random.below(3) };
        match (length, form) {
            (0..=125, 0) => self.bytes.push(length as u8),
            (0..=0xFFFF, 0 | 1) => {
                self.bytes.push(126);
                self.bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                self.bytes.push(127);
                self.bytes.extend((length as u64).to_be_bytes());
            }
        }
        self.bytes.extend(payload);
    }

    fn control(&mut self, random: &mut Random) {
        let payload = payload(random, 126);
        let (first, message) = match random.below(3) {
            0 => (0x89, Cut::Ping(payload.clone().into())),
            1 => (0x8A, Cut::Pong),
            _ if payload.len() == 1 => (0x8A, Cut::Pong),
            _ => {
                let code = payload.first_chunk().map(|&code| u16::from_be_bytes(code));
                (0x88, Cut::Close(code))
            }
        };
        self.frame(first, &payload, random);
        self.messages.push(message);
    }

    fn message(&mut self, random: &mut Random) {
        let below = random.pick(&[1, 200, 200, 2_000, LIMIT as u64 + 1]);
        let payload = match random.chance(30) {
            true => answer(random, below),
            false => payload(random, below),
        };
        let mut rest = &payload[..];
        let opcode = random.pick(&[1, 1, 1, 2]);
        let mut first = opcode;
        while random.chance(40) {
            let (fragment, behind) = rest.split_at(random.below(rest.len() as u64 + 1) as usize);
            self.frame(first, fragment, random);
            (first, rest) = (0, behind);
            while random.chance(30) {
                self.control(random);
            }
        }
        self.frame(0x80 | first, rest, random);
        self.messages.push(match opcode {
            1 => match whole_file(&payload) {
                Some((id, content)) => Cut::File(id, content),
                None => Cut::Text(payload.into()),
            },
            _ => Cut::Binary(payload.len()),
        });
    }
}

/// Bytes that are UTF-8, or not.
fn payload(random: &mut Random, below: u64) -> Vec<u8> {
    let of = random.pick(&[&b"abc"[..], "äöü".as_bytes(), b"a\xFF"]);
    let length = random.below(below) as usize;
    of.iter().copied().cycle().take(length).collect()
}

/// The answer to a request for a file, or one that is like it.
fn answer(random: &mut Random, below: u64) -> Vec<u8> {
    let length = random.below(below * 3 / 4 + 1) as usize;
    let content: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    let base64 = base64_simd::STANDARD.encode_to_string(content);
    let more = random.pick(&["", "", "", r#","eof":true"#]);
    let mut answer =
        format!(r#"{{"id":7,"result":{{"dataBase64":"{base64}"{more}}}}}"#).into_bytes();
    if random.chance(30) {
        let at = random.below(answer.len() as u64) as usize;
        answer[at] = random.pick(b"=\"!}A");
    }
    answer.truncate(LIMIT);
    answer
}

/// Reads of every size, in `random`'s order.
fn lengths(random: &mut Random) -> impl Iterator<Item = usize> {
    let below = random.pick(&[1, 3, 20, 1_500, 70_000]);
    std::iter::repeat_with(move || 1 + random.below(below) as usize)
}

#[test]
fn every_message_is_cut_out_wherever_fragments_and_reads_end() {
    seeds::each(SEEDS, "frames", |random| {
        let mut sent = Sent::default();
        for _ in 0..random.below(8) {
            match random.chance(30) {
                true => sent.control(random),
                false => sent.message(random),
            }
        }
        sent.messages.push(Cut::Unfinished {
            joined: 0,
            buffered: 0,
        });
        let cut = read(&sent.bytes, lengths(random), LIMIT);
        assert!(
            cut == sent.messages,
            "{:?}",
            first_difference(&cut, &sent.messages)
        );
    });
}

#[test]
fn p10_broken_frames_give_the_same_wherever_the_reads_end() {
    let ends = seeds::each(SEEDS, "broken frames", |random| {
        let mut sent = Sent::default();
        for _ in 0..1 + random.below(4) {
            sent.message(random);
        }
        let mut bytes = sent.bytes;
        for _ in 0..1 + random.below(2) {
            // Often in the first header.
            let below = random.pick(&[2, 12, 300, LIMIT, LIMIT]).min(bytes.len());
            let at = random.below(below as u64) as usize;
            match random.below(4) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, random.next() as u8),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let limit = random.pick(&[0, 125, 126, 1_000, LIMIT, LIMIT, LIMIT, LIMIT]);
        let whole = read(&bytes, [bytes.len()].into_iter(), limit);
        let cut = read(&bytes, lengths(random), limit);
        assert!(cut == whole, "{:?}", first_difference(&cut, &whole));
        matches!(whole.last(), Some(Cut::Violation(_)))
    });
    if ends.len() >= 1000 {
        let refused = ends.iter().filter(|&&is_refused| is_refused).count();
        assert!(
            refused > ends.len() / 20 && refused < ends.len() * 19 / 20,
            "{refused}"
        );
    }
}

/// The first message that differs, cut short.
fn first_difference<'c>(cut: &'c [Cut], expected: &'c [Cut]) -> Option<(usize, String, String)> {
    let words = |cut: Option<&Cut>| match cut {
        Some(Cut::Text(text)) => format!("text {:?}", text.slice(..text.len().min(100))),
        cut => format!("{cut:?}"),
    };
    let count = cut.len().max(expected.len());
    (0..count)
        .find(|&index| cut.get(index) != expected.get(index))
        .map(|index| (index, words(cut.get(index)), words(expected.get(index))))
}
