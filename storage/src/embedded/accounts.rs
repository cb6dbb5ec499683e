//! Accounts in `meta.db`.

use fanfare_proto::{DeviceId, UserId};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{
    database::sql,
    sql_error::{is_conflict, of_statement},
    sqlite::{SqliteMetadata, insert_user, unsigned, user_by_id},
};
use crate::{
    accounts::{Accounts, Login},
    error::StoreError,
    model::User,
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

    fn set_flags(&self, user: UserId, flags: u32) -> Result<Option<User>, StoreError> {
        self.write_meta(|connection| {
            connection
                .prepare_cached("UPDATE users SET flags = ? WHERE user = ?")
                .and_then(|mut update| update.execute((flags, sql(user.0))))
                .and_then(|_| user_by_id(connection, user))
                .map_err(|error| of_statement(&error))
        })
    }

    fn revoke_user(&self, user: UserId, from_s: u64) -> Result<Option<User>, StoreError> {
        self.write_meta(|connection| {
            let revoke = || -> rusqlite::Result<Option<User>> {
                connection
                    .prepare_cached("UPDATE users SET tokens_from_s = max(tokens_from_s, ?) WHERE user = ?")?
                    .execute((sql(from_s), sql(user.0)))?;
                connection.prepare_cached("DELETE FROM logins WHERE user = ?")?.execute([sql(user.0)])?;
                user_by_id(connection, user)
            };
            revoke().map_err(|error| of_statement(&error))
        })
    }

    fn start_login(&self, login: &Login, user: &User) -> Result<bool, StoreError> {
        self.write_meta(|connection| {
            let now = user_by_id(connection, login.user).map_err(|error| of_statement(&error))?;
            if now.as_ref() != Some(user) {
                return Ok(false);
            }
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

    fn logins(&self, user: UserId) -> Result<Vec<Login>, StoreError> {
        self.read_meta(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM logins WHERE user = ? ORDER BY created_ms, login"
                ))?
                .query_map([sql(user.0)], login_of)?
                .collect()
        })
    }
}
