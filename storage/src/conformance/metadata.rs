//! Checks of the metadata store and of ownership.

use std::sync::atomic::{AtomicU32, Ordering};

use fanfare_proto::{ChannelId, DeviceId, MessageId, ShardId, UserId, ids::IdSource};

use super::{Script, Stores};
use crate::{
    error::StoreError,
    hash,
    model::{
        Activity, CursorBatch, Device, DevicePosition, Entry, EntryKind, ListChange, Mark, MarkChange,
        MarkKind, Member, MemberChange, OutboxRow, Settings, User, UserCursor,
    },
};

/// The script of shard 3, owned, with channels 1, 2 and 3.
pub fn begin(stores: &Stores) -> Script {
    let lease = stores.ownership.take(3).expect("taken");
    let script = Script::new(3, lease.term);
    stores.metadata.commit(&[script.create(&[1, 2, 3])], &[]).expect("channels made");
    script
}

fn described(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| format!("{entry:?}")).collect()
}

pub fn commit_is_atomic(stores: &Stores) {
    let mut script = begin(stores);
    let mut commit = script.messages(&[1, 2, 1], "one");
    let settings = Settings { name: "renamed".to_owned(), history: 2, join: 3, posting: 2 };
    commit.settings.push((ChannelId(2), settings));
    let row = stores.metadata.commit(std::slice::from_ref(&commit), &[]).expect("committed");
    let rows = [row.expect("a row")];
    let channel = stores.metadata.channel(ChannelId(1)).expect("read").expect("there");
    let moved = commit.heads.iter().find(|head| head.channel == ChannelId(1)).expect("moved");
    assert_eq!((channel.head, channel.ordinal, channel.message_id), (2, 2, moved.message_id));
    assert_eq!(channel.chain, moved.chain);
    let renamed = stores.metadata.channel(ChannelId(2)).expect("read").expect("there");
    assert_eq!((renamed.name.as_str(), renamed.history, renamed.join), ("renamed", 2, 3));
    assert_eq!((renamed.posting, renamed.head), (2, 1));
    assert_eq!(stores.metadata.channel(ChannelId(9)).expect("read"), None);
    let listed = stores.metadata.channels(ChannelId(1), 10).expect("read");
    assert_eq!(listed.iter().map(|channel| channel.channel.0).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(stores.metadata.channels(ChannelId(0), 1).expect("read").len(), 1);

    // A second shard's refusal takes the first shard's part back too.
    let sound = script.messages(&[1], "two");
    let mut refused = script.empty();
    refused.shard = 4;
    refused.term = 1;
    let error = stores.metadata.commit(&[sound.clone(), refused], &rows).expect_err("shard 4 has no lease");
    assert!(matches!(error, StoreError::Fenced { shard: 4 }), "{error}");
    assert_eq!(stores.metadata.channel(ChannelId(1)).expect("read").expect("there").head, 2);
    assert!(stores.metadata.outbox().expect("read").iter().any(|batch| batch.row == rows[0]));
    stores.metadata.commit(&[sound], &[]).expect("the same part alone");
    assert_eq!(stores.metadata.channel(ChannelId(1)).expect("read").expect("there").head, 3);

    let again = stores.metadata.commit(&[script.create(&[1])], &[]).expect_err("exists already");
    assert!(matches!(again, StoreError::HeadMoved { channel: 1, .. }), "{again}");
}

pub fn moved_head_leaves_nothing(stores: &Stores) {
    let mut script = begin(stores);
    let first = script.messages(&[1, 2], "first");
    stores.metadata.commit(std::slice::from_ref(&first), &[]).expect("committed");
    let walked = stores.metadata.walk(MessageId(0), 100).expect("walked").len();
    let outbox = stores.metadata.outbox().expect("read").len();

    // Other ids but the same places: another owner's late commit. Channel 3 alone would be accepted.
    let mut late = Script::new(3, script.term);
    late.resume(&Script::channel(1), first.last_id);
    let mut late = late.messages(&[3, 1], "late");
    late.members.push(MemberChange {
        channel: ChannelId(3),
        member: Member { user: UserId(5), role: 1, joined_seq: 1, left_seq: 0, visible_from: 1 },
    });
    late.lists.push(ListChange { user: UserId(5), channel: ChannelId(3), seq: 1, listed: true });
    let error = stores.metadata.commit(std::slice::from_ref(&late), &[]).expect_err("the head has moved");
    assert!(matches!(error, StoreError::HeadMoved { channel: 1, expected: 0 }), "{error}");
    assert_eq!(stores.metadata.walk(MessageId(0), 100).expect("walked").len(), walked);
    assert_eq!(stores.metadata.outbox().expect("read").len(), outbox);
    assert_eq!(stores.metadata.channel(ChannelId(3)).expect("read").expect("there").head, 0);
    assert!(stores.metadata.members(ChannelId(3)).expect("read").is_empty());
    assert_eq!(stores.metadata.shard(3).expect("read").1, first.last_id);

    // The very same commit a second time is refused as well.
    let again = stores.metadata.commit(&[first], &[]).expect_err("committed already");
    assert!(matches!(again, StoreError::HeadMoved { .. }), "{again}");

    // A gap is refused.
    script.messages(&[2], "never committed");
    let error = stores.metadata.commit(&[script.messages(&[2], "gap")], &[]).expect_err("a gap");
    assert!(matches!(error, StoreError::HeadMoved { channel: 2, expected: 2 }), "{error}");

    // An entry of another epoch than the channel's is refused.
    let mut old = script.empty();
    script.add(&mut old, 3, EntryKind::Message, 0, "epoch");
    old.heads[0].epoch = 2;
    let error = stores.metadata.commit(&[old], &[]).expect_err("another epoch");
    assert!(matches!(error, StoreError::HeadMoved { channel: 3, .. }), "{error}");
}

pub fn older_terms_are_fenced(stores: &Stores) {
    assert_eq!(stores.ownership.lease(3).expect("read"), None);
    let mut old = begin(stores);
    let new = stores.ownership.take(3).expect("taken again");
    assert!(new.term > old.term);
    assert_eq!(stores.ownership.lease(3).expect("read"), Some(new));
    let commit = old.messages(&[1], "late");
    let error = stores.metadata.commit(std::slice::from_ref(&commit), &[]).expect_err("fenced");
    assert!(matches!(error, StoreError::Fenced { shard: 3 }), "{error}");
    assert_eq!(stores.metadata.channel(ChannelId(1)).expect("read").expect("there").head, 0);
    let mut commit = commit;
    commit.term = new.term;
    stores.metadata.commit(&[commit], &[]).expect("the new owner writes");
    // Other shards' leases are their own.
    assert_eq!(stores.ownership.take(5).expect("taken").shard, 5);
    assert_eq!(stores.ownership.lease(3).expect("read"), Some(new));
}

pub fn ids_never_move_back(stores: &Stores) {
    let mut script = begin(stores);
    let commit = script.messages(&[1], "one");
    let last = commit.last_id;
    stores.metadata.commit(std::slice::from_ref(&commit), &[]).expect("committed");
    assert_eq!(stores.metadata.shard(3).expect("read"), (script.term, last));
    let mut lower = script.empty();
    lower.last_id = 1;
    stores.metadata.commit(&[lower], &[]).expect("committed");
    assert_eq!(stores.metadata.shard(3).expect("read").1, last);
    let mut higher = script.empty();
    higher.last_id = last + 100;
    stores.metadata.commit(&[higher], &[]).expect("committed");
    assert_eq!(stores.metadata.shard(3).expect("read").1, last + 100);
    stores.ownership.take(3).expect("taken");
    assert_eq!(stores.metadata.shard(3).expect("read").1, last + 100, "a new owner goes on above");

    let mut twice = script.messages(&[2], "two");
    twice.term = stores.ownership.lease(3).expect("read").expect("taken").term;
    twice.entries[0].message_id = commit.entries[0].message_id;
    stores.metadata.commit(&[twice], &[]).expect_err("a message id is given once");
    assert_eq!(stores.metadata.channel(ChannelId(2)).expect("read").expect("there").head, 0);
}

pub fn outbox_is_identical(stores: &Stores) {
    let mut script = begin(stores);
    let made: Vec<OutboxRow> =
        stores.metadata.outbox().expect("read").iter().map(|batch| batch.row).collect();
    stores.metadata.forget_drained(&made).expect("forgotten");
    let mut commits = Vec::new();
    let mut rows = Vec::new();
    for round in 0..3 {
        let mut commit = script.messages(&[1, 2, 1, 3], &format!("round {round}"));
        script.add(&mut commit, 1, EntryKind::Recall, 1, "recall");
        commit.lists.push(ListChange {
            user: UserId(8),
            channel: ChannelId(1),
            seq: round + 1,
            listed: round != 1,
        });
        rows.extend(stores.metadata.commit(std::slice::from_ref(&commit), &[]).expect("committed"));
        commits.push(commit);
    }
    assert!(rows.is_sorted() && rows[0] < rows[1] && rows[1] < rows[2], "{rows:?}");
    let outbox = stores.metadata.outbox().expect("read");
    assert_eq!(outbox.iter().map(|batch| batch.row).collect::<Vec<_>>(), rows);
    for (batch, commit) in outbox.iter().zip(&commits) {
        assert_eq!(described(&batch.entries), described(&commit.entries));
        assert_eq!(batch.lists, commit.lists);
    }
    // Deleted with a commit, and alone; twice is harmless.
    let last = stores.metadata.commit(&[script.messages(&[1], "last")], &rows[..1]).expect("committed");
    let last = last.expect("a row");
    stores.metadata.forget_drained(&rows[..2]).expect("forgotten");
    stores.metadata.forget_drained(&rows[..2]).expect("forgotten");
    let left: Vec<_> = stores.metadata.outbox().expect("read").iter().map(|batch| batch.row).collect();
    assert_eq!(left, [rows[2], last]);
    stores.metadata.commit(&[], &[rows[2], last]).expect("a commit of nothing but deletions");
    assert!(stores.metadata.outbox().expect("read").is_empty());
    let next = stores.metadata.commit(&[script.messages(&[1], "next")], &[]).expect("committed");
    assert!(next > Some(last), "numbers rise though the outbox was empty");
}

pub fn direct_channels_are_found(stores: &Stores) {
    let script = begin(stores);
    let mut commit = script.create(&[10]);
    commit.channels[0].kind = 1;
    commit.channels[0].pair = (UserId(4), UserId(6));
    stores.metadata.commit(&[commit], &[]).expect("committed");
    assert_eq!(stores.metadata.direct(UserId(4), UserId(6)).expect("read"), Some(ChannelId(10)));
    assert_eq!(stores.metadata.direct(UserId(6), UserId(4)).expect("read"), Some(ChannelId(10)));
    assert_eq!(stores.metadata.direct(UserId(4), UserId(5)).expect("read"), None);
    assert_eq!(stores.metadata.direct(UserId(0), UserId(0)).expect("read"), None, "groups have no pair");
    let mut second = script.create(&[11]);
    second.channels[0].pair = (UserId(4), UserId(6));
    stores.metadata.commit(&[second], &[]).expect_err("a pair has one channel");
    assert_eq!(stores.metadata.channel(ChannelId(11)).expect("read"), None);
}

pub fn memberships_keep_stretches(stores: &Stores) {
    let script = begin(stores);
    let row = |user: u64, role, joined_seq, left_seq| MemberChange {
        channel: ChannelId(1),
        member: Member { user: UserId(user), role, joined_seq, left_seq, visible_from: joined_seq },
    };
    let commit = |members: Vec<MemberChange>| {
        let mut commit = script.empty();
        commit.members = members;
        stores.metadata.commit(&[commit], &[]).expect("committed");
    };
    commit(vec![row(7, 1, 1, 0), row(5, 3, 1, 0)]);
    commit(vec![row(7, 1, 1, 4)]);
    assert_eq!(stores.metadata.memberships(UserId(7)).expect("read"), []);
    commit(vec![row(7, 1, 9, 0), row(5, 2, 1, 0)]);
    let members = stores.metadata.members(ChannelId(1)).expect("read");
    let expected = [row(5, 2, 1, 0), row(7, 1, 1, 4), row(7, 1, 9, 0)];
    assert_eq!(members, expected.map(|change| change.member));
    assert_eq!(stores.metadata.memberships(UserId(7)).expect("read"), [ChannelId(1)]);
    let stretches = |limit| {
        let found = stores.accounts.memberships_of(UserId(7), limit).expect("read");
        found.iter().map(|one| (one.channel, one.row.joined_seq, one.row.left_seq)).collect::<Vec<_>>()
    };
    assert_eq!(stretches(9), [(ChannelId(1), 1, 4), (ChannelId(1), 9, 0)]);
    assert_eq!(stretches(1), [(ChannelId(1), 1, 4)]);
    assert!(stores.metadata.members(ChannelId(2)).expect("read").is_empty());
}

pub fn marks_are_replaced_and_taken_away(stores: &Stores) {
    let script = begin(stores);
    let mark = |user: u64, kind, until_ms, seq| Mark { user: UserId(user), kind, until_ms, seq };
    let commit = |marks: &[(Mark, bool)]| {
        let mut commit = script.empty();
        let change = |(mark, stands): &(Mark, bool)| MarkChange {
            channel: ChannelId(1),
            mark: *mark,
            stands: *stands,
        };
        commit.marks = marks.iter().map(change).collect();
        stores.metadata.commit(&[commit], &[]).expect("committed");
        stores.metadata.marks(ChannelId(1)).expect("read")
    };
    let (muted, banned) = (mark(7, MarkKind::Muted, 50, 2), mark(7, MarkKind::Banned, 0, 2));
    let invited = mark(8, MarkKind::Invited, 0, 3);
    assert_eq!(commit(&[(banned, true), (muted, true), (invited, true)]), [muted, banned, invited]);
    let longer = mark(7, MarkKind::Muted, 90, 4);
    assert_eq!(commit(&[(longer, true), (banned, false)]), [longer, invited]);
    let invitations =
        |user, after| stores.metadata.invitations(UserId(user), ChannelId(after), 9).expect("read");
    assert_eq!((invitations(8, 0), invitations(8, 1)), (vec![ChannelId(1)], vec![]));
    assert_eq!(invitations(7, 0), []);
    assert_eq!(commit(&[(invited, false), (banned, false)]), [longer]);
    assert_eq!(invitations(8, 0), []);
    assert!(stores.metadata.marks(ChannelId(2)).expect("read").is_empty());
}

pub fn blocks_have_a_direction_and_a_bound(stores: &Stores) {
    let (one, other) = (UserId(7), UserId(8));
    let block = |user, blocked, stands| stores.metadata.block(user, blocked, stands, 2).expect("written");
    let is_blocked = |user, other| stores.metadata.is_blocked(user, other).expect("read");
    assert!(block(one, other, true) && block(one, other, true));
    assert!(is_blocked(one, other) && !is_blocked(other, one));
    assert!(block(one, UserId(9), true) && !block(one, UserId(10), true) && block(one, other, true));
    assert_eq!(stores.metadata.blocks(one).expect("read"), [other, UserId(9)]);
    assert!(block(one, other, false) && block(one, other, false));
    assert_eq!(stores.metadata.blocks(one).expect("read"), [UserId(9)]);
    assert!(!is_blocked(one, other));
}

pub fn cursors_are_maxima(stores: &Stores) {
    let cursor = |delivered, read, read_ordinal| UserCursor {
        channel: ChannelId(1),
        user: UserId(7),
        delivered,
        read,
        read_ordinal,
    };
    let position = |epoch, seq| DevicePosition {
        user: UserId(7),
        device: DeviceId(2),
        channel: ChannelId(1),
        epoch,
        seq,
    };
    let write = |cursor: UserCursor, position: DevicePosition| {
        let batch =
            CursorBatch { cursors: vec![cursor], positions: vec![position], ..CursorBatch::default() };
        stores.metadata.write_cursors(&batch).expect("written");
        (
            stores.metadata.cursors(ChannelId(1)).expect("read")[0],
            stores.metadata.positions(UserId(7), DeviceId(2)).expect("read")[0],
        )
    };
    assert_eq!(write(cursor(10, 5, 4), position(1, 10)), (cursor(10, 5, 4), position(1, 10)));
    assert_eq!(write(cursor(9, 6, 5), position(1, 9)), (cursor(10, 6, 5), position(1, 10)));
    assert_eq!(write(cursor(12, 1, 1), position(2, 3)), (cursor(12, 6, 5), position(2, 3)));
    assert_eq!(write(cursor(0, 0, 0), position(1, 99)), (cursor(12, 6, 5), position(2, 3)));
    assert!(stores.metadata.cursors(ChannelId(2)).expect("read").is_empty());
    let of = |channel, user| stores.metadata.cursor(ChannelId(channel), UserId(user)).expect("read");
    assert_eq!(of(1, 7), cursor(12, 6, 5));
    assert_eq!((of(1, 8).read, of(2, 7).delivered), (0, 0));
    assert!(stores.metadata.positions(UserId(7), DeviceId(3)).expect("read").is_empty());
}

pub fn activities_follow_their_seq(stores: &Stores) {
    let activity =
        |fast, seq| Activity { channel: ChannelId(1), user: UserId(7), fast, slow: 0, acted: u32::MAX, seq };
    let write = |activity: Activity| {
        let batch = CursorBatch { activities: vec![activity], ..CursorBatch::default() };
        stores.metadata.write_cursors(&batch).expect("written");
        let read = stores.metadata.activities(ChannelId(1)).expect("read");
        (read[0].fast, read[0].seq, read[0].slow, read[0].acted)
    };
    assert_eq!(write(activity(u32::MAX, 3)), (u32::MAX, 3, 0, u32::MAX));
    assert_eq!(write(activity(1, 2)), (u32::MAX, 3, 0, u32::MAX), "older: an owner that was replaced");
    assert_eq!(write(activity(5, 3)), (5, 3, 0, u32::MAX));
    assert!(stores.metadata.activities(ChannelId(2)).expect("read").is_empty());
}

pub fn devices_are_revoked(stores: &Stores) {
    let device = |name: &str, generation, acks_confirmed, seen_ms| Device {
        user: UserId(7),
        device: DeviceId(2),
        name: name.to_owned(),
        generation,
        acks_confirmed,
        seen_ms,
    };
    let write = |device: Device| {
        let batch = CursorBatch { devices: vec![device], ..CursorBatch::default() };
        stores.metadata.write_cursors(&batch).expect("written");
    };
    write(device("phone", 0, 5, 100));
    assert_eq!(stores.metadata.revoke_device(UserId(7), DeviceId(2)).expect("revoked"), 1);
    // The owner's late write of the old generation does not bring it back.
    write(device("", 0, 4, 120));
    assert_eq!(stores.metadata.devices(UserId(7)).expect("read"), [device("phone", 1, 5, 120)]);
    assert_eq!(stores.metadata.revoke_device(UserId(7), DeviceId(2)).expect("revoked"), 2);
    assert_eq!(stores.metadata.revoke_device(UserId(8), DeviceId(9)).expect("revoked"), 1, "never seen");
}

pub fn hashes_and_walk(stores: &Stores) {
    let mut script = begin(stores);
    let mut entries = Vec::new();
    for round in 0..5 {
        let commit = script.messages(&[1, 2, 3], &round.to_string());
        entries.extend(commit.entries.clone());
        stores.metadata.commit(&[commit], &[]).expect("committed");
    }
    let mut ids: Vec<MessageId> = entries.iter().map(|entry| entry.message_id).collect();
    ids.push(MessageId(1));
    let hashes = stores.metadata.hashes(&ids).expect("read");
    assert_eq!(hashes.len(), entries.len());
    for entry in &entries {
        assert_eq!(hashes[&entry.message_id], (entry.channel, entry.seq, hash::frame(&entry.frame)));
    }
    let mut walked = Vec::new();
    loop {
        let after =
            walked.last().map_or(MessageId(0), |entry: &crate::metadata::WalkedEntry| entry.message_id);
        let page = stores.metadata.walk(after, 4).expect("walked");
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 4);
        walked.extend(page);
    }
    assert_eq!(walked.len(), entries.len());
    for (walked, entry) in walked.iter().zip(&entries) {
        assert_eq!(
            (walked.message_id, walked.channel, walked.epoch, walked.seq, walked.hash),
            (entry.message_id, entry.channel, entry.epoch, entry.seq, entry.hash)
        );
    }
}

