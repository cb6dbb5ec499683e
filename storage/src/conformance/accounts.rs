//! Accounts: passwords and logins.

use fanfare_proto::{DeviceId, UserId};

use super::Stores;
use crate::{accounts::Login, model::User};

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
    let flags = accounts.set_flags(UserId(4), User::DISABLED).expect("written").map(|user| user.flags);
    assert_eq!(flags, Some(User::DISABLED));
    assert_eq!(accounts.set_flags(UserId(9), 1).expect("written"), None);
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
    assert_eq!(accounts.logins(UserId(4)).expect("read"), [login(2, 4, 7), login(3, 4, 8)]);
    assert_eq!(accounts.login(1).expect("read"), None);
    assert!(accounts.end_login(2).expect("written") && !accounts.end_login(2).expect("written"));
    assert!(accounts.end_login_of(UserId(4), DeviceId(8)).expect("written"));
    assert!(accounts.logins(UserId(4)).expect("read").is_empty());
}

pub fn revoking_ends_logins(stores: &Stores) {
    let accounts = &stores.accounts;
    for (id, name) in [(4, "ann"), (5, "bob")] {
        assert!(accounts.register(&user(id, name), "$hash$", 0).expect("written"));
        assert!(accounts.start_login(&login(id, id, 1), &user(id, name)).expect("written"));
    }
    let revoked = accounts.revoke_user(UserId(4), 50).expect("written").expect("there");
    assert_eq!(revoked.tokens_from_s, 50);
    assert_eq!(accounts.revoke_user(UserId(4), 40).expect("written").expect("there").tokens_from_s, 50);
    assert_eq!(stores.metadata.user(UserId(4)).expect("read"), Some(revoked));
    assert!(accounts.logins(UserId(4)).expect("read").is_empty());
    assert_eq!(accounts.logins(UserId(5)).expect("read").len(), 1, "somebody else's");
    let late = accounts.start_login(&login(6, 4, 2), &user(4, "ann")).expect("written");
    assert!(!late, "signed in with what was revoked meanwhile");
    assert_eq!(accounts.revoke_user(UserId(9), 1).expect("written"), None);
}
