use std::process::{Command, Stdio};

use super::*;
use crate::report::test_events::{GARBAGE, Sink, assert_same_text, at, finished_run, hostile_run, result};
use crate::session::RunOutcome;
use crate::verdict::{Baseline, BaselineFile, Situation, exit_code};

const BASELINE: &str = "suite = 's'
[[test]]
name = 'known'
expect = 'fail'
reason = 'bug #7'
link = 'https://example.org/7'
[[test]]
name = 'fixed'
expect = 'fail'
[[test]]
name = 'must'
expect = 'pass'
[[test]]
name = 'rare'
expect = 'flaky'
failed = 1
runs = 11
[[test]]
name = 'often'
expect = 'flaky'
failed = 1
runs = 500
[[test]]
name = 'out'
expect = 'expunge'
reason = 'eats the disk'
";

fn told(format: OutputFormat, events: &[TimedEvent], outcome: &RunOutcome) -> String {
    let suites = ["s".to_owned()];
    let mut baseline = Baseline::default();
    let file = BaselineFile::parse("f", BASELINE).unwrap();
    baseline.add_file("f".into(), file, Situation { suites: &suites, cache: "auto" });
    let sink = Sink::default();
    let mut tap = Tap::new(format, Box::new(sink.clone()));
    let mut tally = Tally::new(baseline);
    for event in events {
        let judgement = tally.on_event(&event.event);
        tap.on_event(event, judgement, &tally).unwrap();
    }
    tap.finish(&finished_run(&tally, outcome, exit_code(&tally, outcome))).unwrap();
    sink.text()
}

fn judged_run() -> Vec<TimedEvent> {
    use TestStatus::{Error, Fail, Pass, Skip};
    let results = [
        ("good", Pass, ""),
        ("bad #1", Fail, "wanted EPERM\ngot \"0\" \\ 7\n"),
        ("skipped", Skip, "needs root"),
        ("known", Fail, "EIO"),
        ("fixed", Pass, ""),
        ("must", Skip, "no disk"),
        ("rare", Fail, ""),
        ("often", Error, ""),
        ("out", Fail, ""),
    ];
    let started = RunEvent::RunStarted { run: "r".into(), suites: vec!["s".into()], host: "kvm".into() };
    let ready = RunEvent::GuestReady { kernel_release: "6.12.1".into(), uptime_ms: 1, mounts: vec![] };
    let results = results.into_iter().map(|(test, status, message)| result(test, status, message));
    [started, ready].into_iter().chain(results).map(|event| at(1, event)).collect()
}

#[test]
fn tap_tells_every_judgement_in_its_own_way() {
    assert_same_text(
        &told(OutputFormat::Tap, &judged_run(), &RunOutcome::Completed),
        r#"TAP version 13
# running s (host: kvm)
# guest is up: Linux 6.12.1
ok 1 - s: good
not ok 2 - s: bad \#1
  ---
  status: "fail"
  judgement: "fail"
  message: "wanted EPERM\ngot \"0\" \\ 7"
  ...
ok 3 - s: skipped # SKIP needs root
not ok 4 - s: known # TODO failed as expected: bug #7
  ---
  status: "fail"
  judgement: "expected-fail"
  baseline: "bug #7"
  link: "https://example.org/7"
  message: "EIO"
  ...
ok 5 - s: fixed # TODO passed though expected not to
not ok 6 - s: must
  ---
  status: "skip"
  judgement: "not-run"
  message: "no disk"
  ...
not ok 7 - s: rare # TODO flaky within its rate: failed 1 of 11 runs
  ---
  status: "fail"
  judgement: "flaky"
  baseline: "failed 1 of 11 runs"
  ...
not ok 8 - s: often
  ---
  status: "error"
  judgement: "flaky-beyond-rate"
  baseline: "failed 1 of 500 runs"
  ...
ok 9 - s: out # SKIP expunged: eats the disk
# results: /results/r
1..9
"#,
    );
}

#[test]
fn ktap_explains_before_it_tells_and_has_neither_yaml_nor_plan() {
    let text = told(OutputFormat::Ktap, &judged_run(), &RunOutcome::Completed);
    assert!(text.starts_with("KTAP version 1\n# running"), "{text}");
    assert!(
        text.contains("\n# message: wanted EPERM\n# message: got \"0\" \\ 7\nnot ok 2 s: bad \\u{23}1\n"),
        "{text}"
    );
    assert!(text.contains("\nok 4 s: known # XFAIL failed as expected: bug #7\nok 5 s: fixed\n"), "{text}");
    assert!(!text.contains("---") && !text.contains("1.."), "{text}");
}

