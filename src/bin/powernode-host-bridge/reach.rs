//! `connect` and `forward`: a service of a satellite on this terminal, or on a port of this machine.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use powernode_satellite::base::limit::error_chain;
use powernode_satellite::base::secret::Secret;
use powernode_satellite::cli::bridge_client::{BridgeClient, BridgeClientError, SessionFate};
use powernode_satellite::cli::client::AdminError;
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use powernode_satellite::process::environment::Environment;
use powernode_satellite::process::open_files;
use powernode_satellite::process::signals::Signals;
use powernode_satellite::process::supervisor::{Stage, Supervisor, TaskScope};
use powernode_satellite::tunnel::relay::{RelayEnd, relay};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, Semaphore};

use crate::arguments::{BridgeArguments, ConnectArguments, ForwardArguments};
use crate::call::code_of;
use crate::{PROGRAM, packets, print};

/// Variable with the operator's token, for where there is no file.
const TOKEN_VARIABLE: &str = "POWERNODE_OPERATOR_TOKEN";

/// Longest token file that is read, in bytes; a token has 43 characters.
const TOKEN_FILE_MAX_BYTES: u64 = 4_096;

/// Connections that `forward` carries at once: a browser has some dozen, a test of load a thousand.
const FORWARDED_MAX: usize = 1_024;

/// Pause after the system refused to give a connection, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Carries standard input and output to a service, until both have ended.
pub fn connect(
    config: &HostBridgeConfig,
    environment: &Environment,
    arguments: &ConnectArguments,
) -> Result<(), Failure> {
    let client = client(config, environment, &arguments.bridge)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let stream = client
            .open(&arguments.peer, &arguments.service)
            .await
            .map_err(|error| failure(&error))?;
        let io = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
        let mut here = Here::new(io, true, client.fate_at_end(&stream.session));
        let printed = Arc::clone(&here.over);
        let over = async {
            printed.notified().await;
            // On a terminal nobody ends standard input when the other side hangs up.
            if !io::stdin().is_terminal() {
                client.until_over(&stream.session).await;
            }
        };
        let end = relay(&mut here, stream.io, over).await;
        let fate = match here.broken.take() {
            Some(fate) => fate,
            None => client.fate_of(&stream.session).await,
        };
        match (end, fate) {
            (_, SessionFate::Broken(why)) => Err(Failure::new(Code::Failed, why)),
            (_, SessionFate::BridgeGone) => Err(Failure::new(
                Code::Unreachable,
                "the host-bridge ended the session and does not answer now: it was stopped or restarted; try again",
            )),
            (RelayEnd::Left(error), _) => Err(Failure::new(
                Code::Failed,
                format!("standard input or output failed: {error}"),
            )),
            (RelayEnd::Right(error), _) => Err(Failure::new(
                Code::Failed,
                format!("the connection to the host-bridge broke: {error}"),
            )),
            (RelayEnd::Finished | RelayEnd::Cut(()), _) => Ok(()),
        }
    });
    // A read of standard input may still wait for a key; nobody will want it.
    runtime.shutdown_background();
    outcome
}

