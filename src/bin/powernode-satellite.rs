//! Entry point of `powernode-satellite`.

fn main() {}
