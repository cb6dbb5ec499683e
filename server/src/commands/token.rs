//! `fanfare token check`: every claim of a token beside what the server wants. The token itself is never printed.

use std::io::Read;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_gateway::{LEEWAY_S, Verifier};
use fanfare_proto::{Code, UserId, limits::TOKEN_BYTES_MAX};
use fanfare_storage::model::User;
use serde_json::{Map, Value, json};

use super::{folder, on_runtime, server, user::text};
use crate::{
    cli::{Global, Token},
    clock, config, contexts,
    failure::{Failure, Outcome, exit},
    node::stores,
    output::{table, tame},
    token::{TYPE, TokenIssuer},
};

/// What decides about tokens.
struct Trust {
    /// Who says so, for people.
    source: String,
    issuer: String,
    audience: String,
    /// `None`: nobody could be asked.
    keys: Option<Vec<(String, [u8; 32])>>,
    /// The clock that counts.
    now_ms: u64,
    /// Whether the user of `sub` is there and may connect; `None` where nobody could be asked.
    user: Option<Option<(String, bool)>>,
}

/// One line of the report.
struct Row {
    name: &'static str,
    value: String,
    /// `None`: not looked at.
    ok: Option<bool>,
    note: String,
    /// What a server answers where it is wrong.
    code: Code,
}

/// Says whether the token would be taken; exit 4 where not.
pub fn run(global: &Global, command: Token) -> Outcome<u8> {
    let Token::Check { token } = command;
    let token = if token == "-" { from_stdin()? } else { token };
    let token = token.trim();
    let parts = Parts::of(token);
    let user = parts.claim("sub").as_str().and_then(|sub| sub.parse().ok()).map(UserId);
    let trust = trust(global, user)?;
    let mut rows = rows(token, &parts, &trust);
    let refused = match &trust.keys {
        // The gateway's own verdict; the rows say why.
        Some(keys) => Verifier::new(&trust.issuer, &trust.audience, keys).verify(token, trust.now_ms).err(),
        None => rows.iter().find(|row| row.ok == Some(false)).map(|row| row.code),
    };
    let refused = refused.or_else(|| {
        let row = user_row(user, &trust);
        let code = row.as_ref().filter(|row| row.ok == Some(false)).map(|row| row.code);
        rows.extend(row);
        code
    });
    let difference_ms = trust.now_ms as i64 - clock::now_ms() as i64;
    let verified = trust.keys.is_some();
    let result = json!({
        "accepted": if verified || refused.is_some() { json!(refused.is_none()) } else { Value::Null },
        "code": refused.map(|code| code.to_string()),
        "checked_against": trust.source,
        "clock_difference_ms": difference_ms,
        "claims": rows
            .iter()
            .map(|row| json!({ "name": row.name, "value": row.value, "ok": row.ok, "note": row.note }))
            .collect::<Vec<_>>(),
    });
    global.output().object("token_check", result, || {
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                let mark = match row.ok {
                    Some(true) => "ok",
                    Some(false) => "WRONG",
                    None => "?",
                };
                vec![row.name.into(), mark.into(), tame(&row.value), tame(&row.note)]
            })
            .collect();
        let verdict = match (refused, verified) {
            (Some(_), _) => "it would be REFUSED",
            (None, true) => "it would be accepted",
            (None, false) => "its claims are as expected; its signature was not checked",
        };
        format!(
            "{}\n{verdict} (checked against {})",
            table(&["claim", "", "value", ""], &cells),
            trust.source
        )
    });
    let Some(code) = refused else { return Ok(exit::OK) };
    let wrong = rows.iter().find(|row| row.ok == Some(false) && row.code == code);
    let what = match wrong {
        Some(row) if row.value.is_empty() => format!("the token would be refused: {} {}", row.name, row.note),
        Some(row) => {
            format!("the token would be refused: {} is {}: {}", row.name, tame(&row.value), row.note)
        }
        None => "the token would be refused".to_owned(),
    };
    let mut failure = Failure::new(code, what).exiting(exit::REFUSED);
    if difference_ms.unsigned_abs() > 1_000 {
        let side = if difference_ms > 0 { "ahead of" } else { "behind" };
        let by = clock::span(difference_ms.unsigned_abs() / 1000);
        failure = failure.why(format!("the server's clock is {by} {side} this machine's"));
    }
    Err(failure)
}

