//! One session over plain WebSocket, blocking, on bare frames.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use fanfare_proto::{
    ChannelId, ClientMessageId, FrameType, SUBPROTOCOL, WS_PATH, frame,
    frame::Frame,
    header::class,
    wire,
    ws::{self, ClientRequest, Decoder, Event, Opcode, Role},
};

/// Longest wait for any one answer.
pub const ANSWER_TIME: Duration = Duration::from_secs(15);

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A fresh client message id on this machine's clock, which is the server's.
pub fn fresh_id() -> ClientMessageId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) << 20 | u64::from(std::process::id()) & 0xf_ffff;
    let mut random = [0; 10];
    random[2..].copy_from_slice(&count.to_be_bytes());
    ClientMessageId::new(unix_ms(), random)
}

/// One open session.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    decoder: Decoder,
    frames: VecDeque<Frame>,
    last_request: u64,
    /// What WELCOME said.
    pub welcome: wire::Welcome,
    /// Every channel that SYNCED named.
    pub channels: Vec<wire::ChannelState>,
}

impl Connection {
    /// Connects, says HELLO with a token, asks where all channels stand and waits for the whole answer.
    pub fn open(address: SocketAddr, token: &str, device: u64) -> Result<Self> {
        Self::begin(address, wire::Hello { token: token.into(), device, ..Default::default() })
    }

    /// As [`Self::open`], by the secret of an earlier session's WELCOME.
    pub fn resume(address: SocketAddr, resume: Bytes, device: u64) -> Result<Self> {
        Self::begin(address, wire::Hello { resume, device, ..Default::default() })
    }

    fn begin(address: SocketAddr, hello: wire::Hello) -> Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIME)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        let host = address.to_string();
        let request = ClientRequest {
            host: &host,
            target: WS_PATH,
            subprotocol: Some(SUBPROTOCOL),
            origin: None,
            authorization: None,
            nonce: [7; 16],
        };
        stream.write_all(&request.encode()?)?;
        let mut head = Vec::new();
        let head_bytes = loop {
            let mut chunk = [0; 1024];
            let count = stream.read(&mut chunk)?;
            if count == 0 {
                bail!("the server closed the connection during the upgrade");
            }
            head.extend_from_slice(&chunk[..count]);
            if let Some(accepted) = request.verify(&head)? {
                break accepted.head_bytes;
            }
        };
        let mut connection = Self {
            stream,
            decoder: Decoder::new(Role::Client, ws::Limits::FANFARE),
            frames: VecDeque::new(),
            last_request: 0,
            welcome: wire::Welcome::default(),
            channels: Vec::new(),
        };
        connection.feed(&mut head[head_bytes..])?;
        let hello = wire::Hello {
            version_min: fanfare_proto::VERSION,
            version_max: fanfare_proto::VERSION,
            device_name: "rig".into(),
            agent: "fanfare-tests".into(),
            ..hello
        };
        connection.write(&frame::short(FrameType::Hello, class::CONTROL, &hello))?;
        connection.welcome = match connection.next(ANSWER_TIME)?.context("no WELCOME in time")? {
            frame if frame.frame_type() == FrameType::Welcome => frame.decode()?,
            frame => bail!("{} instead of WELCOME", describe(&frame)),
        };
        connection.sync(wire::Sync { window: 200, ..Default::default() })?;
        Ok(connection)
    }

    fn sync(&mut self, sync: wire::Sync) -> Result<()> {
        self.write(&frame::short(FrameType::Sync, class::CONTROL, &sync))?;
        // Fills may stand between SYNCED frames: they stay in line for the owner.
        let mut others = VecDeque::new();
        loop {
            let frame = self.next(ANSWER_TIME)?.context("no SYNCED in time")?;
            if frame.frame_type() != FrameType::Synced {
                others.push_back(frame);
                continue;
            }
            let synced: wire::Synced = frame.decode()?;
            self.channels.extend(synced.channels);
            if synced.complete {
                break;
            }
            let next = wire::Sync { window: 200, cursor: synced.cursor, ..Default::default() };
            self.write(&frame::short(FrameType::Sync, class::CONTROL, &next))?;
        }
        others.append(&mut self.frames);
        self.frames = others;
        Ok(())
    }

    /// Writes whole frames as one WebSocket message.
    pub fn write(&mut self, frames: &[u8]) -> Result<()> {
        let mut out = Vec::new();
        ws::client_frame(Opcode::Binary, frames, [1, 2, 3, 4], &mut out);
        self.stream.write_all(&out)?;
        Ok(())
    }

    /// The next frame; `None` when none came in time. An error: the connection is gone.
    pub fn next(&mut self, time: Duration) -> Result<Option<Frame>> {
        let until = Instant::now() + time;
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(Some(frame));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut chunk = [0; 64 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(count) => self.feed(&mut chunk[..count])?,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn feed(&mut self, bytes: &mut [u8]) -> Result<()> {
        let mut input = bytes;
        let mut pongs = Vec::new();
        while let Some(event) = self.decoder.next(&mut input)? {
            match event {
                Event::Message { payload, .. } => {
                    for frame in Frame::iter(Bytes::copy_from_slice(&payload)) {
                        self.frames.push_back(frame.context("what the server sent is no frame")?);
                    }
                }
                Event::Ping(payload) => pongs.push(ws::client_control(Opcode::Pong, &payload, [1, 2, 3, 4])),
                Event::Pong(_) => {}
                Event::Close { code, reason } => bail!("closed with {code:?} {reason}"),
            }
        }
        for pong in pongs {
            self.stream.write_all(&pong)?;
        }
        Ok(())
    }

    /// Sends a frame with a request number; returns the number.
    pub fn request(
        &mut self,
        frame_type: FrameType,
        flags: u8,
        channel: ChannelId,
        body: &impl prost::Message,
    ) -> Result<u64> {
        self.last_request += 1;
        self.write(&frame::routed(frame_type, 0, flags, 0, channel, self.last_request, body))?;
        Ok(self.last_request)
    }

    /// Asks and waits for the frame of that type and number (REFUSED and CLOSE are errors); other frames stay in
    /// line.
    pub fn answer(&mut self, frame_type: FrameType, number: u64) -> Result<Frame> {
        let mut others = VecDeque::new();
        let until = Instant::now() + ANSWER_TIME;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let frame =
                self.next(left)?.with_context(|| format!("no {frame_type:?} within {ANSWER_TIME:?}"))?;
            let mine = frame.routed().is_some_and(|routed| routed.seq == number);
            if frame.frame_type() == FrameType::Close || mine && frame.frame_type() == FrameType::Refused {
                bail!("{}", describe(&frame));
            }
            if mine && frame.frame_type() == frame_type {
                others.append(&mut self.frames);
                self.frames = others;
                return Ok(frame);
            }
            others.push_back(frame);
        }
    }

    /// Opens a direct channel or makes a group.
    pub fn open_channel(
        &mut self,
        id: ClientMessageId,
        target: wire::open::Target,
    ) -> Result<wire::ChannelState> {
        let open = wire::Open { client_message_id: id.0.to_vec().into(), target: Some(target) };
        let number = self.request(FrameType::Open, 0, ChannelId(0), &open)?;
        Ok(self.answer(FrameType::Channel, number)?.decode()?)
    }

    /// The whole history of a channel, every page of it, by seq.
    pub fn history(&mut self, channel: ChannelId) -> Result<History> {
        let mut history = History::default();
        let mut before = 0;
        loop {
            let fetch = wire::Fetch { before, after: 0, messages_max: 100, before_ms: 0 };
            let number = self.request(FrameType::Fetch, 0, channel, &fetch)?;
            loop {
                let frame = self.answer(FrameType::Page, number)?;
                let page: wire::Page = frame.decode()?;
                history.take(channel, &page)?;
                before = page.first;
                if page.complete {
                    return Ok(history);
                }
                if !page.more {
                    break;
                }
            }
            if before <= 1 {
                bail!("{channel}: a FETCH down to seq {before} was not complete");
            }
        }
    }
}

