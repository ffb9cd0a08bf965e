//! What a box is told when it is invited: the spawn payload of contract section 2 and the
//! invitation that all sources (join code, command line, payload) come down to. Pure parsing;
//! who reads the files is not known here.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use zeroize::Zeroizing;

use super::CONTRACT_VERSION;
use super::peer::{SpawnMode, UnknownName};
use super::token::{AcceptanceToken, InvalidToken};
use crate::base::id::{InvalidId, PeerId};
use crate::base::limit::foreign_text;
use crate::base::radix::sha256_of_text;
use crate::base::time::UnixTime;

/// Port on which a host-bridge listens (UDP for QUIC, TCP for HTTPS) unless told otherwise.
pub const DEFAULT_BRIDGE_PORT: u16 = 8443;

/// Most bridge addresses that an invitation or a config may name. Two is usual; eight leaves
/// room for an IPv4 and an IPv6 address of four bridges.
pub const BRIDGES_MAX: usize = 8;

/// Longest parent URL, in bytes.
const URL_MAX_BYTES: usize = 2_048;

/// A contract version as a payload writes it: `v1`, `V1`, `1`; empty means 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContractVersion(u32);

/// A text that is no contract version. The published client takes such a text for 1; ours
/// refuses it (contract section 2).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("contract_version `{text}` is not a version; write `v1` or `1`")]
pub struct InvalidContractVersion {
    text: String,
}

impl ContractVersion {
    /// The version that this build speaks.
    pub const CURRENT: Self = Self(CONTRACT_VERSION);

    /// The number.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl FromStr for ContractVersion {
    type Err = InvalidContractVersion;

    fn from_str(text: &str) -> Result<Self, InvalidContractVersion> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok(Self(1));
        }
        let digits = trimmed.strip_prefix(['v', 'V']).unwrap_or(trimmed);
        let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        match digits.parse() {
            Ok(number) if all_digits && number > 0 => Ok(Self(number)),
            _ => Err(InvalidContractVersion {
                text: foreign_text(trimmed),
            }),
        }
    }
}

/// Host and port of a host-bridge.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// A text that is no `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not an address: {why}; write host:port, for example bridge.example.com:8443 or [2001:db8::1]:8443"
)]
pub struct InvalidHostPort {
    text: String,
    why: &'static str,
}

impl HostPort {
    /// A DNS name or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Parses `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, InvalidHostPort> {
        let text = text.trim();
        let invalid = |why| InvalidHostPort {
            text: foreign_text(text),
            why,
        };
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or_else(|| invalid("`]` is missing"))?;
            let _: Ipv6Addr = host
                .parse()
                .map_err(|_| invalid("no IPv6 address between the brackets"))?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(invalid("something follows `]` that is not a port")),
            }
        } else if text.parse::<Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let port = match port {
            Some(port) => port
                .parse()
                .map_err(|_| invalid("the port is not a number from 1 to 65535"))?,
            None => default_port,
        };
        if port == 0 {
            return Err(invalid("the port is not a number from 1 to 65535"));
        }
        if !is_host(host) {
            return Err(invalid("the host is neither a DNS name nor an address"));
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port,
        })
    }
}

fn is_host(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
        || (!host.is_empty()
            && host.len() <= 253
            && host.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            }))
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = InvalidHostPort;

    fn from_str(text: &str) -> Result<Self, InvalidHostPort> {
        Self::parse(text, DEFAULT_BRIDGE_PORT)
    }
}

/// The parent's URL: `https://host[:port][/prefix]`, without a trailing `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ParentUrl {
    text: String,
    host: HostPort,
}

/// A text that is no parent URL.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` cannot be the parent's URL or its host-bridge's: {why}; write it as https://parent.example.com"
)]
pub struct InvalidParentUrl {
    text: String,
    why: &'static str,
}

impl ParentUrl {
    /// The URL without a trailing `/`, ready to be joined with a path.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host and port (443 when the URL names none).
    pub const fn host(&self) -> &HostPort {
        &self.host
    }
}

impl ParentUrl {
    /// The path, without a `/` at its end; empty when there is none.
    pub fn path(&self) -> &str {
        let after_scheme = self.text.split_once("://").map_or("", |(_, rest)| rest);
        after_scheme.find('/').map_or("", |at| &after_scheme[at..])
    }
}

impl fmt::Display for ParentUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for ParentUrl {
    type Err = InvalidParentUrl;

    fn from_str(text: &str) -> Result<Self, InvalidParentUrl> {
        let text = text.trim();
        let invalid = |why| InvalidParentUrl {
            text: foreign_text(text),
            why,
        };
        if text.len() > URL_MAX_BYTES {
            return Err(invalid("it is longer than 2048 bytes"));
        }
        let uri: http::Uri = text.parse().map_err(|_| invalid("it is not a URL"))?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") => return Err(invalid("http would send the token in clear, https is needed")),
            _ => return Err(invalid("it does not begin with https://")),
        }
        if uri.query().is_some() {
            return Err(invalid("it must not have a query"));
        }
        let authority = uri.authority().ok_or_else(|| invalid("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("it must not hold a user name or password"));
        }
        let host = HostPort::parse(authority.as_str(), 443).map_err(|error| invalid(error.why))?;
        Ok(Self {
            text: text.trim_end_matches('/').to_owned(),
            host,
        })
    }
}

