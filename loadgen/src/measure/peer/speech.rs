//! The little of NATS' text protocol and of MQTT 3.1.1 that publishing and subscribing with QoS 0 take.

use anyhow::{Result, bail};

use super::Kind;

/// The subject, or topic, of all messages.
const SUBJECT: &[u8] = b"s";

/// What a server said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said<'a> {
    /// A message with this payload.
    Message(&'a [u8]),
    /// It wants to know whether we live.
    Ping,
    /// The subscription is taken.
    Subscribed,
    /// Anything that means nothing here.
    Other,
}

impl Kind {
    /// What a subscriber says first.
    pub fn hello(self, member: usize) -> Vec<u8> {
        match self {
            // The PONG behind it says that the subscription is taken.
            Self::Nats => {
                [b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB ", SUBJECT, b" 1\r\nPING\r\n"]
                    .concat()
            }
            Self::Mosquitto => {
                let id = format!("m{member}");
                // Clean session, no keep-alive.
                let connect = [b"\0\x04MQTT\x04\x02\0\0", &field(id.as_bytes())[..]].concat();
                let subscribe = [b"\0\x01", &field(SUBJECT)[..], b"\0"].concat();
                [packet(0x10, &connect), packet(0x82, &subscribe)].concat()
            }
        }
    }

    /// One message.
    pub fn publish(self, payload: &[u8]) -> Vec<u8> {
        match self {
            Self::Nats => {
                [b"PUB ", SUBJECT, format!(" {}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat()
            }
            Self::Mosquitto => packet(0x30, &[&field(SUBJECT)[..], payload].concat()),
        }
    }

    /// The answer to [`Said::Ping`].
    pub fn pong(self) -> &'static [u8] {
        match self {
            Self::Nats => b"PONG\r\n",
            Self::Mosquitto => b"\xd0\0",
        }
    }

    /// The first thing in `bytes` and its length; `None` where it is not whole.
    ///
    /// # Errors
    /// The server refuses something, or says what no server says.
    pub fn parse(self, bytes: &[u8]) -> Result<Option<(Said<'_>, usize)>> {
        match self {
            Self::Nats => of_nats(bytes),
            Self::Mosquitto => of_mqtt(bytes),
        }
    }
}

fn of_nats(bytes: &[u8]) -> Result<Option<(Said<'_>, usize)>> {
    let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
    let (text, length) = (&bytes[..end], end + 2);
    if text.starts_with(b"MSG ") {
        let size = text.rsplit(|byte| *byte == b' ').next().and_then(|size| std::str::from_utf8(size).ok());
        let Some(size) = size.and_then(|size| size.parse::<usize>().ok()) else {
            bail!("a MSG without a size");
        };
        let whole = bytes.get(length..length + size + 2);
        return Ok(whole.map(|payload| (Said::Message(&payload[..size]), length + size + 2)));
    }
    Ok(Some(match text {
        b"PING" => (Said::Ping, length),
        b"PONG" => (Said::Subscribed, length),
        _ if text.starts_with(b"-ERR") => bail!("the peer says {}", String::from_utf8_lossy(text)),
        _ => (Said::Other, length),
    }))
}

fn of_mqtt(bytes: &[u8]) -> Result<Option<(Said<'_>, usize)>> {
    let Some((kind, rest)) = bytes.split_first() else { return Ok(None) };
    let (mut size, mut digits) = (0, 0);
    loop {
        let Some(digit) = rest.get(digits) else { return Ok(None) };
        size |= usize::from(digit & 0x7f) << (7 * digits);
        digits += 1;
        if digit & 0x80 == 0 {
            break;
        }
        if digits == 4 {
            bail!("a packet without a length");
        }
    }
    let length = 1 + digits + size;
    let Some(body) = bytes.get(1 + digits..length) else { return Ok(None) };
    Ok(Some(match kind >> 4 {
        2 if body.get(1) != Some(&0) => bail!("the peer takes no connection: {body:?}"),
        3 => match body.get(2 + SUBJECT.len()..) {
            Some(payload) => (Said::Message(payload), length),
            None => bail!("a PUBLISH without a topic"),
        },
        9 if body.get(2) != Some(&0) => bail!("the peer takes no subscription: {body:?}"),
        9 => (Said::Subscribed, length),
        _ => (Said::Other, length),
    }))
}

/// A text with its length before it.
fn field(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text].concat()
}

/// A packet: its kind, its length in digits of seven bits, its body.
fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    let mut left = body.len();
    loop {
        let digit = (left & 0x7f) as u8;
        left >>= 7;
        bytes.push(if left > 0 { digit | 0x80 } else { digit });
        if left == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nats_is_read_in_any_pieces() {
        let bytes = b"INFO {}\r\nPONG\r\nMSG s 1 5\r\nhe\r\no\r\nPING\r\n";
        let (mut at, mut said) = (0, Vec::new());
        while let Some((what, length)) = Kind::Nats.parse(&bytes[at..]).unwrap() {
            said.push(what);
            at += length;
        }
        assert_eq!(said, [Said::Other, Said::Subscribed, Said::Message(b"he\r\no"), Said::Ping]);
        assert_eq!(at, bytes.len());
        for end in 15..bytes.len() - 7 {
            let cut = Kind::Nats.parse(&bytes[15..end]).unwrap();
            assert!(cut.is_none(), "cut at {end}");
        }
        assert!(Kind::Nats.parse(b"-ERR 'no'\r\n").is_err());
    }

    #[test]
    fn mqtt_reads_what_it_writes() {
        let payload = [b'x'; 128];
        let bytes = Kind::Mosquitto.publish(&payload);
        assert_eq!(bytes.len(), 1 + 2 + 2 + 1 + 128);
        assert_eq!(Kind::Mosquitto.parse(&bytes).unwrap(), Some((Said::Message(&payload[..]), bytes.len())));
        for end in 0..bytes.len() {
            assert_eq!(Kind::Mosquitto.parse(&bytes[..end]).unwrap(), None);
        }
        assert!(Kind::Mosquitto.parse(b"\x20\x02\0\x05").is_err(), "a refusal");
        assert_eq!(Kind::Mosquitto.parse(b"\x90\x03\0\x01\0").unwrap(), Some((Said::Subscribed, 5)));
        assert!(Kind::Mosquitto.parse(b"\x90\x03\0\x01\x80").is_err(), "a refused subscription");
    }
}
