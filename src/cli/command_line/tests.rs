use super::*;

static PROGRAM: Definition = Definition {
    name: "box",
    about: "Does things",
    closing: "See elsewhere.",
    arguments: &[
        Argument::value("config", "FILE", "Where from"),
        Argument::flag("quiet", "Say less"),
    ],
    commands: &[
        Definition {
            name: "send",
            about: "Send something",
            details: "It arrives, or it does not.",
            arguments: &[
                Argument::word("what", "WHAT", "What to send").required(),
                Argument::word("where", "WHERE", "Where to").not_with(&["back"]),
                Argument::flag("back", "To where it came from"),
                Argument::list("tags", "TAGS", "What it is about"),
                Argument::repeated("via", "NAME", "Over which"),
                Argument::value("times", "NUMBER", "How often").or("1"),
                Argument::value("reason", "TEXT", "Why").required_unless("quiet"),
            ],
            ..Definition::BARE
        },
        Definition {
            name: "things",
            about: "What there is",
            commands: &[Definition {
                name: "list",
                about: "Show them",
                ..Definition::BARE
            }],
            ..Definition::BARE
        },
    ],
    ..Definition::BARE
};

fn reading(line: &str) -> Result<Read, UsageError> {
    read(&PROGRAM, line.split_whitespace().map(Into::into))
}

fn given(line: &str) -> Given {
    match reading(line) {
        Ok(Read::Command(given)) => given,
        other => panic!("{line}: {other:?}"),
    }
}

fn fault(line: &str) -> Fault {
    match reading(line) {
        Err(error) => error.fault().clone(),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn values_come_in_their_types_and_places() {
    let sent = given("--config a send - there --tags=x,y --reason=-1 --via one --tags z --via two");
    assert_eq!(sent.command(), ["send"]);
    assert_eq!(sent.text("what"), Ok(Some("-".to_owned())));
    assert_eq!(sent.text("where"), Ok(Some("there".to_owned())));
    assert_eq!(sent.texts("tags").unwrap(), ["x", "y", "z"]);
    assert_eq!(sent.texts("via").unwrap(), ["one", "two"]);
    assert_eq!(sent.required::<u8>("times"), Ok(1));
    assert_eq!(sent.text("reason"), Ok(Some("-1".to_owned())));
    assert_eq!(sent.path("config"), Some("a".into()));
    assert!(!sent.has("quiet") && given("send x --quiet").has("quiet"));
    assert_eq!(given("things list").command(), ["things", "list"]);
}

#[test]
fn behind_two_hyphens_there_are_no_options() {
    let sent = given("send --quiet -- --what");
    assert_eq!(sent.text("what"), Ok(Some("--what".to_owned())));
    assert!(matches!(fault("-- send x"), Fault::UnknownCommand { .. }));
}

#[test]
fn what_the_program_takes_may_be_said_again_behind_the_command() {
    let sent = given("--config a send x --quiet --config b");
    assert_eq!(sent.path("config"), Some("b".into()));
    assert_eq!(
        fault("send x --config a --config b"),
        Fault::Twice("--config <FILE>".to_owned())
    );
}

#[test]
fn faults_are_told_with_what_was_meant() {
    let said = |line: &str| reading(line).unwrap_err().to_string();
    for (line, expected) in [
        ("sent x", "there is no command `sent`; did you mean `send`?"),
        ("frobnicate", "there is no command `frobnicate`\n"),
        (
            "send x --reson y",
            "there is no option `--reson`; did you mean `--reason`?",
        ),
        ("send x -q", "there is no option `-q`"),
        ("send x y z --quiet", "`z` is one word too many"),
        ("send x --quiet --reason", "`--reason <TEXT>` needs a value"),
        ("send x --reason --quiet", "`--reason <TEXT>` needs a value"),
        ("send x --quiet=yes", "`--quiet` takes no value"),
        (
            "send x y --back --quiet",
            "`[WHERE]` and `--back` cannot be given together",
        ),
        ("send", "missing: <WHAT>, --reason <TEXT>"),
        ("things", "say what to do; one of: list"),
        ("", "say what to do; one of: send, things"),
    ] {
        let said = said(line);
        assert!(said.starts_with(expected), "{line}: {said}");
        assert!(said.contains("\nusage: box"), "{said}");
    }
    let error = given("send x --quiet --times many")
        .required::<u8>("times")
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the value of `--times <NUMBER>` cannot be used: it is not a whole number\n\
         usage: box send [OPTIONS] <WHAT> [WHERE]\n`--help` says more"
    );
    let error = given("send x --quiet --times 256").required::<u8>("times");
    assert!(error.unwrap_err().to_string().contains("it is too large"));
}

#[test]
fn help_is_asked_for_anywhere() {
    let path = |line: &str| match reading(line) {
        Ok(Read::Help(path)) => path.iter().map(|definition| definition.name).collect::<Vec<_>>(),
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(path("--help"), ["box"]);
    assert_eq!(path("send -h"), ["box", "send"]);
    assert!(matches!(reading("--version"), Ok(Read::Version)));
    assert!(matches!(fault("send --version"), Fault::UnknownOption { .. }));
}

#[test]
fn help_is_aligned_and_broken_between_words() {
    let program = help(&[&PROGRAM], 60);
    assert_eq!(
        program,
        "Does things\n\nUsage: box [OPTIONS] <COMMAND>\n\nCommands:\n  send    Send something\n  things  What there is\n\n\
         Options:\n      --config <FILE>  Where from\n      --quiet          Say less\n  -h, --help           Print help\n  \
         -V, --version        Print version\n\nSee elsewhere.\n"
    );
    let send = help(&[&PROGRAM, &PROGRAM.commands[0]], 40);
    assert!(send.starts_with(
        "Send something\n\nIt arrives, or it does not.\n\nUsage: box send [OPTIONS] <WHAT> [WHERE]\n"
    ));
    assert!(
        send.contains("      --times <NUMBER>  How often\n                        [default: 1]\n"),
        "{send}"
    );
    assert!(send.contains("--config <FILE>"), "what the program takes: {send}");
    assert!(send.lines().all(|line| line.len() <= 43), "{send}");
}

#[test]
fn bytes_that_are_no_text_are_a_path_and_nothing_else() {
    use std::os::unix::ffi::OsStringExt as _;
    let odd = std::ffi::OsString::from_vec(vec![b'a', 0xff]);
    let words = [
        "send".into(),
        odd.clone(),
        "--quiet".into(),
        "--config".into(),
        odd.clone(),
    ];
    let Ok(Read::Command(sent)) = read(&PROGRAM, words) else {
        panic!("it can be read");
    };
    assert_eq!(sent.path("config"), Some(odd.into()));
    assert!(matches!(
        sent.text("what").unwrap_err().fault(),
        Fault::NotText(_)
    ));
}
