//! A suite's list of its tests, as its command prints it in a guest.

use wire::{ProcessEnd, Stream};

use super::SuiteEnd;

/// More than this of a list is not read, bytes: some ten thousand tests.
const MAX_LIST: usize = 4 << 20;
/// Longest name of a test, bytes; the agent cuts longer ones.
const MAX_NAME: usize = 1024;
/// The end of what it says on standard error that is kept, bytes.
const MAX_SAID: usize = 2048;

/// What came so far.
#[derive(Debug, Default)]
pub(super) struct Listing {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    too_long: bool,
}

impl Listing {
    pub(super) fn take(&mut self, stream: Stream, data: &[u8]) {
        match stream {
            Stream::Stdout if self.stdout.len() + data.len() > MAX_LIST => self.too_long = true,
            Stream::Stdout => self.stdout.extend_from_slice(data),
            Stream::Stderr => {
                self.stderr.extend_from_slice(data);
                let over = self.stderr.len().saturating_sub(MAX_SAID);
                self.stderr.drain(..over);
            }
        }
    }

    /// The tests, each once, in order; what is wrong if there are none, or if the command said that it failed: half a list
    /// would be half a run.
    pub(super) fn finish(self, end: ProcessEnd) -> Result<Vec<String>, String> {
        if self.too_long {
            return Err(format!("its list of tests is longer than {} MiB", MAX_LIST >> 20));
        }
        let text = String::from_utf8_lossy(&self.stdout);
        let mut seen = std::collections::HashSet::new();
        let names = text.lines().map(str::trim).filter(|name| !name.is_empty() && name.len() <= MAX_NAME);
        let tests: Vec<String> = names.filter(|name| seen.insert(*name)).map(str::to_owned).collect();
        if tests.is_empty() || end != ProcessEnd::Exited(0) {
            let what = if tests.is_empty() { "empty" } else { "cut short" };
            let said = String::from_utf8_lossy(&self.stderr);
            let how = SuiteEnd::from(end);
            return Err(format!("its list of tests is {what} ({how}) {}", said.trim()).trim_end().to_owned());
        }
        Ok(tests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(stdout: &[u8], stderr: &[u8]) -> Result<Vec<String>, String> {
        let mut listing = Listing::default();
        for byte in stdout {
            listing.take(Stream::Stdout, &[*byte]);
        }
        listing.take(Stream::Stderr, stderr);
        listing.finish(ProcessEnd::Exited(0))
    }

    #[test]
    fn each_line_is_a_test_and_each_test_comes_once() {
        assert_eq!(list(b"b\n\n a \nb\nc", b"").unwrap(), ["b", "a", "c"]);
        let long = [&[b'x'; MAX_NAME + 1][..], b"\ny\n"].concat();
        assert_eq!(list(&long, b"").unwrap(), ["y"], "a name that no result could have");
    }

    #[test]
    fn an_empty_list_is_no_list_and_says_why() {
        let error = list(b"\n", b"no such group\n").unwrap_err();
        assert!(error.contains("exit code 0") && error.contains("no such group"), "{error}");
    }

    #[test]
    fn the_list_of_a_command_that_failed_is_none() {
        for (end, how) in [(ProcessEnd::Exited(2), "exit code 2"), (ProcessEnd::Signaled(9), "signal 9")] {
            let mut listing = Listing::default();
            listing.take(Stream::Stdout, b"a\nb\n");
            let error = listing.finish(end).unwrap_err();
            assert!(error.contains("cut short") && error.contains(how), "{error}");
        }
    }

    #[test]
    fn a_list_without_end_fills_no_memory() {
        let mut listing = Listing::default();
        for _ in 0..100 {
            listing.take(Stream::Stdout, &[b'a'; 64 << 10]);
            listing.take(Stream::Stderr, &[b'e'; 64 << 10]);
        }
        assert!(listing.stdout.len() <= MAX_LIST && listing.stderr.len() <= MAX_SAID);
        assert!(listing.finish(ProcessEnd::Exited(0)).unwrap_err().contains("longer than"));
    }
}
