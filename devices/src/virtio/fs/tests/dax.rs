//! The DAX window: what a guest maps into it, and what it must not.

use std::fs;
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{
    CopyFileRangeIn, FUSE_ATTR_DAX, FallocateIn, Opcode, ReadIn, SetattrIn, WriteIn, WriteOut,
};
use fuse_backend_rs::abi::virtio_fs::{RemovemappingIn, RemovemappingOne, SetupmappingIn};
use vm_memory::{ByteValued, GuestAddress};

use super::harness::{ALL_FLAGS, Answer, Guest, ROOT, check, message, object};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::constants::{DAX_RANGE, LARGE_RANGE, MAX_DAX_MAPPINGS, init_flag, opcode};
use crate::virtio::fs::dax_window::DaxWindow;
use crate::virtio::fs::passthrough::DescriptorBudget;
use crate::virtio::fs::{FsConfig, FsDevice, FsError, Tag};
use crate::virtio::test_support::{DESC_F_WRITE, RawDescriptor, Segment, readable, writable};

const READ: u64 = 2;
const WRITE: u64 = 1;
const PAGE: u64 = 4096;
const NO_HANDLE: u64 = u64::MAX;
/// Where the window is in the guest.
const BASE: u64 = 1 << 32;
const WINDOW: u64 = 2 * DAX_RANGE;

fn guest() -> Guest {
    Guest::with(|config| config.dax_window = WINDOW)
}

fn map(guest: &mut Guest, node: u64, foffset: u64, len: u64, flags: u64, moffset: u64) -> Result<(), i32> {
    map_handle(guest, node, SetupmappingIn { fh: NO_HANDLE, foffset, len, flags, moffset })
}

fn map_handle(guest: &mut Guest, node: u64, request: SetupmappingIn) -> Result<(), i32> {
    guest.request(opcode::SETUPMAPPING, node, request.as_slice()).map(|body| assert!(body.is_empty()))
}

fn unmap(guest: &mut Guest, ranges: &[(u64, u64)]) -> Answer {
    let count = RemovemappingIn { count: ranges.len() as u32 };
    let ranges =
        ranges.iter().flat_map(|(moffset, len)| RemovemappingOne { moffset: *moffset, len: *len }.as_slice().to_vec());
    let ranges: Vec<u8> = ranges.collect();
    guest.request(opcode::REMOVEMAPPING, ROOT, &message(&[count.as_slice(), &ranges]))
}

/// What the guest would find in the window, read the way the server may: by a system call that fails where there is
/// nothing.
fn peek(guest: &Guest, offset: u64, len: usize) -> Option<Vec<u8>> {
    let window = guest.device.shared_memory().unwrap();
    let from = libc::iovec { iov_base: window.host_address().wrapping_add(offset as usize).cast(), iov_len: len };
    let mut data = vec![0; len];
    let to = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: len };
    // SAFETY: `to` is a buffer of this length; of `from` the kernel checks every page.
    let done = unsafe { libc::process_vm_readv(libc::getpid(), &raw const to, 1, &raw const from, 1, 0) };
    (done == len as isize).then_some(data)
}

/// The same for a store.
fn poke(guest: &Guest, offset: u64, data: &[u8]) -> bool {
    let window = guest.device.shared_memory().unwrap();
    let to = libc::iovec { iov_base: window.host_address().wrapping_add(offset as usize).cast(), iov_len: data.len() };
    let from = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: as above; the files behind the window are this test's.
    let done = unsafe { libc::process_vm_writev(libc::getpid(), &raw const from, 1, &raw const to, 1, 0) };
    done == data.len() as isize
}

/// A file of two pages, `a` and `b` repeated.
fn two_pages(guest: &mut Guest, file: &str) -> u64 {
    fs::write(guest.path(file), [[b'a'; PAGE as usize], [b'b'; PAGE as usize]].concat()).unwrap();
    guest.node(file)
}

