//! A suite with its arguments: the whole of it, what lists its tests, and the same with only some of them.

use wire::{Command, ResultFormat, SuitePlan};

use super::Manifest;

/// One suite to run, or one section of a suite that runs in several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuiteRun {
    /// All that its arguments choose.
    pub plan: SuitePlan,
    /// Prints the tests that are chosen, one a line; `None` for a suite that is one whole.
    pub listing: Option<Command>,
    selection: Option<Selection>,
}

/// What of a suite's command line stays when its tests are named.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selection {
    argv: Vec<String>,
    argument: String,
    below: Option<String>,
}

impl SuiteRun {
    pub(super) fn new(manifest: &Manifest, name: &str, args: &[String], test_timeout_ms: u64) -> Self {
        let below = &manifest.run.operands_below;
        let args = placed(args, below.as_deref());
        let with = |start: &[String], rest: &[String]| [start, rest].concat();
        let selection = manifest.tests.as_ref().map(|tests| {
            let kept = options_only(&args, &tests.choosing_options, &tests.value_options);
            let argv = [&manifest.run.argv[..], &kept, &tests.before].concat();
            Selection { argv, argument: tests.argument.clone(), below: below.clone() }
        });
        Self {
            plan: SuitePlan {
                name: name.to_owned(),
                command: manifest.command(with(&manifest.run.argv, &args)),
                format: manifest.format,
                test_timeout_ms,
                artefacts: manifest.run.artefacts.clone(),
            },
            listing: manifest.tests.as_ref().map(|tests| manifest.command(with(&tests.list, &args))),
            selection,
        }
    }

    /// The same with only these of the listed tests; `None` for a suite that is one whole.
    #[must_use]
    pub fn with_tests<'t>(&self, tests: impl IntoIterator<Item = &'t str>) -> Option<SuitePlan> {
        let selection = self.selection.as_ref()?;
        let mut plan = self.plan.clone();
        plan.command.argv.clone_from(&selection.argv);
        let names: Vec<String> = tests.into_iter().map(|test| selection.argument.replace("{test}", test)).collect();
        plan.command.argv.extend(placed(&names, selection.below.as_deref()));
        Some(plan)
    }

    /// With this in the environment of what it runs.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.plan.command.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Whether each listed test has exactly one result, so that it is done with that.
    #[must_use]
    pub fn has_one_result_per_test(&self) -> bool {
        match self.plan.format {
            ResultFormat::PjdfstestRs => true,
            // With these check runs a test several times.
            ResultFormat::Xfstests => !self.plan.command.argv.iter().any(|arg| ["-i", "-I", "-L"].contains(&&**arg)),
            _ => false,
        }
    }

    /// The listed test that a result belongs to; `None` where that cannot be told from its name.
    #[must_use]
    pub fn test_of<'r>(&self, result: &'r str) -> Option<&'r str> {
        let test = match self.plan.format {
            ResultFormat::PjdfstestRs => result,
            // `chmod/00.t:12`, and `chmod/00.t` for the file as a whole.
            ResultFormat::ProveTap => match result.rsplit_once(':') {
                Some((file, number)) if number.bytes().all(|b| b.is_ascii_digit()) => file,
                _ => result,
            },
            // `section:generic/001` where a configuration has sections.
            ResultFormat::Xfstests => result.rsplit_once(':').map_or(result, |(_, test)| test),
            // `--ov=10 rename-file:23 what it does`.
            ResultFormat::Unionmount => {
                let test =
                    result.split_once(' ').filter(|(layers, _)| layers.starts_with("--")).map_or(result, |(_, t)| t);
                test.split_once(':')?.0
            }
            ResultFormat::ExitCode => return None,
        };
        Some(test)
    }
}

/// Operands below `folder`, if there is one; without any operand it is one itself.
fn placed(args: &[String], folder: Option<&str>) -> Vec<String> {
    let Some(folder) = folder else { return args.to_vec() };
    let is_operand = |arg: &String| !arg.starts_with('-');
    let place = |arg: &String| match is_operand(arg) && !arg.starts_with('/') {
        true => format!("{folder}/{arg}"),
        false => arg.clone(),
    };
    let mut placed: Vec<String> = args.iter().map(place).collect();
    if !args.iter().any(is_operand) {
        placed.push(folder.to_owned());
    }
    placed
}

