//! `git bisect log`, read and written, so that a search can be handed over either way.

use std::fmt::Write as _;

/// What one line says of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The old side: `good`, or the term that was chosen for it.
    Old,
    /// The new side: `bad`, or its term.
    New,
    /// `skip`.
    Skip,
}

/// The marks of a log, in order: revisions as they stand there.
///
/// # Errors
/// In words: the line that is none of git's.
pub fn parse(text: &str) -> Result<Vec<(Mark, String)>, String> {
    let (mut old, mut new) = (vec!["good".to_owned(), "old".to_owned()], vec!["bad".to_owned(), "new".to_owned()]);
    let mut marks = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| format!("line {}: {what}: {line:?}", at + 1);
        let command = line.strip_prefix("git bisect ").or_else(|| line.strip_prefix("git-bisect "));
        let mut words = command.ok_or_else(|| wrong("not a line of `git bisect log`"))?.split_ascii_whitespace();
        let verb = words.next().unwrap_or_default();
        if verb == "start" {
            // `start BAD GOOD… -- PATHS` is followed by lines for each; only its terms are not said again.
            let mut words = words.map(|word| word.trim_matches('\''));
            while let Some(word) = words.next() {
                let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
                match name {
                    "--term-old" | "--term-good" => old.extend(value.or_else(|| words.next()).map(str::to_owned)),
                    "--term-new" | "--term-bad" => new.extend(value.or_else(|| words.next()).map(str::to_owned)),
                    _ => {}
                }
            }
            continue;
        }
        let mark = match verb {
            "skip" => Mark::Skip,
            verb if old.iter().any(|term| term == verb) => Mark::Old,
            verb if new.iter().any(|term| term == verb) => Mark::New,
            _ => return Err(wrong("not a verdict that a bisection gives")),
        };
        let revisions: Vec<String> = words.map(|word| word.trim_matches('\'').to_owned()).collect();
        if revisions.is_empty() {
            return Err(wrong("no commit is named"));
        }
        marks.extend(revisions.into_iter().map(|revision| (mark, revision)));
    }
    Ok(marks)
}

/// As `git bisect log` writes it: `git bisect replay` reads it. `marks` are a mark, a commit and its subject.
#[must_use]
pub fn write(fix: bool, marks: &[(Mark, String, String)]) -> String {
    let (start, old, new) = match fix {
        true => ("git bisect start '--term-old' 'broken' '--term-new' 'fixed'\n", "broken", "fixed"),
        false => ("git bisect start\n", "good", "bad"),
    };
    let mut text = start.to_owned();
    for (mark, commit, subject) in marks {
        let term = match mark {
            Mark::Old => old,
            Mark::New => new,
            Mark::Skip => "skip",
        };
        // A subject has no line breaks of its own: git makes them spaces.
        let _ = writeln!(text, "# {term}: [{commit}] {}\ngit bisect {term} {commit}", subject.replace('\n', " "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::git::tests::{git, repository};
    use super::*;

    #[test]
    fn what_git_writes_is_read_and_what_we_write_git_replays() {
        for fix in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let ids = repository(dir.path(), 9);
            let marks: Vec<_> = [(Mark::New, 8), (Mark::Old, 0), (Mark::Skip, 4), (Mark::New, 5), (Mark::Old, 2)]
                .map(|(mark, at)| (mark, ids[at].clone(), format!("change {at}")))
                .into();
            let ours = dir.path().join("ours.log");
            std::fs::write(&ours, write(fix, &marks)).unwrap();
            git(dir.path(), &["bisect", "replay", ours.to_str().unwrap()]);
            assert_eq!(git(dir.path(), &["rev-parse", "HEAD"]), ids[3], "between 2 and 5 without 4");
            let theirs = parse(&git(dir.path(), &["bisect", "log"])).unwrap();
            let expected: Vec<_> = marks.iter().map(|(mark, id, _)| (*mark, id.clone())).collect();
            assert_eq!(theirs, expected);
        }
    }

    #[test]
    fn a_line_that_is_none_of_gits_is_named() {
        for (text, line) in [
            ("git bisect start\nrm -rf /\n", "line 2"),
            ("git bisect good\n", "line 1"),
            ("git bisect reset x\n", "line 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(line), "{error}");
        }
        assert_eq!(parse("# only words\n\n"), Ok(Vec::new()));
    }
}
