//! Frames for many at once, which go out in slices: in their order, once, and behind what is for few.
#![allow(clippy::unwrap_used)]

mod kit;

use std::{collections::HashMap, net::TcpStream};

use fanfare_proto::{
    ChannelId, Frame, FrameType,
    frame::routed,
    header::class,
    link::{AudienceChange, Down, Handle, Tier, Tiers},
    wire,
};
use kit::{
    CHANNEL, House,
    blocking::{frames, session},
    router::entry,
};

const SMALL: ChannelId = ChannelId(8);

fn fanout(channel: ChannelId, tiers: Tiers, frames: bytes::Bytes) -> Down {
    Down::Fanout { channel, lanes: u64::MAX, tiers, frames }
}

fn notify(head: u64) -> bytes::Bytes {
    let body = wire::Head { head, ..Default::default() };
    routed(FrameType::Notify, class::STATE, 0, 0, CHANNEL, head, &body)
}

fn page(request: u64) -> bytes::Bytes {
    let body = wire::Page { complete: true, ..Default::default() };
    routed(FrameType::Page, class::HISTORY, 0, 0, CHANNEL, request, &body)
}

fn ack(number: u64) -> bytes::Bytes {
    let body = wire::SendAck { outcome: wire::Outcome::Ok.into(), ..Default::default() };
    routed(FrameType::SendAck, class::MESSAGE, 0, 0, CHANNEL, number, &body)
}

fn change(channel: ChannelId, change: AudienceChange) -> Down {
    Down::Audience { channel, changes: vec![change] }
}

/// Sessions of users 1 and up, all active in the channel.
fn sessions(house: &House, count: u64) -> Vec<(Handle, TcpStream)> {
    let sockets: Vec<TcpStream> = (1..=count).map(|user| session(house, user)).collect();
    let handles: HashMap<u64, Handle> =
        house.router.sessions.lock().values().map(|origin| (origin.user.0, origin.handle)).collect();
    (1..=count).map(|user| handles[&user]).zip(sockets).collect()
}

fn next(socket: &mut TcpStream, read: &mut Vec<Frame>) -> (FrameType, ChannelId, u64) {
    while read.is_empty() {
        read.extend(frames(socket).into_iter().rev());
    }
    let frame = read.pop().unwrap();
    let header = frame.routed().unwrap();
    (frame.frame_type(), header.channel, header.seq)
}

#[test]
fn what_is_for_few_does_not_wait_for_what_is_for_many() {
    let house = House::wide(|_| ());
    let mut sessions = sessions(&house, 300);
    // Who came first is served last, and is in the small channel, too.
    house.router.add(SMALL, sessions[0].0);
    for seq in 1..=40 {
        let text = "x".repeat(100);
        house.router.downs([
            fanout(CHANNEL, Tiers::AT_ONCE, entry(CHANNEL, seq, &text)),
            fanout(SMALL, Tiers::AT_ONCE, entry(SMALL, seq, &text)),
        ]);
        let (_, socket) = &mut sessions[0];
        let mut read = Vec::new();
        assert_eq!(next(socket, &mut read), (FrameType::Deliver, SMALL, seq));
        assert_eq!(next(socket, &mut read), (FrameType::Deliver, CHANNEL, seq));
    }
}

#[test]
fn who_sends_to_many_is_answered_when_they_have_it() {
    let house = House::wide(|_| ());
    let mut sessions = sessions(&house, 300);
    // Who came first is served last, and who came last first.
    let (_, mut last) = sessions.swap_remove(0);
    let (sender, mut socket) = sessions.pop().unwrap();
    for seq in 1..=40 {
        let entry = fanout(CHANNEL, Tiers::AT_ONCE, entry(CHANNEL, seq, "x"));
        house.router.downs([entry, Down::Reply { handle: sender, frames: ack(seq) }]);
        let mut read = Vec::new();
        while next(&mut socket, &mut read) != (FrameType::SendAck, CHANNEL, seq) {}
        last.set_nonblocking(true).unwrap();
        assert!(matches!(last.peek(&mut [0]), Ok(1..)), "it is not there at {seq}");
        last.set_nonblocking(false).unwrap();
        assert_eq!(next(&mut last, &mut Vec::new()), (FrameType::Deliver, CHANNEL, seq));
    }
}

