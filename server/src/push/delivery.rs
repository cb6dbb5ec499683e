//! Takes what is due out of the outbox, looks whether it is still needed, and posts it: so many at once, each answer noted
//! before anything of its kind is tried again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use fanfare_proto::{ChannelId, Code, UserId, wire};
use fanfare_router::push::{Member, View, Who};
use fanfare_storage::{
    StoreError, fault,
    model::User,
    push::{CaughtUp, Push, PushKey, PushOutcome},
};
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{
    Content, Shared,
    hook::{self, Answer, Hook},
    letter::{self, Letter, Preview},
    retried, schedule,
};
use crate::{clock, history, webhook_keys::Signer};

/// Pushes taken out of the outbox at once, beside those under way.
const TAKEN_MAX: usize = 256;
/// Between two looks at an outbox in which nothing was due.
const IDLE: Duration = Duration::from_millis(500);
/// How long a push waits whose channel's owner could not answer.
const POSTPONED: Duration = Duration::from_secs(2);
/// Channels that are counted for a badge.
pub const BADGE_CHANNELS_MAX: usize = 500;

/// A push that is to be posted, with what goes into its body.
struct Ready {
    push: Push,
    unread: u64,
    badge: u64,
    preview: Option<Preview>,
}

type Posted = (Push, Hook, Result<Answer, String>);

/// Everything between the outbox and the receiver.
struct Delivery<'a> {
    shared: &'a Arc<Shared>,
    ready: VecDeque<Ready>,
    /// Those ready and under way.
    held: HashSet<PushKey>,
    hooks: Vec<Hook>,
    tls: Arc<rustls::ClientConfig>,
    posting: JoinSet<Posted>,
    /// What became of those that came back, not yet noted.
    done: Vec<(PushKey, PushOutcome)>,
    /// Failures since the last success.
    failures: usize,
    resume_at: Instant,
    look_at: Instant,
}

/// Delivers until it is stopped. What is under way then is tried again after the next start.
pub async fn run(shared: Arc<Shared>) {
    let tls = hook::tls_config();
    let hooks =
        (0..shared.config.connections).map(|_| Hook::new(shared.config.url.clone(), Arc::clone(&tls)));
    let mut delivery = Delivery {
        shared: &shared,
        ready: VecDeque::new(),
        held: HashSet::new(),
        hooks: hooks.collect(),
        tls: Arc::clone(&tls),
        posting: JoinSet::new(),
        done: Vec::new(),
        failures: 0,
        resume_at: Instant::now(),
        look_at: Instant::now(),
    };
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = delivery.deliver() => {}
    }
    delivery.posting.shutdown().await;
}

