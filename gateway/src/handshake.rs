//! From an accepted socket to a session: TLS or not, the HTTP upgrade, HELLO, proof. A task of its own, boxed by being one,
//! with one deadline and one budget of bytes over all of it; nothing of it stays when the session is open.

use std::{io, rc::Rc, time::Duration};

use bytes::Bytes;
use fanfare_proto::{
    error::Code,
    frame::Frame,
    link::{Handle, Origin, Proof},
    session::server::{self, Greeted, Greeting},
    ws::{
        Decoder, Event, HEAD_BYTES_MAX, Limits, Opcode, Refusal, Role, Upgrade, server_close, server_control,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::{
    admission::{AddressPermit, HandshakePermit},
    connection::{Connection, Early, Link, Opening, retry_after_ms},
    lane::{self, Lane},
    outgoing::{Chunk, Kind},
    shared::Shared,
    socket::Socket,
    tls,
    tls_stream::TlsStream,
    wire::Wire,
};

/// How long a refused peer has to read why.
const REFUSED_LINGER: Duration = Duration::from_millis(500);
/// Room for a ClientHello, or for most requests.
const FIRST_BYTES: usize = 2 * 1024;

/// Whose session it is to be, as far as the gateway can tell.
pub(crate) struct Proven {
    pub user: fanfare_proto::ids::UserId,
    pub proof: Proof,
    pub token_until_ms: u64,
}

/// Checks what HELLO shows: the resume secret first; where it is refused the token decides.
///
/// # Errors
/// The number to close with.
pub(crate) fn prove(shared: &Shared, greeted: &Greeted) -> Result<Proven, Code> {
    let unix_ms = shared.clock.unix_ms();
    if !greeted.resume.is_empty() {
        match shared.resume.open(&greeted.resume, greeted.device, unix_ms) {
            Ok(resume) => {
                return Ok(Proven {
                    user: resume.user,
                    proof: Proof::Resume { generation: resume.generation },
                    token_until_ms: resume.token_until_ms,
                });
            }
            Err(code) if greeted.token.is_empty() => return Err(code),
            Err(_) => {}
        }
    }
    let verified = shared.verifier.verify(&greeted.token, unix_ms)?;
    let proof = verified.proof(greeted.device)?;
    Ok(Proven { user: verified.user, proof, token_until_ms: verified.until_ms })
}

/// Gives a proven connection its place and asks the owner of its user to take it.
pub(crate) async fn enter(
    lane: &Rc<Lane>,
    link: Link,
    greeted: Greeted,
    proven: Proven,
    address: AddressPermit,
    early: Option<Box<Early>>,
) -> Result<lane::Key, (Code, Link)> {
    let shared = &lane.shared;
    let user = match shared.admission.user(proven.user) {
        Ok(user) => user,
        Err(code) => return Err((code, link)),
    };
    let device = greeted.device;
    let deadline_ms = shared.clock.now_ms() + shared.policy().handshake_ms;
    let session = shared.session_id();
    let mut kept = Some((link, user, address, greeted));
    let placed = lane.insert(|handle: Handle| {
        let origin = Origin { gateway: shared.id, handle, session, user: proven.user, device };
        let (link, user, address, greeted) = kept.take().expect("taken once");
        let opening =
            Opening { greeted, proof: proven.proof, token_until_ms: proven.token_until_ms, deadline_ms };
        Connection::new(link, origin, opening, user, address, early)
    });
    let (key, request) = match (placed, kept) {
        (Ok(placed), _) => placed,
        (Err(code), Some((link, ..))) => return Err((code, link)),
        (Err(_), None) => unreachable!("a connection that has no place was not made"),
    };
    if let Some(request) = request
        && let Err(code) = shared.uplink.send(request).await
    {
        lane.with(key, |connection, shared, now_ms| connection.refused(shared, now_ms, code));
    }
    Ok(key)
}

/// The handshake of an accepted TCP connection, and then its life.
pub(crate) async fn websocket(
    lane: Rc<Lane>,
    stream: std::net::TcpStream,
    address: AddressPermit,
    permit: HandshakePermit,
) {
    let deadline = Instant::now() + Duration::from_millis(lane.shared.policy().handshake_ms);
    // A little longer than the deadline inside, which leaves time to say why.
    let last = deadline + REFUSED_LINGER * 3;
    let shaken = async {
        permit.begun();
        tokio::time::timeout_at(last, shake(&lane, stream, address, deadline)).await
    };
    let opened = lane.turns.take(Box::pin(shaken)).await;
    drop(permit);
    if let Ok(Ok(Some(key))) = opened {
        lane.settle(key);
    }
}

async fn shake(
    lane: &Rc<Lane>,
    stream: std::net::TcpStream,
    address: AddressPermit,
    deadline: Instant,
) -> io::Result<Option<lane::Key>> {
    let shared = &lane.shared;
    let mut greeting = Greeting::new(shared.clock.now_ms(), shared.policy());
    // Nothing is said to a peer that has said nothing of ours in time.
    let Ok(asked) = tokio::time::timeout_at(deadline, ask(shared, stream)).await else {
        shared.count_close(Code::HANDSHAKE_TIMEOUT);
        return Ok(None);
    };
    let Some((mut wire, mut bytes)) = asked? else { return Ok(None) };

    let mut decoder = Decoder::new(Role::Server, Limits::FANFARE);
    let met =
        tokio::time::timeout_at(deadline, hello(&mut greeting, &mut wire, &mut decoder, &mut bytes)).await;
    let met = met.unwrap_or(Ok(Err(Code::HANDSHAKE_TIMEOUT)))?;

    let outcome = match met {
        Ok(None) => return Ok(None),
        Ok(Some((message, raw))) => {
            let mut frames = message;
            let first = Frame::split_from(&mut frames).and_then(|frame| frame.ok_or(Code::TRUNCATED));
            first.and_then(|frame| greeting.handle(&frame)).map(|greeted| (greeted, frames, raw))
        }
        Err(code) => Err(code),
    };
    let outcome = match outcome {
        Ok(_) if address.is_over() => Err(Code::CONNECTIONS_PER_ADDRESS),
        Ok((greeted, frames, raw)) => match prove(shared, &greeted) {
            Ok(proven) => Ok((greeted, proven, frames, raw)),
            Err(code) => Err(code),
        },
        Err(code) => Err(code),
    };
    let (code, mut wire) = match outcome {
        Ok((greeted, proven, frames, raw)) => {
            let early = (!frames.is_empty() || !raw.is_empty()).then(|| Box::new(Early { frames, raw }));
            let link = Link::Ws { wire, decoder, readiness: lane.readiness.clone() };
            match enter(lane, link, greeted, proven, address, early).await {
                Ok(key) => return Ok(Some(key)),
                Err((code, Link::Ws { wire, .. })) => (code, wire),
                Err(_) => return Ok(None),
            }
        }
        Err(code) => (code, wire),
    };
    shared.count_close(code);
    let close = server::close(code, retry_after_ms(code));
    let mut last = Chunk::message(&close, Kind::Control, fanfare_proto::ids::ChannelId(0)).bytes.to_vec();
    last.extend(server_close(Some(code.close_code()), code.row().map_or("", |row| row.name)));
    say_goodbye(&mut wire, &last).await?;
    Ok(None)
}

/// TLS or not, and the HTTP request. `Some`: an open WebSocket, and the bytes that came behind the request.
async fn ask(shared: &Shared, stream: std::net::TcpStream) -> io::Result<Option<(Wire, Vec<u8>)>> {
    let mut stream = TcpStream::from_std(stream)?;
    let mut came = Vec::with_capacity(FIRST_BYTES);
    if stream.read_buf(&mut came).await? == 0 {
        return Ok(None);
    }
    let mut wire = match &shared.tls {
        Some(tls) if tls::is_handshake(came[0]) => {
            let stream = Socket::Handshake(Box::new(stream));
            let tls = TlsStream::accept(stream, tls.tcp.clone(), std::mem::take(&mut came)).await?;
            Wire::Tls(tls)
        }
        _ if shared.plain || stream.peer_addr()?.ip().to_canonical().is_loopback() => {
            Wire::Plain(Socket::Handshake(Box::new(stream)))
        }
        _ => {
            let mut wire = Wire::Plain(Socket::Handshake(Box::new(stream)));
            refuse(&mut wire, Refusal::Forbidden("this address speaks TLS")).await?;
            return Ok(None);
        }
    };
    let behind = upgrade(shared, &mut wire, came).await?;
    Ok(behind.map(|bytes| (wire, bytes)))
}

/// Reads the HTTP request, of which `head` came already, and answers it. `Some`: the bytes behind it; `None`: it was refused.
async fn upgrade(shared: &Shared, wire: &mut Wire, mut head: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    head.reserve(FIRST_BYTES - head.len().min(FIRST_BYTES));
    loop {
        if head.is_empty() && wire.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
        let refusal = match Upgrade::parse(&head) {
            Ok(None) if head.len() < HEAD_BYTES_MAX => {
                if wire.read_buf(&mut head).await? == 0 {
                    return Ok(None);
                }
                continue;
            }
            Ok(None) => Refusal::HeadTooLarge,
            Ok(Some((upgrade, size))) => match admit(shared, &upgrade) {
                Ok(()) => {
                    wire.write_all(&upgrade.response(Some(fanfare_proto::SUBPROTOCOL))).await?;
                    wire.flush().await?;
                    return Ok(Some(head.split_off(size)));
                }
                Err(refusal) => refusal,
            },
            Err(refusal) => refusal,
        };
        refuse(wire, refusal).await?;
        return Ok(None);
    }
}

fn admit(shared: &Shared, upgrade: &Upgrade<'_>) -> Result<(), Refusal> {
    if upgrade.path != fanfare_proto::WS_PATH {
        return Err(Refusal::NotFound);
    }
    if upgrade.origin.is_some_and(|origin| !shared.origins.allows(origin)) {
        shared.count_close(Code::ORIGIN_REFUSED);
        return Err(Refusal::Forbidden("this origin is not on the allow-list"));
    }
    if !upgrade.subprotocols.contains(&fanfare_proto::SUBPROTOCOL) {
        return Err(Refusal::BadRequest("Sec-WebSocket-Protocol must offer fanfare.v1"));
    }
    Ok(())
}

/// The first message and the bytes behind it; `None` where the peer left.
type Met = Result<Option<(Bytes, Vec<u8>)>, Code>;

/// Reads until the first message.
async fn hello(
    greeting: &mut Greeting,
    wire: &mut Wire,
    decoder: &mut Decoder,
    bytes: &mut Vec<u8>,
) -> io::Result<Met> {
    loop {
        if let Err(code) = greeting.received(bytes.len()) {
            return Ok(Err(code));
        }
        let mut input = &mut bytes[..];
        loop {
            match decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(Event::Message { binary: true, payload })) => {
                    return Ok(Ok(Some((Bytes::from(payload.into_owned()), input.to_vec()))));
                }
                Ok(Some(Event::Message { .. })) => return Ok(Err(Code::TEXT_MESSAGE)),
                Ok(Some(Event::Ping(payload))) => {
                    wire.write_all(&server_control(Opcode::Pong, &payload)).await?;
                    wire.flush().await?;
                }
                Ok(Some(Event::Pong(_))) => {}
                Ok(Some(Event::Close { code, .. })) => {
                    let close = server_close(code, "");
                    say_goodbye(wire, &close).await?;
                    return Ok(Ok(None));
                }
                Err(error) if error.close_code() == 1009 => return Ok(Err(Code::FRAME_TOO_LARGE)),
                Err(_) => return Ok(Err(Code::WEBSOCKET)),
            }
        }
        bytes.clear();
        if wire.read_buf(bytes).await? == 0 {
            return Ok(Ok(None));
        }
    }
}

async fn refuse(wire: &mut Wire, refusal: Refusal) -> io::Result<()> {
    metrics::counter!("fanfare_gateway_refused_total", "status" => refusal.status().to_string()).increment(1);
    say_goodbye(wire, &refusal.response()).await
}

/// Writes the last bytes and reads the peer out for a moment, so that they are not lost to a reset.
async fn say_goodbye(wire: &mut Wire, last: &[u8]) -> io::Result<()> {
    wire.write_all(last).await?;
    wire.shutdown().await?;
    let drained = async {
        let mut sink = [0; 1024];
        while wire.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    tokio::time::timeout(REFUSED_LINGER, drained).await.unwrap_or(Ok(()))
}
