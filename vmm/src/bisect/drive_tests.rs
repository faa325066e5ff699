//! The whole way with a tree whose "vmm" is a small program: cargo, git, processes and the journal are real, only guests
//! are not.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use guest_image::Cache;

use super::super::git::{Repository, tests as git};
use super::super::history::History;
use super::super::journal::Subject;
use super::super::report::Report;
use super::super::runner::{Processes, Runner};
use super::super::search::Rules;
use super::*;

/// Runs what follows `--`, as in a guest, with `VALUE` set to what its commit says.
const PROGRAM: &str = r#"fn main() {
    let command: Vec<String> = std::env::args().skip_while(|word| word != "--").skip(1).collect();
    let status = std::process::Command::new(&command[0]).args(&command[1..]).env("VALUE", "VALUE_HERE").status();
    std::process::exit(status.unwrap().code().unwrap());
}
"#;

struct Place {
    dir: tempfile::TempDir,
    ids: Vec<String>,
    cache: Cache,
}

/// Asks to stop after so many questions whether to.
struct Patience(AtomicU32);

impl Progress for Patience {
    fn step(&self, _: &str) {}
    fn detail(&self, _: &str) {}
    fn fraction(&self, _: f64) {}
    fn interrupted(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(1))).unwrap_or(0) <= 1
    }
}

impl Place {
    /// Nine commits: in the fifth VALUE becomes 5; the fourth does not build, the seventh only changes a comment.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("src")).unwrap();
        fs::write(tree.join("Cargo.toml"), "[package]\nname = \"vmm\"\nversion = \"0.1.0\"\nedition = \"2021\"\n")
            .unwrap();
        fs::write(tree.join("Cargo.lock"), "version = 3\n\n[[package]]\nname = \"vmm\"\nversion = \"0.1.0\"\n")
            .unwrap();
        git::git(&tree, &["init", "-q"]);
        let program = |value: &str| PROGRAM.replace("VALUE_HERE", value);
        let ids = (0..9u8)
            .map(|n| {
                let value = n.min(5).to_string();
                let text = match n {
                    4 => program(&value) + "this does not build",
                    6 => program(&value) + "// A comment.\n",
                    _ => program(&value) + &format!("#[used]\nstatic N: u8 = {n};\n"),
                };
                git::commit(&tree, "src/main.rs", &text, &format!("change {n}"))
            })
            .collect();
        let cache = Cache::open(dir.path().join("cache")).unwrap();
        Self { dir, ids, cache }
    }

    fn request(&self) -> Request {
        let tree = fs::canonicalize(self.dir.path().join("tree")).unwrap();
        Request {
            version: Request::VERSION,
            subject: Subject::Server { tree, paths: Vec::new(), first_parent: false },
            old: vec![self.ids[0].clone()],
            new: self.ids[8].clone(),
            rules: Rules { repeat: Repeat::Times(1), error: 0.01, fix: false, max_untestable: 5 },
            boot_failure_is_bad: false,
            question: ["exec", "--", "sh", "-c", "test $VALUE -lt 5"].map(str::to_owned).into(),
            directory: self.dir.path().to_owned(),
            command: vec!["vmm".into(), "bisect".into()],
        }
    }

    /// Goes on from what is on the disk with so many tests at a time; the lines that were said, and the report's JSON.
    fn go_on(&self, dir: &Path, jobs: usize, progress: &dyn Progress) -> (Outcome, Vec<String>, serde_json::Value) {
        let (request, mut journal) = Journal::open(dir).unwrap();
        let repository = Repository::open(&self.dir.path().join("tree")).unwrap();
        let history = History::new(
            &repository.range(&request.old, &request.new, &[], false).unwrap(),
            &request.old,
            &request.new,
        );
        let mut search = Search::new(history, request.rules.clone());
        for step in journal.steps() {
            search.record(search.history().find(&step.id).unwrap(), step.event.clone());
        }
        let names = Names::new(Some(repository.clone()));
        let said = std::cell::RefCell::new(Vec::new());
        let binary = Path::new("/nonexistent");
        let workshop = Workshop::new(&self.cache, &request, Some(&repository), binary, progress).unwrap();
        let cache_dir = self.cache.root();
        let outcome = Bisection {
            request: &request,
            journal: &mut journal,
            search: &mut search,
            workshop,
            runners: (0..jobs).map(|_| -> Box<dyn Runner> { Box::new(Processes) }).collect(),
            names: &names,
            cache_dir,
        }
        .run(progress, &|line| said.borrow_mut().push(line.to_owned()))
        .unwrap();
        let json = match &outcome {
            Outcome::Done(conclusion) => {
                let report =
                    Report { request: &request, search: &search, journal: &journal, names: &names, conclusion };
                report.write().unwrap();
                report.json()
            }
            Outcome::Interrupted => serde_json::Value::Null,
        };
        (outcome, said.into_inner(), json)
    }
}

