//! Which cluster a command speaks to: a small file that `dev up` writes, or a person.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use orchestrator::Projects;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The only form there is so far.
const FORMAT: u32 = 1;

/// Addresses of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The form of this file.
    pub format: u32,
    /// `host:port` of the hub.
    pub hub: String,
    /// The store's URL, as the daemons got it.
    pub store: String,
}

impl Context {
    /// Makes a context of the present form.
    pub fn new(hub: String, store: String) -> Self {
        Self { format: FORMAT, hub, store }
    }

    /// Reads the file that was named, else the user's.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let file = match file {
            Some(file) => file.to_owned(),
            None => user_file()?,
        };
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::state(
                    format!(
                        "there is no context file {}: which cluster is meant is not known",
                        file.display()
                    ),
                    "start one with `sailctl dev up`, or name the file with --context or SAILCTL_CONTEXT",
                ));
            }
            Err(error) => return Err(Error::path("read", &file, error)),
        };
        let wrong = |reason: String| {
            Error::usage(
                format!("the context file {} is not one: {reason}", file.display()),
                "it holds {\"format\": 1, \"hub\": \"HOST:PORT\", \"store\": \"URL\"}",
            )
        };
        let context: Self = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if context.format != FORMAT {
            return Err(wrong(format!("format {} is newer than this sailctl", context.format)));
        }
        Ok(context)
    }

    /// Prepares a connection to the hub; it connects on first use.
    ///
    /// # Errors
    /// The address is not one.
    pub fn projects(&self) -> Result<Projects> {
        Projects::connect(&self.hub).map_err(Error::asked("use the hub"))
    }
}

/// The context of a user who names none.
///
/// # Errors
/// The user has no home.
pub fn user_file() -> Result<PathBuf> {
    Ok(below_home("XDG_CONFIG_HOME", ".config")?.join("sailctl/context.json"))
}

/// A directory of the user: the variable's, else the one below the home.
///
/// # Errors
/// The user has no home.
pub fn below_home(variable: &str, otherwise: &str) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
        return Ok(directory.into());
    }
    std::env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .map(|home| home.join(otherwise))
        .ok_or_else(|| {
            Error::usage(
                format!("neither HOME nor {variable} is set"),
                "name the place with --context and --dir",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_of_a_newer_form_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("context.json");
        fs::write(&file, r#"{"format": 2, "hub": "127.0.0.1:1", "store": "memory:"}"#).unwrap();
        assert!(Context::load(Some(&file)).unwrap_err().to_string().contains("newer"));
        fs::write(&file, "{}").unwrap();
        assert!(Context::load(Some(&file)).is_err());
        fs::remove_file(&file).unwrap();
        assert!(Context::load(Some(&file)).unwrap_err().remedy().contains("dev up"));
    }
}
