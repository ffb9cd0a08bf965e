//! The head of a proxy's answer to CONNECT, read from bytes as they come. Pure.

use thiserror::Error;

use crate::base::limit::{HTTP_HEAD_MAX_BYTES, foreign_text};

/// What a proxy answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status code.
    pub status: u16,
    /// Its words, shortened.
    pub reason: String,
    /// The authentication schemes that it names, shortened.
    pub schemes: Vec<String>,
}

/// An answer that is none of HTTP's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoAnswer {
    /// Another protocol.
    #[error("what answers does not speak HTTP")]
    NotHttp,
    /// Longer than any head.
    #[error("its answer has a head of more than {HTTP_HEAD_MAX_BYTES} bytes")]
    TooLong,
    /// Something came before this side has said anything.
    #[error("it sent bytes of its own after its answer")]
    TooMuch,
}

/// Most schemes that are kept.
const SCHEMES_MAX: usize = 4;

/// Reads what has come so far: `Ok(None)` while the head is not whole. Bytes behind a head with
/// status 200 would be the other end's, which does not speak first.
pub fn read(bytes: &[u8]) -> Result<Option<Answer>, NoAnswer> {
    const BEGIN: &[u8] = b"HTTP/1.";
    let begun = bytes.len().min(BEGIN.len());
    if bytes[..begun] != BEGIN[..begun] {
        return Err(NoAnswer::NotHttp);
    }
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > HTTP_HEAD_MAX_BYTES {
            Err(NoAnswer::TooLong)
        } else {
            Ok(None)
        };
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let mut status_line = lines.next().unwrap_or_default().splitn(3, ' ');
    let status = status_line
        .nth(1)
        .filter(|status| status.len() == 3)
        .and_then(|status| status.parse().ok())
        .ok_or(NoAnswer::NotHttp)?;
    let answer = Answer {
        status,
        reason: foreign_text(status_line.next().unwrap_or_default().trim()),
        schemes: lines.filter_map(scheme).take(SCHEMES_MAX).collect(),
    };
    if answer.connected() && bytes.len() > end + 4 {
        return Err(NoAnswer::TooMuch);
    }
    Ok(Some(answer))
}

impl Answer {
    /// Whether the way is open.
    pub const fn connected(&self) -> bool {
        self.status >= 200 && self.status < 300
    }
}

/// The scheme of a `Proxy-Authenticate` line.
fn scheme(line: &str) -> Option<String> {
    let (name, value) = line.split_once(':')?;
    if !name.trim().eq_ignore_ascii_case("proxy-authenticate") {
        return None;
    }
    value.split_whitespace().next().map(foreign_text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let text = b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Negotiate\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 3\r\n\r\nno!";
        let head = text.len() - 3;
        for cut in 0..head {
            assert_eq!(read(&text[..cut]), Ok(None), "{cut}");
        }
        let answer = read(text).unwrap().unwrap();
        assert_eq!(answer.status, 407);
        assert_eq!(answer.reason, "Proxy Authentication Required");
        assert_eq!(answer.schemes, ["Negotiate", "Basic"]);
        assert!(!answer.connected());
        assert!(
            read(b"HTTP/1.0 200 Connection established\r\n\r\n")
                .unwrap()
                .unwrap()
                .connected()
        );
        assert!(read(b"HTTP/1.1 200\r\n\r\n").unwrap().unwrap().connected());
    }

    #[test]
    fn what_is_no_answer_is_told_at_once() {
        assert_eq!(read(b"SSH-2.0-OpenSSH"), Err(NoAnswer::NotHttp));
        assert_eq!(read(b"HTTP/1.1 OK\r\n\r\n"), Err(NoAnswer::NotHttp));
        assert_eq!(read(b"HTTP/1.1 200 OK\r\n\r\n\x16"), Err(NoAnswer::TooMuch));
        let long = [b"HTTP/1.1 200 OK\r\n".to_vec(), vec![b'x'; HTTP_HEAD_MAX_BYTES]].concat();
        assert_eq!(read(&long), Err(NoAnswer::TooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_no_cut_changes_the_answer(bytes in proptest::collection::vec(any::<u8>(), 0..100), status in 100_u16..600, reason in "[ -~]{0,20}") {
            let _ = read(&bytes);
            let _ = read(&[b"HTTP/1.1 ", &bytes[..]].concat());
            let head = format!("HTTP/1.1 {status} {reason}\r\nX: y\r\n\r\n");
            for cut in 0..head.len() {
                prop_assert_eq!(read(&head.as_bytes()[..cut]), Ok(None));
            }
            let answer = read(head.as_bytes()).unwrap().unwrap();
            prop_assert_eq!(answer.status, status);
            prop_assert_eq!(answer.reason, reason.trim());
        }
    }
}
