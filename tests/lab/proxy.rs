//! An HTTP CONNECT proxy of the lab's own, on the router: what a company network leaves open.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::namespace::Namespace;

/// Where it listens.
pub const PROXY_PORT: u16 = 3128;

/// Longest request that is read, in bytes.
const REQUEST_MAX: usize = 4_096;

/// How often the accepting thread looks whether it should end.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The proxy; it takes no more connections when it is dropped.
pub struct Proxy {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on an address of the namespace, and connects from inside of it.
    pub fn start(namespace: &Namespace, address: Ipv4Addr) -> Self {
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&opened));
        // Threads are in the namespace of the thread that starts them.
        let thread = namespace.enter(move || {
            let listener = TcpListener::bind((address, PROXY_PORT)).unwrap();
            listener.set_nonblocking(true).unwrap();
            std::thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            let count = Arc::clone(&count);
                            std::thread::spawn(move || {
                                // A client that hangs up is its own business.
                                let _ = serve(stream, &count);
                            });
                        }
                        Err(_) => std::thread::sleep(LOOK_AGAIN),
                    }
                }
            })
        });
        Self {
            stop,
            opened,
            thread: Some(thread),
        }
    }

    /// How many ways it has opened.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut near: TcpStream, opened: &AtomicUsize) -> io::Result<()> {
    near.set_nonblocking(false)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < REQUEST_MAX {
        let mut byte = [0];
        near.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head);
    let target = head.split(' ').nth(1).unwrap_or_default();
    let mut far = TcpStream::connect(target)?;
    opened.fetch_add(1, Ordering::Relaxed);
    near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from, mut to) = (near.try_clone()?, far.try_clone()?);
    let up = std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut far, &mut near);
    let _ = near.shutdown(Shutdown::Both);
    let _ = up.join();
    Ok(())
}
