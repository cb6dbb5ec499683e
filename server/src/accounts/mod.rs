//! Accounts: who signs in and how long that holds. A login is a device that stays signed in by a refresh token, which
//! is replaced each time it is used; what it gives is a short-lived token bound to the device. Revoking voids, in SQL and before it
//! is answered, the logins, the tokens and the resume secrets, and then ends the live sessions.

pub mod administrators;
pub mod password;
pub mod throttle;

use std::{net::IpAddr, sync::Arc, time::Duration};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_gateway::{Verified, Verifier};
use fanfare_proto::{Code, DeviceId, UserId};
use fanfare_router::Admin;
use fanfare_storage::{
    StoreError,
    accounts::{Accounts as Store, Login},
    model::{Device, Hash, User},
};

use crate::{
    administration::check_name,
    clock,
    failure::{Failure, Outcome},
    token::{IssuedToken, TokenIssuer},
};
use password::Passwords;
use throttle::Throttle;

/// Life of a token that a login gives.
pub const TOKEN_TTL: Duration = Duration::from_secs(15 * 60);
/// Life of a login that is not refreshed.
pub const LOGIN_TTL: Duration = Duration::from_secs(30 * 86_400);
/// How long the refresh token before the one in force is still taken: its answer may have been lost on the way.
const GRACE: Duration = Duration::from_secs(60);
/// What refresh tokens begin with, so that scanners of leaked secrets know them.
const REFRESH_PREFIX: &str = "ffr1_";
/// Attempts to sign in with one name, and within which time.
pub const BY_NAME: (u32, Duration) = (10, Duration::from_secs(15 * 60));
/// Attempts of one address to sign in or up, or to take a link, and within which time.
pub const BY_ADDRESS: (u32, Duration) = (5, Duration::from_secs(20));
/// Logins and devices of one user.
pub const LOGINS_MAX: usize = 64;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    store: Arc<dyn Store>,
    router: Admin,
    issuer: Arc<TokenIssuer>,
    verifier: Verifier,
    passwords: Passwords,
    by_name: Arc<Throttle<Hash>>,
    proven: Arc<Throttle<Proven>>,
    by_address: Arc<Throttle<IpAddr>>,
    registration_open: bool,
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts").field("registration_open", &self.registration_open).finish_non_exhaustive()
    }
}

/// Whose tries at a password are counted together, beside those of a name. Only what is there gets here, so that a flood of
/// made-up names crowds out none of it.
#[derive(Clone, Copy, PartialEq, Eq, std::hash::Hash)]
enum Proven {
    /// Of an account, on a device that it knows.
    Device(UserId, DeviceId),
    /// Of an account, by whoever has a token of it.
    Account(UserId),
}

/// What signing in gives.
#[derive(Clone)]
pub struct SignedIn {
    /// Who.
    pub user: User,
    /// On which device.
    pub device: DeviceId,
    /// For HELLO, AUTH and HTTP.
    pub token: IssuedToken,
    /// Gives the next token; taken once.
    pub refresh_token: String,
    /// When the login ends where it is not refreshed, Unix seconds.
    pub login_expires_unix_s: u64,
}

/// Who asks by HTTP: what a token says, held against the account as it stands.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub user: User,
    /// The device the token is bound to, where it is.
    pub device: Option<DeviceId>,
    /// This deployment issued the token itself.
    pub own: bool,
    token: Verified,
}

impl Accounts {
    /// Over those parts.
    ///
    /// # Errors
    /// INTERNAL where the system has no random numbers.
    pub fn new(
        store: Arc<dyn Store>,
        router: Admin,
        issuer: Arc<TokenIssuer>,
        verifier: Verifier,
        registration_open: bool,
        for_load: bool,
    ) -> Outcome<Self> {
        // The load profile runs the same code with numbers out of the way.
        let more = if for_load { 10_000 } else { 1 };
        Ok(Self {
            store,
            router,
            issuer,
            verifier,
            passwords: Passwords::new()?,
            by_name: Arc::new(Throttle::new(BY_NAME.0 * more, BY_NAME.1)),
            proven: Arc::new(Throttle::new(BY_NAME.0 * more, BY_NAME.1)),
            by_address: Arc::new(Throttle::new(BY_ADDRESS.0 * more, BY_ADDRESS.1)),
            registration_open,
        })
    }

    /// Whether people may make accounts themselves.
    pub fn registration_open(&self) -> bool {
        self.registration_open
    }

