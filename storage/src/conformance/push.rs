//! What every push outbox must do.

use fanfare_proto::{ChannelId, MessageId, UserId};

use crate::push::{ERROR_BYTES_MAX, Push, PushCounts, PushKey, PushKind, PushOutbox, PushOutcome, PushState};

/// The channel of all of these.
const CHANNEL: ChannelId = ChannelId(9);

fn push(user: u64, seq: u64, due_ms: u64) -> Push {
    Push {
        key: PushKey { user: UserId(user), channel: CHANNEL, epoch: 1, seq },
        kind: PushKind::Direct,
        sender: UserId(77),
        message_id: MessageId(1_000 + seq),
        created_ms: due_ms,
        due_ms,
        attempts: 0,
        error: String::new(),
    }
}

fn keys(pushes: &[Push]) -> Vec<(u64, u64)> {
    pushes.iter().map(|push| (push.key.user.0, push.key.seq)).collect()
}

fn finish(outbox: &dyn PushOutbox, now_ms: u64, of: &Push, outcome: PushOutcome) {
    outbox.finish(now_ms, &[(of.key, outcome)]).expect("finished");
}

pub fn a_push_is_put_once(outbox: &dyn PushOutbox) {
    let (one, other) =
        (push(1, 5, 10), Push { key: PushKey { epoch: 2, ..push(1, 5, 0).key }, ..push(1, 5, 20) });
    assert_eq!(outbox.put(&[]).expect("put"), 0);
    assert_eq!(outbox.put(&[one.clone(), other.clone(), one.clone()]).expect("put"), 2);
    assert_eq!(outbox.due(99, 9).expect("read"), [one.clone(), other.clone()]);
    // Known in whatever state, with whatever else in it.
    finish(outbox, 30, &one, PushOutcome::Delivered);
    finish(outbox, 30, &other, PushOutcome::Dead { error: "no".to_owned() });
    let again = [Push { due_ms: 1, ..one }, Push { kind: PushKind::Mention, ..other }];
    assert_eq!(outbox.put(&again).expect("put"), 0);
    assert_eq!(outbox.due(99, 9).expect("read"), []);
    assert_eq!(outbox.counts().expect("read"), PushCounts { waiting: 0, oldest_ms: 0, dead: 1 });
    the_newest_mention_waits_for_all(outbox);
}

/// Goes on where nothing waits. Users from 20 on are its own.
fn the_newest_mention_waits_for_all(outbox: &dyn PushOutbox) {
    let mention = |user, seq, due_ms| Push { kind: PushKind::Mention, ..push(user, seq, due_ms) };
    let put = |pushes: &[Push]| outbox.put(pushes).expect("put");
    let waiting = || -> Vec<(u64, u64, u64)> {
        let due = outbox.due(999, 99).expect("read");
        due.iter().map(|push| (push.key.user.0, push.key.seq, push.due_ms)).collect()
    };
    let of_user = |user| -> Vec<(u32, u64, u64, PushState)> {
        let kept = outbox.of_user(UserId(user), 99).expect("read");
        kept.iter().map(|(push, state)| (push.key.epoch, push.key.seq, push.due_ms, *state)).collect()
    };
    // Of other kinds, users and channels each stays.
    let elsewhere =
        Push { key: PushKey { channel: ChannelId(10), ..push(20, 1, 0).key }, ..mention(20, 1, 58) };
    let answer = Push { kind: PushKind::Reply, ..push(20, 4, 72) };
    let of_group = Push { kind: PushKind::Group, ..push(20, 3, 59) };
    let (one, two) = (mention(20, 5, 50), mention(20, 6, 60));
    let others = [mention(21, 5, 55), elsewhere, push(20, 2, 71), answer, of_group];
    assert_eq!(put(&[one.clone(), two.clone()]), 2);
    assert_eq!(put(&others), 5);
    let wanted = [(20, 2, 71), (20, 4, 72), (20, 6, 50), (21, 5, 55), (20, 1, 58), (20, 3, 59)];
    assert_eq!(waiting(), wanted, "the newest at the soonest of their times");
    // The log is read again, from before what was put: nothing revives, and nothing newer ends.
    let older = mention(20, 1, 10);
    assert_eq!(put(&[one.clone(), two]), 0);
    assert_eq!(put(&[older.clone(), one.clone()]), 1);
    assert_eq!(put(&[older]), 0);
    assert_eq!(waiting(), wanted);
    // An attempt that was under way changes nothing.
    finish(outbox, 90, &one, PushOutcome::Retry { due_ms: 1, error: "late".to_owned() });
    assert_eq!(waiting(), wanted);
    // The epoch goes before the seq.
    let three = Push { key: PushKey { epoch: 2, ..push(20, 1, 0).key }, ..mention(20, 1, 80) };
    assert_eq!(put(&[three.clone(), mention(20, 9, 85)]), 2);
    assert_eq!(waiting()[2], (20, 1, 50));
    let mut ended = of_user(20);
    ended.retain(|(.., state)| *state == PushState::Ended);
    let ended: Vec<_> = ended.into_iter().map(|(_, seq, due_ms, _)| (seq, due_ms)).collect();
    assert_eq!(ended, [(1, 10), (5, 60), (6, 80), (9, 85)], "when the other was put");
    // Its own time is the soonest.
    assert_eq!(put(&[mention(21, 6, 20)]), 1);
    assert_eq!(waiting()[2], (21, 6, 20));
    // What does not wait ends nothing, and is not ended.
    finish(outbox, 90, &three, PushOutcome::Delivered);
    finish(outbox, 90, &mention(21, 6, 20), PushOutcome::Dead { error: "no".to_owned() });
    assert_eq!(put(&[mention(20, 7, 91), mention(21, 7, 92), mention(21, 5, 1)]), 2);
    assert_eq!(waiting()[4..], [(20, 7, 91), (21, 7, 92)]);
    let kept = [(1, 5, 20, PushState::Ended), (1, 6, 90, PushState::Dead), (1, 7, 92, PushState::Waiting)];
    assert_eq!(of_user(21), kept);
}

