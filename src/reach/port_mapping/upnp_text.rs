//! The texts of UPnP's Internet Gateway Device: searches and their answers, the device's
//! description, calls and their answers. Pure; sockets are elsewhere.
//!
//! What routers write is XML in intention. It is scanned for the few elements that matter, so that
//! a missing namespace or a stray byte elsewhere does no harm, and it is bounded before it gets
//! here. Nothing in it may lead anywhere but to the gateway itself.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Carries;
use crate::machine::mapping_lease::{Denial, Entry, MappingRecord};

/// What is searched for. Devices of version 2 answer to the first as well; a few only to the last.
pub(super) const SEARCH_TARGETS: [&str; 3] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
    "upnp:rootdevice",
];

/// Services that map ports, the preferred one first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// Services of one device that are tried, in number: a router with several lines has one each.
const SERVICES_MAX: usize = 6;

/// UPnP error codes that change what is tried next.
const DENIALS: [(u16, Denial); 10] = [
    (401, Denial::Unsupported),
    (402, Denial::InvalidArguments),
    (501, Denial::NotAllowed),
    (602, Denial::Unsupported),
    (606, Denial::NotAllowed),
    (718, Denial::PortTaken),
    (724, Denial::SamePortOnly),
    (725, Denial::OnlyPermanent),
    (728, Denial::Temporary),
    (729, Denial::PortTaken),
];

/// Codes for "there is no such entry".
const NO_SUCH_ENTRY: [u16; 2] = [714, 713];

/// A place on the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: SocketAddr,
    pub(super) path: String,
}

/// A service that maps ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) kind: &'static str,
    pub(super) control: Place,
}

/// Why a text of a router's was not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    /// It leads away from the gateway.
    #[error("it names another host than the gateway")]
    Elsewhere,
    /// Not what it should be.
    #[error("it is not what UPnP says it should be")]
    Malformed,
}

/// A search, to a group or to the gateway alone.
pub(super) fn search(to: SocketAddr, target: &str) -> String {
    format!("M-SEARCH * HTTP/1.1\r\nHOST: {to}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {target}\r\n\r\n")
}

/// Where the description of the device is that answered a search: on the gateway, or nowhere.
pub(super) fn read_search_answer(answer: &str, gateway: IpAddr) -> Result<Place, Unusable> {
    let mut lines = answer.lines();
    let status = lines.next().ok_or(Unusable::Malformed)?;
    if !status.starts_with("HTTP/1.") || status.split_whitespace().nth(1) != Some("200") {
        return Err(Unusable::Malformed);
    }
    let location = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("location"))
        .ok_or(Unusable::Malformed)?;
    read_place(location.1.trim(), gateway)
}

/// An absolute URL on the gateway.
fn read_place(url: &str, gateway: IpAddr) -> Result<Place, Unusable> {
    let rest = match url.split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http://") => rest,
        _ => return Err(Unusable::Malformed),
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // Names are not resolved: who answers for them is not known to be the gateway.
    let address: SocketAddr = authority
        .parse()
        .or_else(|_| format!("{authority}:80").parse())
        .map_err(|_| Unusable::Elsewhere)?;
    if address.ip().to_canonical() != gateway.to_canonical() || address.port() == 0 {
        return Err(Unusable::Elsewhere);
    }
    Ok(Place {
        address,
        path: checked_path(path)?,
    })
}

/// A path that can stand in a request line.
fn checked_path(path: &str) -> Result<String, Unusable> {
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Unusable::Malformed);
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok(format!("{slash}{path}"))
}