    /// Makes an account.
    ///
    /// # Errors
    /// REGISTRATION_CLOSED, BAD_FIELD, PASSWORD_LENGTH, NAME_TAKEN, RATE_LIMITED, RETRY_LATER.
    pub async fn register(&self, name: &str, password: &str, address: IpAddr) -> Outcome<User> {
        if !self.registration_open {
            return Err(Failure::of(Code::REGISTRATION_CLOSED));
        }
        self.by_address.take(&address).map_err(limited)?;
        self.make(name, password).await
    }

    /// As [`Self::register`], by the server's own people.
    ///
    /// # Errors
    /// As of [`Self::register`], but for REGISTRATION_CLOSED and RATE_LIMITED.
    pub async fn make(&self, name: &str, password: &str) -> Outcome<User> {
        check_name(name)?;
        let hash = self.passwords.hash(password).await?;
        let user = self.router.new_user_id(name).await?;
        let user = User { user, name: name.to_owned(), flags: 0, tokens_from_s: 0 };
        let made = user.clone();
        let now_ms = clock::now_ms();
        if !self.write(move |store| store.register(&made, &hash, now_ms)).await? {
            return Err(Failure::new(Code::NAME_TAKEN, format!("a user `{name}` exists already")));
        }
        self.router.user_made(user.user)?;
        Ok(user)
    }

    /// Signs in on a device.
    ///
    /// # Errors
    /// LOGIN_REFUSED with the same text and after the same time for a wrong name, a wrong password and a user that is
    /// disabled; RATE_LIMITED, RETRY_LATER.
    pub async fn sign_in(
        &self,
        name: &str,
        password: &str,
        device: DeviceId,
        address: IpAddr,
    ) -> Outcome<SignedIn> {
        self.by_address.take(&address).map_err(limited)?;
        let user = self.router.user_named(name).await?;
        self.try_on(name, user.as_ref(), device).await?;
        let hash = match &user {
            Some(user) => {
                let user = user.user;
                self.read(move |store| store.password(user)).await?
            }
            None => None,
        };
        let fits = self.passwords.fits(password, hash).await?;
        match user {
            Some(user) if fits && user.flags & User::DISABLED == 0 => self.start(user, device).await,
            _ => Err(Failure::of(Code::LOGIN_REFUSED)),
        }
    }

    /// Takes a try at that account's password. Anybody may use up those of a name; an owner then still has those of a
    /// device that was signed in before, whose number nobody else knows.
    async fn try_on(&self, name: &str, user: Option<&User>, device: DeviceId) -> Outcome {
        // By its hash: what is remembered does not grow with what was tried.
        let Err(wait) = self.by_name.take(&sha256(name.as_bytes())) else { return Ok(()) };
        // Names that are not there are looked up all the same, so that the answer takes as long.
        let user = user.map_or(UserId(0), |user| user.user);
        if self.devices(user).await?.iter().any(|(known, _)| known.device == device) {
            self.proven.take(&Proven::Device(user, device)).map_err(limited)?;
            return Ok(());
        }
        Err(limited(wait))
    }

    async fn start(&self, user: User, device: DeviceId) -> Outcome<SignedIn> {
        let devices = self.router.devices(user.user).await?;
        let known = devices.iter().find(|known| known.device == device);
        let logins = {
            let user = user.user;
            self.read(move |store| store.logins(user, clock::now_ms())).await?
        };
        if logins.len() >= LOGINS_MAX && !logins.iter().any(|login| login.device == device) {
            return Err(Failure::new(
                Code::CHANNEL_FULL,
                format!("at most {LOGINS_MAX} devices are signed in"),
            )
            .advise("fanfare device ls", "lists them"));
        }
        let generation = known.map_or(0, |known| known.generation);
        let now_ms = clock::now_ms();
        let secret = random()?;
        let login = Login {
            login: u64::from_le_bytes(random()?[..8].try_into().unwrap_or_default()) >> 1,
            user: user.user,
            device,
            secret: sha256(&secret),
            before: [0; 32],
            rotated_ms: now_ms,
            created_ms: now_ms,
            expires_ms: now_ms + LOGIN_TTL.as_millis() as u64,
        };
        let (started, as_read) = (login.clone(), user.clone());
        if !self.write(move |store| store.start_login(&started, &as_read)).await? {
            return Err(Failure::of(Code::LOGIN_REFUSED));
        }
        self.signed_in(user, &login, &secret, generation, now_ms)
    }