fn from_stdin() -> Outcome<String> {
    let mut text = String::new();
    let most = 4 * TOKEN_BYTES_MAX as u64;
    let read = std::io::stdin().lock().take(most).read_to_string(&mut text);
    read.map_err(|error| Failure::usage("stdin could not be read as text").why(error))?;
    Ok(text)
}

/// Asks the running server, or the folder itself where none runs, or only the configuration where there is neither.
fn trust(global: &Global, user: Option<UserId>) -> Outcome<Trust> {
    let asked = server(global).and_then(|admin| {
        let of = user.map(|user| format!("?user={user}")).unwrap_or_default();
        let answer = on_runtime(admin.get(&format!("/tokens/trust{of}")))?;
        Ok((admin.file().address.clone(), answer))
    });
    let elsewhere = contexts::chosen(global)?.is_some();
    match asked {
        Ok((address, answer)) => Ok(of_server(&address, &answer)),
        Err(failure) if failure.exit == exit::UNREACHABLE && !elsewhere => {
            let configuration = config::read(global, None)?;
            let folder = folder(global)?;
            let mut trust = Trust {
                source: "the configuration only: no server runs and there is no data folder".into(),
                issuer: configuration.issuer,
                audience: configuration.audience,
                keys: None,
                now_ms: clock::now_ms(),
                user: None,
            };
            if folder.join("format").exists() {
                let stores = stores::open(&folder)?;
                let (key, _) = stores::token_key(stores.metadata.as_ref())?;
                let issuer = TokenIssuer::new(&key, &trust.issuer, &trust.audience)
                    .map_err(|error| Failure::of(Code::DATA_DAMAGED).why(format!("{error:#}")))?;
                let public = issuer.public_key().try_into().map_err(|_| Failure::of(Code::DATA_DAMAGED))?;
                trust.keys = Some(vec![(issuer.kid().to_owned(), public)]);
                trust.source = format!("the data folder {}; no server runs", folder.display());
                if let Some(user) = user {
                    let found = stores.metadata.user(user)?;
                    trust.user = Some(found.map(|user| (user.name, user.flags & User::DISABLED != 0)));
                }
            }
            Ok(trust)
        }
        Err(failure) => Err(failure),
    }
}

