//! The client's one task: it holds the connection, or waits to open the next, and everything that is on its way.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use fanfare_proto::{
    ChannelId, Code, Frame, FrameType, Seq, SessionId, UserId,
    error::Policy,
    session::client::{ClientSession, Defect, DeviceState, Ended, Event as Told, SessionOptions},
    wire::{self, Attention, Role, entry::Content},
};
use parking_lot::Mutex;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use crate::{
    asking::{Question, Questions, Reply},
    connection::{ConnectOptions, Connection, now_ms},
    event::{Entry, Event, State},
    gaps::{Gaps, new_entries},
    keep::Keeper,
    random,
    screen::{Screen, Watched},
    sending::{Echoes, Outgoing, SendQueue, Sent},
    store::{Installation, StoreError},
    target::{Discovery, Target},
    tls::Trust,
    token::{TokenError, TokenSource},
};

/// What a [`Client`](crate::Client) asks of its task.
#[derive(Debug)]
pub(crate) enum Command {
    Send(Box<Outgoing>),
    Ask(Question, Reply),
    Read(ChannelId, Seq, u64),
    Typing(ChannelId, bool),
    /// The app came on screen, or left it, and shows these channels.
    Screen(Attention, Vec<ChannelId>),
    /// Another channel is watched, or one no more.
    Watch,
    /// The user opened the channel by a push notification.
    Tapped(ChannelId),
    WatchUsers(Vec<UserId>),
    ShowTo(wire::Audience),
    Close(oneshot::Sender<DeviceState>),
}

/// Where and how to connect, as the builder was told.
#[derive(Debug)]
pub(crate) struct Settings {
    pub url: String,
    pub trust: Trust,
    pub token: TokenSource,
    pub delivery: wire::Delivery,
    pub device_name: String,
    pub agent: String,
    pub window: u32,
    pub pipeline: usize,
    pub local: Option<std::net::IpAddr>,
    pub server_name: Option<String>,
}

/// What a client's handles and its task share: read often, changed by the task alone.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub channels: Mutex<HashMap<ChannelId, Arc<wire::ChannelState>>>,
    pub echoes: Mutex<Echoes>,
    pub watched: Watched,
}

pub(crate) struct Actor {
    pub settings: Arc<Settings>,
    pub commands: mpsc::Receiver<Command>,
    pub events: broadcast::Sender<Event>,
    pub state: watch::Sender<State>,
    pub shared: Arc<Shared>,
    pub keeper: Arc<Keeper>,
    /// Whose client and store this is; 0 before the first session.
    pub user: UserId,
    /// What outlives sessions, while there is none.
    pub device: DeviceState,
    pub sends: SendQueue,
    pub questions: Questions,
    pub gaps: Gaps,
    /// How far the user has read, until the server says so too: (seq, ordinal, sent in this session).
    pub reads: HashMap<ChannelId, (Seq, u64, bool)>,
    /// Whose presence is watched; said again in each session.
    pub watched: Vec<UserId>,
    pub fresh_token: bool,
    pub moved_to: Option<Target>,
    /// What changed since it was told and kept.
    pub changed: Changed,
    /// What the user sees.
    pub screen: Screen,
    /// The store could not be opened: nothing is tried.
    pub unusable: Option<StoreError>,
}

/// What changed in one turn: gathered, as a burst changes the same again and again.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// Channels whose state is to be told.
    states: HashSet<ChannelId>,
    /// Channels of which more is held.
    logs: HashSet<ChannelId>,
    /// Channels that this session's SYNCED has named so far; `None` once it is complete.
    named: Option<HashSet<ChannelId>>,
    /// The last write failed, and that was told.
    store_failed: bool,
}

/// Channels whose receipts are asked for after a reconnect.
const COUNTED_CHANNELS_MAX: usize = 8;

/// Why the task leaves a loop.
enum Leave {
    /// The session ended.
    Ended(Ended),
    /// GOAWAY's moment has come.
    Move,
    /// The application closed the client, or dropped its last handle.
    Closed(Option<oneshot::Sender<DeviceState>>),
}

type Token = Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send>>;

