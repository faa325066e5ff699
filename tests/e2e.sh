#!/usr/bin/env bash
# Runs the end-to-end tests where KVM works: here, or in emulated hosts, one for each group of tests.
#   e2e.sh VMM TEST_BINARY [FILTER...]
# A group is a module of the tests. QEMU's TCG now and then loses an interrupt or kills the emulated host's kernel (see
# guest-image/agent/src/cpu_wakers.rs), and a test that meets that fails through no fault of its own. So what failed in an
# emulated host is run once more in a fresh one, and the end names it; what fails twice has failed. Where KVM is real,
# nothing is run twice.
set -uo pipefail
vmm=${1:?e2e.sh VMM TEST_BINARY [FILTER...]} binary=${2:?no test binary given}
shift 2
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Runs the tests that the arguments choose; what they print is in $log too.
run() {
    # shellcheck disable=SC2016 # It is for the shell inside.
    "$vmm" host exec -- sh -c 'echo "emulated: ${VMM_INSIDE_EMULATED_HOST:-0}"; exec "$@"' sh \
        "$binary" --test-threads 1 --nocapture "$@" 2>&1 | tee "$log"
}

# The names in the last list of failures in $log.
failures() {
    awk '/^failures:$/ { names = ""; listing = 1; next }
         listing && /^    / { names = names substr($0, 5) "\n"; next }
         { listing = 0 }
         END { printf "%s", names }' "$log"
}

if [ $# -gt 0 ]; then
    groups=("$*")
else
    mapfile -t groups < <("$binary" --list --format terse | sed -n 's/::.*: test$//p' | sort -u | sed 's/$/::/')
fi
[ ${#groups[@]} -gt 0 ] || { echo "e2e: $binary lists no tests" >&2; exit 2; }

failed=() second_try=()
for group in "${groups[@]}"; do
    echo "== $group"
    # shellcheck disable=SC2086 # Filters have no spaces in them.
    run $group && continue
    mapfile -t again < <(failures)
    if ! grep -q '^emulated: 1' "$log"; then
        failed+=("${again[@]:-$group}")
        continue
    fi
    if [ ${#again[@]} -gt 0 ]; then
        echo "e2e: once more in a fresh emulated host: ${again[*]}"
        run --exact "${again[@]}"
    else
        echo "e2e: no verdict from this emulated host; once more in a fresh one: $group"
        # shellcheck disable=SC2086
        run $group
    fi
    if [ $? = 0 ]; then second_try+=("${again[@]:-$group}"); else failed+=("${again[@]:-$group}"); fi
done
[ ${#second_try[@]} = 0 ] || printf 'e2e: passed only at the second try: %s\n' "${second_try[@]}"
[ ${#failed[@]} = 0 ] || { printf 'e2e: failed: %s\n' "${failed[@]}"; exit 1; }
