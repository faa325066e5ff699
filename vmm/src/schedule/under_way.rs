//! What a guest has of a suite, and what is known of its death.

use std::time::Instant;

use crate::session::RunEvent;

/// What one guest has of the suite.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub(super) given: Instant,
    /// Whether a test of it has begun.
    pub(super) has_begun: bool,
    /// Those it was given; `None` for all of a suite that was not listed.
    pub(super) tests: Option<Vec<String>>,
    /// The listed test that its last event was about, until it has all its results.
    pub(super) current: Option<String>,
    /// The last result that it told.
    pub(super) last: Option<String>,
    /// What it told last of a test whose name is not known: files, and the error if there is one.
    pub(super) held: Vec<RunEvent>,
    /// Whether its last word was the error of a test that it was given: should it end now, that is why.
    pub(super) blamed: bool,
}

impl UnderWay {
    pub(super) fn now(tests: Option<Vec<String>>) -> Self {
        Self {
            given: Instant::now(),
            has_begun: false,
            tests,
            current: None,
            last: None,
            held: Vec::new(),
            blamed: false,
        }
    }
}

/// The death of a guest that some test brought about; which one is not known before there is a list.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) why: String,
    /// Files that belong to it.
    pub(super) evidence: Vec<RunEvent>,
    /// The last result before.
    pub(super) last: Option<String>,
}

impl Suspect {
    /// Of a guest that died of `why`, and told `held` of a test whose name is not known.
    pub(super) fn new(why: &str, held: Vec<RunEvent>, last: Option<String>) -> Self {
        let mut suspect = Self { why: why.to_owned(), evidence: Vec::new(), last };
        for event in held {
            match event {
                RunEvent::TestFinished { message, .. } => suspect.why = message,
                event => suspect.evidence.push(event),
            }
        }
        suspect
    }
}
