//! Reads a command line by its table, and hands the values out in their types.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::num::{IntErrorKind, ParseIntError};
use std::path::PathBuf;
use std::str::FromStr;

use super::help::usage;
use super::{Argument, Definition, Fault, Need, Shape, UsageError};
use crate::base::limit::{error_chain, foreign_text};

/// What a command line asks for.
#[derive(Debug)]
pub enum Read {
    /// A command with its arguments.
    Command(Given),
    /// The help of the program (the first) or of the command below it (the last).
    Help(Vec<&'static Definition>),
    /// The version.
    Version,
}

/// A command with its arguments, all of which the table knows.
#[derive(Debug)]
pub struct Given {
    path: Vec<&'static Definition>,
    values: Vec<Value>,
}

#[derive(Debug)]
struct Value {
    argument: &'static Argument,
    /// How many commands were named before it: a program's option may be said once more behind a command.
    depth: usize,
    text: OsString,
}

/// Reads `words`, which do not begin with the program's own name.
pub fn read(
    program: &'static Definition,
    words: impl IntoIterator<Item = OsString>,
) -> Result<Read, UsageError> {
    let mut reading = Given {
        path: vec![program],
        values: Vec::new(),
    };
    let mut words = words.into_iter().peekable();
    let mut options = true;
    while let Some(word) = words.next() {
        let bytes = word.as_encoded_bytes();
        if !options || bytes == b"-" || !bytes.starts_with(b"-") {
            reading.word(word, options)?;
            continue;
        }
        match bytes {
            b"--" => options = false,
            b"--help" | b"-h" => return Ok(Read::Help(reading.path)),
            b"--version" | b"-V" if reading.path.len() == 1 => return Ok(Read::Version),
            _ => {
                let next = words.next_if(|next| next == "-" || !next.as_encoded_bytes().starts_with(b"-"));
                if let Some(unused) = reading.option(&word, next)? {
                    reading.word(unused, true)?;
                }
            }
        }
    }
    reading.complete()?;
    Ok(Read::Command(reading))
}

impl Given {
    /// The names of the commands, below the program's own.
    pub fn command(&self) -> Vec<&'static str> {
        self.path[1..].iter().map(|definition| definition.name).collect()
    }

    /// Whether a flag, or anything else of that name, was given.
    pub fn has(&self, name: &str) -> bool {
        self.last(name).is_some()
    }

