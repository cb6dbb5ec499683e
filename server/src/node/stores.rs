//! The embedded stores of a node: opened, with the deployment's secrets and what was fixed at setup; and the walk that
//! compares them.

use std::{path::Path, sync::Arc};

use fanfare_proto::{ChannelId, Code, ids::SHARDS_MAX};
use fanfare_storage::{
    StoreError,
    accounts::Accounts,
    content::{Content, Lists},
    embedded::{self, Options},
    log::Log,
    metadata::Metadata,
    model::OutboxBatch,
    ownership::Ownership,
    push::PushOutbox,
    reconcile::{Finding, Report, reconcile},
    seen::LastSeen,
};
use serde_json::{Value, json};

use crate::{
    admin_file::AdminFile,
    failure::{Failure, Outcome},
    push,
    token::{self, TokenIssuer},
};

/// The stores by what they are to the rest.
#[derive(Clone)]
pub struct Stores {
    /// Who, when, which place.
    pub metadata: Arc<dyn Metadata>,
    /// Passwords and logins.
    pub accounts: Arc<dyn Accounts>,
    /// When users were last there.
    pub seen: Arc<dyn LastSeen>,
    /// Who owns which shard.
    pub ownership: Arc<dyn Ownership>,
    /// What.
    pub content: Arc<dyn Content>,
    /// Users' lists.
    pub lists: Arc<dyn Lists>,
    /// The groups' log.
    pub log: Arc<dyn Log>,
    /// Outbox rows found at opening.
    pub recovered: Vec<OutboxBatch>,
}

/// Opens the folder, made where it is missing. Blocks.
///
/// # Errors
/// DATA_LOCKED with who holds it, DATA_FORMAT, DATA_DAMAGED, READ_ONLY.
pub fn open(folder: &Path) -> Outcome<Stores> {
    open_with(folder, false).map(|(stores, _)| stores)
}

/// As [`open`], with the push outbox where it is wanted.
///
/// # Errors
/// As of [`open`].
pub fn open_with(folder: &Path, pushes: bool) -> Outcome<(Stores, Option<Arc<dyn PushOutbox>>)> {
    let embedded = embedded::open(folder, &Options::default()).map_err(|error| refused(folder, error))?;
    let outbox =
        pushes.then(|| embedded.pushes(folder)).transpose().map_err(|error| refused(folder, error))?;
    let outbox = outbox.map(|outbox| outbox as Arc<dyn PushOutbox>);
    let stores = Stores {
        metadata: embedded.metadata.clone(),
        accounts: embedded.metadata.clone(),
        seen: embedded.metadata.clone(),
        ownership: embedded.metadata,
        content: embedded.store.clone(),
        lists: embedded.store.clone(),
        log: embedded.store,
        recovered: embedded.recovered,
    };
    Ok((stores, outbox))
}

fn refused(folder: &Path, error: StoreError) -> Failure {
    let shown = folder.display();
    match &error {
        StoreError::Locked(_) => {
            let who = AdminFile::read(folder)
                .map_or_else(String::new, |file| format!(" (pid {}, started {})", file.pid, file.started));
            Failure::new(Code::DATA_LOCKED, format!("cannot start: another fanfare holds {shown}{who}"))
                .why("the data folder is locked so that two servers never write it")
                .advise("fanfare status", "it may be the server you wanted")
                .advise("fanfare start --data ./other", "a second, separate server")
        }
        StoreError::Format { found, expected } => Failure::new(
            Code::DATA_FORMAT,
            format!("{shown} has data format {found}; this version reads {expected}"),
        )
        .advise("fanfare version", "says which version this is"),
        _ => Failure::from(error).why(format!("data folder {shown}")),
    }
}

/// The tokens' key, and whether it was made just now.
///
/// # Errors
/// Of the store.
pub fn token_key(metadata: &dyn Metadata) -> Outcome<(Vec<u8>, bool)> {
    let made = std::cell::Cell::new(false);
    let key = metadata.secret(token::SECRET, &|| {
        made.set(true);
        TokenIssuer::make_key()
    })?;
    Ok((key, made.get()))
}

/// A secret of 32 random bytes by name.
///
/// # Errors
/// Of the store.
pub fn random_secret(metadata: &dyn Metadata, name: &str) -> Outcome<Vec<u8>> {
    Ok(metadata.secret(name, &|| {
        let mut bytes = vec![0; 32];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
        bytes
    })?)
}

/// Makes all secrets that are not there yet.
///
/// # Errors
/// Of the store.
pub fn make_secrets(metadata: &dyn Metadata) -> Outcome {
    for name in ["client-ids", "resume", "resets", push::SECRET] {
        random_secret(metadata, name)?;
    }
    Ok(())
}

/// The number of shards that the folder was made with; `wanted` where it is made now.
///
/// # Errors
/// CONFIG_VALUE where the folder has another number.
pub fn shards(metadata: &dyn Metadata, wanted: u16) -> Outcome<u16> {
    let kept = metadata.secret("shards", &|| wanted.to_le_bytes().to_vec())?;
    let shards = <[u8; 2]>::try_from(kept.as_slice()).map(u16::from_le_bytes);
    match shards {
        Ok(shards) if shards == wanted => Ok(shards),
        Ok(shards) if (1..=SHARDS_MAX).contains(&shards) => Err(Failure::new(
            Code::CONFIG_VALUE,
            format!("router.shards is {wanted}, and the data folder has {shards}"),
        )
        .why("ids name their shard, so the number is fixed when the folder is made")
        .advise(format!("router.shards = {shards}"), "in the configuration")),
        _ => Err(Failure::new(Code::DATA_DAMAGED, "the data folder's number of shards does not read back")),
    }
}

/// Walks the stores against each other, also beside a running server. Blocks for as long as it takes.
///
/// # Errors
/// Of the stores.
pub fn walk(stores: &Stores) -> Outcome<Value> {
    let undrained = stores.metadata.outbox()?;
    let report =
        reconcile(stores.metadata.as_ref(), stores.content.as_ref(), stores.lists.as_ref(), &undrained)?;
    Ok(report_json(&report))
}

fn report_json(report: &Report) -> Value {
    let finding = |finding: &Finding| {
        let examples: Vec<Value> = finding
            .examples
            .iter()
            .map(
                |(channel, epoch, seq)| json!({ "channel": channel.to_string(), "epoch": epoch, "seq": seq }),
            )
            .collect();
        json!({ "count": finding.count, "examples": examples })
    };
    let lists: Vec<Value> = report
        .list_examples
        .iter()
        .map(|(user, channel, listed)| {
            let channel: &ChannelId = channel;
            json!({ "user": user.to_string(), "channel": channel.to_string(), "listed": listed })
        })
        .collect();
    json!({
        "schema": "fanfare.reconcile/v1",
        "clean": report.is_clean(),
        "entries_checked": report.entries_checked,
        "frames_checked": report.frames_checked,
        "chains_checked": report.chains_checked,
        "users_checked": report.users_checked,
        "undrained": report.undrained,
        "missing_content": finding(&report.missing_content),
        "hash_mismatch": finding(&report.hash_mismatch),
        "orphan_content": finding(&report.orphan_content),
        "chain_mismatch": finding(&report.chain_mismatch),
        "list_differences": { "count": report.list_differences, "examples": lists },
    })
}
