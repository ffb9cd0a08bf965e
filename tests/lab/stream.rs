//! A stream that somebody reads while the network changes: a counting service on the satellite, and a
//! reader at the parent that goes there through the tunnel and checks each number.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::federation::{Federation, NAME, SOON};
use crate::process::succeed;
use crate::wait::{wait_timed, wait_until};

/// The service's name.
const SERVICE: &str = "counter";

/// What leads there, as arguments of a host-bridge.
pub const CONNECT: [&str; 3] = ["connect", NAME, SERVICE];

/// Pause between two numbers: often enough that a gap of a second shows.
const PAUSE: Duration = Duration::from_millis(50);

/// What pads each number, so that the packets are as large as the path lets them be.
const PADDING: usize = 4_000;

/// Longest life of a service's connection, which ends by itself.
const NUMBERS_MAX: u64 = 20_000;

/// Publishes the counting service. Its threads end with their connections.
pub fn publish_counter(federation: &Federation) {
    let listener = federation
        .lab
        .satellite
        .enter(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let padding = "x".repeat(PADDING);
                for number in 0..NUMBERS_MAX {
                    if writeln!(stream, "{number} {padding}").is_err() {
                        return;
                    }
                    std::thread::sleep(PAUSE);
                }
            });
        }
    });
    let publish = ["services", "publish", SERVICE, &address];
    succeed(federation.satellite(&publish));
}

/// Somebody who reads.
pub struct Reader {
    program: Child,
    thread: Option<JoinHandle<()>>,
    read: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Reader {
    /// Begins to read; returns when numbers arrive.
    pub fn start(federation: &Federation) -> Self {
        Self::start_at(federation.bridge(&CONNECT))
    }

    /// The same by way of a host-bridge whose `connect` is given.
    pub fn start_at(mut connect: Command) -> Self {
        let mut program = connect
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(program.stdout.take().unwrap());
        let (read, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&read), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let number = line.split(' ').next().and_then(|text| text.parse::<u64>().ok());
                if number != Some(count.load(Ordering::Relaxed)) || line.len() < PADDING {
                    break;
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            end.store(true, Ordering::Relaxed);
        });
        let reader = Self {
            program,
            thread: Some(thread),
            read,
            ended,
        };
        wait_until("the stream flows", SOON, || (reader.count() > 5).then_some(()));
        reader
    }

    /// How many numbers have arrived, each after the one before.
    pub fn count(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Whether the stream has ended, or a number was wrong.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits until a second's worth of numbers has arrived from now on; the stream must not end.
    pub fn goes_on_within(&self, at_most: Duration) -> Duration {
        let wanted = self.count() + 20;
        let flows = || {
            assert!(
                !self.has_ended(),
                "the stream was lost after {} numbers",
                self.count()
            );
            (self.count() >= wanted).then_some(())
        };
        wait_timed("the open stream has gone on", at_most, flows).1
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.program.kill();
        let _ = self.program.wait();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
