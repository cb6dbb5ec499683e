//! A router on real embedded stores, and a gateway in memory with scripted sessions.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod faulty;
pub mod gateway;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code, DeviceId, Frame, FrameType, UserId,
    frame::{routed, short},
    header::flags,
    link::{GatewayId, Proof},
    wire,
};
use fanfare_router::{Router, RouterConfig, Stores};
use fanfare_storage::{
    embedded::{self, Options},
    metadata::Metadata,
    model::User,
};

pub use faulty::Faulty;
pub use gateway::{Gateway, Session};

/// Shards of a test's router: few, so that they share channels.
pub const SHARDS: u16 = 4;

static COUNTER: AtomicU64 = AtomicU64::new(1);

pub fn unique() -> u64 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

pub fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

pub fn new_id() -> ClientMessageId {
    id_at(now_ms())
}

pub fn id_at(ms: u64) -> ClientMessageId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&unique().to_be_bytes());
    ClientMessageId::new(ms, random)
}

/// A router, its stores' folder and one gateway.
pub struct House {
    pub router: Option<Router>,
    pub faulty: Arc<Faulty>,
    pub gateway: Gateway,
    pub folder: Arc<tempfile::TempDir>,
}

/// A token issued just now, bound to no device.
pub const TOKEN: Proof = Proof::Token { issued_s: u64::MAX, generation: None };

impl House {
    pub async fn new() -> Self {
        Self::with(Arc::new(tempfile::tempdir().unwrap()), |_| ()).await
    }

    pub async fn with(folder: Arc<tempfile::TempDir>, change: impl FnOnce(&mut RouterConfig)) -> Self {
        let mut config = RouterConfig::new(tokio::runtime::Handle::current());
        config.shards = SHARDS;
        change(&mut config);
        let path = folder.path().join("data");
        let (router, faulty) = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&path).unwrap();
            let store = embedded::open(&path, &Options::default()).unwrap();
            let faulty = Arc::new(Faulty::new(store.metadata.clone()));
            let stores = Stores {
                metadata: faulty.clone(),
                content: store.store.clone(),
                lists: store.store.clone(),
                log: store.store.clone(),
                ownership: store.metadata.clone(),
                recovered: store.recovered,
            };
            (Router::start(config, stores).unwrap(), faulty)
        })
        .await
        .unwrap();
        let gateway = Gateway::attach(&router, GatewayId(1));
        Self { router: Some(router), faulty, gateway, folder }
    }

    pub fn router(&self) -> &Router {
        self.router.as_ref().unwrap()
    }

    /// Shuts down and starts again on the same folder.
    pub async fn restart(self) -> Self {
        self.restart_with(|_| ()).await
    }

    pub async fn restart_with(mut self, change: impl FnOnce(&mut RouterConfig)) -> Self {
        let folder = self.folder.clone();
        self.stop().await;
        drop(self);
        Self::with(folder, change).await
    }

    pub async fn stop(&mut self) {
        if let Some(router) = self.router.take() {
            router.shutdown().await;
        }
    }

    pub async fn user(&self, name: &str) -> UserId {
        self.router().admin().create_user(name, User::FULL_DELIVERY).await.unwrap().user
    }

    pub async fn users(&self, count: usize) -> Vec<UserId> {
        let tag = unique();
        let mut users = Vec::new();
        for number in 0..count {
            users.push(self.user(&format!("user-{tag}-{number}")).await);
        }
        users
    }

    /// An open session that follows its channels.
    pub async fn session(&self, user: UserId, device: u64) -> Session {
        let mut session = self.open(user, device).await;
        session.sync(&[]).await;
        session
    }

    pub async fn open(&self, user: UserId, device: u64) -> Session {
        self.gateway.open(user, DeviceId(device), TOKEN, false).await.unwrap()
    }

    pub async fn group(&self, owner: UserId, members: &[UserId]) -> ChannelId {
        let group = wire::Group {
            name: "group".into(),
            members: members.iter().map(|user| user.0).collect(),
            ..Default::default()
        };
        self.router().admin().create_group(owner, new_id(), group).await.unwrap()
    }
}

pub fn text(text: &str) -> wire::send::Content {
    wire::send::Content::Message(wire::Message { text: text.into(), ..Default::default() })
}

pub fn membership(change: wire::MembershipChange, users: &[UserId]) -> wire::send::Content {
    let users = users.iter().map(|user| user.0).collect();
    wire::send::Content::Membership(wire::Membership { change: change.into(), users, ..Default::default() })
}

pub fn text_of(entry: &wire::Entry) -> String {
    match &entry.content {
        Some(wire::entry::Content::Message(message)) => message.text.clone(),
        Some(wire::entry::Content::Edit(edit)) => edit.message.clone().unwrap_or_default().text,
        _ => String::new(),
    }
}

/// A SEND frame.
pub fn send_frame(
    channel: ChannelId,
    request: u64,
    id: ClientMessageId,
    content: wire::send::Content,
    retry: Option<(u64, u64)>,
) -> Frame {
    let (first_attempt_ms, last_attempt_ms) = retry.unwrap_or_default();
    let send = wire::Send {
        client_message_id: id.0.to_vec().into(),
        first_attempt_ms,
        last_attempt_ms,
        content: Some(content),
    };
    let flag = if retry.is_some() { flags::RETRY } else { 0 };
    whole(routed(FrameType::Send, 1, flag, 0, channel, request, &send))
}

pub fn whole(mut bytes: bytes::Bytes) -> Frame {
    Frame::split_from(&mut bytes).unwrap().unwrap()
}

pub fn sync_frame(positions: &[(ChannelId, u32, u64)], window: u32) -> Frame {
    let positions = positions
        .iter()
        .map(|(channel, epoch, seq)| wire::Position { channel: channel.0, epoch: *epoch, seq: *seq })
        .collect();
    whole(short(FrameType::Sync, 0, &wire::Sync { positions, window, cursor: Default::default() }))
}

pub fn code(code: u32) -> Code {
    Code(code as u16)
}

pub fn metadata(house: &House) -> Arc<dyn Metadata> {
    house.faulty.clone()
}
