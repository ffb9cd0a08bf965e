use std::convert::Infallible;
use std::future::pending;

use tokio::sync::mpsc;

use super::*;
use crate::process::clock::{BUILD_TIME, Clock};

const GRACE: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn stages_end_one_after_the_other() {
    let supervisor = Supervisor::new();
    let (ended, mut order) = mpsc::channel(3);
    for (stage, name) in [
        (Stage::Base, "base"),
        (Stage::Work, "work"),
        (Stage::Intake, "intake"),
    ] {
        let (scope, ended) = (supervisor.scope(stage), ended.clone());
        supervisor.scope(stage).spawn(name, async move {
            scope.cancelled().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            ended.send(name).await.unwrap();
        });
    }
    let report = supervisor.shutdown(GRACE, pending()).await;
    assert!(report.aborted.is_empty() && !report.forced, "{report:?}");
    let mut seen = Vec::new();
    while let Ok(name) = order.try_recv() {
        seen.push(name);
    }
    assert_eq!(seen, ["intake", "work", "base"]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_end_is_aborted_and_named() {
    let supervisor = Supervisor::new();
    supervisor.scope(Stage::Work).spawn("deaf", pending());
    let (base, (saved, mut was_saved)) = (supervisor.scope(Stage::Base), mpsc::channel(1));
    supervisor.scope(Stage::Base).spawn("writer", async move {
        base.cancelled().await;
        tokio::time::sleep(LAST_WORDS / 2).await;
        saved.send(()).await.unwrap();
    });
    let clock = Clock::start(BUILD_TIME);
    let report = supervisor.shutdown(GRACE, pending()).await;
    assert_eq!(report.aborted, ["deaf"]);
    assert_eq!(report.stuck, [""; 0]);
    assert!(
        was_saved.try_recv().is_ok(),
        "the next stage still had its last words"
    );
    assert!(clock.now().since_start() < GRACE + 3 * (LAST_WORDS + ABORT_WAIT));
}

#[tokio::test(start_paused = true)]
async fn force_cuts_the_grace_short() {
    let supervisor = Supervisor::new();
    supervisor.scope(Stage::Intake).spawn("deaf", pending());
    supervisor.scope(Stage::Base).spawn("deaf too", pending());
    let clock = Clock::start(BUILD_TIME);
    let report = supervisor
        .shutdown(GRACE, tokio::time::sleep(Duration::from_secs(1)))
        .await;
    assert!(report.forced);
    assert_eq!(report.aborted, ["deaf", "deaf too"]);
    assert!(clock.now().since_start() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_panic_ends_its_task_alone() {
    let supervisor = Supervisor::new();
    let scope = supervisor.scope(Stage::Work);
    scope.spawn("broken", async { panic!("on purpose") });
    let (done, mut was_done) = mpsc::channel(1);
    scope.spawn("sound", async move { done.send(()).await.unwrap() });
    assert_eq!(was_done.recv().await, Some(()));
    while !supervisor.running().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(supervisor.shared.state().failure.is_none());
}

#[tokio::test]
async fn an_essential_task_takes_the_daemon_with_it() {
    async fn cause<E>(future: impl Future<Output = Result<(), E>> + Send + 'static) -> String
    where
        E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
    {
        let supervisor = Supervisor::new();
        supervisor.scope(Stage::Work).spawn_essential("heart", future);
        match supervisor.stopped().await {
            StopCause::Failed(failure) => failure.to_string(),
            StopCause::Requested => "requested".to_owned(),
        }
    }
    let panicked = cause(async {
        if true {
            panic!("on purpose")
        } else {
            Ok::<(), Infallible>(())
        }
    });
    assert!(panicked.await.contains("panicked: on purpose"));
    assert!(
        cause(async { Err("no disk") })
            .await
            .contains("`heart` cannot go on")
    );
    assert!(
        cause(async { Ok::<(), Infallible>(()) })
            .await
            .contains("ended by itself")
    );
}

#[tokio::test]
async fn an_essential_task_may_end_when_asked_to() {
    let supervisor = Supervisor::new();
    let scope = supervisor.scope(Stage::Work);
    let inner = scope.clone();
    scope.spawn_essential("heart", async move {
        inner.cancelled().await;
        Ok::<(), Infallible>(())
    });
    supervisor.request_stop();
    assert!(matches!(supervisor.stopped().await, StopCause::Requested));
    assert_eq!(supervisor.shutdown(GRACE, pending()).await.aborted, [""; 0]);
}

#[tokio::test]
async fn a_child_scope_ends_alone_or_with_its_parent() {
    let supervisor = Supervisor::new();
    let scope = supervisor.scope(Stage::Work);
    let (one, other) = (scope.child(), scope.child());
    one.cancel();
    assert!(one.is_cancelled() && !scope.is_cancelled() && !other.is_cancelled());
    scope.cancel();
    assert!(other.is_cancelled());
}

#[tokio::test]
async fn nothing_starts_after_the_end() {
    let supervisor = Supervisor::new();
    let scope = supervisor.scope(Stage::Work);
    supervisor.shutdown(GRACE, pending()).await;
    let (started, mut was_started) = mpsc::channel::<()>(1);
    scope.spawn("late", async move {
        started.send(()).await.unwrap();
    });
    assert_eq!(was_started.recv().await, None, "the future is dropped unpolled");
}

#[tokio::test]
async fn thousands_of_tasks_leave_nothing_behind() {
    let supervisor = Supervisor::new();
    for _ in 0..5_000 {
        supervisor
            .scope(Stage::Work)
            .spawn_until_cancelled("short", async {});
    }
    while !supervisor.running().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(supervisor.shared.state().tasks.is_empty());
}
