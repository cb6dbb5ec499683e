use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules { recent: Duration::from_secs(30), started_ms: 0 };

fn view(is_direct: bool, members_total: usize, members: &[Member]) -> View {
    View { is_direct, members_total, members: members.to_vec(), ..View::default() }
}

fn member(user: u64) -> Member {
    Member { user: UserId(user), is_here: false, from_seq: 1, delivered: 0, read: 0, unread: 0 }
}

fn message(seq: u64, sender: u64) -> Heard {
    Heard {
        channel: ChannelId(5),
        epoch: 1,
        seq,
        message_id: MessageId(seq),
        sender: UserId(sender),
        mentions: Vec::new(),
        mention_all: false,
        reply_to: 0,
        replied: None,
    }
}

/// What a call of the rules gives: (user, seq, kind).
fn planned(view: &View, heard: &[Heard]) -> Vec<(u64, u64, PushKind)> {
    let found = plan(RULES, 90, view, heard, &mut Known::default());
    assert!(found.iter().all(|push| push.due_ms == 90 && push.created_ms == 90));
    found.into_iter().map(|push| (push.key.user.0, push.key.seq, push.kind)).collect()
}

#[test]
fn a_direct_channel_tells_of_each_message_and_not_who_sent_it() {
    let heard = [message(1, 1), message(2, 1), message(3, 2)];
    let found = planned(&view(true, 2, &[member(1), member(2)]), &heard);
    let direct = |user, seq| (user, seq, PushKind::Direct);
    assert_eq!(found, [direct(2, 1), direct(2, 2), direct(1, 3)]);
}

#[test]
fn nobody_is_told_of_what_it_has_or_may_not_see() {
    let away = member(2);
    let cases = [
        (Member { is_here: true, ..away }, vec![]),
        (Member { from_seq: 3, ..away }, vec![3]),
        (Member { read: 1, ..away }, vec![2, 3]),
        (Member { delivered: 2, ..away }, vec![3]),
    ];
    for (member, wanted) in cases {
        let heard = [message(1, 1), message(2, 1), message(3, 1)];
        let found = planned(&view(true, 2, &[member]), &heard);
        assert_eq!(found.iter().map(|push| push.1).collect::<Vec<_>>(), wanted, "{member:?}");
    }
}

#[test]
fn a_group_tells_by_name_and_otherwise_once_for_an_absence() {
    let named = Heard { mentions: vec![UserId(3)], ..message(2, 1) };
    let answer = Heard { replied: Some(UserId(2)), reply_to: 1, ..message(3, 1) };
    let heard = [message(1, 1), named, answer, message(4, 1)];
    let members = [member(2), member(3)];
    let of_name = [(3, 2, PushKind::Mention), (2, 3, PushKind::Reply)];
    let of_group = [(2, 1, PushKind::Group), (3, 1, PushKind::Group)];
    assert_eq!(planned(&view(false, GROUP_TOLD_MAX, &members), &heard), [of_group, of_name].concat());
    assert_eq!(planned(&view(false, GROUP_TOLD_MAX + 1, &members), &heard), of_name);
    let all = [Heard { mention_all: true, ..message(9, 1) }];
    let big = view(false, 9_999, &members);
    assert_eq!(planned(&big, &all).len(), 2);
    assert!(concerns_all(&big, &all) && !concerns_all(&big, &heard));
}

#[test]
fn who_was_there_just_now_is_told_later() {
    let due_ms = |now_ms, seen, started_ms| {
        let mut known = Known { seen_ms: [(UserId(2), seen)].into_iter().collect(), ..Known::default() };
        let rules = Rules { started_ms, ..RULES };
        plan(rules, now_ms, &view(true, 2, &[member(2)]), &[message(1, 1)], &mut known)[0].due_ms
    };
    assert_eq!(due_ms(100_000, 69_999, 0), 100_000);
    assert_eq!(due_ms(100_000, 70_001, 0), 130_000);
    assert_eq!(due_ms(100_000, 0, 99_000), 100_000, "who was never there is not waited for");
    assert_eq!(
        due_ms(100_000, 5, 99_000),
        130_000,
        "it may have been there until the end of the process before"
    );
}

#[test]
fn who_takes_nothing_from_the_sender_is_told_nothing() {
    let mut known = Known { blocked: [(UserId(2), UserId(1))].into_iter().collect(), ..Known::default() };
    let heard = [message(1, 1), message(2, 3)];
    let found = plan(RULES, 9, &view(false, 3, &[member(2)]), &heard, &mut known);
    assert_eq!(found.iter().map(|push| push.key.seq).collect::<Vec<_>>(), [2]);
}

proptest! {
    /// However messages are cut into batches, and whenever the member comes and goes: each absence is told of exactly once,
    /// by its first message.
    #[test]
    fn each_absence_is_told_of_once(steps in prop::collection::vec(0..4_u8, 1..60)) {
        let (mut now_ms, mut seq, mut seen_ms, mut is_here) = (1_000, 0, 1_000, false);
        let (mut wanted, mut found) = (Vec::new(), Vec::new());
        let (mut known, mut waiting) = (Known::default(), Vec::new());
        let mut is_told = false;
        let mut one = member(2);
        for step in steps.into_iter().chain([3]) {
            now_ms += 10;
            match step {
                // A message; one that comes to a member who is there is delivered.
                0 | 1 => {
                    seq += 1;
                    if is_here {
                        one.delivered = seq;
                    } else {
                        waiting.push(message(seq, 1));
                        if !std::mem::replace(&mut is_told, true) {
                            wanted.push(seq);
                        }
                    }
                }
                // It comes or goes; what waited for the rules is looked at before.
                2 | 3 => {
                    known.seen_ms.insert(UserId(2), seen_ms);
                    let heard = std::mem::take(&mut waiting);
                    let pushes = plan(RULES, now_ms, &view(false, 9, &[one]), &heard, &mut known);
                    found.extend(pushes.iter().map(|push| push.key.seq));
                    if step == 2 {
                        is_here = !is_here;
                        seen_ms = now_ms + 5;
                        if is_here {
                            one.delivered = seq;
                        }
                        is_told = false;
                    }
                }
                _ => unreachable!(),
            }
        }
        prop_assert_eq!(found, wanted);
    }
}
