//! Whatever a guest says, in whatever order, every report is whole.

use std::collections::BTreeSet;

use proptest::prelude::*;
use wire::{MountReport, TestStatus};

use super::*;
use crate::report::terminal::Verbosity;
use crate::report::test_events::Sink;
use crate::session::{OutputStream, SuiteEnd};

/// Any text, often of characters that are trouble somewhere.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,20}",
        any::<String>(),
        "[\u{0}-\u{20}\u{7f}-\u{9f}\u{202a}-\u{202e}\u{fffe}\u{ffff}<>&\"'/.\\]\\[]{0,30}",
        Just("../".repeat(100)),
        Just("x".repeat(5000)),
    ]
}

/// A few names that come again, so that events belong together now and then.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("a".to_owned()), Just("b".to_owned()), text()]
}

fn status() -> impl Strategy<Value = TestStatus> {
    prop::sample::select(vec![TestStatus::Pass, TestStatus::Fail, TestStatus::Skip, TestStatus::Error])
}

fn event() -> impl Strategy<Value = RunEvent> {
    let end = prop_oneof![
        Just(None),
        any::<i32>().prop_map(|code| Some(SuiteEnd::Exited(code))),
        Just(Some(SuiteEnd::Signaled(9)))
    ];
    let mount = (text(), text(), prop::option::of(text())).prop_map(|(tag, mount_point, error)| MountReport {
        tag,
        mount_point,
        error,
    });
    prop_oneof![
        (text(), any::<u64>(), prop::collection::vec(mount, 0..3)).prop_map(|(kernel_release, uptime_ms, mounts)| {
            RunEvent::GuestReady { kernel_release, uptime_ms, mounts }
        }),
        name().prop_map(|suite| RunEvent::SuiteStarted { suite }),
        (name(), name()).prop_map(|(suite, test)| RunEvent::TestStarted { suite, test }),
        (name(), prop::option::of(name()), text()).prop_map(|(suite, test, text)| RunEvent::Output {
            suite,
            test,
            stream: OutputStream::Stdout,
            text
        }),
        (name(), name(), status(), any::<u64>(), text()).prop_map(|(suite, test, status, duration_us, message)| {
            RunEvent::TestFinished { suite, test, status, duration_us, message }
        }),
        (name(), end, any::<u64>()).prop_map(|(suite, end, duration_ms)| RunEvent::SuiteFinished {
            suite,
            end,
            duration_ms
        }),
        (name(), text()).prop_map(|(suite, error)| RunEvent::SuiteNotStarted { suite, error }),
        text().prop_map(|line| RunEvent::Note { line }),
        text().prop_map(|reason| RunEvent::MachineStopped { reason }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn whatever_a_guest_says_every_report_is_whole(events in prop::collection::vec(event(), 0..30), reason in text()) {
        let parent = tempfile::tempdir().unwrap();
        let screen = Sink::default();
        let config = tests::config(parent.path());
        let loud = TerminalConfig { verbosity: Verbosity::Verbose, ..config.terminal };
        let terminal = Terminal::writing_to(loud, Box::new(screen.clone()));
        let mut all = Reporters::create_with(config, terminal).unwrap();
        let dir = all.dir().to_path_buf();
        events.iter().for_each(|event| all.on_event(event.clone()));
        prop_assert_eq!(all.finish(&RunOutcome::GuestDied { reason }), ExitCode::GuestDied);

        let told = tests::events(&dir);
        prop_assert_eq!(told.len(), events.len() + 2);
        for (told, event) in told[1..].iter().zip(&events) {
            prop_assert_eq!(&told.event, event);
        }
        let results = events.iter().filter(|event| matches!(event, RunEvent::TestFinished { .. })).count();
        let summary = tests::json(&dir.join("results.json"));
        let listed: usize = summary["suites"].as_array().unwrap().iter().map(|s| s["tests"].as_array().unwrap().len()).sum();
        prop_assert_eq!(listed, results);
        let xml = std::fs::read_to_string(dir.join("junit.xml")).unwrap();
        quick_junit::Report::deserialize_from_str(&xml).unwrap();
        let bad = |c: char| c.is_control() && c != '\n';
        prop_assert_eq!(screen.text().chars().find(|c| bad(*c)), None);
        let here: BTreeSet<_> = std::fs::read_dir(parent.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        let wanted = BTreeSet::from(["latest".into(), dir.file_name().unwrap().to_owned()]);
        prop_assert_eq!(here, wanted);
    }
}
