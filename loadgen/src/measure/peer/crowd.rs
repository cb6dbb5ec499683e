//! The subscribers of a peer: one thread, one read per readiness, as the sessions of ours have it. The first of them publishes.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{buffer::spare_capacity, event::epoll, time::Timespec};

use super::{Kind, Order, Received, speech::Said};
use crate::measure::{floor::say, machine::allow_files};

/// Bytes of each message.
const PAYLOAD_BYTES: usize = 128;
/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;
/// Sockets that one look at readiness names.
const READY_MAX: usize = 1_024;
/// Nothing comes for so long: what is missing does not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// What their process takes.
#[derive(clap::Args, Clone, Debug)]
pub struct PeerCrowd {
    /// Which peer.
    #[arg(long, value_enum)]
    pub kind: Kind,
    /// Where it listens.
    #[arg(long)]
    pub address: SocketAddr,
    /// How many subscribe.
    #[arg(long)]
    pub members: usize,
}

struct Member {
    stream: TcpStream,
    /// What came and is not whole.
    rest: Vec<u8>,
    /// The number of the last message.
    last: u64,
}

struct Crowd {
    kind: Kind,
    members: Vec<Member>,
    poll: OwnedFd,
    ready: Vec<epoll::Event>,
    buffer: Vec<u8>,
    published: u64,
}

/// Their process: `loadgen peer-crowd`.
pub fn run(arguments: &PeerCrowd) -> Result<()> {
    allow_files(arguments.members)?;
    let mut crowd = Crowd {
        kind: arguments.kind,
        members: Vec::with_capacity(arguments.members),
        poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        ready: Vec::with_capacity(READY_MAX),
        buffer: vec![0; READ_BYTES],
        published: 0,
    };
    for number in 0..arguments.members {
        crowd.subscribe(arguments.address, number).with_context(|| format!("subscriber {number}"))?;
    }
    say(&Received { deliveries: 0 })?;
    let mut orders = BufReader::new(std::io::stdin());
    let mut text = String::new();
    while orders.read_line(&mut text)? > 0 {
        let order: Order = serde_json::from_str(&text).context("a broken order")?;
        text.clear();
        say(&crowd.play(order)?)?;
    }
    Ok(())
}

fn payload(number: u64) -> String {
    format!("{number:0PAYLOAD_BYTES$}")
}

impl Crowd {
    fn subscribe(&mut self, address: SocketAddr, number: usize) -> Result<()> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&self.kind.hello(number))?;
        let mut rest = Vec::new();
        let mut subscribed = false;
        while !subscribed {
            let read = stream.read(&mut self.buffer)?;
            ensure!(read > 0, "the peer closed the connection");
            rest.extend_from_slice(&self.buffer[..read]);
            while let Some((said, length)) = self.kind.parse(&rest)? {
                subscribed |= said == Said::Subscribed;
                rest.drain(..length);
            }
        }
        stream.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&self.poll, stream.as_fd(), data, epoll::EventFlags::IN)?;
        self.members.push(Member { stream, rest, last: self.published });
        Ok(())
    }

    fn play(&mut self, order: Order) -> Result<Received> {
        let wanted = (order.messages * self.members.len()) as u64;
        let end = self.published + order.messages as u64;
        let patience = Timespec::try_from(PATIENCE)?;
        let mut deliveries = 0;
        while deliveries < wanted {
            self.publish(end, order.in_flight)?;
            epoll::wait(&self.poll, spare_capacity(&mut self.ready), Some(&patience))?;
            if self.ready.is_empty() {
                bail!("{} of {wanted} deliveries of the peer did not come", wanted - deliveries);
            }
            for event in std::mem::take(&mut self.ready) {
                deliveries += self.read(event.data.u64() as usize)?;
            }
            self.ready.reserve(READY_MAX);
        }
        Ok(Received { deliveries })
    }

    /// As many as may be under way, in one write.
    fn publish(&mut self, end: u64, in_flight: usize) -> Result<()> {
        let sender = self.members.first_mut().context("there is a sender")?;
        let mut bytes = Vec::new();
        while self.published < end && self.published - sender.last < in_flight as u64 {
            self.published += 1;
            bytes.extend_from_slice(&self.kind.publish(payload(self.published).as_bytes()));
        }
        if !bytes.is_empty() {
            let written = sender.stream.write(&bytes).context("the peer takes nothing")?;
            ensure!(written == bytes.len(), "the peer took {written} of {} bytes", bytes.len());
        }
        Ok(())
    }

    /// Reads one subscriber's socket once. Gives how many messages came; each must be the next.
    fn read(&mut self, number: usize) -> Result<u64> {
        let member = self.members.get_mut(number).context("it was numbered here")?;
        let read = match member.stream.read(&mut self.buffer) {
            Ok(0) => bail!("the peer closed the connection of subscriber {number}"),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        member.rest.extend_from_slice(&self.buffer[..read]);
        let (mut at, mut messages) = (0, 0);
        while let Some((said, length)) = self.kind.parse(&member.rest[at..])? {
            match said {
                Said::Message(bytes) => {
                    let next = member.last + 1;
                    ensure!(
                        bytes == payload(next).as_bytes(),
                        "subscriber {number} did not get message {next}"
                    );
                    member.last = next;
                    messages += 1;
                }
                Said::Ping => member.stream.write_all(self.kind.pong())?,
                Said::Subscribed | Said::Other => {}
            }
            at += length;
        }
        member.rest.drain(..at);
        Ok(messages)
    }
}
