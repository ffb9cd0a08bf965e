//! Local programs that services publish.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinSet;

/// A program that answers each connection in its own task; gone when it is dropped.
pub struct Program {
    pub address: String,
    _tasks: JoinSet<()>,
}

impl Program {
    /// On a port of 127.0.0.1.
    pub async fn tcp<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, serve)
    }

    pub fn on<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap().to_string();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                connections.spawn(serve(stream));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }

    /// Gives back what it gets, on a Unix socket.
    pub fn unix_echo(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(echo(stream));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address: path.to_str().unwrap().to_owned(),
            _tasks: tasks,
        }
    }

    pub async fn echo() -> Self {
        Self::tcp(echo).await
    }
}

/// Gives back what it gets, and ends when it has all.
pub async fn echo(stream: impl AsyncRead + AsyncWrite) {
    let (mut read, mut write) = tokio::io::split(stream);
    // The other side may go at any time.
    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
        let _ = write.shutdown().await;
    }
}

/// Sends bytes until nobody takes them.
pub async fn flood(mut stream: TcpStream) {
    let piece = vec![7; 64 * 1024];
    while stream.write_all(&piece).await.is_ok() {}
}

/// Takes nothing and says nothing.
pub async fn sulk(stream: TcpStream) {
    std::future::pending::<()>().await;
    drop(stream);
}

/// Reads all, answers with the number of bytes as text.
pub async fn count(mut stream: TcpStream) {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    stream.write_all(all.len().to_string().as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}

/// An address of 127.0.0.1 on which nobody listens, and nobody else gets it while the value is held.
pub fn nobody() -> (SocketAddr, std::net::TcpListener) {
    let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let held: std::net::TcpListener = held.into();
    (held.local_addr().unwrap(), held)
}
