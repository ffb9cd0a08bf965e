//! What the documents tell a reader to type is typed here.
//!
//! Commands of our own programs in the fenced blocks run in a sandbox, in the order of the document; what
//! needs root, systemd, a package manager or a container engine is named in [`ELSEWHERE`] with the test that
//! runs it. Every command line of our programs, in blocks and in sentences, is read by the programs' own
//! definitions, whoever runs it.
//!
//! Who adds a command to a document has nothing to do here if it works after the commands before it; else a
//! line is due in [`ELSEWHERE`].

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod completion;
mod manual;
mod sandbox;
#[path = "../support/mod.rs"]
mod support;

#[path = "../../examples/generate-docs.rs"]
#[allow(dead_code, reason = "its command line is not here")]
mod generate_docs;

use clap::{CommandFactory as _, Parser as _, error::ErrorKind};

use generate_docs::{host_bridge, satellite, table};
use powernode_satellite::cli::command_line::Fault;

use manual::{Command, Span, commands, read, spans, words};
use sandbox::Sandbox;

const SATELLITE: &str = "powernode-satellite";
const BRIDGE: &str = "powernode-host-bridge";

/// The documents with commands for operators, in the order in which the blocks run. Each begins anew, but
/// for [`GOES_ON_FROM`].
const DOCUMENTS: [&str; 3] = ["README.md", "docs/OPERATING.md", "docs/INSTALL.md"];

/// Its commands come first in the sandbox of the others: those speak to readers who have done them.
const GOES_ON_FROM: &str = "README.md";

/// Commands that do not run here, by how they begin: why, and who runs them.
const ELSEWHERE: &[(&str, &str)] = &[
    ("scripts/first-run", "runs for itself, at the end of scripts/test"),
    ("scripts/test", "is what runs this test"),
    ("scripts/package ", "tests/package/debian.rs"),
    (
        "scripts/release ",
        "needs the releaser's key: tests/package/release.rs makes one",
    ),
    (
        "minisign -V ",
        "tests/package/release.rs, on the release that it made",
    ),
    (
        "sha256sum -c ",
        "tests/package/release.rs, on the release that it made",
    ),
    ("dpkg -i ", "needs root and systemd: tests/package/debian.rs"),
    (
        "systemctl ",
        "needs systemd: tests/package/units.rs and debian.rs",
    ),
    (
        "install -m 0755 ",
        "needs root: tests/package/units.rs and openwrt.rs do the same",
    ),
    (
        "install -m 0644 ",
        "needs root: tests/package/units.rs and openwrt.rs do the same",
    ),
    (
        "podman build ",
        "needs an engine: tests/package/image.rs makes the same root without one",
    ),
    (
        "podman run ",
        "needs an engine: tests/package/image.rs runs the same root without one",
    ),
    (
        "podman exec ",
        "needs an engine: tests/package/image.rs runs the same root without one",
    ),
    (
        "cp powernode-satellite-",
        "needs OpenWrt: tests/package/openwrt.rs",
    ),
    ("chmod 0755 ", "needs OpenWrt: tests/package/openwrt.rs"),
    ("rm -rf ", "needs root: undoes what the lines above it install"),
    (
        "/etc/init.d/powernode-satellite ",
        "needs OpenWrt: tests/package/openwrt.rs has its rc.common",
    ),
    (
        "(umask 077; head -c 32 /dev/urandom >/",
        "writes to /etc: tests/sealing.rs has the key elsewhere",
    ),
    ("mkdir -p /etc/credstore.encrypted ", "writes to /etc, for a TPM"),
    (
        "systemd-creds encrypt ",
        "needs a TPM; tests/sealing.rs has the credential's file",
    ),
    ("cat >/etc/systemd/", "writes to /etc, for a TPM"),
    (
        "ssh -o ProxyCommand=",
        "needs a shell server on the box: tests/lab/programs/ssh.rs has one",
    ),
    (
        "powernode-host-bridge forward ",
        "goes on until it is ended: tests/access/main.rs and tests/udp.rs",
    ),
    (
        "curl --socks5-hostname ",
        "needs a service and a free port 1080: src/bridge/daemon/tests/access has curl do this",
    ),
    (
        "HTTPS_PROXY=",
        "needs a cluster: tests/lab/programs/kubernetes.rs has one",
    ),
];