#[test]
fn our_own_history_is_searched_with_each_commits_own_program_however_often_it_is_interrupted() {
    let place = Place::new();
    let dir = place.dir.path().join("bisection");
    fs::create_dir(&dir).unwrap();
    drop(Journal::create(&dir, &place.request()).unwrap());
    let mut interrupted = 0;
    // A build asks several times a second; each attempt is given more patience than the one before.
    let json = loop {
        match place.go_on(&dir, 1, &Patience(AtomicU32::new(1 + interrupted * 40))) {
            (Outcome::Interrupted, ..) => interrupted += 1,
            (Outcome::Done(_), _, json) => break json,
        }
        assert!(interrupted < 200, "it never gets anywhere");
    };
    assert!(interrupted > 0);
    // The fourth does not build, and its neighbours tell enough: the fifth is good or the answer is one of two.
    assert_eq!(json["result"], "one-of", "{json:#}");
    let candidates: Vec<_> = json["candidates"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert_eq!(candidates, [&place.ids[4], &place.ids[5]]);
    let steps = json["steps"].as_array().unwrap();
    let tested: std::collections::BTreeSet<_> = steps.iter().map(|step| step["id"].as_str().unwrap()).collect();
    assert_eq!(tested.len(), steps.len(), "a step was repeated: {json:#}");
    let log = fs::read_to_string(dir.join(GIT_LOG)).unwrap();
    assert!(log.contains(&format!("git bisect skip {}", place.ids[4])) && log.contains("change 4"), "{log}");
    let markdown = fs::read_to_string(dir.join(super::super::MARKDOWN)).unwrap();
    assert!(markdown.contains("one of these 2") && markdown.contains("does not build"), "{markdown}");
    // The user's tree was only read.
    let tree = place.dir.path().join("tree");
    assert_eq!(git::git(&tree, &["status", "--porcelain"]), "");
    assert_eq!(git::git(&tree, &["rev-parse", "HEAD"]), place.ids[8]);
}

#[test]
fn side_by_side_the_same_steps_come_in_the_same_order_and_what_was_not_asked_for_leaves_nothing() {
    let place = Place::new();
    let search = |name: &str, jobs: usize| {
        let dir = place.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        drop(Journal::create(&dir, &place.request()).unwrap());
        let (outcome, said, json) = place.go_on(&dir, jobs, &guest_image::Silent);
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        let (_, journal) = Journal::open(&dir).unwrap();
        let mut kept: Vec<_> = journal.steps().iter().filter_map(|step| step.run.clone()).collect();
        let folders = fs::read_dir(dir.join("runs")).unwrap().flatten();
        let mut folders: Vec<_> = folders.map(|entry| format!("runs/{}", entry.file_name().display())).collect();
        kept.sort();
        folders.sort();
        assert_eq!(kept, folders);
        let ids: Vec<_> = journal.steps().iter().map(|step| step.id.clone()).collect();
        (ids, json["result"].clone(), said.len())
    };
    assert_eq!(search("one", 1), search("four", 4));
}
