//! What a bisection came to: a text that can be mailed to a kernel list, and the same as JSON.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use super::drive::GIT_LOG;
use super::guest_run::MARK;
use super::history::Node;
use super::journal::{Journal, Request, Step, Subject};
use super::names::Names;
use super::runner::tail;
use super::search::{Conclusion, Event, Repeat, Search};
use crate::exit_code::ExitCode;
use crate::report::{printable, shell_line, write_atomically};

/// Lines of a failing run's output that the report quotes.
const QUOTED: usize = 30;
/// The text.
pub const MARKDOWN: &str = "report.md";
/// The same for programs.
pub const JSON: &str = "report.json";

/// A finished bisection.
#[derive(Debug)]
pub struct Report<'a> {
    /// What was asked.
    pub request: &'a Request,
    /// What was learned.
    pub search: &'a Search,
    /// In which steps.
    pub journal: &'a Journal,
    /// What commits are called.
    pub names: &'a Names,
    /// What it came to.
    pub conclusion: &'a Conclusion,
}

impl Report<'_> {
    /// 0 when one commit is named, else 125.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self.conclusion {
            Conclusion::Found { .. } => ExitCode::Success,
            _ => ExitCode::CannotTest,
        }
    }

    /// Writes both files into the bisection's folder.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&self) -> anyhow::Result<()> {
        let mut json = serde_json::to_vec_pretty(&self.json())?;
        json.push(b'\n');
        for (name, bytes) in [(MARKDOWN, self.markdown().into_bytes()), (JSON, json)] {
            let dir = self.journal.dir();
            write_atomically(dir, name, 0o644, &bytes)
                .with_context(|| format!("failed to write {}", dir.join(name).display()))?;
        }
        Ok(())
    }

    /// What is looked for: `first bad commit`.
    fn sought(&self) -> &'static str {
        match (self.request.rules.fix, self.names.are_commits()) {
            (false, true) => "first bad commit",
            (true, true) => "first fixed commit",
            (false, false) => "first bad kernel",
            (true, false) => "first fixed kernel",
        }
    }

    /// The result in a few lines.
    #[must_use]
    pub fn verdict(&self) -> String {
        let name = |node: Node| printable(&self.names.long(self.id(node))).into_owned();
        match self.conclusion {
            Conclusion::Found { node, chance } => {
                let chance = match chance {
                    Some(chance) => format!("The chance that this is right: {:.2} %.", chance * 100.0),
                    None => {
                        "Each was run once, which takes for granted that the failure always shows; `--repeat auto` \
                             does not."
                            .to_owned()
                    }
                };
                format!("{}: {}\n{chance}", self.sought(), name(*node))
            }
            Conclusion::OneOf(nodes) => {
                format!(
                    "The {} is one of these {}, which cannot be told apart:\n{}",
                    self.sought(),
                    nodes.len(),
                    self.list(nodes)
                )
            }
            Conclusion::TooManyUntestable(nodes) => format!(
                "Too many cannot be tested (--max-untestable {}). The {} is one of these {}:\n{}",
                self.request.rules.max_untestable,
                self.sought(),
                nodes.len(),
                self.list(nodes)
            ),
            Conclusion::NeverFails { node, runs } => format!(
                "{} does not fail: it passed {runs} of {runs} runs, so there is nothing to look for. If it fails now and then, \
                 try --repeat auto.",
                name(*node)
            ),
            Conclusion::FailsAtBothEnds { node, counts } => format!(
                "{} fails as well, in {} of {} runs: the failure is at both ends. Give an end without it.",
                name(*node),
                counts.fails,
                counts.runs().max(counts.fails)
            ),
            Conclusion::EndUntestable { node, why } => {
                format!("{} cannot be tested, and it is an end of the search: {}", name(*node), printable_lines(why))
            }
            Conclusion::Undecided(node) => {
                let counts = self.search.counts(*node);
                format!(
                    "{} failed in {} of {} runs, which is neither here nor there: the failure shows too seldom, or also where \
                     the bug is not.",
                    name(*node),
                    counts.fails,
                    counts.runs()
                )
            }
            Conclusion::Contradiction => {
                "What was seen and what was given contradict each other: no commit goes with all of it. If there are PATHS, \
                 the change may lie outside of them."
                    .to_owned()
            }
        }
    }

    fn list(&self, nodes: &[Node]) -> String {
        let line = |node: &Node| {
            let why = match self.search.untestable(*node) {
                Some(why) => format!(": {}", printable(why.lines().next().unwrap_or_default())),
                None => String::new(),
            };
            format!("  {}{why}", printable(&self.names.long(self.id(*node))))
        };
        nodes.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn id(&self, node: Node) -> &str {
        self.search.history().id(node)
    }

    /// The report for people.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let title = match self.conclusion {
            Conclusion::Found { node, .. } => {
                format!("{}: {}", self.sought(), self.names.long(self.id(*node)))
            }
            _ => format!("{}: not found", self.sought()),
        };
        let verdict = self.verdict();
        // The first line of what was found is the title already.
        let told = match (self.conclusion, verdict.split_once('\n')) {
            (Conclusion::Found { .. }, Some((_, rest))) => rest,
            _ => &verdict,
        };
        let _ = writeln!(text, "# {}\n\n{told}\n", printable(&title));
        if let (Conclusion::Found { node, .. }, Some(repository)) = (self.conclusion, self.names.repository())
            && let Ok(summary) = repository.summary(self.id(*node))
        {
            let _ = writeln!(text, "```\n{}\n```\n", printable_lines(&summary));
        }
        self.question(&mut text);
        self.evidence(&mut text);
        self.failing_output(&mut text);
        self.how_to_reproduce(&mut text);
        text
    }

    fn question(&self, text: &mut String) {
        let old: Vec<String> = self.request.old.iter().map(|id| self.names.long(id)).collect();
        let (from, to) = (printable_lines(&old.join(", ")), self.names.long(&self.request.new));
        let count = self.search.history().candidates();
        let (fails, passes) = if self.request.rules.fix { (&from, printable(&to)) } else { (&to, printable(&from)) };
        let _ = writeln!(text, "## What was looked for\n\n`vmm {}`\n", words(&self.request.question));
        let _ = writeln!(text, "- passes: {passes}\n- fails: {}\n- between them: {count}", printable(fails));
        if let Some(signature) = self.search.signature() {
            let _ = writeln!(text, "- the failure: {}", printable(&signature.describe()));
        }
        if let Repeat::Auto = self.request.rules.repeat {
            let end = self.search.history().new_end();
            let counts = self.search.counts(if self.request.rules.fix { self.search.history().old()[0] } else { end });
            let _ = writeln!(text, "- it showed in {} of {} runs of the failing end", counts.fails, counts.runs());
        }
        text.push('\n');
    }

    fn evidence(&self, text: &mut String) {
        let steps = self.journal.steps();
        let seconds = |ms: u64| ms as f64 / 1000.0;
        text.push_str("## Evidence\n\n| tested | result | failed of runs | build, s | test, s |\n| --- | --- | --- | --- | --- |\n");
        for node in self.search.tested() {
            let of_it: Vec<&Step> = steps.iter().filter(|step| step.id == self.id(node)).collect();
            let sum = |time: fn(&Step) -> u64| seconds(of_it.iter().map(|step| time(step)).sum());
            let counts = self.search.counts(node);
            let result = match (self.search.untestable(node), self.search.same_as(node)) {
                (Some(why), _) => format!("untestable: {}", why.lines().next().unwrap_or_default()),
                (None, Some(other)) => format!("same kernel as {}", self.names.short(self.id(other))),
                (None, None) => of_it.last().map_or_else(String::new, |step| told(&step.event)),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} of {} | {:.1} | {:.1} |",
                cell(&self.names.long(self.id(node))),
                cell(&result),
                counts.fails,
                counts.runs(),
                sum(|step| step.build_ms),
                sum(|step| step.test_ms)
            );
        }
        let (boots, build, test) = self.totals();
        let _ =
            writeln!(text, "\n{boots} boots; building took {:.1} s, testing {:.1} s.\n", seconds(build), seconds(test));
    }

    fn totals(&self) -> (usize, u64, u64) {
        let steps = self.journal.steps();
        let boots = steps.iter().filter(|step| step.run.is_some()).count();
        (boots, steps.iter().map(|step| step.build_ms).sum(), steps.iter().map(|step| step.test_ms).sum())
    }

    /// Of the commit that is named if it failed, else of the failing end.
    fn failing_output(&self, text: &mut String) {
        let Some(signature) = self.search.signature() else { return };
        let failing = |step: &&Step| matches!(&step.event, Event::Ran { observation } if signature.judge(observation) == super::signature::Seen::Failure);
        let named = match self.conclusion {
            Conclusion::Found { node, .. } => Some(self.id(*node)),
            _ => None,
        };
        let steps = self.journal.steps();
        let step = steps.iter().filter(failing).find(|step| Some(step.id.as_str()) == named);
        let Some(step) = step.or_else(|| steps.iter().find(failing)) else { return };
        let Some(run) = &step.run else { return };
        let output = tail(&self.journal.dir().join(run).join("output.log"));
        let lines: Vec<&str> = output.lines().filter(|line| !line.starts_with(MARK)).collect();
        let end = lines[lines.len().saturating_sub(QUOTED)..].join("\n");
        let name = self.names.short(&step.id);
        let _ =
            writeln!(text, "## Failing output\n\nOf {}:\n\n```\n{}\n```\n", printable(&name), printable_lines(&end));
    }

    fn how_to_reproduce(&self, text: &mut String) {
        let id = match self.conclusion {
            Conclusion::Found { node, .. } => self.id(*node),
            _ => &self.request.new,
        };
        text.push_str("## How to reproduce\n\n```\n");
        let question = words(&self.request.question[1.min(self.request.question.len())..]);
        let verb = self.request.question.first().map_or("run", String::as_str);
        match &self.request.subject {
            Subject::Tree { config, .. } => {
                let config = config.as_deref().map(with_config).unwrap_or_default();
                let _ = writeln!(
                    text,
                    "git checkout {id}\nvmm kernel build --tree .{config}\nvmm {verb} --kernel . {question}"
                );
            }
            Subject::Kernels { .. } => {
                let _ = writeln!(text, "vmm {verb} --kernel {} {question}", words(&[id.to_owned()]));
            }
            Subject::Server { .. } => {
                let _ = writeln!(text, "git checkout {id}\ncargo run --release -- {verb} {question}");
            }
        }
        text.push_str("```\n\n");
        match &self.request.subject {
            Subject::Tree { config: Some(config), .. } => {
                let _ = writeln!(
                    text,
                    "Configuration: `{}` with vmm's own options, `make olddefconfig`.",
                    printable(&config.display().to_string())
                );
            }
            Subject::Tree { config: None, .. } => {
                text.push_str("Configuration: `make tinyconfig` with vmm's own options (guest-image/kernel/x86_64.config), `make olddefconfig`.\n");
            }
            _ => {}
        }
        let log =
            if self.names.are_commits() { format!(" `{GIT_LOG}` is for `git bisect replay`.") } else { String::new() };
        let version = env!("CARGO_PKG_VERSION");
        let command = words(&self.request.command);
        let _ = writeln!(text, "\nFound with vmm {version}: `{command}`.{log}");
    }

    /// The report for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let commit = |node: Node| json!({ "id": self.id(node), "subject": self.names.subject(self.id(node)) });
        let commits = |nodes: &[Node]| nodes.iter().map(|node| commit(*node)).collect::<Vec<_>>();
        let (kind, found, chance, candidates) = match self.conclusion {
            Conclusion::Found { node, chance } => ("found", Some(commit(*node)), *chance, vec![commit(*node)]),
            Conclusion::OneOf(nodes) => ("one-of", None, None, commits(nodes)),
            Conclusion::TooManyUntestable(nodes) => ("too-many-untestable", None, None, commits(nodes)),
            Conclusion::NeverFails { .. } => ("never-fails", None, None, Vec::new()),
            Conclusion::FailsAtBothEnds { .. } => ("fails-at-both-ends", None, None, Vec::new()),
            Conclusion::EndUntestable { .. } => ("end-untestable", None, None, Vec::new()),
            Conclusion::Undecided(node) => ("undecided", None, None, vec![commit(*node)]),
            Conclusion::Contradiction => ("contradiction", None, None, Vec::new()),
        };
        let (boots, build_ms, test_ms) = self.totals();
        json!({
            "result": kind,
            "exit_code": self.exit_code() as u8,
            "found": found,
            "chance": chance,
            "candidates": candidates,
            "verdict": self.verdict(),
            "signature": self.search.signature().map(|signature| signature.describe()),
            "commits_between": self.search.history().candidates(),
            "boots": boots,
            "build_ms": build_ms,
            "test_ms": test_ms,
            "request": self.request,
            "steps": self.journal.steps(),
        })
    }
}

fn told(event: &Event) -> String {
    match event {
        Event::Ran { observation } => observation.describe(),
        Event::Untestable { why } => why.clone(),
        Event::SameAs { other } => format!("same as {other}"),
        Event::Given { new } => format!("given as {}", if *new { "new" } else { "old" }),
    }
}

fn with_config(config: &Path) -> String {
    format!(" --config {}", words(&[config.display().to_string()]))
}

fn words(words: &[String]) -> String {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    printable(&shell_line(&words).to_string_lossy()).into_owned()
}

fn printable_lines(text: &str) -> String {
    text.lines().map(|line| printable(line).into_owned()).collect::<Vec<_>>().join("\n")
}

/// Fit for a table.
fn cell(text: &str) -> String {
    printable(text).replace('|', "\\|")
}
