//! The people of a demo: made once, found again at every later start.

use crate::{administration::Administration, failure::Outcome};

/// People of the demo, the group's owner first.
pub const PEOPLE: [&str; 4] = ["alice", "bob", "carol", "dave"];
/// The group they are in.
pub const GROUP: &str = "general";
/// The bot that answers direct messages.
pub const BOT: &str = "echo-bot";

/// Makes what is missing.
///
/// # Errors
/// Of the stores.
pub async fn demo(administration: &Administration) -> Outcome {
    let mut owner = None;
    let mut fresh = false;
    for name in PEOPLE {
        let (user, made) = administration.user_made(name, false, false).await?;
        owner = owner.or(Some(user.user));
        fresh |= made;
    }
    administration.user_made(BOT, false, true).await?;
    let Some(owner) = owner else { return Ok(()) };
    // A group that its owner left, or renamed, stays as people made it: only a first start makes one.
    let channels = administration.channels(owner).await?;
    if (fresh || channels.is_empty()) && !channels.iter().any(|channel| channel.name == GROUP) {
        let others: Vec<String> = PEOPLE[1..].iter().map(|name| (*name).to_owned()).collect();
        administration.create_group(owner, GROUP, &others).await?;
    }
    Ok(())
}
