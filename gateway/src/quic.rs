//! QUIC: the same connection over several streams. The owner of its writes is the lane's flush pass, as for sockets; a task
//! reads control, and short ones read the uplink and each FETCH. See docs/protocol.md, section 1, for the streams.

use std::{
    future::Future,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use fanfare_proto::{
    error::Code,
    frame::{Frame, FrameBuffer},
    header::FrameType,
    ids::ChannelId,
    limits,
    link::Up,
    session::server::{self, Greeted, Greeting},
};
use quinn::{Connection as Quic, RecvStream, SendStream, VarInt, crypto::rustls::QuicServerConfig};
use tokio::time::Instant;

use crate::{
    admission::{AddressPermit, HandshakePermit},
    connection::{Connection, Link, Stage, retry_after_ms},
    error::GatewayError,
    handshake::{enter, prove},
    lane::{Custody, Key, Lane},
    outgoing::{Chunk, Kind, Queue},
    shared::Shared,
    tls::Tls,
};

/// Attempts that the endpoint keeps until the door looks at them; it refuses more.
const INCOMING_MAX: usize = 1_024;
/// Streams that a client may have open: control and fetches; uplink, and what WebTransport needs.
const BIDIRECTIONAL_MAX: u32 = 4;
const UNIDIRECTIONAL_MAX: u32 = 3;
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
const SEND_WINDOW_BYTES: u64 = 256 * 1024;
const DATAGRAM_BYTES: usize = 16 * 1024;
/// What a greater datagram must gain to be tried: the greatest is tried first, and on most paths is all that is tried. With
/// quinn's own 20 bytes each connection begins with five probes and their acknowledgements.
const MTU_STEP_BYTES: u16 = 127;
/// Chunks that are handed to a stream at once.
const CHUNKS_MAX: usize = 32;
/// Bytes that are read from a stream at once.
const READ_BYTES: usize = 64 * 1024;
/// Bytes of a FETCH stream before its end: one frame.
const FETCH_BYTES_MAX: usize = 256;
/// How long a closing connection has to acknowledge CLOSE.
const CLOSE_LINGER: Duration = Duration::from_millis(500);

/// Numbers of streams as [`QuicLink::stream_of`] gives them; fetches come behind.
const HOT: usize = 0;
const CONTROL: usize = 1;
const FETCHES: usize = 2;

/// What one client may make us hold, and how long.
pub(crate) fn server_config(tls: &Tls, idle: Duration) -> Result<quinn::ServerConfig, GatewayError> {
    let fault = |error: &dyn std::fmt::Display| GatewayError::Certificate(error.to_string());
    let crypto = QuicServerConfig::try_from(tls.quic.clone()).map_err(|error| fault(&error))?;
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.minimum_change(MTU_STEP_BYTES);
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(BIDIRECTIONAL_MAX.into())
        .max_concurrent_uni_streams(UNIDIRECTIONAL_MAX.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BYTES)
        .crypto_buffer_size(16 * 1024)
        .mtu_discovery_config(Some(discovery))
        // With it each connection keeps a buffer of ten datagrams for its whole life, a third of what an idle one holds.
        .enable_segmentation_offload(false)
        .max_idle_timeout(Some(idle.try_into().map_err(|error| fault(&error))?))
        .keep_alive_interval(None);
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    config.migration(true);
    config.max_incoming(INCOMING_MAX);
    config.incoming_buffer_size(64 * 1024).incoming_buffer_size_total(16 * 1024 * 1024);
    Ok(config)
}

/// The streams of a connection, as far as they are written.
pub(crate) struct QuicLink {
    connection: Quic,
    control: SendStream,
    control_queue: Queue,
    hot: SendStream,
    fetches: Vec<FetchStream>,
    fetches_opened: usize,
    /// Set when the session has ended.
    closing: Option<(VarInt, &'static str)>,
    /// Of its task.
    waker: Waker,
}

/// Where the answer to one FETCH goes.
struct FetchStream {
    id: usize,
    request: u64,
    stream: SendStream,
    queue: Queue,
    /// The last frame of the answer is in the queue.
    complete: bool,
}

impl QuicLink {
    fn new(connection: Quic, control: SendStream, hot: SendStream) -> Self {
        Self {
            connection,
            control,
            control_queue: Queue::default(),
            hot,
            fetches: Vec::new(),
            fetches_opened: 0,
            closing: None,
            waker: Waker::noop().clone(),
        }
    }

    pub fn control(&mut self, frames: Bytes, now_ms: u64) {
        let chunk = Chunk { bytes: frames, lead: 0, kind: Kind::Control, channel: ChannelId(0) };
        self.control_queue.push(chunk, now_ms);
    }

    /// The stream that a frame of a reply belongs on.
    pub fn stream_of(&self, frame: &Frame) -> usize {
        use FrameType::{Channel, Deliver, Gap, Notify, Page, Receipt, Refused, Synced};
        match (frame.frame_type(), frame.routed()) {
            (Deliver | Notify | Gap | Receipt | Channel | Synced, _) => HOT,
            (Page | Refused, Some(routed)) => self
                .fetches
                .iter()
                .find(|fetch| fetch.request == routed.seq && !fetch.complete)
                .map_or(CONTROL, |fetch| FETCHES + fetch.id),
            _ => CONTROL,
        }
    }

    /// Puts a chunk of a reply on its stream; `hot` is that stream's queue.
    pub fn push(&mut self, hot: &mut Queue, stream: usize, chunk: Chunk, now_ms: u64) {
        if chunk.kind == Kind::Hint {
            return self.hint(&chunk);
        }
        match stream {
            HOT => hot.push(chunk, now_ms),
            CONTROL => self.control_queue.push(chunk, now_ms),
            _ => {
                let fetch = self.fetches.iter_mut().find(|fetch| FETCHES + fetch.id == stream);
                let Some(fetch) = fetch else { return };
                fetch.complete = Frame::iter(chunk.frames()).flatten().last().is_some_and(|frame| {
                    frame.frame_type() != FrameType::Page
                        || !frame.decode::<fanfare_proto::wire::Page>().is_ok_and(|page| page.more)
                });
                fetch.queue.push(chunk, now_ms);
            }
        }
    }

    /// An answer of our own to a FETCH, on the stream it came on.
    pub fn answer_fetch(&mut self, hot: &mut Queue, request: u64, answer: Bytes, now_ms: u64) {
        let fetch = self.fetches.iter().find(|fetch| fetch.request == request && !fetch.complete);
        let stream = fetch.map_or(CONTROL, |fetch| FETCHES + fetch.id);
        let chunk = Chunk { bytes: answer, lead: 0, kind: Kind::Control, channel: ChannelId(0) };
        self.push(hot, stream, chunk, now_ms);
    }

    /// Hints may be lost: each in a datagram of its own, and dropped where that does not go.
    pub fn hint(&self, chunk: &Chunk) {
        for frame in Frame::iter(chunk.frames()).flatten() {
            let _ = self.connection.send_datagram(frame.bytes);
        }
    }

    /// Bytes that wait beside the hot stream's queue.
    pub fn waiting(&self) -> u32 {
        self.control_queue.waiting() + self.fetches.iter().map(|fetch| fetch.queue.waiting()).sum::<u32>()
    }

    pub fn history(&self) -> u32 {
        self.control_queue.history() + self.fetches.iter().map(|fetch| fetch.queue.history()).sum::<u32>()
    }

    pub fn since_ms(&self) -> Option<u64> {
        let fetches = self.fetches.iter().map(|fetch| fetch.queue.since_ms());
        fetches.chain([self.control_queue.since_ms()]).flatten().min()
    }

    pub fn is_flushed(&self) -> bool {
        self.control_queue.is_empty()
    }

    /// The session has ended: what is on control goes out, then the connection is closed.
    pub fn close_with(&mut self, code: Option<Code>, reason: &'static str) {
        let code = code.map_or(0, Code::close_code);
        self.closing = Some((VarInt::from(u32::from(code)), reason));
    }

    /// The peer does not even take CLOSE: the connection ends with its number at once.
    pub fn abandon(&self) {
        if let Some((code, reason)) = self.closing {
            self.connection.close(code, reason.as_bytes());
        }
    }

    /// Has the connection's task look at it again.
    pub fn wake(&self) {
        self.waker.wake_by_ref();
    }

    /// The task that is woken when a stream takes more.
    pub fn set_waker(&mut self, waker: &Waker) {
        self.waker.clone_from(waker);
    }

    /// Writes what waits on all streams; `hot` is that stream's queue.
    pub fn write(&mut self, hot: &mut Queue, now_ms: u64) -> Result<(), quinn::WriteError> {
        let cx = &mut Context::from_waker(&self.waker);
        write(&mut self.control, &mut self.control_queue, cx, now_ms)?;
        if self.closing.is_some() {
            return Ok(());
        }
        write(&mut self.hot, hot, cx, now_ms)?;
        self.fetches.retain_mut(|fetch| match write(&mut fetch.stream, &mut fetch.queue, cx, now_ms) {
            // A client that has stopped the stream does not want the rest.
            Err(_) => false,
            Ok(()) if fetch.complete && fetch.queue.is_empty() => {
                let _ = fetch.stream.finish();
                false
            }
            Ok(()) => true,
        });
        Ok(())
    }
}

/// Hands a queue to a stream until that takes no more.
fn write(
    stream: &mut SendStream,
    queue: &mut Queue,
    cx: &mut Context<'_>,
    now_ms: u64,
) -> Result<(), quinn::WriteError> {
    while !queue.is_empty() {
        let mut chunks = [const { Bytes::new() }; CHUNKS_MAX];
        let count = queue.frames(&mut chunks);
        let bytes: usize = chunks[..count].iter().map(Bytes::len).sum();
        // The future holds no state between polls: what it could not write it leaves in `chunks`.
        let written = {
            let writing = pin!(stream.write_chunks(&mut chunks[..count]));
            match writing.poll(cx) {
                Poll::Ready(written) => written?.bytes,
                Poll::Pending => return Ok(()),
            }
        };
        queue.advance_frames(written, now_ms);
        if written < bytes && written == 0 {
            return Ok(());
        }
    }
    Ok(())
}

/// What a client said in its handshake.
struct Met {
    greeted: Greeted,
    early: Vec<Frame>,
    buffer: FrameBuffer,
}

/// The handshake of an incoming connection, and then its life.
pub(crate) async fn serve(
    lane: Rc<Lane>,
    incoming: Box<quinn::Incoming>,
    address: AddressPermit,
    permit: HandshakePermit,
) {
    let within = Duration::from_millis(lane.shared.policy().handshake_ms);
    let deadline = Instant::now() + within;
    let shaken = async {
        let connecting = async {
            let connection = incoming.accept()?.await?;
            Ok::<_, quinn::ConnectionError>(connection)
        };
        let connection = tokio::time::timeout_at(deadline, connecting).await.ok()?.ok()?;
        let entered = open(&lane, &connection, address, deadline).await;
        Some((connection, entered))
    };
    let shaken = lane.turns.take(Box::pin(shaken)).await;
    drop(permit);
    match shaken {
        None => lane.shared.count_close(Code::HANDSHAKE_TIMEOUT),
        Some((connection, Ok((key, recv, buffer, early)))) => {
            let task = drive(lane.clone(), key, connection, recv, buffer, early);
            lane.tasks.spawn_local(task);
        }
        Some((connection, Err((code, control)))) => {
            lane.shared.count_close(code);
            goodbye(&connection, control, code).await;
        }
    }
}

type Entered = (Key, RecvStream, FrameBuffer, Vec<Frame>);

async fn open(
    lane: &Rc<Lane>,
    connection: &Quic,
    address: AddressPermit,
    deadline: Instant,
) -> Result<Entered, (Code, Option<SendStream>)> {
    let shared = &lane.shared;
    let timeout = |_| (Code::HANDSHAKE_TIMEOUT, None);
    let opened = tokio::time::timeout_at(deadline, connection.accept_bi()).await.map_err(timeout)?;
    let (control, mut recv) = opened.map_err(|_| (Code::HANDSHAKE_TIMEOUT, None))?;
    let met = tokio::time::timeout_at(deadline, hello(shared, &mut recv)).await;
    let met = match met.unwrap_or(Err(Code::HANDSHAKE_TIMEOUT)) {
        Ok(_) if address.is_over() => Err(Code::CONNECTIONS_PER_ADDRESS),
        Ok(met) => prove(shared, &met.greeted).map(|proven| (met, proven)),
        Err(code) => Err(code),
    };
    let (met, proven) = match met {
        Ok(met) => met,
        Err(code) => return Err((code, Some(control))),
    };
    let hot = match tokio::time::timeout_at(deadline, connection.open_uni()).await {
        Ok(Ok(hot)) => hot,
        _ => return Err((Code::HANDSHAKE_TIMEOUT, Some(control))),
    };
    // Live frames before history, control before both.
    let _ = control.set_priority(2);
    let _ = hot.set_priority(1);
    let link = Link::Quic(Box::new(QuicLink::new(connection.clone(), control, hot)));
    let Met { greeted, early, buffer } = met;
    match enter(lane, link, greeted, proven, address, None).await {
        Ok(key) => Ok((key, recv, buffer, early)),
        Err((code, Link::Quic(link))) => Err((code, Some(link.control))),
        Err((code, _)) => Err((code, None)),
    }
}

async fn hello(shared: &Shared, recv: &mut RecvStream) -> Result<Met, Code> {
    let mut greeting = Greeting::new(shared.clock.now_ms(), shared.policy());
    let mut buffer = FrameBuffer::default();
    loop {
        let chunk =
            recv.read_chunk(limits::BEFORE_AUTH_BYTES_MAX, true).await.map_err(|_| Code::TRUNCATED)?;
        let chunk = chunk.ok_or(Code::TRUNCATED)?.bytes;
        greeting.received(chunk.len())?;
        let mut frames = Vec::new();
        let fed = buffer.feed(chunk, |frame| frames.push(frame));
        if frames.is_empty() {
            fed?;
            continue;
        }
        let hello = frames.remove(0);
        let greeted = greeting.handle(&hello)?;
        fed?;
        return Ok(Met { greeted, early: frames, buffer });
    }
}

/// CLOSE on control, then the connection's own close.
async fn goodbye(connection: &Quic, control: Option<SendStream>, code: Code) {
    if let Some(mut control) = control {
        let said = async {
            control.write_all(&server::close(code, retry_after_ms(code))).await.ok()?;
            control.finish().ok()?;
            control.stopped().await.ok()
        };
        let _ = tokio::time::timeout(CLOSE_LINGER, said).await;
    }
    let reason = code.row().map_or("", |row| row.name);
    connection.close(u32::from(code.close_code()).into(), reason.as_bytes());
}

/// The task of a QUIC connection: reads control, accepts streams, takes datagrams, and is woken for writing.
async fn drive(
    lane: Rc<Lane>,
    key: Key,
    connection: Quic,
    mut control: RecvStream,
    mut buffer: FrameBuffer,
    early: Vec<Frame>,
) {
    let custody = Custody { lane, key };
    let lane = &custody.lane;
    let mut is_open = false;
    let mut early = Some(early);
    let mut control_ended = false;
    let mut has_uplink = false;
    let mut ups = Vec::new();
    loop {
        let turn = tokio::select! {
            biased;
            turn = std::future::poll_fn(|cx| lane.quic_step(key, is_open, cx)) => turn,
            _ = connection.closed() => Turn::Gone,
            chunk = control.read_chunk(READ_BYTES, true), if is_open && !control_ended => match chunk {
                Ok(Some(chunk)) => Turn::Bytes(chunk.bytes),
                // The client has ended its direction, or the connection is lost: the next turn tells.
                Ok(None) | Err(_) => Turn::ControlEnded,
            },
            stream = connection.accept_bi(), if is_open => match stream {
                Ok((send, recv)) => Turn::Fetch(send, recv),
                Err(_) => Turn::Gone,
            },
            stream = connection.accept_uni(), if is_open => match stream {
                Ok(recv) => Turn::Uplink(recv),
                Err(_) => Turn::Gone,
            },
            datagram = connection.read_datagram(), if is_open => match datagram {
                Ok(datagram) => Turn::Datagram(datagram),
                Err(_) => Turn::Gone,
            },
        };
        match turn {
            Turn::Opened => {
                is_open = true;
                for frame in early.take().unwrap_or_default() {
                    lane.frame(key, frame, &mut ups);
                }
            }
            Turn::Bytes(bytes) => lane.feed(key, &mut buffer, bytes, &mut ups),
            Turn::ControlEnded => {
                control_ended = true;
                if buffer.is_partial() {
                    lane.with(key, |connection, shared, now_ms| {
                        connection.close(shared, now_ms, Code::TRUNCATED)
                    });
                } else {
                    // Without control there is no session.
                    lane.with(key, |connection, shared, _| connection.end(shared));
                    break;
                }
            }
            Turn::Fetch(send, recv) => {
                lane.tasks.spawn_local(fetch(lane.clone(), key, send, recv));
            }
            Turn::Uplink(recv) => {
                if std::mem::replace(&mut has_uplink, true) {
                    lane.with(key, |connection, shared, now_ms| {
                        connection.close(shared, now_ms, Code::STREAM)
                    });
                } else {
                    lane.tasks.spawn_local(uplink(lane.clone(), key, recv));
                }
            }
            Turn::Datagram(datagram) => datagram_frame(lane, key, datagram, &mut ups),
            Turn::Closing => {
                let Some(mut link) = lane.take_quic(key) else { break };
                let said = async {
                    link.control.finish().ok()?;
                    link.control.stopped().await.ok()
                };
                let _ = tokio::time::timeout(CLOSE_LINGER, said).await;
                let (code, reason) = link.closing.unwrap_or((VarInt::from(0u32), ""));
                connection.close(code, reason.as_bytes());
                return;
            }
            Turn::Gone => break,
        }
        if !ups.is_empty() {
            lane.forward(key, &mut ups).await;
        }
    }
    connection.close(VarInt::from(0u32), b"");
    // In turns too: when all leave at once, what follows from it here and at the router is not to delay those who stay.
    // Boxed, because a connection's task is as big as its biggest state.
    Box::pin(lane.turns.take(Box::pin(async { lane.remove(key) }))).await;
}

/// What a connection's task met.
pub(crate) enum Turn {
    Opened,
    Bytes(Bytes),
    ControlEnded,
    Fetch(SendStream, RecvStream),
    Uplink(RecvStream),
    Datagram(Bytes),
    /// CLOSE is written.
    Closing,
    Gone,
}

/// Hints may come in datagrams: one whole frame each.
fn datagram_frame(lane: &Lane, key: Key, mut datagram: Bytes, ups: &mut Vec<Up>) {
    let frame = match Frame::split_from(&mut datagram) {
        Ok(Some(frame)) if datagram.is_empty() => frame,
        Ok(_) => return fail(lane, key, Code::TRUNCATED),
        Err(code) => return fail(lane, key, code),
    };
    match frame.frame_type() {
        FrameType::Typing | FrameType::Presence => lane.frame(key, frame, ups),
        _ => fail(lane, key, Code::UNKNOWN_TYPE),
    }
}

fn fail(lane: &Lane, key: Key, code: Code) {
    lane.with(key, |connection, shared, now_ms| connection.close(shared, now_ms, code));
}

/// SEND, RECEIPT and TYPING on a stream of their own.
async fn uplink(lane: Rc<Lane>, key: Key, mut recv: RecvStream) {
    let custody = Custody { lane, key };
    let lane = &custody.lane;
    let mut buffer = FrameBuffer::default();
    let mut ups = Vec::new();
    while let Ok(Some(chunk)) = recv.read_chunk(READ_BYTES, true).await {
        let mut frames = Vec::new();
        let fed = buffer.feed(chunk.bytes, |frame| frames.push(frame));
        for frame in frames {
            match frame.frame_type() {
                FrameType::Send | FrameType::Receipt | FrameType::Typing => lane.frame(key, frame, &mut ups),
                _ => return fail(lane, key, Code::UNKNOWN_TYPE),
            }
        }
        if let Err(code) = fed {
            return fail(lane, key, code);
        }
        lane.forward(key, &mut ups).await;
    }
    if buffer.is_partial() {
        fail(lane, key, Code::TRUNCATED);
    }
}

/// One FETCH and its end; the answer goes back on the same stream.
async fn fetch(lane: Rc<Lane>, key: Key, send: SendStream, mut recv: RecvStream) {
    let custody = Custody { lane, key };
    let lane = &custody.lane;
    let Ok(bytes) = recv.read_to_end(FETCH_BYTES_MAX).await else {
        return fail(lane, key, Code::STREAM);
    };
    let mut bytes = Bytes::from(bytes);
    let frame = match Frame::split_from(&mut bytes) {
        Ok(Some(frame)) if bytes.is_empty() => frame,
        Ok(_) => return fail(lane, key, Code::TRUNCATED),
        Err(code) => return fail(lane, key, code),
    };
    if frame.frame_type() != FrameType::Fetch {
        return fail(lane, key, Code::STREAM);
    }
    let mut ups = Vec::new();
    lane.with(key, |connection, shared, now_ms| {
        let request = frame.routed().map_or(0, |routed| routed.seq);
        let Link::Quic(link) = &mut connection.link else { return };
        // Behind live frames.
        let _ = send.set_priority(0);
        let id = link.fetches_opened;
        link.fetches_opened += 1;
        let queue = Queue::default();
        link.fetches.push(FetchStream { id, request, stream: send, queue, complete: false });
        connection.frame(shared, now_ms, frame, &mut ups);
    });
    lane.forward(key, &mut ups).await;
}

impl Lane {
    /// One frame of a QUIC stream. A panic in it ends that connection alone.
    fn frame(&self, key: Key, frame: Frame, ups: &mut Vec<Up>) {
        let handled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.with(key, |connection, shared, now_ms| connection.frame(shared, now_ms, frame, ups));
        }));
        if handled.is_err() {
            ups.clear();
            self.panicked(key);
        }
    }

    fn feed(&self, key: Key, buffer: &mut FrameBuffer, bytes: Bytes, ups: &mut Vec<Up>) {
        let mut frames = Vec::new();
        let fed = buffer.feed(bytes, |frame| frames.push(frame));
        for frame in frames {
            self.frame(key, frame, ups);
        }
        if let Err(code) = fed {
            fail(self, key, code);
        }
    }

    /// Writes what waits; tells what changed.
    fn quic_step(&self, key: Key, is_open: bool, cx: &mut Context<'_>) -> Poll<Turn> {
        let turn = self.with(key, |connection: &mut Connection, shared, now_ms| {
            connection.set_waker(cx.waker());
            connection.flush(shared, now_ms);
            match &connection.stage {
                _ if connection.broken => Poll::Ready(Turn::Gone),
                Stage::Open(_) if !is_open => Poll::Ready(Turn::Opened),
                Stage::Closing { .. } if connection.is_flushed() => Poll::Ready(Turn::Closing),
                _ => Poll::Pending,
            }
        });
        turn.unwrap_or(Poll::Ready(Turn::Gone))
    }

    /// Takes an ended connection off the lane, with its streams.
    fn take_quic(&self, key: Key) -> Option<Box<QuicLink>> {
        match self.take(key)?.link {
            Link::Quic(link) => Some(link),
            Link::Ws { .. } => None,
        }
    }
}
