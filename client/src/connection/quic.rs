//! Frames over QUIC: one control stream for everything asked and answered, the server's hot stream for what is live, datagrams for
//! hints. By polling; reads go through the thread's buffer.

use std::{
    collections::VecDeque,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use fanfare_proto::{
    Code, Frame,
    frame::FrameBuffer,
    limits::FRAME_BYTES_MAX,
    session::client::{ClientSession, Ended},
};
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, TransportConfig, VarInt};
use tokio::io::ReadBuf;

use super::scratch;
use crate::error::OpenError;

/// Bytes that may wait for the control stream before no more frames are taken from the session.
const OUT_BYTES_MAX: usize = FRAME_BYTES_MAX;

type Later<T> = Option<Pin<Box<dyn Future<Output = Result<T, ConnectionError>> + Send>>>;

pub(super) struct Quic {
    connection: quinn::Connection,
    control_out: SendStream,
    control: Option<Incoming>,
    hot: Option<Incoming>,
    /// Waits for the hot stream, then for any that should not come.
    uni: Later<RecvStream>,
    datagram: Later<Bytes>,
    out: VecDeque<Bytes>,
    out_bytes: usize,
    endpoint: quinn::Endpoint,
}

struct Incoming {
    stream: RecvStream,
    frames: FrameBuffer,
}

/// QUIC settings of a client: every bound that a server could otherwise make us hold.
pub fn client_transport() -> Arc<TransportConfig> {
    static SHARED: OnceLock<Arc<TransportConfig>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        let mut config = TransportConfig::default();
        config
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(3))
            .stream_receive_window(VarInt::from_u32(256 * 1024))
            .receive_window(VarInt::from_u32(512 * 1024))
            .send_window(256 * 1024)
            .datagram_receive_buffer_size(Some(16 * 1024))
            .datagram_send_buffer_size(16 * 1024)
            // Heartbeats are the session's; this is for a peer that is gone altogether.
            .max_idle_timeout(Some(Duration::from_secs(60).try_into().expect("60 s fit a QUIC timeout")));
        Arc::new(config)
    });
    shared.clone()
}

impl Quic {
    pub async fn open(
        endpoint: &quinn::Endpoint,
        config: quinn::ClientConfig,
        address: SocketAddr,
        name: &str,
    ) -> Result<Self, OpenError> {
        let connection = endpoint.connect_with(config, address, name)?.await?;
        let (control_out, control) = connection.open_bi().await?;
        let mut quic = Self {
            control_out,
            control: Some(Incoming { stream: control, frames: FrameBuffer::default() }),
            hot: None,
            uni: None,
            datagram: None,
            out: VecDeque::new(),
            out_bytes: 0,
            endpoint: endpoint.clone(),
            connection,
        };
        quic.await_uni();
        quic.await_datagram();
        Ok(quic)
    }

    fn await_uni(&mut self) {
        let connection = self.connection.clone();
        self.uni = Some(Box::pin(async move { connection.accept_uni().await }));
    }

    fn await_datagram(&mut self) {
        let connection = self.connection.clone();
        self.datagram = Some(Box::pin(async move { connection.read_datagram().await }));
    }

