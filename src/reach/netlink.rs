//! What the kernel tells of links, addresses and routes over its netlink socket, and over which
//! interface and gateway it would send. Needs no privileges; where the socket is denied, the caller
//! does without.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdDatagram;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::net::UnixDatagram;

use crate::machine::network::{Hop, Notice};

/// Bytes of one answer or piece of news. The kernel sends no larger ones than a page, or 8 KiB where
/// pages are larger.
const MESSAGE_MAX_BYTES: usize = 8 * 1024;

/// Pieces of news that are taken in one go, before the task yields.
const NEWS_MAX: usize = 32;

/// Groups of news: links, addresses and routes of both families.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

const NEW_LINK: u16 = 16;
const DELETED_LINK: u16 = 17;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
const REQUEST: u16 = 1;

const HEADER_BYTES: usize = 16;
const ROUTE_BYTES: usize = 12;
const ATTRIBUTE_BYTES: usize = 4;

const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;
/// A gateway of another family than the route's, behind two bytes of family.
const VIA: u16 = 18;

const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;

/// Interface flags: up, and a carrier below it.
const CARRIES: u32 = 0x1 | 0x1_0000;

/// Hears the kernel's news.
#[derive(Debug)]
pub struct RouteNews {
    /// A netlink socket, which is read like any other socket of messages; tokio has no type for it.
    socket: UnixDatagram,
    buffer: Vec<u8>,
}

impl RouteNews {
    /// Begins to hear. Needs a runtime.
    pub fn open() -> io::Result<Self> {
        let socket = route_socket()?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self {
            socket: UnixDatagram::from_std(StdDatagram::from(socket))?,
            buffer: vec![0; MESSAGE_MAX_BYTES],
        })
    }

    /// Waits for news. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Vec<Notice>> {
        let mut notices = Vec::new();
        self.socket.readable().await?;
        for _ in 0..NEWS_MAX {
            match self.socket.try_recv(&mut self.buffer) {
                Ok(bytes) => notices.extend(read_notices(&self.buffer[..bytes])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Some did not fit.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {
                    notices.push(Notice::Other);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(notices)
    }
}

/// Over what the kernel would send to an address; `None` where it would not. It answers before the
/// question's system call returns.
pub fn hop_towards(destination: IpAddr) -> io::Result<Option<Hop>> {
    let socket = route_socket()?;
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &route_question(destination), SendFlags::empty(), &kernel)?;
    let mut buffer = vec![0; MESSAGE_MAX_BYTES];
    let (bytes, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
    Ok(read_hop(&buffer[..bytes]))
}

fn route_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let route = None; // NETLINK_ROUTE is protocol 0.
    Ok(rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        flags,
        route,
    )?)
}

fn route_question(destination: IpAddr) -> Vec<u8> {
    let (family, address) = match destination {
        IpAddr::V4(address) => (FAMILY_V4, address.octets().to_vec()),
        IpAddr::V6(address) => (FAMILY_V6, address.octets().to_vec()),
    };
    // At most sixteen bytes.
    let address_bytes = u8::try_from(address.len()).unwrap_or(u8::MAX);
    let attribute = ATTRIBUTE_BYTES + address.len();
    let length = u16::from(address_bytes) + 4;
    let whole = u32::from(length) + 28;
    debug_assert_eq!(whole as usize, HEADER_BYTES + ROUTE_BYTES + attribute);
    [
        &whole.to_ne_bytes()[..],
        &GET_ROUTE.to_ne_bytes(),
        &REQUEST.to_ne_bytes(),
        // Number and sender: one question a socket.
        &[0; 8],
        &[family, address_bytes * 8, 0, 0, 0, 0, 0, 0],
        &[0; 4],
        &length.to_ne_bytes(),
        &DESTINATION.to_ne_bytes(),
        &address,
    ]
    .concat()
}

/// What came in one go, message by message; what cannot be read is something that changed.
fn read_notices(bytes: &[u8]) -> Vec<Notice> {
    messages(bytes)
        .map(|(kind, content)| {
            let link = || {
                let interface = u32_at(content, 4)?;
                let carries = kind == NEW_LINK && u32_at(content, 8)? & CARRIES == CARRIES;
                Some(Notice::Link { interface, carries })
            };
            match kind {
                NEW_LINK | DELETED_LINK => link().unwrap_or(Notice::Other),
                _ => Notice::Other,
            }
        })
        .collect()
}

