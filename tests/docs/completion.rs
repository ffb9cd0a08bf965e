//! The shells complete what the packages' scripts say: commands, and names that the running host-bridge tells.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::generate_docs;
use crate::support::{BridgeSite, SatelliteSite, succeed, wait_for};

/// Of one line that ends in half a word, the word.
const BASH: &str = r#"
. "$1"
read -ra COMP_WORDS <<<"$2"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
COMP_LINE=$2
COMP_POINT=${#2}
function=$(complete -p "${COMP_WORDS[0]}")
function=${function#*-F }
"${function%% *}" "${COMP_WORDS[0]}" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
echo "${COMPREPLY[*]}"
"#;

const FISH: &str = r"
source $argv[1]
complete -C $argv[2] | string replace -r '\t.*' ''
true
";

/// Lines, and what their last word becomes.
const LINES: [(&str, &str); 6] = [
    ("powernode-host-bridge conn", "connect"),
    ("powernode-host-bridge connect sh", "shop-17"),
    ("powernode-host-bridge connect shop-17 ec", "echo"),
    ("powernode-host-bridge peers show sh", "shop-17"),
    (
        "powernode-host-bridge forward --listen 127.0.0.1:0 shop-17 ec",
        "echo",
    ),
    ("powernode-satellite serv", "services"),
];

#[test]
fn the_shells_complete_commands_and_names() {
    let bridge = BridgeSite::init();
    let _daemon = bridge.run();
    let satellite = SatelliteSite::new();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    let _agent = satellite.run();
    succeed(&satellite.output(&["services", "publish", "echo", "127.0.0.1:9"]));
    wait_for("the service is told", || {
        let told = bridge.output(&["complete", "--", "connect", "shop-17", ""]);
        (told.stdout == b"echo\n").then_some(())
    });
    let scripts = bridge.dir.path().join("scripts");
    generate_docs::generate(&scripts).unwrap();
    let completions = scripts.join("completions");
    let mut tried = 0;
    for (shell, complete) in [
        ("bash", with_bash as Completing),
        ("fish", with_fish),
        ("zsh", with_zsh),
    ] {
        if Command::new(shell).arg("--version").output().is_err() {
            eprintln!(
                "SKIPPED: the_shells_complete_commands_and_names in {shell} because it is not installed"
            );
            continue;
        }
        for (line, word) in LINES {
            let command = in_surroundings(&bridge, shell);
            let got = complete(command, &completions.join(shell), line);
            assert_eq!(got.trim_end(), word, "{shell}: {line}");
            tried += 1;
        }
    }
    assert!(tried > 0, "no shell was there");
}

/// A shell, the scripts of its directory, a line; the last word of what it becomes.
type Completing = fn(Command, &Path, &str) -> String;

/// A shell for which the programs are installed, and the host-bridge is where it is.
fn in_surroundings(bridge: &BridgeSite, shell: &str) -> Command {
    let own = bridge.program.parent().unwrap().to_owned();
    let others = std::env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(own).chain(std::env::split_paths(&others));
    let mut command = Command::new(shell);
    command
        .env("PATH", std::env::join_paths(places).unwrap())
        .env("HOME", bridge.dir.path())
        .env("TERM", "dumb")
        .envs(
            bridge
                .command(&[])
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .stdin(Stdio::null());
    command
}

fn with_bash(mut bash: Command, scripts: &Path, line: &str) -> String {
    let script = scripts.join(program_of(line));
    bash.args(["--norc", "-c", BASH, "bash"]).arg(script).arg(line);
    succeed(&bash.output().unwrap())
}

fn with_fish(mut fish: Command, scripts: &Path, line: &str) -> String {
    let script = scripts.join(format!("{}.fish", program_of(line)));
    fish.args(["--no-config", "-c", FISH]).arg(script).arg(line);
    succeed(&fish.output().unwrap())
}

/// It completes on a terminal alone.
fn with_zsh(mut zsh: Command, scripts: &Path, line: &str) -> String {
    let result: PathBuf = scripts.join("line");
    let _ = std::fs::remove_file(&result);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/docs/completion.zsh");
    zsh.arg("-f").arg(script).arg(scripts).arg(&result).arg(line);
    let mut running = zsh.spawn().unwrap();
    let became = wait_for("zsh has completed the line", || {
        std::fs::read_to_string(&result).ok()
    });
    running.kill().unwrap();
    running.wait().unwrap();
    let before = line.rsplit_once(' ').unwrap().0;
    let word = became
        .trim_end()
        .strip_prefix(before)
        .unwrap_or_else(|| panic!("{line}: {became}"));
    word.trim_start().to_owned()
}

fn program_of(line: &str) -> &str {
    line.split(' ').next().unwrap()
}
