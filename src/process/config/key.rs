//! What a configuration key is: its path, its default, the form of its value with its bounds, and
//! its documentation. A program's table of keys is the one place that knows them; files, variables,
//! flags, `config show` and the example file all follow from it.

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::duration::HumaneDuration;

/// Longest value that is read, in characters; the longest sensible one is a URL.
pub(super) const VALUE_MAX_CHARS: usize = 4_096;

/// A key whose value is a `T`.
pub struct Key<T: 'static> {
    /// Sections and name, joined by dots: `reconnect.max`.
    pub path: &'static str,
    /// What its value may be.
    pub form: &'static dyn Form<T>,
    /// What holds when nobody sets it.
    pub default: Fallback,
    /// For the operator; several lines are several paragraph lines of the example file.
    pub doc: &'static str,
    /// Whether people are likely to put a secret here by mistake: what is wrong with the value is
    /// told, the value itself is not.
    pub discreet: bool,
}

/// What holds when nobody sets a key, in the text form of an environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This value.
    Value(&'static str),
    /// Nothing; the text is an example.
    Unset {
        /// For the example file.
        example: &'static str,
    },
}

/// A value as it was written, before its key's form has looked at it.
#[derive(Debug, Clone, PartialEq)]
pub enum Raw {
    /// Text; all that variables and flags have.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Truth(bool),
    /// A list of texts.
    List(Vec<String>),
    /// Something that no key has: the name of its TOML type.
    Foreign(&'static str),
}

/// Why a value is refused.
#[derive(Debug)]
pub struct Refusal {
    /// In the operator's words, continuing "it …".
    pub why: String,
    /// What the value's own parser said.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The form of a value.
pub trait Form<T>: Sync {
    /// Reads a value.
    fn read(&self, raw: &Raw) -> Result<T, Refusal>;
    /// Writes a value as TOML.
    fn write(&self, value: &T) -> String;
    /// What is allowed, as a noun phrase.
    fn allowed(&self) -> String;
}

/// A key without its type, for tables.
pub trait AnyKey: Sync {
    /// See [`Key::path`].
    fn path(&self) -> &'static str;
    /// See [`Key::default`].
    fn fallback(&self) -> Fallback;
    /// See [`Key::doc`].
    fn doc(&self) -> &'static str;
    /// See [`Key::discreet`].
    fn discreet(&self) -> bool;
    /// See [`Form::allowed`].
    fn allowed(&self) -> String;
    /// The value as TOML, if it may be one.
    fn normalize(&self, raw: &Raw) -> Result<String, Refusal>;
}

impl<T> AnyKey for Key<T> {
    fn path(&self) -> &'static str {
        self.path
    }

    fn fallback(&self) -> Fallback {
        self.default
    }

    fn doc(&self) -> &'static str {
        self.doc
    }

    fn discreet(&self) -> bool {
        self.discreet
    }

    fn allowed(&self) -> String {
        self.form.allowed()
    }

    fn normalize(&self, raw: &Raw) -> Result<String, Refusal> {
        self.form.read(raw).map(|value| self.form.write(&value))
    }
}

/// A duration within bounds, both included.
pub(super) struct DurationBetween(pub(super) Duration, pub(super) Duration);

impl Form<Duration> for DurationBetween {
    fn read(&self, raw: &Raw) -> Result<Duration, Refusal> {
        let HumaneDuration(duration) = parsed(raw.text()?)?;
        if duration < self.0 || duration > self.1 {
            return Err(Refusal::new("is out of range"));
        }
        Ok(duration)
    }

    fn write(&self, value: &Duration) -> String {
        quoted(&HumaneDuration(*value))
    }

    fn allowed(&self) -> String {
        format!(
            "a duration from {} to {}",
            HumaneDuration(self.0),
            HumaneDuration(self.1)
        )
    }
}

/// A whole number within bounds, both included, of things that `unit` names.
pub(super) struct CountBetween {
    pub(super) least: u32,
    pub(super) most: u32,
    pub(super) unit: &'static str,
}

impl Form<u32> for CountBetween {
    fn read(&self, raw: &Raw) -> Result<u32, Refusal> {
        let number = match raw {
            Raw::Number(number) => u32::try_from(*number).ok(),
            Raw::Text(text) => text.trim().parse().ok(),
            Raw::Truth(_) | Raw::List(_) | Raw::Foreign(_) => None,
        };
        let number = number.ok_or_else(|| Refusal::new("is not a whole number in range"))?;
        if number < self.least || number > self.most {
            return Err(Refusal::new("is out of range"));
        }
        Ok(number)
    }

