//! File locks through to the host, where the share has them.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{FileLock, FlushIn, InterruptIn, LkIn, LkOut, Opcode, OpenIn, OpenOut, ReleaseIn};
use vm_memory::ByteValued;

use super::harness::{ALL_FLAGS, Answer, Guest, ROOT, Sent, object};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::constants::{init_flag, opcode};
use crate::virtio::test_support::readable;

const READ: u32 = libc::F_RDLCK as u32;
const WRITE: u32 = libc::F_WRLCK as u32;
const UNLOCK: u32 = libc::F_UNLCK as u32;
const END: u64 = i64::MAX as u64;

/// A guest with a file that is open, its node and handle.
fn guest() -> (Guest, u64, u64) {
    let mut guest = Guest::with(|config| config.posix_locks = true);
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    (guest, entry.nodeid, open.fh)
}

fn lock(fh: u64, owner: u64, kind: u32, start: u64, end: u64) -> LkIn {
    LkIn { fh, owner, lk: FileLock { start, end, type_: kind, pid: 77 }, ..LkIn::default() }
}

fn flock(fh: u64, kind: u32) -> LkIn {
    LkIn { lk_flags: 1, ..lock(fh, fh, kind, 0, END) }
}

fn set(guest: &mut Guest, node: u64, request: LkIn) -> Answer {
    guest.request(opcode::SETLK, node, request.as_slice())
}

/// What the lock asked for would run into: kind and range.
fn test(guest: &mut Guest, node: u64, request: LkIn) -> Result<(u32, u64, u64), i32> {
    let reply = guest.request(opcode::GETLK, node, request.as_slice())?;
    let LkOut { lk } = object(&reply);
    Ok((lk.type_, lk.start, lk.end))
}

/// An open file of a process on the host, and what locking all of it comes to.
fn host_lock(file: &File, kind: i32) -> bool {
    let range = libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: the kernel reads a `struct flock`.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &range) == 0 }
}

fn host_file(guest: &Guest) -> File {
    fs::OpenOptions::new().read(true).write(true).open(guest.path("a")).unwrap()
}

/// A request is served while another waits.
fn getattr_beside(guest: &mut Guest, waiting: &Sent, node: u64) {
    let getattr = guest.send(Opcode::Getattr as u32, node, &[0; 16]);
    let (unique, answer) = guest.next_reply(&[waiting, &getattr]);
    assert_eq!(unique, getattr.unique);
    answer.unwrap();
}

/// Opens the file once more and locks it with `flock` while another request waits.
fn open_locked(guest: &mut Guest, node: u64, waiting: &Sent) -> u64 {
    let open = OpenIn { flags: libc::O_RDWR as u32, fuse_flags: 0 };
    let open = guest.send(Opcode::Open as u32, node, open.as_slice());
    let fh = object::<OpenOut>(&guest.next_reply(&[waiting, &open]).1.unwrap()).fh;
    let locked = guest.send(opcode::SETLK, node, flock(fh, WRITE).as_slice());
    assert_eq!(guest.next_reply(&[waiting, &locked]), (locked.unique, Ok(vec![])));
    fh
}

#[test]
fn two_owners_in_the_guest_exclude_each_other() {
    let (mut guest, node, fh) = guest();
    set(&mut guest, node, lock(fh, 1, WRITE, 10, 19)).unwrap();
    assert_eq!(set(&mut guest, node, lock(fh, 2, READ, 19, 30)), Err(libc::EAGAIN));
    set(&mut guest, node, lock(fh, 2, READ, 20, END)).unwrap();
    set(&mut guest, node, lock(fh, 1, WRITE, 0, 12)).unwrap();
    assert_eq!(test(&mut guest, node, lock(fh, 3, READ, 0, END)), Ok((WRITE, 0, 19)));
    assert_eq!(test(&mut guest, node, lock(fh, 3, WRITE, 20, END)), Ok((READ, 20, END)));
    assert_eq!(test(&mut guest, node, lock(fh, 3, READ, 20, END)).unwrap().0, UNLOCK);
    assert_eq!(test(&mut guest, node, lock(fh, 1, WRITE, 0, 19)).unwrap().0, UNLOCK, "its own locks exclude nobody");
    set(&mut guest, node, lock(fh, 1, UNLOCK, 0, END)).unwrap();
    set(&mut guest, node, lock(fh, 2, WRITE, 0, END)).unwrap();
    set(&mut guest, node, lock(fh, 9, UNLOCK, 0, END)).unwrap();
}