impl Actor {
    /// Runs until the client is closed or cannot go on.
    pub async fn run(mut self) {
        let mut attempt = 0;
        let (why, reply) = loop {
            if let Some(error) = &self.unusable {
                let code = None;
                break (
                    Ended { code, policy: Policy::Never, retry_after_ms: 0, text: error.to_string() },
                    None,
                );
            }
            self.set_state(State::Connecting);
            let left = match self.open().await {
                Ok(connection) => self.session(connection, &mut attempt).await,
                Err(left) => left,
            };
            let ended = match left {
                Leave::Ended(ended) => ended,
                Leave::Move => Ended::from_code(Code::GOING_AWAY, "the server asked to reconnect"),
                Leave::Closed(reply) => break (Ended::from_close(None, "closed"), reply),
            };
            self.sends.disconnected();
            self.questions.disconnected();
            self.screen.disconnected();
            let mut rest = Vec::new();
            self.gaps.disconnected(&mut |event| rest.push(event));
            rest.into_iter().for_each(|event| self.tell_any(event));
            let device = std::mem::take(&mut self.device);
            self.turned(&device);
            self.device = device;
            self.write();
            self.reads.values_mut().for_each(|read| read.2 = false);
            if ended.policy == Policy::Authenticate {
                self.fresh_token = true;
                if self.settings.token.is_fixed() && ended.code != Some(Code::RESUME_REFUSED) {
                    break (ended, None);
                }
            }
            let Some(delay) = ended.delay_ms(attempt, random()).map(Duration::from_millis) else {
                break (ended, None);
            };
            attempt += 1;
            tracing::debug!(reason = %ended.text, ?delay, attempt, "disconnected");
            self.set_state(State::Disconnected { code: ended.code, reason: ended.text, retry_in: delay });
            if let Leave::Closed(reply) = self.wait(delay).await {
                break (Ended::from_close(None, "closed"), reply);
            }
        };
        self.turned(&self.device.clone());
        self.sends.close();
        self.questions.close();
        self.write();
        self.set_state(State::Closed { code: why.code, reason: why.text });
        if let Some(reply) = reply {
            // Whoever closed it may not want it.
            let _ = reply.send(self.device);
        }
    }

    fn set_state(&self, state: State) {
        self.state.send_replace(state.clone());
        self.tell(Event::State(state));
    }

    /// Tells and keeps what changed. What is held of a channel is kept only once all of it was told: else a client that dies between would
    /// never tell the rest.
    fn turned(&mut self, device: &DeviceState) {
        let gaps = &self.gaps;
        let mut kept = false;
        for channel in self.changed.logs.extract_if(|channel| !gaps.busy(*channel)) {
            if let Some(log) = device.channels.get(&channel) {
                self.keeper.log(channel, log);
                kept = true;
            }
        }
        if kept {
            self.keeper.installation(Installation::of(self.user, device));
        }
        for channel in std::mem::take(&mut self.changed.states) {
            let state = self.shared.channels.lock().get(&channel).cloned();
            if let Some(state) = state {
                self.keeper.channel(channel, Some(state.clone()));
                self.tell(Event::ChannelChanged(state));
            }
        }
        let written = self.keeper.write_due();
        self.written(written);
    }

    fn write(&mut self) {
        let written = self.keeper.write();
        self.written(written);
    }

    /// A store that fails is told of once until it is well again.
    fn written(&mut self, outcome: Result<(), StoreError>) {
        match outcome {
            Ok(()) => self.changed.store_failed = false,
            Err(error) => {
                tracing::warn!(%error, "what was sent or seen could not be kept");
                if !std::mem::replace(&mut self.changed.store_failed, true) {
                    self.tell(Event::StoreFailed(error));
                }
            }
        }
    }

    fn tell(&self, event: Event) {
        // Nobody listens: nothing to tell.
        let _ = self.events.send(event);
    }

    async fn open(&mut self) -> Result<Connection, Leave> {
        let resume = !self.device.resume.is_empty() && !self.fresh_token;
        let screen = self.screen.begin();
        let opening = open(self.settings.clone(), self.device.clone(), resume, self.moved_to.take(), screen);
        tokio::pin!(opening);
        loop {
            tokio::select! {
                opened = &mut opening => return opened.map_err(Leave::Ended),
                command = self.commands.recv() => match command {
                    Some(Command::Close(reply)) => return Err(Leave::Closed(Some(reply))),
                    None => return Err(Leave::Closed(None)),
                    Some(command) => self.take_alone(command),
                },
            }
        }
    }

