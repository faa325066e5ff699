#!/usr/bin/env bash
# fs-inside.sh RUNS OPS CPUS JSON FS_BENCH VMM CACHE BZIMAGE ROOT_IMAGE VIRTIOFSD: the measuring half of fs.sh, run where KVM
# is usable.
set -euo pipefail
runs=$1 ops=$2 cpus=$3 json=$4 bench=$5 vmm=$6 cache=$7 bzimage=$8 image=$9 virtiofsd=${10}
. "$(dirname "$0")/candidates.sh"
cp "$bench" "$base/bin/"
bench=$base/bin/fs-bench
[ -d /sys/kernel/debug/kvm ] || mount -t debugfs debugfs /sys/kernel/debug
[ -z "${HALT_POLL_NS:-}" ] || echo "$HALT_POLL_NS" >/sys/module/kvm/parameters/halt_poll_ns
jsonl=${json%.json}.jsonl # what was measured so far, if the rest fails
: >"$jsonl"
"$bench" populate "$base/myfs1"

measure() { # measure NAME CPUS
  local counter
  rm -rf "$base"/myfs1/work "$base"/myfs2/*
  cp "$bench" "$base/myfs2/"
  sync
  "$bench" count "$base/myfs2" "$1" "$2" >>"$jsonl" &
  counter=$!
  "candidate_$1" "$2" "/mnt/virtiofs2/fs-bench measure /mnt/virtiofs1 /mnt/virtiofs2 $ops" >&2
  touch "$base/myfs2/ended"
  wait "$counter" || { cat "$base/console.log" >&2; exit 125; }
}
for run in $(seq "$runs"); do
  for count in $cpus; do
    for name in "${candidates[@]}"; do
      echo "run $run of $runs: $name, $count vCPUs" >&2
      measure "$name" "$count"
    done
  done
done
"$bench" table "$jsonl" "$json"
