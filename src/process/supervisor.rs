//! Owns every task of a daemon and ends them in order.
//!
//! Tasks belong to a [`Stage`]. A shutdown asks the stages to end one after the other: first what
//! takes in new work, then the work, then what the work stands on. Each stage has until the grace
//! period is over; what has not ended then is aborted and named in the [`ShutdownReport`]. Tasks
//! end on their own when they see [`TaskScope::cancelled`], so that they can say goodbye.
//!
//! A panic in a task ends that task alone, is logged with the task's name, and, for a task that the
//! daemon cannot do without ([`TaskScope::spawn_essential`]), stops the daemon with a failure.
//!
//! The number of tasks is bounded by whoever spawns them: a task per connection stands under the
//! bound of connections.

use std::any::Any;
use std::collections::BTreeMap;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use thiserror::Error;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::base::limit::foreign_text;

/// Time that a stage has for its last words when an earlier stage has used up the grace period:
/// enough for one durable write to a slow card, short enough for a service manager's stop timeout.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

/// Time in which an aborted task must be gone; only one that blocks its thread takes longer.
pub const ABORT_WAIT: Duration = Duration::from_millis(500);

/// When a task is asked to end, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// What takes in new work: listeners, dialers, schedules.
    Intake,
    /// The work in progress: sessions, streams, requests.
    Work,
    /// What the others stand on: the store's writer, the service manager's watchdog.
    Base,
}

/// Owns the tasks. One per daemon.
#[derive(Debug)]
pub struct Supervisor {
    shared: Arc<Shared>,
}

/// Spawns tasks into one stage. Cheap to clone, and the only thing that modules are handed.
#[derive(Debug, Clone)]
pub struct TaskScope {
    shared: Arc<Shared>,
    stage: Stage,
    cancel: CancellationToken,
}

/// Why the daemon should stop.
#[derive(Debug)]
pub enum StopCause {
    /// Somebody asked for it.
    Requested,
    /// An essential task is gone.
    Failed(TaskFailure),
}

/// How an essential task was lost.
#[derive(Debug, Error)]
pub enum TaskFailure {
    /// A defect in this program.
    #[error(
        "the task `{task}` has panicked: {message}; this is a defect of the program, please report it with the log around it"
    )]
    Panicked {
        /// The task.
        task: &'static str,
        /// What the panic said.
        message: String,
    },
    /// It could not go on.
    #[error("the task `{task}` cannot go on")]
    Failed {
        /// The task.
        task: &'static str,
        /// Why, and what to do.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It ended though nobody had asked it to.
    #[error("the task `{task}` has ended by itself; this is a defect of the program, please report it")]
    Ended {
        /// The task.
        task: &'static str,
    },
}

/// How a shutdown went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Whether the caller's `force` cut it short.
    pub forced: bool,
    /// Tasks that had to be aborted, by name.
    pub aborted: Vec<&'static str>,
    /// Tasks that even an abort did not end: they block a thread.
    pub stuck: Vec<&'static str>,
}

impl ShutdownReport {
    /// Tells the log what did not end by itself, if anything.
    pub fn log(&self) {
        if !(self.aborted.is_empty() && self.stuck.is_empty()) {
            tracing::warn!(aborted = ?self.aborted, stuck = ?self.stuck, "not every task ended in time");
        }
    }
}

