//! Accounts in `meta.db`.

use fanfare_proto::{ChannelId, DeviceId, UserId};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{
    database::sql,
    sql_error::{is_conflict, of_statement},
    sqlite::{SqliteMetadata, insert_user, unsigned, user_by_id, user_of},
};
use crate::{
    accounts::{Accounts, AdminLink, Claimed, Login, Membership, WebhookKey},
    error::StoreError,
    model::{Hash, Mark, MarkKind, Member, User},
};

const COLUMNS: &str = "login, user, device, secret, before, rotated_ms, created_ms, expires_ms";

fn login_of(row: &Row<'_>) -> rusqlite::Result<Login> {
    Ok(Login {
        login: unsigned(row, 0)?,
        user: UserId(unsigned(row, 1)?),
        device: DeviceId(unsigned(row, 2)?),
        secret: row.get(3)?,
        before: row.get(4)?,
        rotated_ms: unsigned(row, 5)?,
        created_ms: unsigned(row, 6)?,
        expires_ms: unsigned(row, 7)?,
    })
}

fn store_login(connection: &Connection, login: &Login) -> rusqlite::Result<()> {
    // Whatever login the device had ends: the unique index on (user, device) makes REPLACE remove it.
    connection
        .prepare_cached(&format!(
            "INSERT OR REPLACE INTO logins ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        ))?
        .execute((
            sql(login.login),
            sql(login.user.0),
            sql(login.device.0),
            &login.secret[..],
            &login.before[..],
            sql(login.rotated_ms),
            sql(login.created_ms),
            sql(login.expires_ms),
        ))
        .map(drop)
}

fn store_password(
    connection: &Connection,
    user: UserId,
    password: &str,
    now_ms: u64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO passwords (user, hash, changed_ms) VALUES (?, ?, ?)")
        .and_then(|mut insert| insert.execute((sql(user.0), password, sql(now_ms))))
        .map(drop)
        .map_err(|error| of_statement(&error))
}

fn change_flags(
    connection: &Connection,
    user: UserId,
    set: u32,
    clear: u32,
) -> Result<Option<User>, StoreError> {
    connection
        .prepare_cached("UPDATE users SET flags = (flags & ~?) | ? WHERE user = ?")
        .and_then(|mut update| update.execute((clear, set, sql(user.0))))
        .and_then(|_| {
            if clear & User::ADMINISTRATOR != 0 || set & User::DISABLED != 0 {
                connection
                    .prepare_cached(
                        "DELETE FROM admin_links
                         WHERE made_by = ?1 OR name = (SELECT name FROM users WHERE user = ?1)",
                    )?
                    .execute([sql(user.0)])?;
            }
            user_by_id(connection, user)
        })
        .map_err(|error| of_statement(&error))
}

fn revoke(connection: &Connection, user: UserId, from_s: u64) -> rusqlite::Result<()> {
    // What was issued after a revocation of the same second bears its time: the next one has to be later.
    connection
        .prepare_cached("UPDATE users SET tokens_from_s = max(tokens_from_s + 1, ?) WHERE user = ?")?
        .execute((sql(from_s), sql(user.0)))?;
    connection.prepare_cached("DELETE FROM logins WHERE user = ?")?.execute([sql(user.0)])?;
    connection.prepare_cached("DELETE FROM admin_links WHERE made_by = ?")?.execute([sql(user.0)]).map(drop)
}

fn link_of(connection: &Connection, hash: &Hash, now_ms: u64) -> rusqlite::Result<Option<AdminLink>> {
    connection
        .prepare_cached(
            "SELECT name, made_by, created_ms, expires_ms FROM admin_links WHERE hash = ? AND expires_ms > ?",
        )?
        .query_row((&hash[..], sql(now_ms)), |row| {
            Ok(AdminLink {
                hash: *hash,
                name: row.get(0)?,
                made_by: UserId(unsigned(row, 1)?),
                created_ms: unsigned(row, 2)?,
                expires_ms: unsigned(row, 3)?,
            })
        })
        .optional()
}

/// The account that a link made or raised. A refusal changes nothing: each is found before the first write.
fn claim(
    connection: &Connection,
    link: &AdminLink,
    user: &User,
    password: &str,
    now_ms: u64,
) -> Result<Claimed, StoreError> {
    if !link.name.is_empty() && link.name != user.name {
        return Ok(Claimed::NoLink);
    }
    let known = connection
        .prepare_cached("SELECT user, name, flags, tokens_from_s FROM users WHERE name = ?")
        .and_then(|mut by_name| by_name.query_row([&user.name], user_of).optional())
        .map_err(|error| of_statement(&error))?;
    let id = match known {
        Some(_) if link.name.is_empty() => return Ok(Claimed::NameTaken),
        Some(known) if known.flags & User::DISABLED != 0 => return Ok(Claimed::Disabled),
        // It became one since the link was made.
        Some(known) if link.made_by != UserId(0) && known.flags & User::ADMINISTRATOR != 0 => {
            return Ok(Claimed::NoLink);
        }
        Some(known) => {
            revoke(connection, known.user, user.tokens_from_s).map_err(|error| of_statement(&error))?;
            known.user
        }
        None => {
            let made = User { tokens_from_s: 0, ..user.clone() };
            if !insert_user(connection, &made)? {
                return Ok(Claimed::NameTaken);
            }
            user.user
        }
    };
    store_password(connection, id, password, now_ms)?;
    let raised = change_flags(connection, id, User::ADMINISTRATOR, 0)?;
    connection
        .prepare_cached("DELETE FROM admin_links WHERE hash = ?")
        .and_then(|mut delete| delete.execute([&link.hash[..]]))
        .map_err(|error| of_statement(&error))?;
    Ok(raised.map_or(Claimed::NoLink, Claimed::By))
}

impl Accounts for SqliteMetadata {
    fn register(&self, user: &User, password: &str, now_ms: u64) -> Result<bool, StoreError> {
        self.write_meta(|connection| {
            if !insert_user(connection, user)? {
                return Ok(false);
            }
            store_password(connection, user.user, password, now_ms).map(|()| true)
        })
    }

    fn password(&self, user: UserId) -> Result<Option<String>, StoreError> {
        self.read_meta(|connection| {
            connection
                .prepare_cached("SELECT hash FROM passwords WHERE user = ?")?
                .query_row([sql(user.0)], |row| row.get(0))
                .optional()
        })
    }

    fn set_password(&self, user: UserId, password: &str, now_ms: u64) -> Result<(), StoreError> {
        self.write_meta(|connection| store_password(connection, user, password, now_ms))
    }

    fn change_flags(&self, user: UserId, set: u32, clear: u32) -> Result<Option<User>, StoreError> {
        self.write_meta(|connection| change_flags(connection, user, set, clear))
    }

    fn revoke_user(&self, user: UserId, from_s: u64) -> Result<Option<User>, StoreError> {
        self.write_meta(|connection| {
            revoke(connection, user, from_s)
                .and_then(|()| user_by_id(connection, user))
                .map_err(|error| of_statement(&error))
        })
    }

    fn start_login(&self, login: &Login, user: &User) -> Result<bool, StoreError> {
        self.write_meta(|connection| {
            let now = user_by_id(connection, login.user).map_err(|error| of_statement(&error))?;
            if now.as_ref() != Some(user) {
                return Ok(false);
            }
            // Those that ended by themselves: nobody else takes them away.
            connection
                .prepare_cached("DELETE FROM logins WHERE user = ? AND expires_ms <= ?")
                .and_then(|mut delete| delete.execute([sql(login.user.0), sql(login.created_ms)]))
                .map_err(|error| of_statement(&error))?;
            match store_login(connection, login) {
                Ok(()) => Ok(true),
                Err(error) if is_conflict(&error) => {
                    Err(StoreError::Unavailable("the login's id is taken".to_owned()))
                }
                Err(error) => Err(of_statement(&error)),
            }
        })
    }

    fn login(&self, login: u64) -> Result<Option<Login>, StoreError> {
        self.read_meta(|connection| {
            connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM logins WHERE login = ?"))?
                .query_row([sql(login)], login_of)
                .optional()
        })
    }

    fn rotate_login(&self, from: &Login, to: &Login) -> Result<bool, StoreError> {
        self.write_meta(|connection| {
            connection
                .prepare_cached(
                    "UPDATE logins SET secret = ?, before = ?, rotated_ms = ?, expires_ms = ?
                     WHERE login = ? AND secret = ?",
                )
                .and_then(|mut update| {
                    update.execute((
                        &to.secret[..],
                        &to.before[..],
                        sql(to.rotated_ms),
                        sql(to.expires_ms),
                        sql(from.login),
                        &from.secret[..],
                    ))
                })
                .map(|moved| moved == 1)
                .map_err(|error| of_statement(&error))
        })
    }

    fn end_login(&self, login: u64) -> Result<bool, StoreError> {
        self.write_meta(|connection| {
            connection
                .prepare_cached("DELETE FROM logins WHERE login = ?")
                .and_then(|mut delete| delete.execute([sql(login)]))
                .map(|gone| gone == 1)
                .map_err(|error| of_statement(&error))
        })
    }

    fn end_login_of(&self, user: UserId, device: DeviceId) -> Result<bool, StoreError> {
        self.write_meta(|connection| {
            connection
                .prepare_cached("DELETE FROM logins WHERE user = ? AND device = ?")
                .and_then(|mut delete| delete.execute((sql(user.0), sql(device.0))))
                .map(|gone| gone == 1)
                .map_err(|error| of_statement(&error))
        })
    }

    fn logins(&self, user: UserId, now_ms: u64) -> Result<Vec<Login>, StoreError> {
        self.read_meta(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM logins WHERE user = ? AND expires_ms > ? ORDER BY created_ms, login"
                ))?
                .query_map([sql(user.0), sql(now_ms)], login_of)?
                .collect()
        })
    }

    fn memberships_of(&self, user: UserId, limit: usize) -> Result<Vec<Membership>, StoreError> {
        self.read_meta(|connection| {
            connection
                .prepare_cached(
                    "SELECT channel, role, joined_seq, left_seq, visible_from FROM members WHERE user = ?
                     ORDER BY channel, joined_seq LIMIT ?",
                )?
                .query_map((sql(user.0), i64::try_from(limit).unwrap_or(i64::MAX)), |row| {
                    let channel = ChannelId(unsigned(row, 0)?);
                    let row = Member {
                        user,
                        role: row.get(1)?,
                        joined_seq: unsigned(row, 2)?,
                        left_seq: unsigned(row, 3)?,
                        visible_from: unsigned(row, 4)?,
                    };
                    Ok(Membership { channel, row })
                })?
                .collect()
        })
    }

    fn marks_of(&self, user: UserId, limit: usize) -> Result<Vec<(ChannelId, Mark)>, StoreError> {
        let rows: Vec<(u64, u8, u64, u64)> = self.read_meta(|connection| {
            connection
                .prepare_cached(
                    "SELECT channel, kind, until_ms, seq FROM marks WHERE user = ? ORDER BY channel, kind LIMIT ?",
                )?
                .query_map((sql(user.0), i64::try_from(limit).unwrap_or(i64::MAX)), |row| {
                    Ok((unsigned(row, 0)?, row.get(1)?, unsigned(row, 2)?, unsigned(row, 3)?))
                })?
                .collect()
        })?;
        let mark = |(channel, kind, until_ms, seq)| {
            let kind = MarkKind::from_u8(kind)
                .ok_or_else(|| StoreError::Damaged(format!("a mark of kind {kind} in channel {channel}")))?;
            Ok((ChannelId(channel), Mark { user, kind, until_ms, seq }))
        };
        rows.into_iter().map(mark).collect()
    }

    fn administrators(&self, limit: usize) -> Result<Vec<User>, StoreError> {
        self.read_meta(|connection| {
            // The condition is the index's own, word for word, so that no user is looked at who is none.
            connection
                .prepare_cached(
                    "SELECT user, name, flags, tokens_from_s FROM users WHERE flags & 8 <> 0 ORDER BY user LIMIT ?",
                )?
                .query_map([i64::try_from(limit).unwrap_or(i64::MAX)], user_of)?
                .collect()
        })
    }

    fn open_link(&self, link: &AdminLink, open_max: usize) -> Result<bool, StoreError> {
        self.write_meta(|connection| {
            let open = || -> rusqlite::Result<bool> {
                // Looked at under the writer: who was dismissed a moment ago leaves nothing behind.
                let maker = user_by_id(connection, link.made_by)?;
                let administers =
                    |user: &User| user.flags & (User::ADMINISTRATOR | User::DISABLED) == User::ADMINISTRATOR;
                if link.made_by != UserId(0) && !maker.as_ref().is_some_and(administers) {
                    return Ok(false);
                }
                connection
                    .prepare_cached("DELETE FROM admin_links WHERE expires_ms <= ?")?
                    .execute([sql(link.created_ms)])?;
                connection
                    .prepare_cached(
                        "INSERT INTO admin_links (hash, name, made_by, created_ms, expires_ms)
                         VALUES (?, ?, ?, ?, ?)",
                    )?
                    .execute((
                        &link.hash[..],
                        &link.name,
                        sql(link.made_by.0),
                        sql(link.created_ms),
                        sql(link.expires_ms),
                    ))?;
                connection
                    .prepare_cached(
                        "DELETE FROM admin_links WHERE hash NOT IN
                         (SELECT hash FROM admin_links ORDER BY created_ms DESC, hash LIMIT ?)",
                    )?
                    .execute([i64::try_from(open_max).unwrap_or(i64::MAX)])
                    .map(|_| true)
            };
            open().map_err(|error| of_statement(&error))
        })
    }

    fn link(&self, hash: &Hash, now_ms: u64) -> Result<Option<AdminLink>, StoreError> {
        self.read_meta(|connection| link_of(connection, hash, now_ms))
    }

    fn claim_link(
        &self,
        hash: &Hash,
        user: &User,
        password: &str,
        now_ms: u64,
    ) -> Result<Claimed, StoreError> {
        self.write_meta(|connection| {
            // Looked for under the writer: of two that come with it at once, one finds it.
            match link_of(connection, hash, now_ms).map_err(|error| of_statement(&error))? {
                Some(link) => claim(connection, &link, user, password, now_ms),
                None => Ok(Claimed::NoLink),
            }
        })
    }

    fn webhook_keys(&self) -> Result<Vec<WebhookKey>, StoreError> {
        self.read_meta(|connection| {
            connection
                .prepare_cached(
                    "SELECT kid, pkcs8, created_ms, ends_ms FROM webhook_keys ORDER BY created_ms, kid",
                )?
                .query_map([], |row| {
                    Ok(WebhookKey {
                        kid: row.get(0)?,
                        pkcs8: row.get(1)?,
                        created_ms: unsigned(row, 2)?,
                        ends_ms: unsigned(row, 3)?,
                    })
                })?
                .collect()
        })
    }

    fn rotate_webhook_key(&self, signing: &str, key: &WebhookKey, ends_ms: u64) -> Result<bool, StoreError> {
        self.write_meta(|connection| {
            let rotate = || -> rusqlite::Result<bool> {
                let now: Option<String> = connection
                    .prepare_cached("SELECT kid FROM webhook_keys WHERE ends_ms = 0")?
                    .query_row([], |row| row.get(0))
                    .optional()?;
                if now.as_deref().unwrap_or_default() != signing {
                    return Ok(false);
                }
                connection
                    .prepare_cached("UPDATE webhook_keys SET ends_ms = ? WHERE ends_ms = 0")?
                    .execute([sql(ends_ms)])?;
                connection
                    .prepare_cached("DELETE FROM webhook_keys WHERE ends_ms <= ?")?
                    .execute([sql(key.created_ms)])?;
                connection
                    .prepare_cached(
                        "INSERT INTO webhook_keys (kid, pkcs8, created_ms, ends_ms) VALUES (?, ?, ?, 0)",
                    )?
                    .execute((&key.kid, &key.pkcs8, sql(key.created_ms)))
                    .map(|_| true)
            };
            rotate().map_err(|error| of_statement(&error))
        })
    }

    fn withdraw_webhook_key(&self, kid: &str) -> Result<bool, StoreError> {
        self.write_meta(|connection| {
            connection
                .prepare_cached("DELETE FROM webhook_keys WHERE kid = ? AND ends_ms <> 0")
                .and_then(|mut delete| delete.execute([kid]))
                .map(|gone| gone == 1)
                .map_err(|error| of_statement(&error))
        })
    }
}
