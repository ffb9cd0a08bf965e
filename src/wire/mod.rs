//! Floor 1: the tunnel's own bytes, version 1 (docs/ARCHITECTURE.md, "Tunnel protocol").
//! Codecs only; who reads and writes them is not known here.
//!
//! A *frame* is a big-endian `u16` length and so many bytes. The control stream carries frames
//! of one [`ControlMessage`] each. Every other stream begins with one frame that holds a
//! [`StreamHeader`]; the accepting side answers with one frame that holds a [`StreamReply`]
//! before its first byte of content.
//!
//! Within a version only additions are made: new enum variants at the end, new features named
//! in [`Hello`]. A reader skips control messages that it does not know and refuses streams whose
//! version or kind it does not know; the connection lives on.

mod direct;
mod flow;
mod proxy_header;
mod sessions;
mod stream;
mod stream_end;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use direct::{BRIDGE_NAME_MAX_BYTES, DIRECT_FEATURE, DirectCall};
pub use flow::{
    DATAGRAMS_FEATURE, End, FLOW_NUMBERS, FlowId, NoFlowId, PACKET_MAX_BYTES, PACKET_PREFIX_BYTES,
};
pub use proxy_header::proxy_header;
pub use sessions::{RENEWAL_ONLY_FEATURE, REPLACES_MAX, SESSIONS_FEATURE, SessionClaim};
pub use stream::{
    SERVICE_NAME_MAX_BYTES, ServiceRequest, StreamHeader, StreamKind, StreamRefusal, StreamReply,
};
pub use stream_end::StreamEnd;

use crate::base::id::SessionId;
use crate::base::limit::foreign_text;

/// ALPN of the tunnel, version 1.
pub const TUNNEL_ALPN: &[u8] = b"powernode-bridge/1";

/// Tunnel protocol version that [`Hello`] names.
pub const TUNNEL_VERSION: u16 = 1;

/// Largest frame that is read, in bytes without its length. The largest message of version 1
/// is a refusal with its text; what is longer is not ours.
pub const FRAME_MAX_BYTES: usize = 4_096;

/// Longest text in a control message, in characters.
const TEXT_MAX_CHARS: usize = 256;

/// Digits of a nonce by which a bridge shows who has asked it to dial: 128 bits that nobody guesses.
const NONCE_DIGITS: usize = 32;

/// The feature by which a dialer shows that it proves an endpoint and wants no tunnel; the side that
/// asked for the proof repeats it in its welcome. `None` for what is no nonce.
pub fn dial_back_feature(nonce: &str) -> Option<String> {
    is_nonce(nonce).then(|| format!("{DIAL_BACK_FEATURE}{}", nonce.to_ascii_lowercase()))
}

fn is_nonce(nonce: &str) -> bool {
    nonce.len() == NONCE_DIGITS && nonce.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// How that feature begins.
pub const DIAL_BACK_FEATURE: &str = "dial-back:";

/// The feature of an accepting side that obeys [`ControlMessage::Quiet`]; a dialer names it, too.
pub const KEEPALIVE_FEATURE: &str = "keepalive";

/// How the feature of a welcome begins that tells a satellite under which URL it is reached from outside.
const REACHED_AT_FEATURE: &str = "reached-at:";

/// Longest such URL, in bytes: a host name, a port and a path with an id.
pub const REACHED_AT_MAX_BYTES: usize = 512;

/// The feature of a welcome that tells a satellite under which URL it is reached from outside.
pub fn reached_at_feature(url: &str) -> Option<String> {
    let plain = url.len() <= REACHED_AT_MAX_BYTES && url.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| format!("{REACHED_AT_FEATURE}{url}"))
}

/// The URL that a welcome's features tell.
pub fn reached_at(features: &[String]) -> Option<&str> {
    let mut told = features
        .iter()
        .filter_map(|feature| feature.strip_prefix(REACHED_AT_FEATURE));
    told.next().filter(|url| url.len() <= REACHED_AT_MAX_BYTES)
}

/// First message of the side that dialled, on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Tunnel protocol version that the dialer speaks.
    pub version: u16,
    /// Program and version, for logs.
    pub agent: String,
    /// Names of optional features that the dialer has: [`DATAGRAMS_FEATURE`], [`KEEPALIVE_FEATURE`],
    /// [`DIRECT_FEATURE`] and those of [`SessionClaim`].
    pub features: Vec<String>,
}

/// The accepting side's answer when it takes the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The session, in both sides' logs.
    pub session: SessionId,
    /// Program and version, for logs.
    pub agent: String,
    /// How often the dialer should ping when nothing else is sent, in milliseconds.
    pub keepalive_millis: u32,
    /// How many streams the dialer may hold open at once.
    pub max_streams: u32,
    /// The dialer's address as the accepting side sees it, `host:port`.
    pub observed_address: String,
    /// The accepting side's wall clock, seconds since 1970.
    pub unix_seconds: i64,
    /// Features of the dialer's that the accepting side has too.
    pub features: Vec<String>,
}

