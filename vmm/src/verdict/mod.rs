//! Compares results with what was expected and picks the exit code.
//!
//! [`Baseline`] says what was expected, [`Tally`] judges each result against it and keeps the counts, and [`exit_code`]
//! turns both and the run's outcome into what the process tells its caller. [`Comparison`] sets two runs side by side. No I/O here but reading baseline files.

mod baseline;
mod comparison;
mod outcome;
mod tally;

pub use baseline::{Baseline, BaselineError, Expectation, Judgement};
pub use comparison::{Change, ComparedTest, Comparison};
pub use outcome::{exit_code, with_failed_reporter};
pub(crate) use tally::truncated;
pub use tally::{Counts, MAX_MESSAGE, MAX_ROWS, Row, SuiteTally, Tally};