    fn write(&self, value: &u32) -> String {
        value.to_string()
    }

    fn allowed(&self) -> String {
        format!("a number of {} from {} to {}", self.unit, self.least, self.most)
    }
}

/// Yes or no.
pub(super) struct YesNo;

impl Form<bool> for YesNo {
    fn read(&self, raw: &Raw) -> Result<bool, Refusal> {
        match raw {
            Raw::Truth(truth) => Ok(*truth),
            other => match other.text()? {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(Refusal::new("is neither true nor false")),
            },
        }
    }

    fn write(&self, value: &bool) -> String {
        value.to_string()
    }

    fn allowed(&self) -> String {
        "true or false".to_owned()
    }
}

/// An absolute path. A daemon's working directory is an accident, so relative ones are refused.
pub(super) struct AbsolutePath;

impl Form<PathBuf> for AbsolutePath {
    fn read(&self, raw: &Raw) -> Result<PathBuf, Refusal> {
        let path = Path::new(raw.text()?);
        if !path.is_absolute() {
            return Err(Refusal::new("is not an absolute path"));
        }
        Ok(path.to_owned())
    }

    fn write(&self, value: &PathBuf) -> String {
        quoted(&value.display())
    }

    fn allowed(&self) -> String {
        "an absolute path".to_owned()
    }
}

/// A line of text for people, trimmed, not blank.
pub(super) struct Line {
    pub(super) max_chars: usize,
}

impl Form<String> for Line {
    fn read(&self, raw: &Raw) -> Result<String, Refusal> {
        let text = raw.text()?;
        if text.is_empty() {
            return Err(Refusal::new("is blank"));
        }
        if text.chars().count() > self.max_chars {
            return Err(Refusal::new("is too long"));
        }
        if text.chars().any(char::is_control) {
            return Err(Refusal::new("has control characters in it"));
        }
        Ok(text.to_owned())
    }

    fn write(&self, value: &String) -> String {
        quoted(value)
    }

    fn allowed(&self) -> String {
        format!("a line of at most {} characters", self.max_chars)
    }
}

/// A value with a parser of its own.
pub(super) struct Parsed<T> {
    allowed: &'static str,
    value: PhantomData<fn() -> T>,
}

impl<T> Parsed<T> {
    pub(super) const fn new(allowed: &'static str) -> Self {
        Self {
            allowed,
            value: PhantomData,
        }
    }
}

impl<T> Form<T> for Parsed<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static> + fmt::Display,
{
    fn read(&self, raw: &Raw) -> Result<T, Refusal> {
        parsed(raw.text()?)
    }

    fn write(&self, value: &T) -> String {
        quoted(value)
    }

    fn allowed(&self) -> String {
        self.allowed.to_owned()
    }
}

/// A list of values, separated by commas in a variable.
pub(super) struct ListOf<F> {
    pub(super) item: F,
    pub(super) least: usize,
    pub(super) most: usize,
}

impl<T, F: Form<T>> Form<Vec<T>> for ListOf<F> {
    fn read(&self, raw: &Raw) -> Result<Vec<T>, Refusal> {
        let items: Vec<String> = match raw {
            Raw::List(items) => items.clone(),
            Raw::Text(text) if text.trim().is_empty() => Vec::new(),
            Raw::Text(text) => text.split(',').map(|item| item.trim().to_owned()).collect(),
            Raw::Number(_) | Raw::Truth(_) | Raw::Foreign(_) => return Err(Refusal::new("is not a list")),
        };
        if items.len() < self.least || items.len() > self.most {
            return Err(Refusal::new("has too few or too many entries"));
        }
        items
            .into_iter()
            .map(|item| self.item.read(&Raw::Text(item)))
            .collect()
    }

    fn write(&self, value: &Vec<T>) -> String {
        let items: Vec<_> = value.iter().map(|item| self.item.write(item)).collect();
        format!("[{}]", items.join(", "))
    }

    fn allowed(&self) -> String {
        format!(
            "a list of {} to {} entries, each {}",
            self.least,
            self.most,
            self.item.allowed()
        )
    }
}

impl Raw {
    /// The trimmed text, where it is one.
    pub(super) fn text(&self) -> Result<&str, Refusal> {
        match self {
            Self::Text(text) if text.chars().count() > VALUE_MAX_CHARS => Err(Refusal::new("is too long")),
            Self::Text(text) => Ok(text.trim()),
            Self::Number(_) => Err(Refusal::new("is a bare number; put it in quotes, with its unit")),
            Self::Truth(_) => Err(Refusal::new("is of the wrong type (boolean)")),
            Self::List(_) => Err(Refusal::new("is a list")),
            Self::Foreign(kind) => Err(Refusal::new(format!("is of the wrong type ({kind})"))),
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
            Self::Truth(truth) => truth.fmt(f),
            Self::List(items) => f.write_str(&items.join(", ")),
            Self::Foreign(kind) => f.write_str(kind),
        }
    }
}