/// Programs that a document uses and a machine may lack.
const NEEDED: [&str; 3] = ["bash", "curl", "jq"];

#[test]
fn every_command_of_the_documents_runs() {
    for program in NEEDED {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .any(|place| place.join(program).is_file());
        if !found {
            eprintln!("SKIPPED: every_command_of_the_documents_runs because there is no {program}");
            return;
        }
    }
    for document in DOCUMENTS {
        let mut sandbox = Sandbox::new();
        if document != GOES_ON_FROM {
            run_all(&mut sandbox, &commands(GOES_ON_FROM));
        }
        run_all(&mut sandbox, &commands(document));
    }
}

fn run_all(sandbox: &mut Sandbox, commands: &[Command]) {
    for command in commands.iter().filter(|command| elsewhere(command).is_none()) {
        println!("{command}");
        let words = words(&command.text);
        let own = words[0].trim_start_matches("./").starts_with("powernode-");
        assert!(
            own || words[0] == "curl",
            "{command}\nis neither a command of our programs nor named in tests/docs/main.rs, ELSEWHERE"
        );
        match words[1].as_str() {
            "run" => sandbox.start(&words[0]),
            // A registry is made once on a machine: the next one is another's.
            "init" if sandbox.has_registry() => {
                Sandbox::new().run(&command.text);
            }
            _ => {
                sandbox.run(&command.text);
            }
        }
    }
}

fn elsewhere(command: &Command) -> Option<usize> {
    ELSEWHERE
        .iter()
        .position(|(begin, _)| command.text.starts_with(begin.trim_end()))
}

#[test]
fn what_is_run_elsewhere_is_still_in_a_document() {
    let all: Vec<_> = DOCUMENTS.iter().flat_map(|document| commands(document)).collect();
    for (index, (begin, _)) in ELSEWHERE.iter().enumerate() {
        let named = all.iter().any(|command| elsewhere(command) == Some(index));
        assert!(named, "no document has `{begin}` any more");
    }
}

#[test]
fn every_command_line_of_our_programs_is_understood() {
    let mut seen = 0;
    for document in DOCUMENTS
        .into_iter()
        .chain(["CONTRIBUTING.md", "docs/ARCHITECTURE.md"])
    {
        let texts = commands(document).into_iter().map(|command| command.text);
        let spans = spans(document)
            .into_iter()
            .map(|span| match program_of_section(&span) {
                Some(program) => format!("{program} {}", span.text),
                None => span.text,
            });
        for text in texts.chain(spans) {
            for (program, arguments) in command_lines(&text) {
                seen += 1;
                if let Err(why) = understand(program, &arguments) {
                    panic!("{document}: {text}\n{why}");
                }
            }
        }
    }
    assert!(seen > 20, "only {seen} command lines were found in the documents");
}

/// A section about one program need not repeat its name in each command.
fn program_of_section(span: &Span) -> Option<&'static str> {
    let program = span.heading.split(' ').find_map(program_of)?;
    let first = span.text.split(' ').next()?;
    definition(program).find_subcommand(first).map(|_| program)
}

/// Our programs in a command line, with their arguments. A name alone may be a file, a unit or an image;
/// with one of the program's own commands or an option behind it, it is a call.
fn command_lines(text: &str) -> Vec<(&'static str, Vec<String>)> {
    let words = words(text);
    let mut found = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let Some(program) = program_of(word) else { continue };
        let arguments: Vec<_> = words[index + 1..]
            .iter()
            .take_while(|word| !"|;&\n()<>".contains(word.as_str()))
            .cloned()
            .collect();
        let called = arguments.first().is_some_and(|first| {
            first.starts_with("--") || definition(program).find_subcommand(first).is_some()
        });
        if called {
            found.push((program, arguments));
        }
    }
    found
}

