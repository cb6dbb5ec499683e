//! Accounts: passwords and logins.

use fanfare_proto::{DeviceId, UserId};

use super::Stores;
use crate::{
    accounts::{AdminLink, Claimed, Login, WebhookKey},
    model::{Hash, User},
};

fn user(id: u64, name: &str) -> User {
    User { user: UserId(id), name: name.to_owned(), flags: 0, tokens_from_s: 0 }
}

fn login(login: u64, user: u64, device: u64) -> Login {
    Login {
        login,
        user: UserId(user),
        device: DeviceId(device),
        secret: [login as u8; 32],
        before: [0; 32],
        rotated_ms: 0,
        created_ms: 100 + login,
        expires_ms: 1_000,
    }
}

pub fn accounts_are_made_whole(stores: &Stores) {
    let accounts = &stores.accounts;
    assert!(accounts.register(&user(4, "ann"), "$hash$1", 10).expect("written"));
    assert!(!accounts.register(&user(5, "ann"), "$hash$2", 10).expect("written"), "the name is taken");
    assert_eq!(accounts.password(UserId(4)).expect("read").as_deref(), Some("$hash$1"));
    assert_eq!(accounts.password(UserId(5)).expect("read"), None, "half an account");
    assert_eq!(stores.metadata.user_named("ann").expect("read"), Some(user(4, "ann")));
    accounts.set_password(UserId(4), "$hash$3", 20).expect("written");
    assert_eq!(accounts.password(UserId(4)).expect("read").as_deref(), Some("$hash$3"));
    let change =
        |set, clear| accounts.change_flags(UserId(4), set, clear).expect("written").map(|user| user.flags);
    assert_eq!(change(User::DISABLED, 0), Some(User::DISABLED));
    assert_eq!(change(User::BOT, 0), Some(User::DISABLED | User::BOT), "the other flag stays");
    assert_eq!(change(0, User::DISABLED), Some(User::BOT));
    assert_eq!(accounts.change_flags(UserId(9), 1, 0).expect("written"), None);
}

pub fn refresh_secrets_are_taken_once(stores: &Stores) {
    let accounts = &stores.accounts;
    let (ann, first) = (user(4, "ann"), login(1, 4, 7));
    assert!(!accounts.start_login(&first, &ann).expect("written"), "there is no such user");
    assert!(accounts.register(&ann, "$hash$", 0).expect("written"));
    assert!(accounts.start_login(&first, &ann).expect("written"));
    let next =
        Login { secret: [9; 32], before: first.secret, rotated_ms: 5, expires_ms: 2_000, ..first.clone() };
    assert!(accounts.rotate_login(&first, &next).expect("written"));
    assert!(!accounts.rotate_login(&first, &next).expect("written"), "the secret was taken");
    assert_eq!(accounts.login(1).expect("read"), Some(next));
    // A device has one login: signing in again ends the one before.
    assert!(accounts.start_login(&login(2, 4, 7), &ann).expect("written"));
    assert!(accounts.start_login(&login(3, 4, 8), &ann).expect("written"));
    assert_eq!(accounts.logins(UserId(4), 0).expect("read"), [login(2, 4, 7), login(3, 4, 8)]);
    assert_eq!(accounts.login(1).expect("read"), None);
    assert!(accounts.end_login(2).expect("written") && !accounts.end_login(2).expect("written"));
    assert!(accounts.end_login_of(UserId(4), DeviceId(8)).expect("written"));
    assert!(accounts.logins(UserId(4), 0).expect("read").is_empty());
}

pub fn revoking_ends_logins(stores: &Stores) {
    let accounts = &stores.accounts;
    for (id, name) in [(4, "ann"), (5, "bob")] {
        assert!(accounts.register(&user(id, name), "$hash$", 0).expect("written"));
        assert!(accounts.start_login(&login(id, id, 1), &user(id, name)).expect("written"));
    }
    let revoked = accounts.revoke_user(UserId(4), 50).expect("written").expect("there");
    assert_eq!(revoked.tokens_from_s, 50);
    assert_eq!(stores.metadata.user(UserId(4)).expect("read"), Some(revoked));
    // Never back, and never the same: what was issued at 50, after the first, is void, too.
    assert_eq!(accounts.revoke_user(UserId(4), 40).expect("written").expect("there").tokens_from_s, 51);
    assert!(accounts.logins(UserId(4), 0).expect("read").is_empty());
    assert_eq!(accounts.logins(UserId(5), 0).expect("read").len(), 1, "somebody else's");
    let late = accounts.start_login(&login(6, 4, 2), &user(4, "ann")).expect("written");
    assert!(!late, "signed in with what was revoked meanwhile");
    assert_eq!(accounts.revoke_user(UserId(9), 1).expect("written"), None);
}

