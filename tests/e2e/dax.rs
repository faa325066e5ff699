//! `--dax`: files mapped straight into the guest.

use std::fs::{self, OpenOptions};
use std::path::Path;

use tests::{Sandbox, Vmm};

/// The guest's image has Python; a share of the user's is at `/mnt/TAG`.
fn python(script: &str) -> String {
    format!("exec python3 -c '{script}'")
}

fn share(path: &Path) -> String {
    format!("{}:share", path.display())
}

#[test]
fn stores_to_a_mapped_file_are_on_the_host_and_the_hosts_are_seen_through_the_mapping() {
    let sandbox = Sandbox::new();
    let dir = sandbox.dir("share");
    let mut content = vec![b'.'; 5 << 20];
    content[4 << 20..][..4].copy_from_slice(b"host");
    fs::write(dir.join("f"), &content).unwrap();
    let script = python(
        r#"
import mmap, os, time
print([l.split()[3].split(",")[-1] for l in open("/proc/mounts") if " virtiofs " in l])
m = mmap.mmap(os.open("/mnt/share/f", os.O_RDWR), 5 << 20)
print(m[4 << 20:(4 << 20) + 4])
m[1 << 20:(1 << 20) + 5] = b"guest"
open("/mnt/share/written", "w").close()
deadline = time.time() + 60
while m[:5] != b"later" and time.time() < deadline: time.sleep(0.1)
print(m[:5], flush=True)
"#,
    );
    let running = Vmm::sh(&sandbox, &["--dax", "16M", "--shared-dir", &share(&dir)], &script).spawn();
    wait_for(&dir.join("written"));
    // No request has told the host of it, and none tells the guest.
    assert_eq!(&fs::read(dir.join("f")).unwrap()[1 << 20..][..6], b"guest.");
    let file = OpenOptions::new().write(true).open(dir.join("f")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"later", 0).unwrap();
    let finished = running.finish();
    finished.expect_code(0).expect_out("['dax=always']\nb'host'\nb'later'");
    sandbox.assert_nothing_left();
}

#[test]
fn a_file_larger_than_the_window_gets_through_whole() {
    let sandbox = Sandbox::new();
    let script = "cd /mnt/virtiofs1 && head -c 9M /dev/urandom > /tmp/a && cp /tmp/a b && \
                  echo 3 > /proc/sys/vm/drop_caches && cmp /tmp/a b && rm b && echo same";
    Vmm::sh(&sandbox, &["--dax", "4M"], script).finish().expect_code(0).expect_out("same");
    sandbox.assert_nothing_left();
}

#[test]
fn with_dax_inode_large_files_are_mapped_and_small_ones_are_not() {
    let sandbox = Sandbox::new();
    let dir = sandbox.dir("share");
    fs::write(dir.join("small"), "small").unwrap();
    fs::write(dir.join("large"), vec![b'l'; 2 << 20]).unwrap();
    // STATX_ATTR_DAX is bit 21 of stx_attributes, which is at offset 8.
    let script = python(
        r#"
import ctypes
libc = ctypes.CDLL(None)
for name in (b"small", b"large"):
    buffer = ctypes.create_string_buffer(256)
    libc.statx(-100, b"/mnt/share/" + name, 0, 0x7ff, buffer)
    print(name.decode(), int.from_bytes(buffer.raw[8:16], "little") >> 21 & 1)
"#,
    );
    for (mode, large) in [("inode", 1), ("never", 0)] {
        let flags = ["--dax", "16M", "--dax-mode", mode, "--shared-dir", &share(&dir)];
        let finished = Vmm::sh(&sandbox, &flags, &script).finish();
        finished.expect_code(0).expect_out(&format!("small 0\nlarge {large}"));
    }
    sandbox.assert_nothing_left();
}

#[test]
fn a_file_cut_short_under_a_mapping_is_a_sigbus_in_the_guest_and_the_guest_goes_on() {
    let sandbox = Sandbox::new();
    let dir = sandbox.dir("share");
    for name in ["touched", "untouched"] {
        fs::write(dir.join(name), vec![b'x'; 4 << 20]).unwrap();
    }
    // Of the second file the guest asks for pages only when they are gone.
    let script = python(
        r#"
import mmap, os, time
maps = [mmap.mmap(os.open("/mnt/share/" + name, os.O_RDWR), 4 << 20) for name in ("touched", "untouched")]
maps[0][3 << 20]
open("/mnt/share/mapped", "w").close()
while os.path.exists("/mnt/share/mapped"): time.sleep(0.1)
for m in maps:
    child = os.fork()
    if child == 0: os._exit(m[3 << 20])
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
    print(m[0:1])
open("/mnt/share/after", "w").write("alive")
"#,
    );
    let running = Vmm::sh(&sandbox, &["--dax", "16M", "--shared-dir", &share(&dir)], &script).spawn();
    wait_for(&dir.join("mapped"));
    for name in ["touched", "untouched"] {
        OpenOptions::new().write(true).open(dir.join(name)).unwrap().set_len(1 << 20).unwrap();
    }
    fs::remove_file(dir.join("mapped")).unwrap();
    let finished = running.finish();
    finished.expect_code(0).expect_out("7\nb'x'\n7\nb'x'");
    assert_eq!(fs::read_to_string(dir.join("after")).unwrap(), "alive");
    sandbox.assert_nothing_left();
}

fn wait_for(path: &Path) {
    let deadline = std::time::Instant::now() + tests::patience(120);
    while !path.exists() {
        assert!(std::time::Instant::now() < deadline, "{} does not appear", path.display());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