impl Refusal {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            source: None,
        }
    }
}

fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|error| Refusal {
        why: "cannot be read".to_owned(),
        source: Some(Box::new(error)),
    })
}

/// A basic string of TOML.
fn quoted(value: &impl fmt::Display) -> String {
    let mut text = String::from('"');
    for letter in value.to_string().chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            _ if letter.is_control() => text.extend(['\\', 'u', '0', '0', hex(letter, 4), hex(letter, 0)]),
            _ => text.push(letter),
        }
    }
    text.push('"');
    text
}

/// The digit at this bit of a control character: all of them are below U+00A0.
fn hex(letter: char, bit: u32) -> char {
    char::from_digit((u32::from(letter) >> bit) & 0xf, 16).unwrap_or('0')
}

/// The known name that is meant by an unknown one, where one is near: a typo (by similarity), a right name in the
/// wrong section, or a word of a name in the right one.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this similarity (0 to 1) a proposal confuses more than it helps.
    const NEAR: f64 = 0.8;
    let (section, name) = unknown.rsplit_once('.').unwrap_or(("", unknown));
    let score = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(unknown, candidate);
        let (its_section, its_name) = candidate.rsplit_once('.').unwrap_or(("", candidate));
        if name == its_name {
            whole.max(NEAR)
        } else if section != its_section {
            whole
        } else if its_name.split('_').any(|word| word == name) {
            NEAR
        } else {
            // What both have in common says nothing.
            strsim::normalized_damerau_levenshtein(name, its_name)
        }
    };
    known
        .map(|candidate| (candidate, score(candidate)))
        .filter(|(_, score)| *score >= NEAR - 0.2)
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(candidate, _)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_and_wrong_sections_have_a_neighbour() {
        let known = ["tunnel.keepalive", "reconnect.max", "log.level"];
        let near = |unknown| nearest(unknown, known.into_iter());
        assert_eq!(near("tunel.keepalive"), Some("tunnel.keepalive"));
        assert_eq!(near("keepalive"), Some("tunnel.keepalive"));
        assert_eq!(near("log.levle"), Some("log.level"));
        let known = ["disclosure.operator_contact", "disclosure.location"];
        let near = |unknown| nearest(unknown, known.into_iter());
        assert_eq!(near("disclosure.contact"), Some("disclosure.operator_contact"));
        assert_eq!(near("disclosure.person"), None);
        assert_eq!(near("colour"), None);
    }

    #[test]
    fn a_text_with_quotes_is_still_toml() {
        for text in ["say \"hi\" \\ é", "'", "", "\n\t\r\u{0}\u{7f}\u{9f}"] {
            let written = quoted(&text);
            let back: toml::Table = format!("key = {written}").parse().unwrap();
            assert_eq!(back["key"].as_str(), Some(text));
        }
    }

    #[test]
    fn bounds_are_included() {
        let count = CountBetween {
            least: 1,
            most: 8,
            unit: "things",
        };
        assert!(count.read(&Raw::Number(1)).is_ok() && count.read(&Raw::Text("8".into())).is_ok());
        for bad in [
            Raw::Number(0),
            Raw::Number(9),
            Raw::Number(-1),
            Raw::Text("x".into()),
        ] {
            assert!(count.read(&bad).is_err(), "{bad}");
        }
        let wait = DurationBetween(Duration::from_secs(1), Duration::from_secs(60));
        let read = |text: &str| wait.read(&Raw::Text(text.into())).is_ok();
        assert!(read("1s") && read("1m") && !read("999ms") && !read("61s"));
        assert!(wait.read(&Raw::Number(5)).is_err(), "a number has no unit");
    }

    #[test]
    fn lists_come_from_variables_too() {
        let list = ListOf {
            item: Line { max_chars: 3 },
            least: 0,
            most: 2,
        };
        assert_eq!(list.read(&Raw::Text(" a , b ".into())).unwrap(), ["a", "b"]);
        assert!(list.read(&Raw::Text(" ".into())).unwrap().is_empty());
        assert!(list.read(&Raw::Text("a,b,c".into())).is_err());
        assert!(list.read(&Raw::Text("long".into())).is_err());
    }
}