fn of_server(address: &str, answer: &Value) -> Trust {
    let keys = answer["keys"].as_array().into_iter().flatten();
    let keys = keys.filter_map(|key| Some((text(&key["kid"]), unhex(key["public"].as_str()?)?))).collect();
    let user = &answer["user"];
    Trust {
        source: format!("the server at {address}"),
        issuer: text(&answer["issuer"]),
        audience: text(&answer["audience"]),
        keys: Some(keys),
        now_ms: answer["now_ms"].as_u64().unwrap_or_else(clock::now_ms),
        user: Some(
            user["name"].as_str().map(|name| (name.to_owned(), user["disabled"].as_bool() == Some(true))),
        ),
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    (text.len() == 64).then_some(bytes)
}

/// The token taken apart, as far as that goes.
struct Parts {
    header: Result<Map<String, Value>, &'static str>,
    claims: Result<Map<String, Value>, &'static str>,
}

impl Parts {
    fn of(token: &str) -> Self {
        let parts: Vec<&str> = token.split('.').collect();
        let [header, claims, _] = parts.as_slice() else {
            let wrong = "does not have three parts with dots between";
            return Self { header: Err(wrong), claims: Err(wrong) };
        };
        let object = |part: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| "is not base64url without padding")?;
            serde_json::from_slice(&bytes).map_err(|_| "is not a JSON object")
        };
        Self { header: object(header), claims: object(claims) }
    }

    fn claim(&self, name: &str) -> &Value {
        self.claims.as_ref().ok().and_then(|claims| claims.get(name)).unwrap_or(&Value::Null)
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Every claim in the order in which the gateway looks at them.
fn rows(token: &str, parts: &Parts, trust: &Trust) -> Vec<Row> {
    let row = |name, value: String, ok, note: String, code| Row { name, value, ok, note, code };
    let mut rows = Vec::new();
    if token.len() > TOKEN_BYTES_MAX {
        let note = format!("a token has at most {TOKEN_BYTES_MAX} bytes");
        rows.push(row("length", token.len().to_string(), Some(false), note, Code::TOKEN_MALFORMED));
    }
    let malformed = Code::TOKEN_MALFORMED;
    let header = match &parts.header {
        Ok(header) => header,
        Err(why) => {
            rows.push(row("header", String::new(), Some(false), (*why).to_owned(), malformed));
            return rows;
        }
    };
    for (name, wanted) in [("alg", "EdDSA"), ("typ", TYPE)] {
        let value = header.get(name).map(shown).unwrap_or_default();
        let ok = header.get(name).and_then(Value::as_str) == Some(wanted);
        let note = if ok { String::new() } else { format!("must be {wanted}") };
        rows.push(row(name, value, Some(ok), note, malformed));
    }
    if let Some(other) = header.keys().find(|name| !["alg", "typ", "kid"].contains(&name.as_str())) {
        let note = "a header has alg, typ and kid and nothing else".to_owned();
        rows.push(row("header", other.clone(), Some(false), note, malformed));
    }
    rows.extend(key_rows(token, header, trust));
    let claims = match &parts.claims {
        Ok(claims) => claims,
        Err(why) => {
            rows.push(row("claims", String::new(), Some(false), (*why).to_owned(), malformed));
            return rows;
        }
    };
    for (name, wanted) in [("iss", &trust.issuer), ("aud", &trust.audience)] {
        let value = claims.get(name).map(shown).unwrap_or_default();
        let ok = claims.get(name).and_then(Value::as_str) == Some(wanted);
        let note = match (ok, claims.get(name)) {
            (true, _) => String::new(),
            (_, None) => format!("is missing; must be {wanted}"),
            (_, Some(Value::String(_))) => format!("must be {wanted} (tokens.{})", key_of(name)),
            _ => format!("must be the text {wanted}"),
        };
        rows.push(row(name, value, Some(ok), note, Code::TOKEN_CLAIMS));
    }
    let sub = claims.get("sub");
    let digits =
        |sub: &str| !sub.is_empty() && !sub.starts_with('0') && sub.bytes().all(|byte| byte.is_ascii_digit());
    let fits = |sub: &str| digits(sub) && sub.parse::<u64>().is_ok_and(|user| user >> 63 == 0);
    let ok = sub.and_then(Value::as_str).is_some_and(fits);
    let note = match (ok, sub) {
        (true, _) => "",
        (_, None) => "is missing; must be the user's id",
        (_, Some(Value::Number(_))) => "must be a text: the user's id as a decimal string, in quotes",
        _ => "must be the user's id as a decimal string (fanfare user ls)",
    };
    rows.push(row("sub", sub.map(shown).unwrap_or_default(), Some(ok), note.to_owned(), Code::TOKEN_CLAIMS));
    rows.extend(times(claims, trust.now_ms / 1000));
    rows
}

fn key_of(claim: &str) -> &'static str {
    if claim == "iss" { "issuer" } else { "audience" }
}

