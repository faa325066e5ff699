//! The host's part: KVM's counters at the moments that the guest asks for.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::thread;

use super::measure::PAUSE;
use super::run::{Counters, ENDED, Operation, RESULT, Run, taken, wanted};

/// A directory for each VM, with a file for each of its counters (Linux `kvm_create_vm_debugfs`): a vCPU's are summed up.
const KVM_DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// Answers the guest's marks until it has left its result, then prints the run as a line of JSON.
pub(crate) fn count(marks: &Path, candidate: &str, cpus: usize) -> io::Result<()> {
    let mut readings = Vec::new();
    let operations: Vec<Operation> = loop {
        if marks.join(wanted(readings.len())).exists() {
            let reading = read_counters(Path::new(KVM_DEBUGFS))?;
            File::create(marks.join(taken(readings.len())))?;
            readings.push(reading);
        } else if let Ok(result) = fs::read(marks.join(RESULT)) {
            break serde_json::from_slice(&result)?;
        } else if marks.join(ENDED).exists() {
            return Err(io::Error::other(format!("{candidate} ended without a result")));
        } else {
            thread::sleep(PAUSE);
        }
    };
    let counters = differences(&readings);
    if counters.len() != operations.len() {
        return Err(io::Error::other(format!("{} operations, {} readings", operations.len(), readings.len())));
    }
    let run = Run { candidate: candidate.to_owned(), cpus, operations, counters };
    let mut line = serde_json::to_vec(&run)?;
    line.push(b'\n');
    io::stdout().write_all(&line)
}

/// How far the counters went between the readings of each pair.
fn differences(readings: &[Counters]) -> Vec<Counters> {
    let (pairs, _) = readings.as_chunks::<2>();
    pairs
        .iter()
        .map(|[before, after]| {
            let went = |(name, value): (&String, &u64)| {
                let from = before.get(name).copied().unwrap_or(0);
                (name.clone(), value.saturating_sub(from))
            };
            after.iter().map(went).collect()
        })
        .collect()
}

/// The sum over all VMs of this host: there is one.
fn read_counters(root: &Path) -> io::Result<Counters> {
    let mut counters = Counters::new();
    let needed = |error| io::Error::new(io::Error::kind(&error), format!("{}: {error}", root.display()));
    for vm in fs::read_dir(root).map_err(needed)? {
        let vm = vm?.path();
        if !vm.is_dir() {
            continue;
        }
        for counter in fs::read_dir(vm)? {
            let counter = counter?;
            // Some are no numbers (`mmu_rmaps_stat`), and directories are vCPUs.
            let text = fs::read_to_string(counter.path()).unwrap_or_default();
            if let Ok(value) = text.trim().parse::<u64>() {
                *counters.entry(counter.file_name().to_string_lossy().into_owned()).or_default() += value;
            }
        }
    }
    if counters.contains_key("exits") {
        Ok(counters)
    } else {
        Err(io::Error::other(format!("no VM has counters in {}", root.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_vms_are_summed_and_what_is_no_number_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        for (vm, exits) in [("1-2", "40\n"), ("3-4", "2\n")] {
            let vm = root.path().join(vm);
            fs::create_dir_all(vm.join("vcpu0")).unwrap();
            fs::write(vm.join("exits"), exits).unwrap();
            fs::write(vm.join("mmu_rmaps_stat"), "Level: 4K 2M\n").unwrap();
        }
        fs::write(root.path().join("exits"), "1000\n").unwrap();
        assert_eq!(read_counters(root.path()).unwrap(), Counters::from([("exits".to_owned(), 42)]));
    }

    #[test]
    fn a_host_without_counters_is_an_error_that_names_the_place() {
        let root = tempfile::tempdir().unwrap();
        let error = read_counters(root.path()).unwrap_err().to_string();
        assert!(error.contains(root.path().to_str().unwrap()), "{error}");
        assert!(read_counters(&root.path().join("none")).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn an_operation_costs_what_was_counted_between_its_own_two_readings() {
        let reading = |exits| Counters::from([("exits".to_owned(), exits)]);
        let differences = differences(&[reading(10), reading(15), reading(100), reading(107)]);
        assert_eq!(differences, [reading(5), reading(7)]);
    }
}
