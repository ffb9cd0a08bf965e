//! The node's identity, as the configuration says.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// The configuration of the node's identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeIdentityConfig {
    /// Where it is also written for other programs.
    pub write_to: NodeFilesPlace,
    /// By what the platform is known, where that is not what the parent is known by.
    pub platform_ca: Option<PlatformCa>,
}

/// Where the node's identity is written for the platform's other programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NodeFilesPlace {
    /// Nowhere.
    #[default]
    Off,
    /// Where those programs look (contract section 4).
    Auto,
    /// This directory.
    At(PathBuf),
}

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("is no absolute path")]
pub struct NotAPlace;

impl FromStr for NodeFilesPlace {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            path if Path::new(path).is_absolute() => Ok(Self::At(path.into())),
            _ => Err(NotAPlace),
        }
    }
}

impl fmt::Display for NodeFilesPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Auto => f.write_str("auto"),
            Self::At(path) => path.display().fmt(f),
        }
    }
}

/// By what a platform is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlatformCa {
    /// The system's certificate authorities.
    System,
    /// Those in this PEM file.
    File(PathBuf),
}

impl FromStr for PlatformCa {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        match text {
            "system" => Ok(Self::System),
            path if Path::new(path).is_absolute() => Ok(Self::File(path.into())),
            _ => Err(NotAPlace),
        }
    }
}

impl fmt::Display for PlatformCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
