//! The first exchange on a connection: hello, then welcome or refusal. It opens the control
//! stream, and a tunnel results on both sides. Who greets is the tunnel's dialer, also where the other
//! side has made the connection and asks, with a hello of its own, to be greeted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;

use super::close::retry_after;
use super::connection::{StreamLimits, Tunnel, TunnelSettings};
use super::driver::{ControlStream, Keepalive, TunnelDriver};
use super::flow::Flows;
use super::frame::{FrameError, PartialFrame};
use super::transport::{ByteStream, CloseCode, Outlook, Transport, TransportClosed, Urgency};
use crate::machine::binding_time::FIRST_SILENCE;
use crate::machine::liveness::DEFAULT_KEEPALIVE;
use crate::process::clock::Clock;
use crate::wire::{
    ControlMessage, DATAGRAMS_FEATURE, DecodeError, End, Hello, KEEPALIVE_FEATURE, RefusalCode, Refused,
    TUNNEL_VERSION, Welcome, message_text,
};

/// How much longer than the dialer the accepting side waits before it pings an idle tunnel: the
/// dialer's ping, which does for both, has arrived by then.
const ACCEPTOR_PATIENCE: Duration = Duration::from_secs(2);

/// Time that a refusal may take to be delivered before the connection is closed regardless.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why no tunnel came of a connection.
#[derive(Debug, Error)]
pub enum GreetingError {
    /// The other side does not want the tunnel.
    #[error("the other side refused the tunnel ({:?}): {}", .0.code, .0.message)]
    Refused(Refused),
    /// This side does not want the tunnel, and has said so.
    #[error("the tunnel was refused ({:?}): {}", .0.code, .0.message)]
    Declined(Refused),
    /// The greeting took too long.
    #[error("the other side did not complete the greeting within {} s", .within.as_secs())]
    TimedOut {
        /// The limit.
        within: Duration,
    },
    /// The connection was lost meanwhile.
    #[error("the connection was lost during the greeting")]
    Transport(#[source] TransportClosed),
    /// The control stream failed.
    #[error("the greeting cannot be read; is it a tunnel of this product at the other end?")]
    ControlStream(#[source] FrameError),
    /// A message that cannot be read.
    #[error("the other side's greeting cannot be read; are both sides' versions compatible?")]
    Unreadable(#[source] DecodeError),
    /// Another message than the greeting's.
    #[error("the other side did not greet first; are both sides' versions compatible?")]
    OutOfPlace,
}

impl GreetingError {
    /// When the other side asks to come back; `None` leaves it to the caller's backoff.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refused) => retry_after(refused.retry_after_millis),
            Self::Declined(_)
            | Self::TimedOut { .. }
            | Self::Transport(_)
            | Self::ControlStream(_)
            | Self::Unreadable(_)
            | Self::OutOfPlace => None,
        }
    }

    /// Whether a new connection may fare better.
    pub fn outlook(&self) -> Outlook {
        match self {
            Self::Refused(refused) | Self::Declined(refused) => match refused.code {
                RefusalCode::Busy | RefusalCode::ShuttingDown => Outlook::Retryable,
                RefusalCode::UnsupportedVersion
                | RefusalCode::UnsupportedKind
                | RefusalCode::NotAdmitted
                | RefusalCode::CertificateRequired
                | RefusalCode::Malformed
                | RefusalCode::UnknownService
                | RefusalCode::Unauthorized
                | RefusalCode::Forbidden
                | RefusalCode::ServiceUnavailable => Outlook::Permanent,
            },
            Self::TimedOut { .. } | Self::ControlStream(_) => Outlook::Retryable,
            Self::Transport(closed) => closed.outlook(),
            Self::Unreadable(_) | Self::OutOfPlace => Outlook::Permanent,
        }
    }
}

impl Tunnel {
    /// Greets over a connection that this side has dialled. The driver must be run by the
    /// caller's supervisor, or nothing moves.
    pub async fn dial(
        transport: Arc<dyn Transport>,
        hello: Hello,
        settings: TunnelSettings,
        clock: Clock,
    ) -> Result<(Self, Welcome, TunnelDriver), GreetingError> {
        let opened = within(&settings, async {
            let opened = transport.open(Urgency::Control).await;
            opened.map_err(GreetingError::Transport)
        });
        let io = opened.await.map_err(|error| give_up(&*transport, error))?;
        greet(transport, io, hello, settings, clock).await
    }