#[test]
fn what_is_for_few_does_not_wait_with_an_answer() {
    let house = House::wide(|_| ());
    let mut sessions = sessions(&house, 300);
    let (_, mut last) = sessions.swap_remove(0);
    let (sender, mut socket) = sessions.pop().unwrap();
    house.router.add(SMALL, sender);
    let mut before_the_last = 0;
    for seq in 1..=100 {
        let downs = [
            fanout(CHANNEL, Tiers::AT_ONCE, entry(CHANNEL, seq, "x")),
            Down::Reply { handle: sender, frames: ack(seq) },
            fanout(SMALL, Tiers::AT_ONCE, entry(SMALL, seq, "x")),
        ];
        if seq % 2 == 0 {
            // It may come when the answer waits already.
            let [first, second, third] = downs;
            house.router.downs([first, second]);
            house.router.downs([third]);
        } else {
            house.router.downs(downs);
        }
        let mut read = Vec::new();
        let mut came = Vec::new();
        while !came.contains(&(FrameType::Deliver, SMALL, seq)) {
            came.push(next(&mut socket, &mut read));
        }
        last.set_nonblocking(true).unwrap();
        before_the_last += u32::from(seq % 2 == 1 && last.peek(&mut [0]).is_err());
        last.set_nonblocking(false).unwrap();
        came.extend((came.len()..3).map(|_| next(&mut socket, &mut read)));
        for one in [(FrameType::Deliver, CHANNEL, seq), (FrameType::SendAck, CHANNEL, seq)] {
            assert!(came.contains(&one), "{came:?}");
        }
        assert_eq!(next(&mut last, &mut Vec::new()), (FrameType::Deliver, CHANNEL, seq));
    }
    assert!(before_the_last > 0, "it came behind what is for many");
}

/// Members that come, go, are told something else or change their tier while much is on its way, against a list of what each was to get.
#[test]
fn what_is_for_many_comes_in_its_order_to_those_it_was_meant_for_once() {
    for seed in 0..6u64 {
        let mut random = seed;
        let mut pick = move |most: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % most
        };
        let house = House::wide(|_| ());
        let mut sessions = sessions(&house, 300);
        let mut tiers: Vec<Option<Tier>> = vec![Some(Tier::Active); sessions.len()];
        let mut meant: Vec<Vec<(FrameType, ChannelId, u64)>> = vec![Vec::new(); sessions.len()];
        let (mut head, mut small) = (0, 0);
        for round in 0..120 {
            let mut downs = Vec::new();
            for _ in 0..=pick(8) {
                let who = pick(sessions.len());
                match pick(if round % 40 < 20 { 8 } else { 4 }) {
                    0..=2 => {
                        head += 1;
                        let most = if pick(20) == 0 { 9_000 } else { 300 };
                        let text = "x".repeat(pick(most));
                        downs.push(fanout(CHANNEL, Tiers::AT_ONCE, entry(CHANNEL, head, &text)));
                        let at_once = tiers
                            .iter()
                            .enumerate()
                            .filter(|(_, tier)| **tier <= Some(Tier::Active) && tier.is_some());
                        at_once.for_each(|(who, _)| meant[who].push((FrameType::Deliver, CHANNEL, head)));
                    }
                    3 => {
                        downs.push(fanout(CHANNEL, Tiers::of(Tier::Passive), notify(head)));
                        let passive =
                            tiers.iter().enumerate().filter(|(_, tier)| **tier == Some(Tier::Passive));
                        passive.for_each(|(who, _)| meant[who].push((FrameType::Notify, CHANNEL, head)));
                    }
                    4 => {
                        let (frame_type, frames) = match pick(3) {
                            0 => (FrameType::Notify, notify(head)),
                            1 => (FrameType::Page, page(head)),
                            _ => (FrameType::SendAck, ack(head)),
                        };
                        downs.push(Down::Reply { handle: sessions[who].0, frames });
                        meant[who].push((frame_type, CHANNEL, head));
                    }
                    5 => {
                        downs.push(change(CHANNEL, AudienceChange::Remove(sessions[who].0)));
                        tiers[who] = None;
                    }
                    6 => {
                        let tier = [Tier::Visible, Tier::Active, Tier::Passive][pick(3)];
                        downs.push(change(CHANNEL, AudienceChange::Add(sessions[who].0, tier)));
                        tiers[who] = Some(tier);
                    }
                    _ => {
                        small += 1;
                        downs.push(change(SMALL, AudienceChange::Add(sessions[who].0, Tier::Active)));
                        downs.push(fanout(SMALL, Tiers::AT_ONCE, entry(SMALL, small, "y")));
                        downs.push(change(SMALL, AudienceChange::Remove(sessions[who].0)));
                        meant[who].push((FrameType::Deliver, SMALL, small));
                    }
                }
            }
            house.router.downs(downs);
            if pick(4) == 0 {
                // The lane comes some way with it.
                std::thread::yield_now();
            }
        }
        for (who, (_, socket)) in sessions.iter_mut().enumerate() {
            let mut read = Vec::new();
            let had: Vec<_> = meant[who].iter().map(|_| next(socket, &mut read)).collect();
            assert!(read.is_empty(), "seed {seed}, {who}: more than was meant");
            // Channels have no order among each other, and answers to sends none with entries.
            for (channel, is_ack) in [(CHANNEL, false), (CHANNEL, true), (SMALL, false)] {
                let of = |frames: &[(FrameType, ChannelId, u64)]| -> Vec<_> {
                    let is_of = |frame: &&(FrameType, ChannelId, u64)| {
                        frame.1 == channel && (frame.0 == FrameType::SendAck) == is_ack
                    };
                    frames.iter().filter(is_of).copied().collect()
                };
                assert_eq!(of(&had), of(&meant[who]), "seed {seed}, {who}");
            }
        }
    }
}
