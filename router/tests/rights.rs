//! Rights beyond roles: mute, ban, invitations, requests, settings and blocks, each over a restart.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code, FrameType, UserId,
    frame::routed,
    header::class,
    wire::{self, MembershipChange as Change},
};
use fanfare_storage::model::MarkKind;
use support::{House, code, gateway::Session, id_at, membership, new_id, now_ms, text, whole};

const HOUR_MS: u64 = 3_600_000;

/// A house whose clock is ahead by what the number says.
async fn ahead(folder: Arc<tempfile::TempDir>, by_ms: &Arc<AtomicU64>) -> House {
    let by_ms = Arc::clone(by_ms);
    let clock = move || now_ms() + by_ms.load(Ordering::Relaxed);
    House::with(folder, |config| config.clock = Arc::new(clock)).await
}

async fn ack(session: &mut Session, channel: ChannelId, content: wire::send::Content) -> Result<u64, Code> {
    let ack = session.send(channel, content).await;
    match ack.outcome() {
        wire::Outcome::Ok => Ok(ack.seq),
        _ => Err(code(ack.code)),
    }
}

async fn change(
    session: &mut Session,
    channel: ChannelId,
    change: Change,
    users: &[UserId],
) -> Result<(), Code> {
    ack(session, channel, membership(change, users)).await.map(drop)
}

fn until(change: Change, user: UserId, until_ms: u64) -> wire::send::Content {
    let users = vec![user.0];
    wire::send::Content::Membership(wire::Membership { change: change.into(), users, until_ms, role: 0 })
}

fn settings(join: wire::JoinPolicy, posting: wire::PostingPolicy) -> wire::send::Content {
    let (join, posting) = (join.into(), posting.into());
    wire::send::Content::ChannelChange(wire::ChannelChange { join, posting, ..Default::default() })
}