    /// Answers the greeting on a connection that the other side has dialled. `decide` is asked
    /// once, with a hello of a version that this build speaks.
    pub async fn accept(
        transport: Arc<dyn Transport>,
        settings: TunnelSettings,
        clock: Clock,
        decide: impl FnOnce(&Hello) -> Result<Welcome, Refused>,
    ) -> Result<(Self, Hello, TunnelDriver), GreetingError> {
        let greeted = Greeted::hear(transport, &settings).await?;
        greeted.answer(settings, clock, decide).await
    }

    /// Has the other side greet over a connection that this side has dialled: says with a hello what it is
    /// for, and answers the other side's as [`accept`](Self::accept) does. In the tunnel, the other side
    /// is the dialer.
    pub async fn call(
        transport: Arc<dyn Transport>,
        hello: Hello,
        settings: TunnelSettings,
        clock: Clock,
        decide: impl FnOnce(&Hello) -> Result<Welcome, Refused>,
    ) -> Result<(Self, Hello, TunnelDriver), GreetingError> {
        let called = within(&settings, call(&*transport, hello)).await;
        let (io, hello) = called.map_err(|error| give_up(&*transport, error))?;
        let greeted = Greeted { transport, io, hello };
        greeted.answer(settings, clock, decide).await
    }
}

/// A connection whose dialer has said hello, and was not answered yet.
pub struct Greeted {
    transport: Arc<dyn Transport>,
    io: ByteStream,
    hello: Hello,
}

impl std::fmt::Debug for Greeted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Greeted")
            .field("hello", &self.hello)
            .finish_non_exhaustive()
    }
}

impl Greeted {
    /// Waits for the hello.
    pub async fn hear(
        transport: Arc<dyn Transport>,
        settings: &TunnelSettings,
    ) -> Result<Self, GreetingError> {
        let heard = within(settings, await_hello(&*transport)).await;
        let (io, hello) = heard.map_err(|error| give_up(&*transport, error))?;
        Ok(Self { transport, io, hello })
    }

    /// What the dialer said.
    pub const fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Where the dialer is.
    pub fn remote_address(&self) -> SocketAddr {
        self.transport.remote_address()
    }

    /// Takes the tunnel or refuses it. `decide` is asked once, with a hello of a version that this build
    /// speaks.
    pub async fn answer(
        self,
        settings: TunnelSettings,
        clock: Clock,
        decide: impl FnOnce(&Hello) -> Result<Welcome, Refused>,
    ) -> Result<(Tunnel, Hello, TunnelDriver), GreetingError> {
        let Self {
            transport,
            mut io,
            hello,
        } = self;
        let decided = check_version(&hello).and_then(|()| decide(&hello));
        let datagrams = transport.has_datagrams() && names(DATAGRAMS_FEATURE, &hello.features);
        let wishes = names(KEEPALIVE_FEATURE, &hello.features);
        let welcome = match decided {
            Ok(mut welcome) => {
                if datagrams {
                    welcome.features.push(DATAGRAMS_FEATURE.to_owned());
                }
                if wishes {
                    welcome.features.push(KEEPALIVE_FEATURE.to_owned());
                }
                welcome
            }
            Err(refused) => return Err(decline(&*transport, &mut io, refused).await),
        };
        let limits = StreamLimits {
            ours: settings.max_streams,
            theirs: welcome.max_streams,
        };
        // A dialer that does not say how long it is silent is silent no longer than that.
        let keepalive = keepalive(&welcome)
            .min(FIRST_SILENCE)
            .saturating_add(ACCEPTOR_PATIENCE);
        let sent = within(
            &settings,
            send(&*transport, &mut io, ControlMessage::Welcome(welcome)),
        );
        sent.await.map_err(|error| give_up(&*transport, error))?;
        let control = ControlStream {
            io,
            keepalive: Keepalive::Fixed(keepalive),
        };
        let flows = Flows::new(Arc::clone(&transport), End::Acceptor, datagrams, clock.clone());
        let (tunnel, driver) = Tunnel::new(transport, clock, limits, settings.header_timeout, flows, control);
        Ok((tunnel, hello, driver))
    }