#[test]
fn guest_and_host_exclude_each_other() {
    let (mut guest, node, fh) = guest();
    let host = host_file(&guest);
    assert!(host_lock(&host, libc::F_RDLCK));
    assert_eq!(set(&mut guest, node, lock(fh, 1, WRITE, 0, END)), Err(libc::EAGAIN));
    set(&mut guest, node, lock(fh, 1, READ, 0, END)).unwrap();
    assert!(!host_lock(&host, libc::F_WRLCK));
    assert!(host_lock(&host, libc::F_UNLCK));
    set(&mut guest, node, lock(fh, 1, WRITE, 0, END)).unwrap();
    assert!(!host_lock(&host, libc::F_RDLCK));
    // BSD locks are others.
    set(&mut guest, node, flock(fh, WRITE)).unwrap();
    // SAFETY: no memory is involved.
    let host_flock = |operation| unsafe { libc::flock(host.as_raw_fd(), operation | libc::LOCK_NB) } == 0;
    assert!(!host_flock(libc::LOCK_SH));
    let other = guest.open(node, libc::O_RDWR).unwrap();
    assert_eq!(set(&mut guest, node, flock(other, READ)), Err(libc::EAGAIN));
    set(&mut guest, node, flock(fh, READ)).unwrap();
    set(&mut guest, node, flock(other, READ)).unwrap();
    assert!(host_flock(libc::LOCK_SH));
    let release = ReleaseIn { fh, release_flags: 2, lock_owner: fh, ..ReleaseIn::default() };
    guest.request(Opcode::Release as u32, node, release.as_slice()).unwrap();
    set(&mut guest, node, flock(other, UNLOCK)).unwrap();
    assert!(host_flock(libc::LOCK_EX));
}

#[test]
fn closing_any_descriptor_gives_the_owners_locks_back() {
    let (mut guest, node, fh) = guest();
    let host = host_file(&guest);
    let other = guest.open(node, libc::O_RDONLY).unwrap();
    set(&mut guest, node, lock(fh, 1, WRITE, 0, END)).unwrap();
    let flush = |guest: &mut Guest, lock_owner| {
        let flush = FlushIn { fh: other, lock_owner, ..FlushIn::default() };
        guest.request(Opcode::Flush as u32, node, flush.as_slice()).unwrap();
    };
    flush(&mut guest, 2);
    assert!(!host_lock(&host, libc::F_WRLCK), "somebody else's flush");
    flush(&mut guest, 1);
    assert!(host_lock(&host, libc::F_WRLCK));
}

#[test]
fn closing_the_last_descriptor_gives_the_locks_of_an_open_file_description_back() {
    let (mut guest, node, fh) = guest();
    let host = host_file(&guest);
    let other = guest.open(node, libc::O_RDWR).unwrap();
    // The owner is the description; FLUSH names the process that closes a descriptor of it.
    set(&mut guest, node, lock(fh, 1000, WRITE, 0, 9)).unwrap();
    set(&mut guest, node, lock(other, 1001, READ, 10, END)).unwrap();
    let flush = FlushIn { fh, lock_owner: 1, ..FlushIn::default() };
    guest.request(Opcode::Flush as u32, node, flush.as_slice()).unwrap();
    assert!(!host_lock(&host, libc::F_RDLCK), "another descriptor may be open");
    guest.release(node, fh).unwrap();
    assert!(host_lock(&host, libc::F_RDLCK));
    assert!(!host_lock(&host, libc::F_WRLCK), "the other description's");
    guest.release(node, other).unwrap();
    assert!(host_lock(&host, libc::F_WRLCK));
}

#[test]
fn locks_of_a_process_outlive_a_handle_that_it_used_before() {
    let (mut guest, node, fh) = guest();
    let other = guest.open(node, libc::O_RDWR).unwrap();
    set(&mut guest, node, lock(fh, 1, WRITE, 0, 9)).unwrap();
    set(&mut guest, node, lock(other, 1, WRITE, 10, END)).unwrap();
    guest.release(node, fh).unwrap();
    assert_eq!(test(&mut guest, node, lock(other, 2, READ, 0, END)), Ok((WRITE, 0, END)));
}

