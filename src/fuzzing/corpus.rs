//! What the fuzzer begins with: made of what real servers have sent, and always up to the assertions.
//!
//! It is written anew with `EXECMUX_WRITE_CORPUS=1`.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, value::RawValue};

use super::{frames, message};

/// Name of a file, and what is in it.
type Corpus = BTreeMap<String, Vec<u8>>;

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target)
}

/// The package comes without the fuzzer.
fn is_packaged() -> bool {
    !Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz")
        .exists()
}

#[test]
fn p10_whatever_the_fuzzer_begins_with_holds() {
    if is_packaged() {
        return;
    }
    let each = |target: &str, check: fn(&[u8])| {
        for entry in fs::read_dir(directory(target)).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            check(&fs::read(path).unwrap());
        }
    };
    each("message", |bytes| {
        message(bytes);
    });
    each("frames", frames);
}

#[test]
fn the_fuzzer_begins_with_a_message_of_each_shape() {
    if is_packaged() {
        return;
    }
    let messages = messages();
    for (target, corpus) in [("frames", in_frames(&messages)), ("message", messages)] {
        for (name, bytes) in corpus {
            let path = directory(target).join(name);
            if env::var_os("EXECMUX_WRITE_CORPUS").is_some() {
                fs::create_dir_all(directory(target)).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            let is_there = fs::read(&path).is_ok_and(|there| there == bytes);
            assert!(is_there, "EXECMUX_WRITE_CORPUS=1 writes {path:?}");
        }
    }
}

/// The shortest recorded message of each shape.
fn messages() -> Corpus {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut shortest: BTreeMap<String, String> = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        for line in fs::read_to_string(entry.unwrap().path()).unwrap().lines() {
            let mut line: BTreeMap<&str, &RawValue> = serde_json::from_str(line).unwrap();
            let (Some(frame), Some(r#""recv""#)) =
                (line.remove("frame"), line.get("dir").map(|dir| dir.get()))
            else {
                continue;
            };
            let frame = frame.get().to_owned();
            let kept = shortest.entry(shape(&frame)).or_insert(frame.clone());
            if (frame.len(), &frame) < (kept.len(), kept) {
                *kept = frame;
            }
        }
    }
    // Long enough for the widest steps of the decoder of base64, and for a buffer of its own.
    let long = "bG9uZyBvdXRwdXQg".repeat(360);
    shortest.insert(
        "long output".to_owned(),
        format!(
            r#"{{"method":"process/output","params":{{"processId":"p","seq":1,"stream":"pty","chunk":"{long}"}}}}"#
        ),
    );
    let numbered = shortest.into_values().enumerate();
    numbered
        .map(|(index, message)| (format!("{index:02}.json"), message.into_bytes()))
        .collect()
}

/// The members of a message and those of what is in them, in their order, without what differs from one
/// message to the next.
fn shape(message: &str) -> String {
    let mut shape = String::new();
    let value: Value = serde_json::from_str(message).unwrap();
    for known in ["method", "id", "error", "result"] {
        shape += &match &value[known] {
            Value::String(name) => format!("{known} {name} "),
            Value::Object(members) => {
                format!("{known} {:?} ", members.keys().collect::<Vec<_>>())
            }
            Value::Null => String::new(),
            Value::Number(number) => format!("{known} {} ", number.is_u64()),
            _ => format!("{known} "),
        };
    }
    let params: BTreeMap<&str, &RawValue> = serde_json::from_str(message).unwrap();
    if let Some(params) = params.get("params") {
        let value: Value = serde_json::from_str(params.get()).unwrap();
        let mut names: Vec<_> = value.as_object().into_iter().flatten().collect();
        names.sort_by_key(|(name, _)| params.get().find(&format!("\"{name}\":")));
        for (name, value) in names {
            let stream = value.as_str().filter(|_| name == "stream");
            shape += &format!("{name} {} ", stream.unwrap_or_default());
        }
    }
    shape
}

/// The messages in frames, reads of a few lengths, and each way to break the protocol.
fn in_frames(messages: &Corpus) -> Corpus {
    let mut corpus = Corpus::new();
    let mut add = |name: &str, sent: &[u8]| {
        let lengths = [3, 2, 0, 40];
        corpus.insert(name.to_owned(), [&lengths[..], sent].concat());
    };
    let (mut whole, mut fragments) = (Vec::new(), Vec::new());
    for message in messages.values().filter(|message| message.len() < 300) {
        let [high, low] = (message.len() as u16).to_be_bytes();
        match message.len() {
            0..=125 => whole.extend([0x81, low]),
            _ => whole.extend([0x81, 126, high, low]),
        }
        whole.extend(message);
        if fragments.len() < 1_000 {
            let (first, last) = message.split_at(message.len().min(100) / 2);
            fragments.extend([0x01, first.len() as u8]);
            fragments.extend(first);
            fragments.extend([0x89, 1, b'?', 0x00, 0, 0x8A, 0]);
            fragments.extend([0x80, 127, 0, 0, 0, 0, 0, 0]);
            fragments.extend((last.len() as u16).to_be_bytes());
            fragments.extend(last);
        }
    }
    add("messages", &whole);
    add("fragments", &fragments);
    add("closed", &[0x88, 5, 3, 0xE9, b'b', b'y', b'e']);
    for (name, sent) in [
        ("binary", &[0x82, 2, 0, 0xFF][..]),
        ("no-utf8", &[0x81, 2, 0xC3, 0xC3]),
        ("split-character", &[0x01, 1, 0xC3, 0x80, 1, 0xA4]),
        ("reserved", &[0xC1, 0]),
        ("masked", &[0x81, 0x80]),
        ("opcode", &[0x83, 0]),
        ("control-in-fragments", &[0x09, 0]),
        ("control-too-long", &[0x89, 126, 0, 126]),
        ("continues-nothing", &[0x80, 0]),
        ("within-another", &[0x01, 0, 0x81, 0]),
        ("half-a-code", &[0x88, 1, 3]),
        ("too-large", &[0x81, 126, 3, 0xE9]),
        ("far-too-large", &[0x81, 127, 255, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        add(name, sent);
    }
    corpus
}
