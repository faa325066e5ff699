//! The agent's binary, built with this crate (see `build.rs`) and carried inside it.

/// A static x86-64 ELF program: PID 1 of every guest and of the emulated host.
pub const BINARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_an_x86_64_program_that_needs_no_interpreter() {
        use object::{Object, ObjectSection};
        let file = object::File::parse(BINARY).unwrap();
        assert_eq!(file.architecture(), object::Architecture::X86_64);
        assert!(file.sections().all(|s| s.name() != Ok(".interp")));
    }
}
