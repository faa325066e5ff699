//! Whether the ends make sense: that both are there, and that one is an ancestor of the other.

use anyhow::bail;

use crate::bisect::git::Repository;
use crate::config::UsageError;

/// The ends of a search in commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// Those that do not show yet what is looked for.
    pub(super) old: Vec<String>,
    /// The one that does.
    pub(super) new: String,
}

/// Resolves and checks them. With `fix` what is looked for is the passing: the bad end is the old one.
///
/// # Errors
/// [`UsageError`]: an end is missing, is no commit, or is no ancestor where it has to be.
pub(super) fn check(repository: &Repository, good: &[String], bad: &[String], fix: bool) -> anyhow::Result<Ends> {
    let ((old_flag, old), (new_flag, new)) =
        if fix { (("--bad", bad), ("--good", good)) } else { (("--good", good), ("--bad", bad)) };
    let [new] = new else {
        bail!(UsageError(format!(
            "{new_flag} is needed once, and was given {} times: it is the end that is newer",
            new.len()
        )));
    };
    if old.is_empty() {
        bail!(UsageError(format!(
            "{old_flag} is missing: give the newest commit that is known to be {}",
            &old_flag[2..]
        )));
    }
    let new_id = repository.resolve(new_flag, new)?;
    let mut ids = Vec::new();
    for revision in old {
        let id = repository.resolve(old_flag, revision)?;
        if id == new_id {
            bail!(UsageError(format!("{old_flag} {revision} and {new_flag} {new} are the same commit")));
        }
        if repository.is_ancestor(&id, &new_id)? {
            if !ids.contains(&id) {
                ids.push(id);
            }
            continue;
        }
        if repository.is_ancestor(&new_id, &id)? {
            let hint = if fix { "leave --fix out" } else { "look for the commit that mended it with --fix" };
            bail!(UsageError(format!(
                "{old_flag} {revision} is newer than {new_flag} {new}: exchange them, or {hint}"
            )));
        }
        let Some(base) = repository.merge_base(&id, &new_id)? else {
            bail!(UsageError(format!("{old_flag} {revision} and {new_flag} {new} have no commit in common")));
        };
        let (name, subject) = (repository.describe(&base)?, repository.subject(&base)?);
        bail!(UsageError(format!(
            "{old_flag} {revision} is not an ancestor of {new_flag} {new}; where they part is {name} (\"{subject}\"): if that \
             is {} too, give it instead: {old_flag} {base}",
            &old_flag[2..]
        )));
    }
    Ok(Ends { old: ids, new: new_id })
}
