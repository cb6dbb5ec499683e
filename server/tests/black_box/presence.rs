//! Who is online, by commands and by HTTP, of a server that is stopped and started again.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    http::exchange,
    process::{Server, lines, wait_for},
};

/// Within which a change has to show.
const WITHIN: Duration = Duration::from_secs(10);

fn of(server: &Server, user: &str, viewer: Option<&str>) -> Value {
    let mut arguments = vec!["presence", user];
    arguments.extend(viewer.into_iter().flat_map(|viewer| ["--as", viewer]));
    server.json(&arguments)["presence"][0].clone()
}

fn until(server: &Server, user: &str, viewer: Option<&str>, status: &str) -> Value {
    let until = Instant::now() + WITHIN;
    loop {
        let seen = of(server, user, viewer);
        if seen["status"] == status {
            return seen;
        }
        assert!(Instant::now() < until, "{user} is not {status}: {seen}");
    }
}

#[test]
fn a_user_is_online_while_connected_and_was_there_when_not() {
    let server = Server::dev();
    assert_eq!(of(&server, "carol", None)["last_seen_ms"], Value::Null, "never seen");
    let mut listener = server.command(&["listen", "general", "--as", "carol"]);
    let mut listener =
        listener.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    wait_for(&lines(listener.stderr.take().expect("piped")), "listening");
    let own = until(&server, "carol", Some("carol"), "online");
    assert_eq!(own["devices"].as_array().map(Vec::len), Some(1), "{own}");
    let seen = until(&server, "carol", Some("alice"), "online");
    assert_eq!((&seen["devices"], &seen["last_seen_ms"]), (&Value::Null, &Value::Null), "{seen}");

    // By HTTP, with the token of somebody who shares a group.
    let token = server.ok(&["user", "token", "alice"]).trim().to_owned();
    let carol = seen["user"].as_str().expect("an id").to_owned();
    let address = server.admin()["address"].as_str().expect("an address").to_owned();
    let ask = |method: &str, path: &str, token: &str, body: &str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(&address, &request);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (
            answer.split(' ').nth(1).unwrap_or_default().to_owned(),
            serde_json::from_str(body).unwrap_or(Value::Null),
        )
    };
    let (status, one) = ask("GET", &format!("/v1/users/{carol}/presence"), &token, "");
    assert_eq!((status.as_str(), &one["status"]), ("200", &json!("online")), "{one}");
    let (_, some) = ask("GET", &format!("/v1/presence?users={carol},1"), &token, "");
    assert_eq!(some["presence"][1]["status"], "unknown", "there is none: {some}");
    assert_eq!(ask("GET", "/v1/presence?users=carol", &token, "").0, "400");
    assert_eq!(ask("GET", &format!("/v1/users/{carol}/presence"), "none", "").0, "401");
    let carols = server.ok(&["user", "token", "carol"]).trim().to_owned();
    assert_eq!(ask("GET", "/v1/audience", &carols, "").1["audience"], "shared_channels");
    assert_eq!(ask("PUT", "/v1/audience", &carols, r#"{"audience":"nobody"}"#).0, "200");
    assert_eq!(ask("PUT", "/v1/audience", &carols, r#"{"audience":"friends"}"#).0, "400");
    assert_eq!(ask("GET", &format!("/v1/users/{carol}/presence"), &token, "").1["status"], "unknown");
    server.ok(&["user", "seen-by", "carol", "shared-channels"]);
    // Who blocks is not seen by the blocked, nor sees.
    let alice =
        server.json(&["presence", "alice"])["presence"][0]["user"].as_str().expect("an id").to_owned();
    assert_eq!(ask("PUT", &format!("/v1/blocks/{alice}"), &carols, "").0, "200");
    assert_eq!(of(&server, "carol", Some("alice"))["status"], "unknown");
    assert_eq!(of(&server, "alice", Some("carol"))["status"], "unknown");
    assert_eq!(of(&server, "carol", Some("bob"))["status"], "online");
    assert_eq!(ask("DELETE", &format!("/v1/blocks/{alice}"), &carols, "").0, "200");

    listener.kill().expect("it runs");
    listener.wait().expect("it ends");
    let seen = until(&server, "carol", Some("alice"), "offline");
    let last_seen_ms = seen["last_seen_ms"].as_u64().expect("a time");
    let (folder, _) = server.stop();
    let server = Server::on(folder, &["--dev"]);
    let seen = of(&server, "carol", Some("alice"));
    assert_eq!((&seen["status"], &seen["last_seen_ms"]), (&json!("offline"), &json!(last_seen_ms)), "{seen}");
}
