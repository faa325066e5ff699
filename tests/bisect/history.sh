#!/usr/bin/env bash
# Adds a branch with a bug in fs/fuse to a kernel's repository, for tests of `vmm bisect`.
#   history.sh REPOSITORY NAME SEED KIND [COMMITS]
# The branch NAME begins at the repository's `base`; the bug, a symlink(2) on FUSE that goes wrong, comes with one of the
# COMMITS (36) above it. KIND is how it shows: fails (EIO), panics, hangs, flaky (EIO, 3 times of 10). Besides, one commit
# does not build, one does not boot and one breaks mkdir(2), each mended by the next, so that the ends are sound. Half of
# the others change nothing that a kernel is made of.
# Leaves the tags NAME-good, NAME-bad and NAME-planted. The same SEED gives the same branch.
set -euo pipefail
repository=${1:?no repository given} name=${2:?no name given} seed=${3:?no seed given} kind=${4:?no kind given} commits=${5:-36}
cd "$repository"
RANDOM=$seed
export GIT_AUTHOR_NAME=tester GIT_AUTHOR_EMAIL=tester@example.org GIT_COMMITTER_NAME=tester GIT_COMMITTER_EMAIL=tester@example.org
export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z'

case $kind in
    fails) bug='return -EIO;' ;;
    panics) bug='panic("fuse: planted");' ;;
    hangs) bug='for (;;) cpu_relax();' ;;
    flaky) bug='if (get_random_u32_below(10) < 3) return -EIO;' ;;
    *) echo "history.sh: $kind is no kind of bug: fails, panics, hangs or flaky" >&2; exit 2 ;;
esac

# shellcheck source=tests/bisect/insert.sh
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/insert.sh"
commit() { git commit -qam "$1"; }

# Four different places among the commits, none of them the first or the last two; what is mended takes two.
places=()
while [ ${#places[@]} -lt 4 ]; do
    place=$((2 + RANDOM % (commits - 4)))
    for other in ${places[@]+"${places[@]}"}; do
        [ $((place - other)) -gt 1 ] || [ $((other - place)) -gt 1 ] || continue 2
    done
    places+=("$place")
done
planted=${places[0]} no_build=${places[1]} no_boot=${places[2]} unrelated=${places[3]}

git checkout -q -B "$name" base
git tag -f "$name-good" >/dev/null
for ((n = 1; n <= commits; n++)); do
    case $n in
        "$planted")
            break_symlink "$bug"
            commit 'fuse: rework symlink'
            git tag -f "$name-planted" >/dev/null ;;
        "$no_build")
            echo '#error "half a change"' >> fs/fuse/readdir.c
            commit 'fuse: first half of a change' ;;
        $((no_build + 1)))
            sed -i '/half a change/d' fs/fuse/readdir.c
            commit 'fuse: second half of a change' ;;
        "$no_boot")
            insert fs/fuse/inode.c '^static int __init fuse_init(' 'int res;' 'panic("fuse: too early");'
            commit 'fuse: begin earlier' ;;
        $((no_boot + 1)))
            sed -i '/fuse: too early/d' fs/fuse/inode.c
            commit 'fuse: begin in time' ;;
        "$unrelated")
            insert fs/fuse/dir.c '^static int fuse_mkdir(' 'FUSE_ARGS(args);' 'return -ENOSPC;'
            commit 'fuse: rework mkdir' ;;
        $((unrelated + 1)))
            sed -i '/^static int fuse_mkdir(/,/^}/{/return -ENOSPC;/d}' fs/fuse/dir.c
            commit 'fuse: mend mkdir' ;;
        *)
            if [ $((RANDOM % 2)) = 0 ]; then
                echo "/* Note $n. */" >> fs/fuse/dir.c
                commit "fuse: note $n"
            else
                echo "static const char fuse_history_${n}[] __used = \"fuse history $n, seed $seed\";" >> fs/fuse/file.c
                commit "fuse: change $n"
            fi ;;
    esac
done
git tag -f "$name-bad" >/dev/null
git checkout -q base
