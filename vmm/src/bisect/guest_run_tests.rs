use std::os::unix::fs::PermissionsExt;

use guest_image::Silent;

use super::super::runner::Processes;

use super::*;

/// A stand-in for `vmm` that does what `script` says; `$RESULTS` is where a run's files belong.
fn run_with(script: &str, question: &[&str], interesting: &[&str]) -> anyhow::Result<GuestEnd> {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("vmm");
    let text = format!(
        "#!/bin/sh\nRESULTS={0}/run/one; mkdir -p $RESULTS; ln -sfn one {0}/run/latest\n{script}\n",
        dir.path().display()
    );
    fs::write(&binary, text).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let question: Vec<String> = question.iter().map(|word| (*word).to_owned()).collect();
    let run = GuestRun {
        binary: &binary,
        question: &question,
        directory: dir.path(),
        kernel: Some("k"),
        cache_dir: Path::new("/cache"),
        results: &dir.path().join("run"),
        interesting: &interesting.iter().map(|test| (*test).to_owned()).collect(),
    };
    run.run(&mut Processes, &Silent)
}

fn results(outcome: &str, release: &str, code: u8, tests: &[(&str, &str)]) -> String {
    let tests: Vec<_> =
        tests.iter().map(|(test, judgement)| format!(r#"{{"test":"{test}","judgement":"{judgement}"}}"#)).collect();
    format!(
        "cat > $RESULTS/results.json <<'END'\n{{\"outcome\":{outcome},\"exit_code\":{code},\"kernel_release\":{release},\
         \"suites\":[{{\"name\":\"s\",\"tests\":[{}]}}]}}\nEND\nexit {code}",
        tests.join(",")
    )
}

const COMPLETED: &str = r#"{"kind":"completed"}"#;
const DIED: &str = r#"{"kind":"guest-died","reason":"Kernel panic"}"#;
const CANNOT: &str = r#"{"kind":"cannot-test","reason":"the agent never spoke"}"#;

fn seen(script: &str, interesting: &[&str]) -> Observation {
    match run_with(script, &["run", "s"], interesting).unwrap() {
        GuestEnd::Seen(observation) => observation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tests_are_read_as_they_were_judged_and_passes_only_where_they_matter() {
    let tests = [("a", "fail"), ("b", "pass"), ("c", "pass"), ("d", "expected-fail"), ("e", "error"), ("e", "pass")];
    let run = seen(&results(COMPLETED, "\"6.12\"", 1, &tests), &["s: b", "s: e"]);
    assert_eq!(run.failed, ["s: a", "s: e"].map(str::to_owned).into());
    assert_eq!((run.end, run.passed), (End::Completed, ["s: b".to_owned()].into()));
    assert_eq!(seen(&results(COMPLETED, "\"6.12\"", 4, &[]), &[]).end, End::NothingRan);
    assert_eq!(seen(&results(DIED, "\"6.12\"", 3, &[]), &[]).end, End::Died("Kernel panic".into()));
}

#[test]
fn a_test_that_panicked_its_guest_is_told_with_what_it_died_of() {
    let json = r#"cat > $RESULTS/results.json <<'END'
{"outcome":{"kind":"completed"},"exit_code":1,"kernel_release":"6.12","suites":[{"name":"s","tests":[
{"test":"a","judgement":"error","message":"Kernel panic - not syncing: planted"},
{"test":"b","judgement":"error","message":"the test took too long"}]}]}
END
exit 1"#;
    let run = seen(json, &[]);
    assert_eq!(run.deaths, [("s: a".to_owned(), "Kernel panic - not syncing: planted".to_owned())].into());
    assert_eq!(run.failed.len(), 2);
}

#[test]
fn a_kernel_that_never_came_up_is_told_from_a_host_that_could_not_start_it() {
    let started = r#"echo '{"at_ms":0,"event":"boot-started"}' > $RESULTS/events.jsonl"#;
    let end = |script: &str| run_with(script, &["run", "s"], &[]).unwrap();
    assert_eq!(end(&results(DIED, "null", 3, &[])), GuestEnd::BootFailed("Kernel panic".into()));
    let script = format!("{started}\n{}", results(CANNOT, "null", 125, &[]));
    assert_eq!(end(&script), GuestEnd::BootFailed("the agent never spoke".into()));
    assert_eq!(end(&results(CANNOT, "null", 125, &[])), GuestEnd::Trouble("the agent never spoke".into()));
    assert_eq!(end(&results(CANNOT, "\"6.12\"", 125, &[])), GuestEnd::Trouble("the agent never spoke".into()));
    assert_eq!(end("echo 'vmm: no host' >&2; exit 125"), GuestEnd::Trouble("no host".into()));
    assert_eq!(end("kill -9 $$"), GuestEnd::Trouble("killed by signal 9".into()));
    let unfit = "echo 'vmm: kernel 6.1 cannot be used: it was built without CONFIG_X' >&2; exit 125";
    assert!(matches!(end(unfit), GuestEnd::Untestable(why) if why.contains("CONFIG_X")));
}

#[test]
fn a_wrong_question_is_the_users_mistake_and_stops_everything() {
    for question in [&["run", "s"][..], &["exec", "--", "true"]] {
        let error = run_with("echo 'vmm: there is no suite' >&2; exit 2", question, &[]).unwrap_err();
        assert!(error.is::<UsageError>() && error.to_string().contains("there is no suite"), "{error}");
    }
}

#[test]
fn a_commands_exit_code_is_its_own_whatever_ours_mean() {
    // What follows `--` is run here as the guest would.
    let guest = "while [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"";
    let end = |command: &str| run_with(guest, &["exec", "--cpus", "1", "--", "sh", "-c", command], &[]).unwrap();
    for code in [0, 1, 2, 3, 124, 130] {
        let GuestEnd::Seen(run) = end(&format!("exit {code}")) else { panic!("{code}") };
        assert_eq!(run.end, End::Exited(code));
    }
    assert!(matches!(end("exit 125"), GuestEnd::Untestable(_)));
    let began = "while [ \"$1\" != -- ]; do shift; done; shift; \"$1\" -c \"${3%%;*}\";";
    let died = format!("{began} echo 'vmm: the guest died: Oops' >&2; exit 3");
    let GuestEnd::Seen(run) = run_with(&died, &["exec", "--", "true"], &[]).unwrap() else { panic!() };
    assert_eq!(run.end, End::Died("Oops".into()));
    let much = format!("{began} yes | head -n 100000 >&2; echo 'vmm: the guest died: Oops' >&2; exit 3");
    let GuestEnd::Seen(run) = run_with(&much, &["exec", "--", "true"], &[]).unwrap() else { panic!() };
    assert_eq!(run.end, End::Died("Oops".into()), "though the log's end does not show that it had begun");
    let never = run_with("echo 'vmm: the guest died: Oops' >&2; exit 3", &["exec", "--", "true"], &[]).unwrap();
    assert!(matches!(never, GuestEnd::BootFailed(_)));
}

#[test]
fn a_run_is_given_the_kernel_and_a_place_for_its_results_and_the_rest_is_the_users() {
    let words = "echo \"$*\" > \"$(dirname \"$0\")/words\"; cat \"$(dirname \"$0\")/words\" >&2; exit 1";
    let end = run_with(words, &["run", "xfstests", "-g", "quick"], &[]).unwrap();
    let GuestEnd::Trouble(said) = end else { panic!("{end:?}") };
    assert!(said.contains("run --cache-dir /cache --kernel k --results /"), "{said}");
    assert!(said.ends_with("/run xfstests -g quick"), "{said}");
}
