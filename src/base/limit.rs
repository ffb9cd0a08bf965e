//! Bounds that more than one floor needs. Each says its unit and why that number. Bounds that
//! one module alone needs live in that module.

use std::error::Error;
use std::time::Duration;

/// Largest JSON body of a contract request or answer that is read, in bytes. An accept with a
/// CSR, capabilities and endpoints is below 8 KiB; a CA bundle of a dozen anchors below 32 KiB.
pub const JSON_BODY_MAX_BYTES: usize = 256 * 1024;

/// Largest HTTP/1.1 head (request line or status line, and headers) that is read, in bytes.
/// hyper refuses to go below 8 KiB; forwarded certificates in headers need about 4 KiB.
pub const HTTP_HEAD_MAX_BYTES: usize = 16 * 1024;

/// Time in which one contract request must be answered, end to end. Longer than the slowest
/// parent seen under load, shorter than the heartbeat interval.
pub const CONTRACT_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest piece of another side's text that an error or a log line repeats, in characters.
pub const FOREIGN_TEXT_MAX_CHARS: usize = 300;

/// Most sources of an error that are shown.
const ERROR_CHAIN_MAX: usize = 16;

/// Longest error text in a log line or report, in characters.
const ERROR_TEXT_MAX_CHARS: usize = 1_000;

/// `text`, shortened to [`FOREIGN_TEXT_MAX_CHARS`] and without control characters, so that a
/// peer can neither flood a log nor forge its lines.
pub fn foreign_text(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(FOREIGN_TEXT_MAX_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(FOREIGN_TEXT_MAX_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// An error with all of its sources on one line, shortened: for logs and reports.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    // No chain of ours is this deep; a cycle in a foreign one must not hang the log.
    for _ in 0..ERROR_CHAIN_MAX {
        let Some(inner) = source else { break };
        let words = inner.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = inner.source();
    }
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(ERROR_TEXT_MAX_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_short_and_on_one_line() {
        assert_eq!(foreign_text("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(
            foreign_text(&"x".repeat(5_000)).chars().count(),
            FOREIGN_TEXT_MAX_CHARS + 1
        );
    }
}
