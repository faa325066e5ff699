//! What a guest boots, made and cached: kernel ([`kernel`]), initramfs with the agent ([`initramfs`]), Debian root image
//! ([`root_image`]) and suites ([`suite`]).
//!
//! Everything here is a function from a [`Cache`] and a specification to files in that cache; a second call finds what
//! the first one made. Nothing here knows of virtual machines, and nothing reads the environment but
//! [`Cache::default_root`] and the search for programs. Work that takes long tells a [`Progress`] how far it is.

pub mod agent;
mod apt;
mod apt_sources;
mod cache;
mod control_file;
mod debian_root;
mod erofs;
mod error;
pub mod initramfs;
pub mod kernel;
pub mod kernel_image;
mod modules;
mod progress;
pub mod qemu;
pub mod root_image;
pub mod suite;
mod tool;

pub use cache::{Cache, EntryInfo, Key, KeyBuilder, Scratch, Workspace};
pub use error::{Error, Result};
pub use progress::{Progress, Silent};
pub use tool::kill_running as kill_running_tools;
