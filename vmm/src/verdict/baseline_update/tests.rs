use std::fs;

use super::*;
use crate::session::{RunEvent, RunOutcome, SuiteEnd};
use crate::verdict::{Tally, read_list};

use TestStatus::{Error, Fail, Pass, Skip};

fn run(suite: &str, results: &[(&str, TestStatus)]) -> SavedRun {
    let mut tally = Tally::default();
    for (test, status) in results {
        let (suite, test, message) = (suite.into(), (*test).into(), String::new());
        tally.on_event(&RunEvent::TestFinished { suite, test, status: *status, duration_us: 1, message });
    }
    tally.on_event(&RunEvent::SuiteFinished { suite: suite.into(), end: Some(SuiteEnd::Exited(0)), duration_ms: 1 });
    let (kernel_release, outcome) = (Some("6.12.117+deb13".into()), Some(RunOutcome::Completed));
    SavedRun { name: "r".into(), kernel_release, outcome, tally }
}

fn old(rows: &str) -> BaselineFile {
    BaselineFile::parse("old.toml", &format!("suite = 's'\n{rows}")).unwrap()
}

fn row<'f>(file: &'f BaselineFile, name: &str) -> &'f Expectation {
    &file.tests.iter().find(|row| row.name == name).unwrap().known
}

fn counted(known: &Expectation) -> (Expected, u32, u32) {
    let rate = known.seen.unwrap();
    (known.expect, rate.failed, rate.runs)
}

#[test]
fn failures_of_several_runs_become_rows_with_their_counts() {
    let runs = [
        run("s", &[("good", Pass), ("bad", Fail), ("now and then", Fail), ("hangs", Error), ("skipped", Skip)]),
        run("s", &[("good", Pass), ("bad", Fail), ("now and then", Pass), ("hangs", Fail), ("skipped", Skip)]),
        run("s", &[("good", Pass), ("bad", Fail), ("now and then", Pass)]),
    ];
    let update = BaselineUpdate::new(&runs, None, None).unwrap();
    let file = &update.file;
    assert_eq!((file.suite.as_str(), file.kernel.as_ref().unwrap().to_string()), ("s", "=6.12".into()));
    assert_eq!(update.added, ["bad", "now and then", "hangs"]);
    assert_eq!(file.tests.len(), 3);
    assert_eq!(counted(row(file, "bad")), (Expected::Fail, 3, 3));
    assert_eq!(counted(row(file, "now and then")), (Expected::Flaky, 1, 3));
    assert_eq!(counted(row(file, "hangs")), (Expected::Error, 2, 2));
    let text = file.to_toml().unwrap();
    assert_eq!(&BaselineFile::parse("new", &text).unwrap(), file);
}

#[test]
fn what_the_old_one_says_is_kept_and_what_passes_now_is_dropped_and_named() {
    let before = old("note = 'mine'\n\
         [[test]]\nname = 'still'\nexpect = 'fail'\nfailed = 2\nruns = 2\nreason = 'bug 7'\nlink = 'https://x/7'\n\
         [[test]]\nname = 'fixed'\nexpect = 'fail'\nreason = 'bug 8'\n\
         [[test]]\nname = 'never'\nexpect = 'expunge'\nreason = 'eats the disk'\n\
         [[test]]\nname = 'must'\nexpect = 'pass'\n\
         [[test]]\nname = 'runs now'\nexpect = 'skip'\n\
         [[test]]\nname = 'skipped'\nexpect = 'fail'\n\
         [[test]]\nname = 'absent'\nexpect = 'fail'\n");
    let results = [
        ("still", Fail),
        ("fixed", Pass),
        ("never", Fail),
        ("must", Pass),
        ("runs now", Pass),
        ("skipped", Skip),
        ("new", Fail),
    ];
    let update = BaselineUpdate::new(&[run("s", &results)], None, Some(before)).unwrap();
    let names: Vec<_> = update.file.tests.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["still", "never", "must", "skipped", "absent", "new"]);
    let still = row(&update.file, "still");
    assert_eq!(counted(still), (Expected::Fail, 3, 3));
    assert_eq!((still.reason.as_str(), still.link.as_deref()), ("bug 7", Some("https://x/7")));
    assert_eq!((update.dropped, update.added), (vec!["fixed".into(), "runs now".into()], vec!["new".into()]));
    assert_eq!((update.changed, update.not_seen), (vec!["still".to_owned()], vec!["absent".to_owned()]));
    assert_eq!((update.file.note.as_deref(), update.file.kernel), (Some("mine"), None));
}

