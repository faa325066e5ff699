//! What a machine cost: requests of each share by FUSE operation, and exits of each vCPU by kind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use devices::virtio::fs::{FsStats, FsStatsReader};
use serde::Serialize;

use super::vcpu_stats::VcpuStats;

/// Where to read a machine's numbers, while it runs and after.
#[derive(Clone, Debug)]
pub struct StatisticsReader {
    pub(super) shares: Vec<FsStatsReader>,
    pub(super) vcpus: Arc<[VcpuStats]>,
}

/// A machine's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// The shares, in order.
    pub shares: Vec<FsStats>,
    /// Exits of each vCPU, by index; empty where KVM counts none.
    pub vcpus: Vec<VcpuExits>,
}

/// One vCPU's exits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VcpuExits {
    /// All of them.
    pub exits: u64,
    /// Port I/O.
    pub io_exits: u64,
    /// Memory-mapped I/O.
    pub mmio_exits: u64,
    /// HLT.
    pub halt_exits: u64,
    /// Interrupts that were injected.
    pub irq_injections: u64,
    /// All of KVM's counters, by KVM's names: which there are depends on the host's kernel.
    pub counters: BTreeMap<String, u64>,
}

impl StatisticsReader {
    /// The numbers as they are now. Counters that cannot be read are zero.
    #[must_use]
    pub fn read(&self) -> Statistics {
        Statistics {
            shares: self.shares.iter().map(FsStatsReader::read).collect(),
            vcpus: self.vcpus.iter().map(exits).collect(),
        }
    }
}

fn exits(vcpu: &VcpuStats) -> VcpuExits {
    let counters = vcpu.read().unwrap_or_default();
    let value = |wanted: &str| counters.iter().find(|(name, _)| *name == wanted).map_or(0, |(_, value)| *value);
    VcpuExits {
        exits: value("exits"),
        io_exits: value("io_exits"),
        mmio_exits: value("mmio_exits"),
        halt_exits: value("halt_exits"),
        irq_injections: value("irq_injections"),
        counters: counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
    }
}

impl Statistics {
    /// Exits of all vCPUs for each FUSE request of all shares, if both were counted: the figure that does not depend on
    /// the machine. What else the guest did is in it too.
    #[must_use]
    pub fn exits_per_request(&self) -> Option<f64> {
        let requests: u64 =
            self.shares.iter().flat_map(|share| &share.operations).map(|operation| operation.count).sum();
        let exits: u64 = self.vcpus.iter().map(|vcpu| vcpu.exits).sum();
        (requests > 0 && exits > 0).then(|| exits as f64 / requests as f64)
    }

    /// All of it for programs: shares, vCPUs and `exits_per_request`.
    ///
    /// # Errors
    /// None that is known: serde's.
    pub fn to_json(&self) -> serde_json::Result<serde_json::Value> {
        let mut json = serde_json::to_value(self)?;
        json["exits_per_request"] = serde_json::to_value(self.exits_per_request())?;
        Ok(json)
    }
}

/// Nanoseconds as microseconds.
fn micros(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1000.0)
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for share in &self.shares {
            writeln!(
                f,
                "{:<20} {:>10} {:>8} {:>12} {:>12} {:>10} {:>10} {:>10}",
                share.tag, "count", "errors", "bytes in", "bytes out", "p50 µs", "p99 µs", "max µs"
            )?;
            for operation in &share.operations {
                writeln!(
                    f,
                    "  {:<18} {:>10} {:>8} {:>12} {:>12} {:>10} {:>10} {:>10}",
                    operation.name,
                    operation.count,
                    operation.errors,
                    operation.bytes_in,
                    operation.bytes_out,
                    micros(operation.p50_ns),
                    micros(operation.p99_ns),
                    micros(operation.max_ns)
                )?;
            }
        }
        for share in &self.shares {
            let struck = share.operations.iter().filter(|operation| operation.injected > 0);
            let struck: Vec<_> =
                struck.map(|operation| format!("{} × {}", operation.injected, operation.name)).collect();
            if !struck.is_empty() {
                writeln!(f, "{}: faults injected on purpose: {}", share.tag, struck.join(", "))?;
            }
        }
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            writeln!(
                f,
                "vcpu{index}: {} exits ({} port I/O, {} memory-mapped I/O, {} halts), {} interrupts",
                vcpu.exits, vcpu.io_exits, vcpu.mmio_exits, vcpu.halt_exits, vcpu.irq_injections
            )?;
        }
        match self.exits_per_request() {
            Some(exits) => writeln!(f, "{exits:.2} exits per FUSE request"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::fs::OperationStats;

    use super::*;

    fn example() -> Statistics {
        let getattr = OperationStats {
            name: "GETATTR",
            opcode: 3,
            count: 200,
            errors: 1,
            injected: 0,
            bytes_in: 11_200,
            bytes_out: 24_000,
            p50_ns: 2_500,
            p99_ns: 40_000,
            max_ns: 1_234_500,
            total_ns: 900_000,
        };
        let share = FsStats { tag: "myfs1".into(), operations: vec![getattr] };
        let counters = BTreeMap::from([("exits".to_owned(), 500), ("insn_emulation".to_owned(), 12)]);
        let vcpu =
            VcpuExits { exits: 500, io_exits: 3, mmio_exits: 400, halt_exits: 97, irq_injections: 210, counters };
        Statistics { shares: vec![share], vcpus: vec![vcpu] }
    }

    #[test]
    fn the_table_has_a_line_for_each_operation_and_vcpu() {
        let text = example().to_string();
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0][..3], ["myfs1", "count", "errors"]);
        assert_eq!(words[1], ["GETATTR", "200", "1", "11200", "24000", "2.5", "40.0", "1234.5"]);
        assert_eq!(
            text.lines().nth(2),
            Some("vcpu0: 500 exits (3 port I/O, 400 memory-mapped I/O, 97 halts), 210 interrupts")
        );
        assert_eq!(text.lines().last(), Some("2.50 exits per FUSE request"));
    }

    #[test]
    fn injected_faults_are_told_apart() {
        let mut statistics = example();
        assert!(!statistics.to_string().contains("on purpose"));
        statistics.shares[0].operations[0].injected = 3;
        let text = statistics.to_string();
        assert!(text.contains("\nmyfs1: faults injected on purpose: 3 × GETATTR\n"), "{text}");
        assert_eq!(statistics.to_json().unwrap()["shares"][0]["operations"][0]["injected"], 3);
    }

    #[test]
    fn programs_get_every_operation_every_counter_and_the_ratio() {
        let json = example().to_json().unwrap();
        assert_eq!(json["exits_per_request"], 2.5);
        assert_eq!(json["vcpus"][0]["counters"]["insn_emulation"], 12);
        let getattr = &json["shares"][0]["operations"][0];
        assert_eq!((&getattr["name"], &getattr["p99_ns"]), (&"GETATTR".into(), &40_000.into()));
    }

    #[test]
    fn a_host_without_counters_has_no_ratio() {
        let without = Statistics { vcpus: Vec::new(), ..example() };
        assert_eq!(without.exits_per_request(), None);
        assert!(without.to_json().unwrap()["exits_per_request"].is_null());
        assert_eq!(without.to_string().lines().count(), 2);
    }
}
