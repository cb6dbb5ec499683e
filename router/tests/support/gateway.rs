//! A gateway in memory: mirrors audiences as a real one does and gives each session what it would be written.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, DeviceId, Frame, FrameType, SessionId, UserId,
    frame::routed,
    link::{AudienceChange, Down, Downlink, GatewayId, Handle, Opened, Origin, Proof, Tier, Up, Uplink},
    wire,
};
use fanfare_router::Router;
use tokio::sync::mpsc;

use super::{send_frame, sync_frame, unique, whole};

/// How long a test waits for a frame that must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a session is handed.
#[derive(Debug)]
pub enum Given {
    Opened(Result<Opened, Code>),
    Frame(Frame),
    Kicked(Code),
    Confirmed(u64),
}

#[derive(Default)]
struct State {
    sessions: HashMap<u64, mpsc::UnboundedSender<Given>>,
    audience: HashMap<ChannelId, HashMap<u64, Tier>>,
    owed: HashMap<u16, u64>,
    /// Fan-outs seen per channel, and bytes.
    fanouts: HashMap<ChannelId, u64>,
    /// Hears all that sessions are given, in one order.
    tap: Option<Tap>,
}

/// See `Gateway::tap`.
pub type Tap = Box<dyn Fn(SessionId, &Given) + Send>;

/// The part that owners know.
pub struct Mirror {
    id: GatewayId,
    state: Mutex<State>,
    uplink: Arc<dyn Uplink>,
    /// Credit is kept back while set.
    starving: AtomicBool,
}

impl Downlink for Mirror {
    fn send(&self, owner: u16, down: Down) {
        let bytes = down.charge_bytes();
        let mut state = self.state.lock().unwrap();
        let give = |state: &State, handle: u64, given: Given| {
            if let Some(session) = state.sessions.get(&handle) {
                if let Some(tap) = &state.tap {
                    tap(SessionId(Handle(handle).generation().into()), &given);
                }
                let _ = session.send(given);
            }
        };
        match down {
            Down::Opened { handle, outcome } => give(&state, handle.0, Given::Opened(outcome)),
            Down::Kick { handle, code } => {
                give(&state, handle.0, Given::Kicked(code));
                // As a real one, it closes the connection.
                state.sessions.remove(&handle.0);
            }
            Down::Confirmed { handle, number } => give(&state, handle.0, Given::Confirmed(number)),
            Down::Reply { handle, frames } => {
                for frame in Frame::iter(frames) {
                    give(&state, handle.0, Given::Frame(frame.unwrap()));
                }
            }
            Down::Fanout { channel, frames, lanes, tiers } => {
                *state.fanouts.entry(channel).or_default() += 1;
                let all: Vec<Frame> = Frame::iter(frames).map(Result::unwrap).collect();
                for (handle, tier) in state.audience.get(&channel).into_iter().flatten() {
                    if !tiers.contains(*tier) {
                        continue;
                    }
                    assert!(
                        lanes >> Handle(*handle).lane() & 1 == 1,
                        "the lanes of a fan-out cover its audience"
                    );
                    for frame in &all {
                        give(&state, *handle, Given::Frame(frame.clone()));
                    }
                }
            }
            Down::Audience { channel, changes } => {
                let of = state.audience.entry(channel).or_default();
                for change in changes {
                    match change {
                        AudienceChange::Add(handle, tier) => drop(of.insert(handle.0, tier)),
                        AudienceChange::Remove(handle) => drop(of.remove(&handle.0)),
                    }
                }
            }
        }
        if self.starving.load(Ordering::SeqCst) {
            *state.owed.entry(owner).or_default() += u64::from(bytes);
        } else {
            drop(state);
            let _ = self.uplink.try_send(Up::Credit { gateway: self.id, owner, bytes });
        }
    }
}

#[derive(Clone)]
pub struct Gateway {
    pub mirror: Arc<Mirror>,
}

impl Gateway {
    pub fn attach(router: &Router, id: GatewayId) -> Self {
        let mirror = Arc::new(Mirror {
            id,
            state: Mutex::default(),
            uplink: router.uplink(),
            starving: AtomicBool::new(false),
        });
        router.attach_gateway(id, mirror.clone());
        Self { mirror }
    }

    /// From now on that is told whatever a session is given, before the session is.
    pub fn tap(&self, tap: Tap) {
        self.mirror.state.lock().unwrap().tap = Some(tap);
    }

    pub fn starve(&self) {
        self.mirror.starving.store(true, Ordering::SeqCst);
    }

    /// Gives back all credit that was kept.
    pub fn feed(&self) {
        self.mirror.starving.store(false, Ordering::SeqCst);
        let owed = std::mem::take(&mut self.mirror.state.lock().unwrap().owed);
        for (owner, bytes) in owed {
            let up = Up::Credit { gateway: self.mirror.id, owner, bytes: bytes as u32 };
            let _ = self.mirror.uplink.try_send(up);
        }
    }