#[test]
fn a_mapped_file_is_in_the_window_and_stores_reach_it() {
    let mut guest = guest();
    let node = two_pages(&mut guest, "f");
    map(&mut guest, node, 0, DAX_RANGE, READ | WRITE, DAX_RANGE).unwrap();
    assert_eq!(peek(&guest, DAX_RANGE + PAGE - 1, 2).unwrap(), b"ab");
    assert!(poke(&guest, DAX_RANGE + PAGE, b"guest"));
    assert_eq!(&fs::read(guest.path("f")).unwrap()[PAGE as usize..][..6], b"guestb");
    let mut file = fs::read(guest.path("f")).unwrap();
    file[0] = b'h';
    let host = fs::OpenOptions::new().write(true).open(guest.path("f")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&host, b"host", 0).unwrap();
    assert_eq!(peek(&guest, DAX_RANGE, 4).unwrap(), b"host");
    assert_eq!(peek(&guest, 0, 1), None, "nothing is mapped there");
}

#[test]
fn a_mapping_to_read_cannot_be_written_until_it_is_replaced() {
    let mut guest = guest();
    let node = two_pages(&mut guest, "f");
    map(&mut guest, node, PAGE, PAGE, READ, 0).unwrap();
    assert_eq!(peek(&guest, 0, 1).unwrap(), b"b");
    assert!(!poke(&guest, 0, b"x"));
    map(&mut guest, node, PAGE, PAGE, READ | WRITE, 0).unwrap();
    assert!(poke(&guest, 0, b"x"));
}

#[test]
fn removing_takes_pages_back_and_leaves_their_neighbours() {
    let mut guest = guest();
    let node = two_pages(&mut guest, "f");
    for at in [0, 2 * PAGE, 4 * PAGE] {
        map(&mut guest, node, 0, 2 * PAGE, READ, at).unwrap();
    }
    unmap(&mut guest, &[(PAGE, 2 * PAGE), (5 * PAGE, PAGE)]).unwrap();
    let seen = [0, 1, 2, 3, 4, 5].map(|page| peek(&guest, page * PAGE, 1).map(|byte| byte[0]));
    assert_eq!(seen, [Some(b'a'), None, None, Some(b'b'), Some(b'a'), None]);
    unmap(&mut guest, &[(0, WINDOW)]).unwrap();
    unmap(&mut guest, &[]).unwrap();
    assert!([0, 3, 4].iter().all(|page| peek(&guest, page * PAGE, 1).is_none()));
}

#[test]
fn every_bad_range_is_refused_and_changes_nothing() {
    let mut guest = guest();
    let node = two_pages(&mut guest, "f");
    map(&mut guest, node, 0, PAGE, READ, 0).unwrap();
    for (foffset, len, moffset) in [
        (0, 0, 0),
        (0, 1, 0),
        (0, PAGE, 1),
        (1, PAGE, 0),
        (0, WINDOW + PAGE, 0),
        (0, PAGE, WINDOW),
        (0, 2 * PAGE, WINDOW - PAGE),
        (0, PAGE, u64::MAX - PAGE + 1),
        (0, u64::MAX - PAGE + 1, PAGE),
        (u64::MAX - PAGE + 1, PAGE, 0),
        (1 << 63, PAGE, 0),
        ((1 << 63) - PAGE, 2 * PAGE, 0),
    ] {
        let result = map(&mut guest, node, foffset, len, READ, moffset);
        assert_eq!(result, Err(libc::EINVAL), "{foffset:#x} {len:#x} {moffset:#x}");
    }
    for range in
        [(0, 0), (0, 1), (1, PAGE), (0, WINDOW + PAGE), (WINDOW, PAGE), (u64::MAX - PAGE + 1, PAGE), (0, u64::MAX)]
    {
        // The good one beside it is left alone too.
        assert_eq!(unmap(&mut guest, &[(0, PAGE), range]), Err(libc::EINVAL), "{range:x?}");
    }
    assert_eq!(peek(&guest, 0, 1).unwrap(), b"a");
    guest.assert_alive();
}

