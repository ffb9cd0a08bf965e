//! Puts the layers together: flag over environment over file over the service manager's directories
//! over default. Knows no key by itself: they come with the [`Program`].

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::family::{Family, Member, Members, key_example};
use super::key::{AnyKey, Fallback, Key, Raw, Refusal, nearest};
use super::proxy::InvalidProxyUrl;
use crate::base::limit::foreign_text;
use crate::base::ordered_map::OrderedMap;
use crate::process::environment::Environment;

/// Largest configuration file that is read, in bytes; one with every key and its documentation has
/// a tenth of it.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// A program's configuration: what it is called and which keys it has.
pub struct Program {
    /// The binary's name.
    pub name: &'static str,
    /// What its environment variables begin with, with the underscore.
    pub variable_prefix: &'static str,
    /// The file that is read when none is named.
    pub default_file: &'static str,
    /// Sections in the order of the example file, with their documentation; the first, unnamed one
    /// is the top of the file.
    pub sections: &'static [(&'static str, &'static str)],
    /// Its keys, in the order of the example file.
    pub keys: &'static [&'static dyn AnyKey],
    /// Its kinds of sections of which there may be many, after the others in the example file.
    pub families: &'static [&'static Family],
}

/// The file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigFile {
    /// The program's default; it need not exist.
    Default,
    /// The one that somebody has named; it must exist.
    Named(PathBuf),
}

/// What a command line sets, by key path, as text.
pub type Flags = BTreeMap<&'static str, String>;

