use indicatif::{InMemoryTerm, TermLike};

use super::*;
use crate::report::test_events::{Sink, assert_same_text, at, finished_run, hostile_run, output, result};
use crate::session::RunOutcome;
use crate::verdict::{Baseline, BaselineFile, Situation, exit_code};

fn config(verbosity: Verbosity) -> TerminalConfig {
    TerminalConfig { bar: false, colour: false, verbosity }
}

fn feed(terminal: &mut Terminal, events: &[TimedEvent]) -> Tally {
    let mut tally = Tally::default();
    for event in events {
        let judgement = tally.on_event(&event.event);
        terminal.on_event(event, judgement, &tally).unwrap();
    }
    tally
}

fn shown_in_pipe(config: TerminalConfig, events: &[TimedEvent], outcome: &RunOutcome) -> String {
    let sink = Sink::default();
    let mut terminal = Terminal::new(config, None, Box::new(sink.clone()));
    let tally = feed(&mut terminal, events);
    terminal.finish(&finished_run(&tally, outcome, exit_code(&tally, outcome))).unwrap();
    sink.text()
}

fn died() -> RunOutcome {
    RunOutcome::GuestDied { reason: "Kernel panic \x1b[7m- not syncing".into() }
}

#[test]
fn a_pipe_gets_plain_lines_and_nothing_a_terminal_would_act_on() {
    let text = shown_in_pipe(config(Verbosity::Normal), &hostile_run(), &died());
    assert_same_text(
        &text,
        r#"running s (host: kvm)
booting the guest
guest is up after 1.5 s: Linux 6.12.1
  myfs1 on /mnt/virtiofs1
  my\u{1b}[31mfs2 NOT on /mnt/virtiofs2: mount: \u{1b}[2Jno such device
s started
    PASS [   1.235s] s good
    FAIL [   1.235s] s ../\u{1b}[31m\u{0}<&"']]>\u{fffe}\u{202e}é\n\u{7}end
           | ../\u{1b}[31m\u{0}<&"']]>\u{fffe}\u{202e}é
           | \u{7}end
    SKIP [   1.235s] s skipped  (needs \u{1b}]0;title\u{7}root)
agent: \u{1b}[1mhello
s: killed by signal 9 after 2.5 s
t could not be started: exec /x: \u{1b}[5mno

guest died: Kernel panic \u{1b}[7m- not syncing
s: killed by signal 9
t: could not be started: exec /x: \u{1b}[5mno
Ran: 2 tests in 3.2 s: 1 passed, 1 failed, 1 skipped
Failures: ../\u{1b}[31m\u{0}<&"']]>\u{fffe}\u{202e}é\n\u{7}end
Failed 1 of 2 tests
Results: /results/r
Replay: vmm run s
"#,
    );
}

#[test]
fn quiet_says_what_failed_and_the_summary() {
    let text = shown_in_pipe(config(Verbosity::Quiet), &hostile_run(), &died());
    for absent in ["running", "started\n", "PASS", "SKIP", "agent:"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    for present in ["    FAIL ", "NOT on", "Ran: 2 tests", "Failures: ", "Failed 1 of 2", "guest died"] {
        assert!(text.contains(present), "no {present} in {text}");
    }
}

#[test]
fn verbose_shows_what_the_tests_print_line_by_line() {
    let events =
        [output("one\ntw"), output("o\x1b[2J\n\nrest"), at(9, result("a", TestStatus::Pass, "")), output("x\n")];
    let sink = Sink::default();
    let mut terminal = Terminal::new(config(Verbosity::Verbose), None, Box::new(sink.clone()));
    feed(&mut terminal, &events);
    assert_same_text(
        &sink.text(),
        "           : one\n           : two\\u{1b}[2J\n           : \n           : rest\n    PASS [   1.235s] s a\n           \
         : x\n",
    );
}

#[test]
fn each_result_is_out_before_the_next_event() {
    let sink = Sink::default();
    let mut terminal = Terminal::new(config(Verbosity::Normal), None, Box::new(sink.clone()));
    let mut tally = Tally::default();
    for name in ["a", "b"] {
        let event = at(1, result(name, TestStatus::Pass, ""));
        let judgement = tally.on_event(&event.event);
        terminal.on_event(&event, judgement, &tally).unwrap();
        assert!(sink.text().ends_with(&format!(" s {name}\n")));
    }
}

#[test]
fn a_good_run_ends_with_passed_all() {
    let events = [at(1, result("a", TestStatus::Pass, "")), at(2, result("b", TestStatus::Skip, "no"))];
    let text = shown_in_pipe(config(Verbosity::Quiet), &events, &RunOutcome::Completed);
    assert_same_text(
        &text,
        "\nRan: 1 tests in 3.2 s: 1 passed, 1 skipped\nPassed all 1 tests\nResults: /results/r\nReplay: vmm run s\n",
    );
}

#[test]
fn the_summary_tells_apart_what_the_baseline_explains_and_what_not() {
    let row = |name: &str, expect: &str| format!("[[test]]\nname = '{name}'\nexpect = '{expect}'\n");
    let rate = |runs| format!("failed = 1\nruns = {runs}\n");
    let text =
        ["suite = 's'\n", &row("known", "fail"), &row("fixed", "fail"), &row("must", "pass"), &row("gone", "fail")];
    let flaky = [row("rare", "flaky"), rate(11), row("often", "flaky"), rate(500)];
    let (suites, mut baseline) = (["s".to_owned()], Baseline::default());
    let file = BaselineFile::parse("f", &(text.concat() + &flaky.concat())).unwrap();
    baseline.add_file("my.toml".into(), file, Situation { suites: &suites, cache: "auto" });
    let sink = Sink::default();
    let mut terminal = Terminal::new(config(Verbosity::Normal), None, Box::new(sink.clone()));
    let mut tally = Tally::new(baseline);
    use TestStatus::{Fail, Pass, Skip};
    let results = [("known", Fail), ("fixed", Pass), ("must", Skip), ("rare", Fail), ("often", Fail), ("new", Fail)];
    let results = results.into_iter().map(|(test, status)| result(test, status, ""));
    let end = RunEvent::SuiteFinished { suite: "s".into(), end: Some(SuiteEnd::Exited(1)), duration_ms: 1000 };
    for event in results.chain([end]) {
        let judgement = tally.on_event(&event);
        terminal.on_event(&at(1, event), judgement, &tally).unwrap();
    }
    let outcome = RunOutcome::Completed;
    terminal.finish(&finished_run(&tally, &outcome, exit_code(&tally, &outcome))).unwrap();
    let counts = "0 passed, 1 fixed, 1 failed, 1 failed beyond their rate, 1 not run though they should, 1 failed as \
                  expected, 1 flaky within their rate";
    assert_same_text(
        &sink.text(),
        &format!(
            "   XFAIL [   1.235s] s known
   FIXED [   1.235s] s fixed
 NOT RUN [   1.235s] s must
   FLAKY [   1.235s] s rare
 FLAKIER [   1.235s] s often
    FAIL [   1.235s] s new
s finished after 1.0 s: {counts}

Ran: 5 tests in 3.2 s: {counts}
Fixed: fixed
Still failing: known
Flaky, within the rate: rare
Not run, though they should: must
Flaky, beyond the rate: often
Failures: often new
In the baseline (my.toml), but not in this run: gone
Failed 3 of 6 tests
Results: /results/r
Replay: vmm run s
"
        ),
    );
}

#[test]
fn a_run_without_results_says_that_nothing_ran() {
    let text = shown_in_pipe(config(Verbosity::Quiet), &[], &RunOutcome::Completed);
    assert!(text.contains("Ran: 0 tests") && text.contains("Nothing ran\n"), "{text}");
}

#[test]
fn a_run_that_broke_off_is_not_called_passed() {
    let events = [at(1, result("a", TestStatus::Pass, ""))];
    for outcome in [died(), RunOutcome::Interrupted, RunOutcome::TimedOut { reason: "slow".into() }] {
        let text = shown_in_pipe(config(Verbosity::Quiet), &events, &outcome);
        assert!(text.contains("Ran: 1 tests") && !text.contains("Passed all"), "{text}");
    }
}

#[test]
fn what_is_long_is_cut_and_says_so() {
    let long = "x".repeat(10_000);
    let many: String = (0..500).map(|i| format!("line {i}\n")).collect();
    let mut events = vec![at(1, result(&long, TestStatus::Fail, &many))];
    events.extend((0..300).map(|i| at(2, result(&format!("t{i}"), TestStatus::Fail, ""))));
    let text = shown_in_pipe(config(Verbosity::Quiet), &events, &RunOutcome::Completed);
    assert!(text.contains("| line 19\n") && !text.contains("line 20\n"), "{text}");
    assert!(text.contains("| [480 more lines in the results folder]\n"));
    assert!(text.contains("[and 101 more, see results.json]\n"));
    assert!(text.lines().filter(|line| !line.starts_with("Failures")).all(|line| line.chars().count() < 500));
}

#[test]
fn output_that_never_ends_its_line_is_not_hoarded() {
    let sink = Sink::default();
    let mut terminal = Terminal::new(config(Verbosity::Verbose), None, Box::new(sink.clone()));
    for _ in 0..100 {
        feed(&mut terminal, &[output(&"x".repeat(1000))]);
        assert!(terminal.partial.len() <= 64 * LINE_LENGTH + 1000);
    }
    assert!(!sink.text().is_empty());
}

#[test]
fn colours_come_only_when_asked_for() {
    let coloured = TerminalConfig { colour: true, ..config(Verbosity::Normal) };
    let with = shown_in_pipe(coloured, &hostile_run(), &died());
    let without = shown_in_pipe(config(Verbosity::Normal), &hostile_run(), &died());
    assert!(!without.contains('\x1b'));
    assert!(with.contains("\x1b[32m    PASS\x1b[0m"), "{with:?}");
    assert_same_text(&console::strip_ansi_codes(&with), &without);
}

#[test]
fn a_terminal_shows_failures_above_the_bar_and_passes_only_in_it() {
    let term = InMemoryTerm::new(20, 100);
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(term.clone()), 200);
    let sink = Sink::default();
    let bar_config = TerminalConfig { bar: true, ..config(Verbosity::Normal) };
    let mut terminal = Terminal::new(bar_config, Some(target), Box::new(sink.clone()));
    let events = [
        at(1, result("good", TestStatus::Pass, "")),
        at(2, result("bad", TestStatus::Fail, "because \x1b[2J")),
        at(3, RunEvent::TestStarted { suite: "s".into(), test: "now\x1b[1A".into() }),
    ];
    let tally = feed(&mut terminal, &events);
    terminal.bar.as_ref().unwrap().force_draw();
    let screen = term.contents();
    let lines: Vec<_> = screen.lines().collect();
    assert_eq!(&lines[..2], ["    FAIL [   1.235s] s bad", "           | because \\u{1b}[2J"], "{screen}");
    assert!(lines[2].contains("1 passed, 1 failed, 0 skipped  now\\u{1b}[1A"), "{screen}");
    assert_eq!(lines.len(), 3);
    terminal.finish(&finished_run(&tally, &RunOutcome::Completed, ExitCode::Regression)).unwrap();
    assert!(!term.contents().contains("1 passed"), "the bar is gone");
    assert!(sink.text().contains("Failures: bad\nFailed 1 of 2 tests\n"));
    assert!(term.width() > 0);
}

#[test]
fn the_environment_decides_on_colours_and_bar() {
    let detect = |is_terminal, variables: &[(&str, &str)]| {
        let found = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        let config = TerminalConfig::from(is_terminal, Verbosity::Normal, found);
        (config.bar, config.colour)
    };
    assert_eq!(detect(true, &[]), (true, true));
    assert_eq!(detect(false, &[]), (false, false));
    assert_eq!(detect(true, &[("NO_COLOR", "1")]), (true, false));
    assert_eq!(detect(true, &[("NO_COLOR", "")]), (true, true));
    assert_eq!(detect(false, &[("CLICOLOR_FORCE", "1")]), (false, true));
    assert_eq!(detect(false, &[("CLICOLOR_FORCE", "0")]), (false, false));
    assert_eq!(detect(false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]), (false, false));
    assert_eq!(detect(true, &[("TERM", "dumb")]), (false, false));
    assert!(!TerminalConfig::from(true, Verbosity::Quiet, |_| None::<String>).bar);
}
