#!/usr/bin/env bash
# The memory that `vmm run` has for itself, beyond the guest's: the most that was seen while a suite ran on two shares.
# Private pages of every mapping but the guest's memory (a memfd), from /proc/PID/smaps. `make bench-memory` runs it, in an
# emulated host where KVM is of no use here.
#
#   memory.sh VMM [run arguments...]
set -euo pipefail
vmm=$1
shift
work=$(mktemp -d "${VMM_SCRATCH_DIR:-/var/tmp}/memory.XXXXXX")
trap 'rm -rf "$work"' EXIT
"$vmm" run --host kvm --quiet --results "$work/results" "$@" >"$work/out" 2>&1 &
pid=$!
most=0 samples=0
while [ -r "/proc/$pid/smaps" ]; do
  # A mapping's first line begins with its addresses; then come its counters. The process may end while we read.
  now=$(awk '/^[0-9a-f]+-[0-9a-f]+ /{guest = /memfd:guest-ram/} /^Private_/ && !guest {sum += $2} END {print sum + 0}' "/proc/$pid/smaps" 2>/dev/null || echo 0)
  [ "$now" -gt "$most" ] && most=$now
  samples=$((samples + 1))
  sleep 0.25
done
code=0
wait "$pid" || code=$?
tail -n 4 "$work/out"
echo "vmm's own private memory: at most $most KiB in $samples samples (exit code $code)"
exit "$code"
