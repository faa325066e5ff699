//! The exit code of a run.

use super::tally::Tally;
use crate::exit_code::ExitCode;
use crate::session::RunOutcome;

/// What the process tells its caller. An outcome that forces a code wins; then a regression, in a test or in a suite that
/// fell over after it had begun to tell results; then a suite that never got going; then that nothing ran.
#[must_use]
pub fn exit_code(tally: &Tally, outcome: &RunOutcome) -> ExitCode {
    if let Some(forced) = outcome.forced_exit_code() {
        return forced;
    }
    let counts = tally.counts();
    let fell_over = |ran: bool| tally.suites().iter().any(|s| s.trouble.is_some() && (s.counts.total() > 0) == ran);
    if counts.bad() > 0 || fell_over(true) {
        ExitCode::Regression
    } else if fell_over(false) {
        ExitCode::CannotTest
    } else if counts.ran() == 0 {
        ExitCode::NothingRan
    } else {
        ExitCode::Success
    }
}

/// The code of a run one of whose reporters failed: results are missing somewhere, so that a good verdict cannot be
/// trusted; a bad one stands.
#[must_use]
pub fn with_failed_reporter(code: ExitCode) -> ExitCode {
    match code {
        ExitCode::Success | ExitCode::NothingRan => ExitCode::CannotTest,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use wire::TestStatus;

    use super::*;
    use crate::session::{RunEvent, SuiteEnd};
    use crate::verdict::Baseline;

    fn tally_with(baseline: Baseline, statuses: &[(&str, TestStatus)], end: SuiteEnd) -> Tally {
        let mut tally = Tally::new(baseline);
        tally.on_event(&RunEvent::SuiteStarted { suite: "s".into() });
        for (test, status) in statuses {
            let (suite, test, message) = ("s".into(), (*test).into(), String::new());
            tally.on_event(&RunEvent::TestFinished { suite, test, status: *status, duration_us: 0, message });
        }
        tally.on_event(&RunEvent::SuiteFinished { suite: "s".into(), end: Some(end), duration_ms: 0 });
        tally
    }

    fn code(statuses: &[(&str, TestStatus)], end: SuiteEnd) -> ExitCode {
        exit_code(&tally_with(Baseline::default(), statuses, end), &RunOutcome::Completed)
    }

    const PASS: (&str, TestStatus) = ("p", TestStatus::Pass);
    const FAIL: (&str, TestStatus) = ("f", TestStatus::Fail);
    const SKIP: (&str, TestStatus) = ("k", TestStatus::Skip);
    const ERROR: (&str, TestStatus) = ("e", TestStatus::Error);
    const OK: SuiteEnd = SuiteEnd::Exited(0);

    #[test]
    fn passed_or_skipped_by_the_suite_is_success() {
        assert_eq!(code(&[PASS], OK), ExitCode::Success);
        assert_eq!(code(&[PASS, SKIP], OK), ExitCode::Success);
    }

    #[test]
    fn a_failure_or_an_error_is_a_regression() {
        assert_eq!(code(&[PASS, FAIL], SuiteEnd::Exited(1)), ExitCode::Regression);
        assert_eq!(code(&[PASS, ERROR], OK), ExitCode::Regression);
    }

    #[test]
    fn only_skips_or_no_results_at_all_is_nothing_ran() {
        assert_eq!(code(&[SKIP], OK), ExitCode::NothingRan);
        assert_eq!(code(&[], OK), ExitCode::NothingRan);
        assert_eq!(exit_code(&Tally::default(), &RunOutcome::Completed), ExitCode::NothingRan);
    }

    #[test]
    fn a_suite_that_crashes_among_its_results_is_a_regression() {
        assert_eq!(code(&[PASS], SuiteEnd::Signaled(11)), ExitCode::Regression);
        assert_eq!(code(&[PASS], SuiteEnd::Exited(3)), ExitCode::Regression);
    }

    #[test]
    fn a_suite_that_fails_before_its_first_result_could_not_be_tested() {
        assert_eq!(code(&[], SuiteEnd::Exited(2)), ExitCode::CannotTest);
        let mut tally = tally_with(Baseline::default(), &[PASS], OK);
        tally.on_event(&RunEvent::SuiteNotStarted { suite: "other".into(), error: "no such file".into() });
        assert_eq!(exit_code(&tally, &RunOutcome::Completed), ExitCode::CannotTest);
    }

    #[test]
    fn expected_failures_and_excluded_tests_are_no_regression() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list");
        fs::write(&list, "f\n").unwrap();
        let mut expecting = Baseline::default();
        expecting.expect_failures_file(&list).unwrap();
        let mut excluding = Baseline::default();
        excluding.exclude_file(&list).unwrap();
        for baseline in [expecting, excluding.clone()] {
            let tally = tally_with(baseline, &[PASS, FAIL], SuiteEnd::Exited(1));
            assert_eq!(exit_code(&tally, &RunOutcome::Completed), ExitCode::Success);
        }
        let tally = tally_with(excluding, &[FAIL], SuiteEnd::Exited(1));
        assert_eq!(exit_code(&tally, &RunOutcome::Completed), ExitCode::NothingRan, "excluded is not run");
    }

    #[test]
    fn the_outcome_of_the_run_wins_over_single_results() {
        let reason = || String::from("why");
        for (outcome, expected) in [
            (RunOutcome::GuestDied { reason: reason() }, ExitCode::GuestDied),
            (RunOutcome::TimedOut { reason: reason() }, ExitCode::Timeout),
            (RunOutcome::CannotTest { reason: reason() }, ExitCode::CannotTest),
            (RunOutcome::Interrupted, ExitCode::Interrupted),
        ] {
            for statuses in [&[PASS][..], &[FAIL], &[]] {
                let tally = tally_with(Baseline::default(), statuses, OK);
                assert_eq!(exit_code(&tally, &outcome), expected);
            }
        }
    }

    #[test]
    fn a_failed_reporter_spoils_a_good_verdict_and_leaves_a_bad_one() {
        assert_eq!(with_failed_reporter(ExitCode::Success), ExitCode::CannotTest);
        assert_eq!(with_failed_reporter(ExitCode::NothingRan), ExitCode::CannotTest);
        for code in [ExitCode::Regression, ExitCode::GuestDied, ExitCode::Timeout, ExitCode::Interrupted] {
            assert_eq!(with_failed_reporter(code), code);
        }
    }
}
