//! `fanfare config`: check, show, and every key there is. Nothing is started.

use fanfare_proto::Code;
use serde_json::{Value as Json, json};

use super::docs;
use crate::{
    cli::{Config, Global},
    config::{KEYS, Layers, Problem, Value, env_name, failure},
    failure::{Outcome, exit},
    output::table,
};

/// Checks, or shows.
pub fn run(global: &Global, command: &Config) -> Outcome<u8> {
    let output = global.output();
    if matches!(command, Config::Docs) {
        let items = KEYS.iter().map(|key| {
            json!({
                "key": key.name,
                "takes": key.kind.to_string(),
                "default": key.default,
                "default_dev": key.default_dev,
                "env": env_name(key),
                "help": key.help,
            })
        });
        output.list("keys", "key", items.collect(), || docs::configuration().trim_end().to_owned());
        return Ok(exit::OK);
    }
    let layers = Layers::read(global, None).and_then(|layers| layers.configuration().map(|_| layers));
    let layers = match layers {
        Ok(layers) => layers,
        Err(problems) => return report(global, &problems),
    };
    match command {
        Config::Check => {
            let set = layers.all().filter(|(_, _, origin)| origin.to_string() != "default").count();
            output.object("config_check", json!({ "valid": true, "keys_set": set, "problems": [] }), || {
                format!("valid: {set} of {} keys set, 0 unknown", KEYS.len())
            });
        }
        Config::Docs => {}
        Config::Show { origin: with_origin } => {
            let items = layers
                .all()
                .map(|(key, value, origin)| {
                    json!({
                        "key": key.name,
                        "value": value_json(value),
                        "origin": origin.to_string(),
                        "takes": key.kind.to_string(),
                        "help": key.help,
                    })
                })
                .collect();
            output.list("config", "config_key", items, || {
                let rows: Vec<Vec<String>> = layers
                    .all()
                    .map(|(key, value, origin)| {
                        let last = if *with_origin { origin.to_string() } else { key.kind.to_string() };
                        vec![key.name.into(), value.to_string(), last, key.help.into()]
                    })
                    .collect();
                table(&["key", "value", if *with_origin { "origin" } else { "takes" }, "for"], &rows)
            });
        }
    }
    Ok(exit::OK)
}

/// Every mistake, each with its place: one of them as the failure, all of them for programs.
fn report(global: &Global, problems: &[Problem]) -> Outcome<u8> {
    let output = global.output();
    if output.is_human() {
        return Err(failure(problems));
    }
    let items: Vec<Json> = problems
        .iter()
        .map(|problem| json!({ "code": problem.code.to_string(), "what": problem.what, "try": problem.advice }))
        .collect();
    output.object("config_check", json!({ "valid": false, "problems": items }), String::new);
    output.failure(&failure(problems));
    let code = problems.first().map_or(Code::CONFIG_VALUE, |problem| problem.code);
    Ok(crate::failure::Failure::of(code).exit)
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::Text(text) => text.as_str().into(),
        Value::Number(number) => (*number).into(),
        Value::List(items) => items.clone().into(),
    }
}
