//! Refuses a message of a client from the header of its frame, before any of its content is kept.
//!
//! The codec that reads the frames looks at the size of a frame only when all of it is in memory.

use super::limits::{Held, Memory, OverLimit};

/// Until it has introduced itself, a client has no reason to send more than this in one message.
pub(super) const BEFORE_INITIALIZE: usize = 64 << 10;

/// Messages up to this size are not counted one by one: what a connection keeps of them is bounded by its buffers.
const SMALL: usize = 64 << 10;

/// The longest header of a client's frame: two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;

/// The largest content of a control frame (RFC 6455, 5.5).
const MAX_CONTROL: u64 = 125;

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Its header breaks the WebSocket protocol.
    Violation(&'static str),
    /// It is larger than a message of this client may be.
    TooLarge,
    /// The server holds as much for all of its clients as it may.
    OverLimit(OverLimit),
}

/// Bits that only extensions of the protocol use, of which none is in use.
const RESERVED_BITS: Refusal = Refusal::Violation("reserved bits are set, without an extension");
const LONG_CONTROL: Refusal = Refusal::Violation("a control frame is longer than 125 bytes");

/// Follows the frames of one client through the bytes as they come.
#[derive(Debug)]
pub(super) struct FrameGuard {
    memory: Memory,
    max_message_size: usize,
    /// The part of a header that has come.
    header: Vec<u8>,
    /// How much of the frame's content is still to come.
    content_left: u64,
    /// The size of the fragments of the message so far.
    message_size: u64,
    /// Counts a large message until the next one begins.
    held: Option<Held>,
}

impl FrameGuard {
    pub(super) fn new(memory: Memory) -> Self {
        FrameGuard {
            memory,
            max_message_size: BEFORE_INITIALIZE,
            header: Vec::with_capacity(MAX_HEADER),
            content_left: 0,
            message_size: 0,
            held: None,
        }
    }

    /// Lets messages of up to so many bytes through from now on.
    pub(super) fn allow(&mut self, max_message_size: usize) {
        self.max_message_size = max_message_size;
    }

