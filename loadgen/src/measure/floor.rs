//! The floor of fan-out: a bare loop of `send` of the same bytes to as many sockets; for QUIC (module `quic`) quinn alone, writing them
//! to as many connections.
//!
//! Two processes, since the sockets of both sides would not fit into one: the loop runs where the server runs, its readers where the
//! load runs. The one talks to the other over a connection beside the data, and to the measurement over its standard input
//! and output, a line each.

mod quic;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    buffer::spare_capacity,
    event::epoll,
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use super::{
    machine::{Cores, allow_files},
    server::Transport,
};

/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;
/// Sockets that one look at readiness names.
const READY_MAX: usize = 1_024;
/// Largest thing that one `send` of the loop carries.
const SEND_BYTES_MAX: u64 = 1 << 20;
/// How long the readers have for one pass.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the measurement asks of the loop.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Bytes of each `send`.
    pub bytes: u64,
    /// How often over all sockets.
    pub passes: usize,
}

impl Order {
    fn parse(text: &str) -> Result<Self> {
        let order: Self = serde_json::from_str(text).context("a broken order")?;
        if order.bytes > SEND_BYTES_MAX {
            bail!("a send of {} bytes is beyond {SEND_BYTES_MAX}", order.bytes);
        }
        Ok(order)
    }
}

/// What the loop took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Taken {
    /// CPU of its thread over all passes, in nanoseconds.
    pub cpu_ns: u64,
    /// Each pass, from its first `send` to the return of its last, in microseconds.
    pub pass_us: Vec<u64>,
    /// Each pass, from its first `send` until the last socket's bytes were read, in microseconds.
    pub read_us: Vec<u64>,
    /// Over QUIC: datagrams that the readers received.
    pub datagrams: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Ready {
    address: SocketAddr,
}

/// Both processes of a floor.
pub struct Floor {
    sender: Child,
    reader: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Floor {
    /// Starts them and connects so many sockets.
    pub fn start(cores: &Cores, transport: Transport, sockets: usize) -> Result<Self> {
        let own = std::env::current_exe()?;
        let quic: &[&str] = if transport == Transport::Quic { &["--quic"] } else { &[] };
        let mut sender = cores.as_server(|| {
            let mut command = Command::new(&own);
            command.args(["floor-send", "--sockets", &sockets.to_string()]).args(quic);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().context("cannot start the floor")
        })?;
        let orders = sender.stdin.take().context("it is piped")?;
        let mut answers = BufReader::new(sender.stdout.take().context("it is piped")?);
        let ready: Ready = line(&mut answers)?;
        let mut command = Command::new(&own);
        command.args(["floor-read", "--address", &ready.address.to_string()]);
        command
            .args(["--sockets", &sockets.to_string()])
            .args(quic)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let reader = command.spawn().context("cannot start the floor's readers")?;
        let mut floor = Self { sender, reader, orders, answers };
        // The second line: all have come.
        let _: Ready = line(&mut floor.answers)?;
        Ok(floor)
    }

    /// Runs the loop. Blocks, as the loop is all that is measured meanwhile.
    pub fn run(&mut self, order: Order) -> Result<Taken> {
        writeln!(self.orders, "{}", serde_json::to_string(&order)?).context("the floor is gone")?;
        line(&mut self.answers)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        for child in [&mut self.sender, &mut self.reader] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The next line of a floor's process.
pub fn line<T: for<'a> Deserialize<'a>>(answers: &mut impl BufRead) -> Result<T> {
    let mut text = String::new();
    answers.read_line(&mut text)?;
    serde_json::from_str(&text).context("the floor ended without an answer")
}

/// Tells the measurement.
pub fn say(what: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

/// The loop's process: `loadgen floor-send`.
pub fn send(sockets: usize, over_quic: bool) -> Result<()> {
    if over_quic {
        return quic::send(sockets);
    }
    allow_files(sockets)?;
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
    let ready = Ready { address: listener.local_addr()? };
    say(&ready)?;
    let (mut control, _) = listener.accept()?;
    control.set_read_timeout(Some(PATIENCE))?;
    let mut streams = Vec::with_capacity(sockets);
    while streams.len() < sockets {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        streams.push(stream);
    }
    say(&ready)?;
    let mut orders = BufReader::new(std::io::stdin());
    let mut text = String::new();
    while orders.read_line(&mut text)? > 0 {
        let order = Order::parse(&text)?;
        text.clear();
        say(&passes(&mut streams, &mut control, order)?)?;
    }
    Ok(())
}

fn passes(streams: &mut [TcpStream], control: &mut TcpStream, order: Order) -> Result<Taken> {
    let payload = vec![0xa5; order.bytes as usize];
    let mut taken = Taken::default();
    for _ in 0..order.passes {
        control.write_all(&order.bytes.to_le_bytes())?;
        let (began, cpu) = (Instant::now(), thread_cpu_ns());
        for stream in &mut *streams {
            let sent = stream.write(&payload).context("a socket of the floor takes nothing")?;
            if sent != payload.len() {
                bail!("a socket of the floor took {sent} of {} bytes", payload.len());
            }
        }
        taken.pass_us.push(began.elapsed().as_micros() as u64);
        taken.cpu_ns += thread_cpu_ns() - cpu;
        control.read_exact(&mut [0]).context("the floor's readers did not get everything")?;
        taken.read_us.push(began.elapsed().as_micros() as u64);
    }
    Ok(taken)
}

/// CPU of this thread, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The readers' process: `loadgen floor-read`. One thread, one read per readiness, as the sessions have it.
pub fn read(address: SocketAddr, sockets: usize, over_quic: bool) -> Result<()> {
    if over_quic {
        return quic::read(address, sockets);
    }
    allow_files(sockets)?;
    let mut control = TcpStream::connect(address)?;
    control.set_nodelay(true)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut streams = Vec::with_capacity(sockets);
    for number in 0..sockets {
        let stream = TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        epoll::add(&poll, stream.as_fd(), epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
        streams.push(stream);
    }
    let mut buffer = vec![0; READ_BYTES];
    let mut ready = Vec::with_capacity(READY_MAX);
    let mut size = [0; 8];
    // The loop's end closes it.
    while control.read_exact(&mut size).is_ok() {
        let mut left = u64::from_le_bytes(size).saturating_mul(sockets as u64);
        while left > 0 {
            epoll::wait(&poll, spare_capacity(&mut ready), None)?;
            for event in ready.drain(..) {
                let stream = streams.get_mut(event.data.u64() as usize).context("it was numbered here")?;
                match stream.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(bytes) => left = left.saturating_sub(bytes as u64),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        control.write_all(&[1])?;
    }
    Ok(())
}
