//! Everything the server holds about one user, as lines of JSON: the account, devices, logins (no secrets), sessions, blocks,
//! what stands for or against it in channels, pushes, channels, and the messages and reactions that the user sent. Read page by
//! page while it is written, so that an export of any length costs the same memory; a reader that does not read ends it, and so does a revocation of who asked for it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use fanfare_client::Entry;
use fanfare_presence::{Audience, Presence};
use fanfare_proto::{
    ChannelId, Code, Frame, MessageId, UserId,
    limits::FETCH_MESSAGES_MAX,
    wire::{self, ChannelKind, entry::Content},
};
use fanfare_router::Admin;
use fanfare_storage::{
    StoreError,
    accounts::{Accounts as Store, Membership},
    model::User,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use crate::{
    accounts::{Accounts, Caller, administrators::Authority, throttle::Throttle},
    administration::{UserRow, mark_name, role_name},
    clock,
    failure::{Failure, Outcome},
    push::Pushes,
};

/// Exports that run at once.
pub const RUNNING_MAX: usize = 4;
/// Exports that a user may begin within [`BEGUN_WITHIN`].
pub const BEGUN_MAX: u32 = 6;
/// See [`BEGUN_MAX`].
pub const BEGUN_WITHIN: Duration = Duration::from_secs(3600);
/// How long a reader may take nothing.
pub const STALL_MAX: Duration = Duration::from_secs(15);
/// Memberships, past ones too, that are looked at, and marks; the end says where there were more.
const MEMBERSHIPS_MAX: usize = 100_000;
/// Pushes that are listed; of most users there are few at a time.
const PUSHES_MAX: usize = 100_000;
/// Bytes that are gathered before they are written.
const CHUNK_BYTES: usize = 32 * 1024;
/// Chunks that wait for the reader.
const CHUNKS_WAITING: usize = 2;
/// Times a page is asked for where the server is busy, and how long apart.
const ATTEMPTS: u32 = 20;
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Exports {
    store: Arc<dyn Store>,
    accounts: Accounts,
    router: Admin,
    pushes: Pushes,
    presence: Presence,
    tasks: TaskTracker,
    running: Arc<Mutex<HashSet<UserId>>>,
    places: Arc<Semaphore>,
    begun: Arc<Throttle<UserId>>,
}

impl std::fmt::Debug for Exports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exports").field("running", &self.running.lock().len()).finish_non_exhaustive()
    }
}

/// An export under way: chunks of whole lines, then `None`. A channel that closes before it was cut off. Once it is dropped the
/// export ends with the read that it waits for, and keeps its place until then.
#[derive(Debug)]
pub struct Export {
    /// What was written so far.
    pub chunks: mpsc::Receiver<Option<Bytes>>,
}

/// Who asked for an export: looked at again before each page.
enum Asker {
    User(Caller),
    Administration(Authority),
}

/// The right to run; given back with it.
struct Place {
    user: UserId,
    running: Arc<Mutex<HashSet<UserId>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.lock().remove(&self.user);
    }
}

impl Exports {
    /// Over those parts.
    pub fn new(
        store: Arc<dyn Store>,
        accounts: Accounts,
        router: Admin,
        pushes: Pushes,
        presence: Presence,
        for_load: bool,
    ) -> Self {
        let more = if for_load { 10_000 } else { 1 };
        Self {
            store,
            accounts,
            router,
            pushes,
            presence,
            tasks: TaskTracker::new(),
            running: Arc::default(),
            places: Arc::new(Semaphore::new(RUNNING_MAX)),
            begun: Arc::new(Throttle::new(BEGUN_MAX * more, BEGUN_WITHIN)),
        }
    }

