//! A gateway in a few lines, for tests: one process, everything in memory, over real TCP and UDP, and it fails on
//! command.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use aws_lc_rs::digest;
use bytes::Bytes;
use fanfare_proto::{
    ALPN, ChannelId, Code, Frame, FrameType, SUBPROTOCOL,
    frame::{self, FrameBuffer},
    header::{class, flags},
    wire::{self, ChannelKind, Outcome, Role, entry, send},
    ws::{self, Decoder, Event, Limits, Opcode, Upgrade},
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

/// What happens to the next SEND.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The connection breaks before the entry is committed.
    CutBefore,
    /// The connection breaks after the commit, before the answer.
    CutAfter,
    /// The outcome is unknown, and the entry committed or not.
    Unknown(bool),
    /// Refused.
    Fail(Code),
}

pub const SERVER_TIME_MS: u64 = 1_800_000_000_000;

#[derive(Default)]
struct State {
    channels: BTreeMap<u64, Channel>,
    sessions: HashMap<u64, Session>,
    next: u64,
    faults: VecDeque<Fault>,
    /// Sends as they came: (retry flag, first attempt, client message id).
    attempts: Vec<(bool, u64, Bytes)>,
    receipts: Vec<(u64, wire::Cursor)>,
    acks: Vec<wire::Ack>,
    hellos: Vec<wire::Hello>,
    users: HashMap<u64, u64>,
    auths: Vec<String>,
    answer_gaps: bool,
    refuse: VecDeque<wire::Error>,
}

#[derive(Default)]
struct Channel {
    frames: Vec<Bytes>,
    ids: HashMap<Bytes, u64>,
    direct: bool,
    positions: HashMap<u64, u64>,
}

struct Session {
    user: u64,
    device: u64,
    out: mpsc::Sender<Bytes>,
    cut: watch::Sender<bool>,
    synced: bool,
}

#[derive(Clone)]
pub struct FakeGateway {
    pub address: SocketAddr,
    pub pin: [u8; 32],
    state: Arc<Mutex<State>>,
}

