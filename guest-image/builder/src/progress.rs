//! How long work tells its owner how far it is.

/// Told what goes on. Implementations decide how it looks; they are called from one thread at a time.
pub trait Progress: Send + Sync {
    /// A new step begins; the one before is done. `what` is a short phrase: `downloading linux-image-6.12`.
    fn step(&self, what: &str);
    /// A detail of the current step, such as the line that a tool printed. May come often.
    fn detail(&self, line: &str);
    /// How much of the current step is done, 0 to 1. Steps of unknown length never call this.
    fn fraction(&self, done: f64);
    /// Whether the owner wants to stop. Long work polls this and then fails with [`crate::Error::Interrupted`].
    fn interrupted(&self) -> bool {
        false
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _what: &str) {}
    fn detail(&self, _line: &str) {}
    fn fraction(&self, _done: f64) {}
}
