//! The device as a guest sees it: FUSE messages through real virtqueues, files in a temporary directory.

mod acls;
mod against_host;
mod attributes;
mod chains;
mod containment;
mod dax;
mod device;
mod directories;
mod faults;
mod file_data;
mod files;
mod flight;
mod harness;
mod host_model;
mod labels;
mod locks;
mod malformed;
mod names;
mod ownership;
#[cfg(feature = "planted-bugs")]
mod planted;
mod polling;
mod random;
mod settings;
mod slow;
mod stable_ids;
mod stats;
mod submounts;
mod translation;
mod xattrs;