impl FakeGateway {
    pub async fn start() -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
        let certificate = certified.cert.der().clone();
        let pin: [u8; 32] = digest::digest(&digest::SHA256, &certificate).as_ref().try_into().unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls.clone()));
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let quic = quinn::crypto::rustls::QuicServerConfig::try_from(Arc::new(tls)).unwrap();
        let quic = quinn::ServerConfig::with_crypto(Arc::new(quic));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = quinn::Endpoint::server(quic, address).unwrap();
        let gateway = Self { address, pin, state: Arc::default() };
        let tcp = gateway.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let (gateway, acceptor) = (tcp.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let mut first = [0];
                    // TLS or not: the first byte tells.
                    let _ = match stream.peek(&mut first).await {
                        Ok(1) if first[0] == 0x16 => match acceptor.accept(stream).await {
                            Ok(stream) => gateway.serve_ws(stream).await,
                            Err(_) => Ok(()),
                        },
                        _ => gateway.serve_ws::<TcpStream>(stream).await,
                    };
                });
            }
        });
        let udp = gateway.clone();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let gateway = udp.clone();
                tokio::spawn(async move {
                    let _ = gateway.serve_quic(incoming).await;
                });
            }
        });
        gateway
    }

    pub fn ws_url(&self) -> String {
        format!("ws://{}", self.address)
    }

    pub fn wss_url(&self) -> String {
        format!("wss://{}", self.address)
    }

    pub fn quic_url(&self) -> String {
        format!("quic://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn add_channel(&self, channel: u64, direct: bool) {
        self.state().channels.insert(channel, Channel { direct, ..Default::default() });
    }

    /// Stores a message as another user and sends it to all sessions that have synced.
    pub fn publish(&self, channel: u64, text: &str) -> u64 {
        let message = wire::Message { text: text.into(), ..Default::default() };
        self.state().commit(channel, 999, Bytes::new(), entry::Content::Message(message))
    }

    /// Stores without a word to anybody.
    pub fn publish_silently(&self, channel: u64, text: &str) -> u64 {
        let message = wire::Message { text: text.into(), ..Default::default() };
        let mut state = self.state();
        let sessions = std::mem::take(&mut state.sessions);
        let seq = state.commit(channel, 999, Bytes::new(), entry::Content::Message(message));
        state.sessions = sessions;
        seq
    }

    /// Sends a frame to every session.
    pub fn tell(&self, frame: Bytes) {
        self.state().tell(&frame);
    }

    pub fn fault(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// The next HELLO is answered by CLOSE.
    pub fn refuse(&self, code: Code, retry_after_ms: u32) {
        let error = wire::Error { code: code.0.into(), retry_after_ms, ..Default::default() };
        self.state().refuse.push_back(error);
    }

    /// Takes HELLOs again.
    pub fn refuse_no_more(&self) {
        self.state().refuse.clear();
    }

    /// Answers SYNC with GAPs instead of entries.
    pub fn answer_gaps(&self, yes: bool) {
        self.state().answer_gaps = yes;
    }

    /// Breaks every connection.
    pub fn cut_all(&self) {
        for session in self.state().sessions.values() {
            session.cut.send_replace(true);
        }
    }

    pub fn texts(&self, channel: u64) -> Vec<String> {
        self.state().channels[&channel].frames.iter().map(text_of).collect()
    }

    pub fn attempts(&self) -> Vec<(bool, u64, Bytes)> {
        self.state().attempts.clone()
    }

    pub fn receipts(&self) -> Vec<(u64, wire::Cursor)> {
        self.state().receipts.clone()
    }

    pub fn acks(&self) -> Vec<wire::Ack> {
        self.state().acks.clone()
    }

    pub fn auths(&self) -> Vec<String> {
        self.state().auths.clone()
    }

    pub fn hellos(&self) -> Vec<wire::Hello> {
        self.state().hellos.clone()
    }

    async fn serve_ws<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
        &self,
        mut stream: S,
    ) -> anyhow::Result<()> {
        let mut head = Vec::new();
        loop {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
            if let Some((upgrade, size)) = Upgrade::parse(&head)? {
                stream.write_all(&upgrade.response(Some(SUBPROTOCOL))).await?;
                assert_eq!(size, head.len());
                break;
            }
        }
        let (out, mut outgoing) = mpsc::channel::<Bytes>(4096);
        let (cut, mut was_cut) = watch::channel(false);
        let session = self.state().next_session();
        let mut decoder = Decoder::new(ws::Role::Server, Limits::FANFARE);
        let mut buffer = vec![0; 64 * 1024];
        let mut last = None;
        while last.is_none() {
            tokio::select! {
                biased;
                _ = was_cut.changed() => break,
                frame = outgoing.recv() => {
                    let frame = frame.expect("out is held here");
                    let mut message = frame.to_vec();
                    while message.len() < 32 * 1024 && let Ok(frame) = outgoing.try_recv() { message.extend_from_slice(&frame) }
                    let mut header = [0; ws::SERVER_HEADER_BYTES_MAX];
                    let size = ws::server_header(Opcode::Binary, message.len(), &mut header);
                    stream.write_all(&header[..size]).await?;
                    stream.write_all(&message).await?;
                    stream.flush().await?;
                }
                read = stream.read(&mut buffer) => {
                    let read = read?;
                    if read == 0 { break }
                    let mut input = &mut buffer[..read];
                    while let Some(event) = decoder.next(&mut input)? {
                        let Event::Message { payload, .. } = event else { continue };
                        for frame in Frame::iter(Bytes::from(payload.into_owned())) {
                            let error = self.state().handle(session, &frame.map_err(anyhow::Error::from)?, &out, &cut);
                            last = last.or(error);
                        }
                    }
                }
            }
        }
        self.state().sessions.remove(&session);
        if let Some(error) = last {
            let frame = frame::short(FrameType::Close, class::CONTROL, &error);
            let mut header = [0; ws::SERVER_HEADER_BYTES_MAX];
            let size = ws::server_header(Opcode::Binary, frame.len(), &mut header);
            stream.write_all(&header[..size]).await?;
            stream.write_all(&frame).await?;
            stream.write_all(&ws::server_close(Some(Code(error.code as u16).close_code()), "")).await?;
            stream.shutdown().await?;
        }
        Ok(())
    }

    async fn serve_quic(&self, incoming: quinn::Incoming) -> anyhow::Result<()> {
        let connection = incoming.await?;
        let (mut control, mut read) = connection.accept_bi().await?;
        let mut hot = connection.open_uni().await?;
        let (out, mut outgoing) = mpsc::channel::<Bytes>(4096);
        let (cut, mut was_cut) = watch::channel(false);
        let session = self.state().next_session();
        let mut frames = FrameBuffer::default();
        let mut last = None;
        while last.is_none() {
            tokio::select! {
                biased;
                _ = was_cut.changed() => break,
                frame = outgoing.recv() => {
                    let frame = frame.expect("out is held here");
                    match FrameType::from_u8(frame[0]) {
                        Some(FrameType::Typing) => connection.send_datagram(frame)?,
                        Some(FrameType::Deliver | FrameType::Gap | FrameType::Notify | FrameType::Synced) => hot.write_all(&frame).await?,
                        _ => control.write_all(&frame).await?,
                    }
                }
                chunk = read.read_chunk(16 * 1024, true) => {
                    let Some(chunk) = chunk? else { break };
                    let mut whole = Vec::new();
                    frames.feed(chunk.bytes, |frame| whole.push(frame)).map_err(anyhow::Error::from)?;
                    for frame in whole {
                        last = last.or(self.state().handle(session, &frame, &out, &cut));
                    }
                }
            }
        }
        self.state().sessions.remove(&session);
        let code = match last {
            Some(error) => {
                control.write_all(&frame::short(FrameType::Close, class::CONTROL, &error)).await?;
                control.finish()?;
                let _ = control.stopped().await;
                Code(error.code as u16).close_code()
            }
            None => 0,
        };
        connection.close(u32::from(code).into(), b"");
        Ok(())
    }
}

