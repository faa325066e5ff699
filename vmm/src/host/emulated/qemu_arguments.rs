//! The command line of QEMU. A pure function, so that what each word is for stands beside it and a test can read it.

use std::ffi::OsString;
use std::num::NonZero;
use std::os::fd::RawFd;
use std::path::Path;

/// The kernel's name of the port that the agent in the emulated host serves: `/sys/class/virtio-ports/*/name`.
pub(super) const AGENT_PORT_NAME: &str = "vmm.agent";
/// Which agent the initramfs is to be.
const AGENT_MODE: &str = "emulated-host";
/// An AMD CPU, for SVM, without XSAVE and what needs it.
const CPU_MODEL: &str = "EPYC-v3,-xsave,-xsaveopt,-xsavec,-xgetbv1,-avx,-avx2,-fma,-f16c";
/// The 9p tag of this machine's root directory.
pub(super) const ROOT_TAG: &str = "hostroot";

/// What differs from one start to the next.
#[derive(Clone, Debug)]
pub(super) struct QemuArguments<'a> {
    /// Uncompressed kernel with a PVH note: started directly, no decompressor, no firmware to speak of.
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// CPUs that may run guests. There is one more, which QEMU's faults let run none (see the agent's `emulated_host`).
    pub(super) cpus: u32,
    pub(super) memory_mib: u64,
    /// The directory that becomes the emulated host's root.
    pub(super) root: &'a Path,
    /// Inherited: the scratch disk, open for reading and writing.
    pub(super) scratch: RawFd,
    /// Inherited: one end of a socket pair, the other is ours.
    pub(super) agent: RawFd,
    /// Inherited: a file that the console is written to.
    pub(super) console: RawFd,
    /// Rate of this machine's time stamp counter, kHz, when known: measured here, it is right on a busy machine too.
    pub(super) tsc_khz: Option<u64>,
    /// The kernel's `CONFIG_HZ`, when known.
    pub(super) timer_hz: Option<NonZero<u32>>,
    /// Words for the end of the kernel's command line.
    pub(super) append: &'a str,
}

impl QemuArguments<'_> {
    /// The words after the program's name.
    pub(super) fn build(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
        add(&["-name", "vmm-emulated-host", "-nodefaults", "-no-user-config", "-display", "none"]);
        // A kernel that panics resets (see `panic=-1`): that must end QEMU, not start it anew.
        add(&["-no-reboot"]);
        // TCG emulates AMD's SVM with nested paging, not Intel's VMX. One translation thread per CPU; a code cache large
        // enough for a kernel, KVM and a guest's kernel, else it is thrown away and translated again. TCG lets a guest in
        // the guest execute XSETBV behind KVM's back: every kernel then warns of inconsistent XSAVE sizes and is tainted,
        // so there is no XSAVE, nor what needs it.
        add(&["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", CPU_MODEL]);
        // microvm has no clock that the kernel could calibrate the TSC by, and KVM needs a TSC. The HPET would be chosen
        // for deadlines and cost an exit each; the rest is only probed for.
        add(&["-M", "q35,hpet=off,usb=off,sata=off,smbus=off,vmport=off,smm=off"]);
        add(&["-smp", &(self.cpus + 1).to_string(), "-m", &format!("{}M", self.memory_mib)]);

        add(&["-add-fd", &format!("fd={},set=1", self.scratch), "-add-fd", &format!("fd={},set=2", self.console)]);
        // Nobody will ever read this disk but the emulated host itself: flushes may be forgotten.
        let disk = "driver=raw,node-name=scratch,discard=unmap,cache.no-flush=on,read-only=off,auto-read-only=off,\
                    file.driver=file,file.filename=/dev/fdset/1,file.locking=off,file.auto-read-only=off";
        add(&["-blockdev", disk]);
        // By default a full disk out here would stop the emulated host in its tracks; in there it is an error like others.
        add(&["-device", "virtio-blk-pci,drive=scratch,serial=vmm-scratch,werror=report,rerror=report"]);
        // `none`: files get the owners that the emulated host says where we may give them, and ours where not.
        let mut fsdev = OsString::from("local,id=root,security_model=none,multidevs=remap,path=");
        fsdev.push(escape_commas(self.root.as_os_str()));
        args.extend(["-fsdev".into(), fsdev]);
        let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
        add(&["-device", &format!("virtio-9p-pci,fsdev=root,mount_tag={ROOT_TAG}")]);
        add(&["-chardev", &format!("socket,id=agent,fd={}", self.agent), "-device", "virtio-serial-pci"]);
        add(&["-device", &format!("virtserialport,chardev=agent,name={AGENT_PORT_NAME}")]);
        add(&["-chardev", "file,id=console,path=/dev/fdset/2", "-serial", "chardev:console"]);

        args.extend(["-kernel".into(), self.kernel.into(), "-initrd".into(), self.initramfs.into()]);
        args.extend(["-append".into(), self.kernel_command_line().into()]);
        args
    }

    fn kernel_command_line(&self) -> String {
        let mut words = vec![
            "console=ttyS0".to_owned(),
            "quiet".to_owned(),
            "panic=-1".to_owned(),
            format!("vmm.mode={AGENT_MODE}"),
            // Without it KVM refuses the guest's TSC rate whenever the early calibration was off (it is on a busy
            // machine), and the timers of every guest are dead: TCG has no TSC scaling to make up for it.
            "kvm.tsc_tolerance_ppm=100000".to_owned(),
            // The emulated counter is this machine's, which is sound. A busy machine stops QEMU now and then between
            // two reads of a clock, and the watchdog takes that for a counter gone wrong: then every look at the time
            // becomes an exit, in the emulated host and in its guests.
            "tsc=nowatchdog".to_owned(),
            // The kernel tries out the timer's interrupt and gives it a few milliseconds. On a busy machine that is not enough:
            // it takes a timer that works for one that is not connected, and may wait for its own substitutes for ever.
            "no_timer_check".to_owned(),
            // Under TCG, code that is patched while another CPU runs it can be taken up in the middle of an instruction.
            // The agent has KVM patch all it will, then starts the other CPUs.
            "maxcpus=1".to_owned(),
        ];
        words.extend(self.tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        // What the kernel measures for delays, by counting for some of its ticks on each CPU: on a busy machine that
        // takes seconds. It is the counter's rate again, per tick (`arch/x86/kernel/tsc.c`, `lpj_fine`).
        let lpj = self.tsc_khz.zip(self.timer_hz).map(|(khz, hz)| khz * 1000 / u64::from(hz.get()));
        words.extend(lpj.map(|lpj| format!("lpj={lpj}")));
        // Nobody in there is to be kept from anything, and no bug of its own kernel to be found.
        let costs = ["mitigations=off", "init_on_alloc=0", "rodata=off", "lsm=landlock", "audit=0", "nowatchdog"];
        words.extend(costs.map(str::to_owned));
        words.push("cryptomgr.notests=1".to_owned());
        words.extend(self.append.split_ascii_whitespace().map(str::to_owned));
        words.join(" ")
    }
}

