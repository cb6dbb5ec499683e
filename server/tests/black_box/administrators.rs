//! The first administrator, from a shell: who says that there is none, and the link that makes one.

use std::process::Stdio;

use crate::{
    http::{exchange, get},
    process::{PATIENCE, Server, fanfare, lines, stderr, stdout},
};
use serde_json::{Value, json};

fn post(address: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let answer = exchange(
        address,
        &format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ),
    );
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// What `start --json` says first, on that folder.
fn ready(folder: &std::path::Path) -> Value {
    let flags = ["start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json", "--data"];
    let mut command = fanfare(&flags);
    let mut child = command.arg(folder).stdout(Stdio::piped()).spawn().expect("the binary runs");
    let line = lines(child.stdout.take().expect("piped")).recv_timeout(PATIENCE).expect("one line");
    let _ = child.kill();
    let _ = child.wait();
    serde_json::from_str(&line).expect("JSON")
}

#[test]
fn a_server_without_an_administrator_says_so_until_a_link_makes_one() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let data = folder.path().join("data");
    let setup = fanfare(&["setup", "--data"]).arg(&data).output().expect("the binary runs");
    assert!(stdout(&setup).contains("nobody yet: fanfare admin link"), "{}", stdout(&setup));

    let server = Server::on(folder, &[]);
    assert!(server.banner().contains("nobody yet: fanfare admin link"), "{}", server.banner());
    let address = server.admin()["address"].as_str().expect("an address").to_owned();
    let (status, page) = get(&address, "/admin");
    assert!(status == 200 && page.contains("fanfare admin link") && !page.contains("<input"), "{page}");

    let link = server.json(&["admin", "link", "--name", "olga"]);
    let url = link["url"].as_str().expect("a URL");
    let (page, secret) = url.split_once("#link=").expect("the secret stands behind the #");
    let (secret, name) = secret.split_once("&name=").expect("for somebody");
    assert_eq!((page, name), (&*format!("http://{address}/admin/claim"), "olga"));
    assert!(link["link"].is_null(), "the secret stands once in what is printed: {link}");
    let claim = json!({ "link": secret, "name": "olga", "password": "correct horse battery" });
    let (status, signed_in) = post(&address, "/v1/admin/claim", "", &claim);
    assert_eq!(status, 201, "{signed_in}");
    assert_eq!(post(&address, "/v1/admin/claim", "", &claim).0, 401, "it is good once");
    let token = signed_in["token"].as_str().expect("a token");
    let (status, made) = post(&address, "/admin/v1/users", token, &json!({ "name": "zoe" }));
    assert_eq!(status, 201, "{made}");
    assert_eq!(server.json(&["admin", "ls"])["administrators"][0]["name"], "olga");
    let marks = server.ok(&["user", "ls"]);
    assert!(marks.lines().any(|line| line.starts_with("olga") && line.contains("administrator")), "{marks}");

    // It is there after a restart, and nobody is told to make one.
    let (folder, _) = server.stop();
    let setup = fanfare(&["setup", "--data"]).arg(&data).output().expect("the binary runs");
    assert!(!stdout(&setup).contains("admin link"), "{}", stdout(&setup));
    assert_eq!(ready(&data)["administrator"], true);
    let server = Server::on(folder, &[]);
    assert!(!server.banner().contains("admin link"), "{}", server.banner());
    let refused = server.run(&["admin", "link", "--name", "no spaces"]);
    assert!(!refused.status.success() && stderr(&refused).contains("FAN-P006"), "{}", stderr(&refused));
    server.ok(&["user", "disable", "olga"]);
    let refused = server.run(&["admin", "link", "--name", "olga"]);
    assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("FAN-R002"), "{}", stderr(&refused));
    assert!(server.ok(&["admin", "ls"]).contains("fanfare admin link"), "a disabled one counts as none");
}

#[test]
fn dev_mode_asks_for_no_administrator() {
    let server = Server::dev();
    assert!(!server.banner().contains("admin link"), "{}", server.banner());
    let keys = server.json(&["admin", "webhook-keys", "rotate"]);
    let signs: Vec<_> =
        keys["webhook_keys"].as_array().expect("keys").iter().map(|key| key["signs"] == true).collect();
    assert_eq!(signs, [false, true]);
}
