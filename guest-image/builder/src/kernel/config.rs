//! A kernel's `.config`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::error::{IoContext, Result};

/// The options of a `.config` or a fragment of one. An option that is not set is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelConfig(HashMap<String, String>);

impl KernelConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self::parse(&String::from_utf8_lossy(&fs::read(path).at("read", path)?)))
    }

    /// Reads text: `CONFIG_X=value` lines, comments (also those behind a value, as our fragment has them) apart.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let option = |line: &str| {
            let (name, value) = line.trim().strip_prefix("CONFIG_")?.split_once('=')?;
            let value = if value.starts_with('"') { value } else { value.split('#').next().unwrap_or(value) };
            Some((name.to_owned(), value.trim().to_owned()))
        };
        Self(text.lines().filter_map(option).filter(|(_, value)| value != "n").collect())
    }

    /// The option's value (`y`, `m`, a number, a quoted string), `None` when it is not set. `name` without `CONFIG_`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All options, sorted by name.
    #[must_use]
    pub fn sorted(&self) -> Vec<(&str, &str)> {
        let mut options: Vec<_> = self.0.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        options.sort_unstable();
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_with_their_values_and_unset_ones_are_not_there() {
        let config = KernelConfig::parse(
            "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=m # why\nCONFIG_D=\"a#b\"\nCONFIG_E=n\nnonsense\nCONFIG_F=64\n",
        );
        assert_eq!(config.sorted(), [("B", "y"), ("C", "m"), ("D", "\"a#b\""), ("F", "64")]);
        assert_eq!(config.get("A"), None);
    }
}
