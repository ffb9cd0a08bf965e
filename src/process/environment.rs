//! The process's environment as a value, read once at start: the rest takes it as an argument, so
//! that a test needs no variables of its own.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::base::ordered_map::OrderedMap;

/// Variables and their values.
#[derive(Clone, Default)]
pub struct Environment {
    variables: OrderedMap<OsString, OsString>,
}

impl Environment {
    /// The process's own.
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    /// A variable's value. One that is set but empty counts as not set: that is how compose files
    /// and environment files hand on a variable that nobody has filled.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables
            .get(OsStr::new(name))
            .map(OsString::as_os_str)
            .filter(|value| !value.is_empty())
    }

    /// A variable's value as text, where it is UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.to_str()
    }

    /// The first directory of a variable in which the service manager names one or several
    /// (`STATE_DIRECTORY`, `RUNTIME_DIRECTORY`).
    pub fn directory(&self, name: &str) -> Option<PathBuf> {
        let first = self.text(name)?.split(':').next()?;
        (!first.is_empty()).then(|| PathBuf::from(first))
    }

    /// The variables whose names are text and begin with `prefix`, in order, without the empty ones.
    pub fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&str, &OsStr)> {
        self.variables
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .filter_map(|(name, value)| Some((name.to_str()?, value.as_os_str())))
            .filter(move |(name, _)| name.starts_with(prefix))
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self {
            variables: pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        }
    }
}

impl std::fmt::Debug for Environment {
    /// The names alone: values may be secrets of other programs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_is_not_set_and_the_first_directory_counts() {
        let environment = Environment::from_iter([("A", ""), ("B", "/one:/two"), ("AB", "x")]);
        assert_eq!(environment.get("A"), None);
        assert_eq!(environment.directory("B"), Some(PathBuf::from("/one")));
        assert_eq!(
            environment.with_prefix("A").collect::<Vec<_>>(),
            [("AB", OsStr::new("x"))]
        );
    }

    #[test]
    fn debug_shows_no_values() {
        let shown = format!("{:?}", Environment::from_iter([("TOKEN", "hunter2")]));
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
    }
}
