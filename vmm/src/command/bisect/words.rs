//! The words of the command line, brought into an order that clap can read.

use std::ffi::OsString;

use clap::Command;

/// `vmm bisect OPTIONS -- PATHS run SUITE…` becomes `vmm bisect OPTIONS --path PATH… -- run SUITE…`: what follows the first
/// `run` or `exec` that is no option's value is the question, with its own options and its own `--`. `args` begins with the
/// program's name, `bisect` stands at `at`.
pub(crate) fn separate_question(root: &Command, args: Vec<OsString>, at: usize) -> Vec<OsString> {
    let Some(bisect) = root.find_subcommand("bisect") else { return args };
    let takes_value = |word: &str| {
        let Some(name) = word.strip_prefix("--").filter(|name| !name.contains('=')) else { return false };
        let mut known = bisect.get_arguments().chain(root.get_arguments());
        // `--resume` may stand alone.
        name != "resume" && known.any(|arg| arg.get_long() == Some(name) && arg.get_action().takes_values())
    };
    let (head, rest) = args.split_at(at + 1);
    let mut words = head.to_vec();
    let mut rest = rest.iter();
    let mut in_paths = false;
    while let Some(word) = rest.next() {
        let text = word.to_string_lossy();
        if text == "run" || text == "exec" {
            words.push("--".into());
            words.push(word.clone());
            words.extend(rest.by_ref().cloned());
        } else if in_paths {
            words.extend(["--path".into(), word.clone()]);
        } else if text == "--" {
            in_paths = true;
        } else {
            words.push(word.clone());
            if takes_value(&text) {
                words.extend(rest.next().cloned());
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use crate::cli::{Cli, Command};
    use crate::command::bisect::BisectArgs;

    fn parse(words: &str) -> Result<BisectArgs, clap::Error> {
        let args = words.split_whitespace().map(Into::into).collect();
        match Cli::try_parse_with_suite_flags(args)?.command {
            Command::Bisect(args) => Ok(args),
            other => panic!("not bisect: {other:?}"),
        }
    }

    #[test]
    fn the_question_keeps_its_own_options_and_the_paths_stand_before_it() {
        let args =
            parse("vmm bisect --tree t --good v1 v2 --bad HEAD -- fs/fuse mm run --cpus 2 xfstests -g quick -- x")
                .unwrap();
        assert_eq!((args.good, args.bad), (vec!["v1".to_owned(), "v2".to_owned()], vec!["HEAD".to_owned()]));
        assert_eq!(args.path, ["fs/fuse", "mm"]);
        assert_eq!(args.question, ["run", "--cpus", "2", "xfstests", "-g", "quick", "--", "x"]);
    }

    #[test]
    fn a_command_keeps_its_dashes_and_words_that_are_values_begin_no_question() {
        let args = parse("vmm --cache-dir c bisect --kernels run --repeat auto exec -- sh -c run").unwrap();
        assert_eq!(args.kernels.unwrap(), std::path::Path::new("run"));
        assert_eq!(args.question, ["exec", "--", "sh", "-c", "run"]);
        let args = parse("vmm bisect --tree t --good a --good b --bad c run").unwrap();
        assert_eq!((args.good.len(), args.question), (2, vec!["run".into()]));
    }

    #[test]
    fn going_on_takes_a_folder_or_none_and_nothing_else() {
        assert_eq!(parse("vmm bisect --resume").unwrap().resume, Some(None));
        assert_eq!(parse("vmm bisect --resume results/x").unwrap().resume, Some(Some("results/x".into())));
        assert!(parse("vmm bisect --resume x --good v1").is_err());
        assert!(parse("vmm bisect --resume x run").is_err());
        assert!(parse("vmm bisect --tree t --kernels k run").is_err());
    }
}
