//! What concerns a whole process and would disturb other tests in the same one: signals, the log.

#![allow(clippy::unwrap_used, reason = "functions that tests share are tests, too")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::environment::Environment;
use powernode_satellite::process::fresh_start;
use powernode_satellite::process::signals::{Signal, Signals};
use powernode_satellite::process::supervisor::{Stage, Supervisor};
use powernode_satellite::process::telemetry::{self, LogFormat};

/// Longest that anything here may take.
const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn signals_are_told_apart() {
    let mut signals = Signals::listen().unwrap();
    for (name, expected) in [
        ("HUP", Signal::Reload),
        ("TERM", Signal::Stop),
        ("INT", Signal::Stop),
    ] {
        let sent = tokio::process::Command::new("kill")
            .args(["-s", name, &std::process::id().to_string()])
            .status();
        assert!(sent.await.unwrap().success());
        let next = tokio::time::timeout(DEADLINE, signals.next());
        assert_eq!(next.await.unwrap(), expected, "{name}");
    }
}

#[test]
fn logs_are_json_where_standard_error_is_a_pipe() {
    let lines = logged(&[("JOURNAL_STREAM", "1:1")]);
    let told = line_with(&lines, "state changed");
    assert_eq!(told["peer"], "p-1");
    assert_eq!(told["level"], "INFO");
    assert!(told["timestamp"].as_str().unwrap().ends_with('Z'), "{told}");
}

#[test]
fn a_panic_is_one_log_line_with_its_task() {
    let lines = logged(&[]);
    let panic = line_with(&lines, "on purpose");
    assert_eq!(panic["spans"][0]["task"], "broken", "{panic}");
    assert!(panic["place"].as_str().unwrap().contains("process.rs"), "{panic}");
}

#[test]
fn a_filter_holds_until_it_is_changed() {
    let lines = logged(&[]);
    assert!(!lines.iter().any(|line| line.contains("too early")));
    assert!(lines.iter().any(|line| line.contains("after the change")));
}

#[test]
fn a_panic_starts_a_program_afresh_that_has_run_for_a_while() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let (status, said) = panicking(&std::env::current_exe().unwrap(), log.path(), Duration::ZERO);
    let runs = std::fs::read_to_string(log.path()).unwrap();
    let runs: Vec<_> = runs.lines().collect();
    assert_eq!(runs.len(), 2, "{said}");
    assert_eq!(runs[0], runs[1], "the process is the same");
    assert!(
        said.contains("on purpose") && said.contains("starts afresh"),
        "{said}"
    );
    assert!(status.success(), "{said}");
}

#[test]
fn a_program_whose_file_was_replaced_starts_afresh_as_the_one_that_ran() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let this = std::env::current_exe().unwrap();
    // A link and no copy: what some process still has open for writing cannot be run.
    let directory = tempfile::tempdir_in(this.parent().unwrap()).unwrap();
    let program = directory.path().join("program");
    std::fs::hard_link(this, &program).unwrap();
    // What an upgrade puts there before the panic, and what would write nothing to the log.
    std::fs::copy("/bin/true", program.with_extension(UPGRADED)).unwrap();
    let (status, said) = panicking(&program, log.path(), Duration::ZERO);
    let runs = std::fs::read_to_string(log.path()).unwrap();
    assert_eq!(runs.lines().count(), 2, "{said}");
    assert!(!program.with_extension(UPGRADED).exists(), "it was put there");
    assert!(status.success(), "{said}");
}

#[test]
fn a_panic_soon_after_the_start_is_left_to_the_service_manager() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let program = std::env::current_exe().unwrap();
    let (status, said) = panicking(&program, log.path(), fresh_start::RUN_AT_LEAST);
    assert_eq!(
        std::fs::read_to_string(log.path()).unwrap().lines().count(),
        1,
        "{said}"
    );
    assert!(!status.success() && said.contains("the program ends"), "{said}");
}

/// Not a test of its own: a process that panics in its first run.
#[test]
fn panicking_child() {
    let (Some(log), Some(run_at_least)) = (std::env::var_os(LOG), std::env::var_os(RUN_AT_LEAST)) else {
        return;
    };
    let mut log = std::fs::File::options().append(true).open(log).unwrap();
    writeln!(log, "{}", std::process::id()).unwrap();
    if log.metadata().unwrap().len() > format!("{}\n", std::process::id()).len() as u64 {
        return;
    }
    telemetry::init(
        &"info".parse().unwrap(),
        LogFormat::Auto,
        &Environment::of_process(),
    )
    .unwrap();
    let program = std::env::current_exe().unwrap();
    // Where there is another.
    let _ = std::fs::rename(program.with_extension(UPGRADED), &program);
    let run_at_least = Duration::from_secs(run_at_least.to_str().unwrap().parse().unwrap());
    fresh_start::after_panics(Clock::start(BUILD_TIME), run_at_least);
    panic!("on purpose");
}

/// Where the runs of the child are noted; set in its environment alone, like the next.
const LOG: &str = "PROCESS_TEST_RUNS";
const RUN_AT_LEAST: &str = "PROCESS_TEST_RUN_AT_LEAST_S";

/// What the file is called that is to take the place of the child's own.
const UPGRADED: &str = "upgraded";

fn panicking(program: &Path, log: &Path, run_at_least: Duration) -> (ExitStatus, String) {
    let output = Command::new(program)
        .args(["--exact", "panicking_child", "--nocapture"])
        .env(LOG, log)
        .env(RUN_AT_LEAST, run_at_least.as_secs().to_string())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    (output.status, String::from_utf8(output.stderr).unwrap())
}

/// Not a test of its own: the process whose log the others read.
#[test]
fn logging_child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let environment = Environment::of_process();
    let control = telemetry::init(
        &"info,process=info".parse().unwrap(),
        LogFormat::Auto,
        &environment,
    )
    .unwrap();
    tracing::info!(peer = "p-1", "state changed");
    tracing::debug!("too early");
    control.set_filter(&"info,process=debug".parse().unwrap());
    tracing::debug!("after the change");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let supervisor = Supervisor::new();
        supervisor
            .scope(Stage::Work)
            .spawn("broken", async { panic!("on purpose") });
        supervisor.shutdown(DEADLINE, std::future::pending()).await;
    });
}

/// Set in the environment of the child alone.
const CHILD: &str = "PROCESS_TEST_LOGGING_CHILD";

fn logged(variables: &[(&str, &str)]) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "logging_child", "--nocapture"])
        .env(CHILD, "1")
        .env_remove("RUST_BACKTRACE")
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    text.lines().map(str::to_owned).collect()
}

fn line_with(lines: &[String], part: &str) -> serde_json::Value {
    let line = lines.iter().find(|line| line.contains(part));
    serde_json::from_str(line.unwrap_or_else(|| panic!("no line with {part} in {lines:?}"))).unwrap()
}