    pub fn fanouts(&self, channel: ChannelId) -> u64 {
        self.mirror.state.lock().unwrap().fanouts.get(&channel).copied().unwrap_or(0)
    }

    pub fn audience(&self, channel: ChannelId) -> usize {
        self.mirror.state.lock().unwrap().audience.get(&channel).map_or(0, HashMap::len)
    }

    /// As what a session is served in a channel.
    pub fn tier(&self, channel: ChannelId, handle: Handle) -> Option<Tier> {
        self.mirror.state.lock().unwrap().audience.get(&channel)?.get(&handle.0).copied()
    }

    pub async fn open(
        &self,
        user: UserId,
        device: DeviceId,
        proof: Proof,
        full: bool,
    ) -> Result<Session, Code> {
        let number = unique();
        let handle = Handle::new((number % 3) as u8, (number & 0xff_ffff) as u32, number as u32);
        let origin = Origin { gateway: self.mirror.id, handle, session: SessionId(number), user, device };
        let (sender, given) = mpsc::unbounded_channel();
        self.mirror.state.lock().unwrap().sessions.insert(handle.0, sender);
        let mut session = Session {
            origin,
            gateway: self.clone(),
            given,
            seen: VecDeque::new(),
            requests: AtomicU64::new(1),
            opened: None,
        };
        session
            .gateway
            .mirror
            .uplink
            .send(Up::Open { origin, proof, full, device_name: "test".into() })
            .await?;
        match tokio::time::timeout(PATIENCE, session.given.recv()).await.expect("an answer to OPEN") {
            Some(Given::Opened(Ok(opened))) => session.opened = Some(opened),
            Some(Given::Opened(Err(code))) => return Err(code),
            other => panic!("opened, not {other:?}"),
        }
        Ok(session)
    }
}

pub struct Session {
    pub origin: Origin,
    pub gateway: Gateway,
    given: mpsc::UnboundedReceiver<Given>,
    /// Taken and not yet asked for.
    seen: VecDeque<Given>,
    requests: AtomicU64,
    pub opened: Option<Opened>,
}

/// What a SYNC brought.
#[derive(Debug, Default)]
pub struct SyncAnswer {
    pub states: Vec<wire::ChannelState>,
    pub entries: Vec<(ChannelId, u64, wire::Entry)>,
    pub gaps: Vec<(ChannelId, wire::Head)>,
    pub total: u32,
}

impl Session {
    pub fn request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    pub async fn up(&self, frame: Frame) {
        self.gateway.mirror.uplink.send(Up::Frame { origin: self.origin, frame }).await.unwrap();
    }

    pub async fn close(&self) {
        self.gateway.mirror.state.lock().unwrap().sessions.remove(&self.origin.handle.0);
        self.gateway.mirror.uplink.send(Up::Close { origin: self.origin }).await.unwrap();
    }

    /// The next thing given, in order.
    pub async fn next(&mut self) -> Given {
        if let Some(given) = self.seen.pop_front() {
            return given;
        }
        match tokio::time::timeout(PATIENCE, self.given.recv()).await {
            Ok(Some(given)) => given,
            Ok(None) => panic!("the session is gone"),
            Err(_) => panic!("nothing came in {PATIENCE:?}"),
        }
    }

    /// The next thing given, if it is there already.
    pub fn now(&mut self) -> Option<Given> {
        self.seen.pop_front().or_else(|| self.given.try_recv().ok())
    }

    /// Waits for the first given thing that `is` wants; the others stay, in order.
    pub async fn wait_for<T>(&mut self, mut is: impl FnMut(&Given) -> Option<T>) -> T {
        for place in 0..self.seen.len() {
            if let Some(found) = is(&self.seen[place]) {
                self.seen.remove(place);
                return found;
            }
        }
        loop {
            let given = match tokio::time::timeout(PATIENCE, self.given.recv()).await {
                Ok(Some(given)) => given,
                Ok(None) => panic!("the session is gone"),
                Err(_) => panic!("what was waited for did not come; seen: {:?}", self.seen),
            };
            if let Some(found) = is(&given) {
                return found;
            }
            self.seen.push_back(given);
        }
    }

    pub async fn frame(&mut self, frame_type: FrameType) -> Frame {
        self.wait_for(|given| match given {
            Given::Frame(frame) if frame.frame_type() == frame_type => Some(frame.clone()),
            _ => None,
        })
        .await
    }

