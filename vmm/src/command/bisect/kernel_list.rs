//! `--kernels`: ready kernels, oldest first.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::Context;
use guest_image::kernel_image;

use crate::config::UsageError;

/// Reads a file with a kernel a line, or the kernels of a folder in the order of their names, numbers by their values.
///
/// # Errors
/// [`UsageError`]: fewer than two, or one twice.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<String>> {
    let wrong = |why: String| UsageError(format!("--kernels {}: {why}", path.display()));
    let list = match fs::metadata(path) {
        Err(error) => return Err(wrong(error.to_string()).into()),
        Ok(found) if found.is_dir() => of_folder(path)?,
        Ok(_) => of_file(path)?,
    };
    if list.len() < 2 {
        let count = list.len();
        return Err(
            wrong(format!("{count} kernels; at least two are needed, one that is good and one that is bad")).into()
        );
    }
    let mut known = HashSet::new();
    if let Some(twice) = list.iter().find(|kernel| !known.insert(kernel.as_str())) {
        return Err(wrong(format!("{twice} stands there twice")).into());
    }
    Ok(list)
}

fn of_file(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    // Paths are relative to the list, which can so be moved with its kernels.
    let folder = fs::canonicalize(path).ok().and_then(|path| path.parent().map(Path::to_path_buf)).unwrap_or_default();
    let kernel = |line: &str| {
        if line.starts_with("debian:") { line.to_owned() } else { folder.join(line).display().to_string() }
    };
    let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    let list: Vec<String> = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(kernel).collect();
    if let Some(absent) = list.iter().find(|kernel| !kernel.starts_with("debian:") && !Path::new(kernel).exists()) {
        anyhow::bail!(UsageError(format!("--kernels {}: there is no {absent}", path.display())));
    }
    Ok(list)
}

fn of_folder(path: &Path) -> anyhow::Result<Vec<String>> {
    let folder = fs::canonicalize(path).with_context(|| format!("failed to find {}", path.display()))?;
    let entries = fs::read_dir(&folder).with_context(|| format!("failed to read {}", folder.display()))?;
    let files = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file());
    let mut kernels: Vec<String> =
        files.filter(|path| kernel_image::identify(path).is_ok()).map(|path| path.display().to_string()).collect();
    kernels.sort_by_key(|kernel| natural(kernel));
    Ok(kernels)
}

/// A key that sorts 6.9 before 6.12, and a release candidate before its release.
fn natural(name: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut chars = name.chars().peekable();
    while let Some(c) = chars.next() {
        if !c.is_ascii_digit() {
            text.push(c);
            continue;
        }
        let mut digits = String::from(c);
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        // The text before the number decides first.
        parts.push((0, std::mem::take(&mut text)));
        parts.push((digits.parse().unwrap_or(u64::MAX), String::new()));
    }
    // The end of a name comes after `-rc` and before anything else that may follow.
    parts.push((0, if text.is_empty() { "-rd".to_owned() } else { text }));
    parts
}

/// The place that `text` names in the list: a number from 1, a name, or a path.
///
/// # Errors
/// [`UsageError`]: none, or several.
pub(super) fn place(flag: &str, text: &str, list: &[String]) -> Result<usize, UsageError> {
    let wrong = |why: &str| UsageError(format!("{flag} {text}: {why} in the list of {} kernels", list.len()));
    let name = |kernel: &String| Path::new(kernel).file_name().is_some_and(|name| name == text) || kernel == text;
    let named: Vec<usize> = (0..list.len()).filter(|at| name(&list[*at])).collect();
    match (named.as_slice(), text.parse::<usize>()) {
        ([at], _) => Ok(*at),
        ([], Ok(number)) if (1..=list.len()).contains(&number) => Ok(number - 1),
        ([], _) => Err(wrong("there is no such kernel")),
        _ => Err(wrong("there are several of that name; give its number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_as_versions_are() {
        let sorted = ["v6.9", "v6.9.1", "v6.12-rc1", "v6.12-rc10", "v6.12", "v6.12.1", "v7.0"];
        let mut names = sorted;
        names.reverse();
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, sorted);
    }

    #[test]
    fn a_list_has_paths_of_its_own_folder_and_comments() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list");
        fs::write(dir.path().join("one"), "").unwrap();
        fs::write(&list, "# oldest first\none # the good one\n\ndebian:6.12\n").unwrap();
        let kernels = read(&list).unwrap();
        assert_eq!(kernels[1], "debian:6.12");
        assert!(kernels[0].ends_with("/one") && Path::new(&kernels[0]).is_absolute());
        assert_eq!(place("--good", "one", &kernels).unwrap(), 0);
        assert_eq!(place("--bad", "2", &kernels).unwrap(), 1);
        assert!(place("--bad", "3", &kernels).is_err() && place("--bad", "two", &kernels).is_err());
        for (text, says) in [("one\n", "1 kernels"), ("one\none\n", "twice"), ("one\nnone\n", "there is no")] {
            fs::write(&list, text).unwrap();
            let error = read(&list).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(says), "{error}");
        }
        assert!(
            read(dir.path()).unwrap_err().to_string().contains("0 kernels"),
            "files that are no kernels do not count"
        );
        assert!(read(&dir.path().join("absent")).unwrap_err().is::<UsageError>());
    }
}
