//! A life of partings: HTTP requests whose callers hang up, a member removed in mid-talk and taken in again, an outsider who
//! asks for everything, devices and users signed out. G6, G7, G8 and G10 as sockets see them: every byte that
//! somebody was given is kept, and who is out is silent, or gone, within two seconds.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fanfare_proto::{
    ChannelId, FrameType,
    frame::{self, Frame},
    header::class,
    wire,
};
use fanfare_tests::{
    connection::{ANSWER_TIME, Connection, fresh_id},
    scene::Scene,
};
use serde_json::{Value, json};

/// How long after the word that somebody is out a frame or a socket of theirs may be seen.
const OUT_TIME: Duration = Duration::from_secs(2);
/// HTTP sends whose caller hangs up, each followed by one of somebody else.
const CANCELLED: u64 = 24;
/// Longest wait for an HTTP answer.
const HTTP_TIME: Duration = Duration::from_secs(3);

/// Somebody's session, with all that it was given.
struct Watched {
    who: &'static str,
    connection: Connection,
    heard: Vec<(Instant, Frame)>,
    ended: Option<Instant>,
}

impl Watched {
    fn open(scene: &Scene, who: &'static str, device: u64) -> Result<Self> {
        let token = scene.server.token(who)?;
        let connection = Connection::open(scene.server.address(), &token, device)?;
        Ok(Self { who, connection, heard: Vec::new(), ended: None })
    }

    /// Takes what is there, and what comes within that time.
    fn listen(&mut self, time: Duration) {
        while self.ended.is_none() {
            match self.connection.next(time) {
                Ok(Some(frame)) => self.heard.push((Instant::now(), frame)),
                Ok(None) => return,
                Err(_) => self.ended = Some(Instant::now()),
            }
        }
    }

    /// Sends, waits for the answer and keeps what came before it.
    fn ask(
        &mut self,
        frame_type: FrameType,
        channel: ChannelId,
        body: &impl prost::Message,
    ) -> Result<Frame> {
        let number = self.connection.request(frame_type, 0, channel, body)?;
        let until = Instant::now() + ANSWER_TIME;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let frame =
                self.connection.next(left)?.with_context(|| format!("no answer to {frame_type:?}"))?;
            let is_answer = matches!(
                frame.frame_type(),
                FrameType::SendAck | FrameType::Page | FrameType::Counts | FrameType::Refused
            ) && frame.routed().is_some_and(|routed| routed.seq == number);
            self.heard.push((Instant::now(), frame.clone()));
            if is_answer {
                return Ok(frame);
            }
        }
    }

    fn send(&mut self, channel: ChannelId, content: wire::send::Content) -> Result<wire::SendAck> {
        let send = wire::Send {
            client_message_id: fresh_id().0.to_vec().into(),
            content: Some(content),
            ..Default::default()
        };
        Ok(self.ask(FrameType::Send, channel, &send)?.decode()?)
    }

    fn say(&mut self, channel: ChannelId, text: &str) -> Result<u64> {
        let message = wire::Message { text: text.into(), ..Default::default() };
        let ack = self.send(channel, wire::send::Content::Message(message))?;
        if ack.outcome() != wire::Outcome::Ok {
            bail!("{} cannot say anything: {}", self.who, ack.code);
        }
        Ok(ack.seq)
    }

    fn change(&mut self, channel: ChannelId, change: wire::MembershipChange, user: u64) -> Result<u64> {
        let membership = wire::Membership { change: change.into(), users: vec![user], ..Default::default() };
        let ack = self.send(channel, wire::send::Content::Membership(membership))?;
        if ack.outcome() != wire::Outcome::Ok {
            bail!("{} cannot change the members: {}", self.who, ack.code);
        }
        Ok(ack.seq)
    }

    /// The entry at that place, as this one pages it now; `None` where the page does not show it.
    fn entry_at(&mut self, channel: ChannelId, seq: u64) -> Result<Option<wire::Entry>> {
        let fetch = wire::Fetch { before: seq + 1, after: seq - 1, messages_max: 1, before_ms: 0 };
        let page: wire::Page = self.ask(FrameType::Fetch, channel, &fetch)?.decode()?;
        let frame = Frame::iter(page.frames).next().transpose()?;
        Ok(frame.map(|frame| frame.decode()).transpose()?)
    }

    /// Whether any byte that came holds the text.
    fn has_heard(&self, text: &str) -> bool {
        let has = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        self.heard.iter().any(|(_, frame)| has(&frame.bytes))
    }
}

