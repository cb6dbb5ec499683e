//! What every backend must do, as checks generic over the traits. A backend's tests call [`check`] for each of
//! [`CHECKS`] with a function that makes fresh, empty stores.

mod accounts;
mod content;
mod metadata;
mod push;
mod script;

use std::{any::Any, sync::Arc};

pub use script::Script;

use crate::{
    accounts::Accounts,
    content::{Content, Lists},
    log::Log,
    metadata::Metadata,
    ownership::Ownership,
    push::PushOutbox,
    seen::LastSeen,
};

/// Fresh, empty stores.
pub struct Stores {
    /// Metadata.
    pub metadata: Arc<dyn Metadata>,
    /// Accounts, of the same deployment.
    pub accounts: Arc<dyn Accounts>,
    /// Last seens, of the same deployment.
    pub seen: Arc<dyn LastSeen>,
    /// Ownership, of the same deployment.
    pub ownership: Arc<dyn Ownership>,
    /// Content.
    pub content: Arc<dyn Content>,
    /// Users' lists.
    pub lists: Arc<dyn Lists>,
    /// The log.
    pub log: Arc<dyn Log>,
    /// What has to live as long as the stores do, such as their folder.
    pub keep: Box<dyn Any>,
}

/// A check's name and function; it panics where the backend fails.
pub type Check = (&'static str, fn(&Stores));

/// All checks.
pub const CHECKS: &[Check] = &[
    ("a commit is atomic and read back whole", metadata::commit_is_atomic),
    ("a head that moved refuses the whole commit", metadata::moved_head_leaves_nothing),
    ("an older term is fenced off", metadata::older_terms_are_fenced),
    ("the highest id never moves back", metadata::ids_never_move_back),
    ("the outbox holds what was committed", metadata::outbox_is_identical),
    ("direct channels are found by their pair", metadata::direct_channels_are_found),
    ("memberships keep past stretches", metadata::memberships_keep_stretches),
    ("marks are replaced and taken away", metadata::marks_are_replaced_and_taken_away),
    ("blocks have a direction and a bound", metadata::blocks_have_a_direction_and_a_bound),
    ("cursors and positions merge as maxima", metadata::cursors_are_maxima),
    ("activities follow their seq", metadata::activities_follow_their_seq),
    ("devices are revoked", metadata::devices_are_revoked),
    ("hashes and the walk tell every entry", metadata::hashes_and_walk),
    ("last seens are maxima", metadata::last_seens_are_maxima),
    ("users' names are unique", metadata::user_names_are_unique),
    ("an account is made whole or not at all", accounts::accounts_are_made_whole),
    ("a refresh secret is taken once", accounts::refresh_secrets_are_taken_once),
    ("revoking a user ends its logins", accounts::revoking_ends_logins),
    ("a link that makes an administrator is taken once", accounts::admin_links_are_taken_once),
    (
        "a link that makes an administrator ends with who made it, and with whom it is for",
        accounts::admin_links_end_with_their_administrator,
    ),
    ("webhooks' keys follow each other", accounts::webhook_keys_follow_each_other),
    ("secrets are made once", metadata::secrets_are_made_once),
    ("ranges come newest first", content::ranges_come_newest_first),
    ("the highest epoch wins", content::highest_epoch_wins),
    ("amendments stand under their target", content::amendments_stand_under_their_target),
    ("content put twice stands once", content::content_put_twice_stands_once),
    ("frames are walked and removed", content::frames_are_walked_and_removed),
    ("a list change never overwrites a newer one", content::lists_keep_the_newest),
    ("log offsets are contiguous", content::log_is_contiguous),
    ("consumers' offsets are kept", content::consumer_offsets_are_kept),
    ("drains move all and may repeat", content::drains_may_repeat),
];

/// A check of a push outbox; it panics where the backend fails.
pub type PushCheck = (&'static str, fn(&dyn PushOutbox));

/// All checks of a push outbox.
pub const PUSH_CHECKS: &[PushCheck] = &[
    ("a push is put once by its key", push::a_push_is_put_once),
    ("what is due comes in order and within its bound", push::what_is_due_comes_in_order),
    ("a failed push waits and keeps its attempts and its error", push::a_failed_push_waits),
    ("dead pushes are listed and replayed", push::dead_pushes_are_replayed),
    ("what is read is cancelled and no more", push::what_is_read_is_cancelled),
    ("an absence is told of once", push::an_absence_is_told_of),
    ("what ended is forgotten in its time", push::what_ended_is_forgotten),
    ("the beginning is noted once", push::the_beginning_is_noted_once),
];

/// Runs all checks of a push outbox, each on a fresh, empty one, naming each.
///
/// # Panics
/// Where the backend fails one.
pub fn check_pushes(run: &dyn Fn(fn(&dyn PushOutbox))) {
    for (name, check) in PUSH_CHECKS {
        println!("conformance: {name}");
        run(*check);
    }
}

/// Runs all checks, each on stores of its own, naming each.
///
/// # Panics
/// Where the backend fails one.
pub fn check(make: &dyn Fn() -> Stores) {
    for (name, check) in CHECKS {
        println!("conformance: {name}");
        check(&make());
    }
}