fn reaction(target: u64) -> wire::send::Content {
    wire::send::Content::Reaction(wire::Reaction { target, emoji: "+1".into(), remove: false })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_muted_says_nothing_until_it_is_lifted() {
    let house = House::new().await;
    let users = house.users(3).await;
    let channel = house.group(users[0], &users[1..]).await;
    let (mut owner, mut member) = (house.session(users[0], 1).await, house.session(users[1], 1).await);
    let said = ack(&mut member, channel, text("before")).await.unwrap();
    assert_eq!(change(&mut member, channel, Change::Muted, &[users[2]]).await, Err(Code::FORBIDDEN));
    assert_eq!(change(&mut owner, channel, Change::Muted, &[users[1]]).await, Ok(()));
    let told = member.frame(FrameType::Channel).await;
    let told: wire::ChannelState = told.decode().unwrap();
    assert_eq!((told.muted, told.muted_until_ms, told.role), (true, 0, 1));
    assert_eq!(change(&mut owner, channel, Change::Muted, &[users[1]]).await, Err(Code::NO_CHANGE));
    assert_eq!(ack(&mut member, channel, text("muted")).await, Err(Code::MUTED));
    assert_eq!(ack(&mut member, channel, reaction(said)).await, Err(Code::MUTED));
    // Taking back one's own words stays possible, and coming back does not end a mute.
    let recall = wire::send::Content::Recall(wire::Recall { target: said });
    assert!(ack(&mut member, channel, recall).await.is_ok());
    assert_eq!(change(&mut member, channel, Change::Left, &[]).await, Ok(()));
    assert_eq!(change(&mut owner, channel, Change::Joined, &[users[1]]).await, Ok(()));
    let mut house = house.restart().await;
    let (mut owner, mut member) = (house.session(users[0], 1).await, house.session(users[1], 1).await);
    assert_eq!(ack(&mut member, channel, text("muted")).await, Err(Code::MUTED));
    let over = until(Change::Muted, users[1], now_ms() - 1);
    assert_eq!(ack(&mut owner, channel, over).await, Err(Code::BAD_FIELD));
    assert_eq!(change(&mut owner, channel, Change::Unmuted, &[users[1]]).await, Ok(()));
    assert_eq!(change(&mut owner, channel, Change::Unmuted, &[users[1]]).await, Err(Code::NO_CHANGE));
    assert!(ack(&mut member, channel, text("again")).await.is_ok());
    // A mute ends by itself.
    let soon = until(Change::Muted, users[1], now_ms() + 300);
    assert!(ack(&mut owner, channel, soon).await.is_ok());
    let mut refused = 0;
    while ack(&mut member, channel, text("soon")).await.is_err() {
        refused += 1;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(refused > 0);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_banned_is_out_and_stays_out() {
    let house = House::new().await;
    let users = house.users(4).await;
    let channel = house.group(users[0], &users[1..3]).await;
    let (mut owner, mut admin) = (house.session(users[0], 1).await, house.session(users[1], 1).await);
    let (mut member, mut stranger) = (house.session(users[2], 1).await, house.session(users[3], 1).await);
    let open = settings(wire::JoinPolicy::OpenToAll, wire::PostingPolicy::PostingDefault);
    assert!(ack(&mut owner, channel, open).await.is_ok());
    let promote = wire::Membership {
        change: Change::RoleChanged.into(),
        users: vec![users[1].0],
        role: wire::Role::Admin.into(),
        until_ms: 0,
    };
    assert!(ack(&mut owner, channel, wire::send::Content::Membership(promote)).await.is_ok());
    assert_eq!(change(&mut member, channel, Change::Banned, &[users[3]]).await, Err(Code::FORBIDDEN));
    assert_eq!(change(&mut admin, channel, Change::Banned, &[users[0]]).await, Err(Code::FORBIDDEN));
    assert_eq!(change(&mut owner, channel, Change::Banned, &[users[0]]).await, Err(Code::LAST_OWNER));
    assert_eq!(change(&mut admin, channel, Change::Banned, &[UserId(77)]).await, Err(Code::NO_SUCH_USER));
    // A member and a stranger, in one entry.
    assert_eq!(change(&mut admin, channel, Change::Banned, &users[2..]).await, Ok(()));
    let told: wire::ChannelState = loop {
        let told: wire::ChannelState = member.frame(FrameType::Channel).await.decode().unwrap();
        if told.role == 0 {
            break told;
        }
    };
    assert_eq!(told.channel, channel.0);
    assert_eq!(ack(&mut member, channel, text("still here")).await, Err(Code::NOT_A_MEMBER));
    let mut house = {
        drop((owner, admin, member, stranger));
        house.restart().await
    };
    let (mut owner, mut member) = (house.session(users[0], 1).await, house.session(users[2], 1).await);
    stranger = house.session(users[3], 1).await;
    assert_eq!(change(&mut member, channel, Change::Joined, &[users[2]]).await, Err(Code::BANNED));
    assert_eq!(change(&mut stranger, channel, Change::Joined, &[users[3]]).await, Err(Code::BANNED));
    assert_eq!(change(&mut owner, channel, Change::Joined, &[users[2]]).await, Err(Code::BANNED));
    assert_eq!(change(&mut owner, channel, Change::Invited, &[users[3]]).await, Err(Code::BANNED));
    assert_eq!(change(&mut owner, channel, Change::Unbanned, &[users[3]]).await, Ok(()));
    assert_eq!(change(&mut stranger, channel, Change::Joined, &[users[3]]).await, Ok(()));
    assert_eq!(change(&mut member, channel, Change::Joined, &[users[2]]).await, Err(Code::BANNED));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_opens_by_invitation_or_by_request() {
    let by_ms = Arc::default();
    let house = ahead(Arc::new(tempfile::tempdir().unwrap()), &by_ms).await;
    let users = house.users(4).await;
    let channel = house.group(users[0], &users[1..2]).await;
    let (mut owner, mut member) = (house.session(users[0], 1).await, house.session(users[1], 1).await);
    let (mut one, mut two) = (house.session(users[2], 1).await, house.session(users[3], 1).await);
    let admin = house.router().admin();
    // Closed: who is outside cannot tell it from one that is not there.
    for knock in [Change::Joined, Change::Requested, Change::Declined] {
        assert_eq!(change(&mut one, channel, knock, &[users[2]]).await, Err(Code::NOT_A_MEMBER));
    }
    assert_eq!(change(&mut member, channel, Change::Invited, &[users[2]]).await, Err(Code::FORBIDDEN));
    assert_eq!(change(&mut owner, channel, Change::Invited, &users[2..]).await, Ok(()));
    for session in [&mut one, &mut two] {
        let told: wire::ChannelState = session.frame(FrameType::Channel).await.decode().unwrap();
        assert_eq!((told.invited, told.role, told.head, told.name.as_str()), (true, 0, 0, "group"));
    }
    assert_eq!(admin.invitations(users[2], ChannelId(0), 10).await.unwrap(), [(channel, "group".to_owned())]);
    // One is for the invited alone, and counts once.
    assert_eq!(change(&mut two, channel, Change::Declined, &[]).await, Ok(()));
    assert_eq!(change(&mut two, channel, Change::Joined, &[users[3]]).await, Err(Code::NOT_A_MEMBER));
    assert_eq!(change(&mut one, channel, Change::Joined, &[users[3]]).await, Err(Code::NOT_A_MEMBER));
    assert_eq!(change(&mut one, channel, Change::Joined, &[users[2]]).await, Ok(()));
    assert_eq!(change(&mut one, channel, Change::Left, &[]).await, Ok(()));
    assert_eq!(change(&mut one, channel, Change::Joined, &[users[2]]).await, Err(Code::NOT_A_MEMBER));
    assert!(admin.invitations(users[2], ChannelId(0), 10).await.unwrap().is_empty());

    let by_request = settings(wire::JoinPolicy::ByRequest, wire::PostingPolicy::PostingDefault);
    assert!(ack(&mut owner, channel, by_request).await.is_ok());
    assert_eq!(change(&mut two, channel, Change::Joined, &[users[3]]).await, Err(Code::NOT_A_MEMBER));
    // Not at once after turning an invitation down.
    assert_eq!(change(&mut two, channel, Change::Requested, &[]).await, Err(Code::FORBIDDEN));
    assert_eq!(change(&mut owner, channel, Change::Invited, &[users[3]]).await, Err(Code::FORBIDDEN));
    by_ms.store(HOUR_MS, Ordering::Relaxed);
    assert_eq!(change(&mut two, channel, Change::Requested, &[]).await, Ok(()));
    assert_eq!(change(&mut two, channel, Change::Requested, &[]).await, Err(Code::NO_CHANGE));
    assert_eq!(ack(&mut two, channel, text("let me in")).await, Err(Code::NOT_A_MEMBER));
    assert_eq!(change(&mut two, channel, Change::Joined, &[users[3]]).await, Err(Code::NOT_A_MEMBER));
    drop((owner, member, one, two));
    let mut house = {
        let folder = house.folder.clone();
        let mut house = house;
        house.stop().await;
        drop(house);
        ahead(folder, &by_ms).await
    };
    let mut owner = house.session(users[0], 1).await;
    let (role, marks) = house.router().admin().marks(channel, users[0]).await.unwrap().unwrap();
    assert_eq!(role, 3);
    let kinds: Vec<_> = marks.iter().map(|mark| (mark.user, mark.kind)).collect();
    assert_eq!(kinds, [(users[3], MarkKind::Requested), (users[3], MarkKind::Declined)]);
    assert_eq!(change(&mut owner, channel, Change::Joined, &[users[3]]).await, Ok(()));
    let (_, marks) = house.router().admin().marks(channel, users[0]).await.unwrap().unwrap();
    assert_eq!(marks.iter().map(|mark| mark.kind).collect::<Vec<_>>(), [MarkKind::Declined]);
    let mut two = house.session(users[3], 1).await;
    assert!(ack(&mut two, channel, text("thank you")).await.is_ok());
    // A second request, turned down.
    let mut one = house.session(users[2], 1).await;
    assert_eq!(change(&mut one, channel, Change::Requested, &[]).await, Ok(()));
    assert_eq!(change(&mut two, channel, Change::Declined, &[users[2]]).await, Err(Code::FORBIDDEN));
    assert_eq!(change(&mut owner, channel, Change::Declined, &[users[2]]).await, Ok(()));
    assert_eq!(change(&mut owner, channel, Change::Declined, &[users[2]]).await, Err(Code::NO_CHANGE));
    house.stop().await;
}

/// Once more the same send, long after its first attempt, and where it stands.
async fn again(session: &mut Session, channel: ChannelId, id: ClientMessageId, change: Change) -> u64 {
    let ack = session.send_as(channel, id, membership(change, &[]), Some((id.time_ms(), id.time_ms()))).await;
    assert_eq!((ack.outcome(), ack.repeated_send), (wire::Outcome::Ok, true), "{ack:?}");
    ack.seq
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_came_in_is_told_what_became_of_a_send() {
    let by_ms = Arc::default();
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut house = ahead(folder.clone(), &by_ms).await;
    let users = house.users(3).await;
    let channel = house.group(users[0], &[]).await;
    let (mut owner, mut one) = (house.session(users[0], 1).await, house.session(users[1], 1).await);
    let mut two = house.session(users[2], 1).await;
    let by_request = settings(wire::JoinPolicy::ByRequest, wire::PostingPolicy::PostingDefault);
    assert!(ack(&mut owner, channel, by_request).await.is_ok());
    assert_eq!(change(&mut owner, channel, Change::Invited, &[users[1]]).await, Ok(()));
    let (declined, asked) = (new_id(), new_id());
    let first = one.send_as(channel, declined, membership(Change::Declined, &[]), None).await.seq;
    let second = two.send_as(channel, asked, membership(Change::Requested, &[]), None).await.seq;
    assert!(first > 0 && second > first);
    assert_eq!(change(&mut owner, channel, Change::Declined, &[users[2]]).await, Ok(()));
    let closed = settings(wire::JoinPolicy::ByInvitation, wire::PostingPolicy::PostingDefault);
    assert!(ack(&mut owner, channel, closed).await.is_ok());
    // Enough behind it that loading does not read it back, and everything kept in memory is forgotten.
    for number in 0..300 {
        owner.say(channel, &format!("{number}")).await;
    }
    drop((owner, one, two));
    house.stop().await;
    drop(house);
    by_ms.store(2 * HOUR_MS, Ordering::Relaxed);
    let mut house = ahead(folder, &by_ms).await;
    let (mut one, mut two) = (house.session(users[1], 1).await, house.session(users[2], 1).await);
    assert_eq!(again(&mut one, channel, declined, Change::Declined).await, first);
    assert_eq!(again(&mut two, channel, asked, Change::Requested).await, second);
    assert_eq!(change(&mut one, channel, Change::Declined, &[]).await, Err(Code::NOT_A_MEMBER));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_whose_time_is_over_are_taken_away() {
    let by_ms = Arc::default();
    let mut house = ahead(Arc::new(tempfile::tempdir().unwrap()), &by_ms).await;
    let users = house.users(4).await;
    let channel = house.group(users[0], &users[1..]).await;
    let mut owner = house.session(users[0], 1).await;
    for user in &users[1..3] {
        let soon = until(Change::Muted, *user, now_ms() + 60_000);
        assert!(ack(&mut owner, channel, soon).await.is_ok());
    }
    by_ms.store(120_000, Ordering::Relaxed);
    assert_eq!(change(&mut owner, channel, Change::Unmuted, &[users[1]]).await, Err(Code::NO_CHANGE));
    assert_eq!(change(&mut owner, channel, Change::Muted, &[users[2], users[3]]).await, Ok(()));
    let stored = support::metadata(&house).marks(channel).unwrap();
    let mut left = users[2..].to_vec();
    left.sort_unstable();
    assert_eq!(stored.iter().map(|mark| mark.user).collect::<Vec<_>>(), left);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_not_there_answers_like_one_of_others() {
    let mut house = House::new().await;
    let users = house.users(2).await;
    let others = house.group(users[0], &[]).await;
    let absent = ChannelId(others.0 + 1);
    let mut stranger = house.session(users[1], 1).await;
    let old = now_ms() - 8 * 24 * HOUR_MS;
    let mut seen = Vec::new();
    for channel in [others, absent] {
        let mut codes = Vec::new();
        for (id, content) in [
            (new_id(), text("plain")),
            (id_at(old), text("old")),
            (id_at(now_ms() + HOUR_MS), text("ahead")),
            (new_id(), text("")),
            (new_id(), reaction(0)),
            (new_id(), membership(Change::Requested, &[])),
            (new_id(), membership(Change::Joined, &[users[0]])),
            (new_id(), settings(wire::JoinPolicy::OpenToAll, wire::PostingPolicy::PostingDefault)),
        ] {
            let ack = stranger.send_as(channel, id, content, None).await;
            assert_eq!(ack.client_message_id, id.0[..]);
            codes.push(ack.code);
        }
        codes.push(stranger.fetch(channel, &wire::Fetch::default()).await.unwrap_err().0.into());
        for receipt in [vec![], vec![wire::Cursor::default()]] {
            let receipt = wire::Receipt { cursors: receipt };
            stranger.up(whole(routed(FrameType::Receipt, class::STATE, 0, 0, channel, 0, &receipt))).await;
            codes.push(stranger.frame(FrameType::Error).await.decode::<wire::Error>().unwrap().code);
        }
        seen.push(codes);
    }
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].contains(&Code::EXPIRED.0.into()));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_may_be_for_admins_to_post_in() {
    let mut house = House::new().await;
    let users = house.users(2).await;
    let channel = house.group(users[0], &users[1..]).await;
    let (mut owner, mut member) = (house.session(users[0], 1).await, house.session(users[1], 1).await);
    let mine = ack(&mut member, channel, text("mine")).await.unwrap();
    let news = settings(wire::JoinPolicy::JoinDefault, wire::PostingPolicy::AdminsOnly);
    assert_eq!(ack(&mut member, channel, news.clone()).await, Err(Code::FORBIDDEN));
    assert!(ack(&mut owner, channel, news.clone()).await.is_ok());
    assert_eq!(ack(&mut owner, channel, news).await, Err(Code::NO_CHANGE));
    assert_eq!(ack(&mut member, channel, text("no")).await, Err(Code::FORBIDDEN));
    let edit =
        wire::Edit { target: mine, message: Some(wire::Message { text: "e".into(), ..Default::default() }) };
    assert_eq!(ack(&mut member, channel, wire::send::Content::Edit(edit)).await, Err(Code::FORBIDDEN));
    assert!(ack(&mut member, channel, reaction(mine)).await.is_ok());
    assert!(ack(&mut owner, channel, text("news")).await.is_ok());
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_has_a_direction_and_counts_at_once() {
    let house = House::new().await;
    let users = house.users(3).await;
    let (one, other) = (users[0], users[1]);
    let admin = house.router().admin();
    // Before there is a channel.
    admin.block(one, other, true).await.unwrap();
    assert_eq!(admin.open_direct(other, one, support::new_id()).await, Err(Code::BLOCKED));
    let channel = admin.open_direct(one, other, support::new_id()).await.unwrap();
    let group = house.group(one, &[other]).await;
    let (mut by_one, mut by_other) = (house.session(one, 1).await, house.session(other, 1).await);
    assert_eq!(ack(&mut by_other, channel, text("hello?")).await, Err(Code::BLOCKED));
    let said = ack(&mut by_one, channel, text("I may")).await.unwrap();
    assert_eq!(ack(&mut by_other, channel, reaction(said)).await, Err(Code::BLOCKED));
    assert!(ack(&mut by_other, group, text("groups go on")).await.is_ok());
    // Typing is dropped without a word: what comes next is the message.
    let typing = wire::Typing { user: 0, stopped: false };
    by_other.up(whole(routed(FrameType::Typing, 4, 0, 0, channel, 0, &typing))).await;
    admin.block(one, other, false).await.unwrap();
    assert!(ack(&mut by_other, channel, text("now")).await.is_ok());
    loop {
        let given = by_one.next().await;
        let support::gateway::Given::Frame(frame) = given else { continue };
        assert_ne!(frame.frame_type(), FrameType::Typing);
        if frame.frame_type() == FrameType::Deliver
            && frame.routed().is_some_and(|header| header.channel == channel && header.seq > said)
        {
            break;
        }
    }
    admin.block(one, other, true).await.unwrap();
    assert_eq!(ack(&mut by_other, channel, text("and again")).await, Err(Code::BLOCKED));
    assert_eq!(admin.block(one, one, true).await, Err(Code::BAD_FIELD));
    assert_eq!(admin.block(one, UserId(99), true).await, Err(Code::NO_SUCH_USER));
    drop((by_one, by_other));
    let mut house = house.restart().await;
    assert_eq!(house.router().admin().blocks(one).await.unwrap(), [other]);
    let mut by_other = house.session(other, 1).await;
    assert_eq!(ack(&mut by_other, channel, text("after a restart")).await, Err(Code::BLOCKED));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_one_blocks_may_not_bring_one_in() {
    let mut house = House::new().await;
    let users = house.users(3).await;
    let admin = house.router().admin();
    let channel = house.group(users[0], &[users[1]]).await;
    let mut owner = house.session(users[0], 1).await;
    admin.block(users[2], users[0], true).await.unwrap();
    for change_of in [Change::Joined, Change::Invited] {
        assert_eq!(change(&mut owner, channel, change_of, &[users[2]]).await, Err(Code::BLOCKED));
    }
    // Who was a member and left decides so, too; who is one stays one.
    let mut member = house.session(users[1], 1).await;
    admin.block(users[1], users[0], true).await.unwrap();
    assert!(ack(&mut member, channel, text("here")).await.is_ok());
    assert_eq!(change(&mut member, channel, Change::Left, &[]).await, Ok(()));
    assert_eq!(change(&mut owner, channel, Change::Joined, &[users[1]]).await, Err(Code::BLOCKED));
    admin.block(users[2], users[0], false).await.unwrap();
    assert_eq!(change(&mut owner, channel, Change::Joined, &[users[2]]).await, Ok(()));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_last_of_a_block_counts() {
    let mut house = House::new().await;
    let users = house.users(2).await;
    let (one, other) = (users[0], users[1]);
    let admin = house.router().admin();
    let channel = admin.open_direct(one, other, new_id()).await.unwrap();
    let mut by_other = house.session(other, 1).await;
    for _ in 0..100 {
        let set = |stands| {
            let admin = house.router().admin();
            tokio::spawn(async move { admin.block(one, other, stands).await })
        };
        for task in [set(true), set(false), set(true), set(false)] {
            task.await.unwrap().unwrap();
        }
        let stands = support::metadata(&house).is_blocked(one, other).unwrap();
        assert_eq!(ack(&mut by_other, channel, text("hello?")).await == Err(Code::BLOCKED), stands);
    }
    house.stop().await;
}
