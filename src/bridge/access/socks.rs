//! SOCKS version 5 (RFC 1928) with user name and password (RFC 1929), as far as a proxy to named
//! services needs it. Pure: bytes in, messages out; a message that has not arrived whole is
//! [`Parsed::More`].

use super::error::socks;
use crate::base::secret::Secret;

/// First byte of every message but those of the password.
pub(super) const VERSION: u8 = 5;

/// Version of the password's messages.
const PASSWORD_VERSION: u8 = 1;

/// The method of RFC 1929.
const METHOD_PASSWORD: u8 = 2;

/// No method suits.
const METHOD_NONE: u8 = 0xff;

const COMMAND_CONNECT: u8 = 1;

const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;

/// Longest message, in bytes: the password's, with both texts of 255.
pub(super) const MESSAGE_MAX_BYTES: usize = 513;

/// How far a message has arrived.
#[derive(Debug)]
pub(super) enum Parsed<T> {
    /// It is there; so many bytes were its own.
    Done(T, usize),
    /// Bytes are missing.
    More,
    /// It is none.
    Broken,
}

/// What a client wants, or how it is answered that it cannot have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    /// A connection to this name.
    Connect(String),
    /// Another command, or an address: the reply.
    Refused(u8),
}

/// The greeting: whether the client can give a password.
pub(super) fn greeting(bytes: &[u8]) -> Parsed<bool> {
    let mut reader = Reader::new(bytes);
    let Some(version) = reader.byte() else {
        return Parsed::More;
    };
    if version != VERSION {
        return Parsed::Broken;
    }
    match reader.counted() {
        Some(methods) => reader.done(methods.contains(&METHOD_PASSWORD)),
        None => Parsed::More,
    }
}

/// The answer to a greeting.
pub(super) const fn method(password: bool) -> [u8; 2] {
    [VERSION, if password { METHOD_PASSWORD } else { METHOD_NONE }]
}

/// User name and password.
pub(super) fn password(bytes: &[u8]) -> Parsed<(String, Secret)> {
    let mut reader = Reader::new(bytes);
    let Some(version) = reader.byte() else {
        return Parsed::More;
    };
    if version != PASSWORD_VERSION {
        return Parsed::Broken;
    }
    let (Some(name), Some(password)) = (reader.counted(), reader.counted()) else {
        return Parsed::More;
    };
    match std::str::from_utf8(name) {
        Ok(name) => reader.done((name.to_owned(), Secret::new(password.to_vec()))),
        Err(_) => Parsed::Broken,
    }
}

/// The answer to a password.
pub(super) const fn password_answer(good: bool) -> [u8; 2] {
    [PASSWORD_VERSION, if good { 0 } else { 1 }]
}

/// The request. The port is read and not looked at: a service has none.
pub(super) fn request(bytes: &[u8]) -> Parsed<Wish> {
    let mut reader = Reader::new(bytes);
    let Some(&[version, command, _reserved, kind]) = reader.array::<4>() else {
        return match bytes.first() {
            Some(&version) if version != VERSION => Parsed::Broken,
            _ => Parsed::More,
        };
    };
    if version != VERSION {
        return Parsed::Broken;
    }
    let name = match kind {
        ADDRESS_NAME => match reader.counted() {
            Some(name) => Some(name),
            None => return Parsed::More,
        },
        ADDRESS_V4 if reader.array::<4>().is_none() => return Parsed::More,
        ADDRESS_V6 if reader.array::<16>().is_none() => return Parsed::More,
        ADDRESS_V4 | ADDRESS_V6 => None,
        _ => return Parsed::Broken,
    };
    if reader.array::<2>().is_none() {
        return Parsed::More;
    }
    reader.done(match (command, name.map(std::str::from_utf8)) {
        (COMMAND_CONNECT, Some(Ok(name))) => Wish::Connect(name.to_owned()),
        (COMMAND_CONNECT, Some(Err(_))) => Wish::Refused(socks::HOST_UNREACHABLE),
        (COMMAND_CONNECT, None) => Wish::Refused(socks::ADDRESS_NOT_SUPPORTED),
        _ => Wish::Refused(socks::COMMAND_NOT_SUPPORTED),
    })
}

/// The answer to a request; the address in it says nothing.
pub(super) const fn reply(code: u8) -> [u8; 10] {
    [VERSION, code, 0, ADDRESS_V4, 0, 0, 0, 0, 0, 0]
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| *byte)
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let array = self.rest().first_chunk()?;
        self.at += N;
        Some(array)
    }

    /// A count and so many bytes.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let (&count, rest) = self.rest().split_first()?;
        let counted = rest.get(..usize::from(count))?;
        self.at += 1 + counted.len();
        Some(counted)
    }

    fn done<T>(self, message: T) -> Parsed<T> {
        Parsed::Done(message, self.at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wish(bytes: &[u8]) -> Option<(Wish, usize)> {
        match request(bytes) {
            Parsed::Done(wish, length) => Some((wish, length)),
            Parsed::More | Parsed::Broken => None,
        }
    }

    #[test]
    fn curls_messages_are_read() {
        assert!(matches!(greeting(&[5, 3, 0, 1, 2]), Parsed::Done(true, 5)));
        assert!(matches!(greeting(&[5, 1, 0]), Parsed::Done(false, 3)));
        assert!(matches!(greeting(b"GET / HTTP/1.1"), Parsed::Broken));
        let Parsed::Done((name, token), 11) = password(b"\x01\x04anna\x04pass!") else {
            panic!("the password was not read");
        };
        assert_eq!((name.as_str(), token.expose()), ("anna", &b"pass"[..]));
        let name = b"\x05\x01\x00\x03\x15web.shop-17.satellite\x00\x50early";
        assert_eq!(
            wish(name),
            Some((Wish::Connect("web.shop-17.satellite".into()), 28))
        );
    }

    #[test]
    fn nothing_but_a_name_is_connected_to() {
        let v4 = [5, 1, 0, 1, 127, 0, 0, 1, 0, 22];
        assert_eq!(wish(&v4), Some((Wish::Refused(socks::ADDRESS_NOT_SUPPORTED), 10)));
        let mut v6 = vec![5, 1, 0, 4];
        v6.extend([0; 18]);
        assert_eq!(wish(&v6), Some((Wish::Refused(socks::ADDRESS_NOT_SUPPORTED), 22)));
        let udp = [5, 3, 0, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            wish(&udp),
            Some((Wish::Refused(socks::COMMAND_NOT_SUPPORTED), 10))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = greeting(&bytes);
            let _ = password(&bytes);
            let _ = request(&bytes);
        }

        #[test]
        fn a_piece_of_a_message_is_waited_for_and_a_whole_one_is_not(
            name in "[a-z.]{1,255}", cut in 0_usize..262, port in any::<[u8; 2]>(),
        ) {
            let mut bytes = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap_or(u8::MAX)];
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&port);
            prop_assert!(bytes.len() <= MESSAGE_MAX_BYTES);
            let whole = bytes.len();
            if cut < whole {
                prop_assert!(matches!(request(&bytes[..cut]), Parsed::More));
            }
            prop_assert_eq!(wish(&bytes), Some((Wish::Connect(name), whole)));
        }
    }
}