fn link(hash: u8, name: &str, created_ms: u64) -> AdminLink {
    AdminLink {
        hash: [hash; 32],
        name: name.to_owned(),
        made_by: UserId(0),
        created_ms,
        expires_ms: created_ms + 100,
    }
}

pub fn admin_links_are_taken_once(stores: &Stores) {
    let accounts = &stores.accounts;
    let claim = |hash: u8, user: &User, now_ms| {
        let hash: Hash = [hash; 32];
        accounts.claim_link(&hash, user, "$hash$", now_ms).expect("written")
    };
    let raised = |of: &User| User { flags: of.flags | User::ADMINISTRATOR, ..of.clone() };
    assert!(accounts.administrators(10).expect("read").is_empty());
    assert_eq!(claim(1, &user(4, "ann"), 10), Claimed::NoLink, "it was never given out");
    assert!(accounts.open_link(&link(1, "", 10), 3).expect("written"));
    assert_eq!(accounts.link(&[1; 32], 109).expect("read"), Some(link(1, "", 10)));
    assert_eq!(accounts.link(&[1; 32], 110).expect("read"), None, "it has ended");
    assert_eq!(claim(1, &user(4, "ann"), 110), Claimed::NoLink, "it has ended");
    let late = User { tokens_from_s: 7, ..user(4, "ann") };
    assert_eq!(claim(1, &late, 50), Claimed::By(raised(&user(4, "ann"))), "nothing to void of a new account");
    assert_eq!(claim(1, &user(5, "bob"), 50), Claimed::NoLink, "it was taken");
    assert_eq!(stores.metadata.user_named("bob").expect("read"), None, "half an account");
    assert_eq!(accounts.administrators(10).expect("read"), [raised(&user(4, "ann"))]);

    // One that names somebody raises it, and voids what it proved itself with; others' names stay theirs.
    let bob = user(5, "bob");
    assert!(accounts.register(&bob, "$before$", 0).expect("written"));
    assert!(accounts.start_login(&login(1, 5, 7), &bob).expect("written"));
    assert!(accounts.open_link(&link(2, "", 60), 3).expect("written"));
    assert_eq!(claim(2, &user(6, "bob"), 61), Claimed::NameTaken);
    assert!(accounts.open_link(&link(3, "bob", 60), 3).expect("written"));
    assert_eq!(claim(3, &user(6, "carol"), 61), Claimed::NoLink, "it is bob's");
    accounts.change_flags(UserId(5), User::DISABLED, 0).expect("written");
    assert_eq!(claim(3, &user(6, "bob"), 61), Claimed::NoLink, "it went when bob was disabled");
    assert!(accounts.open_link(&link(3, "bob", 60), 3).expect("written"));
    assert_eq!(claim(3, &user(6, "bob"), 61), Claimed::Disabled);
    assert_eq!(accounts.password(UserId(5)).expect("read").as_deref(), Some("$before$"));
    accounts.change_flags(UserId(5), 0, User::DISABLED).expect("written");
    let wanted = User { tokens_from_s: 9, ..raised(&bob) };
    assert_eq!(claim(3, &User { tokens_from_s: 9, ..user(6, "bob") }, 61), Claimed::By(wanted));
    assert_eq!(accounts.password(UserId(5)).expect("read").as_deref(), Some("$hash$"));
    assert!(accounts.logins(UserId(5), 0).expect("read").is_empty());

    // The oldest of those that are open goes.
    for (hash, created_ms) in [(4, 70), (5, 71), (6, 72)] {
        assert!(accounts.open_link(&link(hash, "", created_ms), 2).expect("written"));
    }
    let open = |hash: u8| accounts.link(&[hash; 32], 73).expect("read").is_some();
    assert_eq!([2, 4, 5, 6].map(open), [false, false, true, true]);
    accounts.change_flags(UserId(4), 0, User::ADMINISTRATOR).expect("written");
    assert_eq!(accounts.administrators(10).expect("read").len(), 1);
}

