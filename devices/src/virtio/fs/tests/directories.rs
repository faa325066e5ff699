//! Reading directories.

use std::collections::BTreeSet;
use std::fs;

use fuse_backend_rs::abi::fuse_abi::{Opcode, ReadIn};
use vm_memory::ByteValued;

use super::harness::{Guest, Listed, ROOT, entries};

/// One READDIR or READDIRPLUS.
fn page(guest: &mut Guest, node: u64, handle: u64, offset: u64, size: u32, plus: bool) -> Result<Vec<Listed>, i32> {
    let code = if plus { Opcode::Readdirplus } else { Opcode::Readdir };
    let request = ReadIn { fh: handle, offset, size, ..ReadIn::default() };
    let reply = guest.request_with_room(code as u32, node, request.as_slice(), size)?;
    Ok(entries(&reply, plus))
}

fn names(list: &[Listed]) -> Vec<&str> {
    list.iter().map(|listed| listed.name.as_str()).collect()
}

#[test]
fn readdirplus_gives_nodes_that_count_as_looked_up() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), "12345").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    let handle = guest.opendir(ROOT).unwrap();
    let list = page(&mut guest, ROOT, handle, 0, 4096, true).unwrap();
    assert_eq!(names(&list).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([".", "..", "dir", "file"]));
    for listed in list {
        let entry = listed.entry.unwrap();
        if listed.name.starts_with('.') {
            assert_eq!(entry.nodeid, 0, "dot and dot-dot are not looked up");
            continue;
        }
        assert_eq!(entry.attr.ino, listed.dirent.ino);
        let expected = if listed.name == "dir" { libc::DT_DIR } else { libc::DT_REG };
        assert_eq!(listed.dirent.type_, u32::from(expected));
        assert_eq!((entry.entry_valid, entry.attr_valid), (1, 1));
        assert_eq!(guest.node(&listed.name), entry.nodeid);
        guest.forget(entry.nodeid, 2);
        assert_eq!(guest.getattr(entry.nodeid).map(drop), Err(libc::ESTALE));
    }
}

#[test]
fn every_entry_is_listed_once_whatever_the_size_of_the_replies() {
    let mut guest = Guest::new();
    let expected: BTreeSet<String> = (0..200)
        .map(|index| {
            let name = format!("{index:03}{}", "x".repeat(index));
            fs::write(guest.path(&name), "").unwrap();
            name
        })
        .chain([".".to_owned(), "..".to_owned()])
        .collect();
    for (plus, sizes) in [(false, [256, 1000, 4096, 65536]), (true, [400, 1000, 4096, 65536])] {
        for size in sizes {
            let handle = guest.opendir(ROOT).unwrap();
            let (mut all, mut offset) = (Vec::new(), 0);
            loop {
                let list = page(&mut guest, ROOT, handle, offset, size, plus).unwrap();
                let Some(last) = list.last() else { break };
                offset = last.dirent.off;
                all.extend(list);
            }
            let found: BTreeSet<String> = all.iter().map(|listed| listed.name.clone()).collect();
            assert_eq!(found, expected, "size {size}, plus {plus}");
            assert_eq!(all.len(), expected.len(), "twice: size {size}, plus {plus}");
        }
    }
}

#[test]
fn a_directory_can_be_read_from_any_offset_again() {
    let mut guest = Guest::new();
    for index in 0..50 {
        fs::write(guest.path(format!("f{index}")), "").unwrap();
    }
    let handle = guest.opendir(ROOT).unwrap();
    let first = page(&mut guest, ROOT, handle, 0, 65536, false).unwrap();
    assert_eq!(first.len(), 52);
    assert!(page(&mut guest, ROOT, handle, first[51].dirent.off, 4096, false).unwrap().is_empty(), "the end");
    let middle = page(&mut guest, ROOT, handle, first[20].dirent.off, 65536, false).unwrap();
    assert_eq!(names(&middle), names(&first[21..]));
    let again = page(&mut guest, ROOT, handle, 0, 65536, false).unwrap();
    assert_eq!(names(&again), names(&first));
    // An offset that was never given out finds something or nothing, but does not break the handle.
    let _ = page(&mut guest, ROOT, handle, u64::MAX, 4096, false);
    let again = page(&mut guest, ROOT, handle, 0, 65536, false).unwrap();
    assert_eq!(names(&again), names(&first));
}

