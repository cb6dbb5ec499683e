//! `fanfare decode`: frames of the wire by their fields' names, as the golden vectors in proto/vectors have them.

use std::io::Read;

use bytes::Bytes;
use fanfare_proto::{Code, DESCRIPTORS, Frame, FrameType, check, header::Header};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _,
    Value as Field,
};
use serde_json::{Map, Value, json};

use crate::{
    cli::Side,
    failure::{Failure, Outcome, exit},
    output::Output,
    token::hex,
};

/// Digits that are taken: 1 MiB of frames.
const DIGITS_MAX: usize = 2 << 20;

/// Prints each frame, and where the bytes stop making sense.
pub fn run(output: Output, text: &str, from: Option<Side>) -> Outcome<u8> {
    let read;
    let text = if text == "-" {
        let mut all = String::new();
        let most = DIGITS_MAX as u64 + 1;
        std::io::stdin()
            .lock()
            .take(most)
            .read_to_string(&mut all)
            .map_err(|error| Failure::usage("stdin could not be read as text").why(error))?;
        read = all;
        &read
    } else {
        text
    };
    let bytes = Bytes::from(unhex(text)?);
    let schema = Schema::load()?;
    let (frames, stopped) = schema.frames(&bytes, from);
    let mut items = Vec::with_capacity(frames.len());
    let mut lines = Vec::with_capacity(frames.len());
    for (at, frame) in frames {
        lines.push(human(at, &frame));
        let mut item = frame;
        item["at"] = at.into();
        items.push(item);
    }
    if !items.is_empty() || stopped.is_none() {
        output.list("frames", "frame", items, || lines.join("\n"));
    }
    match stopped {
        None => Ok(exit::OK),
        Some(stopped) => Err(stopped.failure(bytes.len())),
    }
}

/// Where and why the bytes are no frame.
#[derive(Debug, PartialEq, Eq)]
struct Stopped {
    /// The byte.
    at: usize,
    /// Where the frame began that it belongs to, and its number from 1.
    frame: (usize, usize),
    code: Code,
    why: String,
}

impl Stopped {
    fn failure(self, bytes: usize) -> Failure {
        let (begins, number) = self.frame;
        let what = format!("stops at byte {} of {bytes}: {}", self.at, self.why);
        Failure::new(self.code, what)
            .why(format!("frame {number} begins at byte {begins} (the first byte is 0)"))
            .why(self.code.row().map_or("", |row| row.what))
            .advise(format!("fanfare explain {}", self.code), "says what a sender should do")
            .exiting(exit::FAILED)
    }
}

/// Bodies by the schema.
struct Schema {
    pool: DescriptorPool,
}

impl Schema {
    fn load() -> Outcome<Self> {
        DescriptorPool::decode(DESCRIPTORS)
            .map(|pool| Self { pool })
            .map_err(|error| Failure::internal("the schema does not decode").why(error))
    }

