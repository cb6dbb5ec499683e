//! `fanfare setup`: makes what a server needs, once; a second run finds it and says so.

use fanfare_proto::Code;
use fanfare_storage::model::User;
use serde_json::json;

use super::on_runtime;
use crate::{
    accounts::administrators::ADMINISTRATORS_MAX,
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
    let (token_kid, fresh_key, administrator) = on_runtime(async {
        let Stores { metadata, accounts, .. } = stores::open(&folder)?;
        let (key, fresh) = stores::token_key(metadata.as_ref())?;
        stores::make_secrets(metadata.as_ref())?;
        let issuer = TokenIssuer::new(&key, &configuration.issuer, &configuration.audience)
            .map_err(|error| crate::failure::Failure::of(Code::DATA_DAMAGED).why(format!("{error:#}")))?;
        let administrators = accounts.administrators(ADMINISTRATORS_MAX)?;
        let administrator = administrators.iter().any(|user| user.flags & User::DISABLED == 0);
        Ok((issuer.kid().to_owned(), fresh, administrator))
    })?;
    let said = |fresh: bool| if fresh { "made" } else { "was there" };
    let steps = json!([
        { "what": "data folder", "where": folder.display().to_string(), "made": !was_there },
        { "what": "keys", "where": format!("in it; tokens' key {token_kid}"), "made": fresh_key },
    ]);
    let data = folder.display().to_string();
    let result = json!({ "data": data, "steps": steps, "administrator": administrator });
    output.object("setup", result, || {
        let admin = if administrator {
            String::new()
        } else {
            format!("\nadmin        nobody yet: fanfare admin link --data {data}, once it runs")
        };
        format!(
            "data folder  {data}   {}\nkeys         tokens' key {token_kid}   {}{admin}\nNext: fanfare start --data {data}",
            said(!was_there),
            said(fresh_key),
        )
    });
    Ok(exit::OK)
}
