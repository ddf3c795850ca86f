//! WebSocket frames: cuts messages out of what was read, and wraps those to be sent. No socket.
//!
//! The codec of awc looks at a frame's size only when the whole frame is in memory, hands out
//! fragments and does not check text. This one refuses a frame from its header, joins fragments
//! under the same cap, checks UTF-8, and decodes a large file as it comes. The tests compare it with awc's.

use std::{
    hash::{BuildHasher as _, RandomState},
    ops::ControlFlow,
};

use bytes::{Buf as _, Bytes, BytesMut};

use crate::error::DisconnectReason;

mod arriving;
#[cfg(test)]
mod pieces;

pub(crate) use self::arriving::{Arrival, ArrivingFile};

/// A message of the peer, whole.
#[derive(Debug)]
pub(crate) enum Message<'b> {
    Text(Text<'b>),
    /// What a file holds, and the id of the request that asked for it, out of a large text.
    File {
        id: i64,
        content: Bytes,
    },
    Binary {
        size: usize,
    },
    Ping(Bytes),
    Pong,
    Close {
        code: Option<u16>,
    },
}

/// The payload of a text message, not yet checked to be UTF-8.
#[derive(Debug)]
pub(crate) enum Text<'b> {
    /// It is read where it lies: nearly all of what comes is copied out of there anyway, as base64.
    InBuffer(Front<'b>),
    /// Of several fragments.
    Joined(BytesMut),
}

/// A payload at the front of a read buffer, behind its header. Both are taken off when this is dropped.
#[derive(Debug)]
pub(crate) struct Front<'b> {
    buffer: &'b mut BytesMut,
    start: usize,
    end: usize,
}

impl Drop for Front<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.end > KEPT_CAPACITY {
            let rest = BytesMut::from(&self.buffer[self.end..]);
            *self.buffer = rest;
        } else {
            self.buffer.advance(self.end);
        }
    }
}

/// A buffer that had to grow beyond this for one message is not kept after it.
pub(crate) const KEPT_CAPACITY: usize = 1 << 20;

impl Text<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Text::InBuffer(front) => front.bytes(),
            Text::Joined(joined) => joined,
        }
    }

    /// Checks it, where it lies.
    pub(crate) fn as_str(&self) -> Result<&str, DisconnectReason> {
        str::from_utf8(self.bytes()).map_err(|_| DisconnectReason::InvalidUtf8)
    }
}

impl Front<'_> {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
/// RFC 6455, 5.5: control frames carry at most 125 bytes and are never fragmented.
const MAX_CONTROL_PAYLOAD: usize = 125;

/// Cuts the messages of a server out of a read buffer.
#[derive(Debug)]
pub(crate) struct Decoder {
    max_message_size: usize,
    /// Frames with more are looked at before all has come.
    large_from: usize,
    /// The beginning of a fragmented message: whether it is text, and what has come of it.
    fragments: Option<(Opcode, BytesMut)>,
    /// What a large frame is of which not all has come.
    large: Option<Large>,
}

#[derive(Debug)]
enum Large {
    File(ArrivingFile),
    Other,
}

/// The header of a frame: what it is, and where its payload lies.
struct Header {
    fin: bool,
    opcode: Opcode,
    payload_start: usize,
    payload_len: usize,
}

impl Decoder {
    pub(crate) fn new(max_message_size: usize) -> Self {
        Decoder::with_large_from(max_message_size, KEPT_CAPACITY)
    }

    pub(crate) fn with_large_from(max_message_size: usize, large_from: usize) -> Self {
        Decoder {
            max_message_size,
            large_from,
            fragments: None,
            large: None,
        }
    }

