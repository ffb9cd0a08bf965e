//! The bytes of streams: all of them, in order, both ways, and no stream at the cost of another.

use std::time::Duration;

use powernode_satellite::wire::RefusalCode;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::program::{Program, count, echo, flood, sulk};
use crate::shop::{DEADLINE, Shop, in_time, limits, service, with};

/// A large file.
const LARGE_BYTES: usize = 200 * 1024 * 1024;

/// Time in which a stream must be cut once its grant is over.
const CUT_WITHIN: Duration = Duration::from_secs(1);

/// Bytes that look random and are the same each time.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            piece.copy_from_slice(&self.0.to_le_bytes()[..piece.len()]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_mebibytes_arrive_both_ways_at_once() {
    let program = Program::echo().await;
    let shop = Shop::open(vec![service("echo", "tcp", &program.address)]).await;
    let ticket = shop.ticket(Some("echo")).await;
    let stream = shop.ask("echo", Some(&ticket)).await;
    let (mut read, mut write) = tokio::io::split(stream);
    let upload = async {
        let (mut noise, mut sum) = (Noise(1), Sha256::new());
        let mut piece = vec![0; 64 * 1024];
        for _ in 0..LARGE_BYTES / piece.len() {
            noise.fill(&mut piece);
            sum.update(&piece);
            write.write_all(&piece).await.unwrap();
        }
        write.shutdown().await.unwrap();
        sum.finalize()
    };
    let download = async {
        let (mut sum, mut bytes) = (Sha256::new(), 0);
        let mut piece = vec![0; 64 * 1024];
        loop {
            match read.read(&mut piece).await.unwrap() {
                0 => return (sum.finalize(), bytes),
                got => {
                    sum.update(&piece[..got]);
                    bytes += got;
                }
            }
        }
    };
    let (sent, (received, bytes)) = timeout(DEADLINE * 4, async { tokio::join!(upload, download) })
        .await
        .expect("in time");
    assert_eq!(bytes, LARGE_BYTES);
    assert_eq!(sent, received);
    shop.wait("echo", |report| report.connections == 0).await;
    let report = shop.report("echo");
    assert_eq!([report.bytes_in, report.bytes_out], [LARGE_BYTES as u64; 2]);
}