#[test]
fn every_bad_flag_node_and_handle_is_refused() {
    let mut guest = guest();
    let node = two_pages(&mut guest, "f");
    for flags in [0, WRITE, 4 | READ, u64::MAX] {
        assert_eq!(map(&mut guest, node, 0, PAGE, flags, 0), Err(libc::EINVAL), "{flags:#x}");
    }
    assert_eq!(map(&mut guest, ROOT, 0, PAGE, READ, 0), Err(libc::EINVAL), "a directory");
    assert!(map(&mut guest, 12345, 0, PAGE, READ, 0).is_err(), "no such node");
    std::os::unix::fs::symlink("f", guest.path("link")).unwrap();
    let link = guest.node("link");
    assert_eq!(map(&mut guest, link, 0, PAGE, READ, 0), Err(libc::EINVAL), "a symbolic link");
    let with = |fh, flags| SetupmappingIn { fh, foffset: 0, len: PAGE, flags, moffset: 0 };
    let reading = guest.open(node, libc::O_RDONLY).unwrap();
    let writing = guest.open(node, libc::O_WRONLY).unwrap();
    let both = guest.open(node, libc::O_RDWR).unwrap();
    let dir = guest.opendir(ROOT).unwrap();
    for (node, fh, flags, expected) in [
        (node, 0, READ, Err(libc::EBADF)),
        (node, 9999, READ, Err(libc::EBADF)),
        (node, dir, READ, Err(libc::EBADF)),
        (ROOT, dir, READ, Err(libc::EINVAL)),
        (node, reading, READ | WRITE, Err(libc::EACCES)),
        (node, writing, READ | WRITE, Err(libc::EACCES)),
        (node, writing, READ, Err(libc::EACCES)),
        (node, reading, READ, Ok(())),
        (node, both, READ | WRITE, Ok(())),
    ] {
        assert_eq!(map_handle(&mut guest, node, with(fh, flags)), expected, "handle {fh}, flags {flags}");
    }
    // The mapping outlives the handle.
    guest.release(node, both).unwrap();
    assert!(poke(&guest, 0, b"x"));
    guest.assert_alive();
}

#[test]
fn requests_that_are_cut_short_or_miscounted_are_refused() {
    let mut guest = guest();
    let node = two_pages(&mut guest, "f");
    assert_eq!(guest.request(opcode::SETUPMAPPING, node, &[0; 39]), Err(libc::EIO));
    assert_eq!(guest.request(opcode::REMOVEMAPPING, node, &[0; 3]), Err(libc::EIO));
    let one = RemovemappingOne { moffset: 0, len: PAGE };
    for count in [0, 2, u32::MAX] {
        let body = message(&[RemovemappingIn { count }.as_slice(), one.as_slice()]);
        assert_eq!(guest.request(opcode::REMOVEMAPPING, node, &body), Err(libc::EIO), "{count}");
    }
    guest.assert_alive();
}

#[test]
fn a_read_only_share_is_mapped_to_read_only() {
    let mut guest = Guest::with(|config| {
        config.dax_window = WINDOW;
        config.read_only = true;
    });
    let node = two_pages(&mut guest, "f");
    assert_eq!(map(&mut guest, node, 0, PAGE, READ | WRITE, 0), Err(libc::EROFS));
    map(&mut guest, node, 0, PAGE, READ, 0).unwrap();
    assert!(!poke(&guest, 0, b"x"));
}

#[test]
fn without_a_window_or_without_agreement_there_are_no_mappings() {
    let mut guest = Guest::new();
    assert!(guest.device.shared_memory().is_none());
    let node = two_pages(&mut guest, "f");
    assert_eq!(map(&mut guest, node, 0, PAGE, READ, 0), Err(libc::ENOSYS));
    assert_eq!(unmap(&mut guest, &[(0, PAGE)]), Err(libc::ENOSYS));
    let mut guest = Guest::without_session(|config| config.dax_window = WINDOW);
    let reply = guest.init(ALL_FLAGS & !init_flag::MAP_ALIGNMENT).unwrap();
    assert_eq!(reply.map_alignment, 0);
    assert_eq!(map(&mut guest, ROOT, 0, PAGE, READ, 0), Err(libc::ENOSYS));
    let reply = guest.init(ALL_FLAGS).unwrap();
    assert_eq!(reply.map_alignment, 12);
}

