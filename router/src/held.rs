//! What is held for an idle session, counted by the allocator of the unit tests: the table that stands in
//! docs/decisions/0007-small-sessions.md, and nothing beside it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use fanfare_proto::{
    ChannelId, ClientMessageId, DeviceId, MessageId, SessionId, UserId,
    link::{GatewayId, Handle, Origin},
};
use fanfare_storage::model::{Device, DevicePosition, User as Row, UserCursor};

use crate::{
    audience::Audience,
    cursors::Cursors,
    load::LoadedUser,
    members::{Members, role},
    repeats::{Key, Place, Repeats},
    user::User,
};

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// The system's, counted by thread.
struct Counting;

#[expect(unsafe_code, reason = "an allocator is an unsafe trait; it only counts and passes on")]
// SAFETY: every call is handed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = HELD.try_with(|held| held.set(held.get() + layout.size() as isize));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let _ = HELD.try_with(|held| held.set(held.get() - layout.size() as isize));
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes of heap behind what is made.
fn held<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.with(Cell::get);
    let made = make();
    (made, (HELD.with(Cell::get) - before) as usize)
}

/// A user with one device, in five channels, as it is in memory while a session is there.
fn user(positions: usize) -> User {
    let (id, device) = (UserId(7), DeviceId(9));
    let row = Row { user: id, name: "someone".to_owned(), flags: 0, tokens_from_s: 0 };
    let known =
        Device { user: id, device, name: "phone".to_owned(), generation: 0, acks_confirmed: 0, seen_ms: 0 };
    let mut channels: Vec<ChannelId> = (1..=5).map(ChannelId).collect();
    channels.reserve(11);
    let loaded = LoadedUser { user: row, devices: vec![known], positions: None, channels };
    let mut user = User::of_loaded(loaded, std::iter::empty());
    let position =
        |channel| DevicePosition { user: id, device, channel: ChannelId(channel), epoch: 0, seq: 3 };
    let positions: Vec<DevicePosition> = (1..=positions as u64).map(position).collect();
    user.device_read(device, Ok(positions));
    user
}

#[test]
fn a_user_is_its_record_its_names_and_its_channels() {
    let (_user, bytes) = held(|| Box::new(user(0)));
    let (names, channels) = ("someone".len() + "phone".len(), 5 * 8);
    assert_eq!(bytes, size_of::<User>() + names + channels);
    let (_user, bytes) = held(|| Box::new(user(5)));
    assert_eq!(bytes, size_of::<User>() + names + channels + 5 * 24);
}

/// What 10,000 of something take each, less what a table with one of it takes.
fn each<T: Default>(mut add: impl FnMut(&mut T, u64)) -> f64 {
    const COUNT: u64 = 10_000;
    let (_made, bytes) = held(|| {
        let mut of = T::default();
        // In no order.
        (0..COUNT).for_each(|number| add(&mut of, number * 7_919 % COUNT + 1));
        of
    });
    bytes as f64 / COUNT as f64
}

#[test]
fn a_place_in_a_channel_is_its_record_and_an_eighth_at_the_most() {
    let listener = each::<Audience>(|audience, number| {
        let (gateway, handle) = (GatewayId(1), Handle::new(0, number as u32, 1));
        let (session, user, device) = (SessionId(number), UserId(number), DeviceId(1));
        audience.add(&Origin { gateway, handle, session, user, device }, crate::audience::Serving::Active, 0);
    });
    assert!((16.0..18.5).contains(&listener), "{listener} bytes");
    let member = each::<Members>(|members, number| members.join(UserId(number), role::MEMBER, 1, 1));
    assert!((12.0..14.0).contains(&member), "{member} bytes");
    let cursor = each::<Cursors>(|cursors, number| {
        let channel = ChannelId(1);
        cursors.raise(UserCursor { channel, user: UserId(number), delivered: 5, read: 0, read_ordinal: 0 });
        cursors.take_dirty();
    });
    assert!((32.0..37.0).contains(&cursor), "{cursor} bytes");
}

#[test]
fn a_committed_send_is_its_record_and_its_number() {
    let (mut repeats, before) = held(|| Repeats::new(0, Default::default(), usize::MAX));
    let ((), bytes) = held(|| {
        for number in 0..10_000u64 {
            let id = ClientMessageId::new(number, [0; 10]);
            let key = Key::new(UserId(number % 40), id, number);
            repeats.begin(key, number, None);
            repeats
                .done(key, Place { epoch: 0, seq: number, message_id: MessageId(number), ordinal: number });
        }
    });
    let each = bytes.saturating_sub(before) as f64 / 10_000.0;
    // 60, an eighth of room, and 5 in a table that has doubled.
    assert!((60.0..78.0).contains(&each), "{each} bytes");
}
