//! The little of DER (X.690) that certificates and requests need: reading one element after another out of
//! bytes that anybody may have written, and writing nested ones. Knows nothing of keys, trust or PEM.
//!
//! It is small so that a satellite need not carry a parser for all of X.509: whether a certificate holds
//! is decided by rustls; here only its facts are read. A difference between the two readers could only lead
//! to a refusal, and `tests` compare this one with another parser.

/// Universal and context tags as they are in the first byte.
pub(super) mod tag {
    pub(crate) const BOOLEAN: u8 = 0x01;
    pub(crate) const INTEGER: u8 = 0x02;
    pub(crate) const BIT_STRING: u8 = 0x03;
    pub(crate) const OCTET_STRING: u8 = 0x04;
    pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
    pub(crate) const UTF8_STRING: u8 = 0x0c;
    pub(crate) const PRINTABLE_STRING: u8 = 0x13;
    pub(crate) const IA5_STRING: u8 = 0x16;
    pub(crate) const UTC_TIME: u8 = 0x17;
    pub(crate) const GENERALIZED_TIME: u8 = 0x18;
    pub(crate) const SEQUENCE: u8 = 0x30;
    pub(crate) const SET: u8 = 0x31;
    /// `[n]` around other elements.
    pub(crate) const fn context(number: u8) -> u8 {
        0xa0 | number
    }
    /// `[n]` in place of a primitive element's own tag.
    pub(crate) const fn implicit(number: u8) -> u8 {
        0x80 | number
    }
}

/// Bytes that are not the DER which is due there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotDer;

/// One element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// With its tag and length.
    pub(super) whole: &'a [u8],
}

/// Reads elements in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The one element that the bytes are.
    pub(super) fn only(bytes: &'a [u8], tag: u8) -> Result<Element<'a>, NotDer> {
        let mut reader = Self::new(bytes);
        let element = reader.expect(tag)?;
        reader.end()?;
        Ok(element)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Nothing may follow.
    pub(super) const fn end(self) -> Result<(), NotDer> {
        if self.rest.is_empty() { Ok(()) } else { Err(NotDer) }
    }

    /// The next element, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Result<Element<'a>, NotDer> {
        self.optional(tag)?.ok_or(NotDer)
    }

    /// Into the next element, which must have this tag.
    pub(super) fn enter(&mut self, tag: u8) -> Result<Self, NotDer> {
        Ok(Self::new(self.expect(tag)?.content))
    }

    /// The next element if it has this tag.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<Element<'a>>, NotDer> {
        if self.rest.first() != Some(&tag) {
            return Ok(None);
        }
        self.next().map(Some)
    }

    /// The next element, whatever it is. Lengths must be as short as they can be.
    pub(super) fn next(&mut self) -> Result<Element<'a>, NotDer> {
        let (&tag, after_tag) = self.rest.split_first().ok_or(NotDer)?;
        // Tags above 30 take more bytes; nothing here has one.
        if tag & 0x1f == 0x1f {
            return Err(NotDer);
        }
        let (&first, after_length) = after_tag.split_first().ok_or(NotDer)?;
        let (length, body) = match first {
            0..=0x7f => (usize::from(first), after_length),
            0x81 => {
                let ([length], body) = after_length.split_first_chunk().ok_or(NotDer)?;
                (usize::from(*length), body)
            }
            0x82 => {
                let (length, body) = after_length.split_first_chunk().ok_or(NotDer)?;
                (usize::from(u16::from_be_bytes(*length)), body)
            }
            // No certificate is read that has 64 KiB.
            _ => return Err(NotDer),
        };
        let shortest = match first {
            0x81 => length >= 0x80,
            0x82 => length >= 0x100,
            _ => true,
        };
        let (content, rest) = body.split_at_checked(length).ok_or(NotDer)?;
        let whole = self.rest.get(..self.rest.len() - rest.len()).ok_or(NotDer)?;
        if !shortest {
            return Err(NotDer);
        }
        self.rest = rest;
        Ok(Element { tag, content, whole })
    }
}

