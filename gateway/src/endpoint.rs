//! QUIC's endpoint, driven by whoever holds its [`Reader`] instead of by a task among all others.
//!
//! quinn reads the socket in a task of its own, 32 datagrams or 50 us of them at a time, and has a task for each connection. On
//! a thread that has both, thousands of connections that are ready at once stand before each such reading; the kernel's
//! buffer runs over, what is lost is sent again, and that makes more of them ready. So the reader is polled where the lane
//! itself is: between any few dozen tasks.

use std::{
    fmt,
    future::Future,
    io,
    net::UdpSocket,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use parking_lot::Mutex;
use quinn::{AsyncTimer, AsyncUdpSocket, Endpoint, EndpointConfig, Runtime, ServerConfig, TokioRuntime};

/// How often in a row the socket is read: over a hundred datagrams, or 200 us.
const READS_MAX: usize = 4;

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Opens an endpoint. Nothing comes in unless its reader is polled.
///
/// # Errors
/// The socket cannot be used.
pub(crate) fn open(
    config: EndpointConfig,
    server: ServerConfig,
    socket: UdpSocket,
) -> io::Result<(Endpoint, Reader)> {
    let runtime = Arc::new(Keeping::default());
    let endpoint = Endpoint::new(config, Some(server), socket, runtime.clone())?;
    let kept = std::mem::replace(&mut *runtime.kept.lock(), Kept::Given);
    let Kept::Here(driver) = kept else {
        return Err(io::Error::other("the endpoint has no driver"));
    };
    let alarm = Arc::new(Alarm { rung: AtomicBool::new(true), sleeper: Mutex::new(Waker::noop().clone()) });
    let waker = Waker::from(alarm.clone());
    Ok((endpoint, Reader { driver, alarm, waker }))
}

/// tokio's, but for the first future that is spawned.
#[derive(Default)]
struct Keeping {
    kept: Mutex<Kept>,
}

/// An endpoint's driver on its way from quinn to its reader.
#[derive(Default)]
enum Kept {
    #[default]
    NotYet,
    Here(Driver),
    Given,
}

impl fmt::Debug for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeping").finish_non_exhaustive()
    }
}

impl Runtime for Keeping {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Driver) {
        let mut kept = self.kept.lock();
        if matches!(*kept, Kept::NotYet) {
            *kept = Kept::Here(future);
        } else {
            drop(kept);
            TokioRuntime.spawn(future);
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// Reads an endpoint's socket and gives the datagrams to their connections. Ready when the endpoint has ended.
pub(crate) struct Reader {
    driver: Driver,
    alarm: Arc<Alarm>,
    /// The alarm's.
    waker: Waker,
}

/// Tells whether the driver itself was woken, so that what else is polled beside it does not cost a look at the socket.
struct Alarm {
    rung: AtomicBool,
    sleeper: Mutex<Waker>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        let sleeper = self.sleeper.lock().clone();
        sleeper.wake();
    }
}

impl Future for Reader {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { driver, alarm, waker } = self.get_mut();
        {
            let mut sleeper = alarm.sleeper.lock();
            if !sleeper.will_wake(cx.waker()) {
                sleeper.clone_from(cx.waker());
            }
        }
        for _ in 0..READS_MAX {
            if !alarm.rung.swap(false, Ordering::AcqRel) {
                break;
            }
            // QUIC ends by a panic here, and not the lane that it is polled on.
            let polled = || driver.as_mut().poll(&mut Context::from_waker(waker)).is_ready();
            match catch_unwind(AssertUnwindSafe(polled)) {
                Ok(false) => {}
                Ok(true) => return Poll::Ready(()),
                Err(_) => {
                    metrics::counter!("fanfare_gateway_panics_total").increment(1);
                    tracing::error!("the QUIC endpoint panicked and has ended");
                    return Poll::Ready(());
                }
            }
        }
        // Where it rings still, it has woken the sleeper too.
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// A driver that wants to go on so many times, then waits, and a reader of it.
    fn reader(goes_on: usize) -> (Reader, Arc<AtomicUsize>, Arc<Mutex<Option<Waker>>>) {
        let (polled, outside) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
        let (count, slot) = (polled.clone(), outside.clone());
        let driver = std::future::poll_fn(move |cx| {
            *slot.lock() = Some(cx.waker().clone());
            if count.fetch_add(1, Ordering::Relaxed) < goes_on {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        });
        let alarm =
            Arc::new(Alarm { rung: AtomicBool::new(true), sleeper: Mutex::new(Waker::noop().clone()) });
        let waker = Waker::from(alarm.clone());
        (Reader { driver: Box::pin(driver), alarm, waker }, polled, outside)
    }

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_driver_is_polled_when_it_was_woken_and_so_often_in_a_row() {
        let (mut reader, polled, outside) = reader(READS_MAX + 1);
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        let mut poll = || {
            let cx = &mut Context::from_waker(&waker);
            assert!(Pin::new(&mut reader).poll(cx).is_pending());
            polled.load(Ordering::Relaxed)
        };
        assert_eq!(poll(), READS_MAX, "others have their turn");
        assert!(woken.0.load(Ordering::Relaxed) > 0, "and then it goes on");
        assert_eq!(poll(), READS_MAX + 2, "until it waits");
        assert_eq!(poll(), READS_MAX + 2, "woken by something else");
        let before = woken.0.load(Ordering::Relaxed);
        outside.lock().clone().unwrap().wake();
        assert_eq!(woken.0.load(Ordering::Relaxed), before + 1);
        assert_eq!(poll(), READS_MAX + 3);
    }
}
