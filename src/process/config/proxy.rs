//! Which proxy stands between this box and the parent, as configuration and environment say: its
//! URL, its credentials, and the hosts that are reached without it. Decides; connects to nothing.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

use crate::base::secret::Secret;
use crate::contract::invitation::HostPort;
use crate::process::environment::Environment;

/// Variables that name the proxy, the first that is set counts.
const PROXY_VARIABLES: [&str; 2] = ["https_proxy", "HTTPS_PROXY"];

/// Variables that name the exceptions.
const NO_PROXY_VARIABLES: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// The value of `tunnel.proxy` that turns the environment's proxy off.
const NO_PROXY_AT_ALL: &str = "none";

/// Most entries of `NO_PROXY` that are read: more than anybody writes by hand.
const EXCEPTIONS_MAX: usize = 256;

/// Ports where a URL names none.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Where a proxy is and how it is spoken to.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    /// Whether the way to the proxy itself is encrypted (`https://`).
    pub tls: bool,
    /// Host and port.
    pub address: HostPort,
}

/// A text that is no proxy's URL. It does not repeat the text, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{why}; write http://proxy.example.com:3128")]
pub struct InvalidProxyUrl {
    why: &'static str,
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.address)
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUrl({self})")
    }
}

impl ProxyUrl {
    /// A URL with what stands before its `@`.
    fn split(text: &str) -> Result<(Self, Option<&str>), InvalidProxyUrl> {
        let invalid = |why| InvalidProxyUrl { why };
        let (tls, rest) = match text.split_once("://") {
            None => (false, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some(_) => return Err(invalid("the proxy's URL must begin with http:// or https://")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(invalid("the proxy's URL must not have a path"));
        }
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(before, port)| !before.ends_with(':') && !port.contains(']') && bracketed(before));
        let port = if tls { HTTPS_PORT } else { HTTP_PORT };
        let address = if has_port {
            host.parse()
        } else {
            format!("{host}:{port}").parse()
        };
        let address = address.map_err(|_| invalid("the proxy's URL has no usable host and port"))?;
        Ok((Self { tls, address }, user))
    }
}

/// Whether what stands before a port is a name, or an IPv6 address in brackets.
fn bracketed(host: &str) -> bool {
    !host.contains(':') || host.ends_with(']')
}

impl FromStr for ProxyUrl {
    type Err = InvalidProxyUrl;

    /// As in the configuration: without user and password, which have a file of their own.
    fn from_str(text: &str) -> Result<Self, InvalidProxyUrl> {
        match Self::split(text)? {
            (url, None) => Ok(url),
            (_, Some(_)) => Err(InvalidProxyUrl {
                why: "user and password of the proxy belong into the file that tunnel.proxy_credentials_file names",
            }),
        }
    }
}

/// What `tunnel.proxy` may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyChoice {
    /// `none`: no proxy, whatever the environment says.
    Never,
    /// This one.
    Url(ProxyUrl),
}

impl FromStr for ProxyChoice {
    type Err = InvalidProxyUrl;

    fn from_str(text: &str) -> Result<Self, InvalidProxyUrl> {
        if text == NO_PROXY_AT_ALL {
            Ok(Self::Never)
        } else {
            text.parse().map(Self::Url)
        }
    }
}

impl fmt::Display for ProxyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str(NO_PROXY_AT_ALL),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// Where `user:password` for a proxy is.
#[derive(Debug, Clone)]
pub enum ProxyCredentials {
    /// In this file, read for each dial.
    File(PathBuf),
    /// It came with the environment's URL.
    Given(Secret),
}

impl PartialEq for ProxyCredentials {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(one), Self::File(other)) => one == other,
            (Self::Given(one), Self::Given(other)) => one.matches(other),
            (Self::File(_) | Self::Given(_), _) => false,
        }
    }
}

/// A proxy and what it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// Where it is.
    pub url: ProxyUrl,
    /// By what it knows this box.
    pub credentials: Option<ProxyCredentials>,
}

/// The proxy, if there is one, and for whom it is not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProxySettings {
    proxy: Option<Proxy>,
    exceptions: NoProxy,
}

impl ProxySettings {
    /// Whether there is a proxy for anybody.
    pub const fn is_set(&self) -> bool {
        self.proxy.is_some()
    }