pub fn what_is_due_comes_in_order(outbox: &dyn PushOutbox) {
    let pushes: Vec<Push> =
        [50, 10, 40, 20, 30].into_iter().enumerate().map(|(n, due)| push(n as u64, 1, due)).collect();
    assert_eq!(outbox.put(&pushes).expect("put"), 5);
    let due = |now_ms, limit| keys(&outbox.due(now_ms, limit).expect("read"));
    assert_eq!(due(9, 9), []);
    assert_eq!(due(10, 9), [(1, 1)]);
    assert_eq!(due(40, 9), [(1, 1), (3, 1), (4, 1), (2, 1)]);
    assert_eq!(due(99, 2), [(1, 1), (3, 1)]);
    assert_eq!(due(99, 4), [(1, 1), (3, 1), (4, 1), (2, 1)], "nobody else needs a share");
    assert_eq!(outbox.counts().expect("read"), PushCounts { waiting: 5, oldest_ms: 10, dead: 0 });
    // What is said to one person goes before what is due longer, and leaves the others a quarter.
    let mut more: Vec<Push> = (11..=18).map(|user| push(user, 1, user - 10)).collect();
    for (other, kind) in more.iter_mut().zip(PushKind::OTHERS.into_iter().cycle()) {
        other.kind = kind;
    }
    more.push(Push { kind: PushKind::Reply, ..push(20, 1, 5) });
    assert_eq!(outbox.put(&more).expect("put"), 9);
    let first: [(u64, u64); 6] = [(20, 1), (1, 1), (3, 1), (4, 1), (2, 1), (0, 1)];
    let others: Vec<(u64, u64)> = (11..=18).map(|user| (user, 1)).collect();
    let shared = |count: usize, rest: usize| [&first[..count], &others[..rest]].concat();
    assert_eq!(due(99, 1), shared(1, 0));
    assert_eq!(due(99, 4), shared(3, 1));
    assert_eq!(due(99, 8), shared(6, 2));
    assert_eq!(due(99, 12), shared(6, 6), "what the first do not need");
    assert_eq!(due(99, 99), shared(6, 8));
    assert_eq!(due(5, 4), shared(1, 3), "of the first one is due");
    assert_eq!(due(4, 9), shared(0, 4));
}

