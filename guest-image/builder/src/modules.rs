//! Kernel modules: finding them below a folder, unpacking them, and ordering them so that each comes after what it
//! needs. What a module needs stands in the module itself (`.modinfo`), so that this works on a package that was only
//! unpacked, where depmod has never run and there is no `modules.dep`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};

/// No module is larger than this, bytes; amdgpu has some 30 MiB.
const MAX_MODULE: u64 = 128 << 20;

/// The modules below one folder, by name.
#[derive(Debug, Default)]
pub(crate) struct ModuleIndex {
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
}

/// A module, ready for init_module(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name as in `lsmod`, with underscores.
    pub(crate) name: String,
    /// The ELF file.
    pub(crate) bytes: Vec<u8>,
    /// Names of the modules that it needs directly.
    pub(crate) depends: Vec<String>,
}

/// `virtio-blk.ko.xz` and `virtio_blk` are the same module.
pub(crate) fn module_name(file: &str) -> String {
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

impl ModuleIndex {
    /// Looks through `dir` (a `/lib/modules/RELEASE`, a kernel tree, a plain folder of modules) and reads its
    /// `modules.builtin` if it has one.
    pub(crate) fn scan(dir: &Path) -> Self {
        let mut index = Self::default();
        let builtin = fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
        index.builtin = builtin.lines().filter_map(|l| l.rsplit('/').next()).map(module_name).collect();
        // A kernel tree, of some 90,000 files, lists what was built in it.
        if dir.join("Makefile").is_file()
            && let Ok(order) = fs::read_to_string(dir.join("modules.order"))
        {
            // Lines end in `.o` since 6.4, in `.ko` before, and may begin with `kernel/`.
            let paths = order.lines().map(|l| dir.join(l.strip_prefix("kernel/").unwrap_or(l)).with_extension("ko"));
            let built = paths.filter(|p| p.is_file());
            index.files =
                built.map(|p| (module_name(&p.file_name().unwrap_or_default().to_string_lossy()), p)).collect();
            return index;
        }
        // Sorted, so that of two files of one name the same one is taken each time. Links are not followed: `build` and
        // `source` in /lib/modules lead to whole source trees.
        for entry in walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().flatten() {
            let name = entry.file_name().to_string_lossy();
            if is_module_file(&name) && entry.file_type().is_file() {
                index.files.entry(module_name(&name)).or_insert_with(|| entry.path().to_owned());
            }
        }
        index
    }

    /// Whether the kernel has it built in.
    pub(crate) fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(name)
    }

    /// Whether there is a file for it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// The names of all that there is a file for, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.files.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The modules named in `wanted` that exist, and all that they need, each after what it needs.
    pub(crate) fn closure<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) -> Result<Vec<Module>> {
        let mut done = HashSet::new();
        let mut ordered = Vec::new();
        for name in wanted {
            self.visit(name, &mut done, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn visit(&self, name: &str, done: &mut HashSet<String>, ordered: &mut Vec<Module>) -> Result<()> {
        // Marked before its dependencies are, so that a circle (soft dependencies may have one) ends.
        if !done.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else { return Ok(()) };
        let bytes = read_module(path)?;
        let info = modinfo(&bytes).map_err(|reason| Error::malformed(format!("module {}", path.display()), reason))?;
        let hard = info.iter().filter(|(k, _)| k == "depends").flat_map(|(_, v)| v.split(','));
        // `softdep=pre: crc32c post: x`: what comes before matters, as it is looked up by name when this one starts.
        let soft = info.iter().filter(|(k, _)| k == "softdep").flat_map(|(_, v)| {
            let pre = v.split_once("pre:").map_or("", |(_, rest)| rest.split("post:").next().unwrap_or(rest));
            pre.split_whitespace()
        });
        let depends: Vec<String> = hard.chain(soft).filter(|d| !d.is_empty()).map(module_name).collect();
        for dependency in &depends {
            if !self.has(dependency) && !self.is_builtin(dependency) {
                tracing::debug!(module = name, dependency, "a dependency is neither there nor built in");
            }
            self.visit(dependency, done, ordered)?;
        }
        let depends = depends.into_iter().filter(|d| self.has(d)).collect();
        ordered.push(Module { name: name.to_owned(), bytes, depends });
        Ok(())
    }
}

fn is_module_file(name: &str) -> bool {
    [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|end| name.ends_with(end))
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let packed = fs::read(path).at("read module", path)?;
    let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
    unpack(&packed, &extension).map_err(|e| Error::malformed(format!("module {}", path.display()), e))
}

fn unpack(packed: &[u8], extension: &str) -> Result<Vec<u8>, String> {
    let reader: Box<dyn Read + '_> = match extension {
        "xz" => Box::new(liblzma::read::XzDecoder::new(packed)),
        "zst" => Box::new(ruzstd::decoding::StreamingDecoder::new(packed).map_err(|e| e.to_string())?),
        "gz" => Box::new(flate2::read::GzDecoder::new(packed)),
        _ => Box::new(packed),
    };
    let mut bytes = Vec::new();
    reader.take(MAX_MODULE).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// The `key=value` strings of the section `.modinfo` (include/linux/moduleparam.h, `__MODULE_INFO`).
fn modinfo(elf: &[u8]) -> Result<Vec<(String, String)>, String> {
    use object::{Object, ObjectSection};
    let file = object::File::parse(elf).map_err(|e| format!("it is no ELF file: {e}"))?;
    let section = file.section_by_name(".modinfo").ok_or("it has no .modinfo section")?;
    let data = section.data().map_err(|e| e.to_string())?;
    let strings = data.split(|b| *b == 0).filter_map(|s| std::str::from_utf8(s).ok());
    Ok(strings.filter_map(|s| s.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF relocatable file with nothing but the given `.modinfo`.
    pub(crate) fn fake_module(info: &[&str]) -> Vec<u8> {
        use object::write::{Object, StandardSegment};
        let mut file = Object::new(object::BinaryFormat::Elf, object::Architecture::X86_64, object::Endianness::Little);
        let segment = file.segment_name(StandardSegment::Data).to_vec();
        let section = file.add_section(segment, b".modinfo".to_vec(), object::SectionKind::ReadOnlyData);
        let data: Vec<u8> = info.iter().flat_map(|s| s.bytes().chain([0])).collect();
        file.append_section_data(section, &data, 1);
        file.write().unwrap()
    }

    pub(crate) fn folder(modules: &[(&str, &[&str])], builtin: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, info) in modules {
            let path = dir.path().join("kernel").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, fake_module(info)).unwrap();
        }
        fs::write(dir.path().join("modules.builtin"), builtin).unwrap();
        dir
    }

    fn order(index: &ModuleIndex, wanted: &[&str]) -> Vec<String> {
        index.closure(wanted.iter().copied()).unwrap().into_iter().map(|m| m.name).collect()
    }

    #[test]
    fn modules_come_after_all_that_they_need_and_only_once() {
        let dir = folder(
            &[
                ("a/top.ko", &["depends=mid-one,mid_two"]),
                ("b/mid-one.ko", &["depends=base"]),
                ("b/mid_two.ko", &["depends=base"]),
                ("c/base.ko", &["license=GPL", "depends="]),
                ("c/unused.ko", &["depends="]),
            ],
            "",
        );
        let index = ModuleIndex::scan(dir.path());
        assert_eq!(order(&index, &["top", "base"]), ["base", "mid_one", "mid_two", "top"]);
    }

    #[test]
    fn soft_dependencies_come_first_and_a_circle_of_them_ends() {
        let dir = folder(
            &[
                ("lib.ko", &["softdep=pre: crypto post: late"]),
                ("crypto.ko", &["depends=lib"]),
                ("late.ko", &["depends="]),
            ],
            "",
        );
        assert_eq!(order(&ModuleIndex::scan(dir.path()), &["lib"]), ["crypto", "lib"]);
    }

    #[test]
    fn what_is_built_in_or_absent_is_passed_over() {
        let dir = folder(&[("a.ko", &["depends=fuse,gone"])], "kernel/fs/fuse/fuse.ko\n");
        let index = ModuleIndex::scan(dir.path());
        assert_eq!(order(&index, &["a", "fuse", "nowhere"]), ["a"]);
        assert!(index.is_builtin("fuse") && !index.has("fuse"));
    }

    #[test]
    fn in_a_kernel_tree_the_list_of_what_was_built_is_followed() {
        let tree = folder(&[("built.ko", &["depends="]), ("stale.ko", &["depends="])], "");
        fs::write(tree.path().join("Makefile"), "").unwrap();
        fs::write(tree.path().join("modules.order"), "kernel/built.o\nnet/never_built.o\n").unwrap();
        fs::rename(tree.path().join("kernel/built.ko"), tree.path().join("built.ko")).unwrap();
        let index = ModuleIndex::scan(tree.path());
        assert!(index.has("built") && !index.has("stale") && !index.has("never_built"));
    }

    #[test]
    fn packed_modules_are_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let plain = fake_module(&["depends="]);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
        std::io::Write::write_all(&mut xz, &plain).unwrap();
        fs::write(dir.path().join("x.ko.xz"), xz.finish().unwrap()).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, &plain).unwrap();
        fs::write(dir.path().join("g.ko.gz"), gz.finish().unwrap()).unwrap();
        let zst = ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest);
        fs::write(dir.path().join("z.ko.zst"), zst).unwrap();
        let modules = ModuleIndex::scan(dir.path()).closure(["x", "g", "z"]).unwrap();
        assert_eq!(modules.len(), 3);
        assert!(modules.iter().all(|m| m.bytes == plain));
    }

    #[test]
    fn a_file_that_is_no_module_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bad.ko"), "text").unwrap();
        let error = ModuleIndex::scan(dir.path()).closure(["bad"]).unwrap_err().to_string();
        assert!(error.contains("bad.ko"), "{error}");
    }
}