    /// What the configuration says, else the environment. Credentials of the file come before
    /// those of the environment's URL.
    pub fn resolve(
        choice: Option<&ProxyChoice>,
        credentials_file: Option<PathBuf>,
        environment: &Environment,
    ) -> Result<Self, InvalidProxyUrl> {
        let file = credentials_file.map(ProxyCredentials::File);
        let first = |names: [&str; 2]| names.into_iter().find_map(|name| environment.text(name));
        let proxy = match choice {
            Some(ProxyChoice::Never) => None,
            Some(ProxyChoice::Url(url)) => Some(Proxy {
                url: url.clone(),
                credentials: file,
            }),
            None => match first(PROXY_VARIABLES) {
                Some(text) => {
                    let (url, user) = ProxyUrl::split(text)?;
                    let given = user.map(|user| ProxyCredentials::Given(Secret::new(percent_decoded(user))));
                    Some(Proxy {
                        url,
                        credentials: file.or(given),
                    })
                }
                None => None,
            },
        };
        Ok(Self {
            proxy,
            exceptions: NoProxy::parse(first(NO_PROXY_VARIABLES).unwrap_or_default()),
        })
    }

    /// The proxy on the way to a host, if any.
    pub fn proxy_for(&self, host: &str, port: u16) -> Option<&Proxy> {
        self.proxy
            .as_ref()
            .filter(|_| !self.exceptions.matches(host, port))
    }
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let digits = (byte == b'%').then(|| Some((hex(ahead.next()?)?, hex(ahead.next()?)?)));
        match digits.flatten() {
            Some((high, low)) => {
                decoded.push(high << 4 | low);
                bytes = ahead;
            }
            None => decoded.push(byte),
        }
    }
    decoded
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// Hosts that are reached without the proxy, as `NO_PROXY` has them: names with all names below
/// them, `.name` and `*.name` for those below alone, addresses, networks, each with a port or for
/// all, and `*` for everything. This box itself never needs the proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Exception>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    Network(IpNet),
    /// Lower case, without a dot at the begin.
    Name {
        name: String,
        itself: bool,
    },
}

impl NoProxy {
    /// Reads the variable; entries that make no sense match nothing.
    pub fn parse(text: &str) -> Self {
        let entries = text.split([',', ' ', '\t']).filter(|entry| !entry.is_empty());
        Self(
            entries
                .take(EXCEPTIONS_MAX)
                .filter_map(Exception::parse)
                .collect(),
        )
    }

    /// Whether `host`, a name or an address without brackets, is reached directly.
    pub fn matches(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address = host
            .parse::<std::net::IpAddr>()
            .ok()
            .map(|address| address.to_canonical());
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        self.0.iter().any(|exception| {
            exception.port.is_none_or(|only| only == port)
                && match (&exception.hosts, address) {
                    (Hosts::All, _) => true,
                    (Hosts::Network(network), Some(address)) => network.contains(&address),
                    (Hosts::Name { name, itself }, None) => match host.strip_suffix(name.as_str()) {
                        Some("") => *itself,
                        Some(below) => below.ends_with('.'),
                        None => false,
                    },
                    (Hosts::Network(_), None) | (Hosts::Name { .. }, Some(_)) => false,
                }
        })
    }
}

impl Exception {
    fn parse(entry: &str) -> Option<Self> {
        if let Some(network) = network(entry) {
            return Some(Self {
                hosts: Hosts::Network(network),
                port: None,
            });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let hosts = if host == "*" {
            Hosts::All
        } else if let Some(network) = network(host) {
            Hosts::Network(network)
        } else {
            let below = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
            let name = below.unwrap_or(host).trim_end_matches('.').to_ascii_lowercase();
            if name.is_empty() {
                return None;
            }
            Hosts::Name {
                name,
                itself: below.is_none(),
            }
        };
        Some(Self { hosts, port })
    }
}

/// A network or an address, in brackets or without.
fn network(text: &str) -> Option<IpNet> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let text = bare.unwrap_or(text);
    let address = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(address)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(variables: &[(&str, &str)]) -> ProxySettings {
        let environment: Environment = variables.iter().copied().collect();
        ProxySettings::resolve(None, None, &environment).unwrap()
    }

