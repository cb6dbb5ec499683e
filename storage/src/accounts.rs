//! Accounts: passwords and logins, in SQL beside the users they belong to.

use fanfare_proto::{DeviceId, UserId};

use crate::{
    error::StoreError,
    model::{Hash, User},
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

/// Passwords and logins. Methods block; each write is durable on return.
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

    /// Sets a user's flags (see [`User`]); `None` where there is no such user.
    ///
    /// # Errors
    /// As of [`Self::register`].
    fn set_flags(&self, user: UserId, flags: u32) -> Result<Option<User>, StoreError>;

    /// Voids all tokens of the user issued before `from_s` (Unix seconds; never moved back) and ends all its logins, in one
    /// transaction; gives the user as it stands then.
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

    /// A user's logins, oldest first.
    ///
    /// # Errors
    /// `Unavailable`.
    fn logins(&self, user: UserId) -> Result<Vec<Login>, StoreError>;
}
