//! Sections of one kind of which the operator writes as many as there are things, each with a name:
//! `[services.web]`. Their keys are those of a program's table, less the path; a variable or a flag has
//! no way to name one, so they come from the file alone.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::{DeTable, DeValue};

use super::key::{AnyKey, Fallback, Key, Raw, Refusal, nearest};
use super::loader::{ConfigError, FileText, Origin, raw_of, refused};
use crate::base::limit::foreign_text;
use crate::base::ordered_map::OrderedMap;

/// A kind of sections.
pub struct Family {
    /// The first part of the section's path: `services`.
    pub name: &'static str,
    /// For the operator.
    pub doc: &'static str,
    /// A name for the example file.
    pub example: &'static str,
    /// What a name may be, as a noun phrase.
    pub allowed_names: &'static str,
    /// Whether a name may be one.
    pub is_name: fn(&str) -> bool,
    /// Most sections of the kind.
    pub most: usize,
    /// The keys of each section; their path is their name.
    pub keys: &'static [&'static dyn AnyKey],
}

/// All sections of one kind that stand in a file, by name.
pub(super) type Members = BTreeMap<String, Member>;

/// One section.
pub struct Member {
    /// Where it begins.
    pub origin: Origin,
    section: String,
    values: OrderedMap<&'static str, (Raw, Origin)>,
}

impl Member {
    /// `services.web`.
    pub fn section(&self) -> &str {
        &self.section
    }

    /// The value of a key; `None` when it is not set and has no default.
    pub fn get<T>(&self, key: &'static Key<T>) -> Result<Option<T>, ConfigError> {
        let Some((raw, origin)) = self.values.get(key.path) else {
            return Ok(None);
        };
        let value = key.form.read(raw);
        value
            .map(Some)
            .map_err(|refusal| refused(key, self.path(key.path), raw, origin, refusal))
    }

    /// The value of a key that has a default, or that must be set.
    pub fn required<T>(&self, key: &'static Key<T>) -> Result<T, ConfigError> {
        self.get(key)?.ok_or_else(|| {
            let nothing = Raw::Text(String::new());
            let refusal = Refusal::new("is not set");
            refused(key, self.path(key.path), &nothing, &self.origin, refusal)
        })
    }

    fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.section)
    }
}

impl Family {
    /// The section's table, or why it cannot be one of this kind.
    pub(super) fn read(
        &'static self,
        file: &FileText<'_>,
        table: &DeTable<'_>,
    ) -> Result<Members, ConfigError> {
        let mut members = Members::new();
        for (name, value) in table {
            let origin = file.origin(name.span().start);
            let name = name.get_ref();
            let section = format!("{}.{}", self.name, foreign_text(name));
            let unknown = |advice: String| ConfigError::UnknownKey {
                origin: origin.clone(),
                key: section.clone(),
                advice,
            };
            let DeValue::Table(keys) = value.get_ref() else {
                return Err(unknown(format!(
                    "write a section [{}.NAME] and its keys below",
                    self.name
                )));
            };
            if !(self.is_name)(name) {
                return Err(unknown(format!("the name must be {}", self.allowed_names)));
            }
            if members.len() >= self.most {
                return Err(unknown(format!(
                    "there may be {} of these sections at most",
                    self.most
                )));
            }
            let member = self.read_member(file, origin.clone(), section.clone(), keys)?;
            members.insert(name.to_string(), member);
        }
        Ok(members)
    }

    fn read_member(
        &self,
        file: &FileText<'_>,
        origin: Origin,
        section: String,
        table: &DeTable<'_>,
    ) -> Result<Member, ConfigError> {
        let mut member = Member {
            origin,
            section,
            values: OrderedMap::new(),
        };
        for key in self.keys {
            if let Fallback::Value(text) = key.fallback() {
                let value = (Raw::Text(text.to_owned()), Origin::Default);
                member.values.insert(key.path(), value);
            }
        }
        for (name, value) in table {
            let origin = file.origin(name.span().start);
            let name = name.get_ref();
            let Some(key) = self.keys.iter().find(|key| key.path() == name) else {
                let near = nearest(name, self.keys.iter().map(|key| key.path()));
                let all: Vec<_> = self.keys.iter().map(|key| key.path()).collect();
                return Err(ConfigError::UnknownKey {
                    origin,
                    key: member.path(&foreign_text(name)),
                    advice: near.map_or_else(
                        || format!("known are {}", all.join(", ")),
                        |near| format!("did you mean `{near}`?"),
                    ),
                });
            };
            let raw = raw_of(value.get_ref());
            key.normalize(&raw)
                .map_err(|refusal| refused(*key, member.path(key.path()), &raw, &origin, refusal))?;
            member.values.insert(key.path(), (raw, origin));
        }
        Ok(member)
    }

    /// Its part of the example file, as lines.
    pub(super) fn example(&self) -> Vec<String> {
        let mut lines = vec![String::new()];
        lines.extend(self.doc.lines().map(|line| format!("# {line}")));
        lines.push(format!("#[{}.{}]", self.name, self.example));
        for key in self.keys {
            lines.push(String::new());
            lines.extend(key_example(*key));
        }
        lines
    }

    /// Writes sections as dotted keys with each value's origin.
    pub(super) fn show(&self, members: &Members, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for member in members.values() {
            for key in self.keys {
                let value = member.values.get(key.path());
                let shown = value.and_then(|(raw, origin)| Some((key.normalize(raw).ok()?, origin)));
                if let Some((text, origin)) = shown {
                    writeln!(f, "{} = {text}  # {origin}", member.path(key.path()))?;
                }
            }
        }
        Ok(())
    }
}

/// A key in the example file: its documentation, what is allowed, and its default or an example.
pub(super) fn key_example(key: &dyn AnyKey) -> Vec<String> {
    let mut lines: Vec<_> = key.doc().lines().map(|line| format!("# {line}")).collect();
    let (text, remark) = match key.fallback() {
        Fallback::Value(text) => (text, ""),
        Fallback::Unset { example } => (example, " Not set by default."),
    };
    lines.push(format!("# It must be {}.{remark}", key.allowed()));
    let value = key.normalize(&Raw::Text(text.to_owned())).unwrap_or_default();
    let name = key.path().rsplit('.').next().unwrap_or_default();
    lines.push(format!("#{name} = {value}"));
    lines
}
