use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use devices::virtio::fs::Record;

use super::*;

/// A request at this time; its numbers are `unique`'s.
fn request(at: u64, operation: &'static str, node: u64, names: &[&str]) -> Record {
    Record {
        at_ns: at,
        share: "myfs1".into(),
        queue: 1,
        unique: at * 2,
        operation: operation.into(),
        node,
        pid: 7,
        uid: 0,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        names_cut: false,
        arguments: BTreeMap::new(),
        bytes_in: 48,
        bytes_out: 16,
        error: None,
        entry: None,
        took_ns: 1000 + at,
        in_flight: false,
        injected: false,
    }
}

fn found(record: Record, entry: u64) -> Record {
    Record { entry: Some(entry), bytes_out: 144, ..record }
}

fn failed(record: Record, error: &'static str) -> Record {
    Record { error: Some(error.into()), ..record }
}

fn trace(requests: &[Record]) -> SavedTrace {
    SavedTrace { requests: requests.iter().map(|record| (1, record.clone())).collect(), ..SavedTrace::default() }
}

fn options(nameless: bool, context: usize) -> DiffOptions {
    DiffOptions { nameless, refreshes: true, context }
}

/// The same life of a file twice, under numbers and at times of its own.
fn life(nodes: u64, times: u64) -> Vec<Record> {
    vec![
        found(request(times, "LOOKUP", 1, &["dir"]), nodes),
        found(request(times + 10, "CREATE", nodes, &["f"]), nodes + 1),
        request(times + 20, "WRITE", nodes + 1, &[]),
        request(times + 30, "GETATTR", nodes + 1, &[]),
        request(times + 40, "RELEASE", nodes + 1, &[]),
        request(times + 50, "UNLINK", nodes, &["f"]),
    ]
}

#[test]
fn numbers_times_and_the_order_of_lines_make_no_difference() {
    let mut second = life(900, 77_000);
    second.reverse();
    let diff = Diff::new(&trace(&life(2, 5)), &trace(&second), options(false, 3));
    assert!(diff.is_same());
    assert_eq!((diff.shares[0].share.as_str(), diff.shares[0].same), ("myfs1", 6));
    assert_eq!(diff.shares[0].operations["WRITE"], (1, 1));
}

#[test]
fn where_two_traces_part_is_told_with_what_was_before_and_behind_it() {
    let mut second = life(50, 0);
    second[2] = failed(second[2].clone(), "EIO");
    second.insert(3, request(22, "FSYNC", 51, &[]));
    let diff = Diff::new(&trace(&life(2, 0)), &trace(&second), options(false, 1));
    let [share] = &diff.shares[..] else { panic!("{diff:?}") };
    let lines = |text: &str| vec![text.to_owned()];
    assert_eq!(
        share.divergences,
        [Divergence {
            at: (2, 2),
            before: lines("CREATE /dir \"f\""),
            only_first: lines("WRITE /dir/f"),
            only_second: vec!["WRITE /dir/f → EIO".into(), "FSYNC /dir/f".into()],
            after: lines("GETATTR /dir/f"),
        }]
    );
    assert_eq!((share.same, share.operations["FSYNC"]), (5, (0, 1)));
    assert!(!diff.is_same());
}

#[test]
fn what_is_shown_before_a_difference_does_not_reach_into_the_one_before_it() {
    let first: Vec<_> = (0..6).map(|at| request(at, "GETATTR", 1, &[&at.to_string()])).collect();
    let mut second = first.clone();
    second[1] = failed(second[1].clone(), "EIO");
    second[3] = failed(second[3].clone(), "EIO");
    let diff = Diff::new(&trace(&first), &trace(&second), options(false, 5));
    let [one, two] = &diff.shares[0].divergences[..] else { panic!("{diff:?}") };
    assert_eq!((one.before.len(), one.after.len(), two.before.len(), two.after.len()), (1, 1, 1, 2));
}

#[test]
fn names_that_a_test_chose_at_random_can_be_left_out() {
    let named = |name: &str| vec![found(request(0, "CREATE", 1, &[name]), 2), request(1, "UNLINK", 1, &[name])];
    let (first, second) = (trace(&named("tmp.aX3")), trace(&named("tmp.Qq9")));
    assert!(!Diff::new(&first, &second, options(false, 3)).is_same());
    assert!(Diff::new(&first, &second, options(true, 3)).is_same());
}

#[test]
fn forgotten_nodes_are_counted_and_not_aligned() {
    let mut second = life(2, 0);
    second.insert(1, request(5, "FORGET", 9, &[]));
    let diff = Diff::new(&trace(&life(2, 0)), &trace(&second), options(false, 3));
    assert!(diff.is_same());
    assert_eq!(diff.shares[0].operations["FORGET"], (0, 1));
}

