//! Conversations: what members see of each other, in order, through joins, leaves, restarts and failures.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod support;

use std::sync::Arc;

use fanfare_proto::{
    ChannelId, Code, DeviceId, FrameType, UserId,
    frame::{routed, short},
    link::Proof,
    wire,
};
use fanfare_storage::model::User;
use support::{
    House, code, faulty::Fault, gateway::frames_of, id_at, membership, new_id, now_ms, sync_frame, text,
    text_of, whole,
};

#[tokio::test(flavor = "multi_thread")]
async fn everybody_sees_the_same_order_the_sender_too() {
    let mut house = House::new().await;
    let users = house.users(3).await;
    let mut one = house.session(users[0], 1).await;
    let mut two = house.session(users[1], 1).await;
    let channel = house.group(users[0], &users[1..]).await;
    let state: wire::ChannelState = one.frame(FrameType::Channel).await.decode().unwrap();
    assert_eq!((state.channel, state.role, state.position), (channel.0, 3, 0));
    assert_eq!(one.entry(channel).await.0, 1);
    assert_eq!(one.entry(channel).await.0, 2);
    // G8: the first entry of one who was added is the entry that added it.
    assert_eq!(two.entry(channel).await.0, 2);
    assert_eq!(one.say(channel, "hello").await, 3);
    assert_eq!(two.say(channel, "hi").await, 4);
    for session in [&mut one, &mut two] {
        let (seq, entry) = session.entry(channel).await;
        assert_eq!((seq, text_of(&entry).as_str(), entry.ordinal, entry.sender), (3, "hello", 1, users[0].0));
        let (seq, entry) = session.entry(channel).await;
        assert_eq!((seq, text_of(&entry).as_str(), entry.ordinal), (4, "hi", 2));
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_has_one_effect_also_after_a_restart() {
    let house = House::new().await;
    let users = house.users(2).await;
    let channel = house.group(users[0], &users[1..]).await;
    let mut one = house.session(users[0], 1).await;
    let id = new_id();
    let first = one.send_as(channel, id, text("once"), None).await;
    let again = one.send_as(channel, id, text("once"), Some((now_ms(), now_ms()))).await;
    assert_eq!((again.outcome(), again.seq, again.repeated_send), (wire::Outcome::Ok, first.seq, true));
    assert_eq!(again.message_id, first.message_id);
    let other = one.send_as(channel, id, text("twice"), None).await;
    assert_eq!((other.outcome(), code(other.code)), (wire::Outcome::Fail, Code::CONFLICT));
    // The same content under another id is another message.
    assert_ne!(one.say(channel, "once").await, first.seq);
    let sent_ms = now_ms();
    // So many more that the id is not in the tail when the channel is loaded again.
    for number in 0..300 {
        one.say(channel, &format!("filler {number}")).await;
    }
    let mut house = house.restart().await;
    let mut one = house.session(users[0], 1).await;
    let again = one.send_as(channel, id, text("once"), Some((sent_ms, sent_ms))).await;
    assert_eq!(
        (again.outcome(), again.seq, again.repeated_send),
        (wire::Outcome::Ok, first.seq, true),
        "{again:?}"
    );
    let again = one.send_as(channel, id, text("other"), Some((sent_ms, sent_ms))).await;
    assert_eq!(code(again.code), Code::CONFLICT);
    let old = one.send_as(channel, id_at(now_ms() - 8 * 24 * 3_600_000), text("old"), None).await;
    assert_eq!(code(old.code), Code::EXPIRED);
    let ahead = one.send_as(channel, id_at(now_ms() + 200_000), text("ahead"), None).await;
    assert_eq!(code(ahead.code), Code::CLIENT_ID_AHEAD);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_content_does_not_become_what_an_old_id_stands_for() {
    let house = House::new().await;
    let users = house.users(2).await;
    let channel = house.group(users[0], &users[1..]).await;
    let mut one = house.session(users[0], 1).await;
    let (id, sent_ms) = (new_id(), now_ms());
    let first = one.send_as(channel, id, text("once"), None).await;
    for number in 0..300 {
        one.say(channel, &format!("filler {number}")).await;
    }
    // Twenty minutes later the id stands in the stores alone.
    let mut house = house.restart_with(|config| config.clock = Arc::new(|| now_ms() + 20 * 60_000)).await;
    let mut one = house.session(users[0], 1).await;
    for _ in 0..2 {
        let other = one.send_as(channel, id, text("twice"), Some((sent_ms, sent_ms))).await;
        assert_eq!(code(other.code), Code::CONFLICT);
    }
    let again = one.send_as(channel, id, text("once"), Some((sent_ms, sent_ms))).await;
    assert_eq!((again.outcome(), again.seq, again.repeated_send), (wire::Outcome::Ok, first.seq, true));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_store_are_told_as_they_are() {
    let mut house = House::new().await;
    let users = house.users(2).await;
    let channel = house.group(users[0], &users[1..]).await;
    let mut one = house.session(users[0], 1).await;
    let mut two = house.session(users[1], 1).await;
    house.faulty.next([Fault::Full]);
    let id = new_id();
    let ack = one.send_as(channel, id, text("no room"), None).await;
    assert_eq!((ack.outcome(), code(ack.code)), (wire::Outcome::Fail, Code::READ_ONLY));
    assert!(house.router().admin().status().await.unwrap().read_only);
    house.faulty.next([Fault::Unavailable]);
    let ack = one.send_as(channel, id, text("no room"), None).await;
    assert_eq!((ack.outcome(), code(ack.code)), (wire::Outcome::Fail, Code::RETRY_LATER));
    let ack = one.send_as(channel, id, text("no room"), None).await;
    assert_eq!((ack.outcome(), ack.seq), (wire::Outcome::Ok, 3));
    assert!(!house.router().admin().status().await.unwrap().read_only);
    assert_eq!(two.entry(channel).await.0, 3);

    for (fault, seq) in [(Fault::UnknownBefore, 4), (Fault::UnknownAfter, 5)] {
        house.faulty.blind.store(true, std::sync::atomic::Ordering::SeqCst);
        house.faulty.next([fault]);
        let id = new_id();
        let ack = one.send_as(channel, id, text("who knows"), None).await;
        assert_eq!(ack.outcome(), wire::Outcome::Unknown);
        let again = one.send_as(channel, id, text("who knows"), None).await;
        assert_eq!(again.outcome(), wire::Outcome::Unknown);
        let other = one.send(channel, text("something else")).await;
        assert_eq!((other.outcome(), code(other.code)), (wire::Outcome::Fail, Code::RETRY_LATER));
        house.faulty.blind.store(false, std::sync::atomic::Ordering::SeqCst);
        // Repeating until it is known has exactly one effect.
        let ack = loop {
            let ack = one.send_as(channel, id, text("who knows"), Some((now_ms(), now_ms()))).await;
            if ack.outcome() == wire::Outcome::Ok {
                break ack;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(ack.seq, seq);
        assert_eq!(two.entry(channel).await.0, seq);
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_removed_gets_nothing_more_and_who_joins_begins_with_that_entry() {
    let mut house = House::new().await;
    let users = house.users(4).await;
    let channel = house.group(users[0], &users[1..3]).await;
    let mut owner = house.session(users[0], 1).await;
    let mut two = house.session(users[1], 1).await;
    let mut four = house.session(users[3], 1).await;
    let refused = four.send(channel, text("let me in")).await;
    assert_eq!(code(refused.code), Code::NOT_A_MEMBER);
    owner.say(channel, "before").await;
    let ack = owner.send(channel, membership(wire::MembershipChange::Removed, &[users[1]])).await;
    assert_eq!(ack.outcome(), wire::Outcome::Ok);
    let removal = ack.seq;
    assert_eq!(text_of(&two.entry(channel).await.1), "before");
    let state: wire::ChannelState = two.frame(FrameType::Channel).await.decode().unwrap();
    assert_eq!((state.channel, state.role), (channel.0, 0));
    let after = owner.say(channel, "after").await;
    assert_eq!(code(two.send(channel, text("still here?")).await.code), Code::NOT_A_MEMBER);
    let fetch = wire::Fetch { messages_max: 10, ..Default::default() };
    assert_eq!(two.fetch(channel, &fetch).await.unwrap_err(), Code::NOT_A_MEMBER);
    assert!(two.now().is_none(), "nothing of the channel comes after the removal");
    // Joining again: the first entry is the one that lists the user, what lies between is hidden.
    let ack = owner.send(channel, membership(wire::MembershipChange::Joined, &[users[1], users[3]])).await;
    let joined = ack.seq;
    assert_eq!(joined, after + 1);
    for session in [&mut two, &mut four] {
        let state: wire::ChannelState = session.frame(FrameType::Channel).await.decode().unwrap();
        assert_eq!((state.role, state.position, state.visible_from), (1, joined - 1, joined));
        assert_eq!(session.entry(channel).await.0, joined);
    }
    let last = owner.say(channel, "welcome").await;
    assert_eq!(two.entry(channel).await.0, last);
    assert_eq!(four.entry(channel).await.0, last);
    let seqs: Vec<u64> = two.history(channel, 0).await.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(seqs, [vec![2, 3], vec![removal, joined, last]].concat());
    let pages = four.fetch(channel, &fetch).await.unwrap();
    assert_eq!(pages.len(), 1);
    assert_eq!((pages[0].first, pages[0].last, pages[0].complete), (1, last, true));
    assert_eq!(pages[0].hidden, [wire::SeqRange { first: 1, last: joined - 1 }]);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_from_where_it_stood() {
    let house = House::new().await;
    let users = house.users(2).await;
    let channel = house.group(users[0], &users[1..]).await;
    let mut one = house.session(users[0], 1).await;
    let two = house.session(users[1], 1).await;
    one.say(channel, "a").await;
    two.close().await;
    for word in ["b", "c", "d"] {
        one.say(channel, word).await;
    }
    let mut two = house.open(users[1], 1).await;
    let answer = two.sync(&[(channel, 1, 3)]).await;
    assert_eq!(
        (answer.states.len(), answer.total, answer.states[0].position, answer.states[0].head),
        (1, 1, 3, 6)
    );
    let texts: Vec<String> = answer.entries.iter().map(|(_, _, entry)| text_of(entry)).collect();
    assert_eq!(texts, ["b", "c", "d"]);
    one.say(channel, "live").await;
    assert_eq!(two.entry(channel).await.0, 7);
    // Again on the same session: everything was sent, so nothing comes twice.
    assert!(two.sync(&[]).await.entries.is_empty());
    // Outside the window: GAP, and live all the same.
    two.close().await;
    // Newest activity is told by milliseconds.
    let since = now_ms();
    while now_ms() <= since + 1 {
        tokio::task::yield_now().await;
    }
    let other = house.group(users[0], &users[1..]).await;
    let mut two = house.open(users[1], 2).await;
    let answer = two.sync_within(&[(channel, 1, 3), (other, 1, 1)], 1).await;
    assert_eq!(answer.states.iter().map(|state| state.channel).collect::<Vec<_>>(), [other.0, channel.0]);
    assert_eq!(answer.gaps.len(), 1);
    let (of, gap) = &answer.gaps[0];
    assert_eq!((*of, gap.after, gap.head), (channel, 3, 7));
    one.say(channel, "more").await;
    assert_eq!(two.entry(channel).await.0, 8);
    // The same after a restart, from the stores.
    let mut house = house.restart().await;
    let mut two = house.open(users[1], 2).await;
    let answer = two.sync(&[(channel, 1, 5), (other, 1, 2)]).await;
    let seqs: Vec<u64> = answer.entries.iter().map(|(_, seq, _)| *seq).collect();
    assert_eq!(seqs, [6, 7, 8]);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_are_confirmed_when_written_and_kept() {
    let mut house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        config.cursors_every = std::time::Duration::from_millis(20);
    })
    .await;
    let users = house.users(2).await;
    let channel = house.group(users[0], &users[1..]).await;
    let mut one = house.session(users[0], 1).await;
    let mut two = house.session(users[1], 7).await;
    for word in ["a", "b", "c"] {
        one.say(channel, word).await;
    }
    let ack =
        wire::Ack { number: 1, positions: vec![wire::Position { channel: channel.0, epoch: 1, seq: 4 }] };
    two.up(whole(short(FrameType::Ack, 0, &ack))).await;
    let confirmed = two
        .wait_for(|given| match given {
            support::gateway::Given::Confirmed(number) => Some(*number),
            _ => None,
        })
        .await;
    assert_eq!(confirmed, 1);
    two.close().await;
    let mut two = house.open(users[1], 7).await;
    assert_eq!(two.opened.as_ref().unwrap().acks_confirmed, 1);
    let answer = two.sync(&[]).await;
    assert_eq!(answer.states[0].position, 4);
    assert_eq!(answer.entries.iter().map(|(_, seq, _)| *seq).collect::<Vec<_>>(), [5]);
    // Delivered follows from the ACK; read by a receipt; both are shown when written.
    let receipt =
        wire::Receipt { cursors: vec![wire::Cursor { user: 0, delivered: 99, read: 5, read_ordinal: 3 }] };
    two.up(whole(routed(FrameType::Receipt, 2, 0, 0, channel, 0, &receipt))).await;
    let shown = one
        .wait_for(|given| match given {
            support::gateway::Given::Frame(frame) if frame.frame_type() == FrameType::Receipt => {
                let receipt: wire::Receipt = frame.decode().unwrap();
                receipt.cursors.iter().find(|cursor| cursor.user == users[1].0 && cursor.read > 0).copied()
            }
            _ => None,
        })
        .await;
    assert_eq!((shown.delivered, shown.read, shown.read_ordinal), (5, 5, 3));
    let counts = wire::Counts { of: 4, ..Default::default() };
    let request = one.request();
    one.up(whole(routed(FrameType::Counts, 2, 0, 0, channel, request, &counts))).await;
    let counts: wire::Counts = one.answer(request, &[FrameType::Counts]).await.decode().unwrap();
    assert_eq!((counts.delivered, counts.read, counts.members), (1, 1, 2));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_the_same_from_memory_and_from_the_stores() {
    let house = House::new().await;
    let users = house.users(2).await;
    let channel = house.group(users[0], &users[1..]).await;
    let mut one = house.session(users[0], 1).await;
    let mut sent = Vec::new();
    for number in 0..400 {
        sent.push((one.say(channel, &format!("{number} {}", "x".repeat(700))).await, number));
    }
    let target = sent[10].0;
    let message = Some(wire::Message { text: "edited".into(), ..Default::default() });
    let edit = |target: u64| wire::send::Content::Edit(wire::Edit { target, message: message.clone() });
    assert_eq!(one.send(channel, edit(target)).await.outcome(), wire::Outcome::Ok);
    let react = |target: u64| {
        wire::send::Content::Reaction(wire::Reaction { target, emoji: "+1".into(), remove: false })
    };
    let mut two = house.session(users[1], 1).await;
    assert_eq!(one.send(channel, react(target)).await.outcome(), wire::Outcome::Ok);
    assert_eq!(two.send(channel, react(target)).await.outcome(), wire::Outcome::Ok);
    assert_eq!(code(two.send(channel, edit(target)).await.code), Code::FORBIDDEN);
    let recalled = sent[11].0;
    assert_eq!(one.send(channel, edit(recalled)).await.outcome(), wire::Outcome::Ok);
    let recall = wire::send::Content::Recall(wire::Recall { target: recalled });
    assert_eq!(one.send(channel, recall.clone()).await.outcome(), wire::Outcome::Ok);
    assert_eq!(code(one.send(channel, recall.clone()).await.code), Code::RECALLED);
    assert_eq!(code(two.send(channel, react(recalled)).await.code), Code::RECALLED);
    assert_eq!(code(two.send(channel, react(100_000)).await.code), Code::NO_SUCH_TARGET);
    assert_eq!(code(two.send(channel, react(1)).await.code), Code::NO_SUCH_TARGET);
    let head = two.say(channel, "last").await;
    let mut house = house;
    for round in 0..2 {
        let mut two = house.session(users[1], 1).await;
        let all = two.history(channel, 0).await;
        assert_eq!(all.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (2..=head).collect::<Vec<_>>());
        for (seq, entry) in &all {
            let number = sent.iter().find(|(place, _)| place == seq).map(|(_, number)| *number);
            if let Some(number) = number.filter(|_| *seq != recalled) {
                assert!(text_of(entry).starts_with(&format!("{number} ")));
            }
            let is_of_recalled = *seq == recalled
                || matches!(&entry.content, Some(wire::entry::Content::Edit(edit)) if edit.target == recalled);
            assert!(!is_of_recalled || entry.content.is_none(), "a stub has no content");
        }
        let fetch = wire::Fetch { after: target - 1, before: recalled + 1, messages_max: 100, before_ms: 0 };
        let pages = two.fetch(channel, &fetch).await.unwrap();
        assert!(pages[0].complete);
        let amendments = &pages[0].amendments;
        assert_eq!(amendments.iter().map(|one| one.target).collect::<Vec<_>>(), [target, recalled]);
        assert_eq!(text_of(&frames_of(&amendments[0].frame)[0].decode().unwrap()), "edited");
        assert_eq!(
            amendments[0].reactions,
            [wire::ReactionCount { emoji: "+1".into(), count: 2, mine: true }]
        );
        let newest: wire::Entry = frames_of(&amendments[1].frame)[0].decode().unwrap();
        assert!(matches!(newest.content, Some(wire::entry::Content::Recall(_))));
        // Messages only are counted; a bounded FETCH says that it is not complete.
        let fetch = wire::Fetch { messages_max: 5, ..Default::default() };
        let pages = two.fetch(channel, &fetch).await.unwrap();
        assert!(!pages.last().unwrap().complete && pages[0].last == head);
        assert_eq!(code(two.send(channel, react(recalled)).await.code), Code::RECALLED);
        if round == 0 {
            house = house.restart().await;
        }
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_channel_is_one_whoever_opens_it() {
    let mut house = House::new().await;
    let users = house.users(2).await;
    let mut one = house.session(users[0], 1).await;
    let mut two = house.session(users[1], 1).await;
    let open = |peer: UserId| {
        let target = Some(wire::open::Target::Direct(peer.0));
        wire::Open { client_message_id: new_id().0.to_vec().into(), target }
    };
    let (first, second) = (one.request(), two.request());
    one.up(whole(routed(FrameType::Open, 0, 0, 0, ChannelId(0), first, &open(users[1])))).await;
    two.up(whole(routed(FrameType::Open, 0, 0, 0, ChannelId(0), second, &open(users[0])))).await;
    let state: wire::ChannelState = one.answer(first, &[FrameType::Channel]).await.decode().unwrap();
    let other: wire::ChannelState = two.answer(second, &[FrameType::Channel]).await.decode().unwrap();
    assert_eq!(state.channel, other.channel);
    assert_eq!((state.peer, other.peer, state.kind), (users[1].0, users[0].0, 1));
    let channel = ChannelId(state.channel);
    assert_eq!(two.entry(channel).await.0, 1);
    assert_eq!(one.say(channel, "psst").await, 2);
    assert_eq!(text_of(&two.entry(channel).await.1), "psst");
    let left = one.send(channel, membership(wire::MembershipChange::Left, &[])).await;
    assert_eq!(code(left.code), Code::WRONG_KIND);
    let request = one.request();
    one.up(whole(routed(FrameType::Open, 0, 0, 0, ChannelId(0), request, &open(UserId(77))))).await;
    let refused: wire::Error = one.answer(request, &[FrameType::Refused]).await.decode().unwrap();
    assert_eq!(code(refused.code), Code::NO_SUCH_USER);
    // A group by the same OPEN twice is one group, after a restart too.
    let id = new_id();
    let group = wire::Group { name: "g".into(), members: vec![users[1].0], ..Default::default() };
    let admin = house.router().admin();
    let made = admin.create_group(users[0], id, group.clone()).await.unwrap();
    assert_eq!(admin.create_group(users[0], id, group.clone()).await.unwrap(), made);
    drop(admin);
    house = house.restart().await;
    let admin = house.router().admin();
    assert_eq!(admin.create_group(users[0], id, group).await.unwrap(), made);
    assert_eq!(admin.open_direct(users[1], users[0], new_id()).await.unwrap(), channel);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_registered_replaced_refused_and_ended() {
    let mut house = House::new().await;
    let users = house.users(1).await;
    let gateway = house.gateway.clone();
    let open = |user: UserId, device: u64, proof: Proof| gateway.open(user, DeviceId(device), proof, true);
    assert_eq!(open(UserId(5), 1, support::TOKEN).await.err(), Some(Code::UNKNOWN_USER));
    let mut first = open(users[0], 1, support::TOKEN).await.unwrap();
    let mut second = open(users[0], 1, Proof::Resume { generation: 0 }).await.unwrap();
    let kicked = first
        .wait_for(|given| match given {
            support::gateway::Given::Kicked(code) => Some(*code),
            _ => None,
        })
        .await;
    assert_eq!(kicked, Code::REPLACED);
    let admin = house.router().admin();
    let sessions = admin.sessions(users[0]).await.unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].session, second.origin.session);
    assert_eq!(admin.revoke_device(users[0], DeviceId(1)).await.unwrap(), 1);
    let kicked = second
        .wait_for(|given| match given {
            support::gateway::Given::Kicked(code) => Some(*code),
            _ => None,
        })
        .await;
    assert_eq!(kicked, Code::REVOKED);
    assert_eq!(open(users[0], 1, Proof::Resume { generation: 0 }).await.err(), Some(Code::RESUME_REFUSED));
    assert!(open(users[0], 1, support::TOKEN).await.is_ok());
    drop(admin);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_user_is_out_on_every_device_and_comes_in_again_by_what_is_newer() {
    let mut house = House::new().await;
    let users = house.users(1).await;
    let gateway = house.gateway.clone();
    let open = |device: u64, proof: Proof| gateway.open(users[0], DeviceId(device), proof, true);
    let issued = |issued_s: u64| Proof::Token { issued_s, generation: None };
    let mut sessions = vec![open(1, issued(100)).await.unwrap(), open(2, issued(100)).await.unwrap()];
    let admin = house.router().admin();
    let row = admin.user(users[0]).await.unwrap().unwrap();
    admin.revoke_user(User { tokens_from_s: 200, ..row }, Code::REVOKED).await.unwrap();
    for session in &mut sessions {
        let kicked = session
            .wait_for(|given| match given {
                support::gateway::Given::Kicked(code) => Some(*code),
                _ => None,
            })
            .await;
        assert_eq!(kicked, Code::REVOKED);
    }
    assert_eq!(open(1, issued(199)).await.err(), Some(Code::REVOKED));
    for device in [1, 2] {
        let resumed = open(device, Proof::Resume { generation: 0 }).await;
        assert_eq!(resumed.err(), Some(Code::RESUME_REFUSED), "device {device}");
    }
    assert!(open(1, issued(200)).await.is_ok());
    // A token of a login, bound to the device's generation.
    let bound = |generation| Proof::Token { issued_s: 200, generation: Some(generation) };
    assert!(open(1, bound(1)).await.is_ok());
    assert_eq!(open(1, bound(0)).await.err(), Some(Code::REVOKED));
    admin.revoke_device(users[0], DeviceId(1)).await.unwrap();
    assert_eq!(open(1, bound(1)).await.err(), Some(Code::REVOKED));
    assert!(open(1, bound(2)).await.is_ok());
    drop(admin);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_stays_out_though_its_positions_were_forgotten() {
    let mut house = House::new().await;
    let users = house.users(1).await;
    let gateway = house.gateway.clone();
    let open = |device: u64, proof: Proof| gateway.open(users[0], DeviceId(device), proof, true);
    // Keeps the user in memory.
    let stays = open(1_000, support::TOKEN).await.unwrap();
    for device in 1..=80 {
        open(device, support::TOKEN).await.unwrap().close().await;
    }
    let admin = house.router().admin();
    admin.revoke_device(users[0], DeviceId(1)).await.unwrap();
    let resumed = open(1, Proof::Resume { generation: 0 }).await;
    assert_eq!(resumed.err(), Some(Code::RESUME_REFUSED));
    assert!(open(2, Proof::Resume { generation: 0 }).await.is_ok());
    drop((stays, admin));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_credit_misses_nothing() {
    let mut house = House::new().await;
    let users = house.users(2).await;
    let channel = house.group(users[0], &users[1..]).await;
    let mut one = house.session(users[0], 1).await;
    let mut two = house.session(users[1], 1).await;
    house.gateway.starve();
    let mut sent = Vec::new();
    for number in 0..200 {
        sent.push(one.say(channel, &format!("{number} {}", "y".repeat(16_000))).await);
    }
    house.gateway.feed();
    // In order, without holes but for those a GAP names.
    let mut position = 2;
    while position < *sent.last().unwrap() {
        if let support::gateway::Given::Frame(frame) = two.next().await {
            match frame.frame_type() {
                FrameType::Deliver => {
                    assert_eq!(frame.routed().unwrap().seq, position + 1);
                    position += 1;
                }
                FrameType::Gap => {
                    let gap: wire::Head = frame.decode().unwrap();
                    assert_eq!(gap.after, position);
                    position = gap.head;
                }
                _ => {}
            }
        }
    }
    let live = one.say(channel, "live").await;
    assert_eq!(two.entry(channel).await.0, live);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_a_role_while_its_gateway_is_behind_goes_on_from_what_it_was_sent() {
    let mut house = House::new().await;
    let users = house.users(2).await;
    let channel = house.group(users[0], &users[1..]).await;
    let mut one = house.session(users[0], 1).await;
    let mut two = house.session(users[1], 1).await;
    house.gateway.starve();
    for number in 0..100 {
        one.say(channel, &format!("{number} {}", "y".repeat(16_000))).await;
    }
    let role = wire::Role::Admin.into();
    let change = wire::MembershipChange::RoleChanged.into();
    let changed = wire::Membership { change, users: vec![users[1].0], role, until_ms: 0 };
    assert_eq!(
        one.send(channel, wire::send::Content::Membership(changed)).await.outcome(),
        wire::Outcome::Ok
    );
    let mut position = 2;
    let state: wire::ChannelState = loop {
        let support::gateway::Given::Frame(frame) = two.next().await else { continue };
        match frame.frame_type() {
            FrameType::Deliver => position = frame.routed().unwrap().seq,
            FrameType::Channel => break frame.decode().unwrap(),
            other => panic!("not {other:?}"),
        }
    };
    assert!(position < 100, "the gateway is behind");
    assert_eq!((state.position, state.role), (position, role));
    house.gateway.feed();
    while position < state.head {
        let support::gateway::Given::Frame(frame) = two.next().await else { continue };
        match frame.frame_type() {
            FrameType::Deliver => {
                assert_eq!(frame.routed().unwrap().seq, position + 1);
                position += 1;
            }
            FrameType::Gap => {
                let gap: wire::Head = frame.decode().unwrap();
                assert_eq!(gap.after, position);
                position = gap.head;
            }
            other => panic!("not {other:?}"),
        }
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_never_served() {
    let house = House::new().await;
    let users = house.users(1).await;
    let channel = house.group(users[0], &[]).await;
    let mut one = house.session(users[0], 1).await;
    for number in 0..300 {
        one.say(channel, &format!("{number}")).await;
    }
    let mut house = house.restart().await;
    house.faulty.wrong_hashes.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut one = house.session(users[0], 1).await;
    let fetch = wire::Fetch { messages_max: 100, before: 50, ..Default::default() };
    let pages = one.fetch(channel, &fetch).await.unwrap();
    assert!(pages.iter().all(|page| page.frames.is_empty()), "nothing is served");
    assert_eq!(pages[0].corrupt, [wire::SeqRange { first: 1, last: 49 }]);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_answers_what_is_in_flight_and_takes_nothing_new() {
    let mut house = House::new().await;
    let users = house.users(1).await;
    let channel = house.group(users[0], &[]).await;
    let mut one = house.session(users[0], 1).await;
    let faulty = house.faulty.clone();
    faulty.close_gate();
    let request = one.request();
    one.up(support::send_frame(channel, request, new_id(), text("in flight"), None)).await;
    while house.router().admin().status().await.unwrap().counts.sessions == 0 {
        tokio::task::yield_now().await;
    }
    let router = house.router.take().unwrap();
    let stopping = tokio::spawn(router.shutdown());
    let late = loop {
        let ack = one.send(channel, text("late"));
        let ack = tokio::time::timeout(std::time::Duration::from_millis(100), ack).await;
        match ack {
            Ok(ack) => break ack,
            // It came before the drain began and waits with the other.
            Err(_) => continue,
        }
    };
    assert_eq!(code(late.code), Code::RETRY_LATER);
    faulty.open_gate();
    let ack: wire::SendAck = one.answer(request, &[FrameType::SendAck]).await.decode().unwrap();
    assert_eq!(ack.outcome(), wire::Outcome::Ok);
    stopping.await.unwrap();
}

/// More than may send to it meanwhile.
#[tokio::test]
async fn all_members_come_back_while_a_channel_is_read() {
    let house = House::new().await;
    let users = house.users(1_100).await;
    let channel = house.group(users[0], &users[1..600]).await;
    let mut owner = house.session(users[0], 1).await;
    let outcome = owner.send(channel, membership(wire::MembershipChange::Joined, &users[600..])).await;
    assert_eq!(outcome.outcome(), wire::Outcome::Ok);
    let house = house.restart().await;
    house.faulty.hold_channels(true);
    let mut sessions = Vec::new();
    for user in &users {
        let session = house.open(*user, 2).await;
        session.up(sync_frame(&[], 0)).await;
        sessions.push(session);
    }
    // Whatever was refused is on its way by then.
    for device in 3..5 {
        house.open(users[0], device).await;
    }
    house.faulty.hold_channels(false);
    for session in &mut sessions {
        let synced: wire::Synced = session.frame(FrameType::Synced).await.decode().unwrap();
        assert!(synced.channels.iter().any(|state| state.channel == channel.0));
    }
}
