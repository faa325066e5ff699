//! What is learned of a guest that died or hangs, as a text for a person.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::machine::{Flight, Inspector};
use crate::trace;

/// How long vCPUs may take to leave the guest.
const LEAVING: Duration = Duration::from_secs(2);
/// How long a kernel that was nudged may print.
const PRINTING: Duration = Duration::from_secs(10);
/// It is done when it printed nothing for this long.
const SILENCE: Duration = Duration::from_secs(2);
/// Requests that are listed.
const IN_FLIGHT_SHOWN: usize = 50;
/// The end of the console's log that is told, bytes.
const CONSOLE_SHOWN: u64 = 16 << 10;

/// Looks at the machine of `inspector`, whose console goes to `console_log`. If it still runs, its kernel is made to panic
/// and tell where it hangs.
pub(super) fn perform(inspector: &Inspector, flight: &Flight, console_log: &Path) -> String {
    let hangs = !inspector.has_stopped();
    // Before the guest is disturbed.
    let in_flight = in_flight_lines(flight);
    let mut lines = inspector.look(LEAVING);
    if hangs {
        lines.insert(0, "It still ran; an NMI made its kernel say where it is.".to_owned());
        wait_for_console(inspector, console_log);
    }
    lines.extend(in_flight);
    let console = match tail(console_log) {
        Ok(text) if text.is_empty() => "The guest's console shows nothing.".to_owned(),
        Ok(text) => format!("The end of the guest's console:\n{text}"),
        Err(error) => format!("The guest's console cannot be read: {error}"),
    };
    lines.push(String::new());
    lines.push(console);
    lines.join("\n")
}

/// The requests that the shares have not answered.
fn in_flight_lines(flight: &Flight) -> Vec<String> {
    let requests = flight.in_flight();
    if requests.is_empty() {
        return vec!["No share has a request that it did not answer.".to_owned()];
    }
    let mut naming = trace::Naming::default();
    flight.read().iter().for_each(|record| naming.learn(record));
    let shown = requests.iter().take(IN_FLIGHT_SHOWN).map(|request| {
        let age = Duration::from_nanos(request.took_ns).as_secs_f64();
        format!("  {} for {age:.3} s", trace::describe(request, &mut naming, false))
    });
    let mut lines = vec![format!("{} requests are not answered, the oldest first:", requests.len())];
    lines.extend(shown);
    lines
}

/// Until the kernel has reset the machine, or has nothing more to print.
fn wait_for_console(inspector: &Inspector, console_log: &Path) {
    let size = || std::fs::metadata(console_log).map(|meta| meta.len()).unwrap_or_default();
    let begun = Instant::now();
    let (mut last, mut since) = (size(), Instant::now());
    while !inspector.has_stopped() && begun.elapsed() < PRINTING && since.elapsed() < SILENCE {
        std::thread::sleep(Duration::from_millis(50));
        let now = size();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// Whole lines from the end of a file.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_SHOWN)))?;
    let mut bytes = Vec::new();
    file.take(CONSOLE_SHOWN).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    match text.split_once('\n') {
        Some((_, rest)) if length > CONSOLE_SHOWN => Ok(rest.to_owned()),
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_console_begins_with_a_whole_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = "x".repeat(99);
        std::fs::write(file.path(), format!("{line}\r\n").repeat(1000)).unwrap();
        let text = tail(file.path()).unwrap();
        assert!(text.len() as u64 <= CONSOLE_SHOWN && text.lines().all(|shown| shown == line));
        std::fs::write(file.path(), "short\r\n").unwrap();
        assert_eq!(tail(file.path()).unwrap(), "short\n");
    }
}
