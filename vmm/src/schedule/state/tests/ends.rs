//! Guests and commands that end when nothing says which test it was, or before all tests had their turn.

use super::*;

const FAILED: Option<SuiteEnd> = Some(SuiteEnd::Exited(1));

/// A schedule whose first guest has begun with its first portion.
fn begun(run: SuiteRun, policy: Policy, list: &[&str]) -> (Schedule, u32) {
    let mut schedule = schedule(vec![run], policy);
    let guest = schedule.new_guest().unwrap();
    if let Some(Task::List(_)) = schedule.next_task(guest, 0) {
        schedule.listed(names(list));
        assert!(matches!(schedule.next_task(guest, 0), Some(Task::Run(_))));
    }
    schedule.observe(guest, RunEvent::SuiteStarted { suite: "s".into() });
    (schedule, guest)
}

fn prove() -> SuiteRun {
    suite("s", "prove-tap", "[tests]\nlist = ['list']\n")
}

/// By batches, so that there is a list before the first test.
fn batches() -> Policy {
    Policy { guest_per: GuestPer::Batch, ..Policy::default() }
}

/// The tests of the next portion of `guest`.
fn portion(schedule: &mut Schedule, guest: u32) -> Vec<String> {
    match schedule.next_task(guest, 0) {
        Some(Task::Run(plan)) => plan.command.argv[1..].to_vec(),
        other => panic!("no portion but {other:?}"),
    }
}

/// Whether the autopsy is a file of `test`.
fn is_autopsy_of(events: &[RunEvent], test: &str) -> bool {
    events
        .iter()
        .any(|event| matches!(event, RunEvent::Artefact { test: of, kind, .. } if of == test && kind == AUTOPSY))
}

