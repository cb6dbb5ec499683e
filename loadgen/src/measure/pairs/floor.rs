//! The floor of direct messages: one `recv` and two `send` per message, on as many sockets as there are sessions. The loop runs
//! where the server runs, in a process of its own; its users in another.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{buffer::spare_capacity, event::epoll};
use serde::{Deserialize, Serialize};

use crate::measure::{
    floor::{line, say, thread_cpu_ns},
    machine::{Cores, allow_files},
};

/// Bytes of a SEND of 128 bytes with its headers and mask,
const SEND_BYTES: usize = 186;
/// of its SEND_ACK,
const ACK_BYTES: usize = 70;
/// and of its DELIVER.
const DELIVER_BYTES: usize = 217;
/// Sockets that one look at readiness names.
const READY_MAX: usize = 1_024;
/// How long the other side has for a round.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the measurement asks of the loop.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Messages of each pair.
    pub messages: usize,
}

/// What the loop took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Taken {
    /// CPU of its thread, in nanoseconds.
    pub cpu_ns: u64,
}

#[derive(Serialize, Deserialize)]
struct Ready {
    address: SocketAddr,
}

/// Both processes.
pub struct Floor {
    relay: Child,
    users: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Floor {
    /// Starts them and connects two sockets for each pair.
    pub fn start(cores: &Cores, pairs: usize) -> Result<Self> {
        let own = std::env::current_exe()?;
        let pairs = pairs.to_string();
        let mut relay = cores.as_server(|| {
            let mut command = Command::new(&own);
            command.args(["floor-relay", "--pairs", &pairs]).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().context("cannot start the floor")
        })?;
        let orders = relay.stdin.take().context("it is piped")?;
        let mut answers = BufReader::new(relay.stdout.take().context("it is piped")?);
        let ready: Ready = line(&mut answers)?;
        let mut command = Command::new(&own);
        command.args(["floor-users", "--pairs", &pairs, "--address", &ready.address.to_string()]);
        let users = command.stdin(Stdio::null()).spawn().context("cannot start the floor's users")?;
        let mut floor = Self { relay, users, orders, answers };
        // The second line: all have come.
        let _: Ready = line(&mut floor.answers)?;
        Ok(floor)
    }

    /// Runs the loop. Blocks.
    pub fn run(&mut self, order: Order) -> Result<Taken> {
        writeln!(self.orders, "{}", serde_json::to_string(&order)?).context("the floor is gone")?;
        line(&mut self.answers)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        for child in [&mut self.relay, &mut self.users] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sockets 2n and 2n + 1 are a pair.
struct Sockets {
    streams: Vec<TcpStream>,
    poll: OwnedFd,
    ready: Vec<epoll::Event>,
}

impl Sockets {
    fn new() -> Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { streams: Vec::new(), poll, ready: Vec::with_capacity(READY_MAX) })
    }

    fn push(&mut self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let number = epoll::EventData::new_u64(self.streams.len() as u64);
        epoll::add(&self.poll, stream.as_fd(), number, epoll::EventFlags::IN)?;
        self.streams.push(stream);
        Ok(())
    }

    /// The sockets that have something, once each.
    fn wait(&mut self) -> Result<Vec<usize>> {
        epoll::wait(&self.poll, spare_capacity(&mut self.ready), None)?;
        Ok(self.ready.drain(..).map(|event| event.data.u64() as usize).collect())
    }

    /// One `recv`; 0 where nothing is there after all.
    fn receive(&mut self, number: usize, buffer: &mut [u8]) -> Result<usize> {
        match self.streams[number].read(buffer) {
            Ok(0) => anyhow::bail!("the other side of the floor is gone"),
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn send(&mut self, number: usize, bytes: &[u8]) -> Result<()> {
        let sent = self.streams[number].write(bytes).context("a socket of the floor takes nothing")?;
        ensure!(sent == bytes.len(), "a socket of the floor took {sent} of {} bytes", bytes.len());
        Ok(())
    }
}

/// The loop's process: `loadgen floor-relay`.
pub fn relay(pairs: usize) -> Result<()> {
    allow_files(pairs * 2)?;
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
    let ready = Ready { address: listener.local_addr()? };
    say(&ready)?;
    let (mut control, _) = listener.accept()?;
    control.set_read_timeout(Some(PATIENCE))?;
    let mut sockets = Sockets::new()?;
    while sockets.streams.len() < pairs * 2 {
        sockets.push(listener.accept()?.0)?;
    }
    say(&ready)?;
    let mut orders = BufReader::new(std::io::stdin());
    let mut text = String::new();
    while orders.read_line(&mut text)? > 0 {
        let order: Order = serde_json::from_str(&text).context("a broken order")?;
        text.clear();
        control.write_all(&(order.messages as u64).to_le_bytes())?;
        let cpu = thread_cpu_ns();
        pass_on(&mut sockets, order.messages * pairs)?;
        say(&Taken { cpu_ns: thread_cpu_ns() - cpu })?;
        control.read_exact(&mut [0]).context("the floor's users did not get everything")?;
    }
    Ok(())
}

fn pass_on(sockets: &mut Sockets, messages: usize) -> Result<()> {
    let mut buffer = vec![0; 4 * 1024];
    let mut left = messages;
    while left > 0 {
        for sender in sockets.wait()? {
            // One in flight: what has come is one message, in one piece.
            if sockets.receive(sender, &mut buffer)? == 0 {
                continue;
            }
            sockets.send(sender, &[1; ACK_BYTES])?;
            sockets.send(sender ^ 1, &[2; DELIVER_BYTES])?;
            left -= 1;
        }
    }
    Ok(())
}

/// The users' process: `loadgen floor-users`.
pub fn users(address: SocketAddr, pairs: usize) -> Result<()> {
    allow_files(pairs * 2)?;
    let mut control = TcpStream::connect(address)?;
    control.set_nodelay(true)?;
    let mut sockets = Sockets::new()?;
    for _ in 0..pairs * 2 {
        sockets.push(TcpStream::connect(address)?)?;
    }
    let mut count = [0; 8];
    // The loop's end closes it.
    while control.read_exact(&mut count).is_ok() {
        talk(&mut sockets, pairs, u64::from_le_bytes(count))?;
        control.write_all(&[1])?;
    }
    Ok(())
}

/// Each pair sends so many messages, the next when the last is acknowledged and delivered.
fn talk(sockets: &mut Sockets, pairs: usize, messages: u64) -> Result<()> {
    let mut buffer = vec![0; 4 * 1024];
    // By pair: messages not yet sent, and bytes that the two sides still wait for.
    let mut left = vec![messages; pairs];
    let mut awaited = vec![0; pairs];
    let mut busy = 0;
    for pair in 0..pairs {
        busy += usize::from(next(sockets, pair, &mut left, &mut awaited)?);
    }
    while busy > 0 {
        for number in sockets.wait()? {
            let pair = number / 2;
            awaited[pair] -= sockets.receive(number, &mut buffer)?.min(awaited[pair]);
            if awaited[pair] == 0 && !next(sockets, pair, &mut left, &mut awaited)? {
                busy -= 1;
            }
        }
    }
    Ok(())
}

/// Sends a pair's next message; says whether there was one.
fn next(sockets: &mut Sockets, pair: usize, left: &mut [u64], awaited: &mut [usize]) -> Result<bool> {
    if left[pair] == 0 {
        return Ok(false);
    }
    sockets.send(pair * 2, &[3; SEND_BYTES])?;
    left[pair] -= 1;
    awaited[pair] = ACK_BYTES + DELIVER_BYTES;
    Ok(true)
}