fn http(scene: &Scene, token: &str, method: &str, path: &str, body: Option<&Value>) -> Result<TcpStream> {
    let address = scene.server.http();
    let mut stream = TcpStream::connect_timeout(&address, HTTP_TIME)?;
    stream.set_read_timeout(Some(HTTP_TIME))?;
    stream.set_nodelay(true)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    Ok(stream)
}

/// Status and JSON; `None` where no whole answer came in time.
fn answer(mut stream: TcpStream) -> Option<(u16, Value)> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).unwrap_or_default()))
}

/// Lives it.
pub fn live(scene: &mut Scene, seed: u64) -> Result<()> {
    let mut found = Vec::new();
    let end = hung_up(scene, seed, &mut found)
        .and_then(|()| removed(scene, seed, &mut found))
        .and_then(|()| revoked(scene, &mut found));
    scene.ledger.violations.append(&mut found);
    end
}

/// Callers hang up in the middle of a send; whoever comes next is answered about its own.
fn hung_up(scene: &Scene, seed: u64, found: &mut Vec<String>) -> Result<()> {
    let (rig, direct) = (scene.people.channels[1].0, scene.people.channels[2].0);
    let (hers, his) = (scene.server.token("alice")?, scene.server.token("bob")?);
    let path = |channel: ChannelId| format!("/v1/channels/{}/messages", channel.0);
    let mut alice = Watched::open(scene, "alice", 11)?;
    let mut answered = 0;
    for number in 0..CANCELLED {
        let cancelled = json!({ "text": format!("hung up {number}") });
        let stream = http(scene, &his, "POST", &path(rig), Some(&cancelled))?;
        // Long enough for the request to be read, too short for the commit: some of them at least.
        std::thread::sleep(Duration::from_micros(200 + (seed * 7 + number) % 12 * 200));
        let _ = stream.shutdown(Shutdown::Both);
        drop(stream);
        let text = format!("kept {number}");
        let kept = http(scene, &hers, "POST", &path(direct), Some(&json!({ "text": text })))?;
        let Some((201, said)) = answer(kept) else { continue };
        answered += 1;
        let seq = said["seq"].as_u64().context("an answer without a seq")?;
        let stands = alice.entry_at(direct, seq)?;
        let id = stands.as_ref().map(|entry| entry.message_id.to_string());
        let text_there = match stands.and_then(|entry| entry.content) {
            Some(wire::entry::Content::Message(message)) => Some(message.text),
            _ => None,
        };
        if text_there.as_ref() != Some(&text) || id.as_deref() != said["message"].as_str() {
            let what = format!("alice was answered {said} about {text:?}, there stands {text_there:?}");
            found.push(format!("G6 over HTTP: an answer about somebody else's message: {what}"));
            return Ok(());
        }
        let page = answer(http(scene, &hers, "GET", &format!("{}?limit=3", path(direct)), None)?);
        let (_, page) = page.context("no page over HTTP")?;
        let newest = page["messages"]
            .as_array()
            .and_then(|all| all.iter().filter_map(|one| one["seq"].as_u64()).max());
        if newest < Some(seq) {
            found.push(format!("G10 over HTTP: alice wrote {seq} and reads up to {newest:?}"));
        }
    }
    if answered < CANCELLED / 2 {
        bail!("only {answered} of {CANCELLED} sends over HTTP were answered");
    }
    Ok(())
}

