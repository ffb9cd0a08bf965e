use super::*;
use crate::process::config::loader::{ConfigFile, Flags};
use crate::process::environment::Environment;
use crate::tunnel::quic::STREAM_WINDOW_BYTES;

#[test]
fn tunnels_take_in_what_the_configuration_says() {
    let window = |flags: Flags| {
        let loaded = SatelliteConfig::load(&ConfigFile::Default, &flags, &Environment::default());
        settings(&loaded.unwrap().0).tunnel.stream_window
    };
    assert_eq!(window(Flags::new()), STREAM_WINDOW_BYTES);
    let asked = Flags::from([("limits.stream_window_kib", "8192".to_owned())]);
    assert_eq!(window(asked), 8 * 1_024 * 1_024);
}