/// The options of `args` without what chooses tests: neither operands nor `choosing` options with their values.
fn options_only(args: &[String], choosing: &[String], with_value: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if choosing.contains(arg) {
            args.next();
        } else if with_value.contains(arg) {
            kept.push(arg.clone());
            kept.extend(args.next().cloned());
        } else if arg.starts_with('-') {
            kept.push(arg.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::built_in_manifest;

    fn run_of(name: &str, args: &[&str]) -> SuiteRun {
        let args: Vec<_> = args.iter().map(|&a| a.to_owned()).collect();
        built_in_manifest(name).runs(&args, 0).remove(0)
    }

    fn argv_with(run: &SuiteRun, tests: &[&str]) -> Vec<String> {
        run.with_tests(tests.iter().copied()).unwrap().command.argv
    }

    #[test]
    fn chosen_tests_stand_in_for_what_chose_them_and_other_options_stay() {
        let xfstests = run_of("xfstests", &["-g", "quick", "-E", "list", "-diff", "generic/001", "-x", "dangerous"]);
        assert_eq!(
            argv_with(&xfstests, &["generic/013", "generic/020"]).split_off(3),
            ["check", "-E", "list", "-diff", "generic/013", "generic/020"]
        );
        assert_eq!(argv_with(&run_of("xfstests", &[]), &["generic/013"]).split_off(3), ["check", "generic/013"]);
        let unionmount = run_of("unionmount", &[]);
        assert_eq!(argv_with(&unionmount, &["truncate"]).split_off(3), ["run", "--ov", "truncate"]);
        let rs = argv_with(&run_of("pjdfstest-rs", &["chmod"]), &["chmod::errno::enoent"]);
        assert_eq!(rs.split_first().unwrap().1, ["-e", "pjdfstest::tests::chmod::errno::enoent"]);
        let prove = argv_with(&run_of("pjdfstest", &["-j2", "chmod"]), &["chmod/00.t"]);
        assert!(prove.ends_with(&["-j2", "/opt/suites/pjdfstest/tests/chmod/00.t"].map(str::to_owned)), "{prove:?}");
    }

    #[test]
    fn tests_that_check_repeats_have_several_results() {
        assert!(run_of("xfstests", &[]).has_one_result_per_test());
        for option in ["-i", "-I", "-L"] {
            assert!(!run_of("xfstests", &[option, "3", "-g", "quick"]).has_one_result_per_test(), "{option}");
        }
    }

    #[test]
    fn a_variable_is_there_for_all_tests_and_for_some() {
        let run = run_of("xfstests", &[]).with_variable("V", "-o x");
        for plan in [run.plan.clone(), run.with_tests(["generic/001"]).unwrap()] {
            assert!(plan.command.env.contains(&("V".to_owned(), "-o x".to_owned())));
        }
    }

    #[test]
    fn a_list_is_asked_for_with_the_arguments_that_the_suite_would_get() {
        let argv = run_of("xfstests", &[]).listing.unwrap().argv;
        assert!(argv.ends_with(&["-g", "quick"].map(str::to_owned)), "{argv:?}");
        let argv = run_of("pjdfstest", &["chmod"]).listing.unwrap().argv;
        assert!(argv.ends_with(&["/opt/suites/pjdfstest/tests/chmod".to_owned()]), "{argv:?}");
    }

    #[test]
    fn a_result_tells_by_its_name_which_test_it_is_of() {
        for (suite, result, test) in [
            ("pjdfstest-rs", "chmod::errno::enoent", "chmod::errno::enoent"),
            ("pjdfstest", "chmod/00.t:12", "chmod/00.t"),
            ("pjdfstest", "chmod/00.t", "chmod/00.t"),
            ("xfstests", "generic/001", "generic/001"),
            ("xfstests", "fast:generic/001", "generic/001"),
            ("unionmount", "--ov=10 rename-file:23 Rename a: b", "rename-file"),
            ("unionmount", "rename-file:23 Rename", "rename-file"),
        ] {
            assert_eq!(run_of(suite, &[]).test_of(result), Some(test), "{suite} {result}");
        }
        assert_eq!(run_of("unionmount", &[]).test_of("before the first test"), None);
    }
}