#[test]
fn a_wait_for_a_lock_holds_nobody_up_and_ends_when_the_lock_is_given_back() {
    let (mut guest, node, fh) = guest();
    set(&mut guest, node, lock(fh, 1, WRITE, 0, END)).unwrap();
    let first = guest.send(opcode::SETLKW, node, lock(fh, 2, WRITE, 0, 9).as_slice());
    let second = guest.send(opcode::SETLKW, node, lock(fh, 3, WRITE, 10, 19).as_slice());
    // The same queue, the same file, the worker that took the waiting requests.
    let between = guest.send(Opcode::Getattr as u32, node, &[0; 16]);
    let (unique, answer) = guest.next_reply(&[&first, &second, &between]);
    assert_eq!(unique, between.unique);
    answer.unwrap();
    let unlock = guest.send(opcode::SETLK, node, lock(fh, 1, UNLOCK, 10, END).as_slice());
    let mut replies =
        vec![guest.next_reply(&[&first, &second, &unlock]), guest.next_reply(&[&first, &second, &unlock])];
    replies.sort_by_key(|(unique, _)| *unique);
    assert_eq!(replies, [(second.unique, Ok(vec![])), (unlock.unique, Ok(vec![]))]);
    let flush = FlushIn { fh, lock_owner: 1, ..FlushIn::default() };
    let flush = guest.send(Opcode::Flush as u32, node, flush.as_slice());
    let mut replies = vec![guest.next_reply(&[&first, &flush]), guest.next_reply(&[&first, &flush])];
    replies.sort_by_key(|(unique, _)| *unique);
    assert_eq!(replies, [(first.unique, Ok(vec![])), (flush.unique, Ok(vec![]))]);
    assert_eq!(test(&mut guest, node, lock(fh, 9, READ, 0, 9)), Ok((WRITE, 0, 9)), "the waiter's now");
}

#[test]
fn an_owner_that_closes_the_file_while_it_waits_loses_what_it_has_and_keeps_what_it_gets() {
    let (mut guest, node, fh) = guest();
    let other = guest.open(node, libc::O_RDWR).unwrap();
    set(&mut guest, node, lock(fh, 1, WRITE, 0, 9)).unwrap();
    set(&mut guest, node, lock(fh, 2, WRITE, 10, 19)).unwrap();
    let wait = guest.send(opcode::SETLKW, node, lock(fh, 1, WRITE, 10, 19).as_slice());
    getattr_beside(&mut guest, &wait, node);
    // Another thread of the process closes another descriptor.
    let flush = FlushIn { fh: other, lock_owner: 1, ..FlushIn::default() };
    let release = ReleaseIn { fh: other, ..ReleaseIn::default() };
    for (code, body) in [(Opcode::Flush, flush.as_slice()), (Opcode::Release, release.as_slice())] {
        let closing = guest.send(code as u32, node, body);
        assert_eq!(guest.next_reply(&[&wait, &closing]), (closing.unique, Ok(vec![])));
    }
    let free = guest.send(opcode::SETLK, node, lock(fh, 3, WRITE, 0, 9).as_slice());
    assert_eq!(guest.next_reply(&[&wait, &free]), (free.unique, Ok(vec![])), "the host knows that it is free");
    let unlock = guest.send(opcode::SETLK, node, lock(fh, 2, UNLOCK, 10, 19).as_slice());
    let mut replies = vec![guest.next_reply(&[&wait, &unlock]), guest.next_reply(&[&wait, &unlock])];
    replies.sort_by_key(|(unique, _)| *unique);
    assert_eq!(replies, [(wait.unique, Ok(vec![])), (unlock.unique, Ok(vec![]))]);
    assert_eq!(test(&mut guest, node, lock(fh, 4, READ, 10, 19)), Ok((WRITE, 10, 19)));
    let flush = FlushIn { fh, lock_owner: 1, ..FlushIn::default() };
    guest.request(Opcode::Flush as u32, node, flush.as_slice()).unwrap();
    assert_eq!(test(&mut guest, node, lock(fh, 4, READ, 10, 19)).unwrap().0, UNLOCK);
}

#[test]
fn a_lock_that_somebody_on_the_host_gives_back_is_noticed() {
    let (mut guest, node, fh) = guest();
    let host = host_file(&guest);
    assert!(host_lock(&host, libc::F_WRLCK));
    let posix = guest.send(opcode::SETLKW, node, lock(fh, 1, READ, 0, END).as_slice());
    std::thread::sleep(Duration::from_millis(50));
    getattr_beside(&mut guest, &posix, node);
    drop(host);
    assert_eq!(guest.next_reply(&[&posix]), (posix.unique, Ok(vec![])));
}

