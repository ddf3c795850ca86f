//! What holds whatever a peer sends: checked by the fuzzer, and by the tests with bytes of their own.

#[cfg(test)]
mod corpus;

use std::{fmt::Debug, io::Write as _, iter};

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    connection::frame::{Arrival, ArrivingFile, Decoder, Message},
    protocol::{
        FileContent, Notification, ProcessEvent, RetainedOutput, Stream, base64,
        jsonrpc::{self, Id, Incoming, PlainOutput},
    },
};

/// Which of its readers a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The one for output, for a file, or for a result, as servers write it.
    Short,
    /// The one for everything.
    General,
    /// None: it ends the connection.
    Refused,
}

/// Checks that the two ways to read a message agree: what the short one accepts, the general one reads the
/// same, and the short one leaves nothing that is written in its form.
pub fn message(text: &[u8]) -> Way {
    let general = str::from_utf8(text)
        .ok()
        .and_then(|text| jsonrpc::decode(text).ok());
    let expected = general.as_ref().and_then(as_file);
    let expected = expected.filter(|(id, file)| {
        let written = format!(r#"{{"id":{id},"result":{}}}"#, file.to_json());
        written.as_bytes() == text
    });
    let expected = expected.map(|(id, file)| (id, file.content));
    let file = file(text);
    assert!(
        file == expected,
        "read as {file:?} and as {expected:?}: {}",
        text.escape_ascii()
    );
    if file.is_some() || result(text, general.as_ref()) {
        return Way::Short;
    }
    let Some(output) = jsonrpc::plain_output(text) else {
        return match general {
            Some(Incoming::Notification(notification)) => {
                if let Some(output) = as_plain(&notification) {
                    let is_left = written(&output) == text;
                    assert!(!is_left, "the short way leaves {}", text.escape_ascii());
                }
                Way::General
            }
            Some(_) => Way::General,
            None => Way::Refused,
        };
    };
    let Some(Incoming::Notification(notification)) = general else {
        panic!("only the short way accepts {}", text.escape_ascii());
    };
    let read = as_plain(&notification);
    assert!(
        read.as_ref() == Some(&output),
        "read as {output:?} and as {read:?}: {}",
        text.escape_ascii()
    );
    // All of its form can be said by writing it again: no leading nought, no second spelling of a chunk.
    let written = written(&output);
    assert!(
        written == text,
        "written as {}: {}",
        written.escape_ascii(),
        text.escape_ascii()
    );
    Way::Short
}

/// Reads a file by the short way for small ones and by that for large ones, which have to agree.
fn file(text: &[u8]) -> Option<(i64, Bytes)> {
    let small = whole_file(text);
    for piece in [1, 7, 64, text.len()] {
        match arriving(text, piece) {
            Ok(large) => assert!(small == large, "{}", text.escape_ascii()),
            Err(left) => assert!(small.is_none() && left == text, "{}", text.escape_ascii()),
        }
    }
    small
}

/// Reads a file that has come as a whole.
pub(crate) fn whole_file(text: &[u8]) -> Option<(i64, Bytes)> {
    let (id, result) = jsonrpc::plain_answer(text)?;
    Some((id, jsonrpc::plain_file(&text[result..])?))
}

/// Reads a file that comes in such pieces; gives back the text if it is something else.
fn arriving(text: &[u8], piece: usize) -> Result<Option<(i64, Bytes)>, BytesMut> {
    let (come, mut rest) = text.split_at(text.len().min(ArrivingFile::TELLING.max(piece)));
    let mut buffer = BytesMut::from(come);
    let Some(mut file) = ArrivingFile::begin(0, text.len(), &mut buffer) else {
        buffer.extend_from_slice(rest);
        return Err(buffer);
    };
    loop {
        match file.take(&mut buffer) {
            Arrival::Whole(id, content) => {
                assert!(
                    buffer.is_empty() && rest.is_empty(),
                    "{}",
                    text.escape_ascii()
                );
                return Ok(Some((id, content)));
            }
            Arrival::Other => {
                buffer.extend_from_slice(rest);
                return Err(buffer);
            }
            Arrival::Partial(partial) => file = partial,
        }
        let (come, behind) = rest.split_at(rest.len().min(piece));
        assert!(!come.is_empty(), "all has come: {}", text.escape_ascii());
        buffer.extend_from_slice(come);
        rest = behind;
    }
}

/// Whether a result is read by the short way, which has to agree with the general one.
fn result(text: &[u8], general: Option<&Incoming<'_>>) -> bool {
    let is_read = result_of::<Value>(text, general);
    result_of::<RetainedOutput>(text, general);
    result_of::<FileContent>(text, general);
    is_read
}

/// Whether a result of type `T` is read so.
fn result_of<T: DeserializeOwned + Debug + PartialEq>(
    text: &[u8],
    general: Option<&Incoming<'_>>,
) -> bool {
    let general = match general {
        Some(&Incoming::Response {
            id: Id::Number(id),
            result: Some(result),
        }) => Some((id, result.get())),
        _ => None,
    };
    let expected =
        general.and_then(|(id, result)| Some((id, serde_json::from_str::<T>(result).ok()?)));
    let short = str::from_utf8(text).ok().and_then(|text| {
        let (id, result) = jsonrpc::plain_answer(text.as_bytes())?;
        Some((id, jsonrpc::plain_result::<T>(&text[result..])?))
    });
    if let Some((id, result)) = general
        && short.is_none()
    {
        let written = format!(r#"{{"id":{id},"result":{result}}}"#);
        let is_left = expected.is_some() && id >= 0 && written.as_bytes() == text;
        assert!(!is_left, "the short way leaves {}", text.escape_ascii());
    }
    assert!(
        short.is_none() || short == expected,
        "read as {short:?} and as {expected:?}: {}",
        text.escape_ascii()
    );
    short.is_some()
}

/// The file that an answer brings, and the id of the request, if the short way can say it.
fn as_file(incoming: &Incoming<'_>) -> Option<(i64, FileContent)> {
    match incoming {
        Incoming::Response {
            id: Id::Number(id @ 0..),
            result: Some(result),
        } => Some((*id, serde_json::from_str(result.get()).ok()?)),
        _ => None,
    }
}

/// The output that a notification is, if the short way can say it.
fn as_plain(notification: &Notification) -> Option<PlainOutput<'_>> {
    let process_id = notification.process_id.as_str().as_bytes();
    let is_plain = |byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    let ProcessEvent::Output { stream, chunk } = &notification.event else {
        return None;
    };
    (process_id.iter().copied().all(is_plain) && notification.seq < 10_000_000_000_000_000_000)
        .then(|| PlainOutput {
            process_id,
            seq: notification.seq,
            stream: *stream,
            chunk: chunk.clone(),
        })
}

/// Writes an output as servers do.
fn written(output: &PlainOutput<'_>) -> Vec<u8> {
    let PlainOutput {
        process_id,
        seq,
        stream,
        chunk,
    } = output;
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
        Stream::Pty => "pty",
    };
    let process_id = String::from_utf8_lossy(process_id);
    let mut json = br#"{"method":"process/output","params":{"processId":""#.to_vec();
    let rest = write!(
        json,
        r#"{process_id}","seq":{seq},"stream":"{stream}","chunk":"#
    );
    rest.expect("there is memory");
    base64::append_json(chunk, &mut json);
    json.extend_from_slice(b"}}");
    json
}