/// QEMU's option parser reads `,,` as a comma within a value.
fn escape_commas(value: &std::ffi::OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        escaped.push(byte);
        if byte == b',' {
            escaped.push(byte);
        }
    }
    OsString::from_vec(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(root: &str) -> Vec<String> {
        let arguments = QemuArguments {
            kernel: Path::new("/cache/vmlinux"),
            initramfs: Path::new("/cache/initramfs"),
            cpus: 3,
            memory_mib: 6000,
            root: Path::new(root),
            scratch: 10,
            agent: 11,
            console: 12,
            tsc_khz: Some(2_596_105),
            timer_hz: NonZero::new(250),
            append: "  loglevel=8 vmm.x=y ",
        };
        arguments.build().into_iter().map(|word| word.into_string().expect("UTF-8")).collect()
    }

    fn value<'a>(args: &'a [String], flag: &str) -> &'a str {
        let at = args.iter().position(|word| word == flag).unwrap_or_else(|| panic!("no {flag} in {args:?}"));
        &args[at + 1]
    }

    #[test]
    fn every_start_has_its_own_size_files_and_kernel_words() {
        let args = example("/");
        assert_eq!(value(&args, "-smp"), "4");
        assert_eq!(value(&args, "-m"), "6000M");
        assert_eq!(value(&args, "-kernel"), "/cache/vmlinux");
        assert_eq!(value(&args, "-initrd"), "/cache/initramfs");
        assert!(args.contains(&"fd=10,set=1".to_owned()) && args.contains(&"fd=12,set=2".to_owned()), "{args:?}");
        assert!(args.contains(&"socket,id=agent,fd=11".to_owned()), "{args:?}");
        assert!(value(&args, "-append").ends_with(" loglevel=8 vmm.x=y"), "{args:?}");
    }

    #[test]
    fn what_keeps_clocks_and_timers_sound_is_never_left_out() {
        let args = example("/");
        let words: Vec<&str> = value(&args, "-append").split(' ').collect();
        for word in [
            "kvm.tsc_tolerance_ppm=100000",
            "tsc=nowatchdog",
            "no_timer_check",
            "maxcpus=1",
            "tsc_early_khz=2596105",
            "lpj=10384420",
        ] {
            assert!(words.contains(&word), "{word} is not in {words:?}");
        }
    }

    #[test]
    fn a_panic_in_the_emulated_host_ends_qemu() {
        let args = example("/");
        assert!(args.contains(&"-no-reboot".to_owned()));
        assert!(value(&args, "-append").split(' ').any(|word| word == "panic=-1"));
    }

    #[test]
    fn a_comma_in_the_root_directory_does_not_end_its_option() {
        assert!(value(&example("/a,b"), "-fsdev").ends_with(",path=/a,,b"));
    }
}
