//! Users' last seens, in `cursors.db`.

use fanfare_proto::UserId;
use rusqlite::OptionalExtension;

use super::{
    database::sql,
    sql_error::of_statement,
    sqlite::{SqliteMetadata, unsigned},
};
use crate::{error::StoreError, seen::LastSeen};

impl LastSeen for SqliteMetadata {
    fn last_seen(&self, user: UserId) -> Result<u64, StoreError> {
        let seen = self.read_cursors(|connection| {
            connection
                .prepare_cached("SELECT seen_ms FROM seen WHERE user = ?")?
                .query_row([sql(user.0)], |row| unsigned(row, 0))
                .optional()
        });
        Ok(seen?.unwrap_or(0))
    }

    fn write_seen(&self, rows: &[(UserId, u64)]) -> Result<(), StoreError> {
        self.trickle(|connection| {
            let merge = || -> rusqlite::Result<()> {
                let mut merge = connection.prepare_cached(
                    "INSERT INTO seen (user, seen_ms) VALUES (?, ?)
                     ON CONFLICT (user) DO UPDATE SET seen_ms = max(seen_ms, excluded.seen_ms)",
                )?;
                for (user, seen_ms) in rows {
                    merge.execute([sql(user.0), sql(*seen_ms)])?;
                }
                Ok(())
            };
            merge().map_err(|error| of_statement(&error))
        })
    }
}
