//! Node ids and generations: the same for one file however often the guest forgets it, never the same for two. The
//! guest's own file handles (`name_to_handle_at`, NFS, overlayfs) are made of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use super::harness::{ALL_FLAGS, Guest, ROOT, has_handles, is_root};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::InodeHandles;
use crate::virtio::fs::constants::opcode;
use crate::virtio::fs::passthrough::DescriptorBudget;

/// A guest whose share has one file of each kind that opens by handle.
fn guest() -> Option<Guest> {
    let guest = Guest::new();
    fs::write(guest.path("file"), "data").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    symlink("target", guest.path("link")).unwrap();
    let fifo = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, guest.path("fifo"), fifo.0, fifo.1, 0).unwrap();
    has_handles().then_some(guest)
}

const ALL: [&str; 4] = ["file", "dir", "link", "fifo"];

fn ids(guest: &mut Guest) -> Vec<(u64, u64)> {
    let entry = |file: &&str| {
        let entry = guest.lookup(ROOT, file).unwrap();
        (entry.nodeid, entry.generation)
    };
    ALL.iter().map(entry).collect()
}

#[test]
fn the_tests_run_where_file_handles_work() {
    // As root on a file system of a disk they do; if not, most of this file would prove nothing.
    assert!(has_handles() || !is_root());
}

#[test]
fn a_forgotten_file_has_the_same_id_and_generation_when_it_is_met_again() {
    let Some(mut guest) = guest() else { return };
    let first = ids(&mut guest);
    for (id, _) in &first {
        guest.forget(*id, 1);
        assert_eq!(guest.getattr(*id).map(drop), Err(libc::ESTALE), "forgotten is forgotten");
    }
    assert_eq!(ids(&mut guest), first);
    // Under another name too.
    guest.forget(first[0].0, 1);
    fs::rename(guest.path("file"), guest.path("dir/renamed")).unwrap();
    assert_eq!(guest.lookup(first[1].0, "renamed").unwrap().nodeid, first[0].0);
}

#[test]
fn ids_survive_an_unmount_a_second_init_and_a_reset_of_the_device() {
    let Some(mut guest) = guest() else { return };
    let first = ids(&mut guest);
    guest.request(opcode::DESTROY, ROOT, &[]).unwrap();
    guest.init(ALL_FLAGS).unwrap();
    assert_eq!(guest.getattr(first[0].0).map(drop), Err(libc::ESTALE));
    assert_eq!(ids(&mut guest), first);
    guest.init(ALL_FLAGS).unwrap();
    assert_eq!(ids(&mut guest), first);
    guest.device.reset();
    guest.driver.reset_queues();
    let features = guest.device.device_features();
    guest.device.activate(guest.driver.activation(features)).unwrap();
    guest.init(ALL_FLAGS).unwrap();
    assert_eq!(ids(&mut guest), first);
}

#[test]
fn dot_finds_what_the_guest_has_forgotten() {
    let Some(mut guest) = guest() else { return };
    let first = ids(&mut guest);
    for remount in [false, true] {
        for (id, _) in &first {
            guest.forget(*id, 1);
        }
        if remount {
            guest.request(opcode::DESTROY, ROOT, &[]).unwrap();
            guest.init(ALL_FLAGS).unwrap();
        }
        for ((id, generation), file) in first.iter().zip(ALL) {
            let entry = guest.lookup(*id, ".").unwrap();
            assert_eq!((entry.nodeid, entry.generation), (*id, *generation), "{file}");
            // As Linux asks again for what it has reached by a file handle.
            let again = guest.lookup(*id, "/").unwrap();
            assert_eq!((again.nodeid, again.generation), (*id, *generation), "{file}");
            guest.forget(*id, 1);
            assert_eq!(entry.attr.ino, fs::symlink_metadata(guest.path(file)).unwrap().ino(), "{file}");
            // It counts as a lookup.
            guest.getattr(*id).unwrap();
        }
    }
    // And the file can be used.
    let handle = guest.open(first[0].0, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(first[0].0, handle, 0, 10).unwrap(), b"data");
}

#[test]
fn the_root_has_generation_zero_however_it_is_come_by() {
    let mut guest = Guest::new();
    fs::create_dir(guest.path("dir")).unwrap();
    let dir = guest.node("dir");
    for (node, name) in [(ROOT, "."), (ROOT, ".."), (dir, "..")] {
        let entry = guest.lookup(node, name).unwrap();
        // Linux marks its root bad otherwise (fs/fuse/inode.c, fuse_iget).
        assert_eq!((entry.nodeid, entry.generation), (ROOT, 0), "{node} {name}");
    }
}

#[test]
fn dot_dot_of_a_forgotten_directory_is_its_parent() {
    let Some(mut guest) = guest() else { return };
    fs::create_dir(guest.path("dir/inner")).unwrap();
    let (dir, file) = (guest.node("dir"), guest.node("file"));
    let inner = guest.lookup(dir, "inner").unwrap().nodeid;
    for node in [inner, dir, file] {
        guest.forget(node, 1);
    }
    assert_eq!(guest.lookup(inner, "..").unwrap().nodeid, dir);
    assert_eq!(guest.lookup(dir, "..").unwrap().nodeid, ROOT);
    assert_eq!(guest.lookup(file, "..").map(drop), Err(libc::ENOTDIR));
    assert_eq!(guest.getattr(inner).map(drop), Err(libc::ESTALE), "only its parent was looked up");
}

