//! `fanfare context`.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::{
    cli::Context as Command,
    contexts::{self, Context, Contexts},
    failure::{Failure, Outcome, exit},
    output::{Output, table},
};

/// Adds, lists, chooses, shows, forgets.
pub fn run(output: Output, command: Command) -> Outcome<u8> {
    let mut contexts = Contexts::read()?;
    match command {
        Command::Add { name, admin, token_file } => {
            let token_file = std::path::absolute(token_file)?;
            contexts.add(&name, Context { admin, token_file })?;
            contexts.write()?;
            let context = contexts.named(&name)?;
            caution(output, context);
            output.object("context", row(&contexts, &name, context), || {
                format!("added {name}. Next: fanfare context use {name}  ·  fanfare status -c {name}")
            });
        }
        Command::Ls => {
            let items = contexts.contexts.iter().map(|(name, context)| row(&contexts, name, context));
            let rows: Vec<Vec<String>> = contexts
                .contexts
                .iter()
                .map(|(name, context)| {
                    let mark = if contexts.current.as_ref() == Some(name) { "*" } else { "" };
                    vec![mark.to_owned(), name.clone(), context.admin.clone()]
                })
                .collect();
            output.list("contexts", "context", items.collect(), || {
                if rows.is_empty() {
                    "no contexts: commands ask the data folder's server".to_owned()
                } else {
                    table(&["", "name", "admin"], &rows)
                }
            });
        }
        Command::Use { name, .. } => {
            if let Some(name) = &name {
                contexts.named(name)?;
            }
            contexts.current = name;
            contexts.write()?;
            let current = contexts.current.clone();
            output.object("context_use", json!({ "current": current }), || match &current {
                Some(name) => {
                    format!("commands ask {name} from now on (fanfare context use --none goes back)")
                }
                None => "commands ask the data folder's server from now on".to_owned(),
            });
        }
        Command::Show { name } => {
            let name = name.or_else(|| contexts.current.clone()).ok_or_else(|| {
                Failure::usage("no context is in use: name one").advise("fanfare context ls", "lists them")
            })?;
            let context = contexts.named(&name)?;
            caution(output, context);
            let source = match context.reach(&name) {
                Ok(_) => "a token is there".to_owned(),
                Err(failure) => failure.why.first().cloned().unwrap_or(failure.what),
            };
            let mut shown = row(&contexts, &name, context);
            shown["token"] = source.as_str().into();
            shown["file"] = contexts::path()?.display().to_string().into();
            output.object("context", shown, || {
                format!(
                    "{name}\n  admin       {}\n  token file  {}   ({source})\n  kept in     {}",
                    context.admin,
                    context.token_file.display(),
                    contexts::path().map(|path| path.display().to_string()).unwrap_or_default()
                )
            });
        }
        Command::Rm { name } => {
            contexts.named(&name)?;
            contexts.contexts.remove(&name);
            let was_current = contexts.current.as_ref() == Some(&name);
            if was_current {
                contexts.current = None;
            }
            contexts.write()?;
            output.object("context_rm", json!({ "name": name, "was_current": was_current }), || {
                let then = if was_current { "; commands ask the data folder's server again" } else { "" };
                format!("forgot {name}{then}; its token file is left alone")
            });
        }
    }
    Ok(exit::OK)
}

fn row(contexts: &Contexts, name: &str, context: &Context) -> Value {
    json!({
        "name": name,
        "admin": context.admin,
        "token_file": context.token_file.display().to_string(),
        "current": contexts.current.as_deref() == Some(name),
    })
}

/// What should be known before the token is used.
fn caution(output: Output, context: &Context) {
    let mode = std::fs::metadata(&context.token_file).map(|file| file.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o077 != 0) {
        let shown = context.token_file.display();
        output.remark(&format!("others may read the token: chmod 600 {shown}"));
    }
    let host = contexts::address(&context.admin).unwrap_or_default();
    let host = host.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !here {
        output.remark(
            "the token crosses the network as it is: a tunnel keeps it secret (ssh -L 7080:127.0.0.1:7080 HOST)",
        );
    }
}
