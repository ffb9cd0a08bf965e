//! Work that blocks: files, the store, the system's roots. Owns the way to the runtime's threads for it and back,
//! and must not know what the work is.
//!
//! All work goes there behind one type, and so does its result: each type would have its own copy of everything
//! that the runtime wraps around it.

use std::any::Any;
use std::future::pending;
use std::marker::PhantomData;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::task::{JoinError, JoinHandle};

type Work = Box<dyn FnOnce() -> Outcome + Send>;

type Outcome = Box<dyn Any + Send>;

/// Work that runs. Dropping this leaves it running.
#[derive(Debug)]
#[must_use = "nobody hears of the work's end"]
pub struct Blocking<T> {
    running: JoinHandle<Outcome>,
    outcome: PhantomData<fn() -> T>,
}

/// Starts work on a thread that may block. A panic in it is the error that waiting for it gives.
pub fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Blocking<T> {
    Blocking {
        running: start_boxed(Box::new(move || Box::new(work()))),
        outcome: PhantomData,
    }
}

/// Does work on a thread that may block; a panic in it goes on in the caller. Whoever stops waiting does not stop
/// the work.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match start(work).await {
        Ok(outcome) => outcome,
        Err(error) => lost(error).await,
    }
}

fn start_boxed(work: Work) -> JoinHandle<Outcome> {
    tokio::task::spawn_blocking(work)
}

async fn lost<T>(error: JoinError) -> T {
    if let Ok(panic) = error.try_into_panic() {
        resume_unwind(panic);
    }
    // The runtime ends, and with it whoever waits here.
    pending().await
}

impl<T: 'static> Future for Blocking<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = ready!(Pin::new(&mut self.running).poll(context))?;
        #[expect(
            clippy::expect_used,
            reason = "`start` has boxed a `T`, and nobody else makes a `Blocking<T>`"
        )]
        let outcome = outcome.downcast::<T>().expect("the outcome has the work's type");
        Poll::Ready(Ok(*outcome))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_work_gives_comes_back() {
        let text = String::from("as it was");
        assert_eq!(run(move || text).await, "as it was");
        assert_eq!(start(|| 7_u8).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_the_one_and_goes_on_in_the_other() {
        let error = start(|| -> u8 { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(*error.into_panic().downcast::<&str>().unwrap(), "on purpose");
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(run(|| -> u8 { panic!("on purpose") }));
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_panic());
    }
}
