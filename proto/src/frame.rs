//! Whole frames: encoded once, sliced out of what arrived without copying, and laid side by side.

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::{
    error::Code,
    header::{FrameType, Header, RoutedHeader, SHORT_BYTES, ShortHeader},
    ids::ChannelId,
};

/// One whole frame: its parsed header and all its bytes, header included. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The header as parsed.
    pub header: Header,
    /// Header and body, as on the wire.
    pub bytes: Bytes,
}

impl Frame {
    /// Slices the first frame off `bytes` without copying. `Ok(None)`: not yet whole.
    ///
    /// # Errors
    /// Those of [`Header::parse`].
    pub fn split_from(bytes: &mut Bytes) -> Result<Option<Self>, Code> {
        let Some(header) = Header::parse(bytes)? else { return Ok(None) };
        if bytes.len() < header.frame_bytes() {
            return Ok(None);
        }
        Ok(Some(Self { header, bytes: bytes.split_to(header.frame_bytes()) }))
    }

    /// All frames of a WebSocket message or of a gathered buffer, which must end with the last of them.
    pub fn iter(bytes: Bytes) -> Frames {
        Frames { rest: bytes }
    }

    /// What it is.
    pub fn frame_type(&self) -> FrameType {
        self.header.short().frame_type
    }

    /// The body, shared with the frame.
    pub fn body(&self) -> Bytes {
        self.bytes.slice(self.header.header_bytes()..)
    }

    /// The body as its protobuf message; `bytes` fields share the frame's buffer.
    ///
    /// # Errors
    /// `BAD_BODY`.
    pub fn decode<M: Message + Default>(&self) -> Result<M, Code> {
        M::decode(self.body()).map_err(|_| Code::BAD_BODY)
    }

    /// The routed header of a frame that has one.
    pub fn routed(&self) -> Option<&RoutedHeader> {
        self.header.routed()
    }
}

/// See [`Frame::iter`].
#[derive(Debug)]
pub struct Frames {
    rest: Bytes,
}

impl Iterator for Frames {
    type Item = Result<Frame, Code>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let frame = Frame::split_from(&mut self.rest);
        if !matches!(frame, Ok(Some(_))) {
            self.rest.clear();
        }
        Some(frame.and_then(|frame| frame.ok_or(Code::TRUNCATED)))
    }
}

/// Cuts a stream of bytes (a QUIC stream) into frames. Holds a buffer only while a frame is partial.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    partial: BytesMut,
}

impl FrameBuffer {
    /// Takes the bytes that arrived; whole frames inside `chunk` are sliced out of it, without a copy.
    ///
    /// # Errors
    /// Those of [`Header::parse`], known before the body is held.
    pub fn feed(&mut self, mut chunk: Bytes, mut frame: impl FnMut(Frame)) -> Result<(), Code> {
        while !self.partial.is_empty() && !chunk.is_empty() {
            // First the header, then the rest of the one frame that straddles the chunks.
            let wanted = match Header::parse(&self.partial)? {
                Some(header) => header.frame_bytes() - self.partial.len(),
                None if self.partial.len() < SHORT_BYTES => SHORT_BYTES - self.partial.len(),
                None => crate::header::ROUTED_BYTES - self.partial.len(),
            };
            self.partial.extend_from_slice(&chunk.split_to(wanted.min(chunk.len())));
            if let Some(header) = Header::parse(&self.partial)?
                && self.partial.len() == header.frame_bytes()
            {
                frame(Frame { header, bytes: std::mem::take(&mut self.partial).freeze() });
            }
        }
        while let Some(whole) = Frame::split_from(&mut chunk)? {
            frame(whole);
        }
        if !chunk.is_empty() {
            self.partial.extend_from_slice(&chunk);
        }
        Ok(())
    }

    /// Whether a frame was begun and not ended.
    pub fn is_partial(&self) -> bool {
        !self.partial.is_empty()
    }
}

/// Encodes a frame with a short header.
pub fn short(frame_type: FrameType, class: u8, body: &impl Message) -> Bytes {
    debug_assert!(!frame_type.is_routed());
    let body_bytes = body.encoded_len() as u32;
    write(Header::Short(ShortHeader { frame_type, flags: 0, class, epoch: 0, body_bytes }), body)
}

/// Encodes a frame with a routed header.
pub fn routed(
    frame_type: FrameType,
    class: u8,
    flags: u8,
    epoch: u32,
    channel: ChannelId,
    seq: u64,
    body: &impl Message,
) -> Bytes {
    debug_assert!(frame_type.is_routed());
    let short =
        ShortHeader { frame_type, flags, class, epoch: epoch as u8, body_bytes: body.encoded_len() as u32 };
    write(Header::Routed(RoutedHeader { short, channel, seq }), body)
}

fn write(header: Header, body: &impl Message) -> Bytes {
    let mut bytes = Vec::with_capacity(header.frame_bytes());
    header.write(&mut bytes);
    body.encode_raw(&mut bytes);
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{header::class, wire};

    fn deliver(seq: u64, text: &str) -> Bytes {
        let content =
            wire::entry::Content::Message(wire::Message { text: text.into(), ..Default::default() });
        let body = wire::Entry { content: Some(content), ..Default::default() };
        routed(FrameType::Deliver, class::MESSAGE, 0, 0, ChannelId(7), seq, &body)
    }

    #[test]
    fn slicing_a_frame_copies_nothing() {
        let mut buffer = deliver(1, "one").to_vec();
        buffer.extend_from_slice(&deliver(2, "two"));
        let buffer = Bytes::from(buffer);
        let frames: Vec<Frame> = Frame::iter(buffer.clone()).collect::<Result<_, _>>().unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].bytes.as_ptr(), buffer.as_ptr());
        let range = buffer.as_ptr_range();
        assert!(frames.iter().all(|frame| range.contains(&frame.body().as_ptr())));
    }

    #[test]
    fn opaque_bytes_decode_without_a_copy() {
        let opaque = Bytes::from(vec![9; 4096]);
        let content = wire::entry::Content::Message(wire::Message { opaque, ..Default::default() });
        let body = wire::Entry { content: Some(content), ..Default::default() };
        let bytes = routed(FrameType::Deliver, class::MESSAGE, 1, 0, ChannelId(7), 1, &body);
        let frame = Frame::split_from(&mut bytes.clone()).unwrap().unwrap();
        let Some(wire::entry::Content::Message(message)) = frame.decode::<wire::Entry>().unwrap().content
        else {
            panic!("a message")
        };
        assert!(bytes.as_ptr_range().contains(&message.opaque.as_ptr()));
    }

    #[test]
    fn any_cut_of_a_stream_gives_the_same_frames() {
        let whole: Vec<u8> =
            (1..6).flat_map(|seq| deliver(seq, &"x".repeat(seq as usize * 11)).to_vec()).collect();
        for step in 1..whole.len() {
            let (mut buffer, mut seqs) = (FrameBuffer::default(), Vec::new());
            for chunk in whole.chunks(step) {
                buffer
                    .feed(Bytes::copy_from_slice(chunk), |frame| seqs.push(frame.routed().unwrap().seq))
                    .unwrap();
            }
            assert_eq!(seqs, [1, 2, 3, 4, 5], "chunks of {step}");
            assert!(!buffer.is_partial());
        }
    }
}
