#!/usr/bin/env bash
# Part of `make test`: one real history of a real kernel, of three commits. Its second is the bug, and has to be named after as many
# boots as promised; four kernels are built with the one before it, the first from nothing.
#   quick.sh VMM
# shellcheck source=tests/bisect/source.sh
. "$(dirname "$0")/source.sh"
# shellcheck source=tests/bisect/insert.sh
. "$here/insert.sh"
make_repository
name=quick
at() { git -C "$repository" "$@"; }
at checkout -q -B "$name" base
export GIT_AUTHOR_NAME=tester GIT_AUTHOR_EMAIL=tester@example.org GIT_COMMITTER_NAME=tester GIT_COMMITTER_EMAIL=tester@example.org
echo 'static const char fuse_quick_1[] __used = "before";' >>"$repository/fs/fuse/file.c"
at commit -qam 'fuse: change 1'
(cd "$repository" && break_symlink 'return -EIO;')
at commit -qam 'fuse: rework symlink'
planted=$(at rev-parse HEAD)
echo 'static const char fuse_quick_3[] __used = "after";' >>"$repository/fs/fuse/file.c"
at commit -qam 'fuse: change 3'
at tag -f "$name-good" base >/dev/null
at tag -f "$name-bad" >/dev/null
at checkout -q base

results=$(mktemp -d "$work/quick.XXXXXX")
trap 'rm -rf "$results"' EXIT
bisect "$name" "$results"
# log2(3) and the two ends, rounded up.
if [ "$code" != 0 ] || [ "$named" != "$planted" ] || [ "$boots" -gt 4 ]; then
    echo "quick.sh: FAILED: exit code $code, $boots boots, named ${named:-nothing}; it is $planted" >&2
    exit 1
fi
echo "quick.sh: the planted commit was named after $boots boots, ${SECONDS} s in all"
