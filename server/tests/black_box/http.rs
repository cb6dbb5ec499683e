//! The HTTP side of the real binary: health, metrics, discovery, and a door that stays shut without its key.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use crate::process::{PATIENCE, Server};
use serde_json::Value;

pub fn exchange(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

pub fn get(address: &str, path: &str) -> (u16, String) {
    let answer =
        exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"));
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

#[test]
fn health_metrics_and_discovery_need_no_token_and_everything_else_does() {
    let server = Server::dev();
    let admin = server.admin();
    let address = admin["address"].as_str().expect("an address");

    assert_eq!(get(address, "/livez"), (200, "live\n".into()));
    assert_eq!(get(address, "/readyz"), (200, "ready\n".into()));
    let (status, checks) = get(address, "/readyz?verbose");
    assert!(status == 200 && checks.contains("[+] stores") && checks.contains("[+] gateway"), "{checks}");
    let (status, metrics) = get(address, "/metrics");
    assert!(status == 200 && metrics.contains("process_resident_memory_bytes"), "{metrics}");
    let (status, page) = get(address, "/");
    assert!(status == 200 && page.contains("fanfare listen general"), "{page}");
    let (_, version) = get(address, "/version");
    let version: Value = serde_json::from_str(&version).expect("JSON");
    assert_eq!(version["schema"], "fanfare.version/v1");

    let (status, discovery) = get(address, "/.well-known/fanfare.json");
    assert_eq!(status, 200);
    let discovery: Value = serde_json::from_str(&discovery).expect("JSON");
    assert_eq!(discovery["version"], 1);
    assert_eq!(discovery["certificate_sha256"][0].as_str().map(str::len), Some(64), "{discovery}");
    let gateway = format!("127.0.0.1:{}", discovery["gateways"][0]["port"]);
    assert_eq!(admin["gateway"], gateway);

    for path in ["/admin/v1/users", "/admin/v1/status", "/nowhere"] {
        let (status, problem) = get(address, path);
        let problem: Value = serde_json::from_str(&problem).expect("problem+json");
        assert_eq!(status, if path == "/nowhere" { 404 } else { 401 });
        assert!(problem["code"].as_str().is_some_and(|code| code.starts_with("FAN-")), "{problem}");
    }
}

#[test]
fn every_metric_says_what_it_is() {
    let server = Server::dev();
    server.ok(&["send", "general", "hi", "--as", "bob"]);
    server.ok(&["send", "general", "hi", "--as", "carol", "--transport", "quic"]);
    let admin = server.admin();
    let (_, metrics) = get(admin["address"].as_str().expect("an address"), "/metrics");
    let mut samples = 0;
    for line in metrics.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let of = name.strip_suffix("_sum").or(name.strip_suffix("_count")).unwrap_or(name);
        let about = |kind: &str| {
            let found = metrics.lines().find_map(|line| line.strip_prefix(&format!("# {kind} {of} ")));
            found.unwrap_or_else(|| panic!("{name} has no {kind}:\n{metrics}")).trim().len()
        };
        assert!(about("HELP") > 5, "{name}: its help helps nobody");
        assert!(about("TYPE") > 3, "{name}: it has no type");
        samples += 1;
    }
    assert!(samples > 20, "{metrics}");
}

#[test]
fn bodies_and_heads_have_bounds() {
    let server = Server::dev();
    let admin = server.admin();
    let address = admin["address"].as_str().expect("an address");
    let token = admin["token"].as_str().expect("a token");

    let body = "x".repeat((1 << 20) + 1);
    let large = exchange(
        address,
        &format!(
            "POST /admin/v1/users HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ),
    );
    assert!(large.starts_with("HTTP/1.1 413"), "{large}");
    let long =
        exchange(address, &format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(64 * 1024)));
    assert!(long.starts_with("HTTP/1.1 431") || long.is_empty(), "{long}");
    // A head that never ends: the server ends it.
    let slow = exchange(address, "GET / HTTP/1.1\r\nhost: a\r\n");
    assert!(slow.is_empty() || slow.starts_with("HTTP/1.1 4"), "{slow}");
    assert_eq!(get(address, "/livez").0, 200);
}

#[test]
fn users_are_made_in_bulk_with_tokens_and_twice_is_the_same() {
    let server = Server::dev();
    let admin = server.admin();
    let address = admin["address"].as_str().expect("an address");
    let token = admin["token"].as_str().expect("a token");
    let post = |body: &str| {
        let answer = exchange(
            address,
            &format!(
                "POST /admin/v1/users/bulk HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            ),
        );
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        (head.to_owned(), serde_json::from_str::<Value>(body).expect("JSON"))
    };
    let body = r#"{"names":["m-1","m-2","alice"],"full_delivery":true,"token_ttl_s":60}"#;
    let (_, first) = post(body);
    let (_, second) = post(body);
    for number in 0..3 {
        assert_eq!(first["users"][number]["user"], second["users"][number]["user"]);
        assert_eq!(first["users"][number]["created"], number < 2);
        assert_eq!(second["users"][number]["created"], false);
    }
    let (head, problem) = post(r#"{"names":["a b"]}"#);
    assert!(head.starts_with("HTTP/1.1 400"), "{head} {problem}");
    let (head, problem) = post(r#"{"nmaes":[]}"#);
    assert!(head.starts_with("HTTP/1.1 400") && problem["number"] == 1004, "{head} {problem}");
}
