//! Whether every server reads a path alike. Who passes requests on to a server that resolves paths in
//! its own way passes on no path that could be read differently there. Pure.

/// Whether every server reads it alike: no dots to resolve, no empty parts, nothing encoded that could be
/// a separator or be decoded once more.
pub(super) fn is_plain(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    path.strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(is_plain_part))
}

fn is_plain_part(part: &str) -> bool {
    let mut decoded = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = [bytes.next(), bytes.next()].map(|digit| digit.and_then(hex_value));
        let [Some(high), Some(low)] = digits else {
            return false;
        };
        let byte = high << 4 | low;
        if matches!(byte, b'%' | b'/' | b'\\' | b';') {
            return false;
        }
        decoded.push(byte);
    }
    let climbs = matches!(decoded.as_slice(), b"" | b"." | b"..");
    !climbs
        && !decoded
            .iter()
            .any(|byte| byte.is_ascii_control() || matches!(byte, b'\\' | b';'))
}

const fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_ways_up_are_not() {
        for plain in [
            "/a",
            "/a/b/",
            "/a%20b",
            "/a.b/..c",
            "/%C3%A4",
            "/resources/kind/x:y",
        ] {
            assert!(is_plain(plain), "{plain}");
        }
        for odd in [
            "",
            "a",
            "/",
            "//",
            "/a//b",
            "/./a",
            "/a/..",
            "/%2e",
            "/%2E%2e/a",
            "/a%2f",
            "/a%5C",
            "/%25",
            "/a;b",
            "/a%0a",
            "/%",
            "/%4",
        ] {
            assert!(!is_plain(odd), "{odd}");
        }
    }
}
