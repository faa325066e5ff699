//! The agent's options: the `vmm.KEY=VALUE` words of the kernel command line.
//!
//! | word | meaning |
//! | --- | --- |
//! | `vmm.mode=guest` | which agent to be: `guest` or `emulated-host` (default: `guest`) |
//! | `vmm.root=/dev/vda` | block device of the root image; without it the agent stays in the initramfs |
//! | `vmm.rootfstype=erofs` | its file system (default: `erofs`) |
//! | `vmm.share=TAG:/MOUNT/POINT` | a virtio-fs share to mount; any number |
//! | `vmm.share=TAG:/MOUNT/POINT:OPTIONS` | the same with mount options |
//! | `vmm.suite=NAME:/dev/vdb` | block device of a suite's image, mounted at `/opt/suites/NAME`; any number |
//! | `vmm.port=1024` | the host's vsock port to connect to |
//! | `vmm.timing` | log how long each step of the start took |
//!
//! A value with spaces stands in double quotes, as the kernel has it: `vmm.share="my share:/mnt/a"`.

use std::path::PathBuf;

/// A share to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The virtio-fs tag.
    pub tag: String,
    /// Where to, absolute.
    pub mount_point: String,
    /// Mount options for the file system; may be empty.
    pub options: String,
}

/// A suite's image to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuiteImage {
    /// The suite's name.
    pub name: String,
    /// The block device that holds it.
    pub device: PathBuf,
}

/// All options, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which agent to be.
    pub mode: String,
    /// Block device of the root image.
    pub root: Option<PathBuf>,
    /// Its file system.
    pub root_fs_type: String,
    /// Shares, in order.
    pub shares: Vec<Share>,
    /// Suites' images, in order.
    pub suites: Vec<SuiteImage>,
    /// The host's vsock port.
    pub port: u32,
    /// Whether to log the times of the start.
    pub timing: bool,
    /// Words of ours that were not understood, with the reason.
    pub complaints: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: "guest".into(),
            root: None,
            root_fs_type: "erofs".into(),
            shares: Vec::new(),
            suites: Vec::new(),
            port: wire::AGENT_PORT,
            timing: false,
            complaints: Vec::new(),
        }
    }
}

impl Options {
    /// Reads the options out of a whole kernel command line; what is not ours is left alone.
    #[must_use]
    pub fn parse(command_line: &str) -> Self {
        let mut options = Self::default();
        for word in words(command_line) {
            let Some(word) = word.strip_prefix("vmm.") else { continue };
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "mode" => options.mode = value.into(),
                "root" => options.root = Some(value.into()),
                "rootfstype" => options.root_fs_type = value.into(),
                "share" => match parse_share(value) {
                    Some(share) => options.shares.push(share),
                    None => options.complaints.push(format!("vmm.share={value}: expected TAG:/MOUNT/POINT")),
                },
                "suite" => match value.split_once(':').filter(|(name, _)| !name.is_empty() && !name.contains('/')) {
                    Some((name, device)) => {
                        options.suites.push(SuiteImage { name: name.into(), device: device.into() });
                    }
                    None => options.complaints.push(format!("vmm.suite={value}: expected NAME:/DEVICE")),
                },
                "port" => match value.parse() {
                    Ok(port) => options.port = port,
                    Err(_) => options.complaints.push(format!("vmm.port={value}: expected a port number")),
                },
                "timing" => options.timing = true,
                // Another part of the image may have words of its own.
                _ => {}
            }
        }
        options
    }
}

fn parse_share(value: &str) -> Option<Share> {
    // A tag may contain a colon; a mount point is absolute, so the first ":/" is the border.
    let (tag, rest) = value.split_at(value.find(":/")?);
    let (mount_point, options) = match rest[1..].split_once(':') {
        Some((mount_point, options)) => (mount_point, options),
        None => (&rest[1..], ""),
    };
    (!tag.is_empty()).then(|| Share { tag: tag.into(), mount_point: mount_point.into(), options: options.into() })
}

/// Words at white space that is not in double quotes, the quotes removed (`next_arg` in the kernel's `lib/cmdline.c`).
pub(crate) fn words(command_line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in command_line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(tag: &str, mount_point: &str, options: &str) -> Share {
        Share { tag: tag.into(), mount_point: mount_point.into(), options: options.into() }
    }

    #[test]
    fn our_words_are_found_among_the_kernels() {
        let options = Options::parse(
            "console=ttyS0 quiet vmm.root=/dev/vda vmm.share=myfs1:/mnt/virtiofs1 panic=-1 vmm.port=77 \
             vmm.share=myfs2:/mnt/virtiofs2:dax=always vmm.timing vmm.unknown=1 -- x\n",
        );
        assert_eq!(options.root, Some("/dev/vda".into()));
        assert_eq!(
            options.shares,
            [share("myfs1", "/mnt/virtiofs1", ""), share("myfs2", "/mnt/virtiofs2", "dax=always")]
        );
        assert_eq!((options.port, options.timing), (77, true));
        assert_eq!(options.complaints, Vec::<String>::new());
    }

    #[test]
    fn suites_have_a_plain_name_and_a_device() {
        let options = Options::parse("vmm.suite=pjdfstest:/dev/vdb vmm.suite=../x:/dev/vdc vmm.suite=alone");
        assert_eq!(options.suites, [SuiteImage { name: "pjdfstest".into(), device: "/dev/vdb".into() }]);
        assert_eq!(options.complaints.len(), 2);
    }

    #[test]
    fn an_empty_command_line_gives_the_defaults() {
        assert_eq!(Options::parse(""), Options::default());
        assert_eq!(Options::parse(" \n"), Options::default());
    }

    #[test]
    fn quotes_keep_spaces_and_tags_may_contain_colons() {
        let options = Options::parse(r#"vmm.share="my share:x:/mnt/a b" "vmm.share=q:/r""#);
        assert_eq!(options.shares, [share("my share:x", "/mnt/a b", ""), share("q", "/r", "")]);
    }

    #[test]
    fn words_that_make_no_sense_are_complained_about_and_skipped() {
        let options =
            Options::parse("vmm.share=nothing vmm.share=:/mnt vmm.share=tag:relative vmm.port=many vmm.port=-1");
        assert_eq!(options.shares, []);
        assert_eq!(options.port, wire::AGENT_PORT);
        assert_eq!(options.complaints.len(), 5);
    }
}