#[test]
fn rewinding_shows_what_was_made_and_removed_since() {
    let mut guest = Guest::new();
    fs::write(guest.path("old"), "").unwrap();
    let handle = guest.opendir(ROOT).unwrap();
    assert!(names(&page(&mut guest, ROOT, handle, 0, 4096, false).unwrap()).contains(&"old"));
    fs::remove_file(guest.path("old")).unwrap();
    fs::write(guest.path("new"), "").unwrap();
    let list = page(&mut guest, ROOT, handle, 0, 4096, false).unwrap();
    assert_eq!(names(&list).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([".", "..", "new"]));
}

#[test]
fn an_entry_that_vanished_since_the_host_listed_it_has_no_node_and_is_no_error() {
    let mut guest = Guest::new();
    for index in 0..20 {
        fs::write(guest.path(format!("f{index:02}")), "").unwrap();
    }
    let handle = guest.opendir(ROOT).unwrap();
    // Room for two: the others wait in the server's buffer.
    let first = page(&mut guest, ROOT, handle, 0, 400, true).unwrap();
    assert!(!first.is_empty() && first.len() < 5);
    for index in 0..20 {
        fs::remove_file(guest.path(format!("f{index:02}"))).unwrap();
    }
    let offset = first.last().unwrap().dirent.off;
    let rest = page(&mut guest, ROOT, handle, offset, 65536, true).unwrap();
    assert_eq!(first.len() + rest.len(), 22);
    assert!(rest.iter().all(|listed| listed.entry.unwrap().nodeid == 0));
}

#[test]
fn a_reply_too_small_for_one_entry_is_empty() {
    let mut guest = Guest::new();
    let handle = guest.opendir(ROOT).unwrap();
    for (size, plus) in [(0, false), (24, false), (31, false), (0, true), (159, true)] {
        assert!(page(&mut guest, ROOT, handle, 0, size, plus).unwrap().is_empty(), "size {size}");
    }
    assert_eq!(page(&mut guest, ROOT, handle, 0, 32, false).unwrap().len(), 1);
    assert_eq!(page(&mut guest, ROOT, handle, 0, 160, true).unwrap().len(), 1);
}

#[test]
fn two_handles_of_one_directory_read_on_their_own() {
    let mut guest = Guest::new();
    for index in 0..10 {
        fs::write(guest.path(format!("f{index}")), "").unwrap();
    }
    let (one, two) = (guest.opendir(ROOT).unwrap(), guest.opendir(ROOT).unwrap());
    let first = page(&mut guest, ROOT, one, 0, 100, false).unwrap();
    let all = page(&mut guest, ROOT, two, 0, 4096, false).unwrap();
    let rest = page(&mut guest, ROOT, one, first.last().unwrap().dirent.off, 4096, false).unwrap();
    assert_eq!(all.len(), 12);
    assert_eq!([names(&first), names(&rest)].concat(), names(&all));
}

#[test]
fn a_directory_is_synced_by_its_handle() {
    let mut guest = Guest::new();
    let handle = guest.opendir(ROOT).unwrap();
    let body = [handle.to_le_bytes(), [0; 8]].concat();
    assert_eq!(guest.request(Opcode::Fsyncdir as u32, ROOT, &body), Ok(vec![]));
    assert_eq!(guest.request(crate::virtio::fs::constants::opcode::SYNCFS, ROOT, &[0; 8]), Ok(vec![]));
}
