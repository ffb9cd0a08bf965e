//! The command line of a small program: a table says what there is, [`read`] reads by it and [`help`] shows it.
//! Knows no command and no program. What a general library for this brings along is a twentieth of a static
//! satellite; manual pages and completions are made from the same table (`examples/generate-docs.rs`).

mod error;
mod help;
mod read;
#[cfg(test)]
mod tests;

pub use error::{Fault, UsageError};
pub use help::help;
pub use read::{Given, Read, read};

/// A program, or one of its commands.
#[derive(Debug)]
pub struct Definition {
    /// As it is typed.
    pub name: &'static str,
    /// In one line.
    pub about: &'static str,
    /// What else its help says before the arguments.
    pub details: &'static str,
    /// What its help ends with.
    pub closing: &'static str,
    /// What it takes. The options of a program are options of all its commands, too.
    pub arguments: &'static [Argument],
    /// Of which one must follow, where there are any.
    pub commands: &'static [Definition],
}

impl Definition {
    /// To take the rest from: nothing.
    pub const BARE: Self = Self {
        name: "",
        about: "",
        details: "",
        closing: "",
        arguments: &[],
        commands: &[],
    };
}

/// An option, or a word that is known by its place.
#[derive(Debug, Clone, Copy)]
pub struct Argument {
    /// Without the hyphens before it.
    pub name: &'static str,
    /// In one line.
    pub help: &'static str,
    /// How it is typed.
    pub shape: Shape,
    /// Whether it may be left out.
    pub need: Need,
    /// What may not be given beside it.
    pub not_with: &'static [&'static str],
}

/// How an argument is typed; with the name of its value in the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `--name`
    Flag,
    /// `--name VALUE`
    Value(&'static str),
    /// `--name VALUE`, as often as one likes.
    Repeated(&'static str),
    /// `--name VALUE,VALUE`, as often as one likes.
    List(&'static str),
    /// `VALUE`
    Word(&'static str),
}

/// Whether an argument may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It may.
    Optional,
    /// It must be there.
    Required,
    /// It must be there, unless this one is.
    RequiredUnless(&'static str),
    /// It may, and has this value then.
    Default(&'static str),
}

impl Argument {
    /// `--name`
    pub const fn flag(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Shape::Flag)
    }

    /// `--name VALUE`
    pub const fn value(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Shape::Value(value))
    }

    /// `--name VALUE`, as often as one likes.
    pub const fn repeated(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Shape::Repeated(value))
    }

    /// `--name VALUE,VALUE`, as often as one likes.
    pub const fn list(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Shape::List(value))
    }

    /// `VALUE`
    pub const fn word(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Shape::Word(value))
    }

    const fn new(name: &'static str, help: &'static str, shape: Shape) -> Self {
        Self {
            name,
            help,
            shape,
            need: Need::Optional,
            not_with: &[],
        }
    }

    /// It must be there.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.need = Need::Required;
        self
    }

    /// It must be there, unless `other` is.
    #[must_use]
    pub const fn required_unless(mut self, other: &'static str) -> Self {
        self.need = Need::RequiredUnless(other);
        self
    }

    /// It has this value where it is not there.
    #[must_use]
    pub const fn or(mut self, default: &'static str) -> Self {
        self.need = Need::Default(default);
        self
    }

    /// What may not be given beside it.
    #[must_use]
    pub const fn not_with(mut self, others: &'static [&'static str]) -> Self {
        self.not_with = others;
        self
    }

    /// With its value, as the help shows it.
    pub fn shown(&self) -> String {
        let name = self.name;
        match self.shape {
            Shape::Flag => format!("--{name}"),
            Shape::Value(value) | Shape::Repeated(value) | Shape::List(value) => {
                format!("--{name} <{value}>")
            }
            Shape::Word(value) if self.need == Need::Required => format!("<{value}>"),
            Shape::Word(value) => format!("[{value}]"),
        }
    }

    const fn is_word(&self) -> bool {
        matches!(self.shape, Shape::Word(_))
    }

    const fn is_repeatable(&self) -> bool {
        matches!(self.shape, Shape::Repeated(_) | Shape::List(_))
    }
}
