//! Manual pages and completions, out of this tree's build: a package for another processor has the same.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::succeed;

/// Puts them below `place`; gives the directory.
pub fn generate(place: &Path) -> PathBuf {
    let documents = place.join("docs");
    let mut generate = Command::new(env!("CARGO"));
    generate
        .args(["run", "--locked", "--quiet", "--example", "generate-docs", "--"])
        .arg(&documents)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    succeed(&generate.output().unwrap());
    documents
}
