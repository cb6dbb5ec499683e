//! docs/reference/http.md: the OpenAPI document as a page.

use serde_json::Value;

use super::cell;
use crate::http;

/// What is there beside the API: path, and what for.
const PAGES: &[(&str, &str)] = &[
    ("/", "What this server is, for people."),
    ("/admin", "What to do to administer it, for people."),
    ("/admin/claim", "Takes a one-time link (`fanfare admin link`)."),
    (
        "/admin/v1/...",
        "What commands ask; behind the token of `admin.json` or an administrator's. It may change with each version: use the commands.",
    ),
    ("/livez", "200 while the process runs."),
    (
        "/readyz",
        "200 when it serves, else 503 with the names of the checks that fail; `?verbose` says of every check what it found, from elsewhere than this machine with a token as for metrics.",
    ),
    (
        "/metrics",
        "[Metrics](metrics.md) for Prometheus; from elsewhere than this machine with the token of `admin.json` or an administrator's.",
    ),
    ("/version", "Versions of the program, the protocol and the data."),
    ("/openapi.json", "This page for programs: OpenAPI 3.1."),
    ("/.well-known/fanfare.json", "Where clients connect, with the hash of a self-signed certificate."),
];

/// The page.
pub fn page() -> String {
    let document = serde_json::to_value(http::document()).unwrap_or_default();
    let mut page = String::from(
        "# HTTP API\n\n<!-- written by `fanfare docs http` -->\n\nWhat `/openapi.json` of a running server says, for reading. Bodies are JSON; ids \
         are decimal strings; times are RFC 3339. *Token* means\n`Authorization: Bearer` with a user's [token](../how-to/issue-tokens.md). An error is \
         `application/problem+json` (RFC 9457) with a `number` and `code` of [the one table](errors.md);\n429 and 503 say with `Retry-After` when to \
         come again. Every answer has `RateLimit-*` headers.\n\n## Beside the API\n\n| path | what it is |\n| --- | --- |\n",
    );
    for (path, what) in PAGES {
        page += &format!("| `{path}` | {what} |\n");
    }
    let mut tags: Vec<&str> = Vec::new();
    let operations = operations(&document);
    for (_, _, operation) in &operations {
        let tag = operation["tags"][0].as_str().unwrap_or("other");
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    for tag in tags {
        page += &format!("\n## {}\n", capital(tag));
        for (method, path, operation) in &operations {
            if operation["tags"][0].as_str() == Some(tag) {
                section(&mut page, method, path, operation);
            }
        }
    }
    page += "\n## Objects\n";
    for (name, schema) in members(&document["components"]["schemas"]) {
        let about = schema["description"].as_str().unwrap_or_default();
        page += &format!("\n### {name}\n");
        if !about.is_empty() {
            page += &format!("\n{about}\n");
        }
        page += "\n| field | type | what it is |\n| --- | --- | --- |\n";
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (field, of) in members(&schema["properties"]) {
            let may = if required.contains(&field.as_str()) { "" } else { ", may be left out" };
            let about = cell(of["description"].as_str().unwrap_or_default());
            page += &format!("| `{field}` | {}{may} | {about} |\n", kind(of));
        }
    }
    page
}

fn section(page: &mut String, method: &str, path: &str, operation: &Value) {
    let text = |name: &str| operation[name].as_str().unwrap_or_default().trim().to_owned();
    *page += &format!("\n### {} {path}\n\n{}.", method.to_uppercase(), text("summary").trim_end_matches('.'));
    let more = text("description");
    if !more.is_empty() {
        *page += &format!(" {}", more.replace('\n', " "));
    }
    *page += if operation["security"].is_array() { " *Token.*\n" } else { "\n" };
    let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    if !parameters.is_empty() {
        *page += "\n| parameter | in | type | what it is |\n| --- | --- | --- | --- |\n";
        for parameter in &parameters {
            let (name, place) = (parameter["name"].as_str(), parameter["in"].as_str());
            let about = cell(parameter["description"].as_str().unwrap_or_default());
            *page += &format!(
                "| `{}` | {} | {} | {about} |\n",
                name.unwrap_or_default(),
                place.unwrap_or_default(),
                kind(&parameter["schema"])
            );
        }
    }
    let body = content(&operation["requestBody"]);
    if !body.is_empty() {
        *page += &format!("\nBody: {body}\n");
    }
    *page += "\n| status | answer |\n| --- | --- |\n";
    // Errors without a word of their own stand in one line.
    let mut errors: Vec<&str> = Vec::new();
    for (status, response) in members(&operation["responses"]) {
        let about = response["description"].as_str().unwrap_or_default();
        let good = status.starts_with('2');
        let body = if good { content(response) } else { String::new() };
        let said: Vec<&str> = [body.as_str(), about].into_iter().filter(|part| !part.is_empty()).collect();
        if !good && said.is_empty() {
            errors.push(status);
        } else {
            *page += &format!("| {status} | {} |\n", cell(&said.join(": ")));
        }
    }
    if !errors.is_empty() {
        *page += &format!("| {} | an error |\n", errors.join(", "));
    }
}

fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut found = Vec::new();
    for (path, methods) in members(&document["paths"]) {
        for method in ["get", "post", "put", "delete"] {
            if let Some(operation) = methods.get(method) {
                found.push((method.to_owned(), path.clone(), operation.clone()));
            }
        }
    }
    found
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// What a body is made of: the object's name as a link, or the media type.
fn content(of: &Value) -> String {
    let Some((media, body)) = members(&of["content"]).next() else { return String::new() };
    let kind = kind(&body["schema"]);
    if media == "application/json" || media == "application/problem+json" {
        kind
    } else {
        format!("`{media}`")
    }
}

/// A schema's type in a word.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(several) = schema["oneOf"].as_array() {
        let kinds: Vec<String> = several.iter().map(kind).collect();
        return kinds.join(" or ");
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let mut text = types.join(" or ");
    if types.contains(&"array") {
        text = text.replace("array", &format!("list of {}", kind(&schema["items"])));
    }
    let bound = |name: &str| schema[name].as_u64();
    match (bound("minLength"), bound("maxLength"), bound("minimum"), bound("maximum")) {
        (Some(least), Some(most), _, _) => text += &format!(", {least} to {most} long"),
        (None, Some(most), _, _) => text += &format!(", at most {most} long"),
        (_, _, Some(least), Some(most)) => text += &format!(", {least} to {most}"),
        (_, _, Some(least), None) if least > 0 => text += &format!(", from {least}"),
        _ => {}
    }
    text
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + letters.as_str())
}
