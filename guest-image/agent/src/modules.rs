//! Loads the kernel modules that the initramfs brings: [`LIST`] has their paths in the order in which they depend on each
//! other, one a line, optionally followed by parameters. The kernel command line may add some, as
//! `MODULE.PARAMETER=VALUE`; nobody else hands those to a module that is loaded by hand. With an empty list there is nothing
//! to load: the kernel has all it needs built in.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::init_module;

use crate::kernel_command_line::words;

/// Where the module files are.
pub const DIRECTORY: &str = "/lib/modules";
/// The list of modules.
pub const LIST: &str = "/modules";

/// Loads all of them and returns what went wrong, one line each: a module that is missing may or may not matter, which
/// the step that needs it finds out.
#[must_use]
pub fn load_all() -> Vec<String> {
    let list = match fs::read_to_string(LIST) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![format!("failed to read {LIST}: {error}")],
    };
    // Without it modules have what the list gives them, and /proc is missed by other steps soon enough.
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    entries(&list)
        .filter_map(|(file, parameters)| {
            let parameters = [parameters, &command_line_parameters(&command_line, file)].join(" ");
            load(Path::new(file), parameters.trim())
                .err()
                .map(|error| format!("failed to load the kernel module {file}: {error}"))
        })
        .collect()
}

fn entries(list: &str) -> impl Iterator<Item = (&str, &str)> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (file, parameters) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (file, parameters.trim())
    })
}

/// What the kernel command line says for the module in `file`: of `kvm.x=1 kvm.y`, for `kvm.ko`, it is `x=1 y`.
fn command_line_parameters(command_line: &str, file: &str) -> String {
    // The kernel takes `-` and `_` in module names as the same.
    let canonical = |name: &str| name.replace('-', "_");
    let base = file.rsplit('/').next().unwrap_or(file);
    let module = canonical(base.split(".ko").next().unwrap_or(base));
    let words = words(command_line);
    let own = words.iter().filter_map(|word| word.split_once('.').filter(|(owner, _)| canonical(owner) == module));
    own.map(|(_, parameter)| parameter).collect::<Vec<_>>().join(" ")
}

fn load(path: &Path, parameters: &str) -> io::Result<()> {
    let parameters = CString::new(parameters)?;
    let image = fs::read(path)?;
    // Checking a signature costs more than all else about loading, where instructions are slow; and whoever can change the
    // initramfs can change the kernel as well. A kernel that insists gets the whole file.
    let result = match unsigned(&image) {
        Some(unsigned) => match init_module(unsigned, &parameters) {
            Err(Errno::KEYREJECTED | Errno::NOKEY | Errno::PERM | Errno::ACCESS) => init_module(&image, &parameters),
            result => result,
        },
        None => init_module(&image, &parameters),
    };
    match result {
        // Already there, built in under the same name or loaded before.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The module without the signature at its end, if it has one: `struct module_signature`, whose last four bytes are the
/// big-endian length of the signature before it, and a magic string (`include/linux/module_signature.h`).
fn unsigned(image: &[u8]) -> Option<&[u8]> {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    const INFORMATION: usize = 12;
    let signed = image.strip_suffix(MAGIC)?;
    let (rest, information) = signed.split_at_checked(signed.len().checked_sub(INFORMATION)?)?;
    let length = u32::from_be_bytes(*information.last_chunk()?) as usize;
    rest.get(..rest.len().checked_sub(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_gives_files_in_order_with_their_parameters() {
        let list = "# needed by all\n/lib/vsock.ko\n\n  /lib/erofs.ko  \n/lib/kvm.ko tsc_tolerance_ppm=100000 x=1\n";
        let got: Vec<_> = entries(list).collect();
        assert_eq!(
            got,
            [("/lib/vsock.ko", ""), ("/lib/erofs.ko", ""), ("/lib/kvm.ko", "tsc_tolerance_ppm=100000 x=1")]
        );
    }

    #[test]
    fn a_module_gets_its_own_parameters_of_the_kernel_command_line() {
        let line = "quiet kvm.tsc_tolerance_ppm=100000 kvm_amd.nested=1 vmm.mode=x kvm.flag panic=-1\n";
        assert_eq!(command_line_parameters(line, "kvm.ko"), "tsc_tolerance_ppm=100000 flag");
        assert_eq!(command_line_parameters(line, "kvm-amd.ko"), "nested=1");
        assert_eq!(command_line_parameters("kvm-amd.nested=1", "/lib/modules/kvm_amd.ko"), "nested=1");
        assert_eq!(command_line_parameters(line, "ext4.ko"), "");
    }

    #[test]
    fn a_kernel_that_has_everything_built_in_needs_no_list() {
        assert!(!Path::new(LIST).exists(), "this machine has a {LIST} of its own");
        assert_eq!(load_all(), Vec::<String>::new());
    }

    #[test]
    fn a_signature_is_cut_off_and_a_broken_one_left_alone() {
        let with = |length: u32| {
            let mut image = b"ELF and the rest signature".to_vec();
            image.extend([0, 0, 2, 0, 0, 0, 0, 0]);
            image.extend(length.to_be_bytes());
            image.extend(b"~Module signature appended~\n");
            image
        };
        assert_eq!(unsigned(&with(9)), Some(&b"ELF and the rest "[..]));
        assert_eq!(unsigned(&with(27)), None);
        assert_eq!(unsigned(&with(u32::MAX)), None);
        assert_eq!(unsigned(b"~Module signature appended~\n"), None);
        assert_eq!(unsigned(b"ELF"), None);
        assert_eq!(unsigned(b""), None);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = load(Path::new("/no/such.ko"), "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