    /// Refuses.
    pub async fn refuse(mut self, refused: Refused) {
        // The refusal itself is what is given back.
        drop(decline(&*self.transport, &mut self.io, refused).await);
    }

    /// Greets in its turn, as the dialer wants it ([`Tunnel::call`]): in the tunnel, this side is the dialer.
    pub async fn greet(
        self,
        hello: Hello,
        settings: TunnelSettings,
        clock: Clock,
    ) -> Result<(Tunnel, Welcome, TunnelDriver), GreetingError> {
        let Self {
            transport,
            mut io,
            hello: theirs,
        } = self;
        if let Err(refused) = check_version(&theirs) {
            return Err(decline(&*transport, &mut io, refused).await);
        }
        greet(transport, io, hello, settings, clock).await
    }
}

async fn greet(
    transport: Arc<dyn Transport>,
    mut io: ByteStream,
    mut hello: Hello,
    settings: TunnelSettings,
    clock: Clock,
) -> Result<(Tunnel, Welcome, TunnelDriver), GreetingError> {
    if transport.has_datagrams() {
        hello.features.push(DATAGRAMS_FEATURE.to_owned());
    }
    if settings.binding.is_some() {
        hello.features.push(KEEPALIVE_FEATURE.to_owned());
    }
    let greeted = within(&settings, await_welcome(&*transport, &mut io, hello)).await;
    let welcome = greeted.map_err(|error| give_up(&*transport, error))?;
    let limits = StreamLimits {
        ours: welcome.max_streams,
        theirs: settings.max_streams,
    };
    let control = ControlStream {
        io,
        keepalive: dialers_keepalive(&welcome, &settings),
    };
    let datagrams = transport.has_datagrams() && names(DATAGRAMS_FEATURE, &welcome.features);
    let flows = Flows::new(Arc::clone(&transport), End::Dialer, datagrams, clock.clone());
    let (tunnel, driver) = Tunnel::new(transport, clock, limits, settings.header_timeout, flows, control);
    Ok((tunnel, welcome, driver))
}

async fn within<T>(
    settings: &TunnelSettings,
    exchange: impl Future<Output = Result<T, GreetingError>>,
) -> Result<T, GreetingError> {
    let within = settings.greeting_timeout;
    tokio::time::timeout(within, exchange)
        .await
        .unwrap_or(Err(GreetingError::TimedOut { within }))
}

fn give_up(transport: &dyn Transport, error: GreetingError) -> GreetingError {
    transport.close(CloseCode::GREETING, "the greeting failed");
    error
}

async fn await_welcome(
    transport: &dyn Transport,
    io: &mut ByteStream,
    hello: Hello,
) -> Result<Welcome, GreetingError> {
    send(transport, io, ControlMessage::Hello(hello)).await?;
    match receive(transport, io).await? {
        ControlMessage::Welcome(welcome) => Ok(welcome),
        ControlMessage::Refused(refused) => Err(GreetingError::Refused(refused)),
        ControlMessage::Hello(_)
        | ControlMessage::Ping(_)
        | ControlMessage::Pong(_)
        | ControlMessage::Goodbye(_)
        | ControlMessage::Quiet(_) => Err(GreetingError::OutOfPlace),
    }
}

/// Says hello to be greeted.
async fn call(transport: &dyn Transport, hello: Hello) -> Result<(ByteStream, Hello), GreetingError> {
    let mut io = transport
        .open(Urgency::Control)
        .await
        .map_err(GreetingError::Transport)?;
    send(transport, &mut io, ControlMessage::Hello(hello)).await?;
    match receive(transport, &mut io).await? {
        ControlMessage::Hello(hello) => Ok((io, hello)),
        ControlMessage::Refused(refused) => Err(GreetingError::Refused(refused)),
        ControlMessage::Welcome(_)
        | ControlMessage::Ping(_)
        | ControlMessage::Pong(_)
        | ControlMessage::Goodbye(_)
        | ControlMessage::Quiet(_) => Err(GreetingError::OutOfPlace),
    }
}

