//! What a bridge that dials a satellite for a tunnel says in its [`Hello`](super::Hello). The connection is
//! the bridge's, the tunnel is not: the satellite answers with a hello of its own, and the bridge with the
//! welcome, as if the satellite had dialled. A satellite of an earlier build refuses such a hello.

/// In a satellite's hello: it can be dialled; in the welcome to it: this bridge does so when asked.
pub const DIRECT_FEATURE: &str = "direct";

/// Longest name of a bridge, in bytes: a host name and a port.
pub const BRIDGE_NAME_MAX_BYTES: usize = 253 + 6;

const ASKED: &str = "direct:";
const AGAIN: &str = "direct-again:";

/// Why the bridge dials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectCall {
    /// The satellite has asked for it, with this nonce.
    Asked(String),
    /// By itself, because a direct tunnel was lost and no other is there. The satellite knows the bridge by
    /// this name.
    Again(String),
}

impl DirectCall {
    /// A call that was asked for; `None` for what is no nonce.
    pub fn asked(nonce: &str) -> Option<Self> {
        super::is_nonce(nonce).then(|| Self::Asked(nonce.to_ascii_lowercase()))
    }

    /// A call by itself; `None` for what is no name.
    pub fn again(bridge: &str) -> Option<Self> {
        let plain = !bridge.is_empty()
            && bridge.len() <= BRIDGE_NAME_MAX_BYTES
            && bridge.bytes().all(|byte| byte.is_ascii_graphic());
        plain.then(|| Self::Again(bridge.to_owned()))
    }

    /// As a feature of a hello.
    pub fn feature(&self) -> String {
        match self {
            Self::Asked(nonce) => format!("{ASKED}{nonce}"),
            Self::Again(bridge) => format!("{AGAIN}{bridge}"),
        }
    }

    /// Reads a hello's features.
    pub fn read(features: &[String]) -> Option<Self> {
        features.iter().find_map(|feature| {
            let asked = feature.strip_prefix(ASKED).and_then(Self::asked);
            asked.or_else(|| feature.strip_prefix(AGAIN).and_then(Self::again))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_call_is_one_word() {
        let asked = DirectCall::asked(&NONCE.to_uppercase()).unwrap();
        assert_eq!(asked.feature(), format!("direct:{NONCE}"));
        let again = DirectCall::again("bridge.example.com:8443").unwrap();
        assert_eq!(again.feature(), "direct-again:bridge.example.com:8443");
        for call in [asked, again] {
            assert_eq!(DirectCall::read(&["x".into(), call.feature()]), Some(call));
        }
        for other in [
            "direct",
            "direct:",
            "direct:12",
            "direct-again:",
            "direct-again:a b",
        ] {
            assert_eq!(DirectCall::read(&[other.into()]), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_features_panic(features in proptest::collection::vec("(direct:|direct-again:)?.{0,40}", 0..10)) {
            let read = DirectCall::read(&features);
            prop_assert!(read.is_none_or(|call| features.iter().any(|f| f.eq_ignore_ascii_case(&call.feature()))));
        }
    }
}
