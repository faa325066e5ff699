//! `guest-image/kernel/x86_64.config`: what a guest kernel must have.

use super::KernelConfig;

const COMMENTED: &str = include_str!("../../../../kernel/x86_64.config");

/// The fragment without its comments: Kconfig reads the rest of a line as the option's value.
pub(super) fn text() -> String {
    KernelConfig::parse(COMMENTED).sorted().iter().map(|(name, value)| format!("CONFIG_{name}={value}\n")).collect()
}

/// The fragment's options that `config` does not have as asked.
pub(super) fn vanished(config: &KernelConfig) -> Vec<String> {
    let fragment = KernelConfig::parse(COMMENTED);
    let absent = |(name, value): &(&str, &str)| config.get(name) != Some(*value);
    fragment.sorted().into_iter().filter(absent).map(|(name, value)| format!("CONFIG_{name}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_the_fragment_has_a_reason_and_stands_there_once() {
        let mut names = Vec::new();
        for line in COMMENTED.lines().filter(|l| l.starts_with("CONFIG_")) {
            let (option, reason) = line.split_once(" # ").unwrap_or_else(|| panic!("no reason: {line}"));
            assert!(reason.len() > 5, "{line}");
            names.push(option.split('=').next().unwrap());
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(text().lines().count(), count);
    }

    #[test]
    fn an_option_that_did_not_survive_is_named() {
        let mut config = text();
        assert_eq!(vanished(&KernelConfig::parse(&config)), Vec::<String>::new());
        config = config.replace("CONFIG_VIRTIO_FS=y", "# CONFIG_VIRTIO_FS is not set");
        assert_eq!(vanished(&KernelConfig::parse(&config)), ["CONFIG_VIRTIO_FS=y"]);
    }

    #[test]
    fn the_fragment_has_all_that_the_initramfs_asks_of_a_guest() {
        let fragment = KernelConfig::parse(COMMENTED);
        for option in ["VIRTIO_PCI", "VIRTIO_BLK", "EROFS_FS", "VIRTIO_VSOCKETS", "FUSE_FS", "VIRTIO_FS", "OVERLAY_FS"]
        {
            assert_eq!(fragment.get(option), Some("y"), "{option}");
        }
    }
}
