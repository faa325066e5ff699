//! The baselines that are built in: `guest-image/baselines`, one for each built-in suite.

use super::baseline_file::BaselineFile;

const SHIPPED: &[(&str, &str)] = &[
    ("fsx", include_str!("../../../guest-image/baselines/fsx.toml")),
    ("pjdfstest", include_str!("../../../guest-image/baselines/pjdfstest.toml")),
    ("pjdfstest-rs", include_str!("../../../guest-image/baselines/pjdfstest-rs.toml")),
    ("unionmount", include_str!("../../../guest-image/baselines/unionmount.toml")),
    ("xfstests", include_str!("../../../guest-image/baselines/xfstests.toml")),
    ("xfstests-overlay", include_str!("../../../guest-image/baselines/xfstests-overlay.toml")),
];

/// The baseline that is built in for a suite, and its text.
#[must_use]
pub fn shipped(suite: &str) -> Option<(BaselineFile, &'static str)> {
    let (_, text) = SHIPPED.iter().find(|(name, _)| *name == suite)?;
    // It is part of the program, and a test parses each.
    Some((BaselineFile::parse("a built-in baseline", text).ok()?, text))
}

/// The suites that have one.
pub fn shipped_suites() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_baseline_parses_is_for_its_suite_and_gives_a_reason_for_each_test() {
        for (name, text) in SHIPPED {
            let file = BaselineFile::parse(name, text).unwrap();
            assert_eq!(file.suite, *name);
            assert!(shipped(name).is_some());
            for row in &file.tests {
                assert!(!row.known.reason.is_empty(), "{name} {}", row.name);
            }
        }
    }

    #[test]
    fn every_built_in_suite_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let cache = guest_image::Cache::open(dir.path()).unwrap();
        let suites = guest_image::suite::manifests(&cache).unwrap();
        assert_eq!(suites.len(), shipped_suites().count());
        assert!(suites.iter().all(|suite| shipped_suites().any(|name| name == suite.name)));
    }

    #[test]
    fn a_suite_of_ones_own_has_none() {
        assert!(shipped("mine").is_none());
    }
}