    /// `user`, `generation` and the time were read before the login was written: a revocation since then voids the token.
    fn signed_in(
        &self,
        user: User,
        login: &Login,
        secret: &[u8; 32],
        generation: u32,
        now_ms: u64,
    ) -> Outcome<SignedIn> {
        // A revocation of this second voids what was issued before it, not what is issued now.
        let now_ms = now_ms.max(user.tokens_from_s * 1000);
        let token = self.issuer.issue_bound(user.user, login.device, generation, TOKEN_TTL, now_ms);
        let token =
            token.map_err(|error| Failure::internal("no token could be issued").why(format!("{error:#}")))?;
        let mut bytes = login.login.to_le_bytes().to_vec();
        bytes.extend_from_slice(secret);
        Ok(SignedIn {
            device: login.device,
            token,
            refresh_token: format!("{REFRESH_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)),
            login_expires_unix_s: login.expires_ms / 1000,
            user,
        })
    }

    /// The next token and refresh token for a refresh token.
    ///
    /// # Errors
    /// LOGIN_ENDED; a refresh token that was used before ends the login, since two parties have it. RATE_LIMITED.
    pub async fn refresh(&self, refresh_token: &str, address: IpAddr) -> Outcome<SignedIn> {
        let ended = || Failure::of(Code::LOGIN_ENDED);
        let (id, secret) = parse(refresh_token).ok_or_else(ended)?;
        let Some(login) = self.read(move |store| store.login(id)).await? else {
            // Who guesses is slowed down; who refreshes what is there is not.
            self.by_address.take(&address).map_err(limited)?;
            return Err(ended());
        };
        let now_ms = clock::now_ms();
        let shown = sha256(&secret);
        let is = |stored: &Hash| verify_slices_are_equal(stored, &shown).is_ok();
        let lost = is(&login.before) && now_ms < login.rotated_ms + GRACE.as_millis() as u64;
        if !is(&login.secret) && !lost {
            tracing::warn!(user = %login.user, device = %login.device, "a refresh token came twice: its login ends");
            self.remove_device(login.user, login.device).await?;
            return Err(ended());
        }
        let user = self.router.user(login.user).await?.ok_or_else(ended)?;
        if now_ms >= login.expires_ms || user.flags & User::DISABLED != 0 {
            self.write(move |store| store.end_login(id)).await?;
            return Err(ended());
        }
        let devices = self.router.devices(user.user).await?;
        let generation =
            devices.iter().find(|known| known.device == login.device).map_or(0, |known| known.generation);
        let secret = random()?;
        let next = Login {
            secret: sha256(&secret),
            before: shown,
            rotated_ms: if lost { login.rotated_ms } else { now_ms },
            expires_ms: now_ms + LOGIN_TTL.as_millis() as u64,
            ..login.clone()
        };
        let (from, to) = (login, next.clone());
        if !self.write(move |store| store.rotate_login(&from, &to)).await? {
            return Err(Failure::of(Code::RETRY_LATER).why("the login was refreshed at the same moment"));
        }
        self.signed_in(user, &next, &secret, generation, now_ms)
    }

    /// Who a token of an HTTP request is, as the account stands now.
    ///
    /// # Errors
    /// TOKEN_*, UNKNOWN_USER, REVOKED.
    pub async fn caller(&self, token: &str) -> Result<Caller, Code> {
        let token = self.verifier.verify(token, clock::now_ms())?;
        let user = self.standing(&token).await?;
        Ok(Caller { user, device: token.device.map(|(device, _)| device), own: token.own, token })
    }

    /// Whether nothing that the caller was let in by was revoked since; that its token has ended meanwhile does not matter.
    ///
    /// # Errors
    /// As of [`Self::caller`]; ADMIN_REFUSED where it is to be an administrator and is none (any more).
    pub async fn still(&self, caller: &Caller, administrator: bool) -> Result<(), Code> {
        let user = self.standing(&caller.token).await?;
        let dismissed = administrator && user.flags & User::ADMINISTRATOR == 0;
        if dismissed { Err(Code::ADMIN_REFUSED) } else { Ok(()) }
    }

    async fn standing(&self, verified: &Verified) -> Result<User, Code> {
        let user = self.router.user(verified.user).await?.ok_or(Code::UNKNOWN_USER)?;
        if user.flags & User::DISABLED != 0 || verified.issued_s < user.tokens_from_s {
            return Err(Code::REVOKED);
        }
        if let Some((device, generation)) = verified.device {
            let devices = self.router.devices(user.user).await?;
            let now = devices.iter().find(|known| known.device == device).map_or(0, |known| known.generation);
            if generation != now {
                return Err(Code::REVOKED);
            }
        }
        Ok(user)
    }

    /// Changes the password of a user that knows the old one: everything else it proved itself with is void.
    ///
    /// # Errors
    /// LOGIN_REFUSED, PASSWORD_LENGTH, RATE_LIMITED, RETRY_LATER.
    pub async fn change_password(&self, user: &User, old: &str, new: &str) -> Outcome {
        self.proven.take(&Proven::Account(user.user)).map_err(limited)?;
        let id = user.user;
        let hash = self.read(move |store| store.password(id)).await?;
        if !self.passwords.fits(old, hash).await? {
            return Err(Failure::of(Code::LOGIN_REFUSED));
        }
        self.set_password(id, new).await
    }

    /// Sets a password, by the server's own people.
    ///
    /// # Errors
    /// PASSWORD_LENGTH, RETRY_LATER.
    pub async fn set_password(&self, user: UserId, new: &str) -> Outcome {
        let hash = self.passwords.hash(new).await?;
        let now_ms = clock::now_ms();
        self.write(move |store| store.set_password(user, &hash, now_ms)).await?;
        self.revoke(user).await
    }

    /// Voids all that a user proved itself with: tokens, logins, resume secrets; ends its sessions.
    ///
    /// # Errors
    /// NO_SUCH_USER, RETRY_LATER: repeat it.
    pub async fn revoke(&self, user: UserId) -> Outcome {
        let from_s = clock::now_ms() / 1000 + 1;
        let row = self.write(move |store| store.revoke_user(user, from_s)).await?;
        let row = row.ok_or_else(|| Failure::of(Code::NO_SUCH_USER))?;
        Ok(self.router.revoke_user(row, Code::REVOKED).await?)
    }

    /// Disables a user, or lets it in again.
    ///
    /// # Errors
    /// As of [`Self::revoke`].
    pub async fn set_disabled(&self, user: UserId, disabled: bool) -> Outcome {
        let (set, clear) = if disabled { (User::DISABLED, 0) } else { (0, User::DISABLED) };
        self.write(move |store| store.change_flags(user, set, clear)).await?;
        self.revoke(user).await
    }

    /// Signs a device out: its login, tokens and resume secrets are void, its sessions end. Gives how many did.
    ///
    /// # Errors
    /// RETRY_LATER.
    pub async fn remove_device(&self, user: UserId, device: DeviceId) -> Outcome<usize> {
        self.write(move |store| store.end_login_of(user, device)).await?;
        Ok(self.router.revoke_device(user, device).await?)
    }

    /// A user's devices, each with whether it is signed in by a login.
    ///
    /// # Errors
    /// RETRY_LATER.
    pub async fn devices(&self, user: UserId) -> Outcome<Vec<(Device, bool)>> {
        let logins = self.read(move |store| store.logins(user, clock::now_ms())).await?;
        let mut devices: Vec<(Device, bool)> = Vec::new();
        for device in self.router.devices(user).await? {
            let signed_in = logins.iter().any(|login| login.device == device.device);
            devices.push((device, signed_in));
        }
        for login in logins {
            if !devices.iter().any(|(device, _)| device.device == login.device) {
                let device = Device {
                    user,
                    device: login.device,
                    name: String::new(),
                    generation: 0,
                    acks_confirmed: 0,
                    seen_ms: login.created_ms,
                };
                devices.push((device, true));
            }
        }
        Ok(devices)
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Outcome<T> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || read(&*store)).await;
        Ok(done.map_err(|error| Failure::internal("the accounts could not be asked").why(error))??)
    }