/// Listens on this machine and carries each connection to the service, until a signal. A bridge that does
/// not answer, or not to this caller, is said at once; one that goes later, of each connection, and of packets once.
pub fn forward(
    config: &HostBridgeConfig,
    environment: &Environment,
    arguments: &ForwardArguments,
) -> Result<(), Failure> {
    let address = arguments.listen;
    if !(address.ip().is_loopback() || arguments.expose) {
        return Err(Failure::new(
            Code::Usage,
            format!(
                "{address} can be reached by other machines, each with your rights on the satellite; say --expose if that is meant"
            ),
        ));
    }
    let client = client(config, environment, &arguments.bridge)?;
    open_files::allow_many();
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let supervisor = Supervisor::new();
        let scope = supervisor.scope(Stage::Work);
        let mut signals = Signals::listen().map_err(Failure::failed)?;
        tokio::select! {
            known = client.check() => known.map_err(|error| failure(&error))?,
            () = signals.stop() => return Ok(()),
        }
        let cannot_listen =
            |error| Failure::new(Code::Failed, format!("cannot listen on {address}: {error}"));
        let (service, peer) = (&arguments.service, &arguments.peer);
        if arguments.udp {
            let socket = UdpSocket::bind(address).await.map_err(cannot_listen)?;
            let bound = socket.local_addr().map_err(Failure::failed)?;
            print(&format!("listening on {bound} (UDP), for {service} of {peer}\n"))?;
            return tokio::select! {
                () = packets::serve(socket, client, &scope, arguments) => Ok(()),
                () = signals.stop() => Ok(()),
            };
        }
        let listener = TcpListener::bind(address).await.map_err(cannot_listen)?;
        let bound = listener.local_addr().map_err(Failure::failed)?;
        print(&format!("listening on {bound}, for {service} of {peer}\n"))?;
        tokio::select! {
            () = serve(listener, client, &scope, arguments) => Ok(()),
            () = signals.stop() => Ok(()),
        }
    });
    runtime.shutdown_background();
    outcome
}

async fn serve(listener: TcpListener, client: BridgeClient, scope: &TaskScope, arguments: &ForwardArguments) {
    let places = Arc::new(Semaphore::new(FORWARDED_MAX));
    // Never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                complain(&format!("a connection could not be taken: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let client = client.clone();
        let (peer, service) = (arguments.peer.clone(), arguments.service.clone());
        scope.spawn("forward", async move {
            if let Err(why) = carry(stream, &client, &peer, &service).await {
                complain(&format!("connection of {from}: {why}"));
            }
            drop(place);
        });
    }
}

async fn carry(stream: TcpStream, client: &BridgeClient, peer: &str, service: &str) -> Result<(), String> {
    // Whoever sends small pieces wants them to arrive.
    let _ = stream.set_nodelay(true);
    let remote = client
        .open(peer, service)
        .await
        .map_err(|error| error_chain(&error))?;
    let mut here = Here::new(stream, false, client.fate_at_end(&remote.session));
    let written = Arc::clone(&here.over);
    let over = async {
        written.notified().await;
        client.until_over(&remote.session).await;
    };
    let end = relay(&mut here, remote.io, over).await;
    let ended = how_it_ended(end, here.broken.take(), client, &remote.session).await;
    if ended.is_err() {
        // The local program must not take what it has for all there is.
        let _ = here.io.set_zero_linger();
    }
    ended
}

async fn how_it_ended(
    end: RelayEnd<()>,
    broken: Option<SessionFate>,
    client: &BridgeClient,
    session: &str,
) -> Result<(), String> {
    let error = match (&end, &broken) {
        (RelayEnd::Finished | RelayEnd::Left(_), None) => return Ok(()),
        (RelayEnd::Right(error), _) => Some(error.to_string()),
        (RelayEnd::Finished | RelayEnd::Left(_) | RelayEnd::Cut(()), _) => None,
    };
    let fate = match broken {
        Some(fate) => fate,
        None => client.fate_of(session).await,
    };
    match (fate, error) {
        (SessionFate::Broken(why), _) => Err(why),
        (SessionFate::BridgeGone, _) => Err("the host-bridge was stopped or restarted".to_owned()),
        (_, Some(why)) => Err(why),
        (SessionFate::Done | SessionFate::Open | SessionFate::Unknown, None) => Ok(()),
    }
}

pub fn complain(what: &str) {
    // A closed standard error cannot be told about.
    let _ = writeln!(io::stderr(), "{PROGRAM}: {what}");
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)
}