    /// Frames with where each begins, up to the first that is none.
    fn frames(&self, bytes: &Bytes, from: Option<Side>) -> (Vec<(usize, Value)>, Option<Stopped>) {
        let mut rest = bytes.clone();
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let begins = bytes.len() - rest.len();
            let place = (begins, frames.len() + 1);
            let stop = |at: usize, code: Code, why: &str| {
                Some(Stopped { at, frame: place, code, why: why.to_owned() })
            };
            let frame = match Frame::split_from(&mut rest) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    let wanted = match Header::parse(&rest) {
                        Ok(Some(header)) => {
                            format!("the frame has {} bytes, {} are here", header.frame_bytes(), rest.len())
                        }
                        _ => format!("{} bytes are not a whole header", rest.len()),
                    };
                    return (frames, stop(bytes.len(), Code::TRUNCATED, &wanted));
                }
                Err(code) => {
                    let (at, why) = match code {
                        Code::FRAME_TOO_LARGE => (4, "the header announces a body that is too long"),
                        Code::RESERVED_BITS => (1, "the header has reserved bits set"),
                        _ => (0, "no frame has this type"),
                    };
                    return (frames, stop(begins + at, code, why));
                }
            };
            let body_at = begins + frame.header.header_bytes();
            let sides: &[bool] = match from {
                Some(Side::Client) => &[true],
                Some(Side::Server) => &[false],
                None => &[frame.frame_type().from_client(), !frame.frame_type().from_server()],
            };
            let verdicts: Vec<Result<(), Code>> =
                sides.iter().map(|client| check::check(&frame, *client)).collect();
            if let (false, Some(Err(code))) = (verdicts.iter().any(Result::is_ok), verdicts.first()) {
                let name = frame.frame_type().name();
                let (at, why) = match *code {
                    Code::UNKNOWN_TYPE => (begins, format!("{name} is not for this side to send")),
                    Code::RESERVED_BITS => {
                        (begins + 1, format!("{name} has flags or an epoch that mean nothing"))
                    }
                    Code::BAD_BODY => (body_at, format!("the body is not that of {name}")),
                    _ => (body_at, format!("{name} has a field that is missing or out of its range")),
                };
                return (frames, stop(at, *code, &why));
            }
            match self.frame(&frame) {
                Some(value) => frames.push((begins, value)),
                None => return (frames, stop(body_at, Code::BAD_BODY, "the body does not decode")),
            }
        }
        (frames, None)
    }

    /// Header and body of a frame; 32-bit numbers as numbers, 64-bit ones as decimal strings, bytes in hex, enums by
    /// name, messages as objects. Fields with their default value are left out.
    fn frame(&self, frame: &Frame) -> Option<Value> {
        let short = frame.header.short();
        let body = DynamicMessage::decode(self.descriptor(frame.frame_type())?, frame.body()).ok()?;
        let mut fields = json!({
            "type": short.frame_type.name(),
            "flags": short.flags,
            "class": short.class,
            "epoch": short.epoch,
            "body": message(&body),
        });
        if let Some(routed) = frame.routed() {
            fields["channel"] = json!(routed.channel.to_string());
            fields["seq"] = json!(routed.seq.to_string());
        }
        Some(fields)
    }

    fn descriptor(&self, frame_type: FrameType) -> Option<MessageDescriptor> {
        use FrameType::*;
        let name = match frame_type {
            Hello => "Hello",
            Welcome => "Welcome",
            Auth => "Auth",
            Ping => "Ping",
            Pong => "Pong",
            Ack => "Ack",
            GoAway => "GoAway",
            Close | Error | Refused => "Error",
            State => "State",
            Sync => "Sync",
            Synced => "Synced",
            Send => "Send",
            SendAck => "SendAck",
            Deliver => "Entry",
            Receipt => "Receipt",
            Counts => "Counts",
            Notify | Gap => "Head",
            Fetch => "Fetch",
            Page => "Page",
            Typing => "Typing",
            Presence => "Presence",
            Open => "Open",
            Channel => "ChannelState",
        };
        self.pool.get_message_by_name(&format!("fanfare.v1.{name}"))
    }
}

fn message(message: &DynamicMessage) -> Value {
    let mut fields: Vec<FieldDescriptor> =
        message.descriptor().fields().filter(|field| message.has_field(field)).collect();
    fields.sort_by_key(FieldDescriptor::number);
    Value::Object(Map::from_iter(
        fields.iter().map(|field| (field.name().to_owned(), value(field, &message.get_field(field)))),
    ))
}

fn value(field: &FieldDescriptor, value_: &Field) -> Value {
    match value_ {
        Field::Bool(value) => json!(value),
        Field::I32(value) => json!(value),
        Field::U32(value) => json!(value),
        Field::I64(value) => json!(value.to_string()),
        Field::U64(value) => json!(value.to_string()),
        Field::F32(value) => json!(value),
        Field::F64(value) => json!(value),
        Field::String(text) => json!(text),
        Field::Bytes(bytes) => json!(hex(bytes)),
        // A later version may have more values than this one.
        Field::EnumNumber(number) => match field.kind() {
            Kind::Enum(values) => {
                values.get_value(*number).map_or(json!(number), |value| json!(value.name()))
            }
            _ => json!(number),
        },
        Field::Message(inner) => message(inner),
        Field::List(values) => values.iter().map(|inner| value(field, inner)).collect(),
        Field::Map(_) => Value::Null,
    }
}

