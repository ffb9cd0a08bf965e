//! Bytes as text in 16, 32 or 64 letters (RFC 4648). Takes only what it would write itself: no white space, no
//! line ends, no stray bits at the end.

use thiserror::Error;

/// Letters for so many bits each.
#[derive(Debug, Clone, Copy)]
pub struct Radix {
    letters: &'static [u8],
    bits: u32,
    padded: bool,
    any_case: bool,
}

/// A text that is none of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it has a character that does not belong there, or its end is missing")]
pub struct Undecodable;

/// Fills the last group of letters.
const PAD: u8 = b'=';

/// `0123456789abcdef`
pub const HEXLOWER: Radix = Radix::new(b"0123456789abcdef", 4);
/// The same, and capital letters are read, too.
pub const HEXLOWER_PERMISSIVE: Radix = Radix {
    any_case: true,
    ..HEXLOWER
};
/// `0123456789ABCDEF`
pub const HEXUPPER: Radix = Radix::new(b"0123456789ABCDEF", 4);
/// `A` to `Z`, `2` to `7`
pub const BASE32_NOPAD: Radix = Radix::new(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 5);
/// With `+` and `/`, in whole groups of four letters.
pub const BASE64: Radix = Radix {
    padded: true,
    ..Radix::new(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
        6,
    )
};
/// With `-` and `_`, in whole groups of four letters.
pub const BASE64URL: Radix = Radix {
    padded: true,
    ..BASE64URL_NOPAD
};
/// With `-` and `_`, and nothing behind the last letter.
pub const BASE64URL_NOPAD: Radix = Radix::new(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
    6,
);

impl Radix {
    const fn new(letters: &'static [u8], bits: u32) -> Self {
        Self {
            letters,
            bits,
            padded: false,
            any_case: false,
        }
    }

    /// The bytes as text.
    pub fn encode(&self, bytes: &[u8]) -> String {
        // Made in its whole length at once: what it holds may be secret, and leaves no shorter copies behind.
        let mut text = String::with_capacity(bytes.len() * 2 + 4);
        let (mut held, mut pending) = (0_u32, 0);
        for byte in bytes {
            held = held << 8 | u32::from(*byte);
            pending += 8;
            while pending >= self.bits {
                pending -= self.bits;
                text.push(self.letter(held >> pending));
            }
        }
        if pending > 0 {
            text.push(self.letter(held << (self.bits - pending)));
        }
        while self.padded && !text.len().is_multiple_of(4) {
            text.push(char::from(PAD));
        }
        text
    }

    /// The bytes of a text.
    pub fn decode(&self, text: &[u8]) -> Result<Vec<u8>, Undecodable> {
        let mut text = text;
        if self.padded {
            if !text.len().is_multiple_of(4) {
                return Err(Undecodable);
            }
            // A third one is no letter, so that it is refused below.
            for _ in 0..2 {
                text = text.strip_suffix(&[PAD]).unwrap_or(text);
            }
        }
        let mut bytes = Vec::with_capacity(text.len());
        let (mut held, mut pending) = (0_u32, 0);
        for letter in text {
            held = held << self.bits | self.value(*letter)?;
            pending += self.bits;
            if pending >= 8 {
                pending -= 8;
                bytes.push(low_byte(held >> pending));
            }
        }
        // Less than a letter, and no bits that nobody would have written.
        let stray = held & ((1 << pending) - 1);
        if pending >= self.bits || stray != 0 {
            return Err(Undecodable);
        }
        Ok(bytes)
    }

    fn letter(&self, value: u32) -> char {
        let index = usize::from(low_byte(value)) & (self.letters.len() - 1);
        char::from(self.letters[index])
    }

    fn value(&self, letter: u8) -> Result<u32, Undecodable> {
        let letter = if self.any_case {
            letter.to_ascii_lowercase()
        } else {
            letter
        };
        (0_u32..)
            .zip(self.letters)
            .find_map(|(value, known)| (*known == letter).then_some(value))
            .ok_or(Undecodable)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
const fn low_byte(value: u32) -> u8 {
    value as u8
}

/// A SHA-256 as people pass it on: 64 hex digits, with or without colons and `sha256:` in front.
pub fn sha256_of_text(text: &str) -> Option<[u8; 32]> {
    let text = text.trim();
    let digits = ["sha256:", "SHA256:"]
        .into_iter()
        .find_map(|name| text.strip_prefix(name));
    let hex: String = digits.unwrap_or(text).chars().filter(|c| *c != ':').collect();
    HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [(Radix, data_encoding::Encoding); 7] = [
        (HEXLOWER, data_encoding::HEXLOWER),
        (HEXLOWER_PERMISSIVE, data_encoding::HEXLOWER_PERMISSIVE),
        (HEXUPPER, data_encoding::HEXUPPER),
        (BASE32_NOPAD, data_encoding::BASE32_NOPAD),
        (BASE64, data_encoding::BASE64),
        (BASE64URL, data_encoding::BASE64URL),
        (BASE64URL_NOPAD, data_encoding::BASE64URL_NOPAD),
    ];

    proptest! {
        #[test]
        fn bytes_are_written_as_everybody_writes_them(bytes in prop::collection::vec(any::<u8>(), 0..70)) {
            for (own, known) in ALL {
                let text = own.encode(&bytes);
                prop_assert_eq!(&text, &known.encode(&bytes));
                prop_assert_eq!(own.decode(text.as_bytes()), Ok(bytes.clone()));
            }
        }

        #[test]
        fn texts_are_taken_or_refused_as_everybody_does(
            // Pads at the end alone: others go on behind them, and take `AQ==AQ==` for two texts in one.
            text in "[A-Fa-g0-9]{0,9}={0,1}|[A-Z2-7]{0,17}|[AQgw_+/-]{0,8}={0,3}",
        ) {
            for (own, known) in ALL {
                prop_assert_eq!(own.decode(text.as_bytes()).ok(), known.decode(text.as_bytes()).ok(), "{}", text);
            }
        }
    }

    #[test]
    fn padding_is_read_where_it_belongs() {
        assert_eq!(BASE64.decode(b"AQ=="), Ok(vec![1]));
        for wrong in ["AQ", "AQ=", "AQ===", "=AQ=", "AR==", "A===", "====", "AQ==AQ=="] {
            assert_eq!(BASE64.decode(wrong.as_bytes()), Err(Undecodable), "{wrong}");
        }
    }
}
