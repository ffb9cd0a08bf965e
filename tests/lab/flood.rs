//! More packets than a program can take: somebody next to the box sends to one of its ports without end.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::namespace::Namespace;

/// Packets between two looks at whether it should end.
const BURST: usize = 256;

/// Sends until it is dropped.
pub struct Flood {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// From this namespace to a port of this address.
    pub fn start(from: &Namespace, to: (Ipv4Addr, u16)) -> Self {
        let socket = from.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    // Whether it arrives is not the point.
                    let _ = socket.send_to(&[0; 64], to);
                }
            }
        });
        Self {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
