//! The one command that runs a run again.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// `command` as one would type it into a POSIX shell.
pub(crate) fn shell_line(command: &[OsString]) -> OsString {
    let words: Vec<Vec<u8>> = command.iter().map(|word| quoted(word)).collect();
    OsString::from_vec(words.join(&b' '))
}

/// A script that runs `command` in `directory`, with the arguments it is given added.
pub(super) fn script(directory: &Path, command: &[OsString]) -> Vec<u8> {
    let mut script = b"#!/bin/sh\n# Runs this run again, with the same options and in the same place.\ncd -- ".to_vec();
    script.extend(quoted(directory.as_os_str()));
    script.extend(b" && exec ");
    script.extend(shell_line(command).as_bytes());
    script.extend(b" \"$@\"\n");
    script
}

/// Single quotes, inside which only the single quote itself is special.
fn quoted(word: &OsStr) -> Vec<u8> {
    let bytes = word.as_bytes();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_./:=,+@%^".contains(b);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return bytes.to_vec();
    }
    let mut out = vec![b'\''];
    for &byte in bytes {
        if byte == b'\'' {
            out.extend(b"'\\''");
        } else {
            out.push(byte);
        }
    }
    out.push(b'\'');
    out
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn plain_words_stay_readable() {
        let command = ["vmm", "run", "--shared-dir", "/srv/a:myfs1"].map(OsString::from);
        assert_eq!(shell_line(&command), "vmm run --shared-dir /srv/a:myfs1");
    }

    #[test]
    fn a_shell_gives_every_word_back_as_it_was() {
        let mut command = vec![OsString::from("printf"), OsString::from("%s\\0")];
        for word in ["", "a b", "it's", "$HOME `id` \\ \"", "*", "new\nline", "~", "#x", "-n", "!"] {
            command.push(word.into());
        }
        command.push(OsString::from_vec(b"\xff\xfe".to_vec()));
        let script = script(Path::new("/"), &command);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replay.sh");
        std::fs::write(&path, script).unwrap();
        let output = Command::new("sh").arg(&path).arg("one more").output().unwrap();
        let mut words: Vec<OsString> = output.stdout.split(|b| *b == 0).map(|w| OsString::from_vec(w.into())).collect();
        words.pop();
        command.push("one more".into());
        assert_eq!(words, command[2..]);
    }

    #[test]
    fn the_command_runs_where_the_run_was() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("it's here");
        std::fs::create_dir(&place).unwrap();
        let path = dir.path().join("replay.sh");
        std::fs::write(&path, script(&place, &["pwd".into()])).unwrap();
        let output = Command::new("sh").arg(&path).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), place.to_str().unwrap());
    }
}
