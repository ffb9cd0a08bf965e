//! Entry point of `powernode-host-bridge`.

fn main() {}
