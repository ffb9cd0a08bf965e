//! Floor 4: keys, certificates and the TLS configurations made of them. Knows no peer registry, no
//! tunnel and no file layout.

pub mod anchors;
pub mod certificate;
mod der;
pub mod issued;
pub mod key;
pub mod operator_files;
pub mod own_authority;
pub mod parent_caller;
pub mod reversed;
mod signatures;
pub mod succession;
pub mod tls;
pub mod tls_failure;

#[cfg(test)]
pub(crate) mod test_handshake;