    /// The next DELIVER of the channel.
    pub async fn entry(&mut self, channel: ChannelId) -> (u64, wire::Entry) {
        let frame = self
            .wait_for(|given| match given {
                Given::Frame(frame)
                    if frame.frame_type() == FrameType::Deliver
                        && frame.routed().unwrap().channel == channel =>
                {
                    Some(frame.clone())
                }
                _ => None,
            })
            .await;
        (frame.routed().unwrap().seq, frame.decode().unwrap())
    }

    pub async fn answer(&mut self, request: u64, frame_types: &[FrameType]) -> Frame {
        self.wait_for(|given| match given {
            Given::Frame(frame)
                if frame_types.contains(&frame.frame_type()) && frame.routed().unwrap().seq == request =>
            {
                Some(frame.clone())
            }
            _ => None,
        })
        .await
    }

    pub async fn send_as(
        &mut self,
        channel: ChannelId,
        id: ClientMessageId,
        content: wire::send::Content,
        retry: Option<(u64, u64)>,
    ) -> wire::SendAck {
        let request = self.request();
        self.up(send_frame(channel, request, id, content, retry)).await;
        self.answer(request, &[FrameType::SendAck]).await.decode().unwrap()
    }

    pub async fn send(&mut self, channel: ChannelId, content: wire::send::Content) -> wire::SendAck {
        self.send_as(channel, super::new_id(), content, None).await
    }

    pub async fn say(&mut self, channel: ChannelId, text: &str) -> u64 {
        let ack = self.send(channel, super::text(text)).await;
        assert_eq!(ack.outcome(), wire::Outcome::Ok, "{ack:?}");
        ack.seq
    }

    pub async fn sync(&mut self, positions: &[(ChannelId, u32, u64)]) -> SyncAnswer {
        self.sync_within(positions, 0).await
    }

    pub async fn sync_within(&mut self, positions: &[(ChannelId, u32, u64)], window: u32) -> SyncAnswer {
        self.up(sync_frame(positions, window)).await;
        let mut answer = SyncAnswer::default();
        loop {
            match self.next().await {
                Given::Frame(frame) => match frame.frame_type() {
                    FrameType::Synced => {
                        let synced: wire::Synced = frame.decode().unwrap();
                        answer.states.extend(synced.channels);
                        if synced.complete {
                            answer.total = synced.channels_total;
                            return answer;
                        }
                    }
                    FrameType::Deliver => {
                        let header = frame.routed().unwrap();
                        answer.entries.push((header.channel, header.seq, frame.decode().unwrap()));
                    }
                    FrameType::Gap => {
                        answer.gaps.push((frame.routed().unwrap().channel, frame.decode().unwrap()));
                    }
                    FrameType::Channel | FrameType::Receipt | FrameType::Typing | FrameType::SendAck => {}
                    other => panic!("not {other:?} during SYNC: {:?}", frame.decode::<wire::Error>()),
                },
                Given::Confirmed(_) => {}
                other => panic!("not {other:?} during SYNC"),
            }
        }
    }

    /// All pages of a FETCH.
    pub async fn fetch(&mut self, channel: ChannelId, fetch: &wire::Fetch) -> Result<Vec<wire::Page>, Code> {
        let request = self.request();
        self.up(whole(routed(FrameType::Fetch, 3, 0, 0, channel, request, fetch))).await;
        let mut pages = Vec::new();
        loop {
            let frame = self.answer(request, &[FrameType::Page, FrameType::Refused]).await;
            if frame.frame_type() == FrameType::Refused {
                let error: wire::Error = frame.decode().unwrap();
                return Err(Code(error.code as u16));
            }
            assert!(frame.bytes.len() <= fanfare_proto::limits::PAGE_BYTES_MAX);
            let page: wire::Page = frame.decode().unwrap();
            let more = page.more;
            pages.push(page);
            if !more {
                return Ok(pages);
            }
        }
    }

    /// Everything from `after` to the head, by as many FETCHes as it takes; ascending.
    pub async fn history(&mut self, channel: ChannelId, after: u64) -> Vec<(u64, wire::Entry)> {
        let (mut all, mut before) = (Vec::new(), 0);
        loop {
            let fetch = wire::Fetch { before, after, messages_max: 100, before_ms: 0 };
            let pages = self.fetch(channel, &fetch).await.unwrap();
            for page in &pages {
                assert!(page.corrupt.is_empty(), "{page:?}");
                for frame in frames_of(&page.frames) {
                    all.push((frame.routed().unwrap().seq, frame.decode().unwrap()));
                }
            }
            let last = pages.last().unwrap();
            if last.complete {
                break;
            }
            assert!(before == 0 || last.first < before, "a FETCH goes on");
            before = last.first;
        }
        all.sort_by_key(|(seq, _)| *seq);
        all
    }
}

pub fn frames_of(bytes: &Bytes) -> Vec<Frame> {
    Frame::iter(bytes.clone()).map(Result::unwrap).collect()
}
