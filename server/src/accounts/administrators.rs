//! Administrators: accounts with a flag, the first of them made by a one-time link that only who runs commands on the
//! server's folder can have. There is no password that anybody could know beforehand.

use std::{net::IpAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_proto::{Code, DeviceId, UserId};
use fanfare_storage::{
    accounts::{AdminLink, Claimed},
    model::{Hash, User},
};

use super::{Accounts, Caller, SignedIn, limited, random, sha256};
use crate::{
    administration::check_name,
    clock,
    failure::{Failure, Outcome},
};

/// Life of a link.
pub const LINK_TTL: Duration = Duration::from_secs(15 * 60);
/// Links that are open at once; the oldest goes.
pub const LINKS_MAX: usize = 4;
/// What secrets of links begin with, so that scanners of leaked secrets know them.
const LINK_PREFIX: &str = "ffl1_";
/// Administrators that are listed.
pub const ADMINISTRATORS_MAX: usize = 1_000;

/// A link as it is given out, once.
#[derive(Clone)]
pub struct OpenedLink {
    /// Its secret.
    pub secret: String,
    /// For whom, where it is for somebody.
    pub name: Option<String>,
    /// When it ends, Unix seconds.
    pub expires_unix_s: u64,
}

impl std::fmt::Debug for OpenedLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenedLink").field("expires_unix_s", &self.expires_unix_s).finish_non_exhaustive()
    }
}

/// By whose right something is administered.
#[derive(Clone, Debug)]
pub enum Authority {
    /// Who runs commands on the server's folder.
    Folder,
    /// An administrator with a token of its own.
    Administrator(Caller),
}

impl Authority {
    /// Refuses what would give an administrator's account to another one: the folder alone may.
    ///
    /// # Errors
    /// FORBIDDEN.
    pub fn may_become(&self, administrator: bool) -> Outcome {
        match self {
            Self::Administrator(_) if administrator => Err(Failure::new(
                Code::FORBIDDEN,
                "the account is an administrator's: commands on the server's folder alone may do that",
            )),
            Self::Folder | Self::Administrator(_) => Ok(()),
        }
    }
}

impl Accounts {
    /// The administrators that are not disabled.
    ///
    /// # Errors
    /// RETRY_LATER.
    pub async fn administrators(&self) -> Outcome<Vec<User>> {
        let mut users = self.read(|store| store.administrators(ADMINISTRATORS_MAX)).await?;
        users.retain(|user| user.flags & User::DISABLED == 0);
        Ok(users)
    }

    /// Opens a link: for an account of that name, there or not, or for a new one.
    ///
    /// # Errors
    /// BAD_FIELD, RETRY_LATER; FORBIDDEN where the account is disabled, or an administrator's and another administrator asks;
    /// ADMIN_REFUSED where the one that asks was dismissed meanwhile.
    pub async fn open_link(&self, name: Option<&str>, authority: &Authority) -> Outcome<OpenedLink> {
        if let Some(name) = name {
            check_name(name)?;
            if let Some(user) = self.router.user_named(name).await? {
                if user.flags & User::DISABLED != 0 {
                    return Err(disabled(name));
                }
                authority.may_become(user.flags & User::ADMINISTRATOR != 0)?;
            }
        }
        let secret = random()?;
        let created_ms = clock::now_ms();
        let link = AdminLink {
            hash: sha256(&secret),
            name: name.unwrap_or_default().to_owned(),
            made_by: match authority {
                Authority::Folder => UserId(0),
                Authority::Administrator(caller) => caller.user.user,
            },
            created_ms,
            expires_ms: created_ms + LINK_TTL.as_millis() as u64,
        };
        let expires_unix_s = link.expires_ms / 1000;
        if !self.write(move |store| store.open_link(&link, LINKS_MAX)).await? {
            return Err(Failure::of(Code::ADMIN_REFUSED));
        }
        tracing::info!("a link that makes an administrator was opened");
        Ok(OpenedLink {
            secret: format!("{LINK_PREFIX}{}", URL_SAFE_NO_PAD.encode(secret)),
            name: name.map(str::to_owned),
            expires_unix_s,
        })
    }

