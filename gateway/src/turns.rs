//! The turns of a lane's handshakes. A handshake costs a thousand times what a frame does, and when thousands of clients come
//! back at once the sessions that are there must not wait behind them all. So a handshake works only in its turn: one at a
//! time, in the order in which they ask, and after [`WORK_MAX`] of such work everything else on the lane has a pass. While thousands
//! leave nobody has one.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, Semaphore};

/// Work on handshakes between two passes of everything else: some five over TLS, two or three over QUIC. With half of it a session
/// let in over TLS cost an eighth more: what a pass has for the router goes in one piece.
const WORK_MAX: Duration = Duration::from_millis(1);

/// The turns of one lane. Not shared between threads.
pub(crate) struct Turns {
    /// One permit: whose turn it is. Those that wait are served in their order.
    turn: Semaphore,
    /// Work since everything else had a pass.
    worked: Cell<Duration>,
    /// Nobody has a turn.
    is_held: Cell<bool>,
    let_go: Notify,
}

impl Turns {
    pub fn new() -> Self {
        Self {
            turn: Semaphore::const_new(1),
            worked: Cell::default(),
            is_held: Cell::new(false),
            let_go: Notify::new(),
        }
    }

    /// Whether turns wait from now on, or go on.
    pub fn hold(&self, is_held: bool) {
        if self.is_held.replace(is_held) && !is_held {
            self.let_go.notify_one();
        }
    }

    /// Runs a handshake to its end: each poll of it is one turn. What it waits for, its deadlines too, it sees when its
    /// next turn comes.
    pub async fn take<F: Future>(&self, mut handshake: Pin<Box<F>>) -> F::Output {
        loop {
            let turn = self.turn.acquire().await;
            while self.is_held.get() {
                self.let_go.notified().await;
            }
            let began = Instant::now();
            let polled = std::future::poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await;
            let worked = self.worked.get() + began.elapsed();
            self.worked.set(worked);
            let rests = worked >= WORK_MAX;
            if rests {
                // The turn is kept meanwhile: the next one begins behind the pass.
                pass().await;
                self.worked.set(Duration::ZERO);
            }
            drop(turn);
            match polled {
                Poll::Ready(output) => return output,
                // What wakes this task during the pass is not told from the pass's end: it looks once more.
                Poll::Pending if rests => {}
                Poll::Pending => pause().await,
            }
        }
    }
}

/// Waits until everything that is ready has been polled: the tasks of the runtime, which QUIC's connections are, and then those
/// of the lane.
async fn pass() {
    // It is queued behind all others, and its end queues this task behind the lane's.
    let _ = tokio::spawn(std::future::ready(())).await;
}

/// Waits for one wake-up of this task.
async fn pause() {
    let mut is_back = false;
    std::future::poll_fn(
        |_| if std::mem::replace(&mut is_back, true) { Poll::Ready(()) } else { Poll::Pending },
    )
    .await;
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        rc::Rc,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use tokio::{
        sync::oneshot,
        task::{JoinSet, LocalSet},
    };

    use super::*;

    const OTHERS: usize = 100;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    fn work(time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn everything_else_has_a_pass_between_handshakes() {
        run(async {
            let turns = Rc::new(Turns::new());
            let passes = Rc::new(Cell::new(0));
            let seen = Rc::new(RefCell::new(Vec::new()));
            let mut handshakes = Vec::new();
            for number in 0..20 {
                let (turns, passes, seen) = (turns.clone(), passes.clone(), seen.clone());
                handshakes.push(tokio::task::spawn_local(async move {
                    let handshake = Box::pin(async move {
                        work(WORK_MAX);
                        seen.borrow_mut().push((number, passes.get()));
                    });
                    turns.take(handshake).await;
                }));
            }
            // A hundred tasks of the runtime, more than it runs between two looks at the sockets, and one of the lane.
            let polled = Arc::new(AtomicUsize::new(0));
            let mut others = JoinSet::new();
            for _ in 0..OTHERS {
                let polled = polled.clone();
                others.spawn(async move {
                    loop {
                        polled.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                    }
                });
            }
            others.spawn_local(async move {
                loop {
                    passes.set(passes.get() + 1);
                    tokio::task::yield_now().await;
                }
            });
            for handshake in handshakes {
                handshake.await.unwrap();
            }
            let seen = seen.borrow();
            assert!(seen.iter().map(|(number, _)| *number).eq(0..20), "in their order: {seen:?}");
            for pair in seen.windows(2) {
                assert!(pair[0].1 < pair[1].1, "a pass of the lane between two handshakes: {seen:?}");
            }
            let polled = polled.load(Ordering::Relaxed);
            assert!(polled >= 19 * OTHERS, "a pass of the runtime between two handshakes: {polled}");
        });
    }

    #[test]
    fn a_handshake_that_waits_for_its_peer_keeps_nobody_waiting() {
        run(async {
            let turns = Rc::new(Turns::new());
            let (answer, answered) = oneshot::channel();
            let silent = tokio::task::spawn_local({
                let turns = turns.clone();
                async move { turns.take(Box::pin(answered)).await }
            });
            for _ in 0..100 {
                turns.take(Box::pin(async { work(WORK_MAX / 4) })).await;
            }
            assert!(!silent.is_finished());
            answer.send(7).unwrap();
            assert_eq!(silent.await.unwrap(), Ok(7));
        });
    }

    #[test]
    fn a_wake_up_during_the_pass_is_not_lost() {
        run(async {
            let turns = Rc::new(Turns::new());
            let (answer, answered) = oneshot::channel();
            let handshake = tokio::task::spawn_local({
                let turns = turns.clone();
                async move {
                    let handshake = Box::pin(async {
                        work(WORK_MAX);
                        answered.await
                    });
                    turns.take(handshake).await
                }
            });
            // It has worked and rests; the answer comes now.
            tokio::task::yield_now().await;
            answer.send(7).unwrap();
            let outcome = tokio::time::timeout(Duration::from_secs(5), handshake).await;
            assert_eq!(outcome.expect("it goes on").unwrap(), Ok(7));
        });
    }

    #[test]
    fn nobody_has_a_turn_while_they_are_held() {
        run(async {
            let turns = Rc::new(Turns::new());
            turns.hold(true);
            let mut handshakes = Vec::new();
            for _ in 0..3 {
                let turns = turns.clone();
                handshakes
                    .push(tokio::task::spawn_local(async move { turns.take(Box::pin(async {})).await }));
            }
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert!(handshakes.iter().all(|handshake| !handshake.is_finished()));
            // Who is first in line gives up meanwhile.
            handshakes.remove(0).abort();
            turns.hold(false);
            for handshake in handshakes {
                let done = tokio::time::timeout(Duration::from_secs(5), handshake).await;
                done.expect("they go on").unwrap();
            }
        });
    }

    #[test]
    fn one_that_is_given_up_gives_its_turn_back() {
        run(async {
            let turns = Rc::new(Turns::new());
            let mut tasks = Vec::new();
            for _ in 0..3 {
                let turns = turns.clone();
                tasks.push(tokio::task::spawn_local(async move {
                    turns.take(Box::pin(async { work(WORK_MAX) })).await;
                }));
            }
            tokio::task::yield_now().await;
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
            let next = turns.take(Box::pin(async { 7 }));
            assert_eq!(tokio::time::timeout(Duration::from_secs(5), next).await, Ok(7));
        });
    }
}
