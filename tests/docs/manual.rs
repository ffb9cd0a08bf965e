//! A document as a reader uses it: the commands in its fenced blocks, the commands named in its sentences.

use std::path::Path;

/// A command of a fenced block, whole: continued lines and here-documents are part of it.
#[derive(Debug, Clone)]
pub struct Command {
    pub document: &'static str,
    /// Line of the document, from 1.
    pub line: usize,
    /// Without the remark behind it.
    pub text: String,
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.document, self.line, self.text)
    }
}

pub fn read(document: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap()
}

/// All commands in blocks that begin with ```` ```sh ````, in order.
pub fn commands(document: &'static str) -> Vec<Command> {
    let text = read(document);
    let mut commands: Vec<Command> = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((_, line)) = lines.next() {
        if line.trim_end() != "```sh" {
            continue;
        }
        let mut open: Option<Command> = None;
        for (number, line) in lines.by_ref() {
            if line.starts_with("```") {
                break;
            }
            let mut command = open.take().unwrap_or_else(|| Command {
                document,
                line: number + 1,
                text: String::new(),
            });
            command.text.push_str(&without_remark(line));
            if is_complete(&command.text) {
                commands.extend((!command.text.trim().is_empty()).then_some(command));
            } else {
                command.text.push('\n');
                open = Some(command);
            }
        }
        assert!(open.is_none(), "{document}: a command has no end: {open:?}");
    }
    commands
}

/// A `#` behind a blank begins a remark; none of the documents quotes such a one.
fn without_remark(line: &str) -> String {
    let end = if line.starts_with('#') {
        0
    } else {
        line.find(" #").unwrap_or(line.len())
    };
    line[..end].trim_end().to_owned()
}

fn is_complete(text: &str) -> bool {
    let waits_for = text
        .lines()
        .find_map(|line| line.split_once("<<'"))
        .and_then(|(_, word)| word.split_once('\''))
        .map(|(word, _)| word);
    match waits_for {
        Some(end) => text.lines().last() == Some(end),
        None => !text.ends_with('\\') && !text.ends_with('|') && !text.ends_with("&&"),
    }
}

/// What stands between single backquotes in a sentence.
pub struct Span {
    /// Of the section that it is in.
    pub heading: String,
    pub text: String,
}

pub fn spans(document: &str) -> Vec<Span> {
    let text = read(document);
    let mut spans = Vec::new();
    for section in text.split("\n## ") {
        let heading = section.lines().next().unwrap_or_default();
        for prose in section.split("```").step_by(2) {
            let quoted = prose.split('`').skip(1).step_by(2);
            spans.extend(quoted.map(|text| Span {
                heading: heading.to_owned(),
                text: text.split_whitespace().collect::<Vec<_>>().join(" "),
            }));
        }
    }
    spans
}

/// The words of a command line as a shell makes them, as far as the documents go: quotes, and the signs that
/// end a command, which are words of their own.
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    for letter in text.replace("\\\n", " ").chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, '|' | ';' | '&' | '\n' | '(' | ')' | '<' | '>') => {
                words.extend([std::mem::take(&mut word), letter.to_string()]);
            }
            (None, _) if letter.is_whitespace() => words.push(std::mem::take(&mut word)),
            _ => word.push(letter),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn a_remark_a_continuation_and_a_pipe_are_understood() {
    assert_eq!(without_remark("a b   # c"), "a b");
    assert_eq!(without_remark("# c"), "");
    assert!(!is_complete("a \\") && !is_complete("a |") && is_complete("a\nb"));
    assert!(!is_complete("cat <<'X'\na") && is_complete("cat <<'X'\na\nX"));
    assert_eq!(
        words("a 'b c' \\\n --d \"e | f\" | g >h"),
        ["a", "b c", "--d", "e | f", "|", "g", ">", "h"]
    );
}