    /// Between two connections: commands are taken, nothing is sent.
    async fn wait(&mut self, delay: Duration) -> Leave {
        let until = Instant::now() + delay;
        loop {
            tokio::select! {
                () = sleep_until(until) => return Leave::Move,
                command = self.commands.recv() => match command {
                    Some(Command::Close(reply)) => return Leave::Closed(Some(reply)),
                    None => return Leave::Closed(None),
                    Some(command) => self.take_alone(command),
                },
            }
        }
    }

    async fn session(&mut self, mut connection: Connection, attempt: &mut u32) -> Leave {
        let mut told: Vec<Told> = Vec::new();
        let mut token: Option<Token> = None;
        let mut move_at: Option<Instant> = None;
        self.changed.named = Some(HashSet::new());
        let leave = loop {
            self.turned(connection.session().device());
            if connection.session().is_open() {
                self.pump(connection.session());
            }
            let timers = [
                self.sends.deadline(),
                self.questions.deadline(),
                self.gaps.deadline(),
                self.screen.deadline(),
                self.keeper.deadline(),
                move_at,
            ];
            let timer = timers.into_iter().flatten().min();
            tokio::select! {
                // The server first: what it says may settle what a command asks.
                biased;
                turned = async { connection.turn(&mut |event| told.push(event)).await } => {
                    let mut stranger = false;
                    for event in told.drain(..) {
                        match event {
                            Told::Welcome(_) => {
                                let user = connection.session().user();
                                stranger = self.user != UserId(0) && self.user != user;
                                if stranger {
                                    break;
                                }
                                self.user = user;
                                *attempt = 0;
                                self.fresh_token = false;
                                if !self.watched.is_empty() {
                                    let _ = connection.session().watch(&self.watched);
                                }
                                self.keeper.installation(Installation::of(user, connection.session().device()));
                            }
                            Told::Authenticated { .. } => {
                                self.keeper.installation(Installation::of(self.user, connection.session().device()));
                            }
                            Told::AuthRequired { .. } => token = Some(Box::pin(self.settings.token.clone().fresh())),
                            Told::GoAway(ref goaway) => {
                                let window = u64::from(goaway.delay_ms_max.saturating_sub(goaway.delay_ms_min)) + 1;
                                let delay = u64::from(goaway.delay_ms_min) + random() % window;
                                move_at = Some(Instant::now() + Duration::from_millis(delay));
                                self.moved_to = self.gateway(&goaway.gateway);
                            }
                            _ => {}
                        }
                        if let Err(code) = self.handle(connection.session(), event) {
                            connection.session().close(code, "");
                        }
                    }
                    if stranger {
                        // Neither may one user's queue be sent as another's, nor what one has seen be shown to another.
                        let text = format!("this client and its store belong to user {}", self.user);
                        let ended = Ended { code: None, policy: Policy::Never, retry_after_ms: 0, text };
                        break Leave::Ended(ended);
                    }
                    if let Err(ended) = turned {
                        break Leave::Ended(ended);
                    }
                }
                command = self.commands.recv() => match command {
                    Some(Command::Close(reply)) => break Leave::Closed(Some(reply)),
                    None => break Leave::Closed(None),
                    Some(command) => self.take(command, Some(connection.session())),
                },
                fresh = async { token.as_mut().expect("checked by the branch").await }, if token.is_some() => {
                    token = None;
                    match fresh {
                        Ok(fresh) => drop(connection.session().authenticate(fresh)),
                        Err(error) => tracing::warn!(%error, "no fresh token; the session will end with its old one"),
                    }
                }
                () = async { sleep_until(timer.expect("checked by the branch")).await }, if timer.is_some() => {
                    if move_at.is_some_and(|at| at <= Instant::now()) {
                        break Leave::Move;
                    }
                }
            }
        };
        self.device = match leave {
            Leave::Ended(_) => connection.into_session().into_device(),
            Leave::Move | Leave::Closed(_) => connection.close(Code(0)).await,
        };
        leave
    }

    /// Sends whatever waits and may go.
    fn pump(&mut self, session: &mut ClientSession) {
        let now = now_ms();
        if let Err(error) = self.sends.pump(session, now) {
            self.written(Err(error));
        }
        self.questions.pump(session, now);
        for channel in self.screen.pump(session) {
            // What was told of while it was not on screen is fetched now.
            if let Some(log) = session.log(channel)
                && !log.held.missing(log.position, log.tip()).is_empty()
            {
                self.gaps.add(channel, log.position, log.tip());
            }
        }
        self.gaps.pump(session);
        for (channel, (seq, ordinal, sent)) in &mut self.reads {
            if !*sent && session.mark_read(*channel, *seq, *ordinal).is_ok() {
                *sent = true;
            }
        }
    }

