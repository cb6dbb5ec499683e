//! `fanfare setup`: makes what a server needs, once; a second run finds it and says so.

use fanfare_proto::Code;
use serde_json::json;

use super::on_runtime;
use crate::{
    cli::Global,
    config,
    failure::{Outcome, exit},
    node::stores::{self, Stores},
    token::TokenIssuer,
};

/// Opens the folder itself, and therefore refuses one that a server holds.
pub fn run(global: &Global) -> Outcome<u8> {
    let output = global.output();
    let configuration = config::read(global, None)?;
    let folder = configuration.folder.clone();
    let was_there = folder.join("format").exists();
    let (token_kid, fresh_key) = on_runtime(async {
        let Stores { metadata, .. } = stores::open(&folder)?;
        let (key, fresh) = stores::token_key(metadata.as_ref())?;
        stores::make_secrets(metadata.as_ref())?;
        let issuer = TokenIssuer::new(&key, &configuration.issuer, &configuration.audience)
            .map_err(|error| crate::failure::Failure::of(Code::DATA_DAMAGED).why(format!("{error:#}")))?;
        Ok((issuer.kid().to_owned(), fresh))
    })?;
    let said = |fresh: bool| if fresh { "made" } else { "was there" };
    let steps = json!([
        { "what": "data folder", "where": folder.display().to_string(), "made": !was_there },
        { "what": "keys", "where": format!("in it; tokens' key {token_kid}"), "made": fresh_key },
    ]);
    output.object("setup", json!({ "data": folder.display().to_string(), "steps": steps }), || {
        format!(
            "data folder  {}   {}\nkeys         tokens' key {token_kid}   {}\nNext: fanfare start --data {}",
            folder.display(),
            said(!was_there),
            said(fresh_key),
            folder.display()
        )
    });
    Ok(exit::OK)
}
