//! Bounds that more than one floor needs. Each says its unit and why that number. Bounds that
//! one module alone needs live in that module.

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