/// A channel as paged.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Newest head any page named.
    pub head: u64,
    /// The frames with their seqs.
    pub frames: std::collections::BTreeMap<u64, Frame>,
    /// Seqs outside the reader's membership.
    pub hidden: Vec<(u64, u64)>,
    /// Seqs whose stored bytes did not match their hash.
    pub corrupt: Vec<(u64, u64)>,
    /// Every seq that some page covered.
    pub covered: std::collections::BTreeSet<u64>,
}

impl History {
    fn take(&mut self, channel: ChannelId, page: &wire::Page) -> Result<()> {
        self.head = self.head.max(page.head);
        self.hidden.extend(page.hidden.iter().map(|range| (range.first, range.last)));
        self.corrupt.extend(page.corrupt.iter().map(|range| (range.first, range.last)));
        if page.first > 0 {
            self.covered.extend(page.first..=page.last);
        }
        for frame in Frame::iter(page.frames.clone()) {
            let frame = frame.context("a page holds something that is no frame")?;
            let routed = *frame.routed().context("a page holds a frame without a seq")?;
            if routed.channel != channel || frame.frame_type() != FrameType::Deliver {
                bail!("{channel}: a page holds {}", describe(&frame));
            }
            if let Some(earlier) = self.frames.insert(routed.seq, frame.clone())
                && earlier != frame
            {
                bail!("{channel}: seq {} was paged twice with different bytes", routed.seq);
            }
        }
        Ok(())
    }

    /// Whether the seq lies outside the reader's membership.
    pub fn is_hidden(&self, seq: u64) -> bool {
        self.hidden.iter().any(|&(first, last)| (first..=last).contains(&seq))
    }
}

/// A frame in words.
pub fn describe(frame: &Frame) -> String {
    let name = frame.frame_type();
    let place = frame
        .routed()
        .map_or(String::new(), |routed| format!(" channel {} seq {}", routed.channel, routed.seq));
    if matches!(name, FrameType::Close | FrameType::Error | FrameType::Refused)
        && let Ok(error) = frame.decode::<wire::Error>()
    {
        return format!("{name:?}{place}: {:?} {}", fanfare_proto::Code(error.code as u16), error.text);
    }
    format!("{name:?}{place}")
}