    /// Takes the next message off the front of `buffer`, or returns `None` if it is not whole yet.
    #[inline(always)]
    pub(crate) fn decode<'b>(
        &mut self,
        buffer: &'b mut BytesMut,
    ) -> Result<Option<Message<'b>>, DisconnectReason> {
        if self.large.is_some()
            && let ControlFlow::Break(message) = self.go_on(buffer)
        {
            return Ok(message);
        }
        while let Some(header) = self.header(buffer)? {
            if buffer.len() - header.payload_start < header.payload_len {
                if header.payload_len > self.large_from {
                    self.begin(&header, buffer);
                }
                return Ok(None);
            }
            let is_whole = header.fin && self.fragments.is_none();
            let start = header.payload_start;
            let end = start + header.payload_len;
            if is_whole && header.opcode == Opcode::Text {
                let front = Front { buffer, start, end };
                return Ok(Some(Message::Text(Text::InBuffer(front))));
            }
            let payload = Front {
                buffer: &mut *buffer,
                start,
                end,
            };
            if is_whole && header.opcode == Opcode::Binary {
                // Of no use to anyone, however large it is: not copied.
                let size = header.payload_len;
                return Ok(Some(Message::Binary { size }));
            }
            if let Some(message) = self.join(&header, payload.bytes())? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Finds out what a large frame is of which not all has come.
    #[cold]
    fn begin(&mut self, header: &Header, buffer: &mut BytesMut) {
        let Header {
            fin,
            opcode,
            payload_start,
            payload_len,
        } = *header;
        if buffer.len() - payload_start < ArrivingFile::TELLING {
            return;
        }
        let is_text = fin && opcode == Opcode::Text && self.fragments.is_none();
        let file = is_text.then(|| ArrivingFile::begin(payload_start, payload_len, buffer));
        self.large = match file.flatten().map(|file| file.take(buffer)) {
            Some(Arrival::Partial(file)) => Some(Large::File(file)),
            _ => Some(Large::Other),
        };
    }

    /// Goes on with a large frame, as long as it is not what is read as all others are.
    #[cold]
    fn go_on(&mut self, buffer: &mut BytesMut) -> ControlFlow<Option<Message<'static>>> {
        if let Some(Large::File(file)) = self.large.take() {
            match file.take(buffer) {
                Arrival::Partial(file) => {
                    self.large = Some(Large::File(file));
                    return ControlFlow::Break(None);
                }
                Arrival::Whole(id, content) => {
                    return ControlFlow::Break(Some(Message::File { id, content }));
                }
                Arrival::Other => {}
            }
        }
        if self.missing(buffer) == 0 {
            return ControlFlow::Continue(());
        }
        self.large = Some(Large::Other);
        ControlFlow::Break(None)
    }

    /// Returns how many bytes the frame at the front of `buffer` still lacks, as far as its header tells, if it has to
    /// be there as a whole.
    pub(crate) fn missing(&self, buffer: &[u8]) -> usize {
        if self.is_within_file() {
            return 0;
        }
        match self.header(buffer) {
            Ok(Some(header)) => header
                .payload_len
                .saturating_add(header.payload_start)
                .saturating_sub(buffer.len()),
            Ok(None) | Err(_) => 0,
        }
    }

    /// Whether something of a message has come that is not whole.
    pub(crate) fn is_within_message(&self) -> bool {
        self.fragments.is_some() || self.large.is_some()
    }

    /// Whether what comes next is of a file that is decoded as it comes.
    pub(crate) fn is_within_file(&self) -> bool {
        matches!(self.large, Some(Large::File(_)))
    }

    /// How much has come of a message in fragments.
    pub(crate) fn joined_len(&self) -> usize {
        self.fragments
            .as_ref()
            .map_or(0, |(_, joined)| joined.len())
    }

    #[inline(always)]
    fn header(&self, buffer: &[u8]) -> Result<Option<Header>, DisconnectReason> {
        let &[first, second, ref rest @ ..] = buffer else {
            return Ok(None);
        };
        if first & RESERVED != 0 {
            return Err(violation("reserved bits are set"));
        }
        if second & MASKED != 0 {
            return Err(violation("a server's frames are not masked"));
        }
        let opcode = match first & 0x0F {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            _ => return Err(violation("unknown opcode")),
        };
        let (length, payload_start) = match (second, rest) {
            (126, &[a, b, ..]) => (u64::from(u16::from_be_bytes([a, b])), 4),
            (127, &[a, b, c, d, e, f, g, h, ..]) => {
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 10)
            }
            (126 | 127, _) => return Ok(None),
            (short, _) => (u64::from(short), 2),
        };
        let fin = first & FIN != 0;
        let payload_len = match opcode {
            Opcode::Close | Opcode::Ping | Opcode::Pong => {
                if !fin {
                    return Err(violation("a control frame is fragmented"));
                }
                if length > MAX_CONTROL_PAYLOAD as u64 {
                    return Err(violation("a control frame is longer than 125 bytes"));
                }
                length as usize
            }
            Opcode::Continuation | Opcode::Text | Opcode::Binary => self.within_limit(length)?,
        };
        Ok(Some(Header {
            fin,
            opcode,
            payload_start,
            payload_len,
        }))
    }

    /// Checks the size of the message that a data frame of `length` bytes would make.
    fn within_limit(&self, length: u64) -> Result<usize, DisconnectReason> {
        let joined = self.joined_len();
        let size = length.saturating_add(joined as u64);
        match usize::try_from(size) {
            Ok(size) if size <= self.max_message_size => Ok(size - joined),
            _ => Err(DisconnectReason::MessageTooLarge {
                size,
                limit: self.max_message_size,
            }),
        }
    }

    /// Makes a message of a frame, or keeps it if more of it is to come.
    #[inline(never)]
    fn join(
        &mut self,
        header: &Header,
        payload: &[u8],
    ) -> Result<Option<Message<'static>>, DisconnectReason> {
        match header.opcode {
            Opcode::Text | Opcode::Binary if self.fragments.is_some() => {
                Err(violation("a message begins within another"))
            }
            Opcode::Text | Opcode::Binary => {
                self.fragments = Some((header.opcode, payload.into()));
                Ok(None)
            }
            Opcode::Continuation => {
                let Some((opcode, mut joined)) = self.fragments.take() else {
                    return Err(violation("a fragment continues no message"));
                };
                joined.extend_from_slice(payload);
                if header.fin {
                    return Ok(Some(whole(opcode, joined)));
                }
                self.fragments = Some((opcode, joined));
                Ok(None)
            }
            Opcode::Close => Ok(Some(Message::Close {
                code: close_code(payload)?,
            })),
            Opcode::Ping => Ok(Some(Message::Ping(Bytes::copy_from_slice(payload)))),
            Opcode::Pong => Ok(Some(Message::Pong)),
        }
    }
}

