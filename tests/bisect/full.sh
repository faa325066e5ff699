#!/usr/bin/env bash
# `make test-bisect`: bisects real histories of a real kernel, and tells whether each planted commit was named.
#   full.sh VMM [SEED=KIND...]     the histories to take; all ten unless given
# The kernel is Debian's linux-source-6.12. Everything is kept in the cache, so that a second time builds little.
# shellcheck source=tests/bisect/source.sh
. "$(dirname "$0")/source.sh"
# Each is a seed and what the bug is like. The first commit that a search tests is the 18th: in 204 that is the one that does not
# build, in 23 the one that does not boot, in 20 the one that breaks something else.
histories=("1=fails" "2=panics" "3=hangs" "4=flaky" "204=fails" "6=panics" "7=hangs" "23=fails" "9=flaky" "20=fails")
[ $# -eq 0 ] || histories=("$@")
make_repository

right=0 summary=()
for history in "${histories[@]}"; do
    seed=${history%%=*} kind=${history#*=}
    name=history-$seed
    "$here/history.sh" "$repository" "$name" "$seed" "$kind"
    planted=$(git -C "$repository" rev-parse "$name-planted")
    repeat=1
    [ "$kind" != flaky ] || repeat=auto
    echo "== $name: $kind, planted $(git -C "$repository" log -1 --format='%h %s' "$planted")"
    begun=$SECONDS
    bisect "$name" "$work/results-$seed" --repeat $repeat
    verdict=wrong
    if [ "$code" = 0 ] && [ "$named" = "$planted" ]; then verdict=right right=$((right + 1)); fi
    summary+=("| $seed | $kind | $verdict (exit code $code) | $boots | $((SECONDS - begun)) |")
done
printf '\n| history | bug | planted commit named | boots | seconds |\n| --- | --- | --- | --- | --- |\n'
printf '%s\n' "${summary[@]}"
echo "$right of ${#histories[@]}"
[ "$right" = ${#histories[@]} ]
