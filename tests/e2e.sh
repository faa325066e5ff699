#!/usr/bin/env bash
# Runs the end-to-end tests where KVM works: here, or in emulated hosts, one for each group of tests.
#   e2e.sh VMM TEST_BINARY [FILTER...]
# A group is a module of the tests. QEMU's TCG may still kill an emulated host or a guest in it (see docs/emulated-host-faults.md
# for what it did), and a test that meets that fails through no fault of its own. So what did not pass in an emulated host is
# run again in a fresh one, three times in all, and the end names it; what never passes has failed. Where KVM is real,
# nothing is run twice.
set -uo pipefail
vmm=${1:?e2e.sh VMM TEST_BINARY [FILTER...]} binary=${2:?no test binary given}
shift 2
tries=3
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# vmm takes Ctrl-C as its own and exits with a code: without these the next try would begin.
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Runs these tests; what they print is in $log too.
run() {
    # shellcheck disable=SC2016 # It is for the shell inside.
    "$vmm" host exec -- sh -c 'echo "emulated: ${VMM_INSIDE_EMULATED_HOST:-0}"; exec "$@"' sh \
        "$binary" --test-threads 1 --nocapture --exact "$@" 2>&1 | tee "$log"
}

# Those of these tests that did not pass, as $log has it.
not_passed() {
    printf '%s\n' "$@" | grep -vxFf <(sed -n 's/^test \([^ ]*\) \.\.\. \(.*[^a-zA-Z]\)\{0,1\}ok$/\1/p' "$log")
}

mapfile -t all < <("$binary" --list --format terse "$@" | sed -n 's/: test$//p')
[ ${#all[@]} -gt 0 ] || { echo "e2e: $binary has no such tests" >&2; exit 2; }
mapfile -t groups < <(printf '%s\n' "${all[@]}" | sed 's/::.*//' | sort -u)

failed=() again=()
for group in "${groups[@]}"; do
    mapfile -t left < <(printf '%s\n' "${all[@]}" | grep "^$group::")
    for ((try = 1; ; try++)); do
        echo "== $group: ${#left[@]} tests"
        run "${left[@]}" && break
        mapfile -t left < <(not_passed "${left[@]}")
        if [ ${#left[@]} = 0 ]; then
            echo "e2e: every test of $group passed, yet their process failed" >&2
            failed+=("$group")
            break
        fi
        if [ $try = $tries ] || ! grep -q '^emulated: 1' "$log"; then
            failed+=("${left[@]}")
            break
        fi
        again+=("${left[@]}")
        printf 'e2e: not passed in this emulated host, again in a fresh one: %s\n' "${left[@]}"
    done
done
[ ${#again[@]} = 0 ] || printf 'e2e: not passed at once: %s\n' "${again[@]}"
[ ${#failed[@]} = 0 ] || { printf 'e2e: failed: %s\n' "${failed[@]}"; exit 1; }
