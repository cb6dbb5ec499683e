//! The client as an application sees it.

use std::{future::Future, net::IpAddr, sync::Arc, time::Duration};

use fanfare_proto::{
    ChannelId, Code, DeviceId, Seq, UserId, limits,
    session::client::DeviceState,
    wire::{self, MembershipChange, Role, open, send::Content},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    actor::{Actor, Command, Settings, Shared},
    asking::{Answer, QUESTIONS_MAX, Question, RequestError},
    event::{Event, History, State},
    gaps::Gaps,
    keep::Keeper,
    random,
    screen::Screen,
    sending::{Outgoing, Permits, QUEUE_MAX, SendError, SendHandle, SendQueue, WINDOW_MAX},
    store::{MemoryStore, Saved, Store},
    tls::Trust,
    token::{TokenError, TokenSource},
    watch::Channel,
};

/// Events that one subscriber may be behind before it loses some.
pub const EVENTS_MAX: usize = 4_096;
/// Commands that may wait besides sends.
const COMMANDS_MAX: usize = 1_024;
/// Time that [`Client::close`] gives to sends on their way, by default none.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);

/// Why a client could not connect.
#[derive(Clone, Debug, thiserror::Error)]
#[error("could not connect: {reason}")]
pub struct ConnectError {
    /// The error number, where one was said.
    pub code: Option<Code>,
    /// For people.
    pub reason: String,
}

/// How to connect; see [`Client::builder`].
#[must_use]
pub struct Builder {
    settings: Settings,
    device: Option<DeviceState>,
    store: Option<Box<dyn Store>>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Builder {
    /// A token as issued.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.settings.token = TokenSource::Fixed(token.into());
        self
    }

    /// Who makes tokens, asked whenever a fresh one is needed.
    pub fn token_from<F, T>(mut self, ask: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, TokenError>> + Send + 'static,
    {
        self.settings.token = TokenSource::Ask(Arc::new(move || Box::pin(ask())));
        self
    }

    /// The installation: a number picked at random once and kept (1 to 2^63 - 1), and a name for the user's list of devices. A store that
    /// lasts keeps the number by itself.
    pub fn device(mut self, device: DeviceId, name: impl Into<String>) -> Self {
        self.device.get_or_insert_default().device = device;
        self.settings.device_name = name.into();
        self
    }

    /// What an earlier client of this installation left ([`Client::close`]): positions and the resume secret.
    pub fn restore(mut self, device: DeviceState) -> Self {
        self.device = Some(device);
        self
    }

    /// Where the queue of sends, and what was seen, are kept: [`MemoryStore`] by default, [`DiskStore`](crate::store::DiskStore) to have them
    /// outlive the process.
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Some(Box::new(store));
        self
    }

    /// Sends of one channel that may be in flight at once; 1 by default, at most [`WINDOW_MAX`]. More make a channel faster, but where the server
    /// refuses one for the time being (a rate limit), those behind it may be committed before it.
    pub fn pipeline(mut self, sends: usize) -> Self {
        self.settings.pipeline = sends.clamp(1, WINDOW_MAX);
        self
    }

    /// Tiered, or full with the user's permission (bots, bridges).
    pub fn delivery(mut self, delivery: wire::Delivery) -> Self {
        self.settings.delivery = delivery;
        self
    }

    /// Whom to trust over TLS and QUIC. A server found over `http://` may name its certificates itself.
    pub fn tls(mut self, trust: Trust) -> Self {
        self.settings.trust = trust;
        self
    }

