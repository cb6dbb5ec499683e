//! What keeps the reader out of what is measured: a thread that stands back behind the one that measures, with sessions of its own, and
//! looks at sockets that come by the clock.

use std::{future::Future, pin::Pin, thread::JoinHandle, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
};

/// How far it stands back.
const NICE: i32 = 10;

/// Between two looks of a thread that waits for no socket.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Has this thread look at its sockets every millisecond, and sleep in between with nobody waiting for them. Who waits for a socket on the
/// machine that writes to it is woken by the write, in the writer's time: a few microseconds, more than the write itself, and only where
/// the reader has nothing else to do. So a server that writes less would seem to write slowly.
pub fn look_now_and_then() -> AbortOnDrop {
    AbortOnDrop(tokio::task::spawn_local(async {
        loop {
            // Asleep, not waiting: that is the point. The sockets are looked at when the task has yielded.
            std::thread::sleep(LOOK_EVERY);
            tokio::task::yield_now().await;
        }
    }))
}

/// Ends with its handle.
pub struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Done<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;
type Job<S> = Box<dyn for<'a> FnOnce(&'a mut Option<S>) -> Done<'a> + Send>;

/// The thread, and what it is asked to do with its own `S`.
pub struct Beside<S> {
    jobs: mpsc::UnboundedSender<Job<S>>,
    thread: JoinHandle<()>,
}

impl<S: 'static> Beside<S> {
    /// Starts it; `make` runs there.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(name: &str, make: impl FnOnce() -> S + Send + 'static) -> Result<Self> {
        let (jobs, mut taken) = mpsc::unbounded_channel::<Job<S>>();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            // Without it the figures are only worse.
            let _ = rustix::process::nice(NICE);
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return eprintln!("error: {error}"),
            };
            LocalSet::new().block_on(&runtime, async move {
                let mut state = Some(make());
                while let Some(job) = taken.recv().await {
                    job(&mut state).await;
                }
            });
        })?;
        Ok(Self { jobs, thread })
    }

    /// Has it do something, and waits for the outcome.
    ///
    /// # Errors
    /// Those of `work`, or the thread ended.
    pub async fn ask<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(&mut S) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            Box::pin(async move {
                let outcome = match state.as_mut() {
                    Some(state) => work(state).await,
                    None => Err(anyhow::anyhow!("it was ended")),
                };
                // Whoever asked may be gone: then nobody needs the answer.
                drop(answer.send(outcome));
            })
        });
        self.jobs.send(job).ok().context("the thread beside ended")?;
        answered.await.context("the thread beside ended")?
    }

    /// Has it end what it has, and waits for its own end.
    ///
    /// # Errors
    /// Those of `work`, or the thread ended before.
    pub async fn end<T: Send + 'static>(
        self,
        work: impl AsyncFnOnce(S) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            Box::pin(async move {
                if let Some(state) = state.take() {
                    drop(answer.send(work(state).await));
                }
            })
        });
        self.jobs.send(job).ok().context("the thread beside ended")?;
        let outcome = answered.await.context("the thread beside ended")?;
        drop(self.jobs);
        tokio::task::spawn_blocking(move || self.thread.join()).await?.ok().context("a thread panicked")?;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_it_has_stays_there_until_its_end() {
        // Not Send: made, used and dropped on its own thread.
        let beside = Beside::start("beside", || std::rc::Rc::new(std::cell::Cell::new(1))).unwrap();
        let told = beside.ask(async |cell| Ok(cell.replace(7))).await.unwrap();
        assert_eq!(told, 1);
        let failed = beside.ask(async |_| -> Result<()> { anyhow::bail!("no") }).await;
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert_eq!(beside.end(async |cell| Ok(cell.get())).await.unwrap(), 7);
    }
}
