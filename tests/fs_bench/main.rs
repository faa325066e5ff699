//! Times file operations in a guest, counts its VM exits on the host, and compares set-ups. One static binary for all three,
//! so that every guest runs the very same code; `tests/bench/fs.sh` starts it.
//!
//! ```text
//! fs-bench populate SHARE              host: the files that every run reads
//! fs-bench measure SHARE MARKS OPS     guest: times the operations; hands each one's beginning and end to `count`
//! fs-bench count MARKS CANDIDATE CPUS  host: reads KVM's counters at these moments, prints the run as one line of JSON
//! fs-bench table RUNS JSON             host: prints medians and ratios of all runs, writes them as JSON
//! fs-bench as init in an initramfs     guest: loads modules, goes on with the root image's shell
//! ```

mod boot;
mod count;
mod measure;
mod run;
mod table;

use std::env;
use std::io;
use std::path::Path;
use std::process;

fn main() {
    let done = if process::id() == 1 {
        // The kernel's arguments are for the shell, and need not be text.
        boot::boot().map(|never| match never {})
    } else {
        run_mode()
    };
    if let Err(error) = done {
        eprintln!("fs-bench: {error}");
        process::exit(1);
    }
}

fn run_mode() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["populate", share] => measure::populate(Path::new(share)),
        ["measure", share, marks, ops] => {
            number(ops).and_then(|ops| measure::measure(Path::new(share), Path::new(marks), ops))
        }
        ["count", marks, candidate, cpus] => {
            number(cpus).and_then(|cpus| count::count(Path::new(marks), candidate, cpus))
        }
        ["table", runs, json] => table::table(Path::new(runs), Path::new(json)),
        _ => Err(io::Error::other("usage: fs-bench populate|measure|count|table …, see its source")),
    }
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|error| io::Error::other(format!("{text:?} is no number: {error}")))
}