pub fn last_seens_are_maxima(stores: &Stores) {
    let seen = |user| stores.seen.last_seen(UserId(user)).expect("read");
    assert_eq!(seen(4), 0, "nobody knows");
    stores.seen.write_seen(&[(UserId(4), 2_000), (UserId(5), 3_000)]).expect("written");
    stores.seen.write_seen(&[(UserId(4), 1_000), (UserId(5), 4_000), (UserId(6), 1)]).expect("written");
    assert_eq!((seen(4), seen(5), seen(6), seen(7)), (2_000, 4_000, 1, 0));
    stores.seen.write_seen(&[]).expect("written");
}

pub fn user_names_are_unique(stores: &Stores) {
    let user = |id: u64, name: &str| User {
        user: UserId(id),
        name: name.to_owned(),
        flags: User::BOT,
        tokens_from_s: 0,
    };
    assert!(stores.metadata.add_user(&user(4, "ann")).expect("written"));
    // A user's id counts as given by its shard: no owner gives it again, whatever its clock says.
    stores.ownership.take(0).expect("taken");
    let given = IdSource::new(ShardId(0), 0).next(2_000_000_000_000);
    assert!(stores.metadata.add_user(&user(given, "eve")).expect("written"));
    assert_eq!(stores.metadata.shard(0).expect("read").1, given);
    assert!(stores.metadata.add_user(&user(6, "bob")).expect("written"));
    assert!(!stores.metadata.add_user(&user(7, "ann")).expect("written"));
    assert_eq!(stores.metadata.user(UserId(4)).expect("read"), Some(user(4, "ann")));
    assert_eq!(stores.metadata.user(UserId(7)).expect("read"), None);
    assert_eq!(stores.metadata.user_named("bob").expect("read"), Some(user(6, "bob")));
    assert_eq!(stores.metadata.user_named("Bob").expect("read"), None);
    assert_eq!(stores.metadata.users(UserId(0), 1).expect("read"), [user(4, "ann")]);
    assert_eq!(stores.metadata.users(UserId(4), 9).expect("read"), [user(6, "bob"), user(given, "eve")]);
}

pub fn secrets_are_made_once(stores: &Stores) {
    let made = AtomicU32::new(0);
    let secrets: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let askers: Vec<_> = (0..8)
            .map(|asker: u8| {
                let (metadata, made) = (&stores.metadata, &made);
                scope.spawn(move || {
                    let make = || {
                        made.fetch_add(1, Ordering::SeqCst);
                        vec![asker; 32]
                    };
                    metadata.secret("resume", &make).expect("made")
                })
            })
            .collect();
        askers.into_iter().map(|asker| asker.join().expect("no panic")).collect()
    });
    assert!(secrets.iter().all(|secret| *secret == secrets[0]), "two secrets of one name");
    assert_eq!(made.load(Ordering::SeqCst), 1);
    assert_ne!(stores.metadata.secret("tokens", &|| vec![99; 16]).expect("made"), secrets[0]);
}
