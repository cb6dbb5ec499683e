//! TLS over a TCP connection that holds no buffer while nothing is under way: rustls' unbuffered interface. Ciphertext is read into
//! and made in buffers that all connections of a thread share. A connection keeps the beginning of a record whose end has
//! not come, and of what it sends the bytes that the socket did not take.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    ServerConfig,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::socket::Socket;

/// Reads of the socket in a row that bring nothing: each had all that there was room for, so they were not parts of one record.
const EMPTY_READS_MAX: u32 = 32;
/// Plaintext that is sealed at once: one record, in one write.
const SEALED_BYTES_MAX: usize = 16 * 1024;
/// Ciphertext that may wait and still go out in one write with what is sealed next. Above it, it goes first.
const JOINED_BYTES_MAX: usize = 4 * 1024;
/// What a record adds at the most: RFC 8446, section 5.2; and a key update in front of it.
const OVERHEAD_BYTES_MAX: usize = 1024;
/// Ciphertext that is read at once.
const READ_BYTES_MAX: usize = 64 * 1024;
/// Ciphertext that is read at once where the reader wants less.
const READ_BYTES_MIN: usize = 4 * 1024;
/// The beginning of a record, or of a handshake message over several, whose end has not come: what rustls allows itself.
const INCOMPLETE_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        incoming: vec![0; READ_BYTES_MAX].into(),
        gathered: vec![0; SEALED_BYTES_MAX].into(),
        outgoing: vec![0; JOINED_BYTES_MAX + SEALED_BYTES_MAX + OVERHEAD_BYTES_MAX].into(),
    });
}

/// A thread's buffers: each is used within one poll.
struct Scratch {
    incoming: Box<[u8]>,
    gathered: Box<[u8]>,
    outgoing: Box<[u8]>,
}

/// See the module's page.
pub(crate) struct TlsStream {
    stream: Socket,
    session: UnbufferedServerConnection,
    /// The beginning of a record.
    incomplete: Vec<u8>,
    /// Opened, and more than the reader had room for.
    opened: Vec<u8>,
    /// Sealed, and not taken by the socket.
    outgoing: Vec<u8>,
    /// How the peer's direction ended.
    ended: Option<Ended>,
    /// Our direction has ended.
    closed: bool,
    /// rustls is at work. Still set when it is asked again: it panicked, or failed to seal, and is asked nothing more.
    at_work: bool,
}

