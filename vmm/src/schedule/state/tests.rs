use guest_image::suite::{Manifest, SuiteRun};
use wire::TestStatus::{self, Error, Fail, Pass};

use super::super::policy::Shard;
use super::*;
use crate::session::{AUTOPSY, SuiteEnd};

mod ends;

/// A suite whose results are named like its tests, as those of xfstests are, or `test:1`, `test:2` as prove's.
fn suite(name: &str, format: &str, tests: &str) -> SuiteRun {
    let text = format!(
        "name = '{name}'\ndescription = 'd'\nformat = '{format}'\n[build]\nmethod = 'source'\n[run]\nargv = ['run']\ncwd = '/'\n{tests}"
    );
    Manifest::parse("m", &text).unwrap().runs(&[], 0).remove(0)
}

fn listed(name: &str) -> SuiteRun {
    suite(name, "xfstests", "[tests]\nlist = ['list']\n")
}

fn schedule(suites: Vec<SuiteRun>, policy: Policy) -> Schedule {
    Schedule::new(suites.into_iter().map(|run| (run, Done::default())), policy)
}

fn started(suite: &str, test: &str) -> RunEvent {
    RunEvent::TestStarted { suite: suite.into(), test: test.into() }
}

fn result(suite: &str, test: &str, status: TestStatus) -> RunEvent {
    RunEvent::TestFinished { suite: suite.into(), test: test.into(), status, duration_us: 1, message: String::new() }
}

fn autopsy(suite: &str, test: &str) -> RunEvent {
    let (suite, test, kind) = (suite.into(), test.into(), AUTOPSY.into());
    RunEvent::Artefact { suite, test, kind, bytes: 1, data: vec![b'x'] }
}

fn ended(suite: &str, end: Option<SuiteEnd>) -> RunEvent {
    RunEvent::SuiteFinished { suite: suite.into(), end, duration_ms: 1 }
}

const OK: Option<SuiteEnd> = Some(SuiteEnd::Exited(0));

fn died() -> GuestEnd {
    GuestEnd { outcome: RunOutcome::GuestDied { reason: "panic".into() }, fate: Fate::Lost }
}

fn done() -> GuestEnd {
    GuestEnd { outcome: RunOutcome::Completed, fate: Fate::Done }
}

fn names(tests: &[&str]) -> Result<Vec<String>, String> {
    Ok(tests.iter().map(|&test| test.to_owned()).collect())
}

/// What a guest does of its portion.
type Does<'a> = &'a dyn Fn(&str) -> Option<TestStatus>;

/// A run whose guests do with each test what `does` says, `None` for dying in it; with one guest at a time.
struct Run {
    schedule: Schedule,
    list: Vec<&'static str>,
    events: Vec<RunEvent>,
    /// The tests that each guest was given, portion by portion.
    portions: Vec<Vec<String>>,
}