#[test]
fn an_interrupted_wait_ends_and_has_no_lock() {
    let (mut guest, node, fh) = guest();
    let host = host_file(&guest);
    assert!(host_lock(&host, libc::F_WRLCK));
    let wait = guest.send(opcode::SETLKW, node, lock(fh, 1, WRITE, 0, END).as_slice());
    let flocked = open_locked(&mut guest, node, &wait);
    let other = guest.send(opcode::SETLKW, node, flock(fh, WRITE).as_slice());
    for unique in [wait.unique + 1000, wait.unique, wait.unique] {
        let body = InterruptIn { unique };
        let header = guest.header(opcode::INTERRUPT, 0, size_of::<InterruptIn>());
        let reply = guest.raw(0, &[readable(header.as_slice()), readable(body.as_slice())]);
        assert_eq!(reply.len, 0);
    }
    assert_eq!(guest.next_reply(&[&wait, &other]), (wait.unique, Err(libc::EINTR)));
    let unlock = guest.send(opcode::SETLK, node, flock(flocked, UNLOCK).as_slice());
    let mut replies = vec![guest.next_reply(&[&unlock, &other]), guest.next_reply(&[&unlock, &other])];
    replies.sort_by_key(|(unique, _)| *unique);
    assert_eq!(replies, [(other.unique, Ok(vec![])), (unlock.unique, Ok(vec![]))]);
    drop(host);
    assert!(host_lock(&host_file(&guest), libc::F_WRLCK), "the interrupted one got nothing");
}

#[test]
fn a_new_session_ends_all_waits_and_locks() {
    let (mut guest, node, fh) = guest();
    set(&mut guest, node, lock(fh, 1, WRITE, 0, END)).unwrap();
    let wait = guest.send(opcode::SETLKW, node, lock(fh, 2, WRITE, 0, END).as_slice());
    getattr_beside(&mut guest, &wait, node);
    let destroy = guest.send(opcode::DESTROY, ROOT, &[]);
    let mut replies = vec![guest.next_reply(&[&wait, &destroy]), guest.next_reply(&[&wait, &destroy])];
    replies.sort_by_key(|(unique, _)| *unique);
    assert_eq!(replies, [(wait.unique, Err(libc::EINTR)), (destroy.unique, Ok(vec![]))]);
    assert!(host_lock(&host_file(&guest), libc::F_WRLCK));
}

#[test]
fn a_reset_while_somebody_waits_touches_nothing_afterwards() {
    let (mut guest, node, fh) = guest();
    let host = host_file(&guest);
    assert!(host_lock(&host, libc::F_WRLCK));
    let wait = guest.send(opcode::SETLKW, node, lock(fh, 1, WRITE, 0, END).as_slice());
    getattr_beside(&mut guest, &wait, node);
    guest.device.reset();
    let used = guest.driver.queue(1).device_used_idx();
    drop(host);
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(guest.driver.queue(1).device_used_idx(), used);
    assert_eq!(guest.driver.interrupt().failures(), []);
    assert!(host_lock(&host_file(&guest), libc::F_WRLCK), "and holds no lock");
}

#[test]
fn locks_that_make_no_sense_are_refused() {
    let (mut guest, node, fh) = guest();
    for bad in
        [lock(fh, 1, READ, 5, 4), lock(fh, 1, READ, 0, u64::MAX), lock(fh, 1, 3, 0, 1), lock(fh, 1, u32::MAX, 0, 1)]
    {
        for code in [opcode::GETLK, opcode::SETLK, opcode::SETLKW] {
            assert_eq!(guest.request(code, node, bad.as_slice()), Err(libc::EINVAL), "{bad:?}");
        }
    }
    for (node, fh) in [(node, 99), (ROOT, fh)] {
        for code in [opcode::GETLK, opcode::SETLK, opcode::SETLKW] {
            assert_eq!(guest.request(code, node, lock(fh, 1, READ, 0, 1).as_slice()), Err(libc::EBADF));
        }
    }
    assert_eq!(guest.request(opcode::SETLKW, node, &[0; 40]), Err(libc::EIO), "too short");
}

#[test]
fn locks_stay_in_the_guest_unless_both_sides_want_otherwise() {
    let (mut guest, node, fh) = guest();
    let locks = init_flag::POSIX_LOCKS | init_flag::FLOCK_LOCKS;
    assert_eq!(u64::from(guest.init(ALL_FLAGS).unwrap().flags) & locks, locks);
    guest.init(ALL_FLAGS & !locks).unwrap();
    assert_eq!(set(&mut guest, node, lock(fh, 1, READ, 0, 1)), Err(libc::ENOSYS));
    assert_eq!(guest.request(opcode::SETLKW, node, lock(fh, 1, READ, 0, 1).as_slice()), Err(libc::ENOSYS));
}
