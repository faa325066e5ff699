//! What a guest is given to do.

use wire::{Command, SuitePlan};

/// The next thing for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Ask a suite for its tests; [`WorkSource::listed`] gets them.
    List(Command),
    /// Run a suite, or some of its tests. When it does not come to its end it is for the source to say what of it was not run.
    Run(SuitePlan),
}

/// Where a guest's work comes from. Asked again when what it gave last is done.
pub trait WorkSource {
    /// What to do next; `None` when this guest is to power off.
    fn next_task(&mut self) -> Option<Task>;

    /// What the command of the last [`Task::List`] printed: tests in order, or why there are none.
    fn listed(&mut self, tests: Result<Vec<String>, String>);
}
