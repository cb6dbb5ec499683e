//! The golden vectors in `vectors/` are what this crate encodes, and what it makes of them: valid frames with every
//! field, and invalid ones with their error number. `UPDATE_VECTORS=1 cargo test -p fanfare-proto --test vectors`
//! writes the files anew from the values in `vectors/` beside this file.

#![allow(clippy::unwrap_used)]

#[path = "vectors/invalid.rs"]
mod invalid;
#[path = "vectors/json.rs"]
mod json;
#[path = "vectors/valid.rs"]
mod valid;

use std::{collections::HashSet, fs, path::Path};

use bytes::Bytes;
use fanfare_proto::{
    Code, Frame, FrameType, check,
    frame::FrameBuffer,
    header::{Header, ROUTED_BYTES, SHORT_BYTES},
};
use serde_json::Value;

fn stored(file: &str, generated: &[Value]) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file);
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        // One vector a line: a change shows as the lines of the vectors it changes.
        let lines: Vec<String> = generated.iter().map(Value::to_string).collect();
        fs::write(&path, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
    }
    serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap()
}

fn same(file: &str, generated: &[Value]) -> Vec<Value> {
    let stored = stored(file, generated);
    for (stored, generated) in stored.iter().zip(generated) {
        assert_eq!(stored, generated, "{file} is stale: UPDATE_VECTORS=1 if the wire was meant to change");
    }
    assert_eq!(stored.len(), generated.len());
    let names: HashSet<&str> = stored.iter().map(|vector| vector["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), stored.len(), "names are distinct");
    stored
}

fn bytes_of(vector: &Value) -> Bytes {
    Bytes::from(json::from_hex(vector["hex"].as_str().unwrap()))
}

/// What a receiver makes of a message, the first error where there is one.
fn verdict(bytes: Bytes, from_client: bool) -> Result<(), Code> {
    Frame::iter(bytes).try_for_each(|frame| check::check(&frame?, from_client))
}

#[test]
fn valid_frames_are_what_we_encode_and_decode() {
    let schema = json::Schema::load();
    let vectors =
        same("valid.json", &valid::all().iter().map(|vector| vector.json(&schema)).collect::<Vec<_>>());
    let mut sent = HashSet::new();
    for vector in &vectors {
        let name = vector["name"].as_str().unwrap();
        let bytes = bytes_of(vector);
        let from_client = vector["from"] == "client";
        assert_eq!(verdict(bytes.clone(), from_client), Ok(()), "{name}");
        let frame = Frame::iter(bytes.clone()).next().unwrap().unwrap();
        assert_eq!(frame.bytes, bytes, "{name}: one whole frame");
        assert_eq!(schema.frame(&frame), vector["fields"], "{name}: the fields that were written");
        assert_eq!(schema.again(&frame), bytes, "{name}: decoded and encoded again");
        sent.insert((frame.frame_type(), from_client));
    }
    for frame_type in FrameType::ALL {
        for (from_client, may) in [(true, frame_type.from_client()), (false, frame_type.from_server())] {
            assert_eq!(
                sent.contains(&(*frame_type, from_client)),
                may,
                "{} {from_client}",
                frame_type.name()
            );
        }
    }
}

#[test]
fn invalid_frames_yield_their_number() {
    let vectors = same("invalid.json", &invalid::all());
    for vector in &vectors {
        let code = Code(vector["code"].as_u64().unwrap() as u16);
        assert_eq!(verdict(bytes_of(vector), vector["from"] == "client"), Err(code), "{}", vector["name"]);
    }
}

#[test]
fn every_prefix_is_incomplete_and_never_wrong() {
    for vector in valid::all() {
        for cut in 1..vector.bytes.len() {
            let prefix = vector.bytes.slice(..cut);
            let mut rest = prefix.clone();
            assert_eq!(Frame::split_from(&mut rest), Ok(None), "{} at {cut}", vector.name);
            assert_eq!(verdict(prefix.clone(), vector.from_client), Err(Code::TRUNCATED));
            let mut buffer = FrameBuffer::default();
            buffer.feed(prefix, |_| panic!("no frame yet")).unwrap();
            assert!(buffer.is_partial());
            let mut whole = None;
            buffer.feed(vector.bytes.slice(cut..), |frame| whole = Some(frame.bytes)).unwrap();
            assert_eq!(whole.as_ref(), Some(&vector.bytes));
        }
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_judged() {
    for vector in valid::all() {
        let header_bytes = if vector.bytes[0] & 0x80 == 0 { SHORT_BYTES } else { ROUTED_BYTES };
        for bit in 0..header_bytes * 8 {
            let mut flipped = vector.bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let flipped = Bytes::from(flipped);
            if let Ok(Some(header)) = Header::parse(&flipped) {
                let mut again = Vec::new();
                header.write(&mut again);
                assert_eq!(again, flipped[..header.header_bytes()], "{} bit {bit}", vector.name);
            }
            for from_client in [true, false] {
                if let Err(code) = verdict(flipped.clone(), from_client) {
                    assert!(code.row().is_some(), "{} bit {bit}: {code:?}", vector.name);
                }
            }
        }
    }
}
