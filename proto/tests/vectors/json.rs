//! Frames as JSON, by the schema alone: 32-bit numbers as numbers, 64-bit ones as decimal strings, bytes in hex,
//! enums by name, messages as objects. Fields with their default value are left out.

use bytes::Bytes;
use fanfare_proto::{Frame, FrameType};
use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _,
    Value as Field,
};
use serde_json::{Map, Value, json};

pub struct Schema {
    pool: DescriptorPool,
}

impl Schema {
    pub fn load() -> Self {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/schema");
        let files = protox::compile(["fanfare.proto"], [root]).expect("the schema compiles");
        Self { pool: DescriptorPool::from_file_descriptor_set(files).expect("the schema resolves") }
    }

    /// Header and body of a frame.
    pub fn frame(&self, frame: &Frame) -> Value {
        let short = frame.header.short();
        let mut fields = json!({
            "type": short.frame_type.name(),
            "flags": short.flags,
            "class": short.class,
            "epoch": short.epoch,
            "body": message(&self.body(frame)),
        });
        if let Some(routed) = frame.routed() {
            fields["channel"] = json!(routed.channel.to_string());
            fields["seq"] = json!(routed.seq.to_string());
        }
        fields
    }

    /// The frame, its body decoded and encoded again.
    pub fn again(&self, frame: &Frame) -> Bytes {
        let mut bytes = Vec::new();
        frame.header.write(&mut bytes);
        bytes.extend_from_slice(&prost::Message::encode_to_vec(&self.body(frame)));
        Bytes::from(bytes)
    }

    fn body(&self, frame: &Frame) -> DynamicMessage {
        DynamicMessage::decode(self.descriptor(frame.frame_type()), frame.body()).expect("a valid body")
    }

    fn descriptor(&self, frame_type: FrameType) -> MessageDescriptor {
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
        self.pool.get_message_by_name(&format!("fanfare.v1.{name}")).expect("the schema has every body")
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
        Field::U32(value) => json!(value),
        Field::U64(value) => json!(value.to_string()),
        Field::String(text) => json!(text),
        Field::Bytes(bytes) => json!(hex(bytes)),
        Field::EnumNumber(number) => match field.kind() {
            Kind::Enum(values) => json!(values.get_value(*number).expect("a known value").name()),
            kind => panic!("{kind:?} is no enum"),
        },
        Field::Message(inner) => message(inner),
        Field::List(values) => values.iter().map(|inner| value(field, inner)).collect(),
        other => panic!("the schema has no {other:?}"),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn from_hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
