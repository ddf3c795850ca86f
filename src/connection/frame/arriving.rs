//! A file in a large answer, decoded as it comes: none of its base64 is kept. No socket.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::protocol::{
    base64,
    jsonrpc::{self, PLAIN_FILE},
};

/// A file of which not all has come.
#[derive(Debug)]
pub(crate) struct ArrivingFile {
    /// Of the request.
    id: i64,
    /// The frame: its beginning as it came, and behind that what the file holds.
    frame: Vec<u8>,
    /// Where the file begins in it.
    start: usize,
    /// How much base64 is still to come.
    missing: usize,
}

/// What has come of it.
#[derive(Debug)]
pub(crate) enum Arrival {
    Partial(ArrivingFile),
    /// The id of the request, and the file.
    Whole(i64, Bytes),
    /// It was something else, which lies in the buffer again as it came.
    Other,
}

impl ArrivingFile {
    /// So much of a text tells whether it is the answer to a request for a file.
    pub(crate) const TELLING: usize = 64;

    /// Takes the beginning off the front of `buffer` if that is a frame with a file: `payload_start` bytes and then
    /// `payload_len` of text, of which [`TELLING`](Self::TELLING) have come, or all.
    pub(crate) fn begin(
        payload_start: usize,
        payload_len: usize,
        buffer: &mut BytesMut,
    ) -> Option<Self> {
        let [before, after] = PLAIN_FILE;
        let (id, result) = jsonrpc::plain_answer(&buffer[payload_start..])?;
        let result = payload_start + result;
        let start = result + before.len();
        if !buffer[result..].starts_with(before) {
            return None;
        }
        let missing = (payload_start + payload_len).checked_sub(start + after.len())?;
        let frame = buffer[..start].to_vec();
        buffer.advance(start);
        Some(ArrivingFile {
            id,
            frame,
            start,
            missing,
        })
    }

    /// Takes off the front of `buffer` what belongs to it.
    pub(crate) fn take(mut self, buffer: &mut BytesMut) -> Arrival {
        let mut come = buffer.len().min(self.missing);
        if come < self.missing {
            come -= come % 4;
        }
        if come > 0 {
            if !self.decode(&buffer[..come]) {
                return self.put_back(buffer);
            }
            buffer.advance(come);
            self.missing -= come;
        }
        let [_, after] = PLAIN_FILE;
        if self.missing > 0 || buffer.len() < after.len() {
            return Arrival::Partial(self);
        }
        if !buffer.starts_with(after) {
            return self.put_back(buffer);
        }
        buffer.advance(after.len());
        let mut file = Bytes::from(self.frame);
        file.advance(self.start);
        Arrival::Whole(self.id, file)
    }

    fn decode(&mut self, text: &[u8]) -> bool {
        // Memory is committed as data comes, not as a header announces it, and in the end there is not too much.
        let decoded = base64::decoded_at_most(text.len());
        if self.frame.capacity() - self.frame.len() < decoded {
            let all = base64::decoded_at_most(self.missing);
            self.frame
                .reserve_exact(decoded.max(self.frame.len()).min(all));
        }
        base64::decode_behind(text, text.len() == self.missing, &mut self.frame)
    }

    fn put_back(mut self, buffer: &mut BytesMut) -> Arrival {
        // What could be decoded has but this one form.
        base64::encode_in_place(&mut self.frame, self.start);
        self.frame.extend_from_slice(buffer);
        *buffer = BytesMut::from(Bytes::from(self.frame));
        Arrival::Other
    }
}
