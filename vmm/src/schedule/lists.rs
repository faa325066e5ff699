//! The lists that suites gave of their tests in earlier runs: a run that divides its work needs one before anything else, and to
//! get it takes a guest from seconds to minutes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use guest_image::suite::SuiteRun;
use guest_image::{Key, KeyBuilder};

/// Where lists are kept, for guests of certain files. A list is what a suite's command said in a guest of the same kernel, root
/// image and suites, with the same arguments.
#[derive(Clone, Debug)]
pub struct Lists {
    dir: PathBuf,
    /// Digests of all that a guest is made of.
    guest: Vec<String>,
}

impl Lists {
    /// Those of the cache directory `cache`, for guests of files with these digests.
    #[must_use]
    pub fn new(cache: &Path, guest: Vec<String>) -> Self {
        Self { dir: cache.join("lists"), guest }
    }

    fn key(&self, run: &SuiteRun) -> Key {
        let key = self.guest.iter().fold(KeyBuilder::default(), |key, digest| key.with("file", digest));
        let command = run.listing.iter().flat_map(|command| {
            let env = command.env.iter().flat_map(|(name, value)| [("name", name), ("value", value)]);
            command.argv.iter().map(|word| ("word", word)).chain(env).chain([("cwd", &command.cwd)])
        });
        command.fold(key, |key, (label, value)| key.with(label, value)).finish()
    }

    fn file(&self, run: &SuiteRun) -> PathBuf {
        self.dir.join(format!("{}.json", self.key(run).as_str()))
    }

    /// The list of `run`; `None` if it was never made or cannot be read, as it only saves time.
    #[must_use]
    pub fn read(&self, run: &SuiteRun) -> Option<Vec<String>> {
        let list: Vec<String> = serde_json::from_slice(&fs::read(self.file(run)).ok()?).ok()?;
        (!list.is_empty()).then_some(list)
    }

    /// Keeps the list of `run`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, run: &SuiteRun, list: &[String]) -> std::io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let mut new = tempfile::NamedTempFile::new_in(&self.dir)?;
        new.write_all(&serde_json::to_vec(list)?)?;
        new.persist(self.file(run))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use guest_image::suite::Manifest;

    use super::*;

    fn run(args: &[&str]) -> SuiteRun {
        let text = "name = 'x'\ndescription = 'd'\nformat = 'xfstests'\n[build]\nmethod = 'source'\n\
                    [run]\nargv = ['run']\ncwd = '/'\n[tests]\nlist = ['list']\n";
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Manifest::parse("m", text).unwrap().runs(&args, 0).remove(0)
    }

    #[test]
    fn a_list_is_of_one_guest_one_suite_and_its_arguments() {
        let cache = tempfile::tempdir().unwrap();
        let of = |digests: &[&str]| Lists::new(cache.path(), digests.iter().map(|d| (*d).to_owned()).collect());
        let lists = of(&["kernel", "root"]);
        assert_eq!(lists.read(&run(&[])), None);
        lists.keep(&run(&[]), &["a".to_owned(), "b".to_owned()]).unwrap();
        assert_eq!(lists.read(&run(&[])).unwrap(), ["a", "b"]);
        assert_eq!(lists.read(&run(&["-g", "quick"])), None);
        assert_eq!(of(&["kernelr", "oot"]).read(&run(&[])), None);
    }

    #[test]
    fn a_list_that_is_none_is_made_anew() {
        let cache = tempfile::tempdir().unwrap();
        let lists = Lists::new(cache.path(), Vec::new());
        for text in ["", "[]", "[1]", "{"] {
            fs::create_dir_all(&lists.dir).unwrap();
            fs::write(lists.file(&run(&[])), text).unwrap();
            assert_eq!(lists.read(&run(&[])), None, "{text:?}");
        }
    }
}
