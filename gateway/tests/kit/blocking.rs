//! Sessions on blocking sockets, which hold no heap in this process and cost nothing but their files.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use fanfare_proto::{
    Frame,
    ws::{Opcode, client_frame},
};

use super::House;

/// The largest message that is read here.
const MESSAGE_BYTES: usize = 17 * 1024;

/// A WebSocket session in the audience of [`super::CHANNEL`]. What is not said within 10 s is an error.
pub fn session(house: &House, user: u64) -> TcpStream {
    let mut stream = TcpStream::connect(house.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let address = house.address().to_string();
    stream.write_all(&super::ws::request(&address).encode().unwrap()).unwrap();
    let mut answer = [0; 512];
    assert!(stream.read(&mut answer).unwrap() > 0);
    let mut frames = Vec::new();
    client_frame(Opcode::Binary, &house.hello(user), [1; 4], &mut frames);
    client_frame(Opcode::Binary, &super::sync(), [1; 4], &mut frames);
    stream.write_all(&frames).unwrap();
    // WELCOME and SYNCED.
    for _ in 0..2 {
        message(&mut stream);
    }
    stream
}

/// Reads one message; its bytes.
pub fn message(stream: &mut TcpStream) -> usize {
    read(stream, &mut [0; MESSAGE_BYTES]).len()
}

/// The frames of the next message.
pub fn frames(stream: &mut TcpStream) -> Vec<Frame> {
    let bytes = read(stream, &mut [0; MESSAGE_BYTES]).to_vec();
    Frame::iter(bytes.into()).collect::<Result<_, _>>().unwrap()
}

fn read<'b>(stream: &mut TcpStream, payload: &'b mut [u8; MESSAGE_BYTES]) -> &'b [u8] {
    let mut header = [0; 4];
    stream.read_exact(&mut header[..2]).unwrap();
    let mut length = usize::from(header[1]);
    if length == 126 {
        stream.read_exact(&mut header[2..4]).unwrap();
        length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    }
    stream.read_exact(&mut payload[..length]).unwrap();
    &payload[..length]
}
