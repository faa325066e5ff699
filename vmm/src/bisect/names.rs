//! What commits and kernels are called when people are told of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use super::git::Repository;

/// Digits of a commit's id that are shown, as the kernel's own rules ask for (Documentation/process/submitting-patches.rst).
const SHORT: usize = 12;

/// Names of what is searched.
#[derive(Debug)]
pub struct Names {
    repository: Option<Repository>,
    subjects: RefCell<HashMap<String, String>>,
}

impl Names {
    /// Of commits, or of a list of kernels.
    #[must_use]
    pub fn new(repository: Option<Repository>) -> Self {
        Self { repository, subjects: RefCell::default() }
    }

    /// Whether ids are commits.
    #[must_use]
    pub fn are_commits(&self) -> bool {
        self.repository.is_some()
    }

    /// The repository, if ids are commits.
    #[must_use]
    pub fn repository(&self) -> Option<&Repository> {
        self.repository.as_ref()
    }

    /// `1234567890ab`, or the kernel's file.
    #[must_use]
    pub fn short(&self, id: &str) -> String {
        match &self.repository {
            Some(_) => id.get(..SHORT).unwrap_or(id).to_owned(),
            None => {
                let name = Path::new(id).file_name().filter(|_| !id.starts_with("debian:"));
                name.map_or_else(|| id.to_owned(), |name| name.to_string_lossy().into_owned())
            }
        }
    }

    /// `1234567890ab ("subject")`, or the kernel's file.
    #[must_use]
    pub fn long(&self, id: &str) -> String {
        match &self.repository {
            Some(_) => format!("{} (\"{}\")", self.short(id), self.subject(id)),
            None => self.short(id),
        }
    }

    /// The commit's first line; nothing for a kernel.
    #[must_use]
    pub fn subject(&self, id: &str) -> String {
        let Some(repository) = &self.repository else { return String::new() };
        if let Some(known) = self.subjects.borrow().get(id) {
            return known.clone();
        }
        // A name is no reason to fail.
        let subject = repository.subject(id).unwrap_or_default();
        self.subjects.borrow_mut().insert(id.to_owned(), subject.clone());
        subject
    }
}
