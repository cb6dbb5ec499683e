//! What every push outbox must do.

use fanfare_proto::{ChannelId, MessageId, UserId};

use crate::push::{ERROR_BYTES_MAX, Push, PushCounts, PushKey, PushKind, PushOutbox, PushOutcome};

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
    assert_eq!(outbox.counts().expect("read"), PushCounts { waiting: 5, oldest_ms: 10, dead: 0 });
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