/// Why a tunnel or a stream was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The protocol or header version is not known.
    UnsupportedVersion,
    /// The stream kind is not known.
    UnsupportedKind,
    /// The certificate is of no peer that may connect: unknown, suspended or revoked.
    NotAdmitted,
    /// A limit is reached; try again later.
    Busy,
    /// The accepting side is stopping.
    ShuttingDown,
    /// Without a certificate nothing but accept and enroll is allowed.
    CertificateRequired,
    /// The header cannot be read.
    Malformed,
    /// No service of that name is published here; the message lists those that are.
    UnknownService,
    /// No grant, or none that holds: the contract's 401, in its words.
    Unauthorized,
    /// The grant does not reach so far: the contract's 403, in its words.
    Forbidden,
    /// The service is published, but its program does not answer.
    ServiceUnavailable,
}

impl RefusalCode {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::UnsupportedVersion,
        Self::UnsupportedKind,
        Self::NotAdmitted,
        Self::Busy,
        Self::ShuttingDown,
        Self::CertificateRequired,
        Self::Malformed,
        Self::UnknownService,
        Self::Unauthorized,
        Self::Forbidden,
        Self::ServiceUnavailable,
    ];

    /// The word in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::UnsupportedVersion => "unsupported_version",
            Self::UnsupportedKind => "unsupported_kind",
            Self::NotAdmitted => "not_admitted",
            Self::Busy => "busy",
            Self::ShuttingDown => "shutting_down",
            Self::CertificateRequired => "certificate_required",
            Self::Malformed => "malformed",
            Self::UnknownService => "unknown_service",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::ServiceUnavailable => "service_unavailable",
        }
    }
}

/// A refusal of the whole tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The class.
    pub code: RefusalCode,
    /// For the operator.
    pub message: String,
    /// When to try again, in milliseconds; 0 leaves it to the dialer's backoff.
    pub retry_after_millis: u32,
}

/// Why a side ends a tunnel on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GoodbyeReason {
    /// The process stops or restarts.
    ShuttingDown,
    /// A newer session of the same peer has taken over.
    Superseded,
    /// The peer was suspended.
    Suspended,
    /// The peer was revoked.
    Revoked,
    /// A limit was exceeded.
    LimitExceeded,
    /// The other side broke the protocol.
    ProtocolViolation,
    /// The dialer is done: a bootstrap connection, or a one-off command.
    Done,
}

/// The last message before a close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// The class.
    pub reason: GoodbyeReason,
    /// For the operator.
    pub message: String,
    /// When to come back, in milliseconds; 0 leaves it to the other side's backoff.
    pub retry_after_millis: u32,
}

/// What travels on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlMessage {
    /// The dialer's first message.
    Hello(Hello),
    /// The answer to it.
    Welcome(Welcome),
    /// The other answer to it.
    Refused(Refused),
    /// Are you there? Answered by a pong of the same number.
    Ping(u64),
    /// I am.
    Pong(u64),
    /// The last message.
    Goodbye(Goodbye),
    /// The dialer's wish: while nothing is sent, ask me after so many milliseconds. Where the welcome has
    /// named [`KEEPALIVE_FEATURE`].
    Quiet(u32),
}

/// Number of variants of [`ControlMessage`] in this build.
const CONTROL_KINDS: u8 = 7;

/// Bytes that are no message of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The frame's content does not follow the layout.
    #[error("a tunnel message cannot be read: {0}")]
    Malformed(&'static str),
    /// A stream header of another version.
    #[error("stream header version {0} is not known to this build")]
    UnsupportedVersion(u8),
    /// A stream kind of a later build.
    #[error("stream kind {0} is not known to this build")]
    UnsupportedKind(u8),
}

/// A frame longer than its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a tunnel message of {bytes} bytes is longer than the {FRAME_MAX_BYTES} allowed")]
pub struct FrameTooLong {
    /// The length found or needed.
    pub bytes: usize,
}

