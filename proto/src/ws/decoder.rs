//! From a stream of bytes to messages and control frames.

use std::borrow::Cow;
use std::mem;

use super::frame::{CLIENT_HEADER_BYTES_MAX, Frame, Opcode, close_code_is_valid, unmask};
use super::{Limits, Role, WsError};

/// What a peer sent. The bytes are lent from the input where the frame lay whole in it, and owned where it came
/// in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'i> {
    /// A whole message. Where `binary` is false, the payload is valid UTF-8.
    Message {
        /// A binary message, not a text.
        binary: bool,
        /// The unmasked bytes. [`Cow::Owned`] turns into `Bytes` without a copy.
        payload: Cow<'i, [u8]>,
    },
    /// Answer with a pong of the same payload, at most 125 bytes.
    Ping(Cow<'i, [u8]>),
    /// The answer to a ping, or an unasked one.
    Pong(Cow<'i, [u8]>),
    /// The peer's last frame. The decoder takes and ignores everything after it.
    Close {
        /// The status code, if there was one; always one that may be sent.
        code: Option<u16>,
        /// The reason, at most 123 bytes; empty without a code.
        reason: Cow<'i, str>,
    },
}

/// Decodes one direction of one connection. Small and without heap while no frame or message is half there, so
/// that idle connections cost nothing.
///
/// ```
/// use fanfare_proto::ws::{Decoder, Event, Limits, Opcode, Role, client_frame};
///
/// let mut wire = Vec::new();
/// client_frame(Opcode::Binary, b"hello", [1, 2, 3, 4], &mut wire);
/// let mut decoder = Decoder::new(Role::Server, Limits::FANFARE);
/// let mut input = &mut wire[..];
/// while let Some(event) = decoder.next(&mut input)? {
///     assert_eq!(event, Event::Message { binary: true, payload: b"hello"[..].into() });
/// }
/// # Ok::<(), fanfare_proto::ws::WsError>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    /// What is half there; `None` while idle.
    partial: Option<Box<Partial>>,
    limits: Limits,
    role: Role,
    /// A close frame or an error was handed out: what follows is ignored.
    closed: bool,
}

/// Everything a connection keeps while it waits for the rest of a header, frame or message.
#[derive(Debug, Default)]
struct Partial {
    /// The first `header_len` bytes of a header that is not whole.
    header: [u8; CLIENT_HEADER_BYTES_MAX],
    header_len: u8,
    /// The frame whose payload is not whole.
    frame: Option<Frame>,
    /// What came of the control frame that is not whole.
    control: Vec<u8>,
    /// The data message that has begun.
    message: Option<Message>,
}

#[derive(Debug)]
struct Message {
    binary: bool,
    /// Frames so far, the unfinished one included.
    fragments: u32,
    /// The unmasked payload so far.
    payload: Vec<u8>,
    /// How much of a text's payload is known to be whole, valid characters.
    utf8_checked: usize,
}

impl Decoder {
    /// A decoder at the start of a stream of frames, behind the handshake.
    pub fn new(role: Role, limits: Limits) -> Self {
        Self { partial: None, limits, role, closed: false }
    }

