//! A name under which a server is found.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

use crate::base::limit::foreign_text;
use crate::contract::invitation::HostPort;

/// Longest DNS name, in characters.
const NAME_MAX_CHARS: usize = 253;

/// A DNS name or an address, as a server certificate names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerName(String);

/// A text that is no server name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` is neither a DNS name nor an address; write it without scheme and port: bridge.example.com"
)]
pub struct InvalidServerName {
    text: String,
}

impl ServerName {
    /// The name, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServerName {
    type Err = InvalidServerName;

    fn from_str(text: &str) -> Result<Self, InvalidServerName> {
        let invalid = || InvalidServerName {
            text: foreign_text(text),
        };
        let name = text.trim();
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(Self(address.to_string()));
        }
        if name.chars().count() > NAME_MAX_CHARS {
            return Err(invalid());
        }
        // A name with a port of its own would be one label too many for this.
        let address = HostPort::parse(name, 1).map_err(|_| invalid())?;
        if address.host().len() != name.len() {
            return Err(invalid());
        }
        Ok(Self(address.host().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_names_have_neither_scheme_nor_port() {
        let name = |text: &str| text.parse::<ServerName>().ok().map(|name| name.to_string());
        assert_eq!(name("Bridge.Example.com").as_deref(), Some("bridge.example.com"));
        assert_eq!(name("2001:DB8::1").as_deref(), Some("2001:db8::1"));
        for bad in ["", "https://bridge", "bridge:8443", "[::1]", "*", "a b"] {
            assert_eq!(name(bad), None, "{bad}");
        }
    }
}
