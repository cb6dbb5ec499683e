//! When users were last there. Written lazily by presence, apart from the commit path.

use fanfare_proto::UserId;

use crate::error::StoreError;

/// Users' last seens, Unix milliseconds. Methods block.
pub trait LastSeen: Send + Sync + 'static {
    /// When the user was last there; 0 where nobody knows.
    ///
    /// # Errors
    /// `Unavailable`.
    fn last_seen(&self, user: UserId) -> Result<u64, StoreError>;

    /// Writes last seens, merged as maxima, in one transaction. Durable on return.
    ///
    /// # Errors
    /// As of [`crate::metadata::Metadata::write_cursors`]; repeating is safe.
    fn write_seen(&self, rows: &[(UserId, u64)]) -> Result<(), StoreError>;
}
