//! What holds for every guest of a run.

use std::time::Instant;

use super::Deadlines;

/// A run's deadlines, decided before its first machine starts.
#[derive(Clone, Copy, Debug)]
pub struct RunPlan {
    /// For each guest, scaled.
    pub deadlines: Deadlines,
    /// When the run as a whole must have ended, if ever.
    pub total_until: Option<Instant>,
}

impl RunPlan {
    /// A run that begins now.
    #[must_use]
    pub fn starting_now(deadlines: Deadlines) -> Self {
        Self { deadlines, total_until: deadlines.total.and_then(|total| Instant::now().checked_add(total)) }
    }
}
