//! Why a tunnel has ended, in a form that any number of waiters can keep.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::frame::FrameError;
use super::transport::{CloseCode, TransportClosed};
use crate::wire::{DecodeError, Goodbye};

/// Why a tunnel has ended.
#[derive(Debug, Clone, Error)]
pub enum CloseReason {
    /// The other side took its leave.
    #[error("the other side ended the tunnel ({:?}): {}", .0.reason, .0.message)]
    Goodbye(Goodbye),
    /// This side took its leave.
    #[error("this side ended the tunnel ({:?}): {}", .0.reason, .0.message)]
    Local(Goodbye),
    /// The other side is taken for dead.
    #[error("nothing was heard from the other side for {} s; it or the network between is down", .silent_for.as_secs())]
    Silent {
        /// How long nothing had arrived.
        silent_for: Duration,
    },
    /// The connection below was closed.
    #[error("the connection was lost")]
    Transport(#[source] TransportClosed),
    /// The other side broke the tunnel's protocol.
    #[error("the other side broke the tunnel's protocol; are both sides' versions compatible?")]
    Violation(#[source] Violation),
    /// The driver was dropped.
    #[error("this side let the tunnel go")]
    Abandoned,
}

/// What the other side did wrong on the control stream.
#[derive(Debug, Clone, Error)]
pub enum Violation {
    /// The control stream ended or failed while the connection lived.
    #[error("its control stream failed")]
    ControlStream(#[source] Arc<FrameError>),
    /// A message that cannot be read.
    #[error("a control message cannot be read")]
    Unreadable(#[source] DecodeError),
    /// A message that has no place here.
    #[error("a control message came that has no place there: {0}")]
    OutOfPlace(&'static str),
}

impl CloseReason {
    /// When the other side asks to come back; `None` leaves it to the caller's backoff.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Goodbye(goodbye) => retry_after(goodbye.retry_after_millis),
            Self::Local(_)
            | Self::Silent { .. }
            | Self::Transport(_)
            | Self::Violation(_)
            | Self::Abandoned => None,
        }
    }

    /// The code that goes with closing the transport for this reason.
    pub(super) fn close_code(&self) -> CloseCode {
        match self {
            Self::Goodbye(_) | Self::Local(_) => CloseCode::GOODBYE,
            Self::Silent { .. } => CloseCode::SILENT,
            Self::Violation(_) => CloseCode::PROTOCOL,
            Self::Transport(_) | Self::Abandoned => CloseCode::ABANDONED,
        }
    }
}

/// A wire value in milliseconds, in which 0 stands for nothing said.
pub(super) fn retry_after(millis: u32) -> Option<Duration> {
    (millis > 0).then(|| Duration::from_millis(u64::from(millis)))
}