fn read_hop(bytes: &[u8]) -> Option<Hop> {
    let (_, content) = messages(bytes).find(|(kind, _)| *kind == NEW_ROUTE)?;
    let (mut interface, mut gateway) = (None, None);
    for (kind, value) in attributes(content.get(ROUTE_BYTES..)?) {
        match kind {
            INTERFACE => interface = u32_at(value, 0),
            GATEWAY => gateway = address(value),
            VIA => gateway = value.get(2..).and_then(address),
            _ => {}
        }
    }
    Some(Hop {
        interface: interface?,
        gateway,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Kind and content of each message; ends at the first that is cut.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let (kind, content) = (u16_at(bytes, 4)?, bytes.get(HEADER_BYTES..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// Kind and value of each attribute; ends at the first that is cut.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let (kind, value) = (u16_at(bytes, 2)?, bytes.get(ATTRIBUTE_BYTES..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*two))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*four))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + content.len()).unwrap();
        let mut message = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], content].concat();
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn link(interface: u32, flags: u32) -> Vec<u8> {
        [
            &[0; 4][..],
            &interface.to_ne_bytes(),
            &flags.to_ne_bytes(),
            &[0; 4],
        ]
        .concat()
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).unwrap();
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
    }

    #[test]
    fn news_say_which_interfaces_carry() {
        let news = [
            message(NEW_LINK, &link(3, 0x1_0043)),
            message(NEW_LINK, &link(4, 0x1003)),
            message(DELETED_LINK, &link(5, 0x1_0043)),
            message(NEW_ROUTE, &[0; 13]),
            message(NEW_LINK, &[0; 5]),
        ]
        .concat();
        let link = |interface, carries| Notice::Link { interface, carries };
        let read = [
            link(3, true),
            link(4, false),
            link(5, false),
            Notice::Other,
            Notice::Other,
        ];
        assert_eq!(read_notices(&news), read);
    }

    #[test]
    fn a_route_leads_over_an_interface_and_maybe_a_gateway() {
        let route = |attributes: &[Vec<u8>]| {
            message(NEW_ROUTE, &[vec![0; ROUTE_BYTES], attributes.concat()].concat())
        };
        let interface = attribute(INTERFACE, &7u32.to_ne_bytes());
        let gateway = attribute(GATEWAY, &[192, 0, 2, 1]);
        let over = |gateway: Option<IpAddr>| {
            Some(Hop {
                interface: 7,
                gateway,
            })
        };
        assert_eq!(read_hop(&route(std::slice::from_ref(&interface))), over(None));
        let v4 = Some([192, 0, 2, 1].into());
        assert_eq!(read_hop(&route(&[gateway, interface.clone()])), over(v4));
        // Eighteen bytes of value: the next attribute begins at a multiple of four.
        let mut via = attribute(VIA, &[&[10, 0][..], &[0xfe; 16]].concat());
        via.extend([0, 0]);
        let v6 = Some([0xfe; 16].into());
        assert_eq!(read_hop(&route(&[via, interface])), over(v6));
        assert_eq!(read_hop(&route(&[])), None);
        assert_eq!(read_hop(&message(2, &(-101i32).to_ne_bytes())), None);
    }

    #[test]
    fn the_kernel_says_over_what_it_reaches_this_box_itself() {
        let hop = hop_towards(Ipv4Addr::LOCALHOST.into()).unwrap().unwrap();
        assert_eq!(hop.gateway, None);
        assert!(hop.interface > 0);
    }

    #[tokio::test]
    async fn the_kernels_news_can_be_heard() {
        let mut news = RouteNews::open().unwrap();
        let none = tokio::time::timeout(std::time::Duration::ZERO, news.next()).await;
        assert!(!matches!(none, Ok(Err(_))), "{none:?}");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read_notices(&bytes);
            read_hop(&bytes);
            read_hop(&message(NEW_ROUTE, &bytes));
        }
    }
}
