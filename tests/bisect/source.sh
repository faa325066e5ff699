# shellcheck shell=bash
# Sourced by the scripts beside it. Leaves in variables:
#   vmm cache work    its program ($1 of the script), vmm's cache, where what a script makes is kept
#   repository        a git repository of Debian's linux-source-6.12, its only commit the branch `base`; see make_repository
set -euo pipefail
vmm=$(realpath "${1:?no VMM given}")
shift
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=tests/common.sh
. "$here/../common.sh"
work=${VMM_TEST_BISECT_DIR:-$cache/bisect-test}
repository=$work/linux

# Makes the repository, the first time.
make_repository() {
    local tree
    need git
    need_for_kernels
    tree=$(kernel_source)
    git -C "$repository" rev-parse -q --verify base >/dev/null 2>&1 && return
    echo "Making a repository of it" >&2
    mkdir -p "$work"
    rm -rf "$repository"
    cp -a "$tree" "$repository"
    git -C "$repository" init -q -b base
    # Or the first commits would repack it.
    git -C "$repository" config gc.auto 0
    git -C "$repository" add -A -f .
    GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z' \
        git -C "$repository" -c user.name=tester -c user.email=tester@example.org commit -qm 'Linux 6.12'
}

# mkdir first: a kernel in which that is broken says nothing of symlinks.
question='mkdir /mnt/virtiofs1/d || exit 9; ln -s d /mnt/virtiofs1/l || exit 7'

# bisect NAME RESULTS FLAG...: searches the branch that history.sh made as NAME. Leaves vmm's exit code in $code, the commit named in
# $named and the number of boots in $boots.
# shellcheck disable=SC2034 # Scripts that source this use them.
bisect() {
    local name=$1 results=$2 report
    shift 2
    rm -rf "$results"
    code=0 named='' boots=none
    "$vmm" bisect --tree "$repository" --good "$name-good" --bad "$name-bad" --results "$results" "$@" \
        exec --timeout 120s -- sh -c "$question" || code=$?
    for report in "$results"/*/report.json; do
        [ -f "$report" ] || continue
        named=$(sed -n '/"found": {/,/}/s/.*"id": "\(.*\)".*/\1/p' "$report" | head -n 1)
        boots=$(sed -n 's/^  "boots": \([0-9]*\).*/\1/p' "$report")
    done
}
