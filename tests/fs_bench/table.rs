//! All runs side by side: medians of medians, exits for each operation, our ratio to the faster of the others.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::run::{Run, median};

/// The candidate that is compared with the others.
const OURS: &str = "vmm";

/// What one candidate came to in one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Cell {
    candidate: String,
    /// Median over the runs of each run's median, ns.
    median_ns: f64,
    /// Each run's median, ns.
    runs_ns: Vec<u64>,
    /// The slowest percent, median over the runs, ns.
    p99_ns: f64,
    /// VM exits for each operation, median over the runs.
    exits: f64,
}

/// One operation on one number of vCPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    cpus: usize,
    operation: String,
    cells: Vec<Cell>,
    /// Our latency over that of the fastest other candidate.
    ratio: Option<f64>,
}

/// Prints the table of `runs` (a line of JSON each), and writes it to `json`.
pub(crate) fn table(runs: &Path, json: &Path) -> io::Result<()> {
    let text = fs::read_to_string(runs)?;
    let runs = text.lines().map(serde_json::from_str).collect::<Result<Vec<Run>, _>>()?;
    let rows = rows(&runs);
    if rows.is_empty() {
        return Err(io::Error::other("there are no runs to compare"));
    }
    let all = serde_json::json!({ "rows": &rows, "runs": &runs });
    fs::write(json, serde_json::to_vec_pretty(&all)?)?;
    print!("{}", text_of(&rows));
    println!("{}", json.display());
    Ok(())
}

/// In the order in which things were measured first.
fn in_order<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.fold(Vec::new(), |mut seen, value| {
        if !seen.contains(&value) {
            seen.push(value);
        }
        seen
    })
}

fn rows(runs: &[Run]) -> Vec<Row> {
    let names = in_order(runs.iter().flat_map(|run| run.operations.iter().map(|operation| operation.name.as_str())));
    let candidates = in_order(runs.iter().map(|run| run.candidate.as_str()));
    let mut rows = Vec::new();
    for cpus in in_order(runs.iter().map(|run| run.cpus)) {
        for operation in &names {
            let cell = |candidate: &&str| {
                cell(runs.iter().filter(|run| run.cpus == cpus && run.candidate == *candidate), candidate, operation)
            };
            let cells: Vec<Cell> = candidates.iter().filter_map(cell).collect();
            rows.push(Row { cpus, operation: (*operation).to_owned(), ratio: ratio(&cells), cells });
        }
    }
    rows
}

fn cell<'r>(runs: impl Iterator<Item = &'r Run>, candidate: &str, name: &str) -> Option<Cell> {
    let (mut runs_ns, mut p99, mut exits) = (Vec::new(), Vec::new(), Vec::new());
    for run in runs {
        for (operation, counters) in run.operations.iter().zip(&run.counters) {
            if operation.name == name {
                runs_ns.push(operation.p50_ns);
                p99.push(operation.p99_ns as f64);
                exits.push(counters.get("exits").copied().unwrap_or(0) as f64 / operation.count as f64);
            }
        }
    }
    Some(Cell {
        candidate: candidate.to_owned(),
        median_ns: median(runs_ns.iter().map(|ns| *ns as f64).collect())?,
        runs_ns,
        p99_ns: median(p99)?,
        exits: median(exits)?,
    })
}

fn ratio(cells: &[Cell]) -> Option<f64> {
    let ours = cells.iter().find(|cell| cell.candidate == OURS)?;
    let others = cells.iter().filter(|cell| cell.candidate != OURS).map(|cell| cell.median_ns);
    others.min_by(f64::total_cmp).map(|best| ours.median_ns / best)
}

/// Markdown, so that it can be shown as it is printed.
fn text_of(rows: &[Row]) -> String {
    let mut text = String::new();
    let candidates = in_order(rows.iter().flat_map(|row| row.cells.iter().map(|cell| cell.candidate.as_str())));
    text.push_str("| vCPUs | operation |");
    for candidate in &candidates {
        let _ = write!(text, " {candidate} µs (exits) |");
    }
    text.push_str(" vmm takes |\n| --- | --- |");
    text.push_str(&" --- |".repeat(candidates.len() + 1));
    text.push('\n');
    for row in rows {
        let _ = write!(text, "| {} | {} |", row.cpus, row.operation);
        for candidate in &candidates {
            match row.cells.iter().find(|cell| cell.candidate == *candidate) {
                Some(cell) => {
                    let _ = write!(text, " {:.0} ({:.1}) |", cell.median_ns / 1000.0, cell.exits);
                }
                None => text.push_str(" - |"),
            }
        }
        match row.ratio {
            Some(ratio) => {
                let _ = writeln!(text, " {ratio:.2} of the faster |");
            }
            None => text.push_str(" - |\n"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::run::{Counters, Operation};
    use super::*;

    fn run(candidate: &str, cpus: usize, us: u64, exits: u64) -> Run {
        let counters = vec![Counters::from([("exits".to_owned(), exits)])];
        let operations = vec![Operation::new("chmod", vec![us * 1000; 10])];
        Run { candidate: candidate.to_owned(), cpus, operations, counters }
    }

    #[test]
    fn a_row_has_medians_over_the_runs_and_our_ratio_to_the_faster_other() {
        let runs = [
            run("vmm", 1, 50, 40),
            run("q35", 1, 900, 90),
            run("microvm", 1, 200, 80),
            run("vmm", 1, 60, 50),
            run("vmm", 1, 1000, 60),
            run("microvm", 1, 100, 80),
            run("microvm", 1, 120, 80),
        ];
        let rows = rows(&runs);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].ratio, Some(0.5));
        let text = text_of(&rows);
        assert_eq!(text.lines().last(), Some("| 1 | chmod | 60 (5.0) | 900 (9.0) | 120 (8.0) | 0.50 of the faster |"));
    }

    #[test]
    fn every_number_of_vcpus_has_rows_of_its_own() {
        let rows = rows(&[run("vmm", 1, 10, 1), run("vmm", 2, 30, 1), run("q35", 2, 60, 1)]);
        assert_eq!(rows.iter().map(|row| (row.cpus, row.ratio)).collect::<Vec<_>>(), [(1, None), (2, Some(0.5))]);
        assert!(text_of(&rows).contains("| 1 | chmod | 10 (0.1) | - | - |"));
    }
}
