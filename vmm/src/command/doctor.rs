//! `vmm doctor`: can runs be made here, and what is to be mended?

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use console::Style;

use super::print;
use crate::exit_code::ExitCode;
use crate::host::doctor::{Check, HostFacts, Report, Status, Where, examine};

/// `vmm doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Print the checks as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Print only the names of the Debian packages to install, one a line
    #[arg(long, conflicts_with = "json")]
    pub missing_packages: bool,
}

/// Examines this host and prints what was found: [`ExitCode::Success`] when runs can be made, else
/// [`ExitCode::CannotTest`]. With `--missing-packages` finding some is no failure.
///
/// # Errors
/// Standard output could not be written.
pub fn doctor(args: &DoctorArgs, cache_dir: &Path, scratch_dir: &Path) -> anyhow::Result<ExitCode> {
    let report = examine(&HostFacts::gather(&Where { cache: cache_dir, scratch: scratch_dir }));
    let text = if args.missing_packages {
        report.missing_packages().iter().map(|package| format!("{package}\n")).collect()
    } else if args.json {
        serde_json::to_string_pretty(&report).context("failed to encode the checks")? + "\n"
    } else {
        table(&report)
    };
    print(&text)?;
    Ok(if report.ready || args.missing_packages { ExitCode::Success } else { ExitCode::CannotTest })
}

fn table(report: &Report) -> String {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, status, detail, mend, .. } in &report.checks {
        let (word, style) = match status {
            Status::Ok => ("ok  ", Style::new().green()),
            Status::Warning => ("note", Style::new().yellow()),
            Status::Failure => ("FAIL", Style::new().red().bold()),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}  {name:width$}  {detail}", style.apply_to(word));
        if let Some(mend) = mend {
            let _ = writeln!(text, "      {:width$}  mend: {mend}", "");
        }
    }
    let _ = match (report.ready, report.host) {
        (true, "kvm") => writeln!(text, "Ready: runs use this machine's KVM."),
        (true, _) => writeln!(text, "Ready: runs use the emulated host."),
        (false, _) => writeln!(text, "Not ready: mend what FAILs above."),
    };
    let packages = report.missing_packages();
    if !packages.is_empty() {
        let _ = writeln!(text, "All missing packages at once: apt-get install -y {}", packages.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let check = |name: &str, status, mend: Option<&str>, packages: &[&str]| Check {
            name: name.to_owned(),
            status,
            detail: format!("about {name}"),
            mend: mend.map(str::to_owned),
            packages: packages.iter().map(|p| (*p).to_owned()).collect(),
        };
        Report {
            ready: false,
            host: "emulated",
            checks: vec![
                check("KVM", Status::Warning, None, &[]),
                check("mmdebstrap", Status::Failure, Some("apt-get install -y mmdebstrap"), &["mmdebstrap"]),
                check("erofs", Status::Failure, None, &["erofs-utils"]),
            ],
        }
    }

    #[test]
    fn the_table_has_each_check_with_its_mend_and_all_packages_in_one_command() {
        let text = console::strip_ansi_codes(&table(&report())).into_owned();
        assert!(text.contains("FAIL  mmdebstrap  about mmdebstrap\n"), "{text}");
        assert!(text.contains("mend: apt-get install -y mmdebstrap\n"), "{text}");
        assert!(text.ends_with("at once: apt-get install -y erofs-utils mmdebstrap\n"), "{text}");
    }

    #[test]
    fn the_json_has_status_words_and_leaves_out_what_is_empty() {
        let json = serde_json::to_value(report()).expect("encodes");
        assert_eq!(json["checks"][0]["status"], "warning");
        assert!(json["checks"][0].get("mend").is_none() && json["checks"][0].get("packages").is_none());
        assert_eq!(json["ready"], false);
    }
}
