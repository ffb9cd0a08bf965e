//! The only source of randomness: the operating system's. Everything else takes bytes or a seed as
//! an argument.
//!
//! The operating system's source fails only where the system call itself is missing or filtered
//! away, and then for good. A daemon therefore asks [`check`] once before it does anything; should
//! the source fail after that, [`fill`] ends the process, because every way to go on is a weak key.

use rand::TryRng;
use rand::rngs::SysRng;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::base::id::IdEntropy;

/// The operating system gives no randomness.
#[derive(Debug, Error)]
#[error(
    "the operating system gives no random bytes, so no key can be made; allow the getrandom system call (a container's seccomp profile may forbid it) and provide /dev/urandom"
)]
pub struct EntropyUnavailable {
    #[source]
    source: rand::rngs::SysError,
}

/// Whether randomness can be had. Waits, early at boot, until the kernel's source is seeded.
pub fn check() -> Result<(), EntropyUnavailable> {
    try_fill(&mut [0; 32]).map_err(|source| EntropyUnavailable { source })
}

/// Fills the buffer. Ends the process when the operating system's source fails (see the module).
pub fn fill(buffer: &mut [u8]) {
    if let Err(error) = try_fill(buffer) {
        tracing::error!(%error, "the operating system gives no random bytes any more; stopping at once");
        std::process::abort();
    }
}

/// So many random bytes, for what is not secret: serial numbers, trace ids.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// So many random bytes, wiped when dropped: tokens, keys.
pub fn secret_bytes<const N: usize>() -> Zeroizing<[u8; N]> {
    let mut bytes = Zeroizing::new([0; N]);
    fill(bytes.as_mut_slice());
    bytes
}

/// What a new id takes.
pub fn id_entropy() -> IdEntropy {
    bytes()
}

/// A seed for the jitter of backoffs and schedules, or a trace id. Not for secrets.
pub fn seed() -> u64 {
    u64::from_ne_bytes(bytes())
}

fn try_fill(buffer: &mut [u8]) -> Result<(), rand::rngs::SysError> {
    SysRng.try_fill_bytes(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ() {
        check().unwrap();
        assert_ne!(bytes::<16>(), bytes::<16>());
        assert_ne!(*secret_bytes::<32>(), [0; 32]);
        assert_ne!(seed(), seed());
    }
}
