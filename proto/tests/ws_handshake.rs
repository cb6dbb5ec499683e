//! The WebSocket upgrade: what is accepted, what is refused with which answer, and both sides against each
//! other.

use fanfare_proto::ws::{ClientRequest, HEAD_BYTES_MAX, HandshakeError, Refusal, Upgrade, accept_key};
use proptest::prelude::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn request(extra: &str) -> String {
    format!(
        "GET /v1/ws?x=1 HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    )
}

fn refused(head: &str) -> Refusal {
    Upgrade::parse(head.as_bytes()).expect_err("the request is to be refused")
}

#[test]
fn the_accept_key_of_rfc_6455() {
    assert_eq!(accept_key(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn an_upgrade_has_its_fields() {
    let head = request(
        "Origin: https://app.example.org\r\nAuthorization: Bearer abc\r\n\
         Sec-WebSocket-Protocol: fanfare.v2, fanfare.v1\r\nSec-WebSocket-Protocol: other\r\n\
         Sec-WebSocket-Extensions: permessage-deflate\r\n",
    );
    let wire = format!("{head}frames");
    let (upgrade, size) = Upgrade::parse(wire.as_bytes()).expect("valid").expect("whole");
    assert_eq!(size, head.len());
    assert_eq!((upgrade.path, upgrade.query, upgrade.host), ("/v1/ws", Some("x=1"), "example.org"));
    assert_eq!(upgrade.origin, Some("https://app.example.org"));
    assert_eq!(upgrade.authorization, Some("Bearer abc"));
    assert_eq!(upgrade.subprotocols, ["fanfare.v2", "fanfare.v1", "other"]);
    let response = String::from_utf8(upgrade.response(Some("fanfare.v1"))).expect("ASCII");
    assert_eq!(
        response,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: fanfare.v1\r\n\r\n"
    );
    for cut in 0..head.len() {
        assert_eq!(Upgrade::parse(&head.as_bytes()[..cut]), Ok(None));
    }
}

#[test]
fn what_is_no_upgrade_is_refused() {
    let good = request("");
    assert!(Upgrade::parse(good.as_bytes()).is_ok());
    for (from, to, status) in [
        ("GET /", "POST /", 405),
        ("GET /", "GET http://example.org/", 400),
        ("HTTP/1.1", "HTTP/1.0", 400),
        ("HTTP/1.1", "SPDY/3", 400),
        ("Host: example.org\r\n", "", 400),
        ("Host: example.org", "Host: a\r\nHost: b", 400),
        ("Upgrade: websocket\r\n", "", 426),
        ("Upgrade: websocket", "Upgrade: h2c", 426),
        ("keep-alive, Upgrade", "keep-alive", 400),
        ("Version: 13", "Version: 8", 426),
        ("Sec-WebSocket-Version: 13\r\n", "", 426),
        (KEY, "c2hvcnQ=", 400),
        (KEY, "!!!!", 400),
        (
            "Sec-WebSocket-Version",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version",
            400,
        ),
        ("Host: example.org", "Host: example.org\r\nContent-Length: 5", 400),
        ("Host: example.org", "Host: example.org\r\nTransfer-Encoding: chunked", 400),
        ("Host: example.org", "Host: exam\u{1}ple", 400),
        ("Host: example.org", "Host: example.org\r\n folded: line", 400),
    ] {
        assert!(good.contains(from));
        let refusal = refused(&good.replacen(from, to, 1));
        assert_eq!(refusal.status(), status, "{from} -> {to}: {refusal}");
    }
    // What is no HTTP fails at once, not at the deadline.
    assert_eq!(Upgrade::parse(b"\x16\x03\x01\x02\x00").expect_err("TLS").status(), 400);
}

#[test]
fn heads_are_capped() {
    let header = "X: y\r\n";
    assert!(Upgrade::parse(request(&header.repeat(59)).as_bytes()).is_ok());
    assert_eq!(refused(&request(&header.repeat(60))), Refusal::HeadTooLarge);

    let fill = HEAD_BYTES_MAX - request("X: \r\n").len();
    let exact = request(&format!("X: {}\r\n", "y".repeat(fill)));
    assert_eq!(exact.len(), HEAD_BYTES_MAX);
    assert!(matches!(Upgrade::parse(exact.as_bytes()), Ok(Some(_))));
    assert_eq!(refused(&request(&format!("X: {}\r\n", "y".repeat(fill + 1)))), Refusal::HeadTooLarge);
    assert_eq!(refused(&format!("GET /{}", "x".repeat(9000))), Refusal::HeadTooLarge);
}

#[test]
fn refusals_are_whole_http_responses() {
    for (refusal, line, header) in [
        (Refusal::BadRequest("why"), "HTTP/1.1 400 Bad Request", "Connection: close"),
        (Refusal::BadHeader("Host"), "HTTP/1.1 400 Bad Request", "Connection: close"),
        (Refusal::Forbidden("why"), "HTTP/1.1 403 Forbidden", "Connection: close"),
        (Refusal::NotFound, "HTTP/1.1 404 Not Found", "Connection: close"),
        (Refusal::MethodNotAllowed, "HTTP/1.1 405 Method Not Allowed", "Allow: GET"),
        (Refusal::Timeout, "HTTP/1.1 408 Request Timeout", "Connection: close"),
        (Refusal::UpgradeRequired, "HTTP/1.1 426 Upgrade Required", "Sec-WebSocket-Version: 13"),
        (Refusal::TooManyRequests, "HTTP/1.1 429 Too Many Requests", "Connection: close"),
        (Refusal::HeadTooLarge, "HTTP/1.1 431 Request Header Fields Too Large", "Connection: close"),
        (Refusal::Unavailable, "HTTP/1.1 503 Service Unavailable", "Retry-After: 5"),
    ] {
        let response = String::from_utf8(refusal.response()).expect("text");
        let (head, body) = response.split_once("\r\n\r\n").expect("head and body");
        assert!(head.starts_with(&format!("{line}\r\n")), "{head}");
        assert!(head.lines().any(|each| each == header), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    }
}

fn client<'a>() -> ClientRequest<'a> {
    ClientRequest {
        host: "localhost:7443",
        target: "/v1/ws",
        subprotocol: Some("fanfare.v1"),
        origin: None,
        authorization: Some("Bearer abc"),
        nonce: *b"the sample nonce",
    }
}

#[test]
fn both_sides_understand_each_other() {
    let client = client();
    let head = client.encode().expect("valid");
    let (upgrade, size) = Upgrade::parse(&head).expect("valid").expect("whole");
    assert_eq!((size, upgrade.key), (head.len(), KEY));
    let response = upgrade.response(Some("fanfare.v1"));
    for cut in 0..response.len() {
        assert_eq!(client.verify(&response[..cut]), Ok(None));
    }
    let accepted = client.verify(&response).expect("valid").expect("whole");
    assert_eq!(accepted.head_bytes, response.len());

    assert_eq!(client.verify(&Refusal::NotFound.response()), Err(HandshakeError::Status(404)));
    let wrong = HandshakeError::Mismatch("Sec-WebSocket-Protocol");
    assert_eq!(client.verify(&upgrade.response(None)), Err(wrong));
    assert_eq!(client.verify(&upgrade.response(Some("other"))), Err(wrong));
    let other = ClientRequest { nonce: [0; 16], ..client };
    assert_eq!(other.verify(&response), Err(HandshakeError::Mismatch("Sec-WebSocket-Accept")));
    let deflated = String::from_utf8(response).expect("ASCII").replacen(
        "Upgrade: websocket",
        "Upgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate",
        1,
    );
    let wrong = HandshakeError::Mismatch("Sec-WebSocket-Extensions");
    assert_eq!(client.verify(deflated.as_bytes()), Err(wrong));
}

#[test]
fn nothing_breaks_out_of_a_header_line() {
    let evil = "x\r\nEvil: yes";
    for request in [
        ClientRequest { host: evil, ..client() },
        ClientRequest { target: "/\r\nEvil: yes", ..client() },
        ClientRequest { target: "no-slash", ..client() },
        ClientRequest { subprotocol: Some(evil), ..client() },
        ClientRequest { origin: Some(evil), ..client() },
        ClientRequest { authorization: Some(evil), ..client() },
    ] {
        assert!(matches!(request.encode(), Err(HandshakeError::Request(_))), "{request:?}");
    }
}

proptest! {
    /// Damage never panics, and a whole answer never reaches behind the input.
    #[test]
    fn damaged_heads_are_survived(at in 0usize..400, byte: u8, len in 0usize..400) {
        let mut head = request("Origin: https://a\r\nSec-WebSocket-Protocol: fanfare.v1\r\n").into_bytes();
        let at = at % head.len();
        head[at] = byte;
        head.truncate(head.len().min(len.max(at + 1)));
        if let Ok(Some((upgrade, size))) = Upgrade::parse(&head) {
            prop_assert!(size <= head.len());
            prop_assert!(upgrade.path.starts_with('/'));
        }
        let _ = client().verify(&head);
    }
}