    /// Takes a command while there is no session to tell and keep things by its way.
    fn take_alone(&mut self, command: Command) {
        self.take(command, None);
        let device = std::mem::take(&mut self.device);
        self.turned(&device);
        self.device = device;
        self.write();
    }

    fn take(&mut self, command: Command, session: Option<&mut ClientSession>) {
        match command {
            Command::Send(outgoing) => self.sends.push(*outgoing),
            Command::Ask(question, reply) => self.questions.ask(question, Some(reply)),
            Command::Read(channel, seq, ordinal) => {
                let read = self.reads.entry(channel).or_default();
                if seq > read.0 {
                    *read = (seq, ordinal, false);
                    self.keeper.read(channel, Some((seq, ordinal)));
                    let mut channels = self.shared.channels.lock();
                    if let Some(state) = channels.get_mut(&channel)
                        && state.read < seq
                    {
                        let state = Arc::make_mut(state);
                        (state.read, state.read_ordinal) = (seq, state.read_ordinal.max(ordinal));
                        self.changed.states.insert(channel);
                    }
                }
            }
            // Hints are worth nothing later.
            Command::Typing(channel, stopped) => {
                let _ = session.map(|session| session.typing(channel, stopped));
            }
            Command::Screen(attention, visible) => self.screen.show(attention, visible),
            // Looked at before anything is sent.
            Command::Watch => {}
            Command::Tapped(channel) => self.screen.tap(channel),
            Command::WatchUsers(users) => {
                self.watched = users;
                let _ = session.map(|session| session.watch(&self.watched));
            }
            Command::ShowTo(audience) => {
                let sent = session.map_or(Err(Code::OUT_OF_STATE), |session| session.show_to(audience));
                if let Err(code) = sent {
                    self.tell(Event::Failed { code, text: "who may see the user was not said".to_owned() });
                }
            }
            Command::Close(_) => {}
        }
    }

    fn gateway(&self, authority: &str) -> Option<Target> {
        let carrier = if self.settings.url.starts_with("http") {
            "quic"
        } else {
            self.settings.url.split("://").next()?
        };
        Target::parse(&format!("{carrier}://{authority}")).ok().filter(|_| !authority.is_empty())
    }

