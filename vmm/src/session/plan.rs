//! What a run consists of.

use wire::SuitePlan;

use super::Deadlines;

/// A run, decided completely before the machine starts.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// The suites, in order, their own test deadlines already scaled.
    pub suites: Vec<SuitePlan>,
    /// All other deadlines, scaled.
    pub deadlines: Deadlines,
}