impl Delivery<'_> {
    async fn deliver(&mut self) {
        loop {
            if self.ready.is_empty() && Instant::now() >= self.look_at {
                self.take().await;
            }
            if Instant::now() >= self.resume_at {
                self.post().await;
            }
            let until = if self.ready.is_empty() { self.look_at } else { self.resume_at };
            // With every connection in use only an answer changes anything.
            let is_waiting = self.ready.is_empty() || Instant::now() < self.resume_at;
            tokio::select! {
                biased;
                Some(posted) = self.posting.join_next() => self.came_back(posted).await,
                () = tokio::time::sleep_until(until), if is_waiting => {}
                () = self.shared.wake.notified(), if self.ready.is_empty() => self.look_at = Instant::now(),
            }
        }
    }

    /// What is due and not held already.
    async fn take(&mut self) {
        let limit = self.held.len() + TAKEN_MAX;
        let now_ms = clock::now_ms();
        let due =
            retried(self.shared, "the push outbox", move |shared| shared.outbox.due(now_ms, limit)).await;
        let due: Vec<Push> = due.into_iter().filter(|push| !self.held.contains(&push.key)).collect();
        if due.is_empty() {
            self.look_at = Instant::now() + IDLE;
            return;
        }
        let mut by_channel: HashMap<ChannelId, Vec<Push>> = HashMap::new();
        for push in due {
            by_channel.entry(push.key.channel).or_default().push(push);
        }
        let (mut outcomes, mut caught_up) = (Vec::new(), Vec::new());
        for (channel, pushes) in by_channel {
            self.look(channel, pushes, &mut outcomes, &mut caught_up).await;
        }
        if !caught_up.is_empty() {
            // Also what is not due yet.
            let cancel = move |shared: &Shared| shared.outbox.cancel(now_ms, &caught_up);
            let count = retried(self.shared, "the push outbox", cancel).await;
            self.shared.meter.cancelled(count);
        }
        // In the order of the outbox: no more are taken before all of these are under way, so the others have their share.
        self.ready.make_contiguous().sort_by_key(|ready| (!ready.push.kind.is_first(), ready.push.due_ms));
        self.note(outcomes).await;
    }

    /// Keeps those that are still needed, with what is to be said now.
    async fn look(
        &mut self,
        channel: ChannelId,
        pushes: Vec<Push>,
        outcomes: &mut Vec<(PushKey, PushOutcome)>,
        caught_up: &mut Vec<CaughtUp>,
    ) {
        let users = pushes.iter().map(|push| push.key.user).collect();
        let view = match self.shared.router.view(channel, Who::Named(users), Vec::new()).await {
            Ok(view) => view.unwrap_or_default(),
            Err(code) => {
                tracing::debug!(%channel, %code, "the channel's owner is asked again");
                let due_ms = clock::now_ms() + POSTPONED.as_millis() as u64;
                outcomes.extend(pushes.iter().map(|push| (push.key, PushOutcome::Postponed { due_ms })));
                return;
            }
        };
        let members: HashMap<UserId, Member> =
            view.members.iter().map(|member| (member.user, *member)).collect();
        for push in pushes {
            let member = members.get(&push.key.user);
            if let Some(member) = member
                && push.key.seq <= member.read.max(member.delivered)
            {
                caught_up.push((member.user, channel, member.read.max(member.delivered)));
                continue;
            }
            let member = member.filter(|member| member.misses(push.key.seq));
            let ready = match member {
                None => Ok(None),
                Some(member) => details(self.shared, &view, member, &push).await,
            };
            match ready {
                Ok(Some((badge, preview))) => {
                    let unread = member.map_or(0, |member| member.unread);
                    self.held.insert(push.key);
                    self.ready.push_back(Ready { push, unread, badge, preview });
                }
                Ok(None) => outcomes.push((push.key, PushOutcome::Cancelled)),
                Err(code) => {
                    tracing::debug!(key = %push.key, %code, "a push is looked at again");
                    let due_ms = clock::now_ms() + POSTPONED.as_millis() as u64;
                    outcomes.push((push.key, PushOutcome::Postponed { due_ms }));
                }
            }
        }
    }

    /// Begins as many posts as there are connections free.
    async fn post(&mut self) {
        if self.ready.is_empty() || self.hooks.is_empty() {
            return;
        }
        let signer = match self.shared.keys.signer().await {
            Ok(signer) => Some(Arc::new(signer)),
            Err(failure) => {
                tracing::warn!(what = failure.what, "pushes go without the published key's signature");
                None
            }
        };
        while let Some(hook) = self.hooks.pop() {
            let Some(ready) = self.ready.pop_front() else {
                self.hooks.push(hook);
                return;
            };
            self.posting.spawn(post(Arc::clone(self.shared), hook, ready, signer.clone()));
        }
    }

    async fn came_back(&mut self, posted: Result<Posted, JoinError>) {
        let mut next = Some(posted);
        // What came back meanwhile is noted with it, in one transaction.
        while let Some(posted) = next {
            match posted {
                Ok((push, hook, answer)) => {
                    self.hooks.push(hook);
                    self.heard(&push, &answer);
                }
                Err(error) => {
                    // Nobody knows which it was: what is not ready may be taken again.
                    tracing::error!(%error, "a delivery panicked");
                    self.hooks.push(Hook::new(self.shared.config.url.clone(), Arc::clone(&self.tls)));
                    self.held = self.ready.iter().map(|ready| ready.push.key).collect();
                }
            }
            next = self.posting.try_join_next();
        }
        let done = std::mem::take(&mut self.done);
        self.note(done).await;
    }

    fn heard(&mut self, push: &Push, answer: &Result<Answer, String>) {
        let outcome = schedule::outcome(push, answer, self.shared.config.patience, clock::now_ms(), luck());
        if let PushOutcome::Dead { error } = &outcome {
            tracing::warn!(key = %push.key, error, "a push is given up");
        }
        // A refusal is an answer: the receiver is there.
        if matches!(answer, Ok(answer) if answer.status < 500) {
            self.failures = 0;
        } else {
            self.failures += 1;
            let halt = schedule::halt(self.failures, self.shared.config.connections);
            self.resume_at = Instant::now() + halt;
        }
        self.done.push((push.key, outcome));
    }

    async fn note(&mut self, outcomes: Vec<(PushKey, PushOutcome)>) {
        if outcomes.is_empty() {
            return;
        }
        let outcomes: Arc<[_]> = outcomes.into();
        let kept = Arc::clone(&outcomes);
        let now_ms = clock::now_ms();
        retried(self.shared, "the push outbox", move |shared| shared.outbox.finish(now_ms, &kept)).await;
        for (key, outcome) in outcomes.iter() {
            self.held.remove(key);
            self.shared.meter.outcome(outcome);
        }
    }
}