/// The key's id and the signature.
fn key_rows(token: &str, header: &Map<String, Value>, trust: &Trust) -> Vec<Row> {
    let kid = header.get("kid");
    let value = kid.map(shown).unwrap_or_default();
    let row =
        |name, value: String, ok, note: &str, code| Row { name, value, ok, note: note.to_owned(), code };
    let Some(kid) = kid.and_then(Value::as_str) else {
        return vec![row(
            "kid",
            value,
            Some(false),
            "must be the id of the key, a text",
            Code::TOKEN_MALFORMED,
        )];
    };
    let Some(keys) = &trust.keys else {
        return vec![
            row("kid", value, None, "no key to compare it with", Code::TOKEN_SIGNATURE),
            row("signature", String::new(), None, "not checked", Code::TOKEN_SIGNATURE),
        ];
    };
    let known: Vec<&str> = keys.iter().map(|(kid, _)| kid.as_str()).collect();
    let Some((_, public)) = keys.iter().find(|(known, _)| known == kid) else {
        let note = format!("this deployment's key is {}", known.join(", "));
        return vec![row("kid", value, Some(false), &note, Code::TOKEN_SIGNATURE)];
    };
    let (ok, note, code) = match signed(token, public) {
        Some(true) => (true, "", Code::TOKEN_SIGNATURE),
        Some(false) => (false, "is not by that key over this header and these claims", Code::TOKEN_SIGNATURE),
        None => (false, "is not base64url without padding", Code::TOKEN_MALFORMED),
    };
    vec![
        row("kid", value, Some(true), "", Code::TOKEN_SIGNATURE),
        row("signature", String::new(), Some(ok), note, code),
    ]
}

/// Whether that key signed it; `None` where the signature does not decode.
fn signed(token: &str, public: &[u8; 32]) -> Option<bool> {
    let (message, signature) = token.rsplit_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let key = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, public);
    Some(key.verify(message.as_bytes(), &signature).is_ok())
}

/// iat, nbf and exp beside the clock.
fn times(claims: &Map<String, Value>, now_s: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    let exp = claims.get("exp").and_then(Value::as_u64);
    for (name, needed) in [("iat", true), ("nbf", false), ("exp", true)] {
        let Some(value) = claims.get(name) else {
            if needed {
                let note = "is missing; must be a whole number of Unix seconds".to_owned();
                rows.push(Row {
                    name,
                    value: String::new(),
                    ok: Some(false),
                    note,
                    code: Code::TOKEN_CLAIMS,
                });
            }
            continue;
        };
        if !needed && value.is_null() {
            continue;
        }
        let Some(at) = value.as_u64() else {
            let note = "must be a whole number of Unix seconds".to_owned();
            rows.push(Row { name, value: shown(value), ok: Some(false), note, code: Code::TOKEN_CLAIMS });
            continue;
        };
        let when = clock::rfc3339(at.saturating_mul(1000));
        let away = clock::span(at.abs_diff(now_s));
        let (ok, note, code) = match name {
            "exp" if at > u64::from(u32::MAX) * 8 => {
                (false, "is beyond every calendar".into(), Code::TOKEN_CLAIMS)
            }
            "exp" if at.saturating_add(LEEWAY_S) <= now_s => {
                (false, format!("ended {away} ago ({when}; {LEEWAY_S} s are forgiven)"), Code::TOKEN_EXPIRED)
            }
            "exp" if at <= now_s => {
                (true, format!("ended {away} ago, which is forgiven for {LEEWAY_S} s"), Code::TOKEN_EXPIRED)
            }
            "exp" => (true, format!("{away} left ({when})"), Code::TOKEN_EXPIRED),
            _ if at > now_s + LEEWAY_S => (
                false,
                format!("is {away} ahead of the server's clock ({when}; {LEEWAY_S} s are forgiven)"),
                Code::TOKEN_CLAIMS,
            ),
            "iat" if exp.is_some_and(|exp| at > exp) => (false, "is after exp".into(), Code::TOKEN_CLAIMS),
            _ => (true, format!("{away} ago ({when})"), Code::TOKEN_CLAIMS),
        };
        rows.push(Row { name, value: at.to_string(), ok: Some(ok), note, code });
    }
    rows
}

