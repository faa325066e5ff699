use super::super::signature::End;
use super::*;

/// A small generator of its own, so that every simulated history is the same everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A history whose truth is known.
struct Model {
    history: History,
    planted: Node,
    has_it: Vec<bool>,
    /// How often a failing side passes all the same, and a passing one fails.
    flake: f64,
    noise: f64,
    untestable: Vec<bool>,
    unrelated: Vec<bool>,
    fix: bool,
    random: Random,
}

impl Model {
    fn new(seed: u64, commits: usize, merges: bool) -> Self {
        let mut random = Random::new(seed);
        let name = |n: usize| format!("c{n}");
        let list: Vec<_> = (0..commits)
            .map(|n| {
                let mut parents: Vec<String> = n.checked_sub(1).map(name).into_iter().collect();
                if merges && n > 2 && random.below(6) == 0 {
                    parents.push(name(random.below(n - 1)));
                }
                (name(n), parents)
            })
            .collect();
        let history = History::new(&list, &["good".into()], &name(commits - 1));
        let planted = 1 + random.below(commits);
        let has_it = (0..history.len()).map(|node| history.contained_in(node)[planted]).collect();
        let none = vec![false; history.len()];
        let (untestable, unrelated) = (none.clone(), none);
        Self { history, planted, has_it, flake: 0.0, noise: 0.0, untestable, unrelated, fix: false, random }
    }

    fn spoil(&mut self, share: f64) {
        for node in 1..self.history.len() - 1 {
            self.untestable[node] = self.random.share() < share;
            self.unrelated[node] = self.random.share() < share / 2.0;
        }
    }

    fn probe(&mut self, node: Node) -> Event {
        if self.untestable[node] {
            return Event::Untestable { why: "does not build".into() };
        }
        let set = |name: &str| BTreeSet::from([name.to_owned()]);
        let mut observation = Observation::pass();
        if self.unrelated[node] {
            observation.end = End::Died("Kernel panic - not syncing: something else".into());
            return Event::Ran { observation };
        }
        let fails = self.has_it[node] != self.fix;
        if self.random.share() < if fails { 1.0 - self.flake } else { self.noise } {
            observation.failed = set("s: t");
        } else {
            observation.passed = set("s: t");
        }
        Event::Ran { observation }
    }

    /// The code path of a real bisection, and how many runs it took.
    fn bisect(&mut self, repeat: Repeat) -> (Conclusion, Search, usize) {
        let rules = Rules { repeat, error: 0.01, fix: self.fix, max_untestable: 50 };
        let mut search = Search::new(self.history.clone(), rules);
        for runs in 0..20_000 {
            match search.next() {
                Next::Test(node) => {
                    let event = self.probe(node);
                    search.record(node, event);
                }
                Next::Done(conclusion) => return (conclusion, search, runs),
            }
        }
        panic!("no end to it: {} commits, flake rate {}", self.history.len(), self.flake);
    }
}

fn log2(count: usize) -> usize {
    usize::try_from(count.next_power_of_two().trailing_zeros()).unwrap()
}

#[test]
fn a_bug_that_always_fails_is_found_in_as_many_boots_as_the_logarithm_and_two() {
    for commits in 1..200 {
        for (seed, merges) in [(1, false), (2, true), (3, true)] {
            let mut model = Model::new(seed * 1000 + commits as u64, commits, merges);
            model.fix = seed == 2;
            let (conclusion, search, runs) = model.bisect(Repeat::Times(1));
            assert_eq!(conclusion, Conclusion::Found { node: model.planted, chance: None }, "{commits} {merges}");
            let limit = log2(search.history().candidates()) + 2;
            // A merge may have no middle: git needs a step more there, too.
            assert!(runs <= limit + if merges { 2 } else { 0 }, "{runs} boots for {commits} commits, merges: {merges}");
        }
    }
}

