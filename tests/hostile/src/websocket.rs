//! A WebSocket connection by hand: an upgrade, binary messages as they are given, and what comes back.

use std::{collections::VecDeque, net::SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use fanfare_proto::{
    Frame, SUBPROTOCOL, WS_PATH,
    ws::{ClientRequest, Decoder, Event, Limits, Opcode, Role, client_close, client_frame},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::attempt::Incoming;

const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// See the module's page.
pub struct Link {
    stream: TcpStream,
    decoder: Decoder,
    ready: VecDeque<Frame>,
    close: Option<Option<u16>>,
}

impl Link {
    /// Connects and upgrades.
    pub async fn connect(server: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let host = server.to_string();
        let request = ClientRequest {
            host: &host,
            target: WS_PATH,
            subprotocol: Some(SUBPROTOCOL),
            origin: None,
            authorization: None,
            nonce: *b"the sample nonce",
        };
        stream.write_all(&request.encode()?).await?;
        let mut head = Vec::new();
        let accepted = loop {
            let mut buffer = [0; 2048];
            let length = stream.read(&mut buffer).await?;
            ensure!(length > 0, "the connection ended inside the upgrade");
            head.extend_from_slice(&buffer[..length]);
            if let Some(accepted) = request.verify(&head)? {
                break accepted;
            }
        };
        ensure!(accepted.head_bytes == head.len(), "the server speaks before HELLO");
        let decoder = Decoder::new(Role::Client, Limits::FANFARE);
        Ok(Self { stream, decoder, ready: VecDeque::new(), close: None })
    }

    /// One binary message.
    pub async fn send(&mut self, bytes: &Bytes) -> Result<()> {
        let mut out = Vec::with_capacity(bytes.len() + 16);
        client_frame(Opcode::Binary, bytes, MASK, &mut out);
        Ok(self.stream.write_all(&out).await?)
    }

    /// The next frame, or the end.
    pub async fn next(&mut self) -> Result<Incoming> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(Incoming::Frame(frame));
            }
            if let Some(code) = self.close {
                // The server waits for this, so that nothing is lost to a reset.
                let _ = self.stream.write_all(&client_close(code, "", MASK)).await;
                return Ok(Incoming::End(code.map(u64::from)));
            }
            let mut buffer = [0; 16 * 1024];
            let length = self.stream.read(&mut buffer).await.context("reading")?;
            if length == 0 {
                return Ok(Incoming::End(None));
            }
            let mut input = &mut buffer[..length];
            while let Some(event) = self.decoder.next(&mut input)? {
                match event {
                    Event::Message { binary: true, payload } => {
                        for frame in Frame::iter(Bytes::copy_from_slice(&payload)) {
                            self.ready.push_back(frame?);
                        }
                    }
                    Event::Close { code, .. } => self.close = Some(code),
                    Event::Ping(_) | Event::Pong(_) => {}
                    Event::Message { binary: false, .. } => bail!("a text message"),
                }
            }
        }
    }
}