/// What the service manager hands a program, by key path: values below the file.
pub type Provided = BTreeMap<&'static str, (String, &'static str)>;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// An environment variable.
    Variable(String),
    /// A line of the file.
    File {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// A directory that the service manager names in this variable.
    ServiceManager(&'static str),
    /// Nobody has set it.
    Default,
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The named file does not exist.
    #[error("the configuration file {path} does not exist; create it, or name another one with --config")]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error(
        "cannot read the configuration file {path}; make it readable for the user that runs this program"
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is too large to be one.
    #[error("the configuration file {path} is larger than {FILE_MAX_BYTES} bytes; is it the right file?")]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// The file is not TOML. The line itself is not repeated: there may be a secret in it.
    #[error("{path}:{line}: this is not TOML: {message}; correct the line (texts stand in double quotes)")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// There is no such key.
    #[error("{origin}: there is no key `{key}`; {advice}")]
    UnknownKey {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: String,
        /// What is meant, or where to look.
        advice: String,
    },
    /// There is no such variable.
    #[error("there is no environment variable `{variable}`; {advice}")]
    UnknownVariable {
        /// The variable.
        variable: String,
        /// What is meant, or where to look.
        advice: String,
    },
    /// A value that its key does not allow.
    #[error(transparent)]
    Value(Box<InvalidValue>),
    /// A proxy of the environment's.
    #[error(
        "the proxy that the environment names (HTTPS_PROXY) cannot be used; correct it, or set tunnel.proxy = \"none\""
    )]
    EnvironmentProxy(#[source] InvalidProxyUrl),
    /// A section whose values make no sense together.
    #[error("{origin}: [{section}] cannot be used")]
    Section {
        /// Where it begins.
        origin: Origin,
        /// Which.
        section: String,
        /// Why, and what to do.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Two values that do not go together.
    #[error("`{first}` and `{second}` do not go together: {why}")]
    Conflict {
        /// One key.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// Why, and what to do.
        why: &'static str,
    },
}

/// A value that its key does not allow.
#[derive(Debug, Error)]
#[error("{origin}: `{key}`{value} {why}; it must be {allowed}")]
pub struct InvalidValue {
    /// Where it stands.
    pub origin: Origin,
    /// The key.
    pub key: String,
    /// The value, as ` = …`, or nothing where it should not be repeated.
    value: String,
    why: String,
    allowed: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// All values of a program, each with its origin.
pub struct Settings {
    program: &'static Program,
    values: OrderedMap<&'static str, (Raw, Origin)>,
    members: BTreeMap<&'static str, Members>,
}

impl Settings {
    /// Reads all layers and checks every value. Blocks on the file: for the start and for reloads
    /// on a blocking thread.
    pub fn load(
        program: &'static Program,
        file: &ConfigFile,
        flags: &Flags,
        environment: &Environment,
        provided: &Provided,
    ) -> Result<Self, ConfigError> {
        let mut settings = Self {
            program,
            values: OrderedMap::new(),
            members: BTreeMap::new(),
        };
        settings.add_defaults();
        for (path, (value, variable)) in provided {
            let origin = Origin::ServiceManager(variable);
            settings.set(path, Raw::Text(value.clone()), origin)?;
        }
        settings.add_file(program.file(file, environment))?;
        settings.add_variables(environment)?;
        for (path, value) in flags {
            settings.set(path, Raw::Text(value.clone()), Origin::Flag)?;
        }
        for key in program.keys {
            if let Some((raw, origin)) = settings.values.get(key.path()) {
                key.normalize(raw)
                    .map_err(|refusal| refused(*key, key.path().to_owned(), raw, origin, refusal))?;
            }
        }
        Ok(settings)
    }

    /// The value of a key; `None` when it is not set and has no default.
    pub fn get<T>(&self, key: &'static Key<T>) -> Result<Option<T>, ConfigError> {
        let Some((raw, origin)) = self.values.get(key.path) else {
            return Ok(None);
        };
        let value = key.form.read(raw);
        value
            .map(Some)
            .map_err(|refusal| refused(key, key.path.to_owned(), raw, origin, refusal))
    }

    /// The value of a key that has a default.
    pub fn required<T>(&self, key: &'static Key<T>) -> Result<T, ConfigError> {
        self.get(key)?.ok_or_else(|| {
            let refusal = Refusal::new("is not set");
            let nothing = Raw::Text(String::new());
            refused(key, key.path.to_owned(), &nothing, &Origin::Default, refusal)
        })
    }

    /// The sections of a kind, by name.
    pub fn members(&self, family: &Family) -> impl Iterator<Item = (&str, &Member)> {
        let members = self.members.get(family.name);
        members
            .into_iter()
            .flatten()
            .map(|(name, member)| (name.as_str(), member))
    }

    /// Where a key's value comes from.
    pub fn origin(&self, path: &str) -> Option<&Origin> {
        self.values.get(path).map(|(_, origin)| origin)
    }

    /// Every key with its value as TOML, if it has one, and the value's origin.
    pub fn effective(&self) -> Vec<(&'static str, Option<(String, &Origin)>)> {
        let value = |key: &&dyn AnyKey| {
            let (raw, origin) = self.values.get(key.path())?;
            Some((key.normalize(raw).ok()?, origin))
        };
        self.program
            .keys
            .iter()
            .map(|key| (key.path(), value(key)))
            .collect()
    }

    fn add_defaults(&mut self) {
        for key in self.program.keys {
            if let Fallback::Value(text) = key.fallback() {
                let value = (Raw::Text(text.to_owned()), Origin::Default);
                self.values.insert(key.path(), value);
            }
        }
    }

    fn add_file(&mut self, file: ConfigFile) -> Result<(), ConfigError> {
        let (path, must_exist) = match file {
            ConfigFile::Default => (PathBuf::from(self.program.default_file), false),
            ConfigFile::Named(path) => (path, true),
        };
        let Some(text) = read_file(&path)? else {
            return if must_exist {
                Err(ConfigError::Missing { path })
            } else {
                Ok(())
            };
        };
        let table = DeTable::parse(&text).map_err(|error| ConfigError::Syntax {
            path: path.clone(),
            line: line_of(&text, error.span().map_or(0, |span| span.start)),
            message: foreign_text(error.message()),
        })?;
        let file = FileText {
            path: &path,
            text: &text,
        };
        self.add_table(&file, "", table.get_ref())
    }

    fn add_table(
        &mut self,
        file: &FileText<'_>,
        prefix: &str,
        table: &DeTable<'_>,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let origin = file.origin(name.span().start);
            let is_section = self.program.is_section(&path);
            let family = self.program.families.iter().find(|family| family.name == path);
            match value.get_ref() {
                DeValue::Table(inner) if family.is_some() => {
                    if let Some(family) = family {
                        self.members.insert(family.name, family.read(file, inner)?);
                    }
                }
                DeValue::Table(inner) if is_section => self.add_table(file, &path, inner)?,
                other => self.set(&path, raw_of(other), origin)?,
            }
        }
        Ok(())
    }

    fn add_variables(&mut self, environment: &Environment) -> Result<(), ConfigError> {
        let program = self.program;
        for (variable, value) in environment.with_prefix(program.variable_prefix) {
            if variable == program.file_variable() {
                continue;
            }
            let Some(key) = program
                .keys
                .iter()
                .find(|key| program.variable(key.path()) == variable)
            else {
                let prefix = program.variable_prefix;
                let known = program.keys.iter().map(|key| program.variable(key.path()));
                let known: Vec<_> = known.map(|name| name.replacen(prefix, "", 1)).collect();
                let typed = variable.strip_prefix(prefix).unwrap_or(variable);
                let near = nearest(typed, known.iter().map(String::as_str));
                return Err(ConfigError::UnknownVariable {
                    variable: foreign_text(variable),
                    advice: program.advice(near.map(|near| format!("{prefix}{near}")).as_deref()),
                });
            };
            let raw = match value.to_str() {
                Some(text) => Raw::Text(text.to_owned()),
                None => Raw::Foreign("bytes that are not UTF-8"),
            };
            self.set(key.path(), raw, Origin::Variable(variable.to_owned()))?;
        }
        Ok(())
    }

    fn set(&mut self, path: &str, raw: Raw, origin: Origin) -> Result<(), ConfigError> {
        let program = self.program;
        let Some(key) = program.keys.iter().find(|key| key.path() == path) else {
            let sections = program.sections.iter().map(|(name, _)| *name);
            let families = program.families.iter().map(|family| family.name);
            let known = program.keys.iter().map(|key| key.path()).chain(sections);
            let advice = if program.families.iter().any(|family| family.name == path) {
                format!("write a section [{path}.NAME] and its keys below")
            } else if program.is_section(path) {
                format!("`{path}` is a section: write [{path}] and its keys below")
            } else {
                program.advice(nearest(path, known.chain(families)))
            };
            return Err(ConfigError::UnknownKey {
                origin,
                key: foreign_text(path),
                advice,
            });
        };
        self.values.insert(key.path(), (raw, origin));
        Ok(())
    }
}

impl Program {
    /// The environment variable of a key.
    pub fn variable(&self, path: &str) -> String {
        format!(
            "{}{}",
            self.variable_prefix,
            path.replace('.', "_").to_uppercase()
        )
    }

    /// The environment variable that names the file.
    pub fn file_variable(&self) -> String {
        format!("{}CONFIG", self.variable_prefix)
    }

    /// The example file: every key, its documentation, what is allowed, and its default as a
    /// comment that can be uncommented.
    pub fn example(&self) -> String {
        let mut lines = vec![
            format!(
                "# Configuration of {}: {} unless --config names another file.",
                self.name, self.default_file
            ),
            "# Every key is here. A line that begins with `#` and a key shows the default, or an example"
                .to_owned(),
            "# where there is none; remove the `#` to set it. A flag wins over an environment variable,"
                .to_owned(),
            "# which wins over this file. The variable of a key is its name in capitals, with underscores:"
                .to_owned(),
            format!("# `max` in [section] is {}SECTION_MAX.", self.variable_prefix),
        ];
        for (section, doc) in self.sections {
            lines.push(String::new());
            lines.extend(doc.lines().map(|line| format!("# {line}")));
            if !section.is_empty() {
                lines.push(format!("[{section}]"));
            }
            for key in self.keys.iter().filter(|key| section_of(key.path()) == *section) {
                lines.push(String::new());
                lines.extend(key_example(*key));
            }
        }
        for family in self.families {
            lines.extend(family.example());
        }
        lines.push(String::new());
        lines.join("\n")
    }

    fn file(&self, named: &ConfigFile, environment: &Environment) -> ConfigFile {
        match (named, environment.get(&self.file_variable())) {
            (ConfigFile::Default, Some(path)) => ConfigFile::Named(PathBuf::from(path)),
            (ConfigFile::Default | ConfigFile::Named(_), _) => named.clone(),
        }
    }

    fn is_section(&self, path: &str) -> bool {
        !path.is_empty() && self.sections.iter().any(|(name, _)| *name == path)
    }

    fn advice(&self, near: Option<&str>) -> String {
        match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("`{} config show` lists all keys", self.name),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("command line"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::ServiceManager(variable) => write!(f, "service manager (${variable})"),
            Self::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for Settings {
    /// TOML with dotted keys and each value's origin as a comment: what `config show` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, value) in self.effective() {
            match value {
                Some((text, origin)) => writeln!(f, "{path} = {text}  # {origin}")?,
                None => writeln!(f, "# {path} is not set")?,
            }
        }
        for family in self.program.families {
            if let Some(members) = self.members.get(family.name) {
                family.show(members, f)?;
            }
        }
        Ok(())
    }
}

pub(super) struct FileText<'a> {
    path: &'a Path,
    text: &'a str,
}

impl FileText<'_> {
    pub(super) fn origin(&self, offset: usize) -> Origin {
        Origin::File {
            path: self.path.to_owned(),
            line: line_of(self.text, offset),
        }
    }
}