    pub fn datagrams_received(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    pub fn local_addr(&self) -> Option<SocketAddr> {
        let bound = self.endpoint.local_addr().ok()?;
        Some(self.connection.local_ip().map_or(bound, |ip| SocketAddr::new(ip, bound.port())))
    }

    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut ClientSession,
        now_ms: u64,
    ) -> Result<(), Ended> {
        match self.poll_flush(cx, session, now_ms) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Ok(()),
        }
    }

    /// Ready when everything is handed to QUIC.
    pub fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut ClientSession,
        now_ms: u64,
    ) -> Poll<Result<(), Ended>> {
        loop {
            while self.out_bytes < OUT_BYTES_MAX {
                let Some(frame) = session.poll_transmit(now_ms) else { break };
                self.out_bytes += frame.len();
                self.out.push_back(frame);
            }
            let Some(front) = self.out.front_mut() else { return Poll::Ready(Ok(())) };
            match ready!(Pin::new(&mut self.control_out).poll_write(cx, front)) {
                Ok(written) => {
                    self.out_bytes -= written;
                    front.advance(written);
                    if front.is_empty() {
                        self.out.pop_front();
                    }
                }
                Err(error) => return Poll::Ready(Err(self.why(&error.to_string()))),
            }
        }
    }

    /// Reads from whatever stream has something. Ready when bytes came.
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut impl FnMut(Frame) -> Result<(), Code>,
    ) -> Poll<Result<(), Ended>> {
        let mut came = false;
        if let Some(uni) = &mut self.uni
            && let Poll::Ready(stream) = uni.as_mut().poll(cx)
        {
            self.uni = None;
            let stream = stream.map_err(|error| ended_of_quic(&error))?;
            if self.hot.is_some() {
                return Poll::Ready(Err(Ended::from_code(
                    Code::STREAM,
                    "the server opened a second hot stream",
                )));
            }
            self.hot = Some(Incoming { stream, frames: FrameBuffer::default() });
            self.await_uni();
            came = self.uni.as_mut().is_some_and(|uni| uni.as_mut().poll(cx).is_ready());
            if came {
                return Poll::Ready(Err(Ended::from_code(
                    Code::STREAM,
                    "the server opened a second hot stream",
                )));
            }
        }
        let mut failed = None;
        for incoming in [&mut self.control, &mut self.hot] {
            let Some(open) = incoming else { continue };
            match open.poll(cx, take) {
                Poll::Pending => {}
                Poll::Ready(Ok(true)) => came = true,
                // The server's CLOSE, or the connection's end, says why.
                Poll::Ready(Ok(false)) => *incoming = None,
                Poll::Ready(Err(Failure::Protocol(code))) => {
                    return Poll::Ready(Err(Ended::from_code(code, "the server broke the protocol")));
                }
                Poll::Ready(Err(Failure::Stream(text))) => failed = Some(text),
            }
        }
        if let Some(text) = failed {
            return Poll::Ready(Err(self.why(&text)));
        }
        while let Some(datagram) = &mut self.datagram
            && let Poll::Ready(bytes) = datagram.as_mut().poll(cx)
        {
            self.datagram = None;
            let bytes = bytes.map_err(|error| ended_of_quic(&error))?;
            for frame in Frame::iter(bytes) {
                let taken = frame.and_then(&mut *take);
                taken.map_err(|code| Ended::from_code(code, "the server broke the protocol"))?;
            }
            self.await_datagram();
            came = true;
        }
        if came {
            return Poll::Ready(Ok(()));
        }
        if self.control.is_none() {
            return Poll::Ready(Err(self.why("the server ended the control stream")));
        }
        Poll::Pending
    }

    /// Why the connection ended, where it did; else `text`.
    fn why(&self, text: &str) -> Ended {
        match self.connection.close_reason() {
            Some(reason) => ended_of_quic(&reason),
            None => Ended::from_close(None, text),
        }
    }

    /// Ends the control stream, so that CLOSE arrives, or the connection, where there is nothing to say.
    pub fn close(&mut self, _session: &ClientSession) {
        // Already reset or finished is as good.
        let _ = self.control_out.finish();
    }

    /// Waits until the server has what was sent, for at most 2 s, and closes the connection.
    pub async fn finished(&mut self) {
        let _ = tokio::time::timeout(super::CLOSE_TIME_MAX, self.control_out.stopped()).await;
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

impl Drop for Quic {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

enum Failure {
    Protocol(Code),
    Stream(String),
}

impl Incoming {
    /// Reads once; false at the stream's end.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut impl FnMut(Frame) -> Result<(), Code>,
    ) -> Poll<Result<bool, Failure>> {
        scratch::with(|buffer| {
            let mut read = ReadBuf::new(buffer);
            match ready!(self.stream.poll_read_buf(cx, &mut read)) {
                Ok(()) if read.filled().is_empty() => {
                    let whole = if self.frames.is_partial() {
                        Err(Failure::Protocol(Code::TRUNCATED))
                    } else {
                        Ok(false)
                    };
                    return Poll::Ready(whole);
                }
                Ok(()) => {}
                Err(ReadError::ConnectionLost(error)) => {
                    return Poll::Ready(Err(Failure::Stream(error.to_string())));
                }
                Err(error) => return Poll::Ready(Err(Failure::Stream(error.to_string()))),
            }
            let mut failed = Ok(());
            let fed = self.frames.feed(Bytes::copy_from_slice(read.filled()), |frame| {
                if failed.is_ok() {
                    failed = take(frame);
                }
            });
            Poll::Ready(fed.and(failed).map(|()| true).map_err(Failure::Protocol))
        })
    }
}

/// How a QUIC connection's end reads as a session's end.
pub(crate) fn ended_of_quic(error: &ConnectionError) -> Ended {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = u16::try_from(close.error_code.into_inner()).ok();
            Ended::from_close(code, String::from_utf8_lossy(&close.reason))
        }
        other => Ended::from_close(None, other.to_string()),
    }
}
