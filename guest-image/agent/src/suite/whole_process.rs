//! A suite that is one test: the process, judged by its exit code.

use wire::{ProcessEnd, TestStatus};

use super::parser::{TestEvent, describe};

#[derive(Debug)]
pub(super) struct WholeProcess {
    name: String,
    reported: bool,
}

impl WholeProcess {
    pub(super) fn new(suite: &str) -> Self {
        Self { name: suite.to_owned(), reported: false }
    }

    pub(super) fn begin(&self) -> Vec<TestEvent> {
        vec![TestEvent::Started { name: self.name.clone() }]
    }

    pub(super) fn abort(&mut self, reason: &str) -> Vec<TestEvent> {
        self.report(TestStatus::Error, reason.to_owned())
    }

    pub(super) fn finish(&mut self, end: ProcessEnd) -> Vec<TestEvent> {
        match end {
            ProcessEnd::Exited(0) => self.report(TestStatus::Pass, String::new()),
            ProcessEnd::Exited(_) => self.report(TestStatus::Fail, describe(end)),
            ProcessEnd::Signaled(_) => self.report(TestStatus::Error, describe(end)),
        }
    }

    fn report(&mut self, status: TestStatus, message: String) -> Vec<TestEvent> {
        if std::mem::replace(&mut self.reported, true) {
            return Vec::new();
        }
        vec![TestEvent::finished(&self.name, status, message)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(events: Vec<TestEvent>) -> Vec<(TestStatus, String)> {
        events
            .into_iter()
            .map(|event| match event {
                TestEvent::Finished { status, message, .. } => (status, message),
                TestEvent::Started { name } => panic!("{name} started"),
            })
            .collect()
    }

    #[test]
    fn the_exit_code_is_the_result() {
        let of = |end| results(WholeProcess::new("suite").finish(end));
        assert_eq!(of(ProcessEnd::Exited(0)), [(TestStatus::Pass, String::new())]);
        assert_eq!(of(ProcessEnd::Exited(3)), [(TestStatus::Fail, "exit code 3".into())]);
        assert_eq!(of(ProcessEnd::Signaled(11)), [(TestStatus::Error, "killed by signal 11".into())]);
    }

    #[test]
    fn a_killed_process_has_one_result() {
        let mut parser = WholeProcess::new("suite");
        assert_eq!(results(parser.abort("too long")), [(TestStatus::Error, "too long".into())]);
        assert_eq!(results(parser.finish(ProcessEnd::Signaled(9))), []);
    }
}
