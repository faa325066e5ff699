//! The kernel command line every guest gets.

/// Words that come first, each with its reason. What the user appends comes after and wins.
const DEFAULTS: &[&str] = &[
    // The only console; its log is what is left of a guest that died.
    "console=ttyS0",
    // Every character on the console costs exits. An oops or a panic raises the level itself and is printed whole.
    "quiet",
    // A test machine that oopsed is of no more use, and one that panicked resets at once: that is a stop reason.
    "oops=panic",
    "panic=-1",
    // The NMI that a guest gets which hangs: its kernel says where it is, all CPUs of it (bit 6, kernel/panic.c), and resets.
    "unknown_nmi_panic",
    "panic_print=0x40",
    // By the ACPI reset register. Left to choose, kernels were seen to jump to a BIOS that is not there.
    "reboot=acpi",
    // The TSC is KVM's: no watchdog clock has to confirm it (there is none: no HPET, no PM timer).
    "tsc=reliable",
    // There is one serial port; looking for three others costs exits.
    "8250.nr_uarts=1",
];

/// The whole line.
#[must_use]
pub fn compose(append: &str) -> String {
    let mut line = DEFAULTS.join(" ");
    let append = append.trim();
    if !append.is_empty() {
        line.push(' ');
        line.push_str(append);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_comes_last_and_nothing_adds_nothing() {
        assert!(compose(" loglevel=7 ").ends_with(" 8250.nr_uarts=1 loglevel=7"));
        assert_eq!(compose(""), compose("  "));
        assert!(!compose("").ends_with(' '));
    }
}