macro_rules! serde_as_text {
    ($($name:ty),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
serde_as_text!(HostPort, ParentUrl);

/// SHA-256 over the DER of a certificate authority's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CaFingerprint([u8; 32]);

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a CA fingerprint is the SHA-256 of the CA certificate: 64 hex digits, colons allowed")]
pub struct InvalidFingerprint;

impl CaFingerprint {
    /// The fingerprint of a certificate in DER.
    pub fn of_der(der: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(der).into())
    }

    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", crate::base::radix::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CaFingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        sha256_of_text(text).map(Self).ok_or(InvalidFingerprint)
    }
}

/// By what a satellite knows that it talks to its parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParentTrust {
    /// The chain must contain the CA certificate with this fingerprint (join code,
    /// `--ca-sha256`); that certificate is then the only anchor.
    Pinned(CaFingerprint),
    /// These anchors, as PEM (`--ca-file`).
    Bundle(String),
    /// The system's roots.
    SystemRoots,
}

/// All that a satellite needs to join. Every source of an invitation ends in one of these.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// Whom to join.
    pub parent_url: ParentUrl,
    /// Where the parent's host-bridges listen; when empty, the parent URL's host and port.
    pub bridges: Vec<HostPort>,
    /// The single-use credential.
    pub token: AcceptanceToken,
    /// By what the parent is known.
    pub trust: ParentTrust,
    /// How the parent means to treat this child.
    pub spawn_mode: SpawnMode,
    /// The parent's id for this peering, when the payload told it.
    pub parent_peer_id: Option<PeerId>,
    /// The version to claim.
    pub contract_version: ContractVersion,
    /// The parent's time when it invited, where the invitation tells it.
    pub minted_at: Option<UnixTime>,
}

impl Invitation {
    /// The addresses to dial, in the order given.
    pub fn dial_addresses(&self) -> Vec<HostPort> {
        dial_addresses(&self.bridges, &self.parent_url)
    }
}

/// The bridges, or where none are named, the host and port of the parent's URL.
pub fn dial_addresses(bridges: &[HostPort], parent_url: &ParentUrl) -> Vec<HostPort> {
    if bridges.is_empty() {
        vec![parent_url.host().clone()]
    } else {
        bridges.to_vec()
    }
}

/// The five keys of contract section 2 as one source holds them. A missing key is `None` or
/// blank.
#[derive(Default, Deserialize)]
pub struct RawSpawnPayload {
    /// `parent_url`.
    #[serde(default)]
    pub parent_url: Option<String>,
    /// `acceptance_token`.
    #[serde(default)]
    pub acceptance_token: Option<Zeroizing<String>>,
    /// `spawn_mode`.
    #[serde(default)]
    pub spawn_mode: Option<String>,
    /// `parent_peer_id`.
    #[serde(default)]
    pub parent_peer_id: Option<String>,
    /// `contract_version`, a text or a number.
    #[serde(default)]
    pub contract_version: Option<TextOrNumber>,
}

/// A version as JSON payloads write it.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum TextOrNumber {
    /// `"v1"`.
    Text(String),
    /// `1`.
    Number(u64),
}