pub fn a_failed_push_waits(outbox: &dyn PushOutbox) {
    let one = push(1, 1, 10);
    outbox.put(std::slice::from_ref(&one)).expect("put");
    let long = "\u{e9}".repeat(ERROR_BYTES_MAX);
    finish(outbox, 12, &one, PushOutcome::Retry { due_ms: 20, error: "busy".to_owned() });
    assert_eq!(outbox.due(19, 9).expect("read"), []);
    finish(outbox, 22, &one, PushOutcome::Retry { due_ms: 40, error: long.clone() });
    let found = outbox.due(40, 9).expect("read");
    assert_eq!((found[0].attempts, found[0].due_ms, found[0].created_ms), (2, 40, 10));
    finish(outbox, 40, &one, PushOutcome::Postponed { due_ms: 50 });
    assert_eq!(outbox.due(49, 9).expect("read"), []);
    assert_eq!(outbox.due(50, 9).expect("read"), [Push { due_ms: 50, ..found[0].clone() }]);
    assert!(found[0].error.len() <= ERROR_BYTES_MAX && long.starts_with(&found[0].error));
    finish(outbox, 41, &one, PushOutcome::Delivered);
    // It has ended: what comes late changes nothing.
    finish(outbox, 42, &one, PushOutcome::Retry { due_ms: 1, error: "late".to_owned() });
    assert_eq!(outbox.due(99, 9).expect("read"), []);
}

pub fn dead_pushes_are_replayed(outbox: &dyn PushOutbox) {
    let pushes: Vec<Push> = (1..=3).map(|user| push(user, 1, 10)).collect();
    outbox.put(&pushes).expect("put");
    for (one, now_ms) in pushes.iter().zip([33, 31, 32]) {
        finish(outbox, now_ms, one, PushOutcome::Dead { error: format!("at {now_ms}") });
    }
    let dead = outbox.dead(2).expect("read");
    assert_eq!(keys(&dead), [(2, 1), (3, 1)]);
    assert_eq!((dead[0].error.as_str(), dead[0].attempts, dead[0].due_ms), ("at 31", 1, 31));
    assert_eq!(outbox.replay(50, Some(pushes[1].key)).expect("replayed"), 1);
    assert_eq!(outbox.replay(50, Some(pushes[1].key)).expect("replayed"), 0, "it is not dead any more");
    assert_eq!(outbox.replay(50, Some(push(8, 8, 8).key)).expect("replayed"), 0);
    let again = outbox.due(50, 9).expect("read");
    assert_eq!((keys(&again), again[0].attempts, again[0].created_ms), (vec![(2, 1)], 0, 50));
    assert_eq!(outbox.replay(60, None).expect("replayed"), 2);
    assert_eq!(outbox.counts().expect("read"), PushCounts { waiting: 3, oldest_ms: 50, dead: 0 });
}

pub fn what_is_read_is_cancelled(outbox: &dyn PushOutbox) {
    let elsewhere = Push { key: PushKey { channel: ChannelId(10), ..push(1, 1, 0).key }, ..push(1, 1, 10) };
    let pushes = [push(1, 1, 10), push(1, 2, 10), push(1, 3, 10), push(2, 1, 10), elsewhere];
    outbox.put(&pushes).expect("put");
    assert_eq!(outbox.cancel(20, &[(UserId(1), CHANNEL, 2), (UserId(3), CHANNEL, 9)]).expect("cancelled"), 2);
    assert_eq!(outbox.cancel(20, &[(UserId(1), CHANNEL, 2), (UserId(3), CHANNEL, 9)]).expect("cancelled"), 0);
    assert_eq!(outbox.cancel(20, &[]).expect("cancelled"), 0);
    assert_eq!(outbox.counts().expect("read").waiting, 3);
    let of_user = |limit| outbox.of_user(UserId(1), limit).expect("read");
    let kept: Vec<_> =
        of_user(9).iter().map(|(push, state)| (push.key.channel.0, push.key.seq, state.name())).collect();
    assert_eq!(kept, [(9, 1, "ended"), (9, 2, "ended"), (9, 3, "waiting"), (10, 1, "waiting")]);
    assert_eq!(of_user(2).len(), 2);
    finish(outbox, 20, &pushes[2], PushOutcome::Cancelled);
    assert_eq!(outbox.put(&pushes).expect("put"), 0, "their keys are known");
    assert_eq!(keys(&outbox.due(99, 9).expect("read")).len(), 2);
}