fn program_of(word: &str) -> Option<&'static str> {
    let name = word.rsplit('/').next()?;
    [SATELLITE, BRIDGE]
        .into_iter()
        .find(|program| name == *program || name == format!("{program}-VERSION-linux-ARCH"))
}

fn definition(program: &str) -> clap::Command {
    if program == SATELLITE {
        table::command_of(&satellite::PROGRAM)
    } else {
        host_bridge::Arguments::command()
    }
}

/// By the program's own definition.
fn understand(program: &str, arguments: &[String]) -> Result<(), String> {
    if program == SATELLITE {
        return match satellite::Asked::of(arguments.iter().map(Into::into)) {
            Ok(_) => Ok(()),
            // A sentence may name a command without its arguments.
            Err(error) if matches!(error.fault(), Fault::Missing(_) | Fault::NoCommand(_)) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
    }
    let all = std::iter::once(program).chain(arguments.iter().map(String::as_str));
    let read = host_bridge::Arguments::try_parse_from(all).map(drop);
    match read {
        Ok(()) => Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(()),
            ErrorKind::MissingRequiredArgument | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                Ok(())
            }
            _ => Err(error.to_string()),
        },
    }
}

/// Manual pages and completions are made from the translation; it must not say what the program does not do.
#[test]
fn the_satellites_table_and_its_translation_read_the_same() {
    definition(SATELLITE).debug_assert();
    for (line, good) in [
        ("run", true),
        ("--state-dir /x status --json", true),
        ("status --json --state-dir=/x", true),
        ("join - --contact me --bridge a:1 --bridge b:2", true),
        ("join CODE --token-stdin", false),
        ("join --ca-file f --ca-sha256 00", false),
        ("join --timeout", false),
        ("join --timeout 5s --timeout 6s", false),
        (
            "services publish web localhost:80 --health-check /up --proxy-protocol",
            true,
        ),
        ("services publish web", false),
        ("services withdraw web other", false),
        ("grants issue --subject anna --scopes read,write", true),
        ("grants issue --operator --service web", false),
        ("grants issue", false),
        ("grants revoke 1", false),
        ("audit show --last 3 --since 72h", true),
        ("audit", false),
        ("state-key unseal --json", false),
        ("status --jsn", false),
        ("frobnicate", false),
        ("", false),
    ] {
        let words: Vec<_> = line.split_whitespace().collect();
        let read = satellite::Asked::of(words.iter().map(Into::into));
        assert_eq!(read.is_ok(), good, "{line}: {:?}", read.err());
        let all = std::iter::once(SATELLITE).chain(words);
        let translated = definition(SATELLITE).try_get_matches_from(all);
        assert_eq!(translated.is_ok(), good, "{line}: {:?}", translated.err());
    }
}

/// Both programs have the commands of the audit log, each by its own definition.
#[test]
fn the_audit_log_is_asked_for_alike() {
    let [ours, theirs] = [SATELLITE, BRIDGE].map(|program| {
        let audit = definition(program).find_subcommand("audit").unwrap().clone();
        let commands = audit.get_subcommands().map(|command| {
            let told = |text: Option<&clap::builder::StyledStr>| text.map(ToString::to_string);
            let arguments: Vec<_> = command
                .get_arguments()
                .map(|argument| {
                    let default = argument.get_default_values().to_vec();
                    (
                        argument.get_long().map(str::to_owned),
                        told(argument.get_help()),
                        default,
                    )
                })
                .collect();
            (
                command.get_name().to_owned(),
                told(command.get_about()),
                arguments,
            )
        });
        commands.collect::<Vec<_>>()
    });
    assert_eq!(ours, theirs);
}

