//! The first frame of every stream but the control stream, and the answer to it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{DecodeError, FrameTooLong, RefusalCode, frame};
use crate::base::id::TraceId;
use crate::base::limit::foreign_text;
use crate::base::secret::Secret;

/// Version byte of every stream header.
const STREAM_VERSION: u8 = 1;

/// Longest name of a service, in bytes: a label of a host name, so that `web.shop-17.satellite`
/// is a name.
pub const SERVICE_NAME_MAX_BYTES: usize = 63;

/// What a stream is for.
#[derive(Debug, Clone)]
pub enum StreamKind {
    /// HTTP/1.1 follows, one request.
    Http,
    /// The bytes of one connection to a published service follow.
    Connect(ServiceRequest),
    /// Packets to and from a published UDP service belong to this stream.
    Flow(ServiceRequest),
}

/// Kind bytes; a new kind takes the next.
const KIND_HTTP: u8 = 0;
const KIND_CONNECT: u8 = 1;
const KIND_FLOW: u8 = 2;

/// Which published service is asked for, and on whose behalf.
#[derive(Debug, Clone)]
pub struct ServiceRequest {
    /// The service's published name.
    pub service: String,
    /// The grant's bearer token.
    pub grant_token: Option<Secret>,
    /// Who acts on the asking side, as that side has authenticated them.
    pub subject: String,
    /// The address of the asking person's program, as the asking side saw it.
    pub source: Option<SocketAddr>,
}

/// A service request as its bytes are laid out. Fields are added at the end.
#[derive(Serialize, Deserialize)]
struct ServiceRequestLayout<'a> {
    service: &'a str,
    grant_token: &'a [u8],
    subject: &'a str,
    source: &'a str,
}

/// The first frame of every stream but the control stream.
#[derive(Debug, Clone)]
pub struct StreamHeader {
    /// What the stream is for.
    pub kind: StreamKind,
    /// Ties the two sides' log lines together.
    pub trace: TraceId,
}

/// The accepting side's first frame on every stream but the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamReply {
    /// Content follows.
    Accepted,
    /// Nothing follows.
    Refused(StreamRefusal),
}

/// Why a stream was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
#[error("the other side refused the stream: {message}")]
pub struct StreamRefusal {
    /// The class.
    pub code: RefusalCode,
    /// For the operator.
    pub message: String,
}

impl StreamHeader {
    /// The whole frame, length included. It may hold a token: the caller wipes it.
    pub fn encode(&self) -> Result<Vec<u8>, FrameTooLong> {
        let (kind, service) = match &self.kind {
            StreamKind::Http => (KIND_HTTP, None),
            StreamKind::Connect(request) => (KIND_CONNECT, Some(request)),
            StreamKind::Flow(request) => (KIND_FLOW, Some(request)),
        };
        let mut content = vec![STREAM_VERSION, kind];
        content.extend_from_slice(&self.trace.0.to_be_bytes());
        if let Some(request) = service {
            content.extend_from_slice(&request.encode());
        }
        frame(&content)
    }

    /// Reads a frame's content. Bytes after the known fields are additions of a later build.
    pub fn decode(content: &[u8]) -> Result<Self, DecodeError> {
        const CUT: DecodeError = DecodeError::Malformed("a stream header is cut");
        let (&version, rest) = content
            .split_first()
            .ok_or(DecodeError::Malformed("it is empty"))?;
        if version != STREAM_VERSION {
            return Err(DecodeError::UnsupportedVersion(version));
        }
        let (&kind, rest) = rest.split_first().ok_or(CUT)?;
        if kind > KIND_FLOW {
            return Err(DecodeError::UnsupportedKind(kind));
        }
        let (trace, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let kind = match kind {
            KIND_CONNECT => StreamKind::Connect(ServiceRequest::decode(rest)?),
            KIND_FLOW => StreamKind::Flow(ServiceRequest::decode(rest)?),
            _ => StreamKind::Http,
        };
        Ok(Self {
            kind,
            trace: TraceId(u64::from_be_bytes(*trace)),
        })
    }
}

impl ServiceRequest {
    fn encode(&self) -> Vec<u8> {
        let source = self.source.map(|source| source.to_string()).unwrap_or_default();
        let layout = ServiceRequestLayout {
            service: &self.service,
            grant_token: self.grant_token.as_ref().map_or(&[], Secret::expose),
            subject: &self.subject,
            source: &source,
        };
        postcard::to_allocvec(&layout).unwrap_or_default()
    }