fn whole(opcode: Opcode, payload: BytesMut) -> Message<'static> {
    match opcode {
        Opcode::Binary => Message::Binary {
            size: payload.len(),
        },
        _ => Message::Text(Text::Joined(payload)),
    }
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, DisconnectReason> {
    match payload {
        [] => Ok(None),
        [a, b, ..] => Ok(Some(u16::from_be_bytes([*a, *b]))),
        [_] => Err(violation("a close frame has half a code")),
    }
}

fn violation(what: &'static str) -> DisconnectReason {
    DisconnectReason::WebSocketViolation(what)
}

/// Wraps messages of a client: masked, as RFC 6455 demands of it.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    /// Keyed with the system's randomness; hashing a counter gives masks that nobody can foresee.
    masks: RandomState,
    count: u64,
}

/// Servers take 16 MiB in a frame and drop the connection for more; a longer message goes out in
/// fragments of this size.
const MAX_FRAME_PAYLOAD: usize = 8 << 20;

impl Encoder {
    pub(crate) fn text(&mut self, payload: &[u8], buffer: &mut BytesMut) {
        buffer.reserve(payload.len() + 14);
        let mut opcode = Opcode::Text;
        let mut rest = payload;
        while rest.len() > MAX_FRAME_PAYLOAD {
            let (fragment, after) = rest.split_at(MAX_FRAME_PAYLOAD);
            self.frame(opcode as u8, fragment, buffer);
            opcode = Opcode::Continuation;
            rest = after;
        }
        self.frame(FIN | opcode as u8, rest, buffer);
    }

    pub(crate) fn ping(&mut self, buffer: &mut BytesMut) {
        self.frame(FIN | Opcode::Ping as u8, &[], buffer);
    }

    pub(crate) fn pong(&mut self, payload: &[u8], buffer: &mut BytesMut) {
        self.frame(FIN | Opcode::Pong as u8, payload, buffer);
    }

    /// A close frame with code 1000, "normal closure".
    pub(crate) fn close(&mut self, buffer: &mut BytesMut) {
        self.frame(FIN | Opcode::Close as u8, &1000u16.to_be_bytes(), buffer);
    }

    fn frame(&mut self, first: u8, payload: &[u8], buffer: &mut BytesMut) {
        buffer.extend_from_slice(&[first]);
        match payload.len() {
            length @ 0..=125 => buffer.extend_from_slice(&[MASKED | length as u8]),
            length @ 126..=0xFFFF => {
                buffer.extend_from_slice(&[MASKED | 126]);
                buffer.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                buffer.extend_from_slice(&[MASKED | 127]);
                buffer.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        let mask = self.mask();
        buffer.extend_from_slice(&mask);
        let start = buffer.len();
        buffer.extend_from_slice(payload);
        let (blocks, rest) = buffer[start..].as_chunks_mut::<4>();
        for block in blocks {
            *block = (u32::from_ne_bytes(*block) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
        }
        for (byte, key) in rest.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }

    fn mask(&mut self) -> [u8; 4] {
        self.count += 1;
        let [a, b, c, d, ..] = self.masks.hash_one(self.count).to_ne_bytes();
        [a, b, c, d]
    }
}

#[cfg(test)]
mod tests;
