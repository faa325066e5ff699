//! What a suite is: where it comes from, how it is built, how it is run. One TOML file each in `guest-image/suites`.

use std::collections::BTreeMap;

use serde::Deserialize;
use wire::ResultFormat;

use super::SuiteRun;

use crate::error::{Error, Result};

/// A suite's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// What it is called on the command line and in reports: letters, digits, `-`, `_`.
    pub name: String,
    /// One line.
    pub description: String,
    /// How its output becomes results.
    pub format: ResultFormat,
    /// Where it comes from; a suite that only lives in a folder has none.
    pub upstream: Option<Upstream>,
    /// How it is built.
    pub build: Build,
    /// What the guest must have besides what every guest has.
    #[serde(default)]
    pub image: Image,
    /// How it is run.
    pub run: Run,
    /// How some of its tests are run instead of all. Without it they run as one whole: a run cannot go on behind a test that
    /// killed the guest, nor be split or resumed.
    pub tests: Option<Tests>,
    /// What a machine must have to run it.
    #[serde(default)]
    pub requires: Requires,
}

/// Where a suite comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Of its repository or registry page.
    pub url: String,
    /// The commit that is built when it is fetched from `url`.
    pub commit: Option<String>,
    /// The version that is built when it comes from a registry.
    pub version: Option<String>,
}

/// How a suite is built.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, tag = "method", rename_all = "kebab-case")]
pub enum Build {
    /// `cargo install` of a crate, linked statically.
    CargoInstall {
        /// The crate.
        #[serde(rename = "crate")]
        package: String,
        /// Static libraries that it links to.
        libraries: Vec<String>,
    },
    /// Shell commands in a copy of its source.
    Source {
        /// Programs that they need on this machine.
        #[serde(default)]
        tools: Vec<String>,
        /// Debian packages that they need. With any, they run not on this machine but in a Debian root file system of the
        /// guest's release with these, so that what they make finds its libraries in the guest.
        #[serde(default)]
        packages: Vec<String>,
        /// The commands, in order; none for a suite that is only files.
        #[serde(default)]
        steps: Vec<String>,
        /// Files and folders that the suite needs at run time; the rest is not taken along. Without any it is everything
        /// but `.git`.
        #[serde(default)]
        keep: Vec<String>,
    },
    /// Nothing of its own: it runs the files of another suite in another way, and in the same guest. Its upstream and its
    /// image are the other's.
    As {
        /// The other.
        suite: String,
    },
}

/// What the guest must have besides what every guest has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Debian packages in the root image.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Kernel modules that are loaded before it runs, if the kernel has them: what it would load by itself, as the root
    /// image has none.
    #[serde(default)]
    pub modules: Vec<String>,
}

/// How a suite is run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Program and fixed arguments; the user's come behind.
    pub argv: Vec<String>,
    /// Arguments when the user gives none.
    #[serde(default)]
    pub default_args: Vec<String>,
    /// When the user gives no arguments it runs once with each of these, each run a suite of its own in reports.
    #[serde(default)]
    pub sections: Vec<Vec<String>>,
    /// When given, the user's arguments that are no options are names below this folder, and without any the folder
    /// itself is the argument.
    pub operands_below: Option<String>,
    /// Working directory.
    pub cwd: String,
    /// Added to the environment that every suite has. Also there is VMM_MOUNT_OPTIONS, what `mount` is to be told to mount a
    /// share as it was, `-o dax=always` or nothing.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where a test leaves files that explain a failure, with `{test}` in place of its name: with `/r/{test}`, of the test
    /// `generic/001` those are `/r/generic/001.*`. Not on a share: a failing test may take it along.
    pub artefacts: Option<String>,
}

/// How some of a suite's tests are run: what is chosen here is what a fresh guest can run by itself, a script of many results
/// where the suite's files have many.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tests {
    /// Prints the names of the tests that the arguments behind it choose, one a line, in the order in which they would run.
    pub list: Vec<String>,
    /// What a test is called on the suite's own command line, with `{test}` for its name in the list.
    #[serde(default = "plain_name")]
    pub argument: String,
    /// Arguments before the chosen tests.
    #[serde(default)]
    pub before: Vec<String>,
    /// The user's options that choose tests, each with a value: left out when tests are chosen by name.
    #[serde(default)]
    pub choosing_options: Vec<String>,
    /// The user's options that have a value, which is no test.
    #[serde(default)]
    pub value_options: Vec<String>,
}

fn plain_name() -> String {
    "{test}".to_owned()
}

/// What a machine must have.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requires {
    /// virtio-fs shares, mounted at `/mnt/virtiofs1` and following.
    pub shares: u32,
}

impl Default for Requires {
    fn default() -> Self {
        Self { shares: 1 }
    }
}