#[derive(Clone, Debug)]
enum Ended {
    /// By close_notify.
    Clean,
    /// By what it did wrong; the alert is sent.
    Fault(rustls::Error),
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl TlsStream {
    /// The handshake, of which `came` was read already. Tickets stay until the first answer, which they go out with, or until the peer is waited for.
    pub async fn accept(
        stream: Socket,
        config: Arc<ServerConfig>,
        mut came: Vec<u8>,
    ) -> io::Result<Box<Self>> {
        let session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let mut stream = Box::new(Self {
            stream,
            session,
            incomplete: Vec::new(),
            opened: Vec::new(),
            outgoing: Vec::new(),
            ended: None,
            closed: false,
            at_work: false,
        });
        let used = stream.open(&mut came, &mut ReadBuf::new(&mut []));
        stream.incomplete = came.split_off(used);
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    /// What it runs over.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.stream
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.is_handshaking() {
            match &self.ended {
                None => ready!(self.poll_fill(cx, &mut ReadBuf::new(&mut [])))?,
                Some(Ended::Clean) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Some(Ended::Fault(error)) => {
                    let error = fault(error.clone());
                    // The alert, where it was not sent with what was read.
                    let _ = self.poll_drain(cx)?;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once from the socket and opens what came. What `out` has no room for waits in `opened`.
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wanted = out.remaining().clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        SCRATCH.with_borrow_mut(|scratch| {
            let mut room = ReadBuf::new(&mut scratch.incoming[..wanted]);
            match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
                Poll::Ready(outcome) => outcome?,
                Poll::Pending => {
                    // The peer may be waiting for what is still here.
                    if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
                        return Poll::Ready(Err(error));
                    }
                    return Poll::Pending;
                }
            }
            let came = room.filled_mut();
            if came.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            if self.incomplete.is_empty() {
                let used = self.open(came, out);
                self.incomplete = came[used..].to_vec();
            } else {
                self.incomplete.extend_from_slice(came);
                let mut records = std::mem::take(&mut self.incomplete);
                let used = self.open(&mut records, out);
                self.incomplete = if used == 0 { records } else { records[used..].to_vec() };
            }
            if self.ended.is_some() {
                self.incomplete = Vec::new();
                // An alert, as far as it goes.
                if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
                    return Poll::Ready(Err(error));
                }
            } else if self.incomplete.len() > INCOMPLETE_BYTES_MAX {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Opens all whole records and says how many bytes of them are done with. What rustls answers goes to `outgoing`.
    fn open(&mut self, records: &mut [u8], out: &mut ReadBuf<'_>) -> usize {
        let mut used = 0;
        if std::mem::replace(&mut self.at_work, true) {
            self.ended = Some(Ended::Fault(rustls::Error::General("it failed before".into())));
            return records.len();
        }
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.session.process_tls_records(&mut records[used..]);
            let go_on = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        discard += record.discard;
                        let fits = record.payload.len().min(out.remaining());
                        let (now, later) = record.payload.split_at(fits);
                        out.put_slice(now);
                        self.opened.extend_from_slice(later);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let end = self.outgoing.len();
                    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                        self.outgoing.resize(end + size.required_size, 0);
                        data.encode(&mut self.outgoing[end..]).expect("there is room");
                    }
                    true
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    // It is in `outgoing`, in its order.
                    data.done();
                    true
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.ended.get_or_insert(Ended::Clean);
                    false
                }
                Ok(_) => false,
                Err(error) => {
                    self.ended = Some(Ended::Fault(error));
                    false
                }
            };
            used += discard;
            // Behind a fault only the alert is taken: rustls must not meet the same bytes again.
            let go_on = match self.ended {
                Some(Ended::Fault(_)) => self.session.wants_write(),
                _ => go_on,
            };
            if !go_on {
                self.at_work = false;
                return used;
            }
        }
    }

    /// Seals `bytes` as one record behind what waits, and writes both at once. What the socket does not take waits.
    fn seal(&mut self, bytes: &[u8], sealed: &mut [u8]) -> io::Result<()> {
        if matches!(self.ended, Some(Ended::Fault(_))) || std::mem::replace(&mut self.at_work, true) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut end = self.outgoing.len();
        sealed[..end].copy_from_slice(&self.outgoing);
        loop {
            // With what has come of the next record, which rustls may know already.
            let UnbufferedStatus { discard, state } = self.session.process_tls_records(&mut self.incomplete);
            let done = match state.map_err(fault)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let room = &mut sealed[end..];
                    end += match bytes {
                        [] => traffic.queue_close_notify(room),
                        _ => traffic.encrypt(bytes, room),
                    }
                    .map_err(|error: EncryptError| io::Error::other(error.to_string()))?;
                    true
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    let encoded = data.encode(&mut sealed[end..]);
                    end += encoded.map_err(|error| io::Error::other(error.to_string()))?;
                    false
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    false
                }
                ConnectionState::PeerClosed => {
                    self.ended.get_or_insert(Ended::Clean);
                    false
                }
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            };
            self.incomplete.drain(..discard);
            if done {
                break;
            }
        }
        self.at_work = false;
        let sealed = &sealed[..end];
        let taken = loop {
            match self.stream.try_write(sealed) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome?,
            }
        };
        self.outgoing = sealed[taken..].to_vec();
        Ok(())
    }

    /// Writes what waits.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut taken = 0;
        let outcome = loop {
            let rest = &self.outgoing[taken..];
            if rest.is_empty() {
                break Poll::Ready(Ok(()));
            }
            match self.stream.poll_write_with(cx, |socket| socket.try_write(rest)) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => taken += bytes,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        if taken > 0 {
            self.outgoing = self.outgoing[taken..].to_vec();
        }
        outcome
    }

    /// Takes as much as fits into one record. `Pending`: nothing, and the waker is called when there is room.
    pub fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.outgoing.len() > JOINED_BYTES_MAX {
            ready!(self.poll_drain(cx))?;
        }
        SCRATCH.with_borrow_mut(|Scratch { gathered, outgoing, .. }| {
            let bytes = match slices {
                [slice] => &slice[..slice.len().min(SEALED_BYTES_MAX)],
                _ => gather(slices, gathered),
            };
            if !bytes.is_empty() {
                self.seal(bytes, outgoing)?;
            }
            Poll::Ready(Ok(bytes.len()))
        })
    }
}

/// As much of the slices as the buffer holds, in one piece.
fn gather<'b>(slices: &[IoSlice<'_>], buffer: &'b mut [u8]) -> &'b [u8] {
    let mut end = 0;
    for slice in slices {
        let fits = slice.len().min(buffer.len() - end);
        buffer[end..end + fits].copy_from_slice(&slice[..fits]);
        end += fits;
    }
    &buffer[..end]
}

fn fault(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.opened.is_empty() {
            let fits = this.opened.len().min(out.remaining());
            out.put_slice(&this.opened[..fits]);
            this.opened = this.opened[fits..].to_vec();
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        let mut reads = 0;
        while out.filled().len() == before {
            reads += 1;
            if reads > EMPTY_READS_MAX {
                let why = "records without content, one after the other";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
            }
            match &this.ended {
                None => ready!(this.poll_fill(cx, out))?,
                Some(Ended::Clean) => break,
                Some(Ended::Fault(error)) => return Poll::Ready(Err(fault(error.clone()))),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, &[IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        if !std::mem::replace(&mut this.closed, true) && !matches!(this.ended, Some(Ended::Fault(_))) {
            SCRATCH.with_borrow_mut(|scratch| this.seal(&[], &mut scratch.outgoing))?;
            ready!(this.poll_drain(cx))?;
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