/// The user of `sub`, where somebody could be asked.
fn user_row(user: Option<UserId>, trust: &Trust) -> Option<Row> {
    let value = user?.to_string();
    let row = |ok, note: String, code| Row { name: "user", value, ok: Some(ok), note, code };
    Some(match trust.user.as_ref()? {
        None => row(false, "no user has this id here (fanfare user ls)".into(), Code::UNKNOWN_USER),
        Some((name, true)) => row(false, format!("{name} may not connect"), Code::REVOKED),
        Some((name, false)) => row(true, name.clone(), Code::UNKNOWN_USER),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_lc_rs::signature::Ed25519KeyPair;

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn sign(pair: &Ed25519KeyPair, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes())))
    }

    /// The rows must say what the gateway says, whatever is wrong.
    #[test]
    fn the_first_wrong_row_has_the_gateways_number() {
        let pkcs8 = TokenIssuer::make_key();
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).expect("a fresh key");
        let issuer = TokenIssuer::new(&pkcs8, "here", "chat").expect("a fresh key");
        let public: [u8; 32] = issuer.public_key().try_into().expect("32 bytes");
        let keys = vec![(issuer.kid().to_owned(), public)];
        let verifier = Verifier::new("here", "chat", &keys);
        let trust = Trust {
            source: String::new(),
            issuer: "here".into(),
            audience: "chat".into(),
            keys: Some(keys),
            now_ms: NOW_MS,
            user: None,
        };
        let now = NOW_MS / 1000;
        let header = json!({ "alg": "EdDSA", "typ": TYPE, "kid": issuer.kid() });
        let claims = json!({ "iss": "here", "aud": "chat", "sub": "42", "iat": now, "exp": now + 60 });
        let with = |of: &Value, name: &str, value: Value| {
            let mut of = of.clone();
            of[name] = value;
            of
        };
        let mut tokens = vec![
            String::new(),
            "a.b".into(),
            "a.b.c.d".into(),
            "!.e30.e30".into(),
            issuer.issue(UserId(1), Duration::from_secs(9), NOW_MS).expect("signed").token,
            format!("{}x", sign(&pair, &header, &claims)),
            format!("{}=", sign(&pair, &header, &claims)),
            "x".repeat(5_000),
        ];
        for (name, value) in [
            ("alg", json!("HS256")),
            ("alg", json!(1)),
            ("typ", json!("JWT")),
            ("kid", json!("other")),
            ("kid", json!(1)),
            ("jku", json!("https://x")),
        ] {
            tokens.push(sign(&pair, &with(&header, name, value), &claims));
        }
        for (name, value) in [
            ("iss", json!("there")),
            ("aud", json!(["chat"])),
            ("sub", json!(42)),
            ("sub", json!("+42")),
            ("sub", json!("042")),
            ("sub", json!("99999999999999999999")),
            ("iat", json!(now + 31)),
            ("iat", json!(now + 30)),
            ("iat", json!(1_799_999_999.5)),
            ("iat", Value::Null),
            ("nbf", json!(now + 31)),
            ("nbf", Value::Null),
            ("exp", json!(now - 30)),
            ("exp", json!(now - 1)),
            ("exp", json!("soon")),
            ("exp", json!(u64::MAX)),
        ] {
            tokens.push(sign(&pair, &header, &with(&claims, name, value)));
        }
        for token in tokens {
            let parts = Parts::of(&token);
            let rows = rows(&token, &parts, &trust);
            let first = rows.iter().find(|row| row.ok == Some(false)).map(|row| row.code);
            let said: Vec<String> =
                rows.iter().map(|row| format!("{} {:?} {}", row.name, row.ok, row.note)).collect();
            assert_eq!(first, verifier.verify(&token, NOW_MS).err(), "{:?} {said:#?}", parts.claims);
        }
    }
}