/// Why a payload is not an invitation.
#[derive(Debug, Error)]
pub enum PayloadError {
    /// Not JSON, or a key has a value of the wrong type.
    #[error("the spawn payload is not the JSON object that it should be")]
    Json(#[source] serde_json::Error),
    /// `parent_url` without `acceptance_token` (contract section 2).
    #[error(
        "the spawn payload names a parent_url but no acceptance_token; ask the parent's operator for a new invitation"
    )]
    TokenMissing,
    /// `acceptance_token` without `parent_url`.
    #[error(
        "the spawn payload has an acceptance_token but no parent_url; ask the parent's operator for a new invitation"
    )]
    UrlMissing,
    /// A bad `parent_url`.
    #[error("the spawn payload's parent_url cannot be used")]
    Url(#[from] InvalidParentUrl),
    /// A bad `acceptance_token`.
    #[error("the spawn payload's acceptance_token cannot be used")]
    Token(#[from] InvalidToken),
    /// A bad `spawn_mode`.
    #[error("the spawn payload's spawn_mode cannot be used")]
    SpawnMode(#[from] UnknownName),
    /// A bad `parent_peer_id`.
    #[error("the spawn payload's parent_peer_id cannot be used")]
    PeerId(#[from] InvalidId),
    /// A bad `contract_version`.
    #[error("the spawn payload's contract_version cannot be used")]
    Version(#[from] InvalidContractVersion),
}

impl RawSpawnPayload {
    /// Reads the payload file's JSON. Unknown keys are left alone: the file is the platform's.
    pub fn from_json(text: &[u8]) -> Result<Self, PayloadError> {
        // A list would be taken for the values in their order.
        if text.trim_ascii_start().starts_with(b"[") {
            let error = serde::de::Error::invalid_type(serde::de::Unexpected::Seq, &"an object");
            return Err(PayloadError::Json(error));
        }
        serde_json::from_slice(text).map_err(PayloadError::Json)
    }

    /// Checks the values. `Ok(None)` when neither a parent nor a token is named: nothing to do.
    pub fn into_invitation(self, trust: ParentTrust) -> Result<Option<Invitation>, PayloadError> {
        let present = |text: Option<String>| text.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
        let token = self.acceptance_token.filter(|t| !t.trim().is_empty());
        let (parent_url, token) = match (present(self.parent_url), token) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(PayloadError::TokenMissing),
            (None, Some(_)) => return Err(PayloadError::UrlMissing),
            (Some(url), Some(token)) => (url, token),
        };
        let spawn_mode = match present(self.spawn_mode) {
            Some(text) => text.parse()?,
            None => SpawnMode::ManagedChild,
        };
        let contract_version = match self.contract_version {
            Some(TextOrNumber::Text(text)) => text.parse()?,
            Some(TextOrNumber::Number(number)) => number.to_string().parse()?,
            None => "".parse()?,
        };
        Ok(Some(Invitation {
            parent_url: parent_url.parse()?,
            bridges: Vec::new(),
            token: AcceptanceToken::parse(token.to_string())?,
            trust,
            spawn_mode,
            parent_peer_id: present(self.parent_peer_id)
                .map(|text| text.parse())
                .transpose()?,
            contract_version,
            minted_at: None,
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_all_their_forms() {
        let parse = |text| HostPort::parse(text, 8443).map(|a| a.to_string());
        assert_eq!(parse("Bridge.Example.com").unwrap(), "bridge.example.com:8443");
        assert_eq!(parse("192.0.2.1:9000").unwrap(), "192.0.2.1:9000");
        assert_eq!(parse("2001:db8::1").unwrap(), "[2001:db8::1]:8443");
        assert_eq!(parse("[2001:db8::1]:443").unwrap(), "[2001:db8::1]:443");
        for bad in [
            "",
            ":8443",
            "host:0",
            "host:65536",
            "host:x",
            "[::1",
            "[::1]x",
            "[host]:1",
            "a b:1",
            "-a:1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parent_urls_are_https_without_surprises() {
        let url: ParentUrl = "https://parent.example.com:9443/prefix/".parse().unwrap();
        assert_eq!(url.as_str(), "https://parent.example.com:9443/prefix");
        assert_eq!(url.host().port(), 9443);
        assert_eq!(
            "https://[2001:db8::1]"
                .parse::<ParentUrl>()
                .unwrap()
                .host()
                .to_string(),
            "[2001:db8::1]:443"
        );
        for bad in [
            "",
            "parent",
            "http://parent",
            "ftp://parent",
            "https://",
            "https://u:p@parent",
            "https://p?x=1",
        ] {
            assert!(bad.parse::<ParentUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_payload_that_is_a_list_is_refused() {
        for list in [&b"[]"[..], b" [\"https://parent.example.com\", \"token\"]"] {
            assert!(matches!(
                RawSpawnPayload::from_json(list),
                Err(PayloadError::Json(_))
            ));
        }
    }

    #[test]
    fn a_payload_without_parent_and_token_is_nothing_to_do() {
        let payload =
            RawSpawnPayload::from_json(br#"{"parent_url": " ", "spawn_mode": "managed_child"}"#).unwrap();
        assert!(
            payload
                .into_invitation(ParentTrust::SystemRoots)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_payload_with_half_of_it_is_an_error() {
        let invitation = |json: &str| {
            RawSpawnPayload::from_json(json.as_bytes())
                .unwrap()
                .into_invitation(ParentTrust::SystemRoots)
        };
        assert!(matches!(
            invitation(r#"{"parent_url":"https://p"}"#),
            Err(PayloadError::TokenMissing)
        ));
        assert!(matches!(
            invitation(r#"{"acceptance_token":"abc"}"#),
            Err(PayloadError::UrlMissing)
        ));
        assert!(matches!(
            invitation(r#"{"parent_url":"https://p","acceptance_token":"abc","contract_version":"bogus"}"#),
            Err(PayloadError::Version(_))
        ));
    }

    #[test]
    fn fingerprints_in_the_forms_that_tools_print() {
        let bytes = CaFingerprint::from_bytes([0xab; 32]);
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(colons.parse::<CaFingerprint>().unwrap(), bytes);
        assert_eq!(bytes.to_string().parse::<CaFingerprint>().unwrap(), bytes);
        assert!("abcd".parse::<CaFingerprint>().is_err());
    }
}