#[test]
fn a_flaky_test_stays_one_until_its_passing_is_no_chance_any_more() {
    let flaky = "[[test]]\nname = 'a'\nexpect = 'flaky'\nfailed = 1\nruns = 2\nreason = 'race'\n";
    let runs = |count| (0..count).map(|_| run("s", &[("a", Pass)])).collect::<Vec<_>>();
    let few = BaselineUpdate::new(&runs(6), None, Some(old(flaky))).unwrap();
    assert_eq!(counted(row(&few.file, "a")), (Expected::Flaky, 1, 8));
    let many = BaselineUpdate::new(&runs(7), None, Some(old(flaky))).unwrap();
    assert_eq!((many.dropped, many.file.tests.len()), (vec!["a".to_owned()], 0));
    let failing = BaselineUpdate::new(&[run("s", &[("a", Fail)])], None, Some(old(flaky))).unwrap();
    assert_eq!(counted(row(&failing.file, "a")), (Expected::Flaky, 2, 3));
    assert_eq!(row(&failing.file, "a").reason, "race");
}

#[test]
fn what_always_failed_and_passes_now_and_then_is_flaky_at_todays_rate() {
    let always = "[[test]]\nname = 'a'\nexpect = 'fail'\nfailed = 9\nruns = 9\nreason = 'bug'\n";
    let update = BaselineUpdate::new(&[run("s", &[("a", Pass), ("a", Fail)])], None, Some(old(always))).unwrap();
    assert_eq!(counted(row(&update.file, "a")), (Expected::Flaky, 1, 2));
    assert_eq!(row(&update.file, "a").reason, "bug");
}

#[test]
fn what_a_test_did_when_it_ran_again_counts() {
    let mut run = run("s", &[("a", Fail)]);
    for status in [Pass, Fail, Pass] {
        let (suite, test, message) = ("s".into(), "a".into(), String::new());
        run.tally.on_event(&RunEvent::TestRetried { suite, test, status, duration_us: 1, message });
    }
    let update = BaselineUpdate::new(&[run], None, None).unwrap();
    assert_eq!(counted(row(&update.file, "a")), (Expected::Flaky, 2, 4));
}

#[test]
fn sections_have_rows_of_their_own_unless_the_old_one_has_a_row_for_all() {
    let runs = [run("s --ov", &[("a", Fail), ("b", Fail)]), run("s --ov --meta", &[("a", Fail), ("b", Pass)])];
    let update = BaselineUpdate::new(&runs, Some("s"), None).unwrap();
    assert_eq!(update.added, ["--ov: a", "--ov: b", "--ov --meta: a"]);
    let for_all = old("[[test]]\nname = 'a'\nexpect = 'fail'\n");
    let update = BaselineUpdate::new(&runs, None, Some(for_all)).unwrap();
    assert_eq!(update.added, ["--ov: b"]);
    assert_eq!(counted(row(&update.file, "a")), (Expected::Fail, 2, 2));
}

#[test]
fn runs_that_make_no_baseline_are_one_error_that_says_what_to_do() {
    let two = [run("s", &[("a", Fail)]), run("t", &[("b", Pass)])];
    let of = |runs: &[SavedRun], suite, old| BaselineUpdate::new(runs, suite, old).unwrap_err().to_string();
    assert!(of(&two, None, None).contains("s, t; say with --suite"));
    assert!(of(&two, Some("u"), None).contains("no results of the suite u, only of s, t"));
    assert!(of(&two, Some("t"), Some(old(""))).contains("for the suite s, not for t"));
    assert!(of(&[], None, None).contains("no results"));
    assert!(of(&two, None, Some(old("kernel = '<6.12'\n"))).contains("kernels <6.12, and a run has 6.12.117+deb13"));
}

#[test]
fn lists_of_xfstests_and_kdevops_become_baselines() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    let text = "# a title\ngeneric/001\ngeneric/475 # F:1/11 hangs https://example.org/1 at times\n\
                generic/476 # F:1/1\ngeneric/001 # twice\n";
    fs::write(&list, text).unwrap();
    let file = import("xfstests", read_list(&list).unwrap(), Expected::Expunge);
    assert_eq!(file.tests.len(), 3);
    assert_eq!(
        (row(&file, "generic/001").expect, row(&file, "generic/001").reason.as_str()),
        (Expected::Expunge, "twice")
    );
    let flaky = row(&file, "generic/475");
    assert_eq!(counted(flaky), (Expected::Flaky, 1, 11));
    assert_eq!((flaky.reason.as_str(), flaky.link.as_deref()), ("hangs at times", Some("https://example.org/1")));
    assert_eq!(counted(row(&file, "generic/476")), (Expected::Fail, 1, 1));
    assert_eq!(BaselineFile::parse("f", &file.to_toml().unwrap()).unwrap(), file);
}