impl Supervisor {
    /// No tasks yet.
    #[allow(clippy::new_without_default, reason = "a supervisor is made on purpose, once")]
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared::default()),
        }
    }

    /// The scope of a stage.
    pub fn scope(&self, stage: Stage) -> TaskScope {
        TaskScope {
            shared: Arc::clone(&self.shared),
            stage,
            cancel: self.shared.stage(stage).cancel.clone(),
        }
    }

    /// Asks the daemon to stop: [`Self::stopped`] returns.
    pub fn request_stop(&self) {
        self.shared.stop.cancel();
    }

    /// Waits until somebody asks for a stop or an essential task is lost. Does not stop anything.
    pub async fn stopped(&self) -> StopCause {
        self.shared.stop.cancelled().await;
        match self.shared.state().failure.take() {
            Some(failure) => StopCause::Failed(failure),
            None => StopCause::Requested,
        }
    }

    /// Names of the tasks that run, in the order in which they were spawned.
    pub fn running(&self) -> Vec<&'static str> {
        self.shared.state().tasks.values().map(|task| task.name).collect()
    }

    /// Ends all tasks, stage by stage. Takes at most `grace`, plus [`LAST_WORDS`] and
    /// [`ABORT_WAIT`] per stage; when `force` completes, everything left is aborted at once.
    pub async fn shutdown(self, grace: Duration, force: impl Future<Output = ()>) -> ShutdownReport {
        self.shared.stop.cancel();
        let mut force = pin!(force);
        let mut grace = pin!(tokio::time::sleep(grace));
        let mut report = ShutdownReport {
            forced: false,
            aborted: Vec::new(),
            stuck: Vec::new(),
        };
        for stage in Stage::IN_ORDER {
            let tasks = self.shared.stage(stage);
            tasks.cancel.cancel();
            tasks.tracker.close();
            if !report.forced {
                let out_of_time = async {
                    let ends = grace.as_mut();
                    if ends.is_elapsed() {
                        tokio::time::sleep(LAST_WORDS).await;
                    } else {
                        ends.await;
                    }
                };
                tokio::select! {
                    biased;
                    () = tasks.tracker.wait() => {}
                    () = force.as_mut() => report.forced = true,
                    () = out_of_time => {}
                }
            }
            self.abort_rest_of(stage, &mut report).await;
        }
        self.shared.state().closed = true;
        report
    }

    async fn abort_rest_of(&self, stage: Stage, report: &mut ShutdownReport) {
        // Collected first: an aborted task may take itself off the list at once.
        let (names, aborts): (Vec<_>, Vec<_>) = self
            .shared
            .state()
            .of(stage)
            .map(|task| (task.name, task.abort.clone()))
            .unzip();
        report.aborted.extend(names);
        for abort in aborts.into_iter().flatten() {
            abort.abort();
        }
        let gone = self.shared.stage(stage).tracker.wait();
        if tokio::time::timeout(ABORT_WAIT, gone).await.is_err() {
            report
                .stuck
                .extend(self.shared.state().of(stage).map(|task| task.name));
        }
    }
}

impl TaskScope {
    /// Spawns a task. It should end soon after [`Self::cancelled`]; a panic in it is logged and
    /// ends nothing else. After the shutdown is over, the future is dropped unpolled.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn_boxed(name, Box::pin(future));
    }

    /// Spawns a task that needs no goodbye: it is dropped where it waits when the scope is cancelled.
    pub fn spawn_until_cancelled(
        &self,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        let cancel = self.cancel.clone();
        self.spawn(name, async move {
            cancel.run_until_cancelled(future).await;
        });
    }

    /// Spawns a task that the daemon cannot do without: when it panics, fails, or ends before the
    /// scope is cancelled, [`Supervisor::stopped`] returns with the failure.
    pub fn spawn_essential<E>(
        &self,
        name: &'static str,
        future: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
    {
        let future = async move { future.await.map_err(Into::into) };
        self.spawn_essential_boxed(name, Box::pin(future));
    }

    /// A scope below this one: cancelled with it, or alone by [`Self::cancel`]. One per session.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            stage: self.stage,
            cancel: self.cancel.child_token(),
        }
    }

    /// Asks the tasks of this scope and of those below it to end.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Waits until the scope's tasks are asked to end.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Whether the scope's tasks are asked to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Asks the whole daemon to stop.
    pub fn request_stop(&self) {
        self.shared.stop.cancel();
    }

    fn spawn_boxed(&self, name: &'static str, future: BoxedTask<()>) {
        self.start(
            name,
            Box::pin(async move {
                if let Err(message) = caught(future).await {
                    log_panic(name, &message);
                }
            }),
        );
    }

    fn spawn_essential_boxed(&self, name: &'static str, future: BoxedTask<Result<(), BoxedError>>) {
        let scope = self.clone();
        self.start(
            name,
            Box::pin(async move {
                let failure = match caught(future).await {
                    Ok(Ok(())) if scope.is_cancelled() => return,
                    Ok(Ok(())) => TaskFailure::Ended { task: name },
                    Ok(Err(source)) => TaskFailure::Failed { task: name, source },
                    Err(message) => {
                        log_panic(name, &message);
                        TaskFailure::Panicked { task: name, message }
                    }
                };
                scope.shared.fail(failure);
            }),
        );
    }

    fn start(&self, name: &'static str, future: BoxedTask<()>) {
        // Not `name`: JSON lines give that key to the span's own name.
        let span = tracing::error_span!(parent: None, "task", task = name);
        let Some(entry) = self.shared.enter(self.stage, name) else {
            tracing::debug!(name, "the shutdown is over; the task is not started");
            return;
        };
        let number = entry.number;
        let task = async move {
            let _entry = entry;
            future.await;
        };
        let handle = self.shared.stage(self.stage).tracker.spawn(task.instrument(span));
        // The entry is made before and completed after: a task may end before `spawn` returns, and
        // one that is spawned on a runtime that shuts down is dropped inside of `spawn`.
        if let Some(task) = self.shared.state().tasks.get_mut(&number) {
            task.abort = Some(handle.abort_handle());
        }
    }
}