    fn handle(&mut self, session: &mut ClientSession, event: Told) -> Result<(), Code> {
        match event {
            Told::Welcome(welcome) => self.set_state(State::Connected {
                user: session.user(),
                session: SessionId(welcome.session),
                resumed: welcome.resumed,
            }),
            Told::Deliver(frame) => {
                let entry = Arc::new(Entry::decode(&frame)?);
                self.changed.logs.insert(entry.channel);
                self.keeper.frames([(frame, recalled(&entry))]);
                self.tell_entry(entry);
            }
            Told::Gap { channel, after, head } => self.gaps.add(channel, after, head),
            Told::Notified { channel, after, head, ordinal } => {
                let is_missing =
                    session.log(channel).is_some_and(|log| !log.held.missing(after, head).is_empty());
                if is_missing && self.screen.shows(channel) {
                    self.gaps.add(channel, after, head);
                }
                let mut channels = self.shared.channels.lock();
                if let Some(state) = channels.get_mut(&channel)
                    && state.head < head
                {
                    let state = Arc::make_mut(state);
                    (state.head, state.ordinal) = (head, state.ordinal.max(ordinal));
                    self.changed.states.insert(channel);
                }
            }
            Told::Defect { channel, kind, after, before } => {
                tracing::warn!(%channel, ?kind, after, before, "the server broke a rule");
                if kind != Defect::EpochFell {
                    self.gaps.add(channel, after, before - 1);
                }
            }
            Told::Rewound { channel, from, .. } => {
                self.keeper.rewound(channel, from);
                self.sends.rewound(channel, from);
                self.changed.logs.insert(channel);
                self.tell(Event::Rewound { channel, from });
            }
            Told::Synced(synced) => {
                for state in synced.channels {
                    if let Some(named) = &mut self.changed.named {
                        named.insert(ChannelId(state.channel));
                    }
                    self.channel_changed(state);
                }
                if synced.complete {
                    self.left_meanwhile();
                    for (channel, of) in self.sends.unread(COUNTED_CHANNELS_MAX) {
                        // Of interest to nobody else: the answer is taken where it passes.
                        self.questions.ask(Question::Counts(channel, of), None);
                    }
                    self.tell(Event::Synced { channels: synced.channels_total });
                }
            }
            Told::Channel { request, state } => {
                if request != 0 {
                    self.questions.channel(request, state.clone());
                }
                if let Some(named) = &mut self.changed.named {
                    named.insert(ChannelId(state.channel));
                }
                self.channel_changed(*state);
            }
            Told::SendAck { request, ack, .. } => {
                if let Some((channel, sent)) = self.sends.answer(request, &ack) {
                    self.echo_committed(session, channel, sent);
                }
            }
            Told::Page { channel, request, news, page } => {
                self.changed.logs.insert(channel);
                self.keep_page(&page)?;
                let mut events = Vec::new();
                let mut tell = |event| events.push(event);
                let of_gap = self.gaps.page(session, now_ms(), request, &page, &news, &mut tell)?;
                if !of_gap && !news.is_empty() {
                    // History that lies in a hole fills it: it will not be delivered again.
                    events.extend(new_entries(&page, &news)?.into_iter().map(Event::Entry));
                }
                events.into_iter().for_each(|event| self.tell_any(event));
                if !of_gap {
                    self.questions.page(request, *page);
                }
            }
            Told::Counts { channel, request, counts } => {
                // This user may be among them; two are one other at least.
                let reached = |count: u32| if count >= 2 { counts.of } else { 0 };
                self.sends.receipt(channel, reached(counts.delivered), reached(counts.read));
                self.questions.counts(request, counts);
            }
            Told::Refused { request, error, .. } => {
                let code = Code(error.code as u16);
                let later = matches!(code.policy(), Policy::BackOff | Policy::Repeat);
                let later_ms = later.then(|| u64::from(error.retry_after_ms) + 100 + random() % 1_000);
                if !self.sends.refuse(request, &error) && !self.gaps.refuse(request, later_ms) {
                    self.questions.refuse(request, &error);
                }
            }
            Told::Receipt { channel, receipt } => {
                for cursor in receipt.cursors.iter().filter(|cursor| cursor.user != self.user.0) {
                    self.sends.receipt(channel, cursor.delivered, cursor.read);
                }
                self.tell(Event::Receipt { channel, cursors: receipt.cursors.into() });
            }
            Told::Typing { channel, typing } => {
                self.tell(Event::Typing { channel, user: typing.user.into(), stopped: typing.stopped });
            }
            Told::Failed(error) if error.frame_type == FrameType::State as u32 => self.screen.refused(),
            Told::Presence(presence) => {
                if let Ok(audience) = wire::Audience::try_from(presence.audience)
                    && audience != wire::Audience::Kept
                {
                    self.tell(Event::SeenBy(audience));
                }
                if !presence.users.is_empty() {
                    self.tell(Event::Presence(presence.users.into()));
                }
            }
            Told::Failed(error) => {
                self.tell(Event::Failed { code: Code(error.code as u16), text: error.text })
            }
            // GOAWAY, AUTH and the end are the loop's.
            _ => {}
        }
        Ok(())
    }

    fn tell_any(&mut self, event: Event) {
        match event {
            Event::Entry(entry) => self.tell_entry(entry),
            other => {
                if let Event::Skipped { channel, first, last } = other {
                    self.shared.echoes.lock().passed(channel, first, last);
                    self.changed.logs.insert(channel);
                }
                self.tell(other);
            }
        }
    }

    fn tell_entry(&mut self, entry: Arc<Entry>) {
        let mut channels = self.shared.channels.lock();
        if let Some(state) = channels.get_mut(&entry.channel)
            && state.head < entry.seq
        {
            let state = Arc::make_mut(state);
            (state.head, state.ordinal, state.active_ms) = (entry.seq, entry.ordinal, entry.time_ms());
            self.changed.states.insert(entry.channel);
        }
        drop(channels);
        if entry.sender == self.user {
            self.sends.seen(&entry);
            // The echo goes before its entry comes: an application never shows both, as it reads echoes when it draws.
            self.shared.echoes.lock().seen(&entry, self.user);
        }
        self.tell(Event::Entry(entry));
    }

