//! A WebSocket echo server on Fanfare's own framing, for the Autobahn cases and for trying things by hand:
//! `cargo run --release -p fanfare-gateway --example ws_echo -- 127.0.0.1:9001`.
//!
//! It prints `listening on ADDRESS` when it accepts connections; port 0 takes a free one. It ends with Ctrl-C.

use std::io;
use std::time::Duration;

use anyhow::Context as _;
use fanfare_proto::ws::{
    Decoder, Event, HEAD_BYTES_MAX, Limits, Opcode, Role, SERVER_HEADER_BYTES_MAX, Upgrade, server_close,
    server_control, server_header,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Autobahn sends messages up to 16 MiB, in any number of fragments.
const LIMITS: Limits = Limits { message_bytes_max: 16 << 20, fragments_max: u32::MAX };
const READ_BYTES: usize = 64 << 10;
const CONNECTIONS_MAX: usize = 1024;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long the peer has to close its end after our close frame.
const LINGER: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).context("usage: ws_echo ADDRESS, such as 127.0.0.1:9001")?;
    let listener =
        TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"))?;
    println!("listening on {}", listener.local_addr()?);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(serve(socket));
                }
                Err(error) => eprintln!("cannot accept: {error}"),
            },
            Some(ended) = connections.join_next() => ended?,
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    connections.shutdown().await;
    Ok(())
}

async fn serve(mut socket: TcpStream) {
    // A peer that goes away in the middle is its own affair.
    let _ = echo(&mut socket).await;
}

async fn echo(socket: &mut TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
    let opened = tokio::time::timeout(HANDSHAKE, upgrade(socket, &mut head)).await;
    let Some(head_bytes) = opened.map_err(io::Error::from)?? else { return Ok(()) };

    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut buffer = vec![0; READ_BYTES];
    // What came behind the head already belongs to the frames.
    let mut filled = head.len() - head_bytes;
    buffer[..filled].copy_from_slice(&head[head_bytes..]);
    loop {
        let mut input = &mut buffer[..filled];
        let mut answers = Vec::new();
        let closing = loop {
            match decoder.next(&mut input) {
                Ok(None) => break false,
                Ok(Some(Event::Message { binary, payload })) => {
                    let opcode = if binary { Opcode::Binary } else { Opcode::Text };
                    let mut header = [0; SERVER_HEADER_BYTES_MAX];
                    let size = server_header(opcode, payload.len(), &mut header);
                    answers.extend_from_slice(&header[..size]);
                    answers.extend_from_slice(&payload);
                }
                Ok(Some(Event::Ping(payload))) => {
                    answers.extend_from_slice(&server_control(Opcode::Pong, &payload));
                }
                Ok(Some(Event::Pong(_))) => {}
                Ok(Some(Event::Close { code, .. })) => {
                    answers.extend_from_slice(&server_close(code, ""));
                    break true;
                }
                Err(error) => {
                    answers.extend_from_slice(&server_close(Some(error.close_code()), &error.to_string()));
                    break true;
                }
            }
        };
        socket.write_all(&answers).await?;
        if closing {
            return hang_up(socket, &mut buffer).await;
        }
        filled = socket.read(&mut buffer).await?;
        if filled == 0 {
            return Ok(());
        }
    }
}

/// Reads and answers the HTTP request: the length of its head, or `None` where it was refused.
async fn upgrade(socket: &mut TcpStream, head: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if socket.read_buf(head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match Upgrade::parse(head) {
            Ok(None) => {}
            Ok(Some((upgrade, head_bytes))) => {
                socket.write_all(&upgrade.response(None)).await?;
                return Ok(Some(head_bytes));
            }
            Err(refusal) => {
                socket.write_all(&refusal.response()).await?;
                socket.shutdown().await?;
                return Ok(None);
            }
        }
    }
}

/// Ends our direction and reads the peer's out: closing with unread bytes would reset the connection, and the
/// close frame could be lost on its way.
async fn hang_up(socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    socket.shutdown().await?;
    let drained = async {
        while socket.read(buffer).await? > 0 {}
        io::Result::Ok(())
    };
    tokio::time::timeout(LINGER, drained).await.map_err(io::Error::from)?
}
