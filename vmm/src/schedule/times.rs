//! How long tests took in earlier runs on this machine: what takes long begins first where guests share the work.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Microseconds that each listed test of a suite took last.
pub type TestTimes = HashMap<String, u64>;

/// The file of a suite's times in the cache directory `cache`.
fn file(cache: &Path, suite: &str) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.=".contains(c) { c } else { '_' };
    cache.join("times").join(format!("{}.json", suite.chars().map(plain).collect::<String>()))
}

/// What is known of `suite`: nothing, if it never ran or its times cannot be read. They only make a run faster.
#[must_use]
pub fn read(cache: &Path, suite: &str) -> TestTimes {
    let text = fs::read(file(cache, suite)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Keeps what tests of `suite` took, beside what is known of its others.
///
/// # Errors
/// The file cannot be written.
pub fn keep(cache: &Path, suite: &str, times: TestTimes) -> std::io::Result<()> {
    if times.is_empty() {
        return Ok(());
    }
    let mut all = read(cache, suite);
    all.extend(times);
    let path = file(cache, suite);
    let dir = path.parent().unwrap_or(cache);
    fs::create_dir_all(dir)?;
    let mut new = tempfile::NamedTempFile::new_in(dir)?;
    new.write_all(&serde_json::to_vec(&all)?)?;
    new.persist(&path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_by_suite_and_garbage_is_none() {
        let cache = tempfile::tempdir().unwrap();
        let times =
            |pairs: &[(&str, u64)]| pairs.iter().map(|(test, us)| ((*test).to_owned(), *us)).collect::<TestTimes>();
        keep(cache.path(), "s --ov=10", times(&[("a", 1), ("b", 2)])).unwrap();
        keep(cache.path(), "s --ov=10", times(&[("b", 3)])).unwrap();
        assert_eq!(read(cache.path(), "s --ov=10"), times(&[("a", 1), ("b", 3)]));
        assert_eq!(read(cache.path(), "s"), times(&[]));
        fs::write(file(cache.path(), "s --ov=10"), "garbage").unwrap();
        assert_eq!(read(cache.path(), "s --ov=10"), times(&[]));
    }
}