fn text_of(frame: &Bytes) -> String {
    let frame = Frame::split_from(&mut frame.clone()).unwrap().unwrap();
    match frame.decode::<wire::Entry>().unwrap().content {
        Some(entry::Content::Message(message)) => message.text,
        other => format!("{other:?}"),
    }
}

impl State {
    fn next_session(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn tell(&mut self, frame: &Bytes) {
        for session in self.sessions.values().filter(|session| session.synced) {
            session.out.try_send(frame.clone()).expect("room for test frames");
        }
    }

    fn commit(&mut self, id: u64, sender: u64, client_message_id: Bytes, content: entry::Content) -> u64 {
        let channel = self.channels.get_mut(&id).expect("a channel of the test");
        let seq = channel.frames.len() as u64 + 1;
        let body = wire::Entry {
            epoch: 0,
            message_id: (SERVER_TIME_MS - fanfare_proto::ids::EPOCH_MS) << 21 | seq,
            ordinal: seq,
            sender,
            client_message_id: client_message_id.clone(),
            content: Some(content),
        };
        let frame =
            frame::routed(FrameType::Deliver, class::MESSAGE, flags::COUNTED, 0, ChannelId(id), seq, &body);
        channel.frames.push(frame.clone());
        channel.ids.insert(client_message_id, seq);
        self.tell(&frame);
        seq
    }

    fn channel_state(&self, id: u64, device: u64) -> wire::ChannelState {
        let channel = &self.channels[&id];
        let head = channel.frames.len() as u64;
        wire::ChannelState {
            channel: id,
            kind: if channel.direct { ChannelKind::Direct as i32 } else { ChannelKind::Group as i32 },
            name: format!("channel {id}"),
            role: Role::Member as i32,
            head,
            ordinal: head,
            position: channel.positions.get(&device).copied().unwrap_or(0),
            members: 2,
            ..Default::default()
        }
    }

    /// `Some`: the session ends.
    fn handle(
        &mut self,
        id: u64,
        frame: &Frame,
        out: &mpsc::Sender<Bytes>,
        cut: &watch::Sender<bool>,
    ) -> Option<wire::Error> {
        let (channel, number) = frame.routed().map_or((0, 0), |routed| (routed.channel.0, routed.seq));
        let say = |frame: Bytes| out.try_send(frame).expect("room for test frames");
        let routed = |frame_type, body: &wire::SendAck| {
            frame::routed(frame_type, 0, 0, 0, ChannelId(channel), number, body)
        };
        match frame.frame_type() {
            FrameType::Hello => {
                let hello: wire::Hello = frame.decode().unwrap();
                self.hellos.push(hello.clone());
                if let Some(error) = self.refuse.pop_front() {
                    return Some(error);
                }
                // A resume secret stands for the user whose token opened the device's first session.
                let user = match hello.token.bytes().map(u64::from).sum() {
                    0 => self.users.get(&hello.device).copied().unwrap_or(1),
                    user => user,
                };
                self.users.insert(hello.device, user);
                let session =
                    Session { user, device: hello.device, out: out.clone(), cut: cut.clone(), synced: false };
                self.sessions.insert(id, session);
                let confirmed = self.acks.last().map_or(0, |ack| ack.number);
                let welcome = wire::Welcome {
                    version: 1,
                    session: id,
                    user,
                    user_name: "tester".into(),
                    server_time_ms: SERVER_TIME_MS,
                    heartbeat_ms: 25_000,
                    resume: Bytes::from_static(b"resume"),
                    resume_until_ms: SERVER_TIME_MS + 1_000_000,
                    acks_confirmed: confirmed,
                    resumed: !hello.resume.is_empty(),
                    ..Default::default()
                };
                say(frame::short(FrameType::Welcome, 0, &welcome));
            }
            FrameType::Ping => {
                let ping: wire::Ping = frame.decode().unwrap();
                let pong =
                    wire::Pong { time_ms: ping.time_ms, server_time_ms: SERVER_TIME_MS, acks_confirmed: 0 };
                say(frame::short(FrameType::Pong, 0, &pong));
            }
            FrameType::Ack => {
                let ack: wire::Ack = frame.decode().unwrap();
                let device = self.sessions[&id].device;
                for position in &ack.positions {
                    self.channels.get_mut(&position.channel).unwrap().positions.insert(device, position.seq);
                }
                self.acks.push(ack);
            }
            FrameType::Sync => {
                let sync: wire::Sync = frame.decode().unwrap();
                let device = self.sessions[&id].device;
                for position in &sync.positions {
                    self.channels.get_mut(&position.channel).unwrap().positions.insert(device, position.seq);
                }
                let channels: Vec<_> =
                    self.channels.keys().map(|channel| self.channel_state(*channel, device)).collect();
                let synced =
                    wire::Synced { channels: channels.clone(), complete: true, ..Default::default() };
                say(frame::short(FrameType::Synced, 0, &synced));
                for state in channels.iter().filter(|state| state.head > state.position) {
                    if self.answer_gaps {
                        let head =
                            wire::Head { head: state.head, after: state.position, ..Default::default() };
                        say(frame::routed(
                            FrameType::Gap,
                            0,
                            0,
                            0,
                            ChannelId(state.channel),
                            state.head,
                            &head,
                        ));
                    } else {
                        self.channels[&state.channel].frames[state.position as usize..]
                            .iter()
                            .cloned()
                            .for_each(say);
                    }
                }
                self.sessions.get_mut(&id).unwrap().synced = true;
            }
            FrameType::Send => {
                let send: wire::Send = frame.decode().unwrap();
                let retry = frame.header.short().flags & flags::RETRY != 0;
                self.attempts.push((retry, send.first_attempt_ms, send.client_message_id.clone()));
                let fault = self.faults.pop_front();
                let mut ack =
                    wire::SendAck { client_message_id: send.client_message_id.clone(), ..Default::default() };
                match fault {
                    Some(Fault::CutBefore) => {
                        cut.send_replace(true);
                        return None;
                    }
                    Some(Fault::Fail(code)) => {
                        ack.code = code.0.into();
                        ack.retry_after_ms = 5;
                        say(routed(FrameType::SendAck, &ack));
                        return None;
                    }
                    Some(Fault::Unknown(false)) => {
                        ack.outcome = Outcome::Unknown as i32;
                        say(routed(FrameType::SendAck, &ack));
                        return None;
                    }
                    _ => {}
                }
                let user = self.sessions[&id].user;
                let known =
                    self.channels.get(&channel).and_then(|log| log.ids.get(&send.client_message_id)).copied();
                if !self.channels.contains_key(&channel) {
                    ack.code = Code::NOT_A_MEMBER.0.into();
                    say(routed(FrameType::SendAck, &ack));
                    return None;
                }
                let seq = known.unwrap_or_else(|| {
                    let content = match send.content.clone().unwrap() {
                        send::Content::Message(message) => entry::Content::Message(message),
                        send::Content::Edit(edit) => entry::Content::Edit(edit),
                        send::Content::Recall(recall) => entry::Content::Recall(recall),
                        send::Content::Reaction(reaction) => entry::Content::Reaction(reaction),
                        send::Content::Membership(membership) => entry::Content::Membership(membership),
                        send::Content::ChannelChange(change) => entry::Content::ChannelChange(change),
                    };
                    self.commit(channel, user, send.client_message_id.clone(), content)
                });
                match fault {
                    Some(Fault::CutAfter) => {
                        cut.send_replace(true);
                        return None;
                    }
                    Some(Fault::Unknown(true)) => ack.outcome = Outcome::Unknown as i32,
                    _ => {
                        ack.outcome = Outcome::Ok as i32;
                        ack.seq = seq;
                        ack.ordinal = seq;
                        ack.repeated_send = known.is_some();
                        ack.message_id = (SERVER_TIME_MS - fanfare_proto::ids::EPOCH_MS) << 21 | seq;
                    }
                }
                say(routed(FrameType::SendAck, &ack));
            }
            FrameType::Fetch => {
                let fetch: wire::Fetch = frame.decode().unwrap();
                let frames = &self.channels[&channel].frames;
                let head = frames.len() as u64;
                let last = if fetch.before == 0 { head } else { fetch.before - 1 };
                let first = (fetch.after + 1).max((last + 1).saturating_sub(fetch.messages_max.into()));
                let page = wire::Page {
                    first,
                    last,
                    complete: first == fetch.after + 1 || first == 1,
                    head,
                    frames: frames[first as usize - 1..last as usize].concat().into(),
                    ..Default::default()
                };
                say(frame::routed(FrameType::Page, 0, 0, 0, ChannelId(channel), number, &page));
            }
            FrameType::Open => {
                let open: wire::Open = frame.decode().unwrap();
                let (new, direct) = match open.target.unwrap() {
                    wire::open::Target::Direct(user) => (5_000 + user, true),
                    wire::open::Target::Group(_) => (9_000 + self.next, false),
                };
                self.channels.entry(new).or_insert_with(|| Channel { direct, ..Default::default() });
                let state = self.channel_state(new, 0);
                say(frame::routed(FrameType::Channel, 0, 0, 0, ChannelId(new), number, &state));
            }
            FrameType::Counts => {
                let counts: wire::Counts = frame.decode().unwrap();
                let counts = wire::Counts { delivered: 2, read: 1, members: 2, ..counts };
                say(frame::routed(FrameType::Counts, 0, 0, 0, ChannelId(channel), number, &counts));
            }
            FrameType::Receipt => {
                let receipt: wire::Receipt = frame.decode().unwrap();
                self.receipts.extend(receipt.cursors.iter().map(|cursor| (channel, *cursor)));
            }
            FrameType::Typing => {
                let typing = wire::Typing { user: self.sessions[&id].user, ..frame.decode().unwrap() };
                self.tell(&frame::routed(
                    FrameType::Typing,
                    class::HINT,
                    0,
                    0,
                    ChannelId(channel),
                    0,
                    &typing,
                ));
            }
            FrameType::Auth => self.auths.push(frame.decode::<wire::Auth>().unwrap().token),
            FrameType::Close => {
                cut.send_replace(true);
            }
            _ => {}
        }
        None
    }
}
