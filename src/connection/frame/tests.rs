use actix_codec::{Decoder as _, Encoder as _};
use actix_http::ws;

use super::*;

const LIMIT: usize = 200_000;

/// A server's frame, as awc writes it.
fn served(message: ws::Message) -> BytesMut {
    let mut buffer = BytesMut::new();
    ws::Codec::new().encode(message, &mut buffer).unwrap();
    buffer
}

#[derive(Debug, PartialEq, Eq)]
enum Decoded {
    Text(String),
    File(i64, Bytes),
    Binary(usize),
    Ping(Bytes),
    Pong,
    Close { code: Option<u16> },
}

fn decode_next(
    decoder: &mut Decoder,
    buffer: &mut BytesMut,
) -> Result<Option<Decoded>, DisconnectReason> {
    let Some(message) = decoder.decode(buffer)? else {
        return Ok(None);
    };
    Ok(Some(match message {
        Message::Text(text) => Decoded::Text(text.as_str()?.to_owned()),
        Message::File { id, content } => Decoded::File(id, content),
        Message::Binary { size } => Decoded::Binary(size),
        Message::Ping(payload) => Decoded::Ping(payload),
        Message::Pong => Decoded::Pong,
        Message::Close { code } => Decoded::Close { code },
    }))
}

fn decode_all(bytes: &[u8]) -> Result<Vec<Decoded>, DisconnectReason> {
    let mut decoder = Decoder::new(LIMIT);
    let mut buffer = BytesMut::from(bytes);
    let mut messages = Vec::new();
    while let Some(message) = decode_next(&mut decoder, &mut buffer)? {
        messages.push(message);
    }
    Ok(messages)
}

fn text(length: usize) -> String {
    ('a'..='z').cycle().take(length).collect()
}

#[test]
fn messages_of_every_length_form_are_cut_out_wherever_the_reads_end() {
    let mut bytes = Vec::new();
    let lengths = [0, 1, 125, 126, 127, 65_535, 65_536, 100_000];
    for length in lengths {
        bytes.extend_from_slice(&served(ws::Message::Text(text(length).into())));
    }
    for step in [1, 7, 4096, bytes.len()] {
        let mut decoder = Decoder::new(LIMIT);
        let mut buffer = BytesMut::new();
        let mut messages = Vec::new();
        for read in bytes.chunks(step) {
            buffer.extend_from_slice(read);
            while let Some(message) = decode_next(&mut decoder, &mut buffer).unwrap() {
                messages.push(message);
            }
        }
        let expected = lengths.map(|length| Decoded::Text(text(length)));
        assert!(messages == expected, "in steps of {step}");
        assert!(buffer.is_empty());
    }
}

#[test]
fn fragments_are_joined_and_control_frames_may_stand_between() {
    let mut bytes = vec![0x01, 2, b'a', b'b'];
    bytes.extend_from_slice(&[0x89, 1, b'!']);
    bytes.extend_from_slice(&[0x00, 0]);
    bytes.extend_from_slice(&[0x8A, 0]);
    bytes.extend_from_slice(&[0x80, 1, b'c']);
    assert_eq!(
        decode_all(&bytes).unwrap(),
        [
            Decoded::Ping("!".into()),
            Decoded::Pong,
            Decoded::Text("abc".into())
        ]
    );
}

#[test]
fn a_character_may_be_split_between_fragments() {
    let bytes = [0x01, 1, 0xC3, 0x80, 1, 0xA4];
    assert_eq!(decode_all(&bytes).unwrap(), [Decoded::Text("ä".into())]);
}