    /// Name that the server's certificate must have, if it is not the URL's host.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.settings.server_name = Some(name.into());
        self
    }

    /// Name and version of the program.
    pub fn agent(mut self, agent: impl Into<String>) -> Self {
        self.settings.agent = agent.into();
        self
    }

    /// Channels whose missed entries the server sends by itself at connecting, newest activity first (0: 50; at most 200).
    pub fn window(mut self, channels: u32) -> Self {
        self.settings.window = channels.min(limits::SYNC_WINDOW_MAX);
        self
    }

    /// Source address.
    pub fn local(mut self, address: IpAddr) -> Self {
        self.settings.local = Some(address);
        self
    }

    /// Starts the client without waiting for the server; it tries until it succeeds or must not try again.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Client {
        let store = self.store.unwrap_or_else(|| Box::new(MemoryStore::default()));
        let (keeper, saved, unusable) = match Keeper::open(store) {
            Ok((keeper, saved)) => (keeper, saved, None),
            Err(error) => {
                let (keeper, saved) = Keeper::empty();
                (keeper, saved, Some(error))
            }
        };
        let keeper = Arc::new(keeper);
        let permits: Permits = Arc::new(Semaphore::new(QUEUE_MAX));
        let shared = Arc::new(Shared::default());
        let mut sends = SendQueue::new(keeper.clone(), self.settings.pipeline);
        for send in saved.sends.iter().cloned() {
            let Ok(permit) = permits.clone().try_acquire_owned() else { break };
            if let Some((outgoing, echo)) = Outgoing::saved(send, permit, keeper.clone()) {
                sends.push(outgoing);
                shared.echoes.lock().push(echo);
            }
        }
        let states = saved.channels.iter().map(|state| (ChannelId(state.channel), Arc::new(state.clone())));
        shared.channels.lock().extend(states);
        let reads =
            saved.reads.iter().map(|(channel, seq, ordinal)| (*channel, (*seq, *ordinal, false))).collect();
        let user = saved.installation.user;
        let device = device_of(saved, self.device);
        let (commands, commands_in) = mpsc::channel(QUEUE_MAX + COMMANDS_MAX);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let (state, state_out) = watch::channel(State::Connecting);
        let actor = Actor {
            settings: Arc::new(self.settings),
            commands: commands_in,
            events: events.clone(),
            state,
            shared: shared.clone(),
            keeper: keeper.clone(),
            user,
            device,
            sends,
            questions: Default::default(),
            gaps: Gaps::default(),
            reads,
            watched: Vec::new(),
            fresh_token: false,
            moved_to: None,
            changed: Default::default(),
            screen: Screen::new(shared.watched.clone()),
            unusable,
        };
        let task = tokio::spawn(actor.run());
        let inner = Inner {
            commands,
            events: events.downgrade(),
            state: state_out,
            shared,
            keeper,
            permits,
            task: Mutex::new(Some(task)),
        };
        // The task alone holds the sender, so that subscribers see the end.
        drop(events);
        Client { inner: Arc::new(inner) }
    }

    /// Starts the client and waits for the first session.
    ///
    /// # Errors
    /// The first attempt failed; the client is given up.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let client = self.start();
        let mut state = client.inner.state.clone();
        let first =
            state.wait_for(|state| !matches!(state, State::Connecting)).await.map(|state| state.clone());
        match first {
            Ok(State::Disconnected { code, reason, .. } | State::Closed { code, reason }) => {
                client.close().await;
                Err(ConnectError { code, reason })
            }
            _ => Ok(client),
        }
    }
}

