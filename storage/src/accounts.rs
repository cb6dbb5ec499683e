//! Accounts: passwords, logins and administrators, in SQL beside the users they belong to; and the keys that sign webhooks.

use fanfare_proto::{ChannelId, DeviceId, UserId};

use crate::{
    error::StoreError,
    model::{Hash, Mark, Member, User},
};

/// One login: a device that stays signed in by a refresh token. Only hashes of its secrets are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Its id, random, below 2^63.
    pub login: u64,
    /// Whose.
    pub user: UserId,
    /// On which device; a device has one login at most.
    pub device: DeviceId,
    /// SHA-256 of the refresh secret in force.
    pub secret: Hash,
    /// SHA-256 of the one before it; all zero at first.
    pub before: Hash,
    /// When `before` was replaced, Unix milliseconds.
    pub rotated_ms: u64,
    /// When the user signed in, Unix milliseconds.
    pub created_ms: u64,
    /// When the login ends where it is not refreshed, Unix milliseconds.
    pub expires_ms: u64,
}

/// A stretch of a user's membership of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Of which channel.
    pub channel: ChannelId,
    /// The stretch.
    pub row: Member,
}

/// A one-time link that makes an administrator. Only the hash of its secret is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminLink {
    /// SHA-256 of its secret.
    pub hash: Hash,
    /// For whom; empty: for a new account, whose name is chosen with it.
    pub name: String,
    /// The administrator that made it; 0: whoever runs commands on the data folder.
    pub made_by: UserId,
    /// When it was given out, Unix milliseconds.
    pub created_ms: u64,
    /// When it ends, Unix milliseconds.
    pub expires_ms: u64,
}

/// What became of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The account as it stands now; the link is gone.
    By(User),
    /// There is no such link, it has ended, it is for another name, or it would give one administrator's account to another.
    NoLink,
    /// An account has the name, and the link is not for it; the link stays.
    NameTaken,
    /// The account that it is for is disabled; the link stays.
    Disabled,
}

/// A key that signs webhooks.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookKey {
    /// As receivers know it.
    pub kid: String,
    /// The private key, PKCS #8.
    pub pkcs8: Vec<u8>,
    /// When it was made, Unix milliseconds.
    pub created_ms: u64,
    /// Until when receivers take it, Unix milliseconds; 0: it is the one that signs.
    pub ends_ms: u64,
}

impl std::fmt::Debug for WebhookKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookKey")
            .field("kid", &self.kid)
            .field("created_ms", &self.created_ms)
            .field("ends_ms", &self.ends_ms)
            .finish_non_exhaustive()
    }
}

/// See the module. Methods block; each write is durable on return.
pub trait Accounts: Send + Sync + 'static {
    /// Makes a user with a password's hash (PHC string), in one transaction; `false` where the name is taken.
    ///
    /// # Errors
    /// As of [`crate::metadata::Metadata::commit`].
    fn register(&self, user: &User, password: &str, now_ms: u64) -> Result<bool, StoreError>;

    /// The hash of a user's password; `None` for users that sign in elsewhere.
    ///
    /// # Errors
    /// `Unavailable`.
    fn password(&self, user: UserId) -> Result<Option<String>, StoreError>;

    /// Sets a password's hash.
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn set_password(&self, user: UserId, password: &str, now_ms: u64) -> Result<(), StoreError>;

    /// Sets and clears flags of a user (see [`User`]), and leaves the others; `None` where there is no such user. Where the user is
    /// disabled, or administers no more, the links that it made and those for it go in the same transaction.
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn change_flags(&self, user: UserId, set: u32, clear: u32) -> Result<Option<User>, StoreError>;

    /// Voids all tokens of the user issued before `from_s` (Unix seconds), and those issued at the time of the revocation before
    /// where that was no earlier; ends all its logins and the links that it made, in one transaction; gives the user as it stands then.
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn revoke_user(&self, user: UserId, from_s: u64) -> Result<Option<User>, StoreError>;

    /// Stores a login, in the place of any other of the same device; `false`, and nothing stored, where the user was revoked or
    /// disabled since `user` was read.
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn start_login(&self, login: &Login, user: &User) -> Result<bool, StoreError>;

    /// A login by its id.
    ///
    /// # Errors
    /// `Unavailable`.
    fn login(&self, login: u64) -> Result<Option<Login>, StoreError>;

    /// Puts `to` in the place of `from` where `from.secret` is still the one in force: a refresh token is taken once.
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn rotate_login(&self, from: &Login, to: &Login) -> Result<bool, StoreError>;

    /// Ends a login; says whether it was there.
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn end_login(&self, login: u64) -> Result<bool, StoreError>;

    /// Ends the login of a device; says whether there was one.
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn end_login_of(&self, user: UserId, device: DeviceId) -> Result<bool, StoreError>;

    /// A user's logins that have not ended by themselves at `now_ms` (Unix milliseconds), oldest first.
    ///
    /// # Errors
    /// `Unavailable`.
    fn logins(&self, user: UserId, now_ms: u64) -> Result<Vec<Login>, StoreError>;

    /// All memberships of a user, past ones too, by channel and joined_seq, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable`.
    fn memberships_of(&self, user: UserId, limit: usize) -> Result<Vec<Membership>, StoreError>;

    /// What stands for or against a user, in all channels, past its time too, by channel and kind, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable`, `Damaged`.
    fn marks_of(&self, user: UserId, limit: usize) -> Result<Vec<(ChannelId, Mark)>, StoreError>;

    /// The administrators by ascending id, disabled ones too, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable`.
    fn administrators(&self, limit: usize) -> Result<Vec<User>, StoreError>;

    /// Stores a link; ended ones go, and of those that are open the oldest, so that there are at most `open_max`. `false`,
    /// and nothing stored, where the user that made it is no administrator (any more).
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn open_link(&self, link: &AdminLink, open_max: usize) -> Result<bool, StoreError>;

    /// The link of that hash, where it has not ended at `now_ms`.
    ///
    /// # Errors
    /// `Unavailable`.
    fn link(&self, hash: &Hash, now_ms: u64) -> Result<Option<AdminLink>, StoreError>;

    /// Takes a link, in one transaction: makes `user` with that password's hash, or, where the link is for that name and an
    /// account has it, gives that account the password and the flag, voids its tokens issued before `user.tokens_from_s` and
    /// ends its logins. Either way the account has [`User::ADMINISTRATOR`].
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn claim_link(
        &self,
        hash: &Hash,
        user: &User,
        password: &str,
        now_ms: u64,
    ) -> Result<Claimed, StoreError>;

    /// The keys that sign webhooks, oldest first; those that have ended are among them until the next rotation.
    ///
    /// # Errors
    /// `Unavailable`.
    fn webhook_keys(&self) -> Result<Vec<WebhookKey>, StoreError>;

    /// Puts a key in the place of the one that signs, which then ends at `ends_ms`; keys that have ended when it was made go.
    /// Where `signing` is not the id of the key that signs now (empty: none), nothing changes and `false` is given.
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn rotate_webhook_key(&self, signing: &str, key: &WebhookKey, ends_ms: u64) -> Result<bool, StoreError>;

    /// Takes away a key that signs no more; says whether it was there. The one that signs stays.
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn withdraw_webhook_key(&self, kid: &str) -> Result<bool, StoreError>;
}
