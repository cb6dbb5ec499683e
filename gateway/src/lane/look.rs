//! A look: the lane goes through its WebSocket connections that are ready, writes to each what waits and reads what came, and bounds what
//! one of them, and those who leave, may take before everything else has its turn.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use fanfare_proto::link::Up;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::{Key, Lane};
use crate::{
    connection::{Link, Stage},
    readiness::{Ready, Turn},
};

/// Reads of one connection in a row.
const READS_MAX: u32 = 16;
/// Bytes of all connections that are read before others have their turn.
const LOOK_BYTES: usize = 1024 * 1024;
/// Work on connections whose peers have left between two passes of everything else, at the least: half of what those took if that is more.
const LEAVING_MIN: Duration = Duration::from_millis(1);
/// How long handshakes wait for those who leave.
const HELD_MAX: Duration = Duration::from_secs(1);
/// Places of the list of those who leave that are kept for the next burst.
const LEAVING_KEPT: usize = 1_024;
/// Connections of a look behind which the lane goes on to the next without a pause for everything else. A heartbeat wakes it for one.
const FEW: usize = 8;
/// Connections that are ready and wait to be looked at, above which the epoll is not asked for more.
const READY_MAX: usize = 1_024;

/// What comes behind a turn of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Hand frames up.
    Forward,
    /// Nothing, until it is ready again.
    Waits,
    /// There is more, and others wait.
    Again,
    /// The connection is gone.
    Gone,
}

impl Lane {
    /// Looks at the connections that are ready, as far as their bytes go into one look, and hands over what they sent. Gives whether
    /// those were many, or some are left: then everything else has its turn. Behind few it has it anyway, as the lane waits for the next.
    pub(super) fn look(self: &Rc<Self>, ready: &mut Ready) -> bool {
        // Who is not asked has told of what it holds once, and tells no more.
        let is_asked = ready.turns.len() < READY_MAX;
        if is_asked {
            self.readiness.take(ready);
        }
        let are_many = ready.turns.len() + ready.leaving.len() > FEW;
        let (mut ups, mut left) = (Vec::new(), LOOK_BYTES);
        while left > 0
            && let Some(turn) = ready.turns.pop_front()
        {
            left = left.saturating_sub(self.told(turn, &mut ups));
        }
        self.look_at_leaving(ready, &mut ups);
        self.hand_over();
        let has_more = !(is_asked && ready.turns.is_empty() && ready.leaving.is_empty());
        if has_more {
            self.readiness.again();
        }
        are_many || has_more
    }

    /// Some of those who leave. Who comes back waits for their places, for a while: else both would be held, and the process has a limit
    /// of files.
    fn look_at_leaving(self: &Rc<Self>, ready: &mut Ready, ups: &mut Vec<Up>) {
        if !ready.leaving.is_empty() {
            let began = Instant::now();
            // While there are some left from the last time the lane does not rest: all of that time went into something.
            let (since, looked_at) = ready.leaving_since.unwrap_or((began, began));
            let most = LEAVING_MIN.max((began - looked_at) / 2);
            while began.elapsed() < most
                && let Some(turn) = ready.leaving.pop_front()
            {
                self.told(turn, ups);
            }
            ready.leaving_since = Some((since, Instant::now()));
        }
        if ready.leaving.is_empty() {
            ready.leaving_since = None;
            if ready.leaving.capacity() > LEAVING_KEPT {
                ready.leaving = VecDeque::new();
            }
        }
        self.turns.hold(ready.leaving_since.is_some_and(|(since, _)| since.elapsed() < HELD_MAX));
    }

    /// The turns of a connection that is ready, or that somebody wants looked at. Gives the bytes that were read.
    fn told(self: &Rc<Self>, turn: Turn, ups: &mut Vec<Up>) -> usize {
        if turn.is_ready {
            self.state.borrow_mut().told(turn);
        }
        self.turns(turn.key, ups)
    }

    /// What a WebSocket connection has to write and has sent, up to some reads. A panic in it ends that connection alone. Gives the
    /// bytes that were read.
    fn turns(self: &Rc<Self>, key: Key, ups: &mut Vec<Up>) -> usize {
        let (mut reads, mut bytes) = (READS_MAX, 0);
        loop {
            let turn = || {
                let step = self.turn(key, ups, &mut reads, &mut bytes);
                if step == Step::Forward {
                    self.forward_beside(key, ups);
                }
                step
            };
            match catch_unwind(AssertUnwindSafe(turn)) {
                Ok(Step::Forward) => {}
                Ok(Step::Waits) => return bytes,
                // A client that never stops sending shares the lane with the others.
                Ok(Step::Again) => {
                    self.readiness.wake(key);
                    return bytes;
                }
                Ok(Step::Gone) => {
                    // What it sent last is nobody's.
                    ups.clear();
                    return bytes;
                }
                Err(_) => {
                    ups.clear();
                    self.guarded(|| self.panicked(key));
                    return bytes;
                }
            }
        }
    }

    /// One turn of a WebSocket connection: writes what waits, reads until there is something to hand over.
    fn turn(&self, key: Key, ups: &mut Vec<Up>, reads: &mut u32, bytes: &mut usize) -> Step {
        // Nobody is woken: the lane's epoll tells.
        let cx = &mut Context::from_waker(Waker::noop());
        let shared = &*self.shared;
        let now_ms = shared.clock.now_ms();
        let gone = 'gone: {
            let mut state = self.state.borrow_mut();
            let Some(connection) = state.get(key) else { return Step::Gone };
            if matches!(connection.stage, Stage::Open(_))
                && let Some(mut early) = connection.take_early()
            {
                connection.message(shared, now_ms, early.frames, ups);
                connection.bytes(shared, now_ms, &mut early.raw, ups);
            }
            loop {
                connection.flush(shared, now_ms);
                if !connection.is_flushed() {
                    // It asks and does not read the answers.
                    connection.relieve(shared, now_ms);
                }
                if connection.broken {
                    break 'gone true;
                }
                if !ups.is_empty() {
                    return Step::Forward;
                }
                let is_flushed = connection.is_flushed();
                let Link::Ws { wire, .. } = &mut connection.link else { break 'gone true };
                let closing = match connection.stage {
                    Stage::Opening(_) => return Step::Waits,
                    Stage::Open(_) => false,
                    Stage::Closing { .. } if !is_flushed => return Step::Waits,
                    Stage::Closing { .. } => true,
                };
                if connection.forwards {
                    return Step::Waits;
                }
                // Our direction ends first; the peer's is read out, or closing would reset the connection and the last
                // frames could be lost.
                if closing && Pin::new(&mut *wire).poll_shutdown(cx).is_pending() {
                    return Step::Waits;
                }
                if *reads == 0 {
                    return Step::Again;
                }
                *reads -= 1;
                let mut scratch = self.scratch.borrow_mut();
                let mut buffer = ReadBuf::new(&mut scratch);
                match Pin::new(wire).poll_read(cx, &mut buffer) {
                    Poll::Pending => return Step::Waits,
                    Poll::Ready(Err(_)) => break 'gone true,
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => break 'gone true,
                    Poll::Ready(Ok(())) if closing => *bytes += buffer.filled().len(),
                    Poll::Ready(Ok(())) => {
                        *bytes += buffer.filled().len();
                        connection.bytes(shared, now_ms, buffer.filled_mut(), ups);
                    }
                }
            }
        };
        if gone {
            self.remove(key);
        }
        Step::Gone
    }
}