#[test]
fn a_run_that_dies_bails_out_and_a_test_that_was_cut_off_failed() {
    let outcome = RunOutcome::GuestDied { reason: "panic\nok 9".into() };
    let events = [at(1, RunEvent::TestStarted { suite: "s".into(), test: "cut".into() })];
    let text = told(OutputFormat::Tap, &events, &outcome);
    assert!(text.contains("not ok 1 - s: cut\n"), "{text}");
    assert!(text.ends_with("\nBail out!  guest died: panic\\nok 9\n"), "{text}");
    let text = told(OutputFormat::Ktap, &events, &outcome);
    assert!(text.contains("\nnot ok 2 vmm: machine # ERROR\nBail out!  guest died"), "{text}");
}

#[test]
fn a_run_of_nothing_is_a_skipped_one() {
    assert!(told(OutputFormat::Tap, &[], &RunOutcome::Completed).ends_with("\n1..0 # SKIP nothing ran\n"));
}

#[test]
fn nothing_a_guest_says_is_a_line_of_its_own_or_moves_a_cursor() {
    for format in [OutputFormat::Tap, OutputFormat::Ktap] {
        let mut events = hostile_run();
        for message in ["\nok 99 - forged\n1..99\nBail out!", "  ...\nnot ok", GARBAGE, &"x\n#".repeat(100_000)] {
            let test = format!("a # SKIP {message}");
            events.push(at(1, result(&test, TestStatus::Fail, message)));
            events.push(at(1, result(&test, TestStatus::Skip, message)));
            events.push(at(1, RunEvent::Note { line: message.into() }));
        }
        let text = told(format, &events, &RunOutcome::Completed);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text}");
        let starts = ["ok ", "not ok ", "# ", "1..", "TAP version", "KTAP version", "  ---", "  ...", "  "];
        for line in text.lines() {
            assert!(starts.iter().any(|start| line.starts_with(start)) && line.len() < 12_000, "{line}");
        }
        assert!(!text.contains("\nok 99") && !text.contains("\n1..99") && !text.contains("\nBail"));
        let points = text.lines().filter(|line| line.starts_with("ok ") || line.starts_with("not ok ")).count();
        let results = events.iter().filter(|event| matches!(event.event, RunEvent::TestFinished { .. })).count();
        // And the two suites that fell over, one of them with a test that runs.
        assert_eq!(points, results + 2);
    }
}

/// What TAP::Parser of the perl at hand makes of `text`; `None` where there is no perl.
fn parsed_by_perl(text: &str) -> Option<String> {
    let program = r#"
        use TAP::Parser;
        local $/; my $parser = TAP::Parser->new({ tap => <STDIN> });
        while (my $r = $parser->next) {
            if ($r->is_yaml) { my $d = $r->data; print join(",", map { "$_=$d->{$_}" } sort keys %$d), "\n" }
            print "unknown: ", $r->as_string, "\n" if $r->is_unknown;
            print "bail: ", $r->explanation, "\n" if $r->is_bailout;
        }
        printf "planned %s run %d failed [%s] skipped [%s] todo [%s] bonus [%s] errors [%s]\n", $parser->plan // "-",
            $parser->tests_run, join(" ", $parser->failed), join(" ", $parser->skipped), join(" ", $parser->todo),
            join(" ", $parser->todo_passed), join("; ", $parser->parse_errors);
    "#;
    let mut perl = Command::new("perl");
    perl.args(["-MTAP::Parser", "-e", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut perl = perl.spawn().ok()?;
    perl.stdin.take()?.write_all(text.as_bytes()).ok()?;
    let output = perl.wait_with_output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn perls_parser_reads_it_as_it_was_meant() {
    let text = told(OutputFormat::Tap, &judged_run(), &RunOutcome::Completed);
    let Some(parsed) = parsed_by_perl(&text) else { return eprintln!("no perl with TAP::Parser here: not tried") };
    assert!(parsed.contains("message=wanted EPERM\ngot \"0\" \\ 7,status=fail"), "{parsed}");
    let summary = "planned 1..9 run 9 failed [2 6 8] skipped [3 9] todo [4 5 7] bonus [5] errors []";
    assert_eq!(parsed.lines().last(), Some(summary), "{parsed}");
    let outcome = RunOutcome::GuestDied { reason: GARBAGE.into() };
    let hostile = parsed_by_perl(&told(OutputFormat::Tap, &hostile_run(), &outcome)).unwrap();
    assert!(hostile.contains("bail: guest died: ") && !hostile.contains("unknown"), "{hostile}");
}
