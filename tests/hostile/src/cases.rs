//! What is sent, and what may come of it, reckoned by the decoder and checker of `fanfare-proto`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use fanfare_proto::{
    Code, Frame, FrameType, check,
    header::{ROUTED_BYTES, SHORT_BYTES},
};
use serde_json::Value;

/// Vectors up to this length are cut at every byte even without `--all`.
const SHORT_VECTOR_BYTES: usize = 600;
/// Long ones at every so many bytes behind their first 64.
const CUT_EVERY: usize = 211;

/// One thing to send.
#[derive(Debug)]
pub struct Case {
    /// What it is.
    pub name: String,
    /// The bytes, as one WebSocket message or on the control stream.
    pub bytes: Bytes,
    /// What the receiver of an open session finds in it.
    pub verdict: Result<(), Code>,
    /// Holds exactly one frame, so that the verdict's number is what must come.
    pub exact: bool,
    /// A frame that ends a session by what it means: HELLO and CLOSE, and AUTH with these tokens.
    pub ends_session: bool,
}

impl Case {
    fn new(name: String, bytes: Bytes) -> Self {
        let frames: Vec<_> = Frame::iter(bytes.clone()).collect();
        let mut verdict = decoded(&frames);
        if let [Ok(frame)] = &frames[..]
            && frame.frame_type() == FrameType::Hello
            && check::header(&frame.header, true).is_ok()
        {
            // Wrong in a session whatever it holds.
            verdict = Err(Code::OUT_OF_STATE);
        }
        let ends_session = frames
            .iter()
            .flatten()
            .any(|frame| matches!(frame.frame_type(), FrameType::Hello | FrameType::Close | FrameType::Auth));
        Self { name, exact: frames.len() == 1, bytes, verdict, ends_session }
    }
}

/// What the decoder and the checker find first.
fn decoded(frames: &[Result<Frame, Code>]) -> Result<(), Code> {
    frames.iter().try_for_each(|frame| check::check(frame.as_ref().map_err(|code| *code)?, true))
}

/// All cases, in an order that mixes the kinds.
pub fn all(folder: &Path, every_prefix: bool) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for vector in read(&folder.join("valid.json"))? {
        let (name, bytes) = name_and_bytes(&vector)?;
        for cut in 1..bytes.len() {
            let last = bytes.len() - cut <= 8;
            if every_prefix || bytes.len() <= SHORT_VECTOR_BYTES || cut <= 64 || cut % CUT_EVERY == 0 || last
            {
                let case = Case::new(format!("the first {cut} bytes of {name}"), bytes.slice(..cut));
                ensure!(case.verdict == Err(Code::TRUNCATED));
                cases.push(case);
            }
        }
        let header_bytes = if bytes[0] & 0x80 == 0 { SHORT_BYTES } else { ROUTED_BYTES };
        for bit in 0..header_bytes * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            cases.push(Case::new(format!("bit {bit} flipped of {name}"), Bytes::from(flipped)));
        }
        cases.push(Case::new(name, bytes));
    }
    for vector in read(&folder.join("invalid.json"))? {
        let (name, bytes) = name_and_bytes(&vector)?;
        if vector["from"] == "client" {
            let code = Code(u16::try_from(vector["code"].as_u64().context("code")?)?);
            ensure!(decoded(&Frame::iter(bytes.clone()).collect::<Vec<_>>()) == Err(code), "{name}");
            cases.push(Case::new(format!("invalid: {name}"), bytes));
        }
    }
    Ok(cases)
}

fn read(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

fn name_and_bytes(vector: &Value) -> Result<(String, Bytes)> {
    let hex = vector["hex"].as_str().context("hex")?.as_bytes();
    let digit = |digit: u8| (digit as char).to_digit(16).map(|digit| digit as u8).context("a hex digit");
    let bytes: Result<Vec<u8>> =
        hex.chunks(2).map(|pair| Ok(digit(pair[0])? << 4 | digit(pair[1])?)).collect();
    Ok((vector["name"].as_str().context("name")?.to_owned(), Bytes::from(bytes?)))
}
