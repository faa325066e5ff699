use std::fs;

use wire::TestStatus;

use super::*;
use crate::exit_code::ExitCode;
use crate::report::test_events::{GARBAGE, assert_same_text, finished_run, hostile_run, result};
use crate::session::{RunEvent, RunOutcome, SuiteEnd};
use crate::verdict::{Baseline, BaselineFile, Situation};

fn xml(tally: &Tally, outcome: &RunOutcome) -> String {
    report(&finished_run(tally, outcome, ExitCode::Regression)).to_string().unwrap()
}

fn tally_of(events: impl IntoIterator<Item = RunEvent>) -> Tally {
    let mut tally = Tally::default();
    for event in events {
        tally.on_event(&event);
    }
    tally
}

#[test]
fn a_run_with_everything_in_it_looks_like_this() {
    let tally = tally_of(hostile_run().into_iter().map(|event| event.event));
    let outcome = RunOutcome::GuestDied { reason: "panic".into() };
    assert_same_text(
        &xml(&tally, &outcome),
        r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="r" tests="6" failures="1" errors="3" time="3.200">
    <testsuite name="s" tests="4" disabled="1" errors="1" failures="1" time="2.500" timestamp="2026-11-23T15:01:02Z">
        <properties>
            <property name="kernel" value="6.12.1"/>
            <property name="host" value="kvm"/>
        </properties>
        <testcase name="good" classname="s" time="1.235">
        </testcase>
        <testcase name="../\u{1b}[31m\u{0}&lt;&amp;&quot;&apos;]]&gt;\u{fffe}\u{202e}é\n\u{7}end" classname="s" time="1.235">
            <failure message="../\u{1b}[31m\u{0}&lt;&amp;&quot;&apos;]]&gt;\u{fffe}\u{202e}é">../\u{1b}[31m\u{0}&lt;&amp;&quot;&apos;]]&gt;\u{fffe}\u{202e}é
\u{7}end</failure>
        </testcase>
        <testcase name="skipped" classname="s" time="1.235">
            <skipped message="needs \u{1b}]0;title\u{7}root"/>
        </testcase>
        <testcase name="s (the whole suite)" classname="s">
            <error message="killed by signal 9">killed by signal 9</error>
        </testcase>
    </testsuite>
    <testsuite name="t" tests="1" disabled="0" errors="1" failures="0" time="0.000" timestamp="2026-11-23T15:01:02Z">
        <properties>
            <property name="kernel" value="6.12.1"/>
            <property name="host" value="kvm"/>
        </properties>
        <testcase name="t (the whole suite)" classname="t">
            <error message="could not be started: exec /x: \u{1b}[5mno">could not be started: exec /x: \u{1b}[5mno</error>
        </testcase>
    </testsuite>
    <testsuite name="vmm" tests="1" disabled="0" errors="1" failures="0" timestamp="2026-11-23T15:01:02Z">
        <testcase name="machine" classname="vmm">
            <error message="guest died: panic">guest died: panic</error>
        </testcase>
    </testsuite>
</testsuites>
"#,
    );
}

#[test]
fn a_guest_cannot_break_the_xml() {
    let every: String = (0..=0x2fff_u32).chain(0xfff0..=0x1_0010).filter_map(char::from_u32).collect();
    let tally = tally_of([
        RunEvent::SuiteStarted { suite: every.clone() },
        result(&every, TestStatus::Fail, &every),
        result(GARBAGE, TestStatus::Error, "]]>"),
        result(GARBAGE, TestStatus::Skip, "]]>"),
    ]);
    let xml = xml(&tally, &RunOutcome::CannotTest { reason: every });
    // XML 1.0 § 2.2, production Char.
    let legal =
        |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    assert_eq!(xml.chars().find(|c| !legal(*c)), None);
    assert!(!xml.contains("]]>"));
    let read = Report::deserialize_from_str(&xml).unwrap();
    assert_eq!((read.failures, read.errors), (1, 2));
}

#[test]
fn the_test_that_ran_when_the_machine_died_is_an_error() {
    let tally = tally_of([
        RunEvent::SuiteStarted { suite: "s".into() },
        RunEvent::TestStarted { suite: "s".into(), test: "victim".into() },
    ]);
    let xml = xml(&tally, &RunOutcome::TimedOut { reason: "--timeout of 5 s".into() });
    assert!(xml.contains(r#"<testcase name="victim" classname="s">"#), "{xml}");
    assert!(xml.contains("no result: timed out: --timeout of 5 s"));
    assert!(xml.contains(r#"<testsuite name="vmm""#));
}

#[test]
fn expected_failures_and_excluded_tests_are_skipped_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let list = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let mut baseline = Baseline::default();
    baseline.expect_failures_file(&list("expect", "known # bug 7\n")).unwrap();
    baseline.exclude_file(&list("exclude", "slow # takes hours\n")).unwrap();
    let mut tally = Tally::new(baseline);
    for test in ["known", "slow"] {
        tally.on_event(&result(test, TestStatus::Fail, "no"));
    }
    let xml = xml(&tally, &RunOutcome::Completed);
    assert!(xml.contains(r#"<skipped message="failed as expected: bug 7"/>"#), "{xml}");
    assert!(xml.contains(r#"<skipped message="expunged: takes hours"/>"#), "{xml}");
    assert!(xml.contains(r#"failures="0" errors="0""#), "{xml}");
    assert!(!xml.contains(r#"name="vmm""#), "nothing happened to the machine");
}

#[test]
fn a_flaky_test_is_skipped_within_its_rate_and_one_that_should_run_fails_when_it_is_skipped() {
    let text = "suite = 's'\n[[test]]\nname = 'rare'\nexpect = 'flaky'\nfailed = 1\nruns = 9\n\
                [[test]]\nname = 'often'\nexpect = 'flaky'\nfailed = 1\nruns = 900\n[[test]]\nname = 'must'\nexpect = 'pass'\n";
    let (suites, mut baseline) = (["s".to_owned()], Baseline::default());
    let file = BaselineFile::parse("f", text).unwrap();
    baseline.add_file("f".into(), file, Situation { suites: &suites, cache: "auto" });
    let mut tally = Tally::new(baseline);
    for (test, status) in [("rare", TestStatus::Fail), ("often", TestStatus::Fail), ("must", TestStatus::Skip)] {
        tally.on_event(&result(test, status, "no disk"));
    }
    let xml = xml(&tally, &RunOutcome::Completed);
    assert!(xml.contains(r#"<skipped message="failed as it does now and then: failed 1 of 9 runs"/>"#), "{xml}");
    assert!(xml.contains(r#"<failure message="skipped, though it should run: no disk">"#), "{xml}");
    assert!(xml.contains(r#"failures="2" errors="0""#), "{xml}");
}

#[test]
fn the_file_appears_when_the_run_ends() {
    let dir = tempfile::tempdir().unwrap();
    let tally = tally_of([
        RunEvent::SuiteStarted { suite: "s".into() },
        result("a", TestStatus::Pass, ""),
        RunEvent::SuiteFinished { suite: "s".into(), end: Some(SuiteEnd::Exited(0)), duration_ms: 10 },
    ]);
    let mut junit = Junit::new(dir.path().to_path_buf());
    junit.finish(&finished_run(&tally, &RunOutcome::Completed, ExitCode::Success)).unwrap();
    let read = Report::deserialize_from_str(&fs::read_to_string(dir.path().join("junit.xml")).unwrap()).unwrap();
    assert_eq!((read.tests, read.failures, read.errors), (1, 0, 0));
}