/// The services of a description that map ports, the preferred ones first. Those that lead away
/// from the gateway are left out; if there are no others, that is the reason.
pub(super) fn read_description(xml: &str, from: &Place) -> Result<Vec<Service>, Unusable> {
    let gateway = from.address.ip();
    let base = match element(xml, "URLBase").map(|base| base.trim().to_owned()) {
        Some(base) if !base.is_empty() => read_place(&base, gateway)?,
        _ => from.clone(),
    };
    let (mut services, mut elsewhere) = (Vec::new(), false);
    let mut rest = xml;
    while let Some((service, after)) = next_element(rest, "service") {
        rest = after;
        let kind = element(service, "serviceType").unwrap_or_default();
        let Some(kind) = SERVICES.into_iter().find(|known| *known == kind.trim()) else {
            continue;
        };
        let control = element(service, "controlURL").unwrap_or_default();
        match resolve(control.trim(), &base) {
            Ok(control) if services.len() < SERVICES_MAX => services.push(Service { kind, control }),
            Ok(_) => break,
            Err(_) => elsewhere = true,
        }
    }
    services.sort_by_key(|service| SERVICES.iter().position(|kind| *kind == service.kind));
    match (services.is_empty(), elsewhere) {
        (false, _) => Ok(services),
        (true, true) => Err(Unusable::Elsewhere),
        (true, false) => Err(Unusable::Malformed),
    }
}

/// A URL of a description, which may be relative.
fn resolve(url: &str, base: &Place) -> Result<Place, Unusable> {
    if url.is_empty() {
        return Err(Unusable::Malformed);
    }
    if url.contains("://") {
        return read_place(url, base.address.ip());
    }
    if url.starts_with("//") {
        return Err(Unusable::Elsewhere);
    }
    let path = if url.starts_with('/') {
        url.to_owned()
    } else {
        let directory = base.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{directory}/{url}")
    };
    Ok(Place {
        address: base.address,
        path: checked_path(&path)?,
    })
}

/// A call: its name and its arguments in order.
pub(super) struct Call {
    pub(super) action: &'static str,
    arguments: Vec<(&'static str, String)>,
}

impl Call {
    /// For the address outside.
    pub(super) const fn external_address() -> Self {
        Self {
            action: "GetExternalIPAddress",
            arguments: Vec::new(),
        }
    }

    /// For the entry under an external port. Routers compare the protocol's name letter by letter.
    pub(super) fn entry(carries: Carries, port: u16) -> Self {
        Self {
            action: "GetSpecificPortMappingEntry",
            arguments: named(carries, port),
        }
    }

    /// For its removal.
    pub(super) fn delete(carries: Carries, port: u16) -> Self {
        Self {
            action: "DeletePortMapping",
            arguments: named(carries, port),
        }
    }

    /// For a mapping, or for its renewal.
    pub(super) fn add(carries: Carries, record: &MappingRecord) -> Self {
        let mut arguments = named(carries, record.external_port);
        arguments.extend([
            ("NewInternalPort", record.internal.port().to_string()),
            ("NewInternalClient", record.internal.ip().to_string()),
            ("NewEnabled", "1".to_owned()),
            ("NewPortMappingDescription", record.description.clone()),
            ("NewLeaseDuration", record.lease_seconds.to_string()),
        ]);
        Self {
            action: "AddPortMapping",
            arguments,
        }
    }

    /// The request's body.
    pub(super) fn body(&self, service: &str) -> String {
        let mut body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{} xmlns:u=\"{service}\">",
            self.action
        );
        for (name, value) in &self.arguments {
            // Writing to a string does not fail.
            let _ = write!(body, "<{name}>{}</{name}>", escaped(value));
        }
        let _ = write!(body, "</u:{}></s:Body></s:Envelope>\r\n", self.action);
        body
    }
}

fn named(carries: Carries, port: u16) -> Vec<(&'static str, String)> {
    let protocol = match carries {
        Carries::Udp => "UDP",
        Carries::Tcp => "TCP",
    };
    vec![
        ("NewRemoteHost", String::new()),
        ("NewExternalPort", port.to_string()),
        ("NewProtocol", protocol.to_owned()),
    ]
}