#[tokio::test]
async fn a_half_closed_upload_is_answered() {
    let program = Program::tcp(count).await;
    let shop = Shop::open(vec![service("count", "tcp", &program.address)]).await;
    let ticket = shop.ticket(None).await;
    let mut stream = shop.ask("count", Some(&ticket)).await;
    stream.write_all(&vec![1; 1_000_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    in_time(stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "1000000");
}

#[tokio::test]
async fn a_program_that_speaks_first_and_closes_first_is_still_talked_to() {
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    let program = Program::tcp(move |mut stream| {
        let told = told.clone();
        async move {
            stream.write_all(b"220 ready").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            told.send(all).await.unwrap();
        }
    })
    .await;
    let shop = Shop::open(vec![service("smtp", "tcp", &program.address)]).await;
    let ticket = shop.ticket(None).await;
    let mut stream = shop.ask("smtp", Some(&ticket)).await;
    let mut banner = String::new();
    in_time(stream.read_to_string(&mut banner)).await.unwrap();
    assert_eq!(banner, "220 ready");
    stream.write_all(b"late").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(in_time(heard.recv()).await.unwrap(), b"late");
}

/// A service that says of each upload whether it has come to a clean end.
async fn uploads() -> (Program, tokio::sync::mpsc::Receiver<bool>) {
    let (told, heard) = tokio::sync::mpsc::channel(1);
    let program = Program::tcp(move |mut stream| {
        let told = told.clone();
        async move {
            let ended = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            told.send(ended.is_ok()).await.unwrap();
        }
    })
    .await;
    (program, heard)
}

#[tokio::test]
async fn a_cut_upload_is_no_whole_one_to_the_program() {
    let (program, mut heard) = uploads().await;
    let shop = Shop::open(vec![service("upload", "tcp", &program.address)]).await;
    let ticket = shop.ticket(None).await;
    let mut stream = shop.ask("upload", Some(&ticket)).await;
    stream.write_all(&[1; 10_000]).await.unwrap();
    shop.wait("upload", |report| report.bytes_in == 10_000).await;
    drop(stream);
    let clean = in_time(heard.recv()).await.unwrap();
    assert!(!clean, "the program saw a clean end");
}

#[tokio::test]
async fn nor_is_one_that_ends_because_the_satellite_hangs_up() {
    let (program, mut heard) = uploads().await;
    let shop = Shop::open(vec![service("upload", "tcp", &program.address)]).await;
    let ticket = shop.ticket(None).await;
    let mut stream = shop.ask("upload", Some(&ticket)).await;
    stream.write_all(&[1; 10_000]).await.unwrap();
    shop.wait("upload", |report| report.bytes_in == 10_000).await;
    shop.drop_streams();
    let clean = in_time(heard.recv()).await.unwrap();
    assert!(!clean, "the program saw a clean end");
}

#[tokio::test]
async fn readers_that_stand_still_do_not_slow_another_stream() {
    let flooding = Program::tcp(flood).await;
    let echoing = Program::echo().await;
    let sulking = Program::tcp(sulk).await;
    let shop = Shop::open(vec![
        service("flood", "tcp", &flooding.address),
        service("echo", "tcp", &echoing.address),
        service("sulk", "tcp", &sulking.address),
    ])
    .await;
    let ticket = shop.ticket(None).await;
    let block = vec![0; 65_536];
    let mut still = Vec::new();
    for _ in 0..10 {
        // A download that nobody reads.
        still.push(shop.ask("flood", Some(&ticket)).await);
        // An upload that the program does not read.
        let mut upload = shop.ask("sulk", Some(&ticket)).await;
        while let Ok(written) = timeout(Duration::from_millis(300), upload.write(&block)).await {
            written.unwrap();
        }
        still.push(upload);
    }
    let mut stream = shop.ask("echo", Some(&ticket)).await;
    for round in 0_u32..50 {
        let sent = [u8::try_from(round).unwrap(); 1_000];
        let mut back = [0; 1_000];
        stream.write_all(&sent).await.unwrap();
        in_time(stream.read_exact(&mut back)).await.unwrap();
        assert_eq!(sent, back);
    }
    assert_eq!(still.len(), 20);
}

#[tokio::test]
async fn a_grant_revoked_in_the_middle_of_a_download_cuts_it_within_a_second() {
    let program = Program::tcp(flood).await;
    let shop = Shop::open(vec![service("files", "tcp", &program.address)]).await;
    let (mine, other) = (shop.ticket(None).await, shop.ticket(None).await);
    let mut stays = shop.ask("files", Some(&other)).await;
    let mut cut = shop.ask("files", Some(&mine)).await;
    let mut piece = vec![0; 64 * 1024];
    for stream in [&mut stays, &mut cut] {
        in_time(stream.read_exact(&mut piece)).await.unwrap();
    }
    shop.book
        .revoke(mine.grant, "the technician has left")
        .await
        .unwrap();
    let ends = async { while cut.read(&mut piece).await.is_ok_and(|got| got > 0) {} };
    timeout(CUT_WITHIN, ends).await.expect("cut within a second");
    let refused = shop.refusal("files", Some(&mine)).await;
    assert_eq!(refused.code, RefusalCode::Unauthorized, "{refused:?}");
    for _ in 0..40 {
        in_time(stays.read_exact(&mut piece)).await.unwrap();
    }
}

#[tokio::test]
async fn a_grant_that_expires_cuts_an_idle_stream() {
    let program = Program::echo().await;
    let shop = Shop::open(vec![service("ssh", "tcp", &program.address)]).await;
    let ticket = shop.ticket(None).await;
    let mut stream = shop.ask("ssh", Some(&ticket)).await;
    stream.write_all(b"x").await.unwrap();
    in_time(stream.read_exact(&mut [0])).await.unwrap();
    let end = shop.book.get(ticket.grant).unwrap().grant.expires_at;
    shop.wall.set(end);
    let cut = timeout(CUT_WITHIN, stream.read(&mut [0])).await;
    cut.expect("cut within a second").unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_at_once() {
    const CONNECTIONS: usize = 1_000;
    let listener = TcpListener::from_std({
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket
            .bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        socket.listen(1_024).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.into()
    })
    .unwrap();
    let program = Program::on(listener, echo);
    let wide = with("echo", "tcp", &program.address, |fields| {
        fields.max_connections = 1_000;
    });
    let shop = Shop::open_with(vec![wide], limits(), 1_024).await;
    let ticket = shop.ticket(None).await;
    let mut streams = Vec::new();
    for number in 0..CONNECTIONS {
        let mut stream = shop.ask("echo", Some(&ticket)).await;
        stream.write_all(&number.to_be_bytes()).await.unwrap();
        streams.push(stream);
    }
    shop.wait("echo", |report| report.connections == 1_000).await;
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut back = [0; size_of::<usize>()];
        in_time(stream.read_exact(&mut back)).await.unwrap();
        assert_eq!(usize::from_be_bytes(back), number);
    }
    let refused = shop.refusal("echo", Some(&ticket)).await;
    assert_eq!(refused.code, RefusalCode::Busy);
    for stream in &mut streams {
        stream.shutdown().await.unwrap();
    }
    for stream in &mut streams {
        assert_eq!(in_time(stream.read(&mut [0])).await.unwrap(), 0);
    }
    shop.wait("echo", |report| report.connections == 0).await;
}

#[tokio::test]
async fn changes_to_one_service_leave_the_streams_of_others_alone() {
    let (old, new) = (Program::echo().await, Program::tcp(count).await);
    let configured = |address: &str| {
        vec![
            service("web", "http", &old.address),
            service("moves", "tcp", address),
        ]
    };
    let shop = Shop::open(configured(&old.address)).await;
    let ticket = shop.ticket(None).await;
    let mut web = shop.ask("web", Some(&ticket)).await;
    let mut moves = shop.ask("moves", Some(&ticket)).await;
    let mut back = [0; 4];
    let mut both_work = async |streams: [&mut powernode_satellite::tunnel::TunnelStream; 2]| {
        for stream in streams {
            stream.write_all(b"ping").await.unwrap();
            in_time(stream.read_exact(&mut back)).await.unwrap();
        }
    };
    both_work([&mut web, &mut moves]).await;
    let mut changed = configured(&new.address);
    changed.push(service("added", "tcp", &old.address));
    shop.services.reconfigure(changed, limits());
    // Streams that run stay where they are; new ones go to the new address.
    both_work([&mut web, &mut moves]).await;
    let mut elsewhere = shop.ask("moves", Some(&ticket)).await;
    elsewhere.write_all(b"12345").await.unwrap();
    elsewhere.shutdown().await.unwrap();
    let mut answer = String::new();
    in_time(elsewhere.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "5");
    let mut added = shop.ask("added", Some(&ticket)).await;
    both_work([&mut web, &mut added]).await;
    shop.services
        .reconfigure(vec![service("web", "http", &old.address)], limits());
    for gone in [&mut moves, &mut added] {
        in_time(gone.read(&mut [0])).await.unwrap_err();
    }
    web.write_all(b"ping").await.unwrap();
    in_time(web.read_exact(&mut [0; 4])).await.unwrap();
    assert_eq!(shop.report("web").opened, 1);
}
