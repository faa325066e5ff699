use wire::{ProcessEnd, TestStatus};

use super::*;
use TestStatus::{Error, Fail, Pass, Skip};

fn events(text: &str, end: ProcessEnd) -> Vec<TestEvent> {
    let mut parser = ProveTap::default();
    let mut events: Vec<_> = text.lines().flat_map(|line| parser.line(line)).collect();
    events.extend(parser.finish(end));
    events
}

fn results(text: &str) -> Vec<(String, TestStatus, String)> {
    only_results(events(text, ProcessEnd::Exited(1)))
}

fn only_results(events: Vec<TestEvent>) -> Vec<(String, TestStatus, String)> {
    let finished = |event| match event {
        TestEvent::Finished { name, status, message } => Some((name, status, message)),
        TestEvent::Started { .. } => None,
    };
    events.into_iter().filter_map(finished).collect()
}

fn result(name: &str, status: TestStatus, message: &str) -> (String, TestStatus, String) {
    (name.into(), status, message.into())
}

/// What `prove -v -r` of Debian 12 printed, first formatter `TAP::Formatter::Console`.
const RUN: &str = "\
chmod/00.t .. 
1..5
ok 1
not ok 2 - tried 'chmod', expected 0, got EPERM
# diag one
# diag two
ok 3 # SKIP no such
not ok 4 # TODO later
random
ok 5
Failed 1/5 subtests 
\t(less 1 skipped subtest: 3 okay)
chmod/01.t .. 
1..3
ok 1
Dubious, test returned 3 (wstat 768, 0x300)
Failed 2/3 subtests 
chmod/02.t .. 
1..0
1..0 # SKIP not here
skipped: (no reason given)
chmod/03.t .. 
1..2
ok
Failed 1/2 subtests 
chmod/04.t .. 
1..1
ok 1
ok 2
All 1 subtests passed 
chmod/06.t .. 
1..1
ok 1
ok

Test Summary Report
-------------------
chmod/00.t (Wstat: 0 Tests: 5 Failed: 1)
  Failed test:  2
Files=6, Tests=10,  0 wallclock secs ( 0.02 usr  0.00 sys +  0.01 cusr  0.00 csys =  0.03 CPU)
Result: FAIL
";

#[test]
fn each_tap_line_is_a_result_and_broken_files_are_errors() {
    assert_eq!(
        results(RUN),
        [
            result("chmod/00.t:1", Pass, ""),
            result("chmod/00.t:2", Fail, "tried 'chmod', expected 0, got EPERM\ndiag one\ndiag two"),
            result("chmod/00.t:3", Skip, "no such"),
            result("chmod/00.t:4", Pass, "expected failure: later"),
            result("chmod/00.t:5", Pass, ""),
            result("chmod/01.t:1", Pass, ""),
            result(
                "chmod/01.t:2",
                Error,
                "the file ended here: 3 tests planned, 1 ran; Dubious, test returned 3 (wstat 768, 0x300)"
            ),
            result("chmod/02.t", Skip, "not here"),
            result("chmod/03.t:1", Pass, ""),
            result("chmod/03.t:2", Error, "the file ended here: 2 tests planned, 1 ran"),
            result("chmod/04.t:1", Pass, ""),
            result("chmod/04.t:2", Pass, ""),
            result("chmod/04.t", Error, "1 tests planned, 2 ran"),
            result("chmod/06.t:1", Pass, ""),
        ]
    );
}

#[test]
fn a_test_starts_when_the_one_before_it_has_its_result() {
    let started: Vec<_> = events(RUN, ProcessEnd::Exited(1))
        .into_iter()
        .filter_map(|event| match event {
            TestEvent::Started { name } if name.starts_with("chmod/00") => Some(name),
            _ => None,
        })
        .collect();
    assert_eq!(started, ["chmod/00.t:1", "chmod/00.t:2", "chmod/00.t:3", "chmod/00.t:4", "chmod/00.t:5"]);
}

#[test]
fn the_formatter_for_files_is_read_as_well() {
    let text = "chmod/02.t .. skipped: not here\n[12:00:01] /opt/x/chmod/07.t ........ \nok 1\n1..1\nok\nAll tests successful.\n";
    assert_eq!(results(text), [result("chmod/02.t", Skip, "not here"), result("chmod/07.t:1", Pass, "")]);
}

#[test]
fn a_bail_out_is_one_error_wherever_prove_prints_it() {
    let console = "a/5.t .. \nok 1\nBailout called.  Further testing stopped:  disk gone\nBail out! disk gone\nAll 1 subtests passed \n";
    assert_eq!(results(console), [result("a/5.t:1", Pass, ""), result("a/5.t", Error, "Bail out! disk gone")]);
    let file = "Bailout called.  Further testing stopped:  disk gone\na/5.t .. \n1..1\nok 1\nok\nResult: FAIL\n";
    assert_eq!(results(file), [result("prove", Error, "Bail out! disk gone"), result("a/5.t:1", Pass, "")]);
}

