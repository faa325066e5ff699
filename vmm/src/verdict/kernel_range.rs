//! Which kernels a baseline is for: `>=6.1, <6.13`.

use std::fmt;
use std::str::FromStr;

/// All of its conditions hold for a kernel in it. A condition compares as many numbers as it has: `=6.12` is every 6.12.N,
/// `<6.13` none of 6.13's release candidates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRange {
    conditions: Vec<(Comparison, Vec<u32>)>,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    Equal,
    AtLeast,
    Greater,
}

impl KernelRange {
    /// Whether `release`, as `uname -r` tells it, is in the range. One that does not begin with a number is in none.
    #[must_use]
    pub fn contains(&self, release: &str) -> bool {
        let Some(version) = version_of(release) else { return false };
        self.conditions.iter().all(|(comparison, wanted)| {
            // 6.12 is 6.12.0, and what a release has beyond the condition's numbers says nothing about it.
            let known: Vec<u32> = version.iter().copied().chain(std::iter::repeat(0)).take(wanted.len()).collect();
            let order = known.cmp(wanted);
            match comparison {
                Comparison::Less => order.is_lt(),
                Comparison::AtMost => order.is_le(),
                Comparison::Equal => order.is_eq(),
                Comparison::AtLeast => order.is_ge(),
                Comparison::Greater => order.is_gt(),
            }
        })
    }

    /// The range that has just the series of these releases: `=6.12`, or from the first to the last. `None` when one of
    /// them has no numbers, or there is none.
    #[must_use]
    pub fn around<'r>(releases: impl IntoIterator<Item = &'r str>) -> Option<Self> {
        let series = |release: &str| version_of(release).filter(|v| v.len() >= 2).map(|v| (v[0], v[1]));
        let all: Option<Vec<_>> = releases.into_iter().map(series).collect();
        let all = all?;
        let (low, high) = (all.iter().min()?, all.iter().max()?);
        let text = match low == high {
            true => format!("={}.{}", low.0, low.1),
            false => format!(">={}.{}, <={}.{}", low.0, low.1, high.0, high.1),
        };
        text.parse().ok()
    }
}

/// The numbers that a release begins with: 6, 12 and 117 of `6.12.117+deb13-cloud-amd64`.
fn version_of(release: &str) -> Option<Vec<u32>> {
    let end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
    release[..end].trim_end_matches('.').split('.').map(|number| number.parse().ok()).collect()
}

impl FromStr for KernelRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |part: &str| {
            format!(
                "{part:?} is no condition on a kernel: write `>=6.1, <6.13`, `=6.12` or the like, with <, <=, =, >= or >"
            )
        };
        let mut conditions = Vec::new();
        for part in text.split(',').map(str::trim) {
            // The longer signs first.
            let signs = [
                ("<=", Comparison::AtMost),
                (">=", Comparison::AtLeast),
                ("<", Comparison::Less),
                (">", Comparison::Greater),
                ("=", Comparison::Equal),
            ];
            let found = signs.iter().find_map(|(sign, what)| Some((*what, part.strip_prefix(sign)?.trim())));
            let (comparison, number) = found.ok_or_else(|| wrong(part))?;
            let whole = number.chars().all(|c| c.is_ascii_digit() || c == '.') && !number.ends_with('.');
            let version = version_of(number).filter(|_| whole).ok_or_else(|| wrong(part))?;
            conditions.push((comparison, version));
        }
        Ok(Self { conditions, text: text.trim().to_owned() })
    }
}

impl fmt::Display for KernelRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> KernelRange {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_has_the_kernels_between_its_ends() {
        let both = range(">=6.1, <6.13");
        for (release, inside) in [
            ("6.0.19", false),
            ("6.1", true),
            ("6.1.0-49-cloud-amd64", true),
            ("6.12.117+deb13-cloud-amd64", true),
            ("6.13.0-rc3", false),
            ("6.13", false),
            ("5.15.0", false),
            ("7.0", false),
        ] {
            assert_eq!(both.contains(release), inside, "{release}");
        }
    }

    #[test]
    fn a_condition_compares_as_many_numbers_as_it_has() {
        for (text, inside, outside) in [
            ("=6.12", "6.12.117", "6.13.1"),
            ("<=6.12", "6.12.117", "6.13.0"),
            (">6.12", "6.13.0-rc1", "6.12.117"),
            (">=6", "6.0.1", "5.19"),
            ("=6.12.117", "6.12.117+deb13", "6.12.118"),
            ("=6.12.0", "6.12", "6.12.1"),
        ] {
            assert!(range(text).contains(inside), "{text} {inside}");
            assert!(!range(text).contains(outside), "{text} {outside}");
        }
    }

    #[test]
    fn what_is_no_version_is_in_no_range() {
        for release in ["", "linux", "-6.12", ".6", "6..1", "99999999999.1"] {
            assert!(!range(">=0.0").contains(release), "{release}");
        }
    }

    #[test]
    fn a_wrong_condition_is_named_with_what_is_right() {
        for text in ["", "6.12", ">=", ">=six", "~6.12", ">=6.1,", ">=6.1 <6.13", ">=6.12-rc1", ">=6.", "=>6"] {
            let error = text.parse::<KernelRange>().unwrap_err();
            assert!(error.contains("no condition") && error.contains(">=6.1, <6.13"), "{text}: {error}");
        }
    }

    #[test]
    fn the_range_around_releases_is_that_of_their_series() {
        let around = |releases: &[&str]| KernelRange::around(releases.iter().copied()).map(|r| r.to_string());
        assert_eq!(around(&["6.12.117+deb13", "6.12.1"]).unwrap(), "=6.12");
        assert_eq!(around(&["6.12.117", "6.1.0-49", "6.6.2"]).unwrap(), ">=6.1, <=6.12");
        assert_eq!(around(&[]), None);
        assert_eq!(around(&["6.12", "odd"]), None);
    }
}