#[test]
fn with_flake_rates_up_to_a_half_the_planted_commit_is_named_two_hundred_times_of_two_hundred() {
    let mut wrong = Vec::new();
    for seed in 0..200 {
        let mut model = Model::new(seed, 2 + (seed as usize * 7) % 120, seed % 2 == 0);
        model.flake = 0.5 * seed as f64 / 199.0;
        model.fix = seed % 5 == 0;
        let (conclusion, ..) = model.bisect(Repeat::Auto);
        match conclusion {
            Conclusion::Found { node, chance: Some(chance) } if node == model.planted => assert!(chance >= 0.99),
            other => wrong.push((seed, model.planted, other)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn the_promised_error_holds_over_thousands_of_histories_also_where_good_commits_fail_now_and_then() {
    let (mut wrong, mut all, mut undecided) = (0, 0, 0);
    for seed in 10_000..10_600u64 {
        let mut model = Model::new(seed, 2 + (seed as usize * 13) % 60, seed % 3 == 0);
        model.flake = 0.7 * model.random.share();
        model.noise = if seed % 4 == 0 { 0.02 } else { 0.0 };
        match model.bisect(Repeat::Auto).0 {
            Conclusion::Found { node, .. } => {
                all += 1;
                wrong += usize::from(node != model.planted);
            }
            // Said, not guessed.
            Conclusion::FailsAtBothEnds { .. } | Conclusion::Undecided(_) => undecided += 1,
            other => panic!("{seed}: {other:?}"),
        }
    }
    assert!(all > 500, "{all}, {undecided}");
    assert!(wrong * 100 <= all, "{wrong} of {all}");
}

#[test]
fn what_cannot_be_tested_is_skipped_and_the_answer_always_has_the_planted_commit() {
    let (mut found, mut ranges) = (0, 0);
    for seed in 0..400u64 {
        let mut model = Model::new(seed + 77, 3 + (seed as usize * 11) % 90, seed % 2 == 0);
        model.spoil([0.05, 0.2, 0.5][seed as usize % 3]);
        let repeat = if seed % 4 == 0 { Repeat::Auto } else { Repeat::Times(1) };
        match model.bisect(repeat).0 {
            Conclusion::Found { node, .. } => {
                found += 1;
                assert_eq!(node, model.planted, "{seed}");
            }
            Conclusion::OneOf(nodes) => {
                ranges += 1;
                assert!(nodes.contains(&model.planted) && nodes.len() > 1, "{seed}: {nodes:?} {}", model.planted);
                // No wider than it has to be: all but the last cannot be tested.
                let useless = |n: &Node| model.untestable[*n] || model.unrelated[*n];
                assert!(nodes.iter().filter(|n| !useless(n)).count() <= 1 || seed % 2 == 0, "{seed}: {nodes:?}");
            }
            other => panic!("{seed}: {other:?}"),
        }
    }
    assert!(found > 150 && ranges > 50, "{found} {ranges}");
}

#[test]
fn the_failing_end_comes_first_then_the_passing_one_and_either_may_end_it() {
    let mut model = Model::new(5, 32, false);
    model.has_it.fill(false);
    let (conclusion, _, runs) = model.bisect(Repeat::Times(3));
    assert_eq!((conclusion, runs), (Conclusion::NeverFails { node: 32, runs: 3 }, 3));
    model.has_it.fill(true);
    let (conclusion, _, runs) = model.bisect(Repeat::Times(3));
    assert_eq!(runs, 2);
    assert!(matches!(conclusion, Conclusion::FailsAtBothEnds { node: 0, counts: Counts { fails: 1, .. } }));
    model.untestable[32] = true;
    assert!(matches!(model.bisect(Repeat::Times(3)).0, Conclusion::EndUntestable { node: 32, .. }));
    let (conclusion, ..) = {
        model.untestable[32] = false;
        model.has_it.fill(false);
        model.bisect(Repeat::Auto)
    };
    assert!(matches!(conclusion, Conclusion::NeverFails { runs: RUNS_WITHOUT_A_FAILURE, .. }), "{conclusion:?}");
}

#[test]
fn a_kernel_equal_to_one_on_the_same_side_needs_no_run() {
    let history = History::list(&(0..9).map(|n| format!("k{n}")).collect::<Vec<_>>());
    let rules = Rules { repeat: Repeat::Times(1), error: 0.01, fix: false, max_untestable: 5 };
    let mut search = Search::new(history, rules);
    // Kernels 0 to 5 are one file, 6 to 8 another.
    let mut boots = 0;
    let conclusion = loop {
        let node = match search.next() {
            Next::Test(node) => node,
            Next::Done(conclusion) => break conclusion,
        };
        let twin = search.tested().find(|t| (*t < 6) == (node < 6));
        let event = match twin {
            Some(twin) => Event::SameAs { other: search.history().id(twin).to_owned() },
            None => {
                boots += 1;
                let failed = if node < 6 { BTreeSet::new() } else { BTreeSet::from(["t".to_owned()]) };
                let passed = if node < 6 { BTreeSet::from(["t".to_owned()]) } else { BTreeSet::new() };
                Event::Ran { observation: Observation { failed, passed, ..Observation::pass() } }
            }
        };
        search.record(node, event);
    };
    assert_eq!((conclusion, boots), (Conclusion::Found { node: 6, chance: None }, 2));
}

#[test]
fn what_somebody_else_has_said_is_taken_and_contradictions_are_told() {
    let mut model = Model::new(9, 64, false);
    let rules = Rules { repeat: Repeat::Times(1), error: 0.01, fix: false, max_untestable: 5 };
    let given = |said: &[(Node, bool)], model: &mut Model| {
        let mut search = Search::new(model.history.clone(), rules.clone());
        said.iter().for_each(|(node, new)| search.record(*node, Event::Given { new: *new }));
        let mut runs = 0;
        loop {
            match search.next() {
                Next::Test(node) => search.record(node, model.probe(node)),
                Next::Done(conclusion) => return (conclusion, runs),
            }
            runs += 1;
        }
    };
    let planted = model.planted;
    let (conclusion, runs) = given(&[(planted, true), (planted - 1, false)], &mut model);
    assert_eq!((conclusion, runs), (Conclusion::Found { node: planted, chance: None }, 2));
    let (conclusion, _) = given(&[(planted, false), (planted - 1, true)], &mut model);
    assert_eq!(conclusion, Conclusion::Contradiction);
}

#[test]
fn the_last_commit_that_touches_the_paths_is_tested_before_it_is_named() {
    let list: Vec<_> = (0..8usize)
        .map(|n| (format!("c{n}"), n.checked_sub(1).map(|before| format!("c{before}")).into_iter().collect()))
        .collect();
    for repeat in [Repeat::Times(1), Repeat::Auto] {
        for in_paths in [true, false] {
            let history = History::new(&list, &["good".into()], "tip");
            let rules = Rules { repeat, error: 0.01, fix: false, max_untestable: 5 };
            let (last, tip) = (history.find("c7").unwrap(), history.new_end());
            let mut search = Search::new(history, rules);
            let conclusion = loop {
                match search.next() {
                    Next::Test(node) => {
                        let fails = node == tip || (in_paths && node == last);
                        let test = BTreeSet::from(["t".to_owned()]);
                        let run = Observation::pass();
                        let observation = match fails {
                            true => Observation { failed: test, ..run },
                            false => Observation { passed: test, ..run },
                        };
                        search.record(node, Event::Ran { observation });
                    }
                    Next::Done(conclusion) => break conclusion,
                }
            };
            match (in_paths, conclusion) {
                (true, Conclusion::Found { node, .. }) => assert_eq!(node, last),
                (false, conclusion) => assert_eq!(conclusion, Conclusion::Contradiction, "{repeat:?}"),
                (true, other) => panic!("{repeat:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_fails_at_an_end_that_was_given_as_good_is_not_looked_for() {
    let model = Model::new(9, 16, false);
    let rules = Rules { repeat: Repeat::Times(1), error: 0.01, fix: false, max_untestable: 5 };
    let (good, new, planted) = (model.history.old()[0], model.history.new_end(), model.planted);
    let mut search = Search::new(model.history.clone(), rules);
    search.record(good, Event::Given { new: false });
    let conclusion = loop {
        match search.next() {
            Next::Test(node) => {
                let names = if model.has_it[node] || node == new { &["always", "t"][..] } else { &["always"] };
                let failed = names.iter().map(|name| (*name).to_owned()).collect();
                let passed = BTreeSet::from(["t".to_owned()]).difference(&failed).cloned().collect();
                let observation = Observation { failed, passed, ..Observation::pass() };
                search.record(node, Event::Ran { observation });
            }
            Next::Done(conclusion) => break conclusion,
        }
    };
    assert_eq!(conclusion, Conclusion::Found { node: planted, chance: None });
}

#[test]
fn the_same_events_lead_to_the_same_place() {
    let mut model = Model::new(31, 70, true);
    model.flake = 0.3;
    let (conclusion, search, _) = model.bisect(Repeat::Auto);
    let mut again = Search::new(model.history.clone(), search.rules().clone());
    for node in search.tested() {
        for run in search.runs(node) {
            again.record(node, Event::Ran { observation: run.clone() });
        }
    }
    assert_eq!(again.next(), Next::Done(conclusion));
}