pub fn admin_links_end_with_their_administrator(stores: &Stores) {
    let accounts = &stores.accounts;
    let by_ann = |hash: u8, name: &str| AdminLink { made_by: UserId(4), ..link(hash, name, 10) };
    let open = |link: &AdminLink| accounts.open_link(link, 9).expect("written");
    let stand = || [1, 2, 3].map(|hash| accounts.link(&[hash; 32], 20).expect("read").is_some());
    let change =
        |user, set, clear| accounts.change_flags(UserId(user), set, clear).expect("written").is_some();
    for (id, name) in [(4, "ann"), (5, "bob")] {
        assert!(accounts.register(&user(id, name), "$hash$", 0).expect("written"));
    }
    assert!(!open(&by_ann(1, "")), "she is no administrator");
    let endings: [&dyn Fn() -> bool; 3] =
        [&|| change(4, 0, User::ADMINISTRATOR), &|| change(4, User::DISABLED, 0), &|| {
            accounts.revoke_user(UserId(4), 0).expect("written").is_some()
        }];
    for (index, end) in endings.into_iter().enumerate() {
        assert!(change(4, User::ADMINISTRATOR, User::DISABLED));
        let for_her = link(3, "ann", 10);
        assert!(open(&by_ann(1, "")) && open(&link(2, "bob", 10)) && open(&for_her));
        assert!(change(4, User::BOT, 0) && change(5, 0, User::ADMINISTRATOR | User::BOT));
        assert_eq!(stand(), [true, false, true], "dismissing bob ends what is for him alone");
        assert!(open(&link(2, "bob", 10)) && end());
        assert_eq!(stand(), [false, true, index == 2], "{index}");
        assert!(index == 2 || !open(&by_ann(1, "")), "{index}: she administers no more");
        assert!(change(5, User::DISABLED, 0) && change(5, 0, User::DISABLED) && change(4, User::DISABLED, 0));
    }
    // Nobody takes another administrator's account by a link: bob became one since it was made.
    assert!(change(4, User::ADMINISTRATOR, User::DISABLED) && open(&by_ann(1, "bob")));
    assert!(change(5, User::ADMINISTRATOR, 0));
    let taken = accounts.claim_link(&[1; 32], &user(6, "bob"), "$other$", 20).expect("written");
    assert_eq!(taken, Claimed::NoLink);
    assert_eq!(accounts.password(UserId(5)).expect("read").as_deref(), Some("$hash$"));
}

pub fn webhook_keys_follow_each_other(stores: &Stores) {
    let accounts = &stores.accounts;
    let key = |kid: &str, created_ms, ends_ms| WebhookKey {
        kid: kid.to_owned(),
        pkcs8: kid.as_bytes().to_vec(),
        created_ms,
        ends_ms,
    };
    assert!(accounts.rotate_webhook_key("", &key("a", 10, 0), 0).expect("written"));
    assert!(!accounts.rotate_webhook_key("", &key("b", 11, 0), 0).expect("written"), "two made the first");
    assert!(accounts.rotate_webhook_key("a", &key("b", 20, 0), 30).expect("written"));
    assert_eq!(accounts.webhook_keys().expect("read"), [key("a", 10, 30), key("b", 20, 0)]);
    assert!(!accounts.rotate_webhook_key("a", &key("c", 25, 0), 35).expect("written"), "it signs no more");
    assert!(accounts.rotate_webhook_key("b", &key("c", 30, 0), 40).expect("written"));
    assert_eq!(accounts.webhook_keys().expect("read"), [key("b", 20, 40), key("c", 30, 0)]);
    // One that is withdrawn at once is gone at once.
    assert!(accounts.rotate_webhook_key("c", &key("d", 31, 0), 31).expect("written"));
    assert_eq!(accounts.webhook_keys().expect("read"), [key("b", 20, 40), key("d", 31, 0)]);
    assert!(!accounts.withdraw_webhook_key("d").expect("written"), "it signs");
    assert!(!accounts.withdraw_webhook_key("x").expect("written"), "there is none");
    assert!(accounts.withdraw_webhook_key("b").expect("written"));
    assert_eq!(accounts.webhook_keys().expect("read"), [key("d", 31, 0)]);
}