/// A connected user on one device: reconnects by itself, repeats sends until their outcome is known, fills gaps. Clones are handles
/// of the same client, which ends with the last of them.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use fanfare_client::{Client, Event};
///
/// let client = Client::builder("http://127.0.0.1:7080").token("...").connect().await?;
/// let mut events = client.events();
/// while let Some(event) = events.next().await {
///     if let Event::Entry(entry) = event {
///         println!("{}: {:?}", entry.sender, entry.text());
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    commands: mpsc::Sender<Command>,
    events: broadcast::WeakSender<Event>,
    state: watch::Receiver<State>,
    shared: Arc<Shared>,
    keeper: Arc<Keeper>,
    permits: Permits,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Client {
    /// A client of the server at `url`: `quic://`, `ws://` or `wss://host:port`, or `http://host:port` of a server that says the
    /// rest itself.
    pub fn builder(url: impl Into<String>) -> Builder {
        let settings = Settings {
            url: url.into(),
            trust: Trust::Nobody,
            token: TokenSource::Fixed(String::new()),
            delivery: wire::Delivery::Tiered,
            device_name: String::new(),
            agent: concat!("fanfare-client/", env!("CARGO_PKG_VERSION")).into(),
            window: 0,
            pipeline: 1,
            local: None,
            server_name: None,
        };
        Builder { settings, device: None, store: None }
    }

    /// Everything that happens from now on.
    pub fn events(&self) -> Events {
        Events { receiver: self.inner.events.upgrade().map(|events| events.subscribe()) }
    }

    /// How the client stands with its server.
    pub fn state(&self) -> State {
        self.inner.state.borrow().clone()
    }

    /// The user, once connected.
    pub fn user(&self) -> Option<UserId> {
        match *self.inner.state.borrow() {
            State::Connected { user, .. } => Some(user),
            _ => None,
        }
    }

    /// All channels known so far, newest activity first.
    pub fn channels(&self) -> Vec<Arc<wire::ChannelState>> {
        let mut channels: Vec<_> = self.inner.shared.channels.lock().values().cloned().collect();
        channels.sort_unstable_by_key(|state| std::cmp::Reverse((state.active_ms, state.channel)));
        channels
    }

    /// One channel as it stands, where it is known.
    pub fn channel_state(&self, channel: ChannelId) -> Option<Arc<wire::ChannelState>> {
        self.inner.shared.channels.lock().get(&channel).cloned()
    }

    /// A handle of one channel.
    pub fn channel(&self, channel: ChannelId) -> Channel {
        Channel::new(self.clone(), channel)
    }

    /// The group of that name among the channels known so far (all, once [`Event::Synced`](crate::Event::Synced) has come); the one with the newest
    /// activity where several have it.
    pub fn channel_named(&self, name: &str) -> Option<Channel> {
        let found = self.channels().into_iter().find(|state| state.name == name)?;
        Some(self.channel(ChannelId(found.channel)))
    }

    /// Sends one entry: queued at once, repeated until its outcome is known. With a store that lasts it is flushed to it when this
    /// returns, which takes the time of one flush; the sends of a channel are committed in the order of the calls.
    pub fn send(&self, channel: ChannelId, content: Content) -> SendHandle {
        let Ok(permit) = self.inner.permits.clone().try_acquire_owned() else {
            return SendHandle::failed(channel, content, SendError::QueueFull);
        };
        let keeper = &self.inner.keeper;
        let (ticket, handle) = Outgoing::ticket(channel, content.clone(), permit, keeper.clone());
        let send = wire::Send { content: Some(content), ..Default::default() };
        let queued = keeper.queue(channel, send, |place, send| {
            self.inner.shared.echoes.lock().push(handle.clone());
            self.inner.commands.try_send(Command::Send(Box::new(Outgoing::new(ticket, place, send))))
        });
        let error = match queued {
            Ok(Ok(())) => return handle,
            Ok(Err(mpsc::error::TrySendError::Full(_))) => SendError::QueueFull,
            Ok(Err(mpsc::error::TrySendError::Closed(_))) => {
                SendError::Closed { attempted: false, kept: false }
            }
            Err(error) => SendError::Store(error),
        };
        SendHandle::failed(channel, handle.content().clone(), error)
    }

    /// The queue: every send whose outcome is not known, in order, those that an earlier client left in the store included.
    pub fn queue(&self) -> Vec<SendHandle> {
        self.inner.shared.echoes.lock().pending()
    }

    /// The local echoes of a channel: sends whose copy from the server was not seen yet, in order. Show them behind the entries; each
    /// goes before its [`Event::Entry`] comes.
    pub fn echoes(&self, channel: ChannelId) -> Vec<SendHandle> {
        self.inner.shared.echoes.lock().of(channel)
    }

    /// Unread messages of all channels known so far.
    pub fn unread(&self) -> u64 {
        let channels = self.inner.shared.channels.lock();
        channels.values().map(|state| state.ordinal.saturating_sub(state.read_ordinal)).sum()
    }

    /// Sends a text.
    pub fn send_text(&self, channel: ChannelId, text: impl Into<String>) -> SendHandle {
        self.send(channel, Content::Message(wire::Message { text: text.into(), ..Default::default() }))
    }

    /// Replaces a message of one's own.
    pub fn edit(&self, channel: ChannelId, target: Seq, message: wire::Message) -> SendHandle {
        self.send(channel, Content::Edit(wire::Edit { target, message: Some(message) }))
    }

    /// Takes a message back, for everybody.
    pub fn recall(&self, channel: ChannelId, target: Seq) -> SendHandle {
        self.send(channel, Content::Recall(wire::Recall { target }))
    }

    /// Reacts to a message with an emoji, or takes that back.
    pub fn react(
        &self,
        channel: ChannelId,
        target: Seq,
        emoji: impl Into<String>,
        remove: bool,
    ) -> SendHandle {
        self.send(channel, Content::Reaction(wire::Reaction { target, emoji: emoji.into(), remove }))
    }

    /// Joins an open group, or one that the user is invited to.
    ///
    /// Fails with NOT_A_MEMBER where it is neither, or before the client is connected, as the user is not known yet.
    pub fn join(&self, channel: ChannelId) -> SendHandle {
        let users = self.user().into_iter().collect();
        self.membership(channel, MembershipChange::Joined, users, Role::None)
    }

    /// Leaves a group.
    pub fn leave(&self, channel: ChannelId) -> SendHandle {
        self.membership(channel, MembershipChange::Left, Vec::new(), Role::None)
    }

    /// Adds users to a group; at most 1,000 at once.
    pub fn add(&self, channel: ChannelId, users: Vec<UserId>) -> SendHandle {
        self.membership(channel, MembershipChange::Joined, users, Role::None)
    }

    /// Removes users from a group; at most 1,000 at once.
    pub fn remove(&self, channel: ChannelId, users: Vec<UserId>) -> SendHandle {
        self.membership(channel, MembershipChange::Removed, users, Role::None)
    }

    /// Gives members of a group another role.
    pub fn role(&self, channel: ChannelId, users: Vec<UserId>, role: Role) -> SendHandle {
        self.membership(channel, MembershipChange::RoleChanged, users, role)
    }

    /// Invites users to a group: they may join it, whatever its join policy is.
    pub fn invite(&self, channel: ChannelId, users: Vec<UserId>) -> SendHandle {
        self.membership(channel, MembershipChange::Invited, users, Role::None)
    }

    /// Asks to be let into a group that takes requests.
    pub fn request_to_join(&self, channel: ChannelId) -> SendHandle {
        self.membership(channel, MembershipChange::Requested, Vec::new(), Role::None)
    }

    /// Turns down or takes back invitations and requests of `users`; without any, one's own.
    pub fn decline(&self, channel: ChannelId, users: Vec<UserId>) -> SendHandle {
        self.membership(channel, MembershipChange::Declined, users, Role::None)
    }

    /// Bans users from a group until then (Unix milliseconds; `None`: no end). Members among them are removed.
    pub fn ban(&self, channel: ChannelId, users: Vec<UserId>, until_ms: Option<u64>) -> SendHandle {
        self.membership_until(channel, MembershipChange::Banned, users, Role::None, until_ms.unwrap_or(0))
    }

    /// Lets banned users in again; they do not come back by that.
    pub fn unban(&self, channel: ChannelId, users: Vec<UserId>) -> SendHandle {
        self.membership(channel, MembershipChange::Unbanned, users, Role::None)
    }

    /// Mutes members of a group until then (Unix milliseconds; `None`: no end).
    pub fn mute(&self, channel: ChannelId, users: Vec<UserId>, until_ms: Option<u64>) -> SendHandle {
        self.membership_until(channel, MembershipChange::Muted, users, Role::None, until_ms.unwrap_or(0))
    }

    /// Ends mutes.
    pub fn unmute(&self, channel: ChannelId, users: Vec<UserId>) -> SendHandle {
        self.membership(channel, MembershipChange::Unmuted, users, Role::None)
    }

    /// Changes a group's name or policies; what is left at its default stays as it is.
    pub fn change(&self, channel: ChannelId, change: wire::ChannelChange) -> SendHandle {
        self.send(channel, Content::ChannelChange(change))
    }

    fn membership(
        &self,
        channel: ChannelId,
        change: MembershipChange,
        users: Vec<UserId>,
        role: Role,
    ) -> SendHandle {
        self.membership_until(channel, change, users, role, 0)
    }

    fn membership_until(
        &self,
        channel: ChannelId,
        change: MembershipChange,
        users: Vec<UserId>,
        role: Role,
        until_ms: u64,
    ) -> SendHandle {
        let users = users.into_iter().map(|user| user.0).collect();
        let (change, role) = (change.into(), role.into());
        self.send(channel, Content::Membership(wire::Membership { change, users, role, until_ms }))
    }

    /// Says that the user has read up to the entry `seq`, whose ordinal is `ordinal`. Kept until the server has it.
    pub fn mark_read(&self, channel: ChannelId, seq: Seq, ordinal: u64) {
        self.hint(Command::Read(channel, seq, ordinal));
    }

    /// Says that the user types; worth a call with every key, as the server passes on one in 3 s.
    pub fn typing(&self, channel: ChannelId, stopped: bool) {
        self.hint(Command::Typing(channel, stopped));
    }

    /// Says what the screen shows: whether the app is on it, as it is at first, and which channels (at most 16 count, those that are watched
    /// included). Entries of a channel on screen come at once, and what was missed of it is fetched; of others the less active a
    /// user is the later they come, and in the end only the head and the count of messages ([`Event::ChannelChanged`]).
    pub fn screen(&self, attention: wire::Attention, visible: &[ChannelId]) {
        self.hint(Command::Screen(attention, visible.to_vec()));
    }

    /// Says that the user came by tapping a push notification of that channel.
    pub fn tapped(&self, channel: ChannelId) {
        self.hint(Command::Tapped(channel));
    }

    pub(crate) fn watching(&self, channel: ChannelId, more: bool) {
        self.inner.shared.watched.change(channel, more);
        self.hint(Command::Watch);
    }

    /// Watches whether these users are online, in place of those before: told at once as they stand and then as they change, each
    /// time by [`Event::Presence`](crate::Event::Presence). Said again in each session; an empty list watches nobody.
    ///
    /// # Errors
    /// `BAD_FIELD` where there are more than 256.
    pub fn watch_users(&self, users: &[UserId]) -> Result<(), Code> {
        if users.len() > fanfare_proto::limits::PRESENCE_WATCHED_MAX {
            return Err(Code::BAD_FIELD);
        }
        self.inner.commands.try_send(Command::WatchUsers(users.to_vec())).map_err(|_| Code::RETRY_LATER)
    }

    /// Says who may see whether the user is online; [`Event::SeenBy`](crate::Event::SeenBy) says that it counts. Needs a connection.
    pub fn seen_by(&self, audience: wire::Audience) {
        self.hint(Command::ShowTo(audience));
    }

    fn hint(&self, command: Command) {
        if self.inner.commands.try_send(command).is_err() {
            tracing::debug!("a hint found no room and was dropped");
        }
    }

    /// How many members have an entry, and have read it.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn counts(&self, channel: ChannelId, of: Seq) -> Result<wire::Counts, RequestError> {
        match self.ask(Question::Counts(channel, of)).await? {
            Answer::Counts(counts) => Ok(counts),
            _ => Err(RequestError::Answer(Code::UNKNOWN_TYPE)),
        }
    }

    /// The channel with another user, made where there is none.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn open_direct(&self, user: UserId) -> Result<Channel, RequestError> {
        self.open(open::Target::Direct(user.0)).await
    }

    /// Makes a group with up to 1,000 first members.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn open_group(&self, group: wire::Group) -> Result<Channel, RequestError> {
        self.open(open::Target::Group(group)).await
    }

    async fn open(&self, target: open::Target) -> Result<Channel, RequestError> {
        let open = wire::Open { client_message_id: Default::default(), target: Some(target) };
        match self.ask(Question::Open(open)).await? {
            Answer::Channel(state) => Ok(self.channel(ChannelId(state.channel))),
            _ => Err(RequestError::Answer(Code::UNKNOWN_TYPE)),
        }
    }

    /// The newest messages below `before` (0: of all), at most `limit` (1 to 100), with the entries between them. While there is no
    /// connection it comes from the store, as far as that holds it without a hole ([`History::offline`]); else it waits for one.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn history(
        &self,
        channel: ChannelId,
        before: Seq,
        limit: u32,
    ) -> Result<History, RequestError> {
        let messages_max = limit.clamp(1, limits::FETCH_MESSAGES_MAX);
        let fetch = wire::Fetch { before, after: 0, messages_max, before_ms: 0 };
        tokio::select! {
            biased;
            history = self.offline(channel, before, messages_max) => Ok(history),
            history = self.fetch(channel, fetch) => history,
        }
    }

    /// What the store holds, as soon as there is no connection; never where it holds nothing.
    async fn offline(&self, channel: ChannelId, before: Seq, limit: u32) -> History {
        let mut state = self.inner.state.clone();
        loop {
            let user = match *state.borrow_and_update() {
                State::Connected { user, .. } => Some(user),
                _ => None,
            };
            if user.is_none()
                && let Some(history) = self.inner.keeper.history(channel, before, limit, self.owner())
            {
                return history;
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The user, as far as a session ever told.
    fn owner(&self) -> Option<UserId> {
        self.inner.keeper.user()
    }

    /// As [`Self::history`], with every bound in hand, and always from the server.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn fetch(&self, channel: ChannelId, fetch: wire::Fetch) -> Result<History, RequestError> {
        match self.ask(Question::Fetch(channel, fetch)).await? {
            Answer::Pages(pages) => History::of_pages(pages).map_err(RequestError::Answer),
            _ => Err(RequestError::Answer(Code::UNKNOWN_TYPE)),
        }
    }

    async fn ask(&self, question: Question) -> Result<Answer, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.inner.commands.send(Command::Ask(question, reply)).await.map_err(|_| RequestError::Closed)?;
        answer.await.map_err(|_| RequestError::Closed)?
    }

    /// Waits until every send made before has been settled, or the time is over; whether they all are.
    pub async fn flush(&self, time_max: Duration) -> bool {
        let all = self.inner.permits.acquire_many(QUEUE_MAX as u32);
        matches!(tokio::time::timeout(time_max, all).await, Ok(Ok(_)))
    }

    /// Ends the session in order, with a last acknowledgement. Sends without an outcome fail with [`SendError::Closed`]; a store that lasts
    /// keeps them for the next client. What it gives back
    /// lets the next client of this installation go on where this one stood; `None` where the client had ended before.
    pub async fn close(&self) -> Option<DeviceState> {
        let (reply, device) = oneshot::channel();
        let told = self.inner.commands.send(Command::Close(reply)).await.is_ok();
        let device = if told { tokio::time::timeout(CLOSE_TIME_MAX, device).await.ok()?.ok() } else { None };
        let task = self.inner.task.lock().take();
        if let Some(task) = task {
            // A panic in the task has been reported by the runtime.
            let _ = task.await;
        }
        device
    }
}

