//! A router that only pretends: one channel, no storage, no checks. It remembers what the gateway told it.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, Code, Frame, FrameType,
    frame::{routed, short},
    header::class,
    link::{AudienceChange, Down, Downlink, Handle, Opened, Origin, Proof, Tier, Tiers, Up, Uplink},
    wire,
};
use parking_lot::Mutex;

use super::CHANNEL;

/// The text of a message that kills who handles it.
pub const POISON: &str = "poison";

#[derive(Default)]
pub struct Router {
    down: OnceLock<Arc<dyn Downlink>>,
    pub sessions: Mutex<HashMap<Handle, Origin>>,
    pub opens: Mutex<Vec<(Origin, Proof, bool, String)>>,
    pub frames: Mutex<Vec<(Origin, Frame)>>,
    pub closes: Mutex<Vec<Origin>>,
    pub credit: AtomicU32,
    pub charged: AtomicU64,
    head: AtomicU64,
    /// Answers Up::Open of a resumed session with this.
    pub refuse_resume: Mutex<Option<Code>>,
    /// Answers Up::Open with this.
    pub refuse: Mutex<Option<Code>>,
    /// Says in Up::Open's answer that tokens issued before this time are void.
    pub tokens_from_s: AtomicU64,
    /// Has no room for frames.
    pub full: AtomicBool,
    /// Does not answer requests.
    pub silent: AtomicBool,
    /// Bytes of each message in a page, and pages of an answer.
    pub page: Mutex<(usize, usize)>,
}

impl Router {
    pub fn connect(&self, down: Arc<dyn Downlink>) {
        assert!(self.down.set(down).is_ok());
    }

    pub fn down(&self, down: Down) {
        self.charged.fetch_add(u64::from(down.charge_bytes()), Ordering::Relaxed);
        self.down.get().expect("connected").send(3, down);
    }

    /// Several at once: they are there in one pass of a lane.
    pub fn downs(&self, downs: impl IntoIterator<Item = Down>) {
        let mut downs: Vec<_> = downs.into_iter().map(|down| (3, down)).collect();
        let charged: u32 = downs.iter().map(|(_, down)| down.charge_bytes()).sum();
        self.charged.fetch_add(charged.into(), Ordering::Relaxed);
        self.down.get().expect("connected").send_all(&mut downs);
    }

    pub fn reply(&self, handle: Handle, frames: impl Into<Bytes>) {
        self.down(Down::Reply { handle, frames: frames.into() });
    }

    pub fn fanout(&self, frames: impl Into<Bytes>) {
        self.down(Down::Fanout {
            channel: CHANNEL,
            lanes: u64::MAX,
            tiers: Tiers::ALL,
            frames: frames.into(),
        });
    }

    pub fn add(&self, channel: ChannelId, handle: Handle) {
        self.down(Down::Audience { channel, changes: vec![AudienceChange::Add(handle, Tier::Active)] });
    }

    pub fn remove(&self, channel: ChannelId, handle: Handle) {
        self.down(Down::Audience { channel, changes: vec![AudienceChange::Remove(handle)] });
    }

    /// A new entry for everybody in the channel.
    pub fn deliver(&self, text: &str) -> u64 {
        let seq = self.head.fetch_add(1, Ordering::Relaxed) + 1;
        self.fanout(entry(CHANNEL, seq, text));
        seq
    }

    pub fn handle_of(&self, user: u64) -> Handle {
        let sessions = self.sessions.lock();
        let mut of = sessions.values().filter(|origin| origin.user.0 == user);
        of.next().expect("a session of that user").handle
    }