#[test]
fn a_new_session_destroy_and_a_reset_empty_the_window() {
    let mut guest = guest();
    for end in ["init", "destroy", "reset"] {
        let node = two_pages(&mut guest, "f");
        map(&mut guest, node, 0, PAGE, READ, 0).unwrap();
        assert!(peek(&guest, 0, 1).is_some());
        match end {
            "init" => drop(guest.init(ALL_FLAGS).unwrap()),
            "destroy" => drop(guest.request(opcode::DESTROY, 0, &[]).unwrap()),
            _ => guest.device.reset(),
        }
        assert_eq!(peek(&guest, 0, 1), None, "{end}");
        if end == "destroy" {
            guest.init(ALL_FLAGS).unwrap();
        }
    }
}

#[test]
fn a_file_that_is_cut_short_is_missed_covered_with_zeros_and_comes_back() {
    let mut guest = guest();
    let node = two_pages(&mut guest, "f");
    map(&mut guest, node, 0, 2 * PAGE, READ | WRITE, 0).unwrap();
    let window = guest.device.shared_memory().unwrap();
    assert_eq!(window.cover_missing().unwrap(), 0, "all is there");
    let host = fs::OpenOptions::new().write(true).open(guest.path("f")).unwrap();
    host.set_len(PAGE).unwrap();
    assert_eq!(peek(&guest, PAGE, 1), None);
    assert_eq!(window.cover_missing().unwrap(), PAGE);
    assert_eq!((peek(&guest, 0, 1).unwrap(), peek(&guest, PAGE, 1).unwrap()), (vec![b'a'], vec![0]));
    assert_eq!(window.cover_missing().unwrap(), 0);
    host.set_len(2 * PAGE).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&host, b"new", PAGE).unwrap();
    // Any request notices.
    guest.getattr(ROOT).unwrap();
    assert_eq!(peek(&guest, PAGE, 3).unwrap(), b"new");
    assert!(poke(&guest, PAGE, b"N"));
    assert_eq!(fs::read(guest.path("f")).unwrap()[PAGE as usize], b'N');
}

