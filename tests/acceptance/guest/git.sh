#!/bin/bash
# Runs in the guest: a repository on the share with $1 commits, cloned in each of git's ways, packed, and checked by git itself with
# nothing cached.
set -eux
export GIT_AUTHOR_NAME=guest GIT_AUTHOR_EMAIL=guest@localhost GIT_COMMITTER_NAME=guest GIT_COMMITTER_EMAIL=guest@localhost
export HOME=/root
git config --global core.fsync all
git config --global init.defaultBranch main
cd /mnt/virtiofs1
git init -q origin
cp -r "$(find /usr/share/perl -mindepth 1 -maxdepth 1 -type d)" origin/perl
cd origin
for commit in $(seq "$1"); do
  find perl -name "*$((commit % 10))*.pm" -exec sh -c 'echo "# $1" >>"$2"' sh "$commit" {} \;
  [ "$commit" -gt 1 ] && git mv "file$((commit - 1))" "file$commit" || echo first >file1
  git add -A
  git commit -q -m "Commit $commit"
done
git branch side HEAD~3
git gc -q --aggressive
cd ..
git clone -q origin linked
git clone -q --no-local origin fetched
git clone -q --bare --no-hardlinks origin copied
git -C fetched worktree add -q ../tree origin/side
echo 3 >/proc/sys/vm/drop_caches
for repository in origin linked fetched copied; do
  git -C "$repository" fsck --full --strict
  [ "$(git -C "$repository" rev-parse HEAD)" = "$(git -C origin rev-parse HEAD)" ]
  [ "$(git -C "$repository" rev-list --count HEAD)" = "$1" ]
done
for checkout in origin linked fetched tree; do
  [ -z "$(git -C "$checkout" status --porcelain)" ]
done
diff -r origin/perl fetched/perl
