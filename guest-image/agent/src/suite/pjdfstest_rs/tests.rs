use wire::{ProcessEnd, TestStatus};

use super::*;

fn results(text: &str, end: ProcessEnd) -> Vec<(String, TestStatus, String)> {
    let mut parser = PjdfstestRs::default();
    let mut events: Vec<_> = text.lines().flat_map(|line| parser.line(line)).collect();
    events.extend(parser.finish(end));
    events
        .into_iter()
        .map(|event| match event {
            TestEvent::Finished { name, status, message } => (name, status, message),
            TestEvent::Started { name } => panic!("{name} started, but the format does not tell that"),
        })
        .collect()
}

fn result(name: &str, status: TestStatus, message: &str) -> (String, TestStatus, String) {
    (name.into(), status, message.into())
}

const RUN: &str = "\
chmod::change_perm::regular                                                   ok
chflags::set_flags                                                       skipped
\trequires features: chflags
\tcannot get the mount options
open::etxtbsy                                                             FAILED
\tassertion `left == right` failed
  left: Ok(())
 right: Err(ETXTBSY)
rename::known                                        failed as expected
rename::surprise                                     PASSED UNEXPECTEDLY

Summary: 2 failed, 1 skipped, 1 passed, 1 expected failures, 5 total
";

#[test]
fn each_test_function_is_a_result_with_its_reason() {
    use TestStatus::{Fail, Pass, Skip};
    assert_eq!(
        results(RUN, ProcessEnd::Exited(1)),
        [
            result("chmod::change_perm::regular", Pass, ""),
            result("chflags::set_flags", Skip, "requires features: chflags\ncannot get the mount options"),
            result("open::etxtbsy", Fail, "assertion `left == right` failed\n  left: Ok(())\n right: Err(ETXTBSY)"),
            result("rename::known", Pass, "failed as expected"),
            result("rename::surprise", Fail, "passed unexpectedly"),
        ]
    );
}

#[test]
fn a_name_longer_than_its_column_is_read_as_well() {
    let name = format!("link::{}", "x".repeat(100));
    let text = format!("{name} ok\n\nSummary: 0 failed, 0 skipped, 1 passed, 0 expected failures, 1 total\n");
    assert_eq!(results(&text, ProcessEnd::Exited(0)), [result(&name, TestStatus::Pass, "")]);
}

#[test]
fn a_suite_that_dies_leaves_an_error_named_after_what_came_before() {
    let text = "chmod::a ok\nchmod::b   FAILED\n\twhy\n";
    assert_eq!(
        results(text, ProcessEnd::Signaled(11))[1..],
        [
            result("chmod::b", TestStatus::Fail, "why"),
            result(
                "after chmod::b",
                TestStatus::Error,
                "the suite ended (killed by signal 11) without its summary, after 2 results"
            ),
        ]
    );
    assert_eq!(results("", ProcessEnd::Exited(2))[0].0, "first test");
}

#[test]
fn a_summary_that_counts_other_than_the_output_is_an_error() {
    let text = "chmod::a ok\nSummary: 0 failed, 0 skipped, 2 passed, 0 expected failures, 2 total\n";
    assert_eq!(
        results(text, ProcessEnd::Exited(0))[1],
        result("summary", TestStatus::Error, "the suite counts 2 tests, its output has 1 results")
    );
}

#[test]
fn a_killed_test_is_one_error_and_what_follows_from_it_none() {
    let mut parser = PjdfstestRs::default();
    parser.line("chmod::a ok");
    assert_eq!(parser.abort("too long"), [TestEvent::finished("after chmod::a", TestStatus::Error, "too long")]);
    assert_eq!(parser.abort("again"), []);
    assert_eq!(parser.finish(ProcessEnd::Signaled(9)), []);
}

#[test]
fn a_result_whose_reason_may_follow_is_held_until_released() {
    let mut parser = PjdfstestRs::default();
    assert_eq!(parser.line("chmod::a  FAILED"), []);
    assert!(parser.is_holding_back());
    assert_eq!(parser.line("\twhy"), []);
    assert_eq!(parser.release(), [TestEvent::finished("chmod::a", TestStatus::Fail, "why")]);
    assert!(!parser.is_holding_back());
}

#[test]
fn other_lines_are_no_results() {
    for line in [
        "",
        "ok",
        "a ok",
        "a::b okay",
        "a::b",
        "a: :b ok",
        "a::b not ok",
        "::a ok",
        "a::b\tok",
        "\ta::b ok",
        "\u{fffd}::b ok",
    ] {
        assert_eq!(PjdfstestRs::default().line(line), [], "{line:?}");
    }
}

#[test]
fn an_endless_explanation_is_cut() {
    let mut parser = PjdfstestRs::default();
    parser.line("chmod::a  FAILED");
    for _ in 0..100_000 {
        parser.line("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
    }
    assert!(matches!(&parser.release()[..], [TestEvent::Finished { message, .. }] if message.len() <= MAX_EXPLANATION));
}

#[test]
fn a_second_run_of_tests_that_were_kept_back_is_no_contradiction() {
    let first = "chmod::a ok\nSummary: 0 failed, 2 skipped, 1 passed, 0 expected failures, 3 total\n";
    let second =
        "chmod::b ok\nchmod::c FAILED\n\twhy\nSummary: 1 failed, 0 skipped, 1 passed, 0 expected failures, 2 total\n";
    let got = results(&[first, second].concat(), ProcessEnd::Exited(1));
    assert_eq!(
        got.iter().map(|(_, status, _)| *status).collect::<Vec<_>>(),
        [TestStatus::Pass, TestStatus::Pass, TestStatus::Fail]
    );
    let cut = results(&[first, "chmod::b ok\n"].concat(), ProcessEnd::Signaled(11));
    assert_eq!(cut[2].1, TestStatus::Error);
}