/// Waits until the first pages of the window have these protections.
fn await_protections(guest: &Guest, wanted: [&str; 2]) {
    let address = guest.device.shared_memory().unwrap().host_address().addr();
    let protection = |page: u64| {
        let at = address + (page * PAGE) as usize;
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| {
            let (range, _) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            (usize::from_str_radix(start, 16).unwrap()..usize::from_str_radix(end, 16).unwrap()).contains(&at)
        });
        line.unwrap().split(' ').nth(1).unwrap().to_owned()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while [protection(0), protection(1)] != wanted {
        assert!(Instant::now() < deadline, "{wanted:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A file of one page, two of which are mapped at the start of the window, and the second was found missing.
fn one_page_of_two(guest: &mut Guest) -> (u64, fs::File) {
    fs::write(guest.path("f"), [b'a'; PAGE as usize]).unwrap();
    let node = guest.node("f");
    map(guest, node, 0, 2 * PAGE, READ | WRITE, 0).unwrap();
    await_protections(guest, ["rw-s", "---p"]);
    (node, fs::OpenOptions::new().write(true).open(guest.path("f")).unwrap())
}

#[test]
fn pages_that_a_file_has_lost_are_soon_reserved_ones_until_it_grows_again() {
    let mut guest = guest();
    let node = two_pages(&mut guest, "f");
    map(&mut guest, node, 0, 2 * PAGE, READ | WRITE, 0).unwrap();
    let host = fs::OpenOptions::new().write(true).open(guest.path("f")).unwrap();
    host.set_len(PAGE).unwrap();
    await_protections(&guest, ["rw-s", "---p"]);
    host.set_len(2 * PAGE).unwrap();
    await_protections(&guest, ["rw-s", "rw-s"]);
}

#[test]
fn pages_that_a_file_never_had_are_soon_reserved_ones_too() {
    let mut guest = guest();
    let (node, host) = one_page_of_two(&mut guest);
    // None of it is there: the guest does not know yet how short the file is.
    host.set_len(0).unwrap();
    map(&mut guest, node, 0, 2 * PAGE, READ | WRITE, 0).unwrap();
    await_protections(&guest, ["---p", "---p"]);
    // Longer and shorter again before anybody looks.
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    guest.write(node, fh, PAGE, b"x").unwrap();
    host.set_len(PAGE).unwrap();
    await_protections(&guest, ["rw-s", "---p"]);
}

#[test]
fn what_the_guest_adds_to_a_file_is_in_the_window_with_the_answer() {
    let mut guest = guest();
    fs::write(guest.path("other"), [b'o'; 2 * PAGE as usize]).unwrap();
    let other = guest.node("other");
    let from = guest.open(other, libc::O_RDONLY).unwrap();
    let (node, host) = one_page_of_two(&mut guest);
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    let allocate = |length| FallocateIn { fh, offset: 0, length, mode: 0, padding: 0 }.as_slice().to_vec();
    let copy =
        CopyFileRangeIn { fh_in: from, fh_out: fh, nodeid_out: node, len: 2 * PAGE, ..CopyFileRangeIn::default() };
    let write = message(&[WriteIn { fh, offset: PAGE, size: 1, ..WriteIn::default() }.as_slice(), b"w"]);
    let longer = SetattrIn { valid: 1 << 3, size: 2 * PAGE, ..SetattrIn::default() };
    for (code, about, body) in [
        (Opcode::Write as u32, node, write),
        (Opcode::Setattr as u32, node, longer.as_slice().to_vec()),
        (opcode::FALLOCATE, node, allocate(2 * PAGE)),
        (opcode::FALLOCATE, node, allocate(LARGE_RANGE)),
        (opcode::COPY_FILE_RANGE, other, copy.as_slice().to_vec()),
    ] {
        guest.request(code, about, &body).unwrap();
        assert!(poke(&guest, PAGE, b"x"), "opcode {code}");
        host.set_len(PAGE).unwrap();
        await_protections(&guest, ["rw-s", "---p"]);
    }
}

#[test]
fn vcpus_that_touch_what_the_host_has_added_all_hear_that_it_is_there() {
    let mut guest = guest();
    let (_, host) = one_page_of_two(&mut guest);
    let window = guest.device.shared_memory().unwrap();
    host.set_len(2 * PAGE).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                assert!(window.restore_grown());
                // Once: what else is missing is missing. Other tests' windows may have something that comes back.
                let deadline = Instant::now() + Duration::from_secs(20);
                while window.restore_grown() {
                    assert!(Instant::now() < deadline);
                }
            });
        }
    });
    assert!(poke(&guest, PAGE, b"x"));
}

#[test]
fn mappings_are_bounded_in_number_and_cost_a_descriptor_each() {
    const LARGE: u64 = 32 * DAX_RANGE;
    let mut guest = Guest::with(|config| config.dax_window = LARGE);
    let node = two_pages(&mut guest, "f");
    // With a gap behind each.
    for index in 0..MAX_DAX_MAPPINGS as u64 {
        map(&mut guest, node, 0, PAGE, READ, index * 2 * PAGE).unwrap();
    }
    assert_eq!(map(&mut guest, node, 0, PAGE, READ, LARGE - PAGE), Err(libc::ENOMEM));
    map(&mut guest, node, PAGE, PAGE, READ, 2 * PAGE).expect("replacing one adds none");
    unmap(&mut guest, &[(0, 2 * PAGE)]).unwrap();
    map(&mut guest, node, 0, 2 * PAGE, READ, 0).unwrap();
    unmap(&mut guest, &[(0, LARGE)]).unwrap();
    map(&mut guest, node, 0, 4 * PAGE, READ, 0).unwrap();
    for index in 1..MAX_DAX_MAPPINGS as u64 {
        map(&mut guest, node, 0, PAGE, READ, (index + 2) * 2 * PAGE).unwrap();
    }
    assert_eq!(unmap(&mut guest, &[(PAGE, PAGE)]), Err(libc::ENOMEM), "it would make two of one");
    unmap(&mut guest, &[(0, PAGE)]).unwrap();

    let mut guest = Guest::with_budget(|config| config.dax_window = WINDOW, DescriptorBudget::new(8));
    guest.init(ALL_FLAGS).unwrap();
    let node = two_pages(&mut guest, "f");
    let results: Vec<_> = (0..9).map(|page| map(&mut guest, node, 0, PAGE, READ, page * PAGE)).collect();
    assert_eq!(results.last(), Some(&Err(libc::ENFILE)), "{results:?}");
}

