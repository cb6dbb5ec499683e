//! What of a lane's sockets is ready: one epoll for all of them, edge-triggered, and beside it the connections that somebody
//! wants looked at though nothing came from their sockets.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::Instant,
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

use crate::lane::Key;

/// Sockets that one look names at the most.
const EVENTS_MAX: usize = 1_024;

/// A connection that is to be looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub key: Key,
    /// Its socket is ready.
    pub is_ready: bool,
    /// Its peer has ended its direction, or it is broken.
    pub is_hung_up: bool,
}

/// Connections that wait to be looked at.
#[derive(Default)]
pub(crate) struct Ready {
    pub turns: VecDeque<Turn>,
    /// Those whose peers have ended their direction, or to whom nothing can be written any more: when thousands leave at once, who stays
    /// does not wait behind them.
    pub leaving: VecDeque<Turn>,
    /// Since when there are always some of them, and when some were looked at last.
    pub leaving_since: Option<(Instant, Instant)>,
}

impl Ready {
    fn push(&mut self, turn: Turn) {
        if turn.is_hung_up { &mut self.leaving } else { &mut self.turns }.push_back(turn);
    }
}

/// See the module's page.
pub(crate) struct Readiness {
    epoll: AsyncFd<OwnedFd>,
    events: RefCell<Vec<epoll::Event>>,
    /// To be looked at, some perhaps twice.
    turns: RefCell<Vec<Turn>>,
    has_turns: Notify,
}

impl Readiness {
    /// An epoll.
    ///
    /// # Errors
    /// No file is left.
    pub fn epoll() -> io::Result<OwnedFd> {
        Ok(epoll::create(epoll::CreateFlags::CLOEXEC)?)
    }

    /// On the runtime of the lane.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    #[expect(unsafe_code, reason = "tokio asks for the promise that a file stays what it is")]
    pub fn new(epoll: OwnedFd) -> io::Result<Self> {
        // SAFETY: it owns the file, which is open, always gives the same number, and is closed when it is dropped.
        let epoll = unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) };
        Ok(Self {
            epoll: epoll?,
            events: RefCell::new(Vec::with_capacity(EVENTS_MAX)),
            turns: RefCell::default(),
            has_turns: Notify::new(),
        })
    }

    /// Watches a socket until it is closed. What is ready already is told.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn watch(&self, socket: BorrowedFd<'_>, key: Key) -> io::Result<()> {
        use epoll::EventFlags;
        let number = u64::from(key.slot) << 32 | u64::from(key.generation);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(self.epoll.get_ref(), socket, epoll::EventData::new_u64(number), flags)?)
    }

    /// Asks for a look at a connection.
    pub fn wake(&self, key: Key) {
        self.ask(Turn { key, is_ready: false, is_hung_up: false });
    }

    /// The same of one that is broken.
    pub fn leave(&self, key: Key) {
        self.ask(Turn { key, is_ready: false, is_hung_up: true });
    }

    fn ask(&self, turn: Turn) {
        let mut turns = self.turns.borrow_mut();
        turns.push(turn);
        if turns.len() == 1 {
            self.has_turns.notify_one();
        }
    }

    /// Has [`Self::ready`] end though nothing came.
    pub fn again(&self) {
        self.has_turns.notify_one();
    }

    /// Waits until there may be something.
    pub async fn ready(&self) {
        tokio::select! {
            () = self.has_turns.notified() => {}
            readable = self.epoll.readable() => if let Ok(mut readable) = readable {
                // Cleared before it is looked at: what becomes ready from here on is told again.
                readable.clear_ready();
            },
        }
    }

    /// Adds what is ready to `ready`. Each socket is named once until it is ready anew, so each has to be read out or woken.
    pub fn take(&self, ready: &mut Ready) {
        self.turns.borrow_mut().drain(..).for_each(|turn| ready.push(turn));
        let mut events = self.events.borrow_mut();
        events.clear();
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let looked = epoll::wait(self.epoll.get_ref(), spare_capacity(&mut events), Some(&at_once));
        match looked {
            Ok(_) if events.len() < EVENTS_MAX => {}
            // There may be more.
            Ok(_) | Err(rustix::io::Errno::INTR) => self.has_turns.notify_one(),
            Err(error) => tracing::error!(%error, "a lane cannot look at its sockets"),
        }
        let ends = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        for event in events.drain(..) {
            let (number, flags) = (event.data.u64(), event.flags);
            let key = Key { slot: (number >> 32) as u32, generation: number as u32 };
            ready.push(Turn { key, is_ready: true, is_hung_up: flags.intersects(ends) });
        }
    }
}