impl<'a> Element<'a> {
    /// The text of one of the kinds of string that names are written in.
    pub(super) fn text(&self) -> Result<&'a str, NotDer> {
        let text = std::str::from_utf8(self.content).map_err(|_| NotDer)?;
        match self.tag {
            tag::UTF8_STRING => Ok(text),
            tag::PRINTABLE_STRING | tag::IA5_STRING if text.is_ascii() => Ok(text),
            _ => Err(NotDer),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool, NotDer> {
        match (self.tag, self.content) {
            (tag::BOOLEAN, [0x00]) => Ok(false),
            (tag::BOOLEAN, [0xff]) => Ok(true),
            _ => Err(NotDer),
        }
    }

    /// Seconds since 1970 of a `UTCTime` or `GeneralizedTime` as certificates have them: to the second, in UTC.
    pub(super) fn time(&self) -> Result<i64, NotDer> {
        let (digits, zone) = self
            .content
            .split_at_checked(self.content.len().saturating_sub(1))
            .ok_or(NotDer)?;
        let wanted = match self.tag {
            tag::UTC_TIME => 12,
            tag::GENERALIZED_TIME => 14,
            _ => return Err(NotDer),
        };
        if zone != b"Z" || digits.len() != wanted || !digits.iter().all(u8::is_ascii_digit) {
            return Err(NotDer);
        }
        let pair = |from_end: usize| {
            let start = digits.len().checked_sub(from_end)?;
            let [tens, ones] = digits.get(start..start + 2)? else {
                return None;
            };
            Some((tens - b'0') * 10 + (ones - b'0'))
        };
        let two = |from_end| pair(from_end).ok_or(NotDer);
        let of_century = i32::from(two(12)?);
        let year = match self.tag {
            // RFC 5280, section 4.1.2.5.1.
            tag::UTC_TIME if of_century >= 50 => 1900 + of_century,
            tag::UTC_TIME => 2000 + of_century,
            _ => i32::from(two(14)?) * 100 + of_century,
        };
        let month = time::Month::try_from(two(10)?).map_err(|_| NotDer)?;
        let date = time::Date::from_calendar_date(year, month, two(8)?).map_err(|_| NotDer)?;
        let at = time::Time::from_hms(two(6)?, two(4)?, two(2)?).map_err(|_| NotDer)?;
        Ok(time::UtcDateTime::new(date, at).unix_timestamp())
    }
}

/// An element with the parts, one after another, as its content.
pub(super) fn write(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut element = vec![tag];
    let bytes = length.to_be_bytes();
    let significant = bytes.iter().copied().skip_while(|byte| *byte == 0);
    if length >= 0x80 {
        // At most eight bytes.
        element.push(0x80 | u8::try_from(significant.clone().count()).unwrap_or_default());
        element.extend(significant);
    } else {
        element.push(u8::try_from(length).unwrap_or_default());
    }
    for part in parts {
        element.extend_from_slice(part);
    }
    element
}

/// A time as certificates have it (RFC 5280, section 4.1.2.5): `UTCTime` through 2049, then `GeneralizedTime`.
pub(super) fn write_time(seconds: i64) -> Result<Vec<u8>, NotDer> {
    let at = time::UtcDateTime::from_unix_timestamp(seconds).map_err(|_| NotDer)?;
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let rest = format!(
        "{month:02}{day:02}{:02}{:02}{:02}Z",
        at.hour(),
        at.minute(),
        at.second()
    );
    let (tag, year) = match year {
        1950..=2049 => (tag::UTC_TIME, format!("{:02}", year % 100)),
        0..=9999 => (tag::GENERALIZED_TIME, format!("{year:04}")),
        _ => return Err(NotDer),
    };
    Ok(write(tag, &[year.as_bytes(), rest.as_bytes()]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_as_short_as_they_can_be() {
        for bytes in [
            [0x04, 0x81, 0x01, 0x00].as_slice(),
            &[0x04, 0x82, 0x00, 0x01, 0x00],
            &[0x04, 0x80, 0x00, 0x00],
            &[0x04, 0x83, 0x01, 0x00, 0x00],
            &[0x04, 0x02, 0x00],
            &[0x1f, 0x01, 0x00],
            &[0x04],
            &[],
        ] {
            assert!(Reader::new(bytes).next().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn times_are_read_as_certificates_write_them() {
        let read = |tag, content: &str| {
            Element {
                tag,
                content: content.as_bytes(),
                whole: &[],
            }
            .time()
        };
        assert_eq!(read(tag::UTC_TIME, "700101000000Z"), Ok(0));
        assert_eq!(read(tag::UTC_TIME, "491231235959Z"), Ok(2_524_607_999));
        assert_eq!(read(tag::UTC_TIME, "500101000000Z"), Ok(-631_152_000));
        assert_eq!(read(tag::GENERALIZED_TIME, "20260517134412Z"), Ok(1_779_025_452));
        assert_eq!(
            read(tag::GENERALIZED_TIME, "99991231235959Z"),
            Ok(253_402_300_799)
        );
        for bad in [
            "",
            "Z",
            "260517134412",
            "2605171344Z",
            "260517134412+0100",
            "261317134412Z",
            "260230000000Z",
            "260517246060Z",
            "26051713441 Z",
            "20260517134412Z",
        ] {
            assert_eq!(read(tag::UTC_TIME, bad), Err(NotDer), "{bad}");
        }
        assert_eq!(read(tag::OCTET_STRING, "260517134412Z"), Err(NotDer));
    }

    #[test]
    fn texts_of_names() {
        let read = |tag, content: &[u8]| {
            let element = Element {
                tag,
                content,
                whole: &[],
            };
            element.text().ok().map(str::to_owned)
        };
        assert_eq!(read(tag::UTF8_STRING, "Köln".as_bytes()).as_deref(), Some("Köln"));
        assert_eq!(
            read(tag::PRINTABLE_STRING, b"shop-17").as_deref(),
            Some("shop-17")
        );
        assert_eq!(read(tag::PRINTABLE_STRING, "Köln".as_bytes()), None);
        assert_eq!(read(tag::UTF8_STRING, &[0xff]), None);
        assert_eq!(read(tag::INTEGER, b"1"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(content in proptest::collection::vec(any::<u8>(), 0..70_000)) {
            let written = write(tag::OCTET_STRING, &[&content]);
            let read = Reader::only(&written, tag::OCTET_STRING);
            if u16::try_from(content.len()).is_ok() {
                let read = read.unwrap();
                prop_assert_eq!(read.content, &content);
                prop_assert_eq!(read.whole, &written);
            } else {
                prop_assert!(read.is_err());
            }
        }

        #[test]
        fn nothing_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&bytes);
            while let Ok(element) = reader.next() {
                let _ = (element.text(), element.boolean(), element.time());
            }
        }
    }
}