fn client(
    config: &HostBridgeConfig,
    environment: &Environment,
    bridge: &BridgeArguments,
) -> Result<BridgeClient, Failure> {
    let Some(url) = bridge.bridge.clone() else {
        return Ok(BridgeClient::local(&config.admin_socket));
    };
    let ca = bridge
        .ca_file
        .as_deref()
        .map(|file| std::fs::read_to_string(file).map_err(|error| unreadable("CA", file, &error)));
    let token = match &bridge.token_file {
        Some(file) => read_token(file)?,
        None => match environment.text(TOKEN_VARIABLE) {
            Some(token) => Secret::from_text(token.trim().to_owned()),
            None => {
                return Err(Failure::new(
                    Code::Usage,
                    format!(
                        "an operator token is needed: --token-file FILE, or {TOKEN_VARIABLE} in the environment"
                    ),
                ));
            }
        },
    };
    BridgeClient::remote(url, ca.transpose()?, token, Clock::start(BUILD_TIME)).map_err(Failure::usage)
}

fn read_token(file: &Path) -> Result<Secret, Failure> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(TOKEN_FILE_MAX_BYTES).read_to_string(&mut text))
        .map_err(|error| unreadable("token", file, &error))?;
    Ok(Secret::from_text(text))
}

fn unreadable(what: &str, file: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Code::Usage,
        format!("the {what} file {} cannot be read: {error}", file.display()),
    )
}

fn failure(error: &BridgeClientError) -> Failure {
    let code = match error {
        BridgeClientError::Refused { status, .. } => code_of(*status),
        BridgeClientError::Socket(AdminError::NotRunning { .. })
        | BridgeClientError::Dial { .. }
        | BridgeClientError::Handshake { .. }
        | BridgeClientError::Timeout(_) => Code::Unreachable,
        BridgeClientError::Target(_) | BridgeClientError::Token | BridgeClientError::Name(_) => Code::Usage,
        BridgeClientError::Socket(_)
        | BridgeClientError::Tls(_)
        | BridgeClientError::Broken(_)
        | BridgeClientError::Upgrade(_) => Code::Failed,
    };
    Failure::of(code, error)
}

/// This side of a relay. It asks what the end of what comes for it means before it passes that on, and
/// tells when nothing more comes: the other side may be gone for good then, although nobody here has ended
/// what goes there.
struct Here<S, F> {
    io: S,
    /// Whether it is standard output that is written to.
    is_stdout: bool,
    /// What the end means, until that is known.
    asking: Option<Pin<Box<F>>>,
    /// How the session ended where that was no end of the service's.
    broken: Option<SessionFate>,
    /// Told when nothing more is written.
    over: Arc<Notify>,
}

impl<S, F: Future<Output = SessionFate>> Here<S, F> {
    fn new(io: S, is_stdout: bool, asking: F) -> Self {
        Self {
            io,
            is_stdout,
            asking: Some(Box::pin(asking)),
            broken: None,
            over: Arc::default(),
        }
    }

    /// Ready when the end may be passed on; an error where there is none.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(asking) = &mut self.asking {
            let fate = ready!(asking.as_mut().poll(cx));
            self.asking = None;
            self.broken = match fate {
                SessionFate::Open | SessionFate::Done => None,
                SessionFate::Broken(_) | SessionFate::BridgeGone => Some(fate),
                // Another run of the bridge's answers.
                SessionFate::Unknown => Some(SessionFate::BridgeGone),
            };
        }
        if self.broken.is_some() {
            self.over.notify_one();
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin, F: Future<Output = SessionFate>> AsyncRead for Here<S, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin, F: Future<Output = SessionFate>> AsyncWrite for Here<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_end(cx))?;
        if self.is_stdout {
            // Its own shutdown does not wait for what is still being written.
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            // Whoever reads from the pipe learns of the end now, not when this program ends.
            let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
            rustix::stdio::dup2_stdout(nowhere)?;
        } else {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        }
        self.over.notify_one();
        Poll::Ready(Ok(()))
    }
}
