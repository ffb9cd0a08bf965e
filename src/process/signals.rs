//! The signals that a daemon obeys: TERM and INT stop it (a second one forces), HUP reloads.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// HUP: read the configuration again and retry at once whatever waits.
    Reload,
    /// TERM or INT: drain and stop. When one comes while that goes on: stop now.
    Stop,
}

/// Receives the signals. From its making on, none of them ends the process by itself.
#[derive(Debug)]
pub struct Signals {
    hangup: Stream,
    terminate: Stream,
    interrupt: Stream,
}

impl Signals {
    /// Takes the signals over.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one. Nothing is lost when the wait is abandoned.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.hangup.recv() => Signal::Reload,
        }
    }

    /// Waits for a signal to stop; reloads are passed over. For [`shutdown`]'s `force`.
    ///
    /// [`shutdown`]: super::supervisor::Supervisor::shutdown
    pub async fn stop(&mut self) {
        while self.next().await != Signal::Stop {}
    }
}