#[test]
fn what_a_guest_asks_for_again_makes_no_difference_unless_that_is_wanted() {
    let mut second = life(2, 0);
    second.insert(1, found(request(1, "LOOKUP", 1, &["dir"]), 2));
    second.insert(2, request(2, "GETATTR", 2, &[]));
    let compare =
        |refreshes| Diff::new(&trace(&life(2, 0)), &trace(&second), DiffOptions { refreshes, ..options(false, 3) });
    assert!(compare(false).is_same() && !compare(true).is_same());
    assert_eq!(compare(false).shares[0].operations["LOOKUP"], (1, 2));
    // Another file of that name, and a failure, are news.
    second.insert(3, found(request(3, "LOOKUP", 1, &["dir"]), 99));
    second.insert(4, failed(request(4, "GETATTR", 2, &[]), "EIO"));
    let [share] = &Diff::new(&trace(&life(2, 0)), &trace(&second), DiffOptions::default()).shares[..] else { panic!() };
    assert_eq!(share.divergences[0].only_second, ["LOOKUP / \"dir\"", "GETATTR /dir → EIO"]);
}

#[test]
fn shares_and_machines_are_told_apart_and_one_that_is_missing_differs() {
    let other = Record { share: "myfs2".into(), ..request(0, "STATFS", 1, &[]) };
    let mut second = trace(&[request(0, "STATFS", 1, &[]), other]);
    second.requests.push((2, request(0, "STATFS", 1, &[])));
    let diff = Diff::new(&trace(&[request(0, "STATFS", 1, &[])]), &second, options(false, 3));
    let shares: Vec<_> = diff.shares.iter().map(|share| (share.share.as_str(), share.divergences.len())).collect();
    assert_eq!(shares, [("myfs1", 0), ("myfs2", 1), ("myfs1 of machine 2", 1)]);
}

#[test]
fn a_request_is_one_line_whatever_its_name() {
    let mut naming = Naming::default();
    let record = Record { names_cut: true, ..request(0, "LOOKUP", 1, &["\x1b[31m\n\u{202e}"]) };
    let shown = describe(&record, &mut naming, false);
    assert!(!shown.contains(['\x1b', '\n', '\u{202e}']), "{shown}");
    let arguments = BTreeMap::from([("flags".into(), 0x8241), ("mode".into(), 0o100644), ("to".into(), 9)]);
    let record = Record { arguments, in_flight: true, injected: true, ..request(0, "CREATE", 5, &["a b"]) };
    assert_eq!(
        describe(&record, &mut naming, false),
        "CREATE <node 1> \"a b\" flags=0x8241 mode=0o100644 to=<node 2> → no reply (injected)"
    );
    assert_eq!(describe(&record, &mut naming, true), "CREATE flags=0x8241 mode=0o100644 → no reply (injected)");
    assert_eq!(describe(&request(0, "READ", 1, &[]), &mut naming, false), "READ / → 0 bytes");
}

#[test]
fn paths_of_directories_without_end_stay_short() {
    let mut naming = Naming::default();
    for node in 1..5000 {
        naming.learn(&found(request(0, "MKDIR", node, &["näme"]), node + 1));
    }
    let path = naming.path(5000);
    assert!(path.starts_with('…') && path.ends_with("/näme") && path.len() < 1100, "{path}");
    naming.learn(&found(request(0, "LOOKUP", 5000, &[".."]), 4999));
    assert!(naming.path(4999).ends_with("/näme"));
}

fn saved(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    fs::write(&file, text).unwrap();
    (dir, file)
}

#[test]
fn what_was_written_is_read_again() {
    let record = serde_json::to_string(&request(1, "LOOKUP", 1, &["a"])).unwrap();
    let text = format!(
        "{{\"trace\":{{\"version\":1}}}}\n{{\"machine\":{{\"number\":1}}}}\n{{\"request\":{record}}}\n\
         {{\"dropped\":{{\"share\":\"myfs1\",\"requests\":3}}}}\n{{\"request\":{{\"at"
    );
    let (_dir, file) = saved(&text);
    let trace = SavedTrace::read(&file).unwrap();
    assert_eq!(trace.requests, [(1, request(1, "LOOKUP", 1, &["a"]))]);
    assert_eq!((trace.dropped, trace.is_cut_off), (3, true));
}

#[test]
fn what_is_no_trace_is_refused_with_the_line_and_the_reason() {
    for (text, says) in [
        ("", "trace:1 is no line"),
        ("hello", "trace:1 is no line"),
        ("{\"machine\":{\"number\":1}}\n", "begins with its version"),
        ("{\"trace\":{\"version\":2}}\n", "version 2, this vmm reads 1"),
        ("{\"trace\":{\"version\":1}}\n{\"request\":{\"at_ns\":1}}\n", "trace:2 is no line"),
        (&format!("{{\"trace\":{{\"version\":1}}}}\n{}", "x".repeat(100_000)), "trace:2 is no line"),
    ] {
        let (_dir, file) = saved(text);
        let error = SavedTrace::read(&file).unwrap_err();
        assert!(matches!(error, SavedTraceError::Malformed { .. }) && error.to_string().contains(says), "{error}");
    }
    let missing = SavedTrace::read(&PathBuf::from("/does/not/exist")).unwrap_err();
    assert!(matches!(missing, SavedTraceError::Read { .. }));
}
