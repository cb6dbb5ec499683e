//! Any bytes as a request or a response head: no panic, and what is accepted is what the types promise.

#![no_main]

use fanfare_proto::ws::{ClientRequest, HEAD_BYTES_MAX, Upgrade};
use libfuzzer_sys::fuzz_target;

/// A valid request but for its empty line: behind it the input is more headers.
const BEGUN: &[u8] = b"GET /v1/ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
/// The same for the response to `ClientRequest` below.
const ANSWERED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

fuzz_target!(|data: &[u8]| {
    server(data);
    server(&[BEGUN, data].concat());
    client(data);
    client(&[ANSWERED, data].concat());
});

fn server(data: &[u8]) {
    match Upgrade::parse(data) {
        Ok(None) => assert!(data.len() < HEAD_BYTES_MAX),
        Ok(Some((upgrade, size))) => {
            assert!(size <= data.len() && size <= HEAD_BYTES_MAX);
            assert!(upgrade.path.starts_with('/'));
            assert_eq!(upgrade.key.len(), 24);
            // A whole head means the same whatever follows it.
            let (again, again_size) = Upgrade::parse(&data[..size]).expect("valid").expect("whole");
            assert_eq!((&again, again_size), (&upgrade, size));
            // One response: nothing of the request breaks out of its line.
            let response = upgrade.response(None);
            assert_eq!(response.windows(4).filter(|bytes| bytes == b"\r\n\r\n").count(), 1);
        }
        Err(refusal) => assert!(matches!(refusal.status(), 400 | 405 | 426 | 431)),
    }
}

fn client(data: &[u8]) {
    let request = ClientRequest {
        host: "localhost",
        target: "/v1/ws",
        subprotocol: Some("fanfare.v1"),
        origin: None,
        authorization: None,
        nonce: *b"the sample nonce",
    };
    if let Ok(Some(accepted)) = request.verify(data) {
        assert!(accepted.head_bytes <= data.len());
    }
}
