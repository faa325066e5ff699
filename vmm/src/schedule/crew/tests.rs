use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use guest_image::suite::{Manifest, SuiteRun};
use wire::{ProcessEnd, TestStatus, ToGuest, ToHost, read_frame, write_frame};

use super::*;
use crate::machine::StopReason;
use crate::schedule::{Done, Policy};
use crate::session::{Deadlines, test_hello};

const TESTS: [&str; 4] = ["a", "b", "c", "d"];

fn suite() -> SuiteRun {
    let text = "name = 's'\ndescription = 'd'\nformat = 'xfstests'\n[build]\nmethod = 'source'\n\
                [run]\nargv = ['run']\ncwd = '/'\n[tests]\nlist = ['list']\n";
    Manifest::parse("m", text).unwrap().runs(&[], 0).remove(0)
}

/// A guest whose agent passes every test but those that `kills` it; what it plays ends with the stream.
fn guest(kills: &'static [&'static str]) -> StartedGuest {
    let (agent_sender, agent) = mpsc::channel();
    let (stopped_sender, stopped) = bounded(1);
    let (ours, theirs) = UnixStream::pair().unwrap();
    agent_sender.send(theirs).unwrap();
    thread::spawn(move || {
        let _ = play(ours, kills);
        let _ = stopped_sender.send(StopReason::PowerOff);
    });
    let handle = GuestHandle {
        agent,
        stopped,
        console_log: None,
        autopsy: Box::new(|| "seen".into()),
        last_requests: Box::new(Vec::new),
        stop: Box::new(|| StopReason::Requested),
    };
    StartedGuest { handle, keep: Box::new(()) }
}

fn play(mut stream: UnixStream, kills: &[&str]) -> std::io::Result<()> {
    let mut send = {
        let mut stream = stream.try_clone()?;
        move |frame: ToHost| write_frame(&mut stream, &frame).map_err(std::io::Error::other)
    };
    send(test_hello())?;
    while let Ok(Some(frame)) = read_frame::<ToGuest>(&mut stream) {
        match frame {
            ToGuest::Exec { .. } => {
                let data = TESTS.join("\n").into_bytes();
                send(ToHost::Output { stream: wire::Stream::Stdout, data })?;
                send(ToHost::ExecFinished { end: ProcessEnd::Exited(0) })?;
            }
            ToGuest::RunSuite(plan) => {
                let chosen = plan.command.argv[1..].to_vec();
                send(ToHost::SuiteStarted { suite: plan.name })?;
                let tests = if chosen.is_empty() { TESTS.map(str::to_owned).to_vec() } else { chosen };
                for name in tests {
                    send(ToHost::TestStarted { name: name.clone() })?;
                    if kills.contains(&name.as_str()) {
                        return Ok(());
                    }
                    let (status, message) = (TestStatus::Pass, String::new());
                    send(ToHost::TestFinished { name, status, duration_us: 1, message })?;
                }
                send(ToHost::SuiteFinished { end: ProcessEnd::Exited(0) })?;
            }
            ToGuest::Ping => send(ToHost::Pong)?,
            ToGuest::Shutdown => return send(ToHost::Goodbye),
            _ => {}
        }
    }
    Ok(())
}

fn plan() -> RunPlan {
    RunPlan::starting_now(Deadlines { boot: Duration::from_secs(30), ..Deadlines::default() })
}

fn schedule(jobs: usize) -> Schedule {
    Schedule::new([(suite(), Done::default())], Policy { jobs, ..Policy::default() })
}

/// Each test's result, sorted, and how many guests there were.
fn run_all(jobs: usize, kills: &'static [&'static str]) -> (Vec<(String, TestStatus)>, u32, RunOutcome) {
    let booted = AtomicU32::new(0);
    let start = |_| {
        booted.fetch_add(1, Ordering::SeqCst);
        Ok(guest(kills))
    };
    let (_interrupt, interrupts) = unbounded::<()>();
    let mut results = Vec::new();
    let mut ends = 0;
    let outcome = run(schedule(jobs), jobs, &plan(), &start, &interrupts, &mut |_, event| match event {
        RunEvent::TestFinished { test, status, .. } => results.push((test, status)),
        RunEvent::SuiteFinished { .. } => ends += 1,
        _ => {}
    });
    assert_eq!(ends, 1);
    results.sort();
    (results, booted.into_inner(), outcome)
}

#[test]
fn guests_follow_each_other_until_everything_has_run() {
    use TestStatus::{Error, Pass};
    let expected =
        [("a", Pass), ("b", Error), ("c", Pass), ("d", Error)].map(|(test, status)| (test.to_owned(), status));
    let (results, guests, outcome) = run_all(1, &["b", "d"]);
    assert_eq!(results, expected);
    assert_eq!((guests, outcome), (2, RunOutcome::Completed));
    assert_eq!(run_all(2, &["b", "d"]).0, expected, "the same with two side by side");
}

#[test]
fn ctrl_c_ends_guests_side_by_side_and_boots_no_more() {
    let (interrupt, interrupts) = unbounded();
    let booted = AtomicU32::new(0);
    let start = |_| {
        booted.fetch_add(1, Ordering::SeqCst);
        Ok(guest(&[]))
    };
    let mut told = false;
    let outcome = run(schedule(2), 2, &plan(), &start, &interrupts, &mut |_, event| {
        if matches!(event, RunEvent::TestStarted { .. }) && !std::mem::replace(&mut told, true) {
            interrupt.send(()).unwrap();
            // The guests have more to tell than there is room for, before the interrupt is looked at.
            thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(outcome, RunOutcome::Interrupted);
    assert!(booted.into_inner() <= 2);
}

#[test]
fn a_guest_that_cannot_be_started_and_a_report_that_panics_end_the_run() {
    let (_interrupt, interrupts) = unbounded::<()>();
    let start = |_| Err(anyhow::anyhow!("no room").context("no guest"));
    let outcome = run(schedule(2), 2, &plan(), &start, &interrupts, &mut |_, _| {});
    assert_eq!(outcome, RunOutcome::CannotTest { reason: "no guest: no room".into() });

    let panics = catch_unwind(AssertUnwindSafe(|| {
        run(schedule(2), 2, &plan(), &|_| Ok(guest(&[])), &interrupts, &mut |_, event| {
            assert!(!matches!(event, RunEvent::TestStarted { .. }), "expected by the test");
        })
    }));
    assert!(panics.is_err());
}