/// Puts the length in front.
fn frame(content: &[u8]) -> Result<Vec<u8>, FrameTooLong> {
    let too_long = FrameTooLong { bytes: content.len() };
    if content.len() > FRAME_MAX_BYTES {
        return Err(too_long);
    }
    let length = u16::try_from(content.len()).map_err(|_| too_long)?;
    let mut framed = Vec::with_capacity(content.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(content);
    Ok(framed)
}

/// Reads a frame's length and checks it before anything is allocated for the content.
pub fn frame_length(prefix: [u8; 2]) -> Result<usize, FrameTooLong> {
    let bytes = usize::from(u16::from_be_bytes(prefix));
    if bytes > FRAME_MAX_BYTES {
        Err(FrameTooLong { bytes })
    } else {
        Ok(bytes)
    }
}

/// `text` cut to what a control message may hold.
pub fn message_text(text: &str) -> String {
    text.chars().take(TEXT_MAX_CHARS).collect()
}

impl ControlMessage {
    /// The whole frame, length included.
    pub fn encode(&self) -> Result<Vec<u8>, FrameTooLong> {
        frame(&postcard::to_allocvec(self).unwrap_or_default())
    }

    /// Reads a frame's content; words for people are on one line then. `Ok(None)` for a message of a later build:
    /// skip it.
    pub fn decode(content: &[u8]) -> Result<Option<Self>, DecodeError> {
        match content.first() {
            None => return Err(DecodeError::Malformed("it is empty")),
            Some(kind) if *kind >= CONTROL_KINDS => return Ok(None),
            Some(_) => {}
        }
        let message = postcard::from_bytes(content)
            .map_err(|_| DecodeError::Malformed("a control message is cut or wrong"))?;
        // What is said to people ends up in logs and on their terminals.
        Ok(Some(match message {
            Self::Refused(refused) => Self::Refused(Refused {
                message: foreign_text(&refused.message),
                ..refused
            }),
            Self::Goodbye(goodbye) => Self::Goodbye(Goodbye {
                message: foreign_text(&goodbye.message),
                ..goodbye
            }),
            other => other,
        }))
    }
}

impl DecodeError {
    /// The refusal to answer with.
    pub fn refusal(&self) -> StreamRefusal {
        let code = match self {
            Self::Malformed(_) => RefusalCode::Malformed,
            Self::UnsupportedVersion(_) => RefusalCode::UnsupportedVersion,
            Self::UnsupportedKind(_) => RefusalCode::UnsupportedKind,
        };
        StreamRefusal {
            code,
            message: self.to_string(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::base::radix::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn session() -> SessionId {
        "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap()
    }

    fn samples() -> Vec<(ControlMessage, &'static str)> {
        vec![
            (
                ControlMessage::Hello(Hello {
                    version: 1,
                    agent: "s/1".into(),
                    features: vec![],
                }),
                "0007000103732f3100",
            ),
            (
                ControlMessage::Welcome(Welcome {
                    session: session(),
                    agent: "b/1".into(),
                    keepalive_millis: 20_000,
                    max_streams: 64,
                    observed_address: "192.0.2.1:5".into(),
                    unix_seconds: 1_700_000_000,
                    features: vec!["x".into()],
                }),
                "002e01100192f0c17c1e7a539d0e3f2b5a6c7d8e03622f31a09c01400b3139322e302e322e313a3580c49fd50c010178",
            ),
            (
                ControlMessage::Refused(Refused {
                    code: RefusalCode::Busy,
                    message: "full".into(),
                    retry_after_millis: 300,
                }),
                "000902030466756c6cac02",
            ),
            (ControlMessage::Ping(7), "00020307"),
            (ControlMessage::Pong(300), "000304ac02"),
            (
                ControlMessage::Goodbye(Goodbye {
                    reason: GoodbyeReason::Superseded,
                    message: String::new(),
                    retry_after_millis: 0,
                }),
                "000405010000",
            ),
            (ControlMessage::Quiet(20_000), "000406a09c01"),
        ]
    }

    #[test]
    fn golden_bytes_of_every_control_message() {
        for (message, hex) in samples() {
            let bytes = message.encode().unwrap();
            assert_eq!(HEXLOWER.encode(&bytes), hex, "{message:?}");
            assert_eq!(ControlMessage::decode(&bytes[2..]), Ok(Some(message)));
        }
        assert_eq!(
            samples().len(),
            usize::from(CONTROL_KINDS),
            "every variant has a golden form"
        );
    }

    #[test]
    fn a_message_of_a_later_build_is_skipped() {
        assert_eq!(ControlMessage::decode(&[CONTROL_KINDS, 1, 2, 3]), Ok(None));
    }

    #[test]
    fn words_forge_no_line_of_a_log_and_steer_no_terminal() {
        let words = "bye\n2026-11-30T00:00:00Z  INFO all is well \u{1b}[2J".to_owned();
        let plain = foreign_text(&words);
        let refused = ControlMessage::Refused(Refused {
            code: RefusalCode::Busy,
            message: words.clone(),
            retry_after_millis: 0,
        });
        let goodbye = ControlMessage::Goodbye(Goodbye {
            reason: GoodbyeReason::Done,
            message: words.clone(),
            retry_after_millis: 0,
        });
        for message in [refused, goodbye] {
            let content = message.encode().unwrap()[2..].to_vec();
            let read = ControlMessage::decode(&content).unwrap().unwrap();
            let (ControlMessage::Refused(Refused { message, .. })
            | ControlMessage::Goodbye(Goodbye { message, .. })) = read
            else {
                panic!("{read:?}")
            };
            assert_eq!(message, plain);
        }
        let reply = StreamReply::Refused(StreamRefusal {
            code: RefusalCode::Busy,
            message: words,
        });
        let content = reply.encode().unwrap()[2..].to_vec();
        let Ok(StreamReply::Refused(StreamRefusal { message, .. })) = StreamReply::decode(&content) else {
            panic!("{reply:?}")
        };
        assert_eq!(message, plain);
    }

    #[test]
    fn a_length_is_checked_before_it_is_believed() {
        assert!(frame_length([0xff, 0xff]).is_err());
        assert_eq!(frame_length([0x10, 0x00]), Ok(FRAME_MAX_BYTES));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ControlMessage::decode(&bytes);
        }
    }
}