fn message<'e>(events: &'e [RunEvent], of: &str) -> &'e str {
    let found = events.iter().find_map(|event| match event {
        RunEvent::TestFinished { test, message, .. } if test == of => Some(message.as_str()),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn a_guest_that_dies_behind_the_last_result_of_a_test_is_that_tests_error() {
    let (mut schedule, guest) = begun(prove(), Policy::default(), &[]);
    schedule.observe(guest, result("s", "a.t:1", Pass));
    assert_eq!(schedule.observe(guest, autopsy("s", "")), []);
    schedule.observe(guest, ended("s", None));
    let events = schedule.guest_ended(guest, &died());
    assert_eq!(results(&events), [("a.t", Error)]);
    assert!(is_autopsy_of(&events, "a.t") && message(&events, "a.t").contains("panic"), "{events:?}");
    assert_eq!(schedule.finish().1, RunOutcome::Completed, "the error says what there is to say");
}

#[test]
fn a_guest_that_dies_when_all_tests_have_their_results_is_an_error() {
    for policy in [Policy::default(), batches()] {
        let (mut schedule, guest) = begun(listed("s"), policy, &["a", "b"]);
        schedule.observe(guest, result("s", "a", Pass));
        schedule.observe(guest, result("s", "b", Pass));
        schedule.observe(guest, autopsy("s", ""));
        schedule.observe(guest, ended("s", None));
        let mut events = schedule.guest_ended(guest, &died());
        if let Some(next) = schedule.new_guest() {
            assert!(matches!(schedule.next_task(next, 0), Some(Task::List(_))));
            events.extend(schedule.listed(names(&["a", "b"])));
        }
        assert_eq!(results(&events), [("after b", Error)]);
        assert!(is_autopsy_of(&events, "after b"), "{events:?}");
        assert_eq!(schedule.new_guest(), None, "nothing is left to do");
    }
}

#[test]
fn the_error_of_a_test_without_a_name_is_told_once_with_all_that_belongs_to_it() {
    let (mut schedule, guest) = begun(listed("s"), batches(), &["a", "b", "c"]);
    schedule.observe(guest, result("s", "a", Pass));
    let requests = RunEvent::Artefact {
        suite: "s".into(),
        test: "after a".into(),
        kind: crate::session::LAST_REQUESTS.into(),
        bytes: 1,
        data: vec![b'r'],
    };
    assert_eq!(schedule.observe(guest, requests), []);
    let error = |message: &str| RunEvent::TestFinished {
        suite: "s".into(),
        test: "after a".into(),
        status: Error,
        duration_us: 1,
        message: message.into(),
    };
    assert_eq!(schedule.observe(guest, error("no result within 1s")), []);
    let events = schedule.observe(guest, ended("s", Some(SuiteEnd::Signaled(9))));
    assert!(matches!(&events[0], RunEvent::Artefact { test, data, .. } if test == "b" && data == b"r"), "{events:?}");
    assert_eq!(results(&events), [("b", Error)]);
    assert!(message(&events, "b").contains("no result within 1s"));
    assert_eq!(portion(&mut schedule, guest), ["c"]);

    // Where the suite goes on or ends by itself, nobody knows which test it was.
    schedule.observe(guest, error("first"));
    let events = schedule.observe(guest, result("s", "c", Pass));
    assert_eq!(results(&events), [("after a", Error), ("c", Pass)]);
    schedule.observe(guest, error("second"));
    assert_eq!(results(&schedule.observe(guest, ended("s", OK))), [("after a", Error)]);
}

#[test]
fn what_a_command_that_ended_early_did_not_come_to_runs_in_the_next_portion() {
    let (mut schedule, guest) = begun(prove(), batches(), &["a.t", "b.t", "c.t"]);
    schedule.observe(guest, result("s", "a.t:1", Fail));
    let events = schedule.observe(guest, ended("s", FAILED));
    assert!(matches!(&events[..], [RunEvent::ListedTestFinished { test, .. }, RunEvent::Note { .. }] if test == "a.t"));
    assert_eq!(portion(&mut schedule, guest), ["b.t", "c.t"]);
    // A test without a result, in a portion that ends well, has none.
    let events = schedule.observe(guest, ended("s", OK));
    assert!(matches!(events.last(), Some(RunEvent::SuiteFinished { end: FAILED, .. })), "{events:?}");
}

#[test]
fn a_command_that_fails_without_any_result_is_the_error_of_one_test_and_in_the_end_of_all() {
    let list = ["a", "b", "c", "d", "e"];
    let (mut schedule, guest) = begun(listed("s"), batches(), &list);
    let mut events = schedule.observe(guest, ended("s", FAILED));
    assert_eq!(results(&events), [("a", Error)]);
    assert!(message(&events, "a").contains("exit code 1"));
    for left in [4, 3] {
        assert_eq!(portion(&mut schedule, guest).len(), left);
        events.extend(schedule.observe(guest, ended("s", FAILED)));
    }
    assert_eq!(results(&events), list.map(|test| (test, Error)));
    assert_eq!(schedule.new_guest(), None);
}

#[test]
fn a_whole_suite_that_ended_early_is_listed_and_the_rest_of_it_runs() {
    let (mut schedule, guest) = begun(listed("s"), Policy::default(), &[]);
    schedule.observe(guest, result("s", "a", Fail));
    assert_eq!(schedule.observe(guest, ended("s", FAILED)), []);
    assert!(matches!(schedule.next_task(guest, 1), Some(Task::List(_))));
    let events = schedule.listed(names(&["a", "b"]));
    assert!(matches!(&events[..], [RunEvent::Note { .. }]), "{events:?}");
    let Some(Task::Run(plan)) = schedule.next_task(guest, 1) else { panic!("nothing to do") };
    assert_eq!(plan.command.argv[1..], ["b"]);
    schedule.observe(guest, result("s", "b", Pass));
    let events = schedule.observe(guest, ended("s", OK));
    assert!(matches!(&events[..], [RunEvent::SuiteFinished { end: FAILED, .. }]), "{events:?}");
}

#[test]
fn a_whole_suite_that_failed_and_left_nothing_open_ends() {
    // All were run; a list of other names than the results'; no list.
    let lists = [names(&["a"]), names(&["x", "y"]), Err("no list".to_owned())];
    for list in lists {
        let (mut schedule, guest) = begun(listed("s"), Policy::default(), &[]);
        schedule.observe(guest, result("s", "a", Fail));
        schedule.observe(guest, ended("s", FAILED));
        assert!(matches!(schedule.next_task(guest, 1), Some(Task::List(_))));
        let events = schedule.listed(list);
        assert!(matches!(events.last(), Some(RunEvent::SuiteFinished { end: FAILED, .. })), "{events:?}");
        assert_eq!(schedule.next_task(guest, 1), None);
    }
    let (mut schedule, guest) = begun(listed("s"), Policy::default(), &[]);
    let events = schedule.observe(guest, ended("s", FAILED));
    assert!(matches!(events[..], [RunEvent::SuiteFinished { end: FAILED, .. }]), "no result at all: {events:?}");
}

#[test]
fn a_suite_whose_tests_cannot_be_told_apart_is_the_first_shards() {
    for index in 1..=3 {
        let policy = Policy { shard: Some(Shard { index, of: 3 }), ..Policy::default() };
        let mut whole = schedule(vec![suite("s", "exit-code", "")], policy);
        assert_eq!(whole.new_guest().is_some(), index == 1);
        let (mut unlisted, guest) = (schedule(vec![listed("s")], policy), 1);
        assert_eq!(unlisted.new_guest(), Some(guest));
        assert!(matches!(unlisted.next_task(guest, 0), Some(Task::List(_))));
        unlisted.listed(Err("no list".into()));
        assert_eq!(matches!(unlisted.next_task(guest, 0), Some(Task::Run(_))), index == 1);
    }
}
