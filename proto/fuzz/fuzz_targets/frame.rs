//! Any bytes as frames: headers, a WebSocket message, a stream cut in any way, and every body of either side.

#![no_main]

use bytes::Bytes;
use fanfare_proto::{
    Code, Frame, check,
    frame::FrameBuffer,
    header::{FrameType, Header},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte says which side sends, the next two how a stream is cut.
    let Some((&[side, ref cuts @ ..], bytes)) = data.split_first_chunk::<3>() else { return };
    let bytes = Bytes::copy_from_slice(bytes);
    let mut frames = Vec::new();
    let mut error = None;
    for frame in Frame::iter(bytes.clone()) {
        match frame {
            Ok(frame) => {
                judge(&frame, side & 1 == 0);
                frames.push(frame.bytes);
            }
            Err(code) => error = Some(code),
        }
    }
    let (mut buffer, mut fed, mut rest) = (FrameBuffer::default(), Vec::new(), bytes);
    let mut failed = None;
    for &cut in cuts.iter().cycle() {
        if rest.is_empty() || failed.is_some() {
            break;
        }
        let chunk = rest.split_to((usize::from(cut) + 1).min(rest.len()));
        failed = buffer.feed(chunk, |frame| fed.push(frame.bytes)).err();
    }
    match failed {
        Some(code) => assert_eq!(error, Some(code)),
        None => {
            assert_eq!(fed, frames);
            assert_eq!(error, buffer.is_partial().then_some(Code::TRUNCATED));
        }
    }
});

fn judge(frame: &Frame, from_client: bool) {
    let mut header = Vec::new();
    frame.header.write(&mut header);
    assert_eq!(header, frame.bytes[..frame.header.header_bytes()]);
    assert_eq!(Header::parse(&frame.bytes), Ok(Some(frame.header)));
    match check::check(frame, from_client) {
        // What passed decodes for whoever acts on it.
        Ok(()) if from_client && frame.frame_type() == FrameType::Send => {
            let send = check::decode::<fanfare_proto::wire::Send>(frame).expect("checked");
            assert!(send.content.is_some());
        }
        Ok(()) => {}
        Err(code) => assert!(code.row().is_some()),
    }
}
