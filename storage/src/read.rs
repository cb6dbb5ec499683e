//! Reading frames that are checked: what the content store returns is compared with the hashes that the metadata
//! store keeps. Wrong bytes are never handed on.

use std::collections::HashMap;

use fanfare_proto::{ChannelId, MessageId};

use crate::{
    content::{Content, Stored},
    error::StoreError,
    hash,
    metadata::Metadata,
    model::Hash,
};

/// A range of frames, each matching its hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Sound frames, newest first.
    pub frames: Vec<Stored>,
    /// Seqs whose frame is there but wrong: show a mark in its place, take it from another copy.
    pub damaged: Vec<u64>,
    /// Whether the range ended for its limit or bytes, and older frames may follow.
    pub is_cut: bool,
}

/// Finds the message id in a stored frame; storage knows no frames. `None` where the frame does not decode.
pub type IdOf<'a> = &'a dyn Fn(&[u8]) -> Option<MessageId>;

/// Frames of `first ..= last`, newest first, at most `limit` and about `bytes_max`, each checked against its hash.
///
/// A frame names its message id, by which metadata names channel, seq and hash; a frame that names another place's id
/// is as wrong as one whose bytes differ.
///
/// # Errors
/// Of the two stores.
pub fn verified_range(
    metadata: &dyn Metadata,
    content: &dyn Content,
    id_of: IdOf<'_>,
    channel: ChannelId,
    (first, last): (u64, u64),
    limit: usize,
    bytes_max: usize,
) -> Result<Verified, StoreError> {
    let found = content.range(channel, first, last, limit, bytes_max)?;
    let bytes: usize = found.iter().map(|stored| stored.frame.len()).sum();
    let is_cut = found.len() >= limit || bytes >= bytes_max;
    let ids: Vec<Option<MessageId>> = found.iter().map(|stored| id_of(&stored.frame)).collect();
    let known: Vec<MessageId> = ids.iter().copied().flatten().collect();
    let hashes = metadata.hashes(&known)?;
    let mut verified = Verified { is_cut, ..Verified::default() };
    for (stored, id) in found.into_iter().zip(ids) {
        if is_sound(&stored, channel, id, &hashes) {
            verified.frames.push(stored);
        } else {
            tracing::error!(%channel, seq = stored.seq, "a stored frame does not match its hash");
            verified.damaged.push(stored.seq);
        }
    }
    Ok(verified)
}

fn is_sound(
    stored: &Stored,
    channel: ChannelId,
    id: Option<MessageId>,
    hashes: &HashMap<MessageId, (ChannelId, u64, Hash)>,
) -> bool {
    let known = id.and_then(|id| hashes.get(&id));
    known.is_some_and(|(of_channel, seq, hash)| {
        *of_channel == channel && *seq == stored.seq && *hash == hash::frame(&stored.frame)
    })
}