/// What is spawned, behind one type: each type of future would have its own copy of everything that
/// the supervisor and the runtime wrap around it.
type BoxedTask<T> = Pin<Box<dyn Future<Output = T> + Send>>;

type BoxedError = Box<dyn Error + Send + Sync>;

impl Stage {
    const IN_ORDER: [Self; 3] = [Self::Intake, Self::Work, Self::Base];
}

#[derive(Debug, Default)]
struct Shared {
    stop: CancellationToken,
    intake: StageTasks,
    work: StageTasks,
    base: StageTasks,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct StageTasks {
    cancel: CancellationToken,
    tracker: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    tasks: BTreeMap<u64, Task>,
    failure: Option<TaskFailure>,
    closed: bool,
}

#[derive(Debug)]
struct Task {
    name: &'static str,
    stage: Stage,
    abort: Option<AbortHandle>,
}

impl State {
    /// Nothing is added after the end of the shutdown.
    fn add(&mut self, task: Task) -> Option<u64> {
        if self.closed {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.tasks.insert(number, task);
        Some(number)
    }

    fn of(&self, stage: Stage) -> impl Iterator<Item = &Task> {
        self.tasks.values().filter(move |task| task.stage == stage)
    }
}

/// Takes the task off the list however it ends.
struct Entry {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.state().tasks.remove(&self.number);
    }
}

impl Shared {
    fn stage(&self, stage: Stage) -> &StageTasks {
        match stage {
            Stage::Intake => &self.intake,
            Stage::Work => &self.work,
            Stage::Base => &self.base,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, stage: Stage, name: &'static str) -> Option<Entry> {
        let task = Task {
            name,
            stage,
            abort: None,
        };
        let number = self.state().add(task)?;
        Some(Entry {
            shared: Arc::clone(self),
            number,
        })
    }

    /// The first failure is the one that is told: later ones tend to follow from it.
    fn fail(&self, failure: TaskFailure) {
        if self.stop.is_cancelled() {
            tracing::warn!(failure = %failure, "an essential task was lost while stopping");
            return;
        }
        self.state().failure.get_or_insert(failure);
        self.stop.cancel();
    }
}

fn log_panic(task: &'static str, message: &str) {
    tracing::error!(
        task,
        message,
        "a task has panicked; this is a defect of the program, please report it with the log around it"
    );
}

/// Runs the future to its end, or to the message of its panic.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = pin!(future);
    poll_fn(|context| {
        // The future is not polled again after a panic, so nobody sees what it left half done.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => Poll::Ready(Err(panic_message(panic.as_ref()))),
        }
    })
    .await
}

/// What a panic said, shortened.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    foreign_text(text.unwrap_or("(no message)"))
}

#[cfg(test)]
mod tests;