    /// Begins an export that the user itself asks for.
    ///
    /// # Errors
    /// RATE_LIMITED: one of the user's runs, or there were many; RETRY_LATER: [`RUNNING_MAX`] run.
    pub fn begin_own(&self, caller: Caller) -> Outcome<Export> {
        let user = caller.user.clone();
        let place = self.place(user.user)?;
        self.begun.take(&user.user).map_err(|wait| wait_for(Failure::of(Code::RATE_LIMITED), wait))?;
        Ok(self.run(user, Asker::User(caller), place))
    }

    /// Begins an export by the server's own people.
    ///
    /// # Errors
    /// As of [`Self::begin_own`], but for how many there were.
    pub async fn begin(&self, user: UserId, authority: Authority) -> Outcome<Export> {
        let row = self.router.user(user).await?.ok_or_else(|| Failure::of(Code::NO_SUCH_USER))?;
        let place = self.place(user)?;
        Ok(self.run(row, Asker::Administration(authority), place))
    }

    /// Waits for those that run; the router's end ends them.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn place(&self, user: UserId) -> Outcome<Place> {
        let wait = Duration::from_secs(30);
        let busy = || wait_for(Failure::new(Code::RETRY_LATER, "as many exports run as may"), wait);
        let permit = Arc::clone(&self.places).try_acquire_owned().map_err(|_| busy())?;
        if !self.running.lock().insert(user) {
            return Err(wait_for(
                Failure::new(Code::RATE_LIMITED, "an export of this user runs already"),
                wait,
            ));
        }
        Ok(Place { user, running: Arc::clone(&self.running), _permit: permit })
    }

    fn run(&self, user: User, asker: Asker, place: Place) -> Export {
        let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
        let exports = self.clone();
        self.tasks.spawn(async move {
            let mut lines = Lines { sender, waiting: Vec::with_capacity(2 * CHUNK_BYTES) };
            let written = exports.write(&user, &asker, &mut lines).await;
            // Before the reader is told that it was all: who asks again then is let in.
            drop(place);
            match written {
                Ok(()) => lines.finish().await,
                Err(Stopped::Failed(failure)) => {
                    let code = failure.code.unwrap_or(Code::INTERNAL);
                    tracing::warn!(%code, "an export broke off");
                    let line = json!({ "type": "error", "code": code.to_string(), "detail": failure.what });
                    // The last words before the stream breaks.
                    let _ = lines.add(&line).await;
                    let _ = lines.flush().await;
                }
                Err(Stopped::NotRead) => tracing::info!("an export ended because nobody read it"),
            }
        });
        Export { chunks }
    }

    /// Refuses to go on where nobody reads, or who asked may not any more.
    async fn may_go_on(&self, asker: &Asker, lines: &Lines) -> Result<(), Stopped> {
        if lines.sender.is_closed() {
            return Err(Stopped::NotRead);
        }
        match asker {
            Asker::User(caller) => self.again(|| self.accounts.still(caller, false)).await?,
            Asker::Administration(Authority::Administrator(caller)) => {
                self.again(|| self.accounts.still(caller, true)).await?;
            }
            Asker::Administration(Authority::Folder) => {}
        }
        Ok(())
    }

    async fn write(&self, user: &User, asker: &Asker, lines: &mut Lines) -> Result<(), Stopped> {
        let id = user.user;
        lines
            .add(&json!({
                "type": "export",
                "schema": "fanfare.export/v1",
                "user": id.to_string(),
                "at": clock::rfc3339(clock::now_ms()),
            }))
            .await?;
        self.account(user, lines).await?;
        let mut memberships = self.read(move |store| store.memberships_of(id, MEMBERSHIPS_MAX + 1)).await?;
        let more = memberships.len() > MEMBERSHIPS_MAX;
        memberships.truncate(MEMBERSHIPS_MAX);
        let mut sent = Counts::default();
        for stretches in memberships.chunk_by(|one, other| one.channel == other.channel) {
            let Some(channel) = stretches.first().map(|stretch| stretch.channel) else { continue };
            self.may_go_on(asker, lines).await?;
            self.channel(id, channel, stretches, lines).await?;
            match self.messages(id, channel, asker, lines).await {
                Ok(count) => {
                    sent.messages += count.messages;
                    sent.reactions += count.reactions;
                }
                // Nothing of it may be seen any more.
                Err(Stopped::Failed(Failure { code: Some(Code::NOT_A_MEMBER), .. })) => {}
                Err(stopped) => return Err(stopped),
            }
        }
        lines
            .add(&json!({
                "type": "end",
                "messages": sent.messages,
                "reactions": sent.reactions,
                "channels_left_out": more,
            }))
            .await
    }

    async fn account(&self, user: &User, lines: &mut Lines) -> Result<(), Stopped> {
        let id = user.user;
        let has_password = self.read(move |store| store.password(id)).await?.is_some();
        let mut account = json!(UserRow::from(user.clone()));
        account["type"] = "account".into();
        account["has_password"] = has_password.into();
        account["tokens_void_before"] = match user.tokens_from_s {
            0 => Value::Null,
            from_s => clock::rfc3339(from_s * 1000).into(),
        };
        account["seen_by"] = Audience::of(user).name().into();
        let shown = self.presence.of(None, vec![id]).await?;
        let seen_ms = shown.first().and_then(|shown| shown.seen).map_or(0, |seen| seen.last_seen_ms);
        account["last_seen"] = match seen_ms {
            0 => Value::Null,
            seen_ms => clock::rfc3339(seen_ms).into(),
        };
        lines.add(&account).await?;
        for device in self.router.devices(id).await? {
            lines
                .add(&json!({
                    "type": "device",
                    "device": device.device.to_string(),
                    "name": device.name,
                    "revoked_times": device.generation,
                    "seen": clock::rfc3339(device.seen_ms),
                }))
                .await?;
        }
        for login in self.read(move |store| store.logins(id, clock::now_ms())).await? {
            lines
                .add(&json!({
                    "type": "login",
                    "device": login.device.to_string(),
                    "signed_in": clock::rfc3339(login.created_ms),
                    "refreshed": clock::rfc3339(login.rotated_ms),
                    "ends": clock::rfc3339(login.expires_ms),
                }))
                .await?;
        }
        for session in self.router.sessions(id).await? {
            lines
                .add(&json!({
                    "type": "session",
                    "session": session.session.to_string(),
                    "device": session.device.to_string(),
                    "device_name": session.device_name,
                    "since": clock::rfc3339(session.since_ms),
                }))
                .await?;
        }
        for blocked in self.router.blocks(id).await? {
            lines.add(&json!({ "type": "block", "user": blocked.to_string() })).await?;
        }
        for (channel, mark) in self.read(move |store| store.marks_of(id, MEMBERSHIPS_MAX)).await? {
            lines
                .add(&json!({
                    "type": "mark",
                    "channel": channel.to_string(),
                    "kind": mark_name(mark.kind),
                    "until": (mark.until_ms > 0).then(|| clock::rfc3339(mark.until_ms)),
                    "seq": mark.seq,
                }))
                .await?;
        }
        for (push, state) in self.pushes.of_user(id, PUSHES_MAX).await? {
            lines
                .add(&json!({
                    "type": "push",
                    "channel": push.key.channel.to_string(),
                    "seq": push.key.seq,
                    "kind": push.kind.name(),
                    "state": state.name(),
                    "at": clock::rfc3339(push.created_ms),
                }))
                .await?;
        }
        Ok(())
    }

    async fn channel(
        &self,
        user: UserId,
        channel: ChannelId,
        stretches: &[Membership],
        lines: &mut Lines,
    ) -> Result<(), Stopped> {
        let stretches: Vec<Value> = stretches
            .iter()
            .map(|stretch| {
                json!({
                    "role": role_name(stretch.row.role.into()),
                    "joined_seq": stretch.row.joined_seq,
                    "left_seq": (stretch.row.left_seq > 0).then_some(stretch.row.left_seq),
                    "visible_from": stretch.row.visible_from,
                })
            })
            .collect();
        let described = self.again(|| self.router.describe(channel, Some(user))).await?;
        let state = described.and_then(|summary| summary.state).filter(|state| state.role != 0);
        // What a channel that was left is called now is not the user's to know.
        let now = state.map(|state| {
            let direct = state.kind == ChannelKind::Direct as i32;
            json!({
                "kind": if direct { "direct" } else { "group" },
                "name": state.name,
                "peer": direct.then(|| state.peer.to_string()),
                "role": role_name(state.role),
                "delivered": state.delivered,
                "read": state.read,
            })
        });
        lines
            .add(&json!({
                "type": "channel",
                "channel": channel.to_string(),
                "member": now.is_some(),
                "now": now,
                "memberships": stretches,
                "pushed": self.pushes.told(channel, user).await?.map(clock::rfc3339),
            }))
            .await
    }

    /// The messages and reactions of the user in a channel, newest first, as far as it may see them; gives how many.
    async fn messages(
        &self,
        user: UserId,
        channel: ChannelId,
        asker: &Asker,
        lines: &mut Lines,
    ) -> Result<Counts, Stopped> {
        let (mut before, mut count) = (0, Counts::default());
        loop {
            self.may_go_on(asker, lines).await?;
            let fetch = wire::Fetch { messages_max: FETCH_MESSAGES_MAX, before, ..wire::Fetch::default() };
            let pages = self.again(|| self.router.history(channel, Some(user), fetch)).await?;
            let (mut sent, mut reactions) = (Vec::new(), Vec::new());
            for page in &pages {
                sent_in(page, user, &mut sent, &mut reactions)?;
            }
            sent.sort_unstable_by_key(|message| std::cmp::Reverse(message.seq));
            reactions.sort_unstable_by_key(|reaction| std::cmp::Reverse(reaction.seq));
            for message in &sent {
                lines.add(&message.json(channel)).await?;
            }
            for reaction in &reactions {
                lines.add(&reaction.json(channel)).await?;
            }
            count.messages += sent.len() as u64;
            count.reactions += reactions.len() as u64;
            let first = pages.iter().filter(|page| page.first <= page.last).map(|page| page.first).min();
            let complete = pages.iter().any(|page| page.complete);
            match first {
                Some(first) if !complete && first > 1 && first != before => before = first,
                _ => return Ok(count),
            }
        }
    }

    /// Asks until the server is not too busy.
    async fn again<T, F: Future<Output = Result<T, Code>>>(&self, ask: impl Fn() -> F) -> Result<T, Failure> {
        let mut attempt = 1;
        loop {
            match ask().await {
                Err(Code::RETRY_LATER) if attempt < ATTEMPTS => attempt += 1,
                answer => return Ok(answer?),
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Outcome<T> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || read(&*store)).await;
        Ok(done.map_err(|error| Failure::internal("the accounts could not be asked").why(error))??)
    }
}

