#!/usr/bin/env bash
# `make test-bisect`: bisects real histories of a real kernel, and tells whether each planted commit was named.
#   full.sh VMM [NAME=KIND...]     the histories to take; all ten unless given
# The kernel is Debian's linux-source-6.12. Everything is kept in the cache, so that a second time builds little.
set -euo pipefail
vmm=$(realpath "${1:?full.sh VMM}")
shift
here=$(dirname "$(realpath "$0")")
cache=${VMM_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/vmm}
work=${VMM_TEST_BISECT_DIR:-$cache/bisect-test}
# Each is a seed and what the bug is like.
histories=(1=fails 2=panics 3=hangs 4=flaky 5=fails 6=panics 7=hangs 8=fails 9=flaky 10=fails)
[ $# -eq 0 ] || histories=("$@")
mkdir -p "$work"

source_tree=$cache/bench/linux-source-6.12
if [ ! -d "$source_tree" ]; then
    echo "Unpacking Debian's linux-source-6.12" >&2
    unpack=$(mktemp -d "$work/unpack.XXXXXX")
    trap 'rm -rf "$unpack"' EXIT
    (cd "$unpack" && apt-get download -q linux-source-6.12 >&2 && dpkg-deb -x ./*.deb . && tar -xf usr/src/linux-source-6.12.tar.xz)
    mkdir -p "$(dirname "$source_tree")"
    mv "$unpack/linux-source-6.12" "$source_tree"
fi
repository=$work/linux
if ! git -C "$repository" rev-parse -q --verify base >/dev/null 2>&1; then
    echo "Making a repository of it" >&2
    rm -rf "$repository"
    cp -a "$source_tree" "$repository"
    git -C "$repository" init -q -b base
    git -C "$repository" add -A -f .
    GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z' \
        git -C "$repository" -c user.name=tester -c user.email=tester@example.org commit -qm 'Linux 6.12'
fi

# mkdir first: a kernel in which that is broken says nothing of symlinks.
question='mkdir /mnt/virtiofs1/d || exit 9; ln -s d /mnt/virtiofs1/l || exit 7'
right=0 summary=()
for history in "${histories[@]}"; do
    seed=${history%%=*} kind=${history#*=}
    name=history-$seed
    "$here/history.sh" "$repository" "$name" "$seed" "$kind"
    planted=$(git -C "$repository" rev-parse "$name-planted")
    repeat=1
    [ "$kind" != flaky ] || repeat=auto
    echo "== $name: $kind, planted $(git -C "$repository" log -1 --format='%h %s' "$planted")"
    results=$work/results-$seed
    rm -rf "$results"
    begun=$SECONDS code=0
    "$vmm" bisect --tree "$repository" --good "$name-good" --bad "$name-bad" --repeat $repeat --results "$results" \
        exec --timeout 120s -- sh -c "$question" || code=$?
    named='' boots=none
    for report in "$results"/*/report.json; do
        [ -f "$report" ] || continue
        named=$(sed -n '/"found": {/,/}/s/.*"id": "\(.*\)".*/\1/p' "$report" | head -n 1)
        boots=$(sed -n 's/^  "boots": \([0-9]*\).*/\1/p' "$report")
    done
    verdict=wrong
    if [ "$code" = 0 ] && [ "$named" = "$planted" ]; then verdict=right right=$((right + 1)); fi
    summary+=("| $seed | $kind | $verdict (exit code $code) | $boots | $((SECONDS - begun)) |")
done
printf '\n| history | bug | planted commit named | boots | seconds |\n| --- | --- | --- | --- | --- |\n'
printf '%s\n' "${summary[@]}"
echo "$right of ${#histories[@]}"
[ "$right" = ${#histories[@]} ]