impl Run {
    fn of(suites: Vec<SuiteRun>, policy: Policy, list: &[&'static str]) -> Self {
        Self { schedule: schedule(suites, policy), list: list.to_vec(), events: Vec::new(), portions: Vec::new() }
    }

    fn go(mut self, does: Does<'_>) -> (Vec<RunEvent>, Vec<Vec<String>>, RunOutcome) {
        while let Some(guest) = self.schedule.new_guest() {
            assert!(guest < 100, "no end of guests");
            let end = if self.guest(guest, does) { done() } else { died() };
            let events = self.schedule.guest_ended(guest, &end);
            self.events.extend(events);
        }
        let (events, outcome) = self.schedule.finish();
        self.events.extend(events);
        (self.events, self.portions, outcome)
    }

    /// Whether it lived to its end.
    fn guest(&mut self, guest: u32, does: Does<'_>) -> bool {
        let mut tasks = 0;
        while let Some(task) = self.schedule.next_task(guest, tasks) {
            let plan = match task {
                Task::List(_) => {
                    let events = self.schedule.listed(names(&self.list));
                    self.events.extend(events);
                    continue;
                }
                Task::Run(plan) => plan,
            };
            tasks += 1;
            let chosen = plan.command.argv[1..].to_vec();
            let tests = if chosen.is_empty() { names(&self.list).unwrap() } else { chosen };
            self.portions.push(tests.clone());
            self.tell(guest, RunEvent::SuiteStarted { suite: plan.name.clone() });
            for test in tests {
                self.tell(guest, started(&plan.name, &test));
                let Some(status) = does(&test) else {
                    self.tell(guest, autopsy(&plan.name, &test));
                    self.tell(guest, result(&plan.name, &test, Error));
                    self.tell(guest, ended(&plan.name, None));
                    return false;
                };
                self.tell(guest, result(&plan.name, &test, status));
            }
            self.tell(guest, ended(&plan.name, OK));
        }
        true
    }

    fn tell(&mut self, guest: u32, event: RunEvent) {
        let events = self.schedule.observe(guest, event);
        self.events.extend(events);
    }
}

fn results(events: &[RunEvent]) -> Vec<(&str, TestStatus)> {
    let mut results = Vec::new();
    for event in events {
        if let RunEvent::TestFinished { test, status, .. } = event {
            results.push((test.as_str(), *status));
        }
    }
    results
}

fn count(events: &[RunEvent], wanted: fn(&RunEvent) -> bool) -> usize {
    events.iter().filter(|event| wanted(event)).count()
}

#[test]
fn without_a_death_a_suite_runs_as_one_whole_and_nothing_is_listed() {
    let (events, portions, outcome) =
        Run::of(vec![listed("s"), listed("t")], Policy::default(), &["a", "b"]).go(&|_| Some(Pass));
    assert_eq!(outcome, RunOutcome::Completed);
    assert_eq!(portions, [["a", "b"], ["a", "b"]]);
    assert_eq!(count(&events, |e| matches!(e, RunEvent::SuiteFinished { end: OK, .. })), 2);
}

#[test]
fn behind_a_test_that_kills_its_guest_the_run_goes_on_in_another() {
    let (events, portions, outcome) = Run::of(vec![listed("s")], Policy::default(), &["a", "b", "c", "d"])
        .go(&|test| (test != "b" && test != "c").then_some(Pass));
    assert_eq!(results(&events), [("a", Pass), ("b", Error), ("c", Error), ("d", Pass)]);
    assert_eq!(portions, [vec!["a", "b", "c", "d"], vec!["c", "d"], vec!["d"]]);
    assert_eq!(outcome, RunOutcome::Completed, "the errors say what there is to say");
    assert_eq!(count(&events, |e| matches!(e, RunEvent::SuiteStarted { .. })), 1);
    assert_eq!(count(&events, |e| matches!(e, RunEvent::SuiteFinished { end: Some(_), .. })), 1);
}

#[test]
fn a_death_of_which_no_test_is_known_is_told_of_the_first_without_a_result() {
    // pjdfstest-rs does not say when a test begins.
    let mut schedule = schedule(vec![listed("s")], Policy::default());
    let guest = schedule.new_guest().unwrap();
    assert!(matches!(schedule.next_task(guest, 0), Some(Task::Run(_))));
    schedule.observe(guest, RunEvent::SuiteStarted { suite: "s".into() });
    schedule.observe(guest, result("s", "a", Pass));
    assert_eq!(schedule.observe(guest, autopsy("s", "")), []);
    assert_eq!(schedule.observe(guest, ended("s", None)), []);
    schedule.guest_ended(guest, &died());
    let next = schedule.new_guest().unwrap();
    assert!(matches!(schedule.next_task(next, 0), Some(Task::List(_))));
    let events = schedule.listed(names(&["a", "b", "c"]));
    assert!(matches!(&events[0], RunEvent::Artefact { test, data, .. } if test == "b" && data == b"x"), "{events:?}");
    assert!(matches!(&events[1], RunEvent::TestFinished { test, status: Error, message, .. }
        if test == "b" && message.contains("first in order")));
    let Some(Task::Run(plan)) = schedule.next_task(next, 0) else { panic!("nothing to do") };
    assert_eq!(plan.command.argv, ["run", "c"]);
}

#[test]
fn a_test_with_several_results_is_done_when_the_next_begins_or_the_portion_ends() {
    let mut schedule = schedule(vec![suite("s", "prove-tap", "[tests]\nlist = ['list']\n")], Policy::default());
    let guest = schedule.new_guest().unwrap();
    schedule.next_task(guest, 0);
    schedule.observe(guest, RunEvent::SuiteStarted { suite: "s".into() });
    assert_eq!(schedule.observe(guest, result("s", "d/a.t:1", Pass)).len(), 1);
    assert_eq!(schedule.observe(guest, result("s", "d/a.t:2", Pass)).len(), 1);
    let events = schedule.observe(guest, started("s", "d/b.t:1"));
    assert_eq!(events[0], RunEvent::ListedTestFinished { suite: "s".into(), test: "d/a.t".into() });
    schedule.observe(guest, result("s", "d/b.t:1", Error));
    let events = schedule.guest_ended(guest, &died());
    assert!(events.contains(&RunEvent::ListedTestFinished { suite: "s".into(), test: "d/b.t".into() }), "{events:?}");
    let next = schedule.new_guest().unwrap();
    schedule.next_task(next, 0);
    schedule.listed(names(&["d/a.t", "d/b.t", "d/c.t"]));
    let Some(Task::Run(plan)) = schedule.next_task(next, 0) else { panic!("nothing to do") };
    assert_eq!(plan.command.argv, ["run", "d/c.t"]);
}

#[test]
fn a_suite_that_is_one_whole_is_lost_with_its_guest_and_the_next_suite_still_runs() {
    let (events, _, outcome) =
        Run::of(vec![suite("s", "exit-code", ""), listed("t")], Policy::default(), &["a"]).go(&{
            let first = std::cell::Cell::new(true);
            move |_| (!first.replace(false)).then_some(Pass)
        });
    assert!(matches!(outcome, RunOutcome::GuestDied { .. }));
    assert!(events.contains(&RunEvent::SuiteStarted { suite: "t".into() }));
    assert_eq!(count(&events, |e| matches!(e, RunEvent::SuiteFinished { suite, end: None, .. } if suite == "s")), 1);
    assert_eq!(count(&events, |e| matches!(e, RunEvent::SuiteFinished { suite, end: OK, .. } if suite == "t")), 1);
}

#[test]
fn guests_that_all_die_at_once_are_not_booted_without_end() {
    let list: Vec<&'static str> = (0..50).map(|n| &*format!("t{n}").leak()).collect();
    let (events, portions, outcome) = Run::of(vec![listed("s")], Policy::default(), &list).go(&|_| None);
    assert_eq!(portions.len(), FUTILE as usize);
    assert!(matches!(outcome, RunOutcome::GuestDied { .. }));
    assert_eq!(count(&events, |e| matches!(e, RunEvent::SuiteFinished { end: None, .. })), 1);
}

#[test]
fn a_list_that_cannot_be_had_ends_a_suite_that_has_begun_and_not_one_that_has_not() {
    let jobs = Policy { jobs: 2, ..Policy::default() };
    let mut whole = schedule(vec![listed("s")], jobs);
    let guest = whole.new_guest().unwrap();
    assert!(matches!(whole.next_task(guest, 0), Some(Task::List(_))));
    assert_eq!(whole.listed(Err("no".into())).len(), 1);
    assert!(matches!(whole.next_task(guest, 0), Some(Task::Run(plan)) if plan.command.argv == ["run"]));

    let begun = Done { tests: ["a".to_owned()].into(), ended: false };
    let mut begun = Schedule::new([(listed("s"), begun)], Policy::default());
    let guest = begun.new_guest().unwrap();
    assert!(matches!(begun.next_task(guest, 0), Some(Task::List(_))));
    let events = begun.listed(Err("no".into()));
    assert!(matches!(events.last(), Some(RunEvent::SuiteFinished { end: None, .. })), "{events:?}");
    assert_eq!(begun.next_task(guest, 0), None);
}

#[test]
fn shards_share_all_tests_and_no_test_twice() {
    let list = ["a", "b", "c", "d", "e"];
    let mut all: Vec<String> = Vec::new();
    for index in 1..=3 {
        let policy = Policy { shard: Some(Shard { index, of: 3 }), ..Policy::default() };
        let (events, _, outcome) = Run::of(vec![listed("s")], policy, &list).go(&|_| Some(Pass));
        assert_eq!(outcome, RunOutcome::Completed);
        all.extend(results(&events).into_iter().map(|(test, _)| test.to_owned()));
    }
    all.sort();
    assert_eq!(all, list);
}

#[test]
fn a_shard_without_a_test_of_a_suite_does_not_begin_it() {
    let policy = Policy { shard: Some(Shard { index: 3, of: 3 }), ..Policy::default() };
    let (events, _, outcome) = Run::of(vec![listed("s")], policy, &["a"]).go(&|_| Some(Pass));
    assert_eq!((events.as_slice(), outcome), (&[][..], RunOutcome::Completed));
}

#[test]
fn each_test_can_have_a_guest_of_its_own() {
    let policy = Policy { guest_per: GuestPer::Test, ..Policy::default() };
    let (events, portions, _) = Run::of(vec![listed("s")], policy, &["a", "b", "c"]).go(&|_| Some(Fail));
    assert_eq!(portions, [["a"], ["b"], ["c"]]);
    assert_eq!(results(&events), [("a", Fail), ("b", Fail), ("c", Fail)]);
    assert_eq!(count(&events, |e| matches!(e, RunEvent::SuiteFinished { .. })), 1);
}

#[test]
fn two_guests_work_at_the_same_suite_and_it_ends_once() {
    let jobs = Policy { jobs: 2, ..Policy::default() };
    let mut schedule = schedule(vec![listed("s")], jobs);
    let (one, two) = (schedule.new_guest().unwrap(), schedule.new_guest().unwrap());
    assert!(matches!(schedule.next_task(one, 0), Some(Task::List(_))));
    schedule.listed(names(&["a", "b", "c", "d"]));
    let mut portions = Vec::new();
    let mut ends = 0;
    for guest in [one, two, one, two, one, two] {
        let Some(Task::Run(plan)) = schedule.next_task(guest, 0) else { continue };
        portions.push(plan.command.argv[1..].to_vec());
        schedule.observe(guest, RunEvent::SuiteStarted { suite: "s".into() });
        ends += schedule.observe(guest, ended("s", OK)).len();
    }
    assert_eq!(portions.concat(), ["a", "b", "c", "d"]);
    assert_eq!(ends, 1);
}

#[test]
fn with_several_guests_what_takes_long_begins_first() {
    let jobs = Policy { jobs: 2, ..Policy::default() };
    let times = |_: &str| [("b".to_owned(), 900), ("c".to_owned(), 50)].into();
    let mut schedule = schedule(vec![listed("s")], jobs).with_times(times);
    let guest = schedule.new_guest().unwrap();
    assert!(matches!(schedule.next_task(guest, 0), Some(Task::List(_))));
    schedule.listed(names(&["a", "b", "c", "d"]));
    // a and d, of which nothing is known, count as the mean.
    let mut portions = Vec::new();
    while let Some(Task::Run(plan)) = schedule.next_task(guest, 0) {
        portions.push(plan.command.argv[1..].to_vec());
        schedule.observe(guest, ended("s", OK));
    }
    assert_eq!(portions[0], ["b"]);
    assert_eq!(portions.concat(), ["b", "a", "d", "c"]);
}

#[test]
fn what_it_takes_to_start_a_portion_is_measured_and_the_next_is_no_smaller() {
    let jobs = Policy { jobs: 2, ..Policy::default() };
    let all = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let times = |_: &str| all.map(|test| (test.to_owned(), 10_000)).into();
    let mut schedule = schedule(vec![listed("s")], jobs).with_times(times);
    let guest = schedule.new_guest().unwrap();
    assert!(matches!(schedule.next_task(guest, 0), Some(Task::List(_))));
    schedule.listed(names(&all));
    let portion = |schedule: &mut Schedule| match schedule.next_task(guest, 0) {
        Some(Task::Run(plan)) => plan.command.argv.len() - 1,
        other => panic!("{other:?}"),
    };
    assert_eq!(portion(&mut schedule), 2, "a quarter of all");
    std::thread::sleep(std::time::Duration::from_millis(40));
    schedule.observe(guest, RunEvent::TestStarted { suite: "s".into(), test: "a".into() });
    schedule.observe(guest, ended("s", OK));
    assert!(portion(&mut schedule) >= 4, "they take as long as the start");
}

#[test]
fn what_is_done_already_is_not_run_again() {
    let done = Done { tests: ["b".to_owned()].into(), ended: false };
    let ended = Done { tests: Default::default(), ended: true };
    let mut schedule = Schedule::new([(listed("s"), done), (listed("t"), ended)], Policy::default());
    let guest = schedule.new_guest().unwrap();
    assert!(matches!(schedule.next_task(guest, 0), Some(Task::List(_))));
    schedule.listed(names(&["a", "b", "c"]));
    let Some(Task::Run(plan)) = schedule.next_task(guest, 0) else { panic!("nothing to do") };
    assert_eq!(plan.command.argv, ["run", "a", "c"]);
    assert_eq!(schedule.next_task(guest, 1), None);
}

#[test]
fn ctrl_c_starts_nothing_more_and_closes_what_is_open() {
    let mut schedule = schedule(vec![listed("s"), listed("t")], Policy::default());
    let guest = schedule.new_guest().unwrap();
    schedule.next_task(guest, 0);
    schedule.observe(guest, RunEvent::SuiteStarted { suite: "s".into() });
    schedule.interrupt();
    assert_eq!(schedule.next_task(guest, 1), None);
    schedule.guest_ended(guest, &GuestEnd { outcome: RunOutcome::Interrupted, fate: Fate::Over });
    assert_eq!(schedule.new_guest(), None);
    let (events, outcome) = schedule.finish();
    assert_eq!(outcome, RunOutcome::Interrupted);
    assert!(matches!(&events[0], RunEvent::SuiteFinished { suite, end: None, .. } if suite == "s"));
    assert!(matches!(&events[1], RunEvent::SuiteNotStarted { suite, .. } if suite == "t"));
}

#[test]
fn a_guest_that_never_comes_up_ends_the_run() {
    let mut schedule = schedule(vec![listed("s")], Policy::default());
    let guest = schedule.new_guest().unwrap();
    let outcome = RunOutcome::CannotTest { reason: "no".into() };
    schedule.guest_ended(guest, &GuestEnd { outcome: outcome.clone(), fate: Fate::NeverReady });
    assert_eq!(schedule.new_guest(), None);
    let (events, came_to) = schedule.finish();
    assert_eq!(came_to, outcome);
    assert!(matches!(&events[..], [RunEvent::SuiteNotStarted { .. }]));
}

#[test]
fn the_worst_end_of_a_portion_is_the_suites() {
    let policy = Policy { guest_per: GuestPer::Test, ..Policy::default() };
    let mut schedule = schedule(vec![listed("s")], policy);
    let mut last = Vec::new();
    for end in [SuiteEnd::Exited(1), SuiteEnd::Exited(2), SuiteEnd::Exited(0)] {
        let guest = schedule.new_guest().unwrap();
        if let Some(Task::List(_)) = schedule.next_task(guest, 0) {
            schedule.listed(names(&["a", "b", "c"]));
            schedule.next_task(guest, 0);
        }
        schedule.observe(guest, RunEvent::SuiteStarted { suite: "s".into() });
        last = schedule.observe(guest, ended("s", Some(end)));
        schedule.guest_ended(guest, &done());
    }
    assert!(matches!(last[..], [RunEvent::SuiteFinished { end: Some(SuiteEnd::Exited(2)), .. }]), "{last:?}");
}

#[test]
fn behind_a_test_with_which_a_suite_was_killed_it_goes_on_in_the_same_guest() {
    const KILLED: Option<SuiteEnd> = Some(SuiteEnd::Signaled(9));
    let mut schedule = schedule(vec![listed("s")], Policy::default());
    let guest = schedule.new_guest().unwrap();
    let portion = |schedule: &mut Schedule, tasks| match schedule.next_task(guest, tasks) {
        Some(Task::Run(plan)) => plan.command.argv[1..].to_vec(),
        task => panic!("{task:?}"),
    };
    assert_eq!(portion(&mut schedule, 0), [""; 0], "all of it");
    schedule.observe(guest, RunEvent::SuiteStarted { suite: "s".into() });
    schedule.observe(guest, result("s", "a", Pass));
    schedule.observe(guest, result("s", "b", Error));
    assert_eq!(schedule.observe(guest, ended("s", KILLED)), []);
    assert!(matches!(schedule.next_task(guest, 1), Some(Task::List(_))));
    schedule.listed(names(&["a", "b", "c", "d", "e"]));
    assert_eq!(portion(&mut schedule, 1), ["c", "d", "e"]);
    // This time it is not known which test ran: the first without a result, so that the end comes nearer in any case.
    schedule.observe(guest, result("s", "c", Pass));
    schedule.observe(guest, result("s", "after c", Error));
    let events = schedule.observe(guest, ended("s", KILLED));
    assert_eq!(results(&events), [("d", Error)]);
    assert_eq!(portion(&mut schedule, 2), ["e"]);
    // Nor this time, and nothing is left.
    let events = schedule.observe(guest, ended("s", KILLED));
    assert_eq!(results(&events), [("e", Error)]);
    assert!(matches!(events.last(), Some(RunEvent::SuiteFinished { .. })), "{events:?}");
    assert!(schedule.next_task(guest, 3).is_none());
}

#[test]
fn a_test_that_its_suite_did_not_name_is_found_by_the_list() {
    let mut schedule = schedule(vec![listed("s")], Policy::default());
    let guest = schedule.new_guest().unwrap();
    schedule.next_task(guest, 0);
    schedule.observe(guest, RunEvent::SuiteStarted { suite: "s".into() });
    schedule.observe(guest, result("s", "a", Pass));
    schedule.observe(guest, result("s", "after a", Error));
    schedule.observe(guest, ended("s", Some(SuiteEnd::Signaled(9))));
    assert!(matches!(schedule.next_task(guest, 1), Some(Task::List(_))));
    assert_eq!(results(&schedule.listed(names(&["a", "b", "c"]))), [("b", Error)]);
    let Some(Task::Run(plan)) = schedule.next_task(guest, 1) else { panic!("there is more to do") };
    assert_eq!(plan.command.argv[1..], ["c"]);
}

#[test]
fn a_list_that_is_known_is_not_asked_for() {
    let cache = tempfile::tempdir().unwrap();
    let begun = || {
        let policy = Policy { jobs: 2, ..Policy::default() };
        let mut schedule = schedule(vec![listed("s")], policy).with_lists(Lists::new(cache.path(), vec!["k".into()]));
        assert_eq!(schedule.take_known_lists(), []);
        schedule
    };
    for list in [Err("no list".to_owned()), names(&["a", "b", "c"])] {
        let mut asking = begun();
        assert_eq!(asking.useful_guests(), 1, "others would wait for the list");
        let guest = asking.new_guest().unwrap();
        assert!(matches!(asking.next_task(guest, 0), Some(Task::List(_))));
        asking.listed(list);
    }
    let mut knowing = begun();
    assert_eq!(knowing.useful_guests(), 3);
    let guest = knowing.new_guest().unwrap();
    assert!(matches!(knowing.next_task(guest, 0), Some(Task::Run(_))));
}

#[test]
fn nothing_that_is_left_of_a_known_list_ends_the_suite() {
    let cache = tempfile::tempdir().unwrap();
    let lists = Lists::new(cache.path(), Vec::new());
    lists.keep(&listed("s"), &["a".to_owned()]).unwrap();
    let done = Done { tests: ["a".to_owned()].into(), ended: false };
    let mut schedule = Schedule::new([(listed("s"), done)], Policy::default()).with_lists(lists);
    assert!(matches!(schedule.take_known_lists()[..], [RunEvent::SuiteFinished { end: OK, .. }]), "nothing was lost");
    assert_eq!(schedule.new_guest(), None);
}
