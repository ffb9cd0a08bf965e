//! Relays between pipes in memory, with paused time.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::timeout;

use super::*;
use crate::process::clock::BUILD_TIME;

/// Longer than anything here takes: time is paused and jumps.
const SOON: Duration = Duration::from_secs(3_600);

struct Bench {
    clock: Clock,
    buffers: BufferPool,
    held_up: HeldUp,
    passed: Mutex<[u64; 2]>,
}

impl Bench {
    fn new() -> Self {
        Self {
            clock: Clock::start(BUILD_TIME),
            buffers: BufferPool::of(super::super::buffer::BUFFER_BYTES),
            held_up: HeldUp::default(),
            passed: Mutex::default(),
        }
    }

    /// Relays between the two inner pipes while `outside` uses the two outer ones.
    async fn run<T>(
        &self,
        meters: &[&Meter],
        outside: impl AsyncFnOnce(DuplexStream, DuplexStream) -> T,
    ) -> (Result<(), RelayError>, T) {
        let (program, mut local) = duplex(4_096);
        let (asking, mut tunnel) = duplex(4_096);
        let traffic = Traffic {
            clock: &self.clock,
            buffers: &self.buffers,
            held_up: &self.held_up,
            meters,
            passed: self,
        };
        let relayed = async {
            let ended = relay(&mut local, &mut tunnel, &traffic).await;
            drop((local, tunnel));
            ended
        };
        timeout(SOON, async { tokio::join!(relayed, outside(program, asking)) })
            .await
            .unwrap()
    }

    fn passed(&self) -> [u64; 2] {
        *self.passed.lock().unwrap()
    }
}

impl Passed for Bench {
    fn passed(&self, direction: Direction, bytes: u64) {
        self.passed.lock().unwrap()[usize::from(direction == Direction::Out)] += bytes;
    }
}

async fn read_all(stream: &mut DuplexStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    all
}

#[tokio::test(start_paused = true)]
async fn both_directions_end_by_themselves_and_are_counted() {
    let bench = Bench::new();
    let (ended, ()) = bench
        .run(&[], async |mut program, mut asking| {
            let (mut question, mut answer) = (vec![1; 100_000], vec![2; 300_000]);
            let asks = async {
                asking.write_all(&question).await.unwrap();
                asking.shutdown().await.unwrap();
                read_all(&mut asking).await
            };
            let answers = async {
                let asked = read_all(&mut program).await;
                program.write_all(&answer).await.unwrap();
                program.shutdown().await.unwrap();
                asked
            };
            let (answered, asked) = tokio::join!(asks, answers);
            assert!(asked == std::mem::take(&mut question));
            assert!(answered == std::mem::take(&mut answer));
        })
        .await;
    ended.unwrap();
    assert_eq!(bench.passed(), [100_000, 300_000]);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_has_said_all_can_still_be_talked_to() {
    let bench = Bench::new();
    let (ended, ()) = bench
        .run(&[], async |mut program, mut asking| {
            program.write_all(b"banner").await.unwrap();
            program.shutdown().await.unwrap();
            assert_eq!(read_all(&mut asking).await, b"banner");
            asking.write_all(b"upload").await.unwrap();
            asking.shutdown().await.unwrap();
            assert_eq!(read_all(&mut program).await, b"upload");
        })
        .await;
    ended.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stands_still_holds_the_writer_up() {
    let bench = Bench::new();
    let (_, written) = bench
        .run(&[], async |mut program, asking| {
            let mut written = 0;
            // One buffer, and what the two pipes hold, and then no more.
            while let Ok(count) = timeout(Duration::from_secs(1), program.write(&[0; 1_024])).await {
                written += count.unwrap();
            }
            drop(asking);
            written
        })
        .await;
    let most = super::super::buffer::BUFFER_BYTES + 3 * 4_096;
    assert!((4_096..=most).contains(&written), "{written}");
}

#[tokio::test(start_paused = true)]
async fn who_takes_no_more_still_gets_his_answer_out() {
    let bench = Bench::new();
    let (ended, ()) = bench
        .run(&[], async |program, mut asking| {
            let (read, mut write) = tokio::io::split(program);
            write.write_all(b"413").await.unwrap();
            // The program goes: what is uploaded further fails, what it had said arrives.
            drop((read, write));
            let _ = asking.write_all(&vec![0; 100_000]).await;
            let mut answer = [0; 3];
            asking.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"413");
        })
        .await;
    let why = ended.unwrap_err();
    assert!(why.to_string().contains("took no more"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn limits_hold_in_each_direction_and_the_strictest_decides() {
    let bench = Bench::new();
    let rate = |bytes| Meter::new(NonZeroU64::new(bytes));
    let (wide, narrow, open) = (rate(1_000_000), rate(10_000), Meter::new(None));
    let start = bench.clock.now();
    let (ended, ()) = bench
        .run(&[&wide, &narrow, &open], async |mut program, mut asking| {
            let down = async {
                program.write_all(&vec![0; 100_000]).await.unwrap();
                program.shutdown().await.unwrap();
                read_all(&mut program).await
            };
            let up = async {
                asking.shutdown().await.unwrap();
                read_all(&mut asking).await
            };
            let (asked, answered) = tokio::join!(down, up);
            assert_eq!((asked.len(), answered.len()), (0, 100_000));
        })
        .await;
    ended.unwrap();
    let took = bench.clock.now().since(start);
    assert!(
        (Duration::from_secs(6)..Duration::from_secs(11)).contains(&took),
        "100 KB at 10 KB/s took {took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_idle_relay_holds_no_buffer() {
    let bench = Bench::new();
    let (_, held) = bench
        .run(&[], async |mut program, mut asking| {
            program.write_all(b"x").await.unwrap();
            let mut one = [0];
            asking.read_exact(&mut one).await.unwrap();
            let first = bench.buffers.take();
            let second = bench.buffers.take();
            // The one that was used is the one that comes first; there was never need for another.
            let held = (first[0], second[0]);
            drop((program, asking));
            held
        })
        .await;
    assert_eq!(held, (b'x', 0));
}

#[tokio::test(start_paused = true)]
async fn a_program_that_takes_nothing_is_waited_for_unless_too_many_do() {
    let bench = Bench::new();
    let hold_up = async |program: DuplexStream, mut asking: DuplexStream| {
        while let Ok(Ok(_)) = timeout(HELD_UP_PATIENCE * 3, asking.write(&[0; 1_024])).await {}
        let cut = timeout(HELD_UP_PATIENCE * 3, asking.write(&[0])).await.is_ok();
        drop(program);
        cut
    };
    let (_, cut) = bench.run(&[], hold_up).await;
    assert!(!cut, "one alone is waited for");
    let others: Vec<_> = (0..HELD_UP_MAX).map(|_| bench.held_up.enter()).collect();
    let (ended, cut) = bench.run(&[], hold_up).await;
    assert!(cut);
    assert!(ended.unwrap_err().to_string().contains("too many"));
    assert!(others.iter().all(|(_, too_many)| !too_many));
    drop(others);
    assert_eq!(bench.held_up.0.load(Ordering::Relaxed), 0);
}