    /// Follows what has come. After an error, nothing more may be read.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            if self.content_left > 0 {
                let length = bytes
                    .len()
                    .min(usize::try_from(self.content_left).unwrap_or(usize::MAX));
                self.content_left -= length as u64;
                bytes = &bytes[length..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let Some(frame) = Header::parse(&self.header) {
                self.header.clear();
                self.begin(frame)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, frame: Header) -> Result<(), Refusal> {
        self.content_left = frame.length;
        if frame.has_reserved_bits {
            return Err(RESERVED_BITS);
        }
        if frame.is_control {
            return match frame.length {
                0..=MAX_CONTROL => Ok(()),
                _ => Err(LONG_CONTROL),
            };
        }
        if !frame.is_continuation {
            self.message_size = 0;
        }
        self.message_size = self.message_size.saturating_add(frame.length);
        let size = usize::try_from(self.message_size)
            .ok()
            .filter(|size| *size <= self.max_message_size)
            .ok_or(Refusal::TooLarge)?;
        // The message before is handled by now, or is counted where it waits.
        self.held = None;
        if size > SMALL {
            self.held = Some(self.memory.hold(size).map_err(Refusal::OverLimit)?);
        }
        Ok(())
    }
}

struct Header {
    has_reserved_bits: bool,
    is_control: bool,
    is_continuation: bool,
    length: u64,
}

impl Header {
    /// Reads the header that these bytes are. `None` if more of it is to come.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let &[first, second, ref rest @ ..] = bytes else {
            return None;
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (length, length_size) = match (second & 0x7F, rest) {
            (126, &[a, b, ..]) => (u64::from(u16::from_be_bytes([a, b])), 2),
            (127, &[a, b, c, d, e, f, g, h, ..]) => {
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 8)
            }
            (126 | 127, _) => return None,
            (short, _) => (u64::from(short), 0),
        };
        (rest.len() == length_size + mask).then_some(Header {
            has_reserved_bits: first & 0x70 != 0,
            is_control: first & 0x08 != 0,
            is_continuation: first & 0x0F == 0,
            length,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A masked header, as clients send it.
    fn header(first: u8, length: u64) -> Vec<u8> {
        let mut header = vec![first];
        match length {
            0..126 => header.push(0x80 | length as u8),
            126..0x1_0000 => {
                header.push(0x80 | 126);
                header.extend((length as u16).to_be_bytes());
            }
            _ => {
                header.push(0x80 | 127);
                header.extend(length.to_be_bytes());
            }
        }
        header.extend([1, 2, 3, 4]);
        header
    }

    fn guard(max_message_size: usize, limit: usize) -> FrameGuard {
        let mut guard = FrameGuard::new(Memory::new(limit));
        guard.allow(max_message_size);
        guard
    }

    #[test]
    fn p10_an_oversized_frame_is_refused_from_its_header() {
        for length in [1001, 1 << 16, 1 << 40, u64::MAX] {
            let mut guard = guard(1000, usize::MAX);
            assert_eq!(
                guard.follow(&header(0x81, length)),
                Err(Refusal::TooLarge),
                "{length}"
            );
        }
        let mut guard = guard(1000, usize::MAX);
        assert_eq!(guard.follow(&header(0x89, 126)), Err(LONG_CONTROL));
        let mut guard = FrameGuard::new(Memory::new(usize::MAX));
        assert_eq!(
            guard.follow(&header(0x81, BEFORE_INITIALIZE as u64 + 1)),
            Err(Refusal::TooLarge)
        );
    }

    #[test]
    fn p10_a_frame_of_an_extension_is_refused() {
        for bit in [0x40, 0x20, 0x10] {
            let mut guard = guard(1000, usize::MAX);
            assert_eq!(guard.follow(&header(0x81 | bit, 2)), Err(RESERVED_BITS));
        }
    }

    #[test]
    fn p10_fragments_count_together_and_control_frames_between_them_do_not() {
        let mut bytes = Vec::new();
        for (first, length) in [
            (0x01, 600),
            (0x89, 100),
            (0x00, 300),
            (0x80, 100),
            (0x82, 1000),
        ] {
            bytes.extend(header(first, length));
            bytes.extend(vec![0xFF; length as usize]);
        }
        // However the bytes are cut, the guard follows.
        for size in [1, 2, 7, 1000, bytes.len()] {
            let mut guard = guard(1000, usize::MAX);
            for piece in bytes.chunks(size) {
                assert_eq!(guard.follow(piece), Ok(()), "{size}");
            }
            assert_eq!(guard.follow(&header(0x01, 600)), Ok(()));
            assert_eq!(guard.follow(&vec![0; 600]), Ok(()));
            assert_eq!(guard.follow(&header(0x00, 401)), Err(Refusal::TooLarge));
        }
    }

    #[test]
    fn p4_large_messages_of_all_clients_are_counted_together_until_the_next_one() {
        let memory = Memory::new(300_000);
        let mut guards: Vec<_> = (0..3).map(|_| FrameGuard::new(memory.clone())).collect();
        guards.iter_mut().for_each(|guard| guard.allow(200_000));
        assert_eq!(guards[0].follow(&header(0x81, 200_000)), Ok(()));
        assert_eq!(guards[1].follow(&header(0x81, 100)), Ok(()));
        assert!(matches!(
            guards[2].follow(&header(0x81, 200_000)),
            Err(Refusal::OverLimit(_))
        ));
        assert_eq!(guards[0].follow(&vec![0; 200_000]), Ok(()));
        assert_eq!(guards[0].follow(&header(0x81, 10)), Ok(()));
        assert_eq!(guards[1].follow(&[0; 100]), Ok(()));
        assert_eq!(guards[1].follow(&header(0x81, 200_000)), Ok(()));
        drop(guards);
        assert!(
            memory.hold(300_000).is_ok(),
            "a connection that ends gives all back"
        );
    }
}