    /// Takes a link: makes the account, or raises the one that the link is for, and signs in.
    ///
    /// # Errors
    /// ADMIN_REFUSED where the link does not hold (any more); NAME_TAKEN, FORBIDDEN, BAD_FIELD, PASSWORD_LENGTH: it can be
    /// taken again; RATE_LIMITED, RETRY_LATER.
    pub async fn claim(
        &self,
        link: &str,
        name: &str,
        password: &str,
        device: Option<DeviceId>,
        address: IpAddr,
    ) -> Outcome<SignedIn> {
        self.by_address.take(&address).map_err(limited)?;
        let hash = parse(link).ok_or_else(no_link)?;
        let now_ms = clock::now_ms();
        // Before any work that costs: who has no link makes the server hash nothing.
        self.read(move |store| store.link(&hash, now_ms)).await?.ok_or_else(no_link)?;
        check_name(name)?;
        let password = self.passwords.hash(password).await?;
        let user = User {
            user: self.router.new_user_id(name).await?,
            name: name.to_owned(),
            flags: 0,
            tokens_from_s: clock::now_ms() / 1000 + 1,
        };
        let wish = user.clone();
        let claimed =
            self.write(move |store| store.claim_link(&hash, &wish, &password, clock::now_ms())).await?;
        let admin = match claimed {
            Claimed::By(admin) => admin,
            Claimed::NoLink => return Err(no_link()),
            Claimed::NameTaken => {
                return Err(Failure::new(Code::NAME_TAKEN, format!("a user `{name}` exists already"))
                    .advise(format!("fanfare admin link --name {name}"), "makes a link for that account"));
            }
            Claimed::Disabled => return Err(disabled(name)),
        };
        tracing::warn!(user = %admin.user, "an administrator was made by a link");
        if admin.user == user.user {
            self.router.user_made(admin.user)?;
        } else {
            self.router.revoke_user(admin.clone(), Code::REVOKED).await?;
        }
        let device = match device {
            Some(device) => device,
            None => DeviceId((u64::from_le_bytes(random()?[..8].try_into().unwrap_or_default()) >> 1).max(1)),
        };
        self.start(admin, device).await
    }

    /// Takes the flag away; the account stays. Gives it as it stands then.
    ///
    /// # Errors
    /// NO_SUCH_USER, RETRY_LATER.
    pub async fn dismiss(&self, user: UserId) -> Outcome<User> {
        let row = self.write(move |store| store.change_flags(user, 0, User::ADMINISTRATOR)).await?;
        row.ok_or_else(|| Failure::of(Code::NO_SUCH_USER))
    }

    /// The administrator that a token is, as the account stands now. A token of another issuer is none: who signs for an app
    /// does not administer the server.
    ///
    /// # Errors
    /// TOKEN_*, UNKNOWN_USER, REVOKED; ADMIN_REFUSED where the account is no administrator's.
    pub async fn administrator(&self, token: &str) -> Result<Caller, Code> {
        let caller = self.caller(token).await?;
        if caller.own && caller.user.flags & User::ADMINISTRATOR != 0 {
            Ok(caller)
        } else {
            Err(Code::ADMIN_REFUSED)
        }
    }
}

fn no_link() -> Failure {
    Failure::new(Code::ADMIN_REFUSED, "this link was used, has ended, or was never given out")
        .advise("fanfare admin link", "on the server, makes another")
}

fn disabled(name: &str) -> Failure {
    Failure::new(Code::FORBIDDEN, format!("`{name}` is disabled"))
        .advise(format!("fanfare user enable {name}"), "lets it in again")
}

fn parse(link: &str) -> Option<Hash> {
    let text = link.strip_prefix(LINK_PREFIX)?;
    // 32 bytes are 43 characters: anything longer is not decoded.
    let bytes = (text.len() == 43).then(|| URL_SAFE_NO_PAD.decode(text).ok()).flatten()?;
    Some(sha256(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_links_read_back_and_nothing_else_does() {
        let link = format!("{LINK_PREFIX}{}", URL_SAFE_NO_PAD.encode([7; 32]));
        assert_eq!(parse(&link), Some(sha256(&[7; 32])));
        for odd in ["", "ffl1_", &link[1..], &format!("{link}A"), &link[..link.len() - 1]] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }
}
