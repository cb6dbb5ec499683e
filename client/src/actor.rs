//! The client's one task: it holds the connection, or waits to open the next, and everything that is on its way.

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use fanfare_proto::{
    ChannelId, Code, Seq, SessionId,
    error::Policy,
    session::client::{ClientSession, Defect, DeviceState, Ended, Event as Told, SessionOptions},
    wire::{self, Role},
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
    random,
    sending::{Outgoing, SendQueue},
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
    Screen(wire::State),
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
    pub local: Option<std::net::IpAddr>,
    pub server_name: Option<String>,
}

/// What a client's handles and its task share: read often, changed by the task alone.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub channels: Mutex<HashMap<ChannelId, Arc<wire::ChannelState>>>,
}

pub(crate) struct Actor {
    pub settings: Arc<Settings>,
    pub commands: mpsc::Receiver<Command>,
    pub events: broadcast::Sender<Event>,
    pub state: watch::Sender<State>,
    pub shared: Arc<Shared>,
    /// What outlives sessions, while there is none.
    pub device: DeviceState,
    pub sends: SendQueue,
    pub questions: Questions,
    pub gaps: Gaps,
    /// How far the user has read, until the server says so too: (seq, ordinal, sent in this session).
    pub reads: HashMap<ChannelId, (Seq, u64, bool)>,
    pub fresh_token: bool,
    pub moved_to: Option<Target>,
}

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
            let events = self.events.clone();
            self.gaps.disconnected(&mut |event| drop(events.send(event)));
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
        self.sends.close();
        self.questions.close();
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

    fn tell(&self, event: Event) {
        // Nobody listens: nothing to tell.
        let _ = self.events.send(event);
    }

    async fn open(&mut self) -> Result<Connection, Leave> {
        let resume = !self.device.resume.is_empty() && !self.fresh_token;
        let opening = open(self.settings.clone(), self.device.clone(), resume, self.moved_to.take());
        tokio::pin!(opening);
        loop {
            tokio::select! {
                opened = &mut opening => return opened.map_err(Leave::Ended),
                command = self.commands.recv() => match command {
                    Some(Command::Close(reply)) => return Err(Leave::Closed(Some(reply))),
                    None => return Err(Leave::Closed(None)),
                    Some(command) => self.take(command, None),
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
                    Some(command) => self.take(command, None),
                },
            }
        }
    }

    async fn session(&mut self, mut connection: Connection, attempt: &mut u32) -> Leave {
        let mut told: Vec<Told> = Vec::new();
        let mut token: Option<Token> = None;
        let mut move_at: Option<Instant> = None;
        let leave = loop {
            if connection.session().is_open() {
                self.pump(connection.session());
            }
            let timers = [self.sends.deadline(), self.questions.deadline(), self.gaps.deadline(), move_at];
            let timer = timers.into_iter().flatten().min();
            tokio::select! {
                // The server first: what it says may settle what a command asks.
                biased;
                turned = async { connection.turn(&mut |event| told.push(event)).await } => {
                    for event in told.drain(..) {
                        match event {
                            Told::Welcome(_) => {
                                *attempt = 0;
                                self.fresh_token = false;
                            }
                            Told::AuthRequired { .. } => token = Some(self.settings.token.fresh()),
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
        self.sends.pump(session, now);
        self.questions.pump(session, now);
        self.gaps.pump(session);
        for (channel, (seq, ordinal, sent)) in &mut self.reads {
            if !*sent && session.mark_read(*channel, *seq, *ordinal).is_ok() {
                *sent = true;
            }
        }
    }

    fn take(&mut self, command: Command, session: Option<&mut ClientSession>) {
        match command {
            Command::Send(outgoing) => self.sends.push(*outgoing),
            Command::Ask(question, reply) => self.questions.ask(question, reply),
            Command::Read(channel, seq, ordinal) => {
                let read = self.reads.entry(channel).or_default();
                if seq > read.0 {
                    *read = (seq, ordinal, false);
                }
            }
            // Hints are worth nothing later.
            Command::Typing(channel, stopped) => {
                let _ = session.map(|session| session.typing(channel, stopped));
            }
            Command::Screen(state) => {
                let _ = session.map(|session| session.state(&state));
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
            Told::Deliver(frame) => self.tell_entry(Arc::new(Entry::decode(&frame)?)),
            Told::Gap { channel, after, head } => self.gaps.add(channel, after, head),
            Told::Defect { channel, kind, after, before } => {
                tracing::warn!(%channel, ?kind, after, before, "the server broke a rule");
                if kind != Defect::EpochFell {
                    self.gaps.add(channel, after, before - 1);
                }
            }
            Told::Rewound { channel, from, .. } => self.tell(Event::Rewound { channel, from }),
            Told::Synced(synced) => {
                for state in synced.channels {
                    self.channel_changed(state);
                }
                if synced.complete {
                    self.tell(Event::Synced { channels: synced.channels_total });
                }
            }
            Told::Channel { request, state } => {
                if request != 0 {
                    self.questions.channel(request, state.clone());
                }
                self.channel_changed(*state);
            }
            Told::SendAck { request, ack, .. } => drop(self.sends.answer(request, &ack)),
            Told::Page { request, news, page, .. } => {
                let mut events = Vec::new();
                let mut tell = |event| events.push(event);
                let of_gap = self.gaps.page(session, now_ms(), request, &page, &news, &mut tell)?;
                if !of_gap && !news.is_empty() {
                    // History that lies in a hole fills it: it will not be delivered again.
                    events.extend(new_entries(&page, &news)?.into_iter().map(Event::Entry));
                }
                for event in events {
                    match event {
                        Event::Entry(entry) => self.tell_entry(entry),
                        other => self.tell(other),
                    }
                }
                if !of_gap {
                    self.questions.page(request, *page);
                }
            }
            Told::Counts { request, counts, .. } => self.questions.counts(request, counts),
            Told::Refused { request, error, .. } => {
                let code = Code(error.code as u16);
                let later = matches!(code.policy(), Policy::BackOff | Policy::Repeat);
                let later_ms = later.then(|| u64::from(error.retry_after_ms) + 100 + random() % 1_000);
                if !self.sends.refuse(request, &error) && !self.gaps.refuse(request, later_ms) {
                    self.questions.refuse(request, &error);
                }
            }
            Told::Receipt { channel, receipt } => {
                self.tell(Event::Receipt { channel, cursors: receipt.cursors.into() });
            }
            Told::Typing { channel, typing } => {
                self.tell(Event::Typing { channel, user: typing.user.into(), stopped: typing.stopped });
            }
            Told::Failed(error) => {
                self.tell(Event::Failed { code: Code(error.code as u16), text: error.text })
            }
            // GOAWAY, AUTH and the end are the loop's.
            _ => {}
        }
        Ok(())
    }

    fn tell_entry(&self, entry: Arc<Entry>) {
        let mut channels = self.shared.channels.lock();
        if let Some(state) = channels.get_mut(&entry.channel)
            && state.head < entry.seq
        {
            let state = Arc::make_mut(state);
            (state.head, state.ordinal, state.active_ms) = (entry.seq, entry.ordinal, entry.time_ms());
        }
        drop(channels);
        self.tell(Event::Entry(entry));
    }

    fn channel_changed(&mut self, state: wire::ChannelState) {
        let channel = ChannelId(state.channel);
        if self.reads.get(&channel).is_some_and(|read| read.0 <= state.read) {
            self.reads.remove(&channel);
        }
        if state.role == Role::None as i32 {
            self.shared.channels.lock().remove(&channel);
            self.reads.remove(&channel);
            self.tell(Event::ChannelLeft(channel));
            return;
        }
        let state = Arc::new(state);
        self.shared.channels.lock().insert(channel, state.clone());
        self.tell(Event::ChannelChanged(state));
    }
}

/// Finds the server and opens a connection with HELLO ready to go.
async fn open(
    settings: Arc<Settings>,
    device: DeviceState,
    resume: bool,
    moved_to: Option<Target>,
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
        seed: random(),
    };
    let session = ClientSession::new(device, session_options, now_ms());
    Connection::open(&options, session).await.map_err(|error| error.ended())
}