/// Carol is removed while everybody talks, asks for what she has no business with, and is taken in again.
fn removed(scene: &Scene, seed: u64, found: &mut Vec<String>) -> Result<()> {
    let (rig, direct) = (scene.people.channels[1].0, scene.people.channels[2].0);
    let (before, after) = (format!("canary-before-{seed}"), format!("canary-after-{seed}"));
    let private = format!("canary-private-{seed}");
    let carol = scene.people.users[2];
    let mut alice = Watched::open(scene, "alice", 12)?;
    let mut bob = Watched::open(scene, "bob", 12)?;
    let mut hers = [Watched::open(scene, "carol", 31)?, Watched::open(scene, "carol", 32)?];
    for number in 0..5 + seed % 5 {
        alice.say(rig, &format!("{before} {number}"))?;
        bob.say(direct, &format!("{private} {number}"))?;
    }
    // Bob's stand in line before and behind the removal.
    let line = wire::Message { text: format!("{before} in line"), ..Default::default() };
    for _ in 0..8 {
        let send = wire::Send {
            client_message_id: fresh_id().0.to_vec().into(),
            content: Some(wire::send::Content::Message(line.clone())),
            ..Default::default()
        };
        bob.connection.request(FrameType::Send, 0, rig, &send)?;
    }
    let gone = alice.change(rig, wire::MembershipChange::Removed, carol)?;
    let out = Instant::now();
    for number in 0..20 {
        alice.say(rig, &format!("{after} {number}"))?;
        hers.iter_mut().for_each(|watched| watched.listen(Duration::from_millis(1)));
        alice.connection.write(&frame::routed(
            FrameType::Typing,
            class::HINT,
            0,
            0,
            rig,
            0,
            &wire::Typing::default(),
        ))?;
    }
    for watched in &mut hers {
        // What an outsider may try.
        for channel in [rig, direct] {
            let fetch = wire::Fetch { before: 0, after: 0, messages_max: 100, before_ms: 0 };
            let counts = wire::Counts { of: 1, ..Default::default() };
            let message = wire::Message { text: "let me in".into(), ..Default::default() };
            let send = wire::Send {
                client_message_id: fresh_id().0.to_vec().into(),
                content: Some(wire::send::Content::Message(message)),
                ..Default::default()
            };
            let answers = [
                watched.ask(FrameType::Fetch, channel, &fetch)?,
                watched.ask(FrameType::Counts, channel, &counts)?,
                watched.ask(FrameType::Send, channel, &send)?,
            ];
            for answer in answers {
                let is_no = match answer.frame_type() {
                    FrameType::Refused => true,
                    FrameType::SendAck => answer.decode::<wire::SendAck>()?.outcome() == wire::Outcome::Fail,
                    _ => false,
                };
                if !is_no {
                    let promise = if channel == rig { "G7" } else { "G6" };
                    let what = answer.frame_type();
                    found.push(format!("{promise} carol: {what:?} of {channel}, no member of it"));
                }
            }
        }
        watched.listen(Duration::from_millis(50));
        let mut is_out = false;
        for (at, frame) in &watched.heard {
            let Some(routed) = frame.routed().filter(|routed| routed.channel == rig) else { continue };
            match frame.frame_type() {
                FrameType::Channel => {
                    is_out = frame.decode::<wire::ChannelState>()?.role == 0;
                    if *at > out + OUT_TIME {
                        found.push("G7 carol: heard of her removal after more than two seconds".to_owned());
                    }
                }
                FrameType::Deliver if routed.seq >= gone => {
                    found.push(format!("G7 carol: was given {}, removed by {gone}", routed.seq));
                }
                FrameType::Refused | FrameType::SendAck => {}
                other if is_out => {
                    found.push(format!("G7 carol: was given {other:?} of {rig} after her removal"));
                }
                _ => {}
            }
        }
        if !is_out {
            found.push("G7 carol: was not told of her removal".to_owned());
        }
        if watched.has_heard(&after) {
            found.push("G7 carol: what was said after her removal is among her bytes".to_owned());
        }
    }
    for channel in [rig, direct] {
        let token = scene.server.token("carol")?;
        let path = format!("/v1/channels/{}/messages", channel.0);
        let (status, page) =
            answer(http(scene, &token, "GET", &path, None)?).context("no answer over HTTP")?;
        let text = page.to_string();
        if status != 403 || [&before, &after, &private].iter().any(|canary| text.contains(*canary)) {
            found.push(format!(
                "G6 over HTTP: carol reads {channel}: {status} {}",
                &text[..text.len().min(80)]
            ));
        }
    }
    // She is taken in again: from that entry on, and nothing of the time between.
    for watched in &mut hers {
        watched.listen(Duration::from_millis(1));
        watched.heard.retain(|(_, frame)| frame.routed().is_none_or(|routed| routed.channel != rig));
    }
    let joined = alice.change(rig, wire::MembershipChange::Joined, carol)?;
    let last = alice.say(rig, &format!("{before} welcome back"))?;
    for watched in &mut hers {
        let until = Instant::now() + ANSWER_TIME;
        let seqs = loop {
            watched.listen(Duration::from_millis(20));
            let seqs: Vec<u64> = watched
                .heard
                .iter()
                .filter(|(_, frame)| frame.frame_type() == FrameType::Deliver)
                .filter_map(|(_, frame)| frame.routed())
                .filter(|routed| routed.channel == rig)
                .map(|routed| routed.seq)
                .collect();
            if seqs.last() == Some(&last) || Instant::now() > until {
                break seqs;
            }
        };
        if seqs != (joined..=last).collect::<Vec<u64>>() {
            found.push(format!("G8 carol: joined again by {joined} and was given {seqs:?}"));
        }
        let history = watched.connection.history(rig)?;
        let between = gone + 1..joined;
        if history.frames.keys().any(|seq| between.contains(seq)) {
            found.push(format!("G6 carol: pages what was said in {between:?}, when she was out"));
        }
        if watched.has_heard(&private) {
            found.push("G6 carol: what alice and bob said to each other is among her bytes".to_owned());
        }
    }
    Ok(())
}