    /// A send was committed: its echo goes when its entry comes, or now where that came before, in an earlier life of this store.
    fn echo_committed(&self, session: &ClientSession, channel: ChannelId, sent: Sent) {
        let Some(log) = session.log(channel) else { return };
        if (sent.seq <= log.position || log.held.contains(sent.seq)) && !self.gaps.busy(channel) {
            self.shared.echoes.lock().passed(channel, sent.seq, sent.seq);
        }
    }

    fn keep_page(&self, page: &wire::Page) -> Result<(), Code> {
        let mut frames = Vec::new();
        let amendments = page.amendments.iter().map(|amendment| amendment.frame.clone());
        for frame in [page.frames.clone()].into_iter().chain(amendments).flat_map(Frame::iter) {
            let frame = frame?;
            let recalls = recalled(&Entry::decode(&frame)?);
            frames.push((frame, recalls));
        }
        self.keeper.frames(frames);
        Ok(())
    }

    fn channel_changed(&mut self, mut state: wire::ChannelState) {
        let channel = ChannelId(state.channel);
        match self.reads.get(&channel) {
            Some((seq, ..)) if *seq <= state.read => {
                self.reads.remove(&channel);
                self.keeper.read(channel, None);
            }
            // The server does not know it yet.
            Some((seq, ordinal, _)) => {
                (state.read, state.read_ordinal) = (*seq, state.read_ordinal.max(*ordinal))
            }
            None => {}
        }
        if state.role == Role::None as i32 {
            let is_known = self.shared.channels.lock().contains_key(&channel);
            match (is_known, state.invited) {
                (true, false) => self.left(channel),
                (true, true) => {
                    self.left(channel);
                    self.tell(Event::Invited { channel, name: state.name });
                }
                (false, true) => self.tell(Event::Invited { channel, name: state.name }),
                (false, false) => self.tell(Event::InvitationOver(channel)),
            }
            return;
        }
        self.shared.channels.lock().insert(channel, Arc::new(state));
        self.changed.states.insert(channel);
        self.changed.logs.insert(channel);
    }

    fn left(&mut self, channel: ChannelId) {
        self.shared.channels.lock().remove(&channel);
        self.reads.remove(&channel);
        self.changed.states.remove(&channel);
        self.changed.logs.remove(&channel);
        self.keeper.channel(channel, None);
        self.tell(Event::ChannelLeft(channel));
    }

    /// Channels that no SYNCED named any more were left while there was no connection.
    fn left_meanwhile(&mut self) {
        let Some(named) = self.changed.named.take() else { return };
        let gone: Vec<_> =
            self.shared.channels.lock().keys().filter(|known| !named.contains(known)).copied().collect();
        gone.into_iter().for_each(|channel| self.left(channel));
    }
}

/// The message that an entry takes back.
fn recalled(entry: &Entry) -> Option<Seq> {
    match &entry.content {
        Some(Content::Recall(recall)) => Some(recall.target),
        _ => None,
    }
}

/// Finds the server and opens a connection with HELLO ready to go.
async fn open(
    settings: Arc<Settings>,
    device: DeviceState,
    resume: bool,
    moved_to: Option<Target>,
    screen: wire::State,
) -> Result<Connection, Ended> {
    let mut trust = settings.trust.clone();
    let target = if settings.url.starts_with("http://") {
        let discovery = Discovery::fetch(&settings.url).await.map_err(|error| error.ended())?;
        if let Some(pins) = discovery.pins().map_err(|error| error.ended())? {
            trust = pins;
        }
        discovery.target(&trust)
    } else {
        Target::parse(&settings.url)
    };
    let target = moved_to.map_or(target, Ok);
    let mut options =
        target.and_then(|target| ConnectOptions::to(target).trust(&trust)).map_err(|error| error.ended())?;
    options.local = settings.local;
    options.server_name.clone_from(&settings.server_name);
    // The token at hand is for the case that the secret is refused.
    let token = if resume {
        settings.token.at_hand()
    } else {
        settings.token.get().await.map_err(|error| error.ended())?
    };
    let session_options = SessionOptions {
        token,
        delivery: settings.delivery,
        device_name: settings.device_name.clone(),
        agent: settings.agent.clone(),
        sync: Some(settings.window),
        screen: Some(screen),
        seed: random(),
    };
    let session = ClientSession::new(device, session_options, now_ms());
    Connection::open(&options, session).await.map_err(|error| error.ended())
}