pub fn an_absence_is_told_of(outbox: &dyn PushOutbox) {
    let of_group = |user, seq, due_ms| Push { kind: PushKind::Group, ..push(user, seq, due_ms) };
    outbox.put(&[of_group(1, 1, 10), push(2, 1, 10), of_group(3, 1, 15)]).expect("put");
    let told = |users: &[u64]| {
        let users: Vec<UserId> = users.iter().copied().map(UserId).collect();
        outbox.told(CHANNEL, &users).expect("read")
    };
    assert_eq!(told(&[1, 2, 3, 4]), [(UserId(1), 10), (UserId(3), 15)]);
    finish(outbox, 20, &of_group(1, 1, 10), PushOutcome::Delivered);
    assert_eq!(told(&[1]), [(UserId(1), 10)]);
    // The same entry once more tells of nothing new.
    outbox.put(&[of_group(1, 1, 30)]).expect("put");
    assert_eq!(told(&[1]), [(UserId(1), 10)]);
    outbox.put(&[of_group(1, 7, 40)]).expect("put");
    assert_eq!(told(&[1]), [(UserId(1), 40)]);
    assert_eq!(outbox.told(ChannelId(10), &[UserId(1)]).expect("read"), []);
    // What is tried again may tell of it yet; what has ended, or is not the newest, takes nothing back.
    let dead = || PushOutcome::Dead { error: "no".to_owned() };
    finish(outbox, 45, &of_group(1, 7, 40), PushOutcome::Retry { due_ms: 46, error: "busy".to_owned() });
    finish(outbox, 46, &of_group(1, 7, 40), PushOutcome::Postponed { due_ms: 47 });
    finish(outbox, 47, &of_group(1, 1, 10), PushOutcome::Cancelled);
    outbox.put(&[of_group(3, 2, 40)]).expect("put");
    finish(outbox, 47, &of_group(3, 1, 15), dead());
    assert_eq!(told(&[1, 3]), [(UserId(1), 40), (UserId(3), 40)]);
    // Nor does what tells of something else.
    outbox.put(&[push(1, 8, 40)]).expect("put");
    finish(outbox, 48, &push(1, 8, 40), dead());
    assert_eq!(told(&[1]), [(UserId(1), 40)]);
    // Dropped: nobody was told, and the next message is told of.
    finish(outbox, 50, &of_group(1, 7, 40), PushOutcome::Cancelled);
    finish(outbox, 50, &of_group(3, 2, 40), dead());
    assert_eq!(told(&[1, 3]), []);
    outbox.put(&[of_group(1, 9, 60)]).expect("put");
    assert_eq!(told(&[1, 3]), [(UserId(1), 60)]);
    // Nothing more comes of what was dropped.
    finish(outbox, 70, &of_group(1, 7, 60), PushOutcome::Cancelled);
    assert_eq!(told(&[1]), [(UserId(1), 60)]);
}

pub fn what_ended_is_forgotten(outbox: &dyn PushOutbox) {
    let pushes: Vec<Push> = (1..=6).map(|user| push(user, 1, 10)).collect();
    outbox.put(&pushes).expect("put");
    for (one, now_ms) in pushes[..3].iter().zip([20, 30, 40]) {
        finish(outbox, now_ms, one, PushOutcome::Delivered);
    }
    finish(outbox, 20, &pushes[3], PushOutcome::Dead { error: "a".to_owned() });
    finish(outbox, 40, &pushes[4], PushOutcome::Dead { error: "a".to_owned() });
    assert_eq!(outbox.forget(35, 0, 1).expect("forgotten"), 1);
    assert_eq!(outbox.forget(35, 30, 9).expect("forgotten"), 2);
    assert_eq!(outbox.forget(35, 30, 9).expect("forgotten"), 0);
    assert_eq!(outbox.counts().expect("read"), PushCounts { waiting: 1, oldest_ms: 10, dead: 1 });
    assert_eq!(outbox.put(&pushes).expect("put"), 3, "those forgotten are new again");
}

pub fn the_beginning_is_noted_once(outbox: &dyn PushOutbox) {
    assert_eq!(outbox.began_ms().expect("read"), None);
    outbox.begin(70).expect("noted");
    outbox.begin(80).expect("noted");
    assert_eq!(outbox.began_ms().expect("read"), Some(70));
}
