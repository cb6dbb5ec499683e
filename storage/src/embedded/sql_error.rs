//! SQLite's errors by what may be concluded from them.

use rusqlite::{Error, ErrorCode, ffi};

use crate::error::StoreError;

/// An error of a statement before COMMIT, or of a read: after the rollback nothing has changed.
pub fn of_statement(error: &Error) -> StoreError {
    let text = error.to_string();
    match error {
        Error::SqliteFailure(failure, _) => match (failure.code, failure.extended_code) {
            (_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC) => StoreError::SyncFailed(text),
            // The shared-memory file beside the log grows on the same disk; SQLite reports its ENOSPC as these.
            (ErrorCode::DiskFull, _) | (_, ffi::SQLITE_IOERR_SHMSIZE) => StoreError::Full(text),
            (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => StoreError::Damaged(text),
            _ => StoreError::Unavailable(text),
        },
        Error::FromSqlConversionFailure(..)
        | Error::IntegralValueOutOfRange(..)
        | Error::InvalidColumnType(..)
        | Error::Utf8Error(..) => StoreError::Damaged(text),
        _ => StoreError::Unavailable(text),
    }
}

/// An error of COMMIT. Only "no room" and "busy" say that nothing was changed (a log whose last frame is not whole is
/// not read back). After any failed write or sync the log on disk may hold the commit, so the process ends and
/// recovery tells; so, too, where the log's index had no room to grow, which is behind the frames.
pub fn of_commit(error: &Error) -> StoreError {
    match error {
        Error::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => of_statement(error),
            ErrorCode::SystemIoFailure => StoreError::SyncFailed(error.to_string()),
            _ => StoreError::Unknown(error.to_string()),
        },
        _ => StoreError::Unknown(error.to_string()),
    }
}

/// Whether a statement was refused because such a row exists already.
pub fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::SqliteFailure(failure, _) if failure.code == ErrorCode::ConstraintViolation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(extended: i32) -> Error {
        Error::SqliteFailure(ffi::Error::new(extended), None)
    }

    #[test]
    fn errors_are_told_apart() {
        assert!(matches!(of_statement(&failure(ffi::SQLITE_FULL)), StoreError::Full(_)));
        assert!(matches!(of_commit(&failure(ffi::SQLITE_FULL)), StoreError::Full(_)));
        assert!(matches!(of_commit(&failure(ffi::SQLITE_BUSY)), StoreError::Unavailable(_)));
        assert!(matches!(of_commit(&failure(ffi::SQLITE_IOERR_FSYNC)), StoreError::SyncFailed(_)));
        assert!(matches!(of_commit(&failure(ffi::SQLITE_IOERR_DIR_FSYNC)), StoreError::SyncFailed(_)));
        assert!(matches!(of_commit(&failure(ffi::SQLITE_IOERR_WRITE)), StoreError::SyncFailed(_)));
        assert!(matches!(of_commit(&failure(ffi::SQLITE_IOERR_SHMSIZE)), StoreError::SyncFailed(_)));
        assert!(matches!(of_statement(&failure(ffi::SQLITE_IOERR_SHMSIZE)), StoreError::Full(_)));
        assert!(matches!(of_statement(&failure(ffi::SQLITE_IOERR_WRITE)), StoreError::Unavailable(_)));
        assert!(matches!(of_statement(&failure(ffi::SQLITE_CORRUPT)), StoreError::Damaged(_)));
        assert!(matches!(of_commit(&failure(ffi::SQLITE_NOMEM)), StoreError::Unknown(_)));
    }
}