/// Checks that the messages in what a server sends do not depend on where the reads end. The first byte
/// says how many lengths of reads follow, which are taken in turns; behind them is what the server sends.
pub fn frames(bytes: &[u8]) {
    let Some((&count, rest)) = bytes.split_first() else {
        return;
    };
    let (lengths, sent) = rest.split_at(rest.len().min(count.into()));
    let lengths = lengths.iter().map(|&length| usize::from(length) + 1);
    // Small, so that a small input reaches it.
    const LIMIT: usize = 1000;
    let whole = read(sent, iter::once(sent.len()), LIMIT);
    if lengths.len() > 0 {
        assert_eq!(read(sent, lengths.cycle(), LIMIT), whole);
    }
    if sent.len() <= 4 * LIMIT {
        assert_eq!(read(sent, iter::repeat(1), LIMIT), whole);
    }
}

/// A message that was cut out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Text(Bytes),
    File(i64, Bytes),
    Binary(usize),
    Ping(Bytes),
    Pong,
    Close(Option<u16>),
    /// What is wrong; there is nothing behind it.
    Violation(String),
    /// What is left of a message that is not whole: of its fragments, and in the buffer.
    Unfinished {
        joined: usize,
        buffered: usize,
    },
}

/// Cuts messages out of `sent`, of which each read brings as much as `lengths` says.
pub(crate) fn read(
    mut sent: &[u8],
    lengths: impl Iterator<Item = usize>,
    limit: usize,
) -> Vec<Cut> {
    let mut decoder = Decoder::with_large_from(limit, limit / 5);
    let mut buffer = BytesMut::new();
    let mut cut = Vec::new();
    for length in lengths {
        let missing = decoder.missing(&buffer);
        let (read, rest) = sent.split_at(length.min(sent.len()));
        sent = rest;
        buffer.extend_from_slice(read);
        let before = cut.len();
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(message)) => cut.push(copied(message)),
                Ok(None) => break,
                Err(reason) => {
                    cut.push(Cut::Violation(reason.to_string()));
                    return cut;
                }
            }
        }
        if read.len() < missing {
            assert_eq!(cut.len(), before, "a message that was not whole");
            // Of a file, nothing has to be there as a whole.
            let still = decoder.missing(&buffer);
            assert!(still == missing - read.len() || still == 0 && decoder.is_within_message());
        }
        let joined = decoder.joined_len();
        assert!(joined <= limit, "{joined} bytes of fragments are kept");
        // The longest header has 10 bytes, and the longest control frame 125 behind it.
        let bound = 10 + limit.saturating_sub(joined).max(125);
        let wanted = buffer.len() + decoder.missing(&buffer);
        assert!(wanted <= bound, "{wanted} bytes are wanted in the buffer");
        if sent.is_empty() {
            break;
        }
    }
    cut.push(Cut::Unfinished {
        joined: decoder.joined_len(),
        buffered: buffer.len(),
    });
    cut
}

/// Copies a message.
fn copied(message: Message<'_>) -> Cut {
    match message {
        Message::Text(text) => {
            assert_eq!(text.as_str().ok(), str::from_utf8(text.bytes()).ok());
            // In one read it comes as a text, however large it is.
            match whole_file(text.bytes()) {
                Some((id, content)) => Cut::File(id, content),
                None => Cut::Text(Bytes::copy_from_slice(text.bytes())),
            }
        }
        Message::File { id, content } => Cut::File(id, content),
        Message::Binary { size } => Cut::Binary(size),
        Message::Ping(payload) => Cut::Ping(payload),
        Message::Pong => Cut::Pong,
        Message::Close { code } => Cut::Close(code),
    }
}