    fn decode(content: &[u8]) -> Result<Self, DecodeError> {
        let (layout, _additions) = postcard::take_from_bytes::<ServiceRequestLayout<'_>>(content)
            .map_err(|_| DecodeError::Malformed("a service request is cut or wrong"))?;
        let source = match layout.source {
            "" => None,
            source => Some(
                source
                    .parse()
                    .map_err(|_| DecodeError::Malformed("the source of a service request is no address"))?,
            ),
        };
        if layout.service.is_empty() || layout.service.len() > SERVICE_NAME_MAX_BYTES {
            return Err(DecodeError::Malformed("a service request names no service"));
        }
        Ok(Self {
            service: layout.service.to_owned(),
            grant_token: (!layout.grant_token.is_empty()).then(|| Secret::new(layout.grant_token.to_vec())),
            subject: layout.subject.to_owned(),
            source,
        })
    }
}

impl StreamReply {
    /// The whole frame, length included.
    pub fn encode(&self) -> Result<Vec<u8>, FrameTooLong> {
        frame(&postcard::to_allocvec(self).unwrap_or_default())
    }

    /// Reads a frame's content; the words of a refusal are on one line then.
    pub fn decode(content: &[u8]) -> Result<Self, DecodeError> {
        let reply = postcard::from_bytes(content)
            .map_err(|_| DecodeError::Malformed("a stream reply is cut or wrong"))?;
        Ok(match reply {
            Self::Accepted => Self::Accepted,
            Self::Refused(refusal) => Self::Refused(StreamRefusal {
                message: foreign_text(&refusal.message),
                ..refusal
            }),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::base::radix::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn header(kind: StreamKind) -> StreamHeader {
        StreamHeader {
            kind,
            trace: TraceId(0x0102_0304_0506_0708),
        }
    }

    fn request() -> ServiceRequest {
        ServiceRequest {
            service: "ssh".into(),
            grant_token: Some(Secret::from_text("fg-1".into())),
            subject: "anna".into(),
            source: Some("192.0.2.9:50".parse().unwrap()),
        }
    }

    #[test]
    fn golden_bytes_of_every_header() {
        let service = "0373736804".to_owned() + "66672d31" + "04616e6e61" + "0c3139322e302e322e393a3530";
        for (kind, hex) in [
            (StreamKind::Http, "000a01000102030405060708".to_owned()),
            (
                StreamKind::Connect(request()),
                format!("002501010102030405060708{service}"),
            ),
            (
                StreamKind::Flow(request()),
                format!("002501020102030405060708{service}"),
            ),
        ] {
            let bytes = header(kind).encode().unwrap();
            assert_eq!(HEXLOWER.encode(&bytes), hex);
            let read = StreamHeader::decode(&bytes[2..]).unwrap();
            assert_eq!(read.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn golden_bytes_of_every_reply() {
        assert_eq!(
            HEXLOWER.encode(&StreamReply::Accepted.encode().unwrap()),
            "000100"
        );
        let codes = [
            RefusalCode::UnsupportedVersion,
            RefusalCode::UnsupportedKind,
            RefusalCode::NotAdmitted,
            RefusalCode::Busy,
            RefusalCode::ShuttingDown,
            RefusalCode::CertificateRequired,
            RefusalCode::Malformed,
            RefusalCode::UnknownService,
            RefusalCode::Unauthorized,
            RefusalCode::Forbidden,
            RefusalCode::ServiceUnavailable,
        ];
        for (number, code) in codes.into_iter().enumerate() {
            let refused = StreamReply::Refused(StreamRefusal {
                code,
                message: "no".into(),
            });
            let bytes = refused.encode().unwrap();
            assert_eq!(HEXLOWER.encode(&bytes), format!("000501{number:02x}026e6f"));
            assert_eq!(StreamReply::decode(&bytes[2..]).unwrap(), refused);
        }
    }

    #[test]
    fn a_later_build_is_refused_never_misread() {
        let refused = |content: &[u8]| StreamHeader::decode(content).unwrap_err();
        assert_eq!(refused(&[2, 0]), DecodeError::UnsupportedVersion(2));
        assert_eq!(refused(&[1, 9, 0, 0]), DecodeError::UnsupportedKind(9));
        for kind in [StreamKind::Http, StreamKind::Connect(request())] {
            let mut longer = header(kind).encode().unwrap()[2..].to_vec();
            longer.extend_from_slice(b"addition");
            assert!(StreamHeader::decode(&longer).is_ok());
        }
    }

    #[test]
    fn a_request_for_no_service_is_malformed() {
        for service in [String::new(), "s".repeat(SERVICE_NAME_MAX_BYTES + 1)] {
            let nameless = StreamKind::Connect(ServiceRequest { service, ..request() });
            let bytes = header(nameless).encode().unwrap();
            assert!(StreamHeader::decode(&bytes[2..]).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..4) {
            let _ = StreamReply::decode(&bytes);
            let _ = StreamHeader::decode(&bytes);
            let _ = StreamHeader::decode(&[&[1, kind], &bytes[..]].concat());
        }
    }
}