#[test]
fn a_harness_that_dies_leaves_the_running_test_and_itself_as_errors() {
    let got = only_results(events("a/5.t .. \n1..3\nok 1\n", ProcessEnd::Signaled(9)));
    assert_eq!(
        got,
        [
            result("a/5.t:1", Pass, ""),
            result("a/5.t:2", Error, "the file ended here: 3 tests planned, 1 ran"),
            result("prove", Error, "prove ended early (killed by signal 9)"),
        ]
    );
}

#[test]
fn a_harness_that_ran_nothing_is_an_error() {
    assert_eq!(results("Cannot find tests\n"), [result("prove", Error, "prove ended early (exit code 1)")]);
}

#[test]
fn a_killed_test_is_one_error_and_what_its_file_still_says_none() {
    let mut parser = ProveTap::default();
    for line in ["a/5.t .. ", "1..3", "ok 1"] {
        parser.line(line);
    }
    assert_eq!(parser.abort("too long"), [TestEvent::finished("a/5.t:2", Error, "too long")]);
    for line in ["ok 2", "Dubious, test returned 137", "Failed 2/3 subtests "] {
        assert_eq!(parser.line(line), [], "{line}");
    }
    // The next file is read again.
    parser.line("a/6.t .. ");
    parser.line("1..1");
    assert_eq!(parser.line("ok 1"), [TestEvent::finished("a/6.t:1", Pass, "")]);
    parser.line("ok");
    assert_eq!(parser.finish(ProcessEnd::Exited(1)), []);
}

#[test]
fn a_plan_behind_the_results_counts() {
    assert_eq!(results("a/5.t .. \nok\nok\n1..2\nok\nResult: PASS\n").len(), 2);
    assert_eq!(results("a/5.t .. \nok 1\n1..2\nFailed 1/2 subtests \nResult: FAIL\n")[1].1, Error);
    assert_eq!(results("a/5.t .. \nok 1\nok\nResult: PASS\n")[1], {
        result("a/5.t", Error, "1 tests ran, but no plan says whether these are all")
    });
}

#[test]
fn numbers_that_repeat_do_not_give_a_name_twice() {
    let got = results("a/5.t .. \n1..3\nok 1\nok 1\nok 3\nok\nResult: PASS\n");
    let names: Vec<_> = got.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["a/5.t:1", "a/5.t:2", "a/5.t:3"]);
}

#[test]
fn a_file_that_fails_after_its_last_test_is_an_error() {
    let text =
        "a/5.t .. \n1..1\nok 1\nDubious, test returned 2 (wstat 512, 0x200)\nAll 1 subtests passed \nResult: FAIL\n";
    assert_eq!(results(text)[1], result("a/5.t", Error, "Dubious, test returned 2 (wstat 512, 0x200)"));
    let text = "a/5.t .. \n1..1\nok 1\nAll 1 subtests passed \nResult: FAIL\n";
    assert_eq!(results(text)[1], result("a/5.t", Error, "all tests passed, but the file did not end well"));
    let text = "a/5.t .. \nDubious, test returned 127\nNo subtests run \nResult: FAIL\n";
    assert_eq!(results(text), [result("a/5.t", Error, "no test ran; Dubious, test returned 127")]);
}

#[test]
fn directives_are_found_behind_any_description() {
    let judge = |line| TapResult::parse(line).unwrap().judge();
    assert_eq!(judge("ok 1 - a # b # skip: because"), (Skip, "because".into()));
    assert_eq!(judge("ok 1 # Skipped why"), (Skip, "why".into()));
    assert_eq!(judge("not ok 2 x # todo"), (Pass, "expected failure: ".into()));
    assert_eq!(judge("not ok 2 - see #12"), (Fail, "see #12".into()));
    assert_eq!(judge("not ok 2 - ä#öüß"), (Fail, "ä#öüß".into()));
    assert_eq!(judge("ok 99999999999999999999999"), (Pass, String::new()));
}

#[test]
fn text_that_only_looks_like_tap_is_none() {
    for line in ["okay", "okra 1", "not okay", " ok 1", "1..", "1..x", "", "#", "..", " .. ", "x.t . ", "x.t ..y"] {
        let mut parser = ProveTap::default();
        parser.line("a/5.t .. ");
        assert_eq!(parser.line(line), [], "{line:?}");
        assert_eq!(short_name(&parser.file.unwrap().name), "a/5.t", "{line:?}");
    }
}

#[test]
fn the_highest_number_there_is_overflows_nothing() {
    let text = format!("a/5.t .. \n1..{0}\nok {0}\nok\nok 1\nFailed\n", u64::MAX);
    assert!(results(&text).len() >= 2);
}
