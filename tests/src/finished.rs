//! What an invocation came to.

use std::fmt;
use std::time::Duration;

/// An invocation that has ended. The `expect_…` methods fail the test with everything that is known.
#[derive(Debug)]
pub struct Finished {
    pub(crate) command: String,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// Standard output; on a terminal, everything.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The exit code, if it ended by itself.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// Fails unless it ended with `code`.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert!(self.code == Some(code), "not exit code {code}:\n{self}");
        self
    }

    /// Fails unless it ended with one of `codes`.
    #[track_caller]
    pub fn expect_code_in(&self, codes: &[i32]) -> &Self {
        assert!(self.code.is_some_and(|code| codes.contains(&code)), "not an exit code of {codes:?}:\n{self}");
        self
    }

    /// Fails unless a signal killed it.
    #[track_caller]
    pub fn expect_signal(&self, signal: i32) -> &Self {
        assert!(self.signal == Some(signal), "not killed by signal {signal}:\n{self}");
        self
    }

    /// Fails unless standard output is this, white space at its ends aside.
    #[track_caller]
    pub fn expect_out(&self, text: &str) -> &Self {
        assert!(self.out().trim() == text, "standard output is not {text:?}:\n{self}");
        self
    }

    /// Fails unless standard output contains `text`.
    #[track_caller]
    pub fn expect_in_out(&self, text: &str) -> &Self {
        assert!(self.out().contains(text), "no {text:?} on standard output:\n{self}");
        self
    }

    /// Fails unless standard error is one clear error, `vmm: …` or clap's `error: …`, with every one of `texts` (in any
    /// case), and no panic, no backtrace.
    #[track_caller]
    pub fn expect_error(&self, texts: &[&str]) -> &Self {
        let err = self.err();
        let low = err.to_lowercase();
        let errors = err.lines().filter(|line| line.starts_with("vmm: ") || line.starts_with("error: ")).count();
        assert!(errors == 1, "not exactly one error:\n{self}");
        for text in texts {
            assert!(low.contains(&text.to_lowercase()), "no {text:?} on standard error:\n{self}");
        }
        for ugly in ["panicked at", "stack backtrace", "RUST_BACKTRACE"] {
            assert!(!err.contains(ugly), "{ugly:?} on standard error:\n{self}");
        }
        self
    }

    /// Fails unless it took at most this long.
    #[track_caller]
    pub fn expect_within(&self, limit: Duration) -> &Self {
        assert!(self.took <= limit, "took longer than {limit:?}:\n{self}");
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  command: {}", self.command)?;
        writeln!(f, "  ended after {:.1?} with code {:?}, signal {:?}", self.took, self.code, self.signal)?;
        for (name, bytes) in [("standard output", &self.stdout), ("standard error", &self.stderr)] {
            writeln!(f, "  {name}, {} bytes:", bytes.len())?;
            let text = String::from_utf8_lossy(bytes);
            let lines: Vec<_> = text.lines().collect();
            if lines.len() > 80 {
                writeln!(f, "    | [{} lines before these]", lines.len() - 80)?;
            }
            for line in &lines[lines.len().saturating_sub(80)..] {
                writeln!(f, "    | {}", line.chars().take(400).collect::<String>().escape_debug())?;
            }
        }
        Ok(())
    }
}