/// What every suite finds in its environment.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
    ("TMPDIR", "/tmp"),
];

impl Manifest {
    /// Reads the text of the manifest that is called `what` in errors.
    ///
    /// # Errors
    /// It is no TOML, has unknown fields, or says what cannot be.
    pub fn parse(what: &str, text: &str) -> Result<Self> {
        let manifest: Self = toml::from_str(text).map_err(|e| Error::malformed(what, e))?;
        match manifest.complaint() {
            Some(complaint) => Err(Error::malformed(what, complaint)),
            None => Ok(manifest),
        }
    }

    /// What TOML cannot tell is wrong.
    fn complaint(&self) -> Option<String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(is_plain) {
            return Some(format!("name {:?}: letters, digits, `-` and `_` make a name", self.name));
        }
        if self.run.argv.is_empty() {
            return Some("run.argv is empty".to_owned());
        }
        if !self.run.sections.is_empty() && !self.run.default_args.is_empty() {
            return Some("run.default_args and run.sections are both what runs without arguments; give one".to_owned());
        }
        if self.run.artefacts.as_ref().is_some_and(|pattern| !pattern.starts_with('/') || !pattern.contains("{test}")) {
            return Some("run.artefacts is no absolute path with {test} in it".to_owned());
        }
        if let Some(tests) = &self.tests {
            if tests.list.is_empty() {
                return Some("tests.list is empty".to_owned());
            }
            if !tests.argument.contains("{test}") {
                return Some("tests.argument has no {test} in it".to_owned());
            }
        }
        let build = match &self.build {
            Build::Source { packages, .. } => packages.as_slice(),
            Build::CargoInstall { .. } | Build::As { .. } => &[],
        };
        // Debian policy § 5.6.7.
        let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_package =
            |name: &String| name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || "+-.".contains(c));
        let package = build.iter().chain(&self.image.packages).find(|name| !is_package(name));
        if let Some(package) = package {
            return Some(format!("{package:?} is no name of a Debian package"));
        }
        let keep = match &self.build {
            Build::Source { keep, .. } => keep.as_slice(),
            Build::CargoInstall { .. } | Build::As { .. } => &[],
        };
        let escapes = |name: &&String| !name.split('/').all(|part| !part.is_empty() && part != "..");
        let escaping = keep.iter().find(escapes)?;
        Some(format!("build.keep has {escaping:?}, which is no path below the source"))
    }

    /// The suite whose files it runs: itself, or another.
    #[must_use]
    pub fn files_of(&self) -> &str {
        match &self.build {
            Build::As { suite } => suite,
            Build::CargoInstall { .. } | Build::Source { .. } => &self.name,
        }
    }

    /// What the agent is asked to run, one after the other, with the user's arguments for the suite.
    #[must_use]
    pub fn runs(&self, user_args: &[String], test_timeout_ms: u64) -> Vec<SuiteRun> {
        if !user_args.is_empty() || self.run.sections.is_empty() {
            let args = if user_args.is_empty() { &self.run.default_args } else { user_args };
            return vec![SuiteRun::new(self, &self.name, args, test_timeout_ms)];
        }
        let section = |args: &Vec<String>| {
            SuiteRun::new(self, &format!("{} {}", self.name, args.join(" ")), args, test_timeout_ms)
        };
        self.run.sections.iter().map(section).collect()
    }

    pub(super) fn command(&self, argv: Vec<String>) -> wire::Command {
        let mut env: BTreeMap<String, String> =
            ENVIRONMENT.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        env.extend(self.run.env.clone());
        wire::Command { argv, env: env.into_iter().collect(), cwd: self.run.cwd.clone() }
    }
}

#[cfg(test)]
mod tests {
    use wire::SuitePlan;

    use super::*;
    use crate::suite::{BUILT_IN, built_in_manifest};

    fn plans_of(name: &str, args: &[&str]) -> Vec<SuitePlan> {
        let args: Vec<_> = args.iter().map(|&a| a.to_owned()).collect();
        built_in_manifest(name).runs(&args, 0).into_iter().map(|run| run.plan).collect()
    }

    fn argv_of(name: &str, args: &[&str]) -> Vec<String> {
        plans_of(name, args).remove(0).command.argv
    }

    #[test]
    fn every_built_in_manifest_parses_and_lives_where_its_image_is_mounted() {
        for suite in BUILT_IN {
            let manifest = Manifest::parse("a built-in manifest", suite.manifest).unwrap();
            let home = format!("/opt/suites/{}", manifest.name);
            // The programs of some are found in PATH; then what they are given lies there.
            let words = manifest.run.argv.iter().chain(&manifest.run.operands_below).chain([&manifest.run.cwd]);
            assert!(words.into_iter().any(|word| word.contains(&home)), "{}", manifest.name);
        }
    }