/// The address of an answer, unspecified where the router says that it has none; `None` for what is
/// no such answer.
pub(super) fn read_external_address(xml: &str) -> Option<IpAddr> {
    let address = element(xml, "NewExternalIPAddress")?;
    match address.trim() {
        "" => Some(Ipv4Addr::UNSPECIFIED.into()),
        text => text.parse().ok(),
    }
}

/// The entry of an answer.
pub(super) fn read_entry(xml: &str) -> Option<Entry> {
    let value = |name| element(xml, name).map(|text| text.trim().to_owned());
    let client: IpAddr = value("NewInternalClient")?.parse().ok()?;
    let port = value("NewInternalPort")?.parse().ok()?;
    Some(Entry {
        internal: SocketAddr::new(client, port),
        description: value("NewPortMappingDescription").unwrap_or_default(),
        enabled: value("NewEnabled").is_none_or(|flag| flag != "0" && !flag.eq_ignore_ascii_case("false")),
        lease_seconds: value("NewLeaseDuration")
            .and_then(|lease| lease.parse().ok())
            .unwrap_or(0),
    })
}

/// The code of a fault; `None` for what is no fault.
pub(super) fn read_fault(xml: &str) -> Option<u16> {
    element(xml, "errorCode")?.trim().parse().ok()
}

/// What a fault means for a mapping.
pub(super) fn denial(code: u16) -> Denial {
    let known = DENIALS.into_iter().find(|(known, _)| *known == code);
    known.map_or(Denial::Temporary, |(_, denial)| denial)
}

/// Whether a fault says that there is no such entry.
pub(super) fn is_no_such_entry(code: u16) -> bool {
    NO_SUCH_ENTRY.contains(&code)
}

/// The text of the first element of a name, its entities resolved.
fn element<'a>(xml: &'a str, name: &str) -> Option<Cow<'a, str>> {
    next_element(xml, name).map(|(text, _)| unescaped(text))
}

/// The content of the first element of a name, whatever its prefix, and what follows it.
fn next_element<'a>(xml: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let mut rest = xml;
    loop {
        let (_, tag) = rest.split_once('<')?;
        if let Some(comment) = tag.strip_prefix("!--") {
            rest = comment.split_once("-->")?.1;
            continue;
        }
        let (inside, after) = tag.split_once('>')?;
        rest = after;
        if local_name(inside) != name || inside.starts_with('/') {
            continue;
        }
        if inside.ends_with('/') {
            return Some(("", after));
        }
        // The elements that are read hold none of their own name.
        let mut from = 0;
        loop {
            let at = from + after[from..].find("</")?;
            let closing = &after[at + 2..];
            let (closed, follows) = closing.split_once('>')?;
            if local_name(closed) == name {
                return Some((&after[..at], follows));
            }
            from = at + 2;
        }
    }
}

fn local_name(tag: &str) -> &str {
    let end = tag
        .find(|c: char| c.is_ascii_whitespace() || c == '/')
        .unwrap_or(tag.len());
    let name = &tag[..end];
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}

const ENTITIES: [(&str, char); 5] = [
    ("amp;", '&'),
    ("lt;", '<'),
    ("gt;", '>'),
    ("quot;", '"'),
    ("apos;", '\''),
];

fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, entity)) = rest.split_once('&') {
        plain.push_str(before);
        let known = ENTITIES.into_iter().find(|(name, _)| entity.starts_with(name));
        if let Some((name, character)) = known {
            plain.push(character);
            rest = &entity[name.len()..];
        } else {
            plain.push('&');
            rest = entity;
        }
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

fn escaped(text: &str) -> String {
    let mut xml = String::with_capacity(text.len());
    for character in text.chars() {
        match ENTITIES.into_iter().find(|(_, plain)| *plain == character) {
            Some((entity, _)) => {
                xml.push('&');
                xml.push_str(entity);
            }
            None => xml.push(character),
        }
    }
    xml
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