/// The badge and the preview; `None` where nobody is to be told.
async fn details(
    shared: &Arc<Shared>,
    view: &View,
    member: &Member,
    push: &Push,
) -> Result<Option<(u64, Option<Preview>)>, Code> {
    let router = &shared.router;
    let is_on = |user: &User| user.flags & User::DISABLED == 0;
    if !router.user(push.key.user).await?.as_ref().is_some_and(is_on) {
        return Ok(None);
    }
    let preview = match shared.config.content {
        Content::None => None,
        Content::Preview => match preview(shared, view, push).await? {
            Some(preview) => Some(preview),
            // Taken back since: what was not told need not be.
            None => return Ok(None),
        },
    };
    let (member, channel) = (*member, push.key.channel);
    let badge = retried(shared, "unread counts", move |shared| badge(shared, member, channel)).await;
    Ok(Some((badge, preview)))
}

/// As its reader would find the message now; `None` where it was taken back.
async fn preview(shared: &Shared, view: &View, push: &Push) -> Result<Option<Preview>, Code> {
    let router = &shared.router;
    let (user, seq) = (push.key.user, push.key.seq);
    let fetch = wire::Fetch { before: seq + 1, messages_max: 1, ..wire::Fetch::default() };
    let pages = router.history(push.key.channel, Some(user), fetch).await?;
    let found = history::messages(&pages)?.into_iter().find(|message| message.seq == seq);
    let Some(message) = found.filter(|message| !message.recalled) else { return Ok(None) };
    let sender = router.user(push.sender).await?;
    Ok(Some(Preview {
        sender_name: sender.map(|sender| sender.name).unwrap_or_default(),
        channel_name: view.name.clone(),
        text: letter::shortened(message.text.as_deref().unwrap_or_default()),
    }))
}

async fn post(shared: Arc<Shared>, mut hook: Hook, ready: Ready, signer: Option<Arc<Signer>>) -> Posted {
    let Ready { push, unread, badge, preview } = ready;
    let body = Letter::of(&push, unread, badge, preview.as_ref()).bytes();
    let id = push.key.to_string();
    let headers = letter::headers(&id, clock::now_ms() / 1000, &body, &shared.secrets, signer.as_deref());
    fault::point("before-push-post");
    let answer = tokio::time::timeout(shared.config.timeout, hook.post(&headers, &body)).await;
    fault::point("after-push-post");
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", shared.config.timeout)));
    (push, hook, answer)
}

/// Messages not read over the user's channels: in the channel of the push as its owner counts, in the others as was written last.
fn badge(shared: &Shared, member: Member, channel: ChannelId) -> Result<u64, StoreError> {
    let mut badge = member.unread;
    let others = shared.metadata.memberships(member.user)?.into_iter().filter(|other| *other != channel);
    for other in others.take(BADGE_CHANNELS_MAX) {
        let Some(row) = shared.metadata.channel(other)? else { continue };
        let cursor = shared.metadata.cursor(other, member.user)?;
        badge += row.ordinal.saturating_sub(cursor.read_ordinal);
    }
    Ok(badge)
}

/// From 0 to 1.
fn luck() -> f64 {
    let mut bytes = [0; 2];
    // Without randomness all are tried together.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX)
}