    #[test]
    fn without_arguments_prove_gets_all_tests_and_with_them_those_named() {
        let tests = "/opt/suites/pjdfstest/tests";
        let prove = ["prove", "-rv", "--nocolor", "--formatter", "TAP::Formatter::Console"];
        let with = |arguments: &[&str]| prove.iter().chain(arguments).map(ToString::to_string).collect::<Vec<String>>();
        assert_eq!(argv_of("pjdfstest", &[]), with(&[tests]));
        assert_eq!(argv_of("pjdfstest", &["-j2"]), with(&["-j2", tests]));
        let some = argv_of("pjdfstest", &["chmod/00.t", "/abs/x.t"]);
        assert_eq!(some, with(&[&format!("{tests}/chmod/00.t"), "/abs/x.t"]));
    }

    #[test]
    fn a_suite_without_a_folder_of_tests_gets_its_arguments_as_they_are() {
        let plan = plans_of("pjdfstest-rs", &["-e", "chmod"]).remove(0);
        assert_eq!(plan.command.argv, ["/opt/suites/pjdfstest-rs/run", "-e", "chmod"]);
        assert!(plan.command.env.iter().any(|(n, v)| n == "PATH" && v.contains("/usr/bin")));
    }

    #[test]
    fn unionmount_runs_its_four_configurations_unless_it_is_told_what_to_run() {
        let names: Vec<_> = plans_of("unionmount", &[]).into_iter().map(|plan| plan.name).collect();
        let expected = ["--ov", "--ov --meta", "--ov --meta --verify", "--ov=10 --meta --verify"]
            .map(|c| format!("unionmount {c}"));
        assert_eq!(names, expected);
        let one = plans_of("unionmount", &["--ov", "--xino", "readlink"]);
        assert_eq!((one.len(), one[0].name.as_str()), (1, "unionmount"));
        assert!(one[0].command.argv.ends_with(&["--ov", "--xino", "readlink"].map(str::to_owned)));
    }

    const MINIMAL: &str = "name = 'x'\ndescription = 'd'\nformat = 'exit-code'\n[build]\nmethod = 'source'\n\
                           [run]\nargv = ['/opt/suites/x/run']\ncwd = '/'\n";

    #[test]
    fn default_arguments_stand_in_for_the_users_and_only_then() {
        let text = MINIMAL.replace("cwd", "default_args = ['-g', 'quick']\ncwd");
        let manifest = Manifest::parse("m", &text).unwrap();
        let argv = |args: &[&str]| {
            let args: Vec<_> = args.iter().map(|&a| a.to_owned()).collect();
            manifest.runs(&args, 0).remove(0).plan.command.argv.split_off(1)
        };
        assert_eq!(argv(&[]), ["-g", "quick"]);
        assert_eq!(argv(&["generic/001"]), ["generic/001"]);
    }

    #[test]
    fn an_unknown_field_is_refused_and_named_with_its_file_and_line() {
        for (with, says, line) in
            [("[run]\nargs = []", "unknown field `args`", "line 7"), ("[rum]\n[run]", "unknown field `rum`", "line 6")]
        {
            let error = Manifest::parse("my.toml", &MINIMAL.replace("[run]", with)).unwrap_err().to_string();
            assert!(error.contains("my.toml") && error.contains(says) && error.contains(line), "{error}");
        }
    }

    #[test]
    fn what_would_go_wrong_later_is_refused_at_once() {
        Manifest::parse("m", MINIMAL).unwrap();
        for (from, to, says) in [
            ("name = 'x'", "name = '../x'", "letters"),
            ("argv = ['/opt/suites/x/run']", "argv = []", "argv is empty"),
            ("cwd", "artefacts = '/r/test'\ncwd", "{test}"),
            ("[run]", "[tests]\nlist = []\n[run]", "tests.list"),
            ("[run]", "[tests]\nlist = ['ls']\nargument = 'x'\n[run]", "tests.argument"),
            ("cwd", "sections = [['a']]\ndefault_args = ['b']\ncwd", "give one"),
            ("[run]", "packages = ['a,b']\n[run]", "\"a,b\""),
            ("[run]", "[image]\npackages = ['--hook']\n[run]", "\"--hook\""),
            ("[run]", "keep = ['../x']\n[run]", "\"../x\""),
            ("[run]", "keep = ['/etc']\n[run]", "\"/etc\""),
        ] {
            match Manifest::parse("m", &MINIMAL.replace(from, to)) {
                Ok(_) => panic!("{to} was accepted"),
                Err(error) => assert!(error.to_string().contains(says), "{error}"),
            }
        }
    }
}