async fn await_hello(transport: &dyn Transport) -> Result<(ByteStream, Hello), GreetingError> {
    let mut io = transport
        .accept(Urgency::Control)
        .await
        .map_err(GreetingError::Transport)?;
    match receive(transport, &mut io).await? {
        ControlMessage::Hello(hello) => Ok((io, hello)),
        ControlMessage::Welcome(_)
        | ControlMessage::Refused(_)
        | ControlMessage::Ping(_)
        | ControlMessage::Pong(_)
        | ControlMessage::Goodbye(_)
        | ControlMessage::Quiet(_) => Err(GreetingError::OutOfPlace),
    }
}

/// Sends the refusal and waits until the other side, having read it, closes.
async fn decline(transport: &dyn Transport, io: &mut ByteStream, refused: Refused) -> GreetingError {
    let refused = Refused {
        message: message_text(&refused.message),
        ..refused
    };
    let told = async {
        if send(transport, io, ControlMessage::Refused(refused.clone()))
            .await
            .is_ok()
        {
            transport.closed().await;
        }
    };
    if tokio::time::timeout(REFUSAL_TIMEOUT, told).await.is_err() {
        tracing::debug!("the other side did not take the refusal");
    }
    give_up(transport, GreetingError::Declined(refused))
}

async fn send(
    transport: &dyn Transport,
    io: &mut ByteStream,
    message: ControlMessage,
) -> Result<(), GreetingError> {
    let frame = message
        .encode()
        .map_err(|error| GreetingError::ControlStream(FrameError::TooLong(error)))?;
    let sent = async {
        io.write.write_all(&frame).await?;
        io.write.flush().await
    };
    sent.await
        .map_err(|error| stream_failed(transport, FrameError::Stream(error)))
}

/// The next message that this build knows.
async fn receive(transport: &dyn Transport, io: &mut ByteStream) -> Result<ControlMessage, GreetingError> {
    let mut frame = PartialFrame::new();
    loop {
        let content = frame
            .read(&mut *io.read)
            .await
            .map_err(|error| stream_failed(transport, error))?;
        if let Some(message) = ControlMessage::decode(&content).map_err(GreetingError::Unreadable)? {
            return Ok(message);
        }
    }
}

/// The connection's end explains a stream's.
fn stream_failed(transport: &dyn Transport, error: FrameError) -> GreetingError {
    match transport.close_reason() {
        Some(closed) => GreetingError::Transport(closed),
        None => GreetingError::ControlStream(error),
    }
}

fn names(wanted: &str, features: &[String]) -> bool {
    features.iter().any(|feature| feature == wanted)
}

/// It is found out where both sides can and more than the first silence is allowed.
fn dialers_keepalive(welcome: &Welcome, settings: &TunnelSettings) -> Keepalive {
    let longest = keepalive(welcome).min(settings.keepalive_ceiling);
    match settings.binding {
        Some(binding) if longest > FIRST_SILENCE && names(KEEPALIVE_FEATURE, &welcome.features) => {
            Keepalive::Learned(binding, longest)
        }
        _ => Keepalive::Fixed(longest.min(FIRST_SILENCE)),
    }
}

fn keepalive(welcome: &Welcome) -> Duration {
    match welcome.keepalive_millis {
        0 => DEFAULT_KEEPALIVE,
        millis => Duration::from_millis(u64::from(millis)),
    }
}

fn check_version(hello: &Hello) -> Result<(), Refused> {
    if hello.version == TUNNEL_VERSION {
        Ok(())
    } else {
        Err(unsupported(hello.version))
    }
}

fn unsupported(version: u16) -> Refused {
    Refused {
        code: RefusalCode::UnsupportedVersion,
        message: format!(
            "tunnel version {version} is not spoken here, {TUNNEL_VERSION} is; update the older side"
        ),
        retry_after_millis: 0,
    }
}
