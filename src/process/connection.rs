//! A connection of any kind behind one type, so that what speaks HTTP or TLS over it is in the program once and
//! not once for each kind. Knows nothing of what is spoken.

use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes both ways: a socket, a TLS session over one, a stream of a tunnel, or what a proxy has given.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<C: AsyncRead + AsyncWrite + Send + Unpin> Connection for C {}

/// One of any kind.
pub type BoxedConnection = Box<dyn Connection>;

/// The connection without its kind.
pub fn boxed(connection: impl Connection + 'static) -> BoxedConnection {
    Box::new(connection)
}