fn section_of(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(section, _)| section)
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

pub(super) fn raw_of(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Foreign("a number that is too large"), Raw::Number),
        DeValue::Array(items) => {
            let text = |item: &Spanned<DeValue<'_>>| item.get_ref().as_str().map(str::to_owned);
            let texts: Option<Vec<_>> = items.iter().map(text).collect();
            texts.map_or(Raw::Foreign("a list of other things than texts"), Raw::List)
        }
        DeValue::Boolean(truth) => Raw::Truth(*truth),
        other => Raw::Foreign(other.type_str()),
    }
}

/// `None` when there is no such file.
fn read_file(path: &Path) -> Result<Option<String>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut text = String::new();
    file.take(FILE_MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(Some(text))
}

pub(super) fn refused(
    key: &dyn AnyKey,
    path: String,
    raw: &Raw,
    origin: &Origin,
    refusal: Refusal,
) -> ConfigError {
    let discreet = key.discreet();
    let shown = foreign_text(raw.to_string().trim());
    ConfigError::Value(Box::new(InvalidValue {
        origin: origin.clone(),
        key: path,
        value: if discreet || shown.is_empty() {
            String::new()
        } else {
            format!(" = {shown}")
        },
        why: refusal.why,
        allowed: key.allowed(),
        source: refusal.source.filter(|_| !discreet),
    }))
}