#[test]
fn a_window_costs_address_space_only_and_its_size_is_checked() {
    let of = |dax_window| {
        let dir = tempfile::tempdir().unwrap();
        FsDevice::new(FsConfig { dax_window, ..FsConfig::new(Tag::new("t").unwrap(), dir.path()) }).map(drop)
    };
    of(8 << 30).unwrap();
    for size in [PAGE, DAX_RANGE + PAGE, (8 << 30) + DAX_RANGE, u64::MAX] {
        assert!(matches!(of(size), Err(FsError::DaxWindowSize { .. })), "{size:#x}");
    }
    assert!(DaxWindow::new(u64::MAX).is_err());
}

#[test]
fn large_files_are_announced_for_dax_and_small_ones_are_not() {
    let mut guest = guest();
    fs::write(guest.path("small"), "x").unwrap();
    fs::File::create(guest.path("large")).unwrap().set_len(1 << 20).unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    for (file, flag) in [("small", 0), ("large", FUSE_ATTR_DAX), ("dir", 0)] {
        let entry = guest.lookup(ROOT, file).unwrap();
        assert_eq!(entry.attr.flags & FUSE_ATTR_DAX, flag, "{file}");
        assert_eq!(guest.getattr(entry.nodeid).unwrap().attr.flags & FUSE_ATTR_DAX, flag, "{file}");
    }
    guest.init(ALL_FLAGS & !init_flag::HAS_INODE_DAX).unwrap();
    assert_eq!(guest.lookup(ROOT, "large").unwrap().attr.flags, 0);
}

fn in_window(offset: u64, len: u32, flags: u16) -> Segment {
    Segment::Raw(RawDescriptor { address: BASE + offset, len, flags, next: 0 })
}

/// A guest that may name the window's addresses in descriptors, with the two-page file mapped at its start.
fn guest_with_buffers() -> (Guest, u64) {
    let mut guest = guest();
    guest.device.reset();
    guest.driver.reset_queues();
    let window = guest.device.shared_memory().unwrap();
    guest.driver.share_memory(window.as_ref(), GuestAddress(BASE));
    let activation = guest.driver.activation(guest.device.device_features());
    guest.device.activate(activation).unwrap();
    guest.init(ALL_FLAGS).unwrap();
    let node = two_pages(&mut guest, "f");
    map(&mut guest, node, 0, 2 * PAGE, READ | WRITE, 0).unwrap();
    (guest, node)
}

#[test]
fn data_of_reads_and_writes_may_be_in_the_window() {
    let (mut guest, _) = guest_with_buffers();
    fs::write(guest.path("other"), [b'o'; 100]).unwrap();
    let other = guest.node("other");
    let fh = guest.open(other, libc::O_RDWR).unwrap();
    let read = ReadIn { fh, size: 100, ..ReadIn::default() };
    let header = guest.header(Opcode::Read as u32, other, size_of::<ReadIn>());
    let segments =
        [readable(header.as_slice()), readable(read.as_slice()), writable(16), in_window(PAGE, 100, DESC_F_WRITE)];
    let reply = guest.raw(1, &segments);
    assert_eq!(reply.len, 116);
    assert_eq!(&fs::read(guest.path("f")).unwrap()[PAGE as usize..][..101], [&[b'o'; 100][..], b"b"].concat());

    let write = WriteIn { fh, size: 200, ..WriteIn::default() };
    let header = guest.header(Opcode::Write as u32, other, size_of::<WriteIn>() + 200);
    let segments = [readable(header.as_slice()), readable(write.as_slice()), in_window(0, 200, 0), writable(24)];
    let reply = guest.raw(1, &segments);
    assert_eq!(object::<WriteOut>(&check(&reply, header.unique).unwrap()).size, 200);
    assert_eq!(fs::read(guest.path("other")).unwrap(), [b'a'; 200]);
    guest.assert_alive();
}

