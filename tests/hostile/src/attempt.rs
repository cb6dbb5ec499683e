//! One connection, one case, and the judgement of what came back.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use fanfare_proto::{Code, Frame, FrameType, frame, wire};
use tokio::time::timeout;

use crate::{Transport, cases::Case, quic, websocket};

/// For everything that one case takes.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(9);
/// The time in the PING behind a case.
const MARK: u64 = 0x0123_4567;

/// How to connect.
#[derive(Debug)]
pub struct Attempt {
    /// Over what.
    pub transport: Transport,
    /// Where to.
    pub server: SocketAddr,
    /// HELLO that authenticates first, or the case is the first thing sent.
    pub hello: Option<Bytes>,
    /// For QUIC.
    pub endpoint: quinn::Endpoint,
}

/// One connection, whatever carries it. Ends with `Some(close code)` or `None` where there was none.
pub enum Link {
    /// Over TCP.
    WebSocket(websocket::Link),
    /// Over UDP.
    Quic(quic::Link),
}

/// What the server sent next.
pub enum Incoming {
    /// A frame.
    Frame(Frame),
    /// The end of the connection, with its close code.
    End(Option<u64>),
}

impl Link {
    async fn send(&mut self, bytes: &Bytes) -> Result<()> {
        match self {
            Self::WebSocket(link) => link.send(bytes).await,
            Self::Quic(link) => link.send(bytes).await,
        }
    }

    /// Says that nothing more is coming; on WebSocket messages end by themselves.
    fn finish(&mut self) {
        if let Self::Quic(link) = self {
            link.finish();
        }
    }

    async fn next(&mut self) -> Result<Incoming> {
        match self {
            Self::WebSocket(link) => link.next().await,
            Self::Quic(link) => link.next().await,
        }
    }
}

/// HELLO by token.
pub fn hello(token: &str, device: u64) -> Bytes {
    let hello = wire::Hello {
        version_min: 1,
        version_max: 1,
        token: token.into(),
        device,
        agent: "hostile/1".into(),
        ..Default::default()
    };
    frame::short(FrameType::Hello, 0, &hello)
}

fn ping() -> Bytes {
    frame::short(FrameType::Ping, 0, &wire::Ping { time_ms: MARK, quiet: false })
}

impl Attempt {
    /// Sends the case and judges the answer.
    pub async fn make(&self, case: &Case) -> Result<()> {
        timeout(ATTEMPT_TIME_MAX, self.judge(case)).await.context("no answer in time")?
    }

    async fn judge(&self, case: &Case) -> Result<()> {
        let mut link = match self.transport {
            Transport::WebSocket => {
                Link::WebSocket(websocket::Link::connect(self.server).await.context("connecting")?)
            }
            Transport::Quic => {
                Link::Quic(quic::Link::connect(&self.endpoint, self.server).await.context("connecting")?)
            }
        };
        if let Some(hello) = &self.hello {
            link.send(hello).await?;
            match link.next().await.context("waiting for WELCOME")? {
                Incoming::Frame(frame) if frame.frame_type() == FrameType::Welcome => {}
                Incoming::Frame(frame) => {
                    bail!("{} instead of WELCOME: {:?}", frame.frame_type().name(), number(&frame))
                }
                Incoming::End(code) => bail!("closed with {code:?} instead of WELCOME"),
            }
        }
        link.send(&case.bytes).await?;
        // A frame that a flip made shorter leaves bytes behind that are cut, too.
        let cut = matches!(Frame::iter(case.bytes.clone()).last(), Some(Err(Code::TRUNCATED)));
        if cut {
            link.finish();
        }
        let legal = case.verdict.is_ok() && !case.ends_session && self.hello.is_some();
        if legal {
            link.send(&ping()).await?;
        }
        self.outcome(link, case, legal).await
    }

    async fn outcome(&self, mut link: Link, case: &Case, mut pinged: bool) -> Result<()> {
        let mut numbered = None;
        loop {
            match link.next().await? {
                Incoming::Frame(frame) if frame.frame_type() == FrameType::Pong => {
                    // The case may be a PING itself.
                    if frame.decode::<wire::Pong>()?.time_ms == MARK {
                        return self.went_on(case, numbered);
                    }
                }
                Incoming::Frame(frame) if frame.frame_type() == FrameType::Close => {
                    let code = number(&frame).context("CLOSE without a number")?;
                    ensure!(code.row().is_some(), "CLOSE with an unknown number {}", code.0);
                    if let Incoming::End(Some(close)) = link.next().await? {
                        ensure!(close == u64::from(code.close_code()), "{code:?} and close code {close}");
                    }
                    return self.ended(case, code);
                }
                Incoming::Frame(frame) => {
                    if let Some(code) = number(&frame) {
                        ensure!(code.row().is_some(), "an answer with an unknown number {}", code.0);
                        numbered = numbered.or(Some(code));
                    }
                    // An error that is answered does not end the session: a PING must still be.
                    if !pinged && case.verdict.is_err() && case.exact && numbered.is_some() {
                        link.send(&ping()).await?;
                        pinged = true;
                    }
                }
                Incoming::End(Some(close @ 4000..4400)) => {
                    let known = Code::TABLE.iter().find(|row| u64::from(row.code.close_code()) == close);
                    let code = known.with_context(|| format!("close code {close} is no error's"))?.code;
                    return self.ended(case, code);
                }
                Incoming::End(code) => {
                    ensure!(case.ends_session, "the connection ended with {code:?}, without a number");
                    return Ok(());
                }
            }
        }
    }

    /// The session ended with a number.
    fn ended(&self, case: &Case, code: Code) -> Result<()> {
        if let (Err(wanted), true, true) = (case.verdict, self.hello.is_some(), case.exact) {
            // Of a stream that ends inside a frame the header alone may tell more than that it ended.
            let cut = wanted == Code::TRUNCATED && self.transport == Transport::Quic;
            ensure!(code == wanted || cut, "ended with {code:?}, not {wanted:?}");
        }
        ensure!(
            case.verdict.is_err() || case.ends_session || self.hello.is_none(),
            "a legal frame ended the session with {code:?}"
        );
        ensure!(code != Code::INTERNAL, "an error inside of the server");
        Ok(())
    }

    /// The session goes on, with an answer's number where there was one.
    fn went_on(&self, case: &Case, numbered: Option<Code>) -> Result<()> {
        if let (Err(wanted), true) = (case.verdict, case.exact) {
            ensure!(numbered == Some(wanted), "answered with {numbered:?}, not {wanted:?}");
        }
        ensure!(numbered != Some(Code::INTERNAL), "an error inside of the server");
        ensure!(
            numbered != Some(Code::RATE_LIMITED),
            "the limiter spoke: start the server with --limits load"
        );
        Ok(())
    }
}

/// The error number that a frame carries.
fn number(frame: &Frame) -> Option<Code> {
    let code = match frame.frame_type() {
        FrameType::Close | FrameType::Error | FrameType::Refused => frame.decode::<wire::Error>().ok()?.code,
        FrameType::SendAck => frame.decode::<wire::SendAck>().ok()?.code,
        _ => return None,
    };
    u16::try_from(code).ok().filter(|code| *code != 0).map(Code)
}