#[test]
fn p10_an_oversized_frame_is_refused_from_its_header() {
    for (announced, header) in [
        (
            16 << 30,
            [&[0x81, 127][..], &(16u64 << 30).to_be_bytes()].concat(),
        ),
        (
            u64::MAX,
            [&[0x82, 127][..], &u64::MAX.to_be_bytes()].concat(),
        ),
        (
            LIMIT as u64 + 1,
            [&[0x01, 127][..], &(LIMIT as u64 + 1).to_be_bytes()].concat(),
        ),
    ] {
        match decode_all(&header) {
            Err(DisconnectReason::MessageTooLarge { size, limit: LIMIT }) => {
                assert_eq!(size, announced)
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn p10_fragments_are_joined_under_the_same_cap() {
    let half = vec![b'a'; LIMIT / 2];
    let mut bytes = [&[0x01, 127][..], &(half.len() as u64).to_be_bytes(), &half].concat();
    bytes.extend([&[0x00, 127][..], &(half.len() as u64).to_be_bytes(), &half].concat());
    bytes.extend([0x80, 1]);
    assert!(matches!(
        decode_all(&bytes),
        Err(DisconnectReason::MessageTooLarge { size, .. }) if size == LIMIT as u64 + 1
    ));
}

#[test]
fn p10_text_that_is_not_utf8_is_refused() {
    for bytes in [
        &[0x81, 1, 0xFF][..],
        &[0x01, 1, 0xC3, 0x80, 0],
        &[0x81, 2, 0xED, 0xA0],
    ] {
        assert!(matches!(
            decode_all(bytes),
            Err(DisconnectReason::InvalidUtf8)
        ));
    }
}

#[test]
fn p10_what_breaks_the_protocol_is_refused() {
    for (bytes, what) in [
        (&[0xC1, 0][..], "reserved bits"),
        (&[0x81, 0x80], "masked"),
        (&[0x83, 0], "opcode"),
        (&[0x09, 0], "control frame is fragmented"),
        (&[0x89, 126, 0, 126], "longer than 125"),
        (&[0x80, 0], "continues no message"),
        (&[0x01, 0, 0x01, 0], "within another"),
        (&[0x01, 0, 0x82, 0], "within another"),
        (&[0x88, 1, 3], "half a code"),
    ] {
        match decode_all(bytes) {
            Err(DisconnectReason::WebSocketViolation(said)) => {
                assert!(said.contains(what), "{said}")
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_message_goes_off_the_buffer_when_it_was_looked_at() {
    let mut buffer = BytesMut::from(&[0x81, 1, b'a', 0x81, 1, b'b', 0x82, 3, 0, 0, 0][..]);
    let mut decoder = Decoder::new(LIMIT);
    match decoder.decode(&mut buffer).unwrap() {
        Some(Message::Text(text)) => assert_eq!(text.bytes(), b"a"),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        decode_next(&mut decoder, &mut buffer).unwrap(),
        Some(Decoded::Text("b".into()))
    );
    assert_eq!(
        decode_next(&mut decoder, &mut buffer).unwrap(),
        Some(Decoded::Binary(3))
    );
    assert!(buffer.is_empty());
}

#[test]
fn a_large_message_leaves_the_rest_a_buffer_of_its_own() {
    let large = text(KEPT_CAPACITY + 1);
    let mut buffer = served(ws::Message::Text(large.clone().into()));
    buffer.extend_from_slice(&[0x81, 5, b'a']);
    let mut decoder = Decoder::new(2 * KEPT_CAPACITY);
    match decoder.decode(&mut buffer).unwrap() {
        Some(Message::Text(text)) => assert!(text.bytes() == large.as_bytes()),
        other => panic!("{other:?}"),
    }
    assert_eq!(buffer[..], [0x81, 5, b'a']);
    assert!(buffer.capacity() < 1024, "{}", buffer.capacity());
}

/// Cuts messages out of what comes in such reads, and returns them with the most that was in the buffer.
fn decode_in_reads(sent: &[u8], lengths: &[usize]) -> (Vec<Decoded>, usize) {
    let mut decoder = Decoder::new(16 << 20);
    let mut buffer = BytesMut::new();
    let (mut messages, mut most) = (Vec::new(), 0);
    let mut rest = sent;
    for &length in lengths.iter().cycle() {
        let (read, behind) = rest.split_at(rest.len().min(length));
        rest = behind;
        buffer.extend_from_slice(read);
        most = most.max(buffer.len());
        while let Some(message) = decode_next(&mut decoder, &mut buffer).unwrap() {
            messages.push(message);
        }
        if rest.is_empty() {
            assert!(buffer.is_empty() && !decoder.is_within_message());
            return (messages, most);
        }
    }
    unreachable!("it has ended");
}

/// The answer to a request for a file.
fn file_answer(id: i64, content: &[u8]) -> String {
    let base64 = base64_simd::STANDARD.encode_to_string(content);
    format!(r#"{{"id":{id},"result":{{"dataBase64":"{base64}"}}}}"#)
}

#[test]
fn p4_a_large_file_is_decoded_as_it_comes_and_what_is_none_comes_as_it_is() {
    for extra in 0..3 {
        let content: Vec<u8> = (0..KEPT_CAPACITY + extra)
            .map(|n| (n % 251) as u8)
            .collect();
        let file = file_answer(7, &content);
        let mut broken = file.clone();
        broken.replace_range(700_000..700_001, "!");
        let with_more = file.replace(r#""}}"#, r#"","x":1}}"#);
        let mut said = Vec::new();
        for text in [
            &broken,
            &file,
            "a",
            &file,
            &with_more,
            &text(2 << 20),
            &file,
        ] {
            said.extend_from_slice(&served(ws::Message::Text(text.to_owned().into())));
        }
        let file = || Decoded::File(7, content.clone().into());
        let as_text = |text: &str| Decoded::Text(text.to_owned());
        let expected = [
            as_text(&broken),
            file(),
            as_text("a"),
            file(),
            as_text(&with_more),
            as_text(&text(2 << 20)),
            file(),
        ];
        for lengths in [&[100_000][..], &[1, 2, 3, 5, 40_000, 61], &[300_001, 3]] {
            let (messages, _) = decode_in_reads(&said, lengths);
            assert!(
                messages == expected,
                "in reads of {lengths:?}, {extra} more"
            );
        }
    }
}

#[test]
fn p4_of_the_base64_of_a_large_file_nothing_is_kept() {
    let file = served(ws::Message::Text(
        file_answer(7, &vec![b'x'; 4 << 20]).into(),
    ));
    let (_, most) = decode_in_reads(&file, &[100_000]);
    assert!(most <= 100_003, "{most} bytes in the buffer");
}

#[test]
fn a_large_file_is_known_however_little_comes_of_it_at_first() {
    let content = vec![b'x'; 2 << 20];
    let file = served(ws::Message::Text(file_answer(7, &content).into()));
    for first in 1..100 {
        let (messages, _) = decode_in_reads(&file, &[first, file.len() / 2]);
        assert!(messages == [Decoded::File(7, content.clone().into())]);
    }
}

#[test]
fn only_a_text_in_one_frame_is_a_large_file() {
    let text = file_answer(7, &vec![b'x'; 2 << 20]);
    let binary = served(ws::Message::Binary(text.clone().into()));
    let (messages, _) = decode_in_reads(&binary, &[100_000]);
    assert_eq!(messages, [Decoded::Binary(text.len())]);
    let mut fragments = b"\x01\x01a".to_vec();
    fragments.extend_from_slice(&served(ws::Message::Text(text.clone().into())));
    fragments[3] = 0x80;
    let (messages, _) = decode_in_reads(&fragments, &[100_000]);
    assert!(messages == [Decoded::Text(format!("a{text}"))]);
    let mut fragments = served(ws::Message::Text(text.clone().into())).to_vec();
    fragments[0] = 0x01;
    fragments.extend_from_slice(b"\x80\x01a");
    let (messages, _) = decode_in_reads(&fragments, &[100_000]);
    assert!(messages == [Decoded::Text(format!("{text}a"))]);
}

#[test]
fn a_large_file_that_is_cut_off_is_within_a_message() {
    let file = served(ws::Message::Text(
        file_answer(7, &vec![b'x'; 4 << 20]).into(),
    ));
    let mut decoder = Decoder::new(16 << 20);
    let mut buffer = BytesMut::from(&file[..400_010]);
    assert_eq!(decode_next(&mut decoder, &mut buffer).unwrap(), None);
    assert!(buffer.len() < 4 && decoder.is_within_message());
    assert_eq!(decoder.missing(&buffer), 0);
}

#[test]
fn close_frames_carry_their_code() {
    assert_eq!(
        decode_all(&[0x88, 0]).unwrap(),
        [Decoded::Close { code: None }]
    );
    assert_eq!(
        decode_all(&[0x88, 3, 3, 0xE9, b'x']).unwrap(),
        [Decoded::Close { code: Some(1001) }]
    );
}

#[test]
fn what_is_missing_is_told_once_the_header_is_there() {
    let decoder = Decoder::new(LIMIT);
    assert_eq!(decoder.missing(&[]), 0);
    assert_eq!(decoder.missing(&[0x81]), 0);
    assert_eq!(decoder.missing(&[0x81, 5, b'a']), 4);
    assert_eq!(decoder.missing(&[0x81, 126, 1, 0]), 256);
    assert_eq!(decoder.missing(&[0x81, 1, b'a', 0x81]), 0);
}

#[test]
fn what_is_encoded_reads_the_same_in_awcs_codec() {
    let mut encoder = Encoder::default();
    for length in [0, 1, 3, 4, 5, 125, 126, 127, 65_535, 65_536, 100_001] {
        let mut buffer = BytesMut::new();
        encoder.text(text(length).as_bytes(), &mut buffer);
        encoder.pong(b"hi", &mut buffer);
        encoder.ping(&mut buffer);
        encoder.close(&mut buffer);
        let mut codec = ws::Codec::new().max_size(LIMIT);
        let mut next = || codec.decode(&mut buffer).unwrap();
        assert_eq!(next(), Some(ws::Frame::Text(text(length).into())));
        assert_eq!(next(), Some(ws::Frame::Pong("hi".into())));
        assert_eq!(next(), Some(ws::Frame::Ping(Bytes::new())));
        assert_eq!(
            next(),
            Some(ws::Frame::Close(Some(ws::CloseCode::Normal.into())))
        );
        assert_eq!(next(), None);
    }
}

#[test]
fn a_long_message_goes_out_in_fragments_that_servers_accept() {
    let long = text(2 * MAX_FRAME_PAYLOAD + 1);
    let mut buffer = BytesMut::new();
    Encoder::default().text(long.as_bytes(), &mut buffer);
    let mut codec = ws::Codec::new().max_size(MAX_FRAME_PAYLOAD);
    let mut joined = Vec::new();
    let mut count = 0;
    while let Some(frame) = codec.decode(&mut buffer).unwrap() {
        let ws::Frame::Continuation(
            ws::Item::FirstText(part) | ws::Item::Continue(part) | ws::Item::Last(part),
        ) = frame
        else {
            panic!("{frame:?}");
        };
        joined.extend_from_slice(&part);
        count += 1;
    }
    assert_eq!(count, 3);
    assert!(joined == long.as_bytes());
}

#[test]
fn masks_differ_from_frame_to_frame() {
    let mut encoder = Encoder::default();
    assert_ne!(encoder.mask(), encoder.mask());
}

#[test]
fn p10_what_is_no_file_after_all_is_not_tried_again() {
    let mut text = file_answer(7, &vec![b'x'; 2 << 20]);
    text.replace_range(700_000..700_001, "!");
    let frame = served(ws::Message::Text(text.into()));
    let mut decoder = Decoder::new(16 << 20);
    let mut buffer = BytesMut::from(&frame[..700_100]);
    assert_eq!(decode_next(&mut decoder, &mut buffer).unwrap(), None);
    assert_eq!(buffer, frame[..700_100]);
    buffer.reserve(frame.len());
    let place = buffer.as_ptr();
    for begin in (700_100..1_000_000).step_by(100) {
        buffer.extend_from_slice(&frame[begin..begin + 100]);
        assert_eq!(decode_next(&mut decoder, &mut buffer).unwrap(), None);
        assert_eq!(buffer.as_ptr(), place, "it was taken out and put back");
    }
}
