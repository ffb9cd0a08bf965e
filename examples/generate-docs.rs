//! Writes what a package holds besides the programs: their manual pages and shell completions, both
//! made from the very definitions by which the programs read their command lines.
//!
//! ```sh
//! cargo run --example generate-docs -- DIRECTORY
//! ```
//!
//! gives `DIRECTORY/man/*.1` and `DIRECTORY/completions/{bash,zsh,fish}/`, named as Debian's
//! directories for them want it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

#[path = "../src/bin/powernode-host-bridge/arguments.rs"]
#[allow(dead_code, reason = "the program's own uses of it are not here")]
mod host_bridge;

#[path = "../src/bin/powernode-satellite/arguments.rs"]
#[allow(dead_code, reason = "the program's own uses of it are not here")]
mod satellite;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: generate-docs DIRECTORY");
        return ExitCode::from(2);
    };
    let written = [satellite::Arguments::command(), host_bridge::Arguments::command()]
        .into_iter()
        .try_for_each(|command| write(&directory, &command));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate-docs: cannot write to {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path, command: &Command) -> io::Result<()> {
    let man = directory.join("man");
    fs::create_dir_all(&man)?;
    clap_mangen::generate_to(command.clone(), &man)?;
    let name = command.get_name().to_owned();
    for (shell, file) in [
        (Shell::Bash, name.clone()),
        (Shell::Zsh, format!("_{name}")),
        (Shell::Fish, format!("{name}.fish")),
    ] {
        let beside = directory.join("completions").join(shell.to_string());
        fs::create_dir_all(&beside)?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), &name, &mut script);
        fs::write(beside.join(file), script)?;
    }
    Ok(())
}
