//! Runs one command in an emulated host as if it ran here.

use std::env;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::never;
use wire::Command;

use super::start_notice::StartNotice;
use super::{EmulatedHostConfig, EmulatedHostError, INSIDE_VARIABLE, RunningHost, SCRATCH_MOUNT, SCRATCH_VARIABLE};
use crate::session::RawTerminal;
use crate::session::exec_client::{
    self, ExecEnd, ExecError, ExecRequest, ExecStreams, ForwardedSignals, has_terminal, terminal_size,
};

/// Starts an emulated host, runs `argv` in it with our working directory, environment and standard streams, and ends it
/// again; the command's exit code as a shell would give it. Standard error says that it is done, and `reason`, why: "there
/// is no /dev/kvm".
///
/// # Errors
/// The emulated host did not start or did not last, or the user gave up on it.
pub fn run_inside(config: &EmulatedHostConfig, reason: &str, argv: &[OsString]) -> Result<u8, EmulatedHostError> {
    let directory = env::current_dir()
        .map_err(|e| EmulatedHostError::Prepare(format!("the working directory cannot be determined: {e}")))?;
    let command = command_inside(argv, &directory)?;
    let notice = StartNotice::new(reason);
    let caught =
        ForwardedSignals::catch().map_err(|e| EmulatedHostError::Prepare(format!("signals cannot be caught: {e}")))?;
    let mut waiting = |elapsed| {
        notice.waiting(elapsed);
        if caught.signals.is_empty() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let host = start_patiently(config, &mut waiting)?;
    notice.started();
    match exec(&host, command, &caught) {
        Ok(end) => {
            if let ExecEnd::NotStarted { error, .. } = &end {
                eprintln!("vmm: {error}");
            }
            host.stop();
            Ok(end.exit_code())
        }
        Err(ExecError::Closed(_)) => Err(host.died()),
        // Not asked to write anything back: whoever gives up on it wants it gone.
        Err(ExecError::Interrupted) => Err(EmulatedHostError::Interrupted),
        Err(error) => Err(EmulatedHostError::CommandLost(error.to_string())),
    }
}

/// As [`RunningHost::start`], with a second try where an emulated CPU may be to blame.
pub(super) fn start_patiently(
    config: &EmulatedHostConfig,
    waiting: &mut dyn FnMut(Duration) -> ControlFlow<()>,
) -> Result<RunningHost, EmulatedHostError> {
    match RunningHost::start(config, waiting) {
        // Nothing of the command has happened yet, and an emulated CPU is not as sound as a real one.
        Err(EmulatedHostError::Died { last_words, .. }) if last_words.contains("Kernel panic") => {
            eprintln!("the emulated host's kernel panicked before it was up; starting it once more");
        }
        Err(EmulatedHostError::NeverCameUp { .. }) => {
            eprintln!("the emulated host did not come up; starting it once more");
        }
        started => return started,
    }
    RunningHost::start(config, waiting)
}

fn exec(host: &RunningHost, command: Command, caught: &ForwardedSignals) -> Result<ExecEnd, ExecError<String>> {
    let terminal = has_terminal().then(terminal_size).flatten();
    // With a terminal of its own the command gets every key, Ctrl-C too.
    let _raw = terminal.map(|_| RawTerminal::enter(rustix::stdio::stdin())).transpose().map_err(ExecError::Streams)?;
    let streams = ExecStreams::of_this_process(caught.signals.clone(), caught.window_sizes.clone())
        .map_err(ExecError::Streams)?;
    // That QEMU has ended shows as a closed link.
    exec_client::run(host.link(), &never(), &ExecRequest { command, terminal }, streams, None)
}

/// What to start inside: our own surroundings but for the directory, and where shares under test belong.
pub(super) fn command_inside(argv: &[OsString], directory: &Path) -> Result<Command, EmulatedHostError> {
    Ok(Command {
        argv: argv.iter().map(|word| utf8("an argument", word)).collect::<Result<_, _>>()?,
        env: environment(env::vars_os()),
        cwd: utf8("the working directory", directory.as_os_str())?,
    })
}

/// `ours` with what is different inside. A variable that is not UTF-8 is left out: it cannot be passed on, and is hardly
/// what matters.
fn environment(ours: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    let different = [
        (SCRATCH_VARIABLE, SCRATCH_MOUNT.to_owned()),
        (INSIDE_VARIABLE, "1".to_owned()),
        // Temporary files on the scratch disk: much faster than by 9p, and QEMU's 9p server makes no sockets.
        ("TMPDIR", format!("{SCRATCH_MOUNT}/tmp")),
    ];
    let kept = ours.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let kept = kept.filter(|(name, _)| different.iter().all(|(other, _)| name != other));
    kept.chain(different.iter().map(|(name, value)| ((*name).to_owned(), value.clone()))).collect()
}

fn utf8(what: &str, text: &OsStr) -> Result<String, EmulatedHostError> {
    text.to_str().map(str::to_owned).ok_or_else(|| EmulatedHostError::NotUtf8(format!("{what} ({})", text.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn variables(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        list.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn the_environment_goes_inside_and_the_scratch_disk_replaces_what_we_had() {
        let ours = variables(&[("PATH", "/bin"), ("TMPDIR", "/mine"), ("VMM_SCRATCH_DIR", "/data"), ("EMPTY", "")]);
        let inside = environment(ours.into_iter());
        let value = |name: &str| {
            let mut values = inside.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
            (values.next(), values.next())
        };
        assert_eq!(value("PATH"), (Some("/bin"), None));
        assert_eq!(value("EMPTY"), (Some(""), None));
        assert_eq!(value("TMPDIR"), (Some("/run/vmm-scratch/tmp"), None));
        assert_eq!(value(SCRATCH_VARIABLE), (Some("/run/vmm-scratch"), None));
        assert_eq!(value(INSIDE_VARIABLE), (Some("1"), None));
    }

    #[test]
    fn a_variable_that_is_not_utf_8_is_left_out_and_an_argument_is_an_error() {
        let odd = OsString::from_vec(vec![b'x', 0xff]);
        let inside = environment([("ODD".into(), odd.clone())].into_iter());
        assert!(inside.iter().all(|(name, _)| name != "ODD"));
        let error = command_inside(&["true".into(), odd], Path::new("/")).expect_err("not UTF-8").to_string();
        assert!(error.starts_with("an argument (x"), "{error}");
    }
}