    async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Outcome<T> {
        self.read(write).await
    }
}

fn limited(wait: Duration) -> Failure {
    let mut failure = Failure::of(Code::RATE_LIMITED);
    failure.retry_after = Some(wait);
    failure
}

fn random() -> Outcome<[u8; 32]> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Failure::internal("the system has no random numbers"))?;
    Ok(bytes)
}

fn sha256(bytes: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

fn parse(refresh_token: &str) -> Option<(u64, [u8; 32])> {
    let text = refresh_token.strip_prefix(REFRESH_PREFIX)?;
    // 40 bytes are 54 characters: anything longer is not decoded.
    let bytes = (text.len() == 54).then(|| URL_SAFE_NO_PAD.decode(text).ok()).flatten()?;
    let (id, secret) = bytes.split_at_checked(8)?;
    let id = u64::from_le_bytes(id.try_into().ok()?);
    Some((id, secret.try_into().ok()?)).filter(|_| id >> 63 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refresh_tokens_read_back_and_nothing_else_does() {
        let mut bytes = 77_u64.to_le_bytes().to_vec();
        bytes.extend([5; 32]);
        let token = format!("{REFRESH_PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
        assert_eq!(parse(&token), Some((77, [5; 32])));
        for odd in ["", "ffr1_", &token[1..], &format!("{token}A"), &token[..token.len() - 1], "ffr1_*"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }
}
