//! The WebSocket framing against `tokio-websockets`, both ways round: handshake, messages of every size class,
//! control frames and the close.

use std::borrow::Cow;

use fanfare_proto::ws::{
    ClientRequest, Decoder, Event, Limits, Opcode, Role, SERVER_HEADER_BYTES_MAX, Upgrade, client_close,
    client_frame, server_close, server_control, server_header,
};
use futures_util::{SinkExt as _, StreamExt as _};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_websockets::{ClientBuilder, Config, Message, ServerBuilder};

/// Any error, for tests that only say where they failed.
type Failure = Box<dyn std::error::Error>;

const LIMITS: Limits = Limits { message_bytes_max: 1 << 20, fragments_max: u32::MAX };

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(test)
}

fn payloads() -> impl Strategy<Value = Vec<(bool, Vec<u8>)>> {
    let length =
        prop_oneof![Just(0usize), 1usize..200, Just(125), Just(126), Just(65_535), 65_536usize..90_000];
    let message = prop_oneof![
        (length, any::<u8>()).prop_map(|(length, byte)| (true, vec![byte; length])),
        any::<String>().prop_map(|text| (false, text.into_bytes())),
    ];
    prop::collection::vec(message, 1..6)
}

/// Answers the oracle's client on our framing: echoes messages until the close, reading `read_bytes` at a time.
async fn serve(mut socket: DuplexStream, read_bytes: usize) -> Result<(), Failure> {
    let mut head = Vec::new();
    let head_bytes = loop {
        socket.read_buf(&mut head).await?;
        if let Some((upgrade, head_bytes)) = Upgrade::parse(&head)? {
            assert_eq!((upgrade.path, upgrade.host), ("/v1/ws", "localhost"));
            socket.write_all(&upgrade.response(None)).await?;
            break head_bytes;
        }
    };
    assert_eq!(head_bytes, head.len());
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut buffer = vec![0; read_bytes];
    loop {
        let filled = socket.read(&mut buffer).await?;
        assert_ne!(filled, 0, "the close frame comes first");
        let mut input = &mut buffer[..filled];
        while let Some(event) = decoder.next(&mut input)? {
            match event {
                Event::Message { binary, payload } => {
                    let opcode = if binary { Opcode::Binary } else { Opcode::Text };
                    let mut header = [0; SERVER_HEADER_BYTES_MAX];
                    let size = server_header(opcode, payload.len(), &mut header);
                    socket.write_all(&header[..size]).await?;
                    socket.write_all(&payload).await?;
                }
                Event::Ping(payload) => socket.write_all(&server_control(Opcode::Pong, &payload)).await?,
                Event::Pong(_) => {}
                Event::Close { code, reason } => {
                    socket.write_all(&server_close(code, &reason)).await?;
                    return Ok(());
                }
            }
        }
    }
}

async fn oracle_client(
    socket: DuplexStream,
    messages: &[(bool, Vec<u8>)],
    frame_bytes: usize,
) -> Result<(), Failure> {
    let builder = ClientBuilder::new().uri("ws://localhost/v1/ws")?;
    let builder = builder.config(Config::default().frame_size(frame_bytes));
    let (mut client, _) = builder.connect_on(socket).await?;
    for (binary, payload) in messages {
        client.send(Message::ping("?")).await?;
        let message = match binary {
            true => Message::binary(payload.clone()),
            false => Message::text(String::from_utf8(payload.clone())?),
        };
        client.send(message).await?;
        let pong = client.next().await.ok_or("no pong")??;
        assert!(pong.is_pong() && pong.as_payload()[..] == b"?"[..]);
        let echo = client.next().await.ok_or("no echo")??;
        assert_eq!((echo.is_binary(), &echo.as_payload()[..]), (*binary, &payload[..]));
    }
    client.close().await?;
    Ok(())
}

/// Drives the oracle's server with our client side.
async fn client(
    mut socket: DuplexStream,
    messages: &[(bool, Vec<u8>)],
    mask: [u8; 4],
) -> Result<(), Failure> {
    let request = ClientRequest {
        host: "localhost",
        target: "/v1/ws",
        subprotocol: None,
        origin: None,
        authorization: None,
        nonce: *b"the sample nonce",
    };
    socket.write_all(&request.encode()?).await?;
    let mut head = Vec::new();
    while request.verify(&head)?.is_none() {
        head.push(socket.read_u8().await?);
    }
    let mut decoder = Decoder::new(Role::Client, LIMITS);
    let mut buffer = [0; 4096];
    for (binary, payload) in messages {
        let opcode = if *binary { Opcode::Binary } else { Opcode::Text };
        let mut frame = Vec::new();
        client_frame(opcode, payload, mask, &mut frame);
        socket.write_all(&frame).await?;
        loop {
            let filled = socket.read(&mut buffer).await?;
            assert_ne!(filled, 0, "the echo comes first");
            let mut input = &mut buffer[..filled];
            if let Some(event) = decoder.next(&mut input)? {
                assert_eq!(event, Event::Message { binary: *binary, payload: Cow::Borrowed(payload) });
                assert!(input.is_empty(), "one echo at a time");
                break;
            }
        }
    }
    socket.write_all(&client_close(Some(1000), "done", mask)).await?;
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await?;
    let mut input = &mut rest[..];
    let close = decoder.next(&mut input)?;
    assert!(matches!(close, Some(Event::Close { code: Some(1000), .. })), "{close:?}");
    Ok(())
}

async fn oracle_server(socket: DuplexStream) -> Result<(), Failure> {
    let (_, mut server) = ServerBuilder::new().accept(socket).await?;
    while let Some(message) = server.next().await {
        let message = message?;
        if message.is_binary() || message.is_text() {
            server.send(message).await?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn our_server_and_the_oracles_client(
        messages in payloads(),
        read_bytes in prop_oneof![1usize..50, 1000usize..70_000],
        frame_bytes in prop_oneof![50usize..500, Just(4096), Just(1 << 20)],
    ) {
        run(async {
            // The pipe holds whatever one side sends, so that neither waits for the other to read.
            let (near, far) = tokio::io::duplex(4 << 20);
            let (served, asked) = tokio::join!(serve(near, read_bytes), oracle_client(far, &messages, frame_bytes));
            served.expect("our server");
            asked.expect("the oracle's client");
        });
    }

    #[test]
    fn our_client_and_the_oracles_server(messages in payloads(), mask: [u8; 4]) {
        run(async {
            let (near, far) = tokio::io::duplex(4 << 20);
            let (asked, served) = tokio::join!(client(near, &messages, mask), oracle_server(far));
            asked.expect("our client");
            served.expect("the oracle's server");
        });
    }
}
