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

#[path = "../src/bin/powernode-host-bridge/arguments/mod.rs"]
#[allow(dead_code, reason = "the program's own uses of it are not here")]
pub(crate) mod host_bridge;

#[path = "../src/bin/powernode-satellite/arguments/mod.rs"]
#[allow(dead_code, reason = "the program's own uses of it are not here")]
pub(crate) mod satellite;

#[path = "translation/table.rs"]
pub(crate) mod table;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: generate-docs DIRECTORY");
        return ExitCode::from(2);
    };
    match generate(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate-docs: cannot write to {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

/// Writes all of it below a directory.
pub fn generate(directory: &Path) -> io::Result<()> {
    [
        table::command_of(&satellite::PROGRAM),
        host_bridge::Arguments::command(),
    ]
    .into_iter()
    .try_for_each(|command| write(directory, &command))
}

/// Lets a script of the host-bridge ask the program itself (`complete`) for the names of peers and
/// services.
fn with_names(shell: Shell, script: String) -> String {
    match shell {
        Shell::Bash => script + BASH_NAMES,
        Shell::Fish => script + FISH_NAMES,
        Shell::Zsh => {
            let asks = |line: &str| {
                let named = [":peer -- ", ":service -- ", ":id -- "];
                named.iter().any(|argument| line.contains(argument))
            };
            let lines = script.lines().map(|line| match line {
                line if asks(line) => line.replace(":_default", ":_powernode-host-bridge_names") + "\n",
                line => line.to_owned() + "\n",
            });
            lines
                .collect::<String>()
                .replacen("autoload -U is-at-least\n", ZSH_NAMES, 1)
        }
        _ => script,
    }
}

const BASH_NAMES: &str = r#"
_powernode__host__bridge_names() {
    local names
    names=$("$1" complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [[ -n "${names}" ]]; then
        mapfile -t COMPREPLY <<<"${names}"
        return 0
    fi
    _powernode__host__bridge "$@"
}

complete -F _powernode__host__bridge_names -o bashdefault -o default powernode-host-bridge
"#;

const FISH_NAMES: &str = r"
complete -c powernode-host-bridge -f -a '(powernode-host-bridge complete -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
";

const ZSH_NAMES: &str = r#"autoload -U is-at-least

_powernode-host-bridge_names() {
    local -a line names
    local -i at
    line=("${(@Q)${(z)LBUFFER}}")
    [[ $LBUFFER == *[[:space:]] ]] && line+=("")
    at=${line[(I)(*/|)powernode-host-bridge]}
    (( at )) || return 1
    names=(${(f)"$("${line[at]}" complete -- "${(@)line[at+1,-1]}" 2>/dev/null)"})
    compadd -a names
}
"#;

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
        let mut script = String::from_utf8_lossy(&script).into_owned();
        if shell == Shell::Bash {
            // The generator takes the hyphens of a program's name for subcommands in one half of the
            // script and not in the other, and nothing below the first word would be completed.
            let words = name.replace('-', "__subcmd__");
            script = script.replace(&words, &name.replace('-', "__"));
        }
        if command.find_subcommand("complete").is_some() {
            script = with_names(shell, script);
        }
        fs::write(beside.join(file), script)?;
    }
    Ok(())
}