/// Bob's devices are signed out: one, another's sessions, and then all that is his.
fn revoked(scene: &Scene, found: &mut Vec<String>) -> Result<()> {
    let address = scene.server.address();
    let mut his = Vec::new();
    for device in 21..25 {
        his.push(Watched::open(scene, "bob", device)?);
    }
    let token = scene.server.token("bob")?;
    let secrets: Vec<_> = his.iter().map(|watched| watched.connection.welcome.resume.clone()).collect();
    let steps: [(&[&str], std::ops::Range<usize>); 3] = [
        (&["device", "rm", "--user", "bob", "21"], 0..1),
        (&["session", "kick", "--user", "bob", "--device", "22"], 1..2),
        (&["user", "revoke", "bob"], 2..4),
    ];
    for (command, ends) in steps {
        scene.server.command(command)?;
        let out = Instant::now();
        while his[ends.clone()].iter().any(|watched| watched.ended.is_none()) && out.elapsed() < OUT_TIME {
            his[ends.clone()].iter_mut().for_each(|watched| watched.listen(Duration::from_millis(5)));
        }
        let alive = his[ends.clone()].iter().filter(|watched| watched.ended.is_none()).count();
        if alive > 0 {
            found.push(format!("G7 bob: {alive} sockets live two seconds after {command:?}"));
        }
        for other in &mut his[ends.end..] {
            other.listen(Duration::from_millis(5));
            if other.ended.is_some() {
                bail!("{command:?} ended a session that is none of its business");
            }
        }
    }
    for (place, secret) in secrets.iter().enumerate() {
        // Kicked is not revoked: but then all of his was.
        let device = 21 + place as u64;
        if Connection::resume(address, secret.clone(), device).is_ok() {
            found.push(format!("G7 bob: let in on {device} by a secret that was revoked"));
        }
    }
    if Connection::open(address, &token, 26).is_ok() {
        found.push("G7 bob: let in by a token that was revoked".to_owned());
    }
    let told = answer(http(scene, &token, "GET", "/v1/channels", None)?);
    if told.is_none_or(|(status, _)| status != 401) {
        found.push("G7 bob: served over HTTP by a token that was revoked".to_owned());
    }
    Ok(())
}