    /// The value as a path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.last(name).map(|value| PathBuf::from(&value.text))
    }

    /// The value as a text; its default where there is one.
    pub fn text(&self, name: &str) -> Result<Option<String>, UsageError> {
        match self.last(name) {
            Some(value) => self.utf8(value).map(|text| Some(text.to_owned())),
            None => Ok(self.default(name).map(str::to_owned)),
        }
    }

    /// The value, or its default, in its type.
    pub fn value<T: FromStr<Err: Error + 'static>>(&self, name: &str) -> Result<Option<T>, UsageError> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|error| self.unusable(name, &error))
    }

    /// The value, or its default, of an argument that the table requires or gives a default.
    pub fn required<T: FromStr<Err: Error + 'static>>(&self, name: &str) -> Result<T, UsageError> {
        self.value(name)?
            .ok_or_else(|| self.error(Fault::Missing(vec![self.shown(name)])))
    }

    /// All values of one that is repeated; a list's are taken apart.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, UsageError> {
        let mut texts = Vec::new();
        for value in self.values.iter().filter(|value| value.argument.name == name) {
            let text = self.utf8(value)?;
            match value.argument.shape {
                Shape::List(_) => texts.extend(text.split(',').map(str::to_owned)),
                _ => texts.push(text.to_owned()),
            }
        }
        Ok(texts)
    }

    fn last(&self, name: &str) -> Option<&Value> {
        self.values.iter().rfind(|value| value.argument.name == name)
    }

    fn default(&self, name: &str) -> Option<&'static str> {
        match self.known(|argument| argument.name == name)?.need {
            Need::Default(text) => Some(text),
            _ => None,
        }
    }

    fn utf8<'v>(&self, value: &'v Value) -> Result<&'v str, UsageError> {
        let not_text = || self.error(Fault::NotText(value.argument.shown()));
        value.text.to_str().ok_or_else(not_text)
    }

    fn unusable(&self, name: &str, error: &(dyn Error + 'static)) -> UsageError {
        self.error(Fault::Value {
            argument: self.shown(name),
            why: match error.downcast_ref::<ParseIntError>().map(ParseIntError::kind) {
                Some(IntErrorKind::PosOverflow) => "it is too large".to_owned(),
                Some(_) => "it is not a whole number".to_owned(),
                None => error_chain(error),
            },
        })
    }

    fn shown(&self, name: &str) -> String {
        let known = self.known(|argument| argument.name == name);
        known.map_or_else(|| name.to_owned(), Argument::shown)
    }

    fn error(&self, fault: Fault) -> UsageError {
        UsageError {
            fault,
            usage: usage(&self.path),
        }
    }

    fn current(&self) -> &'static Definition {
        self.path[self.path.len() - 1]
    }

    /// Of the command, or of the program.
    fn known(&self, is: impl Fn(&Argument) -> bool) -> Option<&'static Argument> {
        let mut all = self.current().arguments.iter().chain(self.path[0].arguments);
        all.find(|argument| is(argument))
    }

    /// A word that is no option: a command where there are some, else the next by its place.
    fn word(&mut self, word: OsString, may_be_command: bool) -> Result<(), UsageError> {
        let current = self.current();
        if may_be_command && let Some(next) = current.commands.iter().find(|next| word == next.name) {
            self.path.push(next);
            return Ok(());
        }
        if !current.commands.is_empty() {
            let command = shown(&word);
            let near = nearest(&command, current.commands.iter().map(|next| next.name));
            return Err(self.error(Fault::UnknownCommand { command, near }));
        }
        let mut places = current.arguments.iter().filter(|argument| argument.is_word());
        match places.find(|argument| !self.has(argument.name)) {
            Some(argument) => self.put(argument, word),
            None => Err(self.error(Fault::Superfluous(shown(&word)))),
        }
    }

    /// An option, with `next` behind it, which it gives back where it has no use for it.
    fn option(&mut self, typed: &OsStr, next: Option<OsString>) -> Result<Option<OsString>, UsageError> {
        let bytes = typed.as_encoded_bytes();
        let equals = bytes.iter().position(|byte| *byte == b'=');
        let name = &bytes[..equals.unwrap_or(bytes.len())];
        let found = self.known(|argument| {
            !argument.is_word() && name.strip_prefix(b"--") == Some(argument.name.as_bytes())
        });
        let Some(argument) = found else {
            let option = foreign_text(&String::from_utf8_lossy(name));
            let all = self.current().arguments.iter().chain(self.path[0].arguments);
            let all = all.filter(|argument| !argument.is_word());
            let near = nearest(option.trim_start_matches('-'), all.map(|argument| argument.name));
            return Err(self.error(Fault::UnknownOption { option, near }));
        };
        let inline = equals.map(|at| tail(typed, at + 1));
        match (argument.shape, inline, next) {
            (Shape::Flag, Some(_), _) => Err(self.error(Fault::UnwantedValue(argument.shown()))),
            (Shape::Flag, None, next) => self.put(argument, OsString::new()).map(|()| next),
            (_, Some(text), next) => self.put(argument, text).map(|()| next),
            (_, None, Some(next)) => self.put(argument, next).map(|()| None),
            (_, None, None) => Err(self.error(Fault::NoValue(argument.shown()))),
        }
    }

    fn put(&mut self, argument: &'static Argument, text: OsString) -> Result<(), UsageError> {
        let depth = self.path.len();
        let again = self.last(argument.name).is_some_and(|value| value.depth == depth);
        if again && !argument.is_repeatable() {
            return Err(self.error(Fault::Twice(argument.shown())));
        }
        self.values.push(Value {
            argument,
            depth,
            text,
        });
        Ok(())
    }

    fn complete(&self) -> Result<(), UsageError> {
        let current = self.current();
        if !current.commands.is_empty() {
            let commands = current.commands.iter().map(|next| next.name).collect();
            return Err(self.error(Fault::NoCommand(commands)));
        }
        for Value { argument, .. } in &self.values {
            if let Some(other) = argument.not_with.iter().find(|other| self.has(other)) {
                return Err(self.error(Fault::Together(argument.shown(), self.shown(other))));
            }
        }
        let lacks = |argument: &&Argument| match argument.need {
            Need::Required => !self.has(argument.name),
            Need::RequiredUnless(other) => !self.has(argument.name) && !self.has(other),
            Need::Optional | Need::Default(_) => false,
        };
        let missing: Vec<_> = current
            .arguments
            .iter()
            .filter(lacks)
            .map(Argument::shown)
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(self.error(Fault::Missing(missing)))
        }
    }
}

fn shown(word: &OsStr) -> String {
    foreign_text(&word.to_string_lossy())
}

/// What of `typed` is behind that place, just after an equals sign.
fn tail(typed: &OsStr, at: usize) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    OsString::from_vec(typed.as_bytes()[at..].to_vec())
}

fn nearest(typed: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    /// Below this similarity (0 to 1) a proposal confuses more than it helps.
    const NEAR: f64 = 0.6;
    known
        .map(|name| (name, strsim::normalized_damerau_levenshtein(typed, name)))
        .filter(|(_, score)| *score >= NEAR)
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(name, _)| name)
}