/// Where the installation stood by its store, or as it was given.
fn device_of(saved: Saved, given: Option<DeviceState>) -> DeviceState {
    let own = saved.installation;
    let mut device = DeviceState {
        device: own.device,
        ack_number: own.ack_number,
        acks_confirmed: own.acks_confirmed,
        resume: own.resume,
        resume_until_ms: own.resume_until_ms,
        channels: saved.logs.into_iter().collect(),
    };
    if let Some(given) = given {
        // Another device's numbers and secret are not this one's; what is held is the store's all the same.
        if given.device != device.device {
            device = DeviceState { channels: device.channels, ..DeviceState::new(given.device) };
        }
        if !given.channels.is_empty() || !given.resume.is_empty() {
            device = given;
        }
    }
    if device.device == DeviceId(0) {
        device.device = DeviceId((random() >> 1).max(1));
    }
    device
}

/// The events of a client, from when this was made.
#[derive(Debug)]
pub struct Events {
    receiver: Option<broadcast::Receiver<Event>>,
}

impl Events {
    /// The next event; `None` when the client has ended. A reader that is more than [`EVENTS_MAX`] behind loses the oldest and is told so.
    pub async fn next(&mut self) -> Option<Event> {
        match self.receiver.as_mut()?.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(Event::Lagged(lost)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

const _: () = assert!(COMMANDS_MAX > QUESTIONS_MAX);