#[test]
fn data_in_memory_that_is_gone_is_a_failed_request() {
    let (mut guest, node) = guest_with_buffers();
    fs::write(guest.path("other"), [b'o'; 100]).unwrap();
    let other = guest.node("other");
    let fh = guest.open(other, libc::O_RDWR).unwrap();
    let host = fs::OpenOptions::new().write(true).open(guest.path("f")).unwrap();
    host.set_len(0).unwrap();
    for offset in [0, DAX_RANGE] {
        let read = ReadIn { fh, size: 100, ..ReadIn::default() };
        let header = guest.header(Opcode::Read as u32, other, size_of::<ReadIn>());
        let segments = [
            readable(header.as_slice()),
            readable(read.as_slice()),
            writable(16),
            in_window(offset, 100, DESC_F_WRITE),
        ];
        let reply = guest.raw(1, &segments);
        assert_eq!(check(&reply, header.unique), Err(libc::EFAULT), "{offset:#x}");
        let write = WriteIn { fh, size: 100, ..WriteIn::default() };
        let header = guest.header(Opcode::Write as u32, other, size_of::<WriteIn>() + 100);
        let segments =
            [readable(header.as_slice()), readable(write.as_slice()), in_window(offset, 100, 0), writable(24)];
        let reply = guest.raw(1, &segments);
        assert_eq!(check(&reply, header.unique), Err(libc::EFAULT), "{offset:#x}");
    }
    assert_eq!(guest.getattr(node).unwrap().attr.size, 0);
    guest.assert_alive();
}

#[test]
fn headers_and_other_requests_in_the_window_are_refused_though_there_is_memory() {
    let (mut guest, node) = guest_with_buffers();
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    // The body of a WRITE.
    let header = guest.header(Opcode::Write as u32, node, size_of::<WriteIn>() + 8);
    let reply = guest.raw(1, &[readable(header.as_slice()), in_window(0, 48, 0), writable(24)]);
    assert_eq!(check(&reply, header.unique), Err(libc::EIO));
    // A name.
    let header = guest.header(Opcode::Lookup as u32, ROOT, 8);
    let reply = guest.raw(1, &[readable(header.as_slice()), in_window(0, 8, 0), writable(16), writable(128)]);
    assert_eq!(check(&reply, header.unique), Err(libc::EIO));
    // The FUSE header.
    let reply = guest.raw(1, &[in_window(0, 40, 0), writable(16)]);
    assert_eq!(check(&reply, 0), Err(libc::EIO));
    assert_eq!(guest.read(node, fh, 0, 1).unwrap(), b"a");
    guest.assert_alive();
}

#[test]
fn a_reply_header_in_the_window_stops_the_device_not_the_process() {
    let (mut guest, node) = guest_with_buffers();
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    let read = ReadIn { fh, size: 8, ..ReadIn::default() };
    let header = guest.header(Opcode::Read as u32, node, size_of::<ReadIn>());
    let segments = [readable(header.as_slice()), readable(read.as_slice()), in_window(0, 24, DESC_F_WRITE)];
    guest.driver.queue(1).add(&segments);
    guest.driver.queue(1).kick();
    let deadline = Instant::now() + Duration::from_secs(20);
    while guest.driver.interrupt().failures().is_empty() {
        assert!(Instant::now() < deadline, "the device goes on");
        std::thread::yield_now();
    }
    assert_eq!(&fs::read(guest.path("f")).unwrap()[..2], b"aa");
}