    /// Takes the next event from the front of `input` and moves `input` behind what was taken. `None` means
    /// that all of it is taken and more is needed; what the decoder must remember it has copied, so the buffer
    /// is free for another connection. Call it until it answers `None`.
    ///
    /// # Errors
    /// The peer broke a rule. From then on everything is taken and ignored.
    pub fn next<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<Event<'i>>, WsError> {
        if self.closed {
            *input = &mut [];
            return Ok(None);
        }
        let outcome = self.advance(input);
        if matches!(outcome, Err(_) | Ok(Some(Event::Close { .. }))) {
            self.closed = true;
            self.partial = None;
        }
        outcome
    }

    /// Nothing is half there: no heap is held.
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// A close frame or an error was handed out.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Heap bytes held for what is half there; 0 while idle.
    pub fn heap_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            let message = partial.message.as_ref().map_or(0, |message| message.payload.capacity());
            size_of::<Partial>() + partial.control.capacity() + message
        })
    }

    fn advance<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<Event<'i>>, WsError> {
        while !input.is_empty() {
            let Some(frame) = self.frame(input)? else { return Ok(None) };
            let event = if frame.opcode.is_control() {
                self.control(frame, input)?
            } else {
                self.data(frame, input)?
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// The frame whose payload comes next, from what is kept or from a header in `input`.
    fn frame(&mut self, input: &mut &mut [u8]) -> Result<Option<Frame>, WsError> {
        if let Some(frame) = self.partial.as_mut().and_then(|partial| partial.frame.take()) {
            return Ok(Some(frame));
        }
        let mut kept = 0;
        let parsed = match &mut self.partial {
            Some(partial) if partial.header_len > 0 => {
                kept = usize::from(partial.header_len);
                let more = input.len().min(partial.header.len() - kept);
                partial.header[kept..kept + more].copy_from_slice(&input[..more]);
                Frame::parse(&partial.header[..kept + more], self.role)?
            }
            _ => Frame::parse(input, self.role)?,
        };
        let Some((frame, size)) = parsed else {
            // No header is longer than the array, so all of the input fits behind what is kept.
            let partial = self.partial.get_or_insert_default();
            let len = kept + input.len();
            partial.header[kept..len].copy_from_slice(input);
            partial.header_len = len as u8;
            take(input, input.len());
            return Ok(None);
        };
        if let Some(partial) = &mut self.partial {
            partial.header_len = 0;
        }
        take(input, size - kept);
        if !frame.opcode.is_control() {
            self.begin_data(frame)?;
        }
        Ok(Some(frame))
    }

    /// Checks a data frame's place and cost before any of its payload is taken.
    fn begin_data(&mut self, frame: Frame) -> Result<(), WsError> {
        let message = self.partial.as_mut().and_then(|partial| partial.message.as_mut());
        let before = match (frame.opcode, message) {
            (Opcode::Continuation, None) => return Err(WsError::UnexpectedContinuation),
            (Opcode::Continuation, Some(message)) => {
                if message.fragments >= self.limits.fragments_max {
                    return Err(WsError::TooManyFragments);
                }
                message.fragments += 1;
                message.payload.len() as u64
            }
            (_, Some(_)) => return Err(WsError::ExpectedContinuation),
            (_, None) => 0,
        };
        if frame.remaining > u64::from(self.limits.message_bytes_max).saturating_sub(before) {
            return Err(WsError::MessageTooLong);
        }
        Ok(())
    }

    fn control<'i>(
        &mut self,
        mut frame: Frame,
        input: &mut &'i mut [u8],
    ) -> Result<Option<Event<'i>>, WsError> {
        let (chunk, whole) = frame.take_payload(input);
        let kept = self.partial.as_ref().is_some_and(|partial| !partial.control.is_empty());
        let payload = if whole && !kept {
            Cow::Borrowed(chunk)
        } else {
            let partial = self.partial.get_or_insert_default();
            partial.control.extend_from_slice(chunk);
            if !whole {
                partial.frame = Some(frame);
                return Ok(None);
            }
            Cow::Owned(mem::take(&mut partial.control))
        };
        self.release();
        Ok(Some(match frame.opcode {
            Opcode::Ping => Event::Ping(payload),
            Opcode::Pong => Event::Pong(payload),
            _ => close(payload)?,
        }))
    }

    fn data<'i>(&mut self, mut frame: Frame, input: &mut &'i mut [u8]) -> Result<Option<Event<'i>>, WsError> {
        let (chunk, whole) = frame.take_payload(input);
        let binary = frame.opcode == Opcode::Binary;
        let begun = self.partial.as_ref().is_some_and(|partial| partial.message.is_some());
        if whole && frame.fin && !begun {
            if !binary && simdutf8::basic::from_utf8(chunk).is_err() {
                return Err(WsError::Utf8);
            }
            self.release();
            return Ok(Some(Event::Message { binary, payload: Cow::Borrowed(chunk) }));
        }
        let partial = self.partial.get_or_insert_default();
        let message = partial.message.get_or_insert_with(|| Message {
            binary,
            fragments: 1,
            payload: Vec::new(),
            utf8_checked: 0,
        });
        // A length is only a promise: memory follows what came, and doubles up to what may still come.
        let bound = if frame.fin {
            message.payload.len() + chunk.len() + frame.remaining as usize
        } else {
            self.limits.message_bytes_max as usize
        };
        message.append(chunk, bound)?;
        if !whole {
            partial.frame = Some(frame);
            return Ok(None);
        }
        if !frame.fin {
            return Ok(None);
        }
        let message = partial.message.take().expect("the message was put there above");
        self.release();
        if !message.binary && message.utf8_checked != message.payload.len() {
            return Err(WsError::Utf8);
        }
        Ok(Some(Event::Message { binary: message.binary, payload: Cow::Owned(message.payload) }))
    }

    /// Gives the heap back where a frame has ended and nothing else is half there.
    fn release(&mut self) {
        if self.partial.as_ref().is_some_and(|partial| partial.message.is_none()) {
            self.partial = None;
        }
    }
}