    #[test]
    fn urls_are_read_in_all_their_forms() {
        for (text, shown) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("https://proxy.example", "https://proxy.example:443"),
            ("HTTP://proxy.example/", "http://proxy.example:80"),
            ("proxy.example:8080", "http://proxy.example:8080"),
            ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128"),
            ("http://[2001:db8::1]", "http://[2001:db8::1]:80"),
            ("http://192.0.2.1", "http://192.0.2.1:80"),
        ] {
            assert_eq!(text.parse::<ProxyUrl>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "socks5://proxy:1080",
            "http://proxy/path",
            "http://:3128",
            "http://proxy:0x",
        ] {
            assert!(text.parse::<ProxyUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_in_the_configuration_is_refused_and_not_repeated() {
        let error = "http://anna:hunter2@proxy:3128".parse::<ProxyUrl>().unwrap_err();
        assert!(error.to_string().contains("proxy_credentials_file"), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn the_environments_proxy_brings_its_credentials() {
        let found = settings(&[("HTTPS_PROXY", "http://anna:p%40ss%2@proxy:3128")]);
        let proxy = found.proxy_for("bridge.example", 8443).unwrap();
        assert_eq!(proxy.url.to_string(), "http://proxy:3128");
        let given = ProxyCredentials::Given(Secret::from_text("anna:p@ss%2".into()));
        assert_eq!(proxy.credentials, Some(given));
        assert!(!format!("{found:?}").contains("p@ss"));
        let lower = settings(&[("https_proxy", "http://one:1"), ("HTTPS_PROXY", "http://two:2")]);
        assert_eq!(
            lower.proxy_for("a.example", 1).unwrap().url.to_string(),
            "http://one:1"
        );
        assert_eq!(settings(&[]).proxy_for("a.example", 1), None);
    }

    #[test]
    fn the_configuration_comes_before_the_environment() {
        let environment =
            Environment::from_iter([("HTTPS_PROXY", "http://env:1"), ("NO_PROXY", "a.example")]);
        let resolve = |choice: &str, file: Option<&str>| {
            let choice: ProxyChoice = choice.parse().unwrap();
            ProxySettings::resolve(Some(&choice), file.map(PathBuf::from), &environment).unwrap()
        };
        assert_eq!(resolve("none", None).proxy_for("b.example", 1), None);
        let configured = resolve("http://conf:2", Some("/run/credentials"));
        let proxy = configured.proxy_for("b.example", 1).unwrap();
        assert_eq!(proxy.url.to_string(), "http://conf:2");
        assert_eq!(
            proxy.credentials,
            Some(ProxyCredentials::File("/run/credentials".into()))
        );
        assert_eq!(
            configured.proxy_for("a.example", 1),
            None,
            "exceptions hold for both"
        );
    }

    #[test]
    fn exceptions_match_what_other_programs_match() {
        let text = "example.com, .below.example *.star.example,192.0.2.7,10.0.0.0/8,2001:db8::/32,[2001:db9::1],ported.example:8443,198.51.100.1:1";
        let exceptions = NoProxy::parse(text);
        for (host, port, direct) in [
            ("example.com", 1, true),
            ("EXAMPLE.com.", 1, true),
            ("a.b.example.com", 1, true),
            ("notexample.com", 1, false),
            ("below.example", 1, false),
            ("x.below.example", 1, true),
            ("star.example", 1, false),
            ("x.star.example", 1, true),
            ("192.0.2.7", 1, true),
            ("192.0.2.8", 1, false),
            ("10.200.0.1", 1, true),
            ("2001:db8:1::1", 1, true),
            ("2001:db9::1", 1, true),
            ("2001:db9::2", 1, false),
            ("ported.example", 8443, true),
            ("ported.example", 443, false),
            ("198.51.100.1", 1, true),
            ("198.51.100.1", 2, false),
            ("localhost", 1, true),
            ("127.0.0.9", 1, true),
            ("::1", 1, true),
        ] {
            assert_eq!(exceptions.matches(host, port), direct, "{host}:{port}");
        }
        assert!(NoProxy::parse("*").matches("anything.example", 1));
        assert!(!NoProxy::parse("").matches("anything.example", 1));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_entry_reaches_beyond_its_name(text in ".{0,40}", host in "[a-z]{1,8}\\.[a-z]{2,5}") {
            let _ = text.parse::<ProxyChoice>();
            let _ = NoProxy::parse(&text).matches(&host, 443);
            let exceptions = NoProxy::parse(&host);
            let beside = format!("x{host}");
            let below = format!("x.{host}");
            prop_assert!(exceptions.matches(&host, 443));
            prop_assert!(exceptions.matches(&below, 443));
            prop_assert!(!exceptions.matches(&beside, 443));
        }

        #[test]
        fn what_was_percent_encoded_is_read_again(password in proptest::collection::vec(any::<u8>(), 0..20)) {
            let digits = crate::base::radix::HEXUPPER.encode(&password);
            let encoded: String = digits.chars().enumerate().flat_map(|(at, digit)| {
                (at % 2 == 0).then_some('%').into_iter().chain([digit])
            }).collect();
            prop_assert_eq!(percent_decoded(&encoded), password);
        }
    }
}
