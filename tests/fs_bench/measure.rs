//! The guest's part: each operation again and again, every one timed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, XattrFlags, fadvise, getxattr, setxattr};

use super::run::{Operation, RESULT, taken, wanted};

/// Entries of the directory that is listed.
const ENTRIES: usize = 10_000;
/// Listings of it: one takes as long as hundreds of other operations.
const LISTINGS: usize = 5;
/// Bytes of the file that is read.
const FILE_SIZE: usize = 64 << 20;
const BLOCK: usize = 4 << 10;
const CHUNK: usize = 1 << 20;
/// Odd, so that stepping by it visits all blocks of the file once, and far from any read-ahead.
const STRIDE: usize = 6_151;
/// The host looks at the marks this often, and so do we.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);
/// A host that does not answer for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);

const ATTRIBUTE: &str = "user.bench";

/// Makes what is read: the directory with many entries, the large file. Made by the host, because making it costs more
/// than all that is measured.
pub(crate) fn populate(share: &Path) -> io::Result<()> {
    let directory = share.join("entries");
    DirBuilder::new().mode(0o755).create(&directory)?;
    for entry in 0..ENTRIES {
        File::create(directory.join(format!("entry-{entry:05}")))?;
    }
    let mut file = File::create(share.join("data"))?;
    for chunk in 0..FILE_SIZE / CHUNK {
        file.write_all(&vec![chunk as u8; CHUNK])?;
    }
    file.sync_all()
}

/// Times all operations below `share`, and leaves the result in `marks`.
pub(crate) fn measure(share: &Path, marks: &Path, ops: usize) -> io::Result<()> {
    let work = share.join("work");
    fs::create_dir(&work)?;
    let file = |index: usize| work.join(format!("file-{index:05}"));
    let mut bench = Bench { marks, next_mark: 0, operations: Vec::new() };

    bench.time("create", ops, |index| OpenOptions::new().write(true).create_new(true).open(file(index)).map(drop))?;
    bench.time("open+close", ops, |index| File::open(file(index)).map(drop))?;
    bench.time("stat of a missing name", ops, |index| match fs::metadata(work.join(format!("none-{index:05}"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("a name that nobody made is there")),
    })?;
    let attribute = file(0);
    setxattr(&attribute, ATTRIBUTE, b"value", XattrFlags::empty())?;
    bench.time("getxattr", ops, |_| {
        let mut value = [0; 64];
        let length = getxattr(&attribute, ATTRIBUTE, &mut value)?;
        if value[..length] == *b"value" { Ok(()) } else { Err(io::Error::other("the attribute has another value")) }
    })?;
    bench.time("chmod", ops, |index| {
        // Never the mode that it has: nothing may be left out.
        fs::set_permissions(file(index), fs::Permissions::from_mode(if index % 2 == 0 { 0o600 } else { 0o640 }))
    })?;
    let renamed = |index: usize| work.join(format!("moved-{index:05}"));
    bench.time("rename", ops, |index| fs::rename(file(index), renamed(index)))?;
    bench.time("unlink", ops, |index| fs::remove_file(renamed(index)))?;

    let entries = share.join("entries");
    bench.time("readdir of 10,000", LISTINGS, |_| {
        match fs::read_dir(&entries)?.try_fold(0, |sum, entry| entry.map(|_| sum + 1))? {
            ENTRIES => Ok(()),
            other => Err(io::Error::other(format!("{other} of {ENTRIES} entries were listed"))),
        }
    })?;
    read_and_write(&mut bench, share, &work, ops)?;
    bench.finish()
}

fn read_and_write(bench: &mut Bench<'_>, share: &Path, work: &Path, ops: usize) -> io::Result<()> {
    let data = File::open(share.join("data"))?;
    let mut block = vec![0; BLOCK];
    // Every block once, so that none is in the guest's cache.
    fadvise(&data, 0, None, Advice::Random)?;
    bench.time("4 KiB random read", ops.min(FILE_SIZE / BLOCK), |index| {
        let at = index * STRIDE % (FILE_SIZE / BLOCK) * BLOCK;
        data.read_exact_at(&mut block, at as u64)?;
        check(&block, at)
    })?;
    fadvise(&data, 0, None, Advice::DontNeed)?;
    fadvise(&data, 0, None, Advice::Sequential)?;
    let mut chunk = vec![0; CHUNK];
    bench.time("1 MiB sequential read", FILE_SIZE / CHUNK, |index| {
        let at = index * CHUNK;
        data.read_exact_at(&mut chunk, at as u64)?;
        check(&chunk, at)
    })?;
    let written = File::create(work.join("written"))?;
    bench.time("1 MiB sequential write", FILE_SIZE / CHUNK, |index| {
        written.write_all_at(black_box(&chunk), (index * CHUNK) as u64)
    })
}

/// Whether what was read from `at` is what [`populate`] wrote there.
fn check(read: &[u8], at: usize) -> io::Result<()> {
    let expected = (at / CHUNK) as u8;
    match (read.first(), read.last()) {
        (Some(&first), Some(&last)) if first == expected && last == expected => Ok(()),
        _ => Err(io::Error::other(format!("wrong data at offset {at}"))),
    }
}

struct Bench<'m> {
    marks: &'m Path,
    next_mark: usize,
    operations: Vec<Operation>,
}

impl Bench<'_> {
    fn time(&mut self, name: &str, count: usize, mut operation: impl FnMut(usize) -> io::Result<()>) -> io::Result<()> {
        let failed = |error| io::Error::other(format!("{name}: {error}"));
        let mut times = Vec::with_capacity(count);
        self.mark()?;
        for index in 0..count {
            let begun = Instant::now();
            operation(index).map_err(failed)?;
            times.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        self.mark()?;
        self.operations.push(Operation::new(name, times));
        Ok(())
    }

    /// Has the host read its counters, and waits until it has.
    fn mark(&mut self) -> io::Result<()> {
        let path = |name: String| self.marks.join(name);
        File::create(path(wanted(self.next_mark)))?;
        let answer = path(taken(self.next_mark));
        let deadline = Instant::now() + PATIENCE;
        while fs::metadata(&answer).is_err() {
            if Instant::now() > deadline {
                return Err(io::Error::other("nobody counts on the host"));
            }
            thread::sleep(PAUSE);
        }
        self.next_mark += 1;
        Ok(())
    }

    /// Leaves the result under its name only when it is whole.
    fn finish(&self) -> io::Result<()> {
        let unfinished: PathBuf = self.marks.join("result.unfinished");
        fs::write(&unfinished, serde_json::to_vec(&self.operations)?)?;
        fs::rename(&unfinished, self.marks.join(RESULT))
    }
}