impl Message {
    /// Adds unmasked bytes; `bound` is the longest that the payload can still become. Text is checked as it
    /// comes, so that a wrong one fails at its first wrong byte.
    fn append(&mut self, chunk: &[u8], bound: usize) -> Result<(), WsError> {
        let len = self.payload.len() + chunk.len();
        if len > self.payload.capacity() {
            let capacity = len.max((2 * self.payload.capacity()).min(bound));
            self.payload.reserve_exact(capacity - self.payload.len());
        }
        self.payload.extend_from_slice(chunk);
        if self.binary {
            return Ok(());
        }
        let unchecked = &self.payload[self.utf8_checked..];
        self.utf8_checked += match simdutf8::compat::from_utf8(unchecked) {
            Ok(text) => text.len(),
            // Cut inside a character that may still come whole.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err(WsError::Utf8),
        };
        Ok(())
    }
}

impl Frame {
    /// Takes what `input` holds of the payload, unmasked, and says whether the frame is whole with it.
    fn take_payload<'i>(&mut self, input: &mut &'i mut [u8]) -> (&'i [u8], bool) {
        let len = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(input.len());
        let chunk = take(input, len);
        unmask(chunk, self.mask);
        self.mask.rotate_left(len % 4);
        self.remaining -= len as u64;
        (chunk, self.remaining == 0)
    }
}

/// Takes `len` bytes from the front of `input`.
fn take<'i>(input: &mut &'i mut [u8], len: usize) -> &'i mut [u8] {
    let (front, rest) = mem::take(input).split_at_mut(len);
    *input = rest;
    front
}

fn close(payload: Cow<'_, [u8]>) -> Result<Event<'_>, WsError> {
    let code = match *payload {
        [] => return Ok(Event::Close { code: None, reason: Cow::Borrowed("") }),
        [_] => return Err(WsError::CloseTooShort),
        [high, low, ..] => u16::from_be_bytes([high, low]),
    };
    if !close_code_is_valid(code) {
        return Err(WsError::CloseCode(code));
    }
    let reason = match payload {
        Cow::Borrowed(bytes) => simdutf8::basic::from_utf8(&bytes[2..]).map(Cow::Borrowed),
        Cow::Owned(bytes) => simdutf8::basic::from_utf8(&bytes[2..]).map(|text| Cow::Owned(text.to_owned())),
    };
    Ok(Event::Close { code: Some(code), reason: reason.map_err(|_| WsError::Utf8)? })
}