/// A frame as people read it: its header on one line, its fields below. JSON escapes what a terminal would obey.
fn human(at: usize, frame: &Value) -> String {
    let word = |name: &str| frame[name].as_str().unwrap_or_default();
    let mut head = format!("{at:6}  {}", word("type"));
    for name in ["channel", "seq"] {
        if let Some(text) = frame[name].as_str() {
            head += &format!("  {name} {text}");
        }
    }
    for name in ["flags", "epoch"] {
        if frame[name] != json!(0) {
            head += &format!("  {name} {}", frame[name]);
        }
    }
    let mut lines = vec![head];
    for (name, value) in frame["body"].as_object().into_iter().flatten() {
        lines.push(format!("          {name} = {}", crate::output::tame(&value.to_string())));
    }
    lines.join("\n")
}

/// Bytes of hexadecimal digits; space between them, `0x` in front and colons are passed over.
fn unhex(text: &str) -> Outcome<Vec<u8>> {
    let bad = |what: String| {
        Err(Failure::usage(what)
            .advise("fanfare decode 0400000009000000097b1efd7a9a010000", "a PING, for example")
            .advise("xxd -p frames.bin | fanfare decode -", "frames of a file"))
    };
    if text.len() > DIGITS_MAX {
        return bad(format!("more than {DIGITS_MAX} characters of hex"));
    }
    let begin =
        if text.trim_start().starts_with("0x") { text.len() - text.trim_start().len() + 2 } else { 0 };
    let mut bytes = Vec::with_capacity(text.len() / 2);
    let mut high = None;
    for (at, character) in text[begin..].char_indices() {
        if character.is_whitespace() || character == ':' {
            continue;
        }
        let Some(digit) = character.to_digit(16) else {
            let shown = character.escape_default();
            return bad(format!("`{shown}` at character {} is not a hexadecimal digit", begin + at + 1));
        };
        match high.take() {
            None => high = Some(digit as u8),
            Some(high) => bytes.push(high << 4 | digit as u8),
        }
    }
    if high.is_some() {
        return bad("an odd number of hexadecimal digits: half a byte is missing".to_owned());
    }
    if bytes.is_empty() {
        return bad("there are no bytes to decode".to_owned());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(text: &str) -> Vec<Value> {
        serde_json::from_str(text).expect("JSON")
    }

    fn side(vector: &Value) -> Side {
        if vector["from"] == "client" { Side::Client } else { Side::Server }
    }

    #[test]
    fn every_golden_vector_reads_as_it_was_written() {
        let schema = Schema::load().expect("the schema");
        let vectors = vectors(include_str!("../../../proto/vectors/valid.json"));
        assert!(vectors.len() > 50);
        for vector in vectors {
            let bytes = Bytes::from(unhex(vector["hex"].as_str().expect("hex")).expect("hex"));
            for from in [Some(side(&vector)), None] {
                let (frames, stopped) = schema.frames(&bytes, from);
                assert_eq!(stopped, None, "{}", vector["name"]);
                assert_eq!(frames, [(0, vector["fields"].clone())], "{}", vector["name"]);
            }
        }
    }

    #[test]
    fn every_invalid_vector_stops_with_its_number_inside_the_bytes() {
        let schema = Schema::load().expect("the schema");
        for vector in vectors(include_str!("../../../proto/vectors/invalid.json")) {
            let bytes = Bytes::from(unhex(vector["hex"].as_str().expect("hex")).expect("hex"));
            let (_, stopped) = schema.frames(&bytes, Some(side(&vector)));
            let stopped = stopped.expect("no frame");
            assert_eq!(
                u64::from(stopped.code.0),
                vector["code"].as_u64().expect("a code"),
                "{}",
                vector["name"]
            );
            assert!(stopped.at <= bytes.len() && stopped.frame.0 <= stopped.at, "{}", vector["name"]);
        }
    }

    #[test]
    fn what_is_no_hex_is_said_with_its_place() {
        assert_eq!(unhex("0x04 0a:FF\n").expect("hex"), [4, 10, 255]);
        for (bad, part) in
            [("04g0", "character 3"), ("0x0z", "character 4"), ("040", "odd"), (" ", "no bytes")]
        {
            let failure = unhex(bad).expect_err(bad);
            assert!(failure.exit == 2 && failure.what.contains(part), "{bad}: {}", failure.what);
        }
    }
}