fn wait_for(mut failure: Failure, wait: Duration) -> Failure {
    failure.retry_after = Some(wait);
    failure
}

/// Why an export ended early.
enum Stopped {
    /// The server could not go on.
    Failed(Failure),
    /// The reader went away, or took nothing for [`STALL_MAX`].
    NotRead,
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Code> for Stopped {
    fn from(code: Code) -> Self {
        Self::Failed(code.into())
    }
}

/// Lines on their way to the reader.
struct Lines {
    sender: mpsc::Sender<Option<Bytes>>,
    waiting: Vec<u8>,
}

impl Lines {
    async fn add(&mut self, line: &Value) -> Result<(), Stopped> {
        serde_json::to_writer(&mut self.waiting, line)
            .map_err(|error| Failure::internal("a line could not be written").why(error))?;
        self.waiting.push(b'\n');
        if self.waiting.len() < CHUNK_BYTES { Ok(()) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<(), Stopped> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::copy_from_slice(&self.waiting);
        self.waiting.clear();
        match tokio::time::timeout(STALL_MAX, self.sender.send(Some(chunk))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Stopped::NotRead),
        }
    }

    async fn finish(mut self) {
        if self.flush().await.is_ok() {
            let _ = tokio::time::timeout(STALL_MAX, self.sender.send(None)).await;
        }
    }
}

/// How much was written.
#[derive(Default)]
struct Counts {
    messages: u64,
    reactions: u64,
}

/// A reaction of the user, set or taken back.
struct Reacted {
    seq: u64,
    id: MessageId,
    target: u64,
    emoji: String,
    removed: bool,
}

impl Reacted {
    fn json(&self, channel: ChannelId) -> Value {
        json!({
            "type": "reaction",
            "channel": channel.to_string(),
            "seq": self.seq,
            "message_seq": self.target,
            "time": clock::rfc3339(self.id.time_ms()),
            "emoji": self.emoji,
            "removed": self.removed,
        })
    }
}

/// A message of the user.
struct Sent {
    seq: u64,
    id: MessageId,
    body: Option<wire::Message>,
    edited: bool,
    recalled: bool,
}

/// Adds a page's messages of that sender, each with its newest body, and its reactions.
fn sent_in(
    page: &wire::Page,
    user: UserId,
    sent: &mut Vec<Sent>,
    reactions: &mut Vec<Reacted>,
) -> Result<(), Code> {
    let begin = sent.len();
    for frame in Frame::iter(page.frames.clone()) {
        let entry = Entry::decode(&frame?)?;
        let body = match entry.content {
            _ if entry.sender != user => continue,
            Some(Content::Message(body)) => Some(body),
            Some(Content::Reaction(reaction)) => {
                let wire::Reaction { emoji, remove: removed, target, .. } = reaction;
                reactions.push(Reacted { seq: entry.seq, id: entry.id, target, emoji, removed });
                continue;
            }
            None if entry.stub && entry.counted => None,
            _ => continue,
        };
        sent.push(Sent { seq: entry.seq, id: entry.id, recalled: entry.stub, edited: false, body });
    }
    for amendment in &page.amendments {
        let Some(message) = sent[begin..].iter_mut().find(|message| message.seq == amendment.target) else {
            continue;
        };
        for frame in Frame::iter(amendment.frame.clone()) {
            match Entry::decode(&frame?)?.content {
                Some(Content::Edit(edit)) if !message.recalled => {
                    (message.body, message.edited) = (edit.message, true);
                }
                Some(Content::Recall(_)) => (message.body, message.recalled) = (None, true),
                _ => {}
            }
        }
    }
    Ok(())
}

impl Sent {
    fn json(&self, channel: ChannelId) -> Value {
        let body = self.body.as_ref().map(|body| {
            let attachments: Vec<Value> = body.attachments.iter().map(attachment).collect();
            let mentions: Vec<String> = body.mentions.iter().map(u64::to_string).collect();
            json!({
                "text": body.text,
                "content_type": body.content_type,
                "mentions": mentions,
                "mention_all": body.mention_all,
                "reply_to": body.reply_to,
                "attachments": attachments,
                "opaque_base64": STANDARD.encode(&body.opaque),
            })
        });
        json!({
            "type": "message",
            "channel": channel.to_string(),
            "seq": self.seq,
            "message": self.id.to_string(),
            "time": clock::rfc3339(self.id.time_ms()),
            "edited": self.edited,
            "recalled": self.recalled,
            "body": body,
        })
    }
}

fn attachment(attachment: &wire::Attachment) -> Value {
    json!({
        "id": attachment.id,
        "url": attachment.url,
        "name": attachment.name,
        "content_type": attachment.content_type,
        "bytes": attachment.bytes,
        "sha256_base64": STANDARD.encode(&attachment.sha256),
        "width": attachment.width,
        "height": attachment.height,
        "preview_base64": STANDARD.encode(&attachment.preview),
    })
}