#[test]
fn a_forgotten_directory_that_was_moved_out_of_the_share_does_not_lead_out() {
    let Some(mut guest) = guest() else { return };
    let outside = tempfile::tempdir_in(guest.dir.path().parent().unwrap()).unwrap();
    let dir = guest.node("dir");
    guest.forget(dir, 1);
    fs::rename(guest.path("dir"), outside.path().join("dir")).unwrap();
    assert_eq!(guest.lookup(dir, "..").map(drop), Err(libc::ESTALE));
}

#[test]
fn a_forgotten_file_that_was_removed_is_stale_and_its_successor_another() {
    let Some(mut guest) = guest() else { return };
    let first = ids(&mut guest);
    for ((id, _), file) in first.iter().zip(ALL) {
        guest.forget(*id, 1);
        if file == "dir" { fs::remove_dir(guest.path(file)) } else { fs::remove_file(guest.path(file)) }.unwrap();
        assert_eq!(guest.lookup(*id, ".").map(drop), Err(libc::ESTALE), "{file}");
        assert_eq!(guest.lookup(*id, "..").map(drop), Err(libc::ESTALE), "{file}");
    }
    // Most likely the inode numbers are used again.
    for file in ALL {
        fs::write(guest.path(file), "").unwrap();
    }
    let second = ids(&mut guest);
    assert!(second.iter().all(|(id, _)| first.iter().all(|(old, _)| old != id)), "{first:?} {second:?}");
}

#[test]
fn an_id_that_was_never_given_out_leads_nowhere() {
    let mut guest = Guest::new();
    let known = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap().0.nodeid;
    for id in [0, 2, known - 1, known + 1, known + 64, u64::MAX] {
        for name in [".", ".."] {
            assert_eq!(guest.lookup(id, name).map(drop), Err(libc::ESTALE), "{id} {name}");
        }
    }
}

#[test]
fn without_handles_a_forgotten_file_is_found_again_by_name_only() {
    let mut guest = Guest::with(|config| config.inode_handles = InodeHandles::Never);
    fs::write(guest.path("a"), "").unwrap();
    let first = guest.lookup(ROOT, "a").unwrap();
    guest.forget(first.nodeid, 1);
    assert_eq!(guest.lookup(first.nodeid, ".").map(drop), Err(libc::ESTALE));
    let again = guest.lookup(ROOT, "a").unwrap();
    let known_again = fs::metadata(guest.path("a")).unwrap().created().is_ok();
    assert_eq!((again.nodeid, again.generation) == (first.nodeid, first.generation), known_again);
    // Another file under the same name, most likely with the same inode number, is another.
    guest.forget(again.nodeid, 1);
    fs::remove_file(guest.path("a")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(guest.path("a"), "").unwrap();
    assert_ne!(guest.node("a"), first.nodeid);
}

#[test]
fn thousands_of_files_keep_their_ids() {
    let mut guest = Guest::new();
    let names: Vec<String> = (0..2000).map(|index| format!("f{index}")).collect();
    for name in &names {
        fs::File::create(guest.path(name)).unwrap();
    }
    let ids: Vec<u64> = names.iter().map(|name| guest.node(name)).collect();
    guest.request(opcode::DESTROY, ROOT, &[]).unwrap();
    guest.init(ALL_FLAGS).unwrap();
    for (name, id) in names.iter().zip(&ids).rev() {
        let found = if has_handles() { guest.lookup(*id, ".").unwrap().nodeid } else { guest.node(name) };
        assert_eq!(found, *id, "{name}");
    }
}

#[test]
fn a_guest_may_know_more_files_than_the_process_may_open() {
    let budget = DescriptorBudget::new(16);
    let mut guest = Guest::with_budget(|_| {}, budget.clone());
    guest.init(ALL_FLAGS).unwrap();
    if !has_handles() {
        return;
    }
    let nodes: Vec<u64> = (0..300)
        .map(|index| {
            fs::write(guest.path(format!("f{index}")), index.to_string()).unwrap();
            guest.node(&format!("f{index}"))
        })
        .collect();
    assert!(budget.left() >= 8, "nodes take no more than half");
    for (index, node) in nodes.iter().enumerate() {
        assert_eq!(guest.node(&format!("f{index}")), *node);
        let handle = guest.open(*node, libc::O_RDONLY).unwrap();
        assert_eq!(guest.read(*node, handle, 0, 10).unwrap(), index.to_string().as_bytes());
        guest.release(*node, handle).unwrap();
    }
    // Open files get what nodes can do without.
    for node in nodes.iter().take(15) {
        guest.open(*node, libc::O_RDONLY).unwrap();
    }
    assert_eq!(guest.open(nodes[20], libc::O_RDONLY).map(drop), Err(libc::ENFILE));
    guest.getattr(nodes[20]).unwrap();
    guest.device.reset();
    assert_eq!(budget.left(), 15, "all but the root's");
}

#[test]
fn a_file_whose_number_is_used_again_while_the_guest_still_knows_the_old_one_is_told_apart() {
    // One descriptor: nodes have none of their own, so nothing keeps the host from using the number again.
    let mut guest = Guest::with_budget(|_| {}, DescriptorBudget::new(2));
    guest.init(ALL_FLAGS).unwrap();
    if !has_handles() {
        return;
    }
    for round in 0..20 {
        fs::write(guest.path("a"), "old").unwrap();
        let old = guest.lookup(ROOT, "a").unwrap();
        fs::remove_file(guest.path("a")).unwrap();
        fs::write(guest.path("a"), "new").unwrap();
        let new = guest.lookup(ROOT, "a").unwrap();
        assert_ne!(new.nodeid, old.nodeid, "round {round}");
        assert_eq!(guest.getattr(old.nodeid).map(drop), Err(libc::ESTALE));
        assert_eq!(guest.getattr(new.nodeid).unwrap().attr.size, 3);
        fs::remove_file(guest.path("a")).unwrap();
    }
}
