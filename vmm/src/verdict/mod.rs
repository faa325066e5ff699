//! Compares results with what was expected and picks the exit code.
//!
//! [`Baseline`] says what was expected, [`Tally`] judges each result against it and keeps the counts, and [`exit_code`]
//! turns both and the run's outcome into what the process tells its caller. [`Comparison`] sets two runs side by side, and
//! [`BaselineUpdate`] makes a baseline of runs. No I/O here but reading baselines and lists.

mod baseline;
mod baseline_file;
mod baseline_update;
mod comparison;
mod counts;
mod failure_rate;
mod judgement;
mod kernel_range;
mod outcome;
mod retried;
mod shipped;
mod tally;
mod test_list;

pub use baseline::{Baseline, BaselineUse, MissingTest, Situation};
pub use baseline_file::{BaselineFile, BaselineRow};
pub use baseline_update::{BaselineUpdate, UpdateError, import};
pub use comparison::{Change, ComparedTest, Comparison};
pub use counts::Counts;
pub use failure_rate::{FailureRate, within_rate};
pub use judgement::{Attempts, Expectation, Expected, Judgement};
pub use kernel_range::KernelRange;
pub use outcome::{exit_code, with_failed_reporter};
pub use retried::{FailureKind, Retried};
pub use shipped::{shipped, shipped_suites};
pub(crate) use tally::truncated;
pub use tally::{MAX_MESSAGE, MAX_ROWS, Row, SuiteTally, Tally};
pub use test_list::{BaselineError, ListedTest, read_list};
