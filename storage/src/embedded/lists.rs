//! Users' lists of channels in fjall: (user, channel) gives the seq that wrote it and whether it is listed.

use std::collections::BTreeMap;

use fanfare_proto::{ChannelId, UserId};

use super::fjall_store::{FjallStore, Part};
use crate::{content::Lists, error::StoreError, model::ListChange};

fn key(user: UserId, channel: ChannelId) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&user.0.to_be_bytes());
    key[8..].copy_from_slice(&channel.0.to_be_bytes());
    key
}

fn row(change: &ListChange) -> [u8; 9] {
    let mut row = [0; 9];
    row[..8].copy_from_slice(&change.seq.to_be_bytes());
    row[8] = u8::from(change.listed);
    row
}

fn number(bytes: Option<&[u8]>) -> Option<u64> {
    Some(u64::from_be_bytes(bytes?.try_into().ok()?))
}

impl Lists for FjallStore {
    fn apply(&self, changes: &[ListChange]) -> Result<(), StoreError> {
        let mut newest = BTreeMap::new();
        for change in changes {
            let place = newest.entry(key(change.user, change.channel)).or_insert(change);
            if change.seq >= place.seq {
                *place = change;
            }
        }
        let _turn = self.lists_turn.lock();
        self.write(|keyspaces| {
            let mut batch = keyspaces.database.batch();
            for (key, change) in &newest {
                let stands = keyspaces.lists.get(key)?;
                let stands = stands.as_deref().and_then(|row| number(row.get(..8)));
                if stands.is_none_or(|seq| seq <= change.seq) {
                    batch.insert(&keyspaces.lists, *key, row(change));
                }
            }
            batch.commit()
        })
    }

    fn flush_lists(&self) -> Result<(), StoreError> {
        self.persist(Part::Lists)
    }

    fn list(&self, user: UserId) -> Result<Vec<ChannelId>, StoreError> {
        let rows = self.read(|keyspaces| {
            keyspaces
                .lists
                .prefix(user.0.to_be_bytes())
                .map(fjall::Guard::into_inner)
                .collect::<Result<Vec<_>, _>>()
        })?;
        rows.iter()
            .filter(|(_, value)| value.get(8) == Some(&1))
            .map(|(key, _)| {
                number(key.get(8..))
                    .map(ChannelId)
                    .ok_or_else(|| StoreError::Damaged("lists: a key does not decode".to_owned()))
            })
            .collect()
    }
}