    fn frame(&self, origin: Origin, frame: Frame) {
        let handle = origin.handle;
        let (channel, number) =
            frame.routed().map_or((ChannelId(0), 0), |routed| (routed.channel, routed.seq));
        self.frames.lock().push((origin, frame.clone()));
        if self.silent.load(Ordering::Relaxed) {
            return;
        }
        match frame.frame_type() {
            FrameType::Send => {
                let send: wire::Send = frame.decode().unwrap();
                let Some(wire::send::Content::Message(message)) = send.content else { return };
                let seq = self.deliver(&message.text);
                let ack = wire::SendAck { outcome: wire::Outcome::Ok.into(), seq, ..Default::default() };
                self.reply(handle, routed(FrameType::SendAck, class::MESSAGE, 0, 0, channel, number, &ack));
            }
            FrameType::Sync => {
                let head = self.head.load(Ordering::Relaxed);
                let state =
                    wire::ChannelState { channel: CHANNEL.0, head, position: head, ..Default::default() };
                let synced = wire::Synced { channels: vec![state], complete: true, ..Default::default() };
                self.reply(handle, short(FrameType::Synced, class::STATE, &synced));
                self.add(CHANNEL, handle);
            }
            FrameType::Fetch => {
                let (bytes, pages) = *self.page.lock();
                for number_of_page in 1..=pages.max(2) {
                    let more = number_of_page != pages.max(2);
                    let frames = entry(channel, number_of_page as u64, &"h".repeat(bytes.max(3)));
                    let page =
                        wire::Page { more, complete: true, frames, first: 1, last: 9, ..Default::default() };
                    let page = routed(FrameType::Page, class::HISTORY, 0, 0, channel, number, &page);
                    self.reply(handle, page);
                }
            }
            FrameType::Counts => {
                let counts = wire::Counts { of: 1, members: 5, ..Default::default() };
                self.reply(handle, routed(FrameType::Counts, class::STATE, 0, 0, channel, number, &counts));
            }
            FrameType::Open => {
                let state = wire::ChannelState { channel: CHANNEL.0, ..Default::default() };
                self.reply(handle, routed(FrameType::Channel, class::STATE, 0, 0, CHANNEL, number, &state));
            }
            FrameType::Typing => {
                let typing = wire::Typing { user: origin.user.0, stopped: false };
                self.fanout(routed(FrameType::Typing, class::HINT, 0, 0, channel, 0, &typing));
            }
            FrameType::Ack => {
                let ack: wire::Ack = frame.decode().unwrap();
                self.down(Down::Confirmed { handle, number: ack.number });
            }
            _ => {}
        }
    }
}

pub fn entry(channel: ChannelId, seq: u64, text: &str) -> Bytes {
    let message = wire::Message { text: text.into(), ..Default::default() };
    let content = Some(wire::entry::Content::Message(message));
    let body = wire::Entry { ordinal: seq, content, ..Default::default() };
    routed(FrameType::Deliver, class::MESSAGE, 0, 0, channel, seq, &body)
}

impl Uplink for Router {
    fn try_send(&self, up: Up) -> Result<(), Box<Up>> {
        match up {
            Up::Open { origin, proof, full, device_name } => {
                self.opens.lock().push((origin, proof, full, device_name));
                let refused = match proof {
                    Proof::Resume { .. } => *self.refuse_resume.lock(),
                    Proof::Token { .. } => None,
                };
                let outcome = match refused.or(*self.refuse.lock()) {
                    Some(code) => Err(code),
                    None => {
                        self.sessions.lock().insert(origin.handle, origin);
                        let user_name = format!("user {}", origin.user);
                        let tokens_from_s = self.tokens_from_s.load(Ordering::Relaxed);
                        Ok(Opened { user_name, acks_confirmed: 4, generation: 2, tokens_from_s })
                    }
                };
                self.down(Down::Opened { handle: origin.handle, outcome });
            }
            Up::Close { origin } => {
                self.sessions.lock().remove(&origin.handle);
                self.closes.lock().push(origin);
            }
            Up::Frame { .. } if self.full.load(Ordering::Relaxed) => return Err(Box::new(up)),
            Up::Frame { origin, frame } => self.frame(origin, frame),
            Up::Credit { owner, bytes, .. } => {
                assert_eq!(owner, 3);
                self.credit.fetch_add(bytes, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn reserve(&self, up: &Up) -> bool {
        if let Up::Frame { frame, .. } = up
            && frame.frame_type() == FrameType::Send
        {
            let send: wire::Send = frame.decode().unwrap();
            if let Some(wire::send::Content::Message(message)) = send.content {
                assert!(message.text != POISON, "the poison is taken");
            }
        }
        !matches!(up, Up::Frame { .. }) || !self.full.load(Ordering::Relaxed)
    }

    fn hand_over(&self, ups: &mut Vec<Up>) {
        for up in ups.drain(..) {
            let _ = self.try_send(up);
        }
    }

    fn send(&self, up: Up) -> Pin<Box<dyn Future<Output = Result<(), Code>> + Send + '_>> {
        Box::pin(async move {
            let mut up = up;
            for _ in 0..10 {
                match self.try_send(up) {
                    Ok(()) => return Ok(()),
                    Err(back) => up = *back,
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(Code::RETRY_LATER)
        })
    }
}
