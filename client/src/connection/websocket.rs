//! Frames over WebSocket, plain or TLS, by polling: no buffer is held while nothing is half there.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll, ready},
};

use aws_lc_rs::rand;
use bytes::Bytes;
use fanfare_proto::{
    Code, Frame, SUBPROTOCOL, WS_PATH,
    limits::FRAME_BYTES_MAX,
    session::client::{ClientSession, Ended},
    ws::{self, ClientRequest, Decoder, HandshakeError, Limits, Opcode, Role},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::scratch;
use crate::{error::OpenError, target::Target};

/// Bytes that may wait for the socket before no more frames are taken from the session.
const OUT_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// Capacity that an empty outgoing buffer keeps.
const OUT_BYTES_KEPT: usize = 1024;

pub(super) struct WebSocket<S> {
    io: S,
    decoder: Decoder,
    out: Vec<u8>,
    written: usize,
    /// What came behind the upgrade's answer in the same read.
    early: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    pub async fn open(mut io: S, target: &Target) -> Result<Self, OpenError> {
        let host = target.authority();
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).map_err(|_| OpenError::Trust("the system has no randomness".into()))?;
        let request = ClientRequest {
            host: &host,
            target: WS_PATH,
            subprotocol: Some(SUBPROTOCOL),
            origin: None,
            authorization: None,
            nonce,
        };
        io.write_all(&request.encode()?).await.map_err(OpenError::Connect)?;
        io.flush().await.map_err(OpenError::Connect)?;
        let mut head = Vec::with_capacity(512);
        let head_bytes = loop {
            if let Some(accepted) = request.verify(&head)? {
                break accepted.head_bytes;
            }
            if io.read_buf(&mut head).await.map_err(OpenError::Connect)? == 0 {
                return Err(HandshakeError::Malformed.into());
            }
        };
        let early = head.split_off(head_bytes);
        Ok(Self {
            io,
            decoder: Decoder::new(Role::Client, Limits::FANFARE),
            out: Vec::new(),
            written: 0,
            early,
        })
    }

    pub fn io(&self) -> &S {
        &self.io
    }

    /// Takes frames from the session, side by side into as few messages as hold them, and writes what the socket takes.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut ClientSession,
        now_ms: u64,
    ) -> Result<(), Ended> {
        loop {
            while self.out.len() < OUT_BYTES_MAX && self.take_message(session, now_ms) {}
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) if session.has_transmit() => {}
                Poll::Ready(outcome) => return outcome,
                Poll::Pending => return Ok(()),
            }
        }
    }

    /// Ready when everything is written.
    pub fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut ClientSession,
        now_ms: u64,
    ) -> Poll<Result<(), Ended>> {
        loop {
            while self.out.len() < OUT_BYTES_MAX && self.take_message(session, now_ms) {}
            ready!(self.poll_write(cx))?;
            if !session.has_transmit() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn take_message(&mut self, session: &mut ClientSession, now_ms: u64) -> bool {
        let Some(first) = session.poll_transmit(now_ms) else { return false };
        if !session.has_transmit() {
            ws::client_frame(Opcode::Binary, &first, mask(), &mut self.out);
            return false;
        }
        let mut message = first.to_vec();
        while let Some(frame) = session.poll_transmit(now_ms) {
            if message.len() + frame.len() > FRAME_BYTES_MAX {
                ws::client_frame(Opcode::Binary, &message, mask(), &mut self.out);
                message.clear();
            }
            message.extend_from_slice(&frame);
            if message.len() > FRAME_BYTES_MAX / 2 {
                break;
            }
        }
        ws::client_frame(Opcode::Binary, &message, mask(), &mut self.out);
        session.has_transmit()
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.out.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.written..])) {
                Ok(0) => return Poll::Ready(Err(Ended::from_close(None, "the connection takes no more"))),
                Ok(written) => self.written += written,
                Err(error) => return Poll::Ready(Err(Ended::from_close(None, error.to_string()))),
            }
        }
        self.out.clear();
        self.out.shrink_to(OUT_BYTES_KEPT);
        self.written = 0;
        // TLS may hold back what was written.
        Pin::new(&mut self.io).poll_flush(cx).map_err(|error| Ended::from_close(None, error.to_string()))
    }

    /// Reads once and hands out every whole frame. Ready when bytes came.
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut impl FnMut(Frame) -> Result<(), Code>,
    ) -> Poll<Result<(), Ended>> {
        if !self.early.is_empty() {
            let mut early = std::mem::take(&mut self.early);
            return Poll::Ready(self.decode(&mut early, take));
        }
        scratch::with(|buffer| {
            let mut read = ReadBuf::new(buffer);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut read)) {
                Ok(()) if read.filled().is_empty() => {
                    Poll::Ready(Err(Ended::from_close(None, "the server closed the connection")))
                }
                Ok(()) => Poll::Ready(self.decode(read.filled_mut(), take)),
                Err(error) => Poll::Ready(Err(Ended::from_close(None, error.to_string()))),
            }
        })
    }

    fn decode(
        &mut self,
        mut input: &mut [u8],
        take: &mut impl FnMut(Frame) -> Result<(), Code>,
    ) -> Result<(), Ended> {
        let defect = |code: Code| Ended::from_code(code, "the server broke the protocol");
        while let Some(event) = self
            .decoder
            .next(&mut input)
            .map_err(|error| Ended { text: error.to_string(), ..defect(Code::WEBSOCKET) })?
        {
            match event {
                ws::Event::Message { binary: false, .. } => return Err(defect(Code::TEXT_MESSAGE)),
                ws::Event::Message { payload, .. } => {
                    for frame in Frame::iter(Bytes::from(payload.into_owned())) {
                        take(frame.map_err(defect)?).map_err(defect)?;
                    }
                }
                ws::Event::Ping(payload) => {
                    // Answered as far as the server reads what it is answered.
                    if self.out.len() < OUT_BYTES_MAX {
                        self.out.extend_from_slice(&ws::client_control(Opcode::Pong, &payload, mask()));
                    }
                }
                ws::Event::Pong(_) => {}
                ws::Event::Close { code, reason } => {
                    return Err(Ended::from_close(code, reason.into_owned()));
                }
            }
        }
        Ok(())
    }

    /// Says goodbye as far as the socket takes it at once; dropping it closes it.
    pub fn close(&mut self, _session: &ClientSession) {
        let frame = ws::client_close(Some(1000), "", mask());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if self.written < self.out.len() {
            self.out.extend_from_slice(&frame);
        } else {
            (self.out, self.written) = (frame, 0);
        }
        if let Poll::Ready(Ok(())) = self.poll_write(&mut cx) {
            let _ = Pin::new(&mut self.io).poll_shutdown(&mut cx);
        }
    }
}

/// Four bytes that whoever made the payload cannot foresee: a generator per thread, seeded by the system.
fn mask() -> [u8; 4] {
    thread_local! {
        static STATE: Cell<u64> = Cell::new({
            let mut seed = [0; 8];
            // Without randomness the handshake would have failed before any frame is masked.
            let _ = rand::fill(&mut seed);
            u64::from_ne_bytes(seed) | 1
        });
    }
    STATE.with(|state| {
        let mut next = state.get();
        next ^= next << 13;
        next ^= next >> 7;
        next ^= next << 17;
        state.set(next);
        let mixed = next.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes();
        [mixed[0], mixed[1], mixed[2], mixed[3]]
    })
}