#[test]
fn a_mistyped_command_line_is_found() {
    let lines = command_lines("systemd-creds decrypt FILE - | powernode-satellite --state-dir /x staus");
    let (program, arguments) = &lines[0];
    assert!(understand(program, arguments).is_err());
    assert!(command_lines("systemctl restart powernode-satellite").is_empty());
    assert_eq!(
        command_lines("podman exec -i satellite /powernode-satellite join - <code").len(),
        1
    );
}

/// Scripts that are named must be there, and variables must be some program's.
#[test]
fn scripts_and_variables_are_real() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = ["scripts/", "benches/", ".ci/"];
    let mut scripts = 0;
    for document in DOCUMENTS.into_iter().chain(["CONTRIBUTING.md"]) {
        let texts: Vec<_> = commands(document)
            .into_iter()
            .map(|command| command.text)
            .collect();
        let spans = spans(document).into_iter().map(|span| span.text);
        for text in texts.into_iter().chain(spans) {
            let first = words(&text).into_iter().next().unwrap_or_default();
            if places.iter().any(|place| first.starts_with(place)) {
                scripts += 1;
                assert!(root.join(&first).is_file(), "{document}: there is no {first}");
            }
        }
        let variables = read(document);
        let variables = variables.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_');
        for variable in variables.filter(|word| word.starts_with("POWERNODE_") && !word.ends_with('_')) {
            assert!(is_variable(variable), "{document}: nothing reads {variable}");
        }
    }
    assert!(scripts > 5, "only {scripts} scripts were found in the documents");
}

#[test]
fn the_tests_that_a_contributor_is_shown_are_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut shown = 0;
    for command in commands("CONTRIBUTING.md") {
        let words = words(&command.text);
        if !command.text.starts_with("cargo test ") {
            continue;
        }
        shown += 1;
        let filter = words.last().unwrap();
        let (place, wanted) = match words.iter().position(|word| word == "--test") {
            Some(at) => (root.join("tests").join(&words[at + 1]), format!("fn {filter}")),
            None => (root.join("src"), format!("mod {}", filter.trim_end_matches(':'))),
        };
        let sources = sources(&place);
        assert!(
            sources.iter().any(|source| source.contains(&wanted)),
            "`{}` runs nothing",
            command.text
        );
    }
    assert_eq!(shown, 3);
}

/// The sources of a target in one file, or those in its directory.
fn sources(place: &std::path::Path) -> Vec<String> {
    let file = place.with_extension("rs");
    if file.is_file() {
        return vec![std::fs::read_to_string(file).unwrap()];
    }
    let entries = std::fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
}

/// Where the variable of an operator's token is told of.
fn help_of_connect() -> String {
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_powernode-host-bridge"));
    support::succeed(&program.args(["connect", "--help"]).output().unwrap())
}

/// Whether a key of a program's configuration is set by it, as `config show` lists them, or a script or
/// a suite for others reads it.
fn is_variable(name: &str) -> bool {
    let scripts = [
        ".ci/run",
        "scripts/package",
        "scripts/cross/setup",
        "tests/conformance/main.rs",
        "tests/lab/prerequisites.rs",
    ];
    [
        ("POWERNODE_SATELLITE_", env!("CARGO_BIN_EXE_powernode-satellite")),
        (
            "POWERNODE_HOST_BRIDGE_",
            env!("CARGO_BIN_EXE_powernode-host-bridge"),
        ),
    ]
    .into_iter()
    .any(|(prefix, program)| {
        let Some(rest) = name.strip_prefix(prefix) else {
            return false;
        };
        let mut shown = std::process::Command::new(program);
        let shown = support::succeed(&shown.args(["config", "show"]).output().unwrap());
        shown.lines().any(|line| {
            let key = line
                .trim_start_matches("# ")
                .split(' ')
                .next()
                .unwrap_or_default();
            key.replace('.', "_").eq_ignore_ascii_case(rest)
        })
    }) || scripts.iter().any(|script| read(script).contains(name))
        || help_of_connect().contains(name)
}
