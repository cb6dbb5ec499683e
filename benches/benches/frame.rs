//! Group `frame`: headers, frames and WebSocket framing, each beside a copy of the same bytes or prost alone.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fanfare_benches::frames;
use fanfare_proto::{
    ChannelId, Frame, Header, check,
    header::ROUTED_BYTES,
    limits::GATHER_BYTES_MAX,
    wire,
    ws::{Decoder, Limits, Opcode, Role, SERVER_HEADER_BYTES_MAX, client_frame, server_header},
};
use prost::Message as _;

const CHANNEL: ChannelId = ChannelId(7);

/// One header out of 24 bytes.
fn header(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/header");
    let bytes = frames::deliver(CHANNEL, 1);
    group.bench_function("parse", |bench| bench.iter(|| Header::parse(black_box(&bytes))));
    let mut copy = [0; ROUTED_BYTES];
    group.bench_function("floor: memcpy", |bench| {
        bench.iter(|| {
            copy.copy_from_slice(black_box(&bytes[..ROUTED_BYTES]));
            black_box(&copy);
        });
    });
}

/// A gathered buffer of small frames, cut into frames that share it.
fn slices(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/16 KiB of frames");
    let buffer = frames::run_of_delivers(CHANNEL, GATHER_BYTES_MAX);
    let count = Frame::iter(buffer.clone()).count();
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function("iter", |bench| {
        bench.iter(|| {
            for frame in Frame::iter(black_box(&buffer).clone()) {
                black_box(frame).expect("frames of our own");
            }
        });
    });
    group.bench_function("split_from", |bench| {
        bench.iter(|| {
            let mut rest = black_box(&buffer).clone();
            while let Ok(Some(frame)) = Frame::split_from(&mut rest) {
                black_box(frame);
            }
        });
    });
    group.bench_function("headers alone", |bench| {
        bench.iter(|| {
            let (bytes, mut at) = (black_box(&buffer), 0);
            while let Ok(Some(header)) = Header::parse(&bytes[at..]) {
                at += black_box(header).frame_bytes();
            }
        });
    });
    let mut copy = vec![0; buffer.len()];
    group.bench_function("floor: memcpy", |bench| {
        bench.iter(|| {
            copy.copy_from_slice(black_box(&buffer));
            black_box(&copy);
        });
    });
}

/// A DELIVER of 128 bytes of text: encoded once in its life.
fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/encode DELIVER");
    let body = frames::entry(1);
    let bytes = frames::encode(CHANNEL, 1, &body);
    group.bench_function("header and body", |bench| {
        bench.iter(|| frames::encode(CHANNEL, 1, black_box(&body)))
    });
    group.bench_function("floor: prost alone", |bench| bench.iter(|| black_box(&body).encode_to_vec()));
    group.bench_function("floor: memcpy", |bench| {
        bench.iter(|| black_box(Bytes::copy_from_slice(black_box(&bytes))));
    });
}

/// A SEND from the bytes that came to its checked body.
fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/decode SEND");
    let bytes = frames::send(CHANNEL, 1, frames::client_message_id(1));
    let body = frames::whole(bytes.clone()).body();
    group.bench_function("header, body and every check", |bench| {
        bench.iter(|| {
            let frame = frames::whole(black_box(&bytes).clone());
            check::header(&frame.header, true).and_then(|()| check::decode::<wire::Send>(&frame))
        });
    });
    group.bench_function("header and body", |bench| {
        bench.iter(|| frames::whole(black_box(&bytes).clone()).decode::<wire::Send>());
    });
    group.bench_function("floor: prost alone", |bench| {
        bench.iter(|| wire::Send::decode(black_box(&body).clone()))
    });
    group.bench_function("floor: memcpy", |bench| {
        bench.iter(|| black_box(Bytes::copy_from_slice(black_box(&bytes))));
    });
}

/// WebSocket: a masked message of 16 KiB and of one SEND taken from the wire, and the header in front of what is sent.
fn websocket(criterion: &mut Criterion) {
    for (name, payload) in [
        ("frame/ws decode 16 KiB", frames::run_of_delivers(CHANNEL, GATHER_BYTES_MAX)),
        ("frame/ws decode one SEND", frames::send(CHANNEL, 1, frames::client_message_id(1))),
    ] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(payload.len() as u64));
        let mut wire = Vec::new();
        client_frame(Opcode::Binary, &payload, [1, 2, 3, 4], &mut wire);
        let mut decoder = Decoder::new(Role::Server, Limits::FANFARE);
        group.bench_function("unmask", |bench| {
            // It unmasks in place, so that each turn undoes the last one; the header stays as it is.
            bench.iter(|| {
                let mut input = black_box(&mut wire[..]);
                while let Some(event) = decoder.next(&mut input).expect("a frame of our own") {
                    black_box(event);
                }
            });
        });
        let mut copy = vec![0; payload.len()];
        group.bench_function("floor: memcpy", |bench| {
            bench.iter(|| {
                copy.copy_from_slice(black_box(&payload));
                black_box(&copy);
            });
        });
    }
    let mut group = criterion.benchmark_group("frame/ws header");
    let mut out = [0; SERVER_HEADER_BYTES_MAX];
    group.bench_function("server_header", |bench| {
        bench.iter(|| {
            let size = server_header(Opcode::Binary, black_box(GATHER_BYTES_MAX), &mut out);
            black_box(&out);
            size
        });
    });
    let source = [0x82, 126, 64, 0];
    group.bench_function("floor: memcpy", |bench| {
        bench.iter(|| {
            out[..4].copy_from_slice(black_box(&source));
            black_box(&out);
        });
    });
}

criterion_group!(frame, header, slices, encode, decode, websocket);
criterion_main!(frame);
